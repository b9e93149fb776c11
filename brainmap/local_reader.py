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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
from numcodecs import zstd
from numpy.typing import NDArray

from brainmap import blosc_part

__all__ = ["LocalChunks"]

# At least some bytes (start, stop) of what was encoded, and which is the first that is returned.
Decode = Callable[[bytes, int, int], tuple[Any, int]]
Box = tuple[slice, ...]

_NOT_STORED = 2**64 - 1
_CHUNKS_PER_TASK = 4


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
        self._chunk_bytes = math.prod(self.chunks) * self._dtype.itemsize
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
            path = self._folder / self._stored_key(self._key(corner))
            for chunk, stored in zip(chunks, self._stored(path, corner, chunks), strict=True):
                target, source = self._overlap(region, chunk)
                out[target] = self._fill if stored is None else self._decoded(stored, source)

    def _decoded(self, stored: bytes, box: Box) -> NDArray[Any]:
        """A box of a chunk."""
        item = self._dtype.itemsize
        corners = ([s.start for s in box], [s.stop - 1 for s in box])
        first, last = (int(np.ravel_multi_index(corner, self.chunks)) * item for corner in corners)
        values, begins = self._decode(stored, first, last + item)
        if begins == 0 and len(values) == self._chunk_bytes:
            return np.frombuffer(values, self._dtype).reshape(self.chunks)[box]
        if len(values) < last + item - begins:
            raise ValueError(f"{len(values)} bytes were decoded where {self._chunk_bytes} should be")
        # Only what was decoded is written, and so only that takes memory.
        chunk = np.empty(self._chunk_bytes, np.uint8)
        chunk[begins : begins + len(values)] = np.frombuffer(values, np.uint8)
        return chunk.view(self._dtype).reshape(self.chunks)[box]

    def _overlap(self, region: Box, chunk: tuple[int, ...]) -> tuple[Box, Box]:
        """Where a chunk goes in the result, and which part of it."""
        target, source = [], []
        for r, i, c in zip(region, chunk, self.chunks, strict=True):
            start, stop = max(r.start, i * c), min(r.stop, (i + 1) * c)
            target.append(slice(start - r.start, stop - r.start))
            source.append(slice(start - i * c, stop - i * c))
        return tuple(target), tuple(source)

    def _stored(
        self, path: Path, corner: tuple[int, ...], chunks: list[tuple[int, ...]]
    ) -> list[bytes | None]:
        """Encoded bytes of chunks of one file; None for what is not stored."""
        try:
            with path.open("rb", buffering=0) as file:
                if self.shards is None:
                    return [file.read()]
                return self._from_shard(file.fileno(), corner, chunks)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return [None] * len(chunks)

    def _from_shard(
        self, file: int, corner: tuple[int, ...], chunks: list[tuple[int, ...]]
    ) -> list[bytes | None]:
        assert self.shards is not None
        grid = [s // c for s, c in zip(self.shards, self.chunks, strict=True)]
        count = int(np.prod(grid))
        length, size = 16 * count + 4, os.fstat(file).st_size
        raw = os.pread(file, length, 0 if self._index_first else max(0, size - length))
        if len(raw) != length or google_crc32c.value(raw[:-4]) != int.from_bytes(raw[-4:], "little"):
            raise ValueError("the index of the shard is damaged")
        index = np.frombuffer(raw[:-4], "<u8").reshape(count, 2)
        stored: list[bytes | None] = []
        for chunk in chunks:
            inner = tuple(i - k * g for i, k, g in zip(chunk, corner, grid, strict=True))
            offset, nbytes = (int(v) for v in index[int(np.ravel_multi_index(inner, grid))])
            if offset == nbytes == _NOT_STORED:
                stored.append(None)
                continue
            data = os.pread(file, nbytes, offset)
            if len(data) != nbytes:
                raise ValueError(f"{len(data)} bytes are stored where {nbytes} should be")
            stored.append(data)
        return stored


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
        known = {numcodecs.Blosc: blosc_part.decode, numcodecs.Zstd: _whole(zstd.decompress)}
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
        "BloscCodec": blosc_part.decode,
        "ZstdCodec": _whole(zstd.decompress),
        "GzipCodec": _whole(numcodecs.GZip().decode),
    }
    if not names or names[0] != "BytesCodec" or len(names) > 2 or any(n not in decoders for n in names[1:]):
        raise _UnknownCodecError
    endian = getattr(codecs[0].endian, "value", None)
    dtype = np.dtype(array.dtype).newbyteorder(">" if endian == "big" else "<")
    return (decoders[names[1]] if len(names) == 2 else _whole(_as_is)), dtype, index_first


def _whole(decode: Callable[[bytes], Any]) -> Decode:
    """For codecs whose chunks are decoded as a whole."""
    return lambda stored, first, stop: (decode(stored), 0)


def _as_is(stored: bytes) -> bytes:
    return stored
