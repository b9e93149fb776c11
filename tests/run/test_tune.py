"""`brainmap tune`: from marks in a run to a detector for the animals to come; nonsense is refused."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brainmap.cli.main import app
from brainmap.errors import DataError, NotFoundError, UsageError
from brainmap.files import read_json
from brainmap.infer.block.process import COLUMNS
from brainmap.infer.detector import Detector
from brainmap.infer.engine import results
from brainmap.points.recalibration import logit
from brainmap.points.table import Points
from brainmap.run.cells import ImageFrame
from brainmap.run.marks import match_marks, read_marks
from brainmap.run.tune import tune_run
from brainmap.run_folder import POINTS_PARQUET, RunRecord

SHAPE, VOXEL_UM = (400, 800, 800), (5.0, 2.0, 2.0)
PRESENT = 0.5
FRAME = ImageFrame(SHAPE, VOXEL_UM, (0.0, 0.0, 0.0))
Truth = tuple[np.ndarray, np.ndarray, np.ndarray]


def write_run(folder: Path, shift: float, parameters: dict[str, Any] | None = None) -> Truth:
    """A run whose scores are too high by `shift` in log odds: places, scores and truth of its candidates."""
    rng = np.random.default_rng(3)
    n = 8000
    # On a lattice 20 um apart: every mark has one candidate.
    place = (
        np.stack(np.unravel_index(rng.permutation(100 * 80 * 80)[:n], (100, 80, 80)), axis=1) * [4, 10, 10]
        + 1.0
    )
    score = np.clip(rng.uniform(0.05, 0.995, n), 0.05, 0.995).astype(np.float32)
    truth = rng.random(n) < 1 / (1 + np.exp(-(logit(score) - shift)))
    results.open_plan(folder, {"threshold": PRESENT, "candidate_score": 0.05})
    columns: dict[str, Any] = dict(zip("zyx", place.T, strict=True)) | {"score": score}
    columns |= {name: np.ones(n) for name in COLUMNS if name not in columns}
    columns = {name: columns[name].astype(kind) for name, kind in COLUMNS.items()}
    results.write_batch(
        folder, (0, 1), columns | {"block": np.zeros(n, np.int64)}, int((score >= PRESENT).sum())
    )
    meta = {"shape": SHAPE, "voxel_um": VOXEL_UM, "origin_um": (0.0, 0.0, 0.0), "brain": "gone.zarr"}
    Points.empty(meta=meta).write(folder / POINTS_PARQUET)
    record = RunRecord(
        status="complete",
        parameters={"brain": "gone.zarr", "detector": "default"} | (parameters or {}),
        fingerprints={"detector": Detector.open().fingerprint},
        results={"threshold": PRESENT, "cell_diameter_um": 10.0},
    )
    record.save(folder)
    return place, score, truth


def write_marks(path: Path, places: np.ndarray, words: list[str], **more: list[str]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["z", "y", "x", "mark", *more])
        writer.writerows(
            [*place, word, *rest] for place, word, *rest in zip(places, words, *more.values(), strict=True)
        )
    return path


def marks_of(truth: Truth, share: float, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """What a person marks who goes through a share of the image."""
    place, score, is_cell = truth
    shown = score >= PRESENT
    seen = np.random.default_rng(seed).random(len(score)) < share
    marked = np.flatnonzero(seen & (shown | is_cell))
    words = np.where(~shown, "missed", np.where(is_cell, "yes", "no"))[marked]
    return place[marked], words.tolist()


@pytest.fixture
def shifted(tmp_path: Path) -> tuple[Path, Truth]:
    return tmp_path / "run", write_run(tmp_path / "run", 2.0)


def f1_at(truth: Truth, threshold: float) -> float:
    _, score, is_cell = truth
    shown = score >= threshold
    return float(2 * is_cell[shown].sum() / (shown.sum() + is_cell.sum()))


def test_a_detector_that_scores_too_high_gets_a_higher_threshold(
    shifted: tuple[Path, Truth], tmp_path: Path
) -> None:
    run, truth = shifted
    write_marks(run / "marks.csv", *marks_of(truth, 0.03))
    found = tune_run(run)
    assert found.detector == run / "tuned_detector"
    assert found.new is not None
    assert found.present is not None
    best = max(f1_at(truth, t) for t in np.arange(0.05, 1, 0.01))
    assert f1_at(truth, found.new.threshold) > best - 0.02 > f1_at(truth, PRESENT) + 0.02
    for estimate in (found.present, found.new):
        assert estimate.f1.low <= f1_at(truth, estimate.threshold) <= estimate.f1.high
    old, new = Detector.open("default"), Detector.open(found.detector)
    assert new.fingerprint != old.fingerprint
    assert new.spec.onnx_sha256 == old.spec.onnx_sha256
    assert new.spec.version == f"{old.spec.version}-tuned"
    assert (found.detector / "weights.pt").is_file(), "what retraining starts from"
    # The new threshold means the same peaks, and its score is a probability: a third of what scored 0.75 are cells.
    levels = np.linspace(-5, 2.7, 4001)
    before, after = (
        old.spec.score(levels) >= found.new.threshold,
        new.spec.score(levels) >= new.spec.threshold,
    )
    assert (before != after).sum() <= 1
    at = old.spec.logit_at(0.75)
    assert new.spec.score(np.array(at)) == pytest.approx(
        1 / (1 + np.exp(-(logit(np.array(0.75)) - 2))), abs=0.12
    )
    record = new.spec.training["tune"][-1]
    assert record["marks"]["yes"] + record["marks"]["no"] + record["marks"]["missed"] == found.marks[
        "yes"
    ] + (found.marks["no"] + found.marks["missed"])
    assert "**Tuned**" in (found.detector / "card.md").read_text()
    with pytest.raises(UsageError, match="--overwrite"):
        tune_run(run)
    assert tune_run(run, overwrite=True).detector == found.detector
    with pytest.raises(UsageError, match="exists"):
        tune_run(run, out=tmp_path, overwrite=True)


def test_a_detector_tuned_twice_remembers_both(shifted: tuple[Path, Truth], tmp_path: Path) -> None:
    run, truth = shifted
    write_marks(run / "marks.csv", *marks_of(truth, 0.03))
    first = tune_run(run, out=tmp_path / "first").detector
    assert first is not None
    second = write_run(tmp_path / "second", 2.0, {"detector": str(first)})
    record = RunRecord.load(tmp_path / "second")
    record.updated(fingerprints={"detector": Detector.open(first).fingerprint}).save(tmp_path / "second")
    write_marks(tmp_path / "second" / "marks.csv", *marks_of(second, 0.03))
    again = tune_run(tmp_path / "second").detector
    assert again is not None
    assert len(Detector.open(again).spec.training["tune"]) == 2
    assert Detector.open(again).spec.version.count("tuned") == 1


def test_a_detector_that_is_right_is_left_alone(tmp_path: Path) -> None:
    truth = write_run(tmp_path, 0.0)
    best = max(np.arange(0.05, 1, 0.01).round(2), key=lambda threshold: f1_at(truth, threshold))
    record = RunRecord.load(tmp_path)
    record.updated(results=record.results | {"threshold": float(best)}).save(tmp_path)
    write_marks(tmp_path / "marks.csv", *marks_of(truth, 0.02))
    found = tune_run(tmp_path)
    assert found.detector is None
    assert found.present is not None
    assert "best by these marks" in found.reason or "do not support a change" in found.reason
    assert not (tmp_path / "tuned_detector").exists()
    assert any(name == "no change" for name, _ in found.lines())


def test_too_few_marks_say_so(shifted: tuple[Path, Truth]) -> None:
    run, truth = shifted
    places, words = marks_of(truth, 0.03)
    first = [words.index("no"), words.index("yes")]
    write_marks(run / "marks.csv", places[first], [words[i] for i in first])
    assert "too few" in tune_run(run).reason
    yes = [i for i, word in enumerate(words) if word == "yes"][:40]
    chosen = [*yes, first[0]]
    write_marks(run / "marks.csv", places[chosen], [words[i] for i in chosen])
    found = tune_run(run)
    assert "5 of each are the least" in found.reason
    assert found.detector is None


def test_hard_and_unsure_marks_and_old_ones_do_not_count(shifted: tuple[Path, Truth]) -> None:
    run, truth = shifted
    place = truth[0]
    path = write_marks(
        run / "m.csv", place[[0, 1, 2, 3, 0]], ["yes", "no", "unsure", "no", "no"],
        sample=["random", "hard", "random", "", "free"], who=["a"] * 5,
    )  # fmt: skip
    found = read_marks(path, FRAME)
    assert (found.unsure, found.hard) == (1, 1)
    assert found.word.tolist() == ["no", "no"], "the later mark of the first place counts"
    np.testing.assert_array_equal(found.zyx_vox, place[[3, 0]])


def test_marks_are_matched_to_the_nearest_candidate_within_half_a_cell(shifted: tuple[Path, Truth]) -> None:
    run, (place, score, _) = shifted
    low, high = np.flatnonzero(score < PRESENT)[:2], np.flatnonzero(score >= PRESENT)[:4]
    at = np.concatenate([
        place[high[:1]] + [0.9, 0, 0], place[high[1:2]] + [0, 2.4, 0], place[high[2:3]] + [0, 2.6, 0],
        place[low[:1]], place[low[1:]] + [0, 0, 3.0], place[high[3:]], place[high[3:]] + [0.2, 0, 0],
    ])  # fmt: skip
    words = ["yes", "no", "no", "missed", "missed", "missed", "yes"]
    marks = read_marks(write_marks(run / "m.csv", at, words), FRAME)
    marked, lost = match_marks(run, marks, FRAME, None, 5.0, PRESENT)
    # What is called missed but is shown is a cell; two marks at one candidate: one of them has none.
    np.testing.assert_allclose(np.sort(marked.score), np.sort(score[[high[0], high[1], high[3]]]))
    assert marked.is_cell.sum() == 2
    assert marked.missed_score.tolist() == [score[low[0]]]
    assert (marked.never_found, lost) == (2, 1)


def test_marks_outside_what_was_analysed_are_left_out(tmp_path: Path) -> None:
    truth = write_run(tmp_path, 2.0, {"roi": {"z": [0, 400], "y": [0, 800], "x": [0, 400]}})
    places, words = marks_of(truth, 0.03)
    write_marks(tmp_path / "marks.csv", places, words)
    found = tune_run(tmp_path)
    assert found.marks["outside what was analysed, left out"] == (places[:, 2] >= 399.5).sum() > 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("z,y,x\n1,1,1\n", "lacks the column mark"),
        ("y,x,mark\n1,1,yes\n", "lacks the column z"),
        ("z,y,x,mark\n1,1,1,maybe\n", "'maybe' in row 1 is no mark"),
        ("z,y,x,mark,sample\n1,1,1,yes,odd\n", "'odd' in row 1 is no sample"),
        ("z,y,x,mark\n1,1,1,yes\n1,1,900,no\n", "row 2 at z,y,x 1, 1, 900 lies outside the image"),
        ("z,y,x,mark\n-3,1,1,yes\n", "outside the image"),
        ("z,y,x,mark\n1,1,1,yes\n", "no mark 'no'"),
        ("z,y,x,mark\n1,1,1,no\n", "no mark 'yes'"),
        ("z,y,x,mark\n", "no mark 'no'"),
        ("z,y,x,mark\n1,nan,1,no\n", "no finite number"),
        ("z,y,x,mark\n3,3,3,yes\n3,3,13,yes\n3,3,23,no\n", "lie at no candidate of this run"),
        ("", "is empty"),
    ],
)
def test_nonsense_is_refused_in_a_sentence(shifted: tuple[Path, Truth], text: str, words: str) -> None:
    run, _ = shifted
    (run / "marks.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        tune_run(run)


def test_what_is_not_there_is_said(shifted: tuple[Path, Truth], tmp_path: Path) -> None:
    run, truth = shifted
    with pytest.raises(NotFoundError, match="there are no marks"):
        tune_run(run)
    write_marks(run / "marks.csv", *marks_of(truth, 0.01))
    record = RunRecord.load(run)
    record.updated(fingerprints={"detector": "another"}).save(run)
    with pytest.raises(UsageError, match="is not the one that"):
        tune_run(run)
    record.updated(status="running").save(run)
    with pytest.raises(UsageError, match="not finished"):
        tune_run(run)
    shutil.rmtree(run / "blocks")
    record.save(run)
    with pytest.raises(NotFoundError, match="holds no detection"):
        tune_run(run)


def test_the_command_prints_and_exits_well(
    shifted: tuple[Path, Truth], run_command: Callable[..., Any], tmp_path: Path
) -> None:
    run, truth = shifted
    path = write_marks(tmp_path / "m.csv", *marks_of(truth, 0.03))
    done = run_command("tune", run, "--marks", path, "--out", tmp_path / "det", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["detector"] == str(tmp_path / "det")
    assert found["new"]["f1"]["low"] < found["new"]["f1"]["value"] < found["new"]["f1"]["high"]
    assert read_json(tmp_path / "det" / "detector.json")["threshold"] == found["detector_threshold"]
    few = write_marks(tmp_path / "few.csv", truth[0][:2], ["yes", "no"])
    done = run_command("tune", run, "--marks", few)
    assert done.exit_code == 0
    assert "no change" in done.stdout
    path.write_text("z,y,x,mark\n1,1,1,perhaps\n")
    assert run_command("tune", run, "--marks", path).exit_code == 1


@pytest.fixture
def run_command() -> Callable[..., Any]:
    from typer.testing import CliRunner

    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


def test_the_records_of_a_tuned_detector_can_be_read(shifted: tuple[Path, Truth]) -> None:
    run, truth = shifted
    write_marks(run / "marks.csv", *marks_of(truth, 0.03))
    found = tune_run(run)
    assert found.detector is not None
    spec = Detector.open(found.detector).spec
    assert dataclasses.replace(spec, training={}) == spec.__class__.from_dict(
        read_json(found.detector / "detector.json") | {"training": {}}
    )
