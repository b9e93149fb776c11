"""The regions of a comparison: `brainmap.atlas.region_sets` over the structures of a cohort."""

from __future__ import annotations

from brainmap.atlas.region_sets import DEFAULT_LEVEL, Hierarchy, Selection
from brainmap.atlas.region_sets import select_regions as select
from brainmap.cohort.table import CohortTable

__all__ = ["Selection", "select_regions"]


def select_regions(table: CohortTable, level: str = DEFAULT_LEVEL, within: str | None = None) -> Selection:
    """Choose the regions of a comparison; `Selection.members` are rows of the cohort's table.

    Parameters
    ----------
    table : CohortTable
    level, within : str
        See `brainmap.atlas.region_sets.select_regions`.

    Raises
    ------
    UsageError, NotFoundError, DataError
        Unknown level or structure; a file that is not there; one that is not a table of sets.
    """
    columns = (table.id, table.acronym, table.name, table.parent_id, table.depth, table.present)
    return select(Hierarchy(*columns), level, within)
