"""Where the voxels of a coarse level lie, told by the image itself.

Many writers give a coarse level a scale and no translation. Then its voxel 0 would lie on voxel 0 of level 0, which is
right for a level of samples (every second voxel) and wrong for one of means, whose voxel 0 lies half a coarse voxel
further in: up to 15 um on a 50 um grid. A block of both levels tells which it is.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from brainmap.errors import DataError

if TYPE_CHECKING:
    from brainmap.image.volume import Volume

__all__ = ["placed_by_evidence"]

log = logging.getLogger(__name__)

# Coarse voxels along each axis that are compared, at the most, and of how many places.
_BLOCK, _PLACES = 12, 3
# And voxels of level 0 along each axis.
_FINE = 96
# One must fit so much better than the other.
_CLEARLY = 0.5
# What takes every voxel below a coarse one alike, so that it stands for the middle of them.
_OF_ALL = (np.mean, np.max, np.min)


def placed_by_evidence(volume: Volume) -> Volume:
    """The volume with its coarse levels where the image says they are.

    Only levels that are not shifted against level 0 are looked at; one that is declared elsewhere is believed. A level
    of samples stays; one of means is moved by half of its voxels less half of one of level 0, and that is logged. What
    cannot be told (even grey, damaged data, factors that are not whole) stays as declared.
    """
    levels = list(volume.levels)
    moved = []
    for number, level in enumerate(levels[1:], start=1):
        factors = [round(v / v0) for v, v0 in zip(level.voxel_um, volume.voxel_um, strict=True)]
        whole = all(
            abs(v / v0 - f) < 1e-3 * f
            for v, v0, f in zip(level.voxel_um, volume.voxel_um, factors, strict=True)
        )
        shift = [
            abs(o - o0) / v0
            for o, o0, v0 in zip(level.origin_um, volume.origin_um, volume.voxel_um, strict=True)
        ]
        if not whole or max(factors) == 1 or max(shift) > 0.01 or not _shows_means(volume, number, factors):
            continue
        origin = [
            o + (f - 1) / 2 * v0 for o, f, v0 in zip(level.origin_um, factors, volume.voxel_um, strict=True)
        ]
        levels[number] = replace(level, origin_um=(origin[0], origin[1], origin[2]))
        moved.append(number)
    if not moved:
        return volume
    log.warning(
        "%s: its coarse levels (%s) are means of voxels but say nothing of their place; they are moved by half a "
        "coarse voxel, as the image shows",
        volume.name, ", ".join(map(str, moved)),
    )  # fmt: skip
    return replace(volume, levels=tuple(levels))


def _shows_means(volume: Volume, number: int, factors: list[int]) -> bool:
    """Whether a level fits means (or maxima, or minima) of level 0 clearly better than samples of it."""
    of_all, as_sample = dict.fromkeys(_OF_ALL, 0.0), 0.0
    shape = volume.levels[number].shape
    size = [max(1, min(_BLOCK, _FINE // f, n - 1)) for n, f in zip(shape, factors, strict=True)]
    for part in range(1, _PLACES + 1):
        start = [
            max(0, min((n * part) // (_PLACES + 1), n - s - 1)) for n, s in zip(shape, size, strict=True)
        ]
        box = [slice(a, a + s) for a, s in zip(start, size, strict=True)]
        fine_box = [
            slice(a * f, min((a + s) * f, n))
            for a, s, f, n in zip(start, size, factors, volume.shape, strict=True)
        ]
        try:
            coarse = volume.read(box[0], box[1], box[2], level=number).astype(np.float64)
            fine = volume.read(fine_box[0], fine_box[1], fine_box[2]).astype(np.float64)
        except DataError:
            continue
        if fine.shape != tuple(s * f for s, f in zip(size, factors, strict=True)):
            continue
        nz, ny, nx = (n // f for n, f in zip(fine.shape, factors, strict=True))
        parts = fine.reshape(nz, factors[0], ny, factors[1], nx, factors[2])
        for reduce in of_all:
            of_all[reduce] += _difference(coarse, reduce(parts, axis=(1, 3, 5)))
        as_sample += _difference(coarse, fine[:: factors[0], :: factors[1], :: factors[2]])
    return min(of_all.values()) < _CLEARLY * as_sample


def _difference(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    difference = np.abs(a - b)
    return float(difference[np.isfinite(difference)].sum())
