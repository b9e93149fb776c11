"""How many cells other thresholds would give: `thresholds.csv`, and its part of a report."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from brainmap.atlas.region_sets import DIVISIONS
from brainmap.errors import BrainmapError, DataError, NotFoundError
from brainmap.report import style
from brainmap.report.html import Page
from brainmap.run_folder import THRESHOLDS_CSV

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from brainmap.report.region_rows import RegionTree
    from brainmap.report.run_facts import Run

__all__ = [
    "ALL_ID",
    "FIRST_COLUMNS",
    "ThresholdCounts",
    "add_threshold_counts",
    "threshold_curves",
]

#: The table in a run folder.
#: Columns before those of the thresholds, whose names are the thresholds themselves.
FIRST_COLUMNS = ("region_id", "acronym", "name", "parent_id", "depth")
#: Id of the row that counts the whole image.
ALL_ID = -1
# Thresholds in the report's table: more are not read.
_COLUMNS = 8


@dataclass(frozen=True)
class ThresholdCounts:
    """Cells at growing thresholds.

    Attributes
    ----------
    thresholds : float64 array (T,)
        Growing.
    acronym, name : tuples of str
        Of the rows; the first is the whole image.
    counts : int64 array (rows, T)
        Cells with at least that score, those of descendants included.
    """

    thresholds: NDArray[np.float64]
    acronym: tuple[str, ...]
    name: tuple[str, ...]
    counts: NDArray[np.int64]

    @classmethod
    def read(cls, path: str | Path) -> ThresholdCounts:
        """Read a `thresholds.csv`.

        Raises
        ------
        NotFoundError, DataError
            If it is not there, or not such a table.
        """
        path = Path(path)
        if not path.is_file():
            raise NotFoundError(f"there is no table of thresholds {path}")
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file)) or [[]]
        first = len(FIRST_COLUMNS)
        try:
            thresholds = np.array([float(name) for name in header[first:]])
            counts = np.array([[int(value) for value in row[first:]] for row in rows], np.int64)
            if not rows or int(rows[0][0]) != ALL_ID or counts.shape != (len(rows), len(thresholds)):
                raise ValueError("rows or columns are missing")
            return cls(thresholds, tuple(r[1] for r in rows), tuple(r[2] for r in rows), counts)
        except (ValueError, IndexError) as error:
            raise DataError(f"{path} is not a table of thresholds: {error}") from error

    def rows_of(self, acronyms: Iterable[str]) -> list[int]:
        """Rows of the structures that hold candidates, by falling count; the whole image where there are none."""
        rows = [self.acronym.index(name) for name in acronyms if name in self.acronym]
        return sorted((row for row in rows if self.counts[row, 0]), key=lambda row: -self.counts[row, 0]) or [
            0
        ]


def add_threshold_counts(page: Page, run: Run) -> None:
    """Add the counts over the threshold to a report; nothing where the run has none."""
    path = run.folder / THRESHOLDS_CSV
    if not path.is_file():
        return
    try:
        counts = ThresholdCounts.read(path)
    except BrainmapError as error:
        page.add_warning("The counts over the threshold could not be read:", [str(error)])
        return
    raw = run.record.results.get("threshold")
    threshold = None if raw is None else float(raw)
    rows = counts.rows_of(_divisions(run.regions))
    page.add_subheading("Counts over the threshold")
    page.add_text(
        "How much the numbers depend on the threshold: from the candidates kept in the run folder. A new one needs no "
        "second run: brainmap regions RUN --threshold F."
    )
    what = (
        "whole image"
        if rows == [0]
        else f"the {min(len(rows), len(style.CYCLE))} structures with most candidates"
    )
    page.add_figure(
        threshold_curves(counts, rows, threshold),
        f"Cells at or above each threshold, {what}; dashed: the threshold of this report.",
        format="svg",
    )
    chosen = _few(counts.thresholds, threshold)
    shown = [0, *rows] if rows != [0] else rows
    page.add_table(
        ["structure", *(f"{counts.thresholds[i]:g}" for i in chosen)],
        [[_label(counts, row), *(int(counts.counts[row, i]) for i in chosen)] for row in shown],
        "Cells at several thresholds",
        collapsed=len(shown) > 20,
    )


def threshold_curves(counts: ThresholdCounts, rows: list[int], threshold: float | None = None) -> Figure:
    """Cells over the threshold on a logarithmic scale, a curve for each of the first structures."""
    figure = style.new_figure(11.0, 2.8)
    axes = style.clean(figure.subplots(), x="threshold of the score", y="cells", grid="both")
    for row, colour in zip(rows, style.CYCLE, strict=False):
        axes.plot(
            counts.thresholds, counts.counts[row], color=colour, label=_label(counts, row), linewidth=1.4
        )
    if threshold is not None:
        axes.axvline(threshold, color=style.RED, linewidth=1.2, linestyle="--")
    axes.set_xlim(0, 1)
    axes.set_yscale("symlog", linthresh=10)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _divisions(regions: RegionTree | None) -> list[str]:
    """Acronyms of structures that share no cell: the large divisions, or those of an atlas without them."""
    if regions is None:
        return []
    known = {region.acronym for region in regions.regions}
    if known.issuperset(DIVISIONS):
        return list(DIVISIONS)
    return [region.acronym for region in regions.summary(12)]


def _label(counts: ThresholdCounts, row: int) -> str:
    return counts.name[row] if len(counts.name[row]) <= 32 else counts.acronym[row]


def _few(thresholds: NDArray[np.float64], threshold: float | None) -> list[int]:
    """Evenly spread columns, the one nearest the threshold in force among them."""
    chosen = set(
        np.linspace(0, len(thresholds) - 1, min(_COLUMNS, len(thresholds))).round().astype(int).tolist()
    )
    if threshold is not None:
        chosen.add(int(np.argmin(np.abs(thresholds - threshold))))
    return sorted(chosen)
