"""The transforms of a registration: points between the sample and the atlas.

ANTs maps points of the fixed image (the atlas) to the moving image (the sample):
``sample = A(p + warp(p))``. The way back is ``p = q + inverse_warp(q)`` with ``q = A^-1(sample)``. Both
are computed here in float64 from the files ANTs wrote (ANTs's own point routine works in float32 and
reads the files at every call); a test holds them against ANTs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from brainmap.coords import as_points, edge_um_to_mm, mm_to_edge_um
from brainmap.errors import DataError, NotFoundError

__all__ = ["AFFINE_FILE", "INVERSE_WARP_FILE", "WARP_FILE", "DisplacementField", "Transforms"]

AFFINE_FILE = "affine.mat"
WARP_FILE = "warp.nii.gz"
INVERSE_WARP_FILE = "inverse_warp.nii.gz"

Floats = NDArray[np.float64]

#: Points per step: bounds the temporaries to some 100 MB.
_BATCH = 1_000_000


@dataclass(frozen=True)
class DisplacementField:
    """Displacements in mm on a regular grid of physical points.

    Attributes
    ----------
    values : float32 array (3, z, y, x)
        Displacement along z, y, x, mm.
    origin_mm, spacing_mm : float64 arrays (3,)
    """

    values: NDArray[np.float32]
    origin_mm: Floats
    spacing_mm: Floats

    @classmethod
    def read(cls, path: Path) -> DisplacementField:
        """Read a field that ANTs wrote (identity direction, axis order of our arrays)."""
        if not path.is_file():
            raise NotFoundError(f"the transform {path} does not exist")
        import ants

        try:
            image: Any = ants.image_read(str(path))
        except (RuntimeError, ValueError) as error:
            raise DataError(f"the transform {path} cannot be read: {error}") from error
        if not np.allclose(image.direction, np.eye(3)):
            raise DataError(f"the transform {path} has a direction other than the identity")
        values = np.ascontiguousarray(np.moveaxis(image.numpy(), -1, 0), dtype=np.float32)
        return cls(values, np.array(image.origin), np.array(image.spacing))

    def write(self, path: Path) -> None:
        """Write the field as ANTs does."""
        import ants

        values = np.ascontiguousarray(np.moveaxis(self.values, 0, -1))
        image = ants.from_numpy(
            values, origin=tuple(self.origin_mm), spacing=tuple(self.spacing_mm), has_components=True
        )
        ants.image_write(image, str(path))

    def at(self, points_mm: Floats) -> Floats:
        """Displacement at points (N, 3), linear in between; beyond the grid that of its nearest point."""
        index = ((points_mm - self.origin_mm) / self.spacing_mm).T
        result = np.empty_like(points_mm)
        for axis in range(3):
            result[:, axis] = ndimage.map_coordinates(self.values[axis], index, order=1, mode="nearest")
        return result

    def jacobian(self) -> NDArray[np.float32]:
        """Determinant of the Jacobian of ``p + field(p)`` at the grid points, (z, y, x)."""
        rows = [np.gradient(self.values[i], *self.spacing_mm) for i in range(3)]
        a, b, c = rows[0][0] + 1, rows[0][1], rows[0][2]
        d, e, f = rows[1][0], rows[1][1] + 1, rows[1][2]
        g, h, i = rows[2][0], rows[2][1], rows[2][2] + 1
        return (a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)).astype(np.float32)


@dataclass(frozen=True)
class Transforms:
    """The transforms in one folder.

    Attributes
    ----------
    folder : Path
        Holds `AFFINE_FILE` and, after a deformable registration, `WARP_FILE` and `INVERSE_WARP_FILE`.
    """

    folder: Path

    @cached_property
    def affine(self) -> tuple[Floats, Floats]:
        """Matrix (3, 3) and offset (3,) in mm of ``sample = matrix @ p + offset``."""
        import scipy.io

        path = self.folder / AFFINE_FILE
        if not path.is_file():
            raise NotFoundError(f"the transform {path} does not exist")
        try:
            content = scipy.io.loadmat(path)
            name = next(key for key in content if "Transform" in key)
            parameters = content[name].ravel().astype(float)
            centre = content["fixed"].ravel().astype(float)
        except (StopIteration, KeyError, ValueError, TypeError) as error:
            raise DataError(f"the transform {path} cannot be read: {error!r}") from error
        matrix, translation = parameters[:9].reshape(3, 3), parameters[9:12]
        return matrix, translation + centre - matrix @ centre

    @cached_property
    def warp(self) -> DisplacementField | None:
        """Displacements of atlas points, before the affine; None after a linear registration."""
        path = self.folder / WARP_FILE
        return DisplacementField.read(path) if path.is_file() else None

    @cached_property
    def inverse_warp(self) -> DisplacementField | None:
        """Displacements of affinely aligned sample points."""
        path = self.folder / INVERSE_WARP_FILE
        return DisplacementField.read(path) if path.is_file() else None

    def to_atlas_um(self, points_edge_um: ArrayLike) -> Floats:
        """Sample points (asr, um from the outer corner of the registration grid) to atlas um."""
        matrix, offset = self.affine
        inverse = np.linalg.inv(matrix)

        def forward(points_mm: Floats) -> Floats:
            aligned = (points_mm - offset) @ inverse.T
            return aligned if self.inverse_warp is None else aligned + self.inverse_warp.at(aligned)

        return _in_batches(forward, points_edge_um)

    def to_sample_edge_um(self, points_atlas_um: ArrayLike) -> Floats:
        """Atlas um to sample points (asr, um from the outer corner of the registration grid)."""
        matrix, offset = self.affine

        def backward(points_mm: Floats) -> Floats:
            moved = points_mm if self.warp is None else points_mm + self.warp.at(points_mm)
            return moved @ matrix.T + offset

        return _in_batches(backward, points_atlas_um)


def _in_batches(function: Any, points_um: ArrayLike) -> Floats:
    points = as_points(points_um)
    result = np.empty_like(points)
    for start in range(0, len(points), _BATCH):
        batch = slice(start, start + _BATCH)
        known = np.isfinite(points[batch]).all(axis=1)
        mapped = np.full((int(known.size), 3), np.nan)
        mapped[known] = mm_to_edge_um(function(edge_um_to_mm(points[batch][known])))
        result[batch] = mapped
    return result
