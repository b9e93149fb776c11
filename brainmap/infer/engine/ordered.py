"""Tables of cells in z, y, x order, however many there are: sorted in parts that wait on disk."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from brainmap.points.table import Points

__all__ = ["SCRATCH", "Sorter"]

# How the name of a folder with parts starts; one is left behind only where a process was killed.
SCRATCH = ".sort-"
# Rows of a table, and rows that are held in memory before they go to disk: about 40 bytes each.
_ROWS = 1_000_000
# Every so many rows of a sorted part, one is looked at to cut all parts at the same places.
_SAMPLE = 1_000
_AXES = ("z", "y", "x")


class Sorter:
    """Takes tables with columns z, y, x and others in any order; gives their rows sorted, piece by piece.

    Memory is that of a few pieces. Rows at the very same place keep the order in which they came.

    Parameters
    ----------
    folder : Path
        Where parts wait; nothing is left there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: list[Points] = []
        self._rows = 0
        self._parts: list[_Part] = []
        self._stack = ExitStack()
        self._scratch: Path | None = None

    def __enter__(self) -> Sorter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def add(self, points: Points) -> None:
        """Take the rows of a table; all tables have the same columns."""
        self._held.append(points)
        self._rows += len(points)
        if self._rows > _ROWS:
            self._put_away()

    def tables(self) -> Iterator[Points]:
        """All rows in z, y, x order, in tables of at most about a million rows."""
        if not self._parts:
            yield from _pieces(_sorted(self._held))
            return
        self._put_away()
        bounds = _bounds(self._parts)
        for first, last in itertools.pairwise(bounds):
            found = [part.rows(a, b) for part, a, b in zip(self._parts, first, last, strict=True)]
            yield from _pieces(_sorted(found))

    def _put_away(self) -> None:
        if self._scratch is None:
            scratch = tempfile.TemporaryDirectory(dir=self._folder, prefix=SCRATCH)
            self._scratch = Path(self._stack.enter_context(scratch))
        held = _sorted(self._held)
        self._held, self._rows = [], 0
        if len(held):
            self._parts.append(_Part(self._scratch / f"{len(self._parts)}", held))


class _Part:
    """Sorted rows on disk: one file per column."""

    def __init__(self, folder: Path, points: Points) -> None:
        self._folder, self._names, self._length = folder, list(points.columns), len(points)
        folder.mkdir()
        for number, name in enumerate(self._names):
            np.save(folder / f"{number}.npy", points[name])
        self.sample = points.take(slice(None, None, _SAMPLE)).zyx_vox

    def __len__(self) -> int:
        return self._length

    def rows(self, first: int, last: int) -> Points:
        """Rows first..last-1."""
        return Points({name: np.array(self._column(name)[first:last]) for name in self._names})

    def place(self, keys: NDArray[np.float64]) -> list[int]:
        """For each z, y, x, the number of rows that come before it; keys of shape (n, 3)."""
        columns = [self._column(name) for name in _AXES]
        return [_place(columns, key) for key in keys]

    def _column(self, name: str) -> NDArray:
        # Mapped for the moment of one look only: pages of large files would count as this process's memory.
        column: NDArray = np.load(self._folder / f"{self._names.index(name)}.npy", mmap_mode="r")
        return column


def _place(columns: list[NDArray], key: NDArray[np.float64]) -> int:
    first, last = 0, len(columns[0])
    for column, value in zip(columns, key, strict=True):
        within = column[first:last]
        first, last = (
            first + int(np.searchsorted(within, value, "left")),
            first + int(np.searchsorted(within, value, "right")),
        )
    return first


def _bounds(parts: list[_Part]) -> list[tuple[int, ...]]:
    """Rows at which to cut all parts at the same places, so that what lies between fits into memory."""
    samples = np.concatenate([part.sample for part in parts])
    samples = samples[np.lexsort((samples[:, 2], samples[:, 1], samples[:, 0]))]
    keys = samples[:: max(1, _ROWS // _SAMPLE)][1:]
    inner = list(zip(*(part.place(keys) for part in parts), strict=True))
    return [(0,) * len(parts), *inner, tuple(map(len, parts))]


def _sorted(tables: list[Points]) -> Points:
    points = Points.concat(tables)
    return points.take(np.lexsort((points["x"], points["y"], points["z"])))


def _pieces(points: Points) -> Iterator[Points]:
    for start in range(0, len(points), _ROWS):
        yield points.take(slice(start, start + _ROWS))
