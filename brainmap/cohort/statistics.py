"""Two groups of animals, all regions at once: counts by negative binomial regression, densities by Welch's t.

Arrays are (animals, regions), an animal's value is NaN where it lacks the region. Positive effects mean more in the
second group, b.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from brainmap.cohort.dispersion import Scatter, estimate_scatter
from brainmap.cohort.groups import LEAST_ANIMALS
from brainmap.cohort.negative_binomial import Floats, fit_means

__all__ = [
    "CONFIDENCE",
    "COUNT_TEST",
    "DENSITY_TEST",
    "LEAST_CELLS",
    "PSEUDO_CELLS",
    "CountTest",
    "GroupMeans",
    "adjust",
    "count_test",
    "density_ratio",
    "group_means",
    "hedges_interval",
    "in_family",
    "relative_levels",
    "welch_test",
]

COUNT_TEST, DENSITY_TEST = "nb-quasi-score", "welch-t"

#: Cells added to each group for the ratio, spread over its animals by volume: finite where a group has no cell.
PSEUDO_CELLS = 0.5

CONFIDENCE = 0.95

#: In all animals of two groups together; regions with fewer are not called different.
LEAST_CELLS = 10

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class GroupMeans:
    """Sizes, means and standard deviations of two groups, (regions,) each, and Hedges' g."""

    n_a: NDArray[np.int64]
    n_b: NDArray[np.int64]
    mean_a: Floats
    mean_b: Floats
    sd_a: Floats
    sd_b: Floats

    @property
    def hedges_g(self) -> Floats:
        """Difference in pooled standard deviations, corrected for few animals (Hedges 1981).

        0 where no animal differs from another, NaN where only the groups differ or one has a single animal.
        """
        spare = self.n_a + self.n_b - 2
        with np.errstate(divide="ignore", invalid="ignore"):
            pooled = np.sqrt(((self.n_a - 1) * self.sd_a**2 + (self.n_b - 1) * self.sd_b**2) / spare)
            g = (self.mean_b - self.mean_a) / pooled * (1.0 - 3.0 / (4.0 * spare - 1.0))
        return np.where(np.isfinite(g), g, np.where(self.mean_a == self.mean_b, 0.0, np.nan))


def group_means(values: Floats, a: Flags, b: Flags) -> GroupMeans:
    """Describe two groups.

    Parameters
    ----------
    values : float64 array (animals, regions)
        NaN: the animal lacks the region.
    a, b : bool arrays (animals,)
    """
    n_a, mean_a, sd_a = _describe(values[a])
    n_b, mean_b, sd_b = _describe(values[b])
    return GroupMeans(n_a, n_b, mean_a, mean_b, sd_a, sd_b)


def _describe(values: Floats) -> tuple[NDArray[np.int64], Floats, Floats]:
    known = np.isfinite(values)
    n = known.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(known, values, 0.0).sum(axis=0) / n
        squares = np.where(known, (values - mean) ** 2, 0.0).sum(axis=0)
        return n, mean, np.sqrt(squares / np.where(n > 1, n - 1, np.nan))


def hedges_interval(means: GroupMeans) -> tuple[Floats, Floats]:
    """Confidence interval of Hedges' g by its large-sample standard error (Hedges and Olkin 1985)."""
    g, n_a, n_b = means.hedges_g, means.n_a, means.n_b
    error = np.sqrt((n_a + n_b) / (n_a * n_b) + g**2 / (2 * (n_a + n_b)))
    reach = stats.norm.ppf(0.5 + CONFIDENCE / 2) * error
    return g - reach, g + reach


def welch_test(means: GroupMeans) -> Floats:
    """Two-sided p-values of Welch's t-test, (regions,).

    1 where all animals are equal (no cells anywhere); NaN where the groups differ and no animal within them does, or
    a group has fewer than two animals.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        of_a, of_b = means.sd_a**2 / means.n_a, means.sd_b**2 / means.n_b
        t = (means.mean_b - means.mean_a) / np.sqrt(of_a + of_b)
        freedom = (of_a + of_b) ** 2 / (of_a**2 / (means.n_a - 1) + of_b**2 / (means.n_b - 1))
        p = 2.0 * stats.t.sf(np.abs(t), freedom)
    scatter = of_a + of_b
    return np.where(scatter > 0, p, np.where((scatter == 0) & (means.mean_a == means.mean_b), 1.0, np.nan))


@dataclass(frozen=True)
class CountTest:
    """Result of `count_test`: (regions,) each; NaN where a region cannot be tested.

    Attributes
    ----------
    p : float64 array
        Two-sided; 1 without a single cell.
    log2_ratio, low, high : float64 arrays
        log2 of density in b over density in a, and its confidence interval.
    scatter : Scatter or None
        Of the regions with cells; None without any.
    """

    p: Floats
    log2_ratio: Floats
    low: Floats
    high: Floats
    scatter: Scatter | None


def count_test(
    counts: Floats, volume_mm3: Floats, in_b: Flags, covariates: Floats | None = None
) -> CountTest:
    """Test whether groups a and b differ in cells per volume.

    A quasi-likelihood score test of the group in a negative binomial regression with log volume as offset, against
    the scatter of `brainmap.cohort.dispersion`; the reference is F with 1 and Satterthwaite's degrees of freedom.

    Parameters
    ----------
    counts, volume_mm3 : float64 arrays (animals, regions)
        Volume NaN or 0: the animal lacks the region.
    in_b : bool array (animals,)
        Group b; the others are group a.
    covariates : float64 array (animals, k), optional
        Further columns of the design, without an intercept.
    """
    extra = np.empty((len(in_b), 0)) if covariates is None else covariates
    null = np.column_stack([np.ones(len(in_b)), extra])
    design = np.column_stack([null, in_b])
    weight = (np.nan_to_num(volume_mm3) > 0).T.astype(float)
    testable = _testable(weight > 0, design)
    y = np.where(weight > 0, np.nan_to_num(counts.T), 0.0)
    offset = np.where(weight > 0, np.log(np.where(weight > 0, np.nan_to_num(volume_mm3.T), 1.0)), 0.0)
    some = testable & (y.sum(axis=1) > 0)
    nothing = np.where(testable, 0.0, np.nan)
    result = {
        "p": nothing + 1.0,
        "log2_ratio": nothing.copy(),
        "low": nothing + np.nan,
        "high": nothing + np.nan,
    }
    if not some.any():
        return CountTest(**result, scatter=None)
    here = weight[some].any(axis=0)
    of = _Counts(y[some][:, here], offset[some][:, here], weight[some][:, here], design[here], in_b[here])
    scatter = estimate_scatter(of.y, of.offset, of.design, of.weight)
    dispersion = (scatter.dispersion + scatter.shared / scatter.quasi)[:, None]
    result["p"][some], freedom = _score_test(of, scatter, dispersion)
    for name, values in _ratio(of, scatter, dispersion, freedom).items():
        result[name][some] = values
    return CountTest(**result, scatter=scatter)


@dataclass(frozen=True)
class _Counts:
    """The regions with cells, (regions, animals); the design's last column is the group."""

    y: Floats
    offset: Floats
    weight: Floats
    design: Floats
    in_b: Flags


def _testable(here: Flags, design: Floats) -> Flags:
    """Regions (regions, animals) whose animals tell the design's columns apart, with one to spare and two a group."""
    patterns, which = np.unique(here, axis=0, return_inverse=True)
    in_b = design[:, -1] > 0
    enough = [
        min((p & in_b).sum(), (p & ~in_b).sum()) >= LEAST_ANIMALS
        and p.sum() > design.shape[1]
        and np.linalg.matrix_rank(design[p]) == design.shape[1]
        for p in patterns
    ]
    return np.array(enough)[which.ravel()]


def _score_test(of: _Counts, scatter: Scatter, dispersion: Floats) -> tuple[Floats, Floats]:
    fit = fit_means(of.y, of.offset, of.design[:, :-1], dispersion, of.weight)
    spread = 1.0 + dispersion * fit.mean
    score = (of.weight * (of.y - fit.mean) / spread) @ of.design
    information = np.einsum("ra,ap,aq->rpq", of.weight * fit.mean / spread, of.design, of.design)
    statistic = (
        np.einsum("rp,rp->r", score, np.linalg.solve(information, score[..., None])[..., 0]) / scatter.quasi
    )
    # Satterthwaite: the region's own scatter and the animals' shared one are known with different precision.
    mean = (of.weight * fit.mean).sum(axis=1) / of.weight.sum(axis=1)
    own = scatter.quasi * (1.0 / mean + scatter.dispersion)
    freedom = (own + scatter.shared) ** 2 / (
        own**2 / scatter.freedom + scatter.shared**2 / scatter.shared_freedom
    )
    return stats.f.sf(statistic, 1, freedom), freedom


def _ratio(of: _Counts, scatter: Scatter, dispersion: Floats, freedom: Floats) -> dict[str, Floats]:
    volume = of.weight * np.exp(of.offset)
    share = np.zeros_like(volume)
    for group in (of.in_b, ~of.in_b):
        share[:, group] = volume[:, group] / volume[:, group].sum(axis=1, keepdims=True)
    fit = fit_means(of.y + PSEUDO_CELLS * share, of.offset, of.design, dispersion, of.weight)
    ratio = fit.coefficients[:, -1] / np.log(2.0)
    error = np.sqrt(scatter.quasi * fit.covariance[:, -1, -1]) / np.log(2.0)
    reach = stats.t.ppf(0.5 + CONFIDENCE / 2, freedom) * error
    return {"log2_ratio": ratio, "low": ratio - reach, "high": ratio + reach}


def density_ratio(means: GroupMeans, volume_mm3: Floats, a: Flags, b: Flags) -> Floats:
    """log2 of the mean density in b over that in a, half a cell added to each group's volume."""
    with np.errstate(divide="ignore", invalid="ignore"):
        more_a, more_b = (PSEUDO_CELLS / np.nansum(volume_mm3[group], axis=0) for group in (a, b))
        ratio = np.log2((means.mean_b + more_b) / (means.mean_a + more_a))
    # Without a single cell there is no ratio but 1, whatever the volumes.
    return np.where((means.mean_a == 0) & (means.mean_b == 0), 0.0, ratio)


def relative_levels(counts: Floats, volume_mm3: Floats) -> Floats | None:
    """Level of each animal over all regions: the median ratio of its densities to the animals' geometric means.

    As the size factors of DESeq (Anders and Huber 2010, Genome Biology 11: R106): a difference in some regions does
    not move it. None if fewer than ten regions have cells in all animals.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        density = np.log(counts / volume_mm3)
    used = np.isfinite(density).all(axis=0)
    if used.sum() < 10:
        return None
    density = density[:, used]
    return np.exp(np.median(density - density.mean(axis=0), axis=1))


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
