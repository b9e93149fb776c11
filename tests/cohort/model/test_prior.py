from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from brainmap.cohort.model.prior import Prior, _log_f, fit_prior


def drawn(borrowed: float, regions: int = 400, freedom: float = 6.0, seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    log_mean = rng.uniform(2, 8, regions)
    trend = np.exp(0.3 * (log_mean - 5))
    raw = trend * rng.f(freedom, borrowed, regions)
    return raw, np.full(regions, freedom), log_mean, trend


def test_what_regions_have_in_common_is_found() -> None:
    raw, freedom, log_mean, trend = drawn(8.0)
    found = fit_prior(raw, freedom, log_mean)
    assert found.freedom == pytest.approx(8, rel=0.4)
    np.testing.assert_allclose(found.trend, trend, rtol=0.25)
    assert found.own_freedom.max() == found.freedom


def test_a_few_wild_regions_do_not_decide_for_all() -> None:
    """What one damaged animal does in twenty regions."""
    raw, freedom, log_mean, _ = drawn(20.0, seed=1)
    wild = raw.copy()
    wild[:20] *= 60
    plain, robust = fit_prior(raw, freedom, log_mean), fit_prior(wild, freedom, log_mean)
    assert robust.freedom > 0.3 * min(plain.freedom, 40)
    np.testing.assert_allclose(robust.trend, plain.trend, rtol=0.2)
    # They themselves are hardly moderated towards the others.
    assert np.median(robust.own_freedom[:20]) < 0.2 * np.median(robust.own_freedom[20:])
    value, _ = robust.moderate(wild, freedom)
    assert np.median(value[:20] / wild[:20]) > 0.6


def test_regions_that_scatter_alike_borrow_without_end() -> None:
    rng = np.random.default_rng(2)
    raw = rng.chisquare(6, 300) / 6
    found = fit_prior(raw, np.full(300, 6.0), np.zeros(300))
    assert found.freedom > 30
    value, total = Prior(np.inf, np.full(300, np.inf), np.ones(300)).moderate(raw, np.full(300, 6.0))
    assert (value == 1).all() and np.isinf(total).all()


def test_log_density_is_that_of_the_f_distribution() -> None:
    ratio, freedom = np.array([0.2, 1.0, 4.0]), np.array([2.0, 6.0, 5.5])
    np.testing.assert_allclose(_log_f(ratio, freedom, 7.0), stats.f.logpdf(ratio, freedom, 7.0))
    np.testing.assert_allclose(
        _log_f(ratio, freedom, 1e6), stats.chi2.logpdf(ratio * freedom, freedom) + np.log(freedom), rtol=1e-6
    )
