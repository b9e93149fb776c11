"""The state of a run's blocks, and the sums of what workers reported."""

from __future__ import annotations

import functools
import itertools
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.infer.block.process import Job
from brainmap.infer.engine import results
from brainmap.infer.engine.batch import BatchReport
from brainmap.infer.plan.blocks import Block, Blocks, Span
from brainmap.infer.plan.tissue import TissueSource, has_tissue
from brainmap.run_folder import RUN_JSON, RunRecord, is_run

__all__ = ["BlockStates", "Tally", "block_voxels"]

log = logging.getLogger(__name__)

LEFT, DONE, EMPTY, FAILED = 0, 1, 2, 3


def block_voxels(blocks: Blocks, indices: NDArray[np.integer]) -> NDArray[np.int64]:
    """Voxels of the boxes that blocks own."""
    place = np.unravel_index(indices, blocks.count)
    z, y, x = (_side(blocks, axis)[place[axis]] for axis in range(3))
    return z * y * x


@functools.lru_cache(maxsize=12)
def _side(blocks: Blocks, axis: int) -> NDArray[np.int64]:
    """Voxels along an axis of each block in a row of blocks."""
    size, end = blocks.size[axis], blocks.grid.net_shape[axis]
    starts = (np.arange(blocks.count[axis]) + blocks.first[axis]) * size
    spans = [blocks.grid.voxel_span((int(s), min(int(s) + size, end)), axis) for s in starts]
    return np.array([stop - start for start, stop in spans], np.int64)


@dataclass(frozen=True)
class BlockStates:
    """One byte per block: left, done, empty (no tissue) or failed."""

    values: NDArray[np.uint8]

    @classmethod
    def of(cls, blocks: Blocks, tissue: TissueSource, done: Iterable[Span] = ()) -> BlockStates:
        """The states at the start of a run, of whose blocks some spans are done."""
        values = np.where(_without_tissue(blocks, tissue), EMPTY, LEFT).astype(np.uint8)
        for start, stop in done:
            values[start:stop] = DONE
        return cls(values)

    def count(self, state: int) -> int:
        """Blocks in a state."""
        return int((self.values == state).sum())

    def ranges(self, state: int) -> list[tuple[int, int]]:
        """The blocks in a state as half-open ranges."""
        edges = np.flatnonzero(np.diff(np.pad(self.values == state, 1).astype(np.int8)))
        return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]

    def batches(self, size: Callable[[], int]) -> Iterator[tuple[int, ...]]:
        """The blocks left now, in batches of neighbours; `size` is asked before each."""
        for start, stop in self.ranges(LEFT):
            while start < stop:
                end = min(start + size(), stop)
                yield tuple(range(start, end))
                start = end


def _without_tissue(blocks: Blocks, tissue: TissueSource) -> NDArray[np.bool_]:
    """Which blocks hold no tissue.

    Boxes of many blocks are looked at first, and divided only where the border of the tissue runs through
    them: of a million blocks, most are never looked at.
    """
    empty = np.zeros(blocks.count, bool)
    boxes = [tuple((0, n) for n in blocks.count)]
    while boxes:
        box = boxes.pop()
        spans = [_net_span(blocks, axis, span) for axis, span in enumerate(box)]
        if not has_tissue(tissue, blocks.grid, Block(-1, *spans)):
            empty[tuple(slice(*span) for span in box)] = True
            continue
        if math.prod(b - a for a, b in box) == 1:
            continue
        voxels = (slice(*blocks.grid.voxel_span(span, axis)) for axis, span in enumerate(spans))
        if tissue.tissue_fraction(*voxels) < 1:
            halves = [{(a, (a + b) // 2), ((a + b) // 2, b)} - {(a, a)} for a, b in box]
            boxes += itertools.product(*halves)
    return empty.ravel()


def _net_span(blocks: Blocks, axis: int, span: Span) -> Span:
    """What a row of blocks owns of the net grid."""
    size, first = blocks.size[axis], blocks.first[axis]
    return (first + span[0]) * size, min((first + span[1]) * size, blocks.grid.net_shape[axis])


@dataclass
class Tally:
    """Sums over the reports of a run; keeps the blocks in `run.json` up to date."""

    job: Job
    states: BlockStates
    resumed: int = 0
    cells: int = 0
    voxels: int = 0
    read_voxels: int = 0
    net_pixels: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    failed: dict[int, str] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, job: Job, tissue: TissueSource) -> Tally:
        """A tally that starts with what earlier runs of the same command left on disk."""
        found = results.finished(Path(job.run_dir))
        states = BlockStates.of(job.blocks, tissue, (span for span, _ in found))
        cells = sum(results.cells_in(span, path) for span, path in found)
        return cls(job, states, resumed=states.count(DONE), cells=cells)

    def add(self, report: BatchReport) -> None:
        """Add the done blocks of a report; failed ones are the engine's business."""
        done = np.array(report.done, np.int64)
        self.states.values[done] = DONE
        self.voxels += int(block_voxels(self.job.blocks, done).sum())
        self.cells += report.cells
        self.read_voxels += report.read_voxels
        self.net_pixels += report.net_pixels
        for stage, value in report.seconds.items():
            self.seconds[stage] += value
        self.peaks[report.process] = max(report.peak_bytes, self.peaks.get(report.process, 0))

    def voxels_left(self) -> int:
        """Voxels of the blocks left."""
        return int(block_voxels(self.job.blocks, np.flatnonzero(self.states.values == LEFT)).sum())

    def fail(self, index: int, reason: str) -> None:
        """Give a block up."""
        log.warning("block %d failed: %s", index, reason)
        self.states.values[index] = FAILED
        self.failed[index] = reason

    def blocks_record(self) -> dict[str, Any]:
        """The entry `blocks` of run.json."""
        return {
            "total": len(self.states.values),
            "done": self.states.count(DONE),
            "empty": self.states.count(EMPTY),
            "finished": [f"{a}-{b - 1}" for a, b in self.states.ranges(DONE)],
            "failed": {str(k): v for k, v in sorted(self.failed.items())},
        }

    def is_saved_as_complete(self) -> bool:
        """Whether run.json says that these blocks are all there is to do."""
        run_dir = Path(self.job.run_dir)
        if not is_run(run_dir):
            return False
        record = RunRecord.load(run_dir)
        return record.status == "complete" and record.blocks == self.blocks_record()

    def save(self, status: str) -> None:
        """Write status and blocks into run.json, leaving the rest of it alone."""
        run_dir = Path(self.job.run_dir)
        try:
            record = RunRecord.load(run_dir) if is_run(run_dir) else RunRecord()
            record.updated(status=status, blocks=self.blocks_record()).save(run_dir)
        except OSError as error:
            # A full disk must not hide the error that is on its way, nor stop workers that can write.
            log.warning("cannot update %s: %s", run_dir / RUN_JSON, error)
