"""What both methods return: candidates of every image, and the table of workers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brainmap.gt.clicks import Clicks

__all__ = [
    "ACCEPT",
    "Aggregated",
    "Consensus",
    "ImageConsensus",
    "WorkerTable",
    "consistency_groups",
    "qc_completed",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

ACCEPT = 0.5  # a candidate whose posterior reaches this is a cell


@dataclass(frozen=True)
class ImageConsensus:
    """One image: candidates `xy` (C, 2), `posterior`, `n_workers`, `n_clicks` (C,); what its heat map is made of.

    The map is drawn from `mark_xy` (M, 2) with `mark_weight` (M,), over `total_weight`.
    """

    xy: Floats
    posterior: Floats
    n_workers: Ints
    n_clicks: Ints
    mark_xy: Floats
    mark_weight: Floats
    total_weight: float


@dataclass(frozen=True)
class WorkerTable:
    """Per worker (J,): ability and weights, NaN where a worker was left out; QC state."""

    sensitivity: Floats
    specificity: Floats
    weight_click: Floats
    weight_no_click: Floats
    qc_complete: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Consensus:
    """Result of a method; `images` in the order of the clicks' `image_ids`, `details` for gt.json."""

    images: list[ImageConsensus]
    workers: WorkerTable
    details: dict[str, Any] = field(default_factory=dict)


def qc_completed(clicks: Clicks, qc: list[int]) -> npt.NDArray[np.bool_]:
    """Whether each worker (J,) finished all QC images; without QC images everybody has."""
    n = len(clicks.worker_ids)
    if not qc:
        return np.ones(n, bool)
    done = clicks.seen_complete & np.isin(clicks.seen_image, qc)
    return np.asarray(np.bincount(clicks.seen_worker[done], minlength=n) == len(set(qc)))


def consistency_groups(clicks: Clicks, images: list[int]) -> tuple[list[str], Floats]:
    """Group of each worker by r_w, the share of images with more clicks than the image's mean (methods.md 7).

    `below` for r_w <= 0.2, `above` for r_w >= 0.8, else `mixed`; empty for workers who saw none of `images`.
    """
    n = len(clicks.worker_ids)
    use = np.isin(clicks.seen_image, images)
    image, worker = clicks.seen_image[use], clicks.seen_worker[use]
    keys, count = np.unique(clicks.image * n + clicks.worker, return_counts=True)
    at = np.searchsorted(keys, image * n + worker)
    found = at < len(keys)
    found[found] = keys[at[found]] == (image * n + worker)[found]
    made = np.zeros(len(image))
    made[found] = count[at[found]]
    total = np.bincount(image, made, len(clicks.image_ids))
    mean = total / np.maximum(np.bincount(image, minlength=len(total)), 1)
    more = np.bincount(worker, (made > mean[image]).astype(float), n)
    seen = np.bincount(worker, minlength=n)
    ratio = np.where(seen > 0, more / np.maximum(seen, 1), np.nan)
    names = ["" if np.isnan(r) else "below" if r <= 0.2 else "above" if r >= 0.8 else "mixed" for r in ratio]
    return names, ratio


@dataclass(frozen=True)
class Aggregated:
    """Result of `aggregate`: where it lies, and what a reader wants to know first."""

    path: Path
    n_images: int
    n_workers: int
    n_clicks: int
    n_candidates: int
    n_accepted: int
