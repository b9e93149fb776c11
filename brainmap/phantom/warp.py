"""The known smooth warp between the phantom sample and its atlas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from brainmap.coords import ATLAS_ORIENTATION, as_points, axis_map

__all__ = ["SmoothWarp"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SmoothWarp:
    """Sample position to atlas position: reorientation, an affine map, and a few broad Gaussian bumps.

    Attributes
    ----------
    orientation : str
        Orientation of the stored sample.
    extent_um : (3,) tuple
        Extent of the stored sample along its own axes, um.
    matrix : array (3, 3)
        Linear part, in asr axes, about the sample's centre.
    target_um : array (3,)
        Atlas position of the sample's centre.
    centres, pushes : arrays (K, 3)
        Where in the atlas-aligned sample (asr, um about its centre) a bump sits, and how far it moves points, um.
    width_um : float
        Standard deviation of the bumps.
    """

    orientation: str
    extent_um: tuple[float, float, float]
    matrix: Floats
    target_um: Floats
    centres: Floats
    pushes: Floats
    width_um: float

    @classmethod
    def random(
        cls,
        rng: np.random.Generator,
        orientation: str,
        extent_um: tuple[float, float, float],
        atlas_um: Floats,
    ) -> SmoothWarp:
        """Draw a mild warp: up to 4 degrees, 4 % scale, and bumps of about 1.4 % of the brain's length.

        The sample's faces that cut through tissue (the posterior one) stay inside the atlas's field, so that every
        cell has a place in the atlas.
        """
        size = float(np.mean(extent_um))
        inner = np.asarray(axis_map(orientation, ATLAS_ORIENTATION).sequence(extent_um)) * 0.32
        corners = np.array(list(np.ndindex(2, 2, 2))) * extent_um
        while True:
            angles = rng.uniform(-1, 1, 3) * np.deg2rad([3.0, 4.0, 2.5])
            linear = _rotation(angles) @ np.diag(1.0 + rng.uniform(-0.04, 0.04, 3))
            centres = rng.uniform(-1, 1, (10, 3)) * inner
            pushes = rng.normal(0, 0.014 * size, (10, 3))
            target = np.asarray(atlas_um) / 2 + (rng.uniform(-0.012, 0.012, 3) + [-0.02, 0.0, 0.0]) * size
            warp = cls(orientation, extent_um, linear, target, centres, pushes, 0.2 * size)
            if warp.to_atlas_um(corners)[:, 0].max() < atlas_um[0]:
                return warp

    def to_atlas_um(self, points_um: ArrayLike) -> Floats:
        """Map sample points (N, 3), um from the sample's outer corner along its own axes, to atlas um."""
        reorient = axis_map(self.orientation, ATLAS_ORIENTATION)
        extent = np.asarray(reorient.sequence(self.extent_um))
        local = reorient.edge_um(points_um, self.extent_um) - extent / 2
        return local @ self.matrix.T + self._bumps(local) + self.target_um

    def from_atlas_um(self, points_atlas_um: ArrayLike) -> Floats:
        """Inverse of `to_atlas_um`, by fixed-point iteration (to better than 1e-6 um)."""
        goal = as_points(points_atlas_um) - self.target_um
        inverse = np.linalg.inv(self.matrix)
        local = goal @ inverse.T
        for _ in range(60):
            local = (goal - self._bumps(local)) @ inverse.T
        back = axis_map(ATLAS_ORIENTATION, self.orientation)
        extent = axis_map(self.orientation, ATLAS_ORIENTATION).sequence(self.extent_um)
        return back.edge_um(local + np.asarray(extent) / 2, extent)

    def to_json(self) -> dict[str, Any]:
        """Return the warp as plain lists, for `from_json`."""
        return {
            "orientation": self.orientation,
            "extent_um": list(self.extent_um),
            "matrix": self.matrix.tolist(),
            "target_um": self.target_um.tolist(),
            "centres": self.centres.tolist(),
            "pushes": self.pushes.tolist(),
            "width_um": self.width_um,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> SmoothWarp:
        """Rebuild a warp from `to_json`."""
        z, y, x = record["extent_um"]
        matrix, target, centres, pushes = (
            np.asarray(record[key], float) for key in ("matrix", "target_um", "centres", "pushes")
        )
        width = float(record["width_um"])
        return cls(record["orientation"], (z, y, x), matrix, target, centres, pushes, width)

    def _bumps(self, local: Floats) -> Floats:
        moved = np.zeros_like(local)
        for centre, push in zip(self.centres, self.pushes, strict=True):
            distance2 = ((local - centre) ** 2).sum(axis=1)
            moved += np.exp(-distance2 / (2 * self.width_um**2))[:, None] * push
        return moved


def _rotation(angles: Floats) -> Floats:
    """Rotation matrix about axes 0, 1, 2 by the given angles in radians."""
    result = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        result = turn @ result
    return result
