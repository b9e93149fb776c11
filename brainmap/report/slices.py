"""Pictures of single slices of a volume, read at the pyramid level that suits their size."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.image.otsu import otsu
from brainmap.image.volume import Volume
from brainmap.points.table import Points

__all__ = [
    "Crop",
    "SliceImage",
    "choose_crops",
    "choose_slices",
    "read_crop",
    "read_slice",
    "read_slices",
    "tissue_of",
]

Image = NDArray[np.float32]
_STRIP_BYTES = 64_000_000
_THREADS = 4


@dataclass(frozen=True)
class SliceImage:
    """Part of one slice, as a picture.

    Attributes
    ----------
    z : int
        Level-0 slice.
    values : float32 array (rows, columns)
        Recorded intensities.
    extent_um : (y0, y1, x0, x1)
        Where it lies: um from the volume's outer corner.
    """

    z: int
    values: Image
    extent_um: tuple[float, float, float, float]

    @property
    def size_um(self) -> tuple[float, float]:
        """Height and width, um."""
        y0, y1, x0, x1 = self.extent_um
        return y1 - y0, x1 - x0

    def window(self, white: float = 0.0) -> tuple[float, float]:
        """Black and white level: the 1st and 99.7th percentile, so that single bright pixels do not decide.

        The white level is at least `white`.
        """
        low, high = np.percentile(self.values, [1.0, 99.7])
        return float(low), float(max(high, white, low + 1.0))


@dataclass(frozen=True)
class Crop:
    """A place worth a closer look: why, its level-0 voxels, and the region of most of its cells (0: none)."""

    title: str
    z: int
    y: tuple[int, int]
    x: tuple[int, int]
    region: int = 0


def choose_slices(per_slice: NDArray[np.int64], depth: int, count: int = 3) -> list[int]:
    """Slices spread over the depth where cells lie (or over the whole depth if there are none)."""
    if depth <= count:
        return list(range(depth))
    weight = per_slice[:depth].astype(float)
    # Half by cells and half by depth: dense parts do not take all pictures.
    weight = (
        weight / weight.sum() + 0.5 * (weight > 0) / max((weight > 0).sum(), 1)
        if weight.sum()
        else weight + 1.0
    )
    total = np.cumsum(weight) / weight.sum()
    shares = (np.arange(count) + 0.5) / count
    return sorted({int(np.searchsorted(total, share)) for share in shares})


def read_slices(volume: Volume, slices: Sequence[int]) -> list[SliceImage]:
    """Read some whole slices at the same time; see `read_slice`."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="brainmap-slices") as pool:
        return list(pool.map(functools.partial(read_slice, volume), slices))


def read_slice(volume: Volume, z: int, pixels: int = 1000) -> SliceImage:
    """Read a whole slice at the coarsest level with at least `pixels` along its longer side.

    A volume without a pyramid is read in strips and averaged, so memory stays bounded.
    """
    wanted = [i for i, level in enumerate(volume.levels) if max(level.shape[1:]) >= pixels]
    number = max(wanted, default=0)
    level = volume.levels[number]
    # The level's slice that covers level-0 slice z (levels may be coarser along z and shifted).
    k = (z * volume.voxel_um[0] + volume.origin_um[0] - level.origin_um[0]) / level.voxel_um[0]
    k = int(np.clip(round(k), 0, level.shape[0] - 1))
    factor = max(1, max(level.shape[1:]) // (2 * pixels))
    height, width = level.shape[1] // factor * factor, level.shape[2] // factor * factor
    rows = max(factor, _STRIP_BYTES // max(1, width * volume.dtype.itemsize) // factor * factor)
    strips = []
    for y in range(0, height, rows):
        strip = volume.read(slice(k, k + 1), slice(y, min(y + rows, height)), slice(0, width), level=number)[
            0
        ]
        strip = _recorded(strip)
        strips.append(strip.reshape(-1, factor, width // factor, factor).mean(axis=(1, 3), dtype=np.float32))
    y0 = level.origin_um[1] - level.voxel_um[1] / 2 - volume.origin_um[1] + volume.voxel_um[1] / 2
    x0 = level.origin_um[2] - level.voxel_um[2] / 2 - volume.origin_um[2] + volume.voxel_um[2] / 2
    extent = (y0, y0 + height * level.voxel_um[1], x0, x0 + width * level.voxel_um[2])
    return SliceImage(z, np.concatenate(strips).astype(np.float32), extent)


def read_crop(volume: Volume, crop: Crop) -> SliceImage:
    """Read a crop at full resolution."""
    values = _recorded(volume.read(slice(crop.z, crop.z + 1), slice(*crop.y), slice(*crop.x))[0])
    values = values.astype(np.float32)
    _, dy, dx = volume.voxel_um
    return SliceImage(crop.z, values, (crop.y[0] * dy, crop.y[1] * dy, crop.x[0] * dx, crop.x[1] * dx))


def _recorded(values: NDArray[Any]) -> NDArray[Any]:
    """Grey levels; black where a float image holds none (NaN outside a mask) or one that float32 cannot hold."""
    if values.dtype.kind != "f":
        return values
    with np.errstate(over="ignore"):
        single = values.astype(np.float32, copy=False)
    return np.where(np.isfinite(single), single, np.float32(0))


def tissue_of(image: SliceImage) -> NDArray[np.bool_]:
    """Where a slice shows tissue: above Otsu's threshold of its smoothed logarithm."""
    from scipy import ndimage

    values = np.log1p(np.maximum(ndimage.gaussian_filter(image.values, 4.0), 0.0))
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-6 * max(1.0, abs(high)):
        # One grey level, or a handful of pixels: nothing to tell apart.
        return np.ones(values.shape, bool)
    return values > otsu(values)[1]


def choose_crops(
    volume: Volume, overviews: list[SliceImage], points: list[Points], size_um: float
) -> list[Crop]:
    """Choose up to four places: most cells, a usual place, few cells, and the edge of the tissue.

    They lie in different slices and different regions, as far as there are such.
    """
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="brainmap-slices") as pool:
        tissues = pool.map(tissue_of, overviews)
        parts = zip(overviews, points, tissues, strict=True)
        table = np.concatenate([_tiles(volume, *part, size_um) for part in parts])
    inside = table[table["tissue"] > 0.9]
    if not len(inside):
        inside = table[table["tissue"] >= min(0.5, table["tissue"].max(initial=0.0))]
    chosen: list[Crop] = []

    def choose(title: str, ranked: NDArray[np.void]) -> None:
        """The best of those elsewhere, or else the best one."""
        slices, regions = {crop.z for crop in chosen}, {crop.region for crop in chosen}
        new = [
            ranked[~np.isin(ranked["z"], list(slices)) & ~np.isin(ranked["region"], list(regions))],
            ranked[~np.isin(ranked["z"], list(slices))],
            ranked,
        ]
        row = next(rows for rows in new if len(rows))[0]
        crop = Crop(title, int(row["z"]), (int(row["y0"]), int(row["y1"])), (int(row["x0"]), int(row["x1"])),
                    int(row["region"]))  # fmt: skip
        if all((crop.z, crop.y, crop.x) != (c.z, c.y, c.x) for c in chosen):
            chosen.append(crop)

    if len(inside):
        ranked = inside[np.argsort(-inside["cells"], kind="stable")]
        choose("Where cells are densest", ranked)
        with_cells = ranked[ranked["cells"] > 0]
        if len(with_cells) > 2:
            choose("A usual place", with_cells[len(with_cells) // 2 :])
            choose("Where cells are few", with_cells[::-1])
    edge = table[(table["tissue"] > 0.25) & (table["tissue"] < 0.75)]
    if len(edge):
        choose("At the edge of the tissue", edge[np.argsort(-edge["cells"], kind="stable")])
    return chosen


_TILE = np.dtype(
    [(n, np.int64) for n in ("z", "y0", "y1", "x0", "x1", "cells", "region")] + [("tissue", np.float64)]
)


def _tiles(
    volume: Volume, overview: SliceImage, points: Points, tissue: NDArray[np.bool_], size_um: float
) -> NDArray[np.void]:
    """Half-overlapping candidate crops of one slice with their cells and share of tissue."""
    sides = [max(1, min(round(size_um / volume.voxel_um[a]), volume.shape[a])) for a in (1, 2)]
    starts = [
        np.unique(np.clip(np.arange(0, volume.shape[a], max(1, side // 2)), 0, volume.shape[a] - side))
        for a, side in zip((1, 2), sides, strict=True)
    ]
    scale = [n / extent for n, extent in zip(tissue.shape, overview.size_um, strict=True)]
    rows = []
    y, x = points["y"], points["x"]
    region = points["region_id"] if "region_id" in points else np.zeros(len(points), np.int64)
    for y0 in starts[0]:
        in_y = (y >= y0) & (y < y0 + sides[0])
        for x0 in starts[1]:
            box = [
                slice(*(np.array([s, s + side]) * volume.voxel_um[a] * scale[a - 1]).astype(int))
                for a, s, side in ((1, y0, sides[0]), (2, x0, sides[1]))
            ]
            part = tissue[box[0], box[1]]
            near = in_y & (x >= x0) & (x < x0 + sides[1])
            share = float(part.mean()) if part.size else 0.0
            rows.append(
                (
                    overview.z,
                    y0,
                    y0 + sides[0],
                    x0,
                    x0 + sides[1],
                    int(near.sum()),
                    _most(region[near]),
                    share,
                )
            )
    return np.array(rows, _TILE)


def _most(ids: NDArray[np.int64]) -> int:
    """The commonest id; 0 without any."""
    values, counts = np.unique(ids, return_counts=True)
    return int(values[np.argmax(counts)]) if len(values) else 0
