"""One block: read, resample, infer, find peaks, measure. Slices stream through it in z order.

A block holds one run of slices (whole storage chunks) and a few slices around the one at work, so its
memory does not grow with its depth.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.infer.blocks import Block, Blocks, Roi
from brainmap.infer.detector import Backend, Detector, DetectorSpec, load_backend
from brainmap.infer.layout import Layout, Window
from brainmap.infer.measure import diameters, mean_around
from brainmap.infer.net_slices import Stages, net_slices
from brainmap.infer.peaks import Heat, Peaks, find_peaks, lowest_on_face, suppress, weigh_face
from brainmap.infer.stack import SliceStack
from brainmap.infer.tissue import atom_mask, cell_mask, touches
from brainmap.intensity import Intensity
from brainmap.volume import Volume

__all__ = ["COLUMNS", "BlockCancelledError", "Job", "Stages", "process_block"]

# Columns of a block's result, in this order.
COLUMNS = {
    "z": "float64", "y": "float64", "x": "float64",
    "score": "float32", "intensity": "float32", "snr": "float32", "diameter_um": "float32",
}  # fmt: skip


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


def _heat_slices(
    job: Job, window: Window, stages: Stages
) -> Iterator[tuple[int, NDArray[np.float32], Heat | None]]:
    """Resampled slice and heat of each needed group; heat is None where there is no tissue."""
    intensity, context = intensity_of(job), job.layout.context
    masks = atom_mask(intensity, job.blocks.grid, window.k, window.y, window.x)
    used = {k + d for k, m in masks.items() if m is None or m.any() for d in range(-context, context + 1)}
    top, left = window.read_y[0] - window.corner[0], window.read_x[0] - window.corner[1]
    rows, columns = (s[1] - s[0] for s in (window.read_y, window.read_x))
    inside = (slice(top, top + rows), slice(left, left + columns))
    stack = SliceStack(job.spec.channels, window.padded, inside, job.spec.fill)
    source = net_slices(job.volume, job.blocks.grid, window, stages)
    raws: dict[int, NDArray[np.float32]] = {}
    for seen in range(window.k[0] - context, window.k[1] + context):
        image = None
        if window.read_k[0] <= seen < window.read_k[1]:
            _, raws[seen] = next(source)
            if seen in used:
                with stages.time("normalise"):
                    image = _normalised(job, window, intensity, seen, raws[seen])
        stack.push(image, job.spec.offset)
        k = seen - context
        if k < window.k[0]:
            continue
        if job.run_dir in cancelled:
            raise BlockCancelledError(job.run_dir)
        heat, mask = None, masks[k]
        if mask is None or mask.any():
            heat = _infer(job, window, stack.latest, mask, stages)
        yield k, raws.pop(k), heat


def _normalised(
    job: Job, window: Window, intensity: Intensity, k: int, raw: NDArray[np.float32]
) -> NDArray[np.float32]:
    """One slice of the window's readable part, as the network knows it."""
    grid = job.blocks.grid
    y = grid.to_vox(np.arange(*window.read_y, dtype=np.float64), 1)
    x = grid.to_vox(np.arange(*window.read_x, dtype=np.float64), 2)
    return intensity.normalise(raw[None], grid.group_z(np.array([k])), y, x)[0]


def _infer(
    job: Job, window: Window, stack: NDArray[np.float32], mask: NDArray[np.bool_] | None, stages: Stages
) -> Heat:
    """Heat of the needed window from the slices around it, tile by tile; tiles without tissue are skipped."""
    stride, halo, tile = job.spec.stride, job.layout.halo, job.layout.tile
    core = (tile[0] - 2 * halo, tile[1] - 2 * halo)
    inner = tuple(slice(halo // stride, (halo + c) // stride) for c in core)
    cells = tuple(slice(0, -(-(s[1] - s[0]) // stride)) for s in (window.y, window.x))
    full = [(p - 2 * halo) // stride for p in window.padded]
    backend = backend_of(job)
    parts: list[tuple[tuple[slice, slice], Heat]] = []
    for row, column in window.tiles:
        corner = (window.y[0] + row, window.x[0] + column)
        if mask is not None and not touches(mask, window.y[0], window.x[0], corner, core):
            continue
        with stages.time("infer"):
            part = stack[:, row : row + tile[0], column : column + tile[1]]
            one, two = backend.infer(np.ascontiguousarray(part)[None])
        target = tuple(
            slice(a // stride, (a + c) // stride) for a, c in zip((row, column), core, strict=True)
        )
        parts.append((target, (one[0, 0][inner], two[0][:, *inner])))  # type: ignore[arg-type]
        stages.net_pixels += tile[0] * tile[1]
    if len(window.tiles) == 1:
        logit, offset = parts[0][1]
    else:
        logit, offset = np.full(full, -np.inf, np.float32), np.zeros((2, *full), np.float32)
        for target, heat in parts:
            logit[target], offset[:, *target] = heat
    logit = logit[cells]
    if mask is not None:
        np.copyto(logit, -np.inf, where=~cell_mask(mask, window.y, window.x, stride))
    return logit, offset[:, *cells]


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
        spec, groups = self.job.spec, self.grid.net_shape[0]
        on_face = k in (0, groups - 1)
        lowest = lowest_on_face(self.lowest, spec.face) if on_face else self.lowest
        peaks = find_peaks(sides[0], heat, sides[1], lowest, spec.subpixel)
        peaks["logit"] = weigh_face(peaks, k, groups, spec.face)
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
        intensity = mean_around(raw, row, column)
        y = grid.to_vox(row + self.window.read_y[0], 1)
        x = grid.to_vox(column + self.window.read_x[0], 2)
        z = float(grid.group_z(np.array([k]))[0])
        return {
            "intensity": intensity,
            "snr": intensity_of(self.job).contrast_near(intensity, z, y, x),
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
