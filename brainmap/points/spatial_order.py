"""Cells on disk in spatial order: millions of them are looked up by place without being in memory.

A cube around all cells is divided into ``2**bits`` boxes along each axis. Records lie box after box along a Morton
curve, so that the cells of any box of any coarser division, ``2**level`` along each axis, are one stretch of the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.errors import DataError
from brainmap.files import read_json, write_json

__all__ = ["SpatialOrder", "box_of", "code_of", "sort_in_space"]

Records = NDArray[Any]
#: Gives the records from the first to the last; fields x, y, z (float32, um), others, and row, which is filled in.
Pieces = Iterable[Records]

RECORDS, STARTS, ABOUT = "records.npy", "starts.npy", "order.json"
ROW = "row"
# 2 million boxes of 8 bytes are the most; 64 records are about a look.
_MOST_BITS, _RECORDS_A_BOX = 7, 64
_PIECE = 1 << 18


@dataclass(frozen=True)
class SpatialOrder:
    """A finished folder of records in spatial order.

    Attributes
    ----------
    folder : Path
    lower_um : (z, y, x)
        Corner of the cube.
    box_um : float
        Side of a box.
    bits : int
        Boxes along an axis: 2**bits.
    n : int
        Records.
    """

    folder: Path
    lower_um: tuple[float, float, float]
    box_um: float
    bits: int
    n: int

    @classmethod
    def open(cls, folder: str | Path) -> SpatialOrder:
        """Open what `sort_in_space` made.

        Raises
        ------
        NotFoundError, DataError
        """
        folder = Path(folder)
        about = read_json(folder / ABOUT)
        try:
            z, y, x = about["lower_um"]
            return cls(folder, (z, y, x), float(about["box_um"]), int(about["bits"]), int(about["n"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{folder / ABOUT} is damaged ({error!r})") from error

    @cached_property
    def records(self) -> Records:
        """All records (n,), mapped from the file; field `row` says which one it was."""
        return np.asarray(np.load(self.folder / RECORDS, mmap_mode="r" if self.n else None))

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """First record of each box along the curve, and the end (8**bits + 1,), mapped from the file."""
        return np.asarray(np.load(self.folder / STARTS, mmap_mode="r"))

    def within(
        self, low_um: NDArray[np.float64], high_um: NDArray[np.float64], most: int | None = None
    ) -> Records:
        """Records in a box.

        Parameters
        ----------
        low_um, high_um : float arrays (3,)
            z, y, x; both ends inside.
        most : int, optional
            Read no more boxes than hold about so many.

        Returns
        -------
        record array (m,), copied; in no order that means anything
        """
        first, last = (
            np.clip(np.floor((end - np.array(self.lower_um)) / self.box_um), 0, 2**self.bits - 1).astype(
                np.int64
            )
            for end in (low_um, high_um)
        )
        axes = [np.arange(a, b + 1) for a, b in zip(first, last, strict=True)]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        codes = np.sort(code_of(grid))
        starts, stops = self.starts[codes], self.starts[codes + 1]
        full = stops > starts
        starts, stops = starts[full], stops[full]
        if most is not None and len(starts):
            # A share of evenly spread boxes stands for all of them.
            share = max(1, math.ceil(int((stops - starts).sum()) / most))
            starts, stops = starts[::share], stops[::share]
        if not len(starts):
            return np.array(self.records[:0])
        found = np.concatenate([self.records[a:b] for a, b in _joined(starts, stops)])
        inside = np.ones(len(found), bool)
        for axis, name in enumerate("zyx"):
            inside &= (found[name] >= low_um[axis]) & (found[name] <= high_um[axis])
        return np.asarray(found[inside])

    def nearest(self, zyx_um: NDArray[np.float64], radius_um: float) -> tuple[Records, NDArray[np.float64]]:
        """Records within a radius of a place, the nearest first, and their distances in um."""
        found = self.within(zyx_um - radius_um, zyx_um + radius_um)
        places = np.stack([found[name].astype(np.float64) for name in "zyx"], axis=-1)
        distance = np.linalg.norm(places - zyx_um, axis=1)
        order = np.argsort(distance, kind="stable")
        order = order[distance[order] <= radius_um]
        return found[order], distance[order]


def _joined(starts: NDArray[np.int64], stops: NDArray[np.int64]) -> Iterable[tuple[int, int]]:
    """Stretches that follow each other, as one."""
    cut = np.flatnonzero(starts[1:] != stops[:-1]) + 1
    firsts, lasts = np.concatenate([[0], cut]), np.concatenate([cut, [len(starts)]]) - 1
    return zip(starts[firsts].tolist(), stops[lasts].tolist(), strict=True)


def code_of(box: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places on the curve (...) of boxes z, y, x (..., 3)."""
    code = np.zeros(box.shape[:-1], np.int64)
    for bit in range(_MOST_BITS + 1):
        for axis in range(3):
            code |= ((box[..., axis] >> bit) & 1) << (3 * bit + 2 - axis)
    return code


def box_of(code: NDArray[np.int64]) -> NDArray[np.int64]:
    """Boxes z, y, x (..., 3) of places on the curve (...); the inverse of `code_of`."""
    box = np.zeros((*code.shape, 3), np.int64)
    for bit in range(_MOST_BITS + 1):
        for axis in range(3):
            box[..., axis] |= ((code >> (3 * bit + 2 - axis)) & 1) << bit
    return box


def sort_in_space(
    folder: Path, pieces: Pieces, also: Callable[[Records], None] | None = None
) -> SpatialOrder:
    """Bring records into spatial order, with as much memory as a piece of them takes.

    Parameters
    ----------
    folder : Path
        Folder to create.
    pieces : iterable
        Read once.
    also : callable, optional
        Called with every piece in turn, its `row` filled in.

    Raises
    ------
    DataError
        If a place is not finite, or there are more records than 32 bits can count.
    """
    folder.mkdir(parents=True)
    spool = folder / "spool"
    n, low, high, dtype = _spool(spool, pieces, also)
    bits = min(max(1, math.ceil(math.log(max(n, 1) / _RECORDS_A_BOX, 8))), _MOST_BITS)
    # The upper faces are exclusive; whole numbers and room for rounding.
    side = float(max(np.ceil((high - low).max()) + 1, 2.0))
    lower, box_um = np.floor(low), side / 2**bits
    counts = np.zeros(8**bits, np.int64)
    for piece in _spooled(spool, n, dtype):
        counts += np.bincount(_codes(piece, lower, box_um, bits), minlength=len(counts))
    starts = np.concatenate([[0], np.cumsum(counts)])
    np.save(folder / STARTS, starts)
    if n:
        records = np.lib.format.open_memmap(folder / RECORDS, mode="w+", dtype=dtype, shape=(n,))
    else:
        np.save(folder / RECORDS, np.empty(0, dtype))
    after = starts[:-1].copy()
    for piece in _spooled(spool, n, dtype):
        code = _codes(piece, lower, box_um, bits)
        order = np.argsort(code, kind="stable")
        boxes, first, number = np.unique(code[order], return_index=True, return_counts=True)
        rank = np.arange(len(code)) - np.repeat(first, number)
        records[np.repeat(after[boxes], number) + rank] = piece[order]
        after[boxes] += number
    if n:
        records.flush()
    spool.unlink()
    write_json(folder / ABOUT, {"lower_um": lower, "box_um": box_um, "bits": bits, "n": n})
    return SpatialOrder.open(folder)


def _spool(
    path: Path, pieces: Pieces, also: Callable[[Records], None] | None
) -> tuple[int, NDArray[np.float64], NDArray[np.float64], np.dtype[Any]]:
    """Write records one after another; their number, the ends of their places, and their type."""
    n, low, high = 0, np.full(3, np.inf), np.full(3, -np.inf)
    dtype = np.dtype([*((axis, "<f4") for axis in "xyz"), (ROW, "<u4")])
    with path.open("wb") as file:
        for piece in pieces:
            dtype = piece.dtype
            if not len(piece):
                continue
            if n + len(piece) >= 2**32:
                raise DataError(f"more cells than {2**32 - 1} cannot be shown")
            piece = piece.copy()
            piece[ROW] = np.arange(n, n + len(piece))
            places = np.stack([piece[axis].astype(np.float64) for axis in "zyx"])
            low, high = np.minimum(low, places.min(axis=1)), np.maximum(high, places.max(axis=1))
            if not (np.isfinite(low).all() and np.isfinite(high).all()):
                raise DataError("a cell has no finite place in um")
            if also is not None:
                also(piece)
            file.write(piece.tobytes())
            n += len(piece)
    return (n, low, high, dtype) if n else (0, np.zeros(3), np.zeros(3), dtype)


def _spooled(path: Path, n: int, dtype: np.dtype[Any]) -> Iterator[Records]:
    with path.open("rb") as file:
        for start in range(0, n, _PIECE):
            yield np.fromfile(file, dtype, min(_PIECE, n - start))


def _codes(piece: Records, lower: NDArray[np.float64], box_um: float, bits: int) -> NDArray[np.int64]:
    places = np.stack([piece[axis] for axis in "zyx"], axis=-1).astype(np.float64)
    return code_of(np.clip(((places - lower) / box_um).astype(np.int64), 0, 2**bits - 1))
