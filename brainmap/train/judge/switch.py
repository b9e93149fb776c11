"""Whether to switch from one detector to another: a paired comparison on tiles that both are judged on.

The two are held against the same truth on the same tiles, so that what varies from tile to tile varies for
both and cancels in the difference. Its interval comes from a bootstrap over slices, because the tiles of one
slice are alike; where there are too few slices, over tiles, and where there are too few tiles, over the
squares of a grid laid on each tile.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from brainmap.errors import DataError
from brainmap.points.matching import match_points

if TYPE_CHECKING:
    from brainmap.train.judge.predict import TilePoints

__all__ = ["Counts", "Difference", "Units", "compare", "count"]

Floats = NDArray[np.float64]

# Fewer units than this give no interval worth the name.
LEAST_UNITS = 3
# Squares along each side of a tile, where tiles are too few.
_SQUARES = 4
_LEVELS = 40
_RESAMPLES = 2000


@dataclass(frozen=True)
class Units:
    """What is resampled: groups of tiles, or squares of them.

    Parameters
    ----------
    kind : str
        "slices", "tiles" or "squares".
    row : ndarray of int64, shape (tiles,)
        Unit of each tile; of its first square where units are squares.
    count : int
    size : ndarray of float64, shape (tiles, 2)
        Width and height of each tile, px.
    """

    kind: str
    row: NDArray[np.int64]
    count: int
    size: Floats

    @classmethod
    def of(cls, slice_key: NDArray[np.str_], width: NDArray[np.int64], height: NDArray[np.int64]) -> Units:
        """The coarsest units of which there are at least `LEAST_UNITS`."""
        size = np.column_stack([width, height]).astype(np.float64)
        slices, row = np.unique(slice_key, return_inverse=True)
        tiles = np.arange(len(slice_key), dtype=np.int64)
        if len(slices) >= LEAST_UNITS:
            return cls("slices", row.astype(np.int64), len(slices), size)
        if len(tiles) >= LEAST_UNITS:
            return cls("tiles", tiles, len(tiles), size)
        return cls("squares", tiles * _SQUARES**2, len(tiles) * _SQUARES**2, size)

    def at(self, tile: NDArray[np.int64], xy: Floats) -> NDArray[np.int64]:
        """Unit of each place, given its tile and x, y in tile px."""
        unit = self.row[tile]
        if self.kind != "squares":
            return unit
        square = (np.floor((xy + 0.5) / self.size[tile] * _SQUARES)).astype(np.int64)
        column, row = np.clip(square, 0, _SQUARES - 1).T
        return unit + row * _SQUARES + column


@dataclass(frozen=True)
class Counts:
    """What one detector found in every unit.

    Parameters
    ----------
    found, marked : ndarray of int64, shape (1 + levels, units)
        True cells found, and detections, from a height upwards; row 0 at the detector's own threshold, the
        others at rising logits.
    true : ndarray of int64, shape (units,)
        Cells to be found.
    """

    found: NDArray[np.int64]
    marked: NDArray[np.int64]
    true: NDArray[np.int64]

    def f1(self, weight: Floats) -> Floats:
        """F1 at the detector's threshold, for each row of weights of the units, shape (resamples, units)."""
        found, marked, true = weight @ self.found[0], weight @ self.marked[0], weight @ self.true
        return np.asarray(2 * found / np.maximum(1, marked + true))

    def auprc(self, weight: Floats) -> Floats:
        """Area under the precision-recall curve, as `PrecisionRecall.average_precision`."""
        found, marked = weight @ self.found[1:].T, weight @ self.marked[1:].T
        recall = found / np.maximum(1, weight @ self.true)[:, None]
        precision = np.where(marked > 0, found / np.maximum(1, marked), 0.0)
        reached = np.maximum.accumulate(recall[:, ::-1], axis=1)
        steps = np.diff(reached, axis=1, prepend=0.0)
        return np.asarray((steps * precision[:, ::-1]).sum(axis=1))


@dataclass(frozen=True)
class Difference:
    """A measure of the old and the new detector, and the interval of new minus old.

    `low` and `high` bound the middle 90 % of the resampled differences.
    """

    old: float
    new: float
    low: float
    high: float

    @property
    def gain(self) -> float:
        """New minus old."""
        return self.new - self.old

    def __str__(self) -> str:
        return (
            f"{self.old:.3f} before, {self.new:.3f} now, difference {self.gain:+.3f} "
            f"({self.low:+.3f} to {self.high:+.3f})"
        )


def count(
    found: TilePoints,
    true_tile: NDArray[np.int64],
    true_xy: Floats,
    units: Units,
    threshold: float,
    tolerance_px: float,
) -> Counts:
    """Match detections with true cells, anew at every score level, and count by unit.

    Parameters
    ----------
    found : TilePoints
        Detections with calibrated scores.
    true_tile, true_xy : ndarray, shapes (m,) and (m, 2)
        Tile of each true cell, and its x, y in tile px.
    units : Units
    threshold : float
        The detector's own.
    tolerance_px : float
        Largest distance of a pair.
    """
    logit = found.logit
    levels: Iterable[float] = np.linspace(logit.min(), logit.max(), _LEVELS) if len(found) else ()
    unit_found, unit_true = units.at(found.image, found.xy), units.at(true_tile, true_xy)
    hits, marked = [], []
    for use in [found.score >= threshold, *(logit >= level for level in levels)]:
        match = match_points(
            found.xy[use], true_xy, tolerance_px, group_a=found.image[use], group_b=true_tile
        )
        hits.append(np.bincount(unit_true[match.index_b], minlength=units.count))
        marked.append(np.bincount(unit_found[use], minlength=units.count))
    return Counts(np.array(hits), np.array(marked), np.bincount(unit_true, minlength=units.count))


def compare(old: Counts, new: Counts, seed: int = 0) -> dict[str, Difference]:
    """Differences of `f1` and `auprc` with their intervals, by resampling the units of both together.

    Raises
    ------
    DataError
        If there is nothing to be found.
    """
    if not old.true.sum():
        raise DataError("the held-out tiles hold no accepted cell: nothing to judge a detector by")
    units = len(old.true)
    rng = np.random.default_rng(seed)
    weight = rng.multinomial(units, np.full(units, 1 / units), _RESAMPLES).astype(np.float64)
    whole = np.ones((1, units))
    result = {}
    for name in ("f1", "auprc"):
        before, after = getattr(old, name), getattr(new, name)
        low, high = np.quantile(after(weight) - before(weight), [0.05, 0.95])
        result[name] = Difference(float(before(whole)[0]), float(after(whole)[0]), float(low), float(high))
    return result
