"""The network's input: the latest slices of a window, consecutive in memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["SliceStack"]


class SliceStack:
    """The last `channels` slices that were pushed, as one array without copying them for every slice.

    Slices move through a store twice as deep as the network sees; only at its end are the last ones
    moved back to its start.

    Parameters
    ----------
    channels : int
        Slices that the network sees at once.
    padded : (rows, columns)
        Window of a slice, with what lies outside the image.
    inside : (row slice, column slice)
        The part of it that slices fill.
    fill : float
        Value of everything else, and of slices without tissue.
    """

    def __init__(
        self, channels: int, padded: tuple[int, int], inside: tuple[slice, slice], fill: float
    ) -> None:
        self._store = np.full((2 * channels, *padded), fill, np.float32)
        self._channels, self._inside, self._fill = channels, inside, np.float32(fill)
        self._stop = channels

    def push(self, image: NDArray[np.float32] | None, offset: float = 0.0) -> None:
        """Append `image - offset`, an array of the inside's shape, or an empty slice."""
        if self._stop == len(self._store):
            kept = self._channels - 1
            self._store[:kept] = self._store[self._stop - kept :]
            self._stop = kept
        target = self._store[self._stop][self._inside]
        if image is None:
            target[...] = self._fill
        else:
            np.subtract(image, np.float32(offset), out=target)
        self._stop += 1

    @property
    def latest(self) -> NDArray[np.float32]:
        """The last slices pushed, shape (channels, rows, columns); a view, valid until the next push."""
        return self._store[self._stop - self._channels : self._stop]
