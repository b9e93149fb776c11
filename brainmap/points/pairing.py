"""Pairs of two point sets with least total distance: the assignment behind `brainmap.points.matching`.

Because no pair longer than the tolerance can help where it acts inside the assignment, only neighbours within
it are looked at: a k-d tree gives the sparse graph, its connected components are solved one by one, exactly,
so that 100,000 points a side take seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import connected_components, min_weight_full_bipartite_matching
from scipy.spatial import cKDTree

from brainmap.errors import DataError

__all__ = ["Match", "Rule", "collect", "components", "pair"]

Rule = Literal["inside", "after"]

# Dense cost matrices up to this many entries are solved as such (3 GB of float64 at most).
MAX_DENSE = 400_000_000
# Components up to this many entries are quicker as dense matrices than as sparse graphs.
DENSE_COMPONENT = 250_000
MAX_PAIRS = 200_000_000
# A pair exactly at the tolerance costs as much as two lone points; this makes it a pair.
TIE = 1e-9


@dataclass(frozen=True)
class Match:
    """Pairs of a matching: `index_a[i]` goes with `index_b[i]`, `distance[i]` apart.

    Sorted by `index_a`. Indices are int64, distances float64 in the unit of the scaled coordinates.
    """

    index_a: npt.NDArray[np.int64]
    index_b: npt.NDArray[np.int64]
    distance: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.index_a)


def pair(a: npt.NDArray, b: npt.NDArray, tolerance: float, rule: Rule) -> Match:
    """Match points (N, d) and (M, d), finite and in the unit of the tolerance; see `matching.match_points`."""
    if not len(a) or not len(b):
        return collect([])
    if rule == "after" or not np.isfinite(tolerance):
        return _match_all(a, b, tolerance)
    i, j, distance = _neighbours(a, b, tolerance)
    component = _components(i, j, len(a), len(b))[i]
    order = np.lexsort((j, i, component))
    i, j, distance, component = i[order], j[order], distance[order], component[order]
    starts = np.flatnonzero(np.diff(component, prepend=-1))
    return collect(_solve_components(i, j, distance, starts, tolerance))


def components(
    a: npt.NDArray, b: npt.NDArray, tolerance: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Chain of neighbours within the tolerance that each point belongs to, -1 for points without any."""
    n, m = len(a), len(b)
    i, j, _ = _neighbours(a, b, tolerance)
    part = _components(i, j, n, m)
    part[np.setdiff1d(np.arange(n + m), np.concatenate([i, j + n]))] = -1
    return part[:n], part[n:]


def _components(i: npt.NDArray, j: npt.NDArray, n: int, m: int) -> npt.NDArray[np.int64]:
    """Connected component of all n + m points, given the pairs."""
    graph = sparse.coo_matrix((np.ones(len(i), np.int8), (i, j + n)), shape=(n + m, n + m))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _neighbours(
    a: npt.NDArray, b: npt.NDArray, tolerance: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """All pairs within the tolerance: rows of `a`, rows of `b`, distances."""
    tree_a, tree_b = cKDTree(a), cKDTree(b)
    # The rounding of coordinates must not cost the pairs that lie exactly at the tolerance.
    reach = tolerance * (1 + 1e-12)
    n_pairs = int(tree_a.count_neighbors(tree_b, reach))
    if n_pairs > MAX_PAIRS:
        raise DataError(
            f"{n_pairs:,} pairs of points lie within the tolerance of {tolerance:g}: it is too large "
            "for points this dense"
        )
    edges = tree_a.sparse_distance_matrix(tree_b, reach, output_type="ndarray")
    return edges["i"].astype(np.int64), edges["j"].astype(np.int64), np.minimum(edges["v"], tolerance)


def _match_all(a: npt.NDArray, b: npt.NDArray, tolerance: float) -> Match:
    if len(a) * len(b) > MAX_DENSE:
        raise DataError(
            f"{len(a):,} by {len(b):,} points are too many to match without a tolerance inside the "
            "assignment; give one, or match parts"
        )
    distance = np.sqrt(sum((a[:, None, k] - b[None, :, k]) ** 2 for k in range(a.shape[1])))
    rows, columns = linear_sum_assignment(distance)
    keep = distance[rows, columns] <= tolerance
    rows, columns = rows[keep], columns[keep]
    return collect([(rows, columns, distance[rows, columns])])


def _solve_components(
    i: npt.NDArray, j: npt.NDArray, distance: npt.NDArray, starts: npt.NDArray, tolerance: float
) -> list[tuple[npt.NDArray, npt.NDArray, npt.NDArray]]:
    """Solve every component; edges are sorted by component, `starts` says where each begins."""
    ends = np.append(starts[1:], len(i))
    # Components in which all edges share a point (most are a single edge) take their shortest edge.
    i_low, i_high = np.minimum.reduceat(i, starts), np.maximum.reduceat(i, starts)
    j_low, j_high = np.minimum.reduceat(j, starts), np.maximum.reduceat(j, starts)
    star = (i_low == i_high) | (j_low == j_high)
    label = np.repeat(np.arange(len(starts)), ends - starts)
    by_length = np.lexsort((distance, label))
    shortest = by_length[starts][star]
    parts = [(i[shortest], j[shortest], distance[shortest])]
    for start, end in zip(starts[~star], ends[~star], strict=True):
        edge = _solve_component(i[start:end], j[start:end], distance[start:end], tolerance) + start
        parts.append((i[edge], j[edge], distance[edge]))
    return parts


def _solve_component(
    i: npt.NDArray, j: npt.NDArray, distance: npt.NDArray, tolerance: float
) -> npt.NDArray[np.int64]:
    """Indices of the chosen edges: the least sum of distances and tolerances of lone points."""
    rows, row = np.unique(i, return_inverse=True)
    columns, column = np.unique(j, return_inverse=True)
    n, m = len(rows), len(columns)
    alone = tolerance * (1 + TIE)
    if n * m <= DENSE_COMPONENT:
        cost = np.full((n, m), alone)
        edge_of = np.full((n, m), -1, dtype=np.int64)
        cost[row, column] = distance
        edge_of[row, column] = np.arange(len(i))
        chosen = edge_of[linear_sum_assignment(cost)]
        return chosen[chosen >= 0]
    # Every row gets a column of its own that stands for "left alone", so a full matching exists.
    # Costs are shifted by the tolerance, as the sparse solver takes zeros for missing edges.
    index = np.arange(n)
    graph = sparse.csr_matrix(
        (
            np.concatenate([distance, np.full(n, alone)]) + tolerance,
            (np.concatenate([row, index]), np.concatenate([column, m + index])),
        ),
        shape=(n, m + n),
    )
    row_of, column_of = min_weight_full_bipartite_matching(graph)
    real = column_of < m
    key = row * m + column
    order = np.argsort(key)
    wanted = row_of[real].astype(np.int64) * m + column_of[real]
    return order[np.searchsorted(key, wanted, sorter=order)]


def collect(parts: list[tuple[npt.NDArray, npt.NDArray, npt.NDArray]]) -> Match:
    """One match of parts of it: rows of `a`, rows of `b`, distances."""
    if not parts:
        return Match(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float64))
    i, j, distance = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(i)
    return Match(i[order].astype(np.int64), j[order].astype(np.int64), distance[order].astype(np.float64))
