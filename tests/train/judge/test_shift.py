"""A few tiles move a calibration as far as they ask for it, and no further."""

from __future__ import annotations

import numpy as np
import pytest

from brainmap.train.judge.calibrate_tiles import tile_calibration
from brainmap.train.judge.predict import calibrated
from brainmap.train.judge.shift import shifted, simplest

AT = np.linspace(-5, 5, 41)
PRIOR = tuple((float(a), round(float(1 / (1 + np.exp(-1.5 * a))), 4)) for a in AT)


def detections(n: int, shift: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Detections on tissue where cells need a logit higher by `shift`; eight slices."""
    rng = np.random.default_rng(seed)
    logit = rng.uniform(-5, 5, n).astype(np.float32)
    correct = rng.random(n) < 1 / (1 + np.exp(-1.5 * (logit - shift)))
    return logit, correct, rng.integers(8, size=n)


def test_without_data_nothing_moves_and_with_much_the_truth_is_found() -> None:
    nothing = shifted(np.zeros(0, np.float32), np.zeros(0, bool), PRIOR)
    np.testing.assert_allclose(np.array(nothing), np.array(PRIOR).clip([-9, 0.001], [9, 0.999]), atol=2e-4)
    logit, correct, _ = detections(4000, 2.0)
    moved = shifted(logit, correct, PRIOR)
    at = np.linspace(-1, 4, 20)
    np.testing.assert_allclose(calibrated(at, moved), 1 / (1 + np.exp(-1.5 * (at - 2))), atol=0.05)
    assert (np.diff(np.array(moved)[:, 1]) >= 0).all()


def test_few_contrary_detections_do_not_turn_a_curve_round() -> None:
    moved = np.array(shifted(np.array([-3.0, 3.0]), np.array([True, False]), PRIOR))
    assert (np.diff(moved[:, 1]) >= 0).all()
    assert moved[-1, 1] > 0.9 > 0.1 > moved[0, 1]


@pytest.mark.parametrize(("shift", "method"), [(0.0, "kept"), (2.0, "shifted")])
def test_the_simplest_curve_that_does_is_taken(shift: float, method: str) -> None:
    logit, correct, group = detections(300, shift)
    result = tile_calibration(logit, correct, group, int(correct.sum()), prior=PRIOR)
    assert result.method == method
    if method == "kept":
        assert result.knots == PRIOR
    # Without a curve to start from nothing changes.
    assert tile_calibration(logit, correct, group, int(correct.sum())).method in ("beta", "isotonic")


def test_a_standard_error_is_over_groups() -> None:
    correct, group = np.ones(40, bool), np.repeat(np.arange(4), 10)
    best = np.full(40, 0.9)
    once = np.where(group == 0, 0.5, 0.9)  # worse in one of four groups: within chance
    always = np.full(40, 0.8)
    assert simplest({"a": once, "b": best}, correct, group, "b") == "a"
    assert simplest({"a": always, "b": best}, correct, group, "b") == "b"
