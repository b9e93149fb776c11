"""Estimates with known answers, and intervals that hold the truth."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from brainmap.view.estimate import Fields, Strata, precision, recall
from brainmap.view.samples import draw_fields, field_sizes, hard_cells, order_cells, strata_of


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def test_precision_of_one_stratum_is_wilsons() -> None:
    found = precision(Strata(ints(10**9), ints(100), ints(90)))
    assert found is not None
    # Wilson's interval of 90 of 100; shrinking by one mark moves it by less than a percent.
    assert (found.value, found.low, found.high) == (
        0.9,
        pytest.approx(0.826, abs=0.005),
        pytest.approx(0.945, abs=0.005),
    )


def test_precision_weights_strata_by_their_cells() -> None:
    found = precision(Strata(ints(9000, 1000), ints(50, 50), ints(50, 0)))
    assert found is not None
    assert found.value == pytest.approx(0.9)


def test_a_census_leaves_nothing_open() -> None:
    found = precision(Strata(ints(60, 40), ints(60, 40), ints(60, 20)))
    assert found is not None
    assert found.value == pytest.approx(0.8)
    assert found.high - found.low < 0.01


def test_nothing_judged_says_nothing() -> None:
    none = Strata(ints(10), ints(0), ints(0))
    assert precision(none) is None
    assert recall(none, Fields(np.array([0.1]), ints(0))) is None
    assert recall(Strata(ints(10), ints(5), ints(5)), Fields(np.zeros(0), ints())) is None


def test_recall_of_a_known_brain() -> None:
    # A thousand equal fields; one cell is missed in every second one: 500 of all, beside 4500 found.
    fields = Fields(np.full(200, 1e-3), np.tile(ints(0, 1), 100))
    found = recall(Strata(ints(5000), ints(1000), ints(900)), fields)
    assert found is not None
    assert found.value == pytest.approx(0.9)
    assert 0.85 < found.low < 0.9 < found.high < 0.95


def test_nothing_missed_is_not_certainty() -> None:
    found = recall(Strata(ints(5000), ints(100), ints(95)), Fields(np.full(10, 1e-3), np.zeros(10, np.int64)))
    assert found is not None
    assert found.value == 1
    assert found.low < 0.99


def test_every_beginning_of_the_order_is_stratified() -> None:
    rng = np.random.default_rng(0)
    division = rng.choice(4, 5000, p=[0.6, 0.3, 0.09, 0.01])
    stratum, sizes = strata_of(division, rng.random(5000))
    assert sizes.sum() == 5000
    assert (np.bincount(stratum, minlength=12) == sizes).all()
    # Bins of a division are equal to one cell, and rise with the score.
    assert np.ptp(sizes.reshape(4, 3), axis=1).max() <= 1
    order = order_cells(stratum, rng)
    assert sorted(order.tolist()) == list(range(5000))
    for number in (50, 200, 1000):
        expected = number * sizes / sizes.sum()
        assert (np.abs(np.bincount(stratum[order[:number]], minlength=12) - expected) <= 1.01).all()


def test_fields_are_drawn_by_size_and_empty_ones_too() -> None:
    counts = np.array([0] * 500 + [1] * 400 + [9] * 100)
    size = field_sizes(counts)
    drawn = draw_fields(size, 20_000, np.random.default_rng(0))
    shares = [np.mean(drawn < 500), np.mean(drawn >= 900)]
    assert shares[0] == pytest.approx(size[:500].sum() / size.sum(), abs=0.01)
    assert shares[1] == pytest.approx(size[900:].sum() / size.sum(), abs=0.015)
    assert 0.03 < shares[0] < 0.08


def test_hard_cells_are_doubtful_and_from_everywhere() -> None:
    rng = np.random.default_rng(0)
    score, place = rng.random(1000), rng.integers(0, 10, 1000)
    found = hard_cells(score, 0.5, place, 30, rng)
    assert len(set(found.tolist())) == 30
    assert np.abs(score[found] - 0.5).max() < 0.1
    assert (np.bincount(place[found], minlength=10) == 3).all()


@pytest.fixture(scope="module")
def bench(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "review_intervals", repository / "benchmarks" / "review_intervals.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_intervals_hold_the_truth(bench: ModuleType) -> None:
    """The short form of benchmarks/review_intervals.py: 150 repeats, so three standard errors are 5 %."""
    found = bench.coverage(150, seed=7)
    for name in ("precision", "recall", "precision of a division"):
        assert 0.9 <= found[name] <= 1.0, (name, found[name])
    assert found["width of precision"] < 0.2
