"""`groups.csv`: which run is which animal, in which group, and what else is known of it."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brainmap.errors import DataError, NotFoundError, UsageError, what_it_is

__all__ = ["COLUMNS", "LEAST_ANIMALS", "Groups", "read_groups", "read_rows", "require_columns"]

COLUMNS = ("run", "animal", "group")
LEAST_ANIMALS = 2

_REMARK = re.compile(r"#\s*(formula|contrast)\s*:\s*(.+?)[;,\s]*$")


@dataclass(frozen=True)
class Groups:
    """Animals of a study, in the order of the file.

    Attributes
    ----------
    run : tuple of Path
        Run folder of each animal.
    animal, group : tuple of str
    columns : dict of tuple of str
        Further columns, as text; empty where a cell is empty.
    formula : str, optional
        Of a remark ``# formula: ...`` in the file.
    contrasts : tuple of str
        Of its remarks ``# contrast: ...``.
    repeated : bool
        An animal may have several rows, with a run each.
    free : bool
        A formula describes the animals: groups need not be compared, nor hold two animals.
    """

    run: tuple[Path, ...]
    animal: tuple[str, ...]
    group: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    formula: str | None = None
    contrasts: tuple[str, ...] = ()
    repeated: bool = False
    free: bool = False

    def __post_init__(self) -> None:
        once = [("run", self.run)] if self.repeated else [("animal", self.animal), ("run", self.run)]
        for what, values in once:
            if twice := next((value for value in values if values.count(value) > 1), None):
                hint = " (--paired animal compares several runs of each animal)" if what == "animal" else ""
                raise DataError(
                    f"the {what} {twice} is listed twice: every animal needs one row, with its own run{hint}"
                )
        if not self.animal:
            raise DataError("there are no animals: every row names a run, an animal and its group")
        if not self.free:
            self._require_groups()

    def _require_groups(self) -> None:
        if len(self.names) < 2:
            raise DataError(
                f"all {len(self.animal)} animals are of group {self.group[0]}: a comparison needs two groups"
            )
        for name in self.names:
            if self.group.count(name) < LEAST_ANIMALS:
                raise DataError(
                    f"group {name} has one animal: without a second one its scatter is unknown; add animals, or "
                    "leave the group out"
                )

    def __len__(self) -> int:
        return len(self.animal)

    @property
    def names(self) -> tuple[str, ...]:
        """Groups in the order of their first animals."""
        return tuple(dict.fromkeys(self.group))

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """All pairs of groups, the earlier group first."""
        return list(combinations(self.names, 2))

    @property
    def labels(self) -> tuple[str, ...]:
        """A name for each row: the animal, with its group where an animal has several rows."""
        if not self.repeated:
            return self.animal
        return tuple(f"{animal} ({group})" for animal, group in zip(self.animal, self.group, strict=True))

    def rows(self, group: str) -> NDArray[np.intp]:
        """Indices of a group's animals."""
        return np.flatnonzero(np.array(self.group) == group)

    def values(self, name: str) -> tuple[str, ...]:
        """A column by its name; `animal` and `group` are columns too."""
        return {"animal": self.animal, "group": self.group}.get(name) or self.columns[name]


def read_groups(
    path: str | Path, *, formula: str | None = None, paired: str | None = None, any_groups: bool = False
) -> Groups:
    """Read `groups.csv`.

    Parameters
    ----------
    path : path
        CSV with the columns ``run,animal,group``; a run's path is relative to the file's folder. Columns may be
        separated by commas, semicolons or tabs. Lines that begin with ``# formula:`` or ``# contrast:`` are a design,
        see `brainmap.cohort.model.design`. With a formula that does not name it, `group` may be missing.
    formula : str, optional
        Instead of the file's.
    paired : str, optional
        ``animal`` allows several rows for an animal.
    any_groups : bool
        Accept one group, or groups of one animal: for planning.

    Raises
    ------
    NotFoundError
        If there is no such file, or a run folder does not exist.
    DataError
        If a column or value is missing, an animal or run is listed twice, or, without a formula, there are not two
        groups of at least two animals.
    """
    path = Path(path)
    columns, remarks = read_rows(path, "table of groups")
    formula = formula or next((text for kind, text in remarks if kind == "formula"), None)
    if formula and "group" not in columns:
        columns["group"] = ["all"] * len(next(iter(columns.values()), []))
    if missing := [name for name in COLUMNS if name not in columns]:
        raise DataError(
            f"{path} has no column {missing[0]}: it needs {', '.join(COLUMNS)}, and covariates if any{what_it_is(path)}"
        )
    for name in COLUMNS:
        if "" in columns[name]:
            line = columns["line"][columns[name].index("")]
            raise DataError(f"{path}, line {line}: there is no {name}")
    runs = tuple(_run_folder(path, value) for value in columns["run"])
    further = {
        name: tuple(values) for name, values in columns.items() if name and name not in (*COLUMNS, "line")
    }
    try:
        return Groups(
            runs, tuple(columns["animal"]), tuple(columns["group"]), further, formula,
            tuple(text for kind, text in remarks if kind == "contrast"),
            repeated=paired == "animal" or _names(formula, "animal"), free=bool(formula) or any_groups,
        )  # fmt: skip
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _names(formula: str | None, name: str) -> bool:
    return formula is not None and re.search(rf"(?<!\w){name}(?!\w)", formula) is not None


def read_rows(path: Path, what: str) -> tuple[dict[str, list[str]], list[tuple[str, str]]]:
    """Columns of a table that people write, as text, with `line`, the line of each row; and its remarks.

    Raises
    ------
    NotFoundError, DataError
        If it is not there, is no text, or names a column twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        raise NotFoundError(f"there is no {what} {path}{what_it_is(path)}") from None
    except UnicodeDecodeError:
        raise DataError(
            f"{path} is not UTF-8 text: save the table as CSV (UTF-8){what_it_is(path)}"
        ) from None
    lines = text.splitlines()
    is_remark = [line.lstrip(' "').startswith("#") for line in lines]
    found = [_REMARK.match(line.strip(' "')) for line, yes in zip(lines, is_remark, strict=True) if yes]
    remarks = [(match[1], match[2].strip()) for match in found if match]
    # Remarks become empty lines, so that the numbers of lines stay right.
    kept = ["" if yes else line for line, yes in zip(lines, is_remark, strict=True)]
    header = next((line for line in kept if line.strip(" ,;\t")), "")
    reader = csv.reader(kept, delimiter=max(",;\t", key=header.count), skipinitialspace=True)
    names: list[str] = []
    columns: dict[str, list[str]] = {}
    for row in reader:
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        if not names:
            names = cells
            if twice := next((name for name in names if name and names.count(name) > 1), None):
                raise DataError(f"{path} has two columns {twice}: rename one")
            columns = {name: [] for name in [*names, "line"] if name}
            continue
        cells += [""] * (len(names) - len(cells))
        for name, cell in zip(names, cells, strict=False):
            if name:
                columns[name].append(cell)
        columns["line"].append(str(reader.line_num))
    return columns, remarks


def require_columns(groups: Groups, names: Sequence[str], option: str) -> None:
    """Refuse columns that are not there.

    Raises
    ------
    UsageError
    """
    for name in names:
        if name not in groups.columns and name not in ("group", "animal"):
            known = ", ".join(groups.columns) or "no further column"
            raise UsageError(f"{option}: the table of groups has no column {name}; it has {known}")


def _run_folder(path: Path, run: str) -> Path:
    folder = (path.parent / Path(run).expanduser()).resolve()
    if not folder.is_dir():
        raise NotFoundError(
            f"{path}: there is no run folder {run}; paths are relative to {path.parent.resolve()}"
        )
    return folder
