"""Detected points scored against true ones: what `brainmap evaluate` computes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brainmap.errors import DataError, UsageError
from brainmap.points.matching import PrecisionRecall, Rule, Scores, match_points, precision_recall, score
from brainmap.points.table import Points, read_locations

__all__ = ["Evaluation", "evaluate_files", "evaluate_points"]

# Largest distance of a match where none is given: a cell's diameter; methods, section 7, for pixels.
DEFAULT_UM, DEFAULT_PX = 10.0, 5.0


@dataclass(frozen=True)
class Evaluation:
    """Scores of detected against true points at one tolerance.

    Attributes
    ----------
    scores : Scores
        All predictions counted.
    tolerance : float
        In `unit`: "um" or "px" (voxels).
    rule : str
        Where the tolerance acts, see `brainmap.points.matching`.
    distance_mean : float
        Of the matched pairs, in `unit`; NaN without any.
    curve : PrecisionRecall or None
        Over thresholds of the score, if the predictions have scores.
    distinct : int
        How many different scores there are; of more than the curve has, it takes quantiles.
    """

    scores: Scores
    tolerance: float
    unit: str
    rule: str
    distance_mean: float
    curve: PrecisionRecall | None
    distinct: int = 0

    @property
    def sampled(self) -> bool:
        """Whether the curve takes quantiles of the scores, not all of them."""
        return self.curve is not None and self.distinct > len(self.curve)

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        result = {
            "precision": self.scores.precision,
            "recall": self.scores.recall,
            "f1": self.scores.f1,
            "tp": self.scores.tp,
            "fp": self.scores.fp,
            "fn": self.scores.fn,
            "n_points": self.scores.tp + self.scores.fp,
            "n_truth": self.scores.tp + self.scores.fn,
            "tolerance": self.tolerance,
            "unit": self.unit,
            "rule": self.rule,
            "distance_mean": self.distance_mean,
        }
        if self.curve is not None:
            # Without a prediction no threshold finds more than this one.
            threshold, best = self.curve.best if len(self.curve) else (float("nan"), self.scores)
            result |= {
                "average_precision": self.curve.average_precision,
                "thresholds": len(self.curve),
                "thresholds_are": "quantiles of the scores" if self.sampled else "all scores",
                "best_threshold": threshold,
                "best_f1": best.f1,
                "curve": {
                    "threshold": self.curve.threshold,
                    "precision": self.curve.precision,
                    "recall": self.curve.recall,
                },
            }
        return result

    def lines(self) -> list[tuple[str, str]]:
        """The result as names and values, for people."""
        s = self.scores
        apart = f"{self.distance_mean:.2f} apart on average"
        lines = [
            ("points", f"{s.tp + s.fp:,}"),
            ("truth", f"{s.tp + s.fn:,}"),
            ("matched", f"{s.tp:,} within {self.tolerance:g} {self.unit}, {apart}"),
            ("precision", f"{s.precision:.4f}"),
            ("recall", f"{s.recall:.4f}"),
            ("F1", f"{s.f1:.4f}"),
        ]  # fmt: skip
        if self.curve is not None and len(self.curve):
            threshold, best = self.curve.best
            where = f" (at {len(self.curve)} quantiles of the scores)" if self.sampled else ""
            lines.append(("average precision", f"{self.curve.average_precision:.4f}{where}"))
            lines.append(("best F1", f"{best.f1:.4f} at threshold {threshold:.3f}"))
        return lines


def evaluate_files(
    points: str | Path,
    truth: str | Path,
    *,
    tolerance_um: float | None = None,
    tolerance_px: float | None = None,
    rule: str = "inside",
) -> Evaluation:
    """Score one file of points against another; see `read_locations` and `evaluate_points`."""
    return evaluate_points(
        read_locations(points), read_locations(truth),
        tolerance_um=tolerance_um, tolerance_px=tolerance_px, rule=rule,
    )  # fmt: skip


def evaluate_points(
    points: Points,
    truth: Points,
    *,
    tolerance_um: float | None = None,
    tolerance_px: float | None = None,
    rule: str = "inside",
) -> Evaluation:
    """Score detected points against true ones, per image if both name images.

    Parameters
    ----------
    points, truth : Points
        With `z y x` or `x y` (or um columns), the same in both. `image_id`, if in both, keeps the
        points of different images apart.
    tolerance_um, tolerance_px : float, optional
        Largest distance of a match, one of them. Without either 10 um, or 5 px if there is no um.
        Voxels are turned into um by the voxel size that the metadata of either table names.
    rule : {"inside", "after"}
        Where the tolerance acts, see `brainmap.points.matching`.

    Raises
    ------
    UsageError
        For two tolerances, one that is not positive, an unknown rule, or um where the size of a
        voxel is unknown.
    DataError
        If one table has z and the other not, or only one names images.
    """
    if tolerance_um is not None and tolerance_px is not None:
        raise UsageError("give --tolerance-um or --tolerance-px, not both")
    for option, value in (("um", tolerance_um), ("px", tolerance_px)):
        if value is not None and not value > 0:
            raise UsageError(f"--tolerance-{option} must be positive, not {value}")
    if rule not in ("inside", "after"):
        raise UsageError(f"--rule must be inside or after, not {rule!r}")
    chosen: Rule = "after" if rule == "after" else "inside"
    predicted, true, unit = _coordinates(points, truth, tolerance_um, tolerance_px)
    tolerance = tolerance_um or tolerance_px or (DEFAULT_UM if unit == "um" else DEFAULT_PX)
    if ("image_id" in points) != ("image_id" in truth):
        raise DataError("only one of the two tables names images (image_id): their points cannot be matched")
    groups = (points["image_id"], truth["image_id"]) if "image_id" in points else (None, None)
    match = match_points(predicted, true, tolerance, rule=chosen, group_a=groups[0], group_b=groups[1])
    curve, distinct = None, 0
    if "score" in points:
        curve = precision_recall(
            predicted, points["score"], true, tolerance, rule=chosen,
            group_predicted=groups[0], group_true=groups[1],
        )  # fmt: skip
        distinct = len(np.unique(points["score"]))
    mean = float(np.mean(match.distance)) if len(match) else float("nan")
    return Evaluation(
        score(len(match), len(points), len(truth)), tolerance, unit, rule, mean, curve, distinct
    )


def _coordinates(
    points: Points, truth: Points, tolerance_um: float | None, tolerance_px: float | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], str]:
    """Both sets in one unit, and which."""
    axes = tuple(axis for axis in "zyx" if axis in points)
    if axes != tuple(axis for axis in "zyx" if axis in truth):
        raise DataError("one of the two tables has z coordinates and the other not")
    um_axes = tuple(f"{axis}_um" for axis in axes)
    both_um = all(name in table for name in um_axes for table in (points, truth))
    voxel_um = points.meta.get("voxel_um") or truth.meta.get("voxel_um")
    if tolerance_px is None and (both_um or voxel_um is not None):
        if both_um:
            return points.coordinates(*um_axes), truth.coordinates(*um_axes), "um"
        scale = np.asarray(voxel_um, dtype=np.float64)[-len(axes) :]
        return points.coordinates(*axes) * scale, truth.coordinates(*axes) * scale, "um"
    if tolerance_um is not None:
        raise UsageError(
            "neither table names the size of a voxel: give --tolerance-px, or points with columns "
            f"{','.join(um_axes)}"
        )
    return points.coordinates(*axes), truth.coordinates(*axes), "px"
