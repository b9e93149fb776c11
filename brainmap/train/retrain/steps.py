"""The steps of a retraining: split the tiles, train and calibrate without wasting a click.

Calibration and threshold come from cross-fitting: the slices that train are dealt into folds, each fold is
scored by a network that was trained on the others, and the pooled scores are held against the truth. So every
click trains the final network, and no score is calibrated on tiles its network had learnt.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brainmap.errors import DataError
from brainmap.files import write_json
from brainmap.gt.aggregate import aggregate
from brainmap.gt.truth import GroundTruth
from brainmap.points.matching import match_points
from brainmap.tiles.tiles import Tiles, hold_out
from brainmap.train.commands import grid_for, usable_truth
from brainmap.train.judge.calibrate import tile_calibration
from brainmap.train.judge.predict import Knots, TilePoints, predict_tiles
from brainmap.train.learn.centernet import CenterNet
from brainmap.train.learn.finetune import finetune_network
from brainmap.train.learn.loop import load_network
from brainmap.train.learn.pool import PoolConfig, load_pool, prepare_pool
from brainmap.train.learn.samples import GridSettings, NetVolume
from brainmap.train.retrain.request import RetrainRequest

__all__ = [
    "HELD_OUT",
    "Candidate",
    "TruthTiles",
    "old_candidate",
    "split_tiles",
    "train_candidate",
]

log = logging.getLogger(__name__)

# Fewer slices leave nothing to hold out beside two folds; fewer cells teach nothing.
LEAST_SLICES, LEAST_CELLS = 3, 10
# Cells of simulated tissue, um.
SIMULATED_UM = 10.0
HELD_OUT = -1


@dataclass(frozen=True)
class TruthTiles:
    """Tiles somebody looked at, and the cells the clicks agree on.

    Parameters
    ----------
    tiles : Tiles
    truth : GroundTruth
    fold : ndarray of int64, shape (n,)
        Fold of each tile; `HELD_OUT` for those that only judge.
    tolerance_px : float
        Largest distance of a detection from its cell.
    left_out : dict of str to int
        Tiles without clicks and clicked images without a tile, counted.
    """

    tiles: Tiles
    truth: GroundTruth
    fold: NDArray[np.int64]
    tolerance_px: float
    left_out: dict[str, int]

    def take(self, rows: NDArray[np.bool_]) -> TruthTiles:
        """Some of the tiles."""
        tiles = self.tiles.take(rows)
        return replace(self, tiles=tiles, truth=self.truth.take(tiles.ids), fold=self.fold[rows])

    @property
    def cells(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Index of the tile and x, y (tile px) of every accepted cell."""
        places = [self.truth.accepted(str(name))[0] for name in self.tiles.ids]
        index = np.repeat(np.arange(len(places)), [len(xy) for xy in places])
        return index.astype(np.int64), np.concatenate([*places, np.zeros((0, 2))])

    @property
    def extent(self) -> dict[str, int]:
        """Number of tiles, slices and accepted cells."""
        slices = len(np.unique(self.tiles.slice_key))
        return {"tiles": len(self.tiles), "slices": slices, "cells": len(self.cells[0])}

    def correct(self, found: TilePoints) -> NDArray[np.bool_]:
        """Which detections are matched to an accepted cell."""
        tile, xy = self.cells
        match = match_points(found.xy, xy, self.tolerance_px, group_a=found.image, group_b=tile)
        correct = np.zeros(len(found), bool)
        correct[match.index_a] = True
        return correct


@dataclass(frozen=True)
class Candidate:
    """A detector under judgement.

    Parameters
    ----------
    network : CenterNet
    grid : GridSettings
        Of the network.
    knots : tuple of (logit, probability)
        Its calibration.
    threshold : float
        On the calibrated score.
    """

    network: CenterNet
    grid: GridSettings
    knots: Knots
    threshold: float

    def find(self, tiles: Tiles, cell_diameter_um: float) -> TilePoints:
        """Detections with calibrated scores."""
        return predict_tiles(self.network, tiles, self.grid, cell_diameter_um).calibrated(self.knots)


def split_tiles(request: RetrainRequest, cell_diameter_um: float) -> TruthTiles:
    """Aggregate the clicks and deal out the tiles; `split.json` in the work folder says which went where.

    Raises
    ------
    DataError
        No clicked image is a tile; fewer than three slices; (nearly) no accepted cells.
    """
    settings, folder = request.settings, request.work_folder / "gt"
    if not (folder / "gt.json").is_file():
        aggregate(
            request.clicks, folder, tiles=request.tiles, assignments=request.assignments, qc=request.qc,
            settings=settings.gt,
        )  # fmt: skip
    tiles, truth = Tiles.open(request.tiles), GroundTruth.open(folder)
    looked_at = np.isin(tiles.ids.astype(str), truth.ids)
    if not looked_at.any():
        raise DataError(
            f"none of the {len(truth.ids)} images of {request.clicks} is a tile of {request.tiles}: the first "
            f"are {str(truth.ids[0])!r} and {str(tiles.ids[0])!r}; image_id must be the same in both"
        )
    left_out = {
        "tiles without clicks": int((~looked_at).sum()),
        "clicked images without a tile": len(truth.ids) - int(looked_at.sum()),
    }
    for what, number in left_out.items():
        if number:
            log.warning("%d %s are left out", number, what)
    tiles = tiles.take(looked_at)
    slices = len(np.unique(tiles.slice_key))
    if slices < LEAST_SLICES:
        raise DataError(
            f"the clicked tiles come from {slices} slice{'s' * (slices > 1)}; retraining needs at least "
            f"{LEAST_SLICES}: to learn from, to calibrate, and to judge by"
        )
    fold = _folds(tiles, settings.held_out, settings.folds, settings.seed)
    pixel_um = float(np.median(tiles.columns["voxel_um"][:, 1:]))
    tolerance = settings.tolerance_cells * cell_diameter_um / pixel_um
    truth = usable_truth(truth.take(tiles.ids), tiles)
    data = TruthTiles(tiles, truth, fold, tolerance, left_out)
    _check_cells(data, request.clicks)
    names = {str(name): int(f) for name, f in zip(tiles.ids, fold, strict=True)}
    write_json(request.work_folder / "split.json", {"held_out_is": HELD_OUT, "fold": names})
    return data


def _folds(tiles: Tiles, held_out: float, folds: int, seed: int) -> NDArray[np.int64]:
    """Fold of each tile by whole slices, `HELD_OUT` for those held out; at least two slices train."""
    slices, member = np.unique(tiles.slice_key, return_inverse=True)
    training = np.unique(member[~hold_out(tiles, held_out, seed)])
    if len(training) < 2:
        # So few or so uneven slices: hold out a single one.
        training = np.unique(member[~hold_out(tiles, 1e-6, seed)])
    rank = np.random.default_rng(seed).permutation(len(training)) % min(folds, len(training))
    fold = np.full(len(slices), HELD_OUT)
    fold[training] = rank
    return fold[member].astype(np.int64)


def _check_cells(data: TruthTiles, clicks: Path) -> None:
    cells = np.bincount(data.fold[data.cells[0]] == HELD_OUT, minlength=2)
    if not cells.sum():
        raise DataError(f"the workers of {clicks} agree on no cell (posterior >= 0.5): nothing to learn from")
    if cells[0] < LEAST_CELLS or not cells[1]:
        raise DataError(
            f"{cells[0]} accepted cells to learn from and {cells[1]} to judge by are too few "
            f"({LEAST_CELLS} and 1 are the least); annotate more tiles, or set another seed"
        )


def train_candidate(request: RetrainRequest, data: TruthTiles, cell_diameter_um: float) -> Candidate:
    """Cross-fit for calibration, then train on all that is not held out."""
    training = data.take(data.fold != HELD_OUT)
    folds = int(training.fold.max()) + 1
    found, own = [], []
    for fold in range(folds):
        log.info("calibration: training without fold %d of %d", fold + 1, folds)
        rest = training.take(training.fold != fold)
        network, grid = _finetune(request, rest, request.work_folder / f"fold-{fold}", cell_diameter_um)
        own.append(training.take(training.fold == fold))
        found.append(predict_tiles(network, own[-1].tiles, grid, cell_diameter_um))
    log.info("training on all %d tiles that are not held out", len(training.tiles))
    network, grid = _finetune(request, training, request.work_folder / "final", cell_diameter_um)
    return Candidate(network, grid, *_calibrate(found, own))


def _finetune(
    request: RetrainRequest, data: TruthTiles, work: Path, cell_diameter_um: float
) -> tuple[CenterNet, GridSettings]:
    settings = request.settings
    network, grid = load_network(request.start_path)
    # Simulated tissue is made for cells of one size; the tiles' are a setting of their own.
    grid = grid_for(grid, SIMULATED_UM)
    volumes: list[NetVolume] = []
    if settings.rehearsal:
        pool = PoolConfig(volumes=settings.rehearsal)
        volumes = load_pool(prepare_pool(request.work_folder / "pool", pool, grid), pool).volumes
    config = replace(settings.finetune, cell_diameter_um=cell_diameter_um, seed=settings.seed)
    unlabelled = None if request.unlabelled is None else Tiles.open(request.unlabelled)
    checkpoint = finetune_network(
        config, work, data.tiles, data.truth, network, grid, volumes, unlabelled, request.device
    )
    return load_network(checkpoint)


def old_candidate(request: RetrainRequest, data: TruthTiles, cell_diameter_um: float) -> Candidate:
    """The detector to start from, with its own calibration and threshold.

    A bare checkpoint has none: it gets them from the tiles that train, which it has never seen.
    """
    network, grid = load_network(request.start_path)
    if request.start_detector is not None:
        spec = request.start_detector.spec
        return Candidate(network, grid, spec.calibration, spec.threshold)
    training = data.take(data.fold != HELD_OUT)
    found = predict_tiles(network, training.tiles, grid, cell_diameter_um)
    return Candidate(network, grid, *_calibrate([found], [training]))


def _calibrate(found: list[TilePoints], own: list[TruthTiles]) -> tuple[Knots, float]:
    """Calibration and threshold of detections on tiles that their networks never saw.

    Parameters
    ----------
    found, own : list
        Detections on some tiles, and those tiles.
    """
    slices = np.concatenate([part.tiles.slice_key[f.image] for f, part in zip(found, own, strict=True)])
    result = tile_calibration(
        np.concatenate([f.logit for f in found]),
        np.concatenate([part.correct(f) for f, part in zip(found, own, strict=True)]),
        np.unique(slices.astype(str), return_inverse=True)[1],
        sum(part.extent["cells"] for part in own),
    )
    log.info("calibrated (%s): ECE %.3f on left-out slices", result.method, result.ece)
    return result.knots, result.threshold
