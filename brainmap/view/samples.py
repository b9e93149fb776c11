"""Which cells and fields of a run are reviewed: random samples, in an order in which one may stop anywhere."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["SCORE_BINS", "draw_fields", "hard_cells", "order_cells", "strata_of"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

#: Each division is parted by score into so many strata of about equal size.
SCORE_BINS = 3
# Of the fields, this share of the draws goes to places without any candidate in all.
_EMPTY = 0.1


def strata_of(division: NDArray[np.integer], score: NDArray[np.floating]) -> tuple[Ints, Ints]:
    """Part cells by division and, within each, by score.

    Parameters
    ----------
    division : int array (n,)
        From 0.
    score : float array (n,)

    Returns
    -------
    stratum : int array (n,)
        ``division * SCORE_BINS + bin``.
    size : int array
        Cells of each stratum.
    """
    order = np.lexsort((score, division))
    counts = np.bincount(division)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    rank = np.arange(len(order)) - first
    stratum = np.empty(len(order), np.int64)
    stratum[order] = division[order] * SCORE_BINS + rank * SCORE_BINS // np.repeat(counts, counts)
    return stratum, np.bincount(stratum, minlength=len(counts) * SCORE_BINS)


def order_cells(stratum: Ints, rng: np.random.Generator) -> Ints:
    """A random order of cells whose every beginning is a stratified sample, each stratum with its share.

    Within a stratum the order is random; strata take turns by their sizes.
    """
    sizes = np.bincount(stratum)
    shuffled = rng.permutation(len(stratum))
    order = shuffled[np.argsort(stratum[shuffled], kind="stable")]
    rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    turn = (rank + rng.uniform(size=len(sizes))[stratum[order]]) / sizes[stratum[order]]
    return order[np.argsort(turn, kind="stable")]


def field_sizes(candidates: NDArray[np.integer]) -> Floats:
    """By what fields are drawn: their candidates, and a little, so that empty ones are looked at too."""
    little = _EMPTY * max(int(candidates.sum()), 1) / max(len(candidates), 1)
    return np.asarray(candidates + little, np.float64)


def draw_fields(size: Floats, number: int, rng: np.random.Generator) -> Ints:
    """Fields drawn with replacement, with probability proportional to their size."""
    ends = np.cumsum(size)
    return np.searchsorted(ends, rng.uniform(size=number) * ends[-1], side="right").astype(np.int64)


def hard_cells(
    score: NDArray[np.floating],
    threshold: float,
    place: NDArray[np.integer],
    number: int,
    rng: np.random.Generator,
) -> Ints:
    """Cells and weaker candidates whose scores say least, from many places.

    Parameters
    ----------
    score : float array (n,)
    threshold : float
    place : int array (n,)
        Each cell's coarse box; of each box in turn the hardest one.
    number : int
    rng : numpy Generator
        Decides among equals.
    """
    doubt = np.abs(score - threshold) + rng.uniform(0, 1e-6, len(score))
    order = np.lexsort((doubt, place))
    counts = np.unique(place, return_counts=True)[1]
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    near = doubt[order] < 0.25
    order, rank = order[near], rank[near]
    return order[np.lexsort((doubt[order], rank))][:number]
