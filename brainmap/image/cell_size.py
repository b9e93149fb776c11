"""How large the cells of a brain are, measured on sample patches before detection.

Blobs are maxima over place and scale of the scale-normalised Laplacian of Gaussian (Lindeberg 1998): a disc of
diameter d answers most to sigma = d / (2 sqrt 2). Only clear ones count, those that stand out of the texture of
their own scale.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from brainmap.errors import DataError
from brainmap.image.intensity import Intensity
from brainmap.image.overview import Source, pooled

__all__ = ["ENOUGH", "LARGEST_UM", "SMALLEST_UM", "CellSize", "measure_cell_size"]

log = logging.getLogger(__name__)

SMALLEST_UM, LARGEST_UM = 5.0, 25.0
_SCALES = 12
_PATCHES, _PATCH_UM, _PIXEL_UM = 24, 250.0, 1.0
# A section of the patch is about so thick: one cell, not two above each other.
_THICK_UM = 4.0
# Blobs that stand out of their scale's texture so many robust standard deviations, and of the noise.
_CLEAR, _CONTRAST = 8.0, 3.0
# With fewer clear blobs the size is not known.
ENOUGH = 40


@dataclass(frozen=True)
class CellSize:
    """Diameter of the clear blobs.

    Parameters
    ----------
    diameter_um : float
        Median over the clear blobs; NaN where there are none.
    blobs : int
        How many there were in the sample.
    spread_um : float
        Half the distance of the quartiles.
    """

    diameter_um: float
    blobs: int
    spread_um: float

    @property
    def known(self) -> bool:
        """Whether there were enough blobs to go by."""
        return self.blobs >= ENOUGH and math.isfinite(self.diameter_um)


def measure_cell_size(source: Source, intensity: Intensity) -> CellSize:
    """Measure the cells of a volume on patches of level 0 spread evenly over its tissue.

    Parameters
    ----------
    source : Volume
    intensity : Intensity
        Of the volume.

    Returns
    -------
    CellSize
    """
    found = [_blobs(image, pixel) for image, pixel in _patches(source, intensity)]
    diameter, clear = (np.concatenate([blobs[i] for blobs in found] or [np.zeros(0)]) for i in (0, 1))
    if not len(diameter):
        return CellSize(math.nan, 0, math.nan)
    # The clearest half: what is faint is texture more often.
    best = diameter[clear >= np.median(clear)] if len(diameter) >= 2 * ENOUGH else diameter
    low, middle, high = np.quantile(best, [0.25, 0.5, 0.75])
    log.info("cells measure %.1f um (quartiles %.1f to %.1f, %d blobs)", middle, low, high, len(diameter))
    return CellSize(float(middle), len(diameter), float(high - low) / 2)


def _patches(source: Source, intensity: Intensity) -> Iterator[tuple[NDArray[np.float32], float]]:
    """Contrast of patches (y, x), and their pixel in um."""
    full = source.levels[0]
    inside = np.flatnonzero(intensity.tissue)
    picks = inside[np.linspace(0, len(inside) - 1, min(_PATCHES, len(inside))).astype(int)]
    # Square pixels: a scale is one number.
    pixel = max(_PIXEL_UM, *full.voxel_um[1:])
    pool = [max(1, round(pixel / v)) for v in full.voxel_um[1:]]
    depth = min(max(1, round(_THICK_UM / full.voxel_um[0])), full.shape[0])
    for place in np.stack(np.unravel_index(picks, intensity.tissue.shape), axis=1):
        box = []
        for axis in range(3):
            size = depth if axis == 0 else min(round(_PATCH_UM / full.voxel_um[axis]), full.shape[axis])
            centre = (int(place[axis]) + 0.5) * intensity.bin_vox[axis]
            start = int(np.clip(round(centre - size / 2), 0, full.shape[axis] - size))
            box.append(slice(start, start + size))
        try:
            voxels = source.read(box[0], box[1], box[2]).astype(np.float32).mean(axis=0, keepdims=True)
        except DataError:
            continue
        image = np.nan_to_num(pooled(voxels, (pool[0], pool[1])))
        z = np.array([box[0].start + (depth - 1) / 2])
        rows = box[1].start + (np.arange(image.shape[1]) + 0.5) * pool[0] - 0.5
        columns = box[2].start + (np.arange(image.shape[2]) + 0.5) * pool[1] - 0.5
        contrast = intensity.contrast(image, z, rows, columns)[0]
        um = [n * v for n, v in zip(pool, full.voxel_um[1:], strict=True)]
        contrast = ndimage.zoom(contrast, [u / pixel for u in um], order=1) if um[0] != um[1] else contrast
        yield contrast, pixel if um[0] != um[1] else um[0]


def _blobs(image: NDArray[np.float32], pixel_um: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Diameter, um, of the clear blobs of a patch, and how clear they are."""
    diameters = np.geomspace(SMALLEST_UM / 1.2, LARGEST_UM * 1.2, _SCALES)
    response = np.stack([_laplacian(image, d / (2 * math.sqrt(2)) / pixel_um) for d in diameters])
    texture = 1.4826 * np.median(
        np.abs(response - np.median(response, axis=(1, 2), keepdims=True)), axis=(1, 2)
    )
    clear = response / np.maximum(texture, 1e-6)[:, None, None]
    peak = (
        (response == ndimage.maximum_filter(response, size=(3, 3, 3)))
        & (clear >= _CLEAR)
        & (response >= _CONTRAST)
    )
    # The first and last scale only say that a blob is smaller or larger than any that counts.
    peak[[0, -1]] = False
    scale, row, column = np.nonzero(peak)
    diameter = diameters[scale] * (diameters[1] / diameters[0]) ** _vertex(response, scale, row, column)
    kept: list[int] = []
    for i in np.argsort(-response[peak]):
        away = np.hypot(row[kept] - row[i], column[kept] - column[i]) * pixel_um
        if (away > diameter[kept] / 2).all():
            kept.append(int(i))
    return diameter[kept], clear[peak][kept].astype(np.float64)


def _vertex(
    response: NDArray[np.float32], scale: NDArray[np.intp], row: NDArray[np.intp], column: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Vertex of the parabola through a maximum over the scales, in steps of the scale, within half of one."""
    before, here, after = (response[scale + step, row, column].astype(np.float64) for step in (-1, 0, 1))
    bend = 2 * here - before - after
    return np.clip((after - before) / (2 * np.maximum(bend, 1e-9)), -0.5, 0.5)


def _laplacian(image: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    return np.asarray(-(sigma**2) * ndimage.gaussian_laplace(image, sigma, mode="nearest"), np.float32)
