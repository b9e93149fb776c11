from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import yaml

from brainmap.errors import DataError, NotFoundError, UsageError
from brainmap.export import EXPORT_KINDS
from brainmap.export.formats import EXPORT_NAMES, export_points
from brainmap.image.volume import Volume
from brainmap.points.table import Points

META = {"voxel_um": [5, 2, 2], "atlas": "test_50um_v1.0", "atlas_shape": [12, 10, 9]}
COMMA = "Primary area, layer 1"
# region_id, acronym, name, left, right: direct counts; volumes.
REGIONS = [
    (8, "grey", "Grey", (0, 0), (0.0, 0.0)),
    (9, "A1", COMMA, (2, 1), (0.5, 0.25)),
    (7, "B", "B", (0, 0), (1, 1)),
]


def make_run(folder: Path, points: Points | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    if points is None:
        points = Points(
            {
                "z": np.array([0.2, 3.6, 10.0, 11.0, 12.0]), "y": np.array([1.0, 2.4, 20.0, 21.0, 22.0]),
                "x": np.array([5.0, 6.0, 30.0, 31.0, 32.0]),
                "z_um": np.array([1.0, 18.0, 50.0, 55.0, 60.0]),
                "y_um": np.array([2.0, 4.8, 40.0, 42.0, 44.0]),
                "x_um": np.array([10.0, 12.0, 60.0, 62.0, 64.0]),
                "score": np.array([0.5, 0.75, 1, 0.25, 0.9], np.float32),
                "atlas_z_um": np.array([25.0, 99.0, 101.0, np.nan, 130.0]),
                "atlas_y_um": np.array([75.0, 149.9, 150.0, np.nan, 130.0]),
                "atlas_x_um": np.array([125.0, 10.0, 60.0, np.nan, 130.0]),
                "region_id": np.array([9, 9, 0, 0, 9]), "hemisphere": np.array([1, 1, 0, 0, 2], np.int8),
            },
            META,
        )  # fmt: skip
    points.write(folder / "points.parquet")
    with (folder / "regions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            "region_id acronym name parent_id depth hemisphere count volume_mm3 density_per_mm3 "
            "count_direct volume_direct_mm3".split()
        )
        writer.writerow([0, "outside", "outside", 0, 0, "both", 2, "", "", 2, ""])
        for identifier, acronym, name, counts, volumes in REGIONS:
            for side, n, v in zip(
                ("left", "right", "both"), (*counts, sum(counts)), (*volumes, sum(volumes)), strict=True
            ):
                writer.writerow([identifier, acronym, name, 8, 1, side, n, v, "", n, v])
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


@pytest.mark.parametrize("kind", EXPORT_KINDS)
def test_every_kind_goes_to_its_place(run: Path, kind: str) -> None:
    assert export_points(run, kind) == run / "exports" / EXPORT_NAMES[kind]
    assert [path.name for path in (run / "exports").iterdir()] == [EXPORT_NAMES[kind]]
    # Once more: an export replaces the one before.
    export_points(run, kind)
    elsewhere = run / "elsewhere"
    assert export_points(run, kind, elsewhere) == elsewhere


@pytest.mark.parametrize("kind", [kind for kind in EXPORT_KINDS if kind != "brainrender"])
def test_a_run_without_cells_can_be_exported(tmp_path: Path, kind: str) -> None:
    empty = make_run(tmp_path / "run", Points.empty(meta=META))
    assert export_points(empty, kind).exists()


def test_brainglobe_xml(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="brainmap"):
        path = export_points(run, "brainglobe-xml")
    lines = path.read_text().splitlines()
    assert lines[0] == '<?xml version="1.0" encoding="UTF-8"?>'
    # brainglobe recognises its files by this line.
    assert "<CellCounter_Marker_File>" in lines
    root = ElementTree.parse(path).getroot()
    data = root.find("Marker_Data")
    assert data is not None
    (kind,) = data.findall("Marker_Type")
    assert kind.findtext("Type") == "2"
    cells = [
        tuple(int(marker.findtext(f"Marker{axis}") or "") for axis in "XYZ")
        for marker in kind.findall("Marker")
    ]
    # Whole voxels, nearest, none below 1.
    assert cells == [(5, 1, 1), (6, 2, 4), (30, 20, 10), (31, 21, 11), (32, 22, 12)]
    assert "1 cells in voxel 0" in caplog.text


def test_brainglobe_csv(run: Path) -> None:
    path = export_points(run, "brainglobe-csv")
    assert path.read_text().splitlines()[0] == ",score,z_vox,y_vox,x_vox,x,y,z,type"
    table = pd.read_csv(path, index_col=0)
    assert table.index.tolist() == [0, 1, 2, 3, 4]
    assert table[["x", "y", "z", "type"]].to_numpy().tolist()[1] == [6, 2, 4, 2]
    assert table["z_vox"].tolist()[1] == 3.6
    assert table["x"].dtype == np.int64


def test_brainglobe_yaml(run: Path) -> None:
    content = yaml.safe_load(export_points(run, "brainglobe-yaml").read_text())
    assert content["CellCounter_Marker_File"] is True
    assert content["num_candidates"] == 5
    assert content["candidate_cells"][1] == {
        "x": 6, "y": 2, "z": 4, "type": 2,
        "metadata": {"score": 0.75, "z_vox": 3.6, "y_vox": 2.4, "x_vox": 6.0},
    }  # fmt: skip
    assert isinstance(content["brainglobe_utils_version"], str)


def test_brainmapper_tables(run: Path) -> None:
    folder = export_points(run, "brainmapper")
    points = pd.read_csv(folder / "all_points.csv", keep_default_na=False)
    assert points.columns.tolist() == [
        *(f"coordinate_raw_axis_{i}" for i in range(3)), *(f"coordinate_atlas_axis_{i}" for i in range(3)),
        "structure_name", "hemisphere",
    ]  # fmt: skip
    # Cells outside the atlas are left out, and the rows behind them stay aligned.
    assert points.to_numpy().tolist() == [
        [0, 1, 5, 0, 1, 2, COMMA, "left"],
        [4, 2, 6, 1, 2, 0, COMMA, "left"],
        [12, 22, 32, 2, 2, 2, COMMA, "right"],
    ]
    summary = pd.read_csv(folder / "summary.csv")
    assert summary.columns.tolist() == (
        "structure_name,left_cell_count,right_cell_count,total_cells,left_volume_mm3,right_volume_mm3,"
        "total_volume_mm3,left_cells_per_mm3,right_cells_per_mm3"
    ).split(",")
    assert summary.to_numpy().tolist() == [
        ["B", 0, 0, 0, 1.0, 1.0, 2.0, 0.0, 0.0],
        [COMMA, 2, 1, 3, 0.5, 0.25, 0.75, 4.0, 4.0],
    ]
    volumes = pd.read_csv(folder / "volumes.csv")
    assert (
        volumes.columns.tolist()
        == "structure_name,left_volume_mm3,right_volume_mm3,total_volume_mm3".split(",")
    )
    assert volumes["structure_name"].tolist() == ["B", COMMA]
    assert summary["total_cells"].sum() == len(points)


def test_density_without_volume_is_empty(run: Path) -> None:
    text = (run / "regions.csv").read_text().replace("left,2,0.5,,2,0.5", "left,2,0,,2,0")
    (run / "regions.csv").write_text(text)
    summary = pd.read_csv(export_points(run, "brainmapper") / "summary.csv")
    assert np.isnan(summary.loc[summary["structure_name"] == COMMA, "left_cells_per_mm3"].item())


def test_napari_csv(run: Path) -> None:
    table = pd.read_csv(export_points(run, "napari"))
    assert table.columns.tolist() == ["index", "axis-0", "axis-1", "axis-2", "score"]
    assert table.iloc[1].tolist() == [1, 3.6, 2.4, 6.0, 0.75]


def test_brainrender_array(run: Path) -> None:
    array = np.load(export_points(run, "brainrender"))
    # Cells without atlas coordinates are left out, and so are those outside its regions: they hang beside the brain.
    np.testing.assert_allclose(array, [[25, 75, 125], [99, 149.9, 10], [130, 130, 130]], rtol=1e-6)


def test_brainrender_needs_an_atlas(tmp_path: Path) -> None:
    points = Points({name: np.full(2, np.nan) for name in ("atlas_z_um", "atlas_y_um", "atlas_x_um")})
    run = make_run(tmp_path / "run", points)
    with pytest.raises(DataError, match="no atlas coordinates"):
        export_points(run, "brainrender")
    assert list((run / "exports").iterdir()) == []


@pytest.mark.parametrize("kind", [kind for kind in EXPORT_KINDS if kind != "quint"])
def test_a_missing_column_is_named(tmp_path: Path, kind: str) -> None:
    run = make_run(tmp_path / "run", Points({"w": np.zeros(3)}))
    with pytest.raises(DataError, match=r"lacks the column .*, which this export needs"):
        export_points(run, kind)


@pytest.mark.parametrize("kind", ["brainmapper", "quint"])
def test_tables_per_region_need_regions(run: Path, kind: str) -> None:
    (run / "regions.csv").unlink()
    with pytest.raises(NotFoundError, match=r"there is no .*regions\.csv.*--atlas"):
        export_points(run, kind)


def test_quint_table(run: Path) -> None:
    table = pd.read_csv(export_points(run, "quint"), sep=";", index_col="Region ID", keep_default_na=False)
    assert table.index.tolist() == [0, 8, 9, 7]
    assert table["Object count"].tolist() == [2, 0, 3, 0]
    row = table.loc[9]
    assert row["Region name"] == COMMA
    assert float(row["Region area"]) == 0.75
    assert row["Area unit"] == "mm3"
    assert int(row["Region pixels"]) == 0.75e9 / 20
    assert (int(row["Left object count"]), int(row["Right object count"])) == (2, 1)
    assert float(row["Right region area"]) == 0.25
    assert table.loc[0, ["Region pixels", "Region area", "Left object count"]].tolist() == ["N/A"] * 3
    assert (table[["Object pixels", "Object area", "Load"]] == "N/A").all(axis=None)


def test_quint_needs_the_voxel_size(tmp_path: Path, run: Path) -> None:
    points = Points(Points.read(run / "points.parquet").columns, {})
    with pytest.raises(DataError, match="does not name the voxel size"):
        export_points(make_run(tmp_path / "a", points), "quint")


def test_density_of_known_cells(tmp_path: Path, run: Path) -> None:
    rng = np.random.default_rng(0)
    points = Points.read(run / "points.parquet").take(np.zeros(400, int))
    mapped = rng.normal((1020, 980, 1260), 60, (400, 3))
    mapped[0] = np.nan
    columns = dict(zip(("atlas_z_um", "atlas_y_um", "atlas_x_um"), mapped.T, strict=True))
    region = np.where(np.arange(400) < 10, 0, 9)
    # 2000 x 2000 x 2500 um, by an atlas of 25 um: the grid does not depend on its resolution.
    meta = {"atlas_resolution_um": [25, 25, 25], "atlas_shape": [80, 80, 100]}
    folder = make_run(tmp_path / "a", points.with_columns(region_id=region, **columns).with_meta(**meta))
    volume = Volume.open(export_points(folder, "density"))
    assert (volume.shape, volume.voxel_um, volume.origin_um) == ((40, 40, 50), (50,) * 3, (25,) * 3)
    assert volume.orientation == "asr"
    density = volume.read(*(slice(0, n) for n in volume.shape)).astype(float)
    # Cells outside the structures do not count.
    assert density.sum() * 0.05**3 == pytest.approx(390, rel=1e-3)
    axes = [(np.arange(n) + 0.5) * 50 for n in volume.shape]
    for axis, (um, mean) in enumerate(zip(axes, mapped[10:].mean(axis=0), strict=True)):
        profile = density.sum(axis=tuple(other for other in range(3) if other != axis))
        centre = np.average(um, weights=profile)
        assert centre == pytest.approx(mean, abs=5)
        # The cells' own scatter and the kernel's 100 um.
        assert np.sqrt(np.average((um - centre) ** 2, weights=profile)) == pytest.approx(117, abs=8)


def test_density_needs_the_shape_of_the_atlas(tmp_path: Path, run: Path) -> None:
    points = Points(Points.read(run / "points.parquet").columns, {"atlas": "test_50um_v1.0"})
    with pytest.raises(DataError, match=r"shape of its atlas.*brainmap regions"):
        export_points(make_run(tmp_path / "a", points), "density")


def test_brainmapper_needs_the_resolution_and_known_regions(tmp_path: Path, run: Path) -> None:
    points = Points.read(run / "points.parquet")
    without = make_run(tmp_path / "a", Points(points.columns, {}))
    with pytest.raises(DataError, match="resolution of its atlas"):
        export_points(without, "brainmapper")
    other = make_run(tmp_path / "b", points.with_columns(region_id=np.array([9, 9, 0, 0, 4711])))
    with pytest.raises(DataError, match="has no region 4711"):
        export_points(other, "brainmapper")


def test_resolution_that_the_table_names_wins(tmp_path: Path, run: Path) -> None:
    points = Points.read(run / "points.parquet").with_meta(atlas_resolution_um=[25, 75, 125])
    folder = export_points(make_run(tmp_path / "a", points), "brainmapper")
    table = pd.read_csv(folder / "all_points.csv")
    assert table[[f"coordinate_atlas_axis_{i}" for i in range(3)]].to_numpy()[0].tolist() == [1, 1, 1]


def test_unknown_kind_and_run(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--export must be one of"):
        export_points(run, "excel")
    with pytest.raises(NotFoundError, match="no table of points"):
        export_points(tmp_path, "napari")


def test_neuroglancer_info(run: Path) -> None:
    info = json.loads((export_points(run, "neuroglancer") / "info").read_text())
    assert info["@type"] == "neuroglancer_annotations_v1"
    assert info["annotation_type"] == "POINT"
    assert list(info["dimensions"]) == ["x", "y", "z"]
    assert [item["id"] for item in info["properties"]] == ["score", "region_id"]
