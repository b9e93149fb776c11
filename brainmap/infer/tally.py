"""The state of a run's blocks, and the sums of what workers reported."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from brainmap.infer import results
from brainmap.infer.batch import BatchReport
from brainmap.infer.blocks import Blocks
from brainmap.infer.process import Job
from brainmap.infer.tissue import TissueSource, has_tissue
from brainmap.provenance import RunRecord

__all__ = ["BlockStates", "Tally", "block_voxels"]

log = logging.getLogger(__name__)

LEFT, DONE, EMPTY, FAILED = 0, 1, 2, 3


def block_voxels(blocks: Blocks, index: int) -> int:
    """Voxels of the box that a block owns."""
    block = blocks[index]
    sides = [blocks.grid.voxel_span(span, axis) for axis, span in enumerate((block.k, block.y, block.x))]
    return (sides[0][1] - sides[0][0]) * (sides[1][1] - sides[1][0]) * (sides[2][1] - sides[2][0])


@dataclass(frozen=True)
class BlockStates:
    """One byte per block: left, done, empty (no tissue) or failed."""

    values: NDArray[np.uint8]

    @classmethod
    def of(cls, job: Job, tissue: TissueSource) -> BlockStates:
        """The states at the start of a run: what is on disk is done."""
        values = np.zeros(len(job.blocks), np.uint8)
        for (start, stop), _ in results.finished(Path(job.run_dir)):
            values[start:stop] = DONE
        grid = job.blocks.grid
        z, y, x = (slice(0, n) for n in grid.shape)
        if tissue.tissue_fraction(z, y, x) < 1:
            for index in np.flatnonzero(values == LEFT):
                if not has_tissue(tissue, grid, job.blocks[int(index)]):
                    values[index] = EMPTY
        return cls(values)

    def count(self, state: int) -> int:
        """Blocks in a state."""
        return int((self.values == state).sum())

    def ranges(self, state: int) -> list[tuple[int, int]]:
        """The blocks in a state as half-open ranges."""
        edges = np.flatnonzero(np.diff(np.pad(self.values == state, 1).astype(np.int8)))
        return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]

    def batches(self, size: int) -> Iterator[tuple[int, ...]]:
        """The blocks left, in batches of neighbours."""
        for start, stop in self.ranges(LEFT):
            for first in range(start, stop, size):
                yield tuple(range(first, min(first + size, stop)))


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
    def of(cls, job: Job, states: BlockStates) -> Tally:
        """A tally that starts with the blocks of earlier runs of the same command."""
        files = [path for _, path in results.finished(Path(job.run_dir))]
        cells = sum(pq.read_metadata(path).num_rows for path in files)
        return cls(job, states, resumed=states.count(DONE), cells=cells)

    def add(self, report: BatchReport) -> None:
        """Add the done blocks of a report; failed ones are the engine's business."""
        self.states.values[list(report.done)] = DONE
        self.voxels += sum(block_voxels(self.job.blocks, i) for i in report.done)
        self.cells += report.cells
        self.read_voxels += report.read_voxels
        self.net_pixels += report.net_pixels
        for stage, value in report.seconds.items():
            self.seconds[stage] += value
        self.peaks[report.process] = max(report.peak_bytes, self.peaks.get(report.process, 0))

    def voxels_left(self) -> int:
        """Voxels of the blocks left."""
        left = np.flatnonzero(self.states.values == LEFT)
        return sum(block_voxels(self.job.blocks, int(i)) for i in left)

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

    def save(self, status: str) -> None:
        """Write status and blocks into run.json, leaving the rest of it alone."""
        run_dir = Path(self.job.run_dir)
        try:
            record = RunRecord.load(run_dir) if (run_dir / "run.json").is_file() else RunRecord()
            record.updated(status=status, blocks=self.blocks_record()).save(run_dir)
        except OSError as error:
            # A full disk must not hide the error that is on its way, nor stop workers that can write.
            log.warning("cannot update %s: %s", run_dir / "run.json", error)
