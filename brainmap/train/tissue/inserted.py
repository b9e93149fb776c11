"""Simulated cells in real tissue: what simulated backgrounds miss, with a truth that is still known.

A stack of real tissue without labelled cells, such as the autofluorescence channel of a cleared brain, is
the background; cells are drawn into it with the light, blur and shot noise they would have had there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from brainmap.errors import DataError, NotFoundError
from brainmap.train.tissue.config import TissueConfig
from brainmap.train.tissue.drawing import draw_cells
from brainmap.train.tissue.optics import blur
from brainmap.train.tissue.tissue import Tissue, place_cells

__all__ = ["Background", "insert_cells"]

_DIAMETER_UM = (7.0, 14.0)
# A part of which less is tissue is drawn again, so many times at most.
_LEAST_TISSUE, _TRIES = 0.25, 20


@dataclass(frozen=True)
class Background:
    """A stack of real tissue without labelled cells.

    Parameters
    ----------
    image : ndarray of unsigned integers, shape (z, y, x)
    voxel_um : tuple of float
        Voxel size z, y, x.
    name : str
        For messages and records.
    """

    image: NDArray[Any]
    voxel_um: tuple[float, float, float]
    name: str = "background"

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.size == 0:
            raise DataError(f"{self.name} has shape {self.image.shape}; a stack z, y, x is needed")

    @classmethod
    def open(cls, path: Path, voxel_um: tuple[float, float, float]) -> Background:
        """Read a multi-page TIFF."""
        import tifffile

        if not path.is_file():
            raise NotFoundError(f"{path} does not exist; give a TIFF stack of tissue without labelled cells")
        return cls(np.atleast_3d(tifffile.imread(path)), voxel_um, path.name)


def insert_cells(background: Background, seed: int, extent_um: float = 640.0) -> Tissue:
    """A random part of a background with random cells in its tissue.

    Parameters
    ----------
    background : Background
    seed : int
        Decides the part, how it is turned, the cells' look and places.
    extent_um : float
        Height and width of the part; less where the stack is smaller.

    Returns
    -------
    Tissue
    """
    rng = np.random.default_rng(seed)
    # Pretending another pixel size shows the network the same texture at another scale.
    factor = float(rng.uniform(0.8, 1.3))
    voxel: tuple[float, float, float] = tuple(v * factor for v in background.voxel_um)  # type: ignore[assignment]
    image = _part(background.image, extent_um / voxel[1], rng)
    look = TissueConfig.random(rng)
    config = replace(
        look,
        shape=image.shape,
        voxel_um=voxel,
        density_per_mm3=float(np.exp(rng.uniform(np.log(1_000), np.log(60_000)))),
        clusters=int(rng.integers(0, 4)),
        diameter_um=float(rng.uniform(*_DIAMETER_UM)),
        blur_um=(float(rng.uniform(0.5, 3.0)), float(rng.uniform(0.3, 1.2))),
    )
    level, light, noise = _levels(image)
    centres, diameters = place_cells(config, rng)
    vox = centres / np.asarray(voxel)
    lit = ndimage.map_coordinates(light, vox.T, order=1, mode="nearest") > 0.45 * level
    centres, diameters, vox = centres[lit], diameters[lit], vox[lit]
    cells = draw_cells(config, centres, diameters, rng)
    signal = blur(config, cells, None) * level
    grain = rng.standard_normal(image.shape, np.float32) * noise * np.sqrt(signal / max(level, 1e-6))
    top = np.iinfo(np.uint16).max
    result = np.clip(np.rint(image + signal + grain), 0, top).astype(np.uint16)
    kept = np.all((vox >= -0.5) & (vox < np.asarray(image.shape) - 0.5), axis=1)
    return Tissue(result, signal.astype(np.float32), vox[kept], diameters[kept], voxel)


def _part(stack: NDArray[Any], side: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """A random part of a stack that shows tissue, mirrored and transposed at random."""
    size = [min(n, round(side)) for n in stack.shape[1:]]
    coarse = ndimage.gaussian_filter(stack[len(stack) // 2].astype(np.float32), 3)
    lit = coarse - coarse.min() > 0.4 * (np.quantile(coarse, 0.98) - coarse.min())
    for _ in range(_TRIES):
        top, left = (int(rng.integers(n - s + 1)) for n, s in zip(stack.shape[1:], size, strict=True))
        if lit[top : top + size[0], left : left + size[1]].mean() >= _LEAST_TISSUE:
            break
    part = stack[:, top : top + size[0], left : left + size[1]].astype(np.float32)
    for axis in range(3):
        if rng.random() < 0.5:
            part = np.flip(part, axis)
    if rng.random() < 0.5:
        part = part.swapaxes(1, 2)
    return np.ascontiguousarray(part)


def _levels(image: NDArray[np.float32]) -> tuple[float, NDArray[np.float32], float]:
    """Light of the tissue above darkness, the light of every voxel, smoothed, and a voxel's noise in tissue."""
    light = ndimage.gaussian_filter(image, (0.5, 3, 3)) - np.quantile(image, 0.005).astype(np.float32)
    level = float(np.median(light[light > 0.4 * np.quantile(light, 0.98)]))
    tissue = light > 0.45 * level
    rough = (image - ndimage.gaussian_filter(image, (0, 1.5, 1.5)))[tissue]
    noise = 1.4826 * float(np.median(np.abs(rough))) if rough.size else 0.0
    return level, light, noise
