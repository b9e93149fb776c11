"""Image stacks that are not OME-Zarr: TIFF files and folders, NumPy files, others, as a source of slabs.

A `Stack` knows shape, type and (where the file tells) voxel size, and returns any range of planes,
so that a brain can be converted with a few planes in memory.
"""

from __future__ import annotations

import importlib
import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
from numpy.typing import NDArray

from brainmap.convert.tiff import UNKNOWN, PartialVoxel, tiff_channel_names, tiff_voxel_um
from brainmap.errors import DataError, MissingExtraError, NotFoundError
from brainmap.files import fingerprint
from brainmap.image.volume import Volume

__all__ = ["Stack", "open_stack"]

log = logging.getLogger(__name__)

TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".tf8", ".tf2")


@dataclass(frozen=True)
class Stack:
    """A stack of planes.

    Attributes
    ----------
    name : str
        Path, for messages.
    shape : (c, z, y, x)
    dtype : numpy.dtype
        Native byte order.
    voxel_um : tuple of float or None
        z, y, x as the file tells; None where it does not.
    channel_names : tuple of str or None
        None if the stack has no channel axis.
    read_plane : callable (c, z) -> array (y, x)
        Safe to call from many threads.
    files : tuple of Path
        What the stack is read from: one file per plane, or the files of the whole.
    """

    name: str
    shape: tuple[int, int, int, int]
    dtype: np.dtype[Any]
    voxel_um: PartialVoxel
    channel_names: tuple[str, ...] | None
    read_plane: Callable[[int, int], NDArray[Any]]
    files: tuple[Path, ...] = ()

    def fingerprint(self, start: int, stop: int) -> str:
        """Changes when a file of planes start:stop does: names, sizes and times of change."""
        files = self.files[start:stop] if len(self.files) == self.shape[1] else self.files
        facts = [(file.name, file.stat()) for file in files]
        return fingerprint([(name, stat.st_size, stat.st_mtime_ns) for name, stat in facts])

    def read(self, start: int, stop: int, pool: Executor) -> NDArray[Any]:
        """Planes start:stop of all channels, shape (c, n, y, x), read by the threads of `pool`.

        Raises
        ------
        DataError
            If a plane cannot be read or has another shape or type than the first.
        """
        slab = np.empty((self.shape[0], stop - start, *self.shape[2:]), self.dtype)

        def fill(position: tuple[int, int]) -> None:
            channel, z = position
            plane = self.read_plane(channel, z)
            if plane.shape != self.shape[2:] or plane.dtype.newbyteorder("=") != self.dtype:
                raise DataError(
                    f"{self.name}: plane {z} is {_size(plane.shape)} of {plane.dtype}, "
                    f"the first one {_size(self.shape[2:])} of {self.dtype}; all planes must be alike"
                )
            slab[channel, z - start] = plane

        positions = [(c, z) for c in range(self.shape[0]) for z in range(start, stop)]
        for _ in pool.map(fill, positions):
            pass
        return slab


@contextmanager
def open_stack(source: str | Path) -> Iterator[Stack]:
    """Open a TIFF series folder, a (multi-page, Big-, OME-, ImageJ-) TIFF, a .npy file or a Zarr image.

    Other formats (CZI, LIF, ND2, ...) are read through bioio where it and its plug-in for the format are
    installed. The stack can be read inside the `with` block.

    Raises
    ------
    NotFoundError
        If `source` does not exist.
    DataError
        If it is none of these, or not a grey-value stack; of a folder, if a file differs from the first or
        is shorter than its header says.
    MissingExtraError
        If it is another format and bioio is not installed.
    """
    with ExitStack() as files:
        yield _open(source, files)


def _open(source: str | Path, opened: ExitStack) -> Stack:
    if "://" in str(source):
        return _zarr_stack(str(source))
    path = Path(source).expanduser()
    if not path.exists():
        raise NotFoundError(f"{path} does not exist")
    if path.is_dir():
        files = _tiff_files(path)
        if not files and any((path / n).exists() for n in ("zarr.json", ".zattrs", ".zgroup", ".zarray")):
            return _zarr_stack(str(path))
        if not files:
            raise DataError(f"{path} holds no TIFF files ({', '.join(TIFF_SUFFIXES[:2])})")
        return _folder_stack(path, files, opened)
    if path.suffix.lower() == ".npy":
        return _npy_stack(path)
    try:
        return _tiff_stack(path, opened)
    except _NotATiffError:
        if path.suffix.lower() in TIFF_SUFFIXES:
            raise
        return _bioio_stack(path)


class _NotATiffError(DataError):
    """The file is of another kind, or hopelessly damaged."""


def _size(shape: Sequence[int]) -> str:
    return " x ".join(str(n) for n in shape)


def _tiff_files(folder: Path) -> list[Path]:
    """TIFF files in natural order: section_9 before section_10."""
    files = [p for p in folder.iterdir() if p.suffix.lower() in TIFF_SUFFIXES and not p.name.startswith(".")]
    return sorted(
        files, key=lambda p: [(t.isdigit(), int(t) if t.isdigit() else 0, t) for t in _words(p.name)]
    )


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"(\d+)", name.lower()) if word]


def _checked_dtype(dtype: Any, name: str) -> np.dtype[Any]:
    native = np.dtype(dtype).newbyteorder("=")
    if native.kind not in "iuf":
        raise DataError(f"{name} holds values of type {native}; brainmap reads integer and float images")
    return native


def _npy_stack(path: Path) -> Stack:
    try:
        data = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read as a NumPy array: {_first_line(error)}") from error
    if data.ndim not in (2, 3):
        raise DataError(f"{path} has {data.ndim} axes; a stack has 3 (z, y, x) or 2 (y, x)")
    volume = data[None] if data.ndim == 2 else data
    shape = (1, *volume.shape)
    return Stack(
        str(path),
        shape,
        _checked_dtype(data.dtype, str(path)),
        UNKNOWN,
        None,
        lambda c, z: volume[z],
        (path,),
    )


def _zarr_stack(source: str) -> Stack:
    """A Zarr image; a bare array without scale is taken as a stack of unknown voxel size."""
    from brainmap.image.storage.arrays import locate, read_node

    bare = read_node(locate(source)).kind == "array"
    first = Volume.open(source, channel=0, timepoint=None, voxel_um=(1, 1, 1) if bare else None)
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
    return Stack(first.url, (len(channels), *first.shape), first.dtype, voxel, names, plane, files)


def _open_tiff(path: Path) -> tifffile.TiffFile:
    try:
        return tifffile.TiffFile(path)
    except (tifffile.TiffFileError, ValueError, OSError) as error:
        raise _NotATiffError(f"{path} is not a readable TIFF file: {_first_line(error)}") from error


def _bioio_stack(path: Path) -> Stack:
    """Any format that an installed plug-in of bioio knows; its first scene and timepoint."""
    try:
        bioio = importlib.import_module("bioio")
    except ImportError:
        raise MissingExtraError("bioio", "import", f"read {path.name}, which is not a TIFF,") from None
    try:
        image = bioio.BioImage(path)
        sizes = {axis: int(getattr(image.dims, axis)) for axis in "TCZYX"}
        dtype, pitch = _checked_dtype(image.dtype, str(path)), image.physical_pixel_sizes
        z_um, y_um, x_um = (None if v is None else float(v) for v in (pitch.Z, pitch.Y, pitch.X))
        names = tuple(str(name) for name in image.channel_names)
    except DataError:
        raise
    except Exception as error:  # plug-ins raise many kinds
        raise DataError(f"bioio cannot read {path}: {_first_line(error)}") from error
    if sizes["T"] > 1:
        raise DataError(f"{path} holds {sizes['T']} timepoints; convert one timepoint at a time")
    lock = threading.Lock()

    def plane(channel: int, z: int) -> NDArray[Any]:
        try:
            with lock:
                lazy = image.get_image_dask_data("YX", T=0, C=channel, Z=z)
                return np.asarray(lazy.compute(scheduler="synchronous"))
        except Exception as error:
            raise DataError(f"{path}: plane {z} cannot be read: {_first_line(error)}") from error

    shape = (sizes["C"], sizes["Z"], sizes["Y"], sizes["X"])
    return Stack(
        str(path), shape, dtype, (z_um, y_um, x_um), names if sizes["C"] > 1 else None, plane, (path,)
    )


def _folder_stack(folder: Path, files: list[Path], opened: ExitStack) -> Stack:
    """One file per plane, or an OME-TIFF whose first file describes all."""
    with _open_tiff(files[0]) as tiff:
        series = _first_series(tiff, files[0])
        if tiff.is_ome and len(series.pages) > 1 and len(files) > 1:
            return _tiff_stack(files[0], opened)
        if len(series.pages) != 1 or series.ndim != 2:
            raise DataError(
                f"{files[0]} holds an image of {_size(series.shape)} ({series.axes}); "
                "in a folder every file must be one plane"
            )
        dtype, voxel = _checked_dtype(series.dtype, str(files[0])), tiff_voxel_um(tiff)
        height, width = series.shape
    for z, file in enumerate(files):
        _check_section(file, z, (height, width), dtype, str(folder))

    def plane(channel: int, z: int) -> NDArray[Any]:
        try:
            with tifffile.TiffFile(files[z]) as single:
                if len(single.pages) != 1:
                    raise DataError(
                        f"{files[z]} holds {len(single.pages)} pages; every file must be one plane"
                    )
                return np.asarray(single.pages.first.asarray(maxworkers=1))
        except DataError:
            raise
        except Exception as error:  # codecs raise many kinds
            raise DataError(f"{files[z]} cannot be read: {_first_line(error)}") from error

    return Stack(str(folder), (1, len(files), height, width), dtype, voxel, None, plane, tuple(files))


def _check_section(file: Path, z: int, size: tuple[int, int], dtype: np.dtype[Any], where: str) -> None:
    """Compare a file's header with the first one's, before hours are spent on the files ahead of it."""
    try:
        with tifffile.TiffFile(file) as tiff:
            count, page = len(tiff.pages), tiff.pages.first
            found, stored = page.shape, np.dtype(page.dtype).newbyteorder("=")
            ends = [o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)]
    except Exception as error:  # damaged headers raise many kinds
        raise DataError(f"{file} cannot be read: {_first_line(error)}") from error
    if count != 1:
        raise DataError(f"{file} holds {count} pages; every file must be one plane")
    if found != size or stored != dtype:
        raise DataError(
            f"{where}: plane {z} is {_size(found)} of {stored}, the first one {_size(size)} of {dtype} "
            f"({file.name}); all planes must be alike"
        )
    if max(ends, default=0) > file.stat().st_size:
        raise DataError(
            f"{file} is truncated: {max(ends)} bytes are announced, {file.stat().st_size} are there"
        )


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


def _first_series(tiff: tifffile.TiffFile, path: Path) -> tifffile.TiffPageSeries:
    with _Complaints() as complaints:
        try:
            series = tiff.series
            len(tiff.pages)  # walks through all pages
        except Exception as error:  # damaged OME-XML, IFD chains, ...
            raise DataError(f"{path}: its TIFF structure is damaged: {_first_line(error)}") from error
    if complaints.serious:
        raise DataError(f"{path} is truncated or damaged: {complaints.serious[0]}")
    if not series:
        raise DataError(f"{path} holds no image")
    if len(series) > 1 and not tiff.is_ome:
        sizes = sorted({_size(s.shape) for s in series})
        raise DataError(
            f"{path} holds pages of different kinds ({'; '.join(sizes)}); all planes must be alike"
        )
    if len(series) > 1:
        log.warning("%s holds %d images; the first one is used", path, len(series))
    return series[0]


def _tiff_stack(path: Path, opened: ExitStack) -> Stack:
    tiff = opened.enter_context(_open_tiff(path))
    series = _first_series(tiff, path)
    axes, shape = _stack_axes(series, path)
    sizes = dict(zip(axes, shape, strict=True))
    count, depth = sizes.get("C", 1), sizes.get("Z", 1)
    dtype = _checked_dtype(series.dtype, str(path))
    names = tiff_channel_names(tiff, count) if "C" in axes else None
    channel_first = axes.startswith("C")
    lock = threading.RLock()

    def number(channel: int, z: int) -> int:
        return channel * depth + z if channel_first else z * count + channel

    plane = _page_reader(series, path, "<" if tiff.byteorder == "<" else ">", lock)
    full = (count, depth, sizes["Y"], sizes["X"])
    voxel = tiff_voxel_um(tiff)
    return Stack(str(path), full, dtype, voxel, names, lambda c, z: plane(number(c, z), full[2:]), (path,))


def _stack_axes(series: tifffile.TiffPageSeries, path: Path) -> tuple[str, tuple[int, ...]]:
    """Axes of a series as a subset of C, Z (either order), Y, X, without those of length one."""
    kept = [(a, n) for a, n in zip(series.axes, series.shape, strict=True) if n > 1 or a in "YX"]
    axes = "".join(a for a, _ in kept)
    if "S" in axes:
        raise DataError(f"{path} is a colour image ({series.axes}); brainmap reads grey-value channels")
    if "T" in axes:
        raise DataError(f"{path} holds {dict(kept)['T']} timepoints; convert one timepoint at a time")
    # Pages without a declared meaning (I, Q) are sections.
    unnamed = [a for a in axes if a not in "CZYX"]
    if len(unnamed) == 1 and "Z" not in axes:
        axes = axes.replace(unnamed[0], "Z")
    if axes not in ("YX", "ZYX", "CYX", "CZYX", "ZCYX"):
        raise DataError(f"{path} has axes {series.axes}; a stack has z, y, x and optionally channels")
    return axes, tuple(n for _, n in kept)


def _page_reader(
    series: tifffile.TiffPageSeries, path: Path, byteorder: Literal["<", ">"], lock: threading.RLock
) -> Callable[[int, tuple[int, int]], NDArray[Any]]:
    if series.dataoffset is not None:
        # Uncompressed in one piece (also ImageJ stacks beyond 4 GB, which have a single page).
        stored = np.dtype(series.dtype).newbyteorder(byteorder)
        try:
            whole = np.memmap(path, stored, "r", series.dataoffset, series.shape)
        except (ValueError, OSError) as error:
            raise DataError(f"{path} is truncated: {_first_line(error)}") from error
        return lambda number, shape: whole.reshape(-1, *shape)[number]

    def plane(number: int, shape: tuple[int, int]) -> NDArray[Any]:
        try:
            with lock:
                page = series.pages[number]
            if page is None:
                raise ValueError("the file that holds it is missing")
            return np.asarray(page.asarray(lock=lock, maxworkers=1)).reshape(shape)
        except Exception as error:  # codecs raise many kinds
            raise DataError(f"{path}: page {number} cannot be read: {_first_line(error)}") from error

    return plane


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0].rstrip(".") if text else type(error).__name__
