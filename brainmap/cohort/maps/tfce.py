"""Threshold-free cluster enhancement: every voxel by the clusters that it is part of, at all thresholds.

Smith and Nichols 2009, NeuroImage 44: 83, with their weights and two signs, each by itself.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["EXTENT", "HEIGHT", "STEPS", "tfce"]

Floats = NDArray[np.float64]

EXTENT, HEIGHT = 0.5, 2.0
STEPS = 100

# Clusters hang together by faces, as in FSL's and nilearn's default.
_FACES = ndimage.generate_binary_structure(3, 1)


def tfce(statistic: Floats, mask: NDArray[np.bool_], step: float | None = None) -> Floats:
    """Enhance a map.

    Parameters
    ----------
    statistic : float64 array (z, y, x)
        t or z.
    mask : bool array (z, y, x)
    step : float, optional
        Between thresholds; a hundredth of the largest value by default.

    Returns
    -------
    float64 array (z, y, x)
        The integral of extent^0.5 x height^2 over thresholds, negative where the statistic is; 0 outside the mask.
    """
    values = np.where(mask, statistic, 0.0)
    values = np.where(np.isfinite(values), values, 0.0)
    result = np.zeros(values.shape)
    top = float(np.abs(values).max(initial=0.0))
    if top == 0:
        return result
    step = top / STEPS if step is None else step
    for sign in (1.0, -1.0):
        one = values * sign
        height = step
        while height <= one.max() * (1 + 1e-12):
            labels, count = ndimage.label(one >= height, _FACES)
            if count:
                extent = np.bincount(labels.ravel(), minlength=count + 1).astype(float)
                extent[0] = 0.0
                result += sign * (extent**EXTENT)[labels] * height**HEIGHT * step
            height += step
    return result
