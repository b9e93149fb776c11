"""Clicks -> ground-truth folder: all images, one image at a time."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from brainmap.errors import UsageError
from brainmap.files import atomic_path, cell_text, fingerprint, write_json
from brainmap.gt.best import aggregate_best
from brainmap.gt.clicks import Clicks, read_clicks
from brainmap.gt.consensus import ACCEPT, Aggregated, Consensus, ImageConsensus, consistency_groups
from brainmap.gt.heatmap import confidence_at, heat_map
from brainmap.gt.parallel import Runner
from brainmap.gt.settings import GtSettings
from brainmap.gt.study import aggregate_study
from brainmap.lock import held
from brainmap.machine import versions
from brainmap.swap import staged

__all__ = ["ACCEPT", "aggregate", "aggregate_clicks", "write_ground_truth"]

log = logging.getLogger(__name__)

POINT_COLUMNS = ("image_id", "x", "y", "confidence", "posterior", "n_workers", "n_clicks")
WORKER_COLUMNS = (
    "worker_id",
    "n_images",
    "n_clicks",
    "qc_complete",
    "sensitivity",
    "specificity",
    "weight_click",
    "weight_no_click",
    "group",
)


def aggregate(
    clicks: str | Path,
    out: str | Path,
    *,
    tiles: str | Path | None = None,
    assignments: str | Path | None = None,
    qc: Sequence[str] = (),
    settings: GtSettings | None = None,
    workers: int = 1,
) -> Aggregated:
    """Aggregate a file of clicks into a ground-truth folder.

    Parameters
    ----------
    clicks : path
        CSV or Parquet: `image_id worker_id x y`, optional `height width`.
    out : path
        Folder to write; files of before are replaced.
    tiles, assignments : path, optional
        Tiles folder (image sizes, pictures in the report); who was given and finished which image.
    qc : sequence of str
        Image ids of the quality-control images.
    workers : int
        Processes. The result does not depend on it.

    Raises
    ------
    BrainmapError
        Input that cannot be used; see `read_clicks`.
    """
    settings = settings or GtSettings()
    if Path(out).exists() and not Path(out).is_dir():
        raise UsageError(f"{out} is a file; --out names a folder")
    table = read_clicks(clicks, tiles=tiles, assignments=assignments)
    source = Path(clicks)
    record = {
        "clicks": str(source),
        "clicks_sha256": fingerprint(source.read_bytes()),
        "tiles": None if tiles is None else str(tiles),
        "assignments": None if assignments is None else str(assignments),
        "qc": list(qc),
    }
    with held(Path(out), "what was there before stays"), Runner(workers) as runner:
        consensus = aggregate_clicks(table, settings, qc=qc, runner=runner)
        return write_ground_truth(out, table, consensus, settings, record, tiles=tiles, qc=qc, runner=runner)


def aggregate_clicks(
    clicks: Clicks, settings: GtSettings, *, qc: Sequence[str] = (), runner: Runner | None = None
) -> Consensus:
    """Aggregate clicks in memory, by the method of `settings`."""
    rows = _qc_rows(clicks, qc, settings)
    method = aggregate_best if settings.method == "best" else aggregate_study
    return method(clicks, settings, rows, runner or Runner())


def _qc_rows(clicks: Clicks, qc: Sequence[str], settings: GtSettings) -> list[int]:
    known = {name: row for row, name in enumerate(clicks.image_ids)}
    for name in qc:
        if name not in known:
            raise UsageError(f"--qc image {name!r} is not among the images of the clicks or assignments")
    if settings.ability == "qc" and not qc:
        raise UsageError("ability from QC images needs --qc images")
    return sorted({known[name] for name in qc})


def write_ground_truth(
    out: str | Path,
    clicks: Clicks,
    consensus: Consensus,
    settings: GtSettings,
    record: dict[str, Any] | None = None,
    *,
    tiles: str | Path | None = None,
    qc: Sequence[str] = (),
    runner: Runner | None = None,
) -> Aggregated:
    """Write points.csv, workers.csv, heatmaps/, report.html and gt.json, all of them or none."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with staged(out, "gt.json") as new:
        result = _write_files(new, clicks, consensus, settings, record or {}, tiles, qc, runner or Runner())
    return replace(result, path=out)


def _write_files(
    out: Path,
    clicks: Clicks,
    consensus: Consensus,
    settings: GtSettings,
    record: dict[str, Any],
    tiles: str | Path | None,
    qc: Sequence[str],
    runner: Runner,
) -> Aggregated:
    maps = out / "heatmaps"
    maps.mkdir()
    tasks = [
        (str(maps / f"{name}.npy"), image, (int(clicks.height[row]), int(clicks.width[row])), settings)
        for row, (name, image) in enumerate(zip(clicks.image_ids, consensus.images, strict=True))
    ]
    confidence = runner.map(_write_map, tasks, "drawing heat maps")
    _write_points(out / "points.csv", clicks, consensus, confidence)
    groups = _write_workers(out / "workers.csv", clicks, consensus, qc)
    posterior = np.concatenate([image.posterior for image in consensus.images] + [np.zeros(0)])
    result = Aggregated(
        out,
        len(clicks.image_ids),
        len(clicks.worker_ids),
        len(clicks),
        len(posterior),
        int((posterior >= ACCEPT).sum()),
    )
    from brainmap.gt.report import write_report

    write_report(out / "report.html", clicks, consensus, settings, groups, result, tiles=tiles, qc=qc)
    write_json(
        out / "gt.json",
        {
            "status": "complete",
            "input": record,
            "settings": settings,
            "accepted_at_posterior": ACCEPT,
            "n_images": result.n_images,
            "n_workers": result.n_workers,
            "n_clicks": result.n_clicks,
            "n_candidates": result.n_candidates,
            "n_accepted": result.n_accepted,
            "dropped_clicks": clicks.dropped,
            "method": consensus.details,
            "versions": versions(),
        },
    )
    return result


def _write_map(path: str, image: ImageConsensus, shape: tuple[int, int], settings: GtSettings) -> Any:
    heat = heat_map(
        image.mark_xy,
        image.mark_weight,
        image.total_weight,
        shape,
        sigma=settings.sigma_px,
        cut=settings.cut_sigmas,
        saturation=settings.saturation,
    )
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, heat)
    return confidence_at(heat, image.xy)


def _write_points(path: Path, clicks: Clicks, consensus: Consensus, confidence: list[Any]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(POINT_COLUMNS)
    for name, image, sure in zip(clicks.image_ids, consensus.images, confidence, strict=True):
        order = np.lexsort((image.xy[:, 0], image.xy[:, 1], -image.posterior))
        for k in order.tolist():
            writer.writerow(
                (
                    cell_text(name),
                    f"{image.xy[k, 0]:.3f}",
                    f"{image.xy[k, 1]:.3f}",
                    f"{sure[k]:.6f}",
                    _probability(image.posterior[k]),
                    int(image.n_workers[k]),
                    int(image.n_clicks[k]),
                )
            )
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="")


def _probability(value: float) -> str:
    # Rounded towards 0 at the sixth digit: what reads 0.500000 has been accepted.
    return f"{np.floor(value * 1e6) / 1e6:.6f}"


def _write_workers(path: Path, clicks: Clicks, consensus: Consensus, qc: Sequence[str]) -> list[str]:
    judged = [clicks.image_ids.index(name) for name in qc] or list(range(len(clicks.image_ids)))
    groups, _ = consistency_groups(clicks, judged)
    n = len(clicks.worker_ids)
    table = consensus.workers
    n_images = np.bincount(clicks.seen_worker, minlength=n)
    n_clicks = np.bincount(clicks.worker, minlength=n)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(WORKER_COLUMNS)
    values = (table.sensitivity, table.specificity, table.weight_click, table.weight_no_click)
    for row, name in enumerate(clicks.worker_ids):
        numbers = ["" if np.isnan(v[row]) else f"{v[row]:.6f}" for v in values]
        done = "true" if table.qc_complete[row] else "false"
        writer.writerow(
            (cell_text(name), int(n_images[row]), int(n_clicks[row]), done, *numbers, groups[row])
        )
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="")
    return groups
