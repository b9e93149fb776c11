"""Animals of one litter or cage as one unit: what is compared where groups differ between litters, not within."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from brainmap.cohort.groups import Groups, require_columns
from brainmap.errors import DataError

__all__ = ["Units", "make_units"]


class Units:
    """Rows of the animals in each unit, and the table of units."""

    def __init__(self, groups: Groups, members: tuple[NDArray[np.intp], ...]) -> None:
        self.groups, self.members = groups, members

    def add_up(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """Sums over the animals of each unit, NaN where no animal has a value; first axis."""
        rows = []
        for members in self.members:
            own = values[members]
            total = np.nansum(own, axis=0)
            if np.issubdtype(values.dtype, np.floating):
                total = np.where(np.isnan(own).all(axis=0), np.nan, total)
            rows.append(total)
        return np.stack(rows)


def make_units(groups: Groups, column: str) -> Units:
    """Join animals by a column.

    Raises
    ------
    UsageError, DataError
        If there is no such column, a unit has animals of two groups, or fewer than two units are in a group.
    """
    require_columns(groups, [column], "--unit")
    names = tuple(dict.fromkeys(groups.values(column)))
    if "" in names:
        raise DataError(f"an animal has no {column}: fill it in, or leave the animal out")
    members = tuple(np.flatnonzero(np.array(groups.values(column)) == name) for name in names)
    columns = {}
    for name, values in groups.columns.items():
        of_units = [{values[i] for i in rows} for rows in members]
        # A column that differs within units describes animals and cannot describe units.
        if all(len(found) == 1 for found in of_units):
            columns[name] = tuple(found.pop() for found in of_units)
    group = []
    for unit, rows in zip(names, members, strict=True):
        found = {groups.group[i] for i in rows}
        if len(found) > 1:
            raise DataError(
                f"{column} {unit} has animals of the groups {' and '.join(sorted(found))}: compare within it, with "
                f"--paired {column}"
            )
        group.append(found.pop())
    runs = tuple(groups.run[rows[0]] for rows in members)
    try:
        made = replace(groups, run=runs, animal=names, group=tuple(group), columns=columns)
    except DataError as error:
        raise DataError(f"--unit {column}: {error}".replace("animal", column)) from None
    return Units(made, members)
