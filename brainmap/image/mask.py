"""A mask image: which part of a brain is to be analysed.

Nonzero is inside. Mask and brain meet in micrometres, so the mask may have any resolution and cover a
part of the brain only; beyond it everything is outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from brainmap.errors import DataError
from brainmap.image.volume import Volume

if TYPE_CHECKING:
    from brainmap.image.intensity import Intensity

__all__ = ["Mask"]

# A mask is held in memory: of its levels the finest one with no more voxels than this is used.
_MAX_VOXELS = 500_000_000


@dataclass(frozen=True)
class Mask:
    """A mask in memory.

    Parameters
    ----------
    volume : Volume
        The image it came from.
    inside : ndarray of bool, shape (z, y, x)
    voxel_um, origin_um : ndarray of float64, shape (3,)
        Of `inside`.
    """

    volume: Volume
    inside: NDArray[np.bool_]
    voxel_um: NDArray[np.float64]
    origin_um: NDArray[np.float64]

    @classmethod
    def open(cls, path: str | Path) -> Mask:
        """Read a mask image (OME-Zarr).

        Raises
        ------
        DataError
            If it has no nonzero voxel, or no level small enough to be held in memory.
        """
        volume = Volume.open(path)
        fitting = [i for i, level in enumerate(volume.levels) if np.prod(level.shape) <= _MAX_VOXELS]
        if not fitting:
            raise DataError(
                f"the mask {path} has no level of at most {_MAX_VOXELS:,} voxels; give a coarser one"
            )
        level = volume.levels[fitting[0]]
        z, y, x = (slice(0, n) for n in level.shape)
        inside = volume.read(z, y, x, level=fitting[0]) > 0
        if not inside.any():
            raise DataError(f"the mask {path} is empty: no voxel is above 0")
        return cls(volume, inside, np.asarray(level.voxel_um), np.asarray(level.origin_um))

    def contains(self, um: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether points (N, 3) in sample um, z, y, x, are inside."""
        index = np.rint((um - self.origin_um) / self.voxel_um).astype(np.int64)
        known = np.all((index >= 0) & (index < self.inside.shape), axis=1)
        index = np.where(known[:, None], index, 0)
        return known & self.inside[tuple(index.T)]

    def touches(self, intensity: Intensity, volume: Volume) -> NDArray[np.bool_]:
        """Bins of a brain's intensity overview in or next to the mask; shape of `intensity.tissue`."""
        hit: NDArray[Any] = self.inside.astype(np.int64)
        for axis, count in enumerate(intensity.tissue.shape):
            edges = np.arange(count + 1) * intensity.bin_vox[axis] - 0.5
            um = edges * volume.voxel_um[axis] + volume.origin_um[axis]
            index = (um - self.origin_um[axis]) / self.voxel_um[axis] + 0.5
            size = self.inside.shape[axis]
            low = np.clip(np.floor(index[:-1]).astype(int) - 1, 0, size)
            high = np.clip(np.ceil(index[1:]).astype(int) + 1, 0, size)
            sums = np.cumsum(hit, axis=axis)
            sums = np.concatenate([np.zeros_like(sums.take([0], axis)), sums], axis=axis)
            hit = (sums.take(high, axis) > sums.take(low, axis)).astype(np.int64)
        return hit > 0
