"""Where there is tissue: tiles without any are skipped, and nothing is lost by it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from brainmap.image.intensity import Intensity
from brainmap.image.volume import Volume
from brainmap.infer.block.process import COLUMNS, Job, process_block
from brainmap.infer.detector import Detector
from brainmap.infer.engine.engine import RunOptions, make_job
from brainmap.infer.plan.blocks import partition
from brainmap.infer.plan.layout import make_layout
from brainmap.infer.plan.tissue import ATOM, touches


def test_touches_looks_at_the_atoms_under_a_box() -> None:
    mask = np.zeros((4, 5), bool)
    mask[2, 3] = True
    rows, columns = 2 * ATOM[1], 3 * ATOM[2]
    # A window that starts inside the first atom.
    y0, x0 = 16, 48
    shifted = np.zeros((4, 4), bool)
    shifted[2, 2] = True
    assert touches(mask, 0, 0, (rows, columns), (16, 16))
    assert touches(shifted, y0, x0, (rows + 16, columns + 16), (200, 200))
    assert touches(mask, 0, 0, (0, 0), (rows + 1, columns + 1))
    assert not touches(mask, 0, 0, (0, 0), (rows, 200))
    assert not touches(mask, 0, 0, (rows + ATOM[1], 0), (64, 200))
    assert not touches(shifted, y0, x0, (y0, x0), (rows - y0, 400))


@pytest.fixture
def corner_job(
    make_brain: Callable[..., tuple[Volume, Intensity, np.ndarray]], toy: Detector, run_dir: Path
) -> Job:
    """A job on a brain whose tissue fills one corner only, and its intensity model saved."""
    volume, intensity, _ = make_brain(shape=(10, 300, 300), count=60)
    tissue = np.zeros_like(intensity.tissue)
    tissue[:, : tissue.shape[1] // 3, : tissue.shape[2] // 3] = True
    intensity = dataclasses.replace(intensity, tissue=tissue)
    job = make_job(volume, toy, run_dir, RunOptions(block=(10, 400, 400)))
    Path(job.intensity).parent.mkdir(parents=True)
    intensity.save(Path(job.intensity))
    return job


def test_tiles_without_tissue_are_skipped_and_no_cell_with_them(corner_job: Job) -> None:
    found = {}
    for size in (400, 112):
        layout = make_layout(corner_job.spec, corner_job.blocks, max_tile=size)
        job = dataclasses.replace(corner_job, layout=layout)
        table, stages = process_block(job, job.blocks[0])
        window = layout.window(job.blocks.grid, job.blocks[0])
        tiles = len(window.rows) * len(window.columns)
        whole = tiles * layout.tile[0] * layout.tile[1] * job.blocks.grid.net_shape[0]
        found[size] = (table, tiles, stages.net_pixels / whole)
    assert found[400][1] == 1
    assert found[400][2] == 1
    assert found[112][1] >= 9
    assert found[112][2] < 0.5
    assert len(found[400][0]["z"]) > 2
    for name in COLUMNS:
        np.testing.assert_allclose(found[112][0][name], found[400][0][name], atol=1e-4, err_msg=name)


def test_decoded_voxels_count_whole_chunks(corner_job: Job) -> None:
    grid, volume = corner_job.blocks.grid, corner_job.volume
    blocks = partition(grid, (grid.net_shape[0], 64, grid.net_shape[2]))
    job = dataclasses.replace(
        corner_job, blocks=blocks, layout=make_layout(corner_job.spec, blocks), run_dir=corner_job.run_dir
    )
    _, stages = process_block(job, blocks[1])
    window = job.layout.window(grid, blocks[1])
    rows = grid.voxel_span(window.read_y, 1)
    chunk = volume.chunks[1]
    first, last = rows[0] // chunk * chunk, min(-(-rows[1] // chunk) * chunk, volume.shape[1])
    assert stages.raw_voxels == volume.shape[0] * (last - first) * volume.shape[2]
