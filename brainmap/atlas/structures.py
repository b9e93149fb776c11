"""The ontology of an atlas: which structures there are and which contains which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from brainmap.errors import DataError, UsageError, did_you_mean

__all__ = ["OUTSIDE_ID", "Structures"]

#: Region id of everything outside the atlas, and parent id of the root.
OUTSIDE_ID = 0

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Structures:
    """Structures of an atlas as columns of equal length, in the order of the atlas's file.

    Attributes
    ----------
    id : int64 array (n,)
        Positive and unique. Allen ids reach 614,454,277: never narrow them, never make them float32.
    acronym, name : tuple of str
    parent_id : int64 array (n,)
        0 for a root.
    depth : int16 array (n,)
        0 for a root.
    rgb : uint8 array (n, 3)
    """

    id: Ids
    acronym: tuple[str, ...]
    name: tuple[str, ...]
    parent_id: Ids
    depth: NDArray[np.int16]
    rgb: NDArray[np.uint8]

    @classmethod
    def from_records(cls, records: Iterable[Mapping[str, Any]], where: str) -> Structures:
        """Build the table from BrainGlobe records.

        Parameters
        ----------
        records : iterable of mappings
            Keys ``id``, ``acronym``, ``name``, ``structure_id_path`` (root first, the structure last)
            and optionally ``rgb_triplet``.
        where : str
            The file, for messages.

        Raises
        ------
        DataError
            If a field is missing, an id is repeated or not positive, or a parent is missing.
        """
        rows = list(records)
        try:
            paths = [[int(step) for step in row["structure_id_path"]] for row in rows]
            ids = np.array([int(row["id"]) for row in rows], dtype=np.int64)
            acronym = tuple(str(row["acronym"]) for row in rows)
            name = tuple(str(row["name"]) for row in rows)
            rgb = np.array([row.get("rgb_triplet") or (128, 128, 128) for row in rows], dtype=np.uint8)
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise DataError(
                f"{where}: every structure needs id, acronym, name and structure_id_path ({error!r})"
            ) from error
        _check_ids(ids, paths, where)
        parent = np.array([path[-2] if len(path) > 1 else OUTSIDE_ID for path in paths], dtype=np.int64)
        depth = np.array([len(path) - 1 for path in paths], dtype=np.int16)
        return cls(ids, acronym, name, parent, depth, rgb.reshape(-1, 3))

    def __len__(self) -> int:
        return len(self.id)

    @cached_property
    def _sorted(self) -> tuple[Ids, NDArray[np.intp]]:
        order = np.argsort(self.id, kind="stable")
        return self.id[order], order

    @cached_property
    def parent_row(self) -> NDArray[np.intp]:
        """Row of each structure's parent, -1 for a root."""
        return self.rows_of(self.parent_id)

    def rows_of(self, ids: ArrayLike) -> NDArray[np.intp]:
        """Row of each id (any shape); -1 where the id is not in the ontology."""
        wanted = np.asarray(ids)
        known, order = self._sorted
        position = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        return np.where(known[position] == wanted, order[position], -1)

    def row(self, structure: str | int) -> int:
        """Row of one structure given by id or acronym.

        Raises
        ------
        UsageError
            If there is no such structure.
        """
        if isinstance(structure, str) and structure in self.acronym:
            return self.acronym.index(structure)
        if not isinstance(structure, str):
            found = int(self.rows_of(np.int64(structure)))
            if found >= 0:
                return found
        raise UsageError(
            f"the atlas has no structure {structure!r}: give an id or an acronym of its ontology"
            f"{did_you_mean(str(structure), self.acronym)}"
        )

    def path(self, structure: str | int) -> tuple[int, ...]:
        """Ids from the root to the structure."""
        row = self.row(structure)
        steps: list[int] = []
        while row >= 0:
            steps.append(int(self.id[row]))
            row = int(self.parent_row[row])
        return tuple(reversed(steps))

    def descendants(self, structure: str | int) -> Ids:
        """Ids of the structure and of everything below it."""
        inside = np.zeros(len(self), dtype=bool)
        inside[self.row(structure)] = True
        for level in range(int(self.depth.max()) + 1):
            rows = np.flatnonzero((self.depth == level) & (self.parent_row >= 0))
            inside[rows] |= inside[self.parent_row[rows]]
        return self.id[inside]

    def roll_up(self, direct: NDArray[Any]) -> NDArray[Any]:
        """Add to every structure the values of all its descendants.

        Parameters
        ----------
        direct : array (n, ...)
            One row per structure.

        Returns
        -------
        array (n, ...)
            Same dtype; a parent equals its own direct value plus its children's totals.
        """
        total = np.array(direct, copy=True)
        for level in range(int(self.depth.max(initial=0)), 0, -1):
            rows = np.flatnonzero((self.depth == level) & (self.parent_row >= 0))
            np.add.at(total, self.parent_row[rows], total[rows])
        return total


def _check_ids(ids: Ids, paths: list[list[int]], where: str) -> None:
    if len(ids) == 0:
        raise DataError(f"{where}: the ontology has no structures")
    if ids.min() <= 0:
        raise DataError(f"{where}: structure ids must be positive, found {ids.min()} (0 means outside)")
    if len(np.unique(ids)) != len(ids):
        repeated = ids[np.flatnonzero(np.bincount(np.unique(ids, return_inverse=True)[1])[0:] > 1)[:1]]
        raise DataError(f"{where}: structure ids are repeated, for example {int(repeated[0])}")
    known = {int(i): path for i, path in zip(ids, paths, strict=True)}
    for identifier, path in known.items():
        if not path or path[-1] != identifier:
            raise DataError(
                f"{where}: the structure_id_path of structure {identifier} does not end with itself"
            )
        if len(path) > 1 and known.get(path[-2], [])[-1:] != path[-2:-1]:
            raise DataError(
                f"{where}: structure {identifier} has parent {path[-2]}, which is not in the ontology"
            )
        if len(path) > 1 and known[path[-2]] != path[:-1]:
            raise DataError(f"{where}: the structure_id_path of {identifier} contradicts that of its parent")
