"""Where tiles may be cut: a grid over sections, each square given to the region that fills most of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from brainmap.crowd.sampling.source import SampledBrain
from brainmap.errors import DataError

__all__ = ["Places", "find_places"]

Ints = NDArray[np.int64]

# Sections nearer than so many cell diameters show the same cells.
_SECTION_CELLS = 2.0


@dataclass(frozen=True)
class Places:
    """Squares of sections; columns of equal length.

    Parameters
    ----------
    brain, region : ndarray of int64
        Index of the animal and of the region, in the lists that were asked for.
    z, y0, x0 : ndarray of int64
        Section and first row and column, level-0 voxels.
    share : ndarray of float64
        Share of the square that lies in its region.
    """

    brain: Ints
    region: Ints
    z: Ints
    y0: Ints
    x0: Ints
    share: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.z)

    @property
    def zyx(self) -> NDArray[np.float64]:
        """z, y, x of each square's first pixel, shape (n, 3)."""
        return np.stack([self.z, self.y0, self.x0], axis=1).astype(np.float64)

    def take(self, which: NDArray[np.bool_] | NDArray[np.int64]) -> Places:
        """Some of the places, by mask or index."""
        return Places(
            self.brain[which], self.region[which], self.z[which], self.y0[which], self.x0[which], self.share[which]
        )  # fmt: skip

    @classmethod
    def concat(cls, parts: Sequence[Places]) -> Places:
        """All places one after another."""
        names = ("brain", "region", "z", "y0", "x0", "share")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def find_places(
    brains: Sequence[SampledBrain],
    regions: Sequence[Mapping[str, Ints]],
    size: int,
    sections: int,
    least_share: float,
    given: bool,
) -> tuple[Places, tuple[str, ...]]:
    """All squares that lie in one of the regions, over all brains.

    Parameters
    ----------
    brains : sequence of SampledBrain
    regions : sequence of dict
        For each brain the ids of each region, by acronym, the same acronyms in the same order.
    size : int
        Height and width, px.
    sections : int
        Sections of each brain, evenly spaced over the regions.
    least_share : float
        Share of a square that must lie in its region.
    given : bool
        Whether a person named the regions: then each must have a square.

    Returns
    -------
    Places
    tuple of str
        Acronyms that have no square anywhere.

    Raises
    ------
    DataError
        A tile larger than a section, or than the regions.
    """
    names = list(regions[0])
    parts, best = [], np.zeros(len(names))
    for index, (brain, ids) in enumerate(zip(brains, regions, strict=True)):
        if size > min(brain.volume.shape[1:]):
            height, width = brain.volume.shape[1:]
            raise DataError(
                f"a tile of {size} px is larger than a section of {brain.name} ({height} x {width} px); "
                "give a smaller --tile"
            )
        found, largest = _in_brain(brain, index, list(ids.values()), size, sections, least_share)
        parts.append(found)
        best = np.maximum(best, largest)
    places = Places.concat(parts)
    without = [i for i in range(len(names)) if not (places.region == i).any()]
    if without and (given or not len(places)):
        i = without[0]
        um = size * brains[0].volume.voxel_um[1]
        if best[i] == 0:
            raise DataError(
                f"the region {names[i]} is in no section of the {len(brains)} brains that was looked at"
            )
        if best[i] >= least_share:
            raise DataError(
                f"no tile of {size} px of the region {names[i]} is tissue that a run analysed; leave the region out or "
                "detect without the mask"
            )
        raise DataError(
            f"a tile of {size} px ({um:.0f} um) is larger than the region {names[i]}: it fills {best[i]:.0%} of a tile "
            f"at most, {least_share:.0%} are asked for; give a smaller --tile, or leave the region out"
        )
    return places, tuple(names[i] for i in without)


def _in_brain(
    brain: SampledBrain, index: int, regions: list[Ints], size: int, sections: int, least_share: float
) -> tuple[Places, NDArray[np.float64]]:
    """Squares of one brain, and the largest share that each region has of any square."""
    labels = brain.labels()
    region_of = np.full(labels.shape, -1, np.int16)
    for number, ids in enumerate(regions):
        region_of[np.isin(labels, ids.astype(np.uint32))] = number
    rows, columns = (_starts(brain.box[axis], size) for axis in (1, 2))
    weights = [_weights(brain.grid_index(axis), starts, size, labels.shape[axis])
               for axis, starts in ((1, rows), (2, columns))]  # fmt: skip
    largest, parts = np.zeros(len(regions)), []
    plane_of = brain.grid_index(0)
    for z in _sections(brain, np.asarray((region_of >= 0).any(axis=(1, 2))), sections):
        plane = region_of[plane_of[z]]
        share = np.stack([weights[0] @ (plane == number) @ weights[1].T for number in range(len(regions))])
        if share.size == 0:
            continue
        largest = np.maximum(largest, share.max(axis=(1, 2)))
        owner, most = share.argmax(axis=0), share.max(axis=0)
        i, j = np.nonzero(most >= least_share - 1e-9)
        # A mask of the run is part of what its intensity model calls tissue.
        there = [
            _tissue(brain, int(z), int(rows[a]), int(columns[b]), size) for a, b in zip(i, j, strict=True)
        ]
        i, j = i[np.array(there, bool)], j[np.array(there, bool)]
        n = len(i)
        parts.append(
            Places(np.full(n, index), owner[i, j], np.full(n, z), rows[i], columns[j], most[i, j])
        )  # fmt: skip
    none = np.zeros(0, np.int64)
    return Places.concat([Places(none, none, none, none, none, np.zeros(0)), *parts]), largest


def _tissue(brain: SampledBrain, z: int, y0: int, x0: int, size: int) -> bool:
    """Whether at least half of a square is tissue that the run analysed."""
    box = (slice(z, z + 1), slice(y0, y0 + size), slice(x0, x0 + size))
    return brain.intensity.tissue_fraction(*box) >= 0.5


def _starts(box: slice, size: int) -> Ints:
    """First pixel of each square along an axis: as many as fit, in the middle of the box."""
    n = (box.stop - box.start) // size
    return box.start + (box.stop - box.start - n * size) // 2 + size * np.arange(n, dtype=np.int64)


def _weights(grid_index: Ints, starts: Ints, size: int, bins: int) -> NDArray[np.float64]:
    """Share of each square, along one axis, that each voxel of the registration grid covers: (squares, bins)."""
    place = grid_index[starts[:, None] + np.arange(size)]
    flat = np.arange(len(starts))[:, None] * bins + place
    return np.bincount(flat.ravel(), minlength=len(starts) * bins).reshape(len(starts), bins) / size


def _sections(brain: SampledBrain, present: NDArray[np.bool_], wanted: int) -> Ints:
    """Sections to cut tiles from: evenly spaced over those that hold a region, none twice and none too near."""
    holding = np.flatnonzero(present[brain.grid_index(0)])
    holding = holding[(holding >= brain.box[0].start) & (holding < brain.box[0].stop)]
    if not len(holding):
        return holding
    step = max(1, math.ceil(_SECTION_CELLS * brain.cell_diameter_um / brain.volume.voxel_um[0] - 1e-6))
    n = min(wanted, -(-len(holding) // step))
    return holding[((np.arange(n) + 0.5) * len(holding) / n).astype(np.int64)]
