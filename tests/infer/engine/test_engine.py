"""The engine: chunked equals whole, every cell once, whatever happens on the way."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from brainmap.errors import DataError, MissingExtraError, UsageError
from brainmap.files import read_json
from brainmap.image.intensity import Intensity
from brainmap.image.volume import Volume
from brainmap.infer.block import net_slices, process
from brainmap.infer.detector import Detector, DetectorSpec, load_backend
from brainmap.infer.engine import dispatch, engine
from brainmap.infer.engine.engine import RunOptions, run_detection
from brainmap.infer.engine.results import finished, iter_results
from brainmap.infer.peaks import suppress
from brainmap.infer.plan.layout import make_layout
from brainmap.machine import usable_cores
from brainmap.points.matching import match_points
from brainmap.points.table import Points
from brainmap.run_folder import RunRecord

Brain = tuple[Volume, Intensity, np.ndarray]


def detect(brain: Brain, detector: Detector, run_dir: Path, **options: Any) -> Points:
    volume, intensity, _ = brain
    result = run_detection(volume, intensity, detector, run_dir, RunOptions(**options))
    assert result.status == "complete"
    points = read(run_dir)
    assert len(points) == result.cells
    return points


def read(run_dir: Path) -> Points:
    tables = list(iter_results(run_dir))
    return Points.concat(tables) if tables else Points.empty(process.COLUMNS)


def assert_same(a: Points, b: Points, atol: float = 1e-3) -> None:
    assert len(a) == len(b)
    assert list(a.columns) == list(b.columns)
    for name in a.columns:
        np.testing.assert_allclose(a[name], b[name], atol=atol, rtol=1e-3, err_msg=name)


@pytest.fixture(scope="module")
def whole(brain: Brain, toy: Detector, tmp_path_factory: pytest.TempPathFactory) -> Points:
    """Detection of the brain as a single block."""
    return detect(brain, toy, tmp_path_factory.mktemp("whole") / "run", block=brain[0].shape)


def test_cells_are_found_where_they_are(brain: Brain, whole: Points) -> None:
    volume, _, truth = brain
    scale = np.array(volume.voxel_um)
    match = match_points(whole.zyx_vox * scale, truth * scale, 3.0)
    assert len(match.index_a) == len(truth) == len(whole)
    error = (whole.zyx_vox[match.index_a] - truth[match.index_b]) * scale
    inner = (np.abs(truth[match.index_b] - np.array(volume.shape) / 2) < np.array(volume.shape) / 2 - 3).all(
        axis=1
    )
    assert np.sqrt((error[inner] ** 2).mean(axis=0)).max() < 1.0


def test_measured_columns_are_what_was_painted(whole: Points) -> None:
    assert np.median(whole["intensity"]) == pytest.approx(400 + 600 * 0.85, rel=0.1)
    assert np.median(whole["diameter_um"]) == pytest.approx(8.0, rel=0.1)
    assert np.median(whole["snr"]) == pytest.approx(600 * 0.85 / 20, rel=0.2)
    assert ((whole["score"] >= 0.5) & (whole["score"] <= 1)).all()


def oracle(brain: Brain, detector: Detector) -> np.ndarray:
    """Peaks of the whole volume without blocks, tiles or streaming; integer peak cells, sorted."""
    volume, intensity, _ = brain
    spec = detector.spec
    image = volume.read(slice(None), slice(None), slice(None)).astype(np.float32)
    depth, height, width = image.shape
    axes = [np.arange(n, dtype=np.float64) for n in image.shape]
    normal = intensity.normalise(image, *axes) - spec.offset
    tile = (-(-height // 16) * 16 + 32, -(-width // 16) * 16 + 32)
    padded = np.full((depth + 4, *tile), spec.fill, np.float32)
    padded[2:-2, 16 : 16 + height, 16 : 16 + width] = normal
    backend = load_backend(detector, "openvino", tile=tile, precision="f32")
    stacks = [backend.infer(padded[None, k : k + 5])[0][0, 0] for k in range(depth)]
    heat = np.stack(stacks)[:, 16 : 16 + height, 16 : 16 + width]
    highest = ndimage.maximum_filter(heat, 3, mode="constant", cval=-np.inf)
    peaks = np.argwhere((heat == highest) & (spec.score(heat) >= spec.threshold))
    logit = heat[tuple(peaks.T)]
    keep = suppress(peaks * np.array(volume.voxel_um), logit, peaks, 6.0)
    return peaks[keep]


def test_blocks_find_the_peaks_of_the_whole_volume(brain: Brain, toy: Detector, run_dir: Path) -> None:
    points = detect(brain, toy, run_dir, block=(7, 96, 64), precision="f32")
    expected = oracle(brain, toy)
    assert len(points) == len(expected)
    match = match_points(points.zyx_vox, expected.astype(float), 1.0)
    assert len(match.index_a) == len(expected)


@pytest.mark.parametrize("block", [None, (8, 48, 80), (3, 500, 32), (40, 33, 90)])
def test_same_cells_for_any_block_shape(
    brain: Brain, toy: Detector, run_dir: Path, whole: Points, block: tuple[int, int, int] | None
) -> None:
    assert_same(detect(brain, toy, run_dir, block=block), whole)


def test_same_cells_with_the_shipped_detector_in_its_fast_precision(brain: Brain, tmp_path: Path) -> None:
    detector = Detector.open("default")
    runs = [
        detect(brain, detector, tmp_path / str(i), block=block)
        for i, block in enumerate([brain[0].shape, (9, 100, 64), (26, 48, 150)])
    ]
    assert len(runs[0]) > 10
    assert_same(runs[1], runs[0])
    assert_same(runs[2], runs[0])


@pytest.mark.parametrize("max_tile", [4096, 128])
def test_same_cells_for_any_number_of_streams(brain: Brain, tmp_path: Path, max_tile: int) -> None:
    volume, intensity, _ = brain
    detector = Detector.open("default")
    job = engine.make_job(volume, detector, tmp_path, RunOptions(block=volume.shape, precision="f32"))
    job = dataclasses.replace(job, layout=make_layout(job.spec, job.blocks, max_tile))
    window = job.layout.window(job.blocks.grid, job.blocks[0])
    assert (len(window.rows) * len(window.columns) > 1) == (max_tile == 128)
    Path(job.intensity).parent.mkdir()
    intensity.save(Path(job.intensity))
    found = []
    for streams in (1, 2, 5):
        with_streams = dataclasses.replace(job, streams=streams, threads=streams)
        found.append(process.process_block(with_streams, job.blocks[0])[0])
    assert len(found[0]["z"]) > 10
    for other in found[1:]:
        for name, values in found[0].items():
            np.testing.assert_array_equal(values, other[name])


def test_streams_are_for_threads_of_this_process_and_the_default_backend(
    brain: Brain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def streams(**options: Any) -> int:
        return engine.make_job(
            brain[0], Detector.open(), tmp_path, RunOptions(device="cpu", **options)
        ).streams

    monkeypatch.setattr(engine, "usable_cores", lambda: 4)
    assert streams(backend="openvino") == 2
    assert streams(backend="openvino", workers=1) == 1
    assert streams(backend="torch") == 1
    monkeypatch.setattr(engine, "usable_cores", lambda: 1)
    assert streams(backend="openvino") == 1


def test_a_run_goes_on_with_its_blocks_whatever_computes_them(
    brain: Brain, toy: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "choose_block", lambda *_: (16, 48, 112))
    whole = detect(brain, toy, tmp_path)
    monkeypatch.setattr(engine, "choose_block", lambda *_: (8, 96, 112))
    assert_same(detect(brain, toy, tmp_path, workers=1), whole)
    assert engine.make_job(brain[0], toy, tmp_path, RunOptions()).blocks.size == (16, 48, 112)
    assert engine.make_job(brain[0], toy, tmp_path, RunOptions(overwrite=True)).blocks.size == (8, 96, 112)


@pytest.mark.parametrize("workers", [1, 2])
def test_same_cells_for_any_number_of_workers(
    brain: Brain, toy: Detector, run_dir: Path, whole: Points, workers: int
) -> None:
    assert_same(detect(brain, toy, run_dir, block=(16, 96, 300), workers=workers), whole)


@pytest.mark.parametrize("stride", [2, 4])
@pytest.mark.parametrize("voxel_um", [(2.0, 1.3, 1.3), (5.0, 2.31, 2.0)])
def test_same_cells_on_other_grids(
    make_brain: Callable[..., Brain],
    toy_at: Callable[[int], Detector],
    tmp_path: Path,
    stride: int,
    voxel_um: tuple[float, float, float],
) -> None:
    brain = make_brain((23, 150, 140), voxel_um, count=25)
    detector = toy_at(stride)
    one = detect(brain, detector, tmp_path / "one", block=brain[0].shape)
    many = detect(brain, detector, tmp_path / "many", block=(5, 64, 70))
    assert_same(many, one)
    scale = np.array(voxel_um)
    match = match_points(one.zyx_vox * scale, brain[2] * scale, 5.0)
    assert len(match.index_a) >= 0.7 * len(brain[2])


def test_rows_are_in_exact_order(brain: Brain, toy: Detector, run_dir: Path) -> None:
    points = detect(brain, toy, run_dir, block=(3, 96, 96))
    rows = list(zip(points["z"], points["y"], points["x"], strict=True))
    assert rows == sorted(rows)


CORNERS = [[z, y, x] for z in (0, 11.5, 23) for y in (0, 45.5, 91) for x in (0, 50, 101)]


@pytest.mark.parametrize("block", [(24, 92, 102), (6, 32, 32), (12, 48, 48)])
def test_cells_at_faces_edges_corners_and_block_borders_are_found_once(
    make_brain: Callable[..., Brain], toy: Detector, run_dir: Path, block: tuple[int, int, int]
) -> None:
    # Centres in the outermost voxels, and on the borders of blocks: net pixels 32 and 48, groups 6, 12.
    borders = [[5.5, 31.5, 70], [11.5, 47.5, 20], [17.4, 63.6, 31.5], [6, 15.5, 47.5]]
    brain = make_brain((24, 92, 102), centres=np.array(CORNERS + borders), chunks=(8, 32, 32))
    points = detect(brain, toy, run_dir, block=block, threshold=0.4)
    scale = np.array(brain[0].voxel_um)
    match = match_points(points.zyx_vox * scale, brain[2] * scale, 5.0)
    assert len(match.index_a) == len(brain[2]) == len(points)
    assert (points.zyx_vox >= 0).all()
    assert (points.zyx_vox <= np.array(brain[0].shape) - 1).all()


@pytest.mark.parametrize("along", [0, 1, 2])
def test_neighbours_down_to_0_7_diameters_stay_two(
    make_brain: Callable[..., Brain], fine_toy: Detector, run_dir: Path, along: int
) -> None:
    # The toy's optics would blur two such cells into one: sharper cells test the rule, not the toy.
    middle = np.array([20.0, 60.3, 60.0])
    apart = np.zeros(3)
    apart[along] = 7.0
    centres = np.array([middle, middle + apart / (2.0, 1.0, 1.0)])
    brain = make_brain((40, 120, 120), (2.0, 1.0, 1.0), centres, diameter_um=4.0)
    points = detect(brain, fine_toy, run_dir, block=(7, 40, 40))
    assert len(points) == 2


@pytest.mark.parametrize("step", [2.0, 2.5, 4.0, 6.0, 10.0])
def test_a_cell_seen_in_one_to_five_slices_is_one_cell(
    make_brain: Callable[..., Brain], toy: Detector, run_dir: Path, step: float
) -> None:
    rng = np.random.default_rng(5)
    depth = int(160 / step)
    grid = [[z, y, x] for z in np.linspace(3, depth - 4, 3) for y in (30, 70, 110) for x in (30, 70, 110)]
    centres = np.array(grid) + rng.uniform(-0.5, 0.5, (27, 3))
    brain = make_brain((depth, 140, 140), (step, 2.0, 2.0), centres)
    points = detect(brain, toy, run_dir, block=(5, 64, 64))
    assert len(points) == 27


def test_two_cells_above_each_other_are_two(
    make_brain: Callable[..., Brain], toy: Detector, run_dir: Path
) -> None:
    centres = np.array([[10, 50, 50], [14, 50, 50], [10, 100, 50], [13.5, 101, 50]])
    brain = make_brain((24, 140, 100), (4.0, 2.0, 2.0), centres)
    assert len(detect(brain, toy, run_dir, block=(6, 64, 64))) == 4


def test_region_of_interest_gives_the_cells_of_the_whole_run_inside_it(
    brain: Brain, toy: Detector, run_dir: Path, whole: Points
) -> None:
    roi = ((6, 21), (50, 170), (31, 120))
    part = detect(brain, toy, run_dir, block=(8, 64, 64), roi=roi)
    inside = np.ones(len(whole), bool)
    for axis, (start, stop) in enumerate(roi):
        nearest = np.floor(whole.zyx_vox[:, axis] + 0.5)
        inside &= (nearest >= start) & (nearest < stop)
    assert 0 < len(part) < len(whole)
    assert_same(part, whole.take(inside))


def test_blocks_without_tissue_are_not_read(
    brain: Brain, toy: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, intensity, _ = brain
    tissue = np.zeros(intensity.tissue.shape, bool)
    tissue[: len(tissue) // 2, : tissue.shape[1] // 2] = True
    part = dataclasses.replace(intensity, tissue=tissue)
    ends = []
    read_volume = Volume.read

    def spy(self: Volume, z: slice, y: slice, x: slice, *rest: Any, **more: Any) -> np.ndarray:
        ends.append((z.stop, y.stop))
        return read_volume(self, z, y, x, *rest, **more)

    monkeypatch.setattr(Volume, "read", spy)
    runs = []
    for name, block in {"one": volume.shape, "many": (4, 32, 48)}.items():
        ends.clear()
        result = run_detection(volume, part, toy, tmp_path / name, RunOptions(block=block))
        runs.append(read(tmp_path / name))
    assert result.empty > 0.6 * result.blocks
    # Tissue fills the first half of z and y: what is read ends a margin and a context later.
    assert max(z for z, _ in ends) <= volume.shape[0] // 2 + 10
    assert max(y for _, y in ends) <= volume.shape[1] // 2 + 32 + 32
    # The border of the tissue is the same wherever blocks end.
    assert_same(*runs)
    assert 0 < len(runs[0]) < 40


def test_a_finished_run_is_kept_and_its_numbers_are_recorded(
    brain: Brain, toy: Detector, run_dir: Path
) -> None:
    volume, intensity, _ = brain
    options = RunOptions(block=(16, 128, 128))
    first = run_detection(volume, intensity, toy, run_dir, options)
    assert first.failed == {}
    assert {"read", "resample", "normalise", "infer", "peaks", "write"} <= set(first.timings_s)
    assert first.voxels == np.prod(volume.shape)
    assert first.peak_memory_bytes > 50e6
    record = RunRecord.load(run_dir)
    assert record.blocks["done"] == record.blocks["total"] == first.blocks
    assert record.blocks["finished"] == [f"0-{first.blocks - 1}"]
    again = run_detection(volume, intensity, toy, run_dir, options)
    assert (again.resumed, again.voxels, again.cells) == (first.blocks, 0, first.cells)


def test_resume_refuses_other_parameters(brain: Brain, toy: Detector, run_dir: Path) -> None:
    volume, intensity, _ = brain
    run_detection(volume, intensity, toy, run_dir, RunOptions(block=(40, 300, 300)))
    for other in (
        RunOptions(block=(40, 300, 300), threshold=0.7),
        RunOptions(block=(20, 300, 300)),
        RunOptions(block=(40, 300, 300), roi=((0, 9), (0, 99), (0, 99))),
        RunOptions(block=(40, 300, 300), cell_diameter_um=12.0),
    ):
        with pytest.raises(UsageError, match="--overwrite"):
            run_detection(volume, intensity, toy, run_dir, other)
    with pytest.raises(UsageError, match="volume"):
        run_detection(
            dataclasses.replace(volume, channel=3), intensity, toy, run_dir, RunOptions(block=(40, 300, 300))
        )
    few = run_detection(
        volume, intensity, toy, run_dir, RunOptions(block=(40, 300, 300), threshold=0.99, overwrite=True)
    )
    assert few.resumed == 0


class Broken(Volume):
    """A volume whose rows from 170 on cannot be read."""

    def read(self, z: slice, y: slice, x: slice, level: int = 0, out: np.ndarray | None = None) -> np.ndarray:
        if y.stop > 170:
            raise DataError(f"chunk {y} is damaged")
        return super().read(z, y, x, level, out)


def test_failed_blocks_are_retried_reported_and_made_good_later(
    brain: Brain, toy: Detector, run_dir: Path, whole: Points
) -> None:
    volume, intensity, _ = brain
    broken = Broken(**{f.name: getattr(volume, f.name) for f in dataclasses.fields(volume)})
    options = RunOptions(block=(13, 64, 300))
    result = run_detection(broken, intensity, toy, run_dir, options)
    assert result.status == "incomplete"
    assert len(result.failed) == 2
    assert all("damaged" in reason for reason in result.failed.values())
    record = RunRecord.load(run_dir)
    assert record.status == "incomplete"
    assert set(record.blocks["failed"]) == {str(i) for i in result.failed}
    assert record.blocks["done"] == result.blocks - 2
    kept = read(run_dir)
    assert 0 < len(kept) < len(whole)
    second = run_detection(volume, intensity, toy, run_dir, options)
    assert (second.status, second.resumed) == ("complete", result.blocks - 2)
    assert_same(read(run_dir), whole)


def test_interruption_keeps_finished_blocks(
    brain: Brain, toy: Detector, run_dir: Path, whole: Points, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, intensity, _ = brain
    options = RunOptions(block=(8, 64, 64))

    def interrupt(self: engine.Progress, voxels: int, *_: object) -> None:
        if voxels > 0.3 * np.prod(volume.shape):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine.Progress, "update", interrupt)
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            run_detection(volume, intensity, toy, run_dir, options)
    assert time.monotonic() - started < 60
    assert RunRecord.load(run_dir).status == "running"
    done = sum(b - a for (a, b), _ in finished(run_dir))
    assert done > 0
    result = run_detection(volume, intensity, toy, run_dir, options)
    assert result.resumed >= done
    assert_same(read(run_dir), whole)


KILLED = """
    import sys
    from pathlib import Path
    from brainmap.infer.detector import Detector
    from brainmap.infer.engine.engine import RunOptions, run_detection
    from brainmap.image.intensity import Intensity
    from brainmap.image.volume import Volume

    if __name__ == "__main__":
        volume = Volume.open(sys.argv[1])
        options = RunOptions(block=(4, 48, 48), workers=int(sys.argv[4]) or None)
        run_detection(volume, Intensity.fit(volume), Detector.open(sys.argv[2]), sys.argv[3], options)
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_kill_and_the_same_command_again_give_the_same_cells(
    brain: Brain, toy: Detector, tmp_path: Path, whole: Points, workers: int, repository: Path
) -> None:
    script = tmp_path / "detect.py"
    script.write_text(textwrap.dedent(KILLED))
    run_dir = tmp_path / "run"
    command = [sys.executable, str(script), brain[0].url, str(toy.folder), str(run_dir), str(workers)]
    environment = os.environ | {"PYTHONPATH": str(repository)}
    child = subprocess.Popen(command, start_new_session=True, env=environment)
    deadline = time.monotonic() + 300
    while len(finished(run_dir)) < 3 and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    done = sum(b - a for (a, b), _ in finished(run_dir))
    total = np.prod(read_json(run_dir / "blocks" / "plan.json")["block_count"])
    assert 3 <= done < total
    subprocess.run(command, check=True, timeout=300, env=environment)
    assert sum(b - a for (a, b), _ in finished(run_dir)) == total
    assert_same(read(run_dir), whole)


class Deadly(Volume):
    """A volume that takes its worker down where it is read near its end."""

    def read(self, z: slice, y: slice, x: slice, level: int = 0, out: np.ndarray | None = None) -> np.ndarray:
        if z.stop > 25:
            # Not while its nanny is still starting it, which would be another story.
            time.sleep(3)
            os._exit(9)
        return super().read(z, y, x, level, out)


@pytest.mark.slow
def test_a_block_that_kills_its_worker_is_reported(brain: Brain, toy: Detector, run_dir: Path) -> None:
    import cloudpickle

    volume, intensity, _ = brain
    deadly = Deadly(**{f.name: getattr(volume, f.name) for f in dataclasses.fields(volume)})
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        result = run_detection(deadly, intensity, toy, run_dir, RunOptions(block=(13, 300, 300), workers=1))
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert result.status == "incomplete"
    assert result.failed == {1: "its worker died, perhaps out of memory"}
    assert result.cells > 0


@pytest.mark.slow
def test_a_run_whose_workers_are_gone_ends(
    brain: Brain, toy: Detector, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_PATIENCE_S", 2.0)
    run = dispatch.Dispatcher.run

    def without_workers(self: dispatch.Dispatcher, meanwhile: object) -> None:
        self.client.cluster.scale(0)
        while self.client.nthreads():
            time.sleep(0.05)
        run(self)

    monkeypatch.setattr(dispatch.Dispatcher, "run", without_workers)
    with pytest.raises(DataError, match="run the same command again"):
        run_detection(brain[0], brain[1], toy, run_dir, RunOptions(block=(16, 96, 96), workers=1))


def test_no_more_than_a_window_of_tasks_is_in_flight(
    brain: Brain, toy: Detector, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, intensity, _ = brain
    monkeypatch.setattr(dispatch, "_BATCH_BLOCKS", 1)
    most = []
    show = dispatch.Dispatcher._show

    def spy(self: dispatch.Dispatcher) -> None:
        held = len(self.client.futures)
        most.append((len(self.active), held))
        show(self)

    monkeypatch.setattr(dispatch.Dispatcher, "_show", spy)
    result = run_detection(volume, intensity, toy, run_dir, RunOptions(block=(8, 64, 64)))
    window = 2 * usable_cores()
    assert len(most) == result.blocks > 5 * window
    assert max(active for active, _ in most) <= window
    assert max(held for _, held in most) <= window + 1


def test_memory_of_a_block_does_not_grow_with_its_depth() -> None:
    k = (0, 1000)
    runs = list(net_slices._runs(k, 2, 64, 4 * 1100 * 1100))
    assert runs[0][0] == 0
    assert runs[-1][1] == 1000
    assert all(a[1] == b[0] for a, b in itertools.pairwise(runs))
    assert max(b - a for a, b in runs) * 4 * 1100 * 1100 <= 400 << 20
    # Runs end where chunks end: no chunk is decoded for two of them.
    assert all(b * 2 % 64 == 0 for _, b in runs[:-1])


@pytest.mark.parametrize(("group", "chunk"), [(1, 1), (1, 1000), (4, 64), (3, 64), (5, 7)])
def test_runs_cover_all_groups(group: int, chunk: int) -> None:
    runs = list(net_slices._runs((3, 90), group, chunk, 5 << 20))
    assert [r for a, b in runs for r in range(a, b)] == list(range(3, 90))


def test_wrong_options_are_refused(brain: Brain, toy: Detector, run_dir: Path) -> None:
    with pytest.raises(UsageError, match="--threshold"):
        RunOptions(threshold=1.5)
    with pytest.raises(UsageError, match="not both"):
        RunOptions(workers=2, scheduler="tcp://127.0.0.1:1")
    volume, intensity, _ = brain
    with pytest.raises(UsageError, match="--workers"):
        run_detection(volume, intensity, toy, run_dir, RunOptions(workers=0))
    with pytest.raises(UsageError, match="--backend"):
        run_detection(volume, intensity, toy, run_dir, RunOptions(backend="abacus"))


def test_a_missing_backend_stops_the_run_at_once(
    brain: Brain, toy: Detector, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def missing(*_: object) -> None:
        calls.append(1)
        raise MissingExtraError("openvino", "all", "run a detector")

    monkeypatch.setattr(process, "load_backend", missing)
    monkeypatch.setattr(process, "_backends", process._Once())
    with pytest.raises(MissingExtraError, match="openvino"):
        run_detection(brain[0], brain[1], toy, run_dir, RunOptions(block=(8, 64, 64)))
    assert len(calls) <= 2 * usable_cores() + 2


def test_results_that_cannot_be_written_stop_the_run(
    brain: Brain, toy: Detector, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("brainmap.infer.engine.results.write_batch", full)
    with pytest.raises(DataError, match="No space left on device"):
        run_detection(brain[0], brain[1], toy, run_dir, RunOptions(block=(16, 128, 128)))
    blocked = run_dir.parent / "file"
    blocked.write_text("")
    with pytest.raises(DataError, match="cannot write"):
        run_detection(brain[0], brain[1], toy, blocked / "run", RunOptions())


def test_cell_diameter_rescales_the_grid(
    make_brain: Callable[..., Brain], toy: Detector, toy_record: DetectorSpec, run_dir: Path
) -> None:
    centres = np.array([[20, 60, 60], [40, 140, 100]])
    brain = make_brain((60, 200, 180), (4.0, 2.0, 2.0), centres, diameter_um=20.0)
    points = detect(brain, toy, run_dir, cell_diameter_um=20.0)
    assert len(points) == 2
    np.testing.assert_allclose(points.zyx_vox, centres, atol=0.5)
    assert np.median(points["diameter_um"]) == pytest.approx(16, rel=0.1)
    assert toy_record.scaled(20.0).pixel_um == 4.0
