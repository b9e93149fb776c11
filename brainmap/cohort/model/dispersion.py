"""How much animals differ without any difference of the groups: what every test is measured against.

Three sources, on the scale of log counts: chance of counting (known), a level that an animal shares over all its
regions (staining, clearing, its state on the day), and what remains, region by region. Four animals against four
tell little about one region's scatter, so that of all regions is used to steady it; what animals share is kept
apart from it, because three hundred regions of eight animals still are eight animals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from brainmap.cohort.model.negative_binomial import Floats, deviance, deviance_moments, fit_means, leverages
from brainmap.cohort.model.prior import LEAST_VALUE, fit_prior

__all__ = ["Scatter", "estimate_scatter"]

#: Fewer regions than this tell nothing about each other: each is then tested by itself.
LEAST_REGIONS = 10

_FIRST_DISPERSION = 0.1
_MAX_DISPERSION = 20.0
_LEAST_FREEDOM = 1e-3

# Groups whose variances differ by less than this factor are taken to scatter alike.
_UNEQUAL = 2.0


@dataclass(frozen=True)
class Scatter:
    """Scatter of the counts between animals of one group.

    The variance of a count with mean mu is ``quasi * (mu + dispersion * mu^2) / weight + shared * mu^2``.

    Attributes
    ----------
    dispersion : float
        Negative binomial dispersion common to all regions.
    quasi : float64 array (regions,)
        Moderated factor of each region (near 1).
    freedom : float64 array (regions,)
        Degrees of freedom behind `quasi`, the borrowed ones included.
    prior_freedom : float
        Those borrowed from the other regions; inf where regions do not differ in scatter. Regions that scatter far
        more than the others borrow less.
    shared : float
        Variance of the log of the level that an animal shares over its regions.
    shared_freedom : float
        Animals less coefficients.
    variance : float64 array (animals,)
        Of each animal's group relative to the others', ones where they are alike.
    level : float64 array (animals,)
        Estimated log level of each animal within its group.
    """

    dispersion: float
    quasi: Floats
    freedom: Floats
    prior_freedom: float
    shared: float
    shared_freedom: float
    variance: Floats
    level: Floats


@dataclass(frozen=True)
class _Data:
    """What is fitted; arrays (regions, animals), the design's columns orthonormal, ridge (regions,)."""

    counts: Floats
    offset: Floats
    design: Floats
    weight: Floats
    ridge: Floats | float


def estimate_scatter(
    counts: Floats,
    offset: Floats,
    design: Floats,
    weight: Floats,
    *,
    ridge: Floats | float = 0.0,
    cells: NDArray[np.intp] | None = None,
) -> Scatter:
    """Estimate the scatter of all regions; see `Scatter`.

    Parameters
    ----------
    counts, offset, weight : float64 arrays (regions, animals)
        Every region has at least one cell.
    design : float64 array (animals, coefficients)
        With fewer coefficients than animals.
    ridge : float64 array (regions,)
        See `fit_means`.
    cells : int array (animals,), optional
        Cell of the design (group) of each animal: they may scatter differently.
    """
    data = _Data(counts, offset, design, weight, ridge)
    spare = float(design.shape[0] - np.linalg.matrix_rank(design))
    level, shared, own = np.zeros(len(design)), 0.0, np.ones(len(counts))
    variance = np.ones(len(design))
    dispersion = _common_dispersion(data, own)
    if len(counts) >= LEAST_REGIONS:
        level, shared, own = _shared_level(data, dispersion, spare)
        data = replace(data, offset=offset + level)
        dispersion = _common_dispersion(data, own)
        if cells is not None and (variance := _unequal(data, dispersion, own, cells)).max() > 1:
            data = replace(data, weight=weight / variance)
            dispersion = _common_dispersion(data, own)
    raw, freedom, mean = _quasi(data, own, dispersion)
    if len(counts) < LEAST_REGIONS:
        quasi = np.maximum(raw, LEAST_VALUE)
        return Scatter(dispersion, quasi, freedom, 0.0, 0.0, spare, variance, level)
    prior = fit_prior(raw, freedom, np.log(mean))
    quasi, total = prior.moderate(raw, freedom)
    # All regions together know no more than their sum (as limma).
    return Scatter(
        dispersion, quasi, np.minimum(total, freedom.sum()), prior.freedom, shared, spare, variance, level
    )


def _shared_level(data: _Data, dispersion: float, spare: float) -> tuple[Floats, float, Floats]:
    """Levels of the animals within their groups, their variance, and the share of residuals left to each region."""
    design, weight = data.design, data.weight
    level = np.zeros(len(design))
    for _ in range(2):
        mean = fit_means(data.counts, data.offset + level, design, dispersion, weight, data.ridge).mean
        precision = weight * mean / (1.0 + dispersion * mean)
        residual = (data.counts - mean) / mean
        step = (precision * residual).sum(axis=0) / precision.sum(axis=0)
        level = level + step - design @ np.linalg.lstsq(design, step, rcond=None)[0]
    # What the mean over regions would scatter if animals shared nothing.
    chance = (precision**2 * (residual - step) ** 2).sum(axis=0) / precision.sum(axis=0) ** 2
    variance = float(level @ level / spare - chance.mean())
    own = 1.0 - (precision / precision.sum(axis=0)).mean(axis=1)
    return level, max(variance, 0.0), own


def _common_dispersion(data: _Data, own: Floats) -> float:
    """The dispersion at which the squared Pearson residuals of all regions add up to their degrees of freedom.

    Their expectation is right at any mean, unlike the deviance's.
    """
    residual, spare = _pearson(data, own)

    def excess(dispersion: float) -> float:
        return float((residual(dispersion) - spare).sum())

    if excess(0.0) <= 0:
        return 0.0
    if excess(_MAX_DISPERSION) >= 0:
        return _MAX_DISPERSION
    return float(brentq(excess, 0.0, _MAX_DISPERSION, xtol=1e-6))


def _pearson(data: _Data, own: Floats) -> tuple[Callable[[float], Floats], Floats]:
    """Squared Pearson residuals as a function of the dispersion, and what they are expected to be."""
    fit = fit_means(data.counts, data.offset, data.design, _FIRST_DISPERSION, data.weight, data.ridge)
    there = data.weight > 0
    spare = there * (1.0 - leverages(fit, data.design, _FIRST_DISPERSION, data.weight)) * own[:, None]
    squares = data.weight * (data.counts - fit.mean) ** 2 / fit.mean
    return (lambda dispersion: squares / (1.0 + dispersion * fit.mean)), spare


def _unequal(data: _Data, dispersion: float, own: Floats, cells: NDArray[np.intp]) -> Floats:
    """Variance of each animal's cell of the design, relative to the geometric mean; ones where they are alike."""
    residual, spare = _pearson(data, own)
    kinds = np.unique(cells)
    if len(kinds) < 2 or min((cells == kind).sum() for kind in kinds) < 3:
        return np.ones(len(cells))
    values = residual(dispersion)
    log = np.empty(len(kinds))
    for i, kind in enumerate(kinds):
        here = cells == kind
        expected = spare[:, here].sum(axis=1)
        used = expected > 0.2
        ratio = values[:, here].sum(axis=1)[used] / expected[used]
        # Without the largest tenth: a few restless regions say nothing about the group.
        log[i] = np.log(np.sort(ratio)[: max(1, int(0.9 * len(ratio)))].mean())
    if np.exp(np.ptp(log)) < _UNEQUAL:
        return np.ones(len(cells))
    return np.exp(log - log.mean())[np.searchsorted(kinds, cells)]


def _quasi(data: _Data, own: Floats, dispersion: float) -> tuple[Floats, Floats, Floats]:
    """Quasi-dispersion of each region by itself, its degrees of freedom, and the mean count."""
    weight = data.weight
    fit = fit_means(data.counts, data.offset, data.design, dispersion, weight, data.ridge)
    first, second = deviance_moments(fit.mean, dispersion)
    there = weight > 0
    # Each unit deviance as a multiple of a chi-square with the same expectation and variance.
    spare = there * (1.0 - leverages(fit, data.design, dispersion, weight)) * 2.0 * first**2 / second
    freedom = np.maximum(own * spare.sum(axis=1), _LEAST_FREEDOM)
    raw = (deviance(data.counts, fit.mean, dispersion, weight) * 2.0 * first / second).sum(axis=1) / freedom
    return raw, freedom, (there * fit.mean).sum(axis=1) / there.sum(axis=1)
