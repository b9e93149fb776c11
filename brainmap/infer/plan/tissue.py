"""Where there is tissue, by a rule that no block can change.

The net grid is divided into atoms, anchored at the volume's corner. An atom without tissue has no
heat at all, wherever the border of a block happens to run.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from brainmap.infer.plan.blocks import Block, Grid, Span

__all__ = ["ATOM", "TissueSource", "atom_mask", "cell_atoms", "cell_mask", "has_tissue", "touches"]

# Groups, rows, columns of an atom.
ATOM = (4, 32, 32)


class TissueSource(Protocol):
    """What knows where tissue is: `brainmap.image.intensity.Intensity`."""

    def tissue_fraction(self, z: slice, y: slice, x: slice) -> float:
        """Share of a box of voxels that is tissue; not 0 if any part of the box is."""
        ...


def _box(grid: Grid, spans: tuple[Span, Span, Span]) -> tuple[slice, slice, slice]:
    z, y, x = (slice(*grid.voxel_span(span, axis)) for axis, span in enumerate(spans))
    return z, y, x


def _atoms(span: Span, axis: int, size: int) -> list[Span]:
    step = ATOM[axis]
    return [(a, min(a + step, size)) for a in range(span[0] // step * step, span[1], step)]


def has_tissue(source: TissueSource, grid: Grid, block: Block) -> bool:
    """Whether any atom that touches the block's owned box holds tissue."""
    spans = []
    for axis, span in enumerate((block.k, block.y, block.x)):
        atoms = _atoms(span, axis, grid.net_shape[axis])
        spans.append((atoms[0][0], atoms[-1][1]))
    return source.tissue_fraction(*_box(grid, (spans[0], spans[1], spans[2]))) > 0


def atom_mask(
    source: TissueSource, grid: Grid, k: Span, y: Span, x: Span
) -> dict[int, NDArray[np.bool_] | None]:
    """Tissue of the atoms in a window, for each of its groups.

    Returns
    -------
    dict
        Group -> None where all of the slice is tissue, else bool array of shape (atom rows, atom
        columns), first atom the one that holds the window's corner.
    """
    _, rows, columns = grid.net_shape
    ys, xs = _atoms(y, 1, rows), _atoms(x, 2, columns)
    whole = ((ys[0][0], ys[-1][1]), (xs[0][0], xs[-1][1]))
    found: dict[int, NDArray[np.bool_] | None] = {}
    for span in _atoms(k, 0, grid.net_shape[0]):
        share = source.tissue_fraction(*_box(grid, (span, *whole)))
        if share >= 1:
            mask = None
        elif share <= 0:
            mask = np.zeros((len(ys), len(xs)), bool)
        else:
            mask = np.array([[source.tissue_fraction(*_box(grid, (span, a, b))) > 0 for b in xs] for a in ys])
        for group in range(max(span[0], k[0]), min(span[1], k[1])):
            found[group] = mask
    return found


def cell_mask(mask: NDArray[np.bool_], y: Span, x: Span, stride: int) -> NDArray[np.bool_]:
    """The atoms' mask on the heat cells of a window that starts at net pixel (y[0], x[0])."""
    return mask[np.ix_(*cell_atoms(y, x, stride))]


def cell_atoms(y: Span, x: Span, stride: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and column of the atom that each row and column of a window's heat cells lies in."""
    rows, columns = (
        np.arange(span[0] // stride, -(-span[1] // stride)) * stride // size - span[0] // size
        for span, size in ((y, ATOM[1]), (x, ATOM[2]))
    )
    return rows, columns


def touches(
    mask: NDArray[np.bool_], y0: int, x0: int, corner: tuple[int, int], size: tuple[int, int]
) -> bool:
    """Whether any atom with tissue lies under a box of net pixels.

    Parameters
    ----------
    mask : ndarray of bool
        Atoms of a window that starts at net pixel (y0, x0).
    corner, size : (row, column)
        The box, net pixels; parts beyond the window do not count.
    """
    spans = []
    for axis, start in enumerate((y0, x0)):
        step = ATOM[axis + 1]
        first = corner[axis] // step - start // step
        spans.append(slice(first, -(-(corner[axis] + size[axis]) // step) - start // step))
    return bool(mask[spans[0], spans[1]].any())
