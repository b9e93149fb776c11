"""A tile on the network's grid is what detection would have shown the network."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from brainmap.errors import DataError
from brainmap.image.array_source import ArraySource
from brainmap.image.intensity import BACKGROUND_VALUE, Intensity
from brainmap.train.learn.samples import GridSettings
from brainmap.train.learn.views import net_tile, resize_to_grid, tile_grid

GRID = GridSettings()


def section(shape: tuple[int, int] = (150, 210)) -> np.ndarray:
    rng = np.random.default_rng(0)
    image = rng.normal(100, 8, shape)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    for y, x in ((40, 50), (90, 160), (120, 30)):
        image += 150 * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 32)
    return image.astype(np.float32)


@pytest.mark.parametrize(("voxel_um", "diameter"), [(1.0, 10.0), (1.0, 15.0), (2.0, 10.0), (3.1, 10.0)])
def test_a_tile_looks_as_in_detection(voxel_um: float, diameter: float) -> None:
    raw = section()
    source = ArraySource(raw[None], (4.0, voxel_um, voxel_um))
    intensity = Intensity.fit(source, diameter)
    axes = [np.arange(float(n)) for n in (1, *raw.shape)]
    tile = np.rint(255 * intensity.normalise(raw[None], *axes)[0]) / 255
    view = net_tile(tile.astype(np.float32), source.voxel_um, GRID, diameter)

    grid = tile_grid(raw.shape, source.voxel_um, GRID, diameter)
    _, height, width = grid.net_shape
    net_axes = (
        np.zeros(1), grid.to_vox(np.arange(float(height)), 1), grid.to_vox(np.arange(float(width)), 2)
    )  # fmt: skip
    expected = intensity.normalise(resize_to_grid(raw, grid)[None], *net_axes)[0] - BACKGROUND_VALUE
    assert view.image.shape == expected.shape
    assert view.image.dtype == np.float32
    # What is left is the tile's 8 bits, and the background's slope within a pixel.
    assert np.abs(view.image - expected).max() < 0.012


def test_there_and_back() -> None:
    view = net_tile(np.full((30, 40), BACKGROUND_VALUE, np.float32), (4.0, 1.0, 0.5), GRID, 15.0)
    xy = np.array([[0.0, 0.0], [39.0, 29.0], [12.25, 3.5]])
    np.testing.assert_allclose(view.to_px(view.to_net(xy)), xy, atol=1e-9)
    # A pixel's centre is the integer: three pixels make a net pixel along y, six along x.
    np.testing.assert_allclose(view.to_net(np.array([[2.5, 1.0]])), [[0.0, 0.0]], atol=1e-9)
    assert view.scale_yx == pytest.approx((1 / 3, 1 / 6))


def test_a_spot_lands_where_the_convention_says() -> None:
    image = np.full((90, 120), BACKGROUND_VALUE, np.float32)
    image[60:63, 30:33] = 0.9
    view = net_tile(image, (4.0, 1.0, 1.0), GRID, 15.0)
    row, column = np.unravel_index(view.image.argmax(), view.image.shape)
    np.testing.assert_allclose(view.to_net(np.array([[31.0, 61.0]])), [[row, column]], atol=1e-9)


def test_the_network_s_own_size_is_the_default() -> None:
    image = np.full((20, 20), 0.4, np.float32)
    assert net_tile(image, (4.0, 2.0, 2.0), GRID).image.shape == (20, 20)
    np.testing.assert_allclose(net_tile(image, (4.0, 2.0, 2.0), GRID).image, 0.1, atol=1e-6)


@pytest.mark.parametrize("image", [np.zeros((0, 5)), np.zeros(5), np.full((4, 4), np.nan)])
def test_no_image_is_one_sentence(image: np.ndarray) -> None:
    with pytest.raises(DataError):
        net_tile(image, (4.0, 1.0, 1.0), GRID)
