"""Tile folders: two-dimensional images of tissue with a record of where each comes from.

A tile folder holds `tiles.parquet` and `images/<image_id>.png`. Its images are 8-bit, 255 x the normalised
intensity that detection uses (`brainmap.image.intensity`), so that what people annotate, what a network is
trained on and what it later sees in a brain are the same grey levels. In an image x is right, y is down,
and 0 is the centre of the first pixel.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from brainmap.errors import DataError, NotFoundError, UsageError, what_it_is
from brainmap.files import atomic_path
from brainmap.gt.clicks import check_image_ids
from brainmap.image.array_source import ArraySource
from brainmap.image.intensity import Intensity
from brainmap.lock import held_beside
from brainmap.tiles.pictures import read_grey, to_range

__all__ = [
    "QualityRule",
    "Tiles",
    "check_target",
    "hold_out",
    "import_tiles",
    "quality_filter",
    "write_tiles",
]

log = logging.getLogger(__name__)

TILES_PARQUET = "tiles.parquet"
IMAGES = "images"

_REQUIRED = ("image_id", "brain", "z", "height", "width", "voxel_um")
_OPTIONAL: dict[str, Any] = {"y0": 0, "x0": 0, "region_id": 0, "dataset": "", "is_qc": False, "split": ""}
_TYPES = {
    "image_id": str, "brain": str, "z": np.int64, "y0": np.int64, "x0": np.int64, "height": np.int64,
    "width": np.int64, "region_id": np.int64, "dataset": str, "is_qc": np.bool_, "split": str,
    "voxel_um": np.float64,
}  # fmt: skip


@dataclass(frozen=True)
class Tiles:
    """The tiles of one folder; images are read when asked for.

    Parameters
    ----------
    folder : Path
        The tile folder.
    columns : dict of ndarray
        Columns of `tiles.parquet`, each of length n; `voxel_um` has shape (n, 3), order z, y, x.
    """

    folder: Path
    columns: dict[str, NDArray[Any]]

    @classmethod
    def open(cls, folder: str | Path) -> Tiles:
        """Open a tile folder.

        Raises
        ------
        NotFoundError
            No table in the folder, or an image that the table names is missing.
        DataError
            A table that cannot be read or lacks a column, no tiles at all, or two tiles of one name.
        """
        folder = Path(folder)
        path = folder / TILES_PARQUET
        if not path.is_file():
            raise NotFoundError(
                f"{folder} is no tile folder: there is no {TILES_PARQUET} in it{what_it_is(folder)}"
            )
        try:
            table = pa.parquet.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
        values = {name: table[name].to_pylist() for name in table.column_names}
        tiles = cls(folder, _columns(values, str(path)))
        missing = [name for name in tiles.ids if not tiles.image_path(name).is_file()]
        if missing:
            raise NotFoundError(
                f"{folder}: {len(missing)} of {len(tiles)} images are missing, the first is "
                f"{IMAGES}/{missing[0]}.png"
            )
        return tiles

    def __len__(self) -> int:
        return len(self.columns["image_id"])

    @property
    def ids(self) -> NDArray[Any]:
        """Name of each tile, str."""
        return self.columns["image_id"]

    @property
    def shapes(self) -> NDArray[np.int64]:
        """Height and width of each tile, (n, 2) px."""
        return np.stack([self.columns["height"], self.columns["width"]], axis=1)

    @property
    def slice_key(self) -> NDArray[Any]:
        """Name of the slice (brain and z) each tile was cut from, str; tiles of one slice are not independent."""
        pairs = zip(self.columns["brain"], self.columns["z"], strict=True)
        return np.array([f"{brain}/{z}" for brain, z in pairs], dtype=object)

    def image_path(self, image_id: str) -> Path:
        """File of one tile's image."""
        return self.folder / IMAGES / f"{image_id}.png"

    def image(self, index: int) -> NDArray[np.float32]:
        """Normalised intensity of one tile, float32 (height, width) in 0..1.

        Raises
        ------
        DataError
            The file is no 8-bit grey PNG of the size the table gives.
        """
        path = self.image_path(self.ids[index])
        try:
            grey = imagecodecs.png_decode(path.read_bytes())
        except (ValueError, RuntimeError, OSError) as error:
            raise DataError(f"{path} cannot be read as a PNG: {error}") from error
        expected = tuple(int(n) for n in self.shapes[index])
        if grey.dtype != np.uint8 or grey.shape != expected:
            raise DataError(
                f"{path} is {grey.dtype} of shape {grey.shape}; the table says 8-bit grey of shape {expected}"
            )
        return grey.astype(np.float32) / np.float32(255)

    def take(self, chosen: NDArray[Any]) -> Tiles:
        """The tiles of a mask or of indices, in that order; images stay where they are."""
        return Tiles(self.folder, {name: values[chosen] for name, values in self.columns.items()})


def write_tiles(
    folder: str | Path, columns: Mapping[str, Any], images: Iterable[NDArray[np.float32]]
) -> Tiles:
    """Write a tile folder; it appears when it is complete.

    Parameters
    ----------
    folder : path
        A new folder, or a tile folder to replace.
    columns : mapping
        `image_id brain z voxel_um` (n, 3) z, y, x; `y0 x0 region_id dataset is_qc split` are optional, and
        height and width are taken from the images. Further columns are kept.
    images : iterable of ndarray, float (height, width) in 0..1
        As many as rows, in their order; rounded to 8 bit.

    Raises
    ------
    UsageError
        The folder exists and is no tile folder.
    DataError
        No tiles, names that are no file names or not unique, values outside 0..1.
    """
    folder = Path(folder)
    check_target(folder)
    names = [str(name) for name in columns["image_id"]]
    _check_names(names, str(folder))
    shapes: list[tuple[int, int]] = []
    with atomic_path(folder) as part:
        for name, image in zip(names, images, strict=True):
            path = part / IMAGES / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(imagecodecs.png_encode(_to_8_bit(image, name)))
            shapes.append(image.shape)  # type: ignore[arg-type]
        height, width = np.array(shapes).T
        checked = _columns({**columns, "height": height, "width": width}, str(folder))
        pa.parquet.write_table(_table(checked), part / TILES_PARQUET)
    return Tiles(folder, checked)


def check_target(folder: Path, overwrite: bool = True) -> None:
    """Refuse to replace anything but a tile folder, and that without being told to (UsageError)."""
    if not overwrite and (folder / TILES_PARQUET).is_file():
        raise UsageError(
            f"{folder} holds tiles already; replace them with --overwrite, or give another --out"
        )
    replaceable = not folder.exists() or (folder / TILES_PARQUET).is_file()
    if not replaceable and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is no tile folder; give another folder")


def _to_8_bit(image: NDArray[Any], name: str) -> NDArray[np.uint8]:
    if image.ndim != 2 or image.size == 0:
        raise DataError(f"tile {name!r} has shape {image.shape}; a tile is one grey image")
    if not (image.min() >= 0 and image.max() <= 1):
        raise DataError(f"tile {name!r} holds values outside 0..1 or not finite")
    return np.rint(image * 255).astype(np.uint8)


def _check_names(names: list[str], where: str) -> None:
    if not names:
        raise DataError(f"{where} holds no tiles")
    check_image_ids(names)
    if len(set(names)) < len(names):
        double = next(name for i, name in enumerate(names) if name in names[:i])
        raise DataError(f"{where}: image_id {double!r} stands for more than one tile")


def _columns(values: Mapping[str, Any], where: str) -> dict[str, NDArray[Any]]:
    """Columns in their types; what is optional is filled in."""
    missing = [name for name in _REQUIRED if name not in values]
    if missing:
        raise DataError(f"{where} has no column {missing[0]!r}; a tile table needs {', '.join(_REQUIRED)}")
    n = len(values["image_id"])
    columns: dict[str, NDArray[Any]] = {}
    for name in dict.fromkeys([*_TYPES, *values]):
        column = values.get(name, [_OPTIONAL.get(name)] * n)
        kind = _TYPES.get(name)
        try:
            if kind is str:
                columns[name] = np.array([str(v) for v in column], dtype=object)
            else:
                columns[name] = np.asarray(column) if kind is None else np.asarray(column).astype(kind)
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: column {name} holds a value of another type ({error})") from error
        if len(columns[name]) != n:
            raise DataError(f"{where}: column {name} has {len(columns[name])} values for {n} tiles")
    _check_names(list(columns["image_id"]), where)
    voxel = columns["voxel_um"]
    if voxel.shape != (n, 3) or not (voxel > 0).all():
        raise DataError(f"{where}: voxel_um must be three positive numbers (z, y, x) for every tile")
    return columns


def _table(columns: dict[str, NDArray[Any]]) -> pa.Table:
    arrays = {}
    for name, values in columns.items():
        if values.ndim == 2:
            arrays[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
        else:
            arrays[name] = pa.array(values)
    return pa.table(arrays)


def hold_out(tiles: Tiles, share: float, seed: int) -> NDArray[np.bool_]:
    """Choose tiles to keep away from training: whole slices only, so that no slice is on both sides.

    Parameters
    ----------
    tiles : Tiles
    share : float
        Share of the tiles to hold out, above 0 and below 1; met as nearly as whole slices allow, with at
        least one slice on either side.
    seed : int

    Returns
    -------
    ndarray of bool, shape (n,)
        True = held out.

    Raises
    ------
    UsageError
        A share that is not between 0 and 1.
    DataError
        All tiles come from one slice.
    """
    if not 0 < share < 1:
        raise UsageError(f"the share to hold out is {share:g}; give a number between 0 and 1")
    slices, member, count = np.unique(tiles.slice_key, return_inverse=True, return_counts=True)
    if len(slices) < 2:
        raise DataError(f"all {len(tiles)} tiles come from one slice; holding out needs at least two slices")
    order = np.random.default_rng(seed).permutation(len(slices))
    reached = np.cumsum(count[order])[:-1]
    best = int(np.argmin(np.abs(reached - share * len(tiles))))
    return np.isin(member, order[: best + 1])


@dataclass(frozen=True)
class QualityRule:
    """When a tile is not worth annotating (methods 2), on the histogram of its normalised intensity.

    Parameters
    ----------
    bins : int
        Bins over 0..1.
    background_bins, background_share : int, float
        Rejected if at least this share of the pixels lies in the first so many bins.
    least_deviation : float
        Rejected if the standard deviation is not above this.
    bright_bins, bright_share : int, float
        Rejected if less than this share lies in the last so many bins.
    """

    bins: int = 64
    background_bins: int = 14
    background_share: float = 0.50
    least_deviation: float = 0.1
    bright_bins: int = 11
    bright_share: float = 0.001


def quality_filter(image: NDArray[np.float32], rule: QualityRule = QualityRule()) -> tuple[str, ...]:
    """Reasons to reject a tile, none for a good one.

    Parameters
    ----------
    image : ndarray, float (height, width) in 0..1
    rule : QualityRule

    Returns
    -------
    tuple of str
        Of "background", "flat", "dim".
    """
    counts, _ = np.histogram(image, rule.bins, (0, 1))
    share = counts / counts.sum()
    reasons = []
    if share[: rule.background_bins].sum() >= rule.background_share:
        reasons.append("background")
    if image.std() <= rule.least_deviation:
        reasons.append("flat")
    if share[-rule.bright_bins :].sum() < rule.bright_share:
        reasons.append("dim")
    return tuple(reasons)


def import_tiles(
    images: list[Path],
    folder: str | Path,
    *,
    voxel_um: tuple[float, float, float],
    cell_diameter_um: float = 10.0,
    normalise: bool = True,
    tile_px: int | None = None,
    quality: QualityRule | None = None,
    overwrite: bool = False,
) -> Tiles:
    """Make a tile folder of plain images, each a section of its own.

    Parameters
    ----------
    images : list of Path
        PNG, TIFF or JPEG; 8 or 16 bit or float; colour becomes luminance. A tile is named after its file.
    folder : path
        The tile folder to write.
    voxel_um : tuple of float
        Pixel size and section thickness, z, y, x.
    cell_diameter_um : float
        Diameter of a typical cell; sets the scale that counts as background.
    normalise : bool
        Whether to normalise as detection does. Without it values are divided by the range of their type
        (255, 65535; float images must lie in 0..1).
    tile_px : int, optional
        Cut every image into tiles of this width and height, named `<file>_y<row>_x<column>`; what is left
        at the right and lower edge is dropped.
    quality : QualityRule, optional
        Leave out tiles that this rule rejects.
    overwrite : bool
        Replace the tiles that are there.

    Raises
    ------
    NotFoundError, DataError, UsageError
        A missing file; one that cannot be read or is smaller than a tile; two files of one name; no tile left;
        a pixel size or tile size that is not positive.
    """
    if len(voxel_um) != 3 or not all(v > 0 for v in voxel_um):
        raise UsageError(f"voxel size is {voxel_um}; give three positive numbers: z, y, x in um")
    if tile_px is not None and tile_px < 1:
        raise UsageError(f"tile size is {tile_px} px; give a positive number")
    if not images:
        raise UsageError("no images to import")
    if folders := [path for path in map(Path, images) if path.is_dir()]:
        raise UsageError(
            f"{folders[0]} is a folder: import-tiles takes single images (PNG, TIFF, JPEG); tiles of a brain are made "
            "with brainmap crowd sample"
        )
    check_target(Path(folder), overwrite)
    rows: list[tuple[str, str, int, int]] = []
    cut: list[NDArray[np.float32]] = []
    rejected = 0
    for path in (Path(p) for p in images):
        grey = read_grey(path)
        grey = _normalised(grey, voxel_um, cell_diameter_um, path) if normalise else to_range(grey, path)
        for y, x in _corners(grey.shape, tile_px, path):
            tile = grey if tile_px is None else grey[y : y + tile_px, x : x + tile_px]
            if quality is not None and quality_filter(tile, quality):
                rejected += 1
                continue
            name = path.stem if tile_px is None else f"{path.stem}_y{y:05d}_x{x:05d}"
            rows.append((name, path.stem, y, x))
            cut.append(tile)
    if rejected:
        log.info("%d of %d tiles rejected by their histogram", rejected, rejected + len(rows))
    if not rows:
        raise DataError(f"none of the {rejected} tiles passes the quality rule")
    ids, brains, y0, x0 = zip(*rows, strict=True)
    columns = {"image_id": ids, "brain": brains, "z": [0] * len(ids), "y0": y0, "x0": x0,
               "voxel_um": [voxel_um] * len(ids)}  # fmt: skip
    with held_beside(Path(folder)):
        return write_tiles(folder, columns, cut)


def _corners(shape: tuple[int, ...], tile_px: int | None, path: Path) -> list[tuple[int, int]]:
    if tile_px is None:
        return [(0, 0)]
    if min(shape) < tile_px:
        raise DataError(f"{path} is {shape[0]} x {shape[1]} px, smaller than a tile of {tile_px} px")
    rows, columns = (range(0, n - tile_px + 1, tile_px) for n in shape)
    return [(y, x) for y in rows for x in columns]


def _normalised(
    grey: NDArray[Any], voxel_um: tuple[float, float, float], cell_um: float, path: Path
) -> NDArray[np.float32]:
    """The section's normalised intensity at its own resolution, as detection would find it."""
    volume = grey[None]
    try:
        intensity = Intensity.fit(ArraySource(volume, voxel_um), cell_um)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    axes = [np.arange(float(n)) for n in volume.shape]
    return intensity.normalise(volume, *axes)[0]
