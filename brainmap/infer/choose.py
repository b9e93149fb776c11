"""The default block: the shape with the least estimated time that fits into memory."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from brainmap.infer.blocks import Blocks, Grid, Roi, align_up, partition
from brainmap.infer.detector import DetectorSpec
from brainmap.infer.layout import Layout, make_layout
from brainmap.volume import Volume

__all__ = ["BlockCost", "block_cost", "choose_block"]

# Seconds per unit on one core of a 2024 server, measured (docs/speed.md); only their ratio matters for the choice.
_INFER_S = 1 / 8.2e6  # network pixel
_DECODE_S = 1 / 450e6  # stored voxel
_PIXEL_S = 25e-9  # pixel of a resampled slice
# Bytes per thread that a block may need, and the time of one core that a kill may cost.
_BLOCK_BYTES = 1 << 30
_BLOCK_S = 120.0
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
        Voxels of all storage chunks it touches; pixels through the network.
    peak_bytes : int
        Memory it needs.
    """

    seconds: float
    decoded_voxels: int
    net_pixels: int
    peak_bytes: int


def block_cost(volume: Volume, blocks: Blocks, layout: Layout) -> BlockCost:
    """Estimate the cost of the block in the middle of a run."""
    grid = blocks.grid
    block = blocks[_middle(blocks)]
    window = layout.window(grid, block)
    decoded = 1
    for axis, span in enumerate((window.read_k, window.read_y, window.read_x)):
        start, stop = grid.voxel_span(span, axis)
        chunk = volume.chunks[axis]
        decoded *= min(align_up(stop, chunk), align_up(grid.shape[axis], chunk)) - start // chunk * chunk
    heights = window.k[1] - window.k[0]
    net = heights * len(window.tiles) * layout.tile[0] * layout.tile[1]
    area = window.padded[0] * window.padded[1]
    slices = window.read_k[1] - window.read_k[0]
    seconds = decoded * _DECODE_S + net * _INFER_S + slices * area * _PIXEL_S
    # A run of slices; the slices around the one at work, twice; heat, offsets and their neighbours;
    # voxels being read; activations of the network (190 bytes per input pixel in single precision).
    run = min(slices, max(16, -(-volume.chunks[0] // grid.group)), (400 << 20) // (4 * area) + 1)
    held = 4 * area * (run + 4 * layout.context + 16) + (128 << 20)
    return BlockCost(seconds, decoded, net, held + 190 * layout.tile[0] * layout.tile[1])


def _middle(blocks: Blocks) -> int:
    z, y, x = (n // 2 for n in blocks.count)
    return (z * blocks.count[1] + y) * blocks.count[2] + x


def choose_block(
    volume: Volume, grid: Grid, spec: DetectorSpec, roi: Roi | None, threads: int
) -> tuple[int, int, int]:
    """Groups, rows, columns of the block that makes the whole run quickest.

    Weighs halos (small blocks infer and decode borders twice) against idle threads at the end, within
    bounds on memory and on what an interrupted block loses.
    """
    net = grid.net_shape
    chunk = max(1, round(volume.chunks[0] / grid.group))
    depths = {_even(net[0], d, chunk if d >= chunk else 1) for d in (*_DEPTHS, net[0])}
    sizes = [{_even(n, s, 16) for s in (*_SIZES, n)} for n in net[1:]]
    best, least = (min(net[0], 16), min(256, align_up(net[1])), min(256, align_up(net[2]))), math.inf
    for size in itertools.product(sorted(depths), sorted(sizes[0]), sorted(sizes[1])):
        blocks = partition(grid, size, roi)
        cost = block_cost(volume, blocks, make_layout(spec, blocks))
        rounds = math.ceil(len(blocks) / threads)
        if cost.peak_bytes > _BLOCK_BYTES or cost.seconds > _BLOCK_S:
            continue
        if rounds * cost.seconds < least:
            best, least = size, rounds * cost.seconds
    return best


def _even(total: int, target: int, multiple: int) -> int:
    """Length of equal parts of about `target`, a multiple."""
    parts = -(-total // max(1, target))
    return align_up(-(-total // parts), multiple)
