"""The default block: the shape with the least estimated time that fits into memory."""

from __future__ import annotations

import functools
import heapq
import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from brainmap.image.volume import Volume
from brainmap.infer.block.net_slices import longest_run
from brainmap.infer.detector import DetectorSpec
from brainmap.infer.plan.blocks import Blocks, Grid, Roi, Span, align_up, partition
from brainmap.infer.plan.layout import Layout, make_layout

__all__ = ["BlockCost", "block_cost", "choose_block", "run_seconds"]

# Seconds per unit and thread, of which only the ratio matters for the choice: on one core of a 2024 server,
# measured (docs/speed.md); on a GPU that 16 threads share, worked out from the network's arithmetic.
_INFER_S = {"cpu": 1 / 8.2e6, "cuda": 1 / 80e6}  # network pixel
_DECODE_S = 1 / 450e6  # stored voxel
_PIXEL_S = {"cpu": 25e-9, "cuda": 1e-9}  # pixel of a resampled slice
# Bytes per core that a block may need, and the time of one core that a kill may cost.
_BLOCK_BYTES = 1 << 30
_BLOCK_S = 120.0
# Axes are also cut into up to this many equal parts.
_PARTS = 6
# With up to this many blocks a thread the order in which threads take them is followed block by block.
_SIMULATED = 32
_SIZES = (256, 384, 512, 640, 768, 896, 992, 1984, 3968)
_DEPTHS = (8, 16, 32, 48, 64, 96, 128, 256, 512)


@dataclass(frozen=True)
class BlockCost:
    """What an inner block of a run costs.

    Attributes
    ----------
    seconds : float
        One core's time.
    decoded_voxels, net_pixels : int
        Voxels of all units of storage it touches; pixels through the network.
    peak_bytes : int
        Memory it needs.
    """

    seconds: float
    decoded_voxels: int
    net_pixels: int
    peak_bytes: int


def block_cost(
    volume: Volume, blocks: Blocks, layout: Layout, device: str = "cpu", streams: int = 1
) -> BlockCost:
    """Estimate the cost of the block in the middle of a run; `streams` as for `Job`."""
    grid = blocks.grid
    block = blocks[_middle(blocks)]
    window = layout.window(grid, block)
    spans = (window.read_k, window.read_y, window.read_x)
    decoded = math.prod(_decoded(volume.unit[axis], grid, span, axis) for axis, span in enumerate(spans))
    heights = window.k[1] - window.k[0]
    net = heights * len(window.rows) * len(window.columns) * layout.tile[0] * layout.tile[1]
    area = window.padded[0] * window.padded[1]
    slices = window.read_k[1] - window.read_k[0]
    seconds = decoded * _DECODE_S + net * _INFER_S[device] + slices * area * _PIXEL_S[device]
    # Two runs of slices; the slices around the one at work, twice; heat, offsets and their neighbours;
    # voxels being read; activations of the network (190 bytes per input pixel in single precision).
    run = min(slices, 2 * longest_run(grid.group, volume.unit[0], 4 * area))
    held = 4 * area * (run + 4 * layout.context + 16) + (128 << 20)
    return BlockCost(seconds, decoded, net, held + 190 * streams * layout.tile[0] * layout.tile[1])


def _middle(blocks: Blocks) -> int:
    z, y, x = (n // 2 for n in blocks.count)
    return (z * blocks.count[1] + y) * blocks.count[2] + x


def choose_block(
    volume: Volume,
    grid: Grid,
    spec: DetectorSpec,
    roi: Roi | None,
    threads: int,
    device: str = "cpu",
    streams: int = 1,
) -> tuple[int, int, int]:
    """Groups, rows, columns of the block that makes the whole run quickest.

    Weighs halos (small blocks infer and decode borders twice) against idle threads at the end, within
    bounds on memory and on what an interrupted block loses.
    """
    net = grid.net_shape
    chunk = max(1, round(volume.unit[0] / grid.group))
    parts = range(1, min(2 * threads, _PARTS) + 1)
    depths = {_even(net[0], d, chunk if d >= chunk else 1) for d in (*_DEPTHS, net[0])}
    depths |= {-(-net[0] // n) for n in parts}
    sizes = [{_even(n, s, 16) for s in (*_SIZES, *(-(-n // p) for p in parts))} for n in net[1:]]
    # Of other devices nothing is known: blocks that suit a CPU are safe there.
    device = device if device in _INFER_S else "cpu"
    best, least = (min(net[0], 16), min(256, align_up(net[1])), min(256, align_up(net[2]))), math.inf
    for size in itertools.product(sorted(depths), sorted(sizes[0]), sorted(sizes[1])):
        blocks = partition(grid, size, roi)
        layout = make_layout(spec, blocks)
        cost = block_cost(volume, blocks, layout, device, streams)
        if cost.peak_bytes > streams * _BLOCK_BYTES or cost.seconds > _BLOCK_S:
            continue
        if (seconds := run_seconds(volume, blocks, layout, threads, device)) < least:
            best, least = size, seconds
    return best


def run_seconds(volume: Volume, blocks: Blocks, layout: Layout, threads: int, device: str = "cpu") -> float:
    """Estimate the wall time of all blocks: each thread takes the next as soon as it is free."""
    seconds = _all_seconds(volume, blocks, layout, device)
    if len(blocks) > _SIMULATED * threads:
        # At the end a thread waits for half a block on average.
        return float(seconds.sum() / threads + seconds.mean() / 2)
    free = [0.0] * threads
    for one in seconds.ravel():
        heapq.heapreplace(free, free[0] + float(one))
    return max(free)


def _all_seconds(volume: Volume, blocks: Blocks, layout: Layout, device: str) -> NDArray[np.float64]:
    """One core's time for each block, shape (z, y, x)."""
    grid, net = blocks.grid, blocks.grid.net_shape
    lines = []
    for axis in range(3):
        # A row of blocks along the axis, the same for whatever the other axes are cut into.
        size, first, count = (
            tuple(mine[axis] if a == axis else other[a] for a in range(3))
            for mine, other in ((blocks.size, net), (blocks.first, (0, 0, 0)), (blocks.count, (1, 1, 1)))
        )
        height, width = (layout.tile[a - 1] if a == axis else align_up(net[a]) for a in (1, 2))
        row = Blocks(grid, size, first, count)  # type: ignore[arg-type]
        lines.append(_along(row, replace(layout, tile=(height, width)), volume.unit[axis], axis))
    decoded, read, inferred = (z[:, None, None] * y[:, None] * x for z, y, x in zip(*lines, strict=True))
    return decoded * _DECODE_S + inferred * _INFER_S[device] + read * _PIXEL_S[device]  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=256)
def _along(row: Blocks, layout: Layout, chunk: int, axis: int) -> NDArray[np.float64]:
    """Stored voxels decoded, groups or pixels read, groups or pixels inferred along an axis, each by block."""
    costs = []
    for block in row:
        window = layout.window(row.grid, block)
        span = (window.read_k, window.read_y, window.read_x)[axis]
        if axis == 0:
            read, inferred = span[1] - span[0], window.k[1] - window.k[0]
        else:
            read = window.padded[axis - 1]
            inferred = len((window.rows, window.columns)[axis - 1]) * layout.tile[axis - 1]
        costs.append((_decoded(chunk, row.grid, span, axis), read, inferred))
    return np.array(costs, np.float64).T


def _decoded(chunk: int, grid: Grid, span: Span, axis: int) -> int:
    """Voxels along an axis of all storage chunks that a span of the net grid touches."""
    start, stop = grid.voxel_span(span, axis)
    return min(align_up(stop, chunk), align_up(grid.shape[axis], chunk)) - start // chunk * chunk


def _even(total: int, target: int, multiple: int) -> int:
    """Length of equal parts of about `target`, a multiple."""
    parts = -(-total // max(1, target))
    return align_up(-(-total // parts), multiple)
