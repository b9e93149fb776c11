"""Simulated crowds with known truth, for tests and benchmarks of the aggregation.

Workers differ in sensitivity, strays, jitter and bias; cells differ in difficulty, the same for all workers;
false clicks fall on empty ground or on sites that look like cells. Spammers click anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

from brainmap.gt.clicks import Clicks

__all__ = ["SimulatedCrowd", "Simulation", "simulate"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Simulation:
    """Parameters; the defaults are the crowd of methods.md 9. Lengths in px, abilities as probabilities."""

    n_images: int = 12
    size: int = 500
    n_cells: int = 60
    spacing: float = 8.0
    n_workers: int = 36
    sensitivity: float = 0.568
    sensitivity_spread: float = 0.8  # logits
    difficulty: float = 1.0  # logits
    n_sites: int = 60  # per image, places that look like cells
    specificity: float = 0.966
    strays: float = 3.0  # per worker and image, on empty ground
    jitter: float = 1.5
    jitter_spread: float = 0.3  # of its logarithm
    bias: float = 0.3
    repeats: float = 0.03  # share of clicks made twice
    missing: float = 0.3  # share of images a worker never saw
    spammers: int = 3
    shifted: int = 1
    shift: float = 3.0


@dataclass(frozen=True)
class SimulatedCrowd:
    """Clicks and their truth: `truth` is a list of (n, 2) x, y per image; `sensitivity`, `specificity` (J,).

    The two are the rates that were realised: cells and sites clicked among those in images the worker saw.
    """

    clicks: Clicks
    truth: list[Floats]
    sensitivity: Floats
    specificity: Floats
    spammer: npt.NDArray[np.bool_]
    shifted: npt.NDArray[np.bool_]


def simulate(parameters: Simulation | None = None, seed: int = 0) -> SimulatedCrowd:
    """Simulate a crowd; equal parameters and seeds give equal clicks."""
    s, rng = parameters or Simulation(), np.random.default_rng(seed)
    j = s.n_workers
    ability = logit(s.sensitivity) * np.sqrt(1 + s.difficulty**2 / 2.9) + rng.normal(
        0, s.sensitivity_spread, j
    )
    false = np.clip((1 - s.specificity) * np.exp(rng.normal(0, 0.5, j)), 0, 0.5)
    jitter = s.jitter * np.exp(rng.normal(0, s.jitter_spread, j))
    bias = rng.normal(0, s.bias, (j, 2))
    spammer, shifted = np.arange(j) < s.spammers, np.zeros(j, bool)
    shifted[s.spammers : s.spammers + s.shifted] = True
    angle = rng.uniform(0, 2 * np.pi, j)
    bias[shifted] = s.shift * np.stack([np.cos(angle), np.sin(angle)], axis=1)[shifted]
    seen = rng.random((s.n_images, j)) >= s.missing
    columns: list[tuple[int, int, Floats]] = []
    truth, hits, faced = [], np.zeros((2, j)), np.zeros((2, j))
    for image in range(s.n_images):
        places = _places(rng, s)
        cells, sites = places[: s.n_cells], places[s.n_cells :]
        truth.append(cells)
        hard = rng.normal(0, s.difficulty, len(cells))
        for w in np.flatnonzero(seen[image]):
            if spammer[w]:
                at = rng.uniform(0, s.size - 1, (s.n_cells, 2))
                columns.append((image, int(w), at))
                continue
            on = rng.random(len(cells)) < expit(ability[w] + hard)
            off = rng.random(len(sites)) < false[w]
            hits[:, w] += on.sum(), off.sum()
            faced[:, w] += len(cells), len(sites)
            at = np.r_[cells[on], sites[off]]
            at = np.r_[at, at[rng.random(len(at)) < s.repeats]]
            at = at + bias[w] + rng.normal(0, jitter[w], at.shape)
            stray = rng.uniform(0, s.size - 1, (rng.poisson(s.strays), 2))
            columns.append((image, int(w), np.r_[at, stray]))
    xy = np.round(np.concatenate([c[2] for c in columns] + [np.zeros((0, 2))]))
    inside = ((xy >= 0) & (xy < s.size)).all(axis=1)
    image_of = np.repeat([f"image_{c[0]:04d}" for c in columns], [len(c[2]) for c in columns])
    worker_of = np.repeat([f"worker_{c[1]:03d}" for c in columns], [len(c[2]) for c in columns])
    clicks = Clicks.build(
        image_of[inside].astype(object),
        worker_of[inside].astype(object),
        xy[inside, 0],
        xy[inside, 1],
        sizes={f"image_{i:04d}": (s.size, s.size) for i in range(s.n_images)},
        assignments=[
            (f"image_{i:04d}", f"worker_{w:03d}", True) for i, w in zip(*np.nonzero(seen), strict=True)
        ],
    )
    rate = hits / np.maximum(faced, 1)
    return SimulatedCrowd(clicks, truth, rate[0], 1 - rate[1], spammer, shifted)


def _places(rng: np.random.Generator, s: Simulation) -> Floats:
    """Cells, then sites, none closer than `spacing` to another."""
    chosen = np.zeros((0, 2))
    for _ in range(200):
        left = s.n_cells + s.n_sites - len(chosen)
        if left == 0:
            return chosen
        new = rng.uniform(5, s.size - 6, (left, 2))
        for point in new:
            if len(chosen) == 0 or ((chosen - point) ** 2).sum(axis=1).min() >= s.spacing**2:
                chosen = np.r_[chosen, point[None]]
    raise ValueError(f"{s.n_cells + s.n_sites} places {s.spacing} px apart do not fit into {s.size} px")
