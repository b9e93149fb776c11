"""Simulated tissue: the truth is true, equal seeds give equal tissue."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial import cKDTree

from brainmap.train.tissue.tissue import KINDS, TissueConfig, simulate, variant

SMALL = TissueConfig(
    shape=(12, 120, 120),
    voxel_um=(5.0, 2.0, 2.0),
    density_per_mm3=20_000,
    brightness=3.0,
    texture_fine=0.02,
    vessels=0,
    photons=2000,
)


def test_equal_seeds_give_equal_tissue() -> None:
    first, second, other = simulate(SMALL, 1), simulate(SMALL, 1), simulate(SMALL, 2)
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.centres_vox, second.centres_vox)
    assert not np.array_equal(first.image, other.image)


def test_cells_are_where_the_truth_says() -> None:
    tissue = simulate(replace(SMALL, ring_share=0.0, brightness_cv=0.1), 3)
    index = np.rint(tissue.centres_vox).astype(int)
    inside = np.all((index >= 0) & (index < tissue.image.shape), axis=1)
    assert inside.all()
    assert len(index) > 20
    at_cells = tissue.image[tuple(index.T)].astype(float)
    assert np.quantile(at_cells, 0.1) > 2 * np.median(tissue.image)
    # The clean signal has its mass at the cells: its centre of mass around one is that cell.
    assert (tissue.signal[tuple(index.T)] > 0.3 * tissue.signal.max() / 3).mean() > 0.8


def test_cells_keep_their_distance() -> None:
    config = replace(SMALL, density_per_mm3=150_000, separation=0.8, clusters=3)
    tissue = simulate(config, 4)
    nearest = cKDTree(tissue.centres_vox * config.voxel_um).query(tissue.centres_vox * config.voxel_um, 2)[0][
        :, 1
    ]
    assert nearest.min() >= 0.8 * config.diameter_um


def test_density_is_as_asked() -> None:
    config = replace(SMALL, shape=(40, 250, 250), density_per_mm3=10_000)
    counts = [len(simulate(config, seed).centres_vox) for seed in range(3)]
    volume_mm3 = np.prod(np.array(config.shape) * config.voxel_um) * 1e-9
    assert np.mean(counts) / volume_mm3 == pytest.approx(10_000, rel=0.25)


def test_behind_an_edge_there_is_nothing() -> None:
    tissue = simulate(replace(SMALL, edge=True), 5)
    dark = tissue.image < 100 + 0.3 * 300
    assert 0.05 < dark.mean() < 0.98
    index = np.rint(tissue.centres_vox).astype(int)
    assert not dark[tuple(index.T)].any()


def test_random_looks_differ_and_fit_the_camera() -> None:
    rng = np.random.default_rng(0)
    for seed in range(6):
        config = TissueConfig.random(rng, extent_um=120, groups=4)
        tissue = simulate(config, seed)
        assert tissue.image.dtype == np.uint16
        assert tissue.image.shape == config.shape
        assert tissue.image.max() <= config.maximum
        assert tissue.image.std() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_kinds_hold_cells(kind: str) -> None:
    shape = KINDS[kind]["shape"]
    tissue = simulate(variant(kind, shape=(shape[0] // 4, shape[1] // 4, shape[2] // 4)), 0)
    assert tissue.image.std() > 0
