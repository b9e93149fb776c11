"""The report of a run folder: what ran, what was found, and whether a person may believe it.

Each section is written from its own file of the run folder; a missing or damaged one leaves a note in its place, so
that a run without an atlas, without cells, or whose brain has moved still gets a report.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.errors import BrainmapError, NotFoundError
from brainmap.evaluation import Evaluation, evaluate_points
from brainmap.matching import match_points
from brainmap.points import POINTS_PARQUET, Points, read_locations
from brainmap.provenance import RunRecord, read_json
from brainmap.report import figures
from brainmap.report.html import Page, format_value
from brainmap.report.region_rows import Region, RegionTree, read_regions
from brainmap.report.slices import choose_crops, choose_slices, read_crop, read_slice
from brainmap.report.summary import PointSummary, points_near, summarise_points
from brainmap.volume import Volume

__all__ = ["write_run_report"]

log = logging.getLogger(__name__)

REPORT = "report.html"
_DEFAULT_CELL_UM = 10.0
_CROP_CELLS = 28  # side of a close-up in cell diameters
_MANY_TRUE = 2_000_000  # more true cells than this are not matched for a page


@dataclass(frozen=True)
class _Run:
    """Everything the sections draw from; what could not be read is None."""

    folder: Path
    record: RunRecord
    volume: Volume | None
    points: Path | None
    summary: PointSummary | None
    regions: RegionTree | None
    truth: Points | None
    truth_regions: RegionTree | None

    @property
    def cell_um(self) -> float:
        """Expected diameter of a cell, um."""
        return float(_lookup(self.record, "cell_diameter_um") or _DEFAULT_CELL_UM)


def write_run_report(
    run_dir: str | Path,
    *,
    truth: str | Path | None = None,
    truth_regions: str | Path | None = None,
    volume: Volume | None = None,
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

    Raises
    ------
    NotFoundError, DataError
        If the folder has no readable ``run.json``.
    """
    folder = Path(run_dir)
    record = RunRecord.load(folder)
    problems: list[str] = []
    if volume is None:
        volume = _attempt(problems, lambda: _open_volume(record))
    table = folder / POINTS_PARQUET
    summary = _attempt(problems, lambda: summarise_points(table, volume.shape[0] if volume else 0))
    run = _Run(
        folder=folder,
        record=record,
        volume=volume,
        points=table if summary else None,
        summary=summary,
        regions=_optional(problems, folder / "regions.csv", read_regions),
        truth=_attempt(problems, lambda: read_locations(truth)) if truth else None,
        truth_regions=_optional(problems, Path(truth_regions), read_regions) if truth_regions else None,
    )
    page = Page(f"{_brain_name(run)}: detected cells", _subtitle(record))
    _head(page, run, problems)
    evaluation = _truth(page, run)
    _detections(page, run, evaluation is not None)
    _measurements(page, run)
    _regions(page, run)
    _registration(page, folder / "registration")
    _provenance(page, run)
    return page.write(folder / REPORT)


def _head(page: Page, run: _Run, problems: list[str]) -> None:
    record = run.record
    failed = record.blocks.get("failed") or {}
    reasons = [f"{k}: {v}" for k, v in failed.items()] if isinstance(failed, Mapping) else [str(f) for f in failed]
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
        page.add_note("No cells were detected. Look at the slices below: is this the right channel and threshold?")
    page.add_numbers(_key_numbers(run))
    page.add_facts(_input_facts(run), title="Brain")
    page.add_facts(_method_facts(run), title="Detection and atlas")


def _key_numbers(run: _Run) -> list[tuple[str, object]]:
    results, timings = run.record.results, run.record.timings_s
    seconds = timings.get("total") or sum(timings.values()) or None
    rate, memory = results.get("voxels_per_second"), results.get("peak_memory_bytes")
    values: list[tuple[str, object]] = [("cells", run.summary.n if run.summary else results.get("cells"))]
    if run.regions:
        values.append(("structures with cells", sum(region.count_direct["both"] > 0 for region in run.regions.regions)))
        share = 100 * run.regions.outside / max(run.summary.n if run.summary else 0, 1)
        values.append(("cells outside the atlas", f"{share:.1f} %"))
    values.append(("time", _duration(seconds)))
    if rate:
        values.append(("million voxels per second", f"{rate / 1e6:.1f}"))
    if memory:
        values.append(("peak memory", f"{memory / 2**30:.2f} GiB"))
    values.append(("status", run.record.status))
    return values


def _input_facts(run: _Run) -> list[tuple[str, object]]:
    record, volume = run.record, run.volume
    facts: list[tuple[str, object]] = [("Path", record.parameters.get("brain"))]
    if volume:
        names = volume.channel_names
        if volume.n_channels > 1 and volume.channel is not None:
            label = f" ({names[volume.channel]})" if names else ""
            facts.append(("Channel", f"{volume.channel}{label} of {volume.n_channels}"))
        facts.append(("Voxels (z, y, x)", " × ".join(f"{n:,}" for n in volume.shape)))
        facts.append(("Voxel size", " × ".join(f"{v:g}" for v in volume.voxel_um) + " µm"))
        extent = (n * v / 1000 for n, v in zip(volume.shape, volume.voxel_um, strict=True))
        facts.append(("Extent", " × ".join(f"{e:.3g}" for e in extent) + " mm"))
        facts.append(("Stored as", f"{volume.dtype}, {len(volume.levels)} levels"))
    orientation = record.parameters.get("orientation") or (volume.orientation if volume else None)
    facts.append(("Orientation", f"{orientation} (sides where z, y, x start)" if orientation else None))
    if record.parameters.get("roi"):
        facts.append(("Region of interest", _plain(record.parameters["roi"])))
    return facts


def _method_facts(run: _Run) -> list[tuple[str, object]]:
    record = run.record
    facts: list[tuple[str, object]] = [("Detector", _plain(record.parameters.get("detector")))]
    for label, key in (("Threshold", "threshold"), ("Cell diameter", "cell_diameter_um")):
        value = _lookup(record, key)
        unit = " µm" if key.endswith("_um") else ""
        facts.append((label, f"{format_value(value)}{unit}" if value is not None else "the detector's own"))
    atlas = record.parameters.get("atlas") or record.parameters.get("registration")
    facts.append(("Atlas", Path(str(atlas)).name if atlas else "none"))
    blocks = record.blocks
    count = ", ".join(f"{format_value(blocks[k])} {k}" for k in ("total", "done", "empty") if _is_count(blocks.get(k)))
    facts.append(("Blocks", count or None))
    for label, key in (("Backend", "backend"), ("Device", "device"), ("Workers", "workers")):
        value = record.execution.get(key, record.parameters.get(key))
        if value is not None:
            facts.append((label, _plain(value)))
    facts.append(("Processor", f"{record.machine.get('cpu')}, {record.machine.get('cores')} cores"))
    return facts


def _truth(page: Page, run: _Run) -> Evaluation | None:
    if run.truth is None or run.points is None or run.summary is None:
        return None
    if len(run.truth) > _MANY_TRUE or run.summary.n > _MANY_TRUE:
        page.add_note("There are too many cells to compare with the truth on this page; use brainmap evaluate.")
        return None
    found = Points.read(run.points)
    try:
        evaluation = evaluate_points(found, run.truth)
    except BrainmapError as error:
        page.add_warning("The cells could not be compared with the truth:", [str(error)])
        return None
    scores, unit = evaluation.scores, evaluation.unit.replace("um", "µm")
    page.add_section(
        "Against the truth",
        f"Every true cell is matched with at most one detection no farther than {evaluation.tolerance:g} "
        f"{unit} away, with the least total distance.",
    )
    page.add_numbers(
        [
            ("recall", f"{scores.recall:.3f}"),
            ("precision", f"{scores.precision:.3f}"),
            ("F1", f"{scores.f1:.3f}"),
            ("true cells", scores.tp + scores.fn),
            ("found", scores.tp),
            ("missed", scores.fn),
            ("false", scores.fp),
            ("mean distance", f"{evaluation.distance_mean:.2f} {unit}" if scores.tp else None),
        ]
    )
    curve = evaluation.curve
    if curve is not None and len(curve):
        page.add_figure(
            figures.score_curve(curve.threshold, curve.precision, curve.recall),
            "Precision and recall of the cells above each threshold of the score (only cells of this run).",
            format="svg", width="half",
        )  # fmt: skip
    if run.regions and run.truth_regions:
        page.add_figure(
            figures.counts_against_truth(run.regions, run.truth_regions),
            "Cells found and true cells, one point per structure and side.",
            format="svg", width="half",
        )  # fmt: skip
        page.add_table(*_truth_table(run.regions, run.truth_regions), "Counts beside the truth")
    return evaluation


def _truth_table(found: RegionTree, truth: RegionTree) -> tuple[list[str], list[list[object]]]:
    true = {region.id: region for region in truth.regions}
    rows: list[list[object]] = []
    for region in found.regions:
        if region.id in true and (region.count["both"] or true[region.id].count["both"]):
            other = true[region.id]
            pairs = [(region.count[s], other.count[s]) for s in ("left", "right", "both")]
            total = pairs[2]
            change = f"{100 * (total[0] - total[1]) / total[1]:+.1f} %" if total[1] else None
            rows.append([_indented(region), *(value for pair in pairs for value in pair), change])
    columns = ["structure"] + [f"{side}, {what}" for side in ("left", "right", "both") for what in ("found", "true")]
    return [*columns, "difference"], rows


def _detections(page: Page, run: _Run, scored: bool) -> None:
    if run.volume is None or run.summary is None or run.points is None:
        return
    volume, step = run.volume, run.volume.voxel_um[0]
    slices = choose_slices(run.summary.per_slice, volume.shape[0])
    reach = max(0.5, 1.1 * run.cell_um / step)  # light of a cell reaches a little beyond its body
    points = points_near(run.points, slices, reach)
    page.add_section(
        "Detections",
        f"Cells within {reach * step:.3g} µm above and below the slice, coloured by score (violet low, yellow high). "
        "Brightness is stretched from the 1st to the 99.7th percentile of each picture (gamma 0.75).",
    )
    overviews = [read_slice(volume, z) for z in slices]
    missed = _missed(run) if scored else None
    crops = choose_crops(volume, overviews, points, _CROP_CELLS * run.cell_um)
    if crops:
        page.add_subheading("Close-ups at full resolution")
        page.add_text("Solid circles: the centre lies in this slice; dotted: above or below it."
                      + (" Crosses: true cells that were not found." if missed is not None else ""))  # fmt: skip
        for crop in crops:
            near = points[slices.index(crop.z)]
            crosses = missed[np.abs(missed[:, 0] - crop.z) <= reach][:, 1:] if missed is not None else None
            figure = figures.closeup(read_crop(volume, crop), near, volume.voxel_um, run.cell_um, crosses)
            caption = f"{crop.title}: z {crop.z}, y {crop.y[0]} to {crop.y[1]}, x {crop.x[0]} to {crop.x[1]}."
            page.add_figure(figure, caption, format="webp", width="half")
    page.add_subheading("Whole slices")
    for image, near in zip(overviews, points, strict=True):
        depth_mm = (image.z + 0.5) * step / 1000
        caption = f"Slice z {image.z} ({depth_mm:.3g} mm deep): {len(near):,} cells."
        page.add_figure(figures.overview(image, near, volume.voxel_um), caption, format="webp", dpi=140)


def _missed(run: _Run) -> NDArray[np.float64] | None:
    """True cells (z, y, x level-0 voxels) that no detection matches at 10 um."""
    assert run.volume and run.points and run.truth is not None
    if any(name not in run.truth for name in "zyx"):
        return None
    true = run.truth.zyx_vox
    found = Points.read(run.points, ["z", "y", "x"]).zyx_vox
    match = match_points(found, true, 10.0, scale=run.volume.voxel_um)
    lost = np.ones(len(true), bool)
    lost[match.index_b] = False
    return true[lost]


def _measurements(page: Page, run: _Run) -> None:
    if run.summary is None or run.summary.n == 0:
        return
    page.add_section("Measurements")
    threshold = _lookup(run.record, "threshold")
    shown = len(next(iter(run.summary.sample.values()), np.zeros(0)))
    text = f" Signal to noise and diameter from an even sample of {shown:,} cells." if shown < run.summary.n else ""
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


def _regions(page: Page, run: _Run) -> None:
    if run.regions is None:
        return
    page.add_section("Regions", "Counts and volumes of a structure include everything below it; volumes are of this brain.")
    summary, densest = run.regions.summary(), run.regions.densest()
    if summary:
        page.add_figure(
            figures.region_bars(summary),
            "Structures that share no cell, obtained by splitting the one with most cells until there are twenty.",
            format="svg",
        )  # fmt: skip
        if densest:
            page.add_figure(
                figures.region_bars(densest, by="density"), "The densest structures of the finest level.", format="svg"
            )
    else:
        page.add_note("No structure holds a cell.")
    sides = ("left", "right", "both")
    columns = ["structure", "acronym", "id", *(f"cells {s}" for s in sides), *(f"per mm³ {s}" for s in sides), "mm³"]
    rows = [
        [_indented(r), r.acronym, str(r.id), *(r.count[s] for s in sides), *(_round(r.density(s)) for s in sides),
         r.volume_mm3["both"]]
        for r in run.regions.regions
        if r.count["both"] or r.volume_mm3["both"] > 0
    ]  # fmt: skip
    page.add_table(columns, rows, f"All {len(rows)} structures with volume or cells", collapsed=len(rows) > 40)


def _registration(page: Page, folder: Path) -> None:
    if not folder.is_dir():
        return
    page.add_section("Registration", "The atlas laid over the brain. Outlines should follow the edges of the tissue and its layers.")
    try:
        record = read_json(folder / "registration.json")
    except BrainmapError as error:
        page.add_warning("The registration's record could not be read:", [str(error)])
        record = {}
    record = record if isinstance(record, dict) else {}
    quality = record.get("quality")
    quality = dict(quality) if isinstance(quality, dict) else {}
    verdict = record.get("verdict", quality.pop("verdict", None))
    warnings = record.get("warnings", quality.pop("warnings", None)) or []
    if verdict:
        (page.add_note if str(verdict).lower() in ("good", "ok", "plausible", "pass") else page.add_warning)(
            f"Verdict: {_plain(verdict)}."
        )
    if warnings:
        page.add_warning("The registration deserves a look:", [str(w) for w in warnings])
    for picture in sorted(folder.glob("*.png")):
        try:
            page.add_figure(picture, picture.stem.replace("_", " ").capitalize())
        except (OSError, BrainmapError) as error:
            page.add_note(f"{picture.name} could not be shown: {error}")
    facts = [(name.replace("_", " "), _plain(value)) for name, value in quality.items()]
    if facts:
        page.add_facts(facts, title="Quality")


def _provenance(page: Page, run: _Run) -> None:
    record = run.record
    page.add_section("How this was made", "The same values as in run.json, for reading.")
    if record.timings_s:
        rows = [[name.replace("_", " "), float(seconds)] for name, seconds in record.timings_s.items() if _is_count(seconds)]
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
            rows_text = [[key, _plain(value)] for key, value in values.items()]
            page.add_table(["name", "value"], rows_text, title, sortable=False, collapsed=True)


def _open_volume(record: RunRecord) -> Volume:
    source = record.parameters.get("brain")
    if not source:
        raise NotFoundError("run.json does not say where the brain lies; no slices are shown")
    return Volume.open(
        str(source), channel=record.parameters.get("channel"), voxel_um=record.parameters.get("voxel_um") or None
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


def _lookup(record: RunRecord, key: str) -> Any:
    """A setting as it was used: from the results (which resolve defaults) or else as it was asked for."""
    for source in (record.results, record.execution, record.parameters):
        if source.get(key) is not None:
            return source[key]
    return None


def _brain_name(run: _Run) -> str:
    if run.volume:
        return run.volume.name
    return str(run.record.parameters.get("brain") or run.folder.name).rstrip("/").rsplit("/", 1)[-1]


def _subtitle(record: RunRecord) -> str:
    when = record.finished or record.started
    return f"brainmap {record.versions.get('brainmap', '')}, {when.replace('T', ' ')}"


def _plain(value: Any) -> Any:
    """A value of a JSON record as one line of text; numbers stay numbers."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {format_value(_plain(v))}" for key, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(format_value(_plain(v)) for v in value)
    return str(value)


def _indented(region: Region) -> str:
    return "\N{NO-BREAK SPACE}" * 3 * max(region.depth, 0) + region.name


def _round(value: float) -> float:
    return round(value) if value == value and abs(value) >= 100 else value


def _is_count(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
