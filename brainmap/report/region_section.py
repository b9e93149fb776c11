"""The regions of a run: the largest, all of them with a search, and how far their counts rest on borders."""

from __future__ import annotations

import numpy as np

from brainmap.errors import BrainmapError
from brainmap.report.borders import BorderRange
from brainmap.report.html import Page
from brainmap.report.region_rows import Region, read_summary
from brainmap.report.run_facts import Run, indented
from brainmap.run_folder import REGIONS_CSV, SUMMARY_CSV

__all__ = ["add_regions"]

_SIDES = ("left", "right", "both")
#: Structures named in the note on borders.
_NAMED = 8


def add_regions(page: Page, run: Run, ranges: dict[int, BorderRange], error_um: float) -> None:
    """Add the section, where cells were counted per region.

    Parameters
    ----------
    page : Page
    run : Run
    ranges : dict
        By structure, see `brainmap.report.borders`; empty where they are not known.
    error_um : float
        By how much borders were moved for them.
    """
    if run.regions is None:
        return
    page.add_section(
        "Regions",
        f"Counts and volumes of a structure include everything below it; volumes are of this brain. {REGIONS_CSV} "
        "beside this page holds every column.",
    )
    summary, densest = run.regions.summary(), run.regions.densest()
    if summary:
        page.add_bars(
            [(_label(region), [region.count[side] for side in _SIDES[:2]]) for region in summary],
            _SIDES[:2],
            "Cells in structures that share none; the one with most is split until there are twenty.",
        )
    else:
        page.add_note("No structure holds a cell.")
    _all_regions(page, run, ranges, error_um)
    if ranges:
        _borders(page, run, ranges, error_um)
    if densest:
        page.add_subheading("Densest structures")
        page.add_bars(
            [(_label(region), [region.density(side) for side in _SIDES[:2]]) for region in densest],
            _SIDES[:2],
            "Cells per mm³ in structures of the finest level.",
        )
    _region_summary(page, run)


def _all_regions(page: Page, run: Run, ranges: dict[int, BorderRange], error_um: float) -> None:
    assert run.regions is not None
    moved = f"if borders are {error_um:.0f} µm off"
    columns = ["structure", "cells", "left", "right", *([moved] if ranges else []), "per mm³", "left per mm³",
               "right per mm³", "mm³", "acronym", "id"]  # fmt: skip
    shown = [r for r in run.regions.regions if r.count["both"] or r.volume_mm3["both"] > 0]
    rows: list[list[object]] = [
        [
            indented(r), *(r.count[s] for s in ("both", "left", "right")),
            *([_span(ranges.get(r.id))] if ranges else []),
            *(_round(r.density(s)) for s in ("both", "left", "right")), r.volume_mm3["both"], r.acronym, str(r.id),
        ]
        for r in shown
    ]  # fmt: skip
    page.add_table(
        columns,
        rows,
        f"All {len(rows)} structures with volume or cells",
        search=True,
        download="regions_shown.csv",
        places=[str(r.id) for r in shown],
    )


def _borders(page: Page, run: Run, ranges: dict[int, BorderRange], error_um: float) -> None:
    """Say of which structures the count is too high because it gains over the border."""
    assert run.regions is not None
    gaining = [
        (region, found)
        for region in run.regions.regions
        if (found := ranges.get(region.id)) is not None and found.likely is not None
    ]
    # A structure whose parts are named is not named again.
    parents = {region.parent_id for region, _ in gaining}
    gaining = [(r, f) for r, f in gaining if r.id not in parents]
    gaining.sort(key=lambda pair: (pair[1].likely or 0.0) - pair[1].count)
    text = (
        f"The column “if borders are {error_um:.0f} µm off” counts all cells anew after they were moved by so much "
        "against the atlas, in twelve directions: from the least count to the most. Differences between animals that "
        "are smaller than that may be differences of their registrations."
    )
    if not gaining:
        page.add_note(text)
        return
    named = [
        f"{r.name}: {f.count:,.0f} cells counted; perhaps only {f.likely:,.0f} are its own."
        for r, f in gaining[:_NAMED]
    ]
    if len(gaining) > _NAMED:
        named.append(f"... and {len(gaining) - _NAMED} more")
    page.add_note(
        f"{text} Some structures are thin beside dense neighbours, or nearly empty: wherever their border is off they "
        "gain cells and hardly lose any, so their counts may be too high. What is left without that gain, if the "
        f"borders are off by {error_um:.0f} µm (to first order):",
        named,
        [str(r.id) for r, _ in gaining[:_NAMED]] + [""] * (len(named) > _NAMED),
    )


def _span(found: BorderRange | None) -> str:
    if found is None:
        return ""
    low = found.low if found.likely is None else min(found.low, found.likely)
    return f"{low:,.0f} – {found.high:,.0f}"


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
        columns, rows, f"{len(rows) - 2} regions at level {level}, the rest, and outside", collapsed=True, search=True,
        download="regions_summary_shown.csv",
    )  # fmt: skip


def _label(region: Region) -> str:
    return region.name if region.name == region.acronym else f"{region.name} ({region.acronym})"


def _round(value: float) -> float:
    return float(np.round(value)) if value == value and abs(value) >= 100 else value
