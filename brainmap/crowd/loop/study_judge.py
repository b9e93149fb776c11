"""How good would a detector be that had been trained on these tiles? A cheap estimate, for comparing selections.

Training a network for each of several hundred selections is out of reach, so only its last step is trained on. The
detector proposes candidates down to a score of a thousandth; to the logit of its calibrated score a correction is
added, linear in the values of the network's own last layer and fitted to the chosen tiles alone by penalised
logistic regression. It begins at the detector as it is, from which little data move it little; the threshold stays the
detector's. This is fine-tuning with everything below the heat map frozen.

What that is worth. Both ways the chosen tiles are all that is learnt from, and a selection that lacks a look of
tissue lacks it both ways. But a candidate that the network does not propose cannot be learnt, and 30 to 40 numbers
are learnt instead of 200,000: differences between selections come out smaller than those of a whole training and
level off at fewer tiles. A difference found here is a reason to expect one there; none found here proves nothing.
The study therefore says beside its results what no annotation at all and all annotations together would give: if
those two do not differ, the data cannot tell selections apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from brainmap.crowd.sampling.network import TileNetwork
from brainmap.errors import DataError
from brainmap.gt.truth import GroundTruth
from brainmap.points.matching import match_points
from brainmap.tiles.tiles import Tiles

__all__ = ["Judged", "Labelled", "judge_selection", "look_at_labelled"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Penalty of the correction's weights, per unit of the traits' spread: as if each had been seen to be 0 with a standard
# deviation of 0.3. A hundred candidates of a few tiles cannot overturn what the detector knows.
_PENALTY = 10.0
_STEPS = 12
# Calibration ends short of certainty.
_SUREST = 1e-3


@dataclass(frozen=True)
class Labelled:
    """Labelled tiles as the detector sees them.

    Parameters
    ----------
    animal, section : ndarray of int64, shape (tiles,)
        Sections are counted over all animals.
    place : ndarray of float64, shape (tiles, 3)
        z, y, x.
    feature : ndarray of float64, shape (tiles, k)
        Of the network's deepest layer.
    doubt : ndarray of float64, shape (tiles,)
        Wrong answers that the detector expects to give.
    n_true : ndarray of int64, shape (tiles,)
        Cells of each tile.
    tile : ndarray of int64, shape (candidates,)
    trait : ndarray of float64, shape (candidates, d)
        Score (logit) and last layer, each in units of its spread over all candidates: labels are not needed for that.
    score : ndarray of float64, shape (candidates,)
        The detector's own.
    correct : ndarray of bool, shape (candidates,)
    """

    animal: Ints
    section: Ints
    place: Floats
    feature: Floats
    doubt: Floats
    n_true: Ints
    tile: Ints
    trait: Floats
    score: Floats
    correct: NDArray[np.bool_]


@dataclass(frozen=True)
class Judged:
    """F1 at the threshold learnt, and area under the precision-recall curve, on held-out tiles."""

    f1: float
    auprc: float


def look_at_labelled(
    tiles: Tiles, truth: GroundTruth, network: TileNetwork, cell_diameter_um: float, tolerance_cells: float
) -> Labelled:
    """Show all labelled tiles to a detector's network and match its candidates with the truth.

    Raises
    ------
    DataError
        A tile of which the truth says nothing, or no cell at all.
    """
    from brainmap.crowd.sampling.strategies import standardised

    looks, correct, n_true = [], [], []
    for i, name in enumerate(str(name) for name in tiles.ids):
        voxel = tiles.columns["voxel_um"][i]
        look = network.look(tiles.image(i), voxel, cell_diameter_um)
        cells = truth.accepted(name)[0]
        match = match_points(look.xy, cells, tolerance_cells * cell_diameter_um / float(voxel[1:].mean()))
        right = np.zeros(len(look.xy), bool)
        right[match.index_a] = True
        looks.append(look)
        correct.append(right)
        n_true.append(len(cells))
    if not sum(n_true):
        raise DataError("the ground truth has no accepted cell on any of the tiles: nothing to judge by")
    trait = np.concatenate([np.column_stack([look.logit, look.trait]) for look in looks]).astype(np.float64)
    trait -= trait.mean(axis=0)
    trait /= np.maximum(trait.std(axis=0), 1e-9)
    threshold = network.detector.spec.threshold
    brains = tiles.columns["brain"].astype(str)
    return Labelled(
        animal=np.unique(brains, return_inverse=True)[1].astype(np.int64),
        section=np.unique(tiles.slice_key.astype(str), return_inverse=True)[1].astype(np.int64),
        place=np.stack([tiles.columns[c] for c in ("z", "y0", "x0")], axis=1).astype(np.float64),
        feature=standardised(np.stack([look.feature for look in looks])),
        doubt=np.array([look.doubt(threshold) for look in looks]),
        n_true=np.array(n_true, np.int64),
        tile=np.repeat(np.arange(len(looks)), [len(look.xy) for look in looks]).astype(np.int64),
        trait=trait,
        score=np.concatenate([look.score for look in looks]),
        correct=np.concatenate(correct),
    )


def judge_selection(
    data: Labelled, chosen: Ints | None, held_out: Mapping[int, Ints], threshold: float
) -> dict[int, Judged]:
    """Learn from some tiles, judge on others.

    Parameters
    ----------
    data : Labelled
    chosen : ndarray of int64 or None
        Tiles to learn from; None: nothing is learnt, the detector scores with its own threshold.
    held_out : mapping of int to ndarray of int64
        Tiles to judge on, of each animal apart.
    threshold : float
        The detector's own, on its score.

    Returns
    -------
    dict of int to Judged
        Of those animals that have cells.
    """
    scores = data.score
    if chosen is not None:
        train = _of_tiles(data, chosen)
        weights = _correction(data.trait[train], _logit(data.score[train]), data.correct[train])
        scores = 1 / (1 + np.exp(-_logit(data.score) - _with_one(data.trait) @ weights))
    found = {}
    for animal, tiles in held_out.items():
        test, n_true = _of_tiles(data, tiles), int(data.n_true[tiles].sum())
        if n_true:
            found[animal] = Judged(*_judge(scores[test], data.correct[test], n_true, threshold))
    return found


def _of_tiles(data: Labelled, tiles: Ints) -> NDArray[np.bool_]:
    """Which candidates lie on some tiles."""
    use = np.zeros(len(data.n_true), bool)
    use[tiles] = True
    return use[data.tile]


def _correction(trait: Floats, offset: Floats, correct: NDArray[np.bool_]) -> Floats:
    """Weights (d + 1,) that, added to the logits `offset`, make the labels likely, by Newton's method.

    The last weight, of the constant, is penalised alike: where all candidates are false, or all true, it stays finite.
    """
    values = _with_one(trait)
    weights = np.zeros(values.shape[1])
    penalty = _PENALTY * np.eye(len(weights))
    for _ in range(_STEPS):
        chance = 1 / (1 + np.exp(-offset - values @ weights))
        slope = values.T @ (chance - correct) + _PENALTY * weights
        bend = (values * (chance * (1 - chance))[:, None]).T @ values + penalty
        step = np.linalg.solve(bend, slope)
        weights = weights - step
        if np.abs(step).max() < 1e-6:
            break
    return weights


def _with_one(trait: Floats) -> Floats:
    return np.column_stack([trait, np.ones(len(trait))])


def _logit(score: Floats) -> Floats:
    sure = np.clip(score, _SUREST, 1 - _SUREST)
    return np.asarray(np.log(sure / (1 - sure)))


def _judge(scores: Floats, correct: NDArray[np.bool_], n_true: int, level: float) -> tuple[float, float]:
    use = scores >= level
    f1 = 2 * int(correct[use].sum()) / max(1, int(use.sum()) + n_true)
    ranked = correct[np.argsort(-scores, kind="stable")]
    precision = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
    return float(f1), float(precision[ranked].sum() / max(1, n_true))
