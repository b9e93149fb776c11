from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from brainmap.cohort.model.statistics import (
    adjust,
    count_test,
    in_family,
)
from brainmap.cohort.simulate import Simulation, simulate

IN_B = np.repeat([False, True], 4)


def drawn(seed: int = 0, **changes: object) -> tuple[np.ndarray, np.ndarray]:
    cohort = simulate(Simulation(**changes), seed)  # type: ignore[arg-type]
    return cohort.count.astype(float), cohort.volume_mm3


def test_q_values_are_scipys_within_the_family() -> None:
    p = np.array([0.001, 0.2, 1e-9, 0.03, np.nan, 0.04])
    cells = np.array([10.0, 50, 9, 500, 500, 20])
    q = adjust(p, cells)
    np.testing.assert_allclose(q[[0, 1, 3, 5]], stats.false_discovery_control(p[[0, 1, 3, 5]]))
    assert q[2] == 1 and np.isnan(q[4])
    assert in_family(p, cells).tolist() == [True, True, False, True, False, True]
    assert np.isnan(adjust(np.array([np.nan]), np.array([50.0]))).all()


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
    np.testing.assert_allclose(np.log2(found.density_b / found.density_a), expected, atol=1e-6)


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
