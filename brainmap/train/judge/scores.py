"""The measures of an evaluation, on plain arrays (methods 7).

Every pixel counts: a detection that has no partner among the true points of its image is false, wherever it
lies. Nothing is restricted to places where somebody clicked (methods 10, iv).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import spearmanr

from brainmap.points.matching import Match, PrecisionRecall, Rule, match_points, precision_recall

__all__ = [
    "Reliability",
    "Scored",
    "TruePoints",
    "false_positives_at_recall",
    "match_truth",
    "recall_at_false_positives",
    "recall_by_confidence",
    "reliability",
    "spearman",
    "sweep",
]

Floats = NDArray[np.float64]
BINS = 10


@dataclass(frozen=True)
class Scored:
    """Detections on a set of images.

    Parameters
    ----------
    image : ndarray of int64, shape (n,)
    xy : ndarray of float64, shape (n, 2)
        Px.
    score : ndarray of float64, shape (n,)
    """

    image: NDArray[np.int64]
    xy: Floats
    score: Floats

    def __len__(self) -> int:
        return len(self.score)

    def take(self, which: NDArray) -> Scored:
        """Some of the detections, by mask or index."""
        return Scored(self.image[which], self.xy[which], self.score[which])


@dataclass(frozen=True)
class TruePoints:
    """True points of one expert, or of a ground truth, on the images that were looked at.

    Parameters
    ----------
    seen : ndarray of int64, shape (k,)
        The images looked at, those without a point included.
    image : ndarray of int64, shape (m,)
    xy : ndarray of float64, shape (m, 2)
        Px.
    confidence : ndarray of float64, shape (m,)
        0..1; ones for an expert's points.
    """

    seen: NDArray[np.int64]
    image: NDArray[np.int64]
    xy: Floats
    confidence: Floats

    def __len__(self) -> int:
        return len(self.image)

    def take(self, which: NDArray) -> TruePoints:
        """Some of the points; the images looked at stay."""
        return TruePoints(self.seen, self.image[which], self.xy[which], self.confidence[which])


def match_truth(found: Scored, truth: TruePoints, tolerance: float, rule: Rule = "inside") -> Match:
    """One-to-one matching of detections with true points, image by image; see `match_points`."""
    return match_points(found.xy, truth.xy, tolerance, rule=rule, group_a=found.image, group_b=truth.image)


def sweep(
    found: Scored,
    truths: Sequence[TruePoints],
    tolerance: float,
    rule: Rule = "inside",
    levels: ArrayLike | None = None,
) -> PrecisionRecall:
    """Counts at every threshold, micro-averaged over (expert, image) pairs.

    At threshold t the detections with score >= t are matched anew, with every expert on the images he looked
    at; see `precision_recall`.

    Parameters
    ----------
    truths : sequence of TruePoints
        One for each expert.
    tolerance : float
        Largest distance of a pair, px.
    levels : array_like, optional
        Thresholds; all distinct scores by default.
    """
    thresholds = np.unique(found.score if levels is None else np.asarray(levels, np.float64))
    totals = np.zeros((3, len(thresholds)), np.int64)
    for truth in truths:
        own = found.take(np.isin(found.image, truth.seen))
        curve = precision_recall(
            own.xy, own.score, truth.xy, tolerance, rule=rule, thresholds=thresholds,
            group_predicted=own.image, group_true=truth.image,
        )  # fmt: skip
        totals += np.stack([curve.tp, curve.fp, curve.fn])
    return PrecisionRecall(thresholds, *totals)


def recall_at_false_positives(curve: PrecisionRecall, n_images: int, rates: Sequence[float]) -> list[float]:
    """Largest recall at no more than so many false positives per image (FROC); 0 where none is so clean."""
    per_image, recall = curve.fp / max(1, n_images), curve.recall
    return [float(recall[per_image <= rate].max(initial=0.0)) for rate in rates]


def false_positives_at_recall(
    curve: PrecisionRecall, n_images: int, recalls: Sequence[float]
) -> list[float | None]:
    """Fewest false positives per image at no less than this recall; None where it is never reached."""
    per_image, recall = curve.fp / max(1, n_images), curve.recall
    found = [per_image[recall >= wanted] for wanted in recalls]
    return [float(values.min()) if len(values) else None for values in found]


@dataclass(frozen=True)
class Reliability:
    """Predicted against observed values in equal bins of the prediction; empty bins hold NaN.

    Parameters
    ----------
    predicted, observed : ndarray of float64, shape (bins,)
        Means.
    count : ndarray of int64, shape (bins,)
    ece : float
        Expected calibration error: mean distance of the two, weighted by count; NaN without any value.
    brier : float
        Mean squared difference of the single values; NaN without any.
    """

    predicted: Floats
    observed: Floats
    count: NDArray[np.int64]
    ece: float
    brier: float

    def record(self) -> dict[str, Any]:
        """The numbers, as plain values."""
        return {
            "n": int(self.count.sum()), "ece": self.ece, "brier": self.brier,
            "predicted": self.predicted, "observed": self.observed, "count": self.count,
        }  # fmt: skip


def reliability(predicted: ArrayLike, observed: ArrayLike, bins: int = BINS) -> Reliability:
    """Reliability of predictions 0..1 against outcomes: probabilities, or 0 and 1.

    Bins are [0, 0.1), [0.1, 0.2) ... [0.9, 1].
    """
    p, o = np.asarray(predicted, np.float64), np.asarray(observed, np.float64)
    which = np.clip((p * bins).astype(np.int64), 0, bins - 1)
    count = np.bincount(which, minlength=bins)
    sum_p, sum_o = np.bincount(which, p, bins), np.bincount(which, o, bins)
    with np.errstate(invalid="ignore"):
        mean_p, mean_o = sum_p / count, sum_o / count
    n = len(p)
    ece = float(np.abs(sum_p - sum_o).sum() / n) if n else float("nan")
    brier = float(np.mean((p - o) ** 2)) if n else float("nan")
    return Reliability(mean_p, mean_o, count.astype(np.int64), ece, brier)


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman's rank correlation; NaN where one of them does not vary."""
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(spearmanr(x, y).statistic)


def recall_by_confidence(confidence: ArrayLike, found: ArrayLike, bins: int = BINS) -> list[dict[str, Any]]:
    """Share of the true points that were found, per bin of ground-truth confidence."""
    sure, hit = np.asarray(confidence, np.float64), np.asarray(found, np.float64)
    which = np.clip((sure * bins).astype(np.int64), 0, bins - 1)
    count, hits = np.bincount(which, minlength=bins), np.bincount(which, hit, bins)
    return [
        {
            "from": round(i / bins, 6), "to": round((i + 1) / bins, 6), "n": int(count[i]),
            "recall": float(hits[i] / count[i]) if count[i] else None,
        }
        for i in range(bins)
    ]  # fmt: skip
