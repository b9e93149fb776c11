"""From storage to the net grid: a block's slices, read in whole chunks and resampled, in z order."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.infer.ahead import read_ahead
from brainmap.infer.blocks import Grid, Span
from brainmap.infer.layout import Window
from brainmap.infer.resample import axis_operator, resample_band
from brainmap.volume import Volume

__all__ = ["Band", "Stages", "net_slices", "read_bands"]

# Bounds on what one block holds at a time: resampled slices of one run, voxels of one read (two at once).
_SLAB_BYTES = 400 << 20
_BAND_BYTES = 32 << 20
_RUN_GROUPS = 16

Slice = tuple[int, NDArray[np.float32]]


@dataclass
class Stages:
    """Seconds spent per stage, voxels decoded (whole storage chunks, each time) and pixels inferred."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    raw_voxels: int = 0
    net_pixels: int = 0

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - started


def net_slices(volume: Volume, grid: Grid, window: Window, stages: Stages) -> Iterator[Slice]:
    """Resampled slices (group, image of the window's readable part), in z order."""
    rows, columns = axis_operator(grid, 1, window.read_y), axis_operator(grid, 2, window.read_x)
    shape = (window.read_y[1] - window.read_y[0], window.read_x[1] - window.read_x[0])
    # One store for all runs: memory that is given back and asked for again comes page by page.
    store = np.empty((0, *shape), np.float32)
    slab: NDArray[np.float32] | None = None
    bands = read_bands(volume, grid, window, rows.span, columns.span, stages)
    with closing(bands):
        for band, raw in bands:
            first, stop = band.groups
            with stages.time("resample"):
                if slab is None:
                    if len(store) < stop - first:
                        store = np.empty((stop - first, *shape), np.float32)
                    slab = store[: stop - first]
                resample_band(slab, raw, band.z, band.y[0], grid, first, rows, columns)
            if band.last:
                for i in range(len(slab)):
                    # A copy: the caller keeps a few slices while the store takes the next run.
                    yield first + i, slab[i].copy()
                slab = None


@dataclass(frozen=True)
class Band:
    """One read: groups, slices and rows, all (start, stop); `last` of its groups."""

    groups: Span
    z: Span
    y: Span
    last: bool


def read_bands(
    volume: Volume, grid: Grid, window: Window, rows: Span, columns: Span, stages: Stages
) -> Generator[tuple[Band, NDArray[Any]], None, None]:
    """Voxels of a block, band by band, read ahead by one; each is valid until the next is asked for.

    Parameters
    ----------
    rows, columns : (start, stop)
        Voxels that the window needs.
    stages : Stages
        Takes the time spent waiting and the voxels decoded.
    """
    x = slice(*columns)
    requests = _requests(volume, grid, window, rows, x.stop - x.start)
    turns = _Turns(volume.dtype)

    def read(band: Band) -> NDArray[Any]:
        room = turns.room((band.z[1] - band.z[0], band.y[1] - band.y[0], x.stop - x.start))
        return volume.read(slice(*band.z), slice(*band.y), x, out=room)

    bands = read_ahead(read, requests)
    with closing(bands):
        while True:
            with stages.time("read"):
                band, raw = next(bands, (None, None))
            if band is None or raw is None:
                return
            box = (slice(*band.z), slice(*band.y), x)
            stages.raw_voxels += volume.storage_bytes(*box) // volume.dtype.itemsize
            yield band, raw


class _Turns:
    """Memory for two bands in turn: one is read while the other is at work.

    Fresh memory for each would come page by page, which takes as long as decoding.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._here, self._next = np.empty(0, dtype), np.empty(0, dtype)

    def room(self, shape: tuple[int, int, int]) -> NDArray[Any]:
        """An array to fill; the one of the turn before is still valid."""
        size = math.prod(shape)
        self._here, self._next = self._next, self._here
        if len(self._here) < size:
            self._here = np.empty(size, self._here.dtype)
        return self._here[:size].reshape(shape)


def _requests(volume: Volume, grid: Grid, window: Window, rows: Span, width: int) -> Iterator[Band]:
    """Everything a block reads, in order: runs of groups, each in bands of rows."""
    area = (window.read_y[1] - window.read_y[0]) * (window.read_x[1] - window.read_x[0])
    for run in _runs(window.read_k, grid.group, volume.chunks[0], 4 * area):
        z = grid.voxel_span(run, 0)
        row_bytes = (z[1] - z[0]) * width * volume.dtype.itemsize
        for band in _bands(rows, volume.chunks[1], row_bytes):
            yield Band(run, z, band, last=band[1] == rows[1])


def _runs(k: Span, group: int, chunk: int, slice_bytes: int) -> Iterator[Span]:
    """Cut groups into runs that end where storage chunks end, so that none is decoded twice."""
    most = max(1, _SLAB_BYTES // slice_bytes)
    step = max(chunk, _RUN_GROUPS * group // chunk * chunk)
    if step > most * group:
        step = max(chunk, most * group // chunk * chunk)
    start = k[0]
    while start < k[1]:
        stop = max(start + 1, ((start * group) // step + 1) * step // group)
        stop = min(stop, start + most, k[1])
        yield start, stop
        start = stop


def _bands(rows: Span, chunk: int, row_bytes: int) -> Iterator[Span]:
    """Cut voxel rows into bands of whole storage chunks, anchored at the volume."""
    step = max(chunk, _BAND_BYTES // max(row_bytes, 1) // chunk * chunk)
    for start in range(rows[0] // step * step, rows[1], step):
        yield max(start, rows[0]), min(start + step, rows[1])
