"""Cells on tiles, found as detection finds them on a section that stands alone.

The same resampling, surroundings, peaks, sub-pixel places and suppression as in `brainmap.infer.block.process`,
for a network in training as well as for a detector folder.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from brainmap.infer.detector import (
    ALIGN,
    PLAIN_PROMINENCE,
    Detector,
    ProminenceWeights,
    load_backend,
    lowered,
)
from brainmap.infer.peaks import Heat, find_peaks, suppress
from brainmap.infer.plan.blocks import align_up
from brainmap.infer.plan.layout import MAX_TILE, heat_cells, strips, tile_length
from brainmap.progress import tracked
from brainmap.tiles.tiles import Tiles
from brainmap.train.learn.centernet import CenterNet
from brainmap.train.learn.samples import GridSettings
from brainmap.train.learn.views import net_tile, tile_prominence

__all__ = ["LOWEST_LOGIT", "Knots", "TilePoints", "calibrated", "grid_of", "predict_tiles"]

# Peaks below this (0.7 % before calibration) are never of use and would be a thousand on every tile.
LOWEST_LOGIT = -5.0
_SEPARATION_CELLS = 0.6

# Knots (logit, probability) of a calibration, as in `DetectorSpec.calibration`.
Knots = tuple[tuple[float, float], ...]
Infer = Callable[[NDArray[np.float32]], tuple[NDArray[np.float32], NDArray[np.float32]]]


@dataclass(frozen=True)
class TilePoints:
    """Detections on a set of tiles; columns of equal length, sorted by tile, y, x.

    Parameters
    ----------
    image : ndarray of int64
        Index of the tile in the set.
    x, y : ndarray of float64
        Tile px, sub-pixel; 0 is the centre of the first pixel.
    logit : ndarray of float32
        Height of the heat map's peak.
    score : ndarray of float64
        Calibrated probability, or the sigmoid of the logit for a network without calibration.
    """

    image: NDArray[np.int64]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    logit: NDArray[np.float32]
    score: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.image)

    @property
    def xy(self) -> NDArray[np.float64]:
        """x, y; shape (n, 2)."""
        return np.column_stack([self.x, self.y])

    def take(self, which: NDArray) -> TilePoints:
        """Some of the detections, by mask or index."""
        return TilePoints(
            self.image[which], self.x[which], self.y[which], self.logit[which], self.score[which]
        )

    def calibrated(self, knots: Knots) -> TilePoints:
        """The same detections with the scores of a calibration."""
        return replace(self, score=calibrated(self.logit, knots))


def calibrated(logit: NDArray, knots: Knots) -> NDArray[np.float64]:
    """Scores of logits by a calibration, as `DetectorSpec.score`."""
    at, value = np.asarray(knots, np.float64).T
    return np.interp(np.asarray(logit, np.float64), at, value)


def grid_of(detector: Detector) -> GridSettings:
    """The grid a detector folder was trained on."""
    spec = detector.spec
    return GridSettings(spec.pixel_um, spec.z_target_um, spec.cell_diameter_um)


def predict_tiles(
    network: CenterNet | Detector,
    tiles: Tiles,
    grid: GridSettings | None = None,
    cell_diameter_um: float | None = None,
    lowest_logit: float = LOWEST_LOGIT,
    *,
    precision: str = "auto",
    prominence: ProminenceWeights = PLAIN_PROMINENCE,
) -> TilePoints:
    """Detect the cells of tiles, each a section of its own.

    Parameters
    ----------
    network : CenterNet or Detector
        A network, on whatever device it is, or a detector folder, by OpenVINO.
    tiles : Tiles
    grid : GridSettings, optional
        The network's grid; a detector brings its own.
    cell_diameter_um : float, optional
        Diameter of the tiles' cells; by default the grid's.
    lowest_logit : float
        Lower peaks are left out.
    precision : str
        For a detector, as in `load_backend`.
    prominence : tuple of float
        For a network, how logits are lowered; see `DetectorSpec.weighed`. A detector brings its own.
    """
    if isinstance(network, Detector):
        grid = grid_of(network)
        runner = _Runner.of_detector(network, precision)
    else:
        grid = grid or GridSettings()
        runner = _Runner.of_network(network, prominence)
    diameter = grid.cell_diameter_um if cell_diameter_um is None else cell_diameter_um
    parts = []
    for index in tracked(range(len(tiles)), "detecting on tiles", unit="tiles"):
        voxel_um = np.asarray(tiles.columns["voxel_um"][index], np.float64)
        parts.append(_predict(runner, tiles.image(index), voxel_um, grid, diameter, lowest_logit, index))
    return TilePoints(*(np.concatenate([part[i] for part in parts]) for i in range(5)))


@dataclass
class _Runner:
    """A network as a function of its input, whatever computes it."""

    channels: int
    stride: int
    halo: int
    align: int
    subpixel: str
    separation: float
    score: Callable[[NDArray], NDArray[np.float64]]
    # Logits and prominence of peaks to what is scored; None where prominence plays no part.
    weighed: Callable[[NDArray, NDArray], NDArray[np.float32]] | None
    # From the height and width of inputs to the function that maps a batch of them.
    compiled: Callable[[tuple[int, int]], Infer]

    @classmethod
    def of_detector(cls, detector: Detector, precision: str) -> _Runner:
        spec = detector.spec
        known: dict[tuple[int, int], Infer] = {}

        def compiled(shape: tuple[int, int]) -> Infer:
            if shape not in known:
                known[shape] = load_backend(detector, "openvino", tile=shape, precision=precision).infer
            return known[shape]

        return cls(
            spec.channels, spec.stride, align_up(spec.halo_px), ALIGN, spec.subpixel,
            spec.min_separation, spec.score, spec.weighed if spec.prominence[0] else None, compiled,
        )  # fmt: skip

    @classmethod
    def of_network(cls, network: CenterNet, prominence: ProminenceWeights = PLAIN_PROMINENCE) -> _Runner:
        config = network.config
        device = next(network.parameters()).device

        @torch.no_grad()
        def infer(batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            was_training = network.training
            network.eval()
            logit, offset, _ = network(torch.from_numpy(batch).to(device))
            network.train(was_training)
            return logit.float().cpu().numpy(), offset.float().cpu().numpy()

        # Two 3 x 3 convolutions down and one up at every level reach less than this far.
        align = align_up(ALIGN, config.multiple)
        halo = align_up(6 * config.multiple, align)
        return cls(
            config.slices, config.stride, halo, align, "offset", _SEPARATION_CELLS,
            lambda logit: 1 / (1 + np.exp(-np.asarray(logit, np.float64))),
            (lambda logit, found: lowered(logit, found, prominence)) if prominence[0] else None,
            lambda shape: infer,
        )  # fmt: skip

    def maps(self, image: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logit and offsets of a whole image, part by part; in the other channels there is nothing."""
        whole = [align_up(n, self.align) for n in image.shape]
        tile = [
            tile_length(((0, n),), size, self.halo, MAX_TILE, self.align)
            for n, size in zip(image.shape, whole, strict=True)
        ]
        rows, columns = (
            strips((0, n), size, t, self.halo) for n, size, t in zip(image.shape, whole, tile, strict=True)
        )
        padded = np.zeros(whole, np.float32)
        padded[: image.shape[0], : image.shape[1]] = image
        cells = [-(-n // self.stride) for n in image.shape]
        logit, offset = np.empty(cells, np.float32), np.empty((2, *cells), np.float32)
        infer = self.compiled((tile[0], tile[1]))
        batch = np.zeros((1, self.channels, *tile), np.float32)
        for row, column in itertools.product(rows, columns):
            part = padded[row.start : row.start + tile[0], column.start : column.start + tile[1]]
            batch[0, self.channels // 2] = part
            one, two = infer(batch)
            inner, target = heat_cells(row, column, (0, 0), self.stride)
            logit[target], offset[:, *target] = one[0, 0][inner], two[0][:, *inner]
        return logit, offset


def _predict(
    runner: _Runner,
    image: NDArray[np.float32],
    voxel_um: NDArray[np.float64],
    grid: GridSettings,
    diameter_um: float,
    lowest_logit: float,
    index: int,
) -> tuple[NDArray, ...]:
    """Columns of `TilePoints` for one tile."""
    view = net_tile(image, tuple(voxel_um), grid, diameter_um)
    heat = Heat.of(*runner.maps(view.image), lowest_logit)
    peaks = find_peaks(None, heat, None, runner.subpixel)
    stride = runner.stride
    yx_net = np.column_stack([
        (peaks["row"] + 0.5 + peaks["dy"]) * stride - 0.5,
        (peaks["column"] + 0.5 + peaks["dx"]) * stride - 0.5,
    ])  # fmt: skip
    if runner.weighed is not None:
        peaks["logit"] = runner.weighed(peaks["logit"], tile_prominence(view.image, yx_net, grid))
    x, y = view.to_px(yx_net).T
    place_um = np.column_stack([np.zeros(len(y)), y * voxel_um[1], x * voxel_um[2]])
    order = np.column_stack([np.zeros(len(y), np.int64), peaks["row"], peaks["column"]])
    keep = suppress(place_um, peaks["logit"], order, runner.separation * diameter_um)
    x, y, logit = np.clip(x, 0, image.shape[1] - 1), np.clip(y, 0, image.shape[0] - 1), peaks["logit"]
    chosen = np.lexsort((x, y))
    chosen = chosen[keep[chosen]]
    image_column = np.full(len(chosen), index, np.int64)
    return image_column, x[chosen], y[chosen], logit[chosen], runner.score(logit[chosen])
