"""From heat to probability: how often a peak of a given height is a cell.

Measured on simulated tissue that training never saw; the curve is monotone (isotonic regression) and is
stored as knots in the detector's record.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from brainmap.infer.peaks import find_peaks, suppress
from brainmap.matching import match_points
from brainmap.train.centernet import CenterNet
from brainmap.train.samples import GridSettings, NetVolume

__all__ = ["Judged", "best_threshold", "calibration_knots", "detections", "judge"]

log = logging.getLogger(__name__)

# Cells fainter than this (contrast in noise units, as in `NetVolume.cells`) are not asked for, and
# finding one is no error.
VISIBLE = 0.8
TOLERANCE_UM = 10.0
_LOWEST_LOGIT = -5.0
_SEPARATION_CELLS = 0.6


@dataclass(frozen=True)
class Judged:
    """Detections of one volume held against its truth.

    Parameters
    ----------
    logit : ndarray of float32, shape (n,)
    correct : ndarray of bool, shape (n,)
        Whether the detection is matched to a cell.
    n_true : int
        Cells to be found.
    """

    logit: NDArray[np.float32]
    correct: NDArray[np.bool_]
    n_true: int

    def f1(self, lowest_logit: float) -> float:
        """F1 of the detections from a logit upwards, by the matching of all of them."""
        chosen = self.logit >= lowest_logit
        hits = int(self.correct[chosen].sum())
        return 2 * hits / max(1, int(chosen.sum()) + self.n_true)


@torch.no_grad()
def detections(
    model: CenterNet, volume: NetVolume, grid: GridSettings
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Centres (n, 3) in um from the outer corner of the stack, and logits, of all peaks of a volume."""
    slices, multiple = model.config.slices, model.config.multiple
    depth, height, width = volume.stack.shape
    half = slices // 2
    padded = np.zeros((depth + 2 * half, -(-height // multiple) * multiple, -(-width // multiple) * multiple))
    padded[half : half + depth, :height, :width] = volume.stack
    batch = np.stack([padded[k : k + slices] for k in range(depth)]).astype(np.float32)
    logit, offset, _ = model(torch.from_numpy(batch))
    rows, columns = (-(-n // model.config.stride) for n in (height, width))
    heat = logit[:, 0, :rows, :columns].float().numpy()
    shift = offset[:, :, :rows, :columns].float().numpy()
    cell_um = grid.pixel_um * model.config.stride
    places, logits, orders = [], [], []
    for k in range(depth):
        below = heat[k - 1] if k else None
        above = heat[k + 1] if k + 1 < depth else None
        peaks = find_peaks(below, (heat[k], shift[k]), above, _LOWEST_LOGIT)
        places.append(
            np.column_stack([
                (k + 0.5 + peaks["dz"]) * volume.step_um,
                (peaks["row"] + 0.5 + peaks["dy"]) * cell_um,
                (peaks["column"] + 0.5 + peaks["dx"]) * cell_um,
            ])
        )  # fmt: skip
        logits.append(peaks["logit"])
        orders.append(np.column_stack([np.full(len(peaks["row"]), k), peaks["row"], peaks["column"]]))
    place, score, order = np.concatenate(places), np.concatenate(logits), np.concatenate(orders)
    keep = suppress(place, score, order, _SEPARATION_CELLS * grid.cell_diameter_um)
    return place[keep], score[keep]


def judge(
    model: CenterNet, volume: NetVolume, grid: GridSettings, tolerance_um: float = TOLERANCE_UM
) -> Judged:
    """Detect in a volume and match with its truth; finding a cell too faint to judge counts for nothing."""
    place, logit = detections(model, volume, grid)
    scale = np.array([volume.step_um, grid.pixel_um, grid.pixel_um])
    truth = (volume.cells[:, :3].astype(np.float64) + 0.5) * scale
    visible = volume.cells[:, 4] >= VISIBLE
    match = match_points(place, truth[visible], tolerance_um)
    correct = np.zeros(len(place), bool)
    correct[match.index_a] = True
    rest = np.flatnonzero(~correct)
    faint = match_points(place[rest], truth[~visible], tolerance_um)
    counted = np.ones(len(place), bool)
    counted[rest[faint.index_a]] = False
    return Judged(logit[counted], correct[counted], int(visible.sum()))


def calibration_knots(judged: list[Judged], n_knots: int = 25) -> tuple[tuple[float, float], ...]:
    """Monotone piecewise-linear map from logit to the share of correct detections.

    Every volume weighs the same, however many cells it holds.
    """
    from sklearn.isotonic import IsotonicRegression

    logit = np.concatenate([j.logit for j in judged]).astype(np.float64)
    correct = np.concatenate([j.correct for j in judged]).astype(np.float64)
    weight = np.concatenate([np.full(len(j.logit), 1 / max(20, len(j.logit))) for j in judged])
    curve = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(
        logit, correct, sample_weight=weight
    )
    # Evenly spaced, because the interesting logits are few: most peaks are far below any threshold.
    at = np.linspace(logit.min(), np.quantile(logit[correct > 0], 0.999), n_knots).round(3)
    # Averaging around every knot turns the steps of the regression into slopes.
    half = (at[1] - at[0]) / 2
    value = np.array([curve.predict(np.linspace(a - half, a + half, 50)).mean() for a in at])
    value = np.maximum.accumulate(np.clip(value, 0.001, 0.999))
    return tuple((float(a), round(float(v), 4)) for a, v in zip(at, value, strict=True))


def best_threshold(judged: list[Judged], flat: float = 0.007) -> tuple[float, float]:
    """The threshold on the logit, and the mean F1 over volumes that hold cells there.

    F1 is flat around its best: of all thresholds within `flat` of it the highest is taken, because a false
    cell on somebody else's tissue is more likely than on simulated one.
    """
    candidates = np.linspace(-4, 4, 161)
    with_cells = [j for j in judged if j.n_true >= 10]
    means = np.array([np.mean([j.f1(c) for j in with_cells]) for c in candidates])
    chosen = int(np.flatnonzero(means >= means.max() - flat)[-1])
    return float(candidates[chosen]), float(means[chosen])
