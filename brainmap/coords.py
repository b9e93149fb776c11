"""Voxel index, micrometre and anatomical orientation: the only place where frames are converted.

Everywhere the axis order is z, y, x. Four frames occur:

``vox``
    index into an array; 0 is the CENTRE of the first voxel.
``um``
    micrometres of an image: ``index * scale + translation``.
``edge_um``
    micrometres measured from the outer corner of an array: ``(index + 0.5) * voxel``. Atlas
    coordinates (``atlas_um``) are of this kind, so they do not depend on the atlas's resolution.
``mm``
    physical points of an ANTs image. brainmap gives every ANTs image the origin "half a voxel" and
    the identity direction, so ``mm = edge_um / 1000`` and the axis order is that of the array.

An orientation is three letters that name the side where each axis STARTS, as in BrainGlobe:
``asr`` = index 0 is anterior, superior, right. (ITK and NIfTI letters name where axes point to.)
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from brainmap.errors import UsageError

__all__ = [
    "ATLAS_ORIENTATION",
    "ORIENTATIONS",
    "AxisMap",
    "Shape",
    "Triple",
    "atlas_um_to_index",
    "axis_map",
    "edge_um_to_mm",
    "edge_um_to_vox",
    "matching_orientations",
    "mirrored",
    "mm_to_edge_um",
    "parse_known_letters",
    "parse_orientation",
    "reorient",
    "um_to_vox",
    "vox_to_edge_um",
    "vox_to_um",
]

# z, y, x: lengths or places, and sizes.
Triple = tuple[float, float, float]
Shape = tuple[int, int, int]
Floats = NDArray[np.float64]
_T = TypeVar("_T")

ATLAS_ORIENTATION = "asr"

_OPPOSITE = {"a": "p", "p": "a", "s": "i", "i": "s", "r": "l", "l": "r"}
_PAIRS = ("ap", "si", "rl")


def _all_orientations() -> tuple[str, ...]:
    return tuple(
        "".join(letters) for pairs in itertools.permutations(_PAIRS) for letters in itertools.product(*pairs)
    )


#: The 48 ways to store a volume along the three anatomical axes.
ORIENTATIONS: tuple[str, ...] = _all_orientations()


def parse_orientation(text: str) -> str:
    """Check three orientation letters and return them in lower case.

    Parameters
    ----------
    text : str
        One of a/p, one of s/i and one of r/l in the order of the stored axes, e.g. ``"psl"``.

    Returns
    -------
    str
        The letters in lower case.

    Raises
    ------
    UsageError
        If the letters do not name each anatomical axis exactly once.
    """
    letters = str(text).strip().lower()
    if letters not in ORIENTATIONS:
        raise UsageError(
            f"orientation {text!r} is not valid: give three letters that name the side where the z, y "
            "and x axes start, one of a/p (anterior, posterior), one of s/i (superior, inferior) and one "
            "of r/l (right, left), for example 'asr'"
        )
    return letters


def parse_known_letters(text: str) -> str:
    """Check orientation letters of which some may be unknown.

    Parameters
    ----------
    text : str
        Three letters as `parse_orientation` reads them, with a dot for each that is not known; ``"auto"``
        knows none.

    Returns
    -------
    str
        The letters in lower case; ``"..."`` for ``"auto"``.

    Raises
    ------
    UsageError
        If no orientation has these letters.
    """
    letters = str(text).strip().lower()
    known = "..." if letters == "auto" else letters
    if "." not in known:
        return parse_orientation(text)
    if not matching_orientations(known):
        raise UsageError(
            f"orientation {text!r} is not valid: give three letters, one of a/p, one of s/i and one of r/l, with a "
            "dot for each that is not known (for example '..l'), or 'auto'"
        )
    return known


def matching_orientations(known: str) -> tuple[str, ...]:
    """Return the orientations that have the known letters (``"."`` fits any)."""
    if len(known) != 3:
        return ()
    return tuple(
        o for o in ORIENTATIONS if all(k in (".", letter) for k, letter in zip(known, o, strict=True))
    )


def mirrored(orientation: str) -> str:
    """Return the orientation with left and right exchanged."""
    return "".join(
        _OPPOSITE[letter] if letter in "rl" else letter for letter in parse_orientation(orientation)
    )


@dataclass(frozen=True)
class AxisMap:
    """How the axes of one orientation become those of another.

    Attributes
    ----------
    order : tuple of int
        ``order[i]`` is the source axis that becomes target axis i.
    flip : tuple of bool
        Whether target axis i runs against its source axis.
    """

    order: tuple[int, int, int]
    flip: tuple[bool, bool, bool]

    def sequence(self, values: tuple[_T, _T, _T]) -> tuple[_T, _T, _T]:
        """Reorder something that has one value per axis (a shape, voxel sizes)."""
        first, second, third = self.order
        return values[first], values[second], values[third]

    def array(self, volume: NDArray[Any]) -> NDArray[Any]:
        """Return a view of a 3-D array with its axes permuted and flipped."""
        flips = tuple(slice(None, None, -1) if f else slice(None) for f in self.flip)
        return volume.transpose(self.order)[flips]

    @property
    def matrix(self) -> Floats:
        """Signed permutation (3, 3): direction along the source axes -> along the target axes."""
        made = np.zeros((3, 3))
        for axis, (source, flipped) in enumerate(zip(self.order, self.flip, strict=True)):
            made[axis, source] = -1.0 if flipped else 1.0
        return made

    def vox(self, points: ArrayLike, source_shape: tuple[int, int, int]) -> Floats:
        """Move voxel indices with the array: index i of an axis of n voxels becomes n - 1 - i if flipped.

        Parameters
        ----------
        points : array (N, 3)
            Voxel indices (0 = centre of the first voxel) in the source orientation.
        source_shape : tuple of int
            Shape of the source array.
        """
        return self._mirror(points, tuple(n - 1.0 for n in source_shape))

    def edge_um(self, points: ArrayLike, source_extent_um: tuple[float, float, float]) -> Floats:
        """Move points measured in um from the outer corner; a flipped axis gives ``extent - value``."""
        return self._mirror(points, tuple(float(e) for e in source_extent_um))

    def _mirror(self, points: ArrayLike, top: tuple[float, ...]) -> Floats:
        source = as_points(points)
        moved = source[:, list(self.order)]
        for axis, flipped in enumerate(self.flip):
            if flipped:
                moved[:, axis] = top[self.order[axis]] - moved[:, axis]
        return moved


def axis_map(source: str, target: str = ATLAS_ORIENTATION) -> AxisMap:
    """Return the `AxisMap` that brings an array of orientation `source` to `target`.

    Raises
    ------
    UsageError
        If either orientation is not valid.
    """
    source, target = parse_orientation(source), parse_orientation(target)
    order = tuple(
        next(i for i, letter in enumerate(source) if letter in (wanted, _OPPOSITE[wanted]))
        for wanted in target
    )
    flip = tuple(source[order[i]] != target[i] for i in range(3))
    return AxisMap((order[0], order[1], order[2]), (flip[0], flip[1], flip[2]))


def reorient(volume: NDArray[Any], source: str, target: str = ATLAS_ORIENTATION) -> NDArray[Any]:
    """Return a view of a 3-D array of orientation `source` in orientation `target`."""
    return axis_map(source, target).array(volume)


def as_points(points: ArrayLike) -> Floats:
    """Return points as a float64 array (N, 3); an empty sequence gives (0, 3)."""
    array = np.asarray(points, dtype=np.float64)
    if array.size == 0:
        return np.zeros((0, 3))
    if array.ndim != 2 or array.shape[1] != 3:
        raise UsageError(f"points must be an array of shape (N, 3) in z, y, x order, not {array.shape}")
    return array


def vox_to_um(points: ArrayLike, voxel_um: ArrayLike, origin_um: ArrayLike = (0.0, 0.0, 0.0)) -> Floats:
    """Voxel indices to um: ``index * voxel_um + origin_um``.

    Parameters
    ----------
    points : array (N, 3)
        Voxel indices z, y, x; 0 is the centre of the first voxel.
    voxel_um : (3,)
        Voxel size, um.
    origin_um : (3,)
        um of the centre of voxel 0.
    """
    return as_points(points) * np.asarray(voxel_um, dtype=float) + np.asarray(origin_um, dtype=float)


def um_to_vox(points: ArrayLike, voxel_um: ArrayLike, origin_um: ArrayLike = (0.0, 0.0, 0.0)) -> Floats:
    """Inverse of `vox_to_um`."""
    return (as_points(points) - np.asarray(origin_um, dtype=float)) / np.asarray(voxel_um, dtype=float)


def vox_to_edge_um(points: ArrayLike, voxel_um: ArrayLike) -> Floats:
    """Voxel indices to um from the outer corner: ``(index + 0.5) * voxel_um`` (atlas um)."""
    return (as_points(points) + 0.5) * np.asarray(voxel_um, dtype=float)


def edge_um_to_vox(points: ArrayLike, voxel_um: ArrayLike) -> Floats:
    """Inverse of `vox_to_edge_um`."""
    return as_points(points) / np.asarray(voxel_um, dtype=float) - 0.5


def atlas_um_to_index(
    points: ArrayLike, resolution_um: ArrayLike, shape: tuple[int, int, int]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Voxel that contains each atlas point.

    Parameters
    ----------
    points : array (N, 3)
        Atlas um. NaN counts as outside.
    resolution_um : (3,)
        Atlas voxel size.
    shape : tuple of int
        Atlas shape.

    Returns
    -------
    index : int64 array (N, 3)
        ``floor(um / resolution)``; 0, 0, 0 for points outside.
    inside : bool array (N,)
    """
    with np.errstate(invalid="ignore"):
        cell = np.floor(as_points(points) / np.asarray(resolution_um, dtype=float))
        inside = np.all((cell >= 0) & (cell < np.asarray(shape)), axis=1)
    return np.where(inside[:, None], cell, 0.0).astype(np.int64), inside


def edge_um_to_mm(points: ArrayLike) -> Floats:
    """um from the outer corner to ANTs physical points (mm: small numbers survive ANTs's float32)."""
    return as_points(points) / 1000.0


def mm_to_edge_um(points: ArrayLike) -> Floats:
    """Inverse of `edge_um_to_mm`."""
    return as_points(points) * 1000.0
