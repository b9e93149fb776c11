"""From heat to probability: how often a peak of a given height is a cell.

Measured on tissue that training never saw; the curve is monotone and
is stored as knots in the detector's record.
"""

from __future__ import annotations

import itertools
import logging
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from brainmap.image.intensity import GAIN, KNEE, LEAST_TEXTURE, texture_of
from brainmap.infer.block.measure import shapes
from brainmap.infer.detector import PLAIN_PROMINENCE, ProminenceWeights, lowered
from brainmap.infer.peaks import (
    PLAIN_FACE,
    FaceWeights,
    Heat,
    face_at,
    find_peaks,
    share_cells,
    suppress,
    weigh_face,
)
from brainmap.points.matching import match_points
from brainmap.train.learn.centernet import CenterNet
from brainmap.train.learn.samples import VISIBLE, GridSettings, NetVolume

__all__ = [
    "Found",
    "Judged",
    "balanced_face",
    "best_threshold",
    "calibration_knots",
    "detections",
    "face_weights",
    "judge",
    "prominence_weights",
    "rising_knots",
]

log = logging.getLogger(__name__)

TOLERANCE_UM = 10.0
_LOWEST_LOGIT = -5.0
_SEPARATION_CELLS = 0.6
# Patches of texture: width in cells and slices looked at, and the contrast below which there is no tissue.
_PATCH_CELLS, _PATCH_SLICES, _DARK = 12, 8, -5.0
# What is tried as weight of the prominence and as enough of it.
_WEIGHTS, _ENOUGH = (0.5, 1.0, 1.5, 2.0), (5.0, 7.0, 10.0, 14.0)
# With fewer cells in the outermost slices there is nothing to learn about them.
_FACE_CELLS = 50
# Distances of slices, in cell diameters, that differ by less are one.
_STEP_SPREAD = 0.1


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
    inside : ndarray of float32, shape (n,), optional
        For detections in the first or last slice of a volume the logit in the slice beside it, else NaN; NaN
        where slices do not `share_cells`.
    step_cells : float
        Distance of the volume's slices in cell diameters.
    prominence : ndarray of float32, shape (n,), optional
        As `DetectorSpec.weighed` takes it.
    """

    logit: NDArray[np.float32]
    correct: NDArray[np.bool_]
    n_true: int
    inside: NDArray[np.float32] | None = None
    step_cells: float = math.nan
    prominence: NDArray[np.float32] | None = None

    def f1(self, lowest_logit: float) -> float:
        """F1 of the detections from a logit upwards, by the matching of all of them."""
        chosen = self.logit >= lowest_logit
        hits = int(self.correct[chosen].sum())
        return 2 * hits / max(1, int(chosen.sum()) + self.n_true)

    def weighed(self, face: FaceWeights) -> Judged:
        """The same with the logits in the outermost slices corrected."""
        if self.inside is None:
            return self
        on_face = np.isfinite(self.inside)
        peaks = {"logit": self.logit[on_face], "above": self.inside[on_face]}
        logit = self.logit.copy()
        logit[on_face] = weigh_face(peaks, 0, 2, face_at(face, self.step_cells, 1.0))
        return replace(self, logit=logit)

    def lowered(self, prominence: ProminenceWeights) -> Judged:
        """The same with the logits of what hardly stands out lowered."""
        if self.prominence is None:
            return self
        return replace(self, logit=lowered(self.logit, self.prominence, prominence))


@dataclass(frozen=True)
class Found:
    """All peaks of a volume.

    Parameters
    ----------
    place : ndarray of float64, shape (n, 3)
        Centres, um from the stack's outer corner.
    logit, inside, prominence : ndarray of float32, shape (n,)
        As in `Judged`.
    """

    place: NDArray[np.float64]
    logit: NDArray[np.float32]
    inside: NDArray[np.float32]
    prominence: NDArray[np.float32]


@torch.no_grad()
def detections(
    model: CenterNet, volume: NetVolume, grid: GridSettings, face: FaceWeights = PLAIN_FACE
) -> Found:
    """All peaks of a volume, those that hardly stand out included."""
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
    has_faces = depth > 1 and share_cells(volume.step_um, grid.cell_diameter_um)
    contrast = np.float32(KNEE) * np.sinh(volume.stack.astype(np.float32) / np.float32(GAIN))
    texture = _texture(contrast, grid)
    places, logits, orders, inner, bands = [], [], [], [], []
    for k in range(depth):
        below = heat[k - 1] if k else None
        above = heat[k + 1] if k + 1 < depth else None
        peaks = find_peaks(below, Heat.of(heat[k], shift[k], _LOWEST_LOGIT), above)
        places.append(
            np.column_stack([
                (k + 0.5 + peaks["dz"]) * volume.step_um,
                (peaks["row"] + 0.5 + peaks["dy"]) * cell_um,
                (peaks["column"] + 0.5 + peaks["dx"]) * cell_um,
            ])
        )  # fmt: skip
        logits.append(weigh_face(peaks, k, depth, face_at(face, volume.step_um, grid.cell_diameter_um)))
        side = {0: "above", depth - 1: "below"}.get(k) if has_faces else None
        inner.append(np.full(len(peaks["row"]), np.nan, np.float32) if side is None else peaks[side])
        orders.append(np.column_stack([np.full(len(peaks["row"]), k), peaks["row"], peaks["column"]]))
        row, column = places[-1][:, 1] / grid.pixel_um - 0.5, places[-1][:, 2] / grid.pixel_um - 0.5
        bands.append(shapes(contrast[k], row, column, grid.pixel_um, grid.cell_diameter_um)[1])
    place, score = np.concatenate(places), np.concatenate(logits)
    order, inside = np.concatenate(orders), np.concatenate(inner)
    prominence = np.concatenate(bands) / texture
    keep = suppress(place, score, order, _SEPARATION_CELLS * grid.cell_diameter_um)
    return Found(place[keep], score[keep], inside[keep], prominence[keep])


def _texture(contrast: NDArray[np.float32], grid: GridSettings) -> float:
    """Texture of a stack (k, h, w) of contrast, as `Intensity.texture`: median over patches that are not dark."""
    side = round(_PATCH_CELLS * grid.cell_diameter_um / grid.pixel_um)
    cell_px = grid.cell_diameter_um / grid.pixel_um
    found = []
    for k in np.unique(np.linspace(0, len(contrast) - 1, _PATCH_SLICES).astype(int)):
        for top in range(0, max(1, contrast.shape[1] - side // 2), side):
            for left in range(0, max(1, contrast.shape[2] - side // 2), side):
                patch = contrast[k, top : top + side, left : left + side]
                if np.median(patch) > _DARK:
                    found.append(texture_of(patch, (cell_px, cell_px)))
    return max(float(np.median(found)), LEAST_TEXTURE) if found else LEAST_TEXTURE


def judge(
    model: CenterNet,
    volume: NetVolume,
    grid: GridSettings,
    tolerance_um: float = TOLERANCE_UM,
    face: FaceWeights = PLAIN_FACE,
) -> Judged:
    """Detect in a volume and match with its truth; finding a cell too faint to judge counts for nothing."""
    found = detections(model, volume, grid, face)
    place = found.place
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
    step_cells = volume.step_um / grid.cell_diameter_um
    return Judged(
        found.logit[counted], correct[counted], int(visible.sum()), found.inside[counted], step_cells,
        found.prominence[counted],
    )  # fmt: skip


def prominence_weights(*groups: list[Judged], flat: float = 0.015) -> ProminenceWeights:
    """How much lower to judge what hardly stands out of the texture: weight and what is enough.

    Chosen by what it is for, one threshold that serves all tissue: the mean F1 of `best_threshold` over the groups.
    Within a volume a network ranks well by itself; it is from brain to brain that the same faint blob is a cell here
    and texture there, so a data set of its own is a group of its own. Of what is within `flat` of the best F1 the
    mildest is taken.
    """
    if not any(j.prominence is not None for group in groups for j in group):
        return PLAIN_PROMINENCE
    tried = [PLAIN_PROMINENCE, *itertools.product(_WEIGHTS, _ENOUGH)]
    f1 = [best_threshold(*([j.lowered(w) for j in group] for group in groups))[1] for w in tried]
    good = [w for w, value in zip(tried, f1, strict=True) if value >= max(f1) - flat]
    return min(good, key=lambda w: w[0] * math.asinh(w[1]))


def face_weights(judged: list[Judged]) -> FaceWeights:
    """How to correct logits in the outermost slices of volumes, so that a logit means the same everywhere.

    Two logistic regressions give the probability of being right: of detections inside on their logit, of those
    in the outermost slices on their logit and that of the slice beside. The first turns the second's
    probability back into a logit. Every volume weighs the same. Where there are too few cells to learn from,
    nothing is corrected.
    """
    from sklearn.linear_model import LogisticRegression

    known = _with_faces(judged)
    if not known:
        return PLAIN_FACE
    logit, correct, inside, weight = _pooled(known)
    on_face = np.isfinite(inside)
    if min(correct[on_face].sum(), (~correct[on_face]).sum(), correct[~on_face].sum()) < _FACE_CELLS:
        return PLAIN_FACE

    def fit(x: NDArray[np.float32], rows: NDArray[np.bool_]) -> tuple[float, ...]:
        # Scaled to a mean of 1: the regression's own penalty is meant for that.
        w = weight[rows] / weight[rows].mean()
        model = LogisticRegression(C=10.0, max_iter=1000).fit(x[rows], correct[rows], sample_weight=w)
        return float(model.intercept_[0]), *(float(c) for c in model.coef_[0])

    constant, slope = fit(logit[:, None], ~on_face)
    both = fit(np.column_stack([logit, inside]), on_face)
    if both[1] <= 0 or both[2] < 0 or slope <= 0:
        log.warning("detections in the outermost slices are not corrected: their logits tell nothing")
        return PLAIN_FACE
    return (both[0] - constant) / slope, both[1] / slope, both[2] / slope, 0.0


def balanced_face(judged: list[Judged], face: FaceWeights, lowest_logit: float) -> FaceWeights:
    """Weights with another constant: from a threshold on, the outermost slices gain as many cells as they lose.

    Of detections that are as likely right as wrong, a threshold on the probability takes all or none. Inside a
    volume there are few of them, in its outermost slices many, and the count there would be far off. How far
    depends on the distance of the slices, so the constant is a line over it, through volumes of three distances.
    """
    known = _with_faces(judged)
    if not known or face == PLAIN_FACE:
        return face
    steps = np.array([j.step_cells for j in known])
    limits = np.quantile(steps, [1 / 3, 2 / 3]) if np.ptp(steps) > _STEP_SPREAD else np.array([])
    group = np.searchsorted(limits, steps)
    found = []
    for number in np.unique(group):
        own = [j for j, g in zip(known, group, strict=True) if g == number]
        found.append((float(steps[group == number].mean()), _balancing(own, face, lowest_logit)))
    distance, balance = np.array(found).T
    slope, constant = np.polyfit(distance, balance, 1) if len(found) > 1 else (0.0, balance[0])
    return round(float(constant), 3), round(face[1], 3), round(face[2], 3), round(float(slope), 3)


def _balancing(judged: list[Judged], face: FaceWeights, lowest_logit: float) -> float:
    """The constant with which so many detections on faces reach a logit as are right."""
    found = _pooled(judged)
    logit, correct, inside, weight = (part[np.isfinite(found[2])] for part in found)
    lift = face[1] * logit + face[2] * inside
    order = np.argsort(-lift)
    last = np.searchsorted(np.cumsum(weight[order]), weight[correct].sum())
    return float(lowest_logit - lift[order][min(last, len(order) - 1)])


def _with_faces(judged: list[Judged]) -> list[Judged]:
    return [j for j in judged if j.inside is not None and np.isfinite(j.inside).any()]


def _pooled(
    judged: list[Judged],
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float32], NDArray[np.float64]]:
    """Logit, correctness, `inside` and weight of all detections of volumes that have faces."""
    logit, correct, inside = (
        np.concatenate([getattr(j, name) for j in judged]) for name in ("logit", "correct", "inside")
    )
    return logit, correct, inside, np.concatenate([_weights(j) for j in judged])


def _weights(judged: Judged) -> NDArray[np.float64]:
    """Of a volume's detections: every volume weighs the same, however many cells it holds."""
    return np.full(len(judged.logit), 1 / max(20, len(judged.logit)))


def calibration_knots(judged: list[Judged], n_knots: int = 25) -> tuple[tuple[float, float], ...]:
    """Monotone piecewise-linear map from logit to the share of correct detections.

    Every volume weighs the same, however many cells it holds.
    """
    from sklearn.isotonic import IsotonicRegression

    logit = np.concatenate([j.logit for j in judged]).astype(np.float64)
    correct = np.concatenate([j.correct for j in judged]).astype(np.float64)
    weight = np.concatenate([_weights(j) for j in judged])
    curve = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(
        logit, correct, sample_weight=weight
    )
    # Evenly spaced, because the interesting logits are few: most peaks are far below any threshold.
    at = np.linspace(logit.min(), np.quantile(logit[correct > 0], 0.999), n_knots).round(3)
    # Averaging around every knot turns the steps of the regression into slopes.
    half = (at[1] - at[0]) / 2
    value = np.array([curve.predict(np.linspace(a - half, a + half, 50)).mean() for a in at])
    return rising_knots(at, value)


def rising_knots(at: NDArray[np.floating], value: NDArray[np.floating]) -> tuple[tuple[float, float], ...]:
    """A curve as a detector's record takes it: logits rise by a thousandth at least, probabilities never fall.

    A network that gives every peak almost the same height has logits nearer to each other than that.
    """
    place = np.asarray(at).round(3)
    value = np.maximum.accumulate(np.clip(value, 0.001, 0.999))
    last = np.append(np.diff(place) > 0, True)
    place, value = place[last], value[last]
    if len(place) == 1:
        place, value = np.array([place[0] - 0.001, place[0]]).round(3), value.repeat(2)
    return tuple((float(a), round(float(v), 4)) for a, v in zip(place, value, strict=True))


def best_threshold(*groups: list[Judged], flat: float = 0.001) -> tuple[float, float]:
    """The threshold on the logit, and the mean F1 over volumes that hold cells there.

    Every group of volumes weighs the same, however many it holds. F1 is flat around its best: of all
    thresholds within `flat` of it the highest is taken, because a false cell on somebody else's tissue is
    more likely than on simulated one.
    """
    candidates = np.linspace(-4, 4, 161)
    with_cells = [kept for group in groups if (kept := [j for j in group if j.n_true >= 10])]
    means = np.array([np.mean([np.mean([j.f1(c) for j in g]) for g in with_cells]) for c in candidates])
    chosen = int(np.flatnonzero(means >= means.max() - flat)[-1])
    return float(candidates[chosen]), float(means[chosen])
