"""The report of a run folder: what ran, what was found, and whether a person may believe it.

Each section is written from its own file of the run folder; a missing or damaged one leaves a note in its place, so
that a run without an atlas, without cells, or whose brain has moved still gets a report.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from brainmap.errors import BrainmapError, NotFoundError
from brainmap.files import read_json
from brainmap.image.volume import Volume
from brainmap.points.table import read_locations
from brainmap.report import figures
from brainmap.report.html import Page, format_value
from brainmap.report.region_rows import read_regions, read_summary
from brainmap.report.run_facts import (
    Run,
    indented,
    input_facts,
    is_number,
    key_numbers,
    lookup,
    method_facts,
    plain,
)
from brainmap.report.slices import choose_crops, choose_slices, read_crop, read_slices
from brainmap.report.summary import points_near, summarise_points
from brainmap.report.thresholds import add_threshold_counts
from brainmap.report.truth import add_truth, missed_cells
from brainmap.run_folder import (
    POINTS_PARQUET,
    REGIONS_CSV,
    REPORT_HTML,
    SUMMARY_CSV,
    RunRecord,
)

__all__ = ["write_run_report"]

log = logging.getLogger(__name__)

_PICTURES = {
    "checkerboard": "the brain (warm) and the atlas's template (cool) in alternating squares; edges should go on "
    "across them.",
    "deformation": "a regular grid of the atlas as the deformation bends it into the brain; blue places are smaller "
    "there than in the atlas, red ones larger (the affine left out).",
}
_CROP_CELLS = 28  # side of a close-up in cell diameters


def write_run_report(
    run_dir: str | Path,
    *,
    truth: str | Path | None = None,
    truth_regions: str | Path | None = None,
    volume: Volume | None = None,
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
    page = Page(f"{_brain_name(run)}: detected cells", _subtitle(record))
    _head(page, run, problems)
    evaluation = add_truth(page, run)
    try:
        _detections(page, run, evaluation is not None)
    except BrainmapError as error:
        page.add_warning("The pictures could not be made from the image:", [str(error)])
    _measurements(page, run)
    add_threshold_counts(page, run)
    _regions(page, run)
    _registration(page, run)
    _provenance(page, run)
    return page.write(folder / REPORT_HTML)


def _head(page: Page, run: Run, problems: list[str]) -> None:
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
    page.add_numbers(key_numbers(run))
    page.add_facts(input_facts(run), title="Brain")
    page.add_facts(method_facts(run), title="Detection and atlas")


def _detections(page: Page, run: Run, scored: bool) -> None:
    if run.volume is None or run.summary is None or run.points is None:
        return
    volume, step = run.volume, run.volume.voxel_um[0]
    slices = choose_slices(run.summary.per_slice, volume.shape[0])
    reach = max(0.5, 1.1 * run.cell_um / step)  # light of a cell reaches a little beyond its body
    points = points_near(run.points, slices, reach)
    page.add_section(
        "Detections",
        f"Cells within {reach * step:.3g} µm above and below the slice, coloured by score (magenta low, yellow high). "
        "Brightness is stretched from the 1st percentile of each picture to the 99.7th of its slice (gamma 0.75).",
    )
    overviews = read_slices(volume, slices)
    missed = missed_cells(run) if scored else None
    crops = choose_crops(volume, overviews, points, _CROP_CELLS * run.cell_um)
    if crops:
        page.add_subheading("Close-ups at full resolution")
        page.add_text("Solid circles: the centre lies in this slice; dotted: above or below it."
                      + (" Crosses: true cells that were not found." if missed is not None else ""))  # fmt: skip
        for crop in crops:
            near = points[slices.index(crop.z)]
            crosses = missed[np.abs(missed[:, 0] - crop.z) <= reach][:, 1:] if missed is not None else None
            white = overviews[slices.index(crop.z)].window()[1]
            figure = figures.closeup(
                read_crop(volume, crop), near, volume.voxel_um, run.cell_um, crosses, white
            )
            caption = f"{crop.title}: z {crop.z}, y {crop.y[0]} to {crop.y[1]}, x {crop.x[0]} to {crop.x[1]}."
            page.add_figure(figure, caption, format="webp", width="half")
    page.add_subheading("Whole slices")
    for image, near in zip(overviews, points, strict=True):
        depth_mm = (image.z + 0.5) * step / 1000
        caption = f"Slice z {image.z} ({depth_mm:.3g} mm deep): {len(near):,} cells."
        page.add_figure(figures.overview(image, near, volume.voxel_um), caption, format="webp", dpi=140)


def _measurements(page: Page, run: Run) -> None:
    if run.summary is None or run.summary.n == 0:
        return
    page.add_section("Measurements")
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
        )  # fmt: skip
    if len(run.summary.per_slice) > 1:
        step = run.volume.voxel_um[0] if run.volume else 1.0
        depth = run.volume.shape[0] if run.volume else 0
        shown_slices = choose_slices(run.summary.per_slice, depth) if depth else []
        page.add_figure(
            figures.depth_profile(run.summary, step, shown_slices),
            "Cells along the depth; dotted: the slices shown. Steps or gaps point to damaged sections or blocks.",
            format="svg",
        )  # fmt: skip


def _regions(page: Page, run: Run) -> None:
    if run.regions is None:
        return
    page.add_section(
        "Regions", "Counts and volumes of a structure include everything below it; volumes are of this brain."
    )
    summary, densest = run.regions.summary(), run.regions.densest()
    if summary:
        page.add_figure(
            figures.region_bars(summary),
            "Structures that share no cell, obtained by splitting the one with most cells until there are twenty.",
            format="svg",
        )  # fmt: skip
        if densest:
            page.add_figure(
                figures.region_bars(densest, by="density"),
                "The densest structures of the finest level.",
                format="svg",
            )
    else:
        page.add_note("No structure holds a cell.")
    _region_summary(page, run)
    sides = ("left", "right", "both")
    columns = [
        "structure",
        "acronym",
        "id",
        *(f"cells {s}" for s in sides),
        *(f"per mm³ {s}" for s in sides),
        "mm³",
    ]
    rows = [
        [indented(r), r.acronym, str(r.id), *(r.count[s] for s in sides), *(_round(r.density(s)) for s in sides),
         r.volume_mm3["both"]]
        for r in run.regions.regions
        if r.count["both"] or r.volume_mm3["both"] > 0
    ]  # fmt: skip
    page.add_table(
        columns, rows, f"All {len(rows)} structures with volume or cells", collapsed=len(rows) > 40
    )


def _region_summary(page: Page, run: Run) -> None:
    """The regions asked for, with what lies in none of them and outside: the rows add up to all cells."""
    path = run.folder / SUMMARY_CSV
    if not path.is_file():
        return
    try:
        rows = read_summary(path)
    except BrainmapError as error:
        page.add_warning("The summary of regions could not be read:", [str(error)])
        return
    columns = [
        "region",
        "name",
        "cells left",
        "cells right",
        "cells both",
        "mm³",
        "per mm³",
        "per mm³ of atlas",
    ]
    level = run.record.execution.get("level") or "summary"
    page.add_table(
        columns, rows, f"{len(rows) - 2} regions at level {level}, the rest, and outside",
        collapsed=len(rows) > 40,
    )  # fmt: skip


def _registration(page: Page, run: Run) -> None:
    folder = run.registration
    elsewhere = run.record.parameters.get("registration")
    if not folder.is_dir() and elsewhere and Path(str(elsewhere)).is_dir():
        folder = Path(str(elsewhere))
    if not folder.is_dir():
        return
    page.add_section(
        "Registration",
        "The atlas laid over the brain. Outlines should follow the edges of the tissue and its layers.",
    )
    try:
        record = read_json(folder / "registration.json")
    except BrainmapError as error:
        page.add_warning("The registration's record could not be read:", [str(error)])
        record = {}
    record = record if isinstance(record, dict) else {}
    verdict, reasons = record.get("verdict"), [str(reason) for reason in record.get("reasons") or ()]
    if verdict == "good":
        page.add_note("By its numbers the registration is good.", reasons)
    elif verdict == "bad":
        page.add_error("By its numbers the registration is BAD:", reasons)
    elif verdict:
        page.add_warning(f"By its numbers the registration is {verdict}:", reasons)
    part = record.get("part")
    if isinstance(part, dict) and part.get("part") not in (None, "whole brain"):
        page.add_note(f"Registered as the {part['part']}: what is missing has no volume and no density.")
    for picture in sorted(folder.glob("*.png")):
        try:
            name = picture.stem.removeprefix("quality_")
            caption = _PICTURES.get(name, "borders of the atlas's structures, brought to the brain.")
            page.add_figure(picture, f"{name.replace('_', ' ').capitalize()}: {caption}")
        except (OSError, BrainmapError) as error:
            page.add_note(f"{picture.name} could not be shown: {error}")
    quality = record.get("quality")
    if isinstance(quality, dict):
        facts = [
            (name.replace("_um", " (µm)").replace("_", " "), plain(value)) for name, value in quality.items()
        ]
        page.add_facts(facts, title="Quality")
    _landmarks(page, record.get("landmarks"))


def _landmarks(page: Page, fit: Any) -> None:
    if not isinstance(fit, dict):
        return
    names = ("before_um", "after_um", "left_out_um")
    rows = [[row.get("name"), *(row.get(name) for name in names)] for row in fit.get("residuals") or ()]
    page.add_table(
        ["landmark", "missed before (µm)", "after (µm)", "if left out (µm)"],
        rows,
        f"{len(rows)} landmarks",
        collapsed=len(rows) > 12,
    )


def _provenance(page: Page, run: Run) -> None:
    record = run.record
    page.add_section("How this was made", "The same values as in run.json, for reading.")
    if record.timings_s:
        rows = [
            [name.replace("_", " "), float(seconds)]
            for name, seconds in record.timings_s.items()
            if is_number(seconds)
        ]
        page.add_table(["stage", "seconds"], rows, "Time", sortable=False)
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
    return f"brainmap {record.versions.get('brainmap', '')}, {when.replace('T', ' ')}"


def _round(value: float) -> float:
    return round(value) if value == value and abs(value) >= 100 else value
