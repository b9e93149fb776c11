from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from brainmap.cohort.networks.pls import task_pls
from brainmap.errors import DataError

GROUP = np.repeat([0, 1, 2], [6, 5, 7])


def test_patterns_are_the_singular_vectors_of_centred_means() -> None:
    """By hand: eigenvectors of the means' cross products, animal by animal."""
    x = np.random.default_rng(0).normal(3, 2, (18, 10))
    found = task_pls(x, GROUP, 10, 10)
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    means = np.array([[np.mean(z[GROUP == g, j]) for j in range(10)] for g in range(3)])
    means -= means.mean(axis=0)
    values, vectors = np.linalg.eigh(means.T @ means)
    for k in range(2):
        np.testing.assert_allclose(found.singular[k] ** 2, values[-1 - k], rtol=1e-10)
        assert abs(found.salience[:, k] @ vectors[:, -1 - k]) == pytest.approx(1, abs=1e-10)
        np.testing.assert_allclose(found.score[:, k], z @ found.salience[:, k], atol=1e-10)
    np.testing.assert_allclose(found.share, values[-2:][::-1] / values[-2:].sum(), rtol=1e-10)
    np.testing.assert_allclose(found.group * found.singular @ found.salience.T, means, atol=1e-10)


def test_a_planted_pattern_is_found_with_its_regions_and_sign() -> None:
    rng = np.random.default_rng(1)
    group = np.repeat([0, 1], 6)
    x = rng.normal(0, 1, (12, 40))
    x[6:, :5] += 3.0
    x[6:, 5:8] -= 3.0
    found = task_pls(x, group, 199, 200)
    assert found.p[0] <= 0.01 and found.share[0] == pytest.approx(1)
    assert (found.ratio[:5, 0] > 3).all() and (found.ratio[5:8, 0] < -3).all()
    assert (np.abs(found.ratio[8:, 0]) > 3).mean() < 0.2
    assert found.score[6:, 0].min() > found.score[:6, 0].max()


def test_without_a_difference_p_is_uniform() -> None:
    rng = np.random.default_rng(2)
    group = np.repeat([0, 1], [4, 6])
    p = [
        task_pls(rng.normal(0, 1, (10, 1)) + rng.normal(0, 1, (10, 15)), group, 99, 2, k).p[0]
        for k in range(80)
    ]
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_a_region_that_one_animal_lacks_stays_and_one_that_a_group_lacks_goes() -> None:
    x = np.random.default_rng(3).normal(0, 1, (18, 6))
    x[0, 1] = np.nan
    x[1:6, 4] = np.nan
    found = task_pls(x, GROUP, 10, 10)
    assert np.isnan(found.salience[4]).all() and np.isfinite(np.delete(found.salience, 4, axis=0)).all()
    assert np.isfinite(found.score).all()
    values = x[:, 1]
    z = (values - np.nanmean(values)) / np.nanstd(values)
    means = np.array([np.nanmean(z[GROUP == g]) for g in range(3)])
    known = (found.group * found.singular @ found.salience.T)[:, 1]
    np.testing.assert_allclose(known, means - means.mean(), atol=1e-10)


def test_what_cannot_be_decomposed() -> None:
    with pytest.raises(DataError, match="needs two groups"):
        task_pls(np.ones((4, 3)), np.zeros(4, dtype=np.intp))
    with pytest.raises(DataError, match="no region varies"):
        task_pls(np.ones((4, 3)), np.array([0, 0, 1, 1]))
