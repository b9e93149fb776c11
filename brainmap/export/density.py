"""Density of cells in atlas space: one image per brain, voxel by voxel comparable between brains.

The grid and the kernel are the same for every brain, whatever the atlas's resolution: voxels of
`VOXEL_UM`, smoothed with a Gaussian of standard deviation `SIGMA_UM`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from brainmap.coords import atlas_um_to_index

__all__ = ["SIGMA_UM", "VOXEL_UM", "density_volume"]

VOXEL_UM = 50.0
SIGMA_UM = 100.0

_UM3_PER_MM3 = 1e9


def density_volume(batches: Iterable[NDArray[np.float64]], extent_um: ArrayLike) -> NDArray[np.float32]:
    """Cells per mm3 of atlas.

    Parameters
    ----------
    batches : iterable of float arrays (N, 3)
        Atlas um (asr, from the outer corner), z, y, x; points that are NaN or beyond the box are left out.
    extent_um : array (3,)
        Size of the atlas's box.

    Returns
    -------
    float32 array (z, y, x)
        asr, voxels of `VOXEL_UM`. Its sum times the volume of a voxel is the number of cells, less the
        tails of the kernel beyond the box.
    """
    z, y, x = (max(1, math.ceil(extent / VOXEL_UM - 1e-6)) for extent in np.asarray(extent_um))
    shape = (z, y, x)
    counts = np.zeros(z * y * x, dtype=np.float64)
    for points in batches:
        index, inside = atlas_um_to_index(points, (VOXEL_UM,) * 3, shape)
        np.add.at(counts, np.ravel_multi_index(tuple(index[inside].T), shape), 1)
    density = (counts.reshape(shape) * (_UM3_PER_MM3 / VOXEL_UM**3)).astype(np.float32)
    return ndimage.gaussian_filter(density, SIGMA_UM / VOXEL_UM, mode="constant")
