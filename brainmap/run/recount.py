"""A finished run counted anew: after a better registration, at another threshold, at another level.

What is made anew takes the place of what was there only when all of it is complete.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brainmap.errors import BrainmapError, NotFoundError, UsageError
from brainmap.image.brain_of_run import brain_of_run
from brainmap.infer.engine.results import iter_results, require_stored
from brainmap.lock import held
from brainmap.points.table import Points, iter_points
from brainmap.run.cells import ImageFrame, located, mask_of
from brainmap.run.count import count_in_regions, write_points
from brainmap.run.pages import write_pages
from brainmap.run.request import Roi
from brainmap.run.threshold_counts import count_over_thresholds
from brainmap.run_folder import (
    EXPORTS_DIR,
    POINTS_PARQUET,
    REGIONS_CSV,
    REGISTRATION_DIR,
    RUN_JSON,
    SUMMARY_CSV,
    THRESHOLDS_CSV,
    RunRecord,
)
from brainmap.swap import finish_swap, staged

if TYPE_CHECKING:
    from brainmap.atlas.atlas import Atlas
    from brainmap.image.volume import Volume
    from brainmap.registration.register import Registration

__all__ = ["Recounted", "recount", "roi_of", "summarise_run"]

log = logging.getLogger(__name__)

# What run.json says of where the threshold in force came from.
BY_RECOUNT = "brainmap regions --threshold"


@dataclass(frozen=True)
class Recounted:
    """What `recount` found.

    Attributes
    ----------
    cells : int
        In the table now.
    outside : int or None
        Of them outside the atlas; None without one.
    """

    cells: int
    outside: int | None


@dataclass(frozen=True)
class _Atlas:
    """What cells are mapped with."""

    registration: Registration
    atlas: Atlas
    level: str


def recount(
    run: str | Path,
    registration_dir: str | Path | None = None,
    level: str | None = None,
    threshold: float | None = None,
    brain: str | Path | None = None,
) -> Recounted:
    """Count a run's cells per region anew and rewrite its tables, exports and report, all of them or none.

    Parameters
    ----------
    run : path
        A finished run folder.
    registration_dir : path, optional
        A finished registration of the same brain; by default the run's own.
    level : str, optional
        Regions of the summary, see `brainmap.atlas.region_sets`; by default the run's.
    threshold : float, optional
        Lowest score of a cell: the cells come from the candidates in the run folder and are those of
        ``brainmap detect --threshold``. By default the cells of the table stay as they are, and an atlas is needed.
    brain : path or URL, optional
        Where the image lies now; needed for the report's pictures, and for another registration.

    Raises
    ------
    NotFoundError
        If the run has no table of cells, or there is no registration.
    UsageError
        If the registration is of another brain, the atlas has no such level, or the run keeps no candidates as weak
        as the threshold.
    """
    folder = Path(run)
    RunRecord.load(folder)
    with held(folder, f"{folder} is as it was before"):
        return _recount(folder, registration_dir, level, threshold, brain)


def _recount(
    folder: Path,
    registration_dir: str | Path | None,
    level: str | None,
    threshold: float | None,
    brain: str | Path | None,
) -> Recounted:
    finish_swap(folder)
    record = RunRecord.load(folder)
    table = folder / POINTS_PARQUET
    if not table.is_file():
        raise NotFoundError(f"{folder} has no {POINTS_PARQUET}; run brainmap detect first")
    if threshold is not None:
        _check_threshold(folder, record, threshold)
    meta = next((piece.meta for piece in iter_points(table, 1)), None) or Points.read(table, ["z"]).meta
    volume = _volume(folder, brain)
    used = _atlas_of(folder, record, meta, registration_dir, level, volume, needed=threshold is None)
    with staged(folder, RUN_JSON, [EXPORTS_DIR]) as new:
        record, found = _write_tables(folder, new, record, meta, used, threshold)
        if (folder / THRESHOLDS_CSV).is_file() and registration_dir is None:
            shutil.copyfile(folder / THRESHOLDS_CSV, new / THRESHOLDS_CSV)
        else:
            _count_thresholds(folder, new, record, meta, used)
        record.save(new)
        write_pages(folder, new, volume)
    return found


def _check_threshold(folder: Path, record: RunRecord, threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise UsageError(f"--threshold must lie between 0 and 1, not {threshold}")
    if record.status == "running":
        raise UsageError(
            f"{folder} holds a run that has not finished: give the same brainmap detect again first"
        )
    require_stored(folder, threshold)


def _volume(folder: Path, brain: str | Path | None) -> Volume | None:
    """The run's image; without it the tables can be made anew, but not the pictures."""
    if brain is not None:
        return brain_of_run(folder, brain)
    try:
        return brain_of_run(folder)
    except BrainmapError as error:
        log.warning("%s; the report has no pictures of it", error)
        return None


def _atlas_of(
    folder: Path,
    record: RunRecord,
    meta: dict[str, Any],
    registration_dir: str | Path | None,
    level: str | None,
    volume: Volume | None,
    needed: bool,
) -> _Atlas | None:
    """The registration and atlas to count by; None for a run without, where none is needed."""
    if registration_dir is None and not needed and meta.get("registration") is None:
        if level is not None:
            raise UsageError(f"{folder} was made without an atlas: it has no summary, leave --level out")
        return None
    from brainmap.atlas.atlas import Atlas
    from brainmap.atlas.region_sets import check_level
    from brainmap.registration.register import Registration

    registration = Registration.load(registration_dir or _own_registration(folder, record, meta))
    if registration.fingerprint != meta.get("registration"):
        # The image itself is needed only for a registration that the run does not know yet.
        volume = volume or brain_of_run(folder)
        registration.check_belongs(volume)
    atlas = Atlas.open(registration.atlas_folder)
    level = _level(level, record)
    check_level(level, atlas.structures)
    return _Atlas(registration, atlas, level)


def _own_registration(folder: Path, record: RunRecord, meta: dict[str, Any]) -> Path:
    """Where the run's registration lies: in the run, or where it was given, unless that was moved with the run."""
    from brainmap.registration.register import Registration

    given = record.parameters.get("registration")
    if given is None:
        return folder / REGISTRATION_DIR
    beside = (Path(given), folder / REGISTRATION_DIR, folder.absolute().parent / Path(given).name)
    for place in beside:
        with suppress(BrainmapError):
            if Registration.load(place).fingerprint == meta.get("registration"):
                return place
    return Path(given)


def _write_tables(
    folder: Path,
    new: Path,
    record: RunRecord,
    meta: dict[str, Any],
    used: _Atlas | None,
    threshold: float | None,
) -> tuple[RunRecord, Recounted]:
    """Write the tables of cells and regions into a folder beside; returns the record that describes them."""
    frame, mask = ImageFrame.from_meta(meta, folder / POINTS_PARQUET), mask_of(record)
    pieces: Iterator[Points] = iter_points(folder / POINTS_PARQUET)
    numbers: dict[str, Any] = {}
    if threshold is not None:
        pieces = located(iter_results(folder, threshold), frame, mask)
        numbers |= {"threshold": threshold, "threshold_from": BY_RECOUNT}
    if used is None:
        mapped = write_points(new / POINTS_PARQUET, pieces, meta, None, None)
        return _record(record, numbers | {"cells": mapped.cells}), Recounted(mapped.cells, None)
    meta = meta | {"atlas": used.registration.atlas_name, "registration": used.registration.fingerprint}
    mapped = write_points(new / POINTS_PARQUET, pieces, meta, used.atlas, used.registration)
    assert mapped.counter is not None
    regions = count_in_regions(
        new,
        mapped.counter,
        used.registration,
        used.atlas,
        frame,
        roi=roi_of(record),
        mask=mask,
        level=used.level,
    )
    outside = int(regions["count"][0])
    numbers |= {"cells": mapped.cells, "outside_atlas": outside, "regions_agree": mapped.regions_agree}
    return _record(record, numbers, level=used.level), Recounted(mapped.cells, outside)


def _record(record: RunRecord, numbers: dict[str, Any], **execution: Any) -> RunRecord:
    results = {name: value for name, value in (record.results | numbers).items() if value is not None}
    return record.updated(results=results, execution=record.execution | execution)


def _count_thresholds(
    folder: Path, new: Path, record: RunRecord, meta: dict[str, Any], used: _Atlas | None
) -> None:
    """The counts over the threshold anew, where the candidates are there; a run may live without its blocks."""
    frame = ImageFrame.from_meta(meta, folder / POINTS_PARQUET)
    both = (None, None) if used is None else (used.atlas, used.registration)
    try:
        count_over_thresholds(folder, new, frame, mask_of(record), *both)
    except NotFoundError as error:
        log.info("no counts over the threshold: %s", error)


def summarise_run(run: str | Path, level: str | None = None, out: str | Path | None = None) -> Path:
    """Write the summary of a counted run anew, at a level of choice; nothing is mapped again.

    Parameters
    ----------
    run : path
        Run folder with a table of regions.
    level : str, optional
        See `brainmap.atlas.region_sets`; by default the run's.
    out : path, optional
        CSV file to write; by default the run's own summary.

    Raises
    ------
    NotFoundError, DataError, UsageError
        If there is no table of regions, or its atlas has no such level.
    """
    from brainmap.atlas.regions import read_region_table, write_regions
    from brainmap.atlas.summary import summarise

    folder = Path(run)
    record = RunRecord.load(folder)
    level = _level(level, record)
    if out is not None:
        write_regions(summarise(read_region_table(folder / REGIONS_CSV), level), Path(out))
        return Path(out)
    with held(folder, f"{folder} is as it was before"), staged(folder, RUN_JSON, [EXPORTS_DIR]) as new:
        record = RunRecord.load(folder)
        write_regions(summarise(read_region_table(folder / REGIONS_CSV), level), new / SUMMARY_CSV)
        record.updated(execution=record.execution | {"level": level}).save(new)
    return folder / SUMMARY_CSV


def _level(asked: str | None, record: RunRecord) -> str:
    """The level asked for, or else the run's; files by their absolute path, as the record keeps it."""
    level = asked or str(record.execution.get("level") or "summary")
    return str(Path(level).absolute()) if level.lower().endswith(".csv") else level


def roi_of(record: RunRecord) -> Roi | None:
    """The region of interest of a run; None where all was analysed."""
    roi = record.parameters.get("roi")
    return Roi(*(tuple(roi[axis]) for axis in "zyx")) if roi else None
