"""Which tiles to take from many: even, random, active, uncertain; and which of them check the workers.

`active` takes what is typical: k-means in the feature space of the detector's network, and the tile nearest to each
centre. `uncertain` takes what the present detector, or the last crowd, is unsure of, and of that again the typical,
so that one odd slice does not eat the budget.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["choose", "choose_qc", "representatives", "standardised", "statistics"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# `uncertain` looks for variety among so many of the most doubtful tiles for each one that it takes.
_DOUBTFUL = 3
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.999)
# Features that vary together are one: so many principal components are kept.
_COMPONENTS = 16


def statistics(image: NDArray[np.float32]) -> Floats:
    """What a tile looks like without a network: grey levels, contrast, fine structure; float64 (9,)."""
    fine = image - ndimage.gaussian_filter(image, 2.0)
    return np.array([image.mean(), image.std(), fine.std(), *np.quantile(image, _QUANTILES)], np.float64)


def standardised(features: NDArray[Any]) -> Floats:
    """Features (n, d) as their principal components in units of the first one's spread, shape (n, k)."""
    values = np.asarray(features, np.float64)
    values = values - values.mean(axis=0)
    spread = values.std(axis=0)
    values = values / np.where(spread > 1e-9, spread, 1.0)
    left, size, _ = np.linalg.svd(values, full_matrices=False)
    k = min(_COMPONENTS, int((size > 1e-9 * max(1.0, size.max(initial=0.0))).sum()))
    if k == 0:
        return np.zeros((len(values), 1))
    return left[:, :k] * (size[:k] / size[0]) * np.sqrt(len(values))


def choose(
    strategy: str, n: int, order: Floats, features: Floats | None, doubt: Floats | None, seed: int
) -> Ints:
    """Take n of m tiles of one region of one animal.

    Parameters
    ----------
    strategy : str
        "even", "random", "active" or "uncertain".
    n : int
        At most m.
    order : ndarray of float64, shape (m, 3)
        z, y, x of each tile, for "even".
    features : ndarray of float64, shape (m, k)
        As `standardised` gives them, for "active" and "uncertain".
    doubt : ndarray of float64, shape (m,)
        How unsure the detector or the crowd is, for "uncertain".
    seed : int

    Returns
    -------
    ndarray of int64, shape (n,)
        Rising.
    """
    m = len(order)
    if n >= m:
        return np.arange(m, dtype=np.int64)
    if n == 0:
        return np.zeros(0, np.int64)
    if strategy == "random":
        return np.sort(np.random.default_rng(seed).permutation(m)[:n]).astype(np.int64)
    if strategy == "even":
        sorted_ = np.lexsort(order.T[::-1])
        # Where the first one falls is chance: many animals must not all begin with the same slice.
        first = np.random.default_rng(seed).random()
        return np.sort(sorted_[((np.arange(n) + first) * m / n).astype(np.int64)]).astype(np.int64)
    if features is None:
        raise ValueError(f"the strategy {strategy} needs features")
    if strategy == "active":
        return representatives(features, n, np.ones(m), seed)
    if doubt is None:
        raise ValueError("the strategy uncertain needs to know what is doubtful")
    pool = np.argsort(-doubt, kind="stable")[: min(m, _DOUBTFUL * n)]
    chosen = representatives(features[pool], n, 1e-6 + doubt[pool], seed, most=doubt[pool])
    return np.sort(pool[chosen]).astype(np.int64)


def representatives(features: Floats, n: int, weight: Floats, seed: int, most: Floats | None = None) -> Ints:
    """One tile for each of n clusters: the one nearest to the centre, or the one with `most`.

    Parameters
    ----------
    features : ndarray of float64, shape (m, k)
    n : int
        At most m.
    weight : ndarray of float64, shape (m,)
        Positive; how much a tile counts in the clustering.
    seed : int
    most : ndarray of float64, shape (m,), optional

    Returns
    -------
    ndarray of int64, shape (n,)
        Rising; no tile twice.
    """
    from sklearn.cluster import KMeans

    distinct = len(np.unique(features, axis=0))
    fit = KMeans(min(n, distinct), n_init=4, random_state=seed).fit(features, sample_weight=weight)
    centre, label = fit.cluster_centers_, fit.labels_
    distance = ((features - centre[label]) ** 2).sum(axis=1)
    chosen: list[int] = []
    for cluster in range(len(centre)):
        own = np.flatnonzero(label == cluster)
        if len(own):
            rank = distance[own] if most is None else -most[own]
            chosen.append(int(own[np.argmin(rank)]))
    # Clusters that fell empty, and tiles that look the same: the rest by distance from what is chosen.
    while len(chosen) < n:
        apart = ((features[:, None] - features[chosen][None]) ** 2).sum(axis=2).min(axis=1)
        apart[chosen] = -1.0
        chosen.append(int(np.argmax(apart)))
    return np.sort(np.array(chosen, np.int64))


def choose_qc(n: int, region: Ints, animal: Ints, cells: Ints, features: Floats, seed: int) -> Ints:
    """The tiles that every worker gets: all regions in turn, tiles that look different, animals in turn.

    A tile without cells says little about a worker: those with fewer than the median are taken only where a
    region has no others.

    Parameters
    ----------
    n : int
        At most m.
    region, animal : ndarray of int64, shape (m,)
    cells : ndarray of int64, shape (m,)
        Cells that the detector found in each tile.
    features : ndarray of float64, shape (m, k)
        As `standardised` gives them.
    seed : int
        Decides between equals.

    Returns
    -------
    ndarray of int64, shape (n,)
    """
    m = len(region)
    chosen: list[int] = []
    tie = np.random.default_rng(seed).random(m)
    rich = np.zeros(m, bool)
    for r in np.unique(region):
        rich |= (region == r) & (cells >= np.median(cells[region == r]))
    centre = np.median(features, axis=0)
    for _ in range(n):
        left = np.ones(m, bool)
        left[chosen] = False
        of_region = np.bincount(region[chosen], minlength=region.max() + 1)[region]
        of_animal = np.bincount(animal[chosen], minlength=animal.max() + 1)[animal]
        if chosen:
            apart = np.sqrt(((features[:, None] - features[chosen][None]) ** 2).sum(axis=2)).min(axis=1)
        else:
            # The first one is ordinary; the others spread out from it.
            apart = -np.sqrt(((features - centre) ** 2).sum(axis=1))
        # The last key counts most: within the regions that have least, rich tiles of new animals that look different.
        order = np.lexsort((tie, -apart, of_animal, ~rich, of_region, ~left))
        chosen.append(int(order[0]))
    return np.array(chosen, np.int64)
