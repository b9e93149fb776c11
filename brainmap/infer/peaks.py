"""Cell centres from a stack of heat maps, one slice at a time.

A cell is a local maximum over 3 x 3 x 3 heat cells: the network's heat peaks in the slice through the
cell's centre and fades in the slices beside it. Everything here is a local rule, so that a block with
a margin finds what the whole brain would.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BESIDE",
    "NEIGHBOURS",
    "PLAIN_FACE",
    "FaceWeights",
    "Heat",
    "Peaks",
    "face_at",
    "find_peaks",
    "lowest_on_face",
    "margin_cells",
    "reaches",
    "refined",
    "share_cells",
    "suppress",
    "weigh_face",
]

# Columns of a set of peaks, equal lengths.
Peaks = dict[str, NDArray[Any]]
# Constant, weight of a peak's own logit, of the logit beside it, and of the slices' distance in cell diameters:
# see `weigh_face`.
FaceWeights = tuple[float, float, float, float]
PLAIN_FACE: FaceWeights = (0.0, 1.0, 0.0, 0.0)
# Slices farther apart than so many cell diameters say little about each other's cells: at 0.8 the rule does harm.
_FACE_STEP = 0.6

# Cells above, below, left and right of a peak.
BESIDE = ((-1, 0), (1, 0), (0, -1), (0, 1))
NEIGHBOURS = [step for step in itertools.product((-1, 0, 1), repeat=3) if step != (0, 0, 0)]


@dataclass(frozen=True)
class Heat:
    """What the network says of one slice.

    Attributes
    ----------
    logit : ndarray of float32, shape (rows, columns)
        The heat map, in heat cells.
    place : ndarray of int64, shape (n,)
        The cells that may be peaks, counted row by row, rising.
    offset : ndarray of float32, shape (2, n)
        The offset head there: y, x.
    """

    logit: NDArray[np.float32]
    place: NDArray[np.int64]
    offset: NDArray[np.float32]

    @classmethod
    def of(cls, logit: NDArray[np.float32], offset: NDArray[np.float32], lowest_logit: float) -> Heat:
        """Heat from whole maps, logit (rows, columns) and offset (2, rows, columns); lower cells are no peaks."""
        place = np.flatnonzero(logit >= lowest_logit)
        return cls(logit, place, offset.reshape(2, -1)[:, place])


def margin_cells(separation_um: float, cell_um: float, group_um: float) -> tuple[int, int]:
    """Heat cells that a block must see beyond its own, in plane and along z.

    A peak needs its neighbours; a detection needs every other one within the separation, and either may
    be moved by up to one cell in plane and half a group along z from its integer place.
    """
    in_plane = math.ceil(separation_um / cell_um + 2) + 1
    along_z = math.floor(separation_um / group_um + 1) + 1
    return in_plane, along_z


def find_peaks(
    below: NDArray[np.float32] | None, here: Heat, above: NDArray[np.float32] | None, subpixel: str = "offset"
) -> Peaks:
    """Local maxima of one slice of the heat map, refined.

    Of equal neighbours the first in z, y, x order is the peak.

    Parameters
    ----------
    below, above : ndarray of float32, shape (rows, columns), or None
        Logits of the slices before and after; None beyond the volume.
    here : Heat
        The slice itself. Cells at its rim are compared with what is there.
    subpixel : str
        "offset": in-plane place by the offset head; "parabola": by the heat map.

    Returns
    -------
    dict of ndarray
        `row`, `column` (int64, the peak cell); `logit` (float32), `below`, `above` (float32, the logit in the
        slices beside, -inf where there is none); `dy`, `dx` (float64, offset from the cell's centre in
        cells, within one cell); `dz` (float64, in groups, within half of one).
    """
    logit = here.logit
    row, column = np.divmod(here.place, logit.shape[1])
    value = logit[row, column]
    peak = np.isfinite(value)
    slices = (below, logit, above)
    for step in NEIGHBOURS:
        if (other := slices[step[0] + 1]) is None:
            continue
        near = _at(other, row[peak] + step[1], column[peak] + step[2])
        wins = value[peak] > near if step < (0, 0, 0) else value[peak] >= near
        peak[peak] = wins
    row, column, value = row[peak], column[peak], value[peak]
    missing = np.full(len(value), -np.inf, np.float32)
    sides = [missing if s is None else s[row, column] for s in (below, above)]
    beside = [_at(logit, row + y, column + x) for y, x in BESIDE] if subpixel == "parabola" else None
    return refined(row, column, value, sides, here.offset[:, peak], beside)


def refined(
    row: NDArray[np.int64],
    column: NDArray[np.int64],
    logit: NDArray[np.float32],
    sides: Sequence[NDArray[np.float32]],
    offset: NDArray[np.float32],
    beside: Sequence[NDArray[np.float32]] | None,
) -> Peaks:
    """Peaks with their place refined below the cell; see `find_peaks` for the columns.

    Parameters
    ----------
    row, column, logit : ndarray, shape (n,)
        The peak cells.
    sides : (below, above)
        Logits in the slices beside, -inf where there is none.
    offset : ndarray of float32, shape (2, n)
        The offset head at the peaks.
    beside : four ndarray of float32, shape (n,), optional
        Logits at the `BESIDE` of each peak; if given, they decide instead of the offset head.
    """
    if beside is None:
        dy, dx = np.clip(offset.astype(np.float64), -1, 1)
    else:
        dy, dx = _vertex(beside[0], logit, beside[1]), _vertex(beside[2], logit, beside[3])
    return {
        "row": row, "column": column, "logit": logit, "below": sides[0], "above": sides[1], "dy": dy, "dx": dx,
        # Beyond the volume's faces nothing is known: the centre stays in the last slice.
        "dz": _vertex(sides[0], logit, sides[1]),
    }  # fmt: skip


def weigh_face(peaks: Peaks, k: int, groups: int, weights: FaceWeights) -> NDArray[np.float32]:
    """Logits of the peaks of a slice, corrected in the first and the last slice of a volume.

    There a cell whose centre lies beyond the volume peaks as well. Its heat falls faster inwards than that of a
    cell inside, so a logistic regression on both logits tells them apart.

    Parameters
    ----------
    peaks : dict of ndarray
        From `find_peaks`.
    k, groups : int
        The slice and the number of slices of the volume. A slice that stands alone has no face: all that it
        shows counts.
    weights : tuple of float
        From `face_at`, for the distance of the volume's slices.
    """
    logit: NDArray[np.float32] = peaks["logit"]
    if groups == 1 or 0 < k < groups - 1:
        return logit
    inside = peaks["above" if k == 0 else "below"]
    known = np.isfinite(inside)
    weighed = np.float32(weights[0]) + np.float32(weights[1]) * logit
    return np.where(known, weighed + np.float32(weights[2]) * np.where(known, inside, 0), logit)


def share_cells(step_um: float, cell_diameter_um: float) -> bool:
    """Whether neighbouring slices show the same cells, so that `weigh_face` has something to go by."""
    return step_um <= _FACE_STEP * cell_diameter_um


def face_at(weights: FaceWeights, step_um: float, cell_diameter_um: float) -> FaceWeights:
    """A detector's weights for slices so far apart.

    The nearer slices are, the more cells show on a face whose centres lie beyond it. Where slices do not
    `share_cells`, peaks on a face are judged like any other.
    """
    if not share_cells(step_um, cell_diameter_um):
        return PLAIN_FACE
    constant, logit, inside, step = weights
    return constant + step * step_um / cell_diameter_um, logit, inside, 0.0


def lowest_on_face(lowest_logit: float, weights: FaceWeights) -> float:
    """The lowest logit of a peak that `weigh_face` may lift to `lowest_logit`: inside, it is no higher."""
    return min(lowest_logit, (lowest_logit - weights[0]) / (weights[1] + weights[2]))


def _at(
    logit: NDArray[np.float32], row: NDArray[np.integer], column: NDArray[np.integer]
) -> NDArray[np.float32]:
    """Values at places; -inf beyond the rim."""
    rows, columns = logit.shape
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    values = logit[np.clip(row, 0, rows - 1), np.clip(column, 0, columns - 1)]
    return np.where(inside, values, np.float32(-np.inf))


def _vertex(
    before: NDArray[np.float32], here: NDArray[np.float32], after: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Vertex of the parabola through three log heats, within half a step; 0 where a side is unknown.

    The logarithm of a Gaussian is a parabola, so the vertex of one is its centre.
    """
    a, b, c = (_log_heat(v) for v in (before, here, after))
    known = np.isfinite(a) & np.isfinite(c)
    a, c = np.where(known, a, b), np.where(known, c, b)
    curve = a - 2 * b + c
    bent = curve < -1e-9
    step = np.where(bent, (a - c) / (2 * np.where(bent, curve, -1.0)), 0.0)
    return np.clip(step, -0.5, 0.5)


def _log_heat(logit: NDArray[np.float32]) -> NDArray[np.float64]:
    """Logarithm of the sigmoid, stable for any logit."""
    wide = logit.astype(np.float64)
    return -np.logaddexp(0.0, -wide)


def reaches(score: NDArray[np.floating], threshold: float) -> NDArray[np.bool_]:
    """Which scores count at a threshold.

    Compared as float32, the type that scores are stored in: whether a score is compared before it is written or
    after it was read makes no difference.
    """
    return np.asarray(score, np.float32) >= np.float32(threshold)


def suppress(
    place_um: NDArray[np.float64],
    logit: NDArray[np.floating],
    order: NDArray[np.integer] | NDArray[np.floating],
    separation_um: float,
) -> NDArray[np.bool_]:
    """Which detections stay: those without a stronger one within the separation.

    One pass over all pairs at once, so the result does not depend on what lies farther away. Only a stronger one
    removes another, so what stays at a threshold of the strength is the same whether the weaker ones are dropped
    before or after.

    Parameters
    ----------
    place_um : ndarray of float64, shape (n, 3)
        Refined centres.
    logit : ndarray, shape (n,)
        Strength.
    order : ndarray, shape (n, m)
        Peak cells (group, row, column), or any columns: of equally strong detections the first in this order stays.
    separation_um : float
        Nearer than this is the same cell.

    Returns
    -------
    ndarray of bool, shape (n,)
    """
    # Takes a tenth of a second to load, which a run has while its blocks are at work but not when it starts.
    from scipy.spatial import cKDTree

    keep = np.ones(len(logit), bool)
    if len(logit) < 2:
        return keep
    pairs = cKDTree(place_um).query_pairs(separation_um, output_type="ndarray")
    if len(pairs) == 0:
        return keep
    rank = np.empty(len(logit), np.int64)
    rank[np.lexsort((*order.T[::-1], -logit))] = np.arange(len(logit))
    keep[np.where(rank[pairs[:, 0]] > rank[pairs[:, 1]], pairs[:, 0], pairs[:, 1])] = False
    return keep
