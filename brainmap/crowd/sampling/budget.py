"""A budget of tiles, spread over animals first and over regions next (methods 11)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["deal", "fill", "spread"]

Ints = NDArray[np.int64]


def spread(budget: int | None, available: Ints) -> Ints:
    """Tiles of each region to take from each animal.

    Animals get equal shares as far as their tiles go, and within an animal the regions do; what is left over goes
    to the regions that have least so far over all animals.

    Parameters
    ----------
    budget : int or None
        Tiles to take; None or more than there are: all.
    available : ndarray of int64, shape (animals, regions)

    Returns
    -------
    ndarray of int64, shape (animals, regions)
    """
    if budget is None or budget >= available.sum():
        return available.copy()
    quota = np.zeros_like(available)
    for animal, share in enumerate(fill(budget, available.sum(axis=1))):
        quota[animal] = fill(int(share), available[animal], quota.sum(axis=0))
    return quota


def fill(amount: int, room: Ints, before: Ints | None = None) -> Ints:
    """Pour an amount into vessels until all stand equally high or are full.

    Parameters
    ----------
    amount : int
        At most `room.sum()`.
    room : ndarray of int64, shape (n,)
    before : ndarray of int64, shape (n,), optional
        Of vessels that stand equally high those with the smallest number come first; of equal ones the first.

    Returns
    -------
    ndarray of int64, shape (n,)
    """
    if amount > room.sum():
        raise ValueError(f"{amount} do not fit into {room.sum()}")
    level = np.zeros_like(room)
    order = np.argsort(np.zeros_like(room) if before is None else before, kind="stable")
    while amount > 0:
        open_ = order[level[order] < room[order]]
        # All that stand lowest rise together, as far as the amount and the lowest rim allow.
        low = level[open_].min()
        rising = open_[level[open_] == low]
        if amount < len(rising):
            level[rising[:amount]] += 1
            break
        higher = level[open_][level[open_] > low]
        step = min(amount // len(rising), int((room[rising] - low).min()))
        if len(higher):
            step = min(step, int(higher.min() - low))
        level[rising] += step
        amount -= step * len(rising)
    return level


def deal(groups: list[NDArray[np.int64]], hands: int, load: NDArray[np.float64], seed: int) -> Ints:
    """Deal things into hands of equal size with equal mixes of every grouping.

    Parameters
    ----------
    groups : list of ndarray of int64, each of shape (n,)
        Groupings, the most important first, such as region and animal.
    hands : int
    load : ndarray of float64, shape (n,)
        Work that a thing makes, of which hands get about equal sums.
    seed : int

    Returns
    -------
    ndarray of int64, shape (n,)
        Hand of each thing. Sizes differ by one at most, and so do the numbers of things of each group of the first
        grouping; the others are as even as that allows.
    """
    n = len(load)
    rng = np.random.default_rng(seed)
    # Heavy things first within a group: the light ones even the sums out.
    order = np.lexsort((rng.random(n), -load, *reversed(groups)))
    hand = np.full(n, -1)
    size, weight = np.zeros(hands), np.zeros(hands)
    counts = [np.zeros((int(g.max(initial=-1)) + 1, hands)) for g in groups]
    for thing in order:
        first, *rest = (count[group[thing]] for count, group in zip(counts, groups, strict=True))
        best = np.lexsort((weight, *reversed(rest), size, first))[0]
        hand[thing] = best
        size[best] += 1
        weight[best] += load[thing]
        for count, group in zip(counts, groups, strict=True):
            count[group[thing], best] += 1
    return hand
