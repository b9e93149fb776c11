"""One-to-one matching of two point sets, and the scores that follow from it.

The threshold acts inside the assignment (`rule="inside"`): a pair costs its distance, a point left
alone costs the tolerance, and the total is least. This is what
`brainglobe_utils.cells.cells.match_cells` computes.
`rule="after"` is the rule of the founding study (methods, section 7): the least total distance
over all points first, then pairs beyond the tolerance are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from brainmap.errors import DataError
from brainmap.points.pairing import Match, Rule, collect, components, pair

__all__ = ["Match", "PrecisionRecall", "Rule", "Scores", "match_points", "precision_recall", "score"]


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
        return _ratio(self.tp, self.tp + self.fp, self.fn == 0)

    @property
    def recall(self) -> npt.NDArray[np.float64]:
        """Recall at every threshold."""
        return _ratio(self.tp, self.tp + self.fn, self.fp == 0)

    @property
    def f1(self) -> npt.NDArray[np.float64]:
        """F1 at every threshold."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn, 1.0)

    @property
    def best(self) -> tuple[float, Scores]:
        """The threshold with the highest F1 (the lowest of equals), and its scores."""
        if not len(self):
            return float("nan"), Scores(0, 0, 0)
        index = int(np.argmax(self.f1))
        return float(self.threshold[index]), self.at(index)

    @property
    def average_precision(self) -> float:
        """Area under the precision-recall curve: sum of precision times the step in recall (the step rule).

        From the highest threshold down, as `sklearn.metrics.average_precision_score`, without interpolation.
        Where matching anew loses a pair, recall stays at what was reached, so that no step counts twice.
        """
        recall = np.maximum.accumulate(self.recall[::-1])
        return float(np.sum(np.diff(recall, prepend=0.0) * self.precision[::-1]))


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
    _check_matching(tolerance, rule)
    a, b = _parse(a, b, scale)
    labels_a, labels_b = _groups(group_a, group_b, a, b)
    if group_a is None:
        return pair(a, b, tolerance, rule)
    if rule == "inside" and np.isfinite(tolerance):
        return pair(*_apart(a, b, (labels_a, labels_b), tolerance), tolerance, rule)
    parts = []
    for label in np.intersect1d(labels_a, labels_b):
        index_a, index_b = np.flatnonzero(labels_a == label), np.flatnonzero(labels_b == label)
        part = pair(a[index_a], b[index_b], tolerance, rule)
        parts.append((index_a[part.index_a], index_b[part.index_b], part.distance))
    return collect(parts)


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

    Only those parts of the images are matched again that a threshold changes; the result is the same.

    Parameters
    ----------
    scores : array_like, shape (N,)
        Score of every prediction; at threshold t those with score >= t count.
    thresholds : array_like, optional
        Where to look; without it all distinct scores, or 100 evenly spaced quantiles of them if there
        are more.
    """
    _check_matching(tolerance, rule)
    predicted, true = _parse(predicted, true, scale)
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
    groups = _groups(group_predicted, group_true, predicted, true)
    part, part_true = _parts(predicted, true, tolerance, rule, groups)
    # A prediction counts at the levels below its rank.
    rank = np.searchsorted(levels, values, side="right")
    use, theirs = np.flatnonzero((part >= 0) & (rank > 0)), part_true >= 0
    use = use[np.lexsort((-rank[use], part[use]))]
    ranked = _Ranked(predicted[use], rank[use], part[use])
    tp = _pairs_by_level(ranked, true[theirs], part_true[theirs], len(levels), tolerance, rule)
    n = len(values) - np.searchsorted(np.sort(rank), np.arange(len(levels)), side="right")
    return PrecisionRecall(levels, tp, n - tp, len(true) - tp)


@dataclass(frozen=True)
class _Ranked:
    """Points (n, d) that count at the levels below their `rank`, sorted by `part`, then by falling rank."""

    points: npt.NDArray[np.float64]
    rank: npt.NDArray[np.int64]
    part: npt.NDArray[np.int64]


def _pairs_by_level(
    ranked: _Ranked, true: npt.NDArray, part_true: npt.NDArray, n_levels: int, tolerance: float, rule: Rule
) -> npt.NDArray[np.int64]:
    """Pairs at every level, (n_levels,), part by part.

    In turn q every part holds its points of the q + 1 highest distinct ranks; what is found there holds for all
    levels between two ranks.
    """
    change = np.zeros(n_levels + 1, np.int64)
    rank, part = ranked.rank, ranked.part
    if len(part) == 0:
        return change[:-1]
    new_part = np.diff(part, prepend=-1) != 0
    steps = np.cumsum(new_part | (np.diff(rank, prepend=-1) != 0))
    turn = steps - np.repeat(steps[new_part], np.diff(np.append(np.flatnonzero(new_part), len(part))))
    n_parts = int(max(part.max(), part_true.max(initial=-1))) + 1
    last = np.full(n_parts, -1)
    np.maximum.at(last, part, turn)
    for q in range(int(turn.max()) + 1):
        mine, theirs = (turn <= q) & (last[part] >= q), last[part_true] >= q
        pairs = match_points(
            ranked.points[mine], true[theirs], tolerance, rule=rule,
            group_a=part[mine], group_b=part_true[theirs],
        )  # fmt: skip
        count = np.bincount(part[mine][pairs.index_a], minlength=n_parts)
        high, low = np.zeros(n_parts, np.int64), np.zeros(n_parts, np.int64)
        high[part[turn == q]] = rank[turn == q]
        low[part[turn == q + 1]] = rank[turn == q + 1]
        np.add.at(change, low, count)
        np.subtract.at(change, high, count)
    return np.cumsum(change)[:-1]


def _parts(
    a: npt.NDArray, b: npt.NDArray, tolerance: float, rule: Rule, groups: tuple[npt.NDArray, npt.NDArray]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Parts that cannot influence each other's matching, -1 for points without any possible partner.

    Where the tolerance acts inside the assignment, parts are chains of neighbours within it; otherwise every
    group is one part.
    """
    n, m = len(a), len(b)
    if not n or not m:
        return np.full(n, -1), np.full(m, -1)
    if rule == "after" or not np.isfinite(tolerance):
        return groups
    return components(*_apart(a, b, groups, tolerance), tolerance)


def _ratio(part: npt.NDArray, whole: npt.NDArray, otherwise: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Shares, and what stands in where there is nothing to share."""
    return np.where(whole > 0, part / np.maximum(whole, 1), otherwise)


def _check_matching(tolerance: float, rule: str) -> None:
    if rule not in ("inside", "after"):
        raise ValueError(f"rule must be 'inside' or 'after', not {rule!r}")
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive, not {tolerance}")


def _groups(
    group_a: npt.ArrayLike | None, group_b: npt.ArrayLike | None, a: npt.NDArray, b: npt.NDArray
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Group of every point, numbered; all in one without labels."""
    if (group_a is None) != (group_b is None):
        raise ValueError("group_a and group_b go together")
    if group_a is None or group_b is None:
        return np.zeros(len(a), np.int64), np.zeros(len(b), np.int64)
    return _common_labels(np.asarray(group_a), np.asarray(group_b), len(a), len(b))


def _apart(
    a: npt.NDArray, b: npt.NDArray, groups: tuple[npt.NDArray, npt.NDArray], tolerance: float
) -> tuple[npt.NDArray, npt.NDArray]:
    """Both sets with one more axis, on which different groups lie further apart than the tolerance."""
    return np.column_stack([a, 4.0 * tolerance * groups[0]]), np.column_stack(
        [b, 4.0 * tolerance * groups[1]]
    )


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
