"""The path through a GPU, on torch's CPU: the same cells as the path through numpy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

torch = pytest.importorskip("torch")

from brainmap.image.intensity import Intensity  # noqa: E402
from brainmap.image.volume import Volume  # noqa: E402
from brainmap.infer.block import device_ops, on_device, on_host, process  # noqa: E402
from brainmap.infer.block.block_task import BlockTask  # noqa: E402
from brainmap.infer.block.measure import mean_around  # noqa: E402
from brainmap.infer.block.net_slices import Band  # noqa: E402
from brainmap.infer.block.process import COLUMNS, Job, process_block  # noqa: E402
from brainmap.infer.block.resample import axis_operator, resample_band  # noqa: E402
from brainmap.infer.detector import Detector  # noqa: E402
from brainmap.infer.engine.engine import RunOptions, make_job, run_detection  # noqa: E402
from brainmap.infer.engine.results import iter_results  # noqa: E402
from brainmap.infer.peaks import (  # noqa: E402
    Heat,
    find_peaks,
    reaches,
)
from brainmap.infer.plan.blocks import Grid  # noqa: E402
from brainmap.infer.plan.layout import make_layout  # noqa: E402
from brainmap.points.table import Points  # noqa: E402

Brain = tuple[Volume, Intensity, np.ndarray]
CPU = torch.device("cpu")


def job_of(brain: Brain, detector: Detector, run_dir: Path, **options: Any) -> Job:
    volume, intensity, _ = brain
    job = make_job(volume, detector, run_dir, RunOptions(backend="torch", precision="f32", **options))
    Path(job.intensity).parent.mkdir(parents=True, exist_ok=True)
    intensity.save(Path(job.intensity))
    return job


def both_ways(job: Job, monkeypatch: pytest.MonkeyPatch) -> int:
    """Compare every block of a job; the number of cells."""
    cells = 0
    for block in job.blocks:
        monkeypatch.setattr(process, "_slices_of", on_host.slice_cells)
        host, host_stages = process_block(job, block)
        monkeypatch.setattr(process, "_slices_of", on_device.slice_cells)
        device, device_stages = process_block(job, block)
        assert len(host["z"]) == len(device["z"])
        for name in COLUMNS:
            np.testing.assert_allclose(device[name], host[name], rtol=1e-4, atol=2e-3, err_msg=name)
        assert device_stages.net_pixels == host_stages.net_pixels
        assert device_stages.raw_voxels == host_stages.raw_voxels
        cells += int(np.count_nonzero(reaches(host["score"], job.threshold)))
    return cells


@pytest.mark.parametrize("block", [None, (8, 96, 64), (5, 48, 200)])
def test_same_cells_as_on_the_host(
    brain: Brain,
    toy: Detector,
    run_dir: Path,
    block: tuple[int, int, int] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert both_ways(job_of(brain, toy, run_dir, block=block), monkeypatch) == 60


def test_same_cells_with_the_shipped_detector(
    brain: Brain, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(brain, Detector.open("default"), run_dir, block=(13, 112, 150))
    assert both_ways(job, monkeypatch) > 10


@pytest.mark.parametrize("stride", [2, 4])
def test_same_cells_at_a_stride_in_small_tiles(
    brain: Brain,
    toy_at: Callable[[int], Detector],
    stride: int,
    run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = job_of(brain, toy_at(stride), run_dir, block=(9, 128, 160))
    job = dataclasses.replace(job, layout=make_layout(job.spec, job.blocks, max_tile=96))
    assert both_ways(job, monkeypatch) > 20


@pytest.mark.parametrize("voxel_um", [(2.0, 1.3, 0.9), (10.0, 3.1, 4.0), (1.0, 1.0, 1.0)])
def test_same_cells_on_other_grids(
    make_brain: Callable[..., Brain], toy: Detector, voxel_um: tuple[float, float, float], run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    shape = tuple(round(n / v) for n, v in zip((90, 260, 220), voxel_um, strict=True))
    brain = make_brain(shape=shape, voxel_um=voxel_um, count=25)
    assert both_ways(job_of(brain, toy, run_dir), monkeypatch) > 10


def test_same_cells_where_tissue_ends_within_the_block(
    make_brain: Callable[..., Brain], toy: Detector, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, intensity, truth = make_brain(shape=(14, 300, 300), count=60)
    tissue = np.zeros_like(intensity.tissue)
    tissue[2:9, : tissue.shape[1] // 2, : tissue.shape[2] // 3] = True
    job = job_of((volume, dataclasses.replace(intensity, tissue=tissue), truth), toy, run_dir)
    job = dataclasses.replace(job, layout=make_layout(job.spec, job.blocks, max_tile=112))
    assert both_ways(job, monkeypatch) > 2


def test_a_whole_run_by_threads(
    brain: Brain, toy: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, intensity, _ = brain
    tables = []
    for name, way in (("host", on_host.slice_cells), ("device", on_device.slice_cells)):
        monkeypatch.setattr(process, "_slices_of", way)
        options = RunOptions(backend="torch", block=(7, 64, 64), precision="f32")
        run_detection(volume, intensity, toy, tmp_path / name, options)
        tables.append(Points.concat(list(iter_results(tmp_path / name))))
    assert len(tables[0]) == len(tables[1]) == 60
    for name in tables[0].columns:
        np.testing.assert_allclose(tables[1][name], tables[0][name], rtol=1e-4, atol=2e-3, err_msg=name)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16", "int32", "uint32", "float32", "float64"])
def test_voxels_arrive_as_they_are(kind: str) -> None:
    values = np.array([[[0, 1, 40_000 if kind == "uint16" else 120]]], kind)
    assert device_ops.upload(values, CPU).tolist() == values.tolist()
    values.flags.writeable = False
    assert device_ops.upload(values[:, :, ::-1], CPU).tolist() == values[:, :, ::-1].tolist()


@pytest.mark.parametrize(
    ("voxel_um", "kind"),
    [((4.0, 2.0, 2.0), "uint16"), ((1.3, 0.7, 3.1), "uint16"), ((1.0, 1.1, 0.6), "float32")],
)
def test_resampling_is_that_of_the_host(
    voxel_um: tuple[float, float, float], kind: str, toy: Detector
) -> None:
    shape = (11, 70, 90)
    raw = np.random.default_rng(0).integers(0, 65_000, shape).astype(kind)
    grid = Grid.of(shape, voxel_um, toy.spec)
    groups, height, width = grid.net_shape
    rows, columns = axis_operator(grid, 1, (0, height)), axis_operator(grid, 2, (0, width))
    wanted = np.zeros(grid.net_shape, np.float32)
    got = torch.zeros(grid.net_shape)
    resampler = device_ops.Resampler(rows, columns, grid.group, CPU)
    for start, stop in ((0, 32), (32, 64), (64, 70)):
        part = raw[:, start:stop]
        resample_band(wanted, part, (0, shape[0]), start, grid, 0, rows, columns)
        band = Band((0, groups), (0, shape[0]), (start, stop), stop == 70)
        resampler.add(got, device_ops.upload(part, CPU), band)
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-6)


@pytest.mark.parametrize("levels", [1000, 3])
def test_peaks_are_those_of_the_host(levels: int) -> None:
    rng = np.random.default_rng(levels)
    logit = (rng.integers(0, levels, (6, 17, 19)) - levels // 2).astype(np.float32)
    logit[rng.random(logit.shape) < 0.1] = -np.inf
    padded = np.pad(logit, ((1, 1), (0, 0), (0, 0)), constant_values=-np.inf)
    volume = torch.from_numpy(np.stack([padded[k : k + 3] for k in range(6)]))
    lowest = [-np.inf, 0.0, 1.0, 0.0, -np.inf, 0.0]
    found = device_ops.find_peaks(volume, torch.tensor(lowest))
    which, row, column = (part.numpy() for part in found)
    for k in range(6):
        offset = np.zeros((2, 17, 19), np.float32)
        wanted = find_peaks(padded[k], Heat.of(logit[k], offset, lowest[k]), padded[k + 2])
        np.testing.assert_array_equal(row[which == k], wanted["row"])
        np.testing.assert_array_equal(column[which == k], wanted["column"])


def test_measuring_is_that_of_the_host() -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(0, 1, (2, 20, 30)).astype(np.float32)
    which, row, column = rng.integers(0, 2, 200), rng.uniform(-1, 20, 200), rng.uniform(-1, 30, 200)
    places = [torch.from_numpy(part) for part in (images, which, row, column)]
    means = np.where(which, *(mean_around(image, row, column) for image in images[::-1]))
    np.testing.assert_allclose(device_ops.mean_around(*places).numpy(), means, rtol=1e-5, atol=1e-6)
    at = np.stack([row, column])
    wanted = [ndimage.map_coordinates(image, at, order=1, mode="nearest") for image in images]
    found = device_ops.sampled(*places).numpy()
    np.testing.assert_allclose(found, np.where(which, wanted[1], wanted[0]), atol=1e-5)
    for n in (11, 12):
        values = rng.normal(size=(4, n)).astype(np.float32)
        np.testing.assert_allclose(
            device_ops.median(torch.from_numpy(values)).numpy(), np.median(values, axis=1)
        )


def test_memory_is_that_of_a_few_slices(brain: Brain, toy: Detector, run_dir: Path) -> None:
    job = job_of(brain, toy, run_dir, block=brain[0].shape)
    window = job.layout.window(job.blocks.grid, job.blocks[0])
    stages = process.Stages()
    task = BlockTask(
        job.volume,
        job.blocks.grid,
        window,
        job.spec,
        job.layout,
        brain[1],
        process.backend_of(job),
        0.0,
        stages,
    )
    block = on_device._Block(task)
    held = []
    for _ in block.run():
        held.append([len(store) for store in (block.logit, block.offset, block.image)])
    most = np.max(held, axis=0)
    assert window.k[1] - window.k[0] > 20
    assert most[0] <= 7 and most[1] <= 7 and most[2] <= 16 + 9
