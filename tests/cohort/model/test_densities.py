from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from brainmap.cohort.model.densities import contrast_densities, find_outliers, log_density
from brainmap.cohort.model.design import Contrast

IN_B = np.repeat([False, True], 5)
DESIGN = np.column_stack([np.ones(10), IN_B]).astype(float)
B_LESS_A = Contrast("b - a", np.array([[0.0], [1.0]]), np.array([1.0, 0.0]), np.array([1.0, 1.0]), "a", "b")
SIDES = np.stack([~IN_B, IN_B])


def drawn(seed: int = 0, regions: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mean = np.exp(rng.uniform(3, 8, regions))
    return rng.poisson(mean * rng.gamma(20, 1 / 20, (10, regions))).astype(float), np.ones((10, regions))


def test_welch_is_scipys_animals_missing_included() -> None:
    values = log_density(*drawn())
    values[0, 3] = values[7, 5] = np.nan
    found = contrast_densities(values, DESIGN, B_LESS_A, SIDES, welch=True)
    expected = stats.ttest_ind(values[IN_B], values[~IN_B], equal_var=False, nan_policy="omit")
    np.testing.assert_allclose(found.p, expected.pvalue, rtol=1e-9)
    interval = expected.confidence_interval(0.95)
    np.testing.assert_allclose(found.low, interval.low, rtol=1e-9)
    np.testing.assert_allclose(np.log2(found.density_b / found.density_a), found.log2_ratio)


def test_one_variance_is_students_and_a_pair_its_difference() -> None:
    values = log_density(*drawn(1))
    plain = contrast_densities(values, DESIGN, B_LESS_A, SIDES)
    np.testing.assert_allclose(plain.p, stats.ttest_ind(values[IN_B], values[~IN_B]).pvalue, rtol=1e-9)
    pair = np.tile(np.arange(5), 2)
    paired = np.column_stack([DESIGN, *(pair == k for k in range(1, 5))]).astype(float)
    contrast = Contrast("b - a", np.eye(6)[:, [1]])
    found = contrast_densities(values, paired, contrast, SIDES)
    np.testing.assert_allclose(found.p, stats.ttest_rel(values[IN_B], values[~IN_B]).pvalue, rtol=1e-9)
    np.testing.assert_allclose(found.log2_ratio, (values[IN_B] - values[~IN_B]).mean(axis=0))


def test_a_term_of_three_groups_is_the_analysis_of_variance() -> None:
    values = log_density(*drawn(2))
    group = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2, 2])
    design = np.column_stack([np.ones(10), group == 1, group == 2]).astype(float)
    found = contrast_densities(values, design, Contrast("group", np.eye(3)[:, 1:]))
    expected = stats.f_oneway(*(values[group == g] for g in range(3))).pvalue
    np.testing.assert_allclose(found.p, expected, rtol=1e-9)
    assert np.isnan(found.log2_ratio).all()


def test_where_animals_are_equal_or_few() -> None:
    values = np.zeros((10, 3))
    values[IN_B, 1] = 1.0
    values[1:5, 2] = np.nan
    found = contrast_densities(values, DESIGN, B_LESS_A, SIDES, welch=True)
    assert found.p[0] == 1 and np.isnan(found.p[1]) and np.isnan(found.p[2])


def test_a_region_that_tells_a_contrast_nothing_is_not_tested() -> None:
    values = log_density(*drawn(3))
    batch = (np.arange(10) % 5 == 0).astype(float)
    values[batch > 0, 4] = np.nan
    design = np.column_stack([DESIGN, batch])
    of_batch = contrast_densities(values, design, Contrast("batch", np.eye(3)[:, [2]]))
    of_group = contrast_densities(values, design, Contrast("b - a", np.eye(3)[:, [1]]), SIDES)
    assert np.isnan(of_batch.p[4]) and np.isfinite(of_group.p[4])
    assert np.isfinite(np.delete(of_batch.p, 4)).all()


@pytest.mark.parametrize("factor", [0.05, 20.0])
def test_a_damaged_region_is_found_in_the_animal_that_has_it(factor: float) -> None:
    counts, volume = drawn(4)
    counts *= np.linspace(0.5, 2, 10)[:, None]
    counts[3, 10:15] = np.round(counts[3, 10:15] * factor)
    found = find_outliers(counts, volume, DESIGN)
    assert found.flag[3, 10:15].sum() >= 4 and found.flag.sum() <= found.flag[3, 10:15].sum() + 1
    assert np.median(found.log2_factor[3, 10:15]) == pytest.approx(np.log2(factor), abs=1)


def test_nothing_stands_out_where_nothing_does() -> None:
    false = sum(find_outliers(*drawn(seed), DESIGN).flag.sum() for seed in range(20))
    assert false <= 3
    changed, volume = drawn(5)
    changed[IN_B, :20] *= 6
    assert find_outliers(changed, volume, DESIGN).flag.sum() <= 1


def test_few_regions_tell_nothing_of_outliers() -> None:
    counts, volume = drawn(6, regions=6)
    counts[0, 0] *= 100
    assert not find_outliers(counts, volume, DESIGN).flag.any()
