"""How an atlas lies on disk. A layout answers the few questions of `AtlasFiles`; here: BrainGlobe v2."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from brainmap.atlas.structures import Structures
from brainmap.coords import parse_orientation
from brainmap.errors import DataError, NotFoundError, UsageError

__all__ = ["AtlasFiles", "BrainGlobeV2", "open_layout"]


class AtlasFiles(Protocol):
    """What an `Atlas` needs from its files. Arrays come in the orientation of the files."""

    @property
    def orientation(self) -> str:
        """Orientation of the stored arrays."""

    @property
    def resolution_um(self) -> tuple[float, float, float]:
        """Voxel size in the order of the stored axes, um."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the stored arrays."""

    def structures(self) -> Structures:
        """Read the ontology."""

    def has(self, kind: str) -> bool:
        """Whether the atlas has its own array of this kind (only ``hemispheres`` may be absent)."""

    def array(self, kind: str) -> NDArray[Any]:
        """Read ``reference``, ``annotation`` or ``hemispheres``."""

    def where(self, kind: str) -> str:
        """Name of the file an array comes from, for messages."""

    def identity(self) -> dict[str, Any]:
        """JSON values that change when the atlas changes, without reading the arrays."""


def open_layout(folder: Path) -> AtlasFiles:
    """Recognise the layout of an atlas folder.

    Raises
    ------
    DataError
        If the folder is of no known layout; the message names what is missing.
    """
    needed = ("metadata.json", "structures.json", "annotation.tiff", "reference.tiff")
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{folder} is not an atlas folder in BrainGlobe v2 layout: {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing"
        )
    return BrainGlobeV2.open(folder)


@dataclass(frozen=True)
class BrainGlobeV2:
    """A folder with ``metadata.json``, ``structures.json`` and TIFF arrays (brainglobe-atlasapi <= 2.3)."""

    folder: Path
    orientation: str
    resolution_um: tuple[float, float, float]
    shape: tuple[int, int, int]

    @classmethod
    def open(cls, folder: Path) -> BrainGlobeV2:
        """Read and check the metadata."""
        path = folder / "metadata.json"
        metadata = _read_json(path)
        try:
            orientation = parse_orientation(metadata["orientation"])
            resolution = tuple(float(r) for r in metadata["resolution"])
            shape = tuple(int(n) for n in metadata["shape"])
        except (KeyError, TypeError, ValueError) as error:
            detail = str(error) if isinstance(error, UsageError) else repr(error)
            raise DataError(f"{path}: orientation, resolution and shape are needed ({detail})") from error
        if len(resolution) != 3 or len(shape) != 3 or min(resolution) <= 0 or min(shape) <= 0:
            raise DataError(
                f"{path}: resolution {resolution} and shape {shape} must be three positive numbers each"
            )
        return cls(
            folder,
            orientation,
            (resolution[0], resolution[1], resolution[2]),
            (shape[0], shape[1], shape[2]),
        )

    def structures(self) -> Structures:
        """Read ``structures.json``."""
        path = self.folder / "structures.json"
        records = _read_json(path)
        if not isinstance(records, list):
            raise DataError(f"{path}: a list of structures is expected")
        return Structures.from_records(records, str(path))

    def has(self, kind: str) -> bool:
        """Whether ``<kind>.tiff`` exists."""
        return self._tiff(kind).is_file()

    def array(self, kind: str) -> NDArray[Any]:
        """Read ``<kind>.tiff``, native endianness."""
        import tifffile

        path = self._tiff(kind)
        try:
            array = tifffile.imread(path)
        except FileNotFoundError as error:
            raise NotFoundError(f"{path} does not exist") from error
        except (ValueError, OSError, tifffile.TiffFileError) as error:
            raise DataError(f"{path} cannot be read as a TIFF image: {error}") from error
        return array.astype(array.dtype.newbyteorder("="), copy=False)

    def where(self, kind: str) -> str:
        """Path of the TIFF file."""
        return str(self._tiff(kind))

    def identity(self) -> dict[str, Any]:
        """Hash of the JSON files, and the sizes of the TIFF files."""
        digest = hashlib.sha256()
        for name in ("metadata.json", "structures.json"):
            digest.update((self.folder / name).read_bytes())
        kinds = [kind for kind in ("reference", "annotation", "hemispheres") if self.has(kind)]
        sizes = {kind: self._tiff(kind).stat().st_size for kind in kinds}
        return {"layout": "brainglobe-v2", "sha256_json": digest.hexdigest(), "bytes": sizes}

    def _tiff(self, kind: str) -> Path:
        return self.folder / f"{kind}.tiff"


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error
