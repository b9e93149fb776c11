"""What the generator is trained on: crops of real tiles, random discs, and images made before.

Source: the founding study, methods 5. The number of discs is not given there; see `GeneratorConfig.discs`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import expit
from torch import Tensor

from brainmap.errors import DataError
from brainmap.files import fingerprint
from brainmap.tiles.tiles import Tiles

__all__ = ["DiscSource", "History", "RandomDiscs", "RealCrops", "mask_and_cells"]

# Soft cells: brightness, as cells of real sections have it in normalised intensity (background 0.3); opacity in
# the middle, so that grain shines through but no background can hide a cell; width of the edge as a share of
# the radius.
_BRIGHTNESS = (0.4, 0.85)
_OPACITY = (0.5, 0.85)
_EDGE = (0.08, 0.25)


class DiscSource(Protocol):
    """Where cells lie: `brainmap.train.synthesis.placement.Placement` or `RandomDiscs`."""

    def sample(
        self, shape: tuple[int, int], rng: np.random.Generator
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Centres (n, 2) as x, y in pixels, 0 = centre of the first pixel, and radii (n,) in pixels."""
        ...


@dataclass(frozen=True)
class RandomDiscs:
    """Discs anywhere, their number uniform in a range.

    Parameters
    ----------
    per_10000_px : tuple of float
        Least and greatest number of discs on 100 x 100 px.
    radius_px : tuple of float
        Least and greatest radius, uniform between.
    """

    per_10000_px: tuple[float, float]
    radius_px: tuple[float, float]

    def sample(
        self, shape: tuple[int, int], rng: np.random.Generator
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Centres (n, 2) as x, y, and radii (n,), in pixels."""
        height, width = shape
        count = rng.poisson(rng.uniform(*self.per_10000_px) * height * width / 1e4)
        centres = rng.uniform(-0.5, (width - 0.5, height - 0.5), (count, 2))
        return centres, rng.uniform(*self.radius_px, count)


def mask_and_cells(
    centres_xy: NDArray[np.float64],
    radii_px: NDArray[np.float64],
    shape: tuple[int, int],
    look: str,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mask M and cell image C of a tile, to be composed as C * M + B * (1 - M).

    Parameters
    ----------
    centres_xy : ndarray, (n, 2)
        Centres, x and y in pixels, 0 = centre of the first pixel.
    radii_px : ndarray, (n,)
        Radii in pixels; in the soft look the radius where half of the middle's opacity is left.
    shape : tuple of int
        Height and width.
    look : str
        `study`: M is 1 on discs and 0 elsewhere, C = M (methods 5). `soft`: M is the opacity of soft-edged
        cells and C the brightness of each, so that the background's grain shines through, as cells of real
        tiles have it (brainmap; methods 10 ii).
    rng : Generator
        Brightness and edges of soft cells.

    Returns
    -------
    mask, cells : ndarray of float32, (height, width)
    """
    mask, cells = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    brightness, opacity, edge = (rng.uniform(*r, len(radii_px)) for r in (_BRIGHTNESS, _OPACITY, _EDGE))
    if look == "study":
        brightness, opacity = np.ones_like(brightness), np.ones_like(opacity)
    for n, ((x, y), radius) in enumerate(zip(centres_xy, radii_px, strict=True)):
        width = edge[n] * radius
        reach = radius + (4 * width if look == "soft" else 0)
        rows, columns = (
            slice(max(0, math.ceil(at - reach)), max(0, min(size, math.floor(at + reach) + 1)))
            for at, size in zip((y, x), shape, strict=True)
        )
        distance = np.hypot(
            np.arange(rows.start, rows.stop)[:, None] - y, np.arange(columns.start, columns.stop)[None] - x
        )
        inside = expit((radius - distance) / width) if look == "soft" else distance <= radius
        # Where cells overlap, the more opaque one is seen.
        front = opacity[n] * inside > mask[rows, columns]
        mask[rows, columns][front] = (opacity[n] * inside)[front]
        cells[rows, columns][front] = brightness[n]
    return mask, cells


class RealCrops:
    """Random crops of real tiles, turned and mirrored.

    All tiles are held in memory, one byte a pixel. A crop is as likely to lie at one pixel of the tile set as
    at another.

    Parameters
    ----------
    tiles : Tiles
    size : int
        Width and height of a crop.
    fit : str
        `crop`: a window of the tile at its own resolution, at random; only a tile smaller than that is
        enlarged. `resize`: the whole tile is resized and centre-cropped (methods 5).

    Raises
    ------
    DataError
        If there are no tiles.
    """

    def __init__(self, tiles: Tiles, size: int, fit: str) -> None:
        if len(tiles) == 0:
            raise DataError(f"{tiles.folder} holds no tiles; a generator is trained on real tiles")
        self.size = size
        self.images = [_at_least(tiles.image(index), size, fit) for index in range(len(tiles))]
        area = np.array([image.size for image in self.images], np.float64)
        self.cumulative = np.cumsum(area / area.sum())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all pixels: a training goes on only with the tiles it began with."""
        return fingerprint([fingerprint(image.tobytes()) for image in self.images])

    @property
    def mean(self) -> float:
        """Mean grey of all tiles, 0..1."""
        return float(np.mean([image.mean() for image in self.images])) / 255

    def draw(self, count: int, rng: np.random.Generator) -> Tensor:
        """Crops, float32 (count, 1, size, size) in 0..1."""
        return smooth_grey(np.stack([self._one(rng) for _ in range(count)])[:, None], rng)

    def _one(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        chosen = int(np.searchsorted(self.cumulative, rng.uniform(), side="right"))
        image = self.images[min(chosen, len(self.images) - 1)]
        y, x = (int(rng.integers(n - self.size + 1)) for n in image.shape)
        crop = np.rot90(image[y : y + self.size, x : x + self.size], int(rng.integers(4)))
        return crop[:, ::-1] if rng.integers(2) else crop


def smooth_grey(grey: NDArray[np.uint8], rng: np.random.Generator) -> Tensor:
    """8-bit grey as 0..1, spread evenly over each step, so that no critic can tell real from made by the steps."""
    spread = grey + rng.uniform(-0.5, 0.5, grey.shape).astype(np.float32)
    return torch.from_numpy((spread / np.float32(255)).clip(0, 1))


def _at_least(image: NDArray[np.float32], size: int, fit: str) -> NDArray[np.uint8]:
    shortest = min(image.shape)
    if shortest < size or (fit == "resize" and shortest != size):
        # A whole number of pixels on the shorter side, whatever the rounding of the other.
        shape = [max(size, round(n * size / shortest)) for n in image.shape]
        zoom = [new / old for new, old in zip(shape, image.shape, strict=True)]
        if size < shortest:
            image = ndimage.gaussian_filter(image, 0.5 * (shortest / size - 1), mode="nearest")
        image = ndimage.zoom(image, zoom, order=1, mode="nearest", grid_mode=True)
    if fit == "resize":
        y, x = ((n - size) // 2 for n in image.shape)
        image = image[y : y + size, x : x + size]
    return np.rint(image * 255).clip(0, 255).astype(np.uint8)


class History:
    """Images generated before, of which the critic's batches hold some (Shrivastava et al. 2017, 2.3).

    A critic that sees only what the generator makes now forgets what it made before, and both go in circles.
    Kept with 8 bits a pixel, as tiles are.

    Parameters
    ----------
    capacity : int
        Images kept; 0 keeps none and mixes nothing.
    size : int
        Height and width of an image.
    """

    def __init__(self, capacity: int, size: int) -> None:
        self.images = np.zeros((capacity, size, size), np.uint8)
        self.count = 0

    def mix(self, fresh: Tensor, share: float, rng: np.random.Generator) -> Tensor:
        """Fresh images (n, 1, height, width), about `share` of them exchanged for older ones.

        An exchanged image takes the older one's place. Until the buffer is full every image is kept.
        """
        if len(self.images) == 0:
            return fresh
        mixed = fresh.clone()
        grey = np.rint(fresh[:, 0].cpu().numpy() * 255).astype(np.uint8)
        for index, image in enumerate(grey):
            if self.count < len(self.images):
                self.images[self.count] = image
                self.count += 1
            elif rng.uniform() < share:
                place = int(rng.integers(self.count))
                mixed[index, 0] = smooth_grey(self.images[place], rng).to(fresh.device)
                self.images[place] = image
        return mixed

    def state(self) -> Tensor:
        """The images kept, uint8 (count, height, width), as a checkpoint holds them."""
        return torch.from_numpy(self.images[: self.count].copy())

    def restore(self, images: Tensor) -> None:
        self.count = len(images)
        self.images[: self.count] = images.numpy()
