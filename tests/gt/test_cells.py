"""Cells of one image from clicks: planted cells come back, strays do not become cells."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logit

from brainmap.gt.cells import SPREADS, ImageModel, find_cells, tightness
from brainmap.gt.jitter import Scatter
from brainmap.points.matching import match_points

WORKERS, SIZE, WIDTH = 8, 300, 2.0


def model(workers: int = WORKERS) -> ImageModel:
    stray = np.full(workers, 3 / SIZE**2)
    return ImageModel.build(
        np.full(workers, logit(0.8)),
        stray,
        np.ones(workers, bool),
        1.0,
        30 / SIZE**2,
        Scatter(WIDTH, 6.0),
        6.0,
    )


def clicks(centres: np.ndarray, seed: int, strays: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Clicks of workers who see four of five cells, and some strays each."""
    rng = np.random.default_rng(seed)
    xy, worker = [], []
    for one in range(WORKERS):
        seen = centres[rng.random(len(centres)) < 0.8]
        mine = np.concatenate([seen + rng.normal(0, WIDTH, seen.shape), rng.uniform(0, SIZE, (strays, 2))])
        xy.append(mine)
        worker.append(np.full(len(mine), one))
    return np.concatenate(xy), np.concatenate(worker)


def spaced(count: int, apart: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    found = np.empty((0, 2))
    while len(found) < count:
        new = rng.uniform(20, SIZE - 20, 2)
        if not len(found) or np.linalg.norm(found - new, axis=1).min() > apart:
            found = np.vstack([found, new])
    return found


@pytest.mark.parametrize("seed", range(3))
def test_planted_cells_come_back(seed: int) -> None:
    truth = spaced(25, 18, seed)
    xy, worker = clicks(truth, seed)
    centres, label, reach = find_cells(xy, worker, np.full(len(xy), WIDTH), model())
    match = match_points(centres, truth, 3.0)
    assert len(match.index_a) >= 24
    assert len(centres) <= 27
    assert np.linalg.norm(centres[match.index_a] - truth[match.index_b], axis=1).mean() < 1.5
    assert label.min() >= -1
    assert set(label[label >= 0]) == set(range(len(centres)))
    assert (reach > 0).all()
    # No worker has two clicks in one cell.
    pairs = list(zip(label[label >= 0], worker[label >= 0], strict=True))
    assert len(pairs) == len(set(pairs))


def test_the_order_of_the_clicks_does_not_matter() -> None:
    xy, worker = clicks(spaced(15, 18, 5), 5)
    turned = np.random.default_rng(0).permutation(len(xy))
    first = find_cells(xy, worker, np.full(len(xy), WIDTH), model())[0]
    second = find_cells(xy[turned], worker[turned], np.full(len(xy), WIDTH), model())[0]
    match = match_points(first, second, 0.01)
    assert len(match.index_a) == len(first) == len(second)


def test_two_workers_who_click_twice_beside_each_other_see_two_cells() -> None:
    """The same workers cannot have clicked one cell twice."""
    at = np.array([[100.0, 100.0], [107.0, 100.0]])
    rng = np.random.default_rng(1)
    xy = np.concatenate([at + rng.normal(0, 0.7, at.shape) for _ in range(WORKERS)])
    worker = np.repeat(np.arange(WORKERS), 2)
    centres = find_cells(xy, worker, np.full(len(xy), WIDTH), model())[0]
    assert len(centres) == 2
    assert sorted(centres[:, 0]) == pytest.approx([100, 107], abs=1.0)


@pytest.mark.parametrize("count", [0, 1])
def test_one_click_is_no_cell_of_several_workers(count: int) -> None:
    centres, label, _ = find_cells(
        np.full((count, 2), 50.0), np.zeros(count, int), np.full(count, WIDTH), model()
    )
    assert centres.shape == (0, 2)
    assert (label == -1).all()


def test_tight_clicks_are_denser_at_a_cells_own_spread() -> None:
    rng = np.random.default_rng(4)
    at = np.array([[80.0, 80.0], [200.0, 200.0]])
    scatter = np.array([WIDTH, 3 * WIDTH])
    xy = np.concatenate([centre + rng.normal(0, s, (8, 2)) for centre, s in zip(at, scatter, strict=True)])
    label, width = np.repeat([0, 1], 8), np.full(16, WIDTH)
    density = tightness(xy, width, np.full(16, 8 * WIDTH), label, at, model())
    assert density.shape == (2, len(SPREADS))
    assert density[0].argmax() <= 1
    assert density[1].argmax() >= 4
