"""Whether more annotation will help: a learning curve over slices, drawn without training a network.

What clicks can teach is tried on the last layer alone: for every detection the start's features at its peak are
kept, and a logistic regression learns from 1, 2, 4, 8 ... slices which of them are cells. That takes seconds, so
it can be repeated over random splits, and a curve through the results says what twice as many slices would
bring. It is a stand-in: a network that is fine-tuned whole learns more, and keeps learning a little longer.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from brainmap.tiles.tiles import Tiles
from brainmap.train.judge.calibrate_tiles import expected_best
from brainmap.train.judge.predict import TilePoints, predict_tiles
from brainmap.train.learn.centernet import CenterNet
from brainmap.train.learn.samples import GridSettings
from brainmap.train.learn.views import net_tile
from brainmap.train.retrain.split import TruthTiles

__all__ = ["LearningCurve", "fit_curve", "learning_curve", "peak_features"]

log = logging.getLogger(__name__)

# Fewer slices make no curve.
LEAST_SLICES = 4
# A gain below this is not worth an afternoon of clicks.
WORTH = 0.01
# Lower peaks are never shown and would only slow the regressions down.
_LOWEST_LOGIT = -4.0
# Side of the pieces a tile is computed in, and what they overlap by: more than the network sees.
_PIECE, _OVERLAP = 512, 64
_PENALTY = 0.03
_TEST_SHARE = 0.34


@dataclass(frozen=True)
class LearningCurve:
    """F1 by the number of annotated slices, and what twice as many would bring.

    Parameters
    ----------
    slices : list of int
        Sizes that were tried; 0 is the start as it is, its threshold chosen on the slices that were left out.
    f1, low, high : list of float
        Mean over random splits, and the middle 90 % of them.
    annotated : int
        Slices there are.
    gain, gain_low, gain_high : float
        Expected rise of F1 by as many slices again, and the middle 90 % of it over random splits.
    """

    slices: list[int]
    f1: list[float]
    low: list[float]
    high: list[float]
    annotated: int
    gain: float
    gain_low: float
    gain_high: float

    def record(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "sentence": str(self)}

    def __str__(self) -> str:
        interval = f"({self.gain_low:+.3f} to {self.gain_high:+.3f})"
        expected = f"F1 {self.gain:+.3f} {interval} by {self.annotated} more slices"
        if self.gain_high < WORTH:
            return f"more slices like these are not expected to help: {expected}"
        if self.gain_low >= WORTH:
            return f"more slices will help: {expected}"
        return f"more slices may help: {expected}"


def learning_curve(
    network: CenterNet,
    grid: GridSettings,
    data: TruthTiles,
    cell_diameter_um: float,
    splits: int,
    seed: int,
) -> LearningCurve | None:
    """The curve of some tiles that the network never learnt; None where they are too few.

    Parameters
    ----------
    network : CenterNet
    grid : GridSettings
    data : TruthTiles
    cell_diameter_um : float
    splits : int
        Random orders of the slices.
    seed : int
    """
    slices, member = np.unique(data.tiles.slice_key.astype(str), return_inverse=True)
    if splits == 0 or len(slices) < LEAST_SLICES:
        return None
    found = predict_tiles(network, data.tiles, grid, cell_diameter_um, _LOWEST_LOGIT)
    features = peak_features(network, data.tiles, found, grid, cell_diameter_um)
    cells = np.bincount(member[data.cells[0]], minlength=len(slices))
    rows = np.column_stack([found.logit, features])
    return fit_curve(rows, data.correct(found), member[found.image], cells, splits, seed)


def fit_curve(
    features: NDArray[np.floating],
    correct: NDArray[np.bool_],
    group: NDArray[np.integer],
    cells: NDArray[np.integer],
    splits: int,
    seed: int,
) -> LearningCurve | None:
    """Learn from few and many slices, and fit F1(n) = best - b / sqrt(n); None where there are too few cells.

    Parameters
    ----------
    features : ndarray, shape (n, k)
        Of every detection; the first column is the network's own logit.
    correct : ndarray of bool, shape (n,)
    group : ndarray of int, shape (n,)
        Slice of each, 0 and up.
    cells : ndarray of int, shape (slices,)
        True cells of each slice, found or not.
    splits : int
    seed : int
    """
    rng = np.random.default_rng(seed)
    number = len(cells)
    test = max(1, round(_TEST_SHARE * number))
    sizes = [2**k for k in range(int(np.log2(number - test)) + 1)]
    sizes += [number - test] * (sizes[-1] < number - test)
    f1 = np.full((splits, 1 + len(sizes)), np.nan)
    for row in range(splits):
        order = rng.permutation(number)
        for column, size in enumerate([0, *sizes]):
            f1[row, column] = _f1_after(
                features, correct, group, cells, order[test : test + size], order[:test]
            )
    # Sizes from which there was nothing to learn in any split, because so few slices held no cell.
    known = np.isfinite(f1).any(axis=0)
    if not known[0] or known[1:].sum() < 2:
        return None
    f1, sizes = f1[:, known], [size for size, use in zip(sizes, known[1:], strict=True) if use]
    gains = np.array([_gain(np.array(sizes), f1[row, 1:], number) for row in range(splits)])
    # The mean of many splits is surer than any of them; their spread says how sure one such annotation is.
    gain = _gain(np.array(sizes), np.nanmean(f1[:, 1:], axis=0), number)
    gain_low, gain_high = np.nanquantile(gains, [0.05, 0.95])
    mean, low, high = (
        values.round(4).tolist()
        for values in (np.nanmean(f1, axis=0), *np.nanquantile(f1, [0.05, 0.95], axis=0))
    )
    return LearningCurve(
        [0, *sizes], mean, low, high, number,
        round(gain, 4), round(float(gain_low), 4), round(float(gain_high), 4),
    )  # fmt: skip


def _f1_after(
    features: NDArray[np.floating],
    correct: NDArray[np.bool_],
    group: NDArray[np.integer],
    cells: NDArray[np.integer],
    taught: NDArray[np.integer],
    test: NDArray[np.integer],
) -> float:
    """F1 on some slices after learning from others; NaN where there is nothing to learn or to find."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    own, rest = np.isin(group, taught), np.isin(group, test)
    n_true = int(cells[test].sum())
    if not n_true:
        return float("nan")
    if not rest.any():
        return 0.0
    if not len(taught):
        # The start's ranking with the threshold its own score is best at elsewhere.
        elsewhere = ~rest
        threshold = _best(features[elsewhere, 0], correct[elsewhere], int(cells.sum()) - n_true)
        chosen = features[rest, 0] >= threshold
    else:
        if correct[own].all() or not correct[own].any():
            return float("nan")
        model = make_pipeline(StandardScaler(), LogisticRegression(C=_PENALTY, max_iter=300))
        model.fit(features[own], correct[own])
        threshold, _ = expected_best(model.predict_proba(features[own])[:, 1], int(cells[taught].sum()))
        chosen = model.predict_proba(features[rest])[:, 1] >= threshold
    return 2 * int(correct[rest][chosen].sum()) / max(1, int(chosen.sum()) + n_true)


def _best(logit: NDArray[np.floating], correct: NDArray[np.bool_], n_true: int) -> float:
    """The logit from which F1 is best; beyond all where there is no peak to choose from."""
    if not len(logit):
        return float("inf")
    order = np.argsort(-logit)
    f1 = 2 * np.cumsum(correct[order]) / (np.arange(1, len(order) + 1) + n_true)
    return float(logit[order][np.argmax(f1)])


def _gain(sizes: NDArray[np.int64], f1: NDArray[np.float64], number: int) -> float:
    """Rise of F1 from `number` slices to twice as many, by F1(n) = best - b / sqrt(n)."""
    use = np.isfinite(f1)
    if use.sum() < 2:
        return float("nan")
    # Sizes of one slice are far from where the curve is asked, and bend it.
    weight = np.sqrt(sizes[use])
    b, _best_f1 = np.polyfit(-1 / np.sqrt(sizes[use]), f1[use], 1, w=weight)
    return float(b * (1 / np.sqrt(number) - 1 / np.sqrt(2 * number)))


@torch.no_grad()
def peak_features(
    network: CenterNet, tiles: Tiles, found: TilePoints, grid: GridSettings, cell_diameter_um: float
) -> NDArray[np.float32]:
    """The features of the network's last layer at detections, shape (n, width)."""
    device, config = next(network.parameters()).device, network.config
    width = network.neck[0].out_channels
    out = np.zeros((len(found), width), np.float32)  # type: ignore[arg-type]
    cell = max(2, config.stride)
    for index in np.unique(found.image):
        rows = np.flatnonzero(found.image == index)
        voxel_um = tuple(float(v) for v in tiles.columns["voxel_um"][index])
        view = net_tile(tiles.image(int(index)), voxel_um, grid, cell_diameter_um)  # type: ignore[arg-type]
        place = np.floor(view.to_net(found.xy[rows]) + 0.5).astype(np.int64)
        place = np.clip(place, 0, np.array(view.image.shape) - 1)
        piece = place // _PIECE
        for corner in np.unique(piece, axis=0):
            own = (piece == corner).all(axis=1)
            top, left = corner * _PIECE - _OVERLAP
            part = np.zeros((1, config.slices, _PIECE + 2 * _OVERLAP, _PIECE + 2 * _OVERLAP), np.float32)
            cut = view.image[max(top, 0) : top + part.shape[2], max(left, 0) : left + part.shape[3]]
            part[0, config.slices // 2, max(-top, 0) :, max(-left, 0) :][: cut.shape[0], : cut.shape[1]] = cut
            maps = network.features(torch.from_numpy(part).to(device))[0].float().cpu().numpy()
            at = (place[own] - (top, left)) // cell
            out[rows[own]] = maps[:, at[:, 0], at[:, 1]].T
    return out
