"""How much the count of a structure rests on where its borders are drawn.

A registration is never exact. Of a thin structure beside a dense one (corpus callosum under the cortex), cells that
belong to the neighbour come to lie inside wherever the border is a little off, while hardly any can be lost: its count
is not only uncertain but too high. All cells are moved against the atlas by the length a border may be off, in
twelve directions evenly over the sphere (the corners of an icosahedron), and counted anew each time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.atlas.atlas import Atlas
from brainmap.points.table import iter_points

__all__ = ["BorderRange", "border_ranges", "likely_error_um"]

#: Cells looked at: with more, an even sample stands for all.
_MOST_CELLS = 300_000
#: A border is off by at least so many voxels of the grid of registration.
_VOXELS = 1.5
#: A structure gains cells over its border where moving it adds at least this share on average, in any direction,
#: and these standard errors of a count.
_GAIN, _CLEAR = 0.15, 2.0


@dataclass(frozen=True)
class BorderRange:
    """The count of a structure, both sides together, if its borders lay elsewhere.

    Attributes
    ----------
    count, low, high : float
        Cells as counted; the least and the most over all moves.
    likely : float or None
        Where the structure clearly gains cells over its border: about how many are left without those, to first
        order (counted once more than moved); None elsewhere.
    """

    count: float
    low: float
    high: float
    likely: float | None


def likely_error_um(record: dict[str, Any]) -> float:
    """How far a border may well be off, um: of the record of a registration.

    One and a half voxels of its grid, or the mean distance of the outlines of brain and atlas where that is more.
    """
    grid, quality = record.get("grid"), record.get("quality")
    voxels = grid.get("resolution_um") if isinstance(grid, dict) else None
    numbers = [float(v) for v in voxels] if isinstance(voxels, (list, tuple)) and voxels else [50.0]
    edge = quality.get("edge_mean_um") if isinstance(quality, dict) else None
    return max(_VOXELS * max(numbers), float(edge) if isinstance(edge, (int, float)) else 0.0)


def border_ranges(points: Path, atlas: Atlas, error_um: float, cells: int) -> dict[int, BorderRange]:
    """Ranges of the structures that hold cells, by id.

    Parameters
    ----------
    points : Path
        ``points.parquet`` with `atlas_*_um`.
    atlas : Atlas
    error_um : float
        How far the cells are moved.
    cells : int
        Rows of the table.
    """
    structures, moves = atlas.structures, np.concatenate([np.zeros((1, 3)), error_um * _directions()])
    direct = np.zeros((len(moves), len(structures) + 1))
    stride, seen = max(1, -(-cells // _MOST_CELLS)), 0
    for batch in iter_points(points, columns=[f"atlas_{axis}_um" for axis in "zyx"]):
        places = np.stack([np.asarray(batch[f"atlas_{axis}_um"], float) for axis in "zyx"], axis=1)
        places = places[-seen % stride :: stride]
        seen += len(batch)
        for number, move in enumerate(moves):
            rows = structures.rows_of(atlas.lookup(places + move)[0])
            rows = np.where(rows < 0, len(structures), rows)
            direct[number] += np.bincount(rows, minlength=len(structures) + 1)
    counts = stride * structures.roll_up(direct[:, :-1].T)
    return {
        int(structures.id[row]): _range(values, stride) for row, values in enumerate(counts) if values.any()
    }


def _range(values: NDArray[np.float64], stride: int) -> BorderRange:
    count, moved = float(values[0]), values[1:]
    gained = float(moved.mean()) - count
    clear = gained > max(_GAIN * count, _CLEAR * np.sqrt(stride * max(float(moved.mean()), 1.0) / len(moved)))
    # Every direction adds cells: the structure is thinner than its neighbours are dense.
    likely = max(0.0, count - gained) if clear and np.median(moved) > count else None
    return BorderRange(count, float(values.min()), float(values.max()), likely)


def _directions() -> NDArray[np.float64]:
    """The twelve corners of an icosahedron, unit vectors."""
    golden = (1 + 5**0.5) / 2
    corners = np.array([[0, a, b * golden] for a in (1, -1) for b in (1, -1)])
    found = np.concatenate([np.roll(corners, shift, axis=1) for shift in range(3)])
    unit: NDArray[np.float64] = found / np.linalg.norm(found[0])
    return unit
