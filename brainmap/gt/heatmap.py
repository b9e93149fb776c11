"""Soft ground truth: clicks as Gaussians, weighted by their workers (methods.md 4.4, 4.5)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["confidence_at", "heat_map"]

Floats = npt.NDArray[np.float64]


def heat_map(
    xy: Floats,
    weight: Floats,
    total_weight: float,
    shape: tuple[int, int],
    *,
    sigma: float = 2.0,
    cut: float = 2.5,
    saturation: float = 6.0,
) -> npt.NDArray[np.float32]:
    """Render H^ = 1 - exp(-S H / W_total), H = sum of weight x Gaussian of peak 1.

    Parameters
    ----------
    xy : (N, 2) float64
        x, y of the clicks, px.
    weight : (N,) float64
        w+ of each click's worker. The sum is clipped at 0 where negative weights prevail.
    total_weight : float
        Sum of w+ over the workers who annotated the image; 0 or less, or NaN, gives a map of zeros.
    shape : (height, width)
    sigma, cut, saturation : float
        Width in px, radius in sigmas beyond which a click adds nothing, and S.

    Returns
    -------
    (height, width) float32, values in [0, 1].
    """
    height, width = shape
    if len(xy) == 0 or not total_weight > 0 or height * width == 0:
        return np.zeros(shape, np.float32)
    radius = int(np.ceil(cut * sigma))
    step = np.arange(-radius, radius + 1)
    centre = np.floor(xy + 0.5).astype(np.int64)
    column, row = centre[:, :1] + step, centre[:, 1:] + step
    dx2, dy2 = (column - xy[:, :1]) ** 2, (row - xy[:, 1:]) ** 2
    square = dy2[:, :, None] + dx2[:, None, :]
    value = np.where(square <= (cut * sigma) ** 2, np.exp(-square / (2 * sigma**2)), 0.0)
    value *= weight[:, None, None]
    inside = ((row >= 0) & (row < height))[:, :, None] & ((column >= 0) & (column < width))[:, None, :]
    index = (row[:, :, None] * width + column[:, None, :])[inside]
    total = np.bincount(index, value[inside], height * width)
    heat = -np.expm1(-saturation * np.maximum(total, 0) / total_weight)
    return heat.reshape(shape).astype(np.float32)


def confidence_at(heat: npt.NDArray[np.float32], xy: Floats) -> Floats:
    """Largest value of the map within 3 x 3 px of each point; (N,) float64."""
    height, width = heat.shape
    if len(xy) == 0 or heat.size == 0:
        return np.zeros(len(xy))
    centre = np.floor(xy + 0.5).astype(np.int64)
    best = np.zeros(len(xy), np.float64)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            row, column = centre[:, 1] + dy, centre[:, 0] + dx
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            best[inside] = np.maximum(best[inside], heat[row[inside], column[inside]])
    return best
