"""Densities on the log scale by least squares: t-tests, and animals that stand out in single regions.

Arrays are (animals, regions). A log density is log2 of the cells and half a cell over the volume.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from brainmap.cohort.groups import LEAST_ANIMALS
from brainmap.cohort.model.design import Contrast
from brainmap.cohort.model.negative_binomial import Floats
from brainmap.cohort.model.prior import fit_prior
from brainmap.cohort.model.statistics import CONFIDENCE, PSEUDO_CELLS, RegionTest

__all__ = [
    "DENSITY_TEST",
    "POOLED_TEST",
    "Outliers",
    "contrast_densities",
    "find_outliers",
    "log_density",
    "residuals",
]

Flags = NDArray[np.bool_]

DENSITY_TEST, POOLED_TEST = "welch-t-log", "pooled-t-log"

# Animals that stand out: rate of false ones among them, by what factor at least, and cells that must be expected.
_OUTLIER_RATE = 0.01
_OUTLIER_LOG2 = 1.0
_OUTLIER_CELLS = 10.0
_FEW_REGIONS = 10


def log_density(counts: Floats, volume_mm3: Floats) -> Floats:
    """log2 of density, half a cell added; NaN where there is no volume."""
    volume = np.where(np.nan_to_num(volume_mm3) > 0, volume_mm3, np.nan)
    return np.log2((np.nan_to_num(counts) + PSEUDO_CELLS) / volume)


@dataclass(frozen=True)
class _LeastSquares:
    """Fits of all regions: coefficients (regions, k), inverses (regions, k, k), residuals and leverages."""

    coefficients: Floats
    inverse: Floats
    residual: Floats
    leverage: Floats
    there: Flags
    freedom: NDArray[np.int64]


def _least_squares(values: Floats, design: Floats) -> _LeastSquares:
    there = np.isfinite(values).T
    y = np.where(there, np.nan_to_num(values.T), 0.0)
    patterns, which = np.unique(there, axis=0, return_inverse=True)
    k = design.shape[1]
    inverse = np.zeros((len(patterns), k, k))
    rank = np.zeros(len(patterns), dtype=np.int64)
    for i, pattern in enumerate(patterns):
        rows = design[pattern]
        if len(rows):
            inverse[i] = np.linalg.pinv(rows.T @ rows, hermitian=True)
            rank[i] = np.linalg.matrix_rank(rows)
    inverse, rank = inverse[which.ravel()], rank[which.ravel()]
    coefficients = np.einsum("rpq,aq,ra->rp", inverse, design, y)
    residual = np.where(there, y - coefficients @ design.T, 0.0)
    leverage = np.where(there, np.einsum("ap,rpq,aq->ra", design, inverse, design), 0.0)
    return _LeastSquares(coefficients, inverse, residual, leverage, there, there.sum(axis=1) - rank)


def residuals(values: Floats, design: Floats) -> Floats:
    """What least squares leave of log densities (animals, regions); NaN where an animal lacks a region."""
    fit = _least_squares(values, design)
    return np.where(fit.there, fit.residual, np.nan).T


def contrast_densities(
    values: Floats, design: Floats, contrast: Contrast, sides: Flags | None = None, *, welch: bool = False
) -> RegionTest:
    """Test a contrast of log densities in every region by itself.

    Parameters
    ----------
    values : float64 array (animals, regions)
        Log densities, log2; NaN where an animal lacks a region.
    design : float64 array (animals, coefficients)
    contrast : Contrast
    sides : bool array (2, animals), optional
        Animals of a and of b.
    welch : bool
        The design is groups alone, two of which are compared: each has its own variance, and other groups are left
        aside. Otherwise one variance is that of all animals.
    """
    if welch and sides is not None:
        return _welch(values, sides)
    result = RegionTest.empty(values.shape[1], POOLED_TEST)
    fit = _least_squares(values, design)
    matrix = contrast.matrix
    tests = matrix.shape[1]
    spread = np.einsum("pt,rpq,qu->rtu", matrix, fit.inverse, matrix)
    known = (fit.freedom > 0) & (np.linalg.matrix_rank(spread) == tests) & _estimable(fit, matrix)
    if sides is not None:
        known &= np.min([(fit.there & side).sum(axis=1) for side in sides], axis=0) >= LEAST_ANIMALS
    if not known.any():
        return result
    estimate = fit.coefficients[known] @ matrix
    freedom = fit.freedom[known].astype(float)
    variance = (fit.residual[known] ** 2).sum(axis=1) / freedom
    inverse = np.linalg.inv(spread[known])
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = np.einsum("rt,rtu,ru->r", estimate, inverse, estimate) / tests / variance
    result.p[known] = np.where(variance > 0, stats.f.sf(statistic, tests, freedom), np.nan)
    result.p[known] = np.where((variance == 0) & (np.abs(estimate).max(axis=1) < 1e-12), 1.0, result.p[known])
    result.sd[known], result.freedom[known] = np.sqrt(variance), freedom
    if tests == 1:
        error = np.sqrt(variance * spread[known][:, 0, 0])
        _fill(result, known, estimate[:, 0], error, freedom)
        for name, row in (("density_a", contrast.row_a), ("density_b", contrast.row_b)):
            if row is not None:
                getattr(result, name)[known] = 2.0 ** (fit.coefficients[known] @ row)
    return result


def _estimable(fit: _LeastSquares, matrix: Floats) -> Flags:
    """Whether the animals of a region tell the combinations of coefficients: projected on what they tell, no change."""
    # inverse @ pinv(inverse) projects on the row space.
    projection = fit.inverse @ np.linalg.pinv(fit.inverse, hermitian=True)
    return np.asarray(np.abs(projection @ matrix - matrix).max(axis=(1, 2)) < 1e-6)


def _fill(result: RegionTest, known: Flags, ratio: Floats, error: Floats, freedom: Floats) -> None:
    reach = stats.t.ppf(0.5 + CONFIDENCE / 2, freedom) * error
    for name, found in (
        ("log2_ratio", ratio),
        ("error", error),
        ("low", ratio - reach),
        ("high", ratio + reach),
    ):
        getattr(result, name)[known] = found


def _welch(values: Floats, sides: Flags) -> RegionTest:
    result = RegionTest.empty(values.shape[1], DENSITY_TEST)
    n, mean, variance = (np.zeros((2, values.shape[1])) for _ in range(3))
    for i, side in enumerate(sides):
        known = np.isfinite(values[side])
        n[i] = known.sum(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            mean[i] = np.where(known, values[side], 0.0).sum(axis=0) / n[i]
            squares = np.where(known, (values[side] - mean[i]) ** 2, 0.0).sum(axis=0)
            variance[i] = squares / (n[i] - 1)
    known = n.min(axis=0) >= LEAST_ANIMALS
    part = variance[:, known] / n[:, known]
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = part.sum(axis=0) ** 2 / (part**2 / (n[:, known] - 1)).sum(axis=0)
        ratio, error = mean[1, known] - mean[0, known], np.sqrt(part.sum(axis=0))
        p = 2.0 * stats.t.sf(np.abs(ratio / error), freedom)
    result.p[known] = np.where(error > 0, p, np.where(ratio == 0, 1.0, np.nan))
    result.freedom[known] = freedom
    _fill(result, known, ratio, error, freedom)
    result.density_a[known], result.density_b[known] = 2.0 ** mean[:, known]
    spare = n[:, known] - 1
    result.sd[known] = np.sqrt((variance[:, known] * spare).sum(axis=0) / spare.sum(axis=0))
    return result


@dataclass(frozen=True)
class Outliers:
    """Animals that stand out in a region from what the other animals of the design predict.

    Attributes
    ----------
    flag : bool array (animals, regions)
    log2_factor : float64 array (animals, regions)
        Above the prediction of the others, the animal's own level divided out; NaN where not known.
    p : float64 array (animals, regions)
    """

    flag: Flags
    log2_factor: Floats
    p: Floats


def find_outliers(counts: Floats, volume_mm3: Floats, design: Floats) -> Outliers:
    """Find single regions of single animals that are damaged or full of artefacts.

    Each log density is set against the prediction by the other animals, by a t-test with a variance without it that
    all regions steady. Called are those at a false discovery rate of 1 % over all animals and regions that are off by
    a factor of two or more where ten cells or more are expected or found.

    Parameters
    ----------
    counts, volume_mm3 : float64 arrays (animals, regions)
    design : float64 array (animals, coefficients)
    """
    values = log_density(counts, volume_mm3)
    shape = values.shape
    nothing = Outliers(np.zeros(shape, bool), np.full(shape, np.nan), np.full(shape, np.nan))
    fit = _least_squares(values, design)
    enough = np.nan_to_num(counts).sum(axis=0) >= _OUTLIER_CELLS
    used = (fit.freedom >= 2) & enough
    if used.sum() < _FEW_REGIONS:
        return nothing
    there, leverage = fit.there[used], fit.leverage[used]
    # The level an animal shares over its regions is no outlier of one region.
    residual = np.where(there, fit.residual[used], np.nan)
    level = np.zeros(len(values))
    known = there.any(axis=0)
    level[known] = np.nanmedian(residual[:, known], axis=0)
    fit = _least_squares(np.where(np.isfinite(values), values - level[:, None], np.nan), design)
    residual, freedom = fit.residual[used], fit.freedom[used].astype(float)
    open_ = there & (leverage < 0.95)
    rest = np.where(open_, 1.0 - leverage, 1.0)
    deleted = residual / rest
    squares = (residual**2).sum(axis=1)
    cells = np.where(there, np.nan_to_num(counts.T[used]), 0.0).sum(axis=1) / there.sum(axis=1)
    prior = fit_prior(squares / freedom, freedom, np.log(cells))
    borrowed = min(prior.freedom, float(freedom.sum()))
    without = np.maximum(squares[:, None] - residual**2 / rest, 0.0)
    left = freedom[:, None] - 1.0
    variance = (borrowed * prior.trend[:, None] + without) / (borrowed + left)
    p = 2.0 * stats.t.sf(np.abs(deleted) / np.sqrt(variance / rest), borrowed + left)
    expected = np.nan_to_num(counts.T[used]) * 2.0**-deleted
    larger = np.maximum(expected, np.nan_to_num(counts.T[used]))
    tested = open_ & (larger >= _OUTLIER_CELLS)
    flag = np.zeros(tested.shape, dtype=bool)
    if tested.any():
        flag[tested] = (stats.false_discovery_control(p[tested]) <= _OUTLIER_RATE) & (
            np.abs(deleted[tested]) >= _OUTLIER_LOG2
        )
    found = nothing
    found.flag[:, used] = flag.T
    found.log2_factor[:, used] = np.where(open_, deleted, np.nan).T
    found.p[:, used] = np.where(tested, p, np.nan).T
    return found
