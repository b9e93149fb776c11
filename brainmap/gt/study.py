"""`--method study`: the founding study's aggregation, methods.md section 4, to the letter."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from brainmap.errors import DataError
from brainmap.gt.ability import Votes, click_weights, faced_false, fit_votes, posteriors
from brainmap.gt.candidates import merge_repeats, study_candidates
from brainmap.gt.clicks import Clicks
from brainmap.gt.consensus import Consensus, ImageConsensus, WorkerTable, qc_completed
from brainmap.gt.parallel import Runner
from brainmap.gt.settings import GtSettings

__all__ = ["aggregate_study"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def aggregate_study(clicks: Clicks, settings: GtSettings, qc: list[int], runner: Runner) -> Consensus:
    """Candidates by HDBSCAN and Gaussian mixtures, abilities by EM, heat-map weights log(p / (1 - q)).

    Workers who have not finished all QC images (indices `qc`) are left out. Who was never faced with a false
    candidate is given the starting specificity in the table and in the weights: the EM's, 0 by 0, would leave
    crowds that agree without a heat map. Posteriors are the EM's.
    """
    n_workers = len(clicks.worker_ids)
    complete = qc_completed(clicks, qc)
    use_qc = bool(qc) and settings.ability != "all"
    kept = complete if use_qc else np.ones(n_workers, bool)
    if not kept.any():
        raise DataError("no worker finished all QC images; give fewer --qc images, or --ability all")
    rows = [np.arange(r.start, r.stop) for r in map(clicks.rows_of, range(len(clicks.image_ids)))]
    rows = [r[kept[clicks.worker[r]]] for r in rows]
    found = runner.map(
        _candidates, [(clicks.xy[r], clicks.worker[r], settings) for r in rows], "finding cells"
    )
    votes = _votes(clicks, rows, found, kept)
    judged_by = qc if use_qc else list(range(len(clicks.image_ids)))
    judged = _restrict(votes, judged_by)
    fit = fit_votes(
        judged,
        start=settings.start,
        start_prior=settings.start_prior,
        tolerance=settings.tolerance,
        max_iterations=settings.max_iterations,
    )
    posterior = posteriors(votes, fit.sensitivity, fit.specificity, fit.prior, votes.click_seen())
    p, q = fit.sensitivity, np.where(faced_false(judged, fit.posterior), fit.specificity, settings.start)
    weight, no_click = click_weights(p, q)
    images = _images(clicks, settings, rows, found, votes, posterior, weight, kept)
    blank = np.where(kept, 0.0, np.nan)
    workers = WorkerTable(p + blank, q + blank, weight + blank, no_click + blank, complete)
    details = {
        "prior": fit.prior,
        "em_iterations": fit.iterations,
        "em_converged": fit.converged,
        "ability_images": "qc" if use_qc else "all",
        "workers_left_out": int((~kept).sum()),
    }
    return Consensus(images, workers, details)


def _candidates(xy: Floats, worker: Ints, settings: GtSettings) -> tuple[Floats, Ints]:
    return study_candidates(xy, worker, settings)


def _votes(
    clicks: Clicks, rows: list[Ints], found: list[tuple[Floats, Ints]], kept: npt.NDArray[np.bool_]
) -> Votes:
    sizes = np.array([len(centres) for centres, _ in found], np.int64)
    start = np.concatenate([[0], np.cumsum(sizes)])
    item = np.concatenate(
        [label + at for (_, label), at in zip(found, start[:-1], strict=True)] + [np.zeros(0)]
    )
    worker = clicks.worker[np.concatenate([*rows, np.zeros(0, np.int64)])]
    pairs = np.unique(np.stack([item.astype(np.int64), worker], axis=1), axis=0)
    seen = clicks.seen_complete & kept[clicks.seen_worker]
    return Votes(
        np.repeat(np.arange(len(sizes)), sizes),
        pairs[:, 0],
        pairs[:, 1],
        clicks.seen_image[seen],
        clicks.seen_worker[seen],
        len(sizes),
        len(clicks.worker_ids),
    )


def _restrict(votes: Votes, images: list[int]) -> Votes:
    """The votes on some images only; the others keep their number, without items."""
    keep = np.isin(votes.group, images)
    new = np.cumsum(keep) - 1
    clicks, seen = keep[votes.item], np.isin(votes.seen_group, images)
    return Votes(
        votes.group[keep],
        new[votes.item[clicks]],
        votes.worker[clicks],
        votes.seen_group[seen],
        votes.seen_worker[seen],
        votes.n_groups,
        votes.n_workers,
    )


def _images(
    clicks: Clicks,
    settings: GtSettings,
    rows: list[Ints],
    found: list[tuple[Floats, Ints]],
    votes: Votes,
    posterior: Floats,
    weight: Floats,
    kept: npt.NDArray[np.bool_],
) -> list[ImageConsensus]:
    n_workers = np.bincount(votes.item, minlength=votes.n_items)
    images, at = [], 0
    for image, (own, (centres, label)) in enumerate(zip(rows, found, strict=True)):
        stop = at + len(centres)
        merged, who, _ = merge_repeats(clicks.xy[own], clicks.worker[own], settings.repeat_px)
        seen = clicks.seen_worker[clicks.seen_of(image)]
        images.append(
            ImageConsensus(
                centres,
                posterior[at:stop],
                n_workers[at:stop],
                np.bincount(label, minlength=len(centres)),
                merged,
                weight[who],
                float(weight[seen[kept[seen]]].sum()),
            )
        )
        at = stop
    return images
