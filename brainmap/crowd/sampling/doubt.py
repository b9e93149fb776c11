"""What the last crowd found hard, and which new tiles will be hard in the same way.

A candidate is undecided where its posterior lies between 0.1 and 0.9. Tiles of the last ground truth are not
offered again (there further workers decide, see `brainmap.crowd.work.certainty`); what is learnt from them is what
undecided tiles look like: a ridge regression of their number of undecided candidates on the looks of a tile.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brainmap.crowd.sampling.network import TileNetwork
from brainmap.crowd.sampling.request import SampleRequest
from brainmap.crowd.sampling.strategies import statistics
from brainmap.crowd.work.certainty import HIGH, LOW
from brainmap.errors import DataError, NotFoundError, UsageError
from brainmap.files import read_json
from brainmap.gt.truth import GroundTruth
from brainmap.tiles.tiles import Tiles

__all__ = ["Doubt", "LastTruth", "crowd_doubt", "last_truth"]

log = logging.getLogger(__name__)

Floats = NDArray[np.float64]

# Fewer annotated tiles teach nothing about others.
_LEAST_TILES = 8
_STRENGTHS = tuple(np.logspace(-1, 5, 13))


@dataclass(frozen=True)
class Doubt:
    """How doubtful tiles are expected to be.

    Parameters
    ----------
    value : ndarray of float64, shape (n,)
        More is more doubtful.
    words : str
        What the value is.
    skill : float or None
        For a prediction: share of the variance among annotated tiles that it explains when each is left out.
    """

    value: Floats
    words: str
    skill: float | None = None


@dataclass(frozen=True)
class LastTruth:
    """The ground truth of an earlier round.

    Parameters
    ----------
    folder : Path
    names : frozenset of str
        Its images.
    tiles : Tiles
        Those of its images that are tiles.
    undecided : ndarray of float64, shape (n,)
        Undecided candidates of each of the tiles.
    """

    folder: Path
    names: frozenset[str]
    tiles: Tiles
    undecided: Floats


def last_truth(request: SampleRequest) -> LastTruth:
    """The ground truth that a request names.

    Raises
    ------
    NotFoundError, UsageError
        It is none; nobody says which tiles it is of.
    """
    folder = request.truth
    if folder is None:
        raise ValueError("the request names no ground truth")
    truth = GroundTruth.open(folder)
    named = request.truth_tiles or (read_json(folder / "gt.json").get("input") or {}).get("tiles")
    if named is None:
        raise UsageError(
            f"{folder} does not say which tiles it was made of; name their folder with --truth-tiles"
        )
    if not Path(named).is_dir():
        raise NotFoundError(
            f"the tiles of {folder} are not at {named} any more; name their folder with --truth-tiles"
        )
    tiles = Tiles.open(named)
    known = np.isin(tiles.ids.astype(str), truth.ids)
    tiles = tiles.take(known)
    undecided = []
    for name in tiles.ids:
        posterior = truth.points(str(name))[2]
        undecided.append(float(((posterior > LOW) & (posterior < HIGH)).sum()))
    return LastTruth(folder, frozenset(str(name) for name in truth.ids), tiles, np.array(undecided))


def crowd_doubt(
    last: LastTruth, network: TileNetwork, cell_diameter_um: float, looks: Floats, detector: Floats
) -> Doubt:
    """Undecided candidates to be expected on new tiles.

    Parameters
    ----------
    last : LastTruth
    network : TileNetwork
    cell_diameter_um : float
        Typical cell of the annotated tiles.
    looks : ndarray of float64, shape (n, d)
        Of the new tiles: `statistics`, the detector's doubt, the network's features, side by side.
    detector : ndarray of float64, shape (n,)
        The detector's doubt, which stands in, with a warning, where the crowd's cannot be predicted.

    Raises
    ------
    DataError
        The ground truth has too few tiles.
    """
    from sklearn.linear_model import RidgeCV

    n = len(last.tiles)
    if n < _LEAST_TILES:
        raise DataError(
            f"{last.folder} holds {n} tiles; to learn from them what is hard, at least {_LEAST_TILES} are needed"
        )
    known = np.stack([_look(last.tiles, i, network, cell_diameter_um) for i in range(n)])
    centre, spread = known.mean(axis=0), known.std(axis=0)
    spread = np.where(spread > 1e-9, spread, 1.0)
    target = np.log1p(last.undecided)
    fit = RidgeCV(alphas=_STRENGTHS, store_cv_results=True).fit((known - centre) / spread, target)
    error = float(fit.cv_results_.mean(axis=0).min())
    # Each left-out tile is held against the mean of the others, as the regression is.
    base = float(np.var(target) * (n / (n - 1)) ** 2)
    skill = 1 - error / base if base > 0 else 0.0
    if skill <= 0:
        log.warning(
            "what was hard in %s cannot be told from how its %d tiles look: tiles are ranked by the detector's doubt",
            last.folder, n,
        )  # fmt: skip
        words = "wrong answers the detector expects of itself (the crowd's doubt could not be predicted)"
        return Doubt(detector, words, skill)
    value = np.expm1(fit.predict((looks - centre) / spread))
    return Doubt(np.maximum(value, 0.0), f"undecided candidates expected, learnt from {n} tiles", skill)


def _look(tiles: Tiles, index: int, network: TileNetwork, cell_diameter_um: float) -> Floats:
    image = tiles.image(index)
    look = network.look(image, tiles.columns["voxel_um"][index], cell_diameter_um)
    own = look.doubt(network.detector.spec.threshold)
    return np.concatenate([statistics(image), [own], look.feature]).astype(np.float64)
