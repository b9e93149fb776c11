"""report.html of a comparison: what was found, the animals behind it, and whether the tests can be trusted."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brainmap.cohort import figures
from brainmap.cohort.statistics import CONFIDENCE, COUNT_TEST, DENSITY_TEST, LEAST_CELLS, PSEUDO_CELLS
from brainmap.cohort.study import Comparison, Study
from brainmap.report.html import Page

__all__ = ["write_report"]

_SHOWN = 20
_DRAWN = 8
# An animal's own level matters if it scatters more than this (standard deviation of its logarithm).
_NOTABLE_LEVEL = 0.2

_TESTS = {
    COUNT_TEST: (
        "Counts by a negative binomial regression with log volume as offset: a quasi-likelihood score test against the "
        "scatter between animals of one group, which all regions together steady."
    ),
    DENSITY_TEST: "Densities by Welch's t-test, each region by itself, without covariates.",
}


def write_report(study: Study, path: str | Path) -> Path:
    """Write the report of a comparison."""
    groups, settings = study.groups, study.settings
    page = Page("Comparison of groups", " against ".join(groups.names))
    page.add_numbers(
        [
            ("animals", len(groups)),
            ("regions", len(study.selection)),
            *((_title(one), len(one.found(settings.alpha))) for one in study.comparisons),
        ]
    )
    for warning in study.warnings:
        page.add_warning(warning)
    page.add_facts(
        [
            *(
                (f"Group {name}", ", ".join(groups.animal[i] for i in groups.rows(name)))
                for name in groups.names
            ),
            ("Regions", f"{settings.level}{f' within {settings.within}' if settings.within else ''}"),
            ("Hemispheres", settings.hemisphere),
            ("Covariates", ", ".join(groups.covariates) or "none"),
            ("Level of each animal", "divided out" if settings.relative else "kept"),
            ("Called different", f"q (Benjamini-Hochberg) up to {settings.alpha:g}"),
        ]
    )
    for one in study.comparisons:
        _comparison(page, study, one)
    _how_to_read(page, study)
    return page.write(path)


def _comparison(page: Page, study: Study, one: Comparison) -> None:
    measure = "counts" if one.measure == "count" else "densities"
    side = {"both": "both hemispheres", "left": "left hemisphere", "right": "right hemisphere"}[
        one.hemisphere
    ]
    page.add_section(f"{one.group_b} against {one.group_a}: {measure}, {side}", _TESTS[one.test])
    found = one.found(study.settings.alpha)
    page.add_text(
        f"{len(found)} of {one.tested} regions with {LEAST_CELLS} cells or more differ at a rate of false "
        f"discoveries of {study.settings.alpha:g}."
    )
    _scatter(page, study, one)
    page.add_figure(
        figures.overview(study, one),
        "Left: every region; red: called different. Right: without any difference the p-values are level (dashed), but "
        "for a bar at the right where regions have hardly a cell; a peak at the left is differences.",
        format="svg",
    )
    ranked = _ranked(one)
    if len(ranked) == 0:
        page.add_note("No region could be tested.")
        return
    if np.isfinite(one.low[ranked]).any():
        page.add_figure(
            figures.intervals(study, one, ranked[:_SHOWN]),
            f"Ratios of the {min(_SHOWN, len(ranked))} regions of smallest p, with {CONFIDENCE:.0%} intervals.",
            format="svg",
        )
    page.add_figure(
        figures.animals(study, one.hemisphere, ranked[:_DRAWN], (one.group_a, one.group_b)),
        "Cells per mm\N{SUPERSCRIPT THREE} of every animal in the regions of smallest p; bars: means.",
        format="svg",
    )
    _table(page, study, one, ranked)


def _title(one: Comparison) -> str:
    measure = "counts" if one.measure == "count" else "densities"
    side = {"both": "both hemispheres", "left": "left hemisphere", "right": "right hemisphere"}[
        one.hemisphere
    ]
    return f"{one.group_b} against {one.group_a}: {measure}, {side}"


def _scatter(page: Page, study: Study, one: Comparison) -> None:
    """What animals of one group differ by, in words."""
    if one.scatter is None:
        return
    shared = math.sqrt(one.scatter.shared)
    own = math.sqrt(one.scatter.dispersion)
    page.add_facts(
        [
            ("Animals of a group differ in all regions together by", f"{math.expm1(shared):.0%}"),
            ("and region by region by", f"{math.expm1(own):.0%}"),
            (
                "Degrees of freedom that each region borrows from the others",
                _freedom(one.scatter.prior_freedom),
            ),
        ],
        title="Scatter between animals (one standard deviation)",
    )
    if shared > _NOTABLE_LEVEL and not study.settings.relative:
        page.add_note(
            "Animals of one group differ much in all regions together (staining, clearing, state). A difference of "
            "single regions is seen better with --relative, which divides out each animal's level; a difference of "
            "the whole brain is not seen with it at all."
        )


def _freedom(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else "all: regions scatter alike"


def _ranked(one: Comparison) -> NDArray[np.intp]:
    """Tested regions, smallest p first; among equal p the largest effect."""
    size = np.nan_to_num(np.abs(one.effect))
    order = np.lexsort((-size, np.nan_to_num(one.p, nan=2.0)))
    return order[np.isfinite(one.p[order])]


def _table(page: Page, study: Study, one: Comparison, ranked: NDArray[np.intp]) -> None:
    low_g, high_g = one.effect_interval
    columns = ["region", "acronym", f"mean {one.group_a}", f"mean {one.group_b}", "ratio", "interval",
               "Hedges' g", "interval of g", "p", "q"]  # fmt: skip
    rows = [
        [
            study.selection.name[i], study.selection.acronym[i], one.means.mean_a[i], one.means.mean_b[i],
            _three(2.0 ** one.log2_ratio[i]), _interval(2.0 ** one.low[i], 2.0 ** one.high[i]),
            _three(one.effect[i]), _interval(low_g[i], high_g[i]), one.p[i], one.q[i],
        ]
        for i in ranked
    ]  # fmt: skip
    page.add_table(
        columns, rows, f"All {len(rows)} tested regions, smallest p first", collapsed=len(rows) > 40
    )


def _three(value: float) -> float:
    """Three digits are more than the data know."""
    return float(f"{value:.3g}")


def _interval(low: float, high: float) -> str:
    return f"{low:.3g} to {high:.3g}" if math.isfinite(low) and math.isfinite(high) else ""


def _how_to_read(page: Page, study: Study) -> None:
    page.add_section("How to read this")
    first = study.groups.names[0]
    page.add_text(
        "Ratios and effects are of the second group over the first; a ratio above 1 (log2 above 0) means more cells "
        f"than in the first ({first} where it takes part). Ratios have {PSEUDO_CELLS:g} of a cell added to each group, "
        f"so that they are finite without cells. Regions with fewer than {LEAST_CELLS} cells in all animals have "
        "q = 1 and do not count in the correction."
        "\n\n"
        "q is the Benjamini-Hochberg adjusted p-value within one family: one pair of groups, one measure, one "
        "hemisphere, all regions of the level with enough cells. Among regions with q up to "
        f"{study.settings.alpha:g} that share is expected to be false. Regions that contain each other do not count "
        "twice as findings; other measures, hemispheres or levels tried until something is found are not corrected for."
        "\n\n"
        "With few animals a region that is not called different may still differ: look at its interval."
    )
