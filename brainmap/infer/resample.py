"""Voxels to the net grid: one linear operator per in-plane axis, and means of slices along z.

The operators are anchored at the volume, never at a block, and their sums run in a fixed order: every
block computes the same values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.infer.blocks import Grid, Span

__all__ = ["AxisOperator", "Share", "axis_operator", "resample_band", "touched_rows"]


@dataclass(frozen=True)
class AxisOperator:
    """A banded matrix: output i = sum over t of weight[i, t] x input[index[i, t]].

    Attributes
    ----------
    index : ndarray of int64, shape (n, taps)
        Voxel indices, rising along both axes.
    weight : ndarray of float32, shape (n, taps)
        Weights; each row sums to 1. Unused taps weigh 0.
    """

    index: NDArray[np.int64]
    weight: NDArray[np.float32]

    @property
    def span(self) -> Span:
        """The inputs needed."""
        return int(self.index.min()), int(self.index.max()) + 1

    def rows(self, span: slice) -> AxisOperator:
        """The operator of some of the outputs."""
        return AxisOperator(self.index[span], self.weight[span])

    def add(self, out: NDArray[np.float32], values: NDArray[np.generic], first: int, axis: int) -> None:
        """Add the share of the inputs [first, first + n) to the outputs, along an axis of 2-D arrays."""
        shape = (-1, 1) if axis == 0 else (1, -1)
        for share in self.shares(first, values.shape[axis]):
            at = (slice(None),) * axis
            part: NDArray[Any] = values[(*at, share.source)]
            out[(*at, share.target)] += part * share.weight.reshape(shape)

    def shares(self, first: int, count: int) -> Iterator[Share]:
        """What the inputs [first, first + count) add to the outputs, tap by tap."""
        for t in range(self.index.shape[1]):
            where = self.index[:, t] - first
            lo, hi = np.searchsorted(where, (0, count))
            # Outputs with fewer taps have a weight of 0 at the end, which must not let a NaN through.
            used = lo + np.flatnonzero(self.weight[lo:hi, t])
            if len(used):
                target = slice(int(lo), int(hi)) if len(used) == hi - lo else used
                yield Share(t, target, _as_slice(where[used]), self.weight[used, t])


@dataclass(frozen=True)
class Share:
    """One tap of an operator: output[target] += weight x input[source].

    Attributes
    ----------
    tap : int
        Column of the operator.
    target, source : slice or ndarray of int64
        Places along the axis, none of them twice.
    weight : ndarray of float32, shape (n,)
    """

    tap: int
    target: slice | NDArray[np.int64]
    source: slice | NDArray[np.int64]
    weight: NDArray[np.float32]


def _as_slice(where: NDArray[np.int64]) -> slice | NDArray[np.int64]:
    """Places as a slice, where the steps between them are even."""
    steps = np.diff(where)
    step = int(steps[0]) if len(steps) else 1
    if step > 0 and (steps == step).all():
        return slice(int(where[0]), int(where[-1]) + 1, step)
    return where


def axis_operator(grid: Grid, axis: int, net: Span) -> AxisOperator:
    """The operator of an in-plane axis for the net pixels [start, stop), all inside the volume.

    Shrinking averages the area that a net pixel covers; enlarging interpolates linearly between
    voxel centres, constant beyond the outermost.
    """
    size = grid.shape[axis]
    ratio = grid.pixel_um / grid.voxel_um[axis]
    j = np.arange(*net, dtype=np.float64)
    if ratio > 1 - 1e-6:
        # Bounds within a millionth of a voxel edge are that edge, or rounding would add taps.
        low, high = _snap(j * ratio), np.minimum(_snap((j + 1) * ratio), size)
        start = np.floor(low).astype(np.int64)
        taps = int(np.ceil(high - start).max())
        index = start[:, None] + np.arange(taps)
        weight = np.minimum(high[:, None], index + 1) - np.maximum(low[:, None], index)
        weight = np.maximum(weight, 0)
        weight /= weight.sum(axis=1, keepdims=True)
    else:
        centre = np.clip((j + 0.5) * ratio - 0.5, 0, size - 1)
        start = np.minimum(np.floor(centre).astype(np.int64), max(size - 2, 0))
        index = start[:, None] + np.arange(2)
        share = centre - start
        weight = np.stack([1 - share, share], axis=1)
    return AxisOperator(np.minimum(index, size - 1), weight.astype(np.float32))


def _snap(edges: NDArray[np.float64]) -> NDArray[np.float64]:
    near = np.round(edges)
    return np.where(np.abs(edges - near) < 1e-6, near, edges)


def resample_band(
    out: NDArray[np.float32],
    raw: NDArray[np.generic],
    z: Span,
    first_row: int,
    grid: Grid,
    k0: int,
    rows: AxisOperator,
    columns: AxisOperator,
) -> None:
    """Add the share of a band of voxels to a slab of the net grid.

    Slices are averaged first, as integers are where they are, then rows, then columns.

    Parameters
    ----------
    out : ndarray of float32, shape (groups, net rows, net columns)
        Sum so far; group 0 is group `k0` of the grid.
    raw : ndarray, shape (len(z), band rows, columns.span)
        Voxels of whole groups; row 0 is voxel row `first_row`.
    z : (start, stop)
        Slices of the volume in `raw`; starts at a group, ends at one or at the volume.
    rows, columns : AxisOperator
        Of the slab's net rows and columns.
    """
    touched = touched_rows(rows, first_row, raw.shape[1])
    part = rows.rows(touched)
    if len(part.index) == 0:
        return
    k = z[0] // grid.group - k0
    # Slice by slice: the intermediate images stay in the processor's cache.
    for i, start in enumerate(range(0, len(raw), grid.group)):
        mean = _mean(raw[start : start + grid.group])
        narrow = np.zeros((len(part.index), raw.shape[2]), np.float32)
        part.add(narrow, mean, first_row, axis=0)
        columns.add(out[k + i, touched], narrow, columns.span[0], axis=1)


def touched_rows(rows: AxisOperator, first: int, count: int) -> slice:
    """Net rows that a band of voxel rows contributes to."""
    hit = ((rows.index >= first) & (rows.index < first + count) & (rows.weight > 0)).any(axis=1)
    where = np.flatnonzero(hit)
    return slice(int(where[0]), int(where[-1]) + 1) if len(where) else slice(0, 0)


def _mean(slices: NDArray[np.generic]) -> NDArray[np.generic]:
    """Mean of a group of slices, shape (rows, columns)."""
    if len(slices) == 1:
        return slices[0]
    exact = slices.dtype.kind == "u" and slices.dtype.itemsize <= 2
    total = slices[0].astype(np.uint32 if exact else np.float32)
    for more in slices[1:]:
        total += more if exact else more.astype(np.float32)
    return total.astype(np.float32, copy=False) * np.float32(1 / len(slices))
