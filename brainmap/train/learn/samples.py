"""Training samples: simulated tissue seen the way detection sees a brain.

A simulated volume goes through the same normalisation and resampling as a real one. What is kept is
the network's view of it (a stack of slices on the detector's grid) and the cells on that grid.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.files import atomic_path
from brainmap.image.array_source import ArraySource
from brainmap.image.intensity import BACKGROUND_VALUE, Intensity
from brainmap.infer.block.resample import axis_operator, resample_band
from brainmap.infer.plan.blocks import Grid
from brainmap.train.tissue.tissue import Tissue

__all__ = [
    "INVISIBLE",
    "VISIBLE",
    "GridSettings",
    "NetVolume",
    "Samples",
    "Targets",
    "load_volumes",
    "net_volume",
    "render_targets",
    "save_volumes",
    "to_grid",
]

log = logging.getLogger(__name__)

# Contrast (noise standard deviations) of a cell, free of noise and at detector resolution, below which
# nobody could see it, and from which on the detector is expected to.
INVISIBLE, VISIBLE = 0.35, 0.8


@dataclass(frozen=True)
class GridSettings:
    """What fixes the detector's grid on a volume, in um."""

    pixel_um: float = 2.0
    z_target_um: float = 4.0
    cell_diameter_um: float = 10.0


@dataclass(frozen=True)
class NetVolume:
    """A volume on the detector's grid.

    Parameters
    ----------
    stack : ndarray of float16, shape (k, h, w)
        Network input, i.e. normalised intensity minus the background value.
    step_um : float
        Distance of two slices of the stack.
    cells : ndarray of float32, shape (n, 5)
        k, i, j (grid index, 0 is the centre of the first pixel or slice), radius in pixels, contrast.
    """

    stack: NDArray[np.float16]
    step_um: float
    cells: NDArray[np.float32]


def net_volume(tissue: Tissue, settings: GridSettings) -> NetVolume:
    """The network's view of a simulated volume, and its cells on that grid."""
    source = ArraySource(tissue.image, tissue.voxel_um)
    intensity = Intensity.fit(source, settings.cell_diameter_um)
    shape: tuple[int, int, int] = tissue.image.shape  # type: ignore[assignment]
    group = min(max(1, round(settings.z_target_um / tissue.voxel_um[0])), shape[0])
    grid = Grid(shape, tissue.voxel_um, settings.pixel_um, group, stride=1)
    depth, height, width = grid.net_shape
    axes = (
        grid.group_z(np.arange(depth)),
        grid.to_vox(np.arange(float(height)), 1),
        grid.to_vox(np.arange(float(width)), 2),
    )
    stack = intensity.normalise(to_grid(tissue.image, grid), *axes) - np.float32(BACKGROUND_VALUE)
    clean = to_grid(tissue.signal, grid) + intensity.background_at(*axes)
    scale = np.array([group, *(settings.pixel_um / v for v in tissue.voxel_um[1:])])
    position = (tissue.centres_vox + 0.5) / scale - 0.5
    contrast = _peak_near(intensity.contrast(clean, *axes), position)
    radius = tissue.diameter_um / 2 / settings.pixel_um
    cells = np.column_stack([position, radius, contrast]).astype(np.float32)
    return NetVolume(stack.astype(np.float16), grid.group_um, cells)


def to_grid(volume: NDArray[Any], grid: Grid) -> NDArray[np.float32]:
    """A whole volume on the detector's grid."""
    _depth, height, width = grid.net_shape
    out = np.zeros(grid.net_shape, np.float32)
    rows, columns = axis_operator(grid, 1, (0, height)), axis_operator(grid, 2, (0, width))
    resample_band(out, volume, (0, len(volume)), 0, grid, 0, rows, columns)
    return out


def _peak_near(volume: NDArray[np.float32], position: NDArray[np.float64]) -> NDArray[np.float32]:
    """Largest value within one pixel and slice of each position."""
    index = np.rint(position).astype(int)
    result = np.full(len(index), -np.inf, np.float32)
    top = np.array(volume.shape) - 1
    for offset in np.ndindex(3, 3, 3):
        near = np.clip(index + np.array(offset) - 1, 0, top)
        result = np.maximum(result, volume[tuple(near.T)])
    return result


@dataclass(frozen=True)
class Targets:
    """What the network should say about one slice.

    Parameters
    ----------
    heat : ndarray of float32, shape (h, w)
        1 exactly at the output cell of each centre, Gaussian around it (methods 5 and 6).
    weight : ndarray of float32, shape (h, w)
        0 where cells too dim to judge lie, else 1.
    centres : ndarray of int64, shape (n, 2)
        Output cell (row, column) of each centre on this slice.
    offset : ndarray of float32, shape (n, 2)
        Offset (y, x) of each centre from the middle of its output cell, in output cells.
    """

    heat: NDArray[np.float32]
    weight: NDArray[np.float32]
    centres: NDArray[np.int64]
    offset: NDArray[np.float32]


def render_targets(
    cells: NDArray[np.float32],
    k: int,
    shape: tuple[int, int],
    step_px: float,
    stride: int = 1,
    fade_px: float = 1.5,
    alone: bool = False,
) -> Targets:
    """Targets of slice `k`.

    A cell counts fully on the slice nearest its centre and fades on the others with the distance of its
    centre, so that the maximum over slices is its centre. On a section that stands alone every cell
    that is cut near its middle counts, and the others fade.

    Parameters
    ----------
    cells : ndarray, shape (n, 5)
        As in `NetVolume.cells`, in the frame of the crop.
    k : int
        Slice.
    shape : tuple of int
        Height and width of the output map.
    step_px, fade_px : float
        Distance of two slices, standard deviation of the fading, both in network pixels.
    stride : int
        Network pixels per output cell.
    alone : bool
        Whether the network sees this slice only.
    """
    heat = np.zeros(shape, np.float32)
    weight = np.ones(shape, np.float32)
    away = np.abs(cells[:, 0] - k) * step_px
    if alone:
        full = np.maximum(0.65 * cells[:, 3], 0.5 * step_px)
        fade = np.exp(-0.5 * (np.maximum(away - full, 0) / (0.25 * cells[:, 3])) ** 2)
        on_slice = away <= full
    else:
        fade = np.exp(-0.5 * (np.maximum(away - 0.35 * step_px, 0) / fade_px) ** 2)
        on_slice = np.rint(cells[:, 0]).astype(int) == k
    visible = cells[:, 4] >= VISIBLE
    doubtful = ~visible & (cells[:, 4] >= INVISIBLE) & (fade > 0.2)
    shown = visible & (fade > 0.02)
    position = (cells[:, 1:3] + 0.5) / stride
    cell = np.floor(position).astype(int)
    radius = np.maximum(1, np.rint(cells[:, 3] / stride))
    sigma = (2 * radius + 1) / 6
    for index in np.flatnonzero(shown | doubtful):
        window, distance = _window(cell[index], int(np.ceil(3 * sigma[index])), shape)
        if window is None:
            continue
        if doubtful[index]:
            weight[window] = np.where(distance <= (radius[index] + 1) ** 2, 0, weight[window])
            continue
        height = 1.0 if on_slice[index] else min(float(fade[index]), 0.98)
        gauss = height * np.exp(-distance / (2 * sigma[index] ** 2))
        heat[window] = np.maximum(heat[window], gauss.astype(np.float32))
    inside = np.all((cell >= 0) & (cell < shape), axis=1)
    chosen = visible & on_slice & inside
    weight[tuple(cell[chosen].T)] = 1
    return Targets(heat, weight, cell[chosen], (position - cell - 0.5)[chosen].astype(np.float32))


def _window(
    cell: NDArray[np.int64], reach: int, shape: tuple[int, int]
) -> tuple[tuple[slice, slice] | None, NDArray[np.float32]]:
    """Part of the map within `reach` of a cell, and its squared distances from it."""
    low = np.maximum(cell - reach, 0)
    high = np.minimum(cell + reach + 1, shape)
    if (high <= low).any():
        return None, np.zeros((0, 0), np.float32)
    rows = np.arange(low[0], high[0]) - cell[0]
    columns = np.arange(low[1], high[1]) - cell[1]
    distance = (rows[:, None] ** 2 + columns[None] ** 2).astype(np.float32)
    return (slice(low[0], high[0]), slice(low[1], high[1])), distance


class Samples:
    """Draws training samples from prepared volumes.

    Parameters
    ----------
    volumes : list of NetVolume
        The pool.
    crop : int
        Height and width of a sample in network pixels.
    slices : int
        Slices per sample; odd.
    stride : int
        Output stride.
    pixel_um : float
        Network pixel.
    probability : ndarray of float64, shape (len(volumes),), optional
        With which each volume is drawn; equally often by default.
    """

    def __init__(
        self,
        volumes: list[NetVolume],
        crop: int,
        slices: int,
        stride: int,
        pixel_um: float = 2.0,
        probability: NDArray[np.float64] | None = None,
    ) -> None:
        self.volumes = volumes
        self.cumulated = np.cumsum(np.ones(len(volumes)) if probability is None else probability)
        self.pixel_um = pixel_um
        self.crop = crop
        self.slices = slices
        self.stride = stride

    def draw(self, rng: np.random.Generator) -> tuple[NDArray[np.float32], Targets]:
        """One sample: input (slices, crop, crop) and its targets, turned at random."""
        volume = self.volumes[np.searchsorted(self.cumulated, rng.random() * self.cumulated[-1], "right")]
        depth, height, width = volume.stack.shape
        k = int(rng.integers(depth))
        half = self.slices // 2
        beyond = self.crop // 3 if rng.random() < 0.35 else 0
        top, left = (_place(n, self.crop, beyond, rng) for n in (height, width))
        image = np.zeros((self.slices, self.crop, self.crop), np.float32)
        rows, columns = slice(max(top, 0), top + self.crop), slice(max(left, 0), left + self.crop)
        part = volume.stack[:, rows, columns]
        at = (slice(rows.start - top, rows.start - top + part.shape[1]),
              slice(columns.start - left, columns.start - left + part.shape[2]))  # fmt: skip
        for channel in range(self.slices):
            if 0 <= k + channel - half < depth:
                image[channel, *at] = part[k + channel - half]
        cells = volume.cells - np.array([0, top, left, 0, 0], np.float32)
        first = -np.inf
        alone = rng.random() < 0.08
        if alone:
            image[np.arange(self.slices) != half] = 0
        elif rng.random() < 0.2:
            # The volume ends here: the slices beyond a face are empty.
            cut = int(rng.integers(1, half + 1))
            image[: half + 1 - cut] = 0
            first = k + 1 - cut
        cells = cells[_counted(cells, first, self.crop)]
        image, cells = _turn(image, cells, k, self.crop, rng)
        shape = (self.crop // self.stride, self.crop // self.stride)
        return image, render_targets(
            cells, k, shape, volume.step_um / self.pixel_um, self.stride, alone=alone
        )


def _place(size: int, crop: int, beyond: int, rng: np.random.Generator) -> int:
    """Where a crop begins along an axis; up to `beyond` pixels of it may lie outside, as at a volume's face."""
    return int(rng.integers(-beyond, max(0, size - crop) + beyond + 1))


def _counted(cells: NDArray[np.float32], first: float, crop: int) -> NDArray[np.bool_]:
    """Which cells count: those centred in the crop, in slice `first` or after it.

    The sides of a crop look like those of a volume, where a cell counts only if its centre lies inside, however
    much of it shows.
    """
    in_plane = (cells[:, 1:3] >= -0.5) & (cells[:, 1:3] < crop - 0.5)
    return in_plane.all(axis=1) & (cells[:, 0] >= first - 0.5)


def _turn(
    image: NDArray[np.float32], cells: NDArray[np.float32], k: int, crop: int, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mirror along any axis, transpose the plane."""
    cells = cells.copy()
    if rng.random() < 0.5:
        image, cells[:, 0] = image[::-1], 2 * k - cells[:, 0]
    if rng.random() < 0.5:
        image, cells[:, 1] = image[:, ::-1], crop - 1 - cells[:, 1]
    if rng.random() < 0.5:
        image, cells[:, 2] = image[:, :, ::-1], crop - 1 - cells[:, 2]
    if rng.random() < 0.5:
        image, cells[:, 1:3] = image.swapaxes(1, 2), cells[:, [2, 1]]
    return image, cells


def save_volumes(path: Path, volumes: list[NetVolume]) -> None:
    """Write a batch of volumes to one `.npz`, atomically."""
    record: dict[str, Any] = {}
    for index, volume in enumerate(volumes):
        record[f"stack{index}"] = volume.stack
        record[f"cells{index}"] = volume.cells
        record[f"step{index}"] = volume.step_um
    with atomic_path(path) as part, part.open("wb") as file:
        np.savez(file, **record)


def load_volumes(path: Path) -> list[NetVolume]:
    """Read what `save_volumes` wrote."""
    with np.load(path) as record:
        count = sum(name.startswith("stack") for name in record.files)
        return [
            NetVolume(record[f"stack{i}"], float(record[f"step{i}"]), record[f"cells{i}"])
            for i in range(count)
        ]
