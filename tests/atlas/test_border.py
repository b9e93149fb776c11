"""Distance to the border of a structure: an exact map, interpolated within voxels."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from brainmap.atlas import Atlas
from brainmap.atlas.border import FARTHEST_UM, border_at, border_distances

RESOLUTION = (30.0, 20.0, 25.0)


def by_hand(labels: np.ndarray, resolution: tuple[float, float, float]) -> np.ndarray:
    """From each voxel's centre to the box of every voxel of another structure."""
    voxels = np.array(list(product(*map(range, labels.shape))))
    found = np.full(labels.shape, FARTHEST_UM)
    for voxel in voxels:
        others = voxels[labels[tuple(voxels.T)] != labels[tuple(voxel)]]
        gap = np.maximum(np.abs(others - voxel) - 0.5, 0) * resolution
        distance = np.sqrt((gap**2).sum(axis=1)).min(initial=FARTHEST_UM)
        found[tuple(voxel)] = distance
    return found


@pytest.mark.parametrize("seed", range(4))
def test_map_agrees_with_every_pair_of_voxels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    seeds = rng.uniform(0, (9, 8, 11), (5, 3))
    grid = np.indices((9, 8, 11)).reshape(3, -1).T
    labels = np.argmin(((grid[:, None] - seeds) ** 2).sum(axis=2), axis=1).reshape(9, 8, 11)
    ids = np.array([0, 7, 614_454_277, 9, 11], dtype=np.uint32)[labels]
    np.testing.assert_allclose(border_distances(ids, RESOLUTION), by_hand(ids, RESOLUTION), rtol=1e-3)


def test_far_from_any_border() -> None:
    alone = np.full((4, 4, 4), 5, dtype=np.uint32)
    assert (border_distances(alone, RESOLUTION) == FARTHEST_UM).all()
    alone[0] = 6
    assert border_distances(alone, (400.0, 1.0, 1.0))[:, 0, 0].tolist() == [200, 200, 500, 500]


@pytest.mark.parametrize("axis", range(3))
def test_points_beside_a_plane_within_voxels(axis: int) -> None:
    labels = np.ones((12, 12, 12), dtype=np.uint32)
    np.moveaxis(labels, axis, 0)[5:] = 2
    edge = 5 * RESOLUTION[axis]
    points = np.random.default_rng(0).uniform(0, 12, (400, 3)) * RESOLUTION
    points[:, axis] = np.linspace(edge - 60, edge + 60, 400)
    found = border_at(points, labels, border_distances(labels, RESOLUTION), RESOLUTION)
    np.testing.assert_allclose(found, np.abs(points[:, axis] - edge), atol=0.1)


def test_points_in_a_ball() -> None:
    grid = (np.indices((40, 40, 40)) + 0.5) * 25 - 500
    labels = (np.sqrt((grid**2).sum(axis=0)) < 400).astype(np.uint32)
    points = np.random.default_rng(0).uniform(0, 1000, (3000, 3))
    resolution = (25.0, 25.0, 25.0)
    found = border_at(points, labels, border_distances(labels, resolution), resolution)
    error = found - np.abs(np.linalg.norm(points - 500, axis=1) - 400)
    # The border is made of voxels, and the nearest corner of the staircase counts: about half a voxel short.
    assert np.abs(error).max() < 25 * np.sqrt(3)
    assert -15 < error.mean() < 0


def test_atlas_gives_nan_beyond_its_box(write_atlas: Callable[..., Path]) -> None:
    atlas = Atlas.open(write_atlas())
    points = [[250, 150, 150], [50, 50, 50], [-1, 150, 150], [900, 150, 150], [np.nan, 1, 1], [110, 250, 500]]
    found = atlas.border_um(np.array(points))
    # 50 um from the side of the brain; in the box's corner, one voxel from the brain by its diagonal.
    assert found.dtype == np.float32
    assert found[0] == 50
    assert found[1] == pytest.approx(np.sqrt(3) * 50, rel=1e-3)
    assert np.isnan(found[2:5]).all()
    assert found[5] == pytest.approx(10, abs=0.1)
    assert atlas.border_um(np.empty((0, 3))).shape == (0,)
