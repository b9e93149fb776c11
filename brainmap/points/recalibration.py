"""A score made a probability again from a few marks, and the threshold that follows: numpy only.

The model is Platt's (1999), ``logit p = shift + slope * logit(score)``, with a Gaussian prior around shift 0 and
slope 1, so that a few marks cannot run away. The posterior is computed on a grid, without approximation.

A person who marks goes through a share f of the cells shown, says yes or no to each, and marks what is missed around
them. So a shown candidate is marked with probability f, and a weaker one, if it is a cell, too. How many of the weaker
ones were looked at and are no cells nobody writes down; the model knows it from f.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Estimate",
    "Interval",
    "Marked",
    "Prior",
    "Recalibration",
    "Spread",
    "logit",
    "thresholds_between",
]

Floats = NDArray[np.float64]

# Scores nearer to 0 or 1 say no more: a calibration's ends are not that well known.
_END = 5e-4
_DRAWS = 2000
# Steps of a threshold.
_STEP = 0.01


def logit(score: NDArray[Any]) -> Floats:
    """Log odds of a score, bounded."""
    p = np.clip(np.asarray(score, np.float64), _END, 1 - _END)
    return np.asarray(np.log(p) - np.log1p(-p))


def thresholds_between(lowest: float, present: float) -> Floats:
    """Thresholds to choose from: the lowest, every hundredth above it, and the present one; rising."""
    steps = np.round(np.arange(_STEP, 1.0, _STEP), 2)
    return np.unique(np.concatenate([[lowest, present], steps[steps > lowest + _STEP / 10]]))


@dataclass(frozen=True)
class Prior:
    """What is believed of a detector's scores on a tissue before a mark is made.

    Parameters
    ----------
    shift_sd, slope_sd : float
        Standard deviations around shift 0 and slope 1.
    """

    shift_sd: float = 1.5
    slope_sd: float = 0.35

    @cached_property
    def grid(self) -> tuple[Floats, Floats, Floats]:
        """Shift, slope and log density of the points that the posterior is computed at, each (G,)."""
        shift, slope = np.meshgrid(
            np.linspace(-4, 4, 65) * self.shift_sd,
            np.linspace(0.05, 1 + 4 * self.slope_sd, 33),
            indexing="ij",
        )
        density = -0.5 * ((shift / self.shift_sd) ** 2 + ((slope - 1) / self.slope_sd) ** 2)
        return shift.ravel(), slope.ravel(), density.ravel()


@dataclass
class Spread:
    """How the scores of all candidates of a run are spread: a histogram between thresholds.

    Attributes
    ----------
    thresholds : float64 array (T,)
        Lower ends of the bins, rising; the last bin ends at 1.
    count : int64 array (T,)
        Candidates in each bin.
    logit_sum : float64 array (T,)
        Of their log odds.
    """

    thresholds: Floats
    count: NDArray[np.int64]
    logit_sum: Floats

    @classmethod
    def over(cls, thresholds: Floats) -> Spread:
        """An empty one."""
        return cls(thresholds, np.zeros(len(thresholds), np.int64), np.zeros(len(thresholds)))

    def add(self, score: NDArray[np.floating]) -> None:
        """Count more candidates, all at or above the lowest threshold."""
        place = self.bin_of(score)
        self.count += np.bincount(place, minlength=len(self.count))
        self.logit_sum += np.bincount(place, logit(score), minlength=len(self.count))

    def bin_of(self, score: NDArray[np.floating]) -> NDArray[np.int64]:
        """Bins of scores; compared as float32, as thresholds act."""
        edges = self.thresholds.astype(np.float32)
        return np.maximum(np.searchsorted(edges, np.asarray(score, np.float32), side="right") - 1, 0)

    @property
    def logit(self) -> Floats:
        """Mean log odds in each bin."""
        middle = np.append(self.thresholds[1:], 1.0) / 2 + self.thresholds / 2
        return np.where(self.count > 0, self.logit_sum / np.maximum(self.count, 1), logit(middle))


@dataclass(frozen=True)
class Marked:
    """Marks held against the candidates.

    Parameters
    ----------
    score : float array (n,)
        Of the candidates marked yes or no.
    is_cell : bool array (n,)
        What the mark says.
    missed_score : float array (m,)
        Of the candidates that were marked as missed.
    never_found : int
        Missed cells without a candidate.
    complete : bool
        Whether missed cells were looked for, even if none was found.
    """

    score: Floats
    is_cell: NDArray[np.bool_]
    missed_score: Floats
    never_found: int
    complete: bool = False

    def __len__(self) -> int:
        return len(self.score) + len(self.missed_score) + self.never_found

    @property
    def looked_for_missed(self) -> bool:
        """Whether it is known what was missed: some of it is marked, or that there is none is said."""
        return self.complete or len(self.missed_score) + self.never_found > 0


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, draws: Floats) -> Interval:
        """Mean and central 95 % of draws from a posterior."""
        low, high = np.quantile(draws, [0.025, 0.975])
        return cls(float(draws.mean()), float(low), float(high))

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Estimate:
    """How good the cells at a threshold are."""

    threshold: float
    precision: Interval
    recall: Interval
    f1: Interval


class Recalibration:
    """The posterior of shift and slope after some marks, and what follows for every threshold.

    Parameters
    ----------
    spread : Spread
        Of all candidates.
    marked : Marked
        The marks.
    present : float
        The threshold at which the cells were shown; one of the spread's.
    prior : Prior, optional
    seed : int
        Of the draws.
    """

    def __init__(
        self, spread: Spread, marked: Marked, present: float, prior: Prior | None = None, seed: int = 0
    ) -> None:
        self.spread, self.marked, self.present = spread, marked, present
        shift, slope, log_prior = (prior or Prior()).grid
        self._shift, self._slope = shift, slope
        # (G, T): probability of a candidate of each bin, at each point of the grid.
        self._p = _sigmoid(shift[:, None] + slope[:, None] * spread.logit)
        weight = log_prior + self._log_likelihood()
        weight = np.exp(weight - weight.max())
        self._weight = weight / weight.sum()
        self._curves(np.random.default_rng(seed))

    def _log_likelihood(self) -> Floats:
        marked = self.marked
        z = self._at(marked.score)
        likelihood = np.where(marked.is_cell, -np.logaddexp(0, -z), -np.logaddexp(0, z)).sum(axis=1)
        if marked.looked_for_missed:
            n, m = self._shown_marks, len(marked.missed_score)
            likelihood += -np.logaddexp(0, -self._at(marked.missed_score)).sum(axis=1)
            # The share f that was looked at is known from the yes and no marks; averaged over what they leave open.
            likelihood -= (n + m) * np.log(self._shown() + self._weaker_cells())
        return np.asarray(likelihood)

    def _at(self, score: Floats) -> Floats:
        """Log odds (G, n) of candidates with some scores."""
        return self._shift[:, None] + self._slope[:, None] * logit(score)

    @property
    def _shown_marks(self) -> int:
        """Marks yes and no on what was shown; weaker candidates are asked about for themselves, not on the way."""
        return max(1, int((self.marked.score.astype(np.float32) >= np.float32(self.present)).sum()))

    def _shown(self) -> int:
        return max(1, int(self.spread.count[self.spread.thresholds >= self.present].sum()))

    def _weaker_cells(self) -> Floats:
        """Cells (G,) among the candidates below the present threshold."""
        below = self.spread.thresholds < self.present
        return np.asarray(self._p[:, below] @ self.spread.count[below])

    def _curves(self, rng: np.random.Generator) -> None:
        """Draws (D, T) of the true cells at each threshold, and (D,) of all cells there are."""
        chosen = rng.choice(len(self._weight), _DRAWS, p=self._weight)
        p, count = self._p[chosen], self.spread.count
        noise = rng.standard_normal(p.shape) * np.sqrt(count * p * (1 - p))
        cells = np.clip(count * p + noise, 0, count)
        self._hits = np.cumsum(cells[:, ::-1], axis=1)[:, ::-1]
        self._reported = np.cumsum(count[::-1])[::-1]
        never = np.zeros(_DRAWS)
        if self.marked.looked_for_missed:
            n, m = self._shown_marks, len(self.marked.missed_score)
            share = rng.gamma(n + m, 1.0, _DRAWS) / (self._shown() + self._weaker_cells()[chosen])
            never = rng.gamma(self.marked.never_found + 0.5, 1.0, _DRAWS) / np.maximum(share, 1e-12)
        self._all = self._hits[:, 0] + never

    @cached_property
    def f1(self) -> Floats:
        """Draws (D, T) of the F1 at every threshold."""
        return np.asarray(2 * self._hits / np.maximum(self._reported + self._all[:, None], 1e-9))

    @property
    def best(self) -> float:
        """The threshold with the highest expected F1."""
        return float(self.spread.thresholds[int(np.argmax(self.f1.mean(axis=0)))])

    def estimate(self, threshold: float) -> Estimate:
        """Precision, recall and F1 at one of the spread's thresholds."""
        i = int(np.argmin(np.abs(self.spread.thresholds - threshold)))
        hits = self._hits[:, i]
        precision, recall = hits / max(1, self._reported[i]), hits / np.maximum(self._all, 1e-9)
        return Estimate(
            float(self.spread.thresholds[i]), *(Interval.of(v) for v in (precision, recall, self.f1[:, i]))
        )

    def gain(self, threshold: float) -> Interval:
        """How much higher the F1 is than at the present threshold."""
        i, now = (int(np.argmin(np.abs(self.spread.thresholds - t))) for t in (threshold, self.present))
        return Interval.of(self.f1[:, i] - self.f1[:, now])

    def chance_of_gain(self, threshold: float) -> float:
        """Probability that the F1 is higher than at the present threshold."""
        i, now = (int(np.argmin(np.abs(self.spread.thresholds - t))) for t in (threshold, self.present))
        return float((self.f1[:, i] > self.f1[:, now]).mean())

    def probability(self, score: NDArray[np.floating]) -> Floats:
        """Recalibrated probabilities (n,) of scores: the mean over the posterior; it rises with the score."""
        return np.asarray(self._weight @ _sigmoid(self._at(np.asarray(score, np.float64))))

    @property
    def shift_and_slope(self) -> tuple[float, float]:
        """Posterior means."""
        return float(self._weight @ self._shift), float(self._weight @ self._slope)


def _sigmoid(z: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(z, -60, 60))))
