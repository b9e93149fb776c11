"""How far clicks on one cell scatter: one width and tail for the crowd, bias and width for each worker.

Two workers' clicks that are each other's nearest lie on one cell, or met by chance. Their distances are a
mixture of a bivariate Student t (one cell; heavy tails are real) and of what two independent point sets of
that density would show; the fit gives the scatter without knowing any cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from brainmap.gt.clicks import Clicks

__all__ = ["Scatter", "fit_scatter", "log_t", "robust_weight", "worker_scatter"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

DEFAULT_WIDTH = 2.0  # px, the study's sigma: what is assumed while nothing is known
TAILS = (2.0, 3.0, 4.0, 6.0, 10.0, 30.0)  # degrees of freedom tried
PAIRS = 3000  # (image, worker, worker) combinations looked at
PRIOR_PAIRS = 10.0  # weight of the default width, in pairs of clicks
LEAST_PX = 0.35  # clicks are whole pixels: smaller distances are rounding


@dataclass(frozen=True)
class Scatter:
    """Width (px, scale of the t on each axis) and tail (degrees of freedom) of clicks about their cell."""

    width: float = DEFAULT_WIDTH
    tail: float = 4.0

    def reach(self, quantile: float) -> float:
        """Radius, in widths, that holds this share of a cell's clicks."""
        return float(np.sqrt(self.tail * np.expm1(-2 / self.tail * np.log1p(-quantile))))


def log_t(square: Floats, width: Floats | float, tail: float) -> Floats:
    """Log density (per px^2) of a bivariate t at squared distance `square`, in widths."""
    return np.asarray(-np.log(2 * np.pi * np.square(width)) - (tail + 2) / 2 * np.log1p(square / tail))


def robust_weight(square: Floats, tail: float) -> Floats:
    """EM weight of a click at squared distance `square` (widths): far clicks move a centre little."""
    return (tail + 2) / (tail + square)


def fit_scatter(clicks: Clicks) -> Scatter:
    """Width and tail of the crowd's clicks; the default where there are too few to tell."""
    distance, chance = _nearest_pairs(clicks)
    if len(distance) < 3:
        return Scatter()
    d = np.maximum(distance, LEAST_PX)
    background = 2 * d / chance * np.exp(-(d**2) / chance)
    best: tuple[float, Scatter] | None = None
    for tail in TAILS:
        square, share = max(float(np.median(d)) ** 2 / 2, LEAST_PX**2), 0.6
        for _ in range(60):
            cell = share * d / square * np.exp(-(tail + 2) / 2 * np.log1p(d**2 / (tail * square)))
            likelihood = cell + (1 - share) * background + 1e-300
            part = cell / likelihood
            share = float(np.clip(part.mean(), 0.01, 0.999))
            weighted = (part * robust_weight(d**2 / square, tail) * d**2).sum()
            square = (weighted + 2 * PRIOR_PAIRS * 2 * DEFAULT_WIDTH**2) / (2 * (part.sum() + PRIOR_PAIRS))
        fit = float(np.log(likelihood).sum())
        if best is None or fit > best[0]:
            best = (fit, Scatter(float(np.sqrt(square / 2)), tail))
    assert best is not None
    return best[1]


def _nearest_pairs(clicks: Clicks) -> tuple[Floats, Floats]:
    """Distances of mutually nearest clicks of two workers, and the mean square such distance by chance."""
    combinations = []
    for image in range(len(clicks.image_ids)):
        workers = np.unique(clicks.worker[clicks.rows_of(image)])
        if len(workers) > 60:  # of 30,000 workers on one image, 60 tell enough
            workers = workers[np.linspace(0, len(workers) - 1, 60).astype(np.int64)]
        a, b = np.triu_indices(len(workers), 1)
        combinations.append(np.stack([np.full(len(a), image), workers[a], workers[b]], axis=1))
    every = np.concatenate(combinations) if combinations else np.zeros((0, 3), np.int64)
    if len(every) > PAIRS:
        every = every[np.sort(np.random.default_rng(0).choice(len(every), PAIRS, replace=False))]
    distances, chances = [np.zeros(0)], [np.zeros(0)]
    trees: dict[tuple[int, int], cKDTree] = {}
    for image, a, b in every.tolist():
        for worker in (a, b):
            if (image, worker) not in trees:
                rows = clicks.rows_of(image)
                trees[image, worker] = cKDTree(clicks.xy[rows][clicks.worker[rows] == worker])
        one, two = trees[image, a], trees[image, b]
        distance, there = two.query(one.data)
        mutual = one.query(two.data)[1][there] == np.arange(one.n)
        area = max(float(clicks.height[image] * clicks.width[image]), 1.0)
        distances.append(distance[mutual])
        chances.append(np.full(int(mutual.sum()), area / np.pi / (one.n + two.n)))
    return np.concatenate(distances), np.concatenate(chances)


def worker_scatter(
    residual: Floats, worker: Ints, weight: Floats, n_workers: int, scatter: Scatter, width: Floats
) -> tuple[Floats, Floats]:
    """Position bias (J, 2) and width (J,) of each worker, drawn towards the crowd by how little is known.

    Parameters
    ----------
    residual : (N, 2)
        Click minus centre of its cell, without the bias of before subtracted.
    worker, weight : (N,)
        Worker of each, and how surely the click belongs to the cell.
    width : (J,)
        Widths of before.

    Returns
    -------
    bias, width
        The widths' mean over clicks stays that of `scatter`: residuals cut by each cell's reach would shrink it.
    """
    bias = np.zeros((n_workers, 2))
    if len(worker) == 0:
        return bias, width
    width = np.maximum(width, 0.05)
    count = np.bincount(worker, weight, n_workers)
    pool = scatter.width**2
    for _ in range(15):
        square = ((residual - bias[worker]) ** 2).sum(axis=1) / width[worker] ** 2
        u = weight * robust_weight(square, scatter.tail)
        held = np.bincount(worker, u, n_workers)
        between = max(float((bias[count > 0] ** 2).mean()), (0.05 * scatter.width) ** 2)
        drawn = held + width**2 / between
        bias = (
            np.stack([np.bincount(worker, u * residual[:, a], n_workers) for a in (0, 1)], 1) / drawn[:, None]
        )
        spread = np.bincount(worker, u * ((residual - bias[worker]) ** 2).sum(axis=1), n_workers)
        pool = max(float(spread.sum() / (2 * count.sum())), 1e-6)
        width = np.sqrt((spread + 10 * pool) / (2 * count + 10))
    return bias, width / np.sqrt(pool) * scatter.width
