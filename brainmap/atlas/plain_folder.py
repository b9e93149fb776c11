"""An atlas of one's own: a plain folder with two images, a table of structures and three facts.

``atlas.json`` holds ``resolution`` (um, three numbers in the order of the axes) and ``orientation`` (three letters);
``annotation`` and ``reference`` (and ``hemispheres`` where it is not symmetric) are TIFF or NumPy files;
``structures.csv`` has the columns ``id,acronym,name,parent_id``: parent 0 or empty for a root.
"""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.atlas.structures import OUTSIDE_ID, Structures
from brainmap.coords import parse_orientation
from brainmap.errors import DataError, UsageError
from brainmap.files import read_json

__all__ = ["ATLAS_JSON", "PlainFolder"]

ATLAS_JSON = "atlas.json"
STRUCTURES_CSV = "structures.csv"
_COLUMNS = ("id", "acronym", "name", "parent_id")
_SUFFIXES = (".tif", ".tiff", ".npy")


@dataclass(frozen=True)
class PlainFolder:
    """See the module's docstring; the layout of `brainmap.atlas.layout.AtlasFiles`."""

    folder: Path
    orientation: str
    resolution_um: tuple[float, float, float]
    shape: tuple[int, int, int]

    @classmethod
    def open(cls, folder: Path) -> PlainFolder:
        """Read and check ``atlas.json`` and what there is.

        Raises
        ------
        DataError
            If a part is missing or cannot be read.
        """
        path = folder / ATLAS_JSON
        facts = read_json(path)
        try:
            orientation = parse_orientation(facts["orientation"])
            z, y, x = (float(step) for step in facts["resolution"])
        except (KeyError, TypeError, ValueError) as error:
            detail = str(error) if isinstance(error, UsageError) else repr(error)
            raise DataError(
                f"{path}: resolution (three numbers, um) and orientation are needed ({detail})"
            ) from error
        if min(z, y, x) <= 0:
            raise DataError(f"{path}: resolution must be three positive numbers")
        if not (folder / STRUCTURES_CSV).is_file():
            raise DataError(f"{folder} has no {STRUCTURES_CSV} ({','.join(_COLUMNS)})")
        _image(folder, "reference")
        return cls(folder, orientation, (z, y, x), _shape(_image(folder, "annotation")))

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.name

    def structures(self) -> Structures:
        """Read ``structures.csv``."""
        path = self.folder / STRUCTURES_CSV
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = list(csv.DictReader(file))
            parents = {int(row["id"]): int(row["parent_id"] or OUTSIDE_ID) for row in rows}
            records = [
                {
                    "id": row["id"],
                    "acronym": row["acronym"],
                    "name": row["name"],
                    "structure_id_path": _path(int(row["id"]), parents, path),
                }
                for row in rows
            ]
        except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path} must have the columns {','.join(_COLUMNS)} ({error!r})") from error
        return Structures.from_records(records, str(path))

    def has(self, kind: str) -> bool:
        """Whether there is an image of this kind."""
        return any((self.folder / f"{kind}{suffix}").is_file() for suffix in _SUFFIXES)

    def array(self, kind: str) -> NDArray[Any]:
        """Read an image, native endianness."""
        import tifffile

        path = _image(self.folder, kind)
        try:
            array = np.load(path) if path.suffix == ".npy" else tifffile.imread(path)
        except (ValueError, OSError, tifffile.TiffFileError) as error:
            raise DataError(f"{path} cannot be read as an image: {error}") from error
        return np.asarray(array.astype(array.dtype.newbyteorder("="), copy=False))

    def where(self, kind: str) -> str:
        """Path of the image."""
        return str(_image(self.folder, kind))

    def identity(self) -> dict[str, Any]:
        """Hash of the facts and the structures, and the sizes of the images."""
        digest = hashlib.sha256()
        for name in (ATLAS_JSON, STRUCTURES_CSV):
            digest.update((self.folder / name).read_bytes())
        kinds = [kind for kind in ("reference", "annotation", "hemispheres") if self.has(kind)]
        sizes = {kind: _image(self.folder, kind).stat().st_size for kind in kinds}
        return {"layout": "plain", "sha256_json": digest.hexdigest(), "bytes": sizes}


def _image(folder: Path, kind: str) -> Path:
    for suffix in _SUFFIXES:
        if (path := folder / f"{kind}{suffix}").is_file():
            return path
    raise DataError(f"{folder} has no image {kind} ({', '.join(kind + suffix for suffix in _SUFFIXES)})")


def _shape(path: Path) -> tuple[int, int, int]:
    """Shape of an image, without reading its voxels."""
    import tifffile

    try:
        if path.suffix == ".npy":
            shape = np.load(path, mmap_mode="r").shape
        else:
            with tifffile.TiffFile(path) as tiff:
                shape = tiff.series[0].shape
    except (ValueError, OSError, IndexError, tifffile.TiffFileError) as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from error
    if len(shape) != 3:
        raise DataError(f"{path} must be an image with three axes, not {len(shape)}")
    return shape[0], shape[1], shape[2]


def _path(number: int, parents: dict[int, int], where: Path) -> list[int]:
    """Ids from the root to a structure."""
    steps = [number]
    while (parent := parents[steps[0]]) != OUTSIDE_ID:
        if parent not in parents:
            raise DataError(f"{where}: structure {steps[0]} has parent {parent}, which is not in the table")
        if parent in steps:
            raise DataError(f"{where}: structure {number} lies inside itself")
        steps.insert(0, parent)
    return steps
