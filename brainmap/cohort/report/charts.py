"""The pictures of a comparison, each with the numbers it shows."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from brainmap.cohort.missing import OUTLIER
from brainmap.cohort.model.densities import log_density
from brainmap.cohort.model.statistics import in_family
from brainmap.cohort.study import COUNT, Comparison, Study
from brainmap.cohort.table import SIDES
from brainmap.report import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Chart",
    "by_division",
    "heat_map",
    "levels",
    "p_values",
    "quality",
    "render",
    "top_animals",
    "volcano",
]

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]

_LABELLED = 10
_LEAST_P = 1e-12  # lower ones are drawn here
_MOST_ROWS = 60
_DRAWN = 8
EFFECT_MAP = "RdBu_r"


@dataclass(frozen=True)
class Chart:
    """A picture and its numbers.

    Attributes
    ----------
    name : str
        Of its files, without ending.
    figure : Figure
    caption : str
    columns : tuple of str
    rows : list of sequences
        What is drawn.
    """

    name: str
    figure: Figure
    caption: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Any]]


def render(figure: Figure) -> bytes:
    """A figure as SVG; equal figures give equal files. Its letters stay letters, which a browser knows in "
    "any script."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.BytesIO()
    with (
        matplotlib.rc_context({"svg.hashsalt": "brainmap", "svg.fonttype": "none"}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    return buffer.getvalue()


def volcano(study: Study, one: Comparison, name: str) -> Chart:
    """Ratio and certainty of every region."""
    figure = style.new_figure(7.0, 4.4)
    axes = figure.subplots()
    result, found = one.result, one.found
    x = (
        f"log2 of {one.contrast.group_b} over {one.contrast.group_a}"
        if one.contrast.group_a
        else "log2 ratio"
    )
    style.clean(axes, x=x, y="-log10 p", grid="both")
    height = -np.log10(np.maximum(result.p, _LEAST_P))
    rest = np.setdiff1d(np.flatnonzero(np.isfinite(height)), found)
    axes.scatter(result.log2_ratio[rest], height[rest], s=12, color=style.QUIET, alpha=0.5, linewidths=0)
    label = f"called different: {len(found)}"
    axes.scatter(result.log2_ratio[found], height[found], s=22, color=style.RED, linewidths=0, label=label)
    axes.axvline(0, color=style.LINE, linewidth=1)
    reach = 1.25 * max(1.0, float(np.nanmax(np.abs(result.log2_ratio), initial=1.0)))
    axes.set_xlim(-reach, reach)
    axes.set_ylim(0, 1.12 * max(1.5, float(np.nanmax(height, initial=1.5))))
    for i in _apart(result.log2_ratio, height, found, axes.get_ylim()[1]):
        right = result.log2_ratio[i] > 0
        axes.annotate(
            _short(study.selection.acronym[i]), (result.log2_ratio[i], height[i]), (4 if right else -4, 0),
            textcoords="offset points", ha="left" if right else "right", va="center", fontsize=8, color=style.INK,
        )  # fmt: skip
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    rows = [
        (study.selection.acronym[i], result.log2_ratio[i], result.p[i], bool(one.called[i]))
        for i in one.ranked
    ]
    caption = "Every region by its ratio and the p-value of its test; red: called different."
    return Chart(name, figure, caption, ("acronym", "log2_ratio", "p", "called"), rows)


def _apart(x: Floats, y: Floats, found: Rows, highest: float) -> list[int]:
    """The clearest regions whose labels do not lie on those of clearer ones."""
    chosen: list[int] = []
    for i in found.tolist():
        if len(chosen) < _LABELLED and not any(
            (x[i] > 0) == (x[j] > 0) and abs(y[i] - y[j]) < 0.04 * highest for j in chosen
        ):
            chosen.append(i)
    return chosen


def p_values(study: Study, one: Comparison, name: str) -> Chart:
    """Histogram of the p-values of the regions in the family."""
    figure = style.new_figure(4.4, 4.4)
    cells = np.nan_to_num(one.cells_a * one.n_a) + np.nan_to_num(one.cells_b * one.n_b)
    known = np.isfinite(one.result.p) if not one.contrast.group_a else in_family(one.result.p, cells)
    p = one.result.p[known]
    axes = style.clean(figure.subplots(), x="p", y="regions", grid="y")
    counts, edges, _ = axes.hist(p, np.linspace(0, 1, 21).tolist(), color=style.SKY)
    axes.axhline(len(p) / 20, color=style.QUIET, linewidth=1, linestyle="--")
    axes.set_xlim(0, 1)
    caption = (
        "p-values of the regions with enough cells. Without any difference they are level (dashed); a peak at the left "
        "is differences, a slope to the right is scatter that the test does not know."
    )
    rows = list(zip(edges[:-1], edges[1:], np.asarray(counts).astype(int), strict=True))
    return Chart(name, figure, caption, ("from", "to", "regions"), rows)


def by_division(study: Study, one: Comparison, name: str) -> Chart:
    """Ratios with intervals, division by division, the regions of each in order of their ratio."""
    order = _in_divisions(study, one)
    figure = style.new_figure(5.8, 0.22 * len(order) + 1.3)
    axes = style.clean(figure.subplots(), x=_ratio_title(one), grid="x")
    result, rows, labels, numbers = one.result, [], [], []
    for y, (i, is_division) in enumerate(order):
        test, acronym = result, study.selection.acronym
        if is_division and one.divisions is not None and study.divisions is not None:
            test, acronym = one.divisions, study.divisions.acronym
            q = one.q_division[i] if one.q_division is not None else np.nan
            called = bool(q <= study.settings.alpha)
        else:
            called = bool(one.called[i])
        colour = style.RED if called else style.QUIET
        axes.hlines(
            y, test.low[i], test.high[i], color=colour, linewidth=3 if is_division else 1.6, alpha=0.55
        )
        axes.scatter(test.log2_ratio[i], y, s=34 if is_division else 14, color=colour, zorder=3, linewidths=0)
        rows.append(y)
        labels.append(_short(acronym[i]) if is_division else f"    {_short(acronym[i])}")
        numbers.append(
            (
                acronym[i],
                "division" if is_division else "region",
                test.log2_ratio[i],
                test.low[i],
                test.high[i],
                called,
            )
        )
    for y, (_, is_division) in enumerate(order):
        if is_division:
            axes.axhline(y - 0.5, color=style.LINE, linewidth=0.8, zorder=0)
    axes.axvline(0, color=style.INK, linewidth=0.8)
    axes.set_yticks(rows, labels, fontsize=8, color=style.INK)
    for tick, (_, is_division) in zip(axes.get_yticklabels(), order, strict=True):
        tick.set_fontweight("bold" if is_division else "normal")
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(order) - 0.4, -0.6)
    _ratio_axis(axes, result, [i for i, d in order if not d])
    caption = (
        "Ratios with 95 % intervals; red: called different. Bold: the cells of a whole division. Regions follow in "
        "order of their ratio; where there are many, those of smallest p."
    )
    return Chart(name, figure, caption, ("acronym", "what", "log2_ratio", "low", "high", "called"), numbers)


def _in_divisions(study: Study, one: Comparison) -> list[tuple[int, bool]]:
    """(region or division, whether it is a division) from the top."""
    shown = one.ranked[:_MOST_ROWS]
    ratio = one.result.log2_ratio
    if study.divisions is None:
        return [(int(i), False) for i in sorted(shown, key=lambda i: -ratio[i])]
    order: list[tuple[int, bool]] = []
    for d in [*range(len(study.divisions)), -1]:
        inside = sorted((i for i in shown if study.divisions.of[i] == d), key=lambda i: -ratio[i])
        if d >= 0 and one.divisions is not None and np.isfinite(one.divisions.p[d]):
            order.append((d, True))
        order += [(int(i), False) for i in inside]
    return order


def _ratio_title(one: Comparison) -> str:
    return (
        f"{one.contrast.group_b} over {one.contrast.group_a}"
        if one.contrast.group_a
        else f"ratio: {one.name}"
    )


def _ratio_axis(axes: Axes, result: Any, regions: Sequence[int]) -> None:
    ends = np.abs([result.low[list(regions)], result.high[list(regions)]])
    reach = float(np.nanquantile(ends, 0.95)) if np.isfinite(ends).any() else 1.0
    reach = float(np.clip(1.1 * reach, 1.2, 6.0))
    axes.set_xlim(-reach, reach)
    step = 1 if reach < 4 else 2
    powers = np.arange(-step * int(reach // step), reach, step)
    axes.set_xticks(powers, [f"x{2.0**power:g}" if power >= 0 else f"1/{2.0**-power:g}" for power in powers])


def heat_map(study: Study, one: Comparison, name: str) -> Chart:
    """Animals by regions: log density against the mean of the first group's animals."""
    regions = one.ranked[:_MOST_ROWS]
    regions = regions[np.argsort(one.result.log2_ratio[regions], kind="stable")] if one.is_ratio else regions
    animals = np.argsort([study.groups.names.index(g) for g in study.groups.group], kind="stable")
    values = _relative_log_density(study, one.hemisphere)[np.ix_(animals, regions)]
    figure = style.new_figure(6.0, 0.17 * len(regions) + 1.6)
    axes = figure.subplots()
    limit = (
        float(np.clip(np.nanquantile(np.abs(values), 0.98), 0.5, 3.0)) if np.isfinite(values).any() else 1.0
    )
    image = axes.imshow(
        values.T, cmap=EFFECT_MAP, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest"
    )
    axes.set_facecolor("#c9ced6")
    axes.set_yticks(range(len(regions)), [_short(study.selection.acronym[i]) for i in regions], fontsize=7)
    labels = [_short(study.groups.labels[i]) for i in animals]
    axes.set_xticks(range(len(animals)), labels, fontsize=8, rotation=60, ha="right", rotation_mode="anchor")
    groups = [study.groups.group[i] for i in animals]
    for i in range(1, len(groups)):
        if groups[i] != groups[i - 1]:
            axes.axvline(i - 0.5, color=style.INK, linewidth=1.2)
    for group in study.groups.names:
        places = [i for i, g in enumerate(groups) if g == group]
        axes.text(
            float(np.mean(places)), -1.0, _short(group), ha="center", va="bottom", fontsize=9, color=style.INK
        )
    axes.tick_params(length=0)
    bar = figure.colorbar(image, ax=axes, shrink=min(1.0, 12 / max(len(regions), 1)), pad=0.02)
    bar.set_label("log2 density against the first group", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    rows = [(study.selection.acronym[j], *values[:, k]) for k, j in enumerate(regions)]
    columns = ("acronym", *(study.groups.labels[i] for i in animals))
    caption = (
        "Density of every animal (its level divided out where that was asked for) in the regions of smallest "
        "p, against "
        "the mean of the first group; grey: missing in that animal. A whole column of one colour is an animal's level."
    )
    return Chart(name, figure, caption, columns, rows)


def top_animals(study: Study, one: Comparison, name: str) -> Chart:
    """Density of every animal in the regions of smallest p, group by group; a bar marks the mean."""
    regions = one.ranked[:_DRAWN]
    columns = 4
    rows = max(1, -(-len(regions) // columns))
    figure = style.new_figure(9.0, 2.2 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    side = SIDES.index(one.hemisphere)
    volume = study.volume_mm3[:, :, side] * study.level[:, None]
    density = np.where(volume > 0, study.count[:, :, side] / np.where(volume > 0, volume, 1.0), np.nan)
    numbers = []
    for axes, i in zip(panels, regions, strict=False):
        style.clean(axes, title=_short(study.selection.acronym[i]), grid="y")
        for place, group in enumerate(study.groups.names):
            members = study.groups.rows(group)
            values = density[members, i]
            numbers += [
                (study.selection.acronym[i], study.groups.labels[m], group, v)
                for m, v in zip(members, values, strict=True)
            ]
            values = values[np.isfinite(values)]
            spread = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else np.zeros(len(values))
            colour = style.CYCLE[place % len(style.CYCLE)]
            axes.scatter(place + spread, values, s=24, color=colour, alpha=0.85, linewidths=0)
            if len(values):
                axes.hlines(values.mean(), place - 0.25, place + 0.25, color=style.INK, linewidth=1.5)
        axes.set_xticks(range(len(study.groups.names)), [_short(g) for g in study.groups.names], fontsize=8)
        axes.set_xlim(-0.6, len(study.groups.names) - 0.4)
        axes.set_ylim(bottom=0)
    for axes in panels[len(regions) :]:
        axes.set_visible(False)
    caption = "Cells per mm\N{SUPERSCRIPT THREE} of every animal in the regions of smallest p; bars: means."
    return Chart(name, figure, caption, ("acronym", "animal", "group", "density_per_mm3"), numbers)


def levels(study: Study, name: str) -> Chart | None:
    """Level of each animal over the brain: whether dividing it out is warranted."""
    found = study.levels
    if found is None:
        return None
    animals = study.table.groups
    figure = style.new_figure(6.0, 0.26 * len(animals) + 1.2)
    axes = style.clean(figure.subplots(), x="level over the brain (1: the usual one)", grid="x")
    log = np.log2(found.factor)
    reach = 1.96 * found.error / np.log(2.0)
    order = np.argsort([animals.names.index(g) for g in animals.group], kind="stable")
    for y, i in enumerate(order):
        colour = style.CYCLE[animals.names.index(animals.group[i]) % len(style.CYCLE)]
        axes.hlines(y, log[i] - reach[i], log[i] + reach[i], color=colour, linewidth=2, alpha=0.6)
        axes.scatter(log[i], y, s=28, color=colour, zorder=3, linewidths=0)
    axes.axvline(0, color=style.INK, linewidth=0.8)
    axes.set_yticks(
        range(len(order)),
        [f"{_short(animals.labels[i])} ({_short(animals.group[i])})" for i in order],
        fontsize=8,
    )
    axes.set_ylim(len(order) - 0.5, -0.5)
    limit = max(1.0, 1.15 * float(np.abs(log).max()))
    axes.set_xlim(-limit, limit)
    ticks = [t for t in (-3, -2, -1, -0.5, 0, 0.5, 1, 2, 3) if abs(t) <= limit]
    axes.set_xticks(ticks, [f"{2.0**t:.2g}" for t in ticks])
    caption = (
        f"Level of every animal ({found.source}, {found.regions} regions), with what chance of the regions "
        "makes of it. "
        "Levels that differ by more than their bars within a group are staining, clearing or state: dividing them out "
        "(--relative) finds more. Levels that differ between the groups are a change of the whole brain or "
        "of the staining, "
        "and dividing them out hides it."
    )
    rows = [(animals.labels[i], animals.group[i], found.factor[i], found.error[i]) for i in order]
    return Chart(name, figure, caption, ("animal", "group", "level", "log_error"), rows)


def quality(study: Study, name: str) -> Chart:
    """How far each animal lies from what the others predict, over all regions."""
    side = SIDES.index(study.settings.sides[0])
    off = study.missing.log2_factor[:, :, side]
    labels = study.groups.labels
    figure = style.new_figure(6.0, 0.3 * len(labels) + 1.2)
    axes = style.clean(figure.subplots(), x="log2 of density over the other animals' prediction", grid="x")
    rows = []
    for y, label in enumerate(labels):
        known = off[y][np.isfinite(off[y])]
        if len(known):
            low, middle, high = np.quantile(known, [0.05, 0.5, 0.95])
            axes.hlines(y, low, high, color=style.SKY, linewidth=5)
            axes.scatter(middle, y, s=22, color=style.BLUE, zorder=3, linewidths=0)
            out = off[y][study.missing.code[y, :, side] == OUTLIER]
            axes.scatter(out, np.full(len(out), y), s=14, color=style.RED, marker="x", zorder=4)
            rows.append((label, study.groups.group[y], low, middle, high, len(out)))
    axes.axvline(0, color=style.INK, linewidth=0.8)
    axes.set_yticks(range(len(labels)), [_short(label) for label in labels], fontsize=8)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    caption = (
        "How far the regions of each animal lie from the prediction of the other animals, its level divided "
        "out: middle "
        "and 90 % of the regions; crosses: outliers, which are missing there. A wide bar is an animal unlike "
        "the others."
    )
    return Chart(name, figure, caption, ("animal", "group", "low", "median", "high", "outliers"), rows)


def _short(text: str) -> str:
    return text if len(text) <= 18 else f"{text[:17]}\N{HORIZONTAL ELLIPSIS}"


def title_of(one: Comparison) -> str:
    """Of a family of tests, for people."""
    measure = "counts" if one.measure == COUNT else "densities"
    side = {"both": "both hemispheres", "left": "left hemisphere", "right": "right hemisphere"}[
        one.hemisphere
    ]
    return f"{one.name}: {measure}, {side}"


def _relative_log_density(study: Study, hemisphere: str) -> Floats:
    """log2 density of every animal against the mean of the first group, (animals, regions); NaN where missing."""
    side = SIDES.index(hemisphere)
    values = log_density(
        study.count[:, :, side].astype(float), study.volume_mm3[:, :, side] * study.level[:, None]
    )
    first = values[study.groups.rows(study.groups.names[0])]
    known = np.isfinite(first)
    base = np.where(known, first, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return values - base
