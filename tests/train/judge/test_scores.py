"""The measures: equal to the plain way of computing them, and to known answers."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss

from brainmap.points.matching import score
from brainmap.train.judge.scores import (
    Scored,
    TruePoints,
    false_positives_at_recall,
    match_truth,
    recall_at_false_positives,
    recall_by_confidence,
    reliability,
    spearman,
    sweep,
)


def _random(seed: int, n: int, m: int, field: float, decimals: int = 2) -> tuple[Scored, TruePoints]:
    rng = np.random.default_rng(seed)
    found = Scored(rng.integers(0, 4, n), rng.uniform(0, field, (n, 2)), rng.random(n).round(decimals))
    truth = TruePoints(
        np.arange(4), rng.integers(0, 4, m), rng.uniform(0, field, (m, 2)), rng.uniform(0, 1, m)
    )
    return found, truth


@pytest.mark.parametrize("rule", ["inside", "after"])
@pytest.mark.parametrize("field", [25.0, 60.0, 300.0])
def test_sweep_equals_matching_at_every_threshold(rule: str, field: float) -> None:
    found, truth = _random(1, 160, 90, field)
    fast = sweep(found, [truth], 5.0, rule)  # type: ignore[arg-type]
    np.testing.assert_array_equal(fast.threshold, np.unique(found.score))
    for index, threshold in enumerate(fast.threshold):
        kept = found.take(found.score >= threshold)
        pairs = len(match_truth(kept, truth, 5.0, rule))  # type: ignore[arg-type]
        assert fast.at(index) == score(pairs, len(kept), len(truth))
        assert fast.f1[index] == pytest.approx(fast.at(index).f1, abs=1e-15)


def test_sweep_at_given_levels() -> None:
    found, truth = _random(2, 160, 90, 40.0, decimals=6)
    levels = [0.0, 0.3, 0.31, 0.9, 1.5]
    curve = sweep(found, [truth], 5.0, levels=levels)
    for index, level in enumerate(levels):
        kept = found.take(found.score >= level)
        assert curve.tp[index] == len(match_truth(kept, truth, 5.0))
        assert curve.tp[index] + curve.fp[index] == len(kept)


def test_sweep_sums_over_experts_and_what_they_saw() -> None:
    found, first = _random(3, 100, 60, 60.0)
    _, second = _random(4, 1, 50, 60.0)
    second = TruePoints(np.array([0, 1]), second.image % 2, second.xy, second.confidence)
    levels = np.linspace(0, 1, 7)
    both = sweep(found, [first, second], 5.0, levels=levels)
    one = sweep(found, [first], 5.0, levels=levels)
    two = sweep(found.take(found.image < 2), [second], 5.0, levels=levels)
    for name in ("tp", "fp", "fn"):
        np.testing.assert_array_equal(getattr(both, name), getattr(one, name) + getattr(two, name))


def test_nothing_found_and_nothing_true() -> None:
    found, truth = _random(5, 20, 10, 50.0)
    nothing = found.take(np.zeros(20, bool))
    empty = sweep(nothing, [truth], 5.0)
    assert len(empty) == 0 and empty.average_precision == 0.0
    alone = sweep(found, [truth.take(np.zeros(10, bool))], 5.0)
    assert not alone.tp.any() and alone.fp[0] == 20 and not alone.fn.any()


def test_average_precision_is_that_of_sklearn() -> None:
    rng = np.random.default_rng(6)
    label, sure = rng.random(300) < 0.4, rng.random(300).round(2)
    # Far apart, every detection has its own true point or none: the matching is a labelling.
    places = np.column_stack([np.arange(300) * 50.0, np.zeros(300)])
    found = Scored(np.zeros(300, np.int64), places, sure)
    true = places[label] + 1
    truth = TruePoints(np.zeros(1, np.int64), np.zeros(len(true), np.int64), true, np.ones(len(true)))
    curve = sweep(found, [truth], 5.0)
    assert curve.average_precision == pytest.approx(average_precision_score(label, sure), abs=1e-12)


def test_froc_by_hand() -> None:
    # Scores 0.9 right, 0.8 false, 0.7 right, 0.6 false, 0.5 false; three true points on two tiles.
    x = np.array([0.0, 100, 200, 300, 400])
    found = Scored(np.zeros(5, np.int64), np.column_stack([x, x * 0]), np.array([0.9, 0.8, 0.7, 0.6, 0.5]))
    true = np.array([[0.0, 0], [200, 0], [900, 0]])
    truth = TruePoints(np.array([0, 1]), np.zeros(3, np.int64), true, np.ones(3))
    curve = sweep(found, [truth], 5.0)
    assert recall_at_false_positives(curve, 2, [0.0, 0.4, 0.5, 2.0]) == pytest.approx(
        [1 / 3, 1 / 3, 2 / 3, 2 / 3]
    )
    assert false_positives_at_recall(curve, 2, [0.3, 0.6, 0.9]) == [0.0, 0.5, None]
    assert curve.average_precision == pytest.approx(1 / 3 * 1 + 1 / 3 * 2 / 3)


def test_recall_that_falls_adds_no_area() -> None:
    # The strong pair at distance 4 and 4 becomes one pair at distance 0 when a third detection appears.
    found = Scored(np.zeros(3, np.int64), np.array([[-4.0, 0], [14, 0], [0, 0]]), np.array([0.9, 0.8, 0.7]))
    truth = TruePoints(
        np.zeros(1, np.int64), np.zeros(2, np.int64), np.array([[0.0, 0], [10, 0]]), np.ones(2)
    )
    curve = sweep(found, [truth], 5.0)
    assert 0 <= curve.average_precision <= 1
    assert curve.tp.tolist() == [2, 2, 1]


def test_reliability_by_hand() -> None:
    result = reliability([0.05, 0.15, 0.15, 0.95, 1.0], [0, 1, 0, 1, 1])
    assert result.count.tolist() == [1, 2, 0, 0, 0, 0, 0, 0, 0, 2]
    np.testing.assert_allclose(result.predicted[[0, 1, 9]], [0.05, 0.15, 0.975])
    np.testing.assert_allclose(result.observed[[0, 1, 9]], [0, 0.5, 1])
    assert np.isnan(result.predicted[5])
    assert result.ece == pytest.approx((0.05 + 2 * 0.35 + 2 * 0.025) / 5)
    assert result.brier == pytest.approx(brier_score_loss([0, 1, 0, 1, 1], [0.05, 0.15, 0.15, 0.95, 1.0]))


def test_reliability_of_true_probabilities_is_good() -> None:
    rng = np.random.default_rng(7)
    p = rng.random(20_000)
    assert reliability(p, rng.random(20_000) < p).ece < 0.02
    assert reliability(np.sqrt(p), rng.random(20_000) < p).ece > 0.1
    assert np.isnan(reliability([], []).ece)


def test_spearman() -> None:
    assert spearman([1, 2, 3, 4], [1, 4, 9, 16]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert np.isnan(spearman([1, 2, 3], [1, 1, 1])) and np.isnan(spearman([1], [2]))


def test_recall_by_confidence() -> None:
    rows = recall_by_confidence([0.05, 0.91, 0.95, 1.0], [True, True, False, True])
    assert [row["n"] for row in rows] == [1, 0, 0, 0, 0, 0, 0, 0, 0, 3]
    assert rows[0]["recall"] == 1 and rows[1]["recall"] is None
    assert rows[9]["recall"] == pytest.approx(2 / 3)
    assert (rows[9]["from"], rows[9]["to"]) == (0.9, 1.0)
