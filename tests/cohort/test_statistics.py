from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from brainmap.cohort.simulate import Simulation, simulate
from brainmap.cohort.statistics import (
    adjust,
    count_test,
    density_ratio,
    group_means,
    hedges_interval,
    in_family,
    relative_levels,
    welch_test,
)

IN_B = np.repeat([False, True], 4)


def drawn(seed: int = 0, **changes: object) -> tuple[np.ndarray, np.ndarray]:
    cohort = simulate(Simulation(**changes), seed)  # type: ignore[arg-type]
    return cohort.count.astype(float), cohort.volume_mm3


def test_welch_is_scipys() -> None:
    values = np.random.default_rng(1).gamma(3, 10, (9, 30))
    values[0, 3] = values[7, 5] = np.nan
    in_b = np.arange(9) >= 4
    expected = stats.ttest_ind(values[in_b], values[~in_b], equal_var=False, nan_policy="omit").pvalue
    np.testing.assert_allclose(welch_test(group_means(values, ~in_b, in_b)), expected, rtol=1e-10)


def test_welch_where_nothing_scatters() -> None:
    values = np.array([[0.0, 1], [0, 1], [0, 2], [0, 2]])
    p = welch_test(group_means(values, np.array([1, 1, 0, 0]) > 0, np.array([0, 0, 1, 1]) > 0))
    assert p[0] == 1 and np.isnan(p[1])


def test_hedges_g_by_hand() -> None:
    # Means 2 and 5, both variances 1: d = 3, corrected by 1 - 3 / (4 * 4 - 1).
    values = np.array([1.0, 2, 3, 4, 5, 6])[:, None]
    means = group_means(values, np.arange(6) < 3, np.arange(6) >= 3)
    assert means.hedges_g[0] == pytest.approx(3 * (1 - 3 / 15))
    low, high = hedges_interval(means)
    error = np.sqrt(6 / 9 + 2.4**2 / 12)
    assert (low[0], high[0]) == pytest.approx((2.4 - 1.959964 * error, 2.4 + 1.959964 * error), rel=1e-6)


def test_effect_without_scatter_is_zero_or_unknown() -> None:
    values = np.array([[5.0, 1], [5, 1], [5, 2], [5, 2]])
    g = group_means(values, np.arange(4) < 2, np.arange(4) >= 2).hedges_g
    assert g[0] == 0 and np.isnan(g[1])


def test_q_values_are_scipys_within_the_family() -> None:
    p = np.array([0.001, 0.2, 1e-9, 0.03, np.nan, 0.04])
    cells = np.array([10.0, 50, 9, 500, 500, 20])
    q = adjust(p, cells)
    np.testing.assert_allclose(q[[0, 1, 3, 5]], stats.false_discovery_control(p[[0, 1, 3, 5]]))
    assert q[2] == 1 and np.isnan(q[4])
    assert in_family(p, cells).tolist() == [True, True, False, True, False, True]
    assert np.isnan(adjust(np.array([np.nan]), np.array([50.0]))).all()


def test_few_cells_that_happen_to_lie_evenly_are_not_called() -> None:
    """Eight cells, two in each animal of one group: Welch's p is tiny only because volumes hardly differ."""
    volume = np.random.default_rng(0).uniform(0.99, 1.01, (8, 1))
    counts = np.where(IN_B, 2.0, 0.0)[:, None]
    p = welch_test(group_means(counts / volume, ~IN_B, IN_B))
    assert p[0] < 1e-4
    assert adjust(p, counts.sum(axis=0)).tolist() == [1]


def test_score_by_hand() -> None:
    """Equal volumes, no covariate: the null mean is the plain mean, the statistic a line."""
    counts, volume = drawn(shared_sd=0.3)
    found = count_test(counts, np.ones_like(volume), IN_B)
    scatter = found.scatter
    assert scatter is not None and scatter.shared > 0
    mean = counts.mean(axis=0)
    variance = scatter.quasi * (mean + scatter.dispersion * mean**2) + scatter.shared * mean**2
    statistic = (counts[IN_B] - mean).sum(axis=0) ** 2 / (variance * 2)
    own = scatter.quasi * (1 / mean + scatter.dispersion)
    freedom = (own + scatter.shared) ** 2 / (own**2 / scatter.freedom + scatter.shared**2 / 6)
    np.testing.assert_allclose(found.p, stats.f.sf(statistic, 1, freedom), rtol=1e-4)


def test_the_other_order_of_groups_changes_signs_only() -> None:
    counts, volume = drawn(planted=20)
    counts[:, 0] = 0
    one, other = count_test(counts, volume, IN_B), count_test(counts, volume, ~IN_B)
    np.testing.assert_allclose(one.p, other.p, rtol=1e-5)
    np.testing.assert_allclose(one.log2_ratio, -other.log2_ratio, atol=1e-6)
    np.testing.assert_allclose(one.low, -other.high, atol=1e-5)
    density = counts / volume
    means, turned = group_means(density, ~IN_B, IN_B), group_means(density, IN_B, ~IN_B)
    np.testing.assert_allclose(means.hedges_g, -turned.hedges_g)
    np.testing.assert_allclose(
        density_ratio(means, volume, ~IN_B, IN_B), -density_ratio(turned, volume, IN_B, ~IN_B), atol=1e-12
    )


def test_unit_of_volume_order_of_regions_and_of_animals_do_not_matter() -> None:
    counts, volume = drawn(planted=10)
    expected = count_test(counts, volume, IN_B)
    scaled = count_test(counts, 1e9 * volume, IN_B)
    np.testing.assert_allclose(scaled.p, expected.p, rtol=1e-5)
    np.testing.assert_allclose(scaled.log2_ratio, expected.log2_ratio, atol=1e-6)
    rng = np.random.default_rng(0)
    regions, animals = rng.permutation(counts.shape[1]), rng.permutation(8)
    mixed = count_test(counts[animals][:, regions], volume[animals][:, regions], IN_B[animals])
    np.testing.assert_allclose(mixed.p, expected.p[regions], rtol=1e-3)


def test_regions_without_cells_are_kept_and_not_different() -> None:
    counts, volume = drawn()
    counts[:, [3, 7]] = 0
    counts[IN_B, 9] = 0
    counts[~IN_B, 9] = [400, 420, 390, 410]
    found = count_test(counts, volume, IN_B)
    assert found.p[[3, 7]].tolist() == [1, 1] and found.log2_ratio[[3, 7]].tolist() == [0, 0]
    assert found.p[9] < 1e-3
    assert -14 < found.log2_ratio[9] < -9  # about 1620 cells against half a cell
    assert np.isfinite(found.low[9])


def test_ratio_is_that_of_the_densities_with_half_a_cell() -> None:
    counts, volume = drawn(fewest=1.0)
    volume = np.ones_like(volume)
    found = count_test(counts, volume, IN_B)
    expected = np.log2((counts[IN_B].sum(axis=0) + 0.5) / (counts[~IN_B].sum(axis=0) + 0.5))
    np.testing.assert_allclose(found.log2_ratio, expected, atol=1e-6)
    means = group_means(counts, ~IN_B, IN_B)
    np.testing.assert_allclose(density_ratio(means, volume, ~IN_B, IN_B), expected)


def test_an_animal_that_lacks_a_region_is_left_out_there() -> None:
    counts, volume = drawn(regions=12)
    volume[0, 4] = np.nan
    volume[:3, 5] = 0
    found = count_test(counts, volume, IN_B)
    assert np.isfinite(found.p[4])
    assert np.isnan(found.p[5]) and np.isnan(found.log2_ratio[5])


def test_without_cells_anywhere_nothing_differs() -> None:
    found = count_test(np.zeros((8, 3)), np.ones((8, 3)), IN_B)
    assert found.p.tolist() == [1, 1, 1] and found.scatter is None


def test_a_covariate_takes_what_it_explains() -> None:
    """A batch that doubles all counts is not unequal groups, even where the groups hold it unequally."""
    rng = np.random.default_rng(2)
    batch = np.array([0, 0, 0, 1, 0, 1, 1, 1.0])
    counts = rng.poisson(rng.uniform(50, 500, 100) * 3.0 ** batch[:, None]).astype(float)
    volume = np.ones_like(counts)
    blind = count_test(counts, volume, IN_B)
    adjusted = count_test(counts, volume, IN_B, batch[:, None])
    assert np.median(blind.log2_ratio) == pytest.approx(np.log2(2.5 / 1.5), abs=0.1)
    assert np.abs(adjusted.log2_ratio).max() < 0.4
    assert np.mean(adjusted.p < 0.05) < 0.2


@pytest.mark.parametrize("shared_sd", [0.0, 0.3])
def test_without_a_difference_p_values_are_even(shared_sd: float) -> None:
    p = np.concatenate([count_test(*drawn(seed, shared_sd=shared_sd), IN_B).p for seed in range(40)])
    assert 0.02 < np.mean(p < 0.05) < 0.08
    assert 0.4 < np.mean(p < 0.5) < 0.6


def test_planted_differences_are_found_and_hardly_others() -> None:
    found, false = 0, 0
    for seed in range(10):
        cohort = simulate(Simulation(planted=20, fold=4.0, shared_sd=0.0, dispersion=0.05), seed)
        result = count_test(cohort.count.astype(float), cohort.volume_mm3, IN_B)
        called = adjust(result.p, cohort.count.sum(axis=0)) <= 0.05
        found += called[cohort.planted].sum()
        false += called.sum() - called[cohort.planted].sum()
        signs = np.sign(result.log2_ratio[called]) == cohort.direction[called]
        assert signs[cohort.direction[called] != 0].all()
    assert found > 0.8 * 200
    assert false < 0.1 * found


def test_levels_of_animals_are_found_whatever_some_regions_do() -> None:
    level = np.array([0.7, 1.5, 1.0, 1.2, 0.8, 1.1, 0.9, 1.3])
    counts, volume = drawn(shared_sd=0.0, fewest=500.0, planted=30, dispersion=0.01)
    found = relative_levels(np.round(counts * level[:, None]), volume)
    assert found is not None
    np.testing.assert_allclose(found, level / np.exp(np.log(level).mean()), rtol=0.05)
    assert relative_levels(np.zeros((8, 300)), volume) is None
