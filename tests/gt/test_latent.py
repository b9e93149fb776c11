"""Latent classes with difficulty: planted abilities and truth come back, and certainty is earned."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit

from brainmap.gt.ability import Votes
from brainmap.gt.latent import fit_latent

WORKERS, ITEMS = 12, 1500


def planted(seed: int, share: float = 0.6, tau: float = 1.2) -> tuple[Votes, np.ndarray, np.ndarray]:
    """Votes of workers who all saw one image's candidates, which of them are cells, and the workers' logits."""
    rng = np.random.default_rng(seed)
    cell = rng.random(ITEMS) < share
    ability = rng.normal(logit(0.75), 0.6, WORKERS)
    level = rng.normal(0, tau, ITEMS)
    chance = np.where(cell[:, None], expit(ability + level[:, None]), expit(logit(0.06) + level[:, None]))
    clicked = rng.random((ITEMS, WORKERS)) < chance
    kept = clicked.any(axis=1)
    item, worker = np.nonzero(clicked[kept])
    seen = np.arange(WORKERS)
    group = np.zeros(int(kept.sum()), np.int64)
    votes = Votes(group, item, worker, np.zeros(WORKERS, np.int64), seen, 1, WORKERS)
    return votes, cell[kept], ability


def no_geometry(votes: Votes) -> np.ndarray:
    return np.zeros((votes.n_items, 7))


@pytest.mark.parametrize("seed", [0, 1])
def test_planted_cells_and_abilities_come_back(seed: int) -> None:
    votes, cell, ability = planted(seed)
    found = fit_latent(votes, no_geometry(votes))
    assert ((found.posterior > 0.5) == cell).mean() > 0.88
    assert np.corrcoef(found.cell, ability)[0, 1] > 0.85
    assert found.share == pytest.approx(cell.mean(), abs=0.08)
    # Of what is called a cell with probability p, about a share p is one.
    for low, high in ((0.0, 0.2), (0.8, 1.0001)):
        inside = (found.posterior >= low) & (found.posterior < high)
        assert cell[inside].mean() == pytest.approx(found.posterior[inside].mean(), abs=0.06)


def test_more_workers_on_a_candidate_make_a_cell_more_likely() -> None:
    votes, _, _ = planted(2)
    count = np.bincount(votes.item, minlength=votes.n_items)
    posterior = fit_latent(votes, no_geometry(votes)).posterior
    means = [posterior[count == n].mean() for n in (1, 4, 8, 11)]
    assert means == sorted(means)
    assert means[0] < 0.5 < means[2]


def test_tight_clicks_speak_for_a_cell() -> None:
    votes, _, _ = planted(3)
    rng = np.random.default_rng(3)
    tight = rng.random(votes.n_items) < 0.5
    geometry = np.where(tight[:, None], np.linspace(0, -6, 7), np.linspace(-6, 0, 7))
    found = fit_latent(votes, geometry)
    shared = np.bincount(votes.item, minlength=votes.n_items) > 1
    assert found.posterior[tight & shared].mean() > found.posterior[~tight & shared].mean() + 0.1


def test_no_candidates_are_no_error() -> None:
    none = np.zeros(0, np.int64)
    votes = Votes(none, none, none, np.zeros(3, np.int64), np.arange(3), 1, 3)
    found = fit_latent(votes, np.zeros((0, 7)))
    assert len(found.posterior) == 0
    assert np.isfinite(found.cell).all()
    assert 0 < found.share < 1
