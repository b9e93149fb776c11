"""Modules of a network of regions, and whether it has more of them than networks without any."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from brainmap.cohort.networks.correlation import correlate

__all__ = ["Modularity", "densest", "find_modules", "modularity", "modularity_test", "rewire"]

Floats = NDArray[np.float64]
Labels = NDArray[np.intp]

_SWAPS = 10  # per edge: Maslov and Sneppen 2002
_SWEEPS = 50


@dataclass(frozen=True)
class Modularity:
    """Modules of one group's network.

    Attributes
    ----------
    label : int array (regions,)
        Module, the largest 0; -1 without an edge.
    q : float
        Newman's modularity of them.
    rewired, shuffled : float64 arrays (repeats,)
        Of networks with the same degrees, wired at random; of animals shuffled within each region, which have the
        same values and no correlation.
    """

    label: Labels
    q: float
    rewired: Floats
    shuffled: Floats

    @staticmethod
    def _p(q: float, null: Floats) -> float:
        return float((1 + (null >= q).sum()) / (1 + len(null)))

    @property
    def p_rewired(self) -> float:
        """That a network of these degrees is as modular."""
        return self._p(self.q, self.rewired)

    @property
    def p_shuffled(self) -> float:
        """That animals without any correlation are as modular: the one to believe."""
        return self._p(self.q, self.shuffled)


def densest(r: Floats, density: float) -> NDArray[np.bool_]:
    """The network of the largest positive correlations: this share of all pairs, so that groups have equally many."""
    i, j = np.triu_indices(len(r), 1)
    values = np.nan_to_num(r[i, j], nan=-2.0)
    wanted = round(density * len(values))
    chosen = np.argsort(-values, kind="stable")[:wanted]
    chosen = chosen[values[chosen] > 0]
    linked = np.zeros(r.shape, dtype=bool)
    linked[i[chosen], j[chosen]] = linked[j[chosen], i[chosen]] = True
    return linked


def modularity(linked: NDArray[np.bool_], label: Labels) -> float:
    """Newman's Q: the share of edges inside modules, less what their degrees alone would give."""
    degree = linked.sum(axis=0).astype(float)
    total = degree.sum()
    if not total:
        return 0.0
    same = label[:, None] == label[None, :]
    return float((linked[same].sum() - (np.outer(degree, degree)[same]).sum() / total) / total)


def find_modules(linked: NDArray[np.bool_], rng: np.random.Generator) -> Labels:
    """Modules by Louvain's method (Blondel et al. 2008); regions without an edge are -1."""
    degree = linked.sum(axis=0).astype(float)
    gain = linked - np.outer(degree, degree) / max(degree.sum(), 1.0)
    label = np.arange(len(linked))
    while True:
        moved = _move(gain, rng)
        kinds, moved = np.unique(moved, return_inverse=True)
        label = moved[label]
        if len(kinds) == len(gain):
            break
        join = np.eye(len(kinds))[moved]
        gain = join.T @ gain @ join
    label = np.where(degree > 0, label, -1)
    kinds, sizes = np.unique(label[label >= 0], return_counts=True)
    place = {int(kind): rank for rank, kind in enumerate(kinds[np.argsort(-sizes, kind="stable")])}
    return np.array([place.get(int(one), -1) for one in label], dtype=np.intp)


def _move(gain: Floats, rng: np.random.Generator) -> Labels:
    """Nodes go, one after another, to the module that gains most, until none moves."""
    n = len(gain)
    label = np.arange(n)
    to_module = gain - np.diag(np.diag(gain))
    for _ in range(_SWEEPS):
        moves = 0
        for i in rng.permutation(n):
            best = int(np.argmax(to_module[i]))
            if to_module[i, best] > to_module[i, label[i]] + 1e-12:
                others = gain[:, i].copy()
                others[i] = 0.0
                to_module[:, label[i]] -= others
                to_module[:, best] += others
                label[i] = best
                moves += 1
        if not moves:
            break
    return label


def rewire(linked: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """The same degrees, wired at random: ends of pairs of edges are exchanged where no edge would be double."""
    edges = np.argwhere(np.triu(linked, 1)).tolist()
    new = linked.copy()
    if len(edges) < 2:
        return new
    picks = rng.integers(0, len(edges), (_SWAPS * len(edges), 2)).tolist()
    turns = (rng.random(len(picks)) < 0.5).tolist()
    for (first, second), turn in zip(picks, turns, strict=True):
        (a, b), (c, d) = edges[first], edges[second]
        if turn:
            c, d = d, c
        if len({a, b, c, d}) < 4 or new[a, d] or new[c, b]:
            continue
        new[a, b] = new[b, a] = new[c, d] = new[d, c] = False
        new[a, d] = new[d, a] = new[c, b] = new[b, c] = True
        edges[first], edges[second] = [a, d], [c, b]
    return new


def modularity_test(values: Floats, density: float, repeats: int, seed: int = 0) -> Modularity:
    """Modules of the densest correlations of one group's animals, beside networks without modules.

    A network of correlations is modular by its making, since what correlates with one thing correlates with each other:
    more modular than rewired networks it always is. Animals shuffled within every region show how modular values
    without a correlation are.

    Parameters
    ----------
    values : float64 array (animals, regions)
    density : float
        Share of all pairs that are edges.
    repeats : int
        Networks of each kind.
    seed : int
    """
    rng = np.random.default_rng(seed)
    linked = densest(correlate(values)[0], density)
    label = find_modules(linked, rng)
    rewired, shuffled = np.zeros(repeats), np.zeros(repeats)
    for k in range(repeats):
        other = rewire(linked, rng)
        rewired[k] = modularity(other, find_modules(other, rng))
        other = densest(correlate(rng.permuted(values, axis=0))[0], density)
        shuffled[k] = modularity(other, find_modules(other, rng))
    return Modularity(label, modularity(linked, label), rewired, shuffled)
