"""`thresholds.csv`: how many cells a run would have at other thresholds, in every structure of its atlas."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from brainmap.files import atomic_path
from brainmap.image.mask import Mask
from brainmap.infer.engine.results import iter_candidates, stored_from
from brainmap.report.thresholds import ALL_ID, FIRST_COLUMNS
from brainmap.run.cells import ImageFrame, located
from brainmap.run_folder import THRESHOLDS_CSV

if TYPE_CHECKING:
    from brainmap.atlas.atlas import Atlas
    from brainmap.registration.register import Registration

__all__ = ["count_over_thresholds", "threshold_grid"]

STEP = 0.05


def threshold_grid(lowest: float) -> tuple[float, ...]:
    """Thresholds to count at: the lowest that can be had, then every twentieth up to 0.95."""
    twentieths = [round(STEP * i, 2) for i in range(1, 20)]
    return (lowest, *(value for value in twentieths if value > lowest + STEP / 10))


def count_over_thresholds(
    run: Path,
    out: Path,
    frame: ImageFrame,
    mask: Mask | None,
    atlas: Atlas | None,
    registration: Registration | None,
) -> None:
    """Count the candidates of a run at growing thresholds and write the table.

    Parameters
    ----------
    run : Path
        Run folder with its candidates.
    out : Path
        Folder that `thresholds.csv` goes to.
    frame, mask
        Of the run.
    atlas, registration
        Both or neither.
    """
    grid = threshold_grid(stored_from(run))
    edges = np.asarray(grid, np.float32)
    structures = None if atlas is None else atlas.structures
    n = 0 if structures is None else len(structures)
    # Rows: the structures, then what lies in none; columns: how many thresholds a cell reaches.
    direct = np.zeros((n + 1, len(grid) + 1), np.int64)
    for piece in located(iter_candidates(run), frame, mask):
        rows = np.full(len(piece), n)
        if atlas is not None and registration is not None and structures is not None:
            region, _ = atlas.lookup(registration.to_atlas_um(piece.zyx_um))
            found = structures.rows_of(region)
            rows = np.where(found < 0, n, found)
        reached = np.searchsorted(edges, piece["score"].astype(np.float32), side="right")
        direct += np.bincount(rows * direct.shape[1] + reached, minlength=direct.size).reshape(direct.shape)
    counts = np.cumsum(direct[:, :0:-1], axis=1)[:, ::-1]
    rows_out: list[list[object]] = [[ALL_ID, "all", "whole image", 0, 0, *counts.sum(axis=0).tolist()]]
    if structures is not None:
        rows_out.append([0, "outside", "outside", 0, 0, *counts[n].tolist()])
        rolled: NDArray[np.int64] = structures.roll_up(counts[:n])
        names = zip(structures.id, structures.acronym, structures.name, structures.parent_id, structures.depth,
                    strict=True)  # fmt: skip
        rows_out += [
            [int(key), acronym, name, int(parent), int(depth), *map(int, row)]
            for (key, acronym, name, parent, depth), row in zip(names, rolled, strict=True)
        ]
    with (
        atomic_path(out / THRESHOLDS_CSV) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*FIRST_COLUMNS, *(f"{value:g}" for value in grid)])
        writer.writerows(rows_out)
