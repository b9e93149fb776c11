"""A TIFF file as a stack: plain, Big-, ImageJ and OME-TIFF, also OME-TIFF sets of several files."""

from __future__ import annotations

import logging
import math
import re
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
from numpy.typing import NDArray

from brainmap.convert.stack import Reading, Stack, checked_dtype, chosen_timepoint, first_line, size_text
from brainmap.convert.tiff import UNKNOWN, tiff_channel_names, tiff_voxel_um
from brainmap.errors import DataError
from brainmap.image.axes import warn_of_planes_as_channels

__all__ = ["NotATiffError", "first_series", "open_tiff", "tiff_stack"]

log = logging.getLogger(__name__)


class NotATiffError(DataError):
    """The file is of another kind, or hopelessly damaged."""


def open_tiff(path: Path) -> tifffile.TiffFile:
    try:
        return tifffile.TiffFile(path)
    except (tifffile.TiffFileError, ValueError, OSError) as error:
        raise NotATiffError(f"{path} is not a readable TIFF file: {first_line(error)}") from error


class _Complaints(logging.Handler):
    """What tifffile logs about damaged files while it goes on with the pages that are left."""

    _SERIOUS = re.compile(r"invalid page offset|corrupt|failed to reshape|invalid first", re.IGNORECASE)

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.serious: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if self._SERIOUS.search(message):
            # Without the leading "<tifffile.TiffPages @8> ".
            self.serious.append(re.sub(r"^<[^>]*>\s*", "", message).splitlines()[0])

    def __enter__(self) -> _Complaints:
        logging.getLogger("tifffile").addHandler(self)
        return self

    def __exit__(self, *exception: object) -> None:
        logging.getLogger("tifffile").removeHandler(self)


def first_series(tiff: tifffile.TiffFile, path: Path) -> tifffile.TiffPageSeries:
    with _Complaints() as complaints:
        try:
            series = tiff.series
            len(tiff.pages)  # walks through all pages
        except Exception as error:  # damaged OME-XML, IFD chains, ...
            raise DataError(f"{path}: its TIFF structure is damaged: {first_line(error)}") from error
    if complaints.serious:
        raise DataError(f"{path} is truncated or damaged: {complaints.serious[0]}")
    if not series:
        raise DataError(f"{path} holds no image")
    if len(series) > 1 and not tiff.is_ome:
        sizes = sorted({size_text(s.shape) for s in series})
        raise DataError(
            f"{path} holds pages of different kinds ({'; '.join(sizes)}); all planes must be alike"
        )
    if len(series) > 1:
        log.warning("%s holds %d images; the first one is used", path, len(series))
    return series[0]


def tiff_stack(path: Path, reading: Reading, opened: ExitStack) -> Stack:
    """The first image of a TIFF file, or of the OME-TIFF set that the file belongs to.

    Raises
    ------
    DataError
        If it is damaged, or not a grey-value stack.
    UsageError
        If a timepoint must be given, or --axes does not fit.
    """
    tiff = opened.enter_context(open_tiff(path))
    series = first_series(tiff, path)
    roles, shape = _stack_axes(series, path, reading)
    sizes = {role: n for role, n in zip(roles, shape, strict=True) if role != "?"}
    timepoint = chosen_timepoint(sizes.get("t", 1), reading.timepoint, str(path))
    dtype = checked_dtype(series.dtype, str(path))
    count, depth = sizes.get("c", 1), sizes.get("z", 1)
    warn_of_planes_as_channels(count, depth, str(path))
    names = tiff_channel_names(tiff, count) if count > 1 else None
    lock = threading.RLock()
    page = _page_reader(series, path, "<" if tiff.byteorder == "<" else ">", lock, opened)
    turned = roles[-2:] == ("x", "y")

    def plane(channel: int, z: int) -> NDArray[Any]:
        place = {"c": channel, "z": z, "t": timepoint}
        number = 0
        for role, n in zip(roles[:-2], shape[:-2], strict=True):
            number = number * n + place.get(role, 0)
        image = page(number, (shape[-2], shape[-1]))
        return image.T if turned else image

    voxel = tiff_voxel_um(tiff) if _same_lengths(series, roles, reading) else UNKNOWN
    return Stack(
        str(path), (count, depth, sizes["y"], sizes["x"]), dtype, voxel, names, plane, _files_of(series, path)
    )


def _same_lengths(series: tifffile.TiffPageSeries, roles: tuple[str, ...], reading: Reading) -> bool:
    """Whether y and x are those of the file: lengths of the file are by their names."""
    return reading.axes is None or [r for r in roles if r in "yx"] == [
        a for a in series.axes.lower() if a in "yx"
    ]


def _files_of(series: tifffile.TiffPageSeries, path: Path) -> tuple[Path, ...]:
    """The files that hold the pages of a series."""
    names = {page.parent.filehandle.path for page in series.pages if page is not None}
    return tuple(sorted({path.absolute(), *(Path(name).absolute() for name in names)}))


def _stack_axes(
    series: tifffile.TiffPageSeries, path: Path, reading: Reading
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Roles and lengths of the axes of a series, the two of a page last."""
    stored, shape = series.axes.lower(), tuple(int(n) for n in series.shape)
    if "s" in stored and series.shape[stored.index("s")] > 1:
        raise DataError(f"{path} is a colour image ({series.axes}); brainmap reads grey-value channels")
    roles = reading.roles(stored, shape, str(path))
    if reading.axes is None:
        # Pages without a declared meaning (I, Q) are sections.
        unnamed = [i for i, (a, n) in enumerate(zip(roles, shape, strict=True)) if a not in "tczyx" and n > 1]
        if len(unnamed) == 1 and not any(a == "z" and n > 1 for a, n in zip(roles, shape, strict=True)):
            roles = tuple("z" if i == unnamed[0] else "?" if a == "z" else a for i, a in enumerate(roles))
    roles = tuple(role if role in "tczyx" else "?" for role in roles)
    odd = [a for a, role, n in zip(series.axes, roles, shape, strict=True) if role == "?" and n > 1]
    if odd or {"y", "x"} != set(roles[-2:]) or math.prod(shape) == 0:
        raise DataError(
            f"{path} has axes {series.axes} ({size_text(shape)}); a stack has planes of y, x and optionally z, "
            "channels and timepoints: say what each axis is with --axes (such as ZYX)"
        )
    return roles, shape


def _page_reader(
    series: tifffile.TiffPageSeries,
    path: Path,
    byteorder: Literal["<", ">"],
    lock: threading.RLock,
    opened: ExitStack,
) -> Callable[[int, tuple[int, int]], NDArray[Any]]:
    if series.dataoffset is not None:
        # Uncompressed in one piece (also ImageJ stacks beyond 4 GB, which have a single page).
        stored = np.dtype(series.dtype).newbyteorder(byteorder)
        try:
            whole = np.memmap(path, stored, "r", series.dataoffset, series.shape)
        except (ValueError, OSError) as error:
            raise DataError(f"{path} is truncated: {first_line(error)}") from error
        return lambda number, shape: whole.reshape(-1, *shape)[number]

    def plane(number: int, shape: tuple[int, int]) -> NDArray[Any]:
        try:
            with lock:
                page = series.pages[number]
            if page is None:
                raise ValueError("the file that holds it is missing")
            file = page.parent.filehandle
            with lock:
                # The files of a set but the first are closed once their headers have been read.
                if file.closed:
                    file.open()
                    opened.callback(file.close)
            return np.asarray(page.asarray(lock=lock, maxworkers=1)).reshape(shape)
        except Exception as error:  # codecs raise many kinds
            raise DataError(f"{path}: page {number} cannot be read: {first_line(error)}") from error

    return plane
