"""A folder of planes, one a file, or a list of them, as a stack; also a folder that holds an OME-TIFF set."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from brainmap.convert.plane_names import Planes, matching, natural, planes_of
from brainmap.convert.stack import Reading, Stack, checked_dtype, first_line, size_text
from brainmap.convert.tiff import UNKNOWN, PartialVoxel, tiff_voxel_um
from brainmap.convert.tiff_stack import first_series, open_tiff, tiff_stack
from brainmap.errors import DataError, NotFoundError, UsageError

__all__ = ["PICTURE_SUFFIXES", "TIFF_SUFFIXES", "folder_stack", "list_stack", "plane_files"]

log = logging.getLogger(__name__)

TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".tf8", ".tf2")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")

# Size and type of a plane, and a reader of one.
_Header = tuple[tuple[int, int], np.dtype[Any]]


def plane_files(folder: Path) -> list[Path]:
    """The images of a folder: TIFF files, or pictures where there are none, in natural order."""
    for suffixes in (TIFF_SUFFIXES, PICTURE_SUFFIXES):
        named = [p for p in folder.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith(".")]
        # A pipe or a device would be waited for without end.
        files = [p for p in named if p.is_file()]
        if files:
            return sorted(files, key=natural)
    return []


def folder_stack(folder: Path, reading: Reading, opened: ExitStack) -> Stack:
    """The planes of a folder.

    Raises
    ------
    DataError
        If the files are not one series of planes, differ, or cannot be read.
    UsageError
        If --planes names none of them.
    """
    files = matching(plane_files(folder), reading.planes, str(folder))
    if not files:
        raise DataError(
            f"{folder} holds no images ({', '.join((*TIFF_SUFFIXES[:2], *PICTURE_SUFFIXES[:2]))})"
        )
    if files[0].suffix.lower() in TIFF_SUFFIXES:
        whole = _ome_set(folder, files, reading, opened)
        if whole is not None:
            return whole
    planes = planes_of(files, str(folder), reading.allow_gaps, reading.planes)
    return _plane_stack(str(folder), planes, reading)


def list_stack(path: Path, reading: Reading) -> Stack:
    """The planes that a text file lists, one a line, in that order; paths are relative to it.

    Raises
    ------
    DataError, NotFoundError
        If it lists nothing, a file twice, or one that is not there.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text file that lists planes, one a line") from error
    files = [path.parent / Path(line).expanduser() for line in lines if line and not line.startswith("#")]
    if not files:
        raise DataError(f"{path} lists no planes; write one path a line")
    for file in files:
        if not file.is_file():
            raise NotFoundError(f"{path} lists {file}, which does not exist")
        if file.suffix.lower() not in (*TIFF_SUFFIXES, *PICTURE_SUFFIXES):
            raise DataError(
                f"{path} lists {file.name}; planes are {', '.join((*TIFF_SUFFIXES, *PICTURE_SUFFIXES))}"
            )
    repeated = [file for file in files if files.count(file) > 1] if len(set(files)) < len(files) else []
    if repeated:
        raise DataError(f"{path} lists {repeated[0].name} {files.count(repeated[0])} times")
    return _plane_stack(str(path), Planes((tuple(files),)), reading)


def _ome_set(folder: Path, files: list[Path], reading: Reading, opened: ExitStack) -> Stack | None:
    """The image of an OME-TIFF set, if the first file belongs to one; None for a folder of single planes."""
    with open_tiff(files[0]) as tiff:
        series = first_series(tiff, files[0])
        if series.keyframe.samplesperpixel > 1:
            raise DataError(
                f"{files[0]} is a colour image ({series.axes}); brainmap reads grey-value channels"
            )
        if len(series.pages) == 1 and series.ndim == 2:
            return None
        if len(files) > 1 and not tiff.is_ome:
            raise DataError(
                f"{files[0]} holds an image of {size_text(series.shape)} ({series.axes}); "
                "in a folder every file must be one plane: convert one file at a time, or name planes with --planes"
            )
    stack = tiff_stack(files[0], reading, opened)
    # The reader of sets follows links.
    known = {Path(file).resolve() for file in stack.files}
    others = sorted(file for file in files if file.resolve() not in known)
    if others:
        raise DataError(
            f"{folder}: {files[0].name} is an image of its own ({size_text(stack.shape)}: c, z, y, x) that "
            f"{others[0].name} does not belong to; give one file, or name those of one image with --planes"
        )
    return stack


def _plane_stack(where: str, planes: Planes, reading: Reading) -> Stack:
    """One file per plane; every header is compared with the first one's."""
    if reading.axes not in (None, ("z", "y", "x"), ("y", "x")) or reading.timepoint not in (None, 0):
        raise UsageError(
            f"{where}: its files are planes of y, x, in the order of their names; --axes and --timepoint do not apply "
            "(choose among files with --planes)"
        )
    for remark in planes.remarks:
        log.warning("%s: %s", where, remark)
    there = [file for channel in planes.files for file in channel if file is not None]
    size, dtype = _header(there[0])
    number = {file: z for channel in planes.files for z, file in enumerate(channel) if file is not None}
    for file in there:
        found, stored = _header(file)
        if found != size or stored != dtype:
            raise DataError(
                f"{where}: plane {number[file]} is {size_text(found)} of {stored}, the first one {size_text(size)} of "
                f"{dtype} ({file.name}); all planes must be alike"
            )

    def plane(channel: int, z: int) -> NDArray[Any]:
        file = planes.files[channel][z]
        return np.zeros(size, dtype) if file is None else _read(file)

    shape = (len(planes.files), len(planes.files[0]), *size)
    return Stack(where, shape, dtype, _voxel_um(there[0]), planes.channel_names, plane, tuple(there))


def _voxel_um(file: Path) -> PartialVoxel:
    if file.suffix.lower() not in TIFF_SUFFIXES:
        return UNKNOWN
    with open_tiff(file) as tiff:
        return tiff_voxel_um(tiff)


def _header(file: Path) -> _Header:
    """Size and type of a plane, before hours are spent on the files ahead of it."""
    if file.suffix.lower() in PICTURE_SUFFIXES:
        plane = _read(file)
        return (plane.shape[0], plane.shape[1]), plane.dtype
    try:
        with tifffile.TiffFile(file) as tiff:
            count, page = len(tiff.pages), tiff.pages.first
            shape, dtype = tuple(page.shape), page.dtype
            ends = [o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)]
    except Exception as error:  # damaged headers raise many kinds
        raise DataError(f"{file} cannot be read: {first_line(error)}") from error
    if count != 1:
        raise DataError(f"{file} holds {count} pages; every file must be one plane")
    if len(shape) != 2:
        raise DataError(f"{file} is a colour image ({size_text(shape)}); brainmap reads grey-value channels")
    stored = checked_dtype(dtype, str(file))
    if max(ends, default=0) > file.stat().st_size:
        raise DataError(
            f"{file} is truncated: {max(ends)} bytes are announced, {file.stat().st_size} are there"
        )
    return (shape[0], shape[1]), stored


def _read(file: Path) -> NDArray[Any]:
    try:
        if file.suffix.lower() in PICTURE_SUFFIXES:
            return _picture(file)
        with tifffile.TiffFile(file) as single:
            if len(single.pages) != 1:
                raise DataError(f"{file} holds {len(single.pages)} pages; every file must be one plane")
            return np.asarray(single.pages.first.asarray(maxworkers=1))
    except DataError:
        raise
    except Exception as error:  # codecs raise many kinds
        raise DataError(f"{file} cannot be read: {first_line(error)}") from error


def _picture(file: Path) -> NDArray[Any]:
    """Grey levels of a PNG, JPEG or BMP file; colours that are grey everywhere count as grey."""
    from PIL import Image

    with Image.open(file) as image:
        plain = image.convert("L") if image.mode in ("1", "L") else image
        values = np.asarray(plain)
        if image.mode in ("P", "RGB", "RGBA", "LA", "CMYK", "YCbCr"):
            colours = np.asarray(image.convert("RGB"))
            if (colours != colours[..., :1]).any():
                raise DataError(
                    f"{file} is a colour image ({image.mode}); brainmap reads grey-value channels"
                )
            values = colours[..., 0]
    # Pillow holds 16-bit PNG files as 32-bit integers.
    return values.astype(np.uint16) if values.dtype == np.int32 and values.min() >= 0 else values
