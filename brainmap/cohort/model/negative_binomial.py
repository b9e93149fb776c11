"""Negative binomial regressions of all regions at once: counts on a design, log volume as offset.

Arrays are (regions, animals); the design is (animals, coefficients) and the same for all regions. A count has
mean mu = volume * exp(design @ coefficients) and variance mu + dispersion * mu^2. Where an animal lacks a region,
its weight is 0; where animals scatter more than others, their weight is less than 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln, polygamma, psi, xlogy

__all__ = ["Fit", "Floats", "deviance", "deviance_moments", "fit_means", "leverages"]

Floats = npt.NDArray[np.float64]

_LEAST_MEAN = 1e-6  # cells: keeps the weights of a group without a single cell above zero
_MAX_ITERATIONS = 60
_TOLERANCE = 1e-8

# Means below this: moments of the deviance by summation; above: the limit of large means.
_SUMMED_MEAN = 25.0
_SUMMED_COUNTS = 250


@dataclass(frozen=True)
class Fit:
    """Fitted regressions.

    Attributes
    ----------
    coefficients : float64 array (regions, coefficients)
        Natural logarithms.
    mean : float64 array (regions, animals)
    information : float64 array (regions, coefficients, coefficients)
        Fisher information of the coefficients at a quasi-dispersion of 1.
    """

    coefficients: Floats
    mean: Floats
    information: Floats

    @property
    def covariance(self) -> Floats:
        """Inverse of the information."""
        return np.asarray(np.linalg.inv(self.information), dtype=np.float64)


def fit_means(
    counts: Floats,
    offset: Floats,
    design: Floats,
    dispersion: Floats | float,
    weight: Floats,
    ridge: Floats | float = 0.0,
) -> Fit:
    """Maximum-likelihood means at a given dispersion, by Fisher scoring.

    Parameters
    ----------
    counts, offset, weight : float64 arrays (regions, animals)
        Counts (need not be whole), natural log of the volume, and weights from 0 on.
    design : float64 array (animals, coefficients)
        Of full rank on the animals with weight, but where there is a `ridge`.
    dispersion : float64 array broadcastable to (regions, animals)
    ridge : float64 array broadcastable to (regions,)
        Holds coefficients near 0 that a region's animals say nothing of, as a share of the mean information.

    Notes
    -----
    A group without a single cell has its maximum at minus infinity; its mean stops at a millionth of a cell.
    """
    mean = np.maximum(0.5 * (counts + _pooled_mean(counts, offset, weight)), _LEAST_MEAN)
    eta = np.log(mean)
    before = np.full(len(counts), np.inf)
    for _ in range(_MAX_ITERATIONS):
        information, score = _normal_equations(counts, offset, design, dispersion, weight, mean, eta)
        information = _held(information, ridge)
        coefficients = np.linalg.solve(information, score[..., None])[..., 0]
        eta = np.maximum(coefficients @ design.T + offset, np.log(_LEAST_MEAN))
        mean = np.exp(np.minimum(eta, 50.0))
        now = deviance(counts, mean, dispersion, weight).sum(axis=1)
        if np.all(np.abs(now - before) <= _TOLERANCE * (1.0 + np.abs(now))):
            break
        before = now
    information, _ = _normal_equations(counts, offset, design, dispersion, weight, mean, eta)
    return Fit(np.asarray(coefficients, dtype=np.float64), mean, _held(information, ridge))


def _held(information: Floats, ridge: Floats | float) -> Floats:
    if not np.any(ridge):
        return information
    size = information.shape[-1]
    typical = np.trace(information, axis1=1, axis2=2) / size
    return information + (typical * ridge)[:, None, None] * np.eye(size)


def _pooled_mean(counts: Floats, offset: Floats, weight: Floats) -> Floats:
    volume = weight * np.exp(offset)
    rate = (weight * counts).sum(axis=1) / volume.sum(axis=1)
    return rate[:, None] * np.exp(offset)


def _normal_equations(
    counts: Floats,
    offset: Floats,
    design: Floats,
    dispersion: Floats | float,
    weight: Floats,
    mean: Floats,
    eta: Floats,
) -> tuple[Floats, Floats]:
    work = weight * mean / (1.0 + dispersion * mean)
    response = eta - offset + (counts - mean) / mean
    information = np.einsum("ra,ap,aq->rpq", work, design, design)
    return information, (work * response) @ design


def deviance(counts: Floats, mean: Floats, dispersion: Floats | float, weight: Floats) -> Floats:
    """Unit deviances, (regions, animals): twice the log-likelihood lost against a mean equal to the count."""
    dispersion = np.broadcast_to(dispersion, counts.shape)
    # log1p form: exact for a dispersion of zero (Poisson) and for large means alike.
    gap = mean - counts
    poisson = xlogy(counts, counts / mean) + gap
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log1p(dispersion * gap / (1.0 + dispersion * counts))
        binomial = xlogy(counts, counts / mean) + (counts + 1.0 / dispersion) * ratio
    unit = 2.0 * np.where(dispersion > 1e-10, binomial, poisson)
    return weight * np.maximum(unit, 0.0)


def leverages(fit: Fit, design: Floats, dispersion: Floats | float, weight: Floats) -> Floats:
    """Share of each observation in its own fitted value, (regions, animals)."""
    work = weight * fit.mean / (1.0 + dispersion * fit.mean)
    spread = np.einsum("ap,rpq,aq->ra", design, fit.covariance, design)
    return np.clip(work * spread, 0.0, 1.0)


def deviance_moments(mean: Floats, dispersion: float) -> tuple[Floats, Floats]:
    """Expectation and variance of the unit deviance of a negative binomial count with these means.

    1 and 2, as of chi-square, only for large means and small dispersions. For small means they are far from it,
    which would make regions with few cells look too quiet or too restless (as edgeR 4, Chen et al. 2025,
    Nucleic Acids Research 53: gkaf018).
    """
    first, second = (np.empty(mean.shape) for _ in range(2))
    large = mean > _SUMMED_MEAN
    first[large], second[large] = _limit_moments(mean[large], dispersion)
    first[~large], second[~large] = _summed_moments(np.maximum(mean[~large], _LEAST_MEAN), dispersion)
    return first, second


def _limit_moments(mean: Floats, dispersion: float) -> tuple[Floats, Floats]:
    """Of gamma-distributed counts with the variance of the negative binomial ones."""
    shape = 1.0 / (1.0 / mean + dispersion)
    return 2.0 * shape * (np.log(shape) - psi(shape)), 4.0 * shape**2 * (polygamma(1, shape) - 1.0 / shape)


def _summed_moments(mean: Floats, dispersion: float) -> tuple[Floats, Floats]:
    """By summation over a grid of means, interpolated."""
    grid = np.geomspace(_LEAST_MEAN, _SUMMED_MEAN, 80)[:, None]
    y = np.arange(_SUMMED_COUNTS, dtype=float)[None, :]
    if dispersion > 1e-10:
        size = 1.0 / dispersion
        log_p = gammaln(y + size) - gammaln(size) - gammaln(y + 1) - size * np.log1p(dispersion * grid)
        log_p = log_p + y * (np.log(grid) - np.log(grid + size))
    else:
        log_p = xlogy(y, grid) - grid - gammaln(y + 1)
    p = np.exp(log_p)
    p /= p.sum(axis=1, keepdims=True)
    shape = (len(grid), _SUMMED_COUNTS)
    unit = deviance(np.broadcast_to(y, shape), np.broadcast_to(grid, shape), dispersion, np.ones(shape))
    first = (p * unit).sum(axis=1)
    second = (p * unit**2).sum(axis=1) - first**2
    position, knots = np.log(mean), np.log(grid[:, 0])
    return np.interp(position, knots, first), np.interp(position, knots, second)
