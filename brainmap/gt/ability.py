"""Worker ability: the two-class latent model of Dawid and Skene (1979) and STAPLE (Warfield 2004), in logs.

An item is a candidate, t its hidden truth, d a worker's vote. Sensitivity p = Pr(d=1 | t=1), specificity
q = Pr(d=0 | t=0), votes independent given t (methods.md 4.2). Votes are held sparse: items come in groups
(images), each group has been seen by a set of workers, and only clicks are listed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from brainmap.errors import DataError

__all__ = [
    "Abilities",
    "Votes",
    "click_weights",
    "dawid_skene",
    "faced_false",
    "fit_votes",
    "posteriors",
    "votes_from_matrix",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

TINY = 1e-12  # probabilities enter logs no closer to 0 and 1 than this


@dataclass(frozen=True)
class Votes:
    """Clicks of workers on items, with who saw what.

    `group` (C,) is each item's group; (`item`, `worker`) (E,) are the clicks, at most one per pair;
    (`seen_group`, `seen_worker`) (P,) the pairs in which a missing click means "no".
    """

    group: Ints
    item: Ints
    worker: Ints
    seen_group: Ints
    seen_worker: Ints
    n_groups: int
    n_workers: int

    @property
    def n_items(self) -> int:
        """Number of items."""
        return len(self.group)

    def click_seen(self) -> npt.NDArray[np.bool_]:
        """Whether each click lies in a seen pair, (E,) bool; others count as votes, but not for ability."""
        pairs = self.seen_group * self.n_workers + self.seen_worker
        return np.isin(self.group[self.item] * self.n_workers + self.worker, pairs)


@dataclass(frozen=True)
class Abilities:
    """Result of the EM: per worker `sensitivity`, `specificity` (J,), per item `posterior` (C,), `prior`."""

    sensitivity: Floats
    specificity: Floats
    posterior: Floats
    prior: float
    iterations: int
    converged: bool


def votes_from_matrix(d: npt.ArrayLike) -> Votes:
    """Votes of a dense matrix (items, workers) of 0 and 1, NaN where a worker did not see an item."""
    matrix = np.asarray(d, np.float64)
    if matrix.ndim != 2 or not (np.isnan(matrix) | (matrix == 0) | (matrix == 1)).all():
        raise DataError("a vote matrix has two axes (items, workers) and holds 0, 1 or NaN")
    item, worker = np.nonzero(matrix == 1)
    seen_group, seen_worker = np.nonzero(~np.isnan(matrix))
    return Votes(np.arange(len(matrix)), item, worker, seen_group, seen_worker, *matrix.shape)


def dawid_skene(
    d: npt.ArrayLike,
    *,
    prior: Literal["free", "mean"] | float = "free",
    start: float = 0.7,
    start_posterior: npt.ArrayLike | None = None,
    tolerance: float = 1e-9,
    max_iterations: int = 1000,
) -> Abilities:
    """Run the EM on a dense matrix.

    Parameters
    ----------
    d : (items, workers)
        0, 1, or NaN where a worker did not see an item.
    prior : {"free", "mean"} or float
        Re-estimated in every round (Dawid-Skene), held at the share of clicks among all votes (as STAPLE
        does), or held at a value.
    start : float
        First sensitivity and specificity.
    start_posterior : (items,), optional
        Begin with an M step on these instead, e.g. shares of votes.
    tolerance, max_iterations
        The EM ends when no posterior moves by more than `tolerance`.
    """
    matrix = np.asarray(d, np.float64)
    votes = votes_from_matrix(matrix)
    held = None
    if prior == "mean":
        held = float(np.nanmean(matrix)) if np.isfinite(matrix).any() else 0.5
    elif prior != "free":
        held = float(prior)
    begin = None if start_posterior is None else np.asarray(start_posterior, np.float64)
    return fit_votes(
        votes,
        prior=held,
        start=start,
        start_posterior=begin,
        tolerance=tolerance,
        max_iterations=max_iterations,
    )


def fit_votes(
    votes: Votes,
    *,
    prior: float | None = None,
    start: float = 0.7,
    start_prior: float = 0.5,
    start_posterior: Floats | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 500,
) -> Abilities:
    """Run the EM on sparse votes; `prior` None estimates it. See `dawid_skene`.

    Where a worker has no true (or no false) item to be judged by, 0/0, he keeps the starting value.
    """
    p, q = np.full(votes.n_workers, start), np.full(votes.n_workers, start)
    pi = start_prior if prior is None else prior
    judged = votes.click_seen()
    if start_posterior is None:
        posterior = posteriors(votes, p, q, pi, judged)
    else:
        posterior = start_posterior.astype(np.float64)
    done, iteration = False, 0
    while not done and iteration < max_iterations:
        iteration += 1
        p, q = _m_step(votes, posterior, judged, p, q)
        if prior is None and votes.n_items:
            pi = float(posterior.mean())
        new = posteriors(votes, p, q, pi, judged)
        done = bool(np.abs(new - posterior).max(initial=0.0) <= tolerance)
        posterior = new
    return Abilities(p, q, posterior, pi, iteration, done)


def posteriors(votes: Votes, p: Floats, q: Floats, pi: float, judged: npt.NDArray[np.bool_]) -> Floats:
    """E step: Pr(t = 1 | d) of every item, (C,), from sums of logs."""
    p, q = np.clip(p, TINY, 1 - TINY), np.clip(q, TINY, 1 - TINY)
    none = np.log1p(-p) - np.log(q)
    click = np.log(p) - np.log1p(-q)
    base = np.bincount(votes.seen_group, none[votes.seen_worker], votes.n_groups)
    gain = click[votes.worker] - np.where(judged, none[votes.worker], 0.0)
    logit_pi = np.log(max(pi, TINY)) - np.log(max(1 - pi, TINY))
    return expit(logit_pi + base[votes.group] + np.bincount(votes.item, gain, votes.n_items))


def _m_step(
    votes: Votes, posterior: Floats, judged: npt.NDArray[np.bool_], p: Floats, q: Floats
) -> tuple[Floats, Floats]:
    item, worker = votes.item[judged], votes.worker[judged]
    result = []
    for truth, old, hit in ((posterior, p, True), (1 - posterior, q, False)):
        per_group = np.bincount(votes.group, truth, votes.n_groups)
        total = np.bincount(votes.seen_worker, per_group[votes.seen_group], votes.n_workers)
        clicked = np.bincount(worker, truth[item], votes.n_workers)
        right = clicked if hit else total - clicked
        result.append(np.where(total > TINY, np.clip(right / np.maximum(total, TINY), 0.0, 1.0), old))
    return result[0], result[1]


def faced_false(votes: Votes, posterior: Floats, accept: float = 0.5) -> npt.NDArray[np.bool_]:
    """Whether each worker (J,) saw an item that counts as false, so that his specificity can be told.

    Where all items are true, the M step divides what little doubt is left of them by itself: workers who never
    disagree come out with specificity 0, though nothing was there that they should not have clicked.
    """
    false = np.bincount(votes.group, posterior < accept, votes.n_groups)
    return np.asarray(np.bincount(votes.seen_worker, false[votes.seen_group], votes.n_workers) > 0)


def click_weights(sensitivity: Floats, specificity: Floats) -> tuple[Floats, Floats]:
    """Weights w+ = log(p / (1 - q)) of a click and w- = log((1 - p) / q) of none (methods.md 4.3)."""
    p, q = np.clip(sensitivity, TINY, 1 - TINY), np.clip(specificity, TINY, 1 - TINY)
    return np.log(p) - np.log1p(-q), np.log1p(-p) - np.log(q)
