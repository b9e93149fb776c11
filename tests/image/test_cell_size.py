"""Size of cells from sample patches: discs of known diameter are measured, noise is not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from brainmap.image.array_source import ArraySource
from brainmap.image.cell_size import ENOUGH, CellSize, measure_cell_size
from brainmap.image.intensity import Intensity

VOXEL = (5.0, 1.5, 1.5)


def tissue(diameter_um: float, voxel: tuple[float, float, float] = VOXEL, count: int = 150) -> np.ndarray:
    """Noise with flat spheres of one diameter, a little blurred."""
    rng = np.random.default_rng(1)
    shape = tuple(round(n / v) for n, v in zip((60.0, 600.0, 600.0), voxel, strict=True))
    image = np.zeros(shape)
    grid = np.stack(
        np.meshgrid(*[np.arange(n) * v for n, v in zip(shape, voxel, strict=True)], indexing="ij")
    )
    for centre in rng.uniform(0, np.array(shape) * voxel, (count, 3)):
        low = np.maximum((centre - diameter_um) // voxel, 0).astype(int)
        box = tuple(slice(a, a + int(2 * diameter_um / v) + 2) for a, v in zip(low, voxel, strict=True))
        away = np.linalg.norm(grid[:, *box] - centre[:, None, None, None], axis=0)
        image[box] = np.maximum(image[box], away <= diameter_um / 2)
    image = ndimage.gaussian_filter(image, (0, 0.8 / voxel[1], 0.8 / voxel[2]))
    return (1000 + 20 * rng.standard_normal(shape) + 600 * image).astype(np.uint16)


def measured(image: np.ndarray, voxel: tuple[float, float, float] = VOXEL) -> CellSize:
    source = ArraySource(image, voxel)
    return measure_cell_size(source, Intensity.fit(source))


@pytest.mark.parametrize("diameter", [7.0, 11.0, 18.0])
def test_spheres_are_measured(diameter: float) -> None:
    size = measured(tissue(diameter))
    assert size.known
    # Sections cut most spheres beside their middle.
    assert 0.7 * diameter < size.diameter_um < 1.15 * diameter


def test_pixels_need_not_be_square() -> None:
    size = measured(tissue(12.0, (5.0, 2.0, 1.0)), (5.0, 2.0, 1.0))
    assert 0.7 * 12 < size.diameter_um < 1.15 * 12


def test_noise_has_no_size() -> None:
    size = measured(tissue(10.0, count=0))
    assert not size.known
    assert size.blobs < ENOUGH / 4
