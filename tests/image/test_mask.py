"""Masks meet brains in micrometres."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from brainmap.errors import DataError
from brainmap.image.array_source import ArraySource
from brainmap.image.intensity import Intensity
from brainmap.image.mask import Mask
from brainmap.image.volume import write_volume


@pytest.fixture
def mask(tmp_path: Path) -> Mask:
    """Left half of 100 x 100 x 100 um, at 10 um."""
    image = np.zeros((10, 10, 10), np.uint8)
    image[:, :, :5] = 1
    write_volume(tmp_path / "mask.ome.zarr", image, (10.0, 10.0, 10.0))
    return Mask.open(tmp_path / "mask.ome.zarr")


def test_points_inside_outside_and_beyond(mask: Mask) -> None:
    um = np.array(
        [[50.0, 50.0, 20.0], [50.0, 50.0, 44.9], [50.0, 50.0, 45.1], [50.0, 50.0, -6.0], [500.0, 5.0, 5.0]]
    )
    assert mask.contains(um).tolist() == [True, True, False, False, False]


def test_bins_in_or_next_to_the_mask(mask: Mask, tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(100, 5, (20, 50, 200)).astype(np.float32)
    brain = write_volume(tmp_path / "brain.ome.zarr", image.astype(np.uint16), (5.0, 2.0, 2.0))
    intensity = Intensity.fit(ArraySource(image, (5.0, 2.0, 2.0)))
    touched = mask.touches(intensity, brain)
    assert touched.shape == intensity.tissue.shape
    # Bins are 32 um wide: the first two overlap 0 to 50 um, those from 64 um on lie a bin beyond.
    assert touched[:, :, :2].all()
    assert not touched[:, :, 3:].any()


def test_an_empty_mask_is_refused(tmp_path: Path) -> None:
    write_volume(tmp_path / "mask.ome.zarr", np.zeros((4, 8, 8), np.uint8), (10.0, 10.0, 10.0))
    with pytest.raises(DataError, match="empty"):
        Mask.open(tmp_path / "mask.ome.zarr")
