"""A ground truth against experts: Hungarian matching, precision and recall over thresholds (methods.md 7)."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brainmap.errors import DataError, NotFoundError, UsageError
from brainmap.files import plain_text, read_json
from brainmap.gt.aggregate import ACCEPT, aggregate_clicks
from brainmap.gt.clicks import Clicks, read_clicks, read_point_table
from brainmap.gt.consensus import Consensus
from brainmap.gt.parallel import Runner
from brainmap.gt.settings import GtSettings
from brainmap.points.matching import match_points, score

__all__ = ["PointSet", "agreement", "calibration_error", "compare", "leave_one_out"]

Floats = npt.NDArray[np.float64]
THRESHOLDS = np.r_[0.01, np.linspace(0.05, 0.95, 19), 0.99]


@dataclass(frozen=True)
class PointSet:
    """Scored points of a ground truth: `image` ids (N,), `xy` (N, 2), `posterior`, `confidence` (N,)."""

    image: npt.NDArray[np.object_]
    xy: Floats
    posterior: Floats
    confidence: Floats

    @classmethod
    def read(cls, folder: str | Path) -> PointSet:
        """Read `points.csv` of a ground-truth folder."""
        path = Path(folder) / "points.csv"
        if not path.is_file():
            raise NotFoundError(f"{folder} is no ground-truth folder: there is no points.csv in it")
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        try:
            values = [[float(r[c]) for c in ("x", "y", "posterior", "confidence")] for r in rows]
            image = np.array([plain_text(r["image_id"]) for r in rows], dtype=object)
        except (KeyError, ValueError, TypeError) as error:
            raise DataError(f"{path} is not a table of ground-truth points: {error}") from error
        table = np.array(values, np.float64).reshape(-1, 4)
        return cls(image, table[:, :2], table[:, 2], table[:, 3])

    @classmethod
    def of(cls, clicks: Clicks, consensus: Consensus) -> PointSet:
        """Points of a consensus in memory; confidence is not drawn and stands as the posterior."""
        names = np.repeat(np.array(clicks.image_ids, dtype=object), [len(i.xy) for i in consensus.images])
        xy = np.concatenate([i.xy for i in consensus.images] + [np.zeros((0, 2))])
        posterior = np.concatenate([i.posterior for i in consensus.images] + [np.zeros(0)])
        return cls(names, xy, posterior, posterior)


def agreement(
    points: PointSet,
    experts: Sequence[tuple[npt.NDArray[np.object_], Floats]],
    tolerance: float,
    by: str = "posterior",
) -> dict[str, Any]:
    """Precision, recall, F1 micro-averaged over (expert, image), at the default threshold and over thresholds.

    Parameters
    ----------
    experts : list of (image ids (M,), xy (M, 2))
        Only images an expert marked count for that expert.
    by : {"posterior", "confidence"}
        What the thresholds act on. The default threshold is always posterior >= 0.5.
    """
    values = points.posterior if by == "posterior" else points.confidence
    n_images = sum(len(set(image)) for image, _ in experts)
    grid = THRESHOLDS if by == "posterior" else np.linspace(0.02, 0.98, 33)
    curve = []
    for threshold in grid:
        total = _count(points, values >= threshold, experts, tolerance)
        curve.append(
            {
                "threshold": round(float(threshold), 4),
                "precision": total.precision,
                "recall": total.recall,
                "f1": total.f1,
                "false_positives_per_image": total.fp / max(n_images, 1),
            }
        )
    default = _count(points, points.posterior >= ACCEPT, experts, tolerance)
    best = max(curve, key=lambda row: row["f1"])
    return {
        "tolerance_px": tolerance,
        "default": {
            "precision": default.precision,
            "recall": default.recall,
            "f1": default.f1,
            "tp": default.tp,
            "fp": default.fp,
            "fn": default.fn,
        },
        "best": best,
        "auprc": _area(curve),
        "curve": curve,
    }


def _count(
    points: PointSet,
    use: npt.NDArray[np.bool_],
    experts: Sequence[tuple[npt.NDArray[np.object_], Floats]],
    tolerance: float,
) -> Any:
    matched = predicted = true = 0
    for image, xy in experts:
        rows = use & np.isin(points.image, list(set(image)))
        matched += len(
            match_points(
                points.xy[rows],
                xy,
                tolerance,
                group_a=points.image[rows].astype(str),
                group_b=image.astype(str),
            )
        )
        predicted += int(rows.sum())
        true += len(xy)
    return score(matched, predicted, true)


def _area(curve: list[dict[str, float]]) -> float:
    """Area under precision over recall, steps at the thresholds tried."""
    rows = sorted(curve, key=lambda row: -row["threshold"])
    recall = np.maximum.accumulate(np.array([0.0] + [r["recall"] for r in rows]))
    precision = np.array([r["precision"] for r in rows])
    return float((np.diff(recall) * precision).sum())


def compare(
    folder: str | Path,
    expert: str | Path,
    *,
    tolerance: float = 10.0,
    by: str = "posterior",
    clicks: str | Path | None = None,
) -> dict[str, Any]:
    """Compare a ground-truth folder with experts' points.

    Parameters
    ----------
    folder : path
        Ground-truth folder.
    expert : path
        CSV or Parquet `image_id x y` and, for several experts, `worker_id`.
    tolerance : float
        Largest distance of a pair, px (methods.md 7: 10 against experts).
    by : {"posterior", "confidence"}
        What is swept for the curves.
    clicks : path, optional
        The clicks the folder came from: then they are aggregated twice more, without the experts (the honest
        figure) and with them, and all three are compared.

    Returns
    -------
    dict
        `as_is`, and with clicks `expert_excluded` and `expert_included`; each as `agreement` returns it.
    """
    if not (np.isfinite(tolerance) and tolerance > 0):
        raise UsageError(f"--tolerance-px must be above 0, not {tolerance}")
    if by not in ("posterior", "confidence"):
        raise UsageError(f"--by must be posterior or confidence, not {by!r}")
    points = PointSet.read(folder)
    images, names, xy = read_point_table(expert)
    if not images:
        raise DataError(f"{expert} holds no points")
    image, name = np.array(images, dtype=object), np.array(names, dtype=object)
    known = set(points.image)
    if clicks is None and not known & set(images):
        raise DataError(f"{expert} and {folder} have no image in common")
    experts = [(image[name == who], xy[name == who]) for who in sorted(set(names))]
    result: dict[str, Any] = {"as_is": agreement(points, experts, tolerance, by), "n_experts": len(experts)}
    if clicks is not None:
        record = read_json(Path(folder) / "gt.json")
        settings = GtSettings(**record["settings"])
        for key, table in _with_and_without(clicks, record, image, name, xy).items():
            qc = [i for i in record["input"].get("qc", []) if i in table.image_ids]
            consensus = aggregate_clicks(table, settings, qc=qc)
            result[key] = agreement(PointSet.of(table, consensus), experts, tolerance, "posterior")
    return result


def _with_and_without(
    path: str | Path, record: dict[str, Any], image: Any, name: Any, xy: Floats
) -> dict[str, Clicks]:
    source = record.get("input", {})
    table = read_clicks(path, tiles=source.get("tiles"), assignments=source.get("assignments"))
    crowd = table.without_workers(set(name))
    if not len(crowd):
        raise DataError(f"{path} holds no clicks but the experts' own")
    ids = np.array(crowd.image_ids, dtype=object)
    who = np.array(crowd.worker_ids, dtype=object)
    use = np.isin(image.astype(str), ids.astype(str))
    pairs = zip(crowd.seen_image, crowd.seen_worker, crowd.seen_complete, strict=True)
    both = Clicks.build(
        np.r_[ids[crowd.image], image[use]],
        np.r_[who[crowd.worker], name[use]],
        np.r_[crowd.xy[:, 0], xy[use, 0]],
        np.r_[crowd.xy[:, 1], xy[use, 1]],
        sizes={
            n: (int(h), int(w)) for n, h, w in zip(crowd.image_ids, crowd.height, crowd.width, strict=True)
        },
        assignments=[(crowd.image_ids[i], crowd.worker_ids[w], bool(c)) for i, w, c in pairs],
    )
    return {"expert_excluded": crowd, "expert_included": both}


def leave_one_out(
    clicks: Clicks, settings: GtSettings, *, tolerance: float = 10.0, runner: Runner | None = None
) -> list[dict[str, Any]]:
    """Consensus of the others against each annotator, and the best single other annotator beside it."""
    rows = []
    for row, name in enumerate(clicks.worker_ids):
        seen = set(clicks.seen_image[clicks.seen_worker == row].tolist())
        own = clicks.worker == row
        if not own.any() or len(clicks.worker_ids) < 2:
            continue
        ids = np.array(clicks.image_ids, dtype=object)
        expert = [(ids[clicks.image[own]], clicks.xy[own])]
        others = clicks.without_workers({name})
        consensus = aggregate_clicks(others, replace(settings, ability="all"), runner=runner)
        points = PointSet.of(others, consensus)
        of = _count(points, points.posterior >= ACCEPT, expert, tolerance)
        single = {}
        for other, who in enumerate(clicks.worker_ids):
            use = (clicks.worker == other) & np.isin(clicks.image, list(seen))
            if other != row and use.any():
                one = np.ones(int(use.sum()))
                points = PointSet(ids[clicks.image[use]], clicks.xy[use], one, one)
                single[who] = _count(points, one > 0, expert, tolerance).f1
        best = max(single, key=lambda k: single[k]) if single else None
        rows.append(
            {
                "worker_id": name,
                "precision": of.precision,
                "recall": of.recall,
                "f1": of.f1,
                "best_single": best,
                "best_single_f1": single[best] if best is not None else None,
            }
        )
    return rows


def calibration_error(probability: npt.ArrayLike, right: npt.ArrayLike, bins: int = 10) -> float:
    """Expected calibration error: mean over equal bins of |mean probability - share right|, weighted by size."""
    p, hit = np.asarray(probability, np.float64), np.asarray(right, np.float64)
    if len(p) == 0:
        return 0.0
    which = np.clip((p * bins).astype(np.int64), 0, bins - 1)
    gap = np.abs(np.bincount(which, p, bins) - np.bincount(which, hit, bins))
    return float(gap.sum() / len(p))
