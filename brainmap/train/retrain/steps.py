"""The steps of a retraining: train and calibrate without wasting a click, and choose how much to change.

Two detectors are made: the start with its scores calibrated anew, and a network that was fine-tuned. Calibration
and threshold come from cross-fitting: the slices that are new to the start are dealt into folds, each fold is
scored by a network that was trained on the others, and the pooled scores are held against the truth. So every
click trains the final network, and no score is calibrated on tiles its network had learnt. The same scores say
which of the two is kept: the simpler, unless the other is better by more than a standard error.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brainmap.errors import DataError
from brainmap.infer.detector import PLAIN_PROMINENCE, ProminenceWeights
from brainmap.tiles.tiles import Tiles
from brainmap.train.commands import grid_for
from brainmap.train.judge.calibrate_tiles import TileCalibration, tile_calibration
from brainmap.train.judge.predict import Knots, TilePoints, predict_tiles
from brainmap.train.judge.switch import Counts, Units, count
from brainmap.train.learn.centernet import CenterNet
from brainmap.train.learn.finetune import finetune_network
from brainmap.train.learn.loop import load_network
from brainmap.train.learn.pool import PoolConfig, load_pool, prepare_pool
from brainmap.train.learn.samples import GridSettings, NetVolume
from brainmap.train.retrain.request import RetrainRequest
from brainmap.train.retrain.split import TruthTiles

__all__ = [
    "FINETUNED",
    "RECALIBRATED",
    "SIMULATED_UM",
    "START",
    "Candidate",
    "Choice",
    "Crossed",
    "choose",
    "cross_calibrate",
    "start_candidate",
    "train_candidates",
]

log = logging.getLogger(__name__)

# Cells of simulated tissue, um.
SIMULATED_UM = 10.0
# From the simplest to the one that changes most.
START, RECALIBRATED, FINETUNED = "start", "recalibrated", "fine-tuned"
_RESAMPLES = 1000
_LEAST_SCORE = 0.001


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
    prominence : tuple of float
        How it lowers logits; see `DetectorSpec.weighed`.
    """

    network: CenterNet
    grid: GridSettings
    knots: Knots
    threshold: float
    prominence: ProminenceWeights = PLAIN_PROMINENCE

    def find(self, tiles: Tiles, cell_diameter_um: float) -> TilePoints:
        """Detections with calibrated scores."""
        found = predict_tiles(self.network, tiles, self.grid, cell_diameter_um, prominence=self.prominence)
        return found.calibrated(self.knots)


@dataclass(frozen=True)
class Crossed:
    """Detections on tiles, each judged by a network and a calibration that know nothing of its fold.

    Parameters
    ----------
    found : TilePoints
        With scores by the calibration of the other folds.
    marked : ndarray of bool, shape (n,)
        Whether the score reaches the threshold that was chosen on the other folds.
    calibration : TileCalibration or None
        Of all folds together, for tiles yet to come; None where the start's own was used.
    """

    found: TilePoints
    marked: NDArray[np.bool_]
    calibration: TileCalibration | None

    def counts(self, data: TruthTiles, units: Units) -> Counts:
        """What was found in every unit; row 0 is at the thresholds."""
        found = replace(self.found, score=self.marked.astype(np.float64))
        return count(found, *data.cells, units, 0.5, data.tolerance_px)


def cross_calibrate(found: TilePoints, data: TruthTiles, prior: Knots | None) -> Crossed:
    """Calibrate detections on tiles that their networks never saw.

    Parameters
    ----------
    found : TilePoints
        On the tiles of `data`.
    data : TruthTiles
        Each tile in a fold.
    prior : tuple of (logit, probability), optional
        Calibration of the start, which few tiles move and do not replace.

    Raises
    ------
    DataError
        If (nearly) nothing of the truth was found.
    """
    correct, fold = data.correct(found), data.fold[found.image]
    group = np.unique(data.tiles.slice_key.astype(str), return_inverse=True)[1][found.image]
    n_true = np.bincount(data.fold[data.cells[0]], minlength=int(data.fold.max()) + 1)
    score, marked = np.full(len(found), _LEAST_SCORE), np.zeros(len(found), bool)
    n_folds = len(np.unique(data.fold))
    for number in np.unique(data.fold):
        own, rest = fold == number, fold != number
        if n_folds == 1:
            # Nothing else calibrates a single new slice: its scores are a little too sure of themselves.
            own = rest = np.ones(len(found), bool)
        if correct[rest].sum() < 3 or correct[rest].all():
            # The other folds cannot calibrate this one, and nothing is found there as far as anyone can say.
            continue
        part = tile_calibration(
            found.logit[rest],
            correct[rest],
            group[rest],
            int(n_true.sum() - n_true[number] * (n_folds > 1)),
            prior=prior,
        )
        score[own] = np.interp(found.logit[own].astype(np.float64), *np.asarray(part.knots).T)
        marked[own] = score[own] >= part.threshold
    whole = tile_calibration(found.logit, correct, group, int(n_true.sum()), prior=prior)
    log.info("calibrated (%s): ECE %.3f on left-out slices", whole.method, whole.ece)
    return Crossed(replace(found, score=score), marked, whole)


def start_candidate(
    request: RetrainRequest, data: TruthTiles, cell_diameter_um: float
) -> tuple[Candidate, dict[str, Candidate], dict[str, Crossed]]:
    """The detector to start from, and the same with its scores calibrated on the tiles.

    A bare checkpoint has no scores of its own: the first is then the second.

    Returns
    -------
    start : Candidate
        As it is judged.
    candidates : dict of Candidate
        `RECALIBRATED`.
    crossed : dict of Crossed
        On `data`, `START` (where it has scores of its own) and `RECALIBRATED`.
    """
    network, grid = load_network(request.start_path)
    prominence = request.start_prominence
    found = predict_tiles(network, data.tiles, grid, cell_diameter_um, prominence=prominence)
    detector = request.start_detector
    prior = None if detector is None else detector.spec.calibration
    crossed = {RECALIBRATED: cross_calibrate(found, data, prior)}
    calibration = crossed[RECALIBRATED].calibration
    assert calibration is not None
    recalibrated = Candidate(network, grid, calibration.knots, calibration.threshold, prominence)
    start = recalibrated
    if detector is not None:
        start = Candidate(network, grid, detector.spec.calibration, detector.spec.threshold, prominence)
        own = found.calibrated(start.knots)
        crossed[START] = Crossed(own, own.score >= start.threshold, None)
    return start, {RECALIBRATED: recalibrated}, crossed


def train_candidates(
    request: RetrainRequest, training: TruthTiles, cell_diameter_um: float
) -> tuple[Candidate, Crossed]:
    """Cross-fit for calibration, then train on all tiles that teach.

    Parameters
    ----------
    request : RetrainRequest
    training : TruthTiles
        Tiles that teach; those in a fold calibrate as well.
    cell_diameter_um : float

    Returns
    -------
    candidate : Candidate
    crossed : Crossed
        On `training.calibrating`.
    """
    calibrating = training.calibrating
    parts = []
    for fold in range(int(training.fold.max()) + 1):
        log.info("calibration: training without fold %d", fold + 1)
        rest = training.take(training.fold != fold)
        network, grid = _finetune(request, rest, request.work_folder / f"fold-{fold}", cell_diameter_um)
        own = np.flatnonzero(calibrating.fold == fold)
        found = predict_tiles(
            network, calibrating.tiles.take(own), grid, cell_diameter_um, prominence=request.start_prominence
        )
        parts.append(replace(found, image=own[found.image]))
    log.info("training on all %d tiles that teach", len(training.tiles))
    network, grid = _finetune(request, training, request.work_folder / "final", cell_diameter_um)
    detector = request.start_detector
    # A logit goes on meaning what it meant only to a network that is taught the way the start was.
    keeps = detector is not None and request.settings.finetune.target == "centres"
    crossed = cross_calibrate(
        _pooled(parts), calibrating, detector.spec.calibration if keeps and detector else None
    )
    assert crossed.calibration is not None
    candidate = Candidate(
        network, grid, crossed.calibration.knots, crossed.calibration.threshold, request.start_prominence
    )
    return candidate, crossed


def _pooled(parts: Sequence[TilePoints]) -> TilePoints:
    names = ("image", "x", "y", "logit", "score")
    return TilePoints(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _finetune(
    request: RetrainRequest, data: TruthTiles, work: Path, cell_diameter_um: float
) -> tuple[CenterNet, GridSettings]:
    settings = request.settings
    network, grid = load_network(request.start_path)
    # Simulated tissue is made for cells of one size; the tiles' are a setting of their own.
    grid = grid_for(grid, SIMULATED_UM)
    config = replace(settings.finetune, cell_diameter_um=cell_diameter_um, seed=settings.seed)
    unlabelled = None if request.unlabelled is None else Tiles.open(request.unlabelled)
    checkpoint = finetune_network(
        config,
        work,
        data.tiles,
        data.truth,
        network,
        grid,
        _rehearsed(request, grid),
        unlabelled,
        request.device,
    )
    return load_network(checkpoint)


def _rehearsed(request: RetrainRequest, grid: GridSettings) -> list[NetVolume]:
    """Simulated tissue of all kinds, and cells in real tissue where there is any; made once, in the work folder."""
    number, settings = request.settings.rehearsal, request.settings
    if not number:
        return []
    third = number // 3
    pool = PoolConfig(
        volumes=number - 2 * third, faint=third, sections=third, inserted=third * bool(settings.backgrounds),
        backgrounds=settings.backgrounds, background_voxel_um=settings.background_voxel_um,
    )  # fmt: skip
    return load_pool(prepare_pool(request.work_folder / "pool", pool, grid), pool).volumes


@dataclass(frozen=True)
class Choice:
    """Which candidate is kept, by cross-fitting.

    Parameters
    ----------
    chosen : str
    f1 : dict of float
        Of every candidate on the calibrating tiles.
    error : dict of float
        Standard error of the best one's lead over each.
    units : str
        What was resampled, for people.
    """

    chosen: str
    f1: dict[str, float]
    error: dict[str, float]
    units: str

    def record(self) -> dict[str, object]:
        """As plain values."""
        return {"chosen": self.chosen, "f1": self.f1, "error_of_lead": self.error, "resampled": self.units}


def choose(crossed: dict[str, Crossed], data: TruthTiles, seed: int) -> Choice:
    """The simplest candidate that is not worse than the best by more than a standard error.

    Parameters
    ----------
    crossed : dict of Crossed
        On `data`; `START` is compared but never chosen, because it is what is there already.
    data : TruthTiles
        The calibrating tiles.
    seed : int
    """
    tiles = data.tiles
    units = Units.of(tiles.slice_key, tiles.columns["width"], tiles.columns["height"])
    rng = np.random.default_rng(seed)
    weight = rng.multinomial(units.count, np.full(units.count, 1 / units.count), _RESAMPLES).astype(float)
    counts = {
        name: crossed[name].counts(data, units)
        for name in (START, RECALIBRATED, FINETUNED)
        if name in crossed
    }
    if not next(iter(counts.values())).true.sum():
        raise DataError("the tiles that calibrate hold no accepted cell; annotate more, or set another seed")
    f1 = {name: float(part.f1(np.ones((1, units.count)))[0]) for name, part in counts.items()}
    best = max(f1, key=lambda name: f1[name])
    lead = {name: counts[best].f1(weight) - part.f1(weight) for name, part in counts.items()}
    error = {name: float(values.std()) for name, values in lead.items()}
    near = [name for name in f1 if name != START and f1[best] - f1[name] <= error[name]]
    simplest = near[0] if near else max((n for n in f1 if n != START), key=lambda name: f1[name])
    return Choice(simplest, f1, error, f"{units.count} {units.kind}")
