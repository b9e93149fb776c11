"""How an atlas lies on disk. A layout answers the few questions of `AtlasFiles`; here: BrainGlobe v2 and v3.

An atlas of one's own: `brainmap.atlas.plain_folder`.
"""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from brainmap.atlas.plain_folder import ATLAS_JSON, PlainFolder
from brainmap.atlas.structures import Structures
from brainmap.coords import parse_orientation
from brainmap.errors import DataError, NotFoundError, UsageError

__all__ = ["MANIFEST", "AtlasFiles", "BrainGlobeV2", "BrainGlobeV3", "open_layout", "v3_name"]

#: The file that names the parts of an atlas in BrainGlobe v3 layout.
MANIFEST = "manifest.json"

Geometry = tuple[str, tuple[float, float, float], tuple[int, int, int]]


class AtlasFiles(Protocol):
    """What an `Atlas` needs from its files. Arrays come in the orientation of the files."""

    @property
    def folder(self) -> Path:
        """The folder by which the atlas is opened."""

    @property
    def name(self) -> str:
        """Name with resolution and version."""

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
    if (folder / MANIFEST).is_file():
        return BrainGlobeV3.open(folder)
    if (folder / ATLAS_JSON).is_file():
        return PlainFolder.open(folder)
    needed = ("metadata.json", "structures.json", "annotation.tiff", "reference.tiff")
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{folder} is not an atlas folder in BrainGlobe v2 layout: {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing (nor in v3 layout: it has no {MANIFEST}; nor one of "
            f"your own: it has no {ATLAS_JSON}){_inside(folder)}"
        )
    return BrainGlobeV2.open(folder)


def _inside(folder: Path) -> str:
    """A hint where the folder holds atlases instead of being one."""
    found = sorted(path.parent.name for path in folder.glob("*/structures.json"))
    return f"; it holds {', '.join(found)}: give one of these folders" if found else ""


def v3_name(folder: Path) -> str:
    """Name of an atlas in v3 layout: ``.../allen_mouse_50um/1_2`` is ``allen_mouse_50um_v1.2``."""
    return f"{folder.parent.name}_v{folder.name.replace('_', '.')}"


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
        return cls(folder, *_geometry(folder / "metadata.json"))

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.name

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


@dataclass(frozen=True)
class BrainGlobeV3:
    """A manifest that names shared parts: a terminology and OME-Zarr images (brainglobe-atlasapi >= 3.0).

    The manifest lies in ``ROOT/atlases/<name>/<version>``, the parts in ``ROOT`` under the locations it
    names. One image serves atlases of several resolutions: its level of this atlas's voxel size is read.
    brainglobe-atlasapi fetches the voxels of a level when it first reads them, so they may be missing.
    """

    folder: Path
    orientation: str
    resolution_um: tuple[float, float, float]
    shape: tuple[int, int, int]
    symmetric: bool
    terminology: Path
    images: dict[str, Path]

    @classmethod
    def open(cls, folder: Path) -> BrainGlobeV3:
        """Read and check the manifest; the parts it names must be there.

        Raises
        ------
        DataError
            If the manifest lacks something, or a part is missing.
        """
        path = folder / MANIFEST
        geometry = _geometry(path)
        manifest = _read_json(path)
        if len(folder.parents) < 3:
            raise DataError(f"{path} does not lie in ROOT/atlases/<name>/<version>")
        root = folder.parents[2]
        try:
            annotation = root / manifest["annotation_set"]["location"].lstrip("/")
            template = root / manifest["annotation_set"]["template"]["location"].lstrip("/")
            terminology = root / manifest["terminology"]["location"].lstrip("/") / "terminology.csv"
            symmetric = bool(manifest["symmetric"])
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path}: annotation_set, its template, terminology (each with a location) and symmetric are "
                f"needed ({error!r})"
            ) from error
        images = {
            "reference": template / "template.ome.zarr",
            "annotation": annotation / "annotations_compressed.ome.zarr",
        }
        if not symmetric:
            images["hemispheres"] = annotation / "hemispheres.ome.zarr"
        for part in (terminology, *images.values()):
            if not part.exists():
                raise DataError(
                    f"{path} names {part}, which does not exist: copy the atlas with all its parts"
                )
        return cls(folder, *geometry, symmetric, terminology, images)

    @property
    def name(self) -> str:
        """Name with resolution and version, as the v2 layout writes it."""
        return v3_name(self.folder)

    def structures(self) -> Structures:
        """Read ``terminology.csv``."""
        try:
            with self.terminology.open(encoding="utf-8-sig", newline="") as file:
                rows = list(csv.DictReader(file))
            records = [
                {
                    "id": row["identifier"],
                    "acronym": row["abbreviation"],
                    "name": row["name"],
                    "structure_id_path": row["root_identifier_path"].strip("[] ").replace(",", " ").split(),
                    "rgb_triplet": _rgb(row.get("color_hex_triplet")),
                }
                for row in rows
            ]
        except (OSError, ValueError, KeyError, AttributeError, csv.Error) as error:
            raise DataError(f"{self.terminology} cannot be read as a terminology ({error!r})") from error
        return Structures.from_records(records, str(self.terminology))

    def has(self, kind: str) -> bool:
        """Whether the manifest names this image; a symmetric atlas has no hemispheres."""
        return kind in self.images

    def array(self, kind: str) -> NDArray[Any]:
        """Read the level of this atlas's voxel size, fetching it through brainglobe-atlasapi if it can be.

        Raises
        ------
        NotFoundError
            If the voxels are not on this machine.
        DataError
            If the image has no such level.
        """
        from brainmap.image.volume import Volume

        volume = Volume.open(self.images[kind])
        fits = [
            number
            for number, level in enumerate(volume.levels)
            if np.allclose(level.voxel_um, self.resolution_um, rtol=1e-4)
        ]
        if not fits:
            raise DataError(f"{self.images[kind]} has no level with voxels of {self.resolution_um} um")
        level = volume.levels[fits[0]]
        self._require_voxels(kind, self.images[kind] / level.path)
        z, y, x = (slice(0, n) for n in level.shape)
        return volume.read(z, y, x, level=fits[0])

    def where(self, kind: str) -> str:
        """Path of the OME-Zarr image."""
        return str(self.images[kind])

    def identity(self) -> dict[str, Any]:
        """Hash of the manifest, which names every part with its version, and of the terminology."""
        digest = hashlib.sha256()
        for path in (self.folder / MANIFEST, self.terminology):
            digest.update(path.read_bytes())
        return {"layout": "brainglobe-v3", "sha256_json": digest.hexdigest()}

    def _require_voxels(self, kind: str, level: Path) -> None:
        # Zarr reads chunks that are not there as zeros: an atlas without brain, without an error.
        if (level / "c").is_dir():
            return
        from brainmap.atlas.download import download_atlas

        name = self.folder.parent.name
        download_atlas(name)
        if not (level / "c").is_dir():
            raise NotFoundError(
                f"the {kind} of atlas {self.name} has not been fetched ({level} holds no voxels): with a network, "
                f"install brainglobe-atlasapi and open the atlas once, or copy {level} from a machine that has it"
            )


def _geometry(path: Path) -> Geometry:
    """Orientation, voxel size and shape from the metadata of an atlas."""
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
    return (
        orientation,
        (resolution[0], resolution[1], resolution[2]),
        (shape[0], shape[1], shape[2]),
    )


def _rgb(text: str | None) -> list[int] | None:
    """``#RRGGBB`` as three numbers; None where there is no colour."""
    digits = (text or "").strip().lstrip("#")
    return list(bytes.fromhex(digits)) if digits else None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error
