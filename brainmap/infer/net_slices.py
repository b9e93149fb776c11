"""From storage to the net grid: a block's slices, read in whole chunks and resampled, in z order."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from brainmap.infer.ahead import read_ahead
from brainmap.infer.blocks import Grid, Span
from brainmap.infer.layout import Window
from brainmap.infer.resample import axis_operator, resample_band
from brainmap.volume import Volume

__all__ = ["Stages", "net_slices"]

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
    x = slice(*columns.span)
    requests = _requests(volume, grid, window, rows.span, x.stop - x.start)
    bands = read_ahead(lambda request: volume.read(slice(*request.z), slice(*request.y), x), requests)
    slab: NDArray[np.float32] | None = None
    with closing(bands):
        while True:
            with stages.time("read"):
                request, raw = next(bands, (None, None))
            if request is None or raw is None:
                return
            box = (slice(*request.z), slice(*request.y), x)
            stages.raw_voxels += volume.storage_bytes(*box) // volume.dtype.itemsize
            first = request.groups[0]
            with stages.time("resample"):
                if slab is None:
                    slab = np.zeros((request.groups[1] - first, *shape), np.float32)
                resample_band(slab, raw, request.z, request.y[0], grid, first, rows, columns)
            del raw
            if request.last:
                for i in range(len(slab)):
                    # A copy, or the few slices kept by the caller would keep this slab beside the next.
                    yield first + i, slab[i].copy()
                slab = None


@dataclass(frozen=True)
class _Request:
    """One read: groups, slices and rows; `last` of its groups."""

    groups: Span
    z: Span
    y: Span
    last: bool


def _requests(volume: Volume, grid: Grid, window: Window, rows: Span, width: int) -> Iterator[_Request]:
    """Everything a block reads, in order: runs of groups, each in bands of rows."""
    area = (window.read_y[1] - window.read_y[0]) * (window.read_x[1] - window.read_x[0])
    for run in _runs(window.read_k, grid.group, volume.chunks[0], 4 * area):
        z = grid.voxel_span(run, 0)
        row_bytes = (z[1] - z[0]) * width * volume.dtype.itemsize
        for band in _bands(rows, volume.chunks[1], row_bytes):
            yield _Request(run, z, band, last=band[1] == rows[1])


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
