"""Measured columns: known answers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from brainmap.image.intensity import BAND_CELLS
from brainmap.infer.block.measure import band_weights, mean_around, shapes


def diameters_of(*arguments: object) -> np.ndarray:
    return shapes(*arguments)[0]  # type: ignore[arg-type]


def spot(place: tuple[float, float], fwhm_um: float, pixel_um: float = 2.0, size: int = 64) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    r = np.hypot(y - place[0], x - place[1]) * pixel_um
    return (300 + 500 * np.exp(-(r**2) / (2 * (fwhm_um / 2.355) ** 2))).astype(np.float32)


@pytest.mark.parametrize("fwhm", [6.0, 8.0, 10.0, 13.0])
def test_diameter_of_a_gaussian_is_its_full_width(fwhm: float) -> None:
    found = diameters_of(spot((30.3, 31.6), fwhm), np.array([30.3]), np.array([31.6]), 2.0, 10.0)
    assert found[0] == pytest.approx(fwhm, rel=0.12)


def test_diameter_of_a_ring_is_its_outside() -> None:
    y, x = np.mgrid[:64, :64]
    r = np.hypot(y - 32, x - 32) * 2.0
    ring = (100 + 400 * ((r > 2.0) & (r < 6.0))).astype(np.float32)
    assert diameters_of(ring, np.array([32.0]), np.array([32.0]), 2.0, 10.0)[0] == pytest.approx(12, abs=2)


def test_a_neighbour_changes_the_diameter_little() -> None:
    one = spot((32, 32), 8.0)
    two = one + spot((32, 37), 8.0) - 300
    places = (np.array([32.0]), np.array([32.0]))
    alone, beside = (diameters_of(i.astype(np.float32), *places, 2.0, 10.0)[0] for i in (one, two))
    assert beside == pytest.approx(alone, rel=0.25)


def test_flat_tissue_has_no_diameter() -> None:
    found = diameters_of(np.full((20, 20), 7, np.float32), np.array([9.0]), np.array([9.0]), 2.0, 10.0)
    assert np.isnan(found).all()
    assert len(diameters_of(np.zeros((4, 4), np.float32), np.zeros(0), np.zeros(0), 2.0, 10.0)) == 0


def test_mean_around_leaves_out_what_is_beyond_the_image() -> None:
    image = np.arange(20, dtype=np.float32).reshape(4, 5)
    means = mean_around(image, np.array([1.2, 0.0, 3.4]), np.array([1.9, 0.0, 4.0]))
    expected = [image[0:3, 1:4].mean(), image[:2, :2].mean(), image[2:, 3:].mean()]
    np.testing.assert_allclose(means, expected)


def test_band_is_a_difference_of_gaussians() -> None:
    rng = np.random.default_rng(0)
    image = ndimage.gaussian_filter(rng.standard_normal((80, 80)), 1.5).astype(np.float32)
    y, x = np.meshgrid(np.arange(16.0, 64, 4), np.arange(16.0, 64, 4), indexing="ij")
    band = shapes(image, y.ravel(), x.ravel(), 2.0, 10.0)[1]
    narrow, wide = (ndimage.gaussian_filter(image, width * 10.0 / 2.0) for width in BAND_CELLS)
    wanted = (narrow - wide)[y.ravel().astype(int), x.ravel().astype(int)]
    assert np.corrcoef(band, wanted)[0, 1] > 0.98
    np.testing.assert_allclose(band.std(), wanted.std(), rtol=0.15)


def test_nothing_stands_out_of_a_flat_image() -> None:
    assert abs(band_weights().sum()) < 1e-6
    flat = np.full((40, 40), 1234, np.float32)
    assert abs(shapes(flat, np.array([20.0]), np.array([20.0]), 2.0, 10.0)[1][0]) < 1e-2
