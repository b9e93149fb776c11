from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from brainmap.errors import DataError, NotFoundError
from brainmap.points import table as points_module
from brainmap.points.table import COLUMNS, Points, PointsWriter, iter_points, points_path, read_locations

META = {"frame": "sample", "voxel_um": [5.0, 2.0, 2.0], "atlas": {"name": "phantom"}}


def table(n: int, seed: int = 0) -> Points:
    rng = np.random.default_rng(seed)
    columns = {name: rng.uniform(0, 100, n).astype(dtype) for name, dtype in COLUMNS.items()}
    columns["region_id"] = rng.choice([0, 997, 614454277, 2**40], n)
    return Points(columns, dict(META))


def assert_equal(a: Points, b: Points) -> None:
    assert list(a.columns) == list(b.columns)
    assert a.meta == b.meta
    for name in a.columns:
        np.testing.assert_array_equal(a[name], b[name])
        assert a[name].dtype == b[name].dtype


def test_parquet_round_trip(tmp_path: Path) -> None:
    points = table(1000).with_columns(image_id=np.array([f"{i:04}" for i in range(1000)]))
    points.write(tmp_path / "points.parquet")
    assert_equal(Points.read(tmp_path / "points.parquet"), points)
    assert [path.name for path in tmp_path.iterdir()] == ["points.parquet"]


def test_large_ids_survive(tmp_path: Path) -> None:
    points = table(50)
    points.write(tmp_path / "p.parquet")
    read = Points.read(tmp_path / "p.parquet")
    assert read["region_id"].dtype == np.int64
    assert set(read["region_id"].tolist()) == set(points["region_id"].tolist())


def test_other_readers_understand_the_file(tmp_path: Path) -> None:
    table(10).write(tmp_path / "p.parquet")
    schema = pq.read_schema(tmp_path / "p.parquet")
    assert schema.names == list(COLUMNS)
    assert pq.read_table(tmp_path / "p.parquet").to_pandas()["z"].dtype == np.float64
    metadata = pq.read_metadata(tmp_path / "p.parquet")
    assert metadata.row_group(0).column(0).compression == "ZSTD"
    assert b'"voxel_um": [5.0, 2.0, 2.0]' in metadata.metadata[b"brainmap"]


def test_chosen_columns(tmp_path: Path) -> None:
    table(10).write(tmp_path / "p.parquet")
    assert list(Points.read(tmp_path / "p.parquet", ["x", "z"]).columns) == ["x", "z"]
    with pytest.raises(DataError, match="lacks the column mood"):
        Points.read(tmp_path / "p.parquet", ["z", "mood"])


def test_accessors() -> None:
    points = table(7)
    assert points.zyx_vox.shape == points.zyx_um.shape == points.atlas_zyx_um.shape == (7, 3)
    np.testing.assert_array_equal(points.zyx_vox[:, 0], points["z"])
    np.testing.assert_array_equal(points.zyx_um[:, 2], points["x_um"])
    assert len(points) == 7
    assert "score" in points
    with pytest.raises(DataError, match="no column 'mood'"):
        points["mood"]


def test_take_and_concat_and_with() -> None:
    points = table(10)
    mask = np.arange(10) % 2 == 0
    parts = [points.take(mask), points.take(np.flatnonzero(~mask)), points.take(slice(0, 0)), points.take([])]
    joined = Points.concat(parts)
    assert_equal(joined.take(np.argsort(np.r_[0:10:2, 1:10:2])), points)
    changed = points.with_columns(z=np.zeros(10)).with_meta(frame="other")
    assert (changed["z"] == 0).all()
    assert changed.meta["frame"] == "other"
    assert points.meta["frame"] == "sample"
    assert len(Points.concat([])) == 0


def test_tables_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="equal length"):
        Points({"z": np.zeros(3), "y": np.zeros(2)})
    with pytest.raises(DataError, match="equal length"):
        Points({"z": np.zeros((3, 2))})
    with pytest.raises(DataError, match="different columns"):
        Points.concat([Points.empty(["z"]), Points.empty(["y"])])


def test_writer_streams_what_the_whole_table_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(points_module, "ROW_GROUP", 64)
    parts = [table(n, seed) for seed, n in enumerate((10, 0, 100, 1, 300))]
    with PointsWriter(tmp_path / "p.parquet", META) as writer:
        for part in parts:
            # The order of columns and narrower types do not matter.
            writer.append(Points({name: part[name] for name in reversed(part.columns)}))
        writer.meta["n"] = writer.rows
        assert not (tmp_path / "p.parquet").exists()
    read = Points.read(tmp_path / "p.parquet")
    assert read.meta == {**META, "n": 411}
    whole = Points.concat(parts)
    for name in whole.columns:
        np.testing.assert_array_equal(read[name], whole[name])
    assert pq.read_metadata(tmp_path / "p.parquet").num_row_groups > 3
    batches = list(iter_points(tmp_path / "p.parquet", 100))
    assert max(len(batch) for batch in batches) <= 100
    assert_equal(Points.concat(batches), read)


def test_writer_without_rows_leaves_a_readable_table(tmp_path: Path) -> None:
    with PointsWriter(tmp_path / "p.parquet", META):
        pass
    read = Points.read(tmp_path / "p.parquet")
    assert len(read) == 0
    assert {name: str(array.dtype) for name, array in read.columns.items()} == COLUMNS
    assert list(iter_points(tmp_path / "p.parquet")) == []


def test_writer_leaves_nothing_after_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match="do not fit"),
        PointsWriter(tmp_path / "p.parquet") as writer,
    ):
        writer.append(Points.empty(["z"]))
        writer.append(Points.empty(["y"]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "z", "names"),
    [
        ("z,y,x\n1,2,3\n", 1, "zyx"),
        ("x,y,z,type\n3,2,1,2\n", 1, "xyz"),
        (",x,y,z,type\n0,3,2,1,2\n", 1, "xyz"),
        ("\ufeffZ;Y;X\n1;2;3\n", 1, "zyx"),
        ("index\taxis-0\taxis-1\taxis-2\n0\t1.0\t2.0\t3.0\n", 1, "zyx"),
        (' "x" , "y" \n3,2\n', None, "xy"),
        ("axis-0,axis-1\n2,3\n", None, "yx"),
        ("index,axis-0,axis-1,axis-2,axis-3\n0,7,1,2,3\n", 1, "zyx"),
        ("axis-4;axis-3;axis-2;axis-1;axis-0\n3;2;1;7;7\n", 1, "zyx"),
    ],
)
def test_lenient_csv(tmp_path: Path, text: str, z: float | None, names: str) -> None:
    path = tmp_path / "truth.csv"
    path.write_text(text, encoding="utf-8")
    points = read_locations(path)
    assert set(names) <= set(points.columns)
    assert points["y"].tolist() == [2.0]
    assert points["x"].tolist() == [3.0]
    assert ("z" in points) == (z is not None)
    if z is not None:
        assert points["z"].tolist() == [z]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("axis-0,axis-1,axis-2,axis-3\n0,1,2,3\n1,1,2,3\n", "axis-0 varies"),
        ("axis-0\n1\n", "axis-0, axis-1 and so on"),
        ("axis-0,axis-2\n1,2\n", "axis-0, axis-1 and so on"),
    ],
)
def test_napari_axes_that_say_nothing(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "points.csv").write_text(text)
    with pytest.raises(DataError, match=sentence):
        read_locations(tmp_path / "points.csv")


def test_the_case_of_napari(cases: Path) -> None:
    points, truth = (read_locations(cases / "points_csv" / name) for name in ("napari4.csv", "truth.csv"))
    np.testing.assert_allclose(points.zyx_vox, truth.zyx_vox)


def test_ids_stay_strings(tmp_path: Path) -> None:
    path = tmp_path / "clicks.csv"
    path.write_text("image_id,worker_id,x,y\n0001,07,1,2\n0002,NA,3,4\n")
    points = read_locations(path)
    assert points["image_id"].tolist() == ["0001", "0002"]
    assert points["worker_id"].tolist() == ["07", "NA"]


def test_csv_with_header_only_is_no_points(tmp_path: Path) -> None:
    (tmp_path / "none.csv").write_text("image_id,x,y\n")
    assert len(read_locations(tmp_path / "none.csv")) == 0


def test_parquet_and_run_folder_are_locations(tmp_path: Path) -> None:
    table(5).write(tmp_path / "points.parquet")
    assert_equal(read_locations(tmp_path), read_locations(tmp_path / "points.parquet"))
    assert points_path(tmp_path) == tmp_path / "points.parquet"


def test_integer_parquet_of_another_tool(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1, 2], "y": [3, 4], "image_id": [1, 2]}), tmp_path / "p.parquet")
    points = read_locations(tmp_path / "p.parquet")
    assert points["x"].dtype == np.float64
    assert points["image_id"].tolist() == ["1", "2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a,b\n1,2\n", "needs columns z,y,x or x,y"),
        ("z,x\n1,2\n", "needs columns"),
        ("x,y\n1,up\n", "column y holds values that are not numbers"),
        ("x,y\n1,2\n1,\n", "column y has no finite number in row 2"),
        ("x,y\n1,nan\n", "column y has no finite number in row 1"),
        ("x,y\n1,2,3\n", "is not a readable CSV"),
        ("x,x\n1,2\n", "two columns of the same name"),
    ],
)
def test_bad_csv(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_locations(path)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    for read in (Points.read, read_locations, lambda path: list(iter_points(path))):
        with pytest.raises(NotFoundError, match="there is no table of points"):
            read(tmp_path / "none.parquet")
    table(100).write(tmp_path / "p.parquet")
    cut = tmp_path / "cut.parquet"
    cut.write_bytes((tmp_path / "p.parquet").read_bytes()[:-20])
    with pytest.raises(DataError, match=r"cut\.parquet is not a readable Parquet"):
        read_locations(cut)
