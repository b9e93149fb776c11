"""Mean-centred task PLS: patterns of regions by which groups differ (McIntosh and Lobaugh 2004)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from brainmap.errors import DataError

__all__ = ["Pls", "task_pls"]

Floats = NDArray[np.float64]

_LEAST = 2  # animals of each group that must have a region


@dataclass(frozen=True)
class Pls:
    """Patterns, the strongest first: one fewer than groups.

    Attributes
    ----------
    salience : float64 array (regions, patterns)
        Weight of each region; NaN for regions that fewer than two animals of a group have.
    group : float64 array (groups, patterns)
        Weight of each group.
    singular : float64 array (patterns,)
    share : float64 array (patterns,)
        Of the differences between the groups that the pattern is.
    p : float64 array (patterns,)
        By permutation of the animals.
    ratio : float64 array (regions, patterns)
        Salience over its bootstrap standard error.
    score : float64 array (animals, patterns)
        How much each animal shows the pattern.
    """

    salience: Floats
    group: Floats
    singular: Floats
    share: Floats
    p: Floats
    ratio: Floats
    score: Floats


def task_pls(
    values: Floats, group: NDArray[np.intp], permutations: int = 1000, bootstraps: int = 1000, seed: int = 0
) -> Pls:
    """Decompose what differs between group means.

    Parameters
    ----------
    values : float64 array (animals, regions)
        NaN where an animal lacks a region: it is left out of that region's means, and of its own score.
    group : int array (animals,)
        0, 1, ...
    permutations, bootstraps : int
    seed : int

    Raises
    ------
    DataError
        If fewer than two groups, or no region, have what is needed.
    """
    groups = int(group.max()) + 1
    if groups < 2:
        raise DataError("a pattern that groups differ in needs two groups")
    there = np.isfinite(values)
    enough = np.all([there[group == g].sum(axis=0) >= _LEAST for g in range(groups)], axis=0)
    centred = values[:, enough] - np.nanmean(values[:, enough], axis=0) if enough.any() else values[:, enough]
    sd = np.sqrt(np.nanmean(centred**2, axis=0)) if enough.any() else np.zeros(0)
    used = np.flatnonzero(enough)[sd > 0]
    if not len(used):
        raise DataError(
            "no region varies and is in two animals of every group: there is no pattern to look for"
        )
    x = centred[:, sd > 0] / sd[sd > 0]
    rank = groups - 1
    u, s, v = _decompose(x, group, groups, rank)
    rng = np.random.default_rng(seed)
    larger = np.zeros(rank)
    for _ in range(permutations):
        larger += _decompose(x, rng.permutation(group), groups, rank)[1] >= s * (1 - 1e-12)
    boot = np.zeros((bootstraps, len(used), rank))
    members = [np.flatnonzero(group == g) for g in range(groups)]
    for k in range(bootstraps):
        rows = np.concatenate([rng.choice(rows, len(rows)) for rows in members])
        _, s_k, v_k = _decompose(x[rows], group[rows], groups, rank)
        # Patterns of a bootstrap come in any order and sign: turned to lie on those of the data.
        left, _, right = np.linalg.svd(v_k.T @ v)
        boot[k] = (v_k * s_k) @ left @ right
    error = boot.std(axis=0, ddof=1)
    score = np.nan_to_num(x) @ v * (x.shape[1] / np.maximum(np.isfinite(x).sum(axis=1), 1))[:, None]
    total = float((s**2).sum())
    full = np.full((values.shape[1], rank), np.nan)
    salience, ratio = full.copy(), full
    salience[used] = v
    ratio[used] = np.divide(v * s, error, out=np.full_like(error, np.nan), where=error > 0)
    share = s**2 / total if total else np.full(rank, np.nan)
    return Pls(salience, u, s, share, (1 + larger) / (1 + permutations), ratio, score)


def _decompose(x: Floats, group: NDArray[np.intp], groups: int, rank: int) -> tuple[Floats, Floats, Floats]:
    """SVD of the group means less their mean: weights of groups, singular values, weights of regions."""
    there = np.isfinite(x)
    filled = np.where(there, x, 0.0)
    of = np.eye(groups)[group]
    n = of.T @ there
    means = np.divide(of.T @ filled, n, out=np.zeros((groups, x.shape[1])), where=n > 0)
    u, s, vt = np.linalg.svd(means - means.mean(axis=0), full_matrices=False)
    # Signs are free: the last group is to have a positive weight.
    sign = np.where(u[-1] < 0, -1.0, 1.0)
    u, v = u * sign, vt.T * sign
    short = rank - min(rank, len(s))
    if short:
        u, s, v = (np.pad(part, [(0, 0)] * (part.ndim - 1) + [(0, short)]) for part in (u, s, v))
    return u[:, :rank], s[:rank], v[:, :rank]
