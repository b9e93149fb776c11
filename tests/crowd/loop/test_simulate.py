"""A simulated crowd on tiles of a phantom: what shows in a tile, who sees it, how well they click."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from brainmap.crowd.loop.simulate import CrowdModel, ShownCells, cells_of_tiles, truth_of, write_crowd
from brainmap.errors import DataError
from brainmap.gt.aggregate import aggregate
from brainmap.gt.clicks import read_clicks
from brainmap.gt.truth import GroundTruth
from brainmap.points.matching import match_points
from brainmap.tiles.tiles import Tiles, write_tiles


@pytest.fixture
def tiles(tmp_path: Path) -> Tiles:
    columns = {
        "image_id": [f"t{i}" for i in range(6)], "brain": ["b"] * 6, "z": range(0, 60, 10), "y0": [100] * 6,
        "x0": [200] * 6, "voxel_um": [(5.0, 2.0, 2.0)] * 6, "is_qc": [True] + [False] * 5,
    }  # fmt: skip
    return write_tiles(tmp_path / "tiles", columns, [np.full((80, 80), 0.3, np.float32)] * 6)


def test_cells_show_where_the_section_meets_them(tiles: Tiles, tmp_path: Path) -> None:
    rows = [
        "z,y,x,diameter_um",
        "10,110,230,10",
        "10.8,120,240,10",
        "11.2,130,250,10",
        "10,90,230,10",
        "20,110,230,30",
    ]
    (tmp_path / "truth.csv").write_text("\n".join(rows) + "\n")
    shown = cells_of_tiles(tiles, {"b": tmp_path / "truth.csv"})
    # 4 um off the centre of a cell of 10 um shows, 6 um does not; y and x are those of the tile.
    np.testing.assert_allclose(shown["t1"].xy, [[30, 10], [40, 20]])
    assert shown["t1"].depth[0] == 0 and 0.8 < shown["t1"].depth[1] < 1
    assert len(shown["t2"].xy) == 1 and len(shown["t0"].xy) == 0
    assert truth_of(tiles, shown).ids.tolist() == [f"t{i}" for i in range(6)]


def test_a_tile_of_an_unknown_brain_is_refused(tiles: Tiles) -> None:
    with pytest.raises(DataError, match="no table of the cells of b"):
        cells_of_tiles(tiles, {})


def cells(n: int, seed: int) -> ShownCells:
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.arange(6, 80, 10), np.arange(6, 80, 10)), axis=-1).reshape(-1, 2)
    return ShownCells(rng.permutation(grid)[:n].astype(float), np.zeros(n))


def test_qc_tiles_go_to_all_and_work_is_shared(tiles: Tiles, tmp_path: Path) -> None:
    shown = {str(name): cells(20, i) for i, name in enumerate(tiles.ids)}
    write_crowd(tmp_path / "a", tiles, shown, CrowdModel(workers=10, per_tile=4))
    clicks = read_clicks(
        tmp_path / "a" / "clicks.csv", tiles=tiles.folder, assignments=tmp_path / "a" / "assignments.csv"
    )
    seen = np.bincount(clicks.seen_image)
    assert seen.tolist() == [10, 4, 4, 4, 4, 4]
    assert np.ptp(np.bincount(clicks.seen_worker)) <= 1
    write_crowd(tmp_path / "b", tiles, shown, CrowdModel(workers=10, per_tile=4))
    assert (tmp_path / "a" / "clicks.csv").read_bytes() == (tmp_path / "b" / "clicks.csv").read_bytes()


def test_a_crowd_of_students_finds_the_cells_together(tiles: Tiles, tmp_path: Path) -> None:
    shown = {str(name): cells(30, i) for i, name in enumerate(tiles.ids)}
    write_crowd(tmp_path / "c", tiles, shown)
    aggregate(
        tmp_path / "c" / "clicks.csv", tmp_path / "gt", tiles=tiles.folder,
        assignments=tmp_path / "c" / "assignments.csv", qc=["t0"],
    )  # fmt: skip
    truth = GroundTruth.open(tmp_path / "gt")
    found = matched = 0
    for name in shown:
        xy = truth.accepted(name)[0]
        found += len(xy)
        matched += len(match_points(xy, shown[name].xy, 3.0).index_a)
    assert matched > 0.93 * 180
    assert matched > 0.95 * found
