"""Read chunks of local Zarr arrays directly: open, read, decode, in the thread that asks.

zarr-python hands every chunk through an event loop and several threads. While the network keeps all
processors busy, each hand-over waits for its turn, and reading becomes many times slower than
decoding needs. This reader knows the usual codecs; whatever else is left to zarr.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
from numcodecs import zstd
from numpy.typing import NDArray

from brainmap.image.storage import blosc as blosc_part
from brainmap.image.storage.blosc import Fetch

__all__ = ["LocalChunks"]

# From the bytes stored (a function that reads some, and how many there are): at least some bytes (first, stop) of a
# chunk of so many, and which is the first that is returned.
Decode = Callable[[Fetch, int, int, int, int], tuple[Any, int]]
Box = tuple[slice, ...]
Span = tuple[int, int]

_NOT_STORED = 2**64 - 1
_CHUNKS_PER_TASK = 4
# Chunks looked at for how they are encoded: the first may not be stored.
_SAMPLES = 9


class LocalChunks:
    """Regions of one local array.

    Parameters
    ----------
    array : zarr.Array
        For its metadata.
    folder : Path
        Where its chunks lie.
    stored_key : callable
        From a chunk key of the metadata to the file's name in `folder`.
    """

    def __init__(self, array: Any, folder: Path, stored_key: Callable[[str], str]) -> None:
        self.shape, self.chunks = tuple(array.shape), tuple(array.chunks)
        self.shards = None if array.shards is None else tuple(array.shards)
        self._decode, self._dtype, self._index_first = _codecs(array)
        self._in_blocks = self._decode is blosc_part.read
        self._chunk_bytes = math.prod(self.chunks) * self._dtype.itemsize
        # A chunk is a run of sections along its outermost axis of more than one.
        self._outer = next((a for a, n in enumerate(self.chunks) if n > 1), 0)
        self._fill = 0 if array.fill_value is None else array.fill_value
        self._key, self._folder, self._stored_key = array.metadata.encode_chunk_key, folder, stored_key

    @classmethod
    def of(cls, array: Any, folder: Path, stored_key: Callable[[str], str]) -> LocalChunks | None:
        """Return a reader, or None for an array whose codecs are not known here."""
        try:
            return cls(array, folder, stored_key)
        except _UnknownCodecError:
            return None

    def read(self, region: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Region in native byte order, all axes kept, in `out` if given. Raises whatever decoding raises."""
        if out is None:
            out = np.empty([r.stop - r.start for r in region], self._dtype.newbyteorder("="))
        files = list(_overlapping(region, self.shards or self.chunks))
        jobs = [(corner, box) for corner in files for box in self._parts(corner, region)]
        if len(jobs) <= _CHUNKS_PER_TASK:
            self._fill_in(out, region, jobs)
            return out
        pool, count = _pool(), os.cpu_count() or 1
        size = max(_CHUNKS_PER_TASK, -(-len(jobs) // count))
        batches = [jobs[i : i + size] for i in range(0, len(jobs), size)]
        others = [pool.submit(self._fill_in, out, region, batch) for batch in batches[1:]]
        try:
            self._fill_in(out, region, batches[0])
        finally:
            # Nobody may still write into `out` when this returns or raises.
            failures = [future.exception() for future in others]
        for failure in failures:
            if failure is not None:
                raise failure
        return out

    def _parts(self, corner: tuple[int, ...], region: Box) -> list[tuple[int, ...]]:
        """Grid positions of the chunks of one file that a region needs."""
        if self.shards is None:
            return [corner]
        inside = tuple(
            slice(max(r.start, i * s), min(r.stop, (i + 1) * s))
            for r, i, s in zip(region, corner, self.shards, strict=True)
        )
        return list(_overlapping(inside, self.chunks))

    def _fill_in(
        self, out: NDArray[Any], region: Box, jobs: list[tuple[tuple[int, ...], tuple[int, ...]]]
    ) -> None:
        for corner, group in itertools.groupby(jobs, key=lambda job: job[0]):
            chunks = [chunk for _, chunk in group]
            with self._opened(corner) as file:
                places = self._places(file, corner, chunks)
                for chunk, place in zip(chunks, places, strict=True):
                    target, source = self._overlap(region, chunk)
                    if file is None or place is None:
                        out[target] = self._fill
                    else:
                        out[target] = self._decoded(file, place, source)

    def _decoded(self, file: FileIO, place: Span, box: Box) -> NDArray[Any]:
        """A box of a chunk that lies at (offset, bytes) of an open file."""
        outer = self._outer
        section = self._chunk_bytes // self.chunks[outer]
        first, stop = box[outer].start * section, box[outer].stop * section
        values, begins = self._decode(_fetcher(file, place), place[1], first, stop, self._chunk_bytes)
        if begins + len(values) < stop:
            raise ValueError(f"{len(values)} bytes were decoded where {self._chunk_bytes} should be")
        # What is decoded need not begin or end with a section.
        skip = -begins % section
        count = (len(values) - skip) // section
        low = (begins + skip) // section
        sections = np.frombuffer(values, self._dtype, count * section // self._dtype.itemsize, skip)
        within = slice(box[outer].start - low, box[outer].stop - low)
        shape = (*self.chunks[:outer], count, *self.chunks[outer + 1 :])
        return sections.reshape(shape)[(*box[:outer], within, *box[outer + 1 :])]

    @functools.cached_property
    def unit(self) -> tuple[int, ...]:
        """What is decoded at a time: a chunk, or fewer of its outermost sections."""
        section = self._chunk_bytes // self.chunks[self._outer]
        block = self._block_bytes() if self._in_blocks else self._chunk_bytes
        if block % section == 0 or section % block == 0:
            depth = min(self.chunks[self._outer], max(1, block // section))
            return (*self.chunks[: self._outer], depth, *self.chunks[self._outer + 1 :])
        return self.chunks

    def _block_bytes(self) -> int:
        """Bytes that Blosc encodes together, by the first of some chunks that is stored."""
        grid = [-(-n // c) for n, c in zip(self.shape, self.chunks, strict=True)]
        for flat in np.linspace(0, math.prod(grid) - 1, _SAMPLES).astype(int):
            chunk = tuple(int(i) for i in np.unravel_index(flat, grid))
            files = self.shards or self.chunks
            corner = tuple(i * c // f for i, c, f in zip(chunk, self.chunks, files, strict=True))
            # What cannot be read is reported where it is needed.
            with suppress(ValueError, OSError), self._opened(corner) as file:
                (place,) = self._places(file, corner, [chunk])
                if file is not None and place is not None:
                    return blosc_part.block_bytes(_fetcher(file, place), place[1])
        return self._chunk_bytes

    def _overlap(self, region: Box, chunk: tuple[int, ...]) -> tuple[Box, Box]:
        """Where a chunk goes in the result, and which part of it."""
        target, source = [], []
        for r, i, c in zip(region, chunk, self.chunks, strict=True):
            start, stop = max(r.start, i * c), min(r.stop, (i + 1) * c)
            target.append(slice(start - r.start, stop - r.start))
            source.append(slice(start - i * c, stop - i * c))
        return tuple(target), tuple(source)

    @contextmanager
    def _opened(self, corner: tuple[int, ...]) -> Iterator[FileIO | None]:
        """The file that holds a chunk or a shard; None if it is not stored."""
        path = self._folder / self._stored_key(self._key(corner))
        try:
            file = FileIO(path)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            yield None
            return
        with file:
            yield file

    def _places(
        self, file: FileIO | None, corner: tuple[int, ...], chunks: list[tuple[int, ...]]
    ) -> list[Span | None]:
        """Where chunks of one file lie in it, (offset, bytes); None for what is not stored."""
        if file is None:
            return [None] * len(chunks)
        size = os.fstat(file.fileno()).st_size
        if self.shards is None:
            return [(0, size)]
        grid = [s // c for s, c in zip(self.shards, self.chunks, strict=True)]
        count = math.prod(grid)
        length = 16 * count + 4
        raw = _read(file, 0 if self._index_first else max(0, size - length), length)
        if len(raw) != length or google_crc32c.value(raw[:-4]) != int.from_bytes(raw[-4:], "little"):
            raise ValueError("the index of the shard is damaged")
        index = np.frombuffer(raw[:-4], "<u8").reshape(count, 2)
        places: list[Span | None] = []
        for chunk in chunks:
            inner = tuple(i - k * g for i, k, g in zip(chunk, corner, grid, strict=True))
            offset, nbytes = (int(v) for v in index[int(np.ravel_multi_index(inner, grid))])
            if offset == nbytes == _NOT_STORED:
                places.append(None)
            elif offset + nbytes > size:
                raise ValueError(f"{max(0, size - offset)} bytes are stored where {nbytes} should be")
            else:
                places.append((offset, nbytes))
        return places


class _UnknownCodecError(Exception):
    """A codec that is left to zarr."""


def _overlapping(region: Box, size: tuple[int, ...]) -> itertools.product[tuple[int, ...]]:
    return itertools.product(
        *(range(r.start // s, -(-r.stop // s)) for r, s in zip(region, size, strict=True))
    )


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="brainmap-read")


os.register_at_fork(after_in_child=_pool.cache_clear)


def _codecs(array: Any) -> tuple[Decode, np.dtype[Any], bool]:
    """How a chunk is decoded, its stored type, and whether shard indices come first."""
    metadata = array.metadata
    if metadata.zarr_format == 2:
        if metadata.filters or metadata.order != "C":
            raise _UnknownCodecError
        compressor = metadata.compressor
        if compressor is None:
            return _whole(_as_is), np.dtype(array.dtype), False
        known = {numcodecs.Blosc: blosc_part.read, numcodecs.Zstd: _whole(zstd.decompress)}
        decode = known.get(type(compressor), _whole(compressor.decode))
        return decode, metadata.dtype.to_native_dtype(), False
    codecs, index_first = list(metadata.codecs), False
    if len(codecs) == 1 and type(codecs[0]).__name__ == "ShardingCodec":
        if [type(c).__name__ for c in codecs[0].index_codecs] != ["BytesCodec", "Crc32cCodec"]:
            raise _UnknownCodecError
        index_first = codecs[0].index_location.value == "start"
        codecs = list(codecs[0].codecs)
    names = [type(c).__name__ for c in codecs]
    decoders: dict[str, Decode] = {
        "BloscCodec": blosc_part.read,
        "ZstdCodec": _whole(zstd.decompress),
        "GzipCodec": _whole(numcodecs.GZip().decode),
    }
    if not names or names[0] != "BytesCodec" or len(names) > 2 or any(n not in decoders for n in names[1:]):
        raise _UnknownCodecError
    endian = getattr(codecs[0].endian, "value", None)
    dtype = np.dtype(array.dtype).newbyteorder(">" if endian == "big" else "<")
    return (decoders[names[1]] if len(names) == 2 else _whole(_as_is)), dtype, index_first


def _fetcher(file: FileIO, place: Span) -> Fetch:
    """Reads bytes of what lies at (offset, bytes) of an open file."""
    return lambda begin, count: _read(file, place[0] + begin, min(count, place[1] - begin))


def _read(file: FileIO, offset: int, count: int) -> bytes:
    """Bytes of a file, fewer only at its end: the system returns at most 2 GiB at a time."""
    file.seek(offset)
    data = file.read(count)
    while len(data) < count and (more := file.read(count - len(data))):
        data += more
    return data


def _whole(decode: Callable[[bytes], Any]) -> Decode:
    """For codecs whose chunks are decoded as a whole."""
    return lambda fetch, stored, first, stop, chunk: (decode(fetch(0, stored)), 0)


def _as_is(stored: bytes) -> bytes:
    return stored
