from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from brainmap.cohort.networks.correlation import correlate, correlation_p, difference_test


def test_correlations_over_the_animals_that_have_both() -> None:
    values = np.random.default_rng(0).normal(5, 2, (9, 6))
    r, n = correlate(values)
    np.testing.assert_allclose(r, np.corrcoef(values.T), atol=1e-12)
    assert (n == 9).all()
    values[0, 1] = values[1, 1] = values[2, 4] = np.nan
    r, n = correlate(values)
    both = np.isfinite(values[:, 1]) & np.isfinite(values[:, 4])
    known = stats.pearsonr(values[both, 1], values[both, 4])
    assert n[1, 4] == both.sum() == 6
    np.testing.assert_allclose(r[1, 4], known.statistic, atol=1e-12)
    np.testing.assert_allclose(correlation_p(r, n)[1, 4], known.pvalue, atol=1e-12)


def test_pairs_in_too_few_animals_or_without_scatter_are_unknown() -> None:
    values = np.random.default_rng(0).normal(0, 1, (6, 4))
    values[:3, 0] = np.nan
    values[:, 2] = 7.0
    r, n = correlate(values)
    assert np.isnan(r[0, 1]) and n[0, 1] == 3 and np.isnan(r[1, 2]) and np.isfinite(r[1, 3])


def test_a_planted_difference_is_found_and_nothing_else() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 1, (14, 30)), rng.normal(0, 1, (14, 30))
    # In b six regions follow one another; means and scatter differ too, which is no correlation.
    b[:, :6] = rng.normal(0, 1, (14, 1)) + 0.2 * rng.normal(0, 1, (14, 6))
    b = 3.0 * b + 10.0
    found = difference_test(a, b, 200)
    hit = np.triu(found.q <= 0.05, 1)
    assert hit[:6, :6].sum() >= 10
    assert hit.sum() - hit[:6, :6].sum() <= 1
    assert found.p_whole <= 0.02
    np.testing.assert_array_equal(found.z, found.z.T)
    assert (found.z[:6, :6][np.triu_indices(6, 1)] > 0).mean() > 0.9


def test_without_a_difference_p_is_uniform_and_nothing_is_found() -> None:
    rng = np.random.default_rng(2)
    whole, any_pair, single = [], 0, []
    for seed in range(50):
        mixing = rng.normal(0, 1, (12, 12))
        a, b = rng.normal(0, 1, (7, 12)) @ mixing, rng.normal(0, 1, (7, 12)) @ mixing
        found = difference_test(a, b, 39, seed)
        whole.append(found.p_whole)
        single.append(found.p[0, 1])
        any_pair += bool((found.q <= 0.05).any())
    assert stats.kstest(whole, "uniform").pvalue > 0.01
    assert stats.kstest(single, "uniform").pvalue > 0.01
    assert any_pair <= 7


@pytest.mark.parametrize("missing", [0, 5])
def test_a_region_that_animals_lack_is_unknown_not_zero(missing: int) -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(0, 1, (7, 5)), rng.normal(0, 1, (7, 5))
    a[:missing, 2] = np.nan
    found = difference_test(a, b, 20)
    assert np.isnan(found.p[2, 1]) == (missing > 0) and np.isfinite(found.p[0, 1])
