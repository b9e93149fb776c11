"""A run folder after failures: the old result is whole, the same command goes on, and every damage has a way on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brainmap.errors import BrainmapError, DataError, NotFoundError, UsageError
from brainmap.image.brain_of_run import brain_of_run
from brainmap.image.volume import Volume, write_volume
from brainmap.points.table import Points
from brainmap.run import detect as module
from brainmap.run.detect import detect_brain
from brainmap.run.recount import recount
from brainmap.run.request import DetectRequest
from brainmap.run_folder import RunRecord

SHAPE, VOXEL_UM = (16, 96, 96), (5.0, 2.0, 2.0)


def cells_image(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = rng.normal(300, 10, SHAPE)
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    for row, column in [(r, c) for r in range(14, 90, 20) for c in range(14, 90, 20)]:
        distance = ((z - rng.integers(3, 13)) * 5.0) ** 2 + ((y - row) * 2.0) ** 2 + ((x - column) * 2.0) ** 2
        image += 400 * 0.5 ** (distance / 4.5**2)
    return image.astype(np.uint16)


@pytest.fixture(scope="module")
def brain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("brain") / "brain.ome.zarr"
    write_volume(path, cells_image(), VOXEL_UM, chunks=(8, 48, 48))
    return path


@pytest.fixture(scope="module")
def asked(brain: Path) -> DetectRequest:
    return DetectRequest(
        brain=str(brain),
        out=Path("unset"),
        atlas=None,
        progress=False,
        block=(8, 96, 48),
        exports=("napari",),
    )


@pytest.fixture(autouse=True)
def quick_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(folder: Path, staged: Path | None = None, **_: object) -> None:
        target = (staged or folder) / "report.html"
        part = target.with_name("part")
        part.write_text("report")
        os.replace(part, target)

    monkeypatch.setattr("brainmap.report.run_report.write_run_report", write)


@pytest.fixture(scope="module")
def finished(asked: DetectRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("brainmap.run.pages.write_pages", lambda *_: None)
        detect_brain(replace(asked, out=out))
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    return tmp_path / "run"


def rows(run: Path) -> np.ndarray:
    return Points.read(run / "points.parquet").zyx_vox


def test_overwrite_that_fails_at_any_file_leaves_the_old_run_whole(
    run: Path, asked: DetectRequest, damage: Any
) -> None:
    request = replace(asked, out=run, threshold=0.9, overwrite=True)
    before = damage.snapshot(run)

    def look(name: str) -> None:
        assert damage.is_whole(run, before), name

    failed = damage.at_every_file(lambda: detect_brain(request), look)
    assert len(failed) > 12, "record, plan, overview, blocks, tables, exports, report, and their places"
    assert RunRecord.load(run).parameters["threshold"] == 0.9
    assert (run / "notes.txt").read_text() == "mine"
    assert damage.hidden(run) == []
    fresh = run.with_name("fresh")
    detect_brain(replace(asked, out=fresh, threshold=0.9))
    np.testing.assert_array_equal(rows(run), rows(fresh))
    assert set(damage.snapshot(run)) - {"notes.txt"} == set(damage.snapshot(fresh))


def test_recount_that_fails_at_any_file_leaves_the_old_run_whole(run: Path, damage: Any) -> None:
    before = damage.snapshot(run)

    def look(name: str) -> None:
        assert damage.is_whole(run, before), name

    assert len(damage.at_every_file(lambda: recount(run, threshold=0.9), look)) > 5
    assert damage.hidden(run) == []


@pytest.mark.parametrize("stage", ["points.parquet", "thresholds.csv", "report.html", "napari.csv"])
def test_a_full_disk_never_looks_complete(
    tmp_path: Path, asked: DetectRequest, stage: str, damage: Any
) -> None:
    replaced = os.replace

    def full(source: str | Path, target: str | Path) -> None:
        if Path(target).name == stage:
            raise OSError(28, "No space left on device")
        replaced(source, target)

    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(DataError, match=r"No space left.*finished blocks and the registration are kept"),
    ):
        patch.setattr(os, "replace", full)
        detect_brain(replace(asked, out=tmp_path / "run"))
    assert RunRecord.load(tmp_path / "run").status == "running"
    assert not (tmp_path / "run" / "points.parquet").exists()
    assert detect_brain(replace(asked, out=tmp_path / "run")).status == "complete"
    assert damage.hidden(tmp_path / "run") == []


def test_an_interrupted_replacement_goes_on_and_says_so(run: Path, asked: DetectRequest) -> None:
    request = replace(asked, out=run, threshold=0.9, overwrite=True)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt, match="finished blocks"):
        patch.setattr(module, "write_points", interrupt)
        detect_brain(request)
    blocks = {
        path.name: path.stat().st_mtime_ns for path in (run / ".replacement" / "blocks").glob("*.parquet")
    }
    assert blocks
    with pytest.raises(UsageError, match="threshold was"):
        detect_brain(replace(request, overwrite=False))
    # The old one is still a run like any other.
    assert detect_brain(replace(asked, out=run)).status == "complete"
    detect_brain(request)
    assert {p.name: p.stat().st_mtime_ns for p in (run / "blocks").glob("*.parquet")} == blocks


def test_missing_blocks_do_not_replace_a_complete_run(run: Path, asked: DetectRequest, damage: Any) -> None:
    from brainmap.errors import IncompleteRunError
    from brainmap.infer.engine import batch

    process_block = batch.process.process_block

    def fail(job: Any, block: Any, *more: Any) -> Any:
        if block.index == 0:
            raise MemoryError
        return process_block(job, block, *more)

    before = damage.snapshot(run)
    request = replace(asked, out=run, threshold=0.9, overwrite=True)
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(IncompleteRunError, match="keeps its complete run") as e,
    ):
        patch.setattr(batch.process, "process_block", fail)
        detect_brain(request)
    assert "out of memory: use fewer --workers or a smaller --block" in str(e.value)
    assert damage.snapshot(run) == before
    assert detect_brain(request).status == "complete"


def lost(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def empty(path: Path) -> None:
    lost(path)
    path.touch()


def garbage(path: Path) -> None:
    lost(path)
    path.write_bytes(b"\x93nothing {of] a file\xff" * 9)


def truncated(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def folder(path: Path) -> None:
    lost(path)
    path.mkdir()
    (path / "inside").touch()


DAMAGES = (lost, empty, garbage, truncated, folder)
FILES = (
    "run.json", "points.parquet", "thresholds.csv", "report.html", "exports/napari.csv", "blocks/plan.json",
    "blocks/intensity.npz", "blocks/*.parquet",
)  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("break_", DAMAGES)
def test_every_damaged_file_has_a_way_on(
    run: Path, asked: DetectRequest, name: str, break_: Callable[[Path], None], damage: Any
) -> None:
    """The same command mends it, or says in a sentence that --overwrite does; and that does."""
    whole = rows(run)
    break_(next(run.glob(name)))
    request = replace(asked, out=run)
    refusal = None
    try:
        detect_brain(request)
    except BrainmapError as error:
        refusal = str(error)
    if refusal is not None:
        assert "--overwrite" in refusal
        detect_brain(replace(request, overwrite=True))
    np.testing.assert_array_equal(rows(run), whole)
    assert RunRecord.load(run).status == "complete"
    assert damage.hidden(run) == []


def test_what_a_killed_first_write_leaves_is_no_obstacle(
    tmp_path: Path, asked: DetectRequest, damage: Any
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".tmp-01234567-run.json").write_text("{")
    assert detect_brain(replace(asked, out=tmp_path / "run")).status == "complete"
    assert damage.hidden(tmp_path / "run") == []


def test_a_run_at_work_is_left_alone(run: Path, asked: DetectRequest, damage: Any) -> None:
    from brainmap.lock import held

    before = damage.snapshot(run)
    with held(run, "x"):
        for request in (replace(asked, out=run), replace(asked, out=run, threshold=0.9, overwrite=True)):
            with pytest.raises(UsageError, match="is in use by"):
                detect_brain(request)
        with pytest.raises(UsageError, match="is in use by"):
            recount(run, threshold=0.9)
    assert damage.snapshot(run) == before


def moved(brain: Path, run: Path, target: Path) -> tuple[Path, Path]:
    target.mkdir()
    shutil.copytree(brain, target / brain.name)
    shutil.copytree(run, target / "runs" / "mine")
    return target / brain.name, target / "runs" / "mine"


def test_a_run_and_its_brain_moved_together(
    run: Path, asked: DetectRequest, brain: Path, tmp_path: Path
) -> None:
    first = tmp_path / "first"
    here, out = moved(brain, run, first)
    shutil.rmtree(out)
    detect_brain(replace(asked, brain=str(here), out=out))
    (first / "runs" / "mine").rename(tmp_path / "kept")
    (tmp_path / "kept").rename(out)
    first.rename(tmp_path / "second")
    here, out = tmp_path / "second" / brain.name, tmp_path / "second" / "runs" / "mine"
    assert brain_of_run(out).url == str(here)
    assert recount(out, threshold=0.9).cells == len(rows(out)) > 0
    blocks = {path: path.stat().st_mtime_ns for path in (out / "blocks").glob("*.parquet")}
    detect_brain(replace(asked, brain=str(here), out=out))
    assert {path: path.stat().st_mtime_ns for path in blocks} == blocks
    assert RunRecord.load(out).parameters["brain"] == str(here)


def test_a_brain_elsewhere_is_given(run: Path, brain: Path, tmp_path: Path) -> None:
    shutil.copytree(brain, tmp_path / "disk" / "other_name.zarr")
    record = RunRecord.load(run)
    record.updated(parameters=record.parameters | {"brain": "/gone/brain.ome.zarr"}, execution={}).save(run)
    with pytest.raises(NotFoundError, match=r"not at /gone/brain\.ome\.zarr any more: say with --brain"):
        brain_of_run(run)
    assert brain_of_run(run, tmp_path / "disk" / "other_name.zarr").shape == SHAPE
    write_volume(tmp_path / "wrong.zarr", cells_image(1), VOXEL_UM, chunks=(8, 48, 48))
    with pytest.raises(UsageError, match="is not the image"):
        brain_of_run(run, tmp_path / "wrong.zarr")


def test_a_chunk_changed_between_stop_and_resume_is_noticed(
    asked: DetectRequest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    brain, out = tmp_path / "brain.zarr", tmp_path / "run"
    write_volume(brain, cells_image(), VOXEL_UM, chunks=(8, 48, 48))
    request = replace(asked, brain=str(brain), out=out)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "write_points", interrupt)
        detect_brain(request)
    # As large as before, and far from where fingerprints look: only its time has changed.
    chunk = brain / "0" / "c" / "1" / "1" / "1"
    os.utime(chunk, ns=(1, 1))
    before = {path.name: path.stat().st_mtime_ns for path in (out / "blocks").glob("*.parquet")}
    detect_brain(request)
    assert "the image has changed since where" in caplog.text
    after = {path.name: path.stat().st_mtime_ns for path in (out / "blocks").glob("*.parquet")}
    assert before != after
    caplog.clear()
    detect_brain(request)
    assert "changed" not in caplog.text


@pytest.mark.parametrize("levels", [1, None])
def test_missing_chunks_are_told(
    asked: DetectRequest, tmp_path: Path, levels: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    brain = tmp_path / "brain.zarr"
    big = np.tile(cells_image(), (2, 2, 2))
    write_volume(brain, big, VOXEL_UM, chunks=(8, 32, 32), levels=levels)
    chunks = sorted(path for path in (brain / "0" / "c").rglob("*") if path.is_file())
    for chunk in chunks[1::2]:
        chunk.unlink()
    request = replace(asked, brain=str(brain), out=tmp_path / "run", block=(16, 96, 96))
    summary = detect_brain(request)
    share = RunRecord.load(tmp_path / "run").results["unstored_tissue"]
    assert 0.35 < share < 0.65
    assert any("is the copy of the image complete?" in warning for warning in summary.warnings)
    assert "is the copy of the image complete?" in caplog.text
    assert "INCOMPLETE IMAGE" in str(summary).splitlines()[-1]
    assert Volume.open(brain).shape == big.shape


def test_a_whole_image_has_no_missing_tissue(finished: Path) -> None:
    assert RunRecord.load(finished).results["unstored_tissue"] == 0
    (first, *_) = finished.glob("blocks/*.parquet")
    assert Points.read(first).meta["unstored"] == []
