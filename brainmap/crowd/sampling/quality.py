"""Which tiles are worth annotating: the quality rule of the founding study (methods 2), on a brain's own range.

The study's histogram spans "the intensity range". Detection's normalised intensity is logarithmic for what is bright
and leaves its upper end to cells 65 times brighter than the noise: on its whole scale, 0 to 1, none of 13 real c-Fos
sections (`docs/sampling.md`) has a bright pixel to speak of, and every one would be rejected. So the bright end of
the range is where the brain's own grey levels end. Background and contrast are judged on the scale itself, on
which 0.3 is tissue in every brain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from brainmap.tiles.tiles import QualityRule, quality_filter

__all__ = ["Quality", "levels_of", "reach"]

# A brain's grey levels end here: beyond are dust and a few saturated pixels.
_END = 0.9999
_LEVELS = 256


def levels_of(image: NDArray[np.float32]) -> NDArray[np.int64]:
    """Pixels of each of 256 grey levels, as the tile's picture has them; int64 (256,)."""
    return np.bincount(np.rint(image * (_LEVELS - 1)).astype(np.int64).ravel(), minlength=_LEVELS)


def reach(levels: NDArray[np.int64]) -> float:
    """Where the grey levels of a brain end, above 0 and at most 1.

    Parameters
    ----------
    levels : ndarray of int64, shape (256,)
        Summed over the tiles that were looked at.
    """
    share = np.cumsum(levels) / levels.sum()
    return max(int(np.searchsorted(share, _END)), 1) / (_LEVELS - 1)


@dataclass(frozen=True)
class Quality:
    """The rule for the tiles of one brain.

    Parameters
    ----------
    rule : QualityRule
    end : float
        Where the brain's grey levels end; 1 takes detection's whole scale.
    """

    rule: QualityRule
    end: float = 1.0

    def reasons(self, image: NDArray[np.float32]) -> tuple[str, ...]:
        """Reasons to reject a tile (height, width) in 0..1, of "background", "flat", "dim"; none for a good one."""
        return self.reasons_of(levels_of(image))

    def reasons_of(self, levels: NDArray[np.int64]) -> tuple[str, ...]:
        """The same of a tile's grey levels, as `levels_of` counts them."""
        pixels = np.repeat(np.arange(_LEVELS, dtype=np.float32) / np.float32(_LEVELS - 1), levels)[None]
        found = [reason for reason in quality_filter(pixels, self.rule) if reason != "dim"]
        if "dim" in quality_filter(np.minimum(pixels / np.float32(self.end), np.float32(1.0)), self.rule):
            found.append("dim")
        return tuple(found)
