"""From storage to the net grid: a block's slices, read in whole chunks and resampled, in z order."""

from __future__ import annotations

import itertools
import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from brainmap.image.volume import Volume
from brainmap.infer.block.resample import axis_operator, resample_band
from brainmap.infer.plan.blocks import Grid, Span
from brainmap.infer.plan.layout import Window

__all__ = ["Band", "Stages", "longest_run", "net_slices", "read_ahead", "read_bands"]

# Bounds on what one block holds at a time: resampled slices of one run, voxels of one read (two at once).
_SLAB_BYTES = 400 << 20
_BAND_BYTES = 16 << 20
_RUN_GROUPS = 16

Slice = tuple[int, NDArray[np.float32]]
Request = TypeVar("Request")
Part = TypeVar("Part")


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


def net_slices(volume: Volume, grid: Grid, window: Window, kept: int, stages: Stages) -> Iterator[Slice]:
    """Resampled slices (group, image of the window's readable part), in z order.

    While the slices of one run are at work, those of the next are read and resampled by another thread.

    Parameters
    ----------
    kept : int
        Slices that are still valid when the next is asked for.
    stages : Stages
        Takes the time spent waiting, that of resampling (beside the rest), and the voxels decoded.
    """
    rows, columns = axis_operator(grid, 1, window.read_y), axis_operator(grid, 2, window.read_x)
    shape = (window.read_y[1] - window.read_y[0], window.read_x[1] - window.read_x[0])
    slabs, voxels = _Rooms(np.dtype(np.float32), 2), _Rooms(volume.dtype, 1)

    def fill(bands: list[Band]) -> NDArray[np.float32]:
        first, stop = bands[0].groups
        slab = slabs.room((stop - first, *shape))
        for band in bands:
            raw = _read(volume, band, columns.span, voxels, stages)
            with stages.time("resample"):
                resample_band(slab, raw, band.z, band.y[0], grid, first, rows, columns)
        return slab

    requests = _requests(volume, grid, window, rows.span, columns.span)
    by_run = (list(bands) for _, bands in itertools.groupby(requests, key=lambda band: band.groups))
    with closing(read_ahead(fill, by_run)) as runs:
        while True:
            with stages.time("read"):
                bands, slab = next(runs, (None, None))
            if bands is None or slab is None:
                return
            for i, image in enumerate(slab):
                # The slab is filled again while its last slices are still needed.
                yield bands[0].groups[0] + i, image.copy() if i >= len(slab) - kept else image


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
    voxels = _Rooms(volume.dtype, 2)
    requests = _requests(volume, grid, window, rows, columns)
    with closing(read_ahead(lambda band: _read(volume, band, columns, voxels, stages), requests)) as bands:
        while True:
            with stages.time("read"):
                band, raw = next(bands, (None, None))
            if band is None or raw is None:
                return
            yield band, raw


def _read(volume: Volume, band: Band, columns: Span, rooms: _Rooms, stages: Stages) -> NDArray[Any]:
    """Voxels of a band."""
    box = (slice(*band.z), slice(*band.y), slice(*columns))
    stages.raw_voxels += volume.storage_bytes(*box) // volume.dtype.itemsize
    return volume.read(*box, out=rooms.room(tuple(s.stop - s.start for s in box)))


class _Rooms:
    """Memory for arrays, used in turn: fresh memory for each would come page by page, as slowly as decoding.

    Parameters
    ----------
    dtype : numpy.dtype
    count : int
        Arrays that are valid at a time.
    """

    def __init__(self, dtype: np.dtype[Any], count: int) -> None:
        self._rooms = deque(np.empty(0, dtype) for _ in range(count))

    def room(self, shape: tuple[int, ...]) -> NDArray[Any]:
        """An array to fill, in the memory of the one made longest ago."""
        size, memory = math.prod(shape), self._rooms.popleft()
        if len(memory) < size:
            memory = np.empty(size, memory.dtype)
        self._rooms.append(memory)
        return memory[:size].reshape(shape)


def _requests(volume: Volume, grid: Grid, window: Window, rows: Span, columns: Span) -> Iterator[Band]:
    """Everything a block reads, in order: runs of groups, each in bands of rows."""
    area = (window.read_y[1] - window.read_y[0]) * (window.read_x[1] - window.read_x[0])
    depth, height, _ = volume.unit
    for run in _runs(window.read_k, grid.group, depth, 4 * area):
        z = grid.voxel_span(run, 0)
        row_bytes = (z[1] - z[0]) * (columns[1] - columns[0]) * volume.dtype.itemsize
        for band in _bands(rows, height, row_bytes):
            yield Band(run, z, band, last=band[1] == rows[1])


def longest_run(group: int, depth: int, slice_bytes: int) -> int:
    """Groups that a block holds at a time, of so many slices each; storage is decoded `depth` slices at a time."""
    most = max(1, _SLAB_BYTES // slice_bytes)
    step = max(depth, _RUN_GROUPS * group // depth * depth)
    return min(most, -(-step // group))


def _runs(k: Span, group: int, depth: int, slice_bytes: int) -> Iterator[Span]:
    """Cut groups into runs that end where units of storage end, so that none is decoded twice."""
    most = max(1, _SLAB_BYTES // slice_bytes)
    step = max(depth, _RUN_GROUPS * group // depth * depth)
    if step > most * group:
        step = max(depth, most * group // depth * depth)
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


def read_ahead(
    read: Callable[[Request], Part], requests: Iterable[Request]
) -> Generator[tuple[Request, Part], None, None]:
    """Requests and what is read for them, in order; one more than was asked for is always under way.

    Whatever a read raises is raised where its part is asked for. When the iterator is closed early, the
    read under way is waited for.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="brainmap-ahead") as pool:
        waiting: tuple[Request, Future[Part]] | None = None
        for request in requests:
            begun = (request, pool.submit(read, request))
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = begun
        if waiting is not None:
            yield waiting[0], waiting[1].result()
