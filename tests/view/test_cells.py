"""The index of a run's cells: all of them, looked up by place, made anew when they change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from brainmap.coords import vox_to_um
from brainmap.errors import DataError
from brainmap.points import spatial_order
from brainmap.points.spatial_order import SpatialOrder, box_of, code_of, sort_in_space
from brainmap.view.cells import open_cells
from brainmap.view.run_data import ViewedRun

from .conftest import BIG_ID, ORIGIN_UM, SHOWN, VOXEL_UM, places

TYPE = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("p_score", "<f4"), ("row", "<u4")])


def records(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    found = np.zeros(n, TYPE)
    for axis, size in zip("xyz", (900, 700, 400), strict=True):
        found[axis] = rng.uniform(0, 1, n) ** 2 * size - 50
    found["p_score"] = rng.random(n)
    return found


def test_codes_and_boxes_are_inverse() -> None:
    box = np.random.default_rng(0).integers(0, 128, (500, 3))
    np.testing.assert_array_equal(box_of(code_of(box)), box)
    # Boxes of a coarser division are one stretch of the curve.
    np.testing.assert_array_equal(code_of(box) >> 6, code_of(box >> 2))


@pytest.mark.parametrize("n", [0, 1, 7, 5000])
def test_look_ups_equal_a_search_of_all(tmp_path: Path, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spatial_order, "_PIECE", 700)
    given = records(n)
    seen: list[int] = []
    order = sort_in_space(
        tmp_path / "o", np.array_split(given, 4), lambda piece: seen.extend(piece["row"].tolist())
    )
    assert seen == list(range(n))
    assert sorted(order.records["row"].tolist()) == list(range(n))
    assert order.starts[-1] == n
    everything = np.stack([given[axis] for axis in "zyx"], axis=-1).astype(float)
    rng = np.random.default_rng(1)
    for _ in range(20):
        low = rng.uniform(-100, 500, 3)
        high = low + rng.uniform(0, 300, 3)
        inside = ((everything >= low) & (everything <= high)).all(axis=1)
        assert sorted(order.within(low, high)["row"].tolist()) == np.flatnonzero(inside).tolist()
        found, distance = order.nearest(low, 60.0)
        expected = np.linalg.norm(everything - low, axis=1)
        np.testing.assert_allclose(distance, np.sort(expected[expected <= 60.0]), rtol=1e-5)
        assert len(found) == len(distance)
    again = SpatialOrder.open(tmp_path / "o")
    assert again == order


def test_places_must_be_finite(tmp_path: Path) -> None:
    given = records(5)
    given["y"][3] = np.nan
    with pytest.raises(DataError, match="no finite place"):
        sort_in_space(tmp_path / "o", [given])


def test_weaker_candidates_are_there_with_their_region(run: Path) -> None:
    opened = ViewedRun.open(run)
    cells = open_cells(opened)
    at = vox_to_um(places(), VOXEL_UM, ORIGIN_UM)
    assert cells.order.n == len(at)
    # Every fifth is weak; the first is one.
    assert cells.nearest(at[0], 5.0, opened.threshold) is None
    weak = cells.nearest(at[0], 5.0, 0.0)
    assert weak is not None
    assert weak["score"] < opened.threshold
    assert weak["region_id"] == 11
    strong = cells.nearest(at[8] + [0, 3, 2], 5.0, opened.threshold)
    assert strong is not None
    np.testing.assert_allclose(strong["zyx_um"], at[8], atol=1e-3)
    assert (strong["region_id"], strong["hemisphere"]) == (BIG_ID, "left")
    assert strong["distance_um"] == pytest.approx(13**0.5, abs=1e-3)


def test_the_index_is_kept_and_made_anew_when_cells_change(run: Path) -> None:
    first = open_cells(ViewedRun.open(run))
    made = (run / "view" / "made.json").stat().st_mtime_ns
    open_cells(ViewedRun.open(run))
    assert (run / "view" / "made.json").stat().st_mtime_ns == made
    points = run / "points.parquet"
    from brainmap.points.table import Points

    table = Points.read(points)
    table.take(slice(0, 10)).write(points)
    assert open_cells(ViewedRun.open(run)).order.n == first.order.n - len(table) + 10


def test_a_run_without_blocks_or_atlas_is_shown_too(run: Path) -> None:
    import shutil

    shutil.rmtree(run / "blocks")
    shutil.rmtree(run / "registration")
    opened = ViewedRun.open(run)
    cells = open_cells(opened)
    assert opened.lowest == opened.threshold
    assert opened.atlas is None
    assert cells.order.n == SHOWN
