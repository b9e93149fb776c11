from __future__ import annotations

import numpy as np
import pytest

from brainmap.image.otsu import otsu


@pytest.mark.parametrize(("dim", "bright"), [(2000, 8000), (5000, 5000), (9000, 1000)])
def test_two_levels_are_told_apart(dim: int, bright: int) -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(100, 5, dim), rng.normal(200, 10, bright)])
    low, high = otsu(values)
    assert low < high
    assert (values > high).sum() == pytest.approx(bright, rel=0.01)
    assert 110 < low < 175


def test_the_brute_force_finds_the_same() -> None:
    """The split of the histogram with the least variance within its classes."""
    values = np.random.default_rng(1).gamma(2.0, 3.0, 4000)
    counts, edges = np.histogram(values, 64)
    centres = (edges[1:] + edges[:-1]) / 2

    def within(last: int) -> float:
        parts = [(counts[: last + 1], centres[: last + 1]), (counts[last + 1 :], centres[last + 1 :])]
        return sum(float((n * (c - np.average(c, weights=n)) ** 2).sum()) for n, c in parts)

    best = min(range(63), key=within)
    assert otsu(values, 64) == (edges[best], edges[best + 1])


def test_nothing_is_above_the_threshold_of_an_even_image() -> None:
    values = np.full(50, 7.0)
    assert not (values > otsu(values)[1]).any()
