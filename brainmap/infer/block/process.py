"""One block: its slices stream by in z order, here or on a GPU; their cells are placed and de-duplicated."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.image.intensity import Intensity
from brainmap.image.volume import Volume
from brainmap.infer.block import on_host
from brainmap.infer.block.block_task import BlockTask, SliceCells, net_places
from brainmap.infer.block.net_slices import Stages
from brainmap.infer.detector import Backend, Detector, DetectorSpec, load_backend
from brainmap.infer.peaks import reaches, suppress
from brainmap.infer.plan.blocks import Block, Blocks, Roi
from brainmap.infer.plan.layout import Layout, Window

__all__ = ["CANDIDATE_SCORE", "COLUMNS", "BlockCancelledError", "Job", "Stages", "process_block"]

# Columns of a block's result, in this order.
COLUMNS = {
    "z": "float64", "y": "float64", "x": "float64",
    "score": "float32", "intensity": "float32", "snr": "float32", "diameter_um": "float32",
    "prominence": "float32",
}  # fmt: skip

# Peaks of at least this score are kept in the run folder, so that thresholds down to it need no second run.
CANDIDATE_SCORE = 0.05
# Where a detector scores no peak that low, so much above its lowest score: its faintest peaks are without number.
_ABOVE_LOWEST = 0.01


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
    streams : int
        Images that a thread keeps the network at work on at a time, where blocks are computed on the CPU.
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
    streams: int = 1

    @property
    def candidate_score(self) -> float:
        """Lowest score of the candidates that are kept; never above the threshold."""
        lowest = float(self.spec.score(np.array(-np.inf)))
        kept = CANDIDATE_SCORE if lowest < CANDIDATE_SCORE else lowest + _ABOVE_LOWEST
        return min(kept, self.threshold)


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


def process_block(
    job: Job, block: Block, on_slice: Callable[[float], None] | None = None
) -> tuple[dict[str, NDArray[Any]], Stages]:
    """Detect the cells that a block owns, and the candidates that are too weak for cells.

    Parameters
    ----------
    job : Job
    block : Block
    on_slice : callable (share of the block's slices that are done), optional

    Returns
    -------
    columns : dict of ndarray
        As `COLUMNS`; positions are level-0 voxel indices of the stored image.
    stages : Stages
        Where the time went.
    """
    stages = Stages()
    window = job.layout.window(job.blocks.grid, block)
    task = BlockTask(
        job.volume, job.blocks.grid, window, job.spec, job.layout, intensity_of(job), backend_of(job),
        _lowest_logit(job), stages, job.streams,
    )  # fmt: skip
    cells = _Cells(job, block, window)
    with closing(_slices_of(task)) as slices:
        for found in slices:
            if job.run_dir in cancelled:
                raise BlockCancelledError(job.run_dir)
            cells.add(found)
            if on_slice is not None:
                on_slice((found.k + 1 - window.k[0]) / (window.k[1] - window.k[0]))
    with stages.time("peaks"):
        return cells.finish(), stages


def _lowest_logit(job: Job) -> float:
    # Rounding of the calibration must not decide what is looked at.
    return job.spec.logit_at(job.candidate_score) - 1e-3


def _slices_of(task: BlockTask) -> Generator[SliceCells, None, None]:
    if task.backend.device == "cuda":
        from brainmap.infer.block import on_device

        return on_device.slice_cells(task)
    return on_host.slice_cells(task)


class _Cells:
    """Collects the detections of a block from its slices."""

    def __init__(self, job: Job, block: Block, window: Window) -> None:
        self.job, self.block, self.window = job, block, window
        self.grid = job.blocks.grid
        self.found: list[dict[str, NDArray[Any]]] = []

    def add(self, cells: SliceCells) -> None:
        """Take the cells of the next slice and place them in the volume."""
        if not len(cells.peaks["row"]):
            return
        grid, stride, peaks = self.grid, self.job.spec.stride, cells.peaks
        row = peaks["row"] + self.window.y[0] // stride
        column = peaks["column"] + self.window.x[0] // stride
        k = np.full(len(row), cells.k)
        dz = np.asarray(peaks["dz"], np.float64)
        here, side = grid.group_z(k), grid.group_z(np.clip(k + np.sign(dz).astype(int), 0, None))
        y_net, x_net = net_places(peaks, self.window, stride)
        y, x = grid.to_vox(y_net, 1), grid.to_vox(x_net, 2)
        intensity = intensity_of(self.job)
        contrast = intensity.contrast_near(cells.intensity, float(here[0]), y, x)
        prominence = cells.band / (intensity.scale_near(float(here[0]), y, x) * intensity.texture)
        self.found.append({
            "k": k, "row": row * stride, "column": column * stride,
            "logit": self.job.spec.weighed(peaks["logit"], prominence),
            "z": here + np.abs(dz) * (side - here), "y": y, "x": x,
            "intensity": cells.intensity, "snr": contrast, "diameter_um": cells.diameter_um,
            "prominence": prominence,
        })  # fmt: skip

    def finish(self) -> dict[str, NDArray[Any]]:
        """The block's own candidates, sorted by z, y, x."""
        if not self.found:
            return {name: np.empty(0, kind) for name, kind in COLUMNS.items()}
        table = {name: np.concatenate([t[name] for t in self.found]) for name in self.found[0]}
        table["score"] = self.job.spec.score(table["logit"]).astype(np.float32)
        keep = reaches(table["score"], self.job.candidate_score)
        table = {name: values[keep] for name, values in table.items()}
        place = np.stack([table[a] * v for a, v in zip("zyx", self.grid.voxel_um, strict=True)], axis=1)
        order = np.stack(
            [-table["logit"], table["k"], table["row"], table["column"]], axis=1, dtype=np.float64
        )
        separation = self.job.spec.min_separation * self.job.spec.cell_diameter_um
        # By the score, which thresholds act on: a candidate that one drops must not have removed a cell.
        keep = suppress(place, table["score"], order, separation)
        keep &= self.block.owns(table["k"], table["row"], table["column"])
        for axis, size, roi in zip("zyx", self.grid.shape, self.job.roi or (None,) * 3, strict=True):
            table[axis] = np.clip(table[axis], 0, size - 1)
            if roi is not None:
                keep &= (table[axis] >= roi[0] - 0.5) & (table[axis] < roi[1] - 0.5)
        for axis, first in zip("zyx", self.job.volume.offset, strict=True):
            # Where the volume is a part of an image, places are those of the whole.
            table[axis] = table[axis] + first
        sequence = np.lexsort((table["x"], table["y"], table["z"]))
        chosen = sequence[keep[sequence]]
        return {name: table[name][chosen].astype(kind) for name, kind in COLUMNS.items()}
