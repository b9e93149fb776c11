"""The report of a round: what the crowd did, what the detector learnt, what was hard, what to do next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from brainmap.gt.truth import GroundTruth
from brainmap.report.html import Page
from brainmap.tiles.tiles import Tiles

__all__ = ["write_failed_round", "write_round_report"]

# Tiles shown as the hardest.
_SHOWN = 6


def write_round_report(
    path: Path,
    project: str,
    start: str,
    out: Path,
    verdict: dict[str, Any],
    hard: list[tuple[str, int, int, int]],
) -> Path:
    """Write the report of a finished round.

    Parameters
    ----------
    path : Path
    project, start : str
        The site's project; the detector that the round began with.
    out : Path
        Folder of the round.
    verdict : dict
        As `brainmap.crowd.loop.round` writes it.
    hard : list of (image_id, workers, cells, candidates in doubt)
        The hardest first.
    """
    page = Page(f"Round of {project}", f"from {start}")
    if verdict["switch"]:
        page.add_note(f"Switch to the new detector: {verdict['reason']}.")
    else:
        page.add_warning(f"Keep the old detector: {verdict['reason']}.")
    page.add_numbers([
        ("workers", verdict["workers"]), ("clicks", verdict["clicks"]), ("tiles", verdict["tiles"]),
        ("cells agreed on", verdict["cells"]), ("candidates in doubt", verdict["undecided"]),
    ])  # fmt: skip
    page.add_section(
        "Old and new detector", "Judged on whole slices that neither learnt from; 90 % intervals."
    )
    page.add_table(
        ["measure", "old", "new", "difference", "from", "to"],
        [[title, d["old"], d["new"], d["new"] - d["old"], d["low"], d["high"]]
         for title, d in (("F1", verdict["f1"]), ("AUPRC", verdict["auprc"]))],
        f"{verdict['held_out_cells']} cells on {verdict['held_out_tiles']} held-out tiles", sortable=False,
    )  # fmt: skip
    page.add_text("The full comparison is retrain/report.html, the aggregation gt/report.html.")
    _hard(page, out, hard)
    page.add_section("Next", "New tiles like those that were hard, from the same runs:")
    page.add_text(f"brainmap crowd sample RUN ... --strategy uncertain --truth {out / 'gt'} --out TILES")
    return page.write(path)


def write_failed_round(path: Path, project: str, out: Path, reason: str) -> Path:
    """Write the report of a round that could not retrain."""
    page = Page(f"Round of {project}")
    page.add_error(f"No detector was trained: {reason}")
    page.add_text(
        f"The clicks are in {out / 'export'}, the ground truth is in {out / 'gt'}; both are kept. Collect more and "
        "begin another round, or give the same command again."
    )
    return page.write(path)


def _hard(page: Page, out: Path, hard: list[tuple[str, int, int, int]]) -> None:
    page.add_section(
        "What was hard", "Candidates whose posterior lies between 0.1 and 0.9: the workers disagree."
    )
    page.add_table(
        ["tile", "workers", "cells", "in doubt"], hard, "All tiles, the hardest first", max_rows=50
    )
    tiles, truth = Tiles.open(out / "export" / "tiles"), GroundTruth.open(out / "gt")
    row_of = {str(name): row for row, name in enumerate(tiles.ids)}
    shown = [row for row in hard if row[0] in row_of and row[3]][:_SHOWN]
    if not shown:
        return
    from brainmap.report.style import ORANGE, SKY, new_figure, picture_axes

    columns = min(3, len(shown))
    figure = new_figure(3.6 * columns, 3.8 * -(-len(shown) // columns))
    axes: Any = figure.subplots(-(-len(shown) // columns), columns, squeeze=False)
    for axis in axes.ravel()[len(shown) :]:
        axis.set_visible(False)
    for axis, (name, _, _, doubt) in zip(axes.ravel(), shown, strict=False):
        picture_axes(axis, f"{name}: {doubt} in doubt")
        axis.imshow(tiles.image(row_of[name]), cmap="gray", vmin=0, vmax=1)
        xy, _, posterior = truth.points(name)
        for colour, use in ((SKY, posterior >= 0.9), (ORANGE, (posterior > 0.1) & (posterior < 0.9))):
            axis.scatter(*np.asarray(xy[use]).T, s=30, facecolors="none", edgecolors=colour, linewidths=0.9)
    page.add_figure(figure, "Blue: cells the workers agree on; orange: in doubt", format="webp")
