"""Reading clicks: lenient where harmless, one clear sentence where not."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from brainmap.errors import DataError, NotFoundError
from brainmap.gt.clicks import Clicks, check_image_ids, read_clicks
from brainmap.tiles.tiles import write_tiles


def write(path, text):
    path.write_text(text)
    return path


def test_ids_are_strings_and_unknown_columns_are_ignored(tmp_path):
    path = write(tmp_path / "c.csv", "image_id,colour,worker_id,x,y\n0001,red,007,1,2\n0001,,7,3,4\n")
    clicks = read_clicks(path)
    assert clicks.image_ids == ("0001",) and clicks.worker_ids == ("007", "7")
    assert clicks.xy.tolist() == [[1, 2], [3, 4]]
    # Without sizes the image is the bounding box.
    assert (clicks.height[0], clicks.width[0]) == (5, 4)


def test_parquet_equals_csv(tmp_path):
    csv = read_clicks(write(tmp_path / "c.csv", "image_id,worker_id,x,y\nb,w,1,2\na,v,3,4.5\n"))
    table = pa.table({"image_id": ["b", "a"], "worker_id": ["w", "v"], "x": [1, 3], "y": [2.0, 4.5]})
    pa.parquet.write_table(table, tmp_path / "c.parquet")
    parquet = read_clicks(tmp_path / "c.parquet")
    assert csv.image_ids == parquet.image_ids and (csv.xy == parquet.xy).all()


def test_unusable_rows_are_dropped_and_counted(tmp_path):
    rows = [
        "a,w,1,1",
        "a,w,1,1",
        "a,w,nan,1",
        "a,w,,2",
        "a,w,inf,2",
        "a,w,50,2",
        "a,w,-3,2",
        ",w,1,1",
        "a,,1,1",
    ]
    text = "image_id,worker_id,x,y,height,width\n" + "".join(r + ",20,30\n" for r in rows)
    clicks = read_clicks(write(tmp_path / "c.csv", text))
    assert len(clicks) == 1 and (clicks.height[0], clicks.width[0]) == (20, 30)
    assert clicks.dropped == {
        "without an id": 2,
        "without finite coordinates": 3,
        "outside the image": 2,
        "duplicate": 1,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_id,worker_id,x\na,w,1\n", "needs one column 'y'"),
        ("image_id,worker_id,x,y\na,w,left,1\n", "column x holds something that is no number"),
        ("image_id,worker_id,x,y\n", "holds no clicks"),
        ("image_id,worker_id,x,y\na,w,nan,1\n", "no usable clicks"),
        ("", "cannot be read as a table"),
        ("image_id,worker_id,x,y,height,width\na,w,1,1,9,9\na,w,2,2,8,9\n", "more than one size"),
        ("image_id,worker_id,x,y\na,w,1e9,1e9\n", "check its coordinates"),
        ("image_id,worker_id,x,y\n../a,w,1,1\n", "cannot be a file name"),
        ("image_id,worker_id,x,x\na,w,1,1\n", "needs one column"),
    ],
)
def test_bad_tables(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_clicks(write(tmp_path / "c.csv", text))


def test_missing_files(tmp_path):
    with pytest.raises(NotFoundError):
        read_clicks(tmp_path / "no.csv")
    path = write(tmp_path / "c.csv", "image_id,worker_id,x,y\na,w,1,1\n")
    with pytest.raises(NotFoundError, match="no tile folder"):
        read_clicks(path, tiles=tmp_path)


@pytest.mark.parametrize("name", ["../x", "/x", "a//b", "a/../b", "a\\b", "..", "a/", "x\0", "c:x"])
def test_ids_that_leave_the_folder(name):
    with pytest.raises(DataError, match="cannot be a file name"):
        check_image_ids([name])


def test_ids_that_need_one_file():
    with pytest.raises(DataError, match="same file"):
        check_image_ids(["a", "a.npy/b"])
    check_image_ids(["a", "a/b", "a.npy"])


def test_assignments_say_who_saw_what(tmp_path):
    path = write(tmp_path / "c.csv", "image_id,worker_id,x,y,height,width\na,w,1,1,9,9\nb,v,2,2,9,9\n")
    pairs = "image_id,worker_id,completed\na,v,true\na,u,0\nb,w,False\nb,v,false\n"
    clicks = read_clicks(path, assignments=write(tmp_path / "a.csv", pairs))
    seen = {
        (clicks.image_ids[i], clicks.worker_ids[w]): bool(c)
        for i, w, c in zip(clicks.seen_image, clicks.seen_worker, clicks.seen_complete, strict=True)
    }
    # v finished a without a click; u and w started and left no trace; v's b is not finished, but has a click.
    assert seen == {("a", "w"): True, ("a", "v"): True, ("b", "v"): False}


def test_an_image_without_clicks_needs_a_size(tmp_path):
    path = write(tmp_path / "c.csv", "image_id,worker_id,x,y\na,w,1,1\n")
    pairs = write(tmp_path / "a.csv", "image_id,worker_id\nb,w\n")
    with pytest.raises(DataError, match="no known size"):
        read_clicks(path, assignments=pairs)
    (tmp_path / "t").mkdir()
    tiles = pa.table({"image_id": ["a", "b"], "height": [7, 8], "width": [9, 10]})
    pa.parquet.write_table(tiles, tmp_path / "t" / "tiles.parquet")
    clicks = read_clicks(path, tiles=tmp_path / "t", assignments=pairs)
    assert clicks.height.tolist() == [7, 8] and clicks.width.tolist() == [9, 10]


def test_order_of_rows_does_not_matter():
    one = Clicks.build(["a", "b", "a"], ["w", "w", "v"], [1, 2, 3], [4, 5, 6])
    two = Clicks.build(["a", "a", "b"], ["v", "w", "w"], [3, 1, 2], [6, 4, 5])
    assert (one.xy == two.xy).all() and (one.image == two.image).all() and (one.worker == two.worker).all()


def test_without_workers():
    clicks = Clicks.build(["a", "b", "a"], ["w", "w", "v"], [1, 2, 3], [4, 5, 6]).without_workers({"v"})
    assert clicks.worker_ids == ("w",) and clicks.image_ids == ("a", "b") and len(clicks) == 2
    assert clicks.seen_worker.tolist() == [0, 0]


def test_clicks_beside_the_tiles(tmp_path, caplog):
    image = np.full((8, 8), 0.3, np.float32)
    tiles = write_tiles(
        tmp_path / "tiles", {"image_id": ["a"], "brain": ["m"], "z": [0], "voxel_um": [(4, 2, 2)]}, [image]
    )
    some = write(tmp_path / "some.csv", "image_id,worker_id,x,y\na,w,1,1\nb,w,1,1\n")
    assert read_clicks(some, tiles=tiles.folder).image_ids == ("a", "b")
    assert "1 of 2 images" in caplog.text and "such as 'b'" in caplog.text
    none = write(tmp_path / "none.csv", "image_id,worker_id,x,y\nb,w,1,1\n")
    with pytest.raises(DataError, match=r"none of the 1 images .* is a tile of"):
        read_clicks(none, tiles=tiles.folder)
