"""report.html of a comparison: what changed, how sure, where; the animals behind it; how it was done."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from brainmap.cohort.checks import overall_density
from brainmap.cohort.model.statistics import CONFIDENCE, LEAST_CELLS, PSEUDO_CELLS
from brainmap.cohort.report import charts
from brainmap.cohort.report.brain import Brain, coronal_series
from brainmap.cohort.report.charts import Chart, title_of
from brainmap.cohort.report.methods import CITATIONS, methods_text
from brainmap.cohort.study import COUNT, Comparison, Study, overall_words
from brainmap.cohort.tables import write_csv
from brainmap.files import atomic_path
from brainmap.report.html import Page

__all__ = ["FIGURES_DIR", "write_report"]

FIGURES_DIR = "figures"

# An animal's own level matters if it scatters more than this (standard deviation of its logarithm).
_NOTABLE_LEVEL = 0.2


def write_report(study: Study, path: str | Path) -> Path:
    """Write the report of a comparison, and beside it every figure as SVG with its numbers as CSV."""
    path = Path(path)
    writer = _Writer(study, path.parent / FIGURES_DIR)
    writer.head()
    for one in study.comparisons:
        writer.comparison(one)
    writer.animals()
    writer.methods()
    return writer.page.write(path)


class _Writer:
    """Adds parts to the page and files to the folder of figures."""

    def __init__(self, study: Study, folder: Path) -> None:
        self.study, self.folder = study, folder
        self.page = Page("Comparison of groups", " against ".join(study.groups.names))
        self.brain = Brain.of(study)
        folder.mkdir(exist_ok=True)

    def head(self) -> None:
        study, page = self.study, self.page
        groups, settings = study.groups, study.settings
        page.add_numbers(
            [
                ("animals", len(study.table.groups)),
                ("regions", len(study.selection)),
                *((title_of(one), len(one.found)) for one in study.comparisons),
            ]
        )
        for warning in study.warnings:
            page.add_warning(warning)
        for note in study.notes:
            page.add_note(note)
        page.add_facts(
            [
                *(
                    (f"Group {name}", ", ".join(groups.labels[i] for i in groups.rows(name)))
                    for name in groups.names
                ),
                ("Design", study.design.formula),
                *(
                    (f"Column {c.name}", c.words(groups.values(c.name)))
                    for c in study.design.codings
                    if c.name != "group"
                ),
                ("Regions", f"{settings.level}{f' within {settings.within}' if settings.within else ''}"),
                ("Hemispheres", settings.hemisphere),
                ("Level of each animal", study.level_words()),
                *(
                    (f"Whole brain, {contrast.name}", overall_words(test))
                    for contrast, test in zip(study.design.contrasts, study.overall, strict=False)
                ),
                ("Called different", self._rule()),
            ]
        )

    def _rule(self) -> str:
        alpha = self.study.settings.alpha
        if self.study.divisions is not None and self.study.settings.family == "tree":
            return f"down the tree of divisions and regions, rate of false discoveries {alpha:g} (q_tree)"
        return f"all regions at once, rate of false discoveries {alpha:g} (q, Benjamini-Hochberg)"

    def chart(self, chart: Chart, width: str = "") -> None:
        """Show a chart and keep it as SVG with its numbers."""
        content = charts.render(chart.figure)
        with atomic_path(self.folder / f"{chart.name}.svg") as temporary:
            temporary.write_bytes(content)
        write_csv(self.folder / f"{chart.name}.csv", chart.columns, chart.rows)
        self.page.add_figure(content, chart.caption, width=width)

    def comparison(self, one: Comparison) -> None:
        study, page = self.study, self.page
        page.add_section(title_of(one))
        found = one.found
        page.add_text(
            f"{len(found)} of {one.tested} regions with {LEAST_CELLS} cells or more are called different at a rate of "
            f"false discoveries of {study.settings.alpha:g}."
        )
        self._scatter(one)
        if len(one.ranked) == 0:
            page.add_note("No region could be tested.")
            return
        name = _file_name(one)
        if one.measure != COUNT and len(study.comparisons) > 1:
            # Densities are a second opinion: their ratios and the table say enough.
            if one.is_ratio:
                self.chart(charts.by_division(study, one, f"{name}_regions"))
            self._table(one)
            return
        if one.is_ratio:
            self.chart(charts.by_division(study, one, f"{name}_regions"))
            self.chart(charts.volcano(study, one, f"{name}_volcano"), "half")
        self.chart(charts.p_values(study, one, f"{name}_p_values"), "half" if one.is_ratio else "")
        if one.is_ratio and self.brain is not None and one.measure == COUNT:
            self.chart(coronal_series(study, one, self.brain, f"{name}_brain"))
        self.chart(charts.heat_map(study, one, f"{name}_animals"))
        self.chart(charts.top_animals(study, one, f"{name}_densities"))
        self._table(one)

    def _scatter(self, one: Comparison) -> None:
        """What animals of one group differ by, in words."""
        scatter = one.result.scatter
        if scatter is None or one.measure != COUNT:
            return
        shared = math.sqrt(scatter.shared)
        borrowed = (
            f"{scatter.prior_freedom:.1f}"
            if math.isfinite(scatter.prior_freedom)
            else "all: they scatter alike"
        )
        self.page.add_facts(
            [
                ("Animals of a group differ in all regions together by", f"{shared:.0%}"),
                ("and region by region by", f"{math.sqrt(scatter.dispersion):.0%}"),
                ("Degrees of freedom that each region borrows from the others", borrowed),
            ],
            title="Scatter between animals (coefficient of variation, counting chance apart)",
        )
        if shared > _NOTABLE_LEVEL and not self.study.levels_divided_out:
            self.page.add_note(
                "Animals of one group differ much in all regions together (staining, clearing, state). A difference of "
                "single regions is seen better with --relative, which divides out each animal's level; a difference of "
                "the whole brain is not seen with it at all."
            )

    def _table(self, one: Comparison) -> None:
        study, result = self.study, one.result
        per_mm3 = [
            f"per mm\N{SUPERSCRIPT THREE}, {name}"
            for name in (one.contrast.group_a or "a", one.contrast.group_b or "b")
        ]
        columns = [
            "region", "acronym", *per_mm3, "ratio", f"{CONFIDENCE:.0%} interval", "in SDs", "pooled ratio",
            "sign in doubt", "n", "p", "q", "q, tree", "called",
        ]  # fmt: skip
        pooled = one.shrunk
        rows = [
            [
                study.selection.name[i], study.selection.acronym[i], result.density_a[i], result.density_b[i],
                _three(2.0 ** result.log2_ratio[i]), _interval(2.0 ** result.low[i], 2.0 ** result.high[i]),
                _three(one.effect[i]), np.nan if pooled is None else _three(2.0 ** pooled.log2_ratio[i]),
                np.nan if pooled is None else _three(pooled.lfsr[i]),
                f"{one.n_a[i]}, {one.n_b[i]}" if one.contrast.group_a else str(one.n[i]),
                result.p[i], one.q[i], one.q_tree[i], "yes" if one.called[i] else "",
            ]
            for i in one.ranked
        ]  # fmt: skip
        self.page.add_table(
            columns, rows, f"All {len(rows)} tested regions, smallest p first", collapsed=len(rows) > 40
        )

    def animals(self) -> None:
        study, page = self.study, self.page
        page.add_section("The animals", "Whether the runs behind the comparison are alike.")
        groups = study.table.groups
        density = overall_density(study.table)
        cells = study.table.count[:, ~np.isin(study.table.parent_id, study.table.id), 2].sum(axis=1)
        missing = (
            (study.missing.code > 0).any(axis=2).sum(axis=1) if len(study.groups) == len(groups) else None
        )
        rows = [
            [
                groups.labels[i], groups.group[i], int(cells[i]), density[i],
                np.nan if study.levels is None else _three(study.levels.factor[i]),
                study.table.verdicts[i] or "not known",
                np.nan if missing is None else int(missing[i]), groups.run[i].name,
            ]
            for i in range(len(groups))
        ]  # fmt: skip
        names = [
            "animal",
            "group",
            "cells",
            "per mm\N{SUPERSCRIPT THREE}",
            "level",
            "registration",
            "regions missing",
            "run",
        ]
        page.add_table(names, rows, "Runs")
        if (chart := charts.levels(study, "levels")) is not None:
            self.chart(chart)
        if np.isfinite(study.missing.log2_factor).any():
            self.chart(charts.quality(study, "quality"))

    def methods(self) -> None:
        page = self.page
        page.add_section("Methods", "For a paper: what was done here, with the numbers of this analysis.")
        page.add_text(methods_text(self.study))
        page.add_note("References", CITATIONS)
        page.add_section("How to read this")
        page.add_text(
            "Ratios above 1 (log2 above 0) mean more cells per volume in the second group than in the first. "
            "Densities, "
            "ratios, effects and p-values of a row belong together: they come from one model, at the same level of the "
            f"animals. Ratios of counts have {PSEUDO_CELLS:g} of a cell added to each side, so that they are "
            "finite without "
            f"cells. Regions with fewer than {LEAST_CELLS} cells in all animals have q = 1 and do not count in the "
            "correction."
            "\n\n"
            "Pooled ratios and the chance that their sign is in doubt (local false sign rate) borrow from "
            "the other regions "
            "of a division; they are a second opinion, not a second list to choose from."
            "\n\n"
            "Other measures, hemispheres, levels or designs tried until something is found are not corrected "
            "for. With few "
            "animals a region that is not called different may still differ: look at its interval."
        )


def _file_name(one: Comparison) -> str:
    text = f"{one.contrast.name}_{'counts' if one.measure == COUNT else 'densities'}_{one.hemisphere}"
    return "".join(c if c.isalnum() or c in "._" else "-" for c in text)


def _three(value: float) -> float:
    """Three digits are more than the data know."""
    return float(f"{value:.3g}")


def _interval(low: float, high: float) -> str:
    return f"{low:.3g} to {high:.3g}" if math.isfinite(low) and math.isfinite(high) else ""
