"""Resampling against a brute-force oracle, and its independence of windows and bands."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from brainmap.infer.block.resample import axis_operator, resample_band
from brainmap.infer.plan.blocks import Grid


def area_average(line: np.ndarray, ratio: float, count: int) -> np.ndarray:
    """Mean over [j, j + 1) x ratio by very fine sampling; voxel i covers [i, i + 1)."""
    found = []
    for j in range(count):
        low, high = j * ratio, min((j + 1) * ratio, len(line))
        edges = np.unique(np.concatenate([[low, high], np.arange(np.ceil(low), np.ceil(high))]))
        edges = edges[(edges >= low) & (edges <= high)]
        pieces = [(b - a) * line[int(np.floor((a + b) / 2))] for a, b in itertools.pairwise(edges)]
        found.append(sum(pieces) / (high - low))
    return np.array(found)


def whole(image: np.ndarray, grid: Grid, bands: list[int] | None = None) -> np.ndarray:
    """The net grid of a whole image, read in bands that start at the given rows."""
    groups, height, width = grid.net_shape
    rows, columns = axis_operator(grid, 1, (0, height)), axis_operator(grid, 2, (0, width))
    out = np.zeros((groups, height, width), np.float32)
    edges = [*(bands or [0]), image.shape[1]]
    for a, b in itertools.pairwise(edges):
        raw = image[:, a:b, slice(*columns.span)]
        resample_band(out, raw, (0, image.shape[0]), a, grid, 0, rows, columns)
    return out


@pytest.mark.parametrize("voxel", [0.5, 0.7, 1.0, 1.3, 1.8, 2.0])
def test_shrinking_averages_the_covered_area(voxel: float) -> None:
    line = np.random.default_rng(0).uniform(0, 1000, 97)
    grid = Grid((1, 97, 3), (4.0, voxel, 2.0), 2.0, 1, 1)
    image = np.repeat(line[None, :, None], 3, axis=2).astype(np.float32)
    expected = area_average(line, 2.0 / voxel, grid.net_shape[1])
    np.testing.assert_allclose(whole(image, grid)[0, :, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("voxel", [2.31, 3.0, 4.0])
def test_enlarging_interpolates_linearly(voxel: float) -> None:
    line = np.random.default_rng(0).uniform(0, 1000, 41)
    grid = Grid((1, 3, 41), (4.0, 2.0, voxel), 2.0, 1, 1)
    image = np.repeat(line[None, None, :], 3, axis=1).astype(np.float32)
    place = (np.arange(grid.net_shape[2]) + 0.5) * 2.0 / voxel - 0.5
    expected = np.interp(place, np.arange(41), line)
    np.testing.assert_allclose(whole(image, grid)[0, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "float32", "float64"])
@pytest.mark.parametrize("depth", [9, 8])
def test_groups_are_means_of_slices_and_the_last_may_be_short(dtype: str, depth: int) -> None:
    image = np.random.default_rng(0).integers(0, 200, (depth, 6, 6)).astype(dtype)
    grid = Grid(image.shape, (1.0, 2.0, 2.0), 2.0, 4, 1)
    expected = [image[a : a + 4].mean(axis=0) for a in range(0, depth, 4)]
    np.testing.assert_allclose(whole(image, grid), expected, rtol=1e-6)


@pytest.mark.parametrize("voxel", [(4.0, 0.9, 1.3), (2.0, 1.0, 1.0), (5.0, 2.31, 2.31)])
def test_windows_and_bands_see_the_same_values(voxel: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 60000, (6, 90, 80)).astype(np.uint16)
    grid = Grid(image.shape, voxel, 2.0, max(1, round(4 / voxel[0])), 1)
    full = whole(image, grid)
    np.testing.assert_allclose(whole(image, grid, [0, 13, 40, 41]), full, rtol=1e-6)
    rows, columns = axis_operator(grid, 1, (7, 30)), axis_operator(grid, 2, (5, 21))
    out = np.zeros((grid.net_shape[0], 23, 16), np.float32)
    raw = image[:, slice(*rows.span), slice(*columns.span)]
    resample_band(out, raw, (0, 6), rows.span[0], grid, 0, rows, columns)
    np.testing.assert_array_equal(out, full[:, 7:30, 5:21])


def test_weights_of_each_pixel_sum_to_one_and_the_ends_are_covered() -> None:
    for voxel in (0.31, 0.7, 1.0, 1.999999, 2.0, 2.000001, 3.3):
        grid = Grid((1, 211, 211), (1.0, voxel, voxel), 2.0, 1, 1)
        operator = axis_operator(grid, 1, (0, grid.net_shape[1]))
        np.testing.assert_allclose(operator.weight.sum(axis=1), 1, rtol=1e-6)
        assert operator.span == (0, 211)


def test_one_voxel_per_pixel_is_the_identity() -> None:
    image = np.random.default_rng(0).integers(0, 60000, (2, 11, 12)).astype(np.uint16)
    np.testing.assert_array_equal(whole(image, Grid(image.shape, (4.0, 2.0, 2.0), 2.0, 1, 1)), image)


def test_missing_values_spread_no_further_than_their_pixel() -> None:
    image = np.ones((1, 20, 20), np.float32)
    image[0, 10, 10] = np.nan
    out = whole(image, Grid(image.shape, (4.0, 1.3, 1.3), 2.0, 1, 1), [0, 7, 12])
    assert 1 <= np.isnan(out).sum() <= 4
    assert np.nanmax(np.abs(out - 1)) < 1e-5
