"""Planes and back."""

from __future__ import annotations

import numpy as np
import pytest

from brainmap.infer.block.folding import folded, folded_values, unfolded


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_unfolding_gives_the_image_back(factor: int) -> None:
    image = np.random.default_rng(0).random((4, 6 * factor, 5 * factor), dtype=np.float32)
    planes = folded(image, factor)
    assert planes.shape == (4 * factor**2, 6, 5)
    assert planes.flags.c_contiguous
    np.testing.assert_array_equal(unfolded(planes, factor), image)


def test_planes_are_those_of_torch() -> None:
    torch = pytest.importorskip("torch")
    image = np.random.default_rng(0).random((3, 8, 12), dtype=np.float32)
    wanted = torch.nn.functional.pixel_unshuffle(torch.from_numpy(image), 2).numpy()
    np.testing.assert_array_equal(folded(image, 2), wanted)


@pytest.mark.parametrize("factor", [1, 2])
def test_single_values_are_found_without_unfolding(factor: int) -> None:
    rng = np.random.default_rng(0)
    image = rng.random((2, 8, 10), dtype=np.float32)
    row, column = rng.integers(0, 8, 40), rng.integers(0, 10, 40)
    found = folded_values(folded(image, factor), factor, row, column)
    np.testing.assert_array_equal(found, image[:, row, column])
