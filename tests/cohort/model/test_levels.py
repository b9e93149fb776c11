from __future__ import annotations

import numpy as np
import pytest

from brainmap.cohort.model.levels import control_levels, median_levels
from brainmap.cohort.simulate import Simulation, simulate
from brainmap.errors import DataError

LEVEL = np.array([0.7, 1.5, 1.0, 1.2, 0.8, 1.1, 0.9, 1.3])


def drawn() -> tuple[np.ndarray, np.ndarray]:
    cohort = simulate(Simulation(shared_sd=0.0, fewest=500.0, planted=30, dispersion=0.01), 0)
    return np.round(cohort.count * LEVEL[:, None]), cohort.volume_mm3


def test_levels_of_animals_are_found_whatever_some_regions_do() -> None:
    found = median_levels(*drawn())
    assert found is not None and found.regions == 300
    expected = LEVEL / np.exp(np.log(LEVEL).mean())
    np.testing.assert_allclose(found.factor, expected, rtol=0.05)
    assert (np.abs(np.log(found.factor / expected)) < 4 * found.error).all() and found.error.max() < 0.05


def test_regions_that_an_animal_lacks_do_not_move_its_level() -> None:
    counts, volume = drawn()
    volume[3, :100] = np.nan
    found = median_levels(counts, volume)
    assert found is not None
    np.testing.assert_allclose(found.factor, LEVEL / np.exp(np.log(LEVEL).mean()), rtol=0.07)


def test_without_cells_there_is_no_level() -> None:
    assert median_levels(np.zeros((8, 300)), np.ones((8, 300))) is None


def test_control_regions_set_the_level() -> None:
    counts, volume = drawn()
    found = control_levels(counts[:, 40:44], volume[:, 40:44], ("a", "b", "c", "d"))
    np.testing.assert_allclose(found.factor, LEVEL / np.exp(np.log(LEVEL).mean()), rtol=0.25)
    counts[2, 40:44] = 0
    with pytest.raises(DataError, match="animal number 3 has no cell in a, b, c, d"):
        control_levels(counts[:, 40:44], volume[:, 40:44], ("a", "b", "c", "d"))
