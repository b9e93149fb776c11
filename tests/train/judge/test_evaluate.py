"""An evaluation of hand-made detections, its files, and what it refuses."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from brainmap.errors import DataError, UsageError  # noqa: E402
from brainmap.gt.truth import GroundTruth  # noqa: E402
from brainmap.infer.detector import Detector  # noqa: E402
from brainmap.tiles.tiles import Tiles, write_tiles  # noqa: E402
from brainmap.train.judge.evaluate import Evaluation, EvaluationSettings, evaluate_points, evaluate_tiles  # noqa: E402
from brainmap.train.judge.evaluate_report import write_evaluation  # noqa: E402
from brainmap.train.judge.predict import TilePoints  # noqa: E402

SHAPES = {"a": (64, 80), "b": (64, 80), "c": (64, 80)}
# Right, right but 4 px off, false; the third tile holds nothing.
FOUND = [
    ("a", 10.0, 10.0, 0.9), ("a", 34.0, 10.0, 0.8), ("a", 60.0, 50.0, 0.7), ("b", 20.0, 21.0, 0.6),
    ("b", 70.0, 5.0, 0.02),
]  # fmt: skip
TRUE = [("a", 10.0, 10.0, 1.0), ("a", 30.0, 10.0, 0.4), ("b", 20.0, 20.0, 0.75), ("b", 50.0, 50.0, 0.15)]


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Tiles:
    rng = np.random.default_rng(0)
    images = [rng.uniform(0.2, 0.5, shape).astype(np.float32) for shape in SHAPES.values()]
    columns = {"image_id": list(SHAPES), "brain": ["m"] * 3, "z": [0, 1, 1], "voxel_um": [(4, 2, 2)] * 3}
    return write_tiles(tmp_path_factory.mktemp("tiles") / "t", columns, images)


def _truth(rows: list[tuple[str, float, float, float]], shapes: dict[str, tuple[int, int]]) -> GroundTruth:
    names, x, y, sure = zip(*rows, strict=True)
    return GroundTruth.from_points(names, np.column_stack([x, y]), shapes, confidence=sure)


def _found(rows: list[tuple[str, float, float, float]]) -> TilePoints:
    names, x, y, score = (np.array(v) for v in zip(*rows, strict=True))
    logit = np.log(score / (1 - score)).astype(np.float32)
    return TilePoints(np.array([list(SHAPES).index(n) for n in names]), x, y, logit, score)


@pytest.fixture
def evaluation(tiles: Tiles) -> Evaluation:
    return evaluate_points(_found(FOUND), tiles, _truth(TRUE, SHAPES), threshold=0.65, name="hand")


def test_numbers_by_hand(evaluation: Evaluation) -> None:
    record = evaluation.record
    # On tile b 0.15 is below 0.3 x 0.75: three true points remain.
    assert (record["true_points"], record["detections"], record["tiles"], record["slices"]) == (3, 5, 3, 2)
    five, three = record["tolerances"]["5"], record["tolerances"]["3"]
    assert five["auprc"] == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert three["auprc"] == pytest.approx((1 + 2 / 4) / 3)
    assert five["best"]["threshold"] == 0.6
    assert (five["best"]["tp"], five["best"]["fp"], five["best"]["fn"]) == (3, 1, 0)
    assert five["best"]["f1"] == pytest.approx(6 / 7)
    assert five["best"]["false_positives_per_tile"] == pytest.approx(1 / 3)
    own = five["at_threshold"]
    assert (own["tp"], own["fp"], own["fn"]) == (2, 1, 1)
    assert five["froc"]["recall_at_false_positives"][0] == 1.0
    assert five["froc"]["false_positives_at_recall"] == pytest.approx([0, 0, 1 / 3, 1 / 3, 1 / 3])
    place = five["localisation"]
    assert (place["n"], place["median_px"], place["shift_x_px"]) == (2, 2.0, 2.0)
    assert evaluation.auprc() == five["auprc"] and evaluation.best(3.0)["tp"] == 2


def test_confidence_calibration_grid_and_maxima(evaluation: Evaluation) -> None:
    record = evaluation.record
    pairs = record["confidence"]
    assert pairs["n"] == 3 and pairs["spearman"] == pytest.approx(0.5)
    assert pairs["ece"] == pytest.approx((0.1 + 0.4 + 0.15) / 3)
    assert pairs["brier"] == pytest.approx((0.01 + 0.16 + 0.0225) / 3)
    assert [row["recall"] for row in pairs["recall_by_confidence"] if row["n"]] == [1, 0, 1]
    every, shown, own = record["calibration"]
    assert (every["n"], shown["n"], own["n"]) == (5, 4, 3)
    assert every["ece"] == pytest.approx((0.1 + 0.2 + 0.7 + 0.4 + 0.02) / 5)
    assert record["tile_maxima"]["values"] == [0.9, 0.6, 0.0] and record["tile_maxima"]["median"] == 0.6
    grid = record["grid"]
    assert np.shape(grid["f1"]) == (19, 19)
    # From 0.5 on two true points count: 0.9 and 0.6 are right, 0.8 and 0.7 false.
    row = grid["f1"][grid["theta_gt"].index(0.5)]
    assert row[grid["theta"].index(0.5)] == pytest.approx(2 * 2 / (4 + 2))
    assert row[grid["theta"].index(0.85)] == pytest.approx(2 * 1 / (1 + 2))
    # From 0.05 on there are four, the one below the relative threshold included.
    assert grid["best"][0]["true_points"] == 4
    assert grid["optimum"]["f1"] == max(max(row) for row in grid["f1"])
    assert [(r["tp"], r["fp"], r["fn"]) for r in record["per_tile"]] == [(2, 1, 0), (0, 0, 1), (0, 0, 0)]


def test_micro_average_over_experts(tiles: Tiles) -> None:
    first = _truth(TRUE[:2], {"a": SHAPES["a"]})
    second = _truth([("a", 60.0, 50.0, 1.0)], {name: SHAPES[name] for name in ("a", "b")})
    both = evaluate_points(_found(FOUND[:3]), tiles, {"one": first, "two": second})
    assert both.record["pairs"] == 3 and both.record["experts"] == ["one", "two"]
    lowest = both.record["tolerances"]["5"]["curve"]
    assert lowest["threshold"][0] == 0.7
    assert lowest["precision"][0] == pytest.approx(3 / 6)
    assert lowest["recall"][0] == pytest.approx(1)
    assert both.record["tolerances"]["5"]["at_threshold"] is None


def test_every_pixel_counts(tiles: Tiles, evaluation: Evaluation) -> None:
    noise = [("c", float(x), 30.0, 0.95) for x in range(5, 75, 10)]
    worse = evaluate_points(_found(FOUND + noise), tiles, _truth(TRUE, SHAPES))
    assert worse.auprc() < evaluation.auprc() - 0.3


def test_study_rule(tiles: Tiles) -> None:
    # One pair 0.1 px apart and two points alone, or two pairs 4.8 px apart: shorter in total.
    rows = [("a", 20.1, 10.0, 0.9), ("a", 15.2, 10.0, 0.8)]
    true = [("a", 20.0, 10.0, 1.0), ("a", 24.9, 10.0, 1.0)]
    settings = {r: EvaluationSettings(rule=r) for r in ("inside", "after")}  # type: ignore[arg-type]
    tp = {
        rule: evaluate_points(_found(rows), tiles, _truth(true, SHAPES), settings=s).curves[5.0].tp[0]
        for rule, s in settings.items()
    }
    assert tp == {"inside": 1, "after": 2}


def test_tiles_without_truth_are_left_out(tiles: Tiles, caplog: pytest.LogCaptureFixture) -> None:
    detector = Detector.open("default")
    truth = _truth(TRUE, {name: SHAPES[name] for name in ("a", "b")})
    with caplog.at_level(logging.WARNING):
        result = evaluate_tiles(detector, tiles, truth)
    assert result.tiles.ids.tolist() == ["a", "b"] and "1 of 3 tiles" in caplog.text
    assert result.threshold == detector.spec.threshold and result.name.startswith("default")
    with pytest.raises(DataError, match="none of the 3 tiles"):
        evaluate_tiles(detector, tiles, GroundTruth.from_points([], np.zeros((0, 2)), {"x": (9, 9)}))


def test_nothing_found(tiles: Tiles, tmp_path: Path) -> None:
    nothing = _found(FOUND).take(np.zeros(5, bool))
    result = evaluate_points(nothing, tiles, _truth(TRUE, SHAPES))
    assert result.auprc() == 0 and result.best()["f1"] == 0 and result.best()["fn"] == 3
    assert result.record["calibration"][0]["ece"] is None
    write_evaluation(tmp_path, result)


def test_files(tiles: Tiles, evaluation: Evaluation, tmp_path: Path) -> None:
    other = evaluate_points(_found(FOUND[:3]), tiles, _truth(TRUE, SHAPES), name="<other>")
    report = write_evaluation(tmp_path / "both", [evaluation, other])
    content = json.loads((tmp_path / "both" / "evaluation.json").read_text())
    assert [d["name"] for d in content["detectors"]] == ["hand", "<other>"]
    assert content["detectors"][0] == json.loads(json.dumps(evaluation.record))
    page = report.read_text()
    assert "&lt;other&gt;" in page and "<other>" not in page
    assert page.count("<img") == 7 and "http://" not in page.split("<body")[1].replace(
        "http://www.w3.org", ""
    )


def test_what_is_refused(tiles: Tiles, evaluation: Evaluation, tmp_path: Path) -> None:
    for wrong in ({"main_px": 4.0}, {"tolerances_px": ()}, {"rule": "never"}, {"truth_points": "all"},
                  {"tolerances_px": (0.0, 5.0)}):  # fmt: skip
        with pytest.raises(UsageError):
            EvaluationSettings(**wrong)  # type: ignore[arg-type]
    part = tiles.take(np.array([0]))
    other = evaluate_points(_found(FOUND[:3]), part, _truth(TRUE, SHAPES))
    with pytest.raises(UsageError, match="same tiles"):
        write_evaluation(tmp_path, [evaluation, other])
    with pytest.raises(UsageError, match="not 0"):
        write_evaluation(tmp_path, [])
