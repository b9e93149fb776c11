from __future__ import annotations

import numpy as np
import pytest

from brainmap.cohort.model.dispersion import LEAST_REGIONS, Scatter, estimate_scatter
from brainmap.cohort.simulate import Simulation, simulate


def scatter_of(seed: int = 0, **changes: object) -> Scatter:
    cohort = simulate(Simulation(**({"fewest": 30.0} | changes)), seed)  # type: ignore[arg-type]
    y, offset = cohort.count.T.astype(float), np.log(cohort.volume_mm3.T)
    design = np.column_stack([np.ones(len(cohort.group)), cohort.group == 1])
    return estimate_scatter(y, offset, design, np.ones_like(y))


def test_dispersion_that_regions_share_is_found_and_borrowed() -> None:
    found = scatter_of(dispersion=0.08, dispersion_freedom=0, shared_sd=0)
    assert found.dispersion == pytest.approx(0.08, rel=0.15)
    assert found.prior_freedom > 50
    assert np.median(found.quasi) == pytest.approx(1, abs=0.15)
    assert found.shared < 0.002


def test_regions_that_scatter_differently_borrow_less() -> None:
    borrowed = [scatter_of(seed, dispersion_freedom=5.0, shared_sd=0).prior_freedom for seed in range(5)]
    assert np.median(borrowed) == pytest.approx(5, abs=3)


def test_what_animals_share_is_kept_apart() -> None:
    sd = [np.sqrt(scatter_of(seed, animals=(12, 12), shared_sd=0.3).shared) for seed in range(5)]
    assert np.mean(sd) == pytest.approx(0.3, rel=0.2)
    with_level, without = scatter_of(shared_sd=0.4), scatter_of(shared_sd=0.0)
    assert with_level.dispersion == pytest.approx(without.dispersion, rel=0.25)


def test_counts_without_overdispersion_have_none() -> None:
    found = scatter_of(dispersion=1e-6, dispersion_freedom=0, shared_sd=0)
    assert found.dispersion < 0.003
    assert np.median(found.quasi) == pytest.approx(1, abs=0.15)


def test_few_regions_do_not_borrow() -> None:
    found = scatter_of(regions=LEAST_REGIONS - 1)
    assert found.prior_freedom == 0 and found.shared == 0
    assert (found.freedom <= 6.5).all()
