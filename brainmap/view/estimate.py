"""How good a run's counts are, from a random sample of its cells and of small fields.

Cells are drawn within strata (division and score), so precision is the strata's own, weighted by how many cells they
hold. Fields are drawn with probability proportional to a size, with replacement; what is missed in them, divided by
that probability, is an unbiased estimate of all that is missed (Hansen and Hurwitz 1943). Recall joins both.

Intervals of precision are Wilson's (1927) with the effective number of marks; those of what is missed are of a gamma
distribution with the estimate's mean and variance, as for weighted sums of Poisson counts (Fay and Feuer 1997), half a
count added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from brainmap.points.recalibration import Interval

__all__ = ["Fields", "Strata", "precision", "recall"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
# 97.5 % of a normal distribution.
_Z = 1.959964
_DRAWS = 4000
# Judged cells of a stratum.
_ENOUGH = 6


@dataclass(frozen=True)
class Strata:
    """A stratified sample of cells.

    Attributes
    ----------
    size : int array (H,)
        Cells of each stratum.
    judged : int array (H,)
        Of them judged right or wrong.
    right : int array (H,)
        Of them right.
    """

    size: Ints
    judged: Ints
    right: Ints

    def joined(self) -> Strata:
        """With neighbours joined until each stratum has enough judged cells to know how they vary.

        Every stratum gives its share of the sample, so a joined one is what a larger stratum would have been. None is
        left where nothing was judged.
        """
        groups: list[list[int]] = [[0, 0, 0]]
        for row in np.stack([self.size, self.judged, self.right], axis=1).tolist():
            if groups[-1][1] >= _ENOUGH:
                groups.append([0, 0, 0])
            groups[-1] = [a + b for a, b in zip(groups[-1], row, strict=True)]
        if len(groups) > 1 and groups[-1][1] < _ENOUGH:
            last = groups.pop()
            groups[-1] = [a + b for a, b in zip(groups[-1], last, strict=True)]
        found = np.array([group for group in groups if group[1]], np.int64).reshape(-1, 3)
        return Strata(found[:, 0], found[:, 1], found[:, 2])

    @property
    def total(self) -> int:
        """Cells of all strata."""
        return int(self.size.sum())


@dataclass(frozen=True)
class Fields:
    """A sample of fields, drawn with replacement.

    Attributes
    ----------
    share : float array (n,)
        Probability with which each field is drawn.
    missed : int array (n,)
        Cells missed in it.
    """

    share: Floats
    missed: Ints

    def __len__(self) -> int:
        return len(self.share)


def _effective(strata: Strata) -> tuple[float, float]:
    """The estimate, and how many marks of a simple sample say as much."""
    weight = strata.size / strata.total
    n, k = strata.judged, strata.right
    value = min(1.0, float((weight * k / n).sum()))
    number = int(n.sum())
    # Few marks of a stratum say little of its variance: one is added that says what the whole says.
    shrunk = (k + (value * number + 1) / (number + 2)) / (n + 1)
    left = np.clip(1 - n / np.maximum(strata.size, 1), 0, 1)
    variance = float((weight**2 * shrunk * (1 - shrunk) / n * left).sum())
    middle = float((weight * shrunk).sum())
    return value, middle * (1 - middle) / max(variance, 1e-12)


def precision(strata: Strata) -> Interval | None:
    """Share of the cells that are right, with its 95 % interval; None where none was judged."""
    strata = strata.joined()
    if not len(strata.size):
        return None
    value, number = _effective(strata)
    centre = (value + _Z**2 / (2 * number)) / (1 + _Z**2 / number)
    half = _Z / (1 + _Z**2 / number) * np.sqrt(value * (1 - value) / number + _Z**2 / (4 * number**2))
    return Interval(value, max(0.0, float(centre - half)), min(1.0, float(centre + half)))


def recall(strata: Strata, fields: Fields, seed: int = 0) -> Interval | None:
    """Share of all cells that are found, with its 95 % interval; None where no cell or no field was judged.

    Parameters
    ----------
    strata : Strata
        Of the cells found.
    fields : Fields
    seed : int
        Of the draws that join both uncertainties.
    """
    strata = strata.joined()
    if not len(strata.size) or not len(fields):
        return None
    value, number = _effective(strata)
    rng = np.random.default_rng(seed)
    found = strata.total * rng.beta(value * number + 0.5, (1 - value) * number + 0.5, _DRAWS)
    missed, total = _missed(fields, rng)
    draws = found / np.maximum(found + missed, 1e-12)
    low, high = np.quantile(draws, [0.025, 0.975])
    hits = strata.total * value
    return Interval(float(hits / max(hits + total, 1e-12)), float(low), float(high))


def _missed(fields: Fields, rng: np.random.Generator) -> tuple[Any, float]:
    """Draws (D,) of all missed cells, and their estimate."""
    n = len(fields)
    each = fields.missed / fields.share
    total = float(each.mean())
    poisson = float((fields.missed / fields.share**2).sum()) / n**2
    scatter = float(each.var(ddof=1)) / n if n > 1 else poisson
    # A variance from few fields is itself uncertain: as wide as Student's t is wider than a normal distribution. Those
    # without a missed cell add little.
    degrees = max(2, int((fields.missed > 0).sum()) - 1)
    wider = (stats.t.ppf(0.975, degrees) / _Z) ** 2
    # Missed cells come together: how many of them say as much as one that is missed alone.
    together = max(1.0, scatter * wider / poisson) if poisson else 1.0
    # What one cell, or one such group, in a usual field stands for: half of it is what a count of zero leaves open.
    unit = together / (n * float(np.median(fields.share)))
    mean, variance = total + unit / 2, together * poisson + unit**2 / 2
    return rng.gamma(mean**2 / variance, variance / mean, _DRAWS), total
