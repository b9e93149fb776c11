"""Image stacks that are not OME-Zarr: TIFF files and folders, NumPy files, others, as a source of slabs."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.convert.folder import TIFF_SUFFIXES, folder_stack, list_stack, plane_files
from brainmap.convert.foreign import BIOIO_SUFFIXES, refuse_unreadable
from brainmap.convert.stack import Reading, Stack, checked_dtype, chosen_timepoint, first_line
from brainmap.convert.tiff import UNKNOWN, PartialVoxel
from brainmap.convert.tiff_stack import NotATiffError, tiff_stack
from brainmap.errors import DataError, MissingExtraError, NotFoundError, UsageError, what_it_is
from brainmap.image.axes import check_axes, warn_of_planes_as_channels
from brainmap.image.volume import Volume

__all__ = ["Reading", "Stack", "open_stack"]

_ZARR_FILES = ("zarr.json", ".zattrs", ".zgroup", ".zarray")


@contextmanager
def open_stack(source: str | Path, reading: Reading | None = None) -> Iterator[Stack]:
    """Open a folder or list of planes, a (multi-page, Big-, OME-, ImageJ-) TIFF, a .npy file or a Zarr image.

    Other formats (CZI, LIF, ND2, ...) are read through bioio where it and its plug-in for the format are
    installed. The stack can be read inside the `with` block.

    Raises
    ------
    NotFoundError
        If `source` does not exist.
    DataError
        If it is none of these, or not a grey-value stack; of a folder, if its files are not one series of planes, a
        file differs from the first or is shorter than its header says.
    UsageError
        If `reading` does not fit, or a timepoint must be given.
    MissingExtraError
        If it is another format and bioio is not installed.
    """
    with ExitStack() as files:
        yield _open(source, reading or Reading(), files)


def _open(source: str | Path, reading: Reading, opened: ExitStack) -> Stack:
    if "://" in str(source):
        return _zarr_stack(str(source), reading)
    path = Path(source).expanduser()
    if not path.exists():
        raise NotFoundError(f"{path} does not exist")
    if path.is_dir():
        if any((path / name).exists() for name in _ZARR_FILES):
            return _zarr_stack(str(path), reading)
        if not plane_files(path):
            raise DataError(_no_planes(path))
        return folder_stack(path, reading, opened)
    if reading.planes is not None:
        raise UsageError(f"--planes chooses among the files of a folder, and {path} is a file")
    if not path.is_file():
        raise DataError(f"{path} is neither a file nor a folder")
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return _npy_stack(path, reading)
    if suffix == ".txt":
        return list_stack(path, reading)
    try:
        return tiff_stack(path, reading, opened)
    except NotATiffError:
        if suffix in TIFF_SUFFIXES:
            raise
        refuse_unreadable(path)
        return _bioio_stack(path, reading)


def _no_planes(folder: Path) -> str:
    """What a folder without images holds instead."""
    inside = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    images = [name for name in inside if name.endswith(".zarr")]
    if (folder / "tiles.parquet").is_file() or (folder / "run.json").is_file():
        images, inside = [], []
    deeper = [name for name in inside if (folder / name).is_dir() and plane_files(folder / name)]
    for found in (images, deeper):
        if found:
            return f"{folder} holds no planes itself, but {', '.join(found[:3])}: give one of these"
    known = what_it_is(folder)
    if not known:
        for path in sorted(folder.iterdir()):
            try:
                refuse_unreadable(path)
            except DataError as error:
                known = known or (f"; {error}" if path.is_file() and not path.name.startswith(".") else "")
            else:
                return f"{folder} holds no planes itself, but {path.name}: give that file"
        known = known or _deeper(folder)
    return f"{folder} holds no images (planes are .tif, .tiff, .png or .jpg files){known}"


def _deeper(folder: Path) -> str:
    """Where below a folder planes lie: tiles of a stitcher are a folder for each, in folders of rows."""
    for path in sorted(folder.glob("*/*/")) + sorted(folder.glob("*/*/*/")):
        if path.is_dir() and plane_files(path):
            return (
                f"; planes lie deeper, as in {path.relative_to(folder)}: if these are tiles, stitch them first "
                "(BigStitcher, TeraStitcher), if they are channels, convert one after another"
            )
    return ""


def _npy_stack(path: Path, reading: Reading) -> Stack:
    try:
        data = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, TypeError, SyntaxError, MemoryError, OverflowError) as error:
        raise DataError(f"{path} cannot be read as a NumPy array: {first_line(error)}") from error
    if not isinstance(data, np.ndarray) or 0 in data.shape:
        raise DataError(f"{path} holds no image")
    if reading.axes is None and data.ndim not in (2, 3):
        raise DataError(
            f"{path} has {data.ndim} axes; a stack has 3 (z, y, x) or 2 (y, x), unless --axes says what they are"
        )
    roles = ("z", "y", "x")[3 - data.ndim :] if reading.axes is None else reading.axes
    roles = check_axes(roles, [f"axis {i}" for i in range(data.ndim)], str(path))
    lengths = {role: n for role, n in zip(roles, data.shape, strict=True) if role != "?"}
    if any(n != 1 for role, n in zip(roles, data.shape, strict=True) if role == "?"):
        raise DataError(f"{path}: an axis that --axes gives a dot has more than one entry")
    timepoint = chosen_timepoint(lengths.get("t", 1), reading.timepoint, str(path))
    count, depth = lengths.get("c", 1), lengths.get("z", 1)
    warn_of_planes_as_channels(count, depth, str(path))

    def plane(channel: int, z: int) -> NDArray[Any]:
        place = {"c": channel, "z": z, "t": timepoint, "?": 0}
        image = data[tuple(place.get(role, slice(None)) for role in roles)]
        return image.T if roles.index("x") < roles.index("y") else image

    names = tuple(f"channel {i}" for i in range(count)) if count > 1 else None
    shape = (count, depth, lengths["y"], lengths["x"])
    return Stack(str(path), shape, checked_dtype(data.dtype, str(path)), UNKNOWN, names, plane, (path,))


def _zarr_stack(source: str, reading: Reading) -> Stack:
    """A Zarr image; a bare array without scale is taken as a stack of unknown voxel size."""
    from brainmap.image.storage.arrays import locate, read_node

    bare = read_node(locate(source)).kind == "array"
    given = reading.voxel_um or ((1.0, 1.0, 1.0) if bare else None)
    axes = None if reading.axes is None else "".join("." if role == "?" else role for role in reading.axes)
    first = Volume.open(
        source, channel=0, timepoint=reading.timepoint, voxel_um=given, axes=axes, any_order=True
    )
    names = tuple(n or f"channel {i}" for i, n in enumerate(first.channel_names)) or None
    if names is None and "c" in first.axes:
        names = tuple(f"channel {i}" for i in range(first.n_channels))
    channels = [first.with_channel(c) for c in range(first.n_channels)]
    everything = slice(None)

    def plane(channel: int, z: int) -> NDArray[Any]:
        return channels[channel].read(slice(z, z + 1), everything, everything)[0]

    voxel: PartialVoxel = UNKNOWN if bare else first.voxel_um
    described = ("zarr.json", ".zattrs", ".zarray")
    local = [] if "://" in source else [Path(source), *(p for p in Path(source).iterdir() if p.is_dir())]
    files = tuple(sorted(folder / n for folder in local for n in described if (folder / n).is_file()))
    # As many files as planes would be taken for one file a plane.
    files = files[:1] if len(files) == len(channels) * first.shape[0] else files
    return Stack(first.url, (len(channels), *first.shape), first.dtype, voxel, names, plane, files)


def _bioio_stack(path: Path, reading: Reading) -> Stack:
    """Any format that an installed plug-in of bioio knows; its first scene."""
    if reading.axes is not None:
        raise UsageError(f"--axes does not apply to {path.name}: its format tells what its axes are")
    try:
        bioio = importlib.import_module("bioio")
    except ImportError:
        raise MissingExtraError("bioio", "import", f"read {path.name}, which is not a TIFF,") from None
    try:
        image = bioio.BioImage(path)
        sizes = {axis: int(getattr(image.dims, axis)) for axis in "TCZYX"}
        dtype, pitch = checked_dtype(image.dtype, str(path)), image.physical_pixel_sizes
        z_um, y_um, x_um = (None if v is None else float(v) for v in (pitch.Z, pitch.Y, pitch.X))
        names = tuple(str(name) for name in image.channel_names)
    except DataError:
        raise
    except Exception as error:  # plug-ins raise many kinds
        plug_in = BIOIO_SUFFIXES[path.suffix.lower()]
        raise DataError(
            f"bioio cannot read {path}: {first_line(error)}; its plug-in for this format is {plug_in} (pip install "
            f"{plug_in})"
        ) from error
    timepoint = chosen_timepoint(sizes["T"], reading.timepoint, str(path))
    lock = threading.Lock()

    def plane(channel: int, z: int) -> NDArray[Any]:
        try:
            with lock:
                lazy = image.get_image_dask_data("YX", T=timepoint, C=channel, Z=z)
                return np.asarray(lazy.compute(scheduler="synchronous"))
        except Exception as error:
            raise DataError(f"{path}: plane {z} cannot be read: {first_line(error)}") from error

    shape = (sizes["C"], sizes["Z"], sizes["Y"], sizes["X"])
    return Stack(
        str(path), shape, dtype, (z_um, y_um, x_um), names if sizes["C"] > 1 else None, plane, (path,)
    )
