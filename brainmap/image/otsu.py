"""Two classes in a histogram."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["otsu"]


def otsu(values: ArrayLike, bins: int = 256) -> tuple[float, float]:
    """Where a histogram is separated best into two classes (Otsu, IEEE Trans. Syst. Man Cybern. 9:62, 1979).

    Parameters
    ----------
    values : array
        Finite numbers.
    bins : int
        Of the histogram, from the least to the largest value.

    Returns
    -------
    low, high : float
        Edges of the last bin of the lower class. Where nothing separates two classes that is the last bin of all.
    """
    counts, edges = np.histogram(values, bins)
    centres = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * centres)
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = sums / below - (sums[-1] - sums) / above
    score = np.where((below > 0) & (above > 0), below * above * gap**2, 0.0)
    last = int(np.argmax(score)) if score.any() else bins - 1
    return float(edges[last]), float(edges[last + 1])
