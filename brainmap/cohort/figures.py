"""The pictures of a comparison: volcano, p-values, intervals, and the animals behind the clearest differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from brainmap.cohort.study import Comparison, Study
from brainmap.cohort.table import SIDES
from brainmap.report import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["animals", "intervals", "overview"]

Floats = NDArray[np.float64]

_LABELLED = 10
_LEAST_P = 1e-12  # lower ones are drawn here


def overview(study: Study, one: Comparison) -> Figure:
    """Volcano plot and histogram of p-values beside each other."""
    figure = style.new_figure(11.0, 4.2)
    volcano, histogram = figure.subplots(1, 2, width_ratios=[3, 2])
    _volcano(volcano, study, one)
    known = one.p[np.isfinite(one.p) & (one.means.mean_a + one.means.mean_b > 0)]
    edges = np.linspace(0, 1, 21)
    style.clean(histogram, title="p-values", x="p", y="regions", grid="y")
    histogram.hist(known, edges, color=style.SKY)
    histogram.axhline(len(known) / 20, color=style.QUIET, linewidth=1, linestyle="--")
    histogram.set_xlim(0, 1)
    return figure


def _volcano(axes: Axes, study: Study, one: Comparison) -> None:
    found = one.found(study.settings.alpha)
    x = f"log2 of {one.group_b} over {one.group_a}"
    style.clean(axes, title="Size and certainty", x=x, y="-log10 p", grid="both")
    height = -np.log10(np.maximum(one.p, _LEAST_P))
    rest = np.setdiff1d(np.flatnonzero(np.isfinite(height)), found)
    axes.scatter(one.log2_ratio[rest], height[rest], s=12, color=style.QUIET, alpha=0.5, linewidths=0)
    label = f"q up to {study.settings.alpha:g}: {len(found)}"
    axes.scatter(one.log2_ratio[found], height[found], s=22, color=style.RED, linewidths=0, label=label)
    axes.axvline(0, color=style.LINE, linewidth=1)
    reach = 1.25 * max(1.0, float(np.nanmax(np.abs(one.log2_ratio), initial=1.0)))
    axes.set_xlim(-reach, reach)
    axes.set_ylim(0, 1.12 * max(1.5, float(np.nanmax(height, initial=1.5))))
    for i in _apart(one.log2_ratio, height, found, axes.get_ylim()[1]):
        right = one.log2_ratio[i] > 0
        axes.annotate(
            _short(study.selection.acronym[i]), (one.log2_ratio[i], height[i]), (4 if right else -4, 0),
            textcoords="offset points", ha="left" if right else "right", va="center", fontsize=8, color=style.INK,
        )  # fmt: skip
    axes.legend(frameon=False, fontsize=9, loc="upper left")


def _apart(x: Floats, y: Floats, found: NDArray[np.intp], highest: float) -> list[int]:
    """The clearest regions whose labels do not lie on those of clearer ones."""
    chosen: list[int] = []
    for i in found.tolist():
        if len(chosen) < _LABELLED and not any(
            (x[i] > 0) == (x[j] > 0) and abs(y[i] - y[j]) < 0.04 * highest for j in chosen
        ):
            chosen.append(i)
    return chosen


def intervals(study: Study, one: Comparison, regions: NDArray[np.intp]) -> Figure:
    """Ratios of the given regions with their confidence intervals, the first at the top."""
    figure = style.new_figure(11.0, 0.26 * len(regions) + 1.0)
    axes = style.clean(figure.subplots(), x=f"{one.group_b} over {one.group_a}", grid="x")
    rows = np.arange(len(regions))
    axes.hlines(rows, one.low[regions], one.high[regions], color=style.SKY, linewidth=3)
    axes.scatter(one.log2_ratio[regions], rows, s=26, color=style.BLUE, zorder=3)
    axes.axvline(0, color=style.INK, linewidth=0.8)
    axes.set_yticks(rows, [_label(study, i) for i in regions], fontsize=9, color=style.INK)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    reach = float(np.nanmax(np.abs([one.low[regions], one.high[regions]]), initial=1.0))
    reach = float(np.clip(1.1 * reach, 1.2, 6.0))
    axes.set_xlim(-reach, reach)
    step = 1 if reach < 4 else 2
    powers = np.arange(-step * int(reach // step), reach, step)
    axes.set_xticks(powers, [f"x{2.0**power:g}" if power >= 0 else f"1/{2.0**-power:g}" for power in powers])
    return figure


def animals(study: Study, hemisphere: str, regions: NDArray[np.intp], shown: Sequence[str]) -> Figure:
    """Density of every animal in each of the given regions, group by group; a bar marks the mean."""
    columns = 4
    rows = -(-len(regions) // columns)
    figure = style.new_figure(11.0, 2.2 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    side = SIDES.index(hemisphere)
    with np.errstate(divide="ignore", invalid="ignore"):
        density = study.count[:, :, side] / (study.volume_mm3[:, :, side] * study.level[:, None])
    for axes, i in zip(panels, regions, strict=False):
        style.clean(axes, title=_short(study.selection.acronym[i]), grid="y")
        for place, group in enumerate(shown):
            values = density[study.groups.rows(group), i]
            values = values[np.isfinite(values)]
            spread = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else np.zeros(len(values))
            colour = style.CYCLE[study.groups.names.index(group) % len(style.CYCLE)]
            axes.scatter(place + spread, values, s=24, color=colour, alpha=0.85, linewidths=0)
            if len(values):
                axes.hlines(values.mean(), place - 0.25, place + 0.25, color=style.INK, linewidth=1.5)
        axes.set_xticks(range(len(shown)), [_short(group) for group in shown], fontsize=9)
        axes.set_xlim(-0.6, len(shown) - 0.4)
        axes.set_ylim(bottom=0)
    for axes in panels[len(regions) :]:
        axes.set_visible(False)
    return figure


def _label(study: Study, region: int) -> str:
    name, acronym = study.selection.name[region], study.selection.acronym[region]
    return f"{name if len(name) <= 44 else name[:43] + chr(0x2026)} ({_short(acronym)})"


def _short(text: str) -> str:
    return text if len(text) <= 18 else f"{text[:17]}\N{HORIZONTAL ELLIPSIS}"
