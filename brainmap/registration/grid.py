"""The registration grid: the sample's own axes at the resolution of the registration, and how to fill it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from brainmap.coords import ATLAS_ORIENTATION, AxisMap, Triple, as_points, axis_map, parse_orientation
from brainmap.errors import DataError

if TYPE_CHECKING:
    from brainmap.image.volume import Level, Volume

__all__ = ["SampleGrid", "resample_volume"]


#: Voxels read at once while down-sampling; about 0.5 GB with the float copies.
_READ_VOXELS = 32_000_000


@dataclass(frozen=True)
class SampleGrid:
    """A grid over the sample in its own axes and orientation.

    Grid voxel i of an axis covers um ``corner + [i, i + 1) * resolution``; the last voxel may reach
    beyond the image.

    Attributes
    ----------
    shape : tuple of int
    resolution_um : tuple of float
    corner_um : tuple of float
        Sample um of the outer corner of the image (half a voxel before the centre of voxel 0).
    extent_um : tuple of float
        Size of the image, um.
    orientation : str
        Orientation of the stored image.
    """

    shape: tuple[int, int, int]
    resolution_um: Triple
    corner_um: Triple
    extent_um: Triple
    orientation: str

    @classmethod
    def over(cls, volume: Volume, orientation: str, resolution_asr_um: Triple) -> SampleGrid:
        """Lay a grid over a volume.

        Parameters
        ----------
        volume : Volume
        orientation : str
            Orientation of the volume's axes.
        resolution_asr_um : tuple of float
            Wanted voxel size along the axes of asr.
        """
        orientation = parse_orientation(orientation)
        resolution = axis_map(ATLAS_ORIENTATION, orientation).sequence(resolution_asr_um)
        voxel, origin = volume.voxel_um, volume.origin_um
        extent = tuple(n * v for n, v in zip(volume.shape, voxel, strict=True))
        shape = tuple(max(1, math.ceil(e / r - 1e-6)) for e, r in zip(extent, resolution, strict=True))
        corner = tuple(o - v / 2 for o, v in zip(origin, voxel, strict=True))
        return cls(_three(shape), _three(resolution), _three(corner), _three(extent), orientation)

    @property
    def origin_um(self) -> Triple:
        """Sample um of the centre of grid voxel 0: the translation of an image stored on this grid."""
        return _three(tuple(c + r / 2 for c, r in zip(self.corner_um, self.resolution_um, strict=True)))

    @property
    def to_asr(self) -> AxisMap:
        """Axis map from the sample's orientation to asr."""
        return axis_map(self.orientation, ATLAS_ORIENTATION)

    @property
    def shape_asr(self) -> tuple[int, int, int]:
        """Shape of the grid brought to asr."""
        return self.to_asr.sequence(self.shape)

    @property
    def resolution_asr_um(self) -> Triple:
        """Voxel size of the grid brought to asr."""
        return self.to_asr.sequence(self.resolution_um)

    def um_to_asr_edge_um(self, points_um: ArrayLike) -> NDArray[np.float64]:
        """Sample um -> um from the outer corner of the grid brought to asr (the moving image's frame)."""
        return self.to_asr.edge_um(as_points(points_um) - np.asarray(self.corner_um), self._box_um)

    def asr_edge_um_to_um(self, points: ArrayLike) -> NDArray[np.float64]:
        """Inverse of `um_to_asr_edge_um`."""
        back = axis_map(ATLAS_ORIENTATION, self.orientation)
        return back.edge_um(points, self.to_asr.sequence(self._box_um)) + np.asarray(self.corner_um)

    def lengths_um(
        self, box_um: tuple[tuple[float, float], ...] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Length of each grid voxel, per axis, that lies inside the image and an optional box.

        Parameters
        ----------
        box_um : three (low, high) pairs, optional
            Region of interest in sample um.
        """
        lengths = []
        for axis in range(3):
            low, high = self.corner_um[axis], self.corner_um[axis] + self.extent_um[axis]
            if box_um is not None:
                low, high = max(low, box_um[axis][0]), min(high, box_um[axis][1])
            start = self.corner_um[axis] + np.arange(self.shape[axis]) * self.resolution_um[axis]
            inside = np.minimum(start + self.resolution_um[axis], high) - np.maximum(start, low)
            lengths.append(np.clip(inside, 0.0, None))
        return lengths[0], lengths[1], lengths[2]

    @property
    def _box_um(self) -> Triple:
        # The grid's own extent, so that flipped points follow the flipped grid array exactly.
        return _three(tuple(n * r for n, r in zip(self.shape, self.resolution_um, strict=True)))

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``registration.json``."""
        return {
            "shape": list(self.shape),
            "resolution_um": list(self.resolution_um),
            "corner_um": list(self.corner_um),
            "extent_um": list(self.extent_um),
            "orientation": self.orientation,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> SampleGrid:
        """Inverse of `to_json`."""
        triples = {
            key: _three(tuple(values[key])) for key in ("shape", "resolution_um", "corner_um", "extent_um")
        }
        return cls(**triples, orientation=parse_orientation(values["orientation"]))


def resample_volume(volume: Volume, grid: SampleGrid) -> NDArray[np.float32]:
    """Bring a volume onto its registration grid, reading the coarsest level that is fine enough.

    Area mean where the level is finer than the grid, linear interpolation where it is coarser; one
    weight matrix per axis, applied piece by piece, so that memory is bounded for any brain.

    Returns
    -------
    float32 array of ``grid.shape``, in the sample's own axes.
    """
    number = _suitable_level(volume.levels, grid.resolution_um)
    level = volume.levels[number]
    weights = [_axis_weights(level, grid, axis) for axis in range(3)]
    out = np.zeros(grid.shape, dtype=np.float32)
    nz, ny, nx = level.shape
    rows = max(1, min(ny, _READ_VOXELS // nx))
    planes = max(1, min(nz, _READ_VOXELS // (rows * nx)))
    planes = _aligned(planes, nz, level.chunks[0])
    for z in range(0, nz, planes):
        for y in range(0, ny, rows):
            zs, ys = slice(z, min(z + planes, nz)), slice(y, min(y + rows, ny))
            piece = volume.read(zs, ys, slice(0, nx), level=number).astype(np.float32)
            # Outside a mask floats may be NaN: nothing was recorded there.
            np.nan_to_num(piece, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
            _accumulate(out, piece, weights[0][:, zs], weights[1][:, ys], weights[2])
    if not np.isfinite(out).all():
        raise DataError(
            f"{volume.name}: the image holds values that are not finite, so it cannot be registered"
        )
    return out


def _suitable_level(levels: tuple[Level, ...], resolution_um: Triple) -> int:
    """Coarsest level whose voxels are no larger than the grid's along any axis; the finest if none is."""
    fine = [
        number
        for number, level in enumerate(levels)
        if all(v <= r * 1.01 for v, r in zip(level.voxel_um, resolution_um, strict=True))
    ]
    return fine[-1] if fine else 0


def _aligned(planes: int, n: int, chunk: int) -> int:
    """Round a piece down to whole chunks, so that no chunk is decoded twice."""
    return planes if planes >= n or planes < chunk else planes // chunk * chunk


def _axis_weights(level: Level, grid: SampleGrid, axis: int) -> sparse.csr_matrix:
    """Weights (grid voxels x level voxels) of one axis; every row sums to 1."""
    n_in, n_out = level.shape[axis], grid.shape[axis]
    voxel, step = level.voxel_um[axis], grid.resolution_um[axis]
    start_in = level.origin_um[axis] - voxel / 2 - grid.corner_um[axis]
    if voxel > step:
        centre = np.clip(((np.arange(n_out) + 0.5) * step - start_in) / voxel - 0.5, 0, n_in - 1)
        low = np.minimum(np.floor(centre).astype(int), max(n_in - 2, 0))
        high = np.minimum(low + 1, n_in - 1)
        share = centre - low
        rows = np.concatenate([np.arange(n_out)] * 2)
        matrix = sparse.coo_matrix(
            (np.concatenate([1 - share, share]), (rows, np.concatenate([low, high]))), shape=(n_out, n_in)
        )
        return matrix.tocsr().astype(np.float32)
    edges_in = start_in + np.arange(n_in + 1) * voxel
    first = np.clip(np.floor(edges_in[:-1] / step).astype(int), 0, n_out - 1)
    last = np.clip(np.floor(edges_in[1:] / step).astype(int), 0, n_out - 1)
    rows_list, columns, values = [], [], []
    for cell in (first, last):  # a level voxel is no wider than a grid voxel: it touches at most two
        overlap = np.minimum(edges_in[1:], (cell + 1) * step) - np.maximum(edges_in[:-1], cell * step)
        use = (overlap > 0) & ((cell == first) if cell is first else (cell != first))
        rows_list.append(cell[use])
        columns.append(np.flatnonzero(use))
        values.append(overlap[use])
    matrix = sparse.coo_matrix(
        (np.concatenate(values), (np.concatenate(rows_list), np.concatenate(columns))), shape=(n_out, n_in)
    ).tocsr()
    total = np.asarray(matrix.sum(axis=1)).ravel()
    return (sparse.diags(1.0 / np.where(total > 0, total, 1.0)) @ matrix).tocsr().astype(np.float32)


def _accumulate(
    out: NDArray[np.float32],
    piece: NDArray[np.float32],
    wz: sparse.csr_matrix,
    wy: sparse.csr_matrix,
    wx: sparse.csr_matrix,
) -> None:
    dz, dy, dx = piece.shape
    by_x = (wx @ piece.reshape(-1, dx).T).reshape(-1, dz, dy)  # (X, dz, dy)
    by_y = wy @ by_x.transpose(2, 0, 1).reshape(dy, -1)  # (Y, X * dz)
    by_y = by_y.reshape(wy.shape[0], -1, dz).transpose(2, 0, 1).reshape(dz, -1)  # (dz, Y * X)
    touched = np.flatnonzero(np.diff(wz.indptr))
    out[touched] += (wz[touched] @ by_y).reshape(len(touched), *out.shape[1:])


def _three(values: tuple[Any, ...]) -> tuple[Any, Any, Any]:
    first, second, third = values
    return first, second, third
