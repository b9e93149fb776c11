"""Training samples from tiles: crops on the network's grid with their soft targets, turned at random.

The soft target (target B of methods 6) is the aggregated heat map resized to the output grid by the operators
that resize the image, so that both keep one convention of pixel centres.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from brainmap.errors import DataError, UsageError
from brainmap.gt.truth import GroundTruth
from brainmap.tiles.tiles import Tiles
from brainmap.train.learn.centernet import CenterNetConfig
from brainmap.train.learn.labelled import labelled_cells
from brainmap.train.learn.samples import GridSettings, render_targets
from brainmap.train.learn.views import net_tile, resize_to_grid, tile_grid

__all__ = ["SoftTile", "TileBatch", "TileSamples", "prepare_tiles", "soft_tile"]

_LEAST_POSTERIOR = 0.5


@dataclass(frozen=True)
class SoftTile:
    """A tile on the network's grid with what is known of it.

    Parameters
    ----------
    image : ndarray of float32, shape (H, W)
        As `NetTile.image`.
    target : ndarray of float32, shape (h, w)
        Soft map on the output grid, 0..1.
    weight : ndarray of float32, shape (h, w)
        How far the target is trusted, 0..1; 0 everywhere for a tile without ground truth.
    points : ndarray of float64, shape (n, 2)
        Accepted cells, network pixels, y and x.
    confidence : ndarray of float64, shape (n,)
        Ground-truth confidence of the cells.
    """

    image: NDArray[np.float32]
    target: NDArray[np.float32]
    weight: NDArray[np.float32]
    points: NDArray[np.float64]
    confidence: NDArray[np.float64]


@dataclass(frozen=True)
class TileBatch:
    """A batch of crops.

    Parameters
    ----------
    image : Tensor, shape (n, slices, crop, crop)
        Sections that stand alone: all channels but the middle one are empty.
    target, weight : Tensor, shape (n, 1, crop / stride, crop / stride)
        Soft map, and trust in it; 0 beyond the tile.
    index : Tensor of int64, shape (m, 3)
        Sample, row and column of the output cell of every accepted cell.
    offset : Tensor, shape (m, 2)
        Place (y, x) of the cell in its output cell, from the middle.
    confidence : Tensor, shape (m,)
    """

    image: Tensor
    target: Tensor
    weight: Tensor
    index: Tensor
    offset: Tensor
    confidence: Tensor


def prepare_tiles(
    tiles: Tiles,
    truth: GroundTruth | None,
    network: CenterNetConfig,
    grid: GridSettings,
    cell_diameter_um: float,
    scales: tuple[float, ...] = (1.0,),
    doubt: float = 0.0,
    exact: bool = False,
) -> list[list[SoftTile]]:
    """All tiles at all scales; the outer list is over tiles.

    Parameters
    ----------
    tiles : Tiles
    truth : GroundTruth or None
        None for tiles without ground truth.
    network, grid : CenterNetConfig, GridSettings
        Fix the output grid.
    cell_diameter_um : float
        Typical cell in the tiles.
    scales : tuple of float
        A cell appears this much larger than the network expects.
    doubt : float
        How much less the surroundings of undecided candidates count; see `soft_tile`.
    exact : bool
        Whether the target is the accepted cells as exact centres, not the soft map.
    """
    if len(tiles) == 0:
        raise DataError(f"{tiles.folder} holds no tile to learn from")
    radius_px = grid.cell_diameter_um / 2 / grid.pixel_um * exact
    return [
        [
            soft_tile(tiles, i, truth, network, grid, cell_diameter_um / s, doubt, s * radius_px)
            for s in scales
        ]
        for i in range(len(tiles))
    ]


def soft_tile(
    tiles: Tiles,
    index: int,
    truth: GroundTruth | None,
    network: CenterNetConfig,
    grid: GridSettings,
    cell_diameter_um: float,
    doubt: float = 0.0,
    radius_px: float = 0.0,
) -> SoftTile:
    """One tile; parameters as for `prepare_tiles`.

    With a `radius_px` (network pixels) the target is that of simulated tissue: 1 at the output cell of every
    accepted cell, a Gaussian of that radius around it, and nothing said about doubtful candidates.

    Within half a cell of a candidate of posterior p the target is trusted 1 - doubt x 4 p (1 - p): where the
    crowd is undecided, the network is not told.

    Raises
    ------
    NotFoundError
        If the ground truth does not know the tile.
    DataError
        If the heat map is not of the tile's size.
    """
    image = tiles.image(index)
    y_um, x_um = (float(v) for v in tiles.columns["voxel_um"][index][1:])
    voxel_um = (float(tiles.columns["voxel_um"][index][0]), y_um, x_um)
    view = net_tile(image, voxel_um, grid, cell_diameter_um)
    output = tile_grid(
        image.shape, voxel_um, replace(grid, pixel_um=grid.pixel_um * network.stride), cell_diameter_um
    )  # type: ignore[arg-type]
    if truth is None:
        shape = output.net_shape[1:]
        none = np.zeros(shape, np.float32)
        return SoftTile(view.image, none, none, np.zeros((0, 2)), np.zeros(0))
    name = str(tiles.ids[index])
    xy, confidence, posterior = truth.points(name)
    accepted = posterior >= _LEAST_POSTERIOR
    if radius_px:
        cells = labelled_cells(view.to_net(xy), posterior, radius_px)
        drawn = render_targets(cells, 0, output.net_shape[1:], 1.0, network.stride)
        points = view.to_net(xy[accepted])
        return SoftTile(view.image, drawn.heat, drawn.weight, points, np.ones(len(points)))
    heat = truth.heatmap(name)
    if heat.shape != image.shape:
        raise DataError(
            f"the heat map of {name} is {heat.shape[0]} x {heat.shape[1]}, the tile {image.shape[0]} x "
            f"{image.shape[1]}; aggregate the clicks with --tiles {tiles.folder}"
        )
    trust = np.ones(image.shape, np.float32)
    if doubt:
        unsure = 4 * posterior * (1 - posterior)
        _lower(trust, xy, 1 - doubt * unsure, (cell_diameter_um / 2 / y_um, cell_diameter_um / 2 / x_um))
    return SoftTile(
        view.image, resize_to_grid(heat, output), resize_to_grid(trust, output),
        view.to_net(xy[accepted]), confidence[accepted],
    )  # fmt: skip


def _lower(
    trust: NDArray[np.float32],
    xy: NDArray[np.float64],
    value: NDArray[np.float64],
    reach: tuple[float, float],
) -> None:
    """Lower a map to `value` in an ellipse of half axes `reach` (y, x) around each point."""
    height, width = trust.shape
    for (x, y), v in zip(xy.tolist(), value.tolist(), strict=True):
        rows = slice(max(0, int(y - reach[0])), min(height, int(y + reach[0]) + 2))
        columns = slice(max(0, int(x - reach[1])), min(width, int(x + reach[1])) + 2)
        part = trust[rows, columns]
        dy = (np.arange(rows.start, rows.start + part.shape[0]) - y) / reach[0]
        dx = (np.arange(columns.start, columns.start + part.shape[1]) - x) / reach[1]
        inside = dy[:, None] ** 2 + dx**2 <= 1
        np.minimum(part, np.float32(v), out=part, where=inside)


class TileSamples:
    """Draws training crops from prepared tiles.

    Parameters
    ----------
    tiles : list of list of SoftTile
        As `prepare_tiles` returns them.
    crop : int
        Height and width of a sample, network pixels; a multiple of the stride.
    network : CenterNetConfig
    on_cells : float
        Share of the crops laid over a cell, drawn in proportion to its confidence; the others lie anywhere.
    """

    def __init__(
        self, tiles: list[list[SoftTile]], crop: int, network: CenterNetConfig, on_cells: float = 0.0
    ) -> None:
        if not tiles:
            raise DataError("there is no tile to learn from")
        if crop % network.stride:
            raise UsageError(f"crop is {crop}; give a multiple of {network.stride}")
        self.tiles, self.crop, self.network, self.on_cells = tiles, crop, network, on_cells
        # Large tiles hold more to learn from than small ones; confident cells more than doubtful ones.
        self._area = _shares([float(t[0].image.size) for t in tiles])
        self._support = _shares([float(t[0].confidence.sum()) for t in tiles])

    def draw_batch(self, size: int, rng: np.random.Generator) -> TileBatch:
        """`size` crops."""
        drawn = [self._draw(rng) for _ in range(size)]
        index = [np.column_stack([np.full(len(d[3]), n), d[3]]) for n, d in enumerate(drawn)]
        images = np.zeros((size, self.network.slices, self.crop, self.crop), np.float32)
        images[:, self.network.slices // 2] = np.stack([d[0] for d in drawn])
        arrays = (
            images,
            np.stack([d[1] for d in drawn])[:, None],
            np.stack([d[2] for d in drawn])[:, None],
            np.concatenate(index).astype(np.int64),
            np.concatenate([d[4] for d in drawn]).astype(np.float32),
            np.concatenate([d[5] for d in drawn]).astype(np.float32),
        )
        return TileBatch(*(torch.from_numpy(a) for a in arrays))

    def _draw(self, rng: np.random.Generator) -> tuple[NDArray, ...]:
        """One crop: image, target, weight, output cells, offsets and confidences of its accepted cells."""
        over_cell = self._support is not None and rng.random() < self.on_cells
        which = int(rng.choice(len(self.tiles), p=self._support if over_cell else self._area))
        scales = self.tiles[which]
        tile = scales[int(rng.integers(len(scales)))]
        if over_cell:
            chosen = rng.choice(len(tile.points), p=tile.confidence / tile.confidence.sum())
            corner = tile.points[chosen] - rng.uniform(0, self.crop, 2)
        else:
            room = np.array(tile.image.shape) - self.crop
            # A third of a crop may lie beyond the tile, where there is nothing, as at a section's edge.
            corner = rng.uniform(-self.crop / 3, np.maximum(room, 0) + self.crop / 3)
        stride = self.network.stride
        top, left = (int(c) for c in np.floor(corner / stride) * stride)
        image = _cut(tile.image, top, left, self.crop)
        maps = [
            _cut(m, top // stride, left // stride, self.crop // stride) for m in (tile.target, tile.weight)
        ]
        points = tile.points - (top, left)
        image, maps, points = _turn(image, maps, points, rng)
        place = (points + 0.5) / stride
        cell = np.floor(place).astype(np.int64)
        inside = ((cell >= 0) & (cell < self.crop // stride)).all(axis=1)
        return (image, *maps, cell[inside], (place - cell - 0.5)[inside], tile.confidence[inside])


def _shares(values: list[float]) -> NDArray[np.float64] | None:
    total = sum(values)
    return np.array(values) / total if total > 0 else None


def _cut(image: NDArray[np.float32], top: int, left: int, size: int) -> NDArray[np.float32]:
    """A square of an image, zero where it lies beyond."""
    out = np.zeros((size, size), np.float32)
    part = image[max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)]
    row, column = max(-top, 0), max(-left, 0)
    out[row : row + part.shape[0], column : column + part.shape[1]] = part
    return out


def _turn(
    image: NDArray[np.float32],
    maps: list[NDArray[np.float32]],
    points: NDArray[np.float64],
    rng: np.random.Generator,
) -> tuple[NDArray[np.float32], list[NDArray[np.float32]], NDArray[np.float64]]:
    """One of the eight ways to lay a square: mirror along either axis, transpose."""
    flips = rng.random(3) < 0.5
    size = len(image)
    points = points.copy()
    for axis in (0, 1):
        if flips[axis]:
            image, maps = np.flip(image, axis), [np.flip(m, axis) for m in maps]
            points[:, axis] = size - 1 - points[:, axis]
    if flips[2]:
        image, maps, points = image.T, [m.T for m in maps], points[:, ::-1]
    return image, maps, points
