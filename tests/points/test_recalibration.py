"""Recalibration by marks: known answers, limits, and intervals that hold the truth."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from brainmap.points.recalibration import (
    Marked,
    Prior,
    Recalibration,
    Spread,
    logit,
    thresholds_between,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import tune as bench

PRESENT = 0.5


def spread_of(score: np.ndarray, lowest: float = 0.05) -> Spread:
    spread = Spread.over(thresholds_between(lowest, PRESENT))
    for part in np.array_split(score, 3):
        spread.add(part)
    return spread


def no_marks() -> Marked:
    return Marked(np.empty(0), np.empty(0, bool), np.empty(0), 0)


@pytest.fixture
def calibrated() -> tuple[np.ndarray, np.ndarray]:
    """Scores that are probabilities: score and truth."""
    rng = np.random.default_rng(0)
    score = rng.uniform(0.05, 0.999, 20_000)
    return score, rng.random(len(score)) < score


def test_thresholds_hold_the_lowest_and_the_present_one() -> None:
    found = thresholds_between(0.05, 0.545)
    assert found[0] == 0.05
    assert 0.545 in found
    assert (np.diff(found) > 0).all()
    assert found[-1] == 0.99


def test_a_spread_counts_as_thresholds_do() -> None:
    score = np.array([0.05, 0.5, 0.4999, 0.06, 0.99, 0.9999], np.float32)
    spread = spread_of(score)
    at_least = np.cumsum(spread.count[::-1])[::-1]
    for threshold, count in zip(spread.thresholds, at_least, strict=True):
        assert count == (score >= np.float32(threshold)).sum()
    assert spread.logit_sum.sum() == pytest.approx(logit(score).sum())


def test_without_a_mark_the_score_is_believed(calibrated: tuple[np.ndarray, np.ndarray]) -> None:
    score, truth = calibrated
    found = Recalibration(spread_of(score), no_marks(), PRESENT, Prior(shift_sd=0.01, slope_sd=0.01))
    np.testing.assert_allclose(found.probability(np.array([0.1, 0.5, 0.9])), [0.1, 0.5, 0.9], atol=0.01)
    shown = score >= PRESENT
    estimate = found.estimate(PRESENT)
    assert estimate.precision.value == pytest.approx(truth[shown].mean(), abs=0.02)
    assert estimate.recall.value == pytest.approx(truth[shown].sum() / truth.sum(), abs=0.02)


def test_a_shift_is_found(calibrated: tuple[np.ndarray, np.ndarray]) -> None:
    score, _ = calibrated
    rng = np.random.default_rng(1)
    true = 1 / (1 + np.exp(-(-1.5 + 0.8 * logit(score))))
    truth = rng.random(len(score)) < true
    asked = rng.choice(len(score), 3000, replace=False)
    found = Recalibration(spread_of(score), Marked(score[asked], truth[asked], np.empty(0), 0), PRESENT)
    assert found.shift_and_slope == pytest.approx((-1.5, 0.8), abs=0.12)
    np.testing.assert_allclose(found.probability(score[:200]), true[:200], atol=0.05)
    assert found.best > 0.6
    assert found.gain(found.best).low > 0
    assert found.chance_of_gain(found.best) > 0.99


def test_a_few_marks_cannot_run_away(calibrated: tuple[np.ndarray, np.ndarray]) -> None:
    """Thirty marks that a score separates perfectly: the slope of plain Platt scaling would be infinite."""
    score, _ = calibrated
    asked = np.concatenate([np.linspace(0.5, 0.7, 15), np.linspace(0.8, 0.95, 15)])
    found = Recalibration(spread_of(score), Marked(asked, asked > 0.75, np.empty(0), 0), PRESENT)
    shift, slope = found.shift_and_slope
    assert 0.5 < slope < 2.5
    assert -4 < shift < 0
    p = found.probability(np.linspace(0.01, 0.99, 99))
    assert (np.diff(p) > 0).all()
    assert p[0] > 0
    assert p[-1] < 1


def test_missed_cells_without_candidate_lower_the_recall_at_any_threshold(
    calibrated: tuple[np.ndarray, np.ndarray],
) -> None:
    score, truth = calibrated
    rng = np.random.default_rng(2)
    shown = score >= PRESENT
    seen = rng.random(len(score)) < 0.02
    asked, missed = seen & shown, seen & ~shown & truth
    some = Recalibration(spread_of(score), Marked(score[asked], truth[asked], score[missed], 0), PRESENT)
    # One of three cells has no candidate.
    lost = int(0.02 * truth.sum() / 2)
    less = Recalibration(spread_of(score), Marked(score[asked], truth[asked], score[missed], lost), PRESENT)
    for threshold in (0.05, 0.5, 0.9):
        one, other = some.estimate(threshold), less.estimate(threshold)
        assert other.precision.value == pytest.approx(one.precision.value, abs=0.02)
        assert other.recall.value == pytest.approx(one.recall.value * 2 / 3, abs=0.05)
    # The weaker ones that nobody marked are known to be no cells: the curve stays where it was.
    np.testing.assert_allclose(some.probability(np.array([0.1, 0.3])), [0.1, 0.3], atol=0.06)


def test_that_nothing_was_missed_says_that_weak_candidates_are_no_cells() -> None:
    rng = np.random.default_rng(4)
    score = np.concatenate([rng.uniform(0.05, 0.5, 5000), rng.uniform(0.5, 0.999, 5000)])
    asked = np.flatnonzero((rng.random(10_000) < 0.01) & (score >= PRESENT))
    marks = (score[asked], rng.random(len(asked)) < 0.8, np.empty(0), 0)
    unknown, known = (
        Recalibration(spread_of(score), Marked(*marks, complete=c), PRESENT) for c in (False, True)
    )
    assert known.estimate(PRESENT).recall.value > unknown.estimate(PRESENT).recall.value + 0.02
    assert known.estimate(PRESENT).recall.low > unknown.estimate(PRESENT).recall.low


@pytest.mark.parametrize("how", ["fields", "deck"])
def test_intervals_hold_the_truth_and_the_threshold_is_near_the_best(how: str) -> None:
    """The benchmark with few repeats: `benchmarks/tune.py` makes 500."""
    found = bench.run(60, 50, how, 7, PRESENT, None)
    held = [value for name, value in found.items() if name.endswith("held")]
    assert np.mean(held) == pytest.approx(0.95, abs=0.045)
    assert min(held) > 0.85
    assert found["lost"] < 0.02
    assert found["after"] > found["before"]
