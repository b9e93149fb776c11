"""Write whole shards of local Zarr 3 arrays directly: compress, write, read back, compare, in one thread each.

zarr-python hands every chunk of a shard through an event loop and several copies, which costs more than
compressing it. The files are the same kind (`sharding_indexed` with blosc and CRC-32C, index at the end with CRC-32C)
and are read by zarr. One shard is written by one thread and never in parts, as concurrent writers of
parts of a shard lose data.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Literal

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from brainmap.errors import DataError

__all__ = ["BLOCK_BYTES", "CODEC", "LEVEL", "ShardWriter", "checksum"]

# Level 1 with bit shuffle, against byte shuffle: 9 % smaller on a real 16-bit brain, 2 % larger on pure shot noise.
# LZ4 would compress three times as fast, but 8 to 12 % larger.
CODEC: Literal["zstd"] = "zstd"
LEVEL = 1
# What blosc shuffles and compresses at a time, and the least that is decoded. Its own choice, 32 KB or so, takes twice
# the time here, for reading too, and the files are 3 to 5 % larger. With 1 MiB they are 1 % smaller, and detection
# decodes 8 % more and holds 0.25 GiB more.
BLOCK_BYTES = 2**19

_NOT_STORED = 2**64 - 1
_CHECKSUM_BYTES = 4
_READ_BYTES = 2**24


def checksum(path: Path) -> int | None:
    """CRC-32C of a file's bytes; None if there is no such file."""
    try:
        with path.open("rb", buffering=0) as file:
            value = 0
            while block := file.read(_READ_BYTES):
                value = google_crc32c.extend(value, block)
            return value
    except FileNotFoundError:
        return None


class ShardWriter:
    """Write slabs of an array whose shards are as high as the slabs.

    Parameters
    ----------
    array : zarr.Array
        Sharded, (z, y, x) or (c, z, y, x), as `VolumeWriter` creates it.
    folder : Path
        Where the array lies.
    verify : bool
        Read every shard back, decode it and compare it with what was to be written.
    pool : Executor
        Whose threads write; one shard each at a time.
    """

    def __init__(self, array: Any, folder: Path, verify: bool, pool: Executor) -> None:
        self._shape = tuple(array.shape[-3:])
        self._chunk, self._shard = tuple(array.chunks[-3:]), tuple(array.shards[-3:])
        self._key, self._folder = array.metadata.encode_chunk_key, folder
        self._with_channels = array.ndim == 4
        self._stored_type = np.dtype(array.dtype).newbyteorder("<")
        self._verify, self._pool = verify, pool

    def write(self, z: int, slab: NDArray[Any]) -> dict[str, int | None]:
        """Write planes (c, n, y, x) that start at plane `z`, the first of a shard.

        Returns
        -------
        dict
            CRC-32C of each file, by its name in the array's folder; None for a shard of zeros, which has
            no file.

        Raises
        ------
        DataError
            If what is read back differs.
        OSError
            If the disk does not take a file.
        """
        if z % self._shard[0]:
            raise ValueError(f"plane {z} is not the first of a shard of {self._shard[0]} planes")
        rows, columns = (range(0, n, s) for n, s in zip(self._shape[1:], self._shard[1:], strict=True))
        layers = range(0, slab.shape[1], self._shard[0])
        corners = list(itertools.product(range(slab.shape[0]), layers, rows, columns))
        jobs = [self._pool.submit(self._write_shard, slab, z, corner) for corner in corners]
        # Nobody may still read `slab` when this returns or raises.
        failures = [job.exception() for job in jobs]
        for failure in failures:
            if failure is not None:
                raise failure
        return dict(job.result() for job in jobs)

    def _write_shard(
        self, slab: NDArray[Any], z: int, corner: tuple[int, int, int, int]
    ) -> tuple[str, int | None]:
        channel, *first = corner
        layer, row, column = (slice(f, f + s) for f, s in zip(first, self._shard, strict=True))
        values = slab[channel, layer, row, column]
        grid = [f // s for f, s in zip((z + first[0], *first[1:]), self._shard, strict=True)]
        name = self._key((channel, *grid) if self._with_channels else tuple(grid))
        path = self._folder / name
        value = self._encode(values, path)
        if self._verify:
            self._compare(values, path, value)
        return name, value

    def _chunks(self, values: NDArray[Any]) -> Iterator[NDArray[Any]]:
        """Parts of a shard in the order of its index; empty beyond the edge of the image."""
        starts = (range(0, s, c) for s, c in zip(self._shard, self._chunk, strict=True))
        for start in itertools.product(*starts):
            yield values[tuple(slice(i, i + c) for i, c in zip(start, self._chunk, strict=True))]

    def _encode(self, values: NDArray[Any], path: Path) -> int | None:
        index, position, value = [], 0, 0
        path.unlink(missing_ok=True)
        if not any(_holds_something(part) for part in self._chunks(values)):
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        # One piece of memory for all chunks: fresh memory for each costs more than the copy.
        room = np.empty(self._chunk, self._stored_type)
        with path.open("wb", buffering=0) as file:
            for part in self._chunks(values):
                if not _holds_something(part):
                    index.append((_NOT_STORED, _NOT_STORED))
                    continue
                if part.shape != self._chunk:
                    room.fill(0)
                room[_inside(part)] = part
                stored = blosc.compress(room, CODEC.encode(), LEVEL, blosc.BITSHUFFLE, BLOCK_BYTES)
                stored += google_crc32c.value(stored).to_bytes(_CHECKSUM_BYTES, "little")
                _write_all(file, stored)
                index.append((position, len(stored)))
                position, value = position + len(stored), google_crc32c.extend(value, stored)
            table = np.array(index, "<u8").tobytes()
            table += google_crc32c.value(table).to_bytes(4, "little")
            _write_all(file, table)
            return google_crc32c.extend(value, table)

    def _compare(self, values: NDArray[Any], path: Path, value: int | None) -> None:
        """Read the file back: the same bytes, which decode to the same voxels."""
        if value is None:
            return
        try:
            stored = path.read_bytes()
        except FileNotFoundError:
            stored = b""
        if google_crc32c.value(stored) != value or not self._decodes_to(stored, values):
            raise DataError(f"{path}: what is read back differs from what was written; is the disk sound?")

    def _decodes_to(self, stored: bytes, values: NDArray[Any]) -> bool:
        count = int(np.prod([s // c for s, c in zip(self._shard, self._chunk, strict=True)]))
        index = np.frombuffer(stored[-16 * count - 4 : -4], "<u8").reshape(count, 2)
        bits, data = f"u{self._stored_type.itemsize}", memoryview(stored)
        chunk = np.empty(self._chunk, self._stored_type)
        for (offset, nbytes), part in zip(index.tolist(), self._chunks(values), strict=True):
            if offset == _NOT_STORED:
                continue
            blosc.decompress(data[offset : offset + nbytes - _CHECKSUM_BYTES], chunk)
            inside = chunk[_inside(part)]
            # Compared as bits: NaN equals itself.
            if not np.array_equal(inside.astype(part.dtype, copy=False).view(bits), part.view(bits)):
                return False
        return True


def _inside(part: NDArray[Any]) -> tuple[slice, ...]:
    """Where a part that may reach beyond the edge of the image lies in its chunk."""
    return tuple(slice(n) for n in part.shape)


def _holds_something(part: NDArray[Any]) -> bool:
    # The first plane nearly always tells; the rest is looked at where it is empty.
    return bool(part[:1].any() or part.any())


def _write_all(file: Any, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
