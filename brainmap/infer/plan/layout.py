"""How a block is computed: the windows it reads and infers, and the tiles of the network.

    owned box                     the block's own cells
    + margin          = need      where heat must be right, so that peaks and suppression are
    + halo            = window    what the network must see for that

Windows and tiles end at the volume's faces. A tile that comes so near a face ends exactly there, so that the
network sees the same surroundings whatever the block.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from brainmap.infer.detector import ALIGN, DetectorSpec
from brainmap.infer.peaks import margin_cells
from brainmap.infer.plan.blocks import Block, Blocks, Grid, Span, align_up

__all__ = ["Layout", "Strip", "Window", "heat_cells", "make_layout", "strips", "tile_length"]

# Larger tiles waste less on halos, but gain nothing in the network and need more memory.
MAX_TILE = 1664


@dataclass(frozen=True)
class Strip:
    """A tile along one axis of the net grid.

    Attributes
    ----------
    start : int
        Its first pixel, a multiple of 16.
    own : (start, stop)
        The pixels whose heat is taken from it.
    """

    start: int
    own: Span


@dataclass(frozen=True)
class Window:
    """The windows of one block on the net grid.

    Attributes
    ----------
    k, y, x : (start, stop)
        The need: where heat must be right, inside the volume. `y` and `x` start at multiples of 16.
    read_k, read_y, read_x : (start, stop)
        What must be read for it, inside the volume.
    rows, columns : tuple of Strip
        The tiles: every row with every column. Their own parts make up the need.
    padded : (rows, columns)
        Size of the box that holds all tiles and starts where the first does; up to 15 pixels of it may lie
        beyond the volume.
    """

    k: Span
    y: Span
    x: Span
    read_k: Span
    read_y: Span
    read_x: Span
    rows: tuple[Strip, ...]
    columns: tuple[Strip, ...]
    padded: tuple[int, int]


@dataclass(frozen=True)
class Layout:
    """What all blocks of a run have in common.

    Attributes
    ----------
    tile : (height, width)
        Network input of this run.
    halo, margin : int
        Net pixels, multiples of 16.
    margin_k, context : int
        Groups needed beyond the block's own for peaks, and beyond those for the network's channels.
    """

    tile: tuple[int, int]
    halo: int
    margin: int
    margin_k: int
    context: int

    def window(self, grid: Grid, block: Block) -> Window:
        """The windows of a block."""
        groups, *sizes = grid.net_shape
        k = _grow(block.k, self.margin_k, groups)
        needs = [_grow(s, self.margin, n) for s, n in zip((block.y, block.x), sizes, strict=True)]
        rows, columns = (
            strips(need, align_up(n), tile, self.halo)
            for need, n, tile in zip(needs, sizes, self.tile, strict=True)
        )
        padded = (
            rows[-1].start + self.tile[0] - rows[0].start,
            columns[-1].start + self.tile[1] - columns[0].start,
        )
        read_y, read_x = (
            (first.start, min(n, first.start + p))
            for first, n, p in zip((rows[0], columns[0]), sizes, padded, strict=True)
        )
        return Window(
            k, needs[0], needs[1], _grow(k, self.context, groups), read_y, read_x, rows, columns, padded
        )


def strips(need: Span, size: int, tile: int, halo: int) -> tuple[Strip, ...]:
    """The tiles that cover a part of an axis.

    Parameters
    ----------
    need : (start, stop)
        The part, pixels; starts at a multiple of 16.
    size : int
        Pixels of the axis, rounded up to a multiple of 16.
    tile : int
        Length of a tile: `size`, or shorter and longer than two halos.
    halo : int
        Pixels at an end of a tile whose heat is not right, unless the axis ends there.
    """
    if tile < size and tile <= 2 * halo:
        raise ValueError(f"a tile of {tile} px has nothing between two halos of {halo} px")
    found = []
    done = need[0]
    while done < need[1]:
        start = max(0, min(done - halo, size - tile))
        end = start + tile
        stop = need[1] if end >= size else min(need[1], end - halo)
        found.append(Strip(start, (done, stop)))
        done = stop
    return tuple(found)


def heat_cells(
    row: Strip, column: Strip, origin: tuple[int, int], stride: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where the heat that a tile owns stands: in the tile's output, and in a map that starts at `origin`.

    Parameters
    ----------
    row, column : Strip
        The tile.
    origin : (row, column)
        First net pixel of the map.
    stride : int
        Net pixels per heat cell.
    """
    inner: list[slice] = []
    target: list[slice] = []
    for strip, first in ((row, origin[0]), (column, origin[1])):
        for found, start in ((inner, strip.start), (target, first)):
            found.append(slice((strip.own[0] - start) // stride, -(-(strip.own[1] - start) // stride)))
    return (inner[0], inner[1]), (target[0], target[1])


@functools.lru_cache(maxsize=1024)
def tile_length(needs: tuple[Span, ...], size: int, halo: int, longest: int, multiple: int = ALIGN) -> int:
    """The shortest tile that covers each of some parts of an axis in as few tiles as `longest` allows.

    Parameters
    ----------
    needs, size, halo
        As for `strips`.
    longest : int
        No tile is longer, whatever the axis.
    multiple : int
        Of which tiles, and so `size` and `halo`, are multiples.
    """
    longest = min(size, longest // multiple * multiple)
    count = max(len(strips(need, size, longest, halo)) for need in needs)
    shortest = min(longest, 2 * halo + multiple)
    return next(
        tile
        for tile in range(shortest, longest + 1, multiple)
        if all(len(strips(need, size, tile, halo)) <= count for need in needs)
    )


def _grow(span: Span, by: int, size: int) -> Span:
    return max(0, span[0] - by), min(size, span[1] + by)


def margins(spec: DetectorSpec, grid: Grid) -> tuple[int, int, int]:
    """Halo and margin in net pixels (multiples of 16), and margin along z in groups."""
    separation = spec.min_separation * spec.cell_diameter_um
    cells, groups = margin_cells(separation, spec.pixel_um * spec.stride, grid.group_um)
    return align_up(spec.halo_px), align_up(cells * spec.stride), groups


def make_layout(spec: DetectorSpec, blocks: Blocks, max_tile: int = MAX_TILE) -> Layout:
    """Choose the tile for the blocks of a run."""
    grid = blocks.grid
    halo, margin, margin_k = margins(spec, grid)
    tile = []
    for axis in (1, 2):
        size, net = blocks.size[axis], grid.net_shape[axis]
        first, count = blocks.first[axis], blocks.count[axis]
        # Blocks between these need as much as the second does.
        chosen = {first, first + min(1, count - 1), first + count - 1}
        needs = {_grow((i * size, min((i + 1) * size, net)), margin, net) for i in chosen}
        tile.append(tile_length(tuple(sorted(needs)), align_up(net), halo, max_tile))
    return Layout((tile[0], tile[1]), halo, margin, margin_k, spec.channels // 2)
