"""What numbers of animals can find, as a table, curves and a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from brainmap.cohort.planning.power import Power
from brainmap.cohort.report.charts import render
from brainmap.cohort.tables import write_csv
from brainmap.errors import UsageError
from brainmap.files import atomic_path
from brainmap.report import style
from brainmap.report.html import Page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_power"]

COLUMNS = ("division", "animals_a_group", "chance_of_division", "share_of_regions")


def write_power(found: Power, out: str | Path) -> Path:
    """Write power.csv, power.svg and report.html.

    Raises
    ------
    UsageError
        If the folder holds something else.
    """
    out = Path(out)
    if out.exists() and any(out.iterdir()) and not (out / "power.csv").is_file():
        raise UsageError(f"{out} exists and holds something else; give another --out")
    out.mkdir(parents=True, exist_ok=True)
    rows = [
        (acronym, n, float(found.division[d, j]), float(found.region[d, j]))
        for d, acronym in enumerate(found.pilot.acronym)
        for j, n in enumerate(found.animals)
    ]
    write_csv(out / "power.csv", COLUMNS, rows)
    picture = render(_curves(found))
    with atomic_path(out / "power.svg") as temporary:
        temporary.write_bytes(picture)
    settings = found.settings
    page = Page(
        "Animals needed",
        f"for a change by {settings.effect:g} in {settings.share:.0%} of a division's regions",
    )
    page.add_text(f"{found.verdict()}.")
    page.add_figure(
        picture,
        "Chance that a division is called, and share of its changed regions that is called, by animals a group (two "
        "groups); dashed: what is wanted.",
    )
    names = [
        "division",
        "regions",
        "cells a region",
        "scatter between animals",
        "for the division",
        "for its regions",
    ]
    table = [[*row[:3], f"{row[3]:.0%}", *row[4:]] for row in found.rows()]
    page.add_table(names, table, f"Animals a group for a chance of {settings.power:.0%}")
    page.add_note(
        "The scatter is that of the animals at hand, and is itself known only as well as their number "
        "allows: with four "
        "animals it may be half or twice as large. Regions of fewer than ten cells in all are left out."
    )
    return page.write(out / "report.html")


def _curves(found: Power) -> Figure:
    figure = style.new_figure(9.5, 4.6)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, title, chances in zip(
        panels, ("Divisions", "Regions"), (found.division, found.region), strict=True
    ):
        style.clean(axes, title=title, x="animals a group", grid="both")
        for d, acronym in enumerate(found.pilot.acronym):
            line = "-" if d < len(style.CYCLE) else "--" if d < 2 * len(style.CYCLE) else ":"
            colour = style.CYCLE[d % len(style.CYCLE)]
            axes.plot(
                found.animals,
                chances[d],
                line,
                color=colour,
                linewidth=1.6,
                marker="o",
                markersize=3,
                label=acronym,
            )
        axes.axhline(found.settings.power, color=style.INK, linewidth=0.8, linestyle="--")
        axes.axvline(found.pilot.group_size, color=style.LINE, linewidth=1)
        axes.set_ylim(0, 1.02)
    panels[1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure
