"""`--method best`: joint clustering and latent classes, in turn.

Clustering (cells.py) and abilities (latent.py) each need the other: the first round clusters with average
workers, every further one with what was learnt of each worker's sensitivity, strays, bias and scatter. A worker's
work on one image that fits chance better than his own ability is void for that image alone; work that
stops early counts for its clicks only.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree
from scipy.special import expit, logit

from brainmap.gt.ability import Votes, click_weights
from brainmap.gt.cells import SPREADS, ImageModel, find_cells, tightness
from brainmap.gt.clicks import Clicks
from brainmap.gt.consensus import ACCEPT, Consensus, ImageConsensus, WorkerTable, qc_completed
from brainmap.gt.jitter import Scatter, fit_scatter, worker_scatter
from brainmap.gt.latent import LatentFit, fit_latent
from brainmap.gt.parallel import Runner
from brainmap.gt.settings import GtSettings

__all__ = ["aggregate_best"]

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

SLACKER_STEPS = np.array([-1.0, -2.0, -3.0, -4.0])  # logits of sensitivity tried for one image
REPEATED, VOID = 1, 2
PRIOR_FACED = 1.0  # weight of the starting ability in the crowd's mean, in candidates faced


@dataclass(frozen=True)
class _Crowd:
    """What is believed of the workers: per worker, per (image, worker) pair of `Clicks.seen_*`, and in common."""

    scatter: Scatter
    logit_p: Floats
    bias: Floats
    width: Floats
    stray: Floats  # per pair, 1/px^2
    counts: Bools  # per pair: missing clicks are evidence
    void: Bools  # per pair: clicks are none
    tau: float = 1.2


@dataclass(frozen=True)
class _Found:
    """Candidates of all images: `image` (C,), `xy` (C, 2), `geometry` (C, spreads); per click its `item` and `role`.

    `role` is 0 for a vote, REPEATED (of its worker's vote for the item), or VOID.
    """

    image: Ints
    xy: Floats
    geometry: Floats
    item: Ints
    role: Ints


def aggregate_best(clicks: Clicks, settings: GtSettings, qc: list[int], runner: Runner) -> Consensus:
    """Candidates, posteriors and abilities of all images; QC images are images like others unless asked for."""
    pair = _pair_of_click(clicks)
    crowd = _first_crowd(clicks, pair, settings)
    for round_ in range(settings.rounds):
        found = _find(clicks, pair, crowd, settings, runner)
        votes = _votes(clicks, found, crowd)
        fit = fit_latent(votes, settings.geometry * found.geometry, strength=settings.prior_clicks)
        if np.isfinite(settings.reject_nats):
            counts, void = _review(clicks, found, fit, settings.reject_nats)
            if (counts != crowd.counts).any() or (void != crowd.void).any():
                crowd = replace(crowd, counts=counts, void=void)
                found = replace(
                    found, role=np.where(void[pair], VOID, np.where(found.role == VOID, 0, found.role))
                )
                votes = _votes(clicks, found, crowd)
                fit = fit_latent(votes, settings.geometry * found.geometry, strength=settings.prior_clicks)
        log.info("round %d: %d candidates, %.1f cells", round_ + 1, len(found.image), fit.posterior.sum())
        if round_ + 1 < settings.rounds:
            crowd = _learn(clicks, pair, crowd, found, fit)
    workers = _worker_table(clicks, found, fit, settings, qc)
    details = {
        "click_scatter_px": crowd.scatter.width,
        "click_tail": crowd.scatter.tail,
        "difficulty_logits": fit.tau,
        "attractiveness_logits": fit.sigma,
        "share_of_cells": fit.share,
        "spread_of_other_clicks": fit.spread,
        "void_image_worker_pairs": int(crowd.void.sum()),
        "unfinished_image_worker_pairs": int((~crowd.counts & ~crowd.void).sum()),
        "worker_bias_px": dict(zip(clicks.worker_ids, crowd.bias.round(2).tolist(), strict=True)),
    }
    return Consensus(_images(clicks, pair, found, fit, workers, crowd), workers, details)


def _pair_of_click(clicks: Clicks) -> Ints:
    n = max(len(clicks.worker_ids), 1)
    return np.searchsorted(clicks.seen_image * n + clicks.seen_worker, clicks.image * n + clicks.worker)


def _first_crowd(clicks: Clicks, pair: Ints, settings: GtSettings) -> _Crowd:
    n, pairs = len(clicks.worker_ids), len(clicks.seen_image)
    area = np.maximum(clicks.height * clicks.width, 1)[clicks.seen_image]
    scatter = fit_scatter(clicks)
    return _Crowd(
        scatter,
        np.full(n, logit(0.6)),
        np.zeros((n, 2)),
        np.full(n, scatter.width),
        0.3 * (np.bincount(pair, minlength=pairs) + 1) / area,
        clicks.seen_complete.copy(),
        np.zeros(pairs, bool),
    )


def _find(clicks: Clicks, pair: Ints, crowd: _Crowd, settings: GtSettings, runner: Runner) -> _Found:
    """Cluster every image, then give each click its candidate."""
    reach = crowd.scatter.reach(settings.reach_quantile)
    xy = clicks.xy - crowd.bias[clicks.worker]
    valid = ~crowd.void[pair]
    tasks = []
    for image in range(len(clicks.image_ids)):
        rows, seen = clicks.rows_of(image), clicks.seen_of(image)
        use = valid[rows]
        who, pairs = clicks.worker[rows][use], clicks.seen_worker[seen]
        count = np.bincount(pair[rows][use] - seen.start, minlength=seen.stop - seen.start)
        area = max(float(clicks.height[image] * clicks.width[image]), 1.0)
        density = (
            max(float(np.median(count[~crowd.void[seen]])) if (~crowd.void[seen]).any() else 1.0, 1.0) / area
        )
        # The pairs' arrays travel, not the crowd: workers of one image only.
        tasks.append(
            (
                xy[rows][use],
                pair[rows][use] - seen.start,
                crowd.width[who],
                crowd.logit_p[pairs],
                crowd.stray[seen],
                crowd.counts[seen],
                max(crowd.tau, 0.5),
                density,
                crowd.scatter,
                reach,
            )
        )
    return _collect(
        clicks, xy, valid, runner.map(_find_in_image, tasks, "finding cells"), crowd.scatter.width
    )


def _find_in_image(
    xy: Floats,
    worker: Ints,
    width: Floats,
    logit_p: Floats,
    stray: Floats,
    counts: Bools,
    tau: float,
    density: float,
    scatter: Scatter,
    reach: float,
) -> tuple[Floats, Ints, Floats]:
    """Centres and tightness (K + singles) of one image's candidates, and the candidate of every click.

    The candidate of a click that repeats its worker's click on a cell is that cell, as -2 - cell.
    """
    model = ImageModel.build(logit_p, stray, counts, tau, density, scatter, reach)
    centres, label, near = find_cells(xy, worker, width, model)
    tight = tightness(xy, width, near, label, centres, model)
    left = np.flatnonzero(label < 0)
    single = np.ones(len(left), bool)
    if len(left) and len(centres):
        distance, cell = cKDTree(centres).query(xy[left])
        key, n = cell * len(logit_p) + worker[left], label >= 0
        repeat = np.isin(key, label[n] * len(logit_p) + worker[n]) & (distance < near[left])
        label[left[repeat]] = -2 - cell[repeat]
        single = ~repeat
    label[left[single]] = len(centres) + np.arange(int(single.sum()))
    return np.r_[centres, xy[left[single]]], label, np.r_[tight, np.zeros((int(single.sum()), len(SPREADS)))]


def _collect(
    clicks: Clicks, xy: Floats, valid: Bools, parts: list[tuple[Floats, Ints, Floats]], width: float
) -> _Found:
    item, role = np.full(len(clicks), -1), np.zeros(len(clicks), np.int64)
    image, centres, geometry, n = [], [], [], 0
    for number, (place, label, tight) in enumerate(parts):
        rows = np.arange(*clicks.rows_of(number).indices(len(clicks)))
        use = rows[valid[rows]]
        role[use[label < 0]] = REPEATED
        item[use] = n + np.where(label < 0, -2 - label, label)
        # Void clicks on a cell are shown with it, and say how able their worker is; others stand alone.
        void = rows[~valid[rows]]
        role[void] = VOID
        distance, cell = cKDTree(place).query(xy[void]) if len(place) else (np.full(len(void), np.inf), void)
        on = distance <= 2 * width
        item[void[on]] = n + cell[on]
        alone = void[~on]
        item[alone] = n + len(place) + np.arange(len(alone))
        total = len(place) + len(alone)
        image.append(np.full(total, number))
        centres.append(np.r_[place, xy[alone]])
        geometry.append(np.r_[tight, np.zeros((len(alone), len(SPREADS)))])
        n += total
    return _Found(
        np.concatenate([*image, np.zeros(0, np.int64)]).astype(np.int64),
        np.concatenate([*centres, np.zeros((0, 2))]),
        np.concatenate([*geometry, np.zeros((0, len(SPREADS)))]),
        item.astype(np.int64),
        role,
    )


def _votes(clicks: Clicks, found: _Found, crowd: _Crowd) -> Votes:
    use = found.role == 0
    seen = crowd.counts & ~crowd.void
    return Votes(
        found.image,
        found.item[use],
        clicks.worker[use],
        clicks.seen_image[seen],
        clicks.seen_worker[seen],
        len(clicks.image_ids),
        len(clicks.worker_ids),
    )


def _review(clicks: Clicks, found: _Found, fit: LatentFit, nats: float) -> tuple[Bools, Bools]:
    """Which (image, worker) pairs count as finished, and which are void, by likelihood (see the module)."""
    counts, void = clicks.seen_complete.copy(), np.zeros(len(clicks.seen_image), bool)
    start = np.searchsorted(found.image, np.arange(len(clicks.image_ids) + 1))
    for image in range(len(clicks.image_ids)):
        seen, rows = clicks.seen_of(image), clicks.rows_of(image)
        items = slice(start[image], start[image + 1])
        n_items, n_pairs = start[image + 1] - start[image], seen.stop - seen.start
        if n_pairs < 3 or n_items < 3:
            continue
        who = clicks.seen_worker[seen]
        d = np.zeros((n_pairs, n_items), bool)
        vote = found.role[rows] != REPEATED
        d[np.searchsorted(who, clicks.worker[rows][vote]), found.item[rows][vote] - start[image]] = True
        true = fit.posterior[items]
        other = expit(fit.other[who][:, None] + fit.other_level[items])
        fits = []
        for step in (0.0, *SLACKER_STEPS):
            chance = true * expit(fit.cell[who][:, None] + fit.cell_level[items] + step) + (1 - true) * other
            fits.append(np.where(d, np.log(chance + 1e-12), np.log1p(-chance + 1e-12)).sum(axis=1))
        clicked = d.sum(axis=1)
        rate = (clicked + 0.5) / (n_items + 1)
        random = clicked * np.log(rate) + (n_items - clicked) * np.log1p(-rate)
        slack = np.max(fits[1:], axis=0)
        void[seen] = (random > np.maximum(fits[0], slack) + nats) & (clicked >= 3)
        counts[seen] &= slack <= fits[0] + nats
    return counts, void


def _learn(clicks: Clicks, pair: Ints, crowd: _Crowd, found: _Found, fit: LatentFit) -> _Crowd:
    """Bias, width, sensitivity and strays of the workers, for the next clustering."""
    vote = np.flatnonzero(found.role == 0)
    count = np.bincount(found.item[vote], minlength=len(found.image))
    sure = fit.posterior[found.item[vote]]
    use = (count[found.item[vote]] >= 3) & (sure > 0.5)
    rows = vote[use]
    of = count[found.item[rows]]
    # A click pulls its own cell's centre along: without it the residual is n / (n - 1) as large.
    residual = clicks.xy[rows] - crowd.bias[clicks.worker[rows]] - found.xy[found.item[rows]]
    residual *= np.sqrt(of / (of - 1))[:, None]
    n = len(clicks.worker_ids)
    bias, width = worker_scatter(residual, clicks.worker[rows], sure[use], n, crowd.scatter, crowd.width)
    stray = np.where(found.role == 0, 1 - fit.posterior[found.item], (found.role == VOID).astype(float))
    made = np.bincount(pair, minlength=len(crowd.stray))
    area = np.maximum(clicks.height * clicks.width, 1)[clicks.seen_image]
    return replace(
        crowd,
        logit_p=fit.cell,
        bias=crowd.bias + bias,
        width=width,
        stray=(np.bincount(pair, stray, len(crowd.stray)) + 0.5 + 0.02 * made) / area,
        tau=fit.tau,
    )


def _worker_table(
    clicks: Clicks, found: _Found, fit: LatentFit, settings: GtSettings, qc: list[int]
) -> WorkerTable:
    """Sensitivity and specificity over the candidates each worker saw, drawn to the crowd's mean where few.

    Specificity is judged by candidates that count as false, not by the rest of doubt about cells, which agreeing
    workers all clicked. An image that one worker saw alone judges nobody: its candidates are his clicks. Where
    nothing judges, the mean is the starting ability.
    """
    n = len(clicks.worker_ids)
    use_images = np.ones(len(clicks.image_ids), bool)
    if qc and settings.ability == "qc":
        use_images[:] = False
        use_images[qc] = True
    rows = (found.role != REPEATED) & use_images[clicks.image]
    pairs = np.unique(np.stack([found.item[rows], clicks.worker[rows]], axis=1), axis=0)
    item, worker = pairs[:, 0], pairs[:, 1]
    seen = clicks.seen_complete & use_images[clicks.seen_image]
    compared = (np.bincount(clicks.seen_image, minlength=len(clicks.image_ids)) > 1)[found.image]
    false = np.where(fit.posterior < ACCEPT, 1 - fit.posterior, 0.0)
    result = []
    for truth, start in ((compared * fit.posterior, settings.start), (compared * false, 1 - settings.start)):
        per_image = np.bincount(found.image, truth, len(clicks.image_ids))
        faced = np.bincount(clicks.seen_worker[seen], per_image[clicks.seen_image[seen]], n)
        hit = np.minimum(np.bincount(worker, truth[item], n), faced)
        mean = (hit.sum() + PRIOR_FACED * start) / (faced.sum() + PRIOR_FACED)
        strength = max(settings.prior_clicks, 1e-9)  # without a prior, 0/0 is the mean
        result.append((hit + strength * mean) / (faced + strength))
    p, q = result[0], 1 - result[1]
    # One imagined right and wrong answer in a thousand: weights of the faultless stay finite.
    weight, none = click_weights(np.clip(p, 1e-3, 1 - 1e-3), np.clip(q, 1e-3, 1 - 1e-3))
    # A click of a worker who clicks cells no more often than other places says nothing; it never speaks against.
    return WorkerTable(p, q, np.maximum(weight, 0.0), np.minimum(none, 0.0), qc_completed(clicks, qc))


def _images(
    clicks: Clicks, pair: Ints, found: _Found, fit: LatentFit, workers: WorkerTable, crowd: _Crowd
) -> list[ImageConsensus]:
    """Heat maps are drawn at the cells, not at their clicks: each vote at its candidate's centre x posterior.

    Where nobody who saw the image has any weight, all count alike, which is the limit of equal small weights.
    """
    start = np.searchsorted(found.image, np.arange(len(clicks.image_ids) + 1))
    vote = found.role == 0
    n_workers = np.bincount(
        np.unique(np.stack([found.item, clicks.worker], axis=1), axis=0)[:, 0], minlength=len(found.image)
    )
    n_clicks = np.bincount(found.item, minlength=len(found.image))
    support = np.bincount(found.item[vote], workers.weight_click[clicks.worker[vote]], len(found.image))
    n_votes = np.bincount(found.item[vote], minlength=len(found.image))
    images = []
    for image in range(len(clicks.image_ids)):
        items, seen = slice(start[image], start[image + 1]), clicks.seen_of(image)
        present = clicks.seen_worker[seen][~crowd.void[seen]]
        total = float(workers.weight_click[present].sum())
        own, total = (support[items], total) if total > 0 else (n_votes[items], float(len(present)))
        images.append(
            ImageConsensus(
                found.xy[items],
                fit.posterior[items],
                n_workers[items],
                n_clicks[items],
                found.xy[items],
                own * fit.posterior[items],
                total,
            )
        )
    return images
