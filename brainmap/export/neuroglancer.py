"""Cells as a neuroglancer "precomputed" annotation layer with a multi-level spatial index.

The format is the one of neuroglancer's `src/datasource/precomputed/annotations.md`: every level of the spatial index
holds a random subset of the cells on a grid, so that a viewer loads few cells when it looks at the whole brain and all
of them when it looks closely. All indices are sharded (`sharding.md`): a level is one file, and about 65,000 cells by
id are one. Memory is that of a piece of the cells, however many there are.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brainmap.files import write_json
from brainmap.points.spatial_order import ROW, SpatialOrder, sort_in_space

__all__ = ["Cells", "Property", "row_priority", "write_annotations", "write_layer"]

# Cells shown at once per grid cell of a level.
LIMIT = 5000
# Ids are consecutive: 2^9 of them share a minishard, 2^7 minishards a shard file.
PRESHIFT_BITS, MINISHARD_BITS = 9, 7
PER_SHARD = 1 << (PRESHIFT_BITS + MINISHARD_BITS)
# Records looked at together when the levels are written.
_PIECE = 1 << 18
_SIZES = {"float32": "<f4", "uint32": "<u4", "int32": "<i4", "uint8": "u1", "rgb": "u1"}

#: Places z, y, x in um (n, 3) and the properties by name, each (n,), of "rgb" (n, 3).
Cells = tuple[npt.NDArray[np.floating[Any]], Mapping[str, npt.NDArray[Any]]]


@dataclass(frozen=True)
class Property:
    """A number that every cell has.

    Attributes
    ----------
    name : str
    type : str
        `float32`, `uint32`, `int32`, `uint8` or `rgb`.
    labels : dict of int to str
        What some values are called.
    """

    name: str
    type: str
    labels: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.type not in _SIZES:
            raise ValueError(f"property {self.name} must have a 32-bit type, uint8 or rgb, not {self.type}")

    def described(self) -> dict[str, Any]:
        """The entry in `info`."""
        found: dict[str, Any] = {"id": self.name, "type": self.type}
        if self.labels:
            found |= {"enum_values": list(self.labels), "enum_labels": list(self.labels.values())}
        return found


def write_annotations(
    folder: Path, zyx_um: npt.NDArray[np.float32], properties: dict[str, npt.NDArray], limit: int = LIMIT
) -> None:
    """Write points that are in memory as a neuroglancer annotation layer; see `write_layer`.

    Parameters
    ----------
    folder : Path
        Folder to create.
    zyx_um : array, shape (N, 3)
    properties : dict of str to array, shape (N,)
        Of 32-bit types: float32, uint32 or int32.
    limit : int
        About the most points per grid cell and level.
    """
    kinds = [Property(name, array.dtype.name) for name, array in properties.items()]
    write_layer(folder, [(zyx_um, properties)], kinds, limit)


def write_layer(
    folder: Path,
    cells: Iterable[Cells],
    properties: Sequence[Property],
    limit: int = LIMIT,
    keep: Path | None = None,
) -> None:
    """Write cells as a neuroglancer annotation layer.

    Parameters
    ----------
    folder : Path
        Folder to create.
    cells : iterable
        Pieces of the cells, read once. Micrometres are `index * scale + translation` as
        everywhere: neuroglancer puts the centre of an OME-Zarr voxel where its transformations put it. The id of a
        cell is its number in this order.
    properties : sequence of Property
        Those of 32 bits first.
    limit : int
        About the most cells per grid cell and level.
    keep : Path, optional
        Folder to create that keeps the cells in spatial order, for looking them up.
    """
    folder.mkdir(parents=True)
    dtype = _record_type(properties)

    by_id = _ById(folder / "by_id")
    scratch = keep or folder / "order"
    order = sort_in_space(scratch, (_records(piece, dtype, properties) for piece in cells), by_id.add)
    sharding = by_id.finish()
    spatial = _write_spatial(folder, order, limit)
    upper = np.array(spatial[0]["grid_shape"]) * spatial[0]["chunk_size"] + np.array(order.lower_um[::-1])
    write_json(
        folder / "info",
        {
            "@type": "neuroglancer_annotations_v1",
            "dimensions": {axis: [1e-6, "m"] for axis in "xyz"},
            "lower_bound": order.lower_um[::-1],
            "upper_bound": upper,
            "annotation_type": "POINT",
            "properties": [kind.described() for kind in properties],
            "relationships": [],
            "by_id": {"key": "by_id", "sharding": sharding},
            "spatial": spatial,
        },
    )
    if keep is None:
        shutil.rmtree(scratch)


def _record_type(properties: Sequence[Property]) -> np.dtype[Any]:
    """A record as every index stores it, filled up to four bytes, and behind it the row, which none stores."""
    sizes = [np.dtype(_SIZES[kind.type]).itemsize for kind in properties]
    if sizes != sorted(sizes, reverse=True):
        raise ValueError("properties of 32 bits come first")
    types: list[Any] = [("x", "<f4"), ("y", "<f4"), ("z", "<f4")]
    for kind in properties:
        name, size = f"p_{kind.name}", _SIZES[kind.type]
        types.append((name, size, (3,)) if kind.type == "rgb" else (name, size))
    if rest := -np.dtype(types).itemsize % 4:
        types.append(("fill", f"V{rest}"))
    return np.dtype([*types, (ROW, "<u4")])


def _records(cells: Cells, dtype: np.dtype[Any], properties: Sequence[Property]) -> npt.NDArray[Any]:
    zyx_um, values = cells
    records = np.zeros(len(zyx_um), dtype=dtype)
    for axis, name in enumerate("zyx"):
        records[name] = zyx_um[:, axis]
    for kind in properties:
        records[f"p_{kind.name}"] = values[kind.name]
    return records


def _stored(records: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """The bytes (n, size) of records without the row."""
    size = records.dtype.itemsize
    return np.ascontiguousarray(records).view(np.uint8).reshape(len(records), size)[:, : size - 4]


def row_priority(rows: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each row that looks random and is always the same (splitmix64)."""
    z = (rows.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2.0**53


def _cuts(order: SpatialOrder, limit: int) -> list[float]:
    """Priorities (levels + 1,) between which the cells of each level lie, coarsest first.

    The same share of every grid cell, as the format asks for: so many that the fullest holds about the limit.
    """
    counts, most = np.diff(order.starts), []
    for _ in range(order.bits + 1):
        most.append(int(counts.max(initial=0)))
        counts = counts.reshape(-1, 8).sum(axis=1) if len(counts) > 1 else counts
    cuts = [0.0]
    for fullest in most[::-1]:
        left = 1 - cuts[-1]
        # Numbers scatter around the share by their root: two of them below the limit.
        aim = max(1.0, limit - 2 * math.sqrt(limit))
        if fullest * left <= aim:
            break
        cuts.append(cuts[-1] + aim / fullest)
    return [*cuts[: order.bits + 1], 1.0]


def _write_spatial(folder: Path, order: SpatialOrder, limit: int) -> list[dict[str, Any]]:
    """Write the levels from coarse to fine; return their entries of `info`."""
    cuts = np.array(_cuts(order, limit))
    with contextlib.ExitStack() as opened:
        levels = [
            opened.enter_context(_Level(folder / f"spatial{number}", number, order.bits))
            for number in range(len(cuts) - 1)
        ]
        for start in range(0, order.n, _PIECE):
            stop = min(start + _PIECE, order.n)
            records = np.asarray(order.records[start:stop])
            code = np.searchsorted(order.starts, np.arange(start, stop), side="right") - 1
            priority = row_priority(records[ROW])
            level_of = np.searchsorted(cuts, priority, side="right") - 1
            for number, level in enumerate(levels):
                mine = level_of == number
                level.add(code[mine] >> level.shift, records[mine], priority[mine])
        found = []
        for number, level in enumerate(levels):
            sharding = level.finish()
            side = order.box_um * 2 ** (order.bits - number)
            found.append({"key": f"spatial{number}", "grid_shape": [2**number] * 3, "chunk_size": [side] * 3,
                          "limit": max(level.fullest, 1), "sharding": sharding})  # fmt: skip
    return found


class _Level:
    """Writes a level as one shard: its grid cells come one after another along the curve, whose places are their ids.

    A disk is slow at many small files: ten million cells are 30,000 grid cells.
    """

    def __init__(self, folder: Path, number: int, bits: int) -> None:
        folder.mkdir()
        self.shift, self.fullest = 3 * (bits - number), 0
        self._minishard_bits = max(0, 3 * number - PRESHIFT_BITS)
        self._file = (folder / "0.shard").open("wb")
        self._index = np.zeros((1 << self._minishard_bits, 2), "<u8")
        self._file.write(self._index.tobytes())
        self._at = 0
        self._code, self._open = -1, list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]()
        # Ids, starts and sizes of the open minishard.
        self._entries: list[tuple[int, int, int]] = []

    def __enter__(self) -> _Level:
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()

    def add(
        self, code: npt.NDArray[np.int64], records: npt.NDArray[Any], priority: npt.NDArray[np.float64]
    ) -> None:
        """Take records in the order of their places on the curve."""
        edges = [0, *(np.flatnonzero(np.diff(code)) + 1).tolist(), len(code)]
        for start, stop in itertools.pairwise(edges):
            if start == stop:
                continue
            if code[start] != self._code:
                self._finish_cell()
                self._code = int(code[start])
            self._open.append((records[start:stop], priority[start:stop]))

    def finish(self) -> dict[str, Any]:
        """Write what is open and the index; return the sharding specification."""
        self._finish_cell()
        self._finish_minishard()
        self._file.seek(0)
        self._file.write(self._index.tobytes())
        return _sharding(self._minishard_bits, 0)

    def _finish_cell(self) -> None:
        if not self._open:
            return
        records = np.concatenate([part for part, _ in self._open])
        # A viewer shows the first ones where all are too many: they must be any.
        records = records[np.argsort(np.concatenate([part for _, part in self._open]), kind="stable")]
        if self._entries and self._entries[-1][0] >> PRESHIFT_BITS != self._code >> PRESHIFT_BITS:
            self._finish_minishard()
        content = b"".join(
            [
                np.uint64(len(records)).astype("<u8").tobytes(),
                _stored(records).tobytes(),
                records[ROW].astype("<u8").tobytes(),
            ]
        )
        self._entries.append((self._code, self._at, len(content)))
        self._write(content)
        self.fullest = max(self.fullest, len(records))
        self._open = []

    def _finish_minishard(self) -> None:
        if not self._entries:
            return
        ids, starts, sizes = np.array(self._entries, "<i8").T
        table = _minishard_table(ids, starts, sizes)
        self._index[ids[0] >> PRESHIFT_BITS] = self._at, self._at + len(table)
        self._write(table)
        self._entries = []

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._at += len(content)


def _sharding(minishard_bits: int, shard_bits: int) -> dict[str, Any]:
    return {
        "@type": "neuroglancer_uint64_sharded_v1",
        "preshift_bits": PRESHIFT_BITS,
        "hash": "identity",
        "minishard_bits": minishard_bits,
        "shard_bits": shard_bits,
        "minishard_index_encoding": "raw",
        "data_encoding": "raw",
    }


def _minishard_table(
    ids: npt.NDArray[np.integer[Any]],
    starts: npt.NDArray[np.integer[Any]],
    sizes: npt.NDArray[np.integer[Any]],
) -> bytes:
    """Index of a minishard.

    Ids as differences to the one before, starts as distances from the end of the one before (the first from the end
    of the shard's index), sizes.
    """
    ends = np.concatenate([[0], (starts + sizes)[:-1]])
    return np.stack([np.diff(ids, prepend=0), starts - ends, sizes]).astype("<u8").tobytes()


class _ById:
    """Writes the sharded index by id (the row number) as the rows come."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.shards = folder, 0
        self._left: list[npt.NDArray[np.uint8]] = []
        self._rows = 0

    def add(self, records: npt.NDArray[Any]) -> None:
        self._left.append(_stored(records))
        self._rows += len(records)
        while self._rows >= PER_SHARD:
            joined = np.concatenate(self._left)
            self._write(joined[:PER_SHARD])
            self._left, self._rows = [joined[PER_SHARD:]], len(joined) - PER_SHARD

    def finish(self) -> dict[str, Any]:
        """Write the last shard and name all as their number asks for; return the sharding specification."""
        if self._rows or not self.shards:
            self._write(np.concatenate(self._left) if self._left else np.empty((0, 1), np.uint8))
        shard_bits = (self.shards - 1).bit_length()
        digits = max(1, math.ceil(shard_bits / 4))
        for shard in range(self.shards):
            (self.folder / f"{shard}.part").rename(self.folder / f"{shard:0{digits}x}.shard")
        return _sharding(MINISHARD_BITS, shard_bits)

    def _write(self, stored: npt.NDArray[np.uint8]) -> None:
        (self.folder / f"{self.shards}.part").write_bytes(_shard(stored, self.shards * PER_SHARD))
        self.shards += 1


def _shard(records: npt.NDArray[np.uint8], first_id: int) -> bytes:
    """A shard file: the shard index, the data of all minishards, then the minishard indices."""
    size, per_minishard = records.shape[1], 1 << PRESHIFT_BITS
    data = records.tobytes()
    index = np.zeros((1 << MINISHARD_BITS, 2), dtype="<u8")
    minishards = []
    offset = len(data)
    for number, start in enumerate(range(0, len(records), per_minishard)):
        n = min(per_minishard, len(records) - start)
        within = np.arange(start, start + n)
        table = _minishard_table(first_id + within, within * size, np.full(n, size))
        minishards.append(table)
        index[number] = offset, offset + len(table)
        offset += len(table)
    # Empty minishards have start == end.
    index[len(minishards) :] = offset
    return b"".join([index.tobytes(), data, *minishards])
