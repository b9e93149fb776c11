from __future__ import annotations

import numpy as np
import pytest

from brainmap.cohort.model.shrinkage import shared_in_divisions, shrink

OF = np.repeat(np.arange(10), 30)
ENDLESS = np.full(300, np.inf)


def drawn(seed: int, changed: int = 20, size: float = 1.0) -> tuple[np.ndarray, ...]:
    """Effects of twenty regions inside the first two divisions, and their measured ratios."""
    rng = np.random.default_rng(seed)
    effect = np.zeros(300)
    effect[rng.choice(60, changed, replace=False)] = size
    error = rng.uniform(0.2, 0.5, 300)
    return effect, effect + error * rng.normal(size=300), error


def test_noise_is_shrunk_away() -> None:
    for seed in range(5):
        _, ratio, error = drawn(seed, changed=0)
        found = shrink(ratio, error, ENDLESS, OF)
        assert found.lfsr.min() > 0.05
        assert np.abs(found.log2_ratio).max() < 0.5 * np.abs(ratio).max()


def test_signs_are_wrong_no_more_often_than_claimed_and_divisions_help() -> None:
    claimed, wrong, called, found_alone, found_together = 0.0, 0, 0, 0, 0
    for seed in range(10):
        effect, ratio, error = drawn(seed)
        together = shrink(ratio, error, ENDLESS, OF)
        alone = shrink(ratio, error, ENDLESS, np.full(300, -1))
        yes = together.lfsr < 0.05
        called += yes.sum()
        claimed += together.lfsr[yes].sum()
        wrong += (np.sign(together.log2_ratio[yes]) != np.sign(effect[yes])).sum()
        found_together += (yes & (effect > 0)).sum()
        found_alone += ((alone.lfsr < 0.05) & (effect > 0)).sum()
        assert np.mean((together.log2_ratio - effect) ** 2) < np.mean((ratio - effect) ** 2)
    assert wrong / called < 0.05 and wrong < claimed + 3 * np.sqrt(claimed) + 1
    assert found_together > 1.5 * found_alone > 15


def test_an_error_that_all_regions_share_is_no_effect() -> None:
    rng = np.random.default_rng(3)
    ratio = 0.6 + 0.2 * rng.normal(size=300)
    error = np.full(300, np.sqrt(0.2**2 + 0.6**2))
    assert shrink(ratio, error, ENDLESS, OF, shared=0.6).lfsr.min() > 0.05
    assert (shrink(ratio, np.full(300, 0.2), ENDLESS, OF).lfsr < 0.05).mean() > 0.5


def test_few_degrees_of_freedom_are_not_taken_for_certainty() -> None:
    _, ratio, error = drawn(1)
    sure, unsure = (shrink(ratio, error, np.full(300, df), OF) for df in (np.inf, 4.0))
    # Of 300 ratios that scatter as a t distribution with four degrees of freedom, 3.5 errors are nothing.
    assert (unsure.lfsr >= sure.lfsr - 0.02).mean() > 0.9


def test_unknown_regions_stay_unknown_and_few_are_left_alone() -> None:
    _, ratio, error = drawn(0)
    ratio[5] = np.nan
    found = shrink(ratio, error, ENDLESS, OF)
    assert np.isnan(found.lfsr[5]) and np.isfinite(np.delete(found.lfsr, 5)).all()
    assert np.isnan(shrink(ratio[6:12], error[6:12], ENDLESS[:6], OF[:6]).lfsr).all()


def test_what_a_division_shares_is_found_in_the_residuals() -> None:
    rng = np.random.default_rng(0)
    design = np.column_stack([np.ones(40), np.arange(40) % 2])
    values = (
        0.3 * rng.normal(size=(40, 10))[:, OF] + 0.4 * rng.normal(size=(40, 300)) + rng.normal(size=(40, 1))
    )
    values -= design @ np.linalg.lstsq(design, values, rcond=None)[0]
    assert np.sqrt(shared_in_divisions(values, design, OF)) == pytest.approx(0.3, rel=0.15)
    alone = 0.4 * rng.normal(size=(40, 300))
    alone -= design @ np.linalg.lstsq(design, alone, rcond=None)[0]
    assert np.sqrt(shared_in_divisions(alone, design, OF)) < 0.06
