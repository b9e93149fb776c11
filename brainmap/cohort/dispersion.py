"""How much animals differ without any difference of the groups: what every test is measured against.

Three sources, on the scale of log counts: chance of counting (known), a level that an animal shares over all its
regions (staining, clearing, its state on the day), and what remains, region by region. Four animals against four
tell little about one region's scatter, so that of all regions is used to steady it; what animals share is kept
apart from it, because three hundred regions of eight animals still are eight animals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq, minimize
from scipy.special import betaln, gammaln

from brainmap.cohort.negative_binomial import Floats, deviance, deviance_moments, fit_means, leverages

__all__ = ["Scatter", "estimate_scatter"]

#: Fewer regions than this tell nothing about each other: each is then tested by itself.
LEAST_REGIONS = 10

_FIRST_DISPERSION = 0.1
_MAX_DISPERSION = 20.0
_LEAST_FREEDOM = 1e-3
_LEAST_QUASI = 1e-8
_ENDLESS = 1e4  # borrowed degrees of freedom that are as good as infinite


@dataclass(frozen=True)
class Scatter:
    """Scatter of the counts between animals of one group.

    The variance of a count with mean mu is ``quasi * (mu + dispersion * mu^2) + shared * mu^2``.

    Attributes
    ----------
    dispersion : float
        Negative binomial dispersion common to all regions.
    quasi : float64 array (regions,)
        Moderated factor of each region (near 1).
    freedom : float64 array (regions,)
        Degrees of freedom behind `quasi`, the borrowed ones included.
    prior_freedom : float
        Those borrowed from the other regions; inf where regions do not differ in scatter.
    shared : float
        Variance of the log of the level that an animal shares over its regions.
    shared_freedom : float
        Animals less coefficients.
    """

    dispersion: float
    quasi: Floats
    freedom: Floats
    prior_freedom: float
    shared: float
    shared_freedom: float


def estimate_scatter(counts: Floats, offset: Floats, design: Floats, weight: Floats) -> Scatter:
    """Estimate the scatter of all regions; see `Scatter`.

    Parameters
    ----------
    counts, offset, weight : float64 arrays (regions, animals)
        Every region has at least one cell.
    design : float64 array (animals, coefficients)
        With fewer coefficients than animals.
    """
    spare = design.shape[0] - design.shape[1]
    level, shared, own = np.zeros(len(design)), 0.0, np.ones(len(counts))
    dispersion = _common_dispersion(counts, offset, design, weight, own)
    if len(counts) >= LEAST_REGIONS:
        level, shared, own = _shared_level(counts, offset, design, weight, dispersion)
        dispersion = _common_dispersion(counts, offset + level, design, weight, own)
    raw, freedom, mean = _quasi(counts, offset + level, design, weight, own, dispersion)
    if len(counts) < LEAST_REGIONS:
        return Scatter(dispersion, np.maximum(raw, _LEAST_QUASI), freedom, 0.0, 0.0, spare)
    prior_freedom, trend = _prior(raw, freedom, np.log(mean))
    if np.isinf(prior_freedom):
        quasi, total = trend, np.full(len(raw), np.inf)
    else:
        quasi = (freedom * raw + prior_freedom * trend) / (freedom + prior_freedom)
        total = freedom + prior_freedom
    # All regions together know no more than their sum (as limma).
    return Scatter(dispersion, quasi, np.minimum(total, freedom.sum()), prior_freedom, shared, spare)


def _shared_level(
    counts: Floats, offset: Floats, design: Floats, weight: Floats, dispersion: float
) -> tuple[Floats, float, Floats]:
    """Levels of the animals within their groups, their variance, and the share of residuals left to each region."""
    level = np.zeros(len(design))
    for _ in range(2):
        mean = fit_means(counts, offset + level, design, dispersion, weight).mean
        precision = weight * mean / (1.0 + dispersion * mean)
        residual = (counts - mean) / mean
        step = (precision * residual).sum(axis=0) / precision.sum(axis=0)
        level = level + step - design @ np.linalg.lstsq(design, step, rcond=None)[0]
    spare = design.shape[0] - design.shape[1]
    # What the mean over regions would scatter if animals shared nothing.
    chance = (precision**2 * (residual - step) ** 2).sum(axis=0) / precision.sum(axis=0) ** 2
    variance = float(level @ level / spare - chance.mean())
    own = 1.0 - (precision / precision.sum(axis=0)).mean(axis=1)
    return level, max(variance, 0.0), own


def _common_dispersion(counts: Floats, offset: Floats, design: Floats, weight: Floats, own: Floats) -> float:
    """The dispersion at which the squared Pearson residuals of all regions add up to their degrees of freedom.

    Their expectation is right at any mean, unlike the deviance's.
    """
    fit = fit_means(counts, offset, design, _FIRST_DISPERSION, weight)
    spare = weight * (1.0 - leverages(fit, design, _FIRST_DISPERSION, weight)) * own[:, None]

    def excess(dispersion: float) -> float:
        residual = (counts - fit.mean) ** 2 / (fit.mean * (1.0 + dispersion * fit.mean))
        return float((weight * residual).sum() - spare.sum())

    if excess(0.0) <= 0:
        return 0.0
    if excess(_MAX_DISPERSION) >= 0:
        return _MAX_DISPERSION
    return float(brentq(excess, 0.0, _MAX_DISPERSION, xtol=1e-6))


def _quasi(
    counts: Floats, offset: Floats, design: Floats, weight: Floats, own: Floats, dispersion: float
) -> tuple[Floats, Floats, Floats]:
    """Quasi-dispersion of each region by itself, its degrees of freedom, and the mean count."""
    fit = fit_means(counts, offset, design, dispersion, weight)
    first, second = deviance_moments(fit.mean, dispersion)
    # Each unit deviance as a multiple of a chi-square with the same expectation and variance.
    spare = weight * (1.0 - leverages(fit, design, dispersion, weight)) * 2.0 * first**2 / second
    freedom = np.maximum(own * spare.sum(axis=1), _LEAST_FREEDOM)
    raw = (deviance(counts, fit.mean, dispersion, weight) * 2.0 * first / second).sum(axis=1) / freedom
    return raw, freedom, (weight * fit.mean).sum(axis=1) / weight.sum(axis=1)


def _prior(raw: Floats, freedom: Floats, log_mean: Floats) -> tuple[float, Floats]:
    """Degrees of freedom borrowed by each region, and the quasi-dispersion expected at its mean count.

    Raw values scatter around the trend as F with (own, borrowed) degrees of freedom (Smyth 2004, Statistical
    Applications in Genetics and Molecular Biology 3: 3); both are found by maximum likelihood. The trend is a
    straight line in the logs.
    """
    centre = (log_mean - log_mean.mean()) / max(float(log_mean.std()), 1e-9)
    raw = np.maximum(raw, _LEAST_QUASI)

    def trend(parameters: Floats) -> Floats:
        return np.exp(parameters[0] + np.clip(parameters[1], -1.5, 1.5) * centre)

    def lost(parameters: Floats) -> float:
        scale = trend(parameters)
        with np.errstate(over="ignore"):
            borrowed = np.exp(parameters[2])
        return -float((_log_f(raw / scale, freedom, borrowed) - np.log(scale)).sum())

    found = minimize(
        lost, [0.0, 0.0, np.log(10.0)], method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-4}
    )
    borrowed = float(np.exp(min(found.x[2], 50.0)))
    return (np.inf if borrowed > _ENDLESS else borrowed), trend(found.x)


def _log_f(ratio: Floats, freedom: Floats, borrowed: float) -> Floats:
    """Log density of the F distribution, by its formula: scipy's takes thirty times as long."""
    half = freedom / 2
    if borrowed > _ENDLESS:
        return half * np.log(half) - gammaln(half) + (half - 1) * np.log(ratio) - half * ratio
    rest = borrowed / 2
    spread = np.log1p(freedom * ratio / borrowed)
    return (
        half * np.log(half / rest) + (half - 1) * np.log(ratio) - (half + rest) * spread - betaln(half, rest)
    )
