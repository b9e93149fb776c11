"""One-to-one matching of two point sets, and the scores that follow from it.

The threshold acts inside the assignment (`rule="inside"`): a pair costs its distance, a point left
alone costs the tolerance, and the total is least. This is what
`brainglobe_utils.cells.cells.match_cells` computes. Because no pair longer than the tolerance can
help, only neighbours within it are looked at: a k-d tree gives the sparse graph, its connected
components are solved one by one, exactly, so that 100,000 points a side take seconds.
`rule="after"` is the rule of the founding study (methods, section 7): the least total distance
over all points first, then pairs beyond the tolerance are dropped.
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

__all__ = ["Match", "PrecisionRecall", "Scores", "match_points", "precision_recall", "score"]

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


@dataclass(frozen=True)
class Scores:
    """True positives, false positives and misses of a set of predictions.

    With no prediction and no truth everything is right (1.0); precision without predictions is 0 if
    there was something to find.
    """

    tp: int
    fp: int
    fn: int

    @property
    def precision(self) -> float:
        """Share of the predictions that are right."""
        return self.tp / (self.tp + self.fp) if self.tp + self.fp else float(self.fn == 0)

    @property
    def recall(self) -> float:
        """Share of the true points that were found."""
        return self.tp / (self.tp + self.fn) if self.tp + self.fn else float(self.fp == 0)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        total = 2 * self.tp + self.fp + self.fn
        return 2 * self.tp / total if total else 1.0

    def __add__(self, other: Scores) -> Scores:
        # Summing counts over images is micro-averaging.
        return Scores(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)


@dataclass(frozen=True)
class PrecisionRecall:
    """Scores over growing thresholds: arrays of equal length, `threshold` ascending."""

    threshold: npt.NDArray[np.float64]
    tp: npt.NDArray[np.int64]
    fp: npt.NDArray[np.int64]
    fn: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.threshold)

    def at(self, index: int) -> Scores:
        """The scores at one threshold."""
        return Scores(int(self.tp[index]), int(self.fp[index]), int(self.fn[index]))

    @property
    def precision(self) -> npt.NDArray[np.float64]:
        """Precision at every threshold."""
        return np.array([self.at(i).precision for i in range(len(self))])

    @property
    def recall(self) -> npt.NDArray[np.float64]:
        """Recall at every threshold."""
        return np.array([self.at(i).recall for i in range(len(self))])

    @property
    def f1(self) -> npt.NDArray[np.float64]:
        """F1 at every threshold."""
        return np.array([self.at(i).f1 for i in range(len(self))])

    @property
    def best(self) -> tuple[float, Scores]:
        """The threshold with the highest F1 (the lowest of equals), and its scores."""
        if not len(self):
            return float("nan"), Scores(0, 0, 0)
        index = int(np.argmax(self.f1))
        return float(self.threshold[index]), self.at(index)

    @property
    def average_precision(self) -> float:
        """Area under the precision-recall curve: sum of precision times the step in recall."""
        recall = self.recall[::-1]
        steps = np.diff(recall, prepend=0.0)
        # Matching anew at every threshold, recall may fall by a point here and there: no negative area.
        return float(np.sum(np.maximum(steps, 0.0) * self.precision[::-1]))


def score(n_matched: int, n_pred: int, n_true: int) -> Scores:
    """Scores of `n_pred` predictions for `n_true` points of which `n_matched` pairs were matched."""
    if not 0 <= n_matched <= min(n_pred, n_true):
        raise ValueError(f"{n_matched} pairs cannot come from {n_pred} and {n_true} points")
    return Scores(int(n_matched), int(n_pred - n_matched), int(n_true - n_matched))


def match_points(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    tolerance: float,
    scale: float | npt.ArrayLike = 1.0,
    rule: Rule = "inside",
    *,
    group_a: npt.ArrayLike | None = None,
    group_b: npt.ArrayLike | None = None,
) -> Match:
    """Match two point sets one to one with least total distance.

    Parameters
    ----------
    a, b : array_like, shapes (N, d) and (M, d)
        Coordinates, the same axis order in both.
    tolerance : float
        Largest distance of a pair, inclusive, after scaling. `inf` pairs as many points as possible.
    scale : float or (d,) array_like
        Multiplies the coordinates, e.g. the voxel size for distances in um.
    rule : {"inside", "after"}
        Whether the tolerance acts inside the assignment, or drops pairs after it (see the module).
    group_a, group_b : array_like, shapes (N,) and (M,), optional
        Labels, e.g. image ids: only points with equal labels are matched.

    Returns
    -------
    Match

    Raises
    ------
    DataError
        For coordinates that are not finite, shapes that do not agree, or too many pairs to hold.
    ValueError
        For a tolerance that is not positive, or an unknown rule.
    """
    if rule not in ("inside", "after"):
        raise ValueError(f"rule must be 'inside' or 'after', not {rule!r}")
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive, not {tolerance}")
    a, b = _parse(a, b, scale)
    if (group_a is None) != (group_b is None):
        raise ValueError("group_a and group_b go together")
    if group_a is None or group_b is None:
        return _match(a, b, tolerance, rule)
    labels_a, labels_b = _common_labels(np.asarray(group_a), np.asarray(group_b), len(a), len(b))
    if rule == "inside" and np.isfinite(tolerance):
        # One more axis on which different groups lie further apart than the tolerance.
        a = np.column_stack([a, 4.0 * tolerance * labels_a])
        b = np.column_stack([b, 4.0 * tolerance * labels_b])
        return _match(a, b, tolerance, rule)
    parts = []
    for label in np.intersect1d(labels_a, labels_b):
        index_a, index_b = np.flatnonzero(labels_a == label), np.flatnonzero(labels_b == label)
        part = _match(a[index_a], b[index_b], tolerance, rule)
        parts.append((index_a[part.index_a], index_b[part.index_b], part.distance))
    return _collect(parts)


def precision_recall(
    predicted: npt.ArrayLike,
    scores: npt.ArrayLike,
    true: npt.ArrayLike,
    tolerance: float,
    scale: float | npt.ArrayLike = 1.0,
    rule: Rule = "inside",
    *,
    thresholds: npt.ArrayLike | None = None,
    group_predicted: npt.ArrayLike | None = None,
    group_true: npt.ArrayLike | None = None,
) -> PrecisionRecall:
    """Scores at growing thresholds, the matching made anew at each; see `match_points`.

    Parameters
    ----------
    scores : array_like, shape (N,)
        Score of every prediction; at threshold t those with score >= t count.
    thresholds : array_like, optional
        Where to look; without it all distinct scores, or 100 evenly spaced quantiles of them if there
        are more.
    """
    predicted, true = _parse(predicted, true, 1.0)
    values = np.asarray(scores, dtype=np.float64).reshape(-1)
    if len(values) != len(predicted) or not np.isfinite(values).all():
        raise DataError(f"{len(predicted)} predictions need as many finite scores, not {len(values)}")
    if thresholds is None:
        distinct = np.unique(values)
        if len(distinct) > 100:
            distinct = np.unique(np.quantile(values, np.linspace(0, 1, 100), method="lower"))
        levels = distinct
    else:
        levels = np.unique(np.asarray(thresholds, dtype=np.float64))
    labels = None if group_predicted is None else np.asarray(group_predicted)
    counts = np.zeros((len(levels), 2), dtype=np.int64)
    for i, level in enumerate(levels):
        keep = values >= level
        match = match_points(
            predicted[keep], true, tolerance, scale, rule,
            group_a=None if labels is None else labels[keep], group_b=group_true,
        )  # fmt: skip
        counts[i] = len(match), int(keep.sum())
    tp, n = counts[:, 0], counts[:, 1]
    return PrecisionRecall(levels, tp, n - tp, len(true) - tp)


def _parse(
    a: npt.ArrayLike, b: npt.ArrayLike, scale: float | npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    points_a, points_b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    # An empty list has no second axis: it takes the other's.
    if points_a.size == 0 and points_a.ndim < 2:
        points_a = np.empty((0, points_b.shape[1] if points_b.ndim == 2 else 1))
    if points_b.size == 0 and points_b.ndim < 2:
        points_b = np.empty((0, points_a.shape[1]))
    if points_a.ndim != 2 or points_b.ndim != 2 or points_a.shape[1] != points_b.shape[1]:
        raise DataError(
            f"point sets must have shapes (N, d) and (M, d), not {points_a.shape} and {points_b.shape}"
        )
    if not (np.isfinite(points_a).all() and np.isfinite(points_b).all()):
        raise DataError("points to match must have finite coordinates")
    factor = np.broadcast_to(np.asarray(scale, dtype=np.float64), points_a.shape[1])
    if not (np.isfinite(factor).all() and (factor > 0).all()):
        raise ValueError(f"scale must be positive, not {scale!r}")
    return points_a * factor, points_b * factor


def _common_labels(
    group_a: npt.NDArray, group_b: npt.NDArray, n: int, m: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    if group_a.shape != (n,) or group_b.shape != (m,):
        raise DataError(f"{n} and {m} points need as many group labels")
    both = np.concatenate([group_a, group_b]) if n and m else (group_a if n else group_b)
    labels = np.unique(both, return_inverse=True)[1].astype(np.int64)
    return labels[:n], labels[n:]


def _match(a: npt.NDArray, b: npt.NDArray, tolerance: float, rule: Rule) -> Match:
    if not len(a) or not len(b):
        return _collect([])
    if rule == "after" or not np.isfinite(tolerance):
        return _match_all(a, b, tolerance)
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
    i, j = edges["i"].astype(np.int64), edges["j"].astype(np.int64)
    distance = np.minimum(edges["v"], tolerance)
    n, m = len(a), len(b)
    graph = sparse.coo_matrix((np.ones(len(i), np.int8), (i, j + n)), shape=(n + m, n + m))
    component = connected_components(graph, directed=False)[1][i]
    order = np.lexsort((j, i, component))
    i, j, distance, component = i[order], j[order], distance[order], component[order]
    starts = np.flatnonzero(np.diff(component, prepend=-1))
    return _collect(_solve_components(i, j, distance, starts, tolerance))


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
    return _collect([(rows, columns, distance[rows, columns])])


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


def _collect(parts: list[tuple[npt.NDArray, npt.NDArray, npt.NDArray]]) -> Match:
    if not parts:
        return Match(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float64))
    i, j, distance = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(i)
    return Match(i[order].astype(np.int64), j[order].astype(np.int64), distance[order].astype(np.float64))
