"""One block: read, resample, infer, find peaks, measure. Slices stream through it in z order.

A block holds one run of slices (whole storage chunks) and a few slices around the one at work, so its
memory does not grow with its depth.
"""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.infer.blocks import Block, Blocks, Roi, Span
from brainmap.infer.detector import Backend, Detector, DetectorSpec, load_backend
from brainmap.infer.layout import Layout, Window
from brainmap.infer.measure import diameters, mean_around
from brainmap.infer.peaks import Heat, Peaks, find_peaks, suppress
from brainmap.infer.resample import axis_operator, resample_band
from brainmap.infer.tissue import atom_mask, cell_mask
from brainmap.intensity import Intensity
from brainmap.volume import Volume

__all__ = ["COLUMNS", "BlockCancelledError", "Job", "Stages", "process_block"]

# Columns of a block's result, in this order.
COLUMNS = {
    "z": "float64", "y": "float64", "x": "float64",
    "score": "float32", "intensity": "float32", "snr": "float32", "diameter_um": "float32",
}  # fmt: skip

# Bounds on what one block holds at a time: resampled slices of one run, voxels of one read.
_SLAB_BYTES = 400 << 20
_BAND_BYTES = 64 << 20
_RUN_GROUPS = 16

Slice = tuple[int, NDArray[np.float32]]


class BlockCancelledError(RuntimeError):
    """The run was interrupted while the block was at work."""


@dataclass(frozen=True)
class Job:
    """All that a worker must know to process any block of a run; small, and sent by pickle.

    Attributes
    ----------
    volume : Volume
        The image.
    intensity : str
        Path of the saved `Intensity`.
    detector : Detector
        The detector's folder.
    spec : DetectorSpec
        The detector's record, scaled to the cells' diameter.
    blocks : Blocks
        The partition.
    layout : Layout
        Tile and margins.
    threshold : float
        Lowest calibrated score.
    roi : tuple of (start, stop), optional
        Voxel ranges; cells outside are dropped.
    run_dir : str
        The run folder.
    backend, device, precision, threads
        As for `load_backend`.
    """

    volume: Volume
    intensity: str
    detector: Detector
    spec: DetectorSpec
    blocks: Blocks
    layout: Layout
    threshold: float
    roi: Roi | None
    run_dir: str
    backend: str = "auto"
    device: str | None = None
    precision: str = "auto"
    threads: int = 1


@dataclass
class Stages:
    """Seconds spent per stage, and bytes read; summed over blocks."""

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


@dataclass
class _Once:
    """Values that are made once per process and key, also when threads ask together."""

    values: dict[object, object] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, key: object, make: Callable[[], object]) -> object:
        with self.lock:
            if key not in self.values:
                if len(self.values) > 3:
                    self.values.clear()
                self.values[key] = make()
            return self.values[key]


_backends, _intensities = _Once(), _Once()
# Run folders whose blocks shall stop at the next slice; for workers in the engine's own process.
cancelled: set[str] = set()


def backend_of(job: Job) -> Backend:
    """The run's network, loaded once per process."""
    choice = (job.backend, job.device, job.layout.tile, job.threads, job.precision)

    def make() -> Backend:
        return load_backend(job.detector, *choice)

    return _backends.get((job.detector.folder, job.spec.onnx_sha256, *choice), make)  # type: ignore[return-value]


def intensity_of(job: Job) -> Intensity:
    """The brain's intensity model, loaded once per process."""
    path = Path(job.intensity)
    key = (job.intensity, os.stat(path).st_mtime_ns)
    return _intensities.get(key, lambda: Intensity.load(path))  # type: ignore[return-value]


def process_block(job: Job, block: Block) -> tuple[dict[str, NDArray[Any]], Stages]:
    """Detect the cells that a block owns.

    Returns
    -------
    columns : dict of ndarray
        As `COLUMNS`; positions are level-0 voxel indices.
    stages : Stages
        Where the time went.
    """
    stages = Stages()
    window = job.layout.window(job.blocks.grid, block)
    finder = _PeakFinder(job, block, window, stages)
    for k, raw, heat in _heat_slices(job, window, stages):
        finder.push(k, raw, heat)
    with stages.time("peaks"):
        return finder.finish(), stages


def _net_slices(job: Job, window: Window, stages: Stages) -> Iterator[Slice]:
    """Resampled slices (group, image of the window's readable part), in z order."""
    grid, volume = job.blocks.grid, job.volume
    rows, columns = axis_operator(grid, 1, window.read_y), axis_operator(grid, 2, window.read_x)
    shape = (window.read_y[1] - window.read_y[0], window.read_x[1] - window.read_x[0])
    x = slice(*columns.span)
    for run in _runs(window.read_k, grid.group, volume.chunks[0], 4 * shape[0] * shape[1]):
        slab = np.zeros((run[1] - run[0], *shape), np.float32)
        z = grid.voxel_span(run, 0)
        row_bytes = (z[1] - z[0]) * (x.stop - x.start) * volume.dtype.itemsize
        for band in _bands(rows.span, volume.chunks[1], row_bytes):
            with stages.time("read"):
                raw = volume.read(slice(*z), slice(*band), x)
            stages.raw_voxels += raw.size
            with stages.time("resample"):
                resample_band(slab, raw, z, band[0], grid, run[0], rows, columns)
            del raw
        for i in range(len(slab)):
            # A copy, or the few slices kept by the caller would keep this slab beside the next.
            yield run[0] + i, slab[i].copy()
        del slab


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


def _heat_slices(
    job: Job, window: Window, stages: Stages
) -> Iterator[tuple[int, NDArray[np.float32], Heat | None]]:
    """Resampled slice and heat of each needed group; heat is None where there is no tissue."""
    intensity, grid = intensity_of(job), job.blocks.grid
    masks = atom_mask(intensity, grid, window.k, window.y, window.x)
    context = job.layout.context
    used = {k + d for k, m in masks.items() if m is None or m.any() for d in range(-context, context + 1)}
    empty = np.full(window.padded, job.spec.fill, np.float32)
    raws: dict[int, NDArray[np.float32]] = {}
    inputs: dict[int, NDArray[np.float32]] = {}
    source = _net_slices(job, window, stages)
    for k in range(*window.k):
        while (got := max(raws, default=window.read_k[0] - 1)) < min(k + context, window.read_k[1] - 1):
            _, raws[got + 1] = next(source)
            if got + 1 in used:
                with stages.time("normalise"):
                    inputs[got + 1] = _network_input(job, window, intensity, got + 1, raws[got + 1])
        for old in [i for i in raws if i < k - context]:
            raws.pop(old)
            inputs.pop(old, None)
        if job.run_dir in cancelled:
            raise BlockCancelledError(job.run_dir)
        mask = masks[k]
        heat = None
        if mask is None or mask.any():
            stack = [inputs.get(i, empty) for i in range(k - context, k + context + 1)]
            heat = _infer(job, window, stack, stages)
            if mask is not None:
                heat[0][~cell_mask(mask, window.y, window.x, job.spec.stride)] = -np.inf
        yield k, raws[k], heat


def _network_input(
    job: Job, window: Window, intensity: Intensity, k: int, raw: NDArray[np.float32]
) -> NDArray[np.float32]:
    """One normalised slice in the padded window, the fill value around it."""
    grid = job.blocks.grid
    z = grid.group_z(np.array([k]))
    y = grid.to_vox(np.arange(*window.read_y, dtype=np.float64), 1)
    x = grid.to_vox(np.arange(*window.read_x, dtype=np.float64), 2)
    image = np.full(window.padded, job.spec.fill, np.float32)
    top, left = window.read_y[0] - window.corner[0], window.read_x[0] - window.corner[1]
    inside = image[top : top + raw.shape[0], left : left + raw.shape[1]]
    inside[...] = intensity.normalise(raw[None], z, y, x)[0]
    inside -= np.float32(job.spec.offset)
    return image


def _infer(job: Job, window: Window, stack: list[NDArray[np.float32]], stages: Stages) -> Heat:
    """Heat of the needed window from the slices around it, tile by tile."""
    stride, halo, (height, width) = job.spec.stride, job.layout.halo, job.layout.tile
    core = ((height - 2 * halo) // stride, (width - 2 * halo) // stride)
    cells = [-(-(s[1] - s[0]) // stride) for s in (window.y, window.x)]
    full = [(p - 2 * halo) // stride for p in window.padded]
    logit, offset = np.empty(full, np.float32), np.empty((2, *full), np.float32)
    inner = (slice(halo // stride, halo // stride + core[0]), slice(halo // stride, halo // stride + core[1]))
    backend = backend_of(job)
    for row, column in window.tiles:
        with stages.time("infer"):
            batch = np.stack([s[row : row + height, column : column + width] for s in stack])[None]
            one, two = backend.infer(batch)
            top, left = row // stride, column // stride
            target = (slice(top, top + core[0]), slice(left, left + core[1]))
            logit[target], offset[:, *target] = one[0, 0][inner], two[0][:, *inner]
        stages.net_pixels += height * width
    return logit[: cells[0], : cells[1]], offset[:, : cells[0], : cells[1]]


class _PeakFinder:
    """Collects the detections of a block from its slices, each once the next has come."""

    def __init__(self, job: Job, block: Block, window: Window, stages: Stages) -> None:
        self.job, self.block, self.window, self.stages = job, block, window, stages
        self.grid = job.blocks.grid
        self.lowest = job.spec.logit_at(job.threshold) - 1e-3
        self.found: list[dict[str, NDArray[Any]]] = []
        self.before: Heat | None = None
        self.last: tuple[int, NDArray[np.float32], Heat | None] | None = None

    def push(self, k: int, raw: NDArray[np.float32], heat: Heat | None) -> None:
        """Take the next slice."""
        with self.stages.time("peaks"):
            if self.last is not None:
                self._search(*self.last, heat)
                self.before = self.last[2]
            self.last = (k, raw, heat)

    def _search(self, k: int, raw: NDArray[np.float32], heat: Heat | None, after: Heat | None) -> None:
        # The outermost slices of a window are only neighbours, unless the volume ends there.
        first, last = self.window.k[0], self.window.k[1] - 1
        at_rim = (k == first and k > 0) or (k == last and k < self.grid.net_shape[0] - 1)
        if heat is None or at_rim:
            return
        sides = [None if side is None else side[0] for side in (self.before, after)]
        peaks = find_peaks(sides[0], heat, sides[1], self.lowest, self.job.spec.subpixel)
        if len(peaks["row"]):
            self.found.append(self._describe(k, raw, peaks))

    def _describe(self, k: int, raw: NDArray[np.float32], peaks: Peaks) -> dict[str, NDArray[Any]]:
        """Place and measure the peaks of one slice."""
        spec, grid, window = self.job.spec, self.grid, self.window
        stride = spec.stride
        row, column = peaks["row"] + window.y[0] // stride, peaks["column"] + window.x[0] // stride
        y_net = (row + 0.5 + peaks["dy"]) * stride - 0.5
        x_net = (column + 0.5 + peaks["dx"]) * stride - 0.5
        k_all = np.full(len(row), k)
        dz = np.asarray(peaks["dz"], np.float64)
        here, side = grid.group_z(k_all), grid.group_z(np.clip(k_all + np.sign(dz).astype(int), 0, None))
        table: dict[str, NDArray[Any]] = {
            "k": k_all, "row": row * stride, "column": column * stride, "logit": peaks["logit"],
            "z": here + np.abs(dz) * (side - here),
            "y": grid.to_vox(y_net, 1), "x": grid.to_vox(x_net, 2),
        }  # fmt: skip
        return table | self._measure(k, raw, y_net - window.read_y[0], x_net - window.read_x[0])

    def _measure(
        self, k: int, raw: NDArray[np.float32], row: NDArray[np.floating], column: NDArray[np.floating]
    ) -> dict[str, NDArray[Any]]:
        grid, spec = self.grid, self.job.spec
        y = grid.to_vox(np.arange(*self.window.read_y, dtype=np.float64), 1)
        x = grid.to_vox(np.arange(*self.window.read_x, dtype=np.float64), 2)
        contrast = intensity_of(self.job).contrast(raw[None], grid.group_z(np.array([k])), y, x)[0]
        return {
            "intensity": mean_around(raw, row, column),
            "snr": mean_around(contrast, row, column),
            "diameter_um": diameters(raw, row, column, spec.pixel_um, spec.cell_diameter_um),
        }

    def finish(self) -> dict[str, NDArray[Any]]:
        """The block's own cells, sorted by z, y, x."""
        if self.last is not None:
            self._search(*self.last, None)
        if not self.found:
            return {name: np.empty(0, kind) for name, kind in COLUMNS.items()}
        table = {name: np.concatenate([t[name] for t in self.found]) for name in self.found[0]}
        table["score"] = self.job.spec.score(table["logit"])
        keep = table["score"] >= self.job.threshold
        table = {name: values[keep] for name, values in table.items()}
        place = np.stack([table[a] * v for a, v in zip("zyx", self.grid.voxel_um, strict=True)], axis=1)
        order = np.stack([table["k"], table["row"], table["column"]], axis=1)
        separation = self.job.spec.min_separation * self.job.spec.cell_diameter_um
        keep = suppress(place, table["logit"], order, separation)
        keep &= self.block.owns(table["k"], table["row"], table["column"])
        for axis, size, roi in zip("zyx", self.grid.shape, self.job.roi or (None,) * 3, strict=True):
            table[axis] = np.clip(table[axis], 0, size - 1)
            if roi is not None:
                keep &= (table[axis] >= roi[0] - 0.5) & (table[axis] < roi[1] - 0.5)
        sequence = np.lexsort((table["x"], table["y"], table["z"]))
        chosen = sequence[keep[sequence]]
        return {name: table[name][chosen].astype(kind) for name, kind in COLUMNS.items()}
