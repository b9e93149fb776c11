"""How far points lie from the border of their structure: the confidence of a region near borders.

The distance map is exact: from the centre of each voxel to the nearest point of a voxel of another
structure. It is separable like the Euclidean distance transform (Saito and Toriwaki 1994), here for all
structures at once: a neighbour of the same structure passes its distance on, one of another is the border.
Oblique borders are staircases whose nearest corner counts: there it is about half a voxel short.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from brainmap.coords import as_points, atlas_um_to_index, edge_um_to_vox

__all__ = ["FARTHEST_UM", "border_at", "border_distances"]

#: Distances end here: a region this far from its border is as certain as can be.
FARTHEST_UM = 500.0

#: Points per step: bounds the temporaries to some 100 MB.
_BATCH = 1_000_000


def border_distances(
    annotation: NDArray[np.integer], resolution_um: tuple[float, float, float]
) -> NDArray[np.float16]:
    """Distance of every voxel's centre to the border of its structure.

    Memory beyond the result (half that of the annotation) is a few planes.

    Parameters
    ----------
    annotation : int array (z, y, x)
        Structure ids; 0, outside, counts as a structure.
    resolution_um : tuple of float
        Voxel size z, y, x.

    Returns
    -------
    float16 array (z, y, x)
        um, at most `FARTHEST_UM`. The faces of the box are no borders.
    """
    result = _along_z(annotation, resolution_um[0])
    for labels, plane in zip(annotation, result, strict=True):
        squared = np.square(plane.astype(np.float32))
        squared = _along_rows(squared, labels, resolution_um[1])
        squared = _along_rows(squared.T, labels.T, resolution_um[2]).T
        plane[...] = np.sqrt(squared)
    return result


def _along_z(annotation: NDArray[np.integer], step_um: float) -> NDArray[np.float16]:
    """Distance along z only."""
    result = np.full(annotation.shape, FARTHEST_UM, dtype=np.float16)
    planes = range(1, len(annotation))
    for order, towards in ((planes, -1), (reversed(range(len(annotation) - 1)), 1)):
        for z in order:
            passed = np.where(
                annotation[z] == annotation[z + towards], result[z + towards] + step_um, step_um / 2
            )
            np.minimum(result[z], passed, out=result[z], casting="same_kind")
    return result


def _along_rows(
    squared: NDArray[np.float32], labels: NDArray[np.integer], step_um: float
) -> NDArray[np.float32]:
    """Add the first axis of a plane to squared distances that hold for every row by itself."""
    source, same = np.ascontiguousarray(squared), np.ascontiguousarray(labels)
    best = source.copy()
    for shift in range(1, len(source)):
        # To the near face of the voxel `shift` rows away.
        gap = np.float32(((shift - 0.5) * step_um) ** 2)
        if gap >= FARTHEST_UM**2:
            break
        first, second = slice(None, -shift), slice(shift, None)
        inside = same[first] == same[second]
        np.minimum(best[first], source[second] * inside + gap, out=best[first])
        np.minimum(best[second], source[first] * inside + gap, out=best[second])
    return best


def border_at(
    points_atlas_um: ArrayLike,
    annotation: NDArray[np.integer],
    distances: NDArray[np.float16],
    resolution_um: tuple[float, float, float],
) -> NDArray[np.float32]:
    """Distance of points to the border of the structure that contains them.

    Linear between voxel centres, where a centre in another structure counts as negative: the result
    falls to 0 at the face between two structures, also within a voxel.

    Parameters
    ----------
    points_atlas_um : array (N, 3)
        Atlas um (from the outer corner), z, y, x.
    annotation, distances : arrays (z, y, x)
        Structure ids, and `border_distances` of them.
    resolution_um : tuple of float
        Voxel size z, y, x.

    Returns
    -------
    float32 array (N,)
        um, 0 to `FARTHEST_UM`; NaN for points that are NaN or beyond the box.
    """
    points = as_points(points_atlas_um)
    result = np.empty(len(points), dtype=np.float32)
    for start in range(0, len(points), _BATCH):
        batch = slice(start, start + _BATCH)
        result[batch] = _interpolated(points[batch], annotation, distances, resolution_um)
    return result


def _interpolated(
    points: NDArray[np.float64],
    annotation: NDArray[np.integer],
    distances: NDArray[np.float16],
    resolution_um: tuple[float, float, float],
) -> NDArray[np.float32]:
    index, inside = atlas_um_to_index(points, resolution_um, annotation.shape)
    own = annotation.ravel()[_flat(index.T, annotation.shape)]
    centre = np.where(inside[:, None], edge_um_to_vox(points, resolution_um), 0.0)
    low = np.floor(centre).astype(np.int64)
    share = (centre - low).astype(np.float32).T
    corners = [
        [np.clip(low[:, axis] + step, 0, size - 1) for step in (0, 1)]
        for axis, size in enumerate(annotation.shape)
    ]
    total = np.zeros(len(points), dtype=np.float32)
    for corner in np.ndindex(2, 2, 2):
        at = _flat([corners[axis][step] for axis, step in enumerate(corner)], annotation.shape)
        weight = np.ones(len(points), dtype=np.float32)
        for axis, step in enumerate(corner):
            weight *= share[axis] if step else 1 - share[axis]
        distance = distances.ravel()[at].astype(np.float32)
        total += weight * np.where(annotation.ravel()[at] == own, distance, -distance)
    return np.where(inside, np.maximum(total, 0), np.float32(np.nan))


def _flat(index: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.int64]:
    z, y, x = np.asarray(index)
    return (z * shape[1] + y) * shape[2] + x
