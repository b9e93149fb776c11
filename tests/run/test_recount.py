"""A run at another threshold from its own candidates: the same rows as a run at that threshold."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brainmap.atlas.atlas import Atlas
from brainmap.errors import NotFoundError, UsageError
from brainmap.files import read_json, write_json
from brainmap.image.volume import Volume, write_volume
from brainmap.infer.engine.results import stored_from
from brainmap.points.table import Points
from brainmap.registration.grid import SampleGrid
from brainmap.report.run_report import write_run_report
from brainmap.report.thresholds import ThresholdCounts
from brainmap.run import recount as module
from brainmap.run.detect import detect_brain
from brainmap.run.recount import recount
from brainmap.run.request import DetectRequest, Roi
from brainmap.run.threshold_counts import threshold_grid
from brainmap.run_folder import RunRecord
from brainmap.swap import finish_swap, staged

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import thresholds as bench

SHAPE, VOXEL_UM = (24, 160, 160), (5.0, 2.0, 2.0)
BOX = Roi((0, 20), (10, 150), (10, 150))
TABLES = ("points.parquet", "thresholds.csv", "exports/napari.csv")


@pytest.fixture(scope="module")
def brain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cells from bright to hardly visible, some of them on the first slice."""
    rng = np.random.default_rng(0)
    image = rng.normal(300, 10, SHAPE)
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    for row, column in [(r, c) for r in range(14, 150, 15) for c in range(14, 150, 15)]:
        distance = ((z - rng.integers(0, 24)) * 5.0) ** 2 + ((y - row) * 2.0) ** 2 + ((x - column) * 2.0) ** 2
        image += np.exp(rng.uniform(2.5, 6)) * 0.5 ** (distance / 4.5**2)
    path = tmp_path_factory.mktemp("brain") / "brain.ome.zarr"
    write_volume(path, image.astype(np.uint16), VOXEL_UM)
    return path


@pytest.fixture(scope="module")
def mask(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything but the last third along x."""
    image = np.ones((13, 33, 33), np.uint8)
    image[:, :, 22:] = 0
    path = tmp_path_factory.mktemp("mask") / "mask.ome.zarr"
    write_volume(path, image, (10.0, 10.0, 10.0))
    return path


@pytest.fixture(scope="module")
def request_of(brain: Path, mask: Path) -> DetectRequest:
    """A part of the brain, its first face included, inside a mask; in many blocks."""
    return DetectRequest(
        brain=str(brain), out=Path("unset"), atlas=None, roi=BOX, mask=mask, progress=False, block=(12, 160, 80),
        exports=("napari",),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def quick_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take longer than all the rest; one test draws them by itself."""

    def write(folder: Path, staged: Path | None = None, **_: object) -> None:
        ((staged or folder) / "report.html").write_text("report")

    monkeypatch.setattr("brainmap.report.run_report.write_run_report", write)


@pytest.fixture(scope="module")
def finished(request_of: DetectRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    detect_brain(replace(request_of, out=out))
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run under another path: a folder may be moved."""
    shutil.copytree(finished, tmp_path / "moved")
    return tmp_path / "moved"


@pytest.mark.parametrize("threshold", [0.05, 0.9])
def test_cells_at_another_threshold_are_those_of_a_run_at_it(
    run: Path, request_of: DetectRequest, tmp_path: Path, threshold: float
) -> None:
    before = len(Points.read(run / "points.parquet"))
    found = recount(run, threshold=threshold)
    detect_brain(replace(request_of, out=tmp_path / "other", threshold=threshold))
    mine, theirs = (Points.read(folder / "points.parquet") for folder in (run, tmp_path / "other"))
    assert found.cells == len(mine) > 0
    assert (len(mine) > before) == (threshold < 0.5)
    assert list(mine.columns) == list(theirs.columns)
    for name in mine.columns:
        np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)
    for name in TABLES[1:]:
        assert (run / name).read_bytes() == (tmp_path / "other" / name).read_bytes(), name
    record = RunRecord.load(run)
    assert record.results["threshold"] == threshold
    assert record.results["threshold_from"] == "brainmap regions --threshold"
    assert record.results["cells"] == len(mine)
    assert not list(run.glob(".*")), "nothing is left beside"


def test_regions_follow_the_threshold(
    run: Path, request_of: DetectRequest, write_atlas: Callable[..., Path], tmp_path: Path
) -> None:
    """With an atlas: all tables are those of a run at the threshold, with the image gone as well."""
    volume = Volume.open(request_of.brain)
    atlas = Atlas.open(str(write_atlas(resolution=(20.0, 20.0, 20.0))))
    bench.write_registration(
        tmp_path / "registration", atlas, SampleGrid.over(volume, "asr", atlas.resolution_um)
    )
    image = shutil.copytree(request_of.brain, tmp_path / "brain.ome.zarr")
    asked = replace(
        request_of, brain=str(image), registration=tmp_path / "registration", exports=("brainmapper",)
    )
    for name, threshold in (("own", None), ("other", 0.9)):
        detect_brain(replace(asked, out=tmp_path / name, threshold=threshold))
    shutil.rmtree(image)
    found = recount(tmp_path / "own", threshold=0.9)
    tables = ["regions.csv", "regions_summary.csv", "thresholds.csv"]
    tables += [
        str(path.relative_to(tmp_path / "other")) for path in (tmp_path / "other" / "exports").rglob("*.csv")
    ]
    assert len(tables) > 3
    for name in tables:
        assert (tmp_path / "own" / name).read_bytes() == (tmp_path / "other" / name).read_bytes(), name
    mine, theirs = (Points.read(tmp_path / name / "points.parquet") for name in ("own", "other"))
    for name in mine.columns:
        np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)
    assert len(np.unique(mine["region_id"])) > 2
    record = RunRecord.load(tmp_path / "own")
    assert record.results["outside_atlas"] == found.outside == int((mine["region_id"] == 0).sum())
    assert record.results["regions_agree"] == RunRecord.load(tmp_path / "other").results["regions_agree"]
    counts = ThresholdCounts.read(tmp_path / "own" / "thresholds.csv")
    at = int(np.flatnonzero(counts.thresholds == 0.9)[0])
    assert counts.counts[0, at] == found.cells
    assert counts.counts[counts.acronym.index("outside"), at] == found.outside
    assert counts.counts[counts.acronym.index("root"), at] == found.cells - found.outside


def test_there_and_back_is_the_run_as_it_was(run: Path) -> None:
    before = {name: (run / name).read_bytes() for name in TABLES}
    own = RunRecord.load(run).results["threshold"]
    recount(run, threshold=0.95)
    assert (run / "points.parquet").read_bytes() != before["points.parquet"]
    recount(run, threshold=own)
    assert {name: (run / name).read_bytes() for name in TABLES} == before


def test_the_run_command_takes_the_run_back_to_its_own_threshold(
    finished: Path, request_of: DetectRequest, caplog: pytest.LogCaptureFixture
) -> None:
    before = (finished / "points.parquet").read_bytes()
    recount(finished, threshold=0.95)
    detect_brain(replace(request_of, out=finished))
    assert (finished / "points.parquet").read_bytes() == before
    assert RunRecord.load(finished).results["threshold_from"] == "the detector"
    assert "it goes back to" in caplog.text


def test_detect_with_another_threshold_names_the_quick_way(finished: Path, request_of: DetectRequest) -> None:
    with pytest.raises(UsageError, match=r"brainmap regions .*run --threshold 0\.9 counts it anew"):
        detect_brain(replace(request_of, out=finished, threshold=0.9))
    # Not where it would not help: something else differs too, or such weak candidates are not there.
    for changes in ({"threshold": 0.9, "cell_diameter_um": 12.0}, {"threshold": 0.001}):
        with pytest.raises(UsageError) as error:
            detect_brain(replace(request_of, out=finished, **changes))  # type: ignore[arg-type]
        assert "threshold was" in str(error.value)
        assert "brainmap regions" not in str(error.value)


def test_what_is_not_there_is_refused_and_the_run_left_alone(run: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert stored_from(run) == 0.05
    for threshold, words in ((0.04, "candidates from a score of 0.05 on"), (1.5, "between 0 and 1")):
        with pytest.raises(UsageError, match=words):
            recount(run, threshold=threshold)
    with pytest.raises(UsageError, match="made without an atlas"):
        recount(run, threshold=0.9, level="leaf")
    with pytest.raises(NotFoundError):
        recount(tmp_path / "nowhere", threshold=0.9)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    record = RunRecord.load(run)
    record.updated(status="running").save(run)
    with pytest.raises(UsageError, match="not finished"):
        recount(run, threshold=0.9)


def test_a_run_of_an_older_version_keeps_its_cells_only(run: Path) -> None:
    plan = read_json(run / "blocks" / "plan.json")
    del plan["candidate_score"]
    write_json(run / "blocks" / "plan.json", plan)
    with pytest.raises(UsageError, match=f"from a score of {plan['threshold']:g} on"):
        recount(run, threshold=0.3)
    assert recount(run, threshold=0.9).cells > 0


def test_a_mask_that_is_another_one_now_is_refused(run: Path, mask: Path, tmp_path: Path) -> None:
    record = RunRecord.load(run)
    record.updated(fingerprints=record.fingerprints | {"mask": "of yesterday"}).save(run)
    with pytest.raises(UsageError, match=r"the mask .* is not the one of the run"):
        recount(run, threshold=0.9)


def test_a_failure_leaves_the_run_as_it_was(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_pages", fail)
    with pytest.raises(OSError, match="No space"):
        recount(run, threshold=0.9)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_swap_that_was_cut_short_is_finished_by_the_next_command(tmp_path: Path) -> None:
    for name in ("run.json", "points.parquet", "exports/cells.csv", "exports/neuroglancer/info"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("old")
    (tmp_path / "exports" / "mine.txt").write_text("mine")
    (tmp_path / ".new-dead").mkdir()
    with staged(tmp_path, "run.json", ["exports"]) as new:
        for name in ("run.json", "points.parquet", "exports/cells.csv", "exports/neuroglancer/info"):
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).write_text("new")
        ready = tmp_path / "copy"
        shutil.copytree(new, ready)
    assert not list(tmp_path.glob(".*"))
    assert (tmp_path / "exports" / "mine.txt").read_text() == "mine"
    # Killed between two files: what is left in the folder is moved, the record last.
    ready.rename(tmp_path / ".swap")
    write_json(tmp_path / ".swap" / ".order.json", {"last": "run.json", "shared": ["exports"], "gone": []})
    (tmp_path / ".swap" / "points.parquet").unlink()
    (tmp_path / "run.json").write_text("old")
    finish_swap(tmp_path)
    for name in ("run.json", "points.parquet", "exports/cells.csv", "exports/neuroglancer/info"):
        assert (tmp_path / name).read_text() == "new", name
    assert not list(tmp_path.glob(".*"))


def test_counts_over_the_threshold_are_those_of_runs_at_each(run: Path) -> None:
    counts = ThresholdCounts.read(run / "thresholds.csv")
    assert counts.acronym == ("all",)
    assert counts.thresholds.tolist() == list(threshold_grid(0.05))
    for i in (0, 9, 18):
        assert recount(run, threshold=float(counts.thresholds[i])).cells == counts.counts[0, i]


def test_the_report_shows_the_threshold_in_force(run: Path) -> None:
    recount(run, threshold=0.9)
    write_run_report(run)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Counts over the threshold" in page
    assert "Cells at several thresholds" in page


def test_a_detector_that_scores_nothing_low_keeps_a_finite_number(finished: Path) -> None:
    plan = json.loads((finished / "blocks" / "plan.json").read_text())
    assert plan["candidate_score"] == 0.05
    assert threshold_grid(0.06)[:3] == (0.06, 0.1, 0.15)
