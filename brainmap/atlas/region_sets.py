"""Which regions a table shows: a level of the hierarchy, a list of structures, or sets of one's own.

The one place where levels and sets are read; `brainmap.atlas.summary` makes the table of one brain from them,
`brainmap.cohort` compares groups by them.
"""

from __future__ import annotations

import csv
import difflib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.atlas.structures import Structures
from brainmap.errors import DataError, NotFoundError, UsageError

__all__ = [
    "DEFAULT_LEVEL", "DIVISIONS", "LEVELS", "Hierarchy", "Selection", "check_level", "select_regions",
    "structure_rows",
]  # fmt: skip

Rows = NDArray[np.intp]

DEFAULT_LEVEL = "summary"
#: Levels by name; the others are a depth, acronyms or ids, or a file.
LEVELS = ("summary", "divisions", "leaf", "all")

#: The large divisions of the mouse brain in the Allen ontology, fibre tracts and ventricles among them.
DIVISIONS = (
    "Isocortex", "OLF", "HPF", "CTXsp", "STR", "PAL", "TH", "HY", "MB", "P", "MY", "CB", "fiber tracts", "VS",
)  # fmt: skip

#: Rows of tables that are no regions: cells outside the atlas, and those in none of the regions.
OUTSIDE, REST = "outside", "other"
RESERVED = (OUTSIDE, REST)

_LAYER = re.compile(r"\blayers?\b", re.IGNORECASE)
_SET_COLUMNS = ("set", "structure")


@dataclass(frozen=True)
class Selection:
    """The regions of a table; each is one structure of the atlas or the union of several.

    Attributes
    ----------
    id : int64 array (regions,)
        The structure's; -1, -2, ... for sets.
    acronym, name : tuples of str
    members : tuple of int arrays
        Rows of the hierarchy that add up to each region; none lies inside another.
    nested : bool
        Some regions share structures: a cell may count in several of them.
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


@dataclass(frozen=True)
class Hierarchy:
    """Which structures there are, which contains which, and which hold anything.

    Attributes
    ----------
    id, parent_id : int64 arrays (n,)
        A parent that is not among the ids, such as 0, makes a root.
    acronym, name : tuples of str
    depth : int array (n,)
    present : bool array (n,)
        Structures with volume or cells: an ontology names many that its annotation lacks.
    """

    id: NDArray[np.int64]
    acronym: tuple[str, ...]
    name: tuple[str, ...]
    parent_id: NDArray[np.int64]
    depth: NDArray[np.integer[Any]]
    present: NDArray[np.bool_]

    @cached_property
    def parent(self) -> Rows:
        """Row of each structure's parent, -1 for a root."""
        row = {int(key): i for i, key in enumerate(self.id)}
        return np.array([row.get(int(key), -1) for key in self.parent_id], dtype=np.intp)

    def row(self, structure: str) -> int:
        """Row of a structure given by acronym or id.

        Raises
        ------
        UsageError
            If there is none; with those that are written alike.
        """
        if structure in self.acronym:
            return self.acronym.index(structure)
        if structure.isdecimal() and (found := np.flatnonzero(self.id == int(structure))).size:
            return int(found[0])
        near = self._alike(structure)
        hint = f"do you mean {' or '.join(near)}?" if near else "give acronyms or ids of regions.csv"
        raise UsageError(f"the atlas has no structure {structure!r}; {hint}")

    def _alike(self, text: str) -> list[str]:
        """Acronyms of the structures whose acronym or name is written like `text`, at most three."""
        named: dict[str, str] = {}
        for acronym, name in zip(self.acronym, self.name, strict=True):
            named.setdefault(name.lower(), acronym)
        named |= {acronym.lower(): acronym for acronym in self.acronym}
        near = difflib.get_close_matches(text.lower(), named, n=3, cutoff=0.5)
        return list(dict.fromkeys(named[word] for word in near))

    def inside(self, rows: Rows | int) -> NDArray[np.bool_]:
        """Structures inside any of some, these included; shape (n,)."""
        found = np.zeros(len(self.id), dtype=bool)
        found[rows] = True
        for _ in range(int(self.depth.max(initial=0)) + 1):
            found |= (self.parent >= 0) & found[self.parent]
        return found

    def topmost(self, rows: Rows) -> Rows:
        """The structures without those inside others of them, sorted: a cell counts once."""
        chosen = np.unique(rows)
        parent = self.parent[chosen]
        return chosen[~((parent >= 0) & self.inside(chosen)[parent])]

    def leaf(self) -> Rows:
        """The finest structures."""
        return np.flatnonzero(self.present & (self._children(self.present) == 0))

    def all(self) -> Rows:
        """Every structure."""
        return np.flatnonzero(self.present)

    def summary(self) -> Rows:
        """The finest structures, but layers joined; see `select_regions`."""
        layer = np.array([bool(_LAYER.search(name)) for name in self.name])
        children = self._children(self.present)
        split = self._children(children > 0)
        joined = (children > 0) & (split == 0) & (2 * self._children(layer) > children)
        end = (children == 0) & ~((self.parent >= 0) & joined[self.parent])
        return np.flatnonzero(self.present & (end | joined))

    def divisions(self) -> Rows:
        """The structures of `DIVISIONS`."""
        missing = [name for name in DIVISIONS if name not in self.acronym]
        if missing:
            raise UsageError(
                f"--level divisions are those of the Allen mouse brain; this atlas has no {missing[0]}: give acronyms "
                "separated by commas, or a CSV set,structure"
            )
        return np.array([self.acronym.index(name) for name in DIVISIONS], dtype=np.intp)

    def depth_cut(self, depth: int) -> Rows:
        """Structures at a depth, and the ends of branches above it."""
        ends = (self.depth < depth) & (self._children(self.present) == 0)
        return np.flatnonzero(self.present & ((self.depth == depth) | ends))

    def _children(self, counted: NDArray[np.bool_]) -> NDArray[np.int64]:
        """How many of the counted structures each structure has as children."""
        rows = np.flatnonzero(counted & self.present & (self.parent >= 0))
        return np.bincount(self.parent[rows], minlength=len(self.parent))


def select_regions(hierarchy: Hierarchy, level: str = DEFAULT_LEVEL, within: str | None = None) -> Selection:
    """Choose regions.

    Parameters
    ----------
    hierarchy : Hierarchy
    level : str
        ``summary``: the finest structures, but layers are joined: a structure is not split if most of its children
        are layers by name and none has children. ``divisions``: `DIVISIONS`. ``leaf``: the finest structures.
        ``all``: every structure, nested. A number: structures at this depth (root 0), and finer branches' ends
        above it. Acronyms or ids separated by commas. A CSV file with the columns ``set,structure``: regions of
        one's own; a structure may be in several sets.
        The first three and a number share no cell between regions.
    within : str, optional
        Acronym or id: only structures inside this one.

    Raises
    ------
    UsageError, NotFoundError, DataError
        Unknown level or structure; a file that is not there; one that is not a table of sets.
    """
    if level.lower().endswith(".csv"):
        return _sets(hierarchy, Path(level))
    if level in LEVELS:
        rows = getattr(hierarchy, level)()
    elif level.isdecimal() and int(level) <= int(hierarchy.depth.max()):
        rows = hierarchy.depth_cut(int(level))
    else:
        words = [word.strip() for word in level.split(",")]
        rows = np.array([hierarchy.row(word) for word in words if word], dtype=np.intp)
    if within is not None:
        rows = rows[hierarchy.inside(hierarchy.row(within))[rows]]
    if len(rows) == 0:
        raise UsageError(f"--level {level}{f' --within {within}' if within else ''} selects no structure")
    if len(np.unique(rows)) < len(rows):
        raise UsageError(f"--level {level} names a structure twice")
    return Selection(
        id=hierarchy.id[rows],
        acronym=tuple(hierarchy.acronym[row] for row in rows),
        name=tuple(hierarchy.name[row] for row in rows),
        members=tuple(rows[i : i + 1] for i in range(len(rows))),
        nested=len(hierarchy.topmost(rows)) < len(rows),
        level=level,
    )


def check_level(level: str, structures: Structures) -> Selection:
    """Choose regions of an atlas before anything is counted: every structure of the ontology may hold something.

    Raises
    ------
    UsageError, NotFoundError, DataError
        As `select_regions`.
    """
    everything = np.ones(len(structures), dtype=bool)
    columns = (structures.id, structures.acronym, structures.name, structures.parent_id, structures.depth)
    return select_regions(Hierarchy(*columns, everything), level)


def structure_rows(
    structures: Structures, level: str | None = None, find: str | None = None
) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """The structures of an atlas as a table for people who choose some.

    Parameters
    ----------
    structures : Structures
    level : str, optional
        Only the regions of this level.
    find : str, optional
        Only those whose acronym or name holds this text, in capitals or not.

    Returns
    -------
    columns : tuple of str
    rows : list of tuples
    """
    chosen = check_level(level or "all", structures)
    depths = dict(zip(structures.id.tolist(), structures.depth.tolist(), strict=True))
    parents = dict(zip(structures.id.tolist(), structures.parent_id.tolist(), strict=True))
    rows = [
        (number, acronym, name, parents.get(number, ""), depths.get(number, ""))
        for number, acronym, name in zip(chosen.id.tolist(), chosen.acronym, chosen.name, strict=True)
        if not find or find.lower() in f"{acronym}\n{name}".lower()
    ]
    return ("region_id", "acronym", "name", "parent_id", "depth"), rows


def _sets(hierarchy: Hierarchy, path: Path) -> Selection:
    sets: dict[str, list[int]] = {}
    for line, name, structure in _read_sets(path):
        try:
            sets.setdefault(name, []).append(hierarchy.row(structure))
        except UsageError as error:
            raise UsageError(f"{path}, line {line}: {error}") from None
    if not sets:
        raise DataError(f"{path} names no set")
    if taken := [name for name in sets if name in RESERVED]:
        raise DataError(
            f"{path}: a set cannot be called {taken[0]!r}, which tables have a row for; rename it"
        )
    members = tuple(hierarchy.topmost(np.array(rows, dtype=np.intp)) for rows in sets.values())
    together = np.concatenate(members)
    return Selection(
        id=-np.arange(1, len(sets) + 1, dtype=np.int64),
        acronym=tuple(sets),
        name=tuple(" + ".join(hierarchy.acronym[row] for row in rows) for rows in members),
        members=members,
        nested=len(hierarchy.topmost(together)) < len(together),
        level=str(path),
    )


def _read_sets(path: Path) -> list[tuple[int, str, str]]:
    """Line number, set and structure of every row of a table of sets."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (FileNotFoundError, IsADirectoryError):
        raise NotFoundError(f"there is no table of region sets {path}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text file in UTF-8: save the table of sets as CSV") from error
    reader = csv.DictReader(lines, skipinitialspace=True)
    if not set(_SET_COLUMNS) <= set(reader.fieldnames or ()):
        raise DataError(
            f"{path} is not a table of region sets: it needs the columns {','.join(_SET_COLUMNS)}"
        )
    found = []
    for row in reader:
        name, structure = (str(row[key] or "").strip() for key in _SET_COLUMNS)
        if not name or not structure:
            raise DataError(f"{path}, line {reader.line_num}: a set or structure is missing")
        found.append((reader.line_num, name, structure))
    return found
