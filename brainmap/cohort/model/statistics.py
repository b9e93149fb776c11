"""Counts of all regions at once by negative binomial regression; densities by t-tests of their logarithms.

Arrays are (animals, regions); where an animal lacks a region its volume is NaN or 0. Effects are of a contrast of the
design's coefficients; where it is a difference b - a, positive effects mean more in b.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from brainmap.cohort.groups import LEAST_ANIMALS
from brainmap.cohort.model.design import Contrast
from brainmap.cohort.model.dispersion import Scatter, estimate_scatter
from brainmap.cohort.model.negative_binomial import Floats, fit_means

__all__ = [
    "CONFIDENCE",
    "COUNT_TEST",
    "LEAST_CELLS",
    "PSEUDO_CELLS",
    "CountModel",
    "RegionTest",
    "adjust",
    "contrast_counts",
    "count_test",
    "fit_counts",
    "in_family",
]

COUNT_TEST = "nb-quasi-score"

#: Cells added to each side of a contrast for its ratio, spread over animals by volume: finite without a cell.
PSEUDO_CELLS = 0.5

CONFIDENCE = 0.95

#: In all animals of a test together; regions with fewer are not called different.
LEAST_CELLS = 10

Flags = NDArray[np.bool_]

# Of the mean information: holds what a region's animals say nothing of, and moves nothing else.
_RIDGE = 1e-8


@dataclass(frozen=True)
class RegionTest:
    """Result of a test, (regions,) each; NaN where a region cannot be tested.

    Attributes
    ----------
    p : float64 array
        Two-sided; 1 without a single cell.
    log2_ratio, low, high : float64 arrays
        log2 of density in b over density in a, or another contrast of log2 densities, and its confidence interval;
        NaN where several coefficients are tested together.
    error, freedom : float64 arrays
        Standard error of the ratio, log2, and its degrees of freedom.
    density_a, density_b : float64 arrays
        Cells per mm3 by the model, at the animals' mean level and equal shares of the other columns; their ratio is
        that of `log2_ratio`. NaN where a contrast is no difference b - a.
    sd : float64 array
        Scatter between animals of one group, log2, counting chance included.
    test : str
    """

    p: Floats
    log2_ratio: Floats
    low: Floats
    high: Floats
    error: Floats
    freedom: Floats
    density_a: Floats
    density_b: Floats
    sd: Floats
    test: str
    scatter: Scatter | None = None

    @classmethod
    def empty(cls, regions: int, test: str) -> RegionTest:
        """All unknown."""
        p, ratio, low, high, error, freedom, a, b, sd = np.full((9, regions), np.nan)
        return cls(p, ratio, low, high, error, freedom, a, b, sd, test)


@dataclass(frozen=True)
class CountModel:
    """Fitted scatter of the regions with cells, for any number of contrasts.

    Attributes
    ----------
    here : bool array (animals,)
        Animals with any region.
    there : bool array (regions, animals)
        Of all regions and animals: who takes part where.
    some : bool array (regions,)
        Regions with cells and a degree of freedom.
    y, offset, weight : float64 arrays (fitted regions, animals here)
    basis : float64 array (animals here, coefficients)
        Orthonormal columns that span the design's.
    to_basis : float64 array (coefficients, coefficients)
        ``row @ to_basis`` turns a row of the design into one of the basis.
    ridge : float64 array (fitted regions,)
    scatter : Scatter or None
    """

    here: Flags
    there: Flags
    some: Flags
    y: Floats
    offset: Floats
    weight: Floats
    basis: Floats
    to_basis: Floats
    ridge: Floats
    scatter: Scatter | None


def fit_counts(
    counts: Floats, volume_mm3: Floats, design: Floats, cells: NDArray[np.intp] | None = None
) -> CountModel:
    """Fit the regressions of all regions.

    Parameters
    ----------
    counts, volume_mm3 : float64 arrays (animals, regions)
        Volume NaN or 0: the animal lacks the region.
    design : float64 array (animals, coefficients)
    cells : int array (animals,), optional
        Group of each animal, whose variances may differ.
    """
    there = (np.nan_to_num(volume_mm3) > 0).T
    y = np.where(there, np.nan_to_num(counts.T), 0.0)
    offset = np.where(there, np.log(np.where(there, np.nan_to_num(volume_mm3.T), 1.0)), 0.0)
    rank = _by_pattern(there, lambda p: np.linalg.matrix_rank(design[p]) if p.any() else 0)
    some = (there.sum(axis=1) > rank) & (y.sum(axis=1) > 0)
    here = np.asarray((there[some] if some.any() else there).any(axis=0))
    basis, triangle = np.linalg.qr(design[here]) if here.any() else (design[here], np.eye(design.shape[1]))
    full = np.abs(np.diag(triangle)).min(initial=np.inf) > 1e-9 if here.any() else False
    to_basis = np.linalg.inv(triangle) if full else np.linalg.pinv(triangle)
    ridge = np.where(rank[some] < design.shape[1], _RIDGE, 0.0)
    weight = there[some][:, here].astype(float)
    of = (y[some][:, here], offset[some][:, here])
    scatter = None
    if some.any():
        scatter = estimate_scatter(
            *of, basis, weight, ridge=ridge, cells=None if cells is None else np.asarray(cells)[here]
        )
        weight = weight / scatter.variance
    return CountModel(here, there, some, *of, weight, basis, to_basis, ridge, scatter)


def _by_pattern(there: Flags, value: object) -> NDArray[np.int64]:
    """A number for each region that depends only on which animals have it."""
    patterns, which = np.unique(there, axis=0, return_inverse=True)
    return np.array([value(pattern) for pattern in patterns])[which.ravel()]  # type: ignore[operator]


def contrast_counts(
    model: CountModel, design: Floats, contrast: Contrast, sides: Flags | None = None
) -> RegionTest:
    """Test a contrast in all regions.

    A quasi-likelihood score test in a negative binomial regression with log volume as offset, against the scatter of
    `brainmap.cohort.model.dispersion`; the reference is F with Satterthwaite's degrees of freedom.

    Parameters
    ----------
    model : CountModel
    design : float64 array (animals, coefficients)
    contrast : Contrast
    sides : bool array (2, animals), optional
        Animals of a and of b: two of each must have a region.
    """
    testable = _testable(model, design, contrast.matrix, sides)
    result = RegionTest.empty(len(testable), COUNT_TEST)
    result.p[testable] = 1.0
    result.log2_ratio[testable] = 0.0
    used = testable & model.some
    if model.scatter is None or not used.any():
        return result
    within = used[model.some]
    part = _Part.of(model, within)
    scatter = model.scatter
    quasi, freedom_own = scatter.quasi[within], scatter.freedom[within]
    dispersion = (scatter.dispersion + scatter.shared / quasi)[:, None]
    tested = model.to_basis.T @ contrast.matrix
    result.p[used], freedom = _score_test(part, scatter, quasi, freedom_own, dispersion, tested)
    result.freedom[used] = freedom
    for name, values in _ratio(part, model, contrast, quasi, dispersion, freedom, tested).items():
        getattr(result, name)[used] = values
    mean = (part.there * part.offset_mean).sum(axis=1) / part.there.sum(axis=1)
    result.sd[used] = np.sqrt(quasi * (1.0 / mean + scatter.dispersion) + scatter.shared) / np.log(2.0)
    return RegionTest(**{**vars(result), "scatter": scatter})


def count_test(
    counts: Floats, volume_mm3: Floats, in_b: Flags, covariates: Floats | None = None
) -> RegionTest:
    """Two groups and, if any, further columns (without an intercept): `fit_counts` and `contrast_counts`."""
    extra = np.empty((len(in_b), 0)) if covariates is None else covariates
    design = np.column_stack([np.ones(len(in_b)), extra, in_b]).astype(float)
    a = np.concatenate([[1.0], extra.mean(axis=0), [0.0]])
    b = np.concatenate([[1.0], extra.mean(axis=0), [1.0]])
    model = fit_counts(counts, volume_mm3, design, in_b.astype(np.intp))
    contrast = Contrast("b - a", (b - a)[:, None], a, b, "a", "b")
    return contrast_counts(model, design, contrast, np.stack([~in_b, in_b]))


@dataclass(frozen=True)
class _Part:
    """The regions of a test, (regions, animals); `offset_mean` are the fitted means of the full model."""

    y: Floats
    offset: Floats
    weight: Floats
    there: Flags
    basis: Floats
    ridge: Floats
    offset_mean: Floats

    @classmethod
    def of(cls, model: CountModel, within: Flags) -> _Part:
        assert model.scatter is not None
        y, offset, weight = model.y[within], model.offset[within], model.weight[within]
        ridge = model.ridge[within]
        mean = fit_means(y, offset, model.basis, model.scatter.dispersion, weight, ridge).mean
        return cls(y, offset, weight, weight > 0, model.basis, ridge, mean)


def _testable(model: CountModel, design: Floats, matrix: Floats, sides: Flags | None) -> Flags:
    """Regions whose animals tell what is tested, with a degree of freedom to spare and two animals a side."""

    def tells(pattern: Flags) -> bool:
        if sides is not None and min((pattern & side).sum() for side in sides) < LEAST_ANIMALS:
            return False
        rows = design[pattern]
        rank = np.linalg.matrix_rank(rows) if len(rows) else 0
        return bool(len(rows) > rank and np.linalg.matrix_rank(np.vstack([rows, matrix.T])) == rank)

    return _by_pattern(model.there, tells).astype(bool)


def _score_test(
    part: _Part, scatter: Scatter, quasi: Floats, own_freedom: Floats, dispersion: Floats, tested: Floats
) -> tuple[Floats, Floats]:
    """p-values and degrees of freedom; `tested` are combinations of the basis's coefficients."""
    size = part.basis.shape[1]
    q, _ = np.linalg.qr(np.column_stack([tested, np.eye(size)]))
    tests = np.linalg.matrix_rank(tested)
    null = part.basis @ q[:, tests:size]
    rotated = part.basis @ q[:, :size]
    fit = fit_means(part.y, part.offset, null, dispersion, part.weight, part.ridge)
    spread = 1.0 + dispersion * fit.mean
    work = part.weight * fit.mean / spread
    score = (part.weight * (part.y - fit.mean) / spread) @ rotated
    information = np.einsum("ra,ap,aq->rpq", work, rotated, rotated)
    held = part.ridge * np.trace(information, axis1=1, axis2=2) / size
    information = information + held[:, None, None] * np.eye(size)
    solved = np.linalg.solve(information, score[..., None])[..., 0]
    statistic = np.einsum("rp,rp->r", score, solved) / quasi / tests
    # Satterthwaite: the region's own scatter and the animals' shared one are known with different precision.
    mean = (part.there * fit.mean).sum(axis=1) / part.there.sum(axis=1)
    own = quasi * (1.0 / mean + scatter.dispersion)
    freedom = (own + scatter.shared) ** 2 / (
        own**2 / own_freedom + scatter.shared**2 / scatter.shared_freedom
    )
    return stats.f.sf(statistic, tests, freedom), freedom


def _ratio(
    part: _Part,
    model: CountModel,
    contrast: Contrast,
    quasi: Floats,
    dispersion: Floats,
    freedom: Floats,
    tested: Floats,
) -> dict[str, Floats]:
    if tested.shape[1] > 1:
        nothing = np.full(len(part.y), np.nan)
        return dict.fromkeys(("log2_ratio", "low", "high", "error", "density_a", "density_b"), nothing)
    # Half a cell to the animals on either side of the contrast.
    direction = part.basis @ tested[:, 0]
    volume = part.there * np.exp(part.offset)
    share = np.zeros_like(volume)
    for side in (direction > 1e-12, direction < -1e-12):
        total = volume[:, side].sum(axis=1, keepdims=True)
        share[:, side] = np.divide(
            volume[:, side], total, out=np.zeros_like(volume[:, side]), where=total > 0
        )
    fit = fit_means(
        part.y + PSEUDO_CELLS * share, part.offset, part.basis, dispersion, part.weight, part.ridge
    )
    vector = tested[:, 0]
    ratio = fit.coefficients @ vector / np.log(2.0)
    error = np.sqrt(quasi * np.einsum("p,rpq,q->r", vector, fit.covariance, vector)) / np.log(2.0)
    reach = stats.t.ppf(0.5 + CONFIDENCE / 2, freedom) * error
    found = {"log2_ratio": ratio, "low": ratio - reach, "high": ratio + reach, "error": error}
    for name, row in (("density_a", contrast.row_a), ("density_b", contrast.row_b)):
        if row is not None:
            found[name] = np.exp(fit.coefficients @ (row @ model.to_basis))
    return found


def adjust(p: Floats, cells: Floats) -> Floats:
    """Benjamini-Hochberg q-values.

    Parameters
    ----------
    p : float64 array (regions,)
    cells : float64 array (regions,)
        Of all animals together. Regions with fewer than `LEAST_CELLS` are no part of the family and have q = 1: so
        few cells can lie evenly within groups by chance, which looks like certainty.
    """
    q = np.where(np.isfinite(p), 1.0, np.nan)
    used = in_family(p, cells)
    if used.any():
        q[used] = stats.false_discovery_control(p[used])
    return q


def in_family(p: Floats, cells: Floats) -> Flags:
    """Regions that a correction counts: testable, with enough cells."""
    return np.isfinite(p) & (cells >= LEAST_CELLS)
