"""Refining a registration by hand: pairs of points that belong together, in the sample and in the atlas.

The pairs bend the atlas's side of the registration by a smooth displacement of limited reach, which is written
into the displacement fields: everything that maps points or images goes on as before, in both directions.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from brainmap.coords import Triple, edge_um_to_mm, vox_to_um
from brainmap.errors import DataError, NotFoundError
from brainmap.files import fingerprint
from brainmap.registration.transforms import INVERSE_WARP_FILE, WARP_FILE, DisplacementField, Transforms

if TYPE_CHECKING:
    from brainmap.image.volume import Volume
    from brainmap.registration.grid import SampleGrid

__all__ = ["LandmarkFit", "Landmarks", "refine"]

Floats = NDArray[np.float64]

_AXES = ("z", "y", "x")
_ATLAS_COLUMNS = tuple(f"atlas_{axis}_um" for axis in _AXES)

#: Distance at which a landmark has no effect any more, um, in a mouse brain.
REACH_UM = 2500.0
#: Regularisation: a single landmark of weight 1 is met to this share; close ones even each other out.
_SMOOTHING = 0.02
#: Two landmarks contradict each other if their shifts differ by more than this share of their distance ...
_STEEPEST = 0.8
#: ... beyond what the clicks of one person differ by, um.
_CLICK_UM = 100.0
#: Least local volume change (Jacobian) that the refinement may make.
_LEAST_JACOBIAN = 0.1
_POINTS_AT_ONCE = 20_000


@dataclass(frozen=True)
class Landmarks:
    """Pairs of points.

    Attributes
    ----------
    names : tuple of str
    sample_um, atlas_um : float64 arrays (N, 3)
        The same place in the sample (``index * scale + translation``) and in the atlas (um from its outer
        corner, asr); z, y, x.
    weights : float64 array (N,)
        Trust; 1 is usual, 10 is met ten times closer.
    """

    names: tuple[str, ...]
    sample_um: Floats
    atlas_um: Floats
    weights: Floats

    def __post_init__(self) -> None:
        n = len(self.names)
        shapes = (self.sample_um.shape, self.atlas_um.shape, self.weights.shape)
        if n == 0 or shapes != ((n, 3), (n, 3), (n,)):
            raise DataError(f"landmarks need one or more pairs of points and one weight each, not {shapes}")
        if not (np.isfinite(self.sample_um).all() and np.isfinite(self.atlas_um).all()):
            raise DataError("landmarks need finite coordinates")
        if not (np.isfinite(self.weights).all() and (self.weights > 0).all()):
            raise DataError("the weights of landmarks must be positive")

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def read(cls, path: str | Path, volume: Volume) -> Landmarks:
        """Read a CSV of pairs.

        Columns: ``z,y,x`` (voxels of `volume`) or ``z_um,y_um,x_um``, and ``atlas_z_um,atlas_y_um,atlas_x_um``.
        ``name`` and ``weight`` may be there; others are ignored.

        Raises
        ------
        NotFoundError
            If there is no such file.
        DataError
            If columns are missing, or a value is not a finite number.
        """
        path = Path(path)
        if not path.is_file():
            raise NotFoundError(f"there is no file of landmarks {path}")
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file, skipinitialspace=True)
                header = tuple(name.strip() for name in reader.fieldnames or ())
                reader.fieldnames = header
                rows = list(reader)
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path} is not a CSV of landmarks: {error}") from error
        columns = next((c for c in (tuple(f"{a}_um" for a in _AXES), _AXES) if set(c) <= set(header)), None)
        if columns is None or not set(_ATLAS_COLUMNS) <= set(header):
            raise DataError(
                f"{path} needs the columns z,y,x (voxels) or z_um,y_um,x_um, and {','.join(_ATLAS_COLUMNS)}; it has: "
                f"{', '.join(header) or 'none'}"
            )
        if not rows:
            raise DataError(f"{path} holds no landmark")
        sample = _column_values(path, rows, columns)
        if columns == _AXES:
            sample = vox_to_um(sample, volume.voxel_um, volume.origin_um)
        names = tuple((row.get("name") or "").strip() or str(i) for i, row in enumerate(rows, start=1))
        weights = _column_values(path, rows, ("weight",))[:, 0] if "weight" in header else np.ones(len(rows))
        if not (weights > 0).all():
            raise DataError(f"{path}: the weights of landmarks must be positive")
        return cls(names, sample, _column_values(path, rows, _ATLAS_COLUMNS), weights)

    def fingerprint(self) -> str:
        """Changes with every value that changes the result; names do not."""
        return fingerprint([self.sample_um.tolist(), self.atlas_um.tolist(), self.weights.tolist()])

    def check_inside(self, grid: SampleGrid, atlas_um: Triple, name: str) -> None:
        """Refuse landmarks outside the image (`name`, with its registration grid) or the atlas (its size, um).

        Raises
        ------
        DataError
        """
        corner, voxel = np.asarray(grid.corner_um), np.asarray(grid.resolution_um)
        boxes = (
            (name, self.sample_um, corner - voxel, corner + grid.extent_um + voxel),
            ("the atlas", self.atlas_um, np.zeros(3), np.asarray(atlas_um)),
        )
        for what, points, low, high in boxes:
            for i in np.flatnonzero(((points < low) | (points > high)).any(axis=1)):
                place, limits = (", ".join(f"{v:.0f}" for v in values) for values in (points[i], high))
                raise DataError(
                    f"landmark {self.names[i]} lies outside {what}, at z, y, x {place} um, which ends at {limits} um: "
                    "check the order and the unit of the columns"
                )


def _column_values(path: Path, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> Floats:
    values = np.empty((len(rows), len(columns)))
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            try:
                values[i, j] = float(row[column])
            except (TypeError, ValueError):
                values[i, j] = math.nan
            if not math.isfinite(values[i, j]):
                raise DataError(f"{path}, line {i + 2}: {column} is {row[column]!r}, not a finite number")
    return values


@dataclass(frozen=True)
class LandmarkFit:
    """How well a refinement meets its landmarks; distances in um in the atlas.

    Attributes
    ----------
    names : tuple of str
    before_um, after_um : float64 arrays (N,)
        Distance of each landmark from where the registration puts it.
    left_out_um : float64 array (N,)
        Distance if the landmark itself had not been used: what other places gain. NaN for a single one.
    reach_um : float
        Distance at which a landmark has no effect any more.
    jacobian_min : float
        Least local volume change that the refinement makes.
    """

    names: tuple[str, ...]
    before_um: Floats
    after_um: Floats
    left_out_um: Floats
    reach_um: float
    jacobian_min: float

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``registration.json``."""
        columns = (self.names, self.before_um, self.after_um, self.left_out_um)
        keys = ("name", "before_um", "after_um", "left_out_um")
        rows = [[name, *(round(float(v), 1) for v in values)] for name, *values in zip(*columns, strict=True)]
        return {
            "pairs": len(self.names),
            "reach_um": self.reach_um,
            "median_before_um": float(np.median(self.before_um)),
            "median_after_um": float(np.median(self.after_um)),
            "median_left_out_um": float(np.median(self.left_out_um)),
            "jacobian_min": self.jacobian_min,
            "residuals": [dict(zip(keys, row, strict=True)) for row in rows],
        }


@dataclass(frozen=True)
class _Bend:
    """A smooth displacement: at each centre a bump (Wendland's C2 function) that ends at `reach_mm`."""

    centres: Floats
    coefficients: Floats
    reach_mm: float

    @classmethod
    def fitted(
        cls, centres: Floats, shifts: Floats, weights: Floats, reach_mm: float
    ) -> tuple[_Bend, Floats]:
        """Return the displacement that meets the shifts, smoothed, and what each misses when it is left out."""
        system = _bump(cdist(centres, centres) / reach_mm) + np.diag(_SMOOTHING / weights)
        inverse = np.linalg.inv(system)
        coefficients = inverse @ shifts
        # Leave-one-out residuals of a linear smoother, in closed form (Rippa 1999).
        missed = coefficients / np.diag(inverse)[:, None]
        return cls(centres, coefficients, reach_mm), np.linalg.norm(missed, axis=1)

    def at(self, points_mm: Floats) -> Floats:
        """Displacement at points (N, 3), mm."""
        out = np.zeros_like(points_mm)
        nearest, _ = cKDTree(self.centres).query(points_mm, distance_upper_bound=self.reach_mm)
        near = np.flatnonzero(np.isfinite(nearest))
        for start in range(0, len(near), _POINTS_AT_ONCE):
            part = near[start : start + _POINTS_AT_ONCE]
            out[part] = _bump(cdist(points_mm[part], self.centres) / self.reach_mm) @ self.coefficients
        return out


def _bump(distance: Floats) -> Floats:
    """Wendland's C2 function: 1 at 0, 0 from 1 on, positive definite in three dimensions (Wendland 1995)."""
    return np.asarray(np.maximum(1 - distance, 0) ** 4 * (4 * distance + 1))


def refine(
    folder: Path,
    landmarks: Landmarks,
    sample_edge_um: Floats,
    box_um: Triple,
    *,
    spacing_um: float,
    scale: float = 1.0,
) -> LandmarkFit:
    """Bend the transforms in a folder so that they meet landmarks; replaces their displacement fields.

    Parameters
    ----------
    folder : Path
        Holds the transforms; gets ``warp.nii.gz`` and ``inverse_warp.nii.gz`` also if they were linear.
    landmarks : Landmarks
    sample_edge_um : float64 array (N, 3)
        Their points in the sample, asr, um from the outer corner of the registration grid.
    box_um : tuple of float
        Size of the atlas.
    spacing_um : float
        Voxel size of the fields where there are none yet.
    scale : float
        Size of the brain in mouse brains.

    Raises
    ------
    DataError
        If landmarks contradict each other.
    """
    transforms = Transforms(folder)
    # The bend comes first on the way to the sample: it moves a landmark of the atlas to where the registration
    # as it is puts that of the sample.
    shifts = edge_um_to_mm(transforms.to_atlas_um(sample_edge_um) - landmarks.atlas_um)
    centres, reach_mm = edge_um_to_mm(landmarks.atlas_um), REACH_UM * scale / 1000.0
    _check_consistent(landmarks, centres, shifts, _CLICK_UM * scale / 1000.0)
    bend, missed = _Bend.fitted(centres, shifts, landmarks.weights, reach_mm)
    warp, inverse = transforms.warp, transforms.inverse_warp
    if warp is None or inverse is None:
        warp = inverse = _still(box_um, spacing_um)
    bent = _on_grid_of(warp, bend.at)
    smallest = float(bent.jacobian().min())
    if smallest < _LEAST_JACOBIAN:
        raise DataError(
            f"the landmarks together would fold the atlas (smallest local volume change {smallest:.2f}): the largest "
            f"shift is {1000 * np.linalg.norm(shifts, axis=1).max():.0f} um; check the pairs, or register anew so that "
            "landmarks have less to correct"
        )
    forward = _on_grid_of(warp, lambda points: bent.at(points) + warp.at(points + bent.at(points)))
    back = _on_grid_of(inverse, lambda points: _undone(bent, points + inverse.at(points)) - points)
    forward.write(folder / WARP_FILE)
    back.write(folder / INVERSE_WARP_FILE)
    after = Transforms(folder).to_atlas_um(sample_edge_um) - landmarks.atlas_um
    return LandmarkFit(
        names=landmarks.names,
        before_um=1000 * np.linalg.norm(shifts, axis=1),
        after_um=np.linalg.norm(after, axis=1),
        left_out_um=1000 * missed if len(landmarks) > 1 else np.full(1, np.nan),
        reach_um=1000 * reach_mm,
        jacobian_min=smallest,
    )


def _check_consistent(landmarks: Landmarks, centres: Floats, shifts: Floats, click_mm: float) -> None:
    apart, differ = cdist(centres, centres), cdist(shifts, shifts)
    excess = differ - _STEEPEST * apart - click_mm
    i, j = np.unravel_index(int(excess.argmax()), excess.shape)
    if excess[i, j] > 0:
        raise DataError(
            f"landmarks {landmarks.names[i]} and {landmarks.names[j]} contradict each other: "
            f"{1000 * apart[i, j]:.0f} um apart in the atlas, they ask for shifts that differ by "
            f"{1000 * differ[i, j]:.0f} um, which would fold the brain; correct or remove one of them"
        )


def _still(box_um: Triple, spacing_um: float) -> DisplacementField:
    """A field of zeros over the atlas."""
    shape = tuple(int(np.ceil(length / spacing_um)) + 1 for length in box_um)
    spacing = np.full(3, spacing_um / 1000.0)
    return DisplacementField(np.zeros((3, *shape), np.float32), np.zeros(3), spacing)


def _on_grid_of(field: DisplacementField, displacement: Callable[[Floats], Floats]) -> DisplacementField:
    """A displacement (points (N, 3) mm -> (N, 3) mm) at the grid points of a field, plane by plane."""
    values = np.empty_like(field.values)
    plane = np.indices(field.values.shape[2:]).reshape(2, -1).T
    for z in range(field.values.shape[1]):
        index = np.column_stack([np.full(len(plane), z), plane])
        moved = displacement(index * field.spacing_mm + field.origin_mm)
        values[:, z] = moved.T.reshape(3, *values.shape[2:])
    return DisplacementField(values, field.origin_mm, field.spacing_mm)


def _undone(bent: DisplacementField, points_mm: Floats) -> Floats:
    """Points that the bend moves to `points_mm`: fixed-point steps, which converge as it cannot fold."""
    found = points_mm.copy()
    for _ in range(60):
        step = points_mm - bent.at(found) - found
        found += step
        if np.abs(step).max(initial=0.0) < 1e-4:
            break
    return found
