"""Voxels to the net grid: one linear operator per in-plane axis, and means of slices along z.

The operators are anchored at the volume, never at a block, and their sums run in a fixed order: every
block computes the same values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from brainmap.infer.plan.blocks import Grid, Span

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
    even : bool
        Whether the used taps of an output weigh the same.
    """

    index: NDArray[np.int64]
    weight: NDArray[np.float32]
    even: bool = False

    @property
    def span(self) -> Span:
        """The inputs needed."""
        return int(self.index.min()), int(self.index.max()) + 1

    def rows(self, span: slice) -> AxisOperator:
        """The operator of some of the outputs."""
        return AxisOperator(self.index[span], self.weight[span], self.even)

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


class _Sum:
    """An operator on the inputs [first, first + count), made ready for many images.

    An even operator only adds. What is returned is to be multiplied by `scale`, which broadcasts to the result.

    Parameters
    ----------
    operator : AxisOperator
    first, count : int
        The inputs.
    axis : int
        0 or 1, of 2-D images.
    """

    def __init__(self, operator: AxisOperator, first: int, count: int, axis: int) -> None:
        self._outputs, self._axis = len(operator.index), axis
        self._shares = list(operator.shares(first, count))
        self._even = operator.even
        weight = operator.weight.max(axis=1) if operator.even else np.ones(1, np.float32)
        # One number for all outputs where they agree, as they do but for the last of an axis.
        self.scale = self._along(weight[:1] if (weight == weight[0]).all() else weight)

    def __call__(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Sums along the axis."""
        shape = list(image.shape)
        shape[self._axis] = self._outputs
        total = np.zeros(shape, np.float32)
        for share in self._shares:
            part = image[self._at(share.source)]
            total[self._at(share.target)] += part if self._even else part * self._along(share.weight)
        return total

    def _at(self, place: slice | NDArray[np.int64]) -> tuple[slice | NDArray[np.int64], ...]:
        return (slice(None),) * self._axis + (place,)

    def _along(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return values.reshape((-1, 1) if self._axis == 0 else (1, -1))


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
    # By the ratio and not by the weights: windows of one grid must not differ in how they round.
    even = ratio > 0.5 and abs(ratio - round(ratio)) < 1e-9
    return AxisOperator(np.minimum(index, size - 1), weight.astype(np.float32), even)


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
    """Bring a band of voxels into a slab of the net grid; bands come in order.

    Slices are averaged first, as integers are where they are, then rows, then columns.

    Parameters
    ----------
    out : ndarray of float32, shape (groups, net rows, net columns)
        The slab; group 0 is group `k0` of the grid. Net rows that begin in this band are written, those that
        an earlier one began are added to.
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
    begun = int(np.count_nonzero(((part.index < first_row) & (part.weight > 0)).any(axis=1)))
    down = _Sum(part, first_row, raw.shape[1], axis=0)
    across = _Sum(columns, columns.span[0], raw.shape[2], axis=1)
    scale = np.broadcast_to(down.scale * across.scale, (len(part.index), len(columns.index)))
    k = z[0] // grid.group - k0
    # Slice by slice: the intermediate images stay in the processor's cache.
    for i, start in enumerate(range(0, len(raw), grid.group)):
        wide = across(down(_mean(raw[start : start + grid.group])))
        target = out[k + i, touched]
        target[:begun] += wide[:begun] * scale[:begun]
        np.multiply(wide[begun:], scale[begun:], out=target[begun:])


def touched_rows(rows: AxisOperator, first: int, count: int) -> slice:
    """Net rows that a band of voxel rows contributes to."""
    hit = ((rows.index >= first) & (rows.index < first + count) & (rows.weight > 0)).any(axis=1)
    where = np.flatnonzero(hit)
    return slice(int(where[0]), int(where[-1]) + 1) if len(where) else slice(0, 0)


def _mean(slices: NDArray[np.generic]) -> NDArray[np.float32]:
    """Mean of a group of slices, shape (rows, columns)."""
    if len(slices) == 1:
        return slices[0].astype(np.float32, copy=False)
    exact = slices.dtype.kind == "u" and slices.dtype.itemsize <= 2
    total = slices[0].astype(np.uint32 if exact else np.float32)
    for more in slices[1:]:
        total += more if exact else more.astype(np.float32)
    return total.astype(np.float32, copy=False) * np.float32(1 / len(slices))
