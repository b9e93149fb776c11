"""``regions_summary.csv``: the cells of one brain in the regions that a person asks for, a row per region and side.

Where the regions share no structure, their rows, what lies in none of them and what lies outside the atlas add up
to all cells. The rest is seldom empty: atlases have voxels that belong to a structure and to no finer one.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.atlas.region_sets import DEFAULT_LEVEL, OUTSIDE, REST, Hierarchy, Selection, select_regions
from brainmap.atlas.regions import HEMISPHERES, RegionTable, density
from brainmap.atlas.structures import OUTSIDE_ID

__all__ = ["SUMMARY_COLUMNS", "summarise"]

log = logging.getLogger(__name__)

SUMMARY_COLUMNS = (
    "region_id", "acronym", "name", "hemisphere", "count", "volume_mm3", "density_per_mm3", "atlas_volume_mm3",
    "density_per_atlas_mm3", "shares_cells_with",
)  # fmt: skip

#: Names in one cell of the table.
_FEW = 10


def summarise(table: RegionTable, level: str = DEFAULT_LEVEL) -> RegionTable:
    """Add up a table of all structures to the regions of a level.

    Parameters
    ----------
    table : RegionTable
        All structures, as `RegionCounter.table` makes it.
    level : str
        See `select_regions`.

    Returns
    -------
    RegionTable
        Columns `SUMMARY_COLUMNS`: ``0,outside``, three rows (left, right, both) per region, and three rows ``other``
        with a negative id for what lies in the atlas but in none of the regions.
        ``shares_cells_with`` names the regions that count some of the same cells; empty where none does.

    Raises
    ------
    UsageError, NotFoundError, DataError
        As `select_regions`.
    """
    hierarchy = _hierarchy(table)
    selection = select_regions(hierarchy, level)
    if selection.nested:
        log.warning(
            "some regions of --level %s share structures: their cells count in each, so the rows do not add up",
            level,
        )
    rest = ~hierarchy.inside(np.concatenate(selection.members))
    columns: dict[str, NDArray[Any]] = {}
    for name, direct in (
        ("count", "count_direct"),
        ("volume_mm3", "volume_direct_mm3"),
        ("atlas_volume_mm3", "atlas_volume_direct_mm3"),
    ):
        regions = selection.add_up(_wide(table, name)[None])[0]
        columns[name] = np.concatenate([regions, _wide(table, direct)[rest].sum(axis=0)[None]])
    columns["density_per_mm3"] = density(columns["count"], columns["volume_mm3"])
    columns["density_per_atlas_mm3"] = np.where(
        _partly(table, selection), np.nan, density(columns["count"], columns["atlas_volume_mm3"])
    )
    names = _names(selection, _overlaps(hierarchy, selection))
    outside = dict.fromkeys(columns, np.nan) | {"count": table["count"][0]}
    found = {name: np.concatenate([[outside[name]], values.ravel()]) for name, values in columns.items()}
    return RegionTable({name: (found | names)[name] for name in SUMMARY_COLUMNS})


def _wide(table: RegionTable, name: str) -> NDArray[Any]:
    """A column as (structures, 3): left, right, both."""
    return table[name][1:].reshape(-1, 3)


def _hierarchy(table: RegionTable) -> Hierarchy:
    first = slice(1, None, 3)
    # By the atlas where its volumes are known: the regions are then the same for every brain.
    there = np.nan_to_num(_wide(table, "atlas_volume_mm3")) + np.nan_to_num(_wide(table, "volume_mm3"))
    return Hierarchy(
        id=table["region_id"][first],
        acronym=tuple(table["acronym"][first]),
        name=tuple(table["name"][first]),
        parent_id=table["parent_id"][first],
        depth=table["depth"][first],
        present=((there > 0) | (_wide(table, "count") > 0)).any(axis=1),
    )


def _partly(table: RegionTable, selection: Selection) -> NDArray[np.bool_]:
    """Regions and, last, the rest of which a part was not analysed, by side."""
    atlas = np.nan_to_num(_wide(table, "atlas_volume_mm3"))
    partly = (atlas > 0) & np.isnan(_wide(table, "density_per_atlas_mm3"))
    return np.stack([*(partly[rows].any(axis=0) for rows in selection.members), partly.any(axis=0)])


def _overlaps(hierarchy: Hierarchy, selection: Selection) -> list[str]:
    """Names of the regions that share structures with each region."""
    if not selection.nested:
        return [""] * len(selection)
    inside = np.stack([hierarchy.inside(rows) for rows in selection.members]).astype(np.float32)
    shared = inside @ inside.T > 0
    np.fill_diagonal(shared, False)
    return [_few([selection.acronym[i] for i in np.flatnonzero(row)]) for row in shared]


def _few(names: list[str]) -> str:
    return "; ".join(names[:_FEW]) + (f"; and {len(names) - _FEW} more" if len(names) > _FEW else "")


def _names(selection: Selection, overlaps: list[str]) -> dict[str, NDArray[Any]]:
    rest_id = min(int(selection.id.min()), 0) - 1
    rows = [
        *zip(selection.id, selection.acronym, selection.name, overlaps, strict=True),
        (rest_id, REST, "in the atlas, in none of these regions", ""),
    ]
    columns = {
        name: np.array([first, *np.repeat(np.array(values, dtype=object), 3)], dtype=object)
        for name, first, values in zip(
            ("region_id", "acronym", "name", "shares_cells_with"),
            (OUTSIDE_ID, OUTSIDE, OUTSIDE, ""),
            zip(*rows, strict=True),
            strict=True,
        )
    }
    columns["region_id"] = columns["region_id"].astype(np.int64)
    return columns | {"hemisphere": np.array(["both", *HEMISPHERES * len(rows)], dtype=object)}
