"""Read chunks of local Zarr arrays directly: open, read, decode, in the thread that asks.

zarr-python hands every chunk through an event loop and several threads. While the network keeps all
processors busy, each hand-over waits for its turn, and reading becomes many times slower than
decoding needs. This reader knows the usual codecs (`brainmap.image.storage.layout`); whatever else is left to zarr.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from brainmap.image.storage import blosc
from brainmap.image.storage.blosc import Fetch
from brainmap.image.storage.layout import ArrayLayout, NotKnownHereError, checked
from brainmap.machine import usable_cores

__all__ = ["LocalChunks", "require_place"]

Box = tuple[slice, ...]
Span = tuple[int, int]

_NOT_STORED = 2**64 - 1
_CHUNKS_PER_TASK = 4
# Chunks looked at for how they are encoded: the first may not be stored.
_SAMPLES = 9
# A chunk is read part by part: so many whose checksum was right are known by name.
_MOST_CHECKED = 1 << 14


class LocalChunks:
    """Regions of one local array.

    Parameters
    ----------
    layout : ArrayLayout
    folder : Path
        Where its chunks lie.
    stored_key : callable
        From a chunk key of the metadata to the file's name in `folder`.

    Attributes
    ----------
    unstored : set of tuple of int
        Grid positions of the chunks that were asked for and are not stored.
    """

    def __init__(self, layout: ArrayLayout, folder: Path, stored_key: Callable[[str], str]) -> None:
        self.layout, self.shape, self.chunks, self.shards = layout, layout.shape, layout.chunks, layout.shards
        # A chunk as it is stored: a run of sections along its outermost axis of more than one.
        self._stored = tuple(self.chunks[axis] for axis in layout.order)
        self._outer = next((a for a, n in enumerate(self._stored) if n > 1), 0)
        self._chunk_bytes = math.prod(self.chunks) * layout.dtype.itemsize
        self._folder, self._stored_key = folder, stored_key
        self.unstored: set[tuple[int, ...]] = set()
        self._right: set[tuple[object, ...]] = set()

    @classmethod
    def of(
        cls, document: Mapping[str, Any], folder: Path, stored_key: Callable[[str], str]
    ) -> LocalChunks | None:
        """Return a reader by an array's `zarr.json` or `.zarray`, or None if it is stored in a way not known here."""
        try:
            return cls(ArrayLayout.parse(document), folder, stored_key)
        except NotKnownHereError:
            return None

    def read(self, region: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Region in native byte order, all axes kept, in `out` if given. Raises whatever decoding raises."""
        if out is None:
            out = np.empty([r.stop - r.start for r in region], self.layout.dtype.newbyteorder("="))
        files = list(_overlapping(region, self.shards or self.chunks))
        jobs = [(corner, box) for corner in files for box in self._parts(corner, region)]
        if len(jobs) <= _CHUNKS_PER_TASK:
            self._fill_in(out, region, jobs)
            return out
        pool, count = _pool()
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
                        out[target] = self.layout.fill
                        self.unstored.add(chunk)
                    else:
                        fetch, size = self._checked_bytes(file, chunk, place)
                        out[target] = self._decoded(fetch, size, source)

    def _checked_bytes(self, file: FileIO, chunk: tuple[int, ...], place: Span) -> tuple[Fetch, int]:
        """What reads a chunk at (offset, bytes) of a file, without its checksum, and how many bytes it has.

        The checksum is that of the whole: it is looked at when a chunk is read for the first time, in any part.
        """
        if not self.layout.checked:
            return _fetcher(file, place), place[1]
        bare = (place[0], place[1] - 4)
        mark = (chunk, place, os.fstat(file.fileno()).st_mtime_ns)
        if mark in self._right:
            return _fetcher(file, bare), bare[1]
        values = checked(_read(file, *place))
        if len(self._right) >= _MOST_CHECKED:
            self._right.clear()
        self._right.add(mark)
        return lambda begin, count: values[begin : begin + count], len(values)

    def _decoded(self, fetch: Fetch, size: int, box: Box) -> NDArray[Any]:
        """A box of a chunk of so many bytes."""
        layout, outer = self.layout, self._outer
        box = tuple(box[axis] for axis in layout.order)
        section = self._chunk_bytes // self._stored[outer]
        first, stop = box[outer].start * section, box[outer].stop * section
        values, begins = layout.decode(fetch, size, first, stop, self._chunk_bytes)
        if begins + len(values) < stop:
            raise ValueError(f"{len(values)} bytes were decoded where {self._chunk_bytes} should be")
        # What is decoded need not begin or end with a section.
        skip = -begins % section
        count = (len(values) - skip) // section
        low = (begins + skip) // section
        sections = np.frombuffer(values, layout.dtype, count * section // layout.dtype.itemsize, skip)
        within = slice(box[outer].start - low, box[outer].stop - low)
        shape = (*self._stored[:outer], count, *self._stored[outer + 1 :])
        part = sections.reshape(shape)[(*box[:outer], within, *box[outer + 1 :])]
        return part.transpose(np.argsort(layout.order))

    @functools.cached_property
    def unit(self) -> tuple[int, ...]:
        """What is decoded at a time: a chunk, or fewer of its outermost sections."""
        section = self._chunk_bytes // self._stored[self._outer]
        block = self._block_bytes() if self.layout.decodes_in_blocks else self._chunk_bytes
        if block % section == 0 or section % block == 0:
            unit, axis = list(self.chunks), self.layout.order[self._outer]
            unit[axis] = min(unit[axis], max(1, block // section))
            return tuple(unit)
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
                    fetch, size = self._checked_bytes(file, chunk, place)
                    return blosc.block_bytes(fetch, size)
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
        path = self._folder / self._stored_key(self.layout.key(corner))
        try:
            file = FileIO(path)
        except FileNotFoundError:
            yield None
            return
        except OSError:
            require_place(path)
            raise
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
        raw = _read(file, 0 if self.layout.index_first else max(0, size - length), length)
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


def require_place(path: Path) -> None:
    """Refuse, by a ValueError, what lies where a chunk's file should be or could be."""
    if path.is_dir():
        raise ValueError("a folder lies where its bytes should be")
    if any(parent.is_file() for parent in path.parents):
        raise ValueError("a file lies where its folder should be")


def _overlapping(region: Box, size: tuple[int, ...]) -> itertools.product[tuple[int, ...]]:
    return itertools.product(
        *(range(r.start // s, -(-r.stop // s)) for r, s in zip(region, size, strict=True))
    )


@functools.cache
def _pool() -> tuple[ThreadPoolExecutor, int]:
    """Threads that read, and how many."""
    count = usable_cores()
    return ThreadPoolExecutor(count, thread_name_prefix="brainmap-read"), count


# Windows has no fork.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


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
