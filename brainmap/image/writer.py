"""Write OME-Zarr pyramids from slabs in z order: bounded memory, whole shards, complete or absent.

The coarser levels are made on the way: a slab that has been written is halved and handed to the
next level, so nothing is read back and a level holds at most one slab.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from brainmap.coords import Shape, Triple
from brainmap.errors import DataError, UsageError
from brainmap.files import atomic_path
from brainmap.image.journal import ConversionJournal
from brainmap.image.ngff import Dataset, image_attributes
from brainmap.image.pyramid import downsample, downsample_by, pyramid_factors
from brainmap.image.storage.shards import BLOCK_BYTES, CODEC, LEVEL, ShardWriter
from brainmap.machine import usable_cores

__all__ = ["VolumeWriter", "default_chunks", "downsample", "pyramid_factors"]

log = logging.getLogger(__name__)

Halve = Callable[[NDArray[Any], Shape], NDArray[Any]]
METHODS = ("mean", "nearest")

_SLAB_BYTES = 512 * 2**20
_SHARD_SIDE = 1024


def default_chunks(shape: Sequence[int], plane_bytes: int) -> Shape:
    """Chunk of about 1 Mvoxel, so flat that a slab of whole planes stays within 512 MB."""
    depth = 64
    while depth > 1 and depth * plane_bytes > _SLAB_BYTES:
        depth //= 2
    depth = min(depth, shape[0])
    side = 128 if depth >= 32 else 256 if depth >= 8 else 512
    return depth, min(side, shape[1]), min(side, shape[2])


class _LevelSink:
    """One level being written: collects slabs of `depth` planes, writes them, feeds the next level."""

    def __init__(
        self,
        number: int,
        array: Any,
        depth: int,
        factors: Shape | None,
        halve: Halve,
        shards: ShardWriter | None,
        verify: bool,
        journal: ConversionJournal | None,
    ) -> None:
        self.number, self.array, self.depth, self.factors, self.halve = number, array, depth, factors, halve
        self.shards, self.verify, self.journal = shards, verify, journal
        self.next: _LevelSink | None = None
        self.z = 0
        self._waiting: list[NDArray[Any]] = []
        self._n_waiting = 0

    @property
    def planes_taken(self) -> int:
        return self.z + self._n_waiting

    def stored(self, start: int, stop: int) -> NDArray[Any]:
        """Planes (c, n, y, x) that have been written."""
        values = np.asarray(self.array[..., start:stop, :, :])
        return values if values.ndim == 4 else values[None]

    def push(self, slab: NDArray[Any]) -> None:
        """Take planes (c, n, y, x) that follow those taken before."""
        start = 0
        while start < slab.shape[1]:
            part = slab[:, start : start + self.depth - self._n_waiting]
            start += part.shape[1]
            if self._n_waiting == 0 and part.shape[1] == self.depth:
                self._write(part)
                continue
            # The caller may reuse his buffer before this part is written.
            self._waiting.append(part.copy() if part.base is not None or part is slab else part)
            self._n_waiting += part.shape[1]
            if self._n_waiting == self.depth:
                self.flush()

    def flush(self) -> None:
        """Write the planes that wait for a full slab."""
        if self._n_waiting:
            parts, self._waiting, self._n_waiting = self._waiting, [], 0
            self._write(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1))

    def _write(self, slab: NDArray[Any]) -> None:
        stop = self.z + slab.shape[1]
        files: dict[str, int | None] = {}
        if self.shards is not None:
            files = self.shards.write(self.z, slab)
        else:
            planes = (slice(None),) * (self.array.ndim - 3) + (slice(self.z, stop),)
            self.array[planes] = slab if self.array.ndim == 4 else slab[0]
            if self.verify:
                self._compare(planes, slab)
        if self.journal is not None:
            self.journal.record(self.number, self.z, stop, files)
        self.z = stop
        if self.next is not None and self.factors is not None:
            self.next.push(self.halve(slab, self.factors))

    def _compare(self, planes: tuple[slice, ...], slab: NDArray[Any]) -> None:
        """Read what was written, in strips of whole files, and compare."""
        rows = self.array.chunks[-2]
        for y in range(0, slab.shape[2], rows):
            stored = self.array[(*planes, slice(y, y + rows))]
            written = slab[:, :, y : y + rows]
            if not np.array_equal(stored.reshape(written.shape), written, equal_nan=slab.dtype.kind == "f"):
                raise DataError(
                    f"planes {planes[-1].start}:{planes[-1].stop} read back differ from what was written; "
                    "is the disk sound?"
                )


class VolumeWriter:
    """Write one image slab by slab (context manager).

    Parameters
    ----------
    path : str or Path
        Folder to make. It appears, complete, when the context is left without an exception.
    shape : (z, y, x) or (c, z, y, x)
    dtype : integer or float type
    voxel_um : (3,)
        Voxel size z, y, x.
    orientation, channel_names, chunks, shards, zarr_format, levels, method, origin_um, overwrite
        See `brainmap.image.volume.write_volume`; shards "auto" are one chunk high and 1024 x 1024 in plane.
    verify : bool
        Read every slab back and compare.
    journal : ConversionJournal, optional
        Write (with shards) where it says, note every finished slab there, and go on after those that are
        noted: `planes_taken` is the first plane to append. What is finished stays there on an error.

    Raises
    ------
    UsageError
        If `path` exists (and not `overwrite`), or shapes, chunks, shards do not fit each other.
    DataError
        If slabs do not fit, or the disk does not take them.
    """

    def __init__(
        self,
        path: str | Path,
        shape: Sequence[int],
        dtype: DTypeLike,
        voxel_um: Triple,
        *,
        orientation: str | None = None,
        channel_names: Sequence[str] | None = None,
        chunks: Sequence[int] | None = None,
        shards: Sequence[int] | Literal["auto"] | None = None,
        zarr_format: int = 3,
        levels: int | None = None,
        method: str = "mean",
        origin_um: Sequence[float] = (0.0, 0.0, 0.0),
        overwrite: bool = False,
        verify: bool = False,
        journal: ConversionJournal | None = None,
    ) -> None:
        self.path = Path(path).expanduser().absolute()
        self.dtype = np.dtype(dtype).newbyteorder("=")
        self.zarr_format = zarr_format
        self.channel_names = _channels(shape, channel_names)
        self.shape: Shape = (int(shape[-3]), int(shape[-2]), int(shape[-1]))
        self.n_channels = 1 if self.channel_names is None else len(self.channel_names)
        plane_bytes = self.shape[1] * self.shape[2] * self.dtype.itemsize * self.n_channels
        self.chunks = _shape3(chunks, "chunks") if chunks else default_chunks(self.shape, plane_bytes)
        self.shards = self._chosen_shards(shards)
        self._verify, self._journal = verify, journal
        self.method, self.overwrite = method, overwrite
        self._check()
        if journal is not None and self.shards is None:
            raise UsageError(f"{self.path}: only an image with shards is written with a journal")
        self.factors = pyramid_factors(self.shape, voxel_um, levels)
        datasets = _datasets(voxel_um, origin_um, self.factors, method)
        names = None if self.channel_names is None else list(self.channel_names)
        self._attributes = image_attributes(
            zarr_format, self.path.name, datasets, names, orientation, method, _display_range(self.dtype)
        )
        self._sinks: list[_LevelSink] = []

    def _chosen_shards(self, shards: Sequence[int] | Literal["auto"] | None) -> Shape | None:
        if shards == "auto":
            rows, columns = (c * max(1, _SHARD_SIDE // c) for c in self.chunks[1:])
            return self.chunks[0], rows, columns
        return None if shards is None else _shape3(shards, "shards")

    def _check(self) -> None:
        if self.path.exists() and not self.overwrite:
            raise UsageError(f"{self.path} exists already; remove it or choose another name")
        if self.path.exists() and not _may_be_replaced(self.path):
            raise UsageError(f"{self.path} is not a Zarr image, so it is not replaced; choose another name")
        if self.dtype.kind not in "iuf":
            raise UsageError(f"{self.path}: values of type {self.dtype} cannot be written as an image")
        if self.method not in METHODS:
            raise UsageError(f"pyramid method {self.method!r} is not one of {', '.join(METHODS)}")
        if self.zarr_format not in (2, 3):
            raise UsageError(f"Zarr format {self.zarr_format} is not 2 or 3")
        if self.shards is not None and self.zarr_format == 2:
            raise UsageError("Zarr format 2 has no shards")
        if self.shards is not None and any(s % c for s, c in zip(self.shards, self.chunks, strict=True)):
            raise UsageError(f"shards {self.shards} are not multiples of the chunks {self.chunks}")

    def __enter__(self) -> VolumeWriter:
        self._pool = ThreadPoolExecutor(usable_cores())
        try:
            with ExitStack() as undo:
                undo.callback(self._pool.shutdown)
                if self._journal is None:
                    self._temporary = undo.enter_context(atomic_path(self.path))
                else:
                    self._temporary = self._journal.image
                self._create(self._journal.finished(self._pool) if self._journal else {})
                self._undo = undo.pop_all()
        except OSError as error:
            raise self._refused(error) from error
        return self

    def _create(self, finished: dict[int, int]) -> None:
        """Make the levels, or open them where planes of them are finished already."""
        import zarr

        if not finished:
            zarr.create_group(
                self._temporary, zarr_format=self._format, attributes=self._attributes, overwrite=True
            )
        size = self.shape
        for number, factors in enumerate([*self.factors, None]):
            name = str(number)
            if finished:
                array = zarr.open_array(self._temporary / name, mode="r")
            else:
                array = self._create_array(name, size)
            sink = self._sink(number, array, factors)
            sink.z = finished.get(number, 0)
            if self._sinks:
                self._sinks[-1].next = sink
            self._sinks.append(sink)
            if factors:
                size = (-(-size[0] // factors[0]), -(-size[1] // factors[1]), -(-size[2] // factors[2]))
        self._refill()

    def _sink(self, number: int, array: Any, factors: Shape | None) -> _LevelSink:
        unit = (array.shards or array.chunks)[-3]
        # Pairs of planes must not be torn apart between slabs.
        depth = unit * 2 if factors and factors[0] == 2 and unit % 2 else unit
        shards = None
        if array.shards is not None:
            shards = ShardWriter(array, self._temporary / str(number), self._verify, self._pool)
        return _LevelSink(number, array, depth, factors, self._halved, shards, self._verify, self._journal)

    def _refill(self) -> None:
        """Make again the planes that waited in the coarser levels for a full slab.

        They come from finished planes of the level before. Deepest level first: planes that fill a slab on
        the way are handed on to levels that have theirs already.
        """
        for fine, coarse in reversed(list(zip(self._sinks, self._sinks[1:], strict=False))):
            assert fine.factors is not None
            first, end = coarse.z * fine.factors[0], fine.z
            for z in range(first, end, fine.depth):
                coarse.push(self._halved(fine.stored(z, min(z + fine.depth, end)), fine.factors))

    def _halved(self, slab: NDArray[Any], factors: Shape) -> NDArray[Any]:
        return downsample_by(self._pool, slab, factors, self.method)

    @property
    def slab_depth(self) -> int:
        """Planes that are best appended at a time (nothing has to be copied together then)."""
        return self._sinks[0].depth

    @property
    def _format(self) -> Any:
        return self.zarr_format

    def _create_array(self, name: str, size: Shape) -> Any:
        import numcodecs
        import zarr
        from zarr.codecs import BloscCodec, Crc32cCodec

        chunks: tuple[int, ...] = tuple(min(c, n) for c, n in zip(self.chunks, size, strict=True))
        shards: tuple[int, ...] | None = None
        if self.shards is not None:
            # No larger than needed to hold the level.
            shards = tuple(
                min(s // f, -(-n // c)) * c
                for s, f, c, n in zip(self.shards, self.chunks, chunks, size, strict=True)
            )
        shape: tuple[int, ...] = size
        axes = ["z", "y", "x"]
        if self.channel_names is not None:
            shape, chunks, axes = (self.n_channels, *size), (1, *chunks), ["c", *axes]
            shards = None if shards is None else (1, *shards)
        v2 = self.zarr_format == 2
        compressors: Any = (
            numcodecs.Blosc(CODEC, LEVEL, numcodecs.Blosc.BITSHUFFLE, BLOCK_BYTES)
            if v2
            # Blosc does not notice a flipped bit.
            else [
                BloscCodec(cname=CODEC, clevel=LEVEL, shuffle="bitshuffle", blocksize=BLOCK_BYTES),
                Crc32cCodec(),
            ]
        )
        return zarr.create_array(
            self._temporary,
            name=name,
            shape=shape,
            dtype=self.dtype,
            chunks=chunks,
            shards=shards,
            compressors=compressors,
            fill_value=0,
            zarr_format=self._format,
            chunk_key_encoding={"name": "v2" if v2 else "default", "separator": "/"},
            dimension_names=None if v2 else axes,
        )

    def append(self, slab: NDArray[Any]) -> None:
        """Write the next planes: (n, y, x), or (c, n, y, x) for an image with channels."""
        values = np.asarray(slab)
        if values.ndim == 3 and self.n_channels == 1:
            values = values[None]
        room = self.shape[0] - self.planes_taken
        fits = values.ndim == 4 and values.shape[0] == self.n_channels and values.shape[2:] == self.shape[1:]
        if not fits or values.shape[1] > room:
            raise DataError(
                f"{self.path}: a slab of shape {np.shape(slab)} does not fit an image of shape {self.shape} "
                f"with {self.n_channels} channel(s) and {room} planes to come"
            )
        if not np.can_cast(values.dtype, self.dtype, "equiv"):
            raise DataError(f"{self.path}: a slab holds {values.dtype}, the image {self.dtype}")
        try:
            self._sinks[0].push(values)
        except OSError as error:
            raise self._refused(error) from error

    @property
    def planes_taken(self) -> int:
        """Planes appended so far."""
        return self._sinks[0].planes_taken

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._undo:
                if error is not None:
                    raise error
                self._finish()
        except OSError as problem:
            if problem is not error:
                raise self._refused(problem) from problem
        except BaseException as problem:
            if problem is not error:
                raise

    def _finish(self) -> None:
        if self.planes_taken != self.shape[0]:
            raise DataError(f"{self.path}: {self.planes_taken} planes came, {self.shape[0]} were announced")
        for sink in self._sinks:
            sink.flush()
        if self._journal is not None:
            self._journal.publish()

    def _refused(self, error: OSError) -> DataError:
        text = f"{self.path} cannot be written: {error.strerror or error}"
        if self._journal is not None:
            text += "; what is finished is kept, and the same command goes on from there"
        return DataError(text)


def _may_be_replaced(path: Path) -> bool:
    """Only what is a Zarr image or an empty folder: an --overwrite with a wrong path must do no harm."""
    if not path.is_dir():
        return False
    marks = ("zarr.json", ".zgroup", ".zattrs", ".zarray")
    return any((path / name).is_file() for name in marks) or not any(path.iterdir())


def _channels(shape: Sequence[int], names: Sequence[str] | None) -> tuple[str, ...] | None:
    if len(shape) not in (3, 4) or not all(int(n) > 0 for n in shape):
        raise UsageError(f"an image has shape (z, y, x) or (c, z, y, x), not {tuple(shape)}")
    count = int(shape[0]) if len(shape) == 4 else 1
    if names is None:
        return tuple(f"channel {i}" for i in range(count)) if len(shape) == 4 else None
    if len(names) != count:
        raise UsageError(f"{len(names)} channel names were given for {count} channel(s)")
    return tuple(names)


def _shape3(values: Sequence[int], what: str) -> Shape:
    if len(values) != 3 or not all(int(v) > 0 for v in values):
        raise UsageError(f"{what} must be three positive numbers z,y,x, not {tuple(values)}")
    return int(values[0]), int(values[1]), int(values[2])


def _datasets(
    voxel_um: Triple, origin_um: Sequence[float], factors: list[Shape], method: str
) -> list[Dataset]:
    """Scale and translation of every level: the mean of f voxels lies (f - 1) / 2 voxels further in."""
    total = [1, 1, 1]
    datasets = []
    for number, step in enumerate([(1, 1, 1), *factors]):
        total = [t * s for t, s in zip(total, step, strict=True)]
        scale = [v * t for v, t in zip(voxel_um, total, strict=True)]
        inward = 0.5 if method == "mean" else 0.0
        shift = [o + v * (t - 1) * inward for o, v, t in zip(origin_um, voxel_um, total, strict=True)]
        datasets.append(Dataset(str(number), (scale[0], scale[1], scale[2]), (shift[0], shift[1], shift[2])))
    return datasets


def _display_range(dtype: np.dtype[Any]) -> tuple[float, float]:
    if dtype.kind == "f":
        return 0.0, 1.0
    limits = np.iinfo(dtype)
    return float(limits.min), float(limits.max)
