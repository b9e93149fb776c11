"""Images as planes: a square of factor x factor pixels becomes a column of channels ("pixel unshuffle"), and back.

Networks that fold their input and unfold their heat do arithmetic between the two. The ends only move pixels: for a
slice that the network sees several times, and for offsets that are asked for at few cells, it is cheaper to do without.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Folds", "folded", "folded_values", "planes", "unfolded"]


@dataclass(frozen=True)
class Folds:
    """Factors by which a network takes its slices and gives its heat folded; 1 is as they are."""

    image: int = 1
    heat: int = 1


def planes(factor: int) -> Iterator[tuple[int, slice, slice]]:
    """Each plane, with the rows and the columns of the image that it holds."""
    for y in range(factor):
        for x in range(factor):
            yield y * factor + x, slice(y, None, factor), slice(x, None, factor)


def folded(image: NDArray[Any], factor: int) -> NDArray[Any]:
    """Planes of each channel, shape (channels x factor**2, rows / factor, columns / factor), C-contiguous.

    Parameters
    ----------
    image : ndarray, shape (channels, rows, columns)
        Rows and columns are multiples of the factor.
    """
    channels, rows, columns = image.shape
    out = np.empty((channels, factor**2, rows // factor, columns // factor), image.dtype)
    for plane, y, x in planes(factor):
        out[:, plane] = image[:, y, x]
    return out.reshape(-1, *out.shape[2:])


def unfolded(values: NDArray[Any], factor: int) -> NDArray[Any]:
    """The inverse of `folded`, in memory of its own."""
    channels, rows, columns = len(values) // factor**2, *values.shape[1:]
    parts = values.reshape(channels, factor**2, rows, columns)
    out = np.empty((channels, rows * factor, columns * factor), values.dtype)
    for plane, y, x in planes(factor):
        out[:, y, x] = parts[:, plane]
    return out


def folded_values(
    values: NDArray[Any], factor: int, row: NDArray[np.integer], column: NDArray[np.integer]
) -> NDArray[Any]:
    """`unfolded(values, factor)[:, row, column]`, shape (channels, n), without unfolding."""
    parts = values.reshape(-1, factor**2, *values.shape[1:])
    plane = row % factor * factor + column % factor
    return parts[:, plane, row // factor, column // factor]
