from __future__ import annotations

import time

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from brainmap.errors import DataError
from brainmap.points import matching, pairing
from brainmap.points.matching import Match, Scores, match_points, precision_recall, score


def pairs(match: Match) -> list[tuple[int, int]]:
    return list(zip(match.index_a.tolist(), match.index_b.tolist(), strict=True))


def diagonal(*values: float) -> np.ndarray:
    """Points at the same offset on all three axes."""
    return np.repeat(np.array(values, dtype=float)[:, None], 3, axis=1)


def oracle(a: np.ndarray, b: np.ndarray, tolerance: float) -> tuple[float, int]:
    """Least cost by a dense Hungarian assignment, distances capped at the tolerance; pairs within it."""
    distance = np.linalg.norm(a[:, None] - b[None], axis=2)
    rows, columns = linear_sum_assignment(np.minimum(distance, tolerance))
    chosen = distance[rows, columns]
    return float(np.minimum(chosen, tolerance).sum()), int((chosen < tolerance).sum())


def cost(match: Match, n: int, m: int, tolerance: float) -> float:
    return float(match.distance.sum() + tolerance * (min(n, m) - len(match)))


def test_threshold_acts_inside_the_assignment() -> None:
    a, b = [(0, 0, 0), (12, 0, 0)], [(10, 0, 0), (22, 0, 0)]
    assert pairs(match_points(a, b, 5)) == [(1, 0)]
    # Assigned first, both pairs are 10 long and both are dropped.
    assert pairs(match_points(a, b, 5, rule="after")) == []


def test_points_on_a_line() -> None:
    a, b = diagonal(10, 12, 100, 80), diagonal(0, 5, 15, 25, 35, 100)
    assert pairs(match_points(a, b, np.inf)) == [(0, 1), (1, 2), (2, 5), (3, 4)]
    limited = match_points(a, b, 11 * np.sqrt(3))
    assert pairs(limited) == [(0, 1), (1, 2), (2, 5)]
    assert set(range(4)) - set(limited.index_a.tolist()) == {3}
    assert set(range(6)) - set(limited.index_b.tolist()) == {0, 3, 4}


def test_example_of_brainglobe_match_cells() -> None:
    match = match_points(diagonal(20, 10, 40, 50), diagonal(5, 15, 35, 100, 200), 20)
    assert pairs(match) == [(0, 1), (1, 0), (2, 2)]


@pytest.mark.parametrize("seed", range(40))
def test_equals_the_dense_assignment(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, m, d = rng.integers(1, 60), rng.integers(1, 60), rng.integers(2, 4)
    a, b = rng.uniform(0, 30, (n, d)), rng.uniform(0, 30, (m, d))
    tolerance = rng.uniform(1, 15)
    match = match_points(a, b, tolerance)
    least, count = oracle(a, b, tolerance)
    assert cost(match, n, m, tolerance) == pytest.approx(least)
    assert len(match) == count
    assert len(set(match.index_a.tolist())) == len(set(match.index_b.tolist())) == len(match)
    np.testing.assert_allclose(match.distance, np.linalg.norm(a[match.index_a] - b[match.index_b], axis=1))
    assert (match.distance <= tolerance).all()


@pytest.mark.parametrize("seed", range(5))
def test_large_components_equal_small_ones(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(0, 40, (150, 2)), rng.uniform(0, 40, (180, 2))
    a[:5] = b[:5]  # zero distances, which a sparse solver may take for missing edges
    dense = match_points(a, b, 6)
    monkeypatch.setattr(pairing, "DENSE_COMPONENT", 0)
    large = match_points(a, b, 6)
    assert large.distance.sum() == pytest.approx(dense.distance.sum())
    assert pairs(large) == pairs(dense)


def test_a_pair_exactly_at_the_tolerance_counts() -> None:
    assert len(match_points([(0.0, 0.0)], [(3.0, 4.0)], 5)) == 1
    assert len(match_points([(0.0, 0.0), (9, 9)], [(3.0, 4.0), (9, 9), (6, 8)], 5)) == 2
    assert len(match_points([(0.1, 0.0)], [(0.4, 0.0)], 0.3)) == 1


def test_scale_turns_voxels_into_micrometres() -> None:
    a, b = [(0, 0, 0)], [(2, 0, 0)]
    assert len(match_points(a, b, 9, scale=(5, 2, 2))) == 0
    match = match_points(a, b, 11, scale=(5, 2, 2))
    assert match.distance.tolist() == [10.0]


@pytest.mark.parametrize("rule", ["inside", "after"])
@pytest.mark.parametrize("tolerance", [3.0, np.inf])
def test_groups_are_matched_apart(rule: matching.Rule, tolerance: float) -> None:
    rng = np.random.default_rng(3)
    a, b = rng.uniform(0, 20, (60, 2)), rng.uniform(0, 20, (50, 2))
    images_a, images_b = rng.choice(["0001", "2", "x"], 60), rng.choice(["0001", "2", "y"], 50)
    together = match_points(a, b, tolerance, rule=rule, group_a=images_a, group_b=images_b)
    expected = []
    for image in ("0001", "2"):
        i, j = np.flatnonzero(images_a == image), np.flatnonzero(images_b == image)
        part = match_points(a[i], b[j], tolerance, rule=rule)
        expected += list(zip(i[part.index_a].tolist(), j[part.index_b].tolist(), strict=True))
    assert pairs(together) == sorted(expected)


@pytest.mark.parametrize(
    ("a", "b"), [([], []), ([], [(1, 2, 3)]), ([(1, 2, 3)], []), (np.empty((0, 3)), [(1, 2, 3)])]
)
def test_empty_sets(a: list, b: list) -> None:
    for rule in ("inside", "after"):
        assert len(match_points(a, b, 5, rule=rule)) == 0
        assert len(match_points(a, b, 5, rule=rule, group_a=["i"] * len(a), group_b=["i"] * len(b))) == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([(0, np.nan)], [(0, 0)], 1), DataError, "finite"),
        (([(0, 0)], [(0, 0, 0)], 1), DataError, "shapes"),
        (([1, 2], [3, 4], 1), DataError, "shapes"),
        (([(0, 0)], [(0, 0)], 0), ValueError, "tolerance"),
        (([(0, 0)], [(0, 0)], float("nan")), ValueError, "tolerance"),
        (([(0, 0)], [(0, 0)], 1, -1), ValueError, "scale"),
        (([(0, 0)], [(0, 0)], 1, 1, "before"), ValueError, "rule"),
    ],
)
def test_bad_input(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        match_points(*arguments)


def test_group_labels_must_fit() -> None:
    with pytest.raises(DataError, match="labels"):
        match_points([(0, 0)], [(0, 0)], 1, group_a=["a", "b"], group_b=["a"])
    with pytest.raises(ValueError, match="together"):
        match_points([(0, 0)], [(0, 0)], 1, group_a=["a"])


def test_too_large_problems_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.zeros((50, 2))
    monkeypatch.setattr(pairing, "MAX_DENSE", 100)
    with pytest.raises(DataError, match="too many"):
        match_points(points, points, np.inf)
    monkeypatch.setattr(pairing, "MAX_PAIRS", 100)
    with pytest.raises(DataError, match="too large"):
        match_points(points, points, 1)


def test_a_brain_takes_seconds() -> None:
    rng = np.random.default_rng(0)
    true = rng.uniform(0, 2000, (100_000, 3))
    found = true + rng.normal(0, 2, true.shape)
    found[:10_000] = rng.uniform(0, 2000, (10_000, 3))
    start = time.perf_counter()
    match = match_points(found, true, 10)
    assert time.perf_counter() - start < 20
    assert len(match) == pytest.approx(90_000, rel=0.01)


def test_scores_known_answers() -> None:
    scores = score(6, 8, 12)
    assert (scores.tp, scores.fp, scores.fn) == (6, 2, 6)
    assert scores.precision == 0.75
    assert scores.recall == 0.5
    assert scores.f1 == pytest.approx(0.6)
    assert scores + Scores(2, 0, 0) == Scores(8, 2, 6)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [((0, 0, 0), (1, 1, 1)), ((0, 0, 5), (0, 0, 0)), ((0, 5, 0), (0, 0, 0))],
)
def test_scores_without_points(counts: tuple[int, int, int], expected: tuple[float, float, float]) -> None:
    scores = score(*counts)
    assert (scores.precision, scores.recall, scores.f1) == expected


def test_impossible_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot come"):
        score(3, 2, 5)


def test_precision_recall_by_hand() -> None:
    true = [(0.0, 0.0), (10.0, 0.0), (20.0, 0.0), (30.0, 0.0)]
    predicted = [(0.0, 1.0), (10.0, 1.0), (50.0, 0.0), (20.0, 1.0)]
    curve = precision_recall(predicted, [0.9, 0.8, 0.7, 0.6], true, 2)
    assert curve.threshold.tolist() == [0.6, 0.7, 0.8, 0.9]
    assert curve.tp.tolist() == [3, 2, 2, 1]
    assert curve.fp.tolist() == [1, 1, 0, 0]
    assert curve.fn.tolist() == [1, 2, 2, 3]
    # Steps of recall 1/4 at precision 1, 1 and 3/4.
    assert curve.average_precision == pytest.approx(0.25 + 0.25 + 0.25 * 0.75)
    threshold, best = curve.best
    assert threshold == 0.6
    assert best.f1 == pytest.approx(0.75)


def test_average_precision_equals_sklearn_where_matching_does_not_change() -> None:
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(1)
    true = np.column_stack([np.arange(40) * 100.0, np.zeros(40)])
    wrong = true + (0, 50)
    scores = rng.permutation(80) / 80
    curve = precision_recall(np.concatenate([true, wrong]), scores, true, 5)
    expected = average_precision_score(np.repeat([1, 0], 40), scores)
    assert curve.average_precision == pytest.approx(expected)


@pytest.mark.parametrize("rule", ["inside", "after"])
@pytest.mark.parametrize(("field", "tolerance"), [(25.0, 5.0), (60.0, 5.0), (300.0, 5.0), (60.0, np.inf)])
@pytest.mark.parametrize("grouped", [True, False])
def test_precision_recall_equals_matching_at_every_threshold(
    rule: matching.Rule, field: float, tolerance: float, grouped: bool
) -> None:
    rng = np.random.default_rng(4)
    # Whole voxels: pairs of equal length, and points at the same place.
    predicted, true = rng.uniform(0, field, (160, 3)).round(), rng.uniform(0, field, (90, 3)).round()
    scores, scale = rng.random(160).round(2), np.array([0.4, 1.0, 1.5])
    thresholds = np.r_[-1.0, np.unique(scores), 2.0]
    groups = (rng.choice(list("abc"), 160), rng.choice(list("bcd"), 90)) if grouped else (None, None)
    curve = precision_recall(
        predicted, scores, true, tolerance, scale, rule,
        thresholds=thresholds, group_predicted=groups[0], group_true=groups[1],
    )  # fmt: skip
    for index, threshold in enumerate(thresholds):
        keep = scores >= threshold
        match = match_points(
            predicted[keep], true, tolerance, scale, rule,
            group_a=None if groups[0] is None else groups[0][keep], group_b=groups[1],
        )  # fmt: skip
        expected = score(len(match), int(keep.sum()), 90)
        assert curve.at(index) == expected
        assert curve.precision[index] == expected.precision
        assert curve.recall[index] == expected.recall
        assert curve.f1[index] == pytest.approx(expected.f1, abs=1e-15)


def test_recall_that_falls_and_rises_again_counts_once() -> None:
    # Under the rule "after" the second prediction pushes the first from 20 to 10: both pairs are 6 long and dropped.
    true = [(10.0, 0.0), (20.0, 0.0)]
    predicted = [(16.0, 0.0), (26.0, 0.0), (10.0, 0.0), (23.0, 0.0)]
    curve = precision_recall(predicted, [0.9, 0.8, 0.7, 0.6], true, 5, rule="after")
    assert curve.tp.tolist() == [2, 2, 0, 1]
    assert curve.average_precision == pytest.approx(0.5 + 0.5 * 2 / 3)
    curve = matching.PrecisionRecall(
        np.array([0.1, 0.2, 0.3, 0.4]), np.array([3, 1, 2, 1]), np.array([3, 3, 0, 0]), np.array([1, 3, 2, 3])
    )
    # Recall 1/4 and 2/4 at precision 1, then 3/4 at 1/2; between them it falls, which adds nothing.
    assert curve.average_precision == pytest.approx(0.25 + 0.25 + 0.25 * 0.5)


def test_precision_recall_limits_thresholds_and_takes_given_ones() -> None:
    rng = np.random.default_rng(2)
    points, scores = rng.uniform(0, 50, (500, 2)), rng.uniform(size=500)
    curve = precision_recall(points, scores, points, 1)
    assert len(curve) == 100
    assert curve.threshold[0] == scores.min()
    assert (curve.precision == 1).all()
    given = precision_recall(points, scores, points, 1, thresholds=[0.5, 2.0])
    assert given.tp.tolist() == [int((scores >= 0.5).sum()), 0]


def test_precision_recall_without_predictions() -> None:
    curve = precision_recall(np.empty((0, 2)), [], [(0.0, 0.0)], 1)
    assert len(curve) == 0
    assert curve.average_precision == 0
    assert np.isnan(curve.best[0])


def test_precision_recall_checks_as_matching_does() -> None:
    for arguments, message in (((0.0,), "tolerance"), ((1.0, -1.0), "scale"), ((1.0, 1.0, "before"), "rule")):
        with pytest.raises(ValueError, match=message):
            precision_recall([], [], [], *arguments)
    with pytest.raises(ValueError, match="together"):
        precision_recall([(0, 0)], [0.5], [(0, 0)], 1, group_predicted=["a"])
    with pytest.raises(DataError, match="labels"):
        precision_recall([(0, 0)], [0.5], [(0, 0)], 1, group_predicted=["a"], group_true=[])


@pytest.mark.parametrize("scores", [[0.5], [0.5, np.nan]])
def test_precision_recall_needs_scores(scores: list[float]) -> None:
    with pytest.raises(DataError, match="scores"):
        precision_recall([(0, 0), (1, 1)], scores, [(0, 0)], 1)
