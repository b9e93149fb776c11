"""The atlas: a template, an annotation and an ontology, opened lazily from a folder."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from brainmap.atlas.border import border_at, border_distances
from brainmap.atlas.find import find_atlas_folder
from brainmap.atlas.layout import AtlasFiles, open_layout
from brainmap.atlas.structures import OUTSIDE_ID, Structures
from brainmap.coords import ATLAS_ORIENTATION, atlas_um_to_index, axis_map
from brainmap.errors import DataError

__all__ = ["LEFT", "RIGHT", "UNDECIDED", "Atlas"]

log = logging.getLogger(__name__)

UNDECIDED, LEFT, RIGHT = 0, 1, 2

#: Above this share of labelled voxels with ids unknown to the ontology, the files do not belong together.
_MAX_UNKNOWN_SHARE = 0.01
#: A side with less of the labelled voxels is missing from a map, if each half of the box has more than the other.
_MIN_SIDE_SHARE, _MAX_ODD_SHARE = 0.02, 0.1


@dataclass(frozen=True)
class Atlas:
    """An atlas in orientation asr, whatever the orientation of its files.

    Arrays are read on first use; the ontology needs no image. An Atlas is small until then, and
    pickles without its arrays.

    Attributes
    ----------
    name : str
        With resolution and version, e.g. ``allen_mouse_50um_v1.2``.
    files : AtlasFiles
        Where the arrays come from (`brainmap.atlas.layout`).
    structures : Structures
    resolution_um : tuple of float
        Voxel size z, y, x.
    shape : tuple of int
    """

    name: str
    files: AtlasFiles
    structures: Structures = field(repr=False)
    resolution_um: tuple[float, float, float]
    shape: tuple[int, int, int]

    @classmethod
    def open(cls, name_or_dir: str | Path) -> Atlas:
        """Open an atlas by folder or by BrainGlobe name.

        Parameters
        ----------
        name_or_dir : str or Path
            A folder in BrainGlobe v2 or v3 layout, or a name such as ``allen_mouse_50um`` (with or
            without the version), looked up as `brainmap.atlas.find` describes.

        Raises
        ------
        NotFoundError
            If there is no such atlas; the message says which folder to put where.
        DataError
            If the folder is not an atlas or its files contradict each other.
        """
        folder = find_atlas_folder(name_or_dir)
        files = open_layout(folder)
        to_asr = axis_map(files.orientation, ATLAS_ORIENTATION)
        return cls(
            name=files.name,
            files=files,
            structures=files.structures(),
            resolution_um=to_asr.sequence(files.resolution_um),
            shape=to_asr.sequence(files.shape),
        )

    @property
    def orientation(self) -> str:
        """Always ``asr``: arrays are brought to it when they are read."""
        return ATLAS_ORIENTATION

    @property
    def extent_um(self) -> tuple[float, float, float]:
        """Size of the atlas box in um, z, y, x."""
        z, y, x = (n * r for n, r in zip(self.shape, self.resolution_um, strict=True))
        return z, y, x

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return self.files.folder

    @property
    def label(self) -> str:
        """Name without the version: the name users write."""
        return self.name.rsplit("_v", 1)[0]

    @cached_property
    def reference(self) -> NDArray[Any]:
        """Template intensities, (z, y, x), asr."""
        return self._array("reference")

    @cached_property
    def annotation(self) -> NDArray[np.uint32]:
        """Structure id of every voxel, (z, y, x), asr; 0 outside, and for ids the ontology lacks."""
        stored = self._array("annotation")
        if stored.dtype.kind not in "iu":
            raise DataError(
                f"{self.files.where('annotation')}: ids are stored as {stored.dtype}, which cannot hold "
                "every id exactly; the annotation must be an integer image"
            )
        if stored.dtype != np.uint32 and stored.size and (stored.min() < 0 or stored.max() > 2**32 - 1):
            raise DataError(f"{self.files.where('annotation')}: ids must lie between 0 and 4294967295")
        return self._without_unknown_ids(stored.astype(np.uint32, copy=False))

    @cached_property
    def hemispheres(self) -> NDArray[np.uint8]:
        """1 = left, 2 = right, 0 = neither, (z, y, x), asr: from the atlas, or by the BrainGlobe rule."""
        if self.files.has("hemispheres"):
            stored = self._array("hemispheres")
            if stored.size and (stored.min() < UNDECIDED or stored.max() > RIGHT):
                raise DataError(
                    f"{self.files.where('hemispheres')}: hemispheres must be 0 (none), 1 (left) or 2 (right), "
                    f"not {stored.min()} to {stored.max()}"
                )
            sides = stored.astype(np.uint8)
            self._check_sides(sides)
            return sides
        return np.broadcast_to(self._hemisphere_of_column, self.shape)

    def check(self) -> None:
        """Read what counting needs and see whether it can be right, before hours are spent on a brain.

        Raises
        ------
        DataError
            If annotation, structures and hemispheres contradict each other.
        """
        if not self.annotation.any():
            raise DataError(f"{self.files.where('annotation')} labels no voxel: every id is 0")
        if self.hemispheres.shape != self.shape:
            raise DataError(f"{self.files.where('hemispheres')}: its shape is not that of the annotation")

    def _check_sides(self, sides: NDArray[np.uint8]) -> None:
        """Refuse a map in which a side that has tissue has no voxels; warn where left and right seem swapped."""
        tissue = self.annotation != OUTSIDE_ID
        half = self.shape[2] // 2
        # Of labelled voxels: in the right and left half of the box (asr starts at the right), and by the map.
        lies_right, lies_left = int(tissue[..., :half].sum()), int(tissue[..., half:].sum())
        right, left = int((tissue & (sides == RIGHT)).sum()), int((tissue & (sides == LEFT)).sum())
        total = max(lies_right + lies_left, 1)
        where = self.files.where("hemispheres")
        if min(lies_right, lies_left) > _MAX_ODD_SHARE * total and min(right, left) < _MIN_SIDE_SHARE * total:
            name, share = ("right (2)", right / total) if right < left else ("left (1)", left / total)
            raise DataError(
                f"{where}: the {name} side has {share:.1%} of the labelled voxels, though both halves of the atlas are "
                "labelled; the map must be 1 in the left and 2 in the right hemisphere (not 0 and 1): set it right, "
                "or remove the file, and the sides are split at the middle"
            )
        crossed = int((tissue[..., :half] & (sides[..., :half] == LEFT)).sum()) + int(
            (tissue[..., half:] & (sides[..., half:] == RIGHT)).sum()
        )
        if crossed > 0.6 * max(right + left, 1):
            log.warning(
                "%s: left and right seem to be swapped: %.0f %% of the voxels called left lie in the right half by the "
                "atlas's orientation",
                where, 100 * crossed / max(right + left, 1),
            )  # fmt: skip

    @cached_property
    def _hemisphere_of_column(self) -> NDArray[np.uint8]:
        # BrainGlobe: index < round(n / 2) along right-to-left is right, the rest left.
        n = self.shape[2]
        return np.where(np.arange(n) < round(n / 2), RIGHT, LEFT).astype(np.uint8)

    def lookup(self, points_atlas_um: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
        """Structure and hemisphere of each point.

        Parameters
        ----------
        points_atlas_um : array (N, 3)
            Atlas um (asr, from the outer corner). NaN and points beyond the box are outside.

        Returns
        -------
        region_id : int64 array (N,)
            Id of the voxel that contains the point; 0 = outside.
        hemisphere : int8 array (N,)
            0 = none (outside), 1 = left, 2 = right.
        """
        index, inside = atlas_um_to_index(points_atlas_um, self.resolution_um, self.shape)
        z, y, x = index.T
        region = np.where(inside, self.annotation[z, y, x].astype(np.int64), OUTSIDE_ID)
        hemisphere = np.where(
            region != OUTSIDE_ID, self.hemispheres[z, y, x].astype(np.int8), np.int8(UNDECIDED)
        )
        return region, hemisphere

    @cached_property
    def border_map_um(self) -> NDArray[np.float16]:
        """Distance of every voxel's centre to the border of its structure, um, (z, y, x), asr."""
        return border_distances(self.annotation, self.resolution_um)

    def border_um(self, points_atlas_um: ArrayLike) -> NDArray[np.float32]:
        """Distance of each point to the border of its structure: a small one says the region is uncertain.

        Parameters
        ----------
        points_atlas_um : array (N, 3)
            Atlas um (asr, from the outer corner).

        Returns
        -------
        float32 array (N,)
            um, at most `brainmap.atlas.border.FARTHEST_UM`; for points outside the structures the distance
            to the nearest one; NaN for points that are NaN or beyond the atlas's box.
        """
        return border_at(points_atlas_um, self.annotation, self.border_map_um, self.resolution_um)

    def fingerprint_parts(self) -> dict[str, Any]:
        """What identifies this atlas in a run record, without reading its images."""
        return {
            "name": self.name,
            "shape": self.shape,
            "resolution_um": self.resolution_um,
            **self.files.identity(),
        }

    def _array(self, kind: str) -> NDArray[Any]:
        array = axis_map(self.files.orientation, ATLAS_ORIENTATION).array(self.files.array(kind))
        if array.shape != self.shape:
            raise DataError(
                f"{self.files.where(kind)}: shape {array.shape} does not agree with the metadata, {self.shape}"
            )
        return np.ascontiguousarray(array)

    def _without_unknown_ids(self, ids: NDArray[np.uint32]) -> NDArray[np.uint32]:
        unknown = [i for i in _distinct(ids) if i != OUTSIDE_ID and int(self.structures.rows_of(i)) < 0]
        if not unknown:
            return ids
        wrong = np.isin(ids, np.array(unknown, dtype=np.uint32))
        share = wrong.sum() / max(int((ids != OUTSIDE_ID).sum()), 1)
        examples = ", ".join(str(i) for i in unknown[:5])
        message = (
            f"{self.files.where('annotation')}: {len(unknown)} ids ({examples}{', ...' if len(unknown) > 5 else ''}) "
            f"in {share:.2%} of the labelled voxels are missing in the ontology"
        )
        if share > _MAX_UNKNOWN_SHARE:
            raise DataError(
                f"{message}: if annotation and structures belong together, add a row for each of these ids to the "
                "structures (unlisted ones may share a parent), or set their voxels to 0"
            )
        log.warning("%s; points there count as outside", message)
        return np.where(wrong, np.uint32(OUTSIDE_ID), ids)

    def __getstate__(self) -> dict[str, Any]:
        # Workers get the small record; the arrays are read again where they are needed.
        cached = ("reference", "annotation", "hemispheres", "_hemisphere_of_column", "border_map_um")
        return {key: value for key, value in self.__dict__.items() if key not in cached}


def _distinct(ids: NDArray[np.uint32]) -> list[int]:
    """Distinct values, without sorting every voxel: only where the value changes along a row."""
    changes = np.empty(ids.shape, dtype=bool)
    changes[..., 0] = True
    np.not_equal(ids[..., 1:], ids[..., :-1], out=changes[..., 1:])
    return [int(i) for i in np.unique(ids[changes])]
