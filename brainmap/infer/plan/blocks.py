"""The detector's grid over a volume, and its partition into blocks. Pure geometry.

Axis order is z, y, x. Three grids are involved:

voxels
    Level 0 of the volume; index 0 is the centre of the first voxel.
net grid
    What the network sees. In plane, pixel j covers [j, j + 1) x `pixel_um` from the volume's outer
    corner; along z, group k is the mean of slices [k m, (k + 1) m). It does not depend on blocks.
heat cells
    `stride` net pixels wide, anchored at the same corner.

A block owns a box of the net grid; the boxes partition it. A cell belongs to the block that owns its
peak cell.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from brainmap.errors import UsageError
from brainmap.infer.detector import ALIGN, DetectorSpec

__all__ = ["Block", "Blocks", "Grid", "Roi", "Span", "align_up", "block_in_net", "partition"]

Span = tuple[int, int]
Roi = tuple[Span, Span, Span]


def align_up(n: float, multiple: int = ALIGN) -> int:
    """The smallest multiple that is not below `n`."""
    return math.ceil(n / multiple) * multiple


@dataclass(frozen=True)
class Grid:
    """The net grid of one volume and one detector.

    Parameters
    ----------
    shape : tuple of int
        Volume, voxels.
    voxel_um : tuple of float
        Voxel size.
    pixel_um : float
        In-plane net pixel.
    group : int
        Slices per group.
    stride : int
        Net pixels per heat cell.
    """

    shape: tuple[int, int, int]
    voxel_um: tuple[float, float, float]
    pixel_um: float
    group: int
    stride: int

    @classmethod
    def of(
        cls, shape: tuple[int, int, int], voxel_um: tuple[float, float, float], spec: DetectorSpec
    ) -> Grid:
        """The grid a detector uses on a volume."""
        if min(shape) < 1:
            raise UsageError(f"the volume's shape is {shape}; it holds no voxel")
        group = max(1, round(spec.z_target_um / voxel_um[0]))
        return cls(shape, voxel_um, spec.pixel_um, min(group, shape[0]), spec.stride)

    @property
    def net_shape(self) -> tuple[int, int, int]:
        """Groups, net rows, net columns; the last of each may be covered by the volume in part."""
        rows, columns = (
            max(1, math.ceil(self.shape[a] * self.voxel_um[a] / self.pixel_um - 1e-6)) for a in (1, 2)
        )
        return -(-self.shape[0] // self.group), rows, columns

    @property
    def group_um(self) -> float:
        """Distance of the centres of consecutive groups."""
        return self.group * self.voxel_um[0]

    def group_z(self, k: NDArray[np.integer]) -> NDArray[np.float64]:
        """Centre of each group in z, voxel index."""
        first = np.asarray(k, np.float64) * self.group
        last = np.minimum(first + self.group, self.shape[0]) - 1
        return (first + last) / 2

    def to_vox(self, net: NDArray[np.floating] | float, axis: int) -> NDArray[np.float64]:
        """Voxel index of in-plane net coordinates (0 = centre of the first net pixel), axis 1 or 2."""
        ratio = self.pixel_um / self.voxel_um[axis]
        return (np.asarray(net, np.float64) + 0.5) * ratio - 0.5

    def voxel_span(self, net: Span, axis: int) -> Span:
        """Voxels that a range of the net grid covers, rounded outwards and cut at the volume."""
        size = self.shape[axis]
        ratio = self.group if axis == 0 else self.pixel_um / self.voxel_um[axis]
        start = min(max(math.floor(net[0] * ratio + 1e-6), 0), size)
        stop = min(max(math.ceil(net[1] * ratio - 1e-6), start), size)
        return start, stop

    def net_span(self, vox: Span, axis: int) -> Span:
        """Net grid range that covers a range of voxels."""
        ratio = self.group if axis == 0 else self.pixel_um / self.voxel_um[axis]
        n = self.net_shape[axis]
        return max(0, math.floor(vox[0] / ratio + 1e-6)), min(n, math.ceil(vox[1] / ratio - 1e-6))


@dataclass(frozen=True)
class Block:
    """One block: the box of the net grid that it owns, half-open spans of groups, rows, columns."""

    index: int
    k: Span
    y: Span
    x: Span

    def owns(
        self, k: NDArray[np.integer], y: NDArray[np.integer], x: NDArray[np.integer]
    ) -> NDArray[np.bool_]:
        """Which peaks, given by integer net coordinates, are this block's responsibility."""
        inside = (k >= self.k[0]) & (k < self.k[1]) & (y >= self.y[0]) & (y < self.y[1])
        inside &= (x >= self.x[0]) & (x < self.x[1])
        return inside


@dataclass(frozen=True)
class Blocks:
    """A partition of the net grid into blocks of one size, without a list of them.

    Blocks are anchored at the volume's corner and counted z first, so that a run restricted to a
    region of interest has the same blocks as the whole run, renumbered.

    Parameters
    ----------
    grid : Grid
        The net grid.
    size : tuple of int
        Block size in groups, rows, columns; rows and columns are multiples of 16.
    first, count : tuple of int
        First block and number of blocks along each axis.
    """

    grid: Grid
    size: tuple[int, int, int]
    first: tuple[int, int, int]
    count: tuple[int, int, int]

    def __len__(self) -> int:
        return math.prod(self.count)

    def __getitem__(self, index: int) -> Block:
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = np.unravel_index(index, self.count)
        spans = []
        for axis in range(3):
            start = (self.first[axis] + int(place[axis])) * self.size[axis]
            spans.append((start, min(start + self.size[axis], self.grid.net_shape[axis])))
        return Block(index, *spans)

    def __iter__(self) -> Iterator[Block]:
        return (self[i] for i in range(len(self)))


def partition(grid: Grid, size: tuple[int, int, int], roi: Roi | None = None) -> Blocks:
    """Cut a net grid into blocks.

    Parameters
    ----------
    grid : Grid
        The net grid.
    size : tuple of int
        Groups, rows, columns of a block; rows and columns are rounded up to multiples of 16, and no
        axis is longer than the grid needs.
    roi : tuple of (start, stop), optional
        Voxel ranges; blocks that do not touch them are left out.

    Raises
    ------
    UsageError
        If the region is empty or outside the volume.
    """
    net = grid.net_shape
    size = (
        max(1, min(size[0], net[0])),
        min(align_up(max(1, size[1])), align_up(net[1])),
        min(align_up(max(1, size[2])), align_up(net[2])),
    )
    first, count = [], []
    for axis in range(3):
        span = (0, net[axis])
        if roi is not None:
            start, stop = roi[axis]
            if not 0 <= start < stop <= grid.shape[axis]:
                raise UsageError(
                    f"--roi {start}:{stop} on axis {'zyx'[axis]} is empty or not inside 0:{grid.shape[axis]}"
                )
            # Sub-pixel refinement can move a cell by a pixel or so: its peak may lie just outside.
            span = grid.net_span((start, stop), axis)
            reach = 1 if axis == 0 else 2 * grid.stride
            span = (max(0, span[0] - reach), min(net[axis], span[1] + reach))
        first.append(span[0] // size[axis])
        count.append(-(-span[1] // size[axis]) - first[-1])
    return Blocks(grid, size, tuple(first), tuple(count))  # type: ignore[arg-type]


def block_in_net(grid: Grid, voxels: tuple[int, int, int]) -> tuple[int, int, int]:
    """A block given in voxels (the option --block) as groups, rows, columns of the net grid."""
    if min(voxels) < 1:
        raise UsageError(f"--block is {voxels}; give three positive numbers of voxels")
    rows, columns = (
        max(ALIGN, round(voxels[a] * grid.voxel_um[a] / grid.pixel_um / ALIGN) * ALIGN) for a in (1, 2)
    )
    return max(1, round(voxels[0] / grid.group)), rows, columns
