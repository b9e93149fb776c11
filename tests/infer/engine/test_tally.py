"""The states of blocks, and how many of them make a task."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from brainmap.infer.engine import results, tally
from brainmap.infer.engine.dispatch import Pace
from brainmap.infer.engine.tally import DONE, EMPTY, LEFT, BlockStates, block_voxels
from brainmap.infer.plan.blocks import Blocks, Grid, partition
from brainmap.infer.plan.tissue import has_tissue


class Bins:
    """Tissue on bins, as `Intensity` has it; counts how often it is asked."""

    def __init__(self, tissue: np.ndarray, bin_vox: float) -> None:
        self.tissue, self.bin_vox, self.asked = tissue, bin_vox, 0

    def tissue_fraction(self, *box: slice) -> float:
        self.asked += 1
        part = self.tissue
        for axis, (side, size) in enumerate(zip(box, self.tissue.shape, strict=True)):
            first = min(int(side.start / self.bin_vox), size - 1)
            stop = max(first + 1, min(int(np.ceil(side.stop / self.bin_vox)), size))
            part = part[(slice(None),) * axis + (slice(first, stop),)]
        return float(part.mean())


def blocks_of(shape: tuple[int, int, int], size: tuple[int, int, int], **roi: Any) -> Blocks:
    return partition(Grid(shape, (2.0, 2.0, 2.0), 2.0, 1, 2), size, **roi)


def ball(radius: float, bins: int = 40) -> Bins:
    place = np.indices((bins,) * 3) - (bins - 1) / 2
    return Bins((place**2).sum(axis=0) < radius**2, 8.0)


def job(blocks: Blocks, run_dir: Path) -> Any:
    return SimpleNamespace(blocks=blocks, run_dir=str(run_dir))


@pytest.mark.parametrize("roi", [None, ((30, 200), (0, 320), (100, 310))])
@pytest.mark.parametrize("size", [(16, 16, 16), (7, 48, 32), (320, 16, 320)])
def test_blocks_without_tissue_are_the_same_as_one_by_one(size: Any, roi: Any) -> None:
    blocks, tissue = blocks_of((320, 320, 320), size, roi=roi), ball(11)
    states = BlockStates.of(blocks, tissue)
    expected = [not has_tissue(tissue, blocks.grid, block) for block in blocks]
    np.testing.assert_array_equal(states.values == EMPTY, expected)


def test_most_blocks_are_never_looked_at() -> None:
    blocks, tissue = blocks_of((640, 640, 640), (16, 16, 16)), ball(30, bins=80)
    states = BlockStates.of(blocks, tissue)
    assert 0.1 < states.count(EMPTY) / len(blocks) < 0.9
    assert tissue.asked < 0.7 * len(blocks)
    everywhere = Bins(np.ones((10, 10, 10), bool), 64.0)
    assert BlockStates.of(blocks, everywhere).count(LEFT) == len(blocks)
    assert everywhere.asked == 2


def test_what_is_on_disk_is_done(tmp_path: Path) -> None:
    blocks = blocks_of((320, 320, 320), (16, 320, 320))
    columns: dict[str, np.ndarray] = {name: np.zeros(0) for name in ("z", "y", "x", results.BLOCK_COLUMN)}
    results.write_batch(tmp_path, (3, 9), columns)
    found = tally.Tally.of(job(blocks, tmp_path), Bins(np.ones((1, 1, 1), bool), 320.0))
    states = found.states
    assert (found.resumed, found.cells) == (6, 0)
    assert states.ranges(DONE) == [(3, 9)]
    assert states.ranges(LEFT) == [(0, 3), (9, 20)]
    sizes = iter([2, 100, 5, 5, 100])
    assert [b[0] for b in states.batches(lambda: next(sizes))] == [0, 2, 9, 14, 19]


def test_voxels_of_blocks_add_up_to_the_volume() -> None:
    blocks = blocks_of((50, 150, 170), (8, 48, 64))
    voxels = block_voxels(blocks, np.arange(len(blocks)))
    assert voxels.sum() == 50 * 150 * 170
    assert voxels[0] == 8 * 48 * 64
    assert block_voxels(blocks, np.array([len(blocks) - 1])) == [2 * (150 - 3 * 48) * (170 - 2 * 64)]


def test_a_million_blocks_are_counted_by_columns(tmp_path: Path) -> None:
    blocks = blocks_of((1600, 1600, 1600), (16, 16, 16))
    states = BlockStates.of(blocks, Bins(np.ones((1, 1, 1), bool), 1600.0))
    assert len(states.values) == 1_000_000
    found = tally.Tally(job(blocks, tmp_path), states)
    assert found.voxels_left() == 1600**3
    states.values[:] = DONE
    assert found.blocks_record()["finished"] == ["0-999999"]


def report(blocks: int, seconds: float) -> Any:
    return SimpleNamespace(done=tuple(range(blocks)), seconds={"read": seconds / 2, "infer": seconds / 2})


def test_tasks_grow_and_shrink_with_what_blocks_take() -> None:
    pace = Pace(SimpleNamespace(blocks=SimpleNamespace(size=(8, 512, 512))), 100_000, threads=2)  # type: ignore[arg-type]
    assert pace.size() == 4
    pace.learn(report(4, 0.01))
    assert pace.size() == 8
    pace.learn(report(8, 4.0))
    assert pace.size() == 4
    pace.learn(report(4, 100.0))
    assert pace.size() == 1
    for _ in range(20):
        pace.learn(report(pace.size(), 0.0))
    assert pace.size() == 1024
    # Near the end all threads get a share.
    pace.left = 40
    assert [pace.size() for _ in range(3)] == [5, 4, 3]
