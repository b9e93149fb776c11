"""Regions that an animal lacks: damaged, outside the image, or laid where they are not. Missing is not zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brainmap.atlas.region_sets import Hierarchy, Selection
from brainmap.cohort.groups import read_rows
from brainmap.cohort.table import SIDES, CohortTable
from brainmap.errors import DataError, UsageError

__all__ = [
    "REASONS",
    "Missing",
    "exclude",
    "find_missing",
    "hierarchy_of",
    "read_exclusions",
    "rows_of_missing",
]

Floats = NDArray[np.float64]

#: What a code in `Missing.code` means.
REASONS = (
    "",
    "left out",
    "not in the image or the mask",
    "out of proportion",
    "registration is bad",
    "outlier",
)
LEFT_OUT, NOT_THERE, ODD, BAD, OUTLIER = range(1, 6)

# Volumes differ between animals, after the size of their brains, by less than this factor.
_PROPORTION = 2.5
_FEW = 3


@dataclass(frozen=True)
class Missing:
    """Which animals lack which regions.

    Attributes
    ----------
    code : uint8 array (animals, regions, sides)
        See `REASONS`; 0: it is there.
    log2_factor : float64 array (animals, regions, sides)
        Of outliers: how far off.
    """

    code: NDArray[np.uint8]
    log2_factor: Floats = field(repr=False)

    @classmethod
    def none(cls, shape: tuple[int, ...]) -> Missing:
        """Nothing is missing."""
        return cls(np.zeros(shape, dtype=np.uint8), np.full(shape, np.nan))


def hierarchy_of(table: CohortTable) -> Hierarchy:
    """The structures of a cohort."""
    return Hierarchy(table.id, table.acronym, table.name, table.parent_id, table.depth, table.present)


def read_exclusions(path: str | Path, table: CohortTable) -> dict[int, list[int]]:
    """Read a CSV ``animal,structure``: what is damaged, and in whom.

    Returns
    -------
    dict of lists
        Row of the animal -> rows of structures.

    Raises
    ------
    NotFoundError, DataError, UsageError
        If it is not there or no such table, or names an animal or structure that there is not.
    """
    path = Path(path)
    columns, _ = read_rows(path, "table of damaged regions")
    for name in ("animal", "structure"):
        if name not in columns:
            raise DataError(f"{path} has no column {name}: it needs animal,structure")
    hierarchy = hierarchy_of(table)
    found: dict[int, list[int]] = {}
    for line, animal, structure in zip(columns["line"], columns["animal"], columns["structure"], strict=True):
        rows = [i for i, name in enumerate(table.groups.animal) if name == animal]
        if not rows:
            raise DataError(f"{path}, line {line}: there is no animal {animal!r} in the table of groups")
        try:
            row = hierarchy.row(structure)
        except UsageError as error:
            raise DataError(f"{path}, line {line}: {error}") from None
        for i in rows:
            found.setdefault(i, []).append(row)
    return found


def exclude(table: CohortTable, exclusions: dict[int, list[int]]) -> CohortTable:
    """Take structures out of animals: their cells and volumes, and these from all that contain them.

    Structures taken out have no volume (NaN) there.
    """
    hierarchy = hierarchy_of(table)
    count, direct, volume = table.count.copy(), table.count_direct.copy(), table.volume_mm3.copy()
    for animal, rows in exclusions.items():
        for row in hierarchy.topmost(np.array(rows, dtype=np.intp)):
            at = int(hierarchy.parent[row])
            while at >= 0:
                count[animal, at] -= table.count[animal, row]
                volume[animal, at] = np.maximum(volume[animal, at] - table.volume_mm3[animal, row], 0.0)
                at = int(hierarchy.parent[at])
        inside = hierarchy.inside(np.array(rows, dtype=np.intp))
        count[animal, inside] = direct[animal, inside] = 0
        volume[animal, inside] = np.nan
    return replace(table, count=count, count_direct=direct, volume_mm3=volume)


def find_missing(
    table: CohortTable, whole: CohortTable, selection: Selection, coverage: float
) -> tuple[NDArray[np.float64], Missing]:
    """Volumes of the regions, NaN where an animal lacks one, and why.

    Parameters
    ----------
    table : CohortTable
        After `exclude`.
    whole : CohortTable
        Before it.
    selection : Selection
    coverage : float
        Least share of the volume that a region usually has: the other animals' median, the size of the brain
        allowed for.
    """
    volume = np.stack([np.nansum(table.volume_mm3[:, rows], axis=1) for rows in selection.members], axis=1)
    known = np.stack(
        [np.isfinite(whole.volume_mm3[:, rows]).any(axis=1) for rows in selection.members], axis=1
    )
    before = np.where(known, selection.add_up(np.nan_to_num(whole.volume_mm3)), np.nan)
    missing = Missing.none(volume.shape)
    for s in range(len(SIDES)):
        usual = _usual(before[:, :, s])
        with np.errstate(invalid="ignore", divide="ignore"):
            share, all_of_it = volume[:, :, s] / usual, before[:, :, s] / usual
        code = missing.code[:, :, s]
        code[all_of_it > _PROPORTION] = ODD
        code[share < coverage] = LEFT_OUT
        code[all_of_it < coverage] = NOT_THERE
        code[~(volume[:, :, s] > 0) & known[:, :, s] & (before[:, :, s] > 0)] = LEFT_OUT
        # Without a volume anywhere there is no region, and nobody lacks it.
        code[:, ~(np.nan_to_num(before[:, :, s]) > 0).any(axis=0)] = 0
    for i, verdict in enumerate(table.verdicts):
        if verdict == "bad":
            missing.code[i] = BAD
    return np.where((missing.code > 0) | ~known | ~(volume > 0), np.nan, volume), missing


def _usual(volume: Floats) -> Floats:
    """Volume expected of each animal and region: the others' median, times how large the brain is against theirs."""
    positive = np.where(np.nan_to_num(volume) > 0, volume, np.nan)
    usual = np.full(volume.shape, np.nan)
    if len(volume) < _FEW:
        return usual
    for i in range(len(volume)):
        others = nan_median(np.delete(positive, i, axis=0))
        size = nan_median((positive[i] / others)[:, None])[0]
        usual[i] = others * (size if np.isfinite(size) else 1.0)
    return usual


def nan_median(values: Floats) -> Floats:
    """Median over the first axis of what is known; NaN where nothing is."""
    known = np.isfinite(values).any(axis=0)
    found = np.full(values.shape[1:], np.nan)
    found[known] = np.nanmedian(values[:, known], axis=0)
    return found


def rows_of_missing(
    missing: Missing, animals: Sequence[str], selection: Selection, sides: Sequence[str]
) -> list[tuple[str, int, str, str, str, float]]:
    """Rows ``animal region_id acronym hemisphere reason factor`` of everything that is missing."""
    rows = []
    for i, j, s in zip(*np.nonzero(missing.code), strict=True):
        if SIDES[s] in sides:
            factor = 2.0 ** float(missing.log2_factor[i, j, s])
            reason = REASONS[missing.code[i, j, s]]
            rows.append((animals[i], int(selection.id[j]), selection.acronym[j], SIDES[s], reason, factor))
    return rows
