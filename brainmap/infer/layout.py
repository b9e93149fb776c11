"""How a block is computed: the windows it reads and infers, and the tiles of the network.

    owned box                     the block's own cells
    + margin          = need      where heat must be right, so that peaks and suppression are
    + halo            = window    what the network must see for that

Windows are cut at the volume's faces, halos are not: beyond a face stands the fill value, so that the
network sees the same surroundings whatever the block.
"""

from __future__ import annotations

from dataclasses import dataclass

from brainmap.infer.blocks import Block, Blocks, Grid, Span, align_up
from brainmap.infer.detector import DetectorSpec
from brainmap.infer.peaks import margin_cells

__all__ = ["Layout", "Window", "make_layout"]

# Larger tiles waste less on halos, but gain nothing in the network and need more memory.
MAX_TILE = 1664


@dataclass(frozen=True)
class Window:
    """The windows of one block on the net grid.

    Attributes
    ----------
    k, y, x : (start, stop)
        The need: where heat must be right, inside the volume. `y` and `x` start at multiples of 16.
    read_k, read_y, read_x : (start, stop)
        What must be read for it, inside the volume.
    tiles : tuple of (row, column)
        Corners of the tiles relative to the padded window; the heat of a tile without its halo starts
        at the same place relative to the need.
    padded : (rows, columns)
        Size of the window that holds all tiles, parts outside the volume included.
    """

    k: Span
    y: Span
    x: Span
    read_k: Span
    read_y: Span
    read_x: Span
    tiles: tuple[tuple[int, int], ...]
    padded: tuple[int, int]
    halo: int

    @property
    def corner(self) -> tuple[int, int]:
        """Net row and column of the padded window's first pixel; may be negative."""
        return self.y[0] - self.halo, self.x[0] - self.halo


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
        groups, rows, columns = grid.net_shape
        k = _grow(block.k, self.margin_k, groups)
        y, x = _grow(block.y, self.margin, rows), _grow(block.x, self.margin, columns)
        core = (self.tile[0] - 2 * self.halo, self.tile[1] - 2 * self.halo)
        count = [-(-(s[1] - s[0]) // c) for s, c in zip((y, x), core, strict=True)]
        padded = [n * c + 2 * self.halo for n, c in zip(count, core, strict=True)]
        tiles = tuple((i * core[0], j * core[1]) for i in range(count[0]) for j in range(count[1]))
        read_y, read_x = (
            (max(0, s[0] - self.halo), min(n, s[0] - self.halo + p))
            for s, n, p in zip((y, x), (rows, columns), padded, strict=True)
        )
        return Window(
            k, y, x, _grow(k, self.context, groups), read_y, read_x, tiles, (padded[0], padded[1]), self.halo
        )


def _grow(span: Span, by: int, size: int) -> Span:
    return max(0, span[0] - by), min(size, span[1] + by)


def margins(spec: DetectorSpec, grid: Grid) -> tuple[int, int, int]:
    """Halo and margin in net pixels (multiples of 16), and margin along z in groups."""
    separation = spec.min_separation * spec.cell_diameter_um
    cells, groups = margin_cells(separation, spec.pixel_um * spec.stride, grid.group_um)
    return align_up(spec.halo_px), align_up(cells * spec.stride), groups


def make_layout(spec: DetectorSpec, blocks: Blocks, max_tile: int = MAX_TILE) -> Layout:
    """Choose the tile for the blocks of a run: the fewest equal tiles that cover the largest need."""
    grid = blocks.grid
    halo, margin, margin_k = margins(spec, grid)
    tile = []
    for axis in (1, 2):
        size, net = blocks.size[axis], grid.net_shape[axis]
        whole = blocks.first[axis] == 0 and size >= net
        need = align_up(net) if whole else size + 2 * margin
        count = -(-need // (max_tile - 2 * halo))
        tile.append(align_up(-(-need // count)) + 2 * halo)
    return Layout((tile[0], tile[1]), halo, margin, margin_k, spec.channels // 2)
