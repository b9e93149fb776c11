from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize

from brainmap.cohort.model.negative_binomial import deviance, deviance_moments, fit_means, leverages

RNG = np.random.default_rng(5)
IN_B = np.repeat([0.0, 1.0], 4)
DESIGN = np.column_stack([np.ones(8), IN_B, RNG.normal(size=8)])
OFFSET = np.log(RNG.uniform(0.5, 2.0, (6, 8)))
COUNTS = RNG.poisson(RNG.gamma(2, [[1], [3], [10], [50], [400], [3000]], (6, 8))).astype(float)
ALL = np.ones((6, 8))


def log_likelihood(y: np.ndarray, mean: np.ndarray, dispersion: float) -> np.ndarray:
    if dispersion == 0:
        return stats.poisson.logpmf(y, mean)
    size = 1 / dispersion
    return stats.nbinom.logpmf(y, size, size / (size + mean))


@pytest.mark.parametrize("dispersion", [0.0, 0.05, 0.8])
def test_fit_is_the_maximum_that_an_optimiser_finds(dispersion: float) -> None:
    fit = fit_means(COUNTS, OFFSET, DESIGN, dispersion, ALL)
    for region in range(len(COUNTS)):

        def lost(beta: np.ndarray, region: int = region) -> float:
            mean = np.exp(np.clip(DESIGN @ beta + OFFSET[region], -30, 30))
            return -float(log_likelihood(COUNTS[region], mean, dispersion).sum())

        start = np.array([np.log(COUNTS[region].mean() + 0.1), 0, 0])
        found = minimize(
            lost, start, method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-10, "maxiter": 4000}
        )
        np.testing.assert_allclose(fit.coefficients[region], found.x, atol=2e-4)


def test_means_of_two_groups_are_ratios_of_sums_without_dispersion() -> None:
    fit = fit_means(COUNTS, OFFSET, DESIGN[:, :2], 0.0, ALL)
    volume = np.exp(OFFSET)
    rate = COUNTS[:, 4:].sum(axis=1) / volume[:, 4:].sum(axis=1)
    rate /= COUNTS[:, :4].sum(axis=1) / volume[:, :4].sum(axis=1)
    np.testing.assert_allclose(np.exp(fit.coefficients[:, 1]), rate, rtol=1e-6)


@pytest.mark.parametrize("dispersion", [0.0, 0.2, 3.0])
def test_deviance_is_twice_the_log_likelihood_lost(dispersion: float) -> None:
    mean = COUNTS * 1.3 + 0.7
    saturated = np.where(COUNTS > 0, log_likelihood(COUNTS, np.maximum(COUNTS, 1e-300), dispersion), 0.0)
    expected = 2 * (saturated - log_likelihood(COUNTS, mean, dispersion))
    np.testing.assert_allclose(deviance(COUNTS, mean, dispersion, ALL), expected, rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(deviance(COUNTS, COUNTS + 1e-300, dispersion, ALL)[COUNTS > 0], 0)


@pytest.mark.parametrize("dispersion", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("mean", [0.02, 0.7, 6.0, 30.0, 500.0])
def test_moments_of_the_deviance_are_those_of_drawn_counts(mean: float, dispersion: float) -> None:
    rng = np.random.default_rng(0)
    rate = mean if dispersion == 0 else rng.gamma(1 / dispersion, dispersion * mean, 200_000)
    y = rng.poisson(rate, 200_000).astype(float)[None]
    unit = deviance(y, np.full_like(y, mean), dispersion, np.ones_like(y))
    first, second = deviance_moments(np.array([[mean]]), dispersion)
    assert first[0, 0] == pytest.approx(unit.mean(), rel=0.03)
    assert second[0, 0] == pytest.approx(unit.var(), rel=0.08)


def test_a_group_without_cells_has_a_finite_fit() -> None:
    counts = np.array([[0.0, 0, 0, 0, 30, 40, 20, 35]])
    fit = fit_means(counts, np.zeros((1, 8)), DESIGN[:, :2], 0.1, np.ones((1, 8)))
    assert np.isfinite(fit.coefficients).all() and np.isfinite(fit.covariance).all()
    np.testing.assert_allclose(fit.mean[0, 4:], 31.25, rtol=1e-6)
    assert (fit.mean[0, :4] < 1e-5).all()


def test_an_animal_without_weight_counts_as_if_it_were_not_there() -> None:
    weight = ALL.copy()
    weight[:, 2] = 0
    kept = np.arange(8) != 2
    whole = fit_means(COUNTS, OFFSET, DESIGN, 0.3, weight)
    part = fit_means(COUNTS[:, kept], OFFSET[:, kept], DESIGN[kept], 0.3, ALL[:, kept])
    np.testing.assert_allclose(whole.coefficients, part.coefficients, atol=1e-6)
    np.testing.assert_allclose(whole.covariance, part.covariance, rtol=1e-4)


def test_leverages_add_up_to_the_number_of_coefficients() -> None:
    fit = fit_means(COUNTS, OFFSET, DESIGN, 0.3, ALL)
    np.testing.assert_allclose(leverages(fit, DESIGN, 0.3, ALL).sum(axis=1), 3, rtol=1e-6)
