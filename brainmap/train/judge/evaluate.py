"""How good a detector is on tiles with ground truth: everything of methods 7 in one record."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from brainmap.errors import DataError, UsageError
from brainmap.files import to_jsonable
from brainmap.gt.truth import THETA_ABS, THETA_REL, GroundTruth
from brainmap.infer.detector import Detector
from brainmap.points.matching import PrecisionRecall, Rule, Scores
from brainmap.tiles.tiles import Tiles
from brainmap.train.judge.predict import Knots, TilePoints, predict_tiles
from brainmap.train.judge.scores import (
    Scored,
    TruePoints,
    false_positives_at_recall,
    match_truth,
    recall_at_false_positives,
    recall_by_confidence,
    reliability,
    spearman,
    sweep,
)
from brainmap.train.learn.samples import GridSettings

if TYPE_CHECKING:
    from brainmap.train.learn.centernet import CenterNet

__all__ = ["Evaluation", "EvaluationSettings", "evaluate_points", "evaluate_tiles", "true_points"]

log = logging.getLogger(__name__)

Truth = GroundTruth | Mapping[str, GroundTruth]

_CURVE_POINTS = 200
NOTES = (
    "Every detection on a judged tile counts, wherever it lies: false positives are not restricted to places "
    "where somebody clicked.",
    "AUPRC is the sum of precision times the step in recall over all distinct scores (average precision, no "
    "interpolation).",
)


@dataclass(frozen=True)
class EvaluationSettings:
    """What is measured; defaults are those of methods 7.

    Parameters
    ----------
    tolerances_px : tuple of float
        Largest distances of a pair, in tile px; chosen for cells of about 15 px.
    main_px : float
        Of these, the one for everything that is reported at one tolerance.
    rule : str
        "inside" or "after": where the tolerance acts, see `brainmap.points.matching`. The study's is "after".
    truth_points : str
        "peaks": local maxima of the ground truth's map; "accepted": its candidates with posterior >= 0.5.
    theta_abs, theta_rel : float
        Lowest confidence of a peak, absolute and relative to the map's largest value.
    confidence_from : float
        Detections from this score on are compared with the ground truth's confidence.
    false_positives : tuple of float
        Per tile, at which recall is reported.
    recalls : tuple of float
        At which false positives per tile are reported.
    thetas, thetas_gt : tuple of float
        Axes of the grid of F1.
    """

    tolerances_px: tuple[float, ...] = (3.0, 5.0, 7.0)
    main_px: float = 5.0
    rule: Rule = "inside"
    truth_points: str = "peaks"
    theta_abs: float = THETA_ABS
    theta_rel: float = THETA_REL
    confidence_from: float = 0.05
    false_positives: tuple[float, ...] = (1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 75.0, 100.0)
    recalls: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9)
    thetas: tuple[float, ...] = field(default_factory=lambda: _steps())
    thetas_gt: tuple[float, ...] = field(default_factory=lambda: _steps())

    def __post_init__(self) -> None:
        if not self.tolerances_px or not all(np.isfinite(t) and t > 0 for t in self.tolerances_px):
            raise UsageError(f"tolerances_px is {self.tolerances_px}; give positive numbers of pixels")
        if self.main_px not in self.tolerances_px:
            raise UsageError(f"main_px is {self.main_px}; it must be one of {self.tolerances_px}")
        if self.rule not in ("inside", "after"):
            raise UsageError(f"rule is {self.rule!r}; choose inside or after")
        if self.truth_points not in ("peaks", "accepted"):
            raise UsageError(f"truth_points is {self.truth_points!r}; choose peaks or accepted")


def _steps() -> tuple[float, ...]:
    return tuple(float(v) for v in np.linspace(0.05, 0.95, 19).round(2))


@dataclass(frozen=True)
class Evaluation:
    """A detector judged on tiles.

    Parameters
    ----------
    name : str
    settings : EvaluationSettings
    threshold : float or None
        The detector's own, if it has one.
    found : TilePoints
        All detections on the judged tiles.
    tiles : Tiles
        The judged tiles.
    truths : dict of TruePoints
        By expert; one entry for a ground truth.
    curves : dict of PrecisionRecall
        Counts at every distinct score, by tolerance.
    record : dict
        Every number as plain values; what `evaluation.json` holds.
    """

    name: str
    settings: EvaluationSettings
    threshold: float | None
    found: TilePoints
    tiles: Tiles
    truths: dict[str, TruePoints]
    curves: dict[float, PrecisionRecall]
    record: dict[str, Any]

    def auprc(self, tolerance_px: float | None = None) -> float:
        """Area under the precision-recall curve, at the main tolerance by default."""
        return float(self._at(tolerance_px)["auprc"])

    def best(self, tolerance_px: float | None = None) -> dict[str, Any]:
        """The threshold with the highest F1 and what it gives: `threshold f1 precision recall ...`."""
        return dict(self._at(tolerance_px)["best"])

    def _at(self, tolerance_px: float | None) -> dict[str, Any]:
        tolerance = self.settings.main_px if tolerance_px is None else tolerance_px
        return self.record["tolerances"][f"{tolerance:g}"]  # type: ignore[no-any-return]


def evaluate_tiles(
    network: CenterNet | Detector,
    tiles: Tiles,
    truth: Truth,
    grid: GridSettings | None = None,
    cell_diameter_um: float | None = None,
    *,
    settings: EvaluationSettings | None = None,
    knots: Knots | None = None,
    threshold: float | None = None,
    name: str | None = None,
) -> Evaluation:
    """Detect on tiles and judge the result.

    Parameters
    ----------
    network : CenterNet or Detector
    tiles : Tiles
        Those without ground truth are left out.
    truth : GroundTruth, or mapping of str to GroundTruth
        With several experts scores are micro-averaged over (expert, tile) pairs.
    grid, cell_diameter_um
        As for `predict_tiles`.
    settings : EvaluationSettings, optional
    knots : tuple of (logit, probability), optional
        Calibration to use; a detector has its own.
    threshold : float, optional
        On the score; a detector has its own.
    name : str, optional
        For the report; a detector's name and version by default.

    Raises
    ------
    DataError
        If no tile has ground truth.
    """
    judged = _judged(tiles, truth)
    found = predict_tiles(network, judged, grid, cell_diameter_um)
    if knots is not None:
        found = found.calibrated(knots)
    if isinstance(network, Detector):
        threshold = network.spec.threshold if threshold is None else threshold
        name = name or f"{network.spec.name} {network.spec.version}"
    return evaluate_points(
        found, judged, truth, settings=settings, threshold=threshold, name=name or "network"
    )


def evaluate_points(
    found: TilePoints,
    tiles: Tiles,
    truth: Truth,
    *,
    settings: EvaluationSettings | None = None,
    threshold: float | None = None,
    name: str = "detector",
) -> Evaluation:
    """Judge detections on tiles, all of which have ground truth; see `evaluate_tiles`."""
    settings = settings or EvaluationSettings()
    experts = {"ground truth": truth} if isinstance(truth, GroundTruth) else dict(truth)
    truths = {who: true_points(tiles, one, settings) for who, one in experts.items()}
    scored = Scored(found.image, found.xy, found.score)
    several = list(truths.values())
    curves = {t: sweep(scored, several, t, settings.rule) for t in settings.tolerances_px}
    pairs = sum(len(one.seen) for one in several)
    main = curves[settings.main_px]
    best = _best(main)
    low = {who: true_points(tiles, one, settings, lowest=True) for who, one in experts.items()}
    record = {
        "name": name,
        "threshold": threshold,
        "settings": dataclasses.asdict(settings),
        "notes": NOTES,
        "tiles": len(tiles),
        "slices": len(set(tiles.slice_key.tolist())),
        "experts": sorted(experts),
        "pairs": pairs,
        "true_points": sum(len(one) for one in several),
        "detections": len(found),
        "tolerances": {
            f"{t:g}": _at_tolerance(scored, several, curve, t, pairs, settings, threshold)
            for t, curve in curves.items()
        },
        "confidence": _confidence(scored, several, best if threshold is None else threshold, settings),
        "calibration": _calibration(scored, several, settings, threshold),
        "grid": _grid(scored, list(low.values()), settings),
        "tile_maxima": _tile_maxima(scored, len(tiles)),
        "per_tile": _per_tile(scored, several, tiles, best if threshold is None else threshold, settings),
    }
    return Evaluation(name, settings, threshold, found, tiles, truths, curves, to_jsonable(record))


def _judged(tiles: Tiles, truth: Truth) -> Tiles:
    experts = [truth] if isinstance(truth, GroundTruth) else list(truth.values())
    known = np.array([any(str(name) in one for one in experts) for name in tiles.ids], bool)
    if not known.any():
        raise DataError(
            f"none of the {len(tiles)} tiles has ground truth; image_id must be the same in both "
            f"(a tile: {str(tiles.ids[0])!r})"
        )
    if not known.all():
        log.warning("%d of %d tiles have no ground truth and are left out", (~known).sum(), len(tiles))
    return tiles.take(known)


def true_points(
    tiles: Tiles, truth: GroundTruth, settings: EvaluationSettings, lowest: bool = False
) -> TruePoints:
    """True points of those tiles that the truth knows; `image` is the index of the tile.

    Parameters
    ----------
    lowest : bool
        Take all points from the lowest threshold of the grid on, whatever the map's largest value.
    """
    seen = [index for index, name in enumerate(tiles.ids) if str(name) in truth]
    parts = []
    for index in seen:
        name = str(tiles.ids[index])
        if settings.truth_points == "accepted":
            parts.append(truth.accepted(name))
        elif lowest:
            parts.append(truth.peaks(name, min(settings.thetas_gt), 0.0))
        else:
            parts.append(truth.peaks(name, settings.theta_abs, settings.theta_rel))
    image = np.repeat(np.array(seen, np.int64), [len(xy) for xy, _ in parts])
    xy = np.concatenate([xy for xy, _ in parts] + [np.zeros((0, 2))])
    confidence = np.concatenate([sure for _, sure in parts] + [np.zeros(0)])
    return TruePoints(np.array(seen, np.int64), image, xy, confidence)


def _best(curve: PrecisionRecall) -> float:
    """The threshold with the highest F1; 1 where there is no detection."""
    return float(curve.threshold[int(np.argmax(curve.f1))]) if len(curve) else 1.0


def _counts(curve: PrecisionRecall, threshold: float, pairs: int, n_true: int) -> dict[str, Any]:
    """Scores at a threshold."""
    index = int(np.searchsorted(curve.threshold, threshold, side="left"))
    scores = curve.at(index) if index < len(curve) else Scores(0, 0, n_true)
    return {
        "threshold": threshold, "f1": scores.f1, "precision": scores.precision, "recall": scores.recall,
        "tp": scores.tp, "fp": scores.fp, "fn": scores.fn, "false_positives_per_tile": scores.fp / max(1, pairs),
    }  # fmt: skip


def _at_tolerance(
    found: Scored,
    truths: Sequence[TruePoints],
    curve: PrecisionRecall,
    tolerance: float,
    pairs: int,
    settings: EvaluationSettings,
    threshold: float | None,
) -> dict[str, Any]:
    n_true = sum(len(truth) for truth in truths)
    best = _best(curve)
    used = best if threshold is None else threshold
    values = {"precision": curve.precision, "recall": curve.recall, "f1": curve.f1}
    few = _thinned(curve.recall)
    return {
        "auprc": curve.average_precision,
        "best": _counts(curve, best, pairs, n_true),
        "at_threshold": None if threshold is None else _counts(curve, threshold, pairs, n_true),
        "froc": {
            "false_positives_per_tile": settings.false_positives,
            "recall_at_false_positives": recall_at_false_positives(curve, pairs, settings.false_positives),
            "recall": settings.recalls,
            "false_positives_at_recall": false_positives_at_recall(curve, pairs, settings.recalls),
        },
        "localisation": _localisation(found.take(found.score >= used), truths, tolerance, settings.rule),
        "curve": {
            "threshold": curve.threshold[few],
            "false_positives_per_tile": curve.fp[few] / max(1, pairs),
            **{key: column[few] for key, column in values.items()},
        },
    }  # fmt: skip


def _thinned(recall: NDArray[np.float64]) -> NDArray[np.int64]:
    """Points of a curve to keep, evenly spaced in recall."""
    if len(recall) <= _CURVE_POINTS:
        return np.arange(len(recall))
    rising = np.maximum.accumulate(recall[::-1])
    place = np.searchsorted(rising, np.linspace(0, rising[-1], _CURVE_POINTS))
    return np.unique(np.r_[0, len(recall) - 1 - np.minimum(place, len(recall) - 1)])


def _localisation(
    found: Scored, truths: Sequence[TruePoints], tolerance: float, rule: Rule
) -> dict[str, Any]:
    """Distance of matched pairs, px, and the mean shift of detections against the truth."""
    shifts = []
    for truth in truths:
        match = match_truth(found, truth, tolerance, rule)
        shifts.append(found.xy[match.index_a] - truth.xy[match.index_b])
    shift = np.concatenate([*shifts, np.zeros((0, 2))])
    if not len(shift):
        return dict.fromkeys(("median_px", "p95_px", "mean_px", "shift_x_px", "shift_y_px")) | {"n": 0}
    distance = np.hypot(*shift.T)
    return {
        "n": len(shift), "median_px": np.median(distance), "p95_px": np.quantile(distance, 0.95),
        "mean_px": distance.mean(), "shift_x_px": shift[:, 0].mean(), "shift_y_px": shift[:, 1].mean(),
    }  # fmt: skip


def _confidence(
    found: Scored, truths: Sequence[TruePoints], threshold: float, settings: EvaluationSettings
) -> dict[str, Any]:
    """Predicted against ground-truth confidence on matched pairs, and recall by confidence."""
    shown = found.take(found.score >= settings.confidence_from)
    strong = found.take(found.score >= threshold)
    score, sure, hit, support = [], [], [], []
    for truth in truths:
        match = match_truth(shown, truth, settings.main_px, settings.rule)
        score.append(shown.score[match.index_a])
        sure.append(truth.confidence[match.index_b])
        found_here = np.zeros(len(truth), bool)
        found_here[match_truth(strong, truth, settings.main_px, settings.rule).index_b] = True
        hit.append(found_here)
        support.append(truth.confidence)
    predicted, observed = np.concatenate(score), np.concatenate(sure)
    return {
        "tolerance_px": settings.main_px,
        "lowest_score": settings.confidence_from,
        "spearman": spearman(predicted, observed),
        **reliability(predicted, observed).record(),
        "recall_threshold": threshold,
        "recall_by_confidence": recall_by_confidence(np.concatenate(support), np.concatenate(hit)),
    }


def _calibration(
    found: Scored, truths: Sequence[TruePoints], settings: EvaluationSettings, threshold: float | None
) -> list[dict[str, Any]]:
    """The score as a probability: detections from a score on, true or false positive; all of them first."""
    score, correct = [], []
    for truth in truths:
        own = found.take(np.isin(found.image, truth.seen))
        right = np.zeros(len(own), bool)
        right[match_truth(own, truth, settings.main_px, settings.rule).index_a] = True
        score.append(own.score)
        correct.append(right)
    p, hit = np.concatenate(score), np.concatenate(correct)
    cuts = [0.0, 0.05] + ([] if threshold is None else [threshold])
    return [{"lowest_score": cut, **reliability(p[p >= cut], hit[p >= cut]).record()} for cut in cuts]


def _grid(found: Scored, truths: Sequence[TruePoints], settings: EvaluationSettings) -> dict[str, Any]:
    """F1 over the ground truth's and the detector's threshold."""
    thetas = np.asarray(settings.thetas)
    rows, best = [], []
    for theta_gt in settings.thetas_gt:
        sure = [truth.take(truth.confidence >= theta_gt) for truth in truths]
        curve = sweep(found, sure, settings.main_px, settings.rule, thetas)
        f1 = curve.f1
        rows.append(f1)
        top = int(np.argmax(f1))
        best.append({"theta_gt": theta_gt, "theta": thetas[top], "f1": f1[top],
                     "true_points": sum(len(one) for one in sure)})  # fmt: skip
    return {
        "theta": settings.thetas, "theta_gt": settings.thetas_gt, "f1": rows, "best": best,
        "optimum": max(best, key=lambda row: row["f1"]),
    }  # fmt: skip


def _tile_maxima(found: Scored, n_tiles: int) -> dict[str, Any]:
    """Distribution of each tile's highest score; 0 for a tile without detection."""
    highest = np.zeros(n_tiles)
    np.maximum.at(highest, found.image, found.score)
    quantiles = {f"q{q:02d}": float(np.quantile(highest, q / 100)) for q in (5, 25, 75, 95)}
    return {"median": float(np.median(highest)), **quantiles, "values": highest}


def _per_tile(
    found: Scored,
    truths: Sequence[TruePoints],
    tiles: Tiles,
    threshold: float,
    settings: EvaluationSettings,
) -> list[dict[str, Any]]:
    """Counts of every tile at the threshold, summed over experts."""
    strong = found.take(found.score >= threshold)
    marked, true, tp = (np.zeros(len(tiles), np.int64) for _ in range(3))
    for truth in truths:
        match = match_truth(strong, truth, settings.main_px, settings.rule)
        tp += np.bincount(truth.image[match.index_b], minlength=len(tiles))
        true += np.bincount(truth.image, minlength=len(tiles))
        seen = np.isin(np.arange(len(tiles)), truth.seen)
        marked += np.where(seen, np.bincount(strong.image, minlength=len(tiles)), 0)
    rows = []
    for index, name in enumerate(tiles.ids):
        scores = Scores(int(tp[index]), int(marked[index] - tp[index]), int(true[index] - tp[index]))
        rows.append({
            "image_id": str(name), "true_points": int(true[index]), "tp": scores.tp, "fp": scores.fp,
            "fn": scores.fn, "f1": scores.f1,
        })  # fmt: skip
    return rows
