"""Variances of many regions around a trend: what one region borrows from the others.

Raw values scatter around the trend as F with (own, borrowed) degrees of freedom (Smyth 2004, Statistical Applications
in Genetics and Molecular Biology 3: 3). Both are found by maximum likelihood in which the highest tenth and the lowest
twentieth of the values are only known to lie there, so that a few wild regions do not decide what all others borrow;
those few then borrow less (as Phipson et al. 2016, Annals of Applied Statistics 10: 946).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import betaln, chdtr, chdtrc, fdtr, fdtrc, gammaln

from brainmap.cohort.model.negative_binomial import Floats

__all__ = ["LEAST_VALUE", "Prior", "fit_prior"]

LEAST_VALUE = 1e-8

_ENDLESS = 1e4  # borrowed degrees of freedom that are as good as infinite
_LOWEST, _HIGHEST = 0.05, 0.90
_STEEPEST = 1.5


@dataclass(frozen=True)
class Prior:
    """What is known of a region's variance without the region.

    Attributes
    ----------
    freedom : float
        Degrees of freedom borrowed; inf where regions do not differ.
    own_freedom : float64 array (regions,)
        The same, less where a region lies far above the trend.
    trend : float64 array (regions,)
    """

    freedom: float
    own_freedom: Floats
    trend: Floats

    def moderate(self, raw: Floats, freedom: Floats) -> tuple[Floats, Floats]:
        """Moderated values and their degrees of freedom."""
        endless = ~np.isfinite(self.own_freedom)
        borrowed = np.where(endless, 1.0, self.own_freedom)
        value = (freedom * raw + borrowed * self.trend) / (freedom + borrowed)
        return np.where(endless, self.trend, value), np.where(endless, np.inf, freedom + borrowed)


def fit_prior(raw: Floats, freedom: Floats, log_mean: Floats) -> Prior:
    """Fit a trend (a straight line in the logs) and the borrowed degrees of freedom.

    Parameters
    ----------
    raw, freedom : float64 arrays (regions,)
        Variances, or factors of them, and their own degrees of freedom.
    log_mean : float64 array (regions,)
        What the trend is over.
    """
    centre = (log_mean - log_mean.mean()) / max(float(log_mean.std()), 1e-9)
    raw = np.maximum(raw, LEAST_VALUE)
    line = (
        np.polynomial.Polynomial.fit(centre, np.log(raw), 1)(centre)
        if np.ptp(centre) > 0
        else np.log(raw).mean()
    )
    low, high = (np.exp(line + q) for q in np.quantile(np.log(raw) - line, [_LOWEST, _HIGHEST]))
    below, above = raw < low, raw > high
    inside = ~(below | above)

    def trend(parameters: Floats) -> Floats:
        return np.exp(parameters[0] + np.clip(parameters[1], -_STEEPEST, _STEEPEST) * centre)

    def lost(parameters: Floats) -> float:
        scale = trend(parameters)
        with np.errstate(over="ignore"):
            borrowed = float(np.exp(parameters[2]))
        inner = _log_f(raw[inside] / scale[inside], freedom[inside], borrowed) - np.log(scale[inside])
        with np.errstate(divide="ignore"):
            lower = np.log(_below((low / scale)[below], freedom[below], borrowed))
            upper = np.log(_above((high / scale)[above], freedom[above], borrowed))
        return -float(inner.sum() + np.maximum(lower, -700.0).sum() + np.maximum(upper, -700.0).sum())

    start = [float(np.log(np.median(raw))), 0.0, np.log(10.0)]
    found = minimize(lost, start, method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-4})
    borrowed = float(np.exp(min(found.x[2], 50.0)))
    expected = trend(found.x)
    own = _less_where_wild(raw / expected, freedom, borrowed)
    return Prior(np.inf if borrowed > _ENDLESS else borrowed, own, expected)


def _less_where_wild(ratio: Floats, freedom: Floats, borrowed: float) -> Floats:
    """Borrowed degrees of freedom of each region: fewer by the chance that it is not one of the others' kind."""
    tail = np.maximum(_above(ratio, freedom, borrowed), 1e-300)
    order = np.argsort(tail, kind="stable")
    expected = (np.arange(len(tail)) + 0.5) / len(tail)
    kin = np.minimum(tail[order] / expected, 1.0)
    most = np.inf if borrowed > _ENDLESS else borrowed
    own = np.full(len(tail), most)
    if kin.min() == 1.0:
        return own
    finite = min(borrowed, float(freedom.sum()))
    # So few that the wildest region of all would be an even chance.
    least = finite * min(1.0, float(np.log(0.5) / np.log(tail.min())))
    # The wilder, the less: the worst of all that are at least as tame holds for a region.
    kin = np.maximum.accumulate(kin)
    changed = kin < 1.0
    own[order[changed]] = kin[changed] * finite + (1.0 - kin[changed]) * least
    return own


def _above(ratio: Floats, freedom: Floats, borrowed: float) -> Floats:
    if borrowed > _ENDLESS:
        return np.asarray(chdtrc(freedom, freedom * ratio))
    return np.asarray(fdtrc(freedom, borrowed, ratio))


def _below(ratio: Floats, freedom: Floats, borrowed: float) -> Floats:
    if borrowed > _ENDLESS:
        return np.asarray(chdtr(freedom, freedom * ratio))
    return np.asarray(fdtr(freedom, borrowed, ratio))


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
