from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from brainmap.cohort.maps.permutation import permutation_test, permutations
from brainmap.errors import DataError

SHAPE = (6, 6, 6)
MASK = np.ones(SHAPE, bool)


def two_groups(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    in_b = np.repeat([0.0, 1.0], n)
    return np.column_stack([np.ones(2 * n), in_b]), np.array([0.0, 1.0]), in_b


def test_all_relabellings_are_tried_where_there_are_few() -> None:
    design, vector, _ = two_groups(4)
    values = np.random.default_rng(0).normal(size=(8, *SHAPE))
    found = permutation_test(values, MASK, design, vector)
    assert found.exact and found.permutations == math.comb(8, 4)
    assert found.p.min() >= 2 / 70 - 1e-9  # the data and their mirror image


def test_each_relabelling_comes_once() -> None:
    design, _, in_b = two_groups(3)
    orders, exact = permutations(in_b, design[:, :1], None, 1000, 0)
    assert exact and len(orders) == 20
    assert len({tuple(in_b[np.argsort(order)]) for order in orders}) == 20
    np.testing.assert_array_equal(orders[0], np.arange(6))


def test_t_is_students_and_a_pair_its_own_control() -> None:
    design, vector, in_b = two_groups(5)
    values = np.random.default_rng(1).normal(size=(10, *SHAPE))
    found = permutation_test(values, MASK, design, vector, repeats=5)
    expected = stats.ttest_ind(values[in_b == 1], values[in_b == 0]).statistic
    np.testing.assert_allclose(found.t, expected, rtol=1e-9)
    pair = np.tile(np.arange(5), 2)
    paired = np.column_stack([design, *(pair == k for k in range(1, 5))]).astype(float)
    found = permutation_test(values, MASK, paired, np.eye(6)[1], blocks=pair)
    np.testing.assert_allclose(
        found.t, stats.ttest_rel(values[in_b == 1], values[in_b == 0]).statistic, rtol=1e-9
    )
    assert found.exact and found.permutations == 2**5


def test_a_planted_cluster_is_found_and_nothing_else() -> None:
    design, vector, in_b = two_groups(5)
    values = 0.5 * np.random.default_rng(2).normal(size=(10, *SHAPE))
    values[in_b == 1, 1:4, 1:4, 1:4] += 1.5
    found = permutation_test(values, MASK, design, vector, repeats=60)
    assert (found.p[1:4, 1:4, 1:4] <= 0.05).mean() > 0.8 and found.effect[1:4, 1:4, 1:4].mean() > 1
    outside = found.p.copy()
    outside[0:5, 0:5, 0:5] = 1
    assert (outside > 0.05).mean() > 0.97


def test_a_covariate_takes_what_it_explains() -> None:
    rng = np.random.default_rng(3)
    design, _, in_b = two_groups(6)
    age = 2.5 * in_b + rng.normal(0, 0.7, 12)
    values = rng.normal(size=(12, *SHAPE)) + 3 * age[:, None, None, None]
    blind = permutation_test(values, MASK, design, np.array([0.0, 1.0]), repeats=60)
    adjusted = permutation_test(
        values, MASK, np.column_stack([design, age]), np.array([0.0, 1.0, 0.0]), repeats=100
    )
    assert blind.p.min() < 0.05 < adjusted.p.min() and not adjusted.exact


@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_without_a_difference_few_studies_find_one(smooth: float) -> None:
    design, vector, _ = two_groups(3)
    shape = (3, 3, 3)
    found = 0
    for seed in range(25):
        values = np.random.default_rng(seed).normal(size=(6, *shape)) + np.random.default_rng(seed).normal(
            size=(6, 1, 1, 1)
        )
        p = permutation_test(values, np.ones(shape, bool), design, vector, smooth_vox=smooth).p
        found += p.min() <= 0.1
    assert found <= 0.1 * 25 + 2 * np.sqrt(25 * 0.1 * 0.9)


def test_what_cannot_be_exchanged_is_refused() -> None:
    values = np.zeros((4, *SHAPE))
    design, vector, _ = two_groups(2)
    with pytest.raises(DataError, match="nothing to compare"):
        permutation_test(values, MASK, design, vector, blocks=np.arange(4))
    with pytest.raises(DataError, match="no degree of freedom"):
        permutation_test(values, MASK, np.eye(4), np.eye(4)[0])
