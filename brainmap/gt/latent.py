"""Is a candidate a cell? Latent classes with difficulty, fitted to the votes of all images at once.

Both classes have a hidden level beside the workers' abilities: true cells differ in difficulty, false ones in
attractiveness,

    Pr(worker j clicks | cell of level m)     = expit(a_j + m),  m ~ N(0, tau^2)
    Pr(worker j clicks | no cell, of level m) = expit(f_j + m),  m ~ N(0, sigma^2)

which removes the overconfidence of conditional independence (workers agree on easy cells because they are easy)
and keeps posteriors calibrated. A candidate nobody clicked cannot be seen, so both classes are conditioned on at
least one click. Widths tau and sigma, the share of cells and all abilities come from the data (empirical Bayes).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit, logsumexp

from brainmap.gt.ability import Votes

__all__ = ["LatentFit", "fit_latent"]

Floats = npt.NDArray[np.float64]

LEVELS = 9
CELL_LEVELS = np.linspace(-4, 4, LEVELS)
OTHER_LEVELS = np.linspace(-3, 5, LEVELS)
START_CELL, START_OTHER = 0.6, 0.03
CLICK_PRECISION = 0.7  # share of a worker's clicks that are cells, before anything is known
PRIOR_ITEMS = 5.0  # weight of that belief, in candidates
LEAST_WIDTH = 0.3
# False clicks are believed to have met by chance, anywhere within reach, until this many candidates say otherwise.
DIFFUSE = 50.0
SPREAD_PRIOR = np.array([0.2, 0.2, 0.2, 1.0, 1.0, 1.0, 1.0])


@dataclass(frozen=True)
class LatentFit:
    """`posterior` (C,); abilities `cell`, `other` (J,) and widths `tau`, `sigma` in logits; `share` of cells;
    `spread` (S,) weights of how widely the clicks of false candidates scatter.

    `cell_level`, `other_level` (C,) are each candidate's expected level if it is a cell, or is none.
    """

    posterior: Floats
    cell: Floats
    other: Floats
    cell_level: Floats
    other_level: Floats
    tau: float
    sigma: float
    share: float
    spread: Floats


@dataclass
class _Class:
    """One latent class under fit."""

    ability: Floats
    levels: Floats
    width: float

    def likelihood(self, votes: Votes, judged: npt.NDArray[np.bool_]) -> None:
        """Log likelihoods of all items by level, `log_level` (C, M), and by image of no click at all."""
        eta = self.ability[:, None] + self.levels
        none, click = -np.logaddexp(0, eta), -np.logaddexp(0, -eta)
        prior = -0.5 * (self.levels / self.width) ** 2
        prior -= logsumexp(prior)
        n, c = votes.n_groups, votes.n_items
        base = np.stack(
            [np.bincount(votes.seen_group, none[votes.seen_worker, m], n) for m in range(LEVELS)], 1
        )
        self.unseen = base + prior
        level = base[votes.group] + prior
        for m in range(LEVELS):
            gain = click[votes.worker, m] - np.where(judged, none[votes.worker, m], 0.0)
            level[:, m] += np.bincount(votes.item, gain, c)
        self.log_level = level
        seen = np.maximum(-np.expm1(np.minimum(logsumexp(self.unseen, axis=1), -1e-12)), 1e-12)
        self.log_item = logsumexp(level, axis=1) - np.log(seen)[votes.group]

    def update(self, votes: Votes, judged: npt.NDArray[np.bool_], share: Floats, strength: float) -> None:
        """One Newton step of the abilities and the width, given each item's share in this class."""
        part = np.exp(self.log_level - logsumexp(self.log_level, axis=1, keepdims=True)) * share[:, None]
        n = votes.n_groups
        count = np.stack([np.bincount(votes.group, part[:, m], n) for m in range(LEVELS)], 1)
        # Items of this class that nobody clicked: as many as the truncation says.
        unseen = np.exp(self.unseen)
        count += count.sum(1)[:, None] * unseen / np.maximum(1 - unseen.sum(1), 1e-3)[:, None]
        faced = np.stack(
            [
                np.bincount(votes.seen_worker, count[votes.seen_group, m], votes.n_workers)
                for m in range(LEVELS)
            ],
            1,
        )
        hit = np.bincount(votes.worker[judged], share[votes.item[judged]], votes.n_workers)
        p = expit(self.ability[:, None] + self.levels)
        mean = np.average(self.ability, weights=faced.sum(1) + 1e-9)
        # The crowd's mean counts as `strength` clicks (a variance of 1/4 each).
        step = hit - (faced * p).sum(1) - strength / 4 * (self.ability - mean)
        step /= (faced * p * (1 - p)).sum(1) + strength / 4 + 1e-9
        self.ability = np.clip(self.ability + np.clip(step, -1, 1), -12, 8)
        total = count.sum()
        if total > 0:
            self.width = max(float(np.sqrt((count.sum(0) * self.levels**2).sum() / total)), LEAST_WIDTH)


def fit_latent(votes: Votes, geometry: Floats, *, strength: float = 2.0, iterations: int = 60) -> LatentFit:
    """Fit both classes by EM.

    Parameters
    ----------
    votes : Votes
        Clicks on candidates; every candidate has at least one.
    geometry : (C, S)
        Log density of the clicks' positions at growing spreads; column 0 is that of a cell. How the clicks of
        false candidates spread is estimated: where they are as tight as a cell's, tightness says nothing.
    strength : float
        Weight of the crowd's mean in each worker's ability, in clicks.
    """
    cells = _Class(np.full(votes.n_workers, logit(START_CELL)), CELL_LEVELS, 1.0)
    other = _Class(np.full(votes.n_workers, logit(START_OTHER)), OTHER_LEVELS, 1.0)
    judged = votes.click_seen()
    count = np.bincount(votes.item, minlength=votes.n_items)
    shared, voted = count > 1, count > 0  # without a vote (all its clicks void) an item tells nothing
    share = start = _start_share(votes)
    posterior = np.zeros(votes.n_items)
    prior = DIFFUSE * (SPREAD_PRIOR / SPREAD_PRIOR.sum())
    spread = prior / prior.sum()
    for _ in range(iterations if votes.n_items else 0):
        cells.likelihood(votes, judged)
        other.likelihood(votes, judged)
        place = logsumexp(geometry + np.log(spread), axis=1)
        new = voted * expit(logit(share) + cells.log_item - other.log_item + geometry[:, 0] - place)
        moved = np.abs(new - posterior).max()
        posterior = new
        if moved < 1e-5:
            break
        cells.update(votes, judged, posterior, strength)
        other.update(votes, judged, voted * (1 - posterior), strength)
        part = np.exp(geometry + np.log(spread) - place[:, None])[shared] * (1 - posterior[shared])[:, None]
        spread = (part.sum(axis=0) + prior) / (part.sum() + prior.sum())
        share = float((posterior.sum() + PRIOR_ITEMS * start) / (voted.sum() + PRIOR_ITEMS))
    easy, attractive = (_expected_level(k) if votes.n_items else np.zeros(0) for k in (cells, other))
    return LatentFit(
        posterior, cells.ability, other.ability, easy, attractive, cells.width, other.width, share, spread
    )


def _expected_level(one: _Class) -> Floats:
    part = np.exp(one.log_level - logsumexp(one.log_level, axis=1, keepdims=True))
    return np.asarray(part @ one.levels)


def _start_share(votes: Votes) -> float:
    """Share of cells among candidates: the more workers, the more strays, but no more cells."""
    m = max(len(votes.seen_group) / max(len(np.unique(votes.seen_group)), 1), 1.0)
    cells = 1 - (1 - START_CELL) ** m
    return float(cells / (cells + m * START_CELL * (1 - CLICK_PRECISION) / CLICK_PRECISION))
