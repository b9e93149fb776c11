"""Synthetic tiles: cells as drawn, composition, exact truth, the folder; texture of real backgrounds."""

from __future__ import annotations

import json
from pathlib import Path

import imagecodecs
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from brainmap.errors import DataError, NotFoundError, UsageError
from brainmap.tiles.tiles import Tiles
from brainmap.train.synthesis.cell_images import CellLook, draw_cells, measure_cells
from brainmap.train.synthesis.placement import Placement, StudyRules
from brainmap.train.synthesis.synthesis import (
    SynthesisSettings,
    heat_map,
    make_tile,
    read_synthesis_settings,
    synthesize,
)
from brainmap.train.synthesis.texture import Texture, bright_spots, plain_background, radial_power

SHAPE = (96, 128)
ROUND = CellLook(look="study", vertices=(60, 60), irregularity=0)
WHITE = CellLook(look="study")
RULES = StudyRules(clusters=(1, 2), cells=(150, 20, 100, 200), spread=(0.3, 0.4))
SETTINGS = SynthesisSettings(height=96, width=128, stride=4, placement=Placement.study(RULES))


class Flat:
    """A background of one grey, remembering what it was asked for."""

    def __init__(self, grey: float = 0.4, look: str = "soft") -> None:
        self.grey, self.look = grey, look
        self.asked: list[tuple[NDArray[np.floating], NDArray[np.floating], int]] = []

    def background(
        self, mask: NDArray[np.floating], cells: NDArray[np.floating], seed: int
    ) -> NDArray[np.float32]:
        self.asked.append((mask, cells, seed))
        return np.full(mask.shape, self.grey, np.float32)


def draw(xy: list[tuple[float, float]], radii: list[float], look: CellLook = ROUND, seed: int = 0):
    centres = np.array(xy, np.float64).reshape(-1, 2)
    return draw_cells(centres, np.array(radii, np.float64), SHAPE, look, np.random.default_rng(seed))


# --- cells


def test_a_disc_lies_where_it_should() -> None:
    drawn = draw([(40.3, 20.0)], [6.0])
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    distance = np.hypot(x - 40.3, y - 20.0)
    assert drawn.inside[distance < 5.98].all() and not drawn.inside[distance > 6].any()
    np.testing.assert_array_equal(drawn.opacity, drawn.inside.astype(np.float32))
    np.testing.assert_array_equal(drawn.cells, drawn.opacity)


def test_outline_is_a_polygon() -> None:
    square = draw([(60, 50)], [20.0], CellLook(look="study", vertices=(4, 4), irregularity=0))
    # A square of half diagonal 20 has area 2 x 20^2.
    assert square.inside.sum() == pytest.approx(800, rel=0.03)
    rough = draw([(60, 50)], [20.0], CellLook(look="study", vertices=(9, 9), irregularity=0.3), seed=1)
    y, x = np.nonzero(rough.inside)
    reach = np.hypot(x - 60, y - 50).max()
    assert reach <= 26 and rough.inside.sum() != square.inside.sum()
    assert ndimage.label(rough.inside)[1] == 1


def test_cells_beyond_the_border_are_cut() -> None:
    drawn = draw([(0, 0), (200, 50), (127, 95)], [8.0, 5.0, 3.0])
    assert drawn.inside[0, 0] and drawn.inside[95, 127]
    assert drawn.inside.sum() == pytest.approx(np.pi / 4 * (64 + 9), rel=0.25)
    empty = draw([], [])
    assert not empty.inside.any() and not empty.opacity.any()


def test_soft_cells_shine_through() -> None:
    look = CellLook(look="soft", irregularity=0, vertices=(60, 60), opacity=(0.5, 0.01, 0.45, 0.55))
    drawn = draw([(60, 50)], [8.0], look)
    assert 0.44 < drawn.opacity[50, 60] < 0.56
    assert drawn.opacity[50, 68] == pytest.approx(drawn.opacity[50, 60] / 2, rel=0.1)
    assert (drawn.cells == 1).all()
    row = drawn.opacity[50, 60:90]
    assert (np.diff(row) <= 0).all() and 0 < row[12] < 0.1
    grain = np.random.default_rng(0).uniform(0.2, 0.4, SHAPE).astype(np.float32)
    composed = drawn.compose(grain)
    np.testing.assert_allclose(composed, drawn.opacity + grain * (1 - drawn.opacity), rtol=1e-6)
    assert composed[48:53, 58:63].std() > 0.3 * grain.std()


def test_measured_cells_are_those_drawn() -> None:
    rng = np.random.default_rng(0)
    y, x = (v.ravel() for v in np.mgrid[40:480:44, 40:480:44])
    centres = np.stack([x, y], axis=1) + rng.uniform(-3, 3, (len(x), 2))
    radii = rng.uniform(5, 9, len(x))
    look = CellLook(look="soft", irregularity=0.05, opacity=(0.4, 0.1, 0.2, 0.6), edge=(0.15, 0.02, 0.1, 0.2))
    drawn = draw_cells(centres, radii, (520, 520), look, rng)
    image = drawn.compose(plain_background((520, 520), rng))
    clicked = centres + rng.normal(0, 1, centres.shape)
    measured = measure_cells([image], [clicked], 7.0)
    assert len(measured) > 0.8 * len(centres)
    assert np.median(measured[:, 0]) == pytest.approx(np.median(radii), rel=0.1)
    fitted = CellLook().fitted(measured)
    assert fitted.look == "soft"
    assert fitted.opacity[0] == pytest.approx(0.4, abs=0.08)
    assert fitted.edge[0] == pytest.approx(0.15, abs=0.08)


def test_what_cannot_be_measured_is_left_out() -> None:
    noise = plain_background((100, 100), np.random.default_rng(0))
    flat = np.full((100, 100), 0.3, np.float32)
    assert len(measure_cells([flat], [np.array([[50.0, 50.0], [1.0, 1.0]])], 7.0)) == 0
    assert len(measure_cells([noise], [np.zeros((0, 2))], 7.0)) == 0
    with pytest.raises(DataError, match="at least 10"):
        CellLook().fitted(np.ones((3, 3)))


@pytest.mark.parametrize(
    "bad",
    [
        {"look": "odd"},
        {"vertices": (2, 5)},
        {"irregularity": 1.0},
        {"opacity": (0.5, 0.1, 0.8, 0.2)},
        {"edge": (1, 0, 0.1, 1)},
    ],
)
def test_bad_looks(bad: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        CellLook(**bad)  # type: ignore[arg-type]


# --- heat maps


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_heat_map_is_the_formula(stride: int) -> None:
    rng = np.random.default_rng(0)
    centres, radii = rng.uniform(8, 88, (12, 2)), rng.uniform(1, 8, 12)
    heat = heat_map(centres, radii, SHAPE, stride)
    place = np.floor((centres + 0.5) / stride)
    y, x = np.mgrid[: SHAPE[0] // stride, : SHAPE[1] // stride]
    expected = np.zeros(heat.shape)
    for (px, py), radius in zip(place, radii, strict=True):
        sigma = (2 * max(1, round(radius / stride)) + 1) / 6
        expected = np.maximum(expected, np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * sigma**2)))
    # The tails are cut beyond three sigma.
    assert np.abs(heat - expected).max() < 0.012
    ones = {(int(py), int(px)) for px, py in place}
    assert {tuple(i) for i in np.argwhere(heat == 1).tolist()} == ones
    assert heat.dtype == np.float32


def test_heat_map_without_cells() -> None:
    assert not heat_map(np.zeros((0, 2)), np.zeros(0), SHAPE, 2).any()


# --- tiles


def test_composition_and_brightness() -> None:
    flat = Flat(0.4)
    settings = SynthesisSettings(
        height=96, width=128, brightness=(0.5, 0.5), placement=Placement.study(RULES), cells=WHITE
    )
    tile = make_tile(settings, flat, np.random.default_rng(0))
    assert 0 < tile.mask.mean() < 0.9 and len(tile.radii)
    np.testing.assert_allclose(tile.image, np.where(tile.mask, 1, 0.2), rtol=1e-6)
    mask, cells, _seed = flat.asked[0]
    np.testing.assert_array_equal(mask, tile.mask)
    np.testing.assert_array_equal(cells, tile.mask)
    bright = make_tile(
        SynthesisSettings(height=96, width=128, brightness=(9, 9)), Flat(), np.random.default_rng(0)
    )
    assert bright.image.max() <= 1


def test_folder(tmp_path: Path) -> None:
    made = synthesize(SETTINGS, Flat(), tmp_path / "s", 3, seed=5)
    tiles = Tiles.open(tmp_path / "s")
    assert list(tiles.ids) == list(made.ids) and len(set(tiles.slice_key)) == 3
    table = pd.read_csv(tmp_path / "s/points.csv", dtype={"image_id": str})
    assert list(table.columns) == ["image_id", "x", "y", "radius"]
    for index, name in enumerate(tiles.ids):
        expected = make_tile(SETTINGS, Flat(), np.random.default_rng([5, index]))
        np.testing.assert_allclose(tiles.image(index), expected.image, atol=0.5 / 255 + 1e-6)
        mask = imagecodecs.png_decode((tmp_path / f"s/masks/{name}.png").read_bytes())
        np.testing.assert_array_equal(mask, expected.mask * 255)
        mine = table[table.image_id == name]
        np.testing.assert_allclose(mine[["x", "y"]], expected.centres, atol=1e-3)
        np.testing.assert_allclose(mine.radius, expected.radii, atol=1e-3)
        heat = np.load(tmp_path / f"s/heatmaps/{name}.npy")
        assert heat.shape == (24, 32) and heat.dtype == np.float32
        np.testing.assert_array_equal(heat, heat_map(expected.centres, expected.radii, SHAPE, 4))
    record = json.loads((tmp_path / "s/synthesis.json").read_text())
    assert SynthesisSettings.from_dict(record["settings"]) == SETTINGS
    assert record["seed"] == 5


def test_the_seed_decides(tmp_path: Path) -> None:
    few = synthesize(SETTINGS, None, tmp_path / "a", 2, seed=5)
    many = synthesize(SETTINGS, None, tmp_path / "b", 3, seed=5)
    other = synthesize(SETTINGS, None, tmp_path / "c", 2, seed=6)
    for index in range(2):
        np.testing.assert_array_equal(few.image(index), many.image(index))
    assert (few.image(0) != other.image(0)).any()
    assert (few.image(0) != few.image(1)).any()


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    class Broken:
        look = "soft"

        def background(self, mask: object, cells: object, seed: int) -> NDArray[np.float32]:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        synthesize(SETTINGS, Broken(), tmp_path / "s", 2, seed=0)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="number of tiles"):
        synthesize(SETTINGS, None, tmp_path / "s", 0, seed=0)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("x")
    with pytest.raises(UsageError, match="no tile folder"):
        synthesize(SETTINGS, None, tmp_path / "mine", 1, seed=0)


def test_a_generator_of_another_look_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    synthesize(SETTINGS, Flat(look="soft"), tmp_path / "same", 1, seed=0)
    assert not caplog.records
    synthesize(SETTINGS, Flat(look="study"), tmp_path / "other", 1, seed=0)
    assert "cells of the look 'study', and these are drawn 'soft'" in caplog.text


# --- settings


def test_shipped_settings_are_the_defaults(repository: Path) -> None:
    assert read_synthesis_settings(repository / "configs/synthesis.toml") == SynthesisSettings()
    assert read_synthesis_settings(None, stride=4, height=None).stride == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[synthesis]\nstrid = 2", "unknown setting 'strid'"),
        ("[other]\nx = 1", "one table"),
        ("[synthesis]\nstride = 3", "1, 2 or 4"),
        ("[synthesis]\nstride = 4\nheight = 510", "multiple of the stride"),
        ("[synthesis]\nbrightness = [1.2, 0.8]", "brightness"),
        ("[synthesis]\nvoxel_um = [1, 0, 1]", "voxel_um"),
        ("[synthesis.cells]\nlook = 'odd'", "look"),
        ("[synthesis.placement]\nclusters = [3]", "placement.clusters"),
        ("stride =", "not valid TOML"),
    ],
)
def test_bad_settings(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(UsageError, match=message):
        read_synthesis_settings(tmp_path / "s.toml")


def test_missing_settings(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_synthesis_settings(tmp_path / "none.toml")


# --- texture


def grainy(seed: int, width: float, shape: tuple[int, int] = (128, 160)) -> NDArray[np.float32]:
    """Noise of a given grain and skewed grey levels."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), width)
    return (0.3 * np.exp(0.3 * noise / noise.std())).clip(0, 1).astype(np.float32)


def test_power_of_white_noise_is_its_variance() -> None:
    image = np.random.default_rng(0).normal(0.5, 0.1, (200, 301))
    power = radial_power(image)
    assert np.nanmean(power) == pytest.approx(0.01, rel=0.05)
    np.testing.assert_allclose(power[30:], 0.01, rtol=0.3)


def test_power_finds_a_frequency() -> None:
    x = np.arange(192)
    wave = np.sin(2 * np.pi * x * 0.205) * np.ones((192, 1))
    assert int(np.nanargmax(radial_power(wave, 50))) == 20
    assert int(np.nanargmax(radial_power(wave.T, 50))) == 20


def test_small_images_have_gaps() -> None:
    power = radial_power(np.random.default_rng(0).normal(size=(16, 16)))
    assert np.isnan(power).any() and np.isfinite(power).any()


def test_texture_gives_real_statistics() -> None:
    real = [grainy(seed, width) for seed, width in ((0, 0.7), (1, 2.0))]
    texture = Texture.fit(real, radius_px=6)
    rng = np.random.default_rng(0)
    for index, image in enumerate(real):
        for start in (plain_background((128, 160), rng), grainy(9, 4), np.full((128, 160), 0.3, np.float32)):
            made = texture.apply(start, index, rng)
            power, wanted = radial_power(made), texture.power[index]
            seen = (wanted > 1e-6) & ~np.isnan(power)
            assert np.mean(np.abs(np.log(power[seen] / wanted[seen]))) < 0.25
            levels = np.quantile(made, np.linspace(0, 1, 257))
            np.testing.assert_allclose(levels[3:-3], texture.levels[index, 3:-3], atol=0.01)
            assert made.shape == image.shape and made.dtype == np.float32


def test_texture_leaves_cells_out() -> None:
    ground = grainy(0, 0.7, (200, 200))
    centres = np.random.default_rng(1).uniform(20, 180, (25, 2))
    look = CellLook(look="soft", opacity=(0.6, 0.01, 0.55, 0.65))
    with_cells = draw_cells(centres, np.full(25, 7.0), (200, 200), look, np.random.default_rng(0)).compose(
        ground
    )
    spots = bright_spots(with_cells, 7.0)
    y, x = np.rint(centres[:, ::-1]).astype(int).T
    assert spots[y, x].mean() > 0.9
    assert bright_spots(ground, 7.0).mean() < 0.1
    clean, dirty = (Texture.fit([image], 7.0) for image in (ground, with_cells))
    raw = np.nanmean(np.abs(np.log(radial_power(with_cells)) - np.log(radial_power(ground)))[:15])
    assert np.abs(np.log(dirty.power) - np.log(clean.power))[0, :15].mean() < 0.5 * raw
    assert np.abs(dirty.levels - clean.levels)[0, 10:-10].max() < 0.06


def test_texture_file(tmp_path: Path) -> None:
    texture = Texture.fit([grainy(0, 1)], 6)
    texture.save(tmp_path / "t.npz")
    again = Texture.load(tmp_path / "t.npz")
    np.testing.assert_array_equal(again.power, texture.power)
    np.testing.assert_array_equal(again.levels, texture.levels)
    assert len(again) == 1
    with pytest.raises(NotFoundError):
        Texture.load(tmp_path / "none.npz")
    (tmp_path / "bad.npz").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="no texture"):
        Texture.load(tmp_path / "bad.npz")
    with pytest.raises(DataError, match="no tile"):
        Texture.fit([], 6)


def test_texture_reaches_the_tiles(tmp_path: Path) -> None:
    texture = Texture.fit([grainy(0, 0.7), 0.5 + 0.3 * grainy(1, 2)], 6)
    settings = SynthesisSettings(
        height=96, width=128, placement=Placement.study(StudyRules(cells=(20, 1, 18, 22)))
    )
    tiles = synthesize(settings, Flat(), tmp_path / "s", 4, 0, texture)
    # Each of the two textures in turn.
    levels = sorted(float(np.median(tiles.image(i))) for i in range(4))
    np.testing.assert_allclose(levels, [0.3, 0.3, 0.59, 0.59], atol=0.03)
