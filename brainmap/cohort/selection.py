"""Which regions are compared: a level of the hierarchy, a list of structures, or sets of one's own."""

from __future__ import annotations

import csv
import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.cohort.table import CohortTable
from brainmap.errors import DataError, NotFoundError, UsageError

__all__ = ["Selection", "select_regions"]

Rows = NDArray[np.intp]

_LAYER = re.compile(r"\blayers?\b", re.IGNORECASE)
_SET_COLUMNS = ("set", "structure")


@dataclass(frozen=True)
class Selection:
    """The regions of a comparison; each is one structure of the atlas or the union of several.

    Attributes
    ----------
    id : int64 array (regions,)
        The structure's; -1, -2, ... for sets.
    acronym, name : tuples of str
    members : tuple of int arrays
        Rows of the cohort's table that add up to each region.
    nested : bool
        Some regions are parts of others: their tests are not separate findings.
    level : str
        What was asked for.
    """

    id: NDArray[np.int64]
    acronym: tuple[str, ...]
    name: tuple[str, ...]
    members: tuple[Rows, ...]
    nested: bool
    level: str

    def __len__(self) -> int:
        return len(self.id)

    def add_up(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values (animals, structures, sides) of the structures as values (animals, regions, sides)."""
        return np.stack([values[:, rows].sum(axis=1) for rows in self.members], axis=1)


def select_regions(table: CohortTable, level: str = "summary", within: str | None = None) -> Selection:
    """Choose the regions of a comparison.

    Parameters
    ----------
    table : CohortTable
    level : str
        ``summary``: the finest structures, but layers are joined: a structure is not split if most of its children
        are layers by name and none has children. ``leaf``: the finest structures. ``all``: every structure, nested.
        A number: structures at this depth (root 0), and finer branches' ends above it. Acronyms or ids separated by
        commas. A CSV file with the columns ``set,structure``: regions of one's own.
        The first two and a number share no cell between regions.
    within : str, optional
        Acronym or id: only structures inside this one.

    Raises
    ------
    UsageError, NotFoundError, DataError
        Unknown level or structure; a file that is not there; one that is not a table of sets.
    """
    tree = _Tree.of(table)
    if level.lower().endswith(".csv"):
        return _sets(table, tree, Path(level))
    if level in ("summary", "leaf", "all"):
        rows = getattr(tree, level)()
    elif level.isdecimal() and int(level) <= int(table.depth.max()):
        rows = tree.depth_cut(int(level))
    else:
        rows = np.array(
            [_row(table, word.strip()) for word in level.split(",") if word.strip()], dtype=np.intp
        )
    if within is not None:
        rows = rows[tree.inside(_row(table, within))[rows]]
    if len(rows) == 0:
        raise UsageError(f"--level {level}{f' --within {within}' if within else ''} selects no structure")
    if len(set(rows.tolist())) < len(rows):
        raise UsageError(f"--level {level} names a structure twice")
    return Selection(
        id=table.id[rows],
        acronym=tuple(table.acronym[row] for row in rows),
        name=tuple(table.name[row] for row in rows),
        members=tuple(rows[i : i + 1] for i in range(len(rows))),
        nested=tree.overlap(rows),
        level=level,
    )


@dataclass(frozen=True)
class _Tree:
    """The hierarchy of the structures that are there, by rows of the table."""

    parent: Rows  # -1 for a root
    depth: NDArray[np.int64]
    present: NDArray[np.bool_]
    layer: NDArray[np.bool_]

    @classmethod
    def of(cls, table: CohortTable) -> _Tree:
        row = {int(key): i for i, key in enumerate(table.id)}
        parent = np.array([row.get(int(key), -1) for key in table.parent_id], dtype=np.intp)
        layer = np.array([bool(_LAYER.search(name)) for name in table.name])
        return cls(parent, table.depth, table.present, layer)

    def _children(self, counted: NDArray[np.bool_]) -> NDArray[np.int64]:
        """How many of the counted structures each structure has as children."""
        rows = np.flatnonzero(counted & self.present & (self.parent >= 0))
        return np.bincount(self.parent[rows], minlength=len(self.parent))

    def leaf(self) -> Rows:
        return np.flatnonzero(self.present & (self._children(self.present) == 0))

    def all(self) -> Rows:
        return np.flatnonzero(self.present)

    def summary(self) -> Rows:
        children = self._children(self.present)
        split = self._children(children > 0)
        joined = (children > 0) & (split == 0) & (2 * self._children(self.layer) > children)
        end = (children == 0) & ~((self.parent >= 0) & joined[self.parent])
        return np.flatnonzero(self.present & (end | joined))

    def depth_cut(self, depth: int) -> Rows:
        ends = (self.depth < depth) & (self._children(self.present) == 0)
        return np.flatnonzero(self.present & ((self.depth == depth) | ends))

    def inside(self, row: int) -> NDArray[np.bool_]:
        """Structures inside one, itself included."""
        found = np.zeros(len(self.parent), dtype=bool)
        found[row] = True
        for _ in range(int(self.depth.max()) + 1):
            found |= (self.parent >= 0) & found[self.parent]
        return found

    def overlap(self, rows: Rows) -> bool:
        """Whether one of the structures lies inside another."""
        chosen = np.zeros(len(self.parent), dtype=bool)
        chosen[rows] = True
        above = self.parent[rows]
        while (above >= 0).any():
            if chosen[above[above >= 0]].any():
                return True
            above = np.where(above >= 0, self.parent[above], -1)
        return False


def _row(table: CohortTable, structure: str) -> int:
    if structure in table.acronym:
        return table.acronym.index(structure)
    if structure.isdecimal() and (found := np.flatnonzero(table.id == int(structure))).size:
        return int(found[0])
    near = difflib.get_close_matches(structure, table.acronym, n=3, cutoff=0.5)
    hint = (
        f"; do you mean {' or '.join(near)}?" if near else "; give acronyms or ids of the runs' regions.csv"
    )
    raise UsageError(f"the runs' atlas has no structure {structure!r}{hint}")


def _sets(table: CohortTable, tree: _Tree, path: Path) -> Selection:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (FileNotFoundError, IsADirectoryError):
        raise NotFoundError(f"there is no table of region sets {path}") from None
    reader = csv.DictReader(lines, skipinitialspace=True)
    if not set(_SET_COLUMNS) <= set(reader.fieldnames or ()):
        raise DataError(
            f"{path} is not a table of region sets: it needs the columns {','.join(_SET_COLUMNS)}"
        )
    sets: dict[str, list[int]] = {}
    for row in reader:
        name, structure = (str(row[key] or "").strip() for key in _SET_COLUMNS)
        if not name or not structure:
            raise DataError(f"{path}, line {reader.line_num}: a set or structure is missing")
        sets.setdefault(name, []).append(_row(table, structure))
    if not sets:
        raise DataError(f"{path} names no set")
    members = tuple(_union(tree, rows) for rows in sets.values())
    together = np.concatenate(members)
    return Selection(
        id=-np.arange(1, len(sets) + 1, dtype=np.int64),
        acronym=tuple(sets),
        name=tuple(" + ".join(table.acronym[row] for row in rows) for rows in members),
        members=members,
        nested=len(np.unique(together)) < len(together) or tree.overlap(together),
        level=str(path),
    )


def _union(tree: _Tree, rows: list[int]) -> Rows:
    """The structures without those inside others of them: a cell counts once."""
    unique = sorted(set(rows))
    return np.array(
        [row for row in unique if not any(tree.inside(other)[row] for other in unique if other != row)],
        dtype=np.intp,
    )
