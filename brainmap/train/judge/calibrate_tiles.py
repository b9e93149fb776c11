"""Calibration on tiles with ground truth: the simplest map from logit to probability that the tiles support.

Several maps are fitted and compared by cross-fitting; whole slices or tiles are left out, not single detections.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from brainmap.errors import DataError
from brainmap.gt.truth import GroundTruth
from brainmap.infer.detector import Detector
from brainmap.tiles.tiles import Tiles
from brainmap.train.judge.calibrate import Judged, calibration_knots, rising_knots
from brainmap.train.judge.evaluate import EvaluationSettings, true_points
from brainmap.train.judge.predict import Knots, calibrated, grid_of, predict_tiles
from brainmap.train.judge.scores import Scored, match_truth, reliability
from brainmap.train.judge.shift import shifted, simplest
from brainmap.train.learn.centernet import CenterNet
from brainmap.train.learn.samples import GridSettings

__all__ = ["TileCalibration", "calibrate_on_tiles", "expected_best", "tile_calibration"]

log = logging.getLogger(__name__)

# Logits, and which of them are right -> a curve.
Fit = Callable[[NDArray, NDArray[np.bool_]], Knots]


@dataclass(frozen=True)
class TileCalibration:
    """A calibration from tiles, and how well it did on slices it was not fitted to.

    Parameters
    ----------
    knots : tuple of (logit, probability)
    threshold : float
        The score from which the expected F1 is best.
    method : str
        "isotonic" or "beta", whichever predicted left-out slices better (log loss); with a curve to start from
        also "kept" or "shifted".
    ece, brier, log_loss : float
        Cross-fitted, over all detections.
    ece_shown : float
        The same over detections with a score of at least 0.05: the many peaks that are surely nothing make
        any calibration of all detections look good.
    expected_f1 : float
        At the threshold, by the cross-fitted scores.
    """

    knots: Knots
    threshold: float
    method: str
    ece: float
    ece_shown: float
    brier: float
    log_loss: float
    expected_f1: float


def calibrate_on_tiles(
    network: CenterNet | Detector,
    tiles: Tiles,
    truth: GroundTruth,
    grid: GridSettings | None = None,
    cell_diameter_um: float | None = None,
    *,
    tolerance_px: float | None = None,
    truth_points: str = "peaks",
) -> tuple[Knots, float]:
    """Calibrate a network on tiles that it was not trained on; see `tile_calibration`.

    Parameters
    ----------
    tolerance_px : float, optional
        Largest distance of a detection from its cell; a third of a cell's diameter by default (methods 7:
        5 px for cells of 15 px).
    truth_points : str
        As in `EvaluationSettings`.

    Returns
    -------
    knots : tuple of (logit, probability)
    threshold : float

    Raises
    ------
    DataError
        If no tile has ground truth, or the network finds (nearly) nothing of it.
    """
    known = np.array([str(name) in truth for name in tiles.ids], bool)
    if not known.any():
        raise DataError(f"none of the {len(tiles)} tiles has ground truth; image_id must be the same in both")
    tiles = tiles.take(known)
    if isinstance(network, Detector):
        grid = grid_of(network)
    diameter = cell_diameter_um or (grid or GridSettings()).cell_diameter_um
    if tolerance_px is None:
        tolerance_px = diameter / 3 / float(np.median(tiles.columns["voxel_um"][:, 1:]))
    found = predict_tiles(network, tiles, grid, diameter)
    cells = true_points(tiles, truth, EvaluationSettings(truth_points=truth_points))
    correct = np.zeros(len(found), bool)
    correct[match_truth(Scored(found.image, found.xy, found.score), cells, tolerance_px).index_a] = True
    slices = np.unique(tiles.slice_key, return_inverse=True)[1]
    result = tile_calibration(found.logit, correct, slices[found.image], len(cells))
    log.info(
        "calibrated on %d tiles (%s): ECE %.3f, Brier %.4f on left-out slices; threshold %.3f",
        len(tiles), result.method, result.ece, result.brier, result.threshold,
    )  # fmt: skip
    return result.knots, result.threshold


def tile_calibration(
    logit: NDArray[np.float32],
    correct: NDArray[np.bool_],
    group: NDArray[np.integer],
    n_true: int,
    folds: int = 5,
    prior: Knots | None = None,
) -> TileCalibration:
    """Map logits to the probability of being right, and choose a threshold.

    Two monotone curves compete: isotonic regression, which takes any shape but needs data, and beta
    calibration (Kull et al. 2017), a logistic curve of three parameters. The one that predicts left-out
    groups better is fitted to everything. The threshold is the score from which the expected F1,
    2 sum(p) / (detections + true cells), is best: with calibrated scores that is half the best F1 itself, and
    steadier than the best F1 counted on few tiles.

    Where a curve is there already, that curve as it is and the same curve shifted and stretched compete as well,
    and of all the simplest is taken that is not worse than the best by more than a standard error over groups: a
    few tiles can move a curve, but hardly draw one.

    Parameters
    ----------
    logit, correct : ndarray, shape (n,)
        All detections, and whether each is matched to a true cell.
    group : ndarray of int, shape (n,)
        Slice of each detection: fitted and judged on different ones.
    n_true : int
        True cells, found or not.
    folds : int
        Parts that are left out in turn.
    prior : tuple of (logit, probability), optional
        The curve to start from.
    """
    if correct.sum() < 3 or correct.all():
        raise DataError(
            f"{int(correct.sum())} of {len(correct)} detections are right: nothing to calibrate on; check the "
            "cell diameter, the tiles' voxel size and the ground truth"
        )
    fits: dict[str, Fit] = {}
    if prior is not None:
        fits = {"kept": lambda x, y: prior, "shifted": partial(shifted, prior=prior)}
    fits |= {"beta": _beta, "isotonic": _isotonic}
    fold = _folds(group, folds)
    crossed = {name: _cross_fitted(fit, logit, correct, fold) for name, fit in fits.items()}
    losses = {name: _log_loss(p, correct) for name, p in crossed.items()}
    method = min(losses, key=lambda name: losses[name])
    if prior is not None:
        method = simplest(crossed, correct, group, method)
    knots, score = fits[method](logit, correct), crossed[method]
    threshold, expected = expected_best(score, n_true)
    every, shown = reliability(score, correct), reliability(score[score >= 0.05], correct[score >= 0.05])
    return TileCalibration(
        knots, threshold, method, every.ece, shown.ece, every.brier, losses[method], expected
    )


def _isotonic(logit: NDArray, correct: NDArray[np.bool_]) -> Knots:
    return calibration_knots([Judged(logit, correct, 0)])


def _beta(logit: NDArray, correct: NDArray[np.bool_], n_knots: int = 41) -> Knots:
    """Beta calibration: a logistic regression on log s and -log(1 - s), s the sigmoid; slopes not negative."""
    from sklearn.linear_model import LogisticRegression

    def features(x: NDArray) -> NDArray[np.float64]:
        wide = np.asarray(x, np.float64)
        return np.column_stack([-np.logaddexp(0, -wide), np.logaddexp(0, wide)])

    use = [0, 1]
    model = LogisticRegression(C=10.0, max_iter=1000).fit(features(logit), correct)
    if (model.coef_ < 0).any():
        use = [int(np.argmax(model.coef_[0]))]
        model = LogisticRegression(C=10.0, max_iter=1000).fit(features(logit)[:, use], correct)
    at = np.linspace(float(logit.min()), float(logit.max()) + 1e-3, n_knots).round(3)
    value = model.predict_proba(features(at)[:, use])[:, 1]
    return rising_knots(at, value)


def _folds(group: NDArray[np.integer], folds: int) -> NDArray[np.int64]:
    """Fold of each detection: whole groups, or single detections where there is one group only."""
    rng = np.random.default_rng(0)
    labels, member = np.unique(group, return_inverse=True)
    if len(labels) < 2:
        return rng.permutation(len(group)) % folds
    return (rng.permutation(len(labels)) % min(folds, len(labels)))[member]


def _cross_fitted(
    fit: Fit,
    logit: NDArray,
    correct: NDArray[np.bool_],
    fold: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Score of every detection by a curve that was fitted without its fold."""
    score = np.full(len(logit), 0.001)
    for left_out in np.unique(fold):
        rest, own = fold != left_out, fold == left_out
        if correct[rest].any() and not correct[rest].all():
            score[own] = calibrated(logit[own], fit(logit[rest], correct[rest]))
    return score


def _log_loss(p: NDArray[np.float64], correct: NDArray[np.bool_]) -> float:
    return float(-np.mean(np.log(np.where(correct, p, 1 - p))))


def expected_best(score: NDArray[np.float64], n_true: int) -> tuple[float, float]:
    """The threshold with the best expected F1, and that F1."""
    falling = np.sort(score)[::-1]
    f1 = 2 * np.cumsum(falling) / (np.arange(1, len(falling) + 1) + n_true)
    top = int(np.argmax(f1))
    return round(float(falling[top]), 3), float(f1[top])
