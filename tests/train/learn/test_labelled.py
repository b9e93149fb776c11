"""Annotated tiles as training volumes, and the settings of the recipe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from brainmap.errors import DataError, UsageError
from brainmap.gt.truth import GroundTruth
from brainmap.image.intensity import BACKGROUND_VALUE
from brainmap.tiles.tiles import Tiles, write_tiles
from brainmap.train.learn.labelled import labelled_volumes
from brainmap.train.learn.samples import GridSettings, render_targets
from brainmap.train.recipe_settings import Recipe

GRID = GridSettings()
CONFIG = Path(__file__).parents[3] / "configs" / "default_detector.toml"


@pytest.fixture
def tiles(tmp_path: Path) -> Tiles:
    """One tile of 1 um pixels with a bright spot of 15 px at x 40, y 22."""
    y, x = np.mgrid[:96, :96]
    image = np.full((96, 96), BACKGROUND_VALUE, np.float32)
    image[(x - 40) ** 2 + (y - 22) ** 2 < 7.5**2] = 0.8
    columns = {"image_id": ["a"], "brain": ["b"], "z": [0], "voxel_um": [[1.0, 1.0, 1.0]]}
    return write_tiles(tmp_path / "tiles", columns, [image])


def truth(posterior: list[float], xy: list[list[float]]) -> GroundTruth:
    values = np.array(posterior)
    return GroundTruth(
        np.array(["a"]), np.zeros(len(values), np.int64), np.array(xy, float).reshape(-1, 2), values, values,
        None, {"a": (96, 96)},
    )  # fmt: skip


def test_a_cell_lies_where_its_spot_is(tiles: Tiles) -> None:
    volumes = labelled_volumes(tiles, truth([0.9], [[40, 22]]), GRID, 15.0, scales=(0.8, 1.0))
    for volume, scale in zip(volumes, (0.8, 1.0), strict=True):
        _, row, column, radius, _ = volume.cells[0]
        assert radius == pytest.approx(2.5 * scale), "a cell of 15 um is 5 network pixels across"
        spot = volume.stack[0].astype(float)
        weights = spot - spot.min()
        rows, columns = np.indices(spot.shape)
        assert row == pytest.approx((rows * weights).sum() / weights.sum(), abs=0.3)
        assert column == pytest.approx((columns * weights).sum() / weights.sum(), abs=0.3)


def test_what_the_crowd_doubts_is_neither_asked_for_nor_forbidden(tiles: Tiles) -> None:
    points = truth([0.9, 0.3, 0.01], [[40, 22], [70, 70], [20, 80]])
    (volume,) = labelled_volumes(tiles, points, GRID, 15.0, scales=(1.0,))
    targets = render_targets(volume.cells, 0, volume.stack.shape[1:], volume.step_um / GRID.pixel_um)
    assert len(targets.centres) == 1
    scale = 1.0 / 3.0
    doubted = tuple(int((v + 0.5) * scale) for v in (70, 70))
    refused = tuple(int((v + 0.5) * scale) for v in (80, 20))
    assert targets.weight[doubted] == 0
    assert targets.weight[refused] == 1
    assert targets.heat[refused] < 0.01


def test_tiles_without_a_cell_are_refused(tiles: Tiles) -> None:
    with pytest.raises(DataError, match="holds an accepted cell"):
        labelled_volumes(tiles, truth([0.2], [[40, 22]]), GRID, 15.0)


def test_the_shipped_recipe_can_be_read() -> None:
    recipe = Recipe.read(CONFIG)
    assert recipe.polish is not None
    assert recipe.pretrain.pool.inserted > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("folds = 2", "fold = 2"), "unknown setting 'fold' in polish"),
        (("cell_diameter_um = 15.0\n", "\n"), "'cell_diameter_um' is missing in polish"),
        (("[calibration]", "[calibrate]"), "unknown setting 'calibrate'"),
    ],
)
def test_bad_recipes(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    text = CONFIG.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change))
    with pytest.raises(UsageError, match=message):
        Recipe.read(path)
