"""`groups.csv`: which run is which animal, in which group, with which covariates."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brainmap.errors import DataError, NotFoundError, UsageError

__all__ = ["Groups", "read_groups"]

COLUMNS = ("run", "animal", "group")
LEAST_ANIMALS = 2


@dataclass(frozen=True)
class Groups:
    """Animals of a study, in the order of the file.

    Attributes
    ----------
    run : tuple of Path
        Run folder of each animal.
    animal, group : tuple of str
    covariates : dict of tuple of str
        Further columns, as text.
    """

    run: tuple[Path, ...]
    animal: tuple[str, ...]
    group: tuple[str, ...]
    covariates: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, values in (("animal", self.animal), ("run", self.run)):
            if twice := next((value for value in values if values.count(value) > 1), None):
                raise DataError(
                    f"the {what} {twice} is listed twice: every animal needs one row, with its own run"
                )
        if len(self.names) < 2:
            raise DataError(
                f"all {len(self.animal)} animals are of group {self.group[0]}: a comparison needs two groups"
                if self.animal
                else "there are no animals: every row names a run, an animal and its group"
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

    def rows(self, group: str) -> NDArray[np.intp]:
        """Indices of a group's animals."""
        return np.flatnonzero(np.array(self.group) == group)


def read_groups(path: str | Path, covariates: Sequence[str] | None = None) -> Groups:
    """Read `groups.csv`.

    Parameters
    ----------
    path : path
        CSV with the columns ``run,animal,group``; a run's path is relative to the file's folder. Columns may be
        separated by commas, semicolons or tabs.
    covariates : sequence of str, optional
        Further columns to take; all of them by default.

    Raises
    ------
    NotFoundError
        If there is no such file, or a run folder does not exist.
    DataError
        If a column or value is missing, an animal or run is listed twice, or there are not two groups of at least
        two animals.
    UsageError
        If a covariate is not a column.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        raise NotFoundError(f"there is no table of groups {path}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text: save the table as CSV (UTF-8)") from None
    header = text.partition("\n")[0]
    reader = csv.DictReader(text.splitlines(), delimiter=max(",;\t", key=header.count), skipinitialspace=True)
    names = [str(name).strip() for name in reader.fieldnames or ()]
    reader.fieldnames = names
    if missing := [name for name in COLUMNS if name not in names]:
        raise DataError(
            f"{path} has no column {missing[0]}: it needs {', '.join(COLUMNS)}, and covariates if any"
        )
    extra = [name for name in names if name and name not in COLUMNS]
    if covariates is not None:
        if unknown := [name for name in covariates if name not in extra]:
            known = ", ".join(extra) or "no further column"
            raise UsageError(f"--covariates: {path} has no column {unknown[0]}; it has {known}")
        extra = list(covariates)
    columns = _columns(path, reader, (*COLUMNS, *extra))
    runs = tuple(_run_folder(path, value) for value in columns["run"])
    try:
        return Groups(runs, columns["animal"], columns["group"], {name: columns[name] for name in extra})
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _columns(path: Path, reader: csv.DictReader[str], wanted: Sequence[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {name: [] for name in wanted}
    for row in reader:
        if not any(str(value or "").strip() for value in row.values()):
            continue
        for name in wanted:
            value = str(row[name] or "").strip()
            if not value:
                raise DataError(f"{path}, line {reader.line_num}: there is no {name}")
            found[name].append(value)
    return {name: tuple(values) for name, values in found.items()}


def _run_folder(path: Path, run: str) -> Path:
    folder = (path.parent / Path(run).expanduser()).resolve()
    if not folder.is_dir():
        raise NotFoundError(
            f"{path}: there is no run folder {run}; paths are relative to {path.parent.resolve()}"
        )
    return folder
