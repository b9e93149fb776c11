"""The report of a study of selections: what was compared, what won, and how sure that is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brainmap.report.html import Page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from brainmap.crowd.loop.study_record import Study, StudyRequest

__all__ = ["write_study_report"]


def write_study_report(path: Path, request: StudyRequest, study: Study) -> Path:
    """Write the report of `brainmap crowd study`."""
    page = Page("Which tiles to annotate", f"{study.budget} tiles, spent in {len(study.designs)} ways")
    gain = study.everything[0] - study.nothing[0]
    mean, low, high = study.interval(gain)
    if low <= 0:
        page.add_warning(
            f"Learning from all tiles changes F1 by {mean:+.3f} ({low:+.3f} to {high:+.3f}): these data hardly "
            "teach this detector anything, and cannot tell selections apart"
        )
    page.add_section("What the review says, and these data")
    page.add_table(
        ["statement", "these data", "compared", "difference", "from", "to"],
        [[c.text, c.verdict, c.measure, c.mean, c.low, c.high] for c in study.claims],
        "Paired differences with 90 % intervals over animals that judge and selections drawn", sortable=False,
    )  # fmt: skip
    page.add_text(
        "Confirmed or contradicted: the whole interval is on one side of 0. As well: active or uncertain choice gains "
        f"less than 0.01. {len(study.f1)} repeats, each the mean of {request.draws} draws of animals; "
        f"{study.held_out} of {study.animals} animals judge in each."
    )
    page.add_section("All ways")
    page.add_figure(_chart(study), "Mean F1 on held-out animals", format="svg")
    rows: list[list[Any]] = [["nothing", None, None, *np.nanmean(study.nothing, axis=(1, 2))]]
    for k, d in enumerate(study.designs):
        means = [np.nanmean(values[:, k]) for values in (study.f1, study.auprc)]
        rows.append([d.strategy, d.animals, d.slices, *means])
    rows.append(["everything", None, None, *np.nanmean(study.everything, axis=(1, 2))])
    page.add_table(
        ["strategy", "animals", "slices", "F1", "AUPRC"], rows, "Means over animals that judge and repeats"
    )
    page.add_section("How to read this")
    page.add_text(
        "A detector is not trained for each selection: its scores are corrected by what its last layer says of the "
        "chosen tiles. Cells that the network does not propose cannot be learnt, and differences come out smaller than "
        "those of a whole training. A difference here is a reason to expect one there; none here proves nothing."
    )
    page.add_facts([
        ("tiles", request.tiles), ("truth", request.truth), ("detector", request.detector),
        ("tolerance", f"{request.tolerance_cells:g} cell diameters"), ("seed", request.seed),
    ])  # fmt: skip
    return page.write(path)


def _chart(study: Study) -> Figure:
    from brainmap.report.style import CYCLE, QUIET, clean, new_figure

    figure = new_figure(7.5, 3.4)
    axes = figure.subplots()
    strategies = list(dict.fromkeys(d.strategy for d in study.designs))
    styles = {"many": "-", "few": "--"}
    for k, strategy in enumerate(strategies):
        for slices in dict.fromkeys(d.slices for d in study.designs):
            own = [(d.animals, np.nanmean(study.f1[:, i])) for i, d in enumerate(study.designs)
                   if d.strategy == strategy and d.slices == slices]  # fmt: skip
            x, y = np.array(own, np.float64).T
            axes.plot(
                x,
                y,
                styles[slices],
                color=CYCLE[k],
                marker="o",
                markersize=3,
                label=f"{strategy}, {slices} slices",
            )
    for value, name in ((study.nothing, "no annotation"), (study.everything, "all tiles")):
        level = float(np.nanmean(value[0]))
        axes.axhline(level, color=QUIET, linewidth=0.8, linestyle=":")
        axes.annotate(
            name, (1.0, level), xycoords=("axes fraction", "data"), fontsize=7, va="bottom", ha="right"
        )
    axes.set_xscale("log", base=2)
    levels = sorted({d.animals for d in study.designs})
    axes.set_xticks(levels, [str(n) for n in levels])
    axes.minorticks_off()
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    clean(axes, x="animals that share the budget", y="F1", grid="y")
    return figure
