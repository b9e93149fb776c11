"""Correlations of regions over the animals of a group, and which of them differ between two groups."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

__all__ = ["CorrelationTest", "correlate", "correlation_p", "difference_test"]

Floats = NDArray[np.float64]

#: Fisher's transform needs four animals; values of |r| beyond this are cut off.
_FEWEST = 4
_HIGHEST = 1 - 1e-9
_BINS = 4000


@dataclass(frozen=True)
class CorrelationTest:
    """Differences of correlations between two groups.

    Attributes
    ----------
    z : float64 array (regions, regions)
        Difference, b minus a, of Fisher's z in standard errors; NaN where a pair is in too few animals.
    p, q : float64 arrays (regions, regions)
        Of each pair by the permutations of all pairs together, and its Benjamini-Hochberg adjustment.
    p_whole : float
        That the two networks differ at all: the mean square of `z`, by permutation.
    permutations : int
    """

    z: Floats
    p: Floats
    q: Floats
    p_whole: float
    permutations: int


def correlate(values: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Pearson correlations of regions over the animals that have both.

    Parameters
    ----------
    values : float64 array (animals, regions)
        NaN where an animal lacks a region.

    Returns
    -------
    r : float64 array (regions, regions)
        NaN for pairs that fewer than four animals have, or that do not vary; 1 on the diagonal.
    n : int array (regions, regions)
        Animals that have both.
    """
    there = np.isfinite(values).astype(float)
    known = there.sum(axis=0)
    centre = np.where(there > 0, values, 0.0).sum(axis=0) / np.maximum(known, 1)
    x = np.where(there > 0, values - centre, 0.0)
    n = there.T @ there
    sums, squares = x.T @ there, (x**2).T @ there
    with np.errstate(divide="ignore", invalid="ignore"):
        covariance = n * (x.T @ x) - sums * sums.T
        variance = n * squares - sums**2
        r = covariance / np.sqrt(variance * variance.T)
    flat = variance <= 1e-12 * np.maximum(n * squares, 1e-300)
    r[(n < _FEWEST) | flat | flat.T] = np.nan
    return np.clip(r, -1.0, 1.0), n.astype(np.int64)


def correlation_p(r: Floats, n: NDArray[np.int64]) -> Floats:
    """Two-sided p of correlations by Student's t with n - 2 degrees of freedom."""
    cut = np.clip(r, -_HIGHEST, _HIGHEST)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = cut * np.sqrt((n - 2) / (1 - cut**2))
    return np.where(n > 2, 2 * stats.t.sf(np.abs(t), np.maximum(n - 2, 1)), np.nan)


def _standardised(values: Floats) -> Floats:
    """Each region of one group with mean 0 and variance 1: groups then differ in correlations alone."""
    there = np.isfinite(values)
    n = np.maximum(there.sum(axis=0), 1)
    centred = values - np.where(there, values, 0.0).sum(axis=0) / n
    sd = np.sqrt(np.where(there, centred**2, 0.0).sum(axis=0) / n)
    return np.divide(centred, sd, out=np.zeros_like(centred), where=sd > 0) + np.where(there, 0.0, np.nan)


def _difference(a: Floats, b: Floats) -> Floats:
    (r_a, n_a), (r_b, n_b) = correlate(a), correlate(b)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.sqrt(1.0 / (n_a - 3) + 1.0 / (n_b - 3))
        difference = np.arctanh(np.clip(r_b, -_HIGHEST, _HIGHEST)) - np.arctanh(
            np.clip(r_a, -_HIGHEST, _HIGHEST)
        )
    return np.where((n_a >= _FEWEST) & (n_b >= _FEWEST), difference / error, np.nan)


def difference_test(a: Floats, b: Floats, permutations: int = 1000, seed: int = 0) -> CorrelationTest:
    """Which correlations differ between two groups, by relabelling their animals.

    Every region is standardised within its group first, so that neither means nor scatter are mistaken for correlation.
    With a handful of animals no single pair can have a small p of its own permutations; the permuted values of all
    pairs together are what each is measured against (as in SAM, Tusher et al. 2001), which takes all pairs to be alike
    where nothing differs.

    Parameters
    ----------
    a, b : float64 arrays (animals, regions)
        NaN where an animal lacks a region.
    permutations : int
    seed : int
    """
    a, b = _standardised(a), _standardised(b)
    z = _difference(a, b)
    pairs = np.triu_indices(len(z), 1)
    pairs = tuple(index[np.isfinite(z[pairs])] for index in pairs)
    size = np.abs(z[pairs])
    together, rng = np.concatenate([a, b]), np.random.default_rng(seed)
    edges = np.linspace(0, max(float(size.max(initial=1.0)) * 1.001, 12.0), _BINS + 1)
    counted, whole, larger = np.zeros(_BINS), float(np.mean(size**2)) if len(size) else 0.0, 0
    for _ in range(permutations):
        order = rng.permutation(len(together))
        values = np.abs(_difference(together[order[: len(a)]], together[order[len(a) :]])[pairs])
        values = values[np.isfinite(values)]
        counted += np.histogram(np.minimum(values, edges[-1]), edges)[0]
        larger += float(np.mean(values**2)) >= whole * (1 - 1e-12) if len(values) else 1
    p, q = np.full(z.shape, np.nan), np.full(z.shape, np.nan)
    if len(size):
        # Values in the bin of a pair count as beyond it: never too small.
        beyond = counted[::-1].cumsum()[::-1]
        own = (1 + beyond[np.searchsorted(edges, size, side="right") - 1]) / (1 + counted.sum())
        p[pairs] = p[pairs[::-1]] = own
        q[pairs] = q[pairs[::-1]] = stats.false_discovery_control(own)
    return CorrelationTest(z, p, q, (1 + larger) / (1 + permutations), permutations)
