from __future__ import annotations

import numpy as np
import pytest

from brainmap.cohort.maps.tfce import tfce


def test_one_box_by_hand() -> None:
    """27 voxels of height 2, step 1: sqrt(27) x (1 + 4); a voxel apart: 1 x 1 up to its height."""
    volume = np.zeros((8, 8, 8))
    volume[1:4, 1:4, 1:4] = 2.0
    volume[6, 6, 6] = 1.0
    found = tfce(volume, np.ones(volume.shape, bool), step=1.0)
    assert found[2, 2, 2] == pytest.approx(np.sqrt(27) * 5) and found[6, 6, 6] == pytest.approx(1.0)
    assert (found[volume == 0] == 0).all()


def test_signs_are_apart_and_mirror_each_other() -> None:
    volume = np.random.default_rng(0).normal(size=(6, 7, 8))
    mask = np.ones(volume.shape, bool)
    found = tfce(volume, mask)
    np.testing.assert_allclose(tfce(-volume, mask), -found)
    assert (np.sign(found) * np.sign(volume) >= 0).all()


def test_corners_do_not_join_and_the_mask_parts() -> None:
    volume = np.zeros((4, 4, 4))
    volume[1, 1, 1] = volume[2, 2, 2] = 1.0
    assert tfce(volume, np.ones(volume.shape, bool), step=1.0).max() == 1.0
    line = np.zeros((3, 3, 5))
    line[1, 1] = 1.0
    mask = np.ones(line.shape, bool)
    mask[1, 1, 2] = False
    assert (
        tfce(line, mask, step=1.0).max() == pytest.approx(np.sqrt(2))
        and tfce(line, mask, step=1.0)[1, 1, 2] == 0
    )


def test_values_of_nilearn() -> None:
    """`nilearn.mass_univariate._utils.calculate_tfce` 0.14.1 on a fixed array; it leaves out the factor of the step."""
    z, y, x = np.indices((5, 6, 7))
    volume = 3 * np.sin(z + 0.7 * y) * np.cos(0.9 * x - z)
    found = tfce(volume, np.ones(volume.shape, bool)) / (np.abs(volume).max() / 100)
    expected = {(2, 3, 4): 0.029177341055742798, (4, 5, 6): 3.853689892776262, (1, 1, 1): 539.8349966680623}
    for place, value in expected.items():
        assert found[place] == pytest.approx(value, rel=1e-6)


def test_nothing_stays_nothing() -> None:
    assert not tfce(np.zeros((3, 3, 3)), np.ones((3, 3, 3), bool)).any()
    assert not tfce(np.full((3, 3, 3), np.nan), np.ones((3, 3, 3), bool)).any()
