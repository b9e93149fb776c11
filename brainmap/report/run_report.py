"""The report of a run folder: what ran, what was found, and whether a person may believe it.

Each section is written from its own file of the run folder; a missing or damaged one leaves a note in its place, so
that a run without an atlas, without cells, or whose brain has moved still gets a report.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from brainmap.atlas.atlas import Atlas
from brainmap.errors import BrainmapError, NotFoundError
from brainmap.image.volume import Volume
from brainmap.points.table import read_locations
from brainmap.report import figures
from brainmap.report.atlas_map import COLOURS, colours_of, map_in_atlas, map_in_image, view_figure
from brainmap.report.borders import BorderRange, border_ranges, likely_error_um
from brainmap.report.html import Page, format_value
from brainmap.report.methods_text import add_methods
from brainmap.report.picture_section import add_pictures
from brainmap.report.region_rows import read_regions
from brainmap.report.region_section import add_regions
from brainmap.report.registration_section import add_registration, read_registration
from brainmap.report.run_facts import (
    Run,
    cost_facts,
    input_facts,
    is_number,
    lookup,
    method_facts,
    plain,
)
from brainmap.report.slices import choose_slices
from brainmap.report.summary import summarise_points
from brainmap.report.thresholds import add_threshold_counts
from brainmap.report.trust import checks, expected_precision, key_numbers, marked_precision, next_steps
from brainmap.report.truth import add_truth
from brainmap.run_folder import POINTS_PARQUET, REGIONS_CSV, REPORT_HTML, RunRecord

__all__ = ["write_run_report"]

log = logging.getLogger(__name__)

#: Voxels of an atlas that is read for a page: one at 25 um, not one at 10.
_LARGEST_ATLAS = 150_000_000


def write_run_report(
    run_dir: str | Path,
    *,
    truth: str | Path | None = None,
    truth_regions: str | Path | None = None,
    volume: Volume | None = None,
    atlas: Atlas | None = None,
    staged: Path | None = None,
) -> Path:
    """Write ``report.html`` into a run folder and return its path.

    Parameters
    ----------
    run_dir : str or Path
        Run folder with at least ``run.json``.
    truth : str or Path, optional
        True cells (CSV or Parquet with z,y,x level-0 voxels), to score against.
    truth_regions : str or Path, optional
        True counts in the columns of ``regions.csv``.
    volume : Volume, optional
        The brain; by default opened from the path in ``run.json``.
    atlas : Atlas, optional
        That of the run; by default opened from the folder that the registration names.
    staged : Path, optional
        Folder with ``run.json`` and tables that will take the place of the run's: they are reported, there.

    Raises
    ------
    NotFoundError, DataError
        If the folder has no readable ``run.json``.
    """
    folder = staged or Path(run_dir)
    record = RunRecord.load(folder)
    problems: list[str] = []
    if volume is None:
        volume = _attempt(problems, lambda: _open_volume(record))
    table = folder / POINTS_PARQUET
    summary = _attempt(problems, lambda: summarise_points(table, volume.shape[0] if volume else 0))
    run = Run(
        folder=folder,
        registration=Path(run_dir) / "registration",
        record=record,
        volume=volume,
        points=table if summary else None,
        summary=summary,
        regions=_optional(problems, folder / REGIONS_CSV, read_regions),
        truth=_attempt(problems, lambda: read_locations(truth)) if truth else None,
        truth_regions=_optional(problems, Path(truth_regions), read_regions) if truth_regions else None,
    )
    folder_, registration, problem = read_registration(run)
    atlas = _attempt(problems, lambda: _open_atlas(registration)) if atlas is None and run.regions else atlas
    precision = marked_precision(run)
    verdicts = checks(run, registration, precision)
    page = Page(_brain_name(run), f"Detected cells. {_subtitle(record)}")
    _messages(page, run, problems)
    page.add_numbers(key_numbers(run, registration, precision, expected_precision(run)))
    _cell_map(page, run, atlas)
    page.add_checks("Can it be trusted?", [(c.name, c.verdict, c.sentence) for c in verdicts])
    page.add_steps("What to do next (RUN is the folder of this page)", next_steps(run, verdicts, precision))
    ranges, error_um = _ranges(run, atlas, registration)
    add_regions(page, run, ranges, error_um)
    evaluation = add_truth(page, run)
    try:
        add_pictures(page, run, evaluation is not None)
    except BrainmapError as error:
        page.add_warning("The pictures could not be made from the image:", [str(error)])
    add_registration(page, folder_, registration, problem)
    _measurements(page, run)
    add_threshold_counts(page, run)
    _details(page, run, registration)
    return page.write(folder / REPORT_HTML)


def _messages(page: Page, run: Run, problems: list[str]) -> None:
    """What has to be known before any number is read."""
    record = run.record
    failed = record.blocks.get("failed") or {}
    reasons = (
        [f"{k}: {v}" for k, v in failed.items()] if isinstance(failed, Mapping) else [str(f) for f in failed]
    )
    if record.status == "incomplete" or reasons:
        total = record.blocks.get("total")
        page.add_error(
            f"{len(reasons)} of {format_value(total)} blocks could not be processed: cells there are missing "
            "from every number on this page. Run the same command again to retry them.",
            [*reasons[:20], *([f"... and {len(reasons) - 20} more"] if len(reasons) > 20 else [])],
        )
    if record.status == "running":
        page.add_error("This run has not finished; the numbers on this page are not final.")
    if record.warnings:
        page.add_warning("The run finished with warnings:" if len(record.warnings) > 1 else record.warnings[0],
                         record.warnings if len(record.warnings) > 1 else ())  # fmt: skip
    if problems:
        page.add_warning("Parts of this report could not be made:", problems)
    if run.summary and run.summary.n == 0:
        page.add_note(
            "No cells were detected. Look at the slices below: is this the right channel and threshold?"
        )
    if record.results.get("registration_verdict") == "bad":
        page.add_error(
            "The registration is BAD: counts per region on this page are not to be used as they are."
        )


def _cell_map(page: Page, run: Run, atlas: Atlas | None) -> None:
    """Where all cells lie, seen through the atlas, or else through the image."""
    if run.points is None or run.summary is None or run.summary.n == 0:
        return
    if atlas is not None and "atlas_z_um" in run.summary.columns:
        cells = map_in_atlas(run.points, atlas)
    elif run.volume is not None:
        cells = map_in_image(run.points, run.volume.shape, run.volume.voxel_um, run.volume.orientation)
    else:
        return
    lines = (
        " Thin lines: borders of the large divisions in one section."
        if cells.views[0].borders is not None
        else ""
    )
    page.add_gallery(
        [(view_figure(view, cells.top), view.title.capitalize()) for view in cells.views],
        f"All cells {cells.where}, seen through: mean density along the line of sight.{lines}",
        scale=("0", f"{cells.top:,.0f} {cells.unit}", colours_of(COLOURS)),
        kind="map",
    )


def _ranges(
    run: Run, atlas: Atlas | None, registration: dict[str, Any]
) -> tuple[dict[int, BorderRange], float]:
    error_um = likely_error_um(registration)
    if atlas is None or run.points is None or run.summary is None or "atlas_z_um" not in run.summary.columns:
        return {}, error_um
    return border_ranges(run.points, atlas, error_um, run.summary.n), error_um


def _measurements(page: Page, run: Run) -> None:
    if run.summary is None or run.summary.n == 0:
        return
    page.add_section("Scores and sizes", "What was measured of the cells.")
    threshold = lookup(run.record, "threshold")
    shown = len(next(iter(run.summary.sample.values()), np.zeros(0)))
    text = (
        f" Signal to noise and diameter from an even sample of {shown:,} cells."
        if shown < run.summary.n
        else ""
    )
    if run.summary.sample:
        page.add_figure(
            figures.cell_histograms(run.summary, float(threshold) if threshold is not None else None),
            "Score, signal-to-noise ratio and diameter of all cells; dashed: the threshold." + text,
            format="svg",
        )
    if len(run.summary.per_slice) > 1:
        step = run.volume.voxel_um[0] if run.volume else 1.0
        depth = run.volume.shape[0] if run.volume else 0
        shown_slices = choose_slices(run.summary.per_slice, depth) if depth else []
        page.add_figure(
            figures.depth_profile(run.summary, step, shown_slices),
            "Cells along the depth; dotted: the slices shown. Steps or gaps point to damaged sections or blocks.",
            format="svg",
        )


def _details(page: Page, run: Run, registration: dict[str, Any]) -> None:
    """What was read, how it was computed, and what that took: last, as few ask for it."""
    record = run.record
    page.add_section("How this was made", "The same values as in run.json, for reading.")
    add_methods(page, run, registration)
    page.add_facts(input_facts(run), title="Brain")
    page.add_facts(method_facts(run), title="Detection and atlas")
    page.add_facts(cost_facts(run), title="Time and memory")
    if record.timings_s:
        rows = [
            [name.replace("_", " "), float(seconds)]
            for name, seconds in record.timings_s.items()
            if is_number(seconds)
        ]
        page.add_table(["stage", "seconds"], rows, "Time by stage", sortable=False, collapsed=True)
    groups = {
        "Parameters": record.parameters,
        "Execution": record.execution,
        "Fingerprints": record.fingerprints,
        "Versions": record.versions,
        "Machine": record.machine,
        "Results": record.results,
    }
    for title, values in groups.items():
        if values:
            rows_text = [[key, plain(value)] for key, value in values.items()]
            page.add_table(["name", "value"], rows_text, title, sortable=False, collapsed=True)


def _open_atlas(registration: dict[str, Any]) -> Atlas | None:
    """The atlas of a registration; None where it is too large to be read for a page."""
    folder = (registration.get("atlas") or {}).get("folder")
    if not folder:
        return None
    atlas = Atlas.open(str(folder))
    return atlas if math.prod(atlas.shape) <= _LARGEST_ATLAS else None


def _open_volume(record: RunRecord) -> Volume:
    source = record.parameters.get("brain")
    if not source:
        raise NotFoundError("run.json does not say where the brain lies; no slices are shown")
    return Volume.open(
        str(source),
        channel=record.parameters.get("channel"),
        voxel_um=record.parameters.get("voxel_um") or None,
        timepoint=record.parameters.get("timepoint"),
        axes=record.parameters.get("axes"),
    )


def _attempt(problems: list[str], action: Callable[[], Any]) -> Any:
    """The result of `action`, or None and a line in `problems` if it fails in an expected way."""
    try:
        return action()
    except (BrainmapError, OSError) as error:
        log.warning("report: %s", error)
        problems.append(str(error))
        return None


def _optional(problems: list[str], path: Path, read: Callable[[Path], Any]) -> Any:
    return _attempt(problems, lambda: read(path)) if path.exists() else None


def _brain_name(run: Run) -> str:
    if run.volume:
        return run.volume.name
    return str(run.record.parameters.get("brain") or run.folder.name).rstrip("/").rsplit("/", 1)[-1]


def _subtitle(record: RunRecord) -> str:
    when = record.finished or record.started
    when = when.replace("T", " ").removesuffix("+00:00")
    return f"brainmap {record.versions.get('brainmap', '')}, {when} UTC"
