"""Which tiles teach, calibrate and judge: by whole slices, and never against what an ancestor has learnt.

Slices fall into three kinds by the lineage of the start. Those that taught an ancestor may teach again but judge
and calibrate nothing. Those that only judged go on judging. The others are new: a share of them is held out to
judge, the rest is dealt into folds that teach and calibrate in turn.
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
from brainmap.tiles.tiles import Tiles
from brainmap.train.commands import usable_truth
from brainmap.train.judge.predict import TilePoints
from brainmap.train.retrain.lineage import Lineage, TilePrint, print_tiles
from brainmap.train.retrain.request import RetrainRequest

__all__ = ["HELD_OUT", "TEACHES", "Split", "TruthTiles", "deal", "split_tiles"]

log = logging.getLogger(__name__)

# Fewer slices leave nothing to calibrate on; fewer cells teach nothing.
LEAST_SLICES, LEAST_CELLS = 2, 10
# Instead of a fold: tiles that only judge; tiles that teach every network and calibrate none.
HELD_OUT, TEACHES = -1, -2


@dataclass(frozen=True)
class TruthTiles:
    """Tiles somebody looked at, and the cells the clicks agree on.

    Parameters
    ----------
    tiles : Tiles
    truth : GroundTruth
    fold : ndarray of int64, shape (n,)
        Fold of each tile, or `HELD_OUT`, or `TEACHES`.
    tolerance_px : float
        Largest distance of a detection from its cell.
    """

    tiles: Tiles
    truth: GroundTruth
    fold: NDArray[np.int64]
    tolerance_px: float

    def take(self, rows: NDArray[np.bool_]) -> TruthTiles:
        """Some of the tiles."""
        tiles = self.tiles.take(rows)
        return replace(self, tiles=tiles, truth=self.truth.take(tiles.ids), fold=self.fold[rows])

    @property
    def held_out(self) -> TruthTiles:
        """Those that only judge."""
        return self.take(self.fold == HELD_OUT)

    @property
    def training(self) -> TruthTiles:
        """Those that teach."""
        return self.take(self.fold != HELD_OUT)

    @property
    def calibrating(self) -> TruthTiles:
        """Those on which scores get their meaning, each in a fold."""
        return self.take(self.fold >= 0)

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
class Split:
    """The tiles with their parts, and what the past has to do with it.

    Parameters
    ----------
    data : TruthTiles
    prints : list of TilePrint
        Of its tiles.
    seen : ndarray of bool, shape (n,)
        Tiles of slices that taught the start or an ancestor of it.
    lineage : Lineage
        Of the start.
    left_out : dict of str to int
        Tiles without clicks and clicked images without a tile, counted.
    """

    data: TruthTiles
    prints: list[TilePrint]
    seen: NDArray[np.bool_]
    lineage: Lineage
    left_out: dict[str, int]

    @property
    def judged_by(self) -> str:
        """ "held-out", "cross-fitting" where all new slices are needed to teach, or "" where nothing is unseen."""
        if (self.data.fold == HELD_OUT).any():
            return "held-out"
        return "" if self.calibrated_on_seen else "cross-fitting"

    @property
    def calibrated_on_seen(self) -> bool:
        """Whether scores get their meaning on tiles that the start has learnt, for want of others."""
        return bool(self.seen[self.data.fold >= 0].any())

    def after(self, detector: str) -> Lineage:
        """The lineage of the detector that this retraining makes."""
        roles = {HELD_OUT: ("judged",), TEACHES: ("trained",)}
        each = (
            ("trained", "calibrated")
            if self.judged_by != "cross-fitting"
            else ("trained", "calibrated", "judged")
        )
        parts = [roles.get(int(fold), each) for fold in self.data.fold]
        return self.lineage.after(self.prints, parts, detector)

    def record(self) -> dict[str, object]:
        """What the report says about it."""
        unseen = self.data.take(~self.seen)
        return {
            "judged_by": self.judged_by,
            "lineage_complete": self.lineage.complete,
            "seen": self.data.take(self.seen).extent,
            "unseen": unseen.extent,
            "calibrated_on": self.data.calibrating.extent,
            "calibrated_on_seen": self.calibrated_on_seen,
        }


def split_tiles(request: RetrainRequest, cell_diameter_um: float, lineage: Lineage) -> Split:
    """Aggregate the clicks and deal out the tiles; `split.json` in the work folder says which went where.

    Raises
    ------
    DataError
        No clicked image is a tile; a single slice; (nearly) no accepted cells.
    """
    settings, folder = request.settings, request.work_folder / "gt"
    if not (folder / "gt.json").is_file():
        aggregate(
            request.clicks, folder, tiles=request.tiles, assignments=request.assignments, qc=request.qc,
            settings=settings.gt,
        )  # fmt: skip
    tiles, truth = Tiles.open(request.tiles), GroundTruth.open(folder)
    looked_at = np.isin(tiles.ids.astype(str), truth.ids)
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
            f"the clicked tiles come from {slices} slice; retraining needs at least {LEAST_SLICES}: one to learn "
            "from, and another to learn what scores mean"
        )
    prints = print_tiles(tiles)
    seen, judged = (_whole_slices(tiles, lineage.has(prints, role)) for role in ("trained", "judged"))
    fold = deal(
        tiles, seen, judged & ~seen, settings.held_out, settings.folds, settings.seed, cell_diameter_um
    )
    pixel_um = float(np.median(tiles.columns["voxel_um"][:, 1:]))
    tolerance = settings.tolerance_cells * cell_diameter_um / pixel_um
    data = TruthTiles(tiles, usable_truth(truth.take(tiles.ids), tiles), fold, tolerance)
    _check_cells(data, request.clicks)
    names = {str(name): int(f) for name, f in zip(tiles.ids, fold, strict=True)}
    write_json(
        request.work_folder / "split.json",
        {"held_out_is": HELD_OUT, "teaches_only_is": TEACHES, "fold": names},
    )
    return Split(data, prints, seen, lineage, left_out)


def _whole_slices(tiles: Tiles, rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.asarray(np.isin(tiles.slice_key.astype(str), tiles.slice_key[rows].astype(str)))


def deal(
    tiles: Tiles,
    seen: NDArray[np.bool_],
    judged: NDArray[np.bool_],
    held_out: float,
    folds: int,
    seed: int,
    cell_diameter_um: float = 0.0,
) -> NDArray[np.int64]:
    """Fold of each tile, `HELD_OUT` or `TEACHES`, by whole slices.

    Parameters
    ----------
    tiles : Tiles
    seen, judged : ndarray of bool, shape (n,)
        Tiles of slices that taught an ancestor; that only judged one.
    held_out : float
        Share of the unseen tiles that judge, as nearly as whole slices allow.
    folds : int
    seed : int
    cell_diameter_um : float
        Slices of a brain nearer than this show the same cells: they are dealt in runs of neighbours.
    """
    slices, member, count = np.unique(tiles.slice_key.astype(str), return_inverse=True, return_counts=True)
    was_seen, was_judged = (np.isin(np.arange(len(slices)), member[rows]) for rows in (seen, judged))
    touching = _touch(tiles, cell_diameter_um)
    new = _in_order(tiles, slices, np.flatnonzero(~was_seen & ~was_judged), touching, seed)
    # Two slices at least must teach, and one that is new to the network calibrate.
    spare = max(0, min(len(new) - 1, len(new) + int(was_seen.sum()) - 2))
    if not was_judged.any() and was_seen.sum() > 1 and len(new) == 1:
        # A single new slice judges; what calibrates has been seen, and the report says so.
        spare = 1
    target = held_out * count[~was_seen].sum() - count[was_judged].sum()
    reached = np.abs(np.concatenate([[0], np.cumsum(count[new])])[: spare + 1] - target)
    taken = int(np.argmin(reached))
    if not was_judged.any():
        taken = max(taken, min(1, spare))
    part = np.full(len(slices), TEACHES)
    part[was_judged] = HELD_OUT
    part[new[:taken]] = HELD_OUT
    calibrate = new[taken:] if len(new) > taken else np.flatnonzero(was_seen)
    rank, folds = np.arange(len(calibrate)), max(1, min(folds, len(calibrate)))
    part[calibrate] = rank * folds // max(1, len(rank)) if touching else rank % folds
    return part[member].astype(np.int64)


def _in_order(
    tiles: Tiles, slices: NDArray[np.str_], which: NDArray[np.int64], touching: bool, seed: int
) -> NDArray[np.int64]:
    """Slices in the order in which they are dealt: at random, or along z where neighbours share cells."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(slices))
    if touching:
        first = np.unique(tiles.slice_key.astype(str), return_index=True)[1]
        brain, z = tiles.columns["brain"][first].astype(str), tiles.columns["z"][first]
        order = np.lexsort((z, brain))[:: rng.choice((-1, 1))]
    return np.asarray(order[np.isin(order, which)])


def _touch(tiles: Tiles, cell_diameter_um: float) -> bool:
    """Whether the slices are those of a volume, so near each other that neighbours show the same cells."""
    gaps = []
    for brain in np.unique(tiles.columns["brain"].astype(str)):
        own = tiles.columns["brain"].astype(str) == brain
        z = np.unique(tiles.columns["z"][own]) * float(np.median(tiles.columns["voxel_um"][own, 0]))
        gaps += np.diff(z).tolist()
    return bool(gaps) and float(np.median(gaps)) < cell_diameter_um


def _check_cells(data: TruthTiles, clicks: Path) -> None:
    judging = data.fold == HELD_OUT
    cells = np.bincount(judging[data.cells[0]], minlength=2)
    if not cells.sum():
        raise DataError(f"the workers of {clicks} agree on no cell (posterior >= 0.5): nothing to learn from")
    teaching = len(np.unique(data.training.tiles.slice_key.astype(str)))
    if teaching < LEAST_SLICES:
        raise DataError(
            f"of the slices of {clicks} only {teaching} may teach, the others have judged the start and "
            "go on judging; annotate another slice"
        )
    if cells[0] < LEAST_CELLS or (judging.any() and not cells[1]):
        raise DataError(
            f"{cells[0]} accepted cells to learn from and {cells[1]} to judge by are too few "
            f"({LEAST_CELLS} and 1 are the least); annotate more tiles, or set another seed"
        )
