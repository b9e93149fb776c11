"""One command from brains to a comparison: detect what is missing, then compare; the same command goes on."""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from brainmap.cohort.groups import COLUMNS, read_rows
from brainmap.cohort.results import compare
from brainmap.cohort.study import CompareSettings, Study
from brainmap.errors import BrainmapError, DataError, NotFoundError, UsageError, what_it_is
from brainmap.files import atomic_path
from brainmap.run.detect import detect_brain
from brainmap.run.request import DETECT_SETTINGS, PATHS, DetectRequest, detect_request
from brainmap.run_folder import RunRecord, changes, is_run
from brainmap.settings import read_settings

__all__ = ["Brains", "StudyPlan", "plan_study", "read_study", "run_study"]

log = logging.getLogger(__name__)

RUNS_DIR, GROUPS_CSV, COMPARISON_DIR = "runs", "groups.csv", "comparison"
#: Options of detect that a column may hold, one value for each brain.
OPTIONS = DETECT_SETTINGS - {
    "out",
    "overwrite",
    "dry-run",
    "export",
    "no-atlas",
    "scheduler",
    "level",
    "workers",
}


@dataclass(frozen=True)
class Brains:
    """The table of a study; tuples hold one value for each brain.

    Attributes
    ----------
    brain : tuple of str
        Path or URL of the volume; empty where there is a finished run.
    run : tuple of Path or None
        A finished run that is used as it is.
    animal, group : tuples of str
    options : tuple of dict
        Options of detect.
    columns : dict of tuple of str
        Further columns, for the comparison.
    """

    brain: tuple[str, ...]
    run: tuple[Path | None, ...]
    animal: tuple[str, ...]
    group: tuple[str, ...]
    options: tuple[Mapping[str, Any], ...]
    columns: Mapping[str, tuple[str, ...]]


def read_study(path: str | Path) -> Brains:
    """Read a table ``brain,animal,group`` with options of detect and further columns.

    Raises
    ------
    NotFoundError, DataError
        If it is not there, lacks a column or a value, or lists an animal or a brain twice.
    """
    path = Path(path)
    columns, _ = read_rows(path, "table of a study")
    for name in ("brain", "animal", "group"):
        if name not in columns:
            raise DataError(f"{path} has no column {name}: it needs brain,animal,group{what_it_is(path)}")
    runs = columns.get("run", [""] * len(columns["brain"]))
    for line, brain, run, animal, group in zip(
        columns["line"], columns["brain"], runs, columns["animal"], columns["group"], strict=True
    ):
        for name, value in (("animal", animal), ("group", group), ("brain", brain or run)):
            if not value:
                raise DataError(f"{path}, line {line}: there is no {name}")
    for name in ("animal", "brain"):
        values = [value for value in columns[name] if value]
        if twice := next((value for value in values if values.count(value) > 1), None):
            raise DataError(f"{path}: the {name} {twice} is listed twice")
    if not columns["animal"]:
        raise DataError(f"{path} lists no brain")
    named = {name: _option(name) for name in columns if name not in (*COLUMNS, "brain", "line")}
    options = {name: option for name, option in named.items() if option in OPTIONS}
    rows: list[dict[str, Any]] = []
    for i in range(len(columns["animal"])):
        cells = {option: columns[name][i] for name, option in options.items() if columns[name][i]}
        rows.append({option: _value(path, option, cell) for option, cell in cells.items()})
    return Brains(
        tuple(str(_place(path, brain)) if brain else "" for brain in columns["brain"]),
        tuple((path.parent / run).resolve() if run else None for run in runs),
        tuple(columns["animal"]),
        tuple(columns["group"]),
        tuple(rows),
        {name: tuple(columns[name]) for name in named if name not in options},
    )


def _option(name: str) -> str:
    return re.sub(r"[_ ]", "-", name.strip().lower())


def _value(table: Path, option: str, cell: str) -> Any:
    if option.replace("-", "_") in PATHS:
        return str(_place(table, cell))
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell


def _place(table: Path, value: str) -> str | Path:
    """A path beside the table, if there is one; names and URLs stay."""
    there = table.parent / Path(value).expanduser()
    return value if "://" in value or not there.exists() else there.resolve()


@dataclass(frozen=True)
class StudyPlan:
    """What is to be done.

    Attributes
    ----------
    out : Path
    brains : Brains
    requests : tuple of DetectRequest or None
        None where a finished run is given.
    """

    out: Path
    brains: Brains
    requests: tuple[DetectRequest | None, ...]

    @property
    def runs(self) -> tuple[Path, ...]:
        """Run folder of each animal."""
        found = [
            run if request is None else request.out
            for run, request in zip(self.brains.run, self.requests, strict=True)
        ]
        return tuple(run for run in found if run is not None)

    def waiting(self) -> list[DetectRequest]:
        """Brains that are not detected yet as they are asked for."""
        return [request for request in self.requests if request is not None and not _is_done(request)]

    def lines(self) -> list[tuple[str, str]]:
        """For people: what is done and what is left."""
        waiting = {request.out for request in self.waiting()}
        return [
            (animal, f"{'to detect' if run in waiting else 'done'}  {run}")
            for animal, run in zip(self.brains.animal, self.runs, strict=True)
        ]


def _is_done(request: DetectRequest) -> bool:
    """Whether the run folder holds a complete run of just this request."""
    if not is_run(request.out):
        return False
    record = RunRecord.load(request.out)
    return record.status == "complete" and not changes(record.parameters, request.parameters())


def plan_study(
    study: str | Path, out: str | Path, config: str | Path | None = None, *, overwrite: bool = False
) -> StudyPlan:
    """Read the table and the settings, and check everything that can be checked before hours of work.

    Raises
    ------
    UsageError, NotFoundError, DataError
        See `read_study` and `detect_request`.
    """
    brains, out = read_study(study), Path(out)
    settings = read_settings(config, DETECT_SETTINGS) if config is not None else {}
    settings = {name: value for name, value in settings.items() if name != "out"}
    folders = [_folder_name(animal) for animal in brains.animal]
    if twice := next((name for name in folders if folders.count(name) > 1), None):
        raise DataError(f"{study}: two animals would share the run folder {twice}: rename one")
    requests: list[DetectRequest | None] = []
    for brain, run, name, options in zip(brains.brain, brains.run, folders, brains.options, strict=True):
        if run is not None:
            if not is_run(run):
                raise NotFoundError(f"{study}: {run} is not a run folder")
            requests.append(None)
            continue
        try:
            request = detect_request(brain, settings, options, out / RUNS_DIR / name)
        except UsageError as error:
            raise UsageError(f"{study}, {name}: {error}") from None
        if not request.wants_regions:
            raise UsageError(f"{study}, {name}: a comparison needs regions, and no-atlas counts none")
        requests.append(replace(request, overwrite=overwrite and not _is_done(request)))
    return StudyPlan(out, brains, tuple(requests))


def _folder_name(animal: str) -> str:
    """A name that every file system takes."""
    return re.sub(r"[^\w.+-]+", "_", animal).strip("._") or "animal"


def run_study(
    plan: StudyPlan, settings: CompareSettings | None = None, *, progress: bool | None = None
) -> Study:
    """Detect what is missing, one brain after another, then compare.

    Writes ``runs/``, ``groups.csv`` and ``comparison/``. A brain that fails does not keep the others from being done;
    the comparison waits until all are.

    Raises
    ------
    DataError
        Naming the brains that could not be detected.
    UsageError, NotFoundError
        See `brainmap.cohort.results.compare`.
    """
    (plan.out / RUNS_DIR).mkdir(parents=True, exist_ok=True)
    waiting = plan.waiting()
    failed: list[tuple[str, BrainmapError]] = []
    for number, request in enumerate(waiting, start=1):
        log.info("brain %d of %d: %s", number, len(waiting), request.out.name)
        try:
            detect_brain(replace(request, progress=progress))
        except BrainmapError as error:
            log.error("%s: %s", request.out.name, error)
            failed.append((request.out.name, error))
    if failed:
        first, reason = failed[0]
        more = f" and {', '.join(name for name, _ in failed[1:])}" if failed[1:] else ""
        raise DataError(
            f"{len(failed)} of {len(plan.runs)} brains could not be detected ({first}{more}: {reason}); the "
            "others are done, "
            "the same command tries these again"
        )
    groups = plan.out / GROUPS_CSV
    write_groups(groups, plan)
    return compare(groups, plan.out / COMPARISON_DIR, settings, overwrite=True)


def write_groups(path: Path, plan: StudyPlan) -> None:
    """The table that `brainmap compare` reads; runs are relative to it where they lie beside it."""
    brains, names = plan.brains, list(plan.brains.columns)
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*COLUMNS, *names])
        for i, run in enumerate(plan.runs):
            place = run.resolve()
            if place.is_relative_to(path.parent.resolve()):
                place = place.relative_to(path.parent.resolve())
            further: Sequence[str] = [brains.columns[name][i] for name in names]
            writer.writerow([place.as_posix(), brains.animal[i], brains.group[i], *further])
