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
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix
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


@dataclass(frozen=True)
class _Tables:
    """Votes as sparse matrices: items x workers all `clicks` and those in seen pairs, images x workers, x items."""

    group: npt.NDArray[np.int64]
    clicks: csr_matrix
    judged: csr_matrix
    seen: csr_matrix
    members: csr_matrix

    @classmethod
    def of(cls, votes: Votes) -> _Tables:
        c, g, j = votes.n_items, votes.n_groups, votes.n_workers

        def table(row: Any, column: Any, shape: tuple[int, int]) -> csr_matrix:
            return csr_matrix((np.ones(len(row)), (row, column)), shape=shape)

        use = votes.click_seen()
        return cls(
            votes.group,
            table(votes.item, votes.worker, (c, j)),
            table(votes.item[use], votes.worker[use], (c, j)),
            table(votes.seen_group, votes.seen_worker, (g, j)),
            table(votes.group, np.arange(c), (g, c)),
        )


@dataclass
class _Class:
    """One latent class under fit."""

    ability: Floats
    levels: Floats
    width: float

    def likelihood(self, votes: _Tables) -> None:
        """Log likelihood of all items, `log_item` (C,), shares of levels, `part` (C, M); of no click, by image."""
        eta = self.ability[:, None] + self.levels
        none, click = -np.logaddexp(0, eta), -np.logaddexp(0, -eta)
        prior = -0.5 * (self.levels / self.width) ** 2
        prior -= logsumexp(prior)
        base = votes.seen @ none
        self.unseen = base + prior
        level = self.unseen[votes.group] + votes.clicks @ click - votes.judged @ none
        # By hand, not by logsumexp: the same exponentials are each item's shares of the levels.
        top = level.max(axis=1)
        part = np.exp(level - top[:, None])
        total = part.sum(axis=1)
        self.part = part / total[:, None]
        seen = np.maximum(-np.expm1(np.minimum(logsumexp(self.unseen, axis=1), -1e-12)), 1e-12)
        self.log_item = top + np.log(total) - np.log(seen)[votes.group]

    def update(self, votes: _Tables, share: Floats, strength: float) -> None:
        """One Newton step of the abilities and the width, given each item's share in this class."""
        count = votes.members @ (self.part * share[:, None])
        # Items of this class that nobody clicked: as many as the truncation says.
        unseen = np.exp(self.unseen)
        count += count.sum(1)[:, None] * unseen / np.maximum(1 - unseen.sum(1), 1e-3)[:, None]
        faced = votes.seen.T @ count
        hit = votes.judged.T @ share
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
    tables = _Tables.of(votes)
    count = np.bincount(votes.item, minlength=votes.n_items)
    shared, voted = count > 1, count > 0  # without a vote (all its clicks void) an item tells nothing
    share = start = _start_share(votes)
    posterior = np.zeros(votes.n_items)
    prior = DIFFUSE * (SPREAD_PRIOR / SPREAD_PRIOR.sum())
    spread = prior / prior.sum()
    tight, place = (
        geometry[shared],
        np.zeros(votes.n_items),
    )  # a single click lies nowhere more or less tightly
    for _ in range(iterations if votes.n_items else 0):
        cells.likelihood(tables)
        other.likelihood(tables)
        spreads = logsumexp(tight + np.log(spread), axis=1)
        place[shared] = tight[:, 0] - spreads
        new = voted * expit(logit(share) + cells.log_item - other.log_item + place)
        moved = np.abs(new - posterior).max()
        posterior = new
        if moved < 1e-5:
            break
        cells.update(tables, posterior, strength)
        other.update(tables, voted * (1 - posterior), strength)
        part = np.exp(tight + np.log(spread) - spreads[:, None]) * (1 - posterior[shared])[:, None]
        spread = (part.sum(axis=0) + prior) / (part.sum() + prior.sum())
        share = float((posterior.sum() + PRIOR_ITEMS * start) / (voted.sum() + PRIOR_ITEMS))
    easy, attractive = (k.part @ k.levels if votes.n_items else np.zeros(0) for k in (cells, other))
    return LatentFit(
        posterior, cells.ability, other.ability, easy, attractive, cells.width, other.width, share, spread
    )


def _start_share(votes: Votes) -> float:
    """Share of cells among candidates: the more workers, the more strays, but no more cells."""
    m = max(len(votes.seen_group) / max(len(np.unique(votes.seen_group)), 1), 1.0)
    cells = 1 - (1 - START_CELL) ** m
    return float(cells / (cells + m * START_CELL * (1 - CLICK_PRECISION) / CLICK_PRECISION))
