"""The network's input: the latest slices of a window, consecutive in memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from brainmap.infer.block.folding import planes

__all__ = ["SliceStack"]


class SliceStack:
    """The last `channels` slices that were pushed, as one array without copying them for every slice.

    Slices move through a store at least twice as deep as the network sees; only at its end are the last ones
    moved back to its start.

    Parameters
    ----------
    channels : int
        Slices that the network sees at once.
    padded : (rows, columns)
        Window of a slice, with what lies outside the image; multiples of `fold`.
    inside : (rows, columns)
        The part of it, from its corner, that slices fill.
    fill : float
        Value of everything else, and of slices without tissue.
    fold : int
        Slices are kept as planes; see `brainmap.infer.block.folding`.
    valid : int
        Pushes for which what `latest` returned stays as it is, at least 1.
    """

    def __init__(
        self,
        channels: int,
        padded: tuple[int, int],
        inside: tuple[int, int],
        fill: float,
        fold: int = 1,
        valid: int = 1,
    ) -> None:
        rows, columns = (n // fold for n in padded)
        self._store = np.full((2 * channels + valid - 1, fold**2, rows, columns), fill, np.float32)
        self._channels, self._inside, self._fill, self._fold = channels, inside, np.float32(fill), fold
        self._stop = channels

    def push(self, image: NDArray[np.float32] | None, offset: float = 0.0) -> None:
        """Append `image - offset`, an array of the inside's shape, or an empty slice."""
        if self._stop == len(self._store):
            kept = self._channels - 1
            self._store[:kept] = self._store[self._stop - kept :]
            self._stop = kept
        target = self._store[self._stop]
        if image is None:
            image, offset = np.broadcast_to(self._fill, self._inside), 0.0
        for plane, y, x in planes(self._fold):
            part = image[y, x]
            np.subtract(part, np.float32(offset), out=target[plane, : part.shape[0], : part.shape[1]])
        self._stop += 1

    @property
    def latest(self) -> NDArray[np.float32]:
        """The planes of the last slices pushed, slice by slice; a view.

        Shape (channels x fold**2, rows / fold, columns / fold).
        """
        found = self._store[self._stop - self._channels : self._stop]
        return found.reshape(-1, *found.shape[2:])
