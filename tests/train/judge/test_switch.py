"""Whether to switch: counts against an oracle, the interval against known answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from brainmap.errors import DataError
from brainmap.points.matching import match_points, precision_recall, score
from brainmap.train.judge.predict import TilePoints
from brainmap.train.judge.switch import Counts, Difference, Units, compare, count

SIZE = 100


def scene(tiles: int, found: float, false: int, seed: int = 0) -> tuple[TilePoints, Any, Any]:
    """Detections of a share of 20 cells a tile, false ones beside them, and the cells."""
    rng = np.random.default_rng(seed)
    true_tile = np.repeat(np.arange(tiles), 20)
    true_xy = rng.uniform(0, SIZE - 1, (20 * tiles, 2))
    hit = rng.random(len(true_tile)) < found
    xy = np.concatenate([true_xy[hit] + rng.normal(0, 0.5, (hit.sum(), 2)),
                         rng.uniform(0, SIZE - 1, (false * tiles, 2))]).clip(0, SIZE - 1)  # fmt: skip
    tile = np.concatenate([true_tile[hit], np.repeat(np.arange(tiles), false)])
    logit = np.concatenate([rng.normal(2, 1, hit.sum()), rng.normal(-2, 1, false * tiles)]).astype(np.float32)
    order = np.lexsort((xy[:, 0], xy[:, 1], tile))
    x, y = xy[order].T
    logit = logit[order]
    points = TilePoints(tile[order].astype(np.int64), x, y, logit, 1 / (1 + np.exp(-logit.astype(float))))
    return points, true_tile, true_xy


def units(slices: list[int]) -> Units:
    n = len(slices)
    return Units.of(np.array([str(s) for s in slices]), np.full(n, SIZE), np.full(n, SIZE))


@pytest.mark.parametrize(
    ("slices", "kind", "number"),
    [
        ([0, 1, 2, 2], "slices", 3),
        ([0, 0, 1, 1], "tiles", 4),
        ([0, 1], "squares", 32),
        ([0], "squares", 16),
    ],
)
def test_units_are_as_coarse_as_their_number_allows(slices: list[int], kind: str, number: int) -> None:
    made = units(slices)
    assert (made.kind, made.count) == (kind, number)
    corners = np.array([[-0.5, -0.5], [SIZE - 0.51, SIZE - 0.51]])
    at = made.at(np.array([0, len(slices) - 1]), corners)
    assert (at.min(), at.max()) == (0, number - 1)


def test_squares_divide_a_tile_evenly() -> None:
    made = units([0])
    y, x = np.mgrid[:SIZE, :SIZE]
    xy = np.column_stack([x.ravel(), y.ravel()]).astype(float)
    at = made.at(np.zeros(len(xy), np.int64), xy)
    assert (np.bincount(at) == SIZE**2 / 16).all()
    assert made.at(np.zeros(1, np.int64), np.array([[SIZE - 1.0, 0.0]]))[0] == 3


@pytest.mark.parametrize("slices", [[0, 1, 2, 3], [0, 0, 0, 1], [0, 1]])
def test_counts_agree_with_the_matching_of_everything(slices: list[int]) -> None:
    found, true_tile, true_xy = scene(len(slices), 0.8, 10)
    counts = count(found, true_tile, true_xy, units(slices), 0.5, 4.0)
    use = found.score >= 0.5
    match = match_points(found.xy[use], true_xy, 4.0, group_a=found.image[use], group_b=true_tile)
    expected = score(len(match), int(use.sum()), len(true_xy))
    whole = np.ones((1, counts.true.size))
    assert counts.f1(whole)[0] == pytest.approx(expected.f1)
    curve = precision_recall(
        found.xy, found.logit, true_xy, 4.0, thresholds=np.linspace(found.logit.min(), found.logit.max(), 40),
        group_predicted=found.image, group_true=true_tile,
    )  # fmt: skip
    assert counts.auprc(whole)[0] == pytest.approx(curve.average_precision, abs=1e-9)


def test_a_better_detector_is_better_beyond_chance_and_an_equal_one_is_not() -> None:
    slices = list(range(8))
    args = (units(slices), 0.5, 4.0)
    good, other, same = (scene(8, *how) for how in ((0.9, 4), (0.6, 12), (0.9, 4)))
    better = compare(count(*other, *args), count(*good, *args))
    assert better["f1"].low > 0 and better["auprc"].low > 0
    assert better["f1"].gain == pytest.approx(better["f1"].new - better["f1"].old)
    equal = compare(count(*good, *args), count(*same, *args))
    assert (equal["f1"].low, equal["f1"].high, equal["f1"].gain) == (0, 0, 0)
    assert compare(count(*other, *args), count(*good, *args)) == better


def test_the_interval_covers_the_difference_as_often_as_it_says() -> None:
    """Slices of two detectors that are equally good: 90 % of the intervals hold 0."""
    rng = np.random.default_rng(1)
    held = 0
    for trial in range(200):
        true = np.full(20, 30)
        found = [rng.binomial(30, rng.beta(8, 4, 20))[None] for _ in range(2)]
        old, new = (Counts(np.repeat(f, 2, 0), np.repeat(f + 5, 2, 0), true) for f in found)
        f1 = compare(old, new, trial)["f1"]
        held += f1.low <= 0 <= f1.high
    assert 165 <= held <= 195


def test_no_detection_and_nothing_to_find() -> None:
    none = TilePoints(*(np.zeros(0, t) for t in (np.int64, float, float, np.float32, float)))
    _, true_tile, true_xy = scene(3, 1.0, 0)
    counts = count(none, true_tile, true_xy, units([0, 1, 2]), 0.5, 4.0)
    assert compare(counts, counts)["f1"] == Difference(0.0, 0.0, 0.0, 0.0)
    empty = count(none, true_tile[:0], true_xy[:0], units([0, 1, 2]), 0.5, 4.0)
    with pytest.raises(DataError, match="no accepted cell"):
        compare(empty, empty)
