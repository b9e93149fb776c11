"""The section of a run's report that compares its cells with the truth, where that is known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from brainmap.errors import BrainmapError
from brainmap.points.evaluation import Evaluation, evaluate_points
from brainmap.points.matching import match_points
from brainmap.points.table import Points
from brainmap.report import figures
from brainmap.report.html import Page
from brainmap.report.region_rows import RegionTree
from brainmap.report.run_facts import Run, indented

__all__ = ["add_truth", "missed_cells"]

_MANY_TRUE = 2_000_000  # more cells than this are not matched for a page


def add_truth(page: Page, run: Run) -> Evaluation | None:
    """Add the section, if the run has a truth; returns the scores, or None without them."""
    if run.truth is None or run.points is None or run.summary is None:
        return None
    if len(run.truth) > _MANY_TRUE or run.summary.n > _MANY_TRUE:
        page.add_note(
            "There are too many cells to compare with the truth on this page; use brainmap evaluate."
        )
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
            rows.append([indented(region), *(value for pair in pairs for value in pair), change])
    columns = ["structure"] + [
        f"{side}, {what}" for side in ("left", "right", "both") for what in ("found", "true")
    ]
    return [*columns, "difference"], rows


def missed_cells(run: Run) -> NDArray[np.float64] | None:
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
