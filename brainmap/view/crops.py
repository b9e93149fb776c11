"""Small pictures of a place in an image."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from brainmap.image.volume import Volume

__all__ = ["Crops", "brightness_window"]

# A look at so many voxels says how bright an image is.
_LOOKED_AT = 4_000_000
_PIXELS = 192


def brightness_window(volume: Volume) -> tuple[float, float]:
    """Grey levels between which an image is shown: from its darkest to nearly its brightest, away from zeros."""
    level = len(volume.levels) - 1
    shape = volume.levels[level].shape
    planes = max(1, min(shape[0], _LOOKED_AT // max(1, shape[1] * shape[2])))
    chosen = np.unique(np.linspace(0, shape[0] - 1, min(planes, 12) + 2).astype(int)[1:-1])
    values = [
        volume.read(slice(z, z + 1), slice(None), slice(None), level=level).ravel() for z in chosen.tolist()
    ]
    seen = np.concatenate([part[:: max(1, len(part) * len(values) // _LOOKED_AT)] for part in values])
    seen = seen[np.isfinite(seen) & (seen != 0)].astype(np.float64)
    if not len(seen):
        return 0.0, 1.0
    low, high = np.quantile(seen, [0.01, 0.9995])
    return float(low), float(max(high, low + 1e-6))


@dataclass(frozen=True)
class Crops:
    """Cuts pictures out of one channel.

    Parameters
    ----------
    volume : Volume
    """

    volume: Volume

    @cached_property
    def window(self) -> tuple[float, float]:
        """Grey levels of the whole image between black and white."""
        return brightness_window(self.volume)

    def cell(self, zyx_um: NDArray[np.float64], side_um: float) -> bytes:
        """A PNG of a place from above (x right, y down) and, below it, from the side (x right, z down)."""
        half = np.full(3, side_um / 2)
        box, level = self._read(zyx_um - half, zyx_um + half)
        step = self.volume.levels[level].voxel_um
        middle = [n // 2 for n in box.shape]
        around = max(1, round(2.0 / step[0]))
        top = box[max(0, middle[0] - around // 2) : middle[0] + (around + 1) // 2].max(axis=0)
        side = box[:, max(0, middle[1] - 1) : middle[1] + 1].max(axis=1)
        pictures = [_scaled(top, (_PIXELS, _PIXELS)), _scaled(side, (_PIXELS // 2, _PIXELS))]
        rule = np.full((2, _PIXELS), self.window[1], np.float32)
        return self._png(np.vstack([pictures[0], rule, pictures[1][: _PIXELS // 2]]))

    def plane(self, low_um: NDArray[np.float64], high_um: NDArray[np.float64], pixels: int) -> bytes:
        """A PNG of the brightest of a box along z, `pixels` wide (x right, y down)."""
        box, _ = self._read(low_um, high_um)
        height = max(1, round(pixels * (high_um[1] - low_um[1]) / (high_um[2] - low_um[2])))
        return self._png(_scaled(box.max(axis=0), (height, pixels)))

    def brightest(
        self, zyx_um: NDArray[np.float64], low_um: float, high_um: float, around_um: float
    ) -> float:
        """z in um, between two, at which a small patch around a place is brightest."""
        half = np.array([0.0, around_um / 2, around_um / 2])
        low, high = zyx_um - half, zyx_um + half
        low[0], high[0] = low_um, high_um
        box, level = self._read(low, high, finest=True)
        best = int(box.reshape(len(box), -1).mean(axis=1).argmax())
        record = self.volume.levels[level]
        first = round((low[0] - record.origin_um[0]) / record.voxel_um[0])
        return float(np.clip((first + best) * record.voxel_um[0] + record.origin_um[0], low_um, high_um))

    def _read(
        self, low_um: NDArray[np.float64], high_um: NDArray[np.float64], finest: bool = False
    ) -> tuple[NDArray[np.float32], int]:
        """A box (z, y, x) as float32, filled up where it leaves the image, and the level it was read at."""
        fine = float((high_um - low_um)[1:].max()) / _PIXELS
        level = 0 if finest else self.volume.level_near(max(fine, min(self.volume.voxel_um)))
        record = self.volume.levels[level]
        first = np.round((low_um - record.origin_um) / record.voxel_um).astype(int)
        last = np.maximum(np.round((high_um - record.origin_um) / record.voxel_um).astype(int), first) + 1
        start, stop = np.clip(first, 0, record.shape), np.clip(last, 0, record.shape)
        box = np.full(tuple(last - first), np.float32(self.window[0]))
        if (stop > start).all():
            spans = [slice(a, b) for a, b in zip(start.tolist(), stop.tolist(), strict=True)]
            inside = tuple(slice(a, b) for a, b in zip(start - first, stop - first, strict=True))
            box[inside] = self.volume.read(spans[0], spans[1], spans[2], level=level)
        return box, level

    def _png(self, picture: NDArray[np.float32]) -> bytes:
        from PIL import Image

        low, high = self.window
        # As bright as the place allows, but noise stays dark.
        top = max(float(np.quantile(picture, 0.998)), low + (high - low) / 8)
        grey = np.clip((picture - low) / max(top - low, 1e-9), 0, 1) ** 0.8
        out = io.BytesIO()
        Image.fromarray((grey * 255).astype(np.uint8)).save(out, "PNG")
        return out.getvalue()


def _scaled(picture: NDArray[Any], shape: tuple[int, int]) -> NDArray[np.float32]:
    """A picture at another size, smooth between its pixels."""
    factors = [wanted / max(have, 1) for wanted, have in zip(shape, picture.shape, strict=True)]
    if math.prod(picture.shape) == 0:
        return np.zeros(shape, np.float32)
    out = ndimage.zoom(picture.astype(np.float32), factors, order=1, grid_mode=True, mode="nearest")
    return np.asarray(out[: shape[0], : shape[1]])
