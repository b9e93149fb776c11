"""Pictures of networks: ordered heat maps, graphs, patterns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from brainmap.cohort.networks.modules import densest
from brainmap.cohort.networks.network import Network
from brainmap.report import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["correlation_maps", "graph", "pattern"]

MAP = "RdBu_r"
_NAMED = 60  # more regions than these are named by division only
_BARS = 30


def _blocks(network: Network) -> list[tuple[str, int, int]]:
    """Divisions and the range of regions of each, in order."""
    blocks: list[tuple[str, int, int]] = []
    for i, name in enumerate(network.division):
        if blocks and blocks[-1][0] == name:
            blocks[-1] = (name, blocks[-1][1], i + 1)
        else:
            blocks.append((name, i, i + 1))
    return blocks


def correlation_maps(network: Network) -> Figure:
    """One ordered heat map a group."""
    names = network.study.groups.names
    size = len(network.region)
    figure = style.new_figure(min(10.0, 4.8 * len(names)), 4.6 * -(-len(names) // 2))
    grid = np.atleast_1d(figure.subplots(-(-len(names) // 2), min(len(names), 2), squeeze=False)).ravel()
    for axes in grid[len(names) :]:
        axes.set_axis_off()
    image: Any = None
    blocks = _blocks(network)
    for axes, name in zip(grid, names, strict=False):
        image = axes.imshow(network.r[name], cmap=MAP, vmin=-1, vmax=1, interpolation="nearest")
        axes.set_facecolor("#c9ced6")
        axes.set_title(f"{name} (n = {network.study.groups.group.count(name)})", fontsize=10)
        if size <= _NAMED:
            ticks, labels = list(range(size)), list(network.acronym)
        else:
            wide = [block for block in blocks if block[2] - block[1] >= size / 40]
            ticks, labels = [(b[1] + b[2]) // 2 for b in wide], [b[0] for b in wide]
        small = 7 if size <= 30 or size > _NAMED else 5
        axes.set_yticks(ticks, labels, fontsize=small)
        axes.set_xticks(ticks, labels, fontsize=small, rotation=90)
        axes.tick_params(length=0)
        for _, start, _ in blocks[1:]:
            axes.axhline(start - 0.5, color=style.INK, linewidth=0.6)
            axes.axvline(start - 0.5, color=style.INK, linewidth=0.6)
    bar = figure.colorbar(image, ax=list(grid), shrink=0.7, pad=0.02)
    bar.set_label("correlation over animals", fontsize=9)
    return figure


def graph(network: Network) -> Figure:
    """Regions on a circle, by division: each group's edges, and the pairs that differ."""
    names = network.study.groups.names
    panels: list[tuple[str, list[tuple[Any, str, str]]]] = []
    for name in names:
        panels.append(
            (name, [(densest(network.r[name], network.settings.density), style.QUIET, "correlated")])
        )
    for (a, b), test in network.differences.items():
        found = np.nan_to_num(test.q, nan=1.0) <= network.settings.alpha
        more, less = found & (test.z > 0), found & (test.z < 0)
        edges = [(more, style.RED, f"more alike in {b}"), (less, style.BLUE, f"more alike in {a}")]
        panels.append((f"differ at q <= {network.settings.alpha:g}", edges))
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = style.new_figure(3.6 * columns, 3.9 * rows + 0.5)
    grid = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    blocks = _blocks(network)
    colour = {
        name: style.CYCLE[k % len(style.CYCLE)] for k, name in enumerate(dict.fromkeys(b[0] for b in blocks))
    }
    for axes in grid:
        axes.set_axis_off()
    handles: dict[str, Any] = {}
    for axes, (title, edges) in zip(grid, panels, strict=False):
        _circle(axes, network, colour)
        axes.set_title(title, fontsize=10)
        for linked, shade, label in edges:
            handles.setdefault(label, _edges(axes, linked, shade))
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=len(handles),
        frameon=False,
        fontsize=9,
    )
    return figure


def _angles(size: int) -> Any:
    return np.pi / 2 - 2 * np.pi * (np.arange(size) + 0.5) / size


def _circle(axes: Axes, network: Network, colour: dict[str, str]) -> None:
    angle = _angles(len(network.region))
    shades = [colour[name] for name in network.division]
    axes.scatter(np.cos(angle), np.sin(angle), s=14, c=shades, zorder=3, linewidths=0)
    axes.set_xlim(-1.45, 1.45)
    axes.set_ylim(-1.45, 1.45)
    axes.set_aspect("equal")
    single = len(angle) <= _NAMED
    named = (
        [(name, a, shade) for name, a, shade in zip(network.acronym, angle, shades, strict=True)]
        if single
        else [
            (name, float(angle[(start + end - 1) // 2]), colour[name])
            for name, start, end in _blocks(network)
            if end - start >= len(angle) / 60
        ]
    )
    for name, a, shade in named:
        left = np.cos(a) < 0
        axes.text(
            1.07 * np.cos(a), 1.07 * np.sin(a), name, fontsize=6 if single else 8, color=shade,
            rotation=np.degrees(a) + (180 if left else 0), rotation_mode="anchor",
            ha="right" if left else "left", va="center",
        )  # fmt: skip


def _edges(axes: Axes, linked: Any, colour: str) -> Any:
    from matplotlib.collections import LineCollection

    i, j = np.nonzero(np.triu(linked, 1))
    angle = _angles(len(linked))
    place = np.column_stack([np.cos(angle), np.sin(angle)])
    strength = float(np.clip(60 / max(len(i), 1), 0.15, 0.9))
    axes.add_collection(
        LineCollection(
            list(np.stack([place[i], place[j]], axis=1)), colors=colour, linewidths=0.8, alpha=strength
        )
    )
    return axes.plot([], [], color=colour, linewidth=2)[0]


def pattern(network: Network, k: int) -> Figure:
    """Scores of the animals by group, and the regions that carry the pattern."""
    assert network.pls is not None
    found, groups = network.pls, network.study.groups
    ratio = found.ratio[:, k]
    known = np.flatnonzero(np.isfinite(ratio))
    shown = known[np.argsort(-np.abs(ratio[known]), kind="stable")[:_BARS]]
    shown = shown[np.argsort(ratio[shown], kind="stable")]
    figure = style.new_figure(8.5, max(3.2, 0.19 * len(shown) + 1.2))
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.5))
    style.clean(
        left, title=f"pattern {k + 1}: {found.share[k]:.0%}, p = {found.p[k]:.2g}", y="score", grid="y"
    )
    rng = np.random.default_rng(0)
    for place, name in enumerate(groups.names):
        values = found.score[groups.rows(name), k]
        left.scatter(
            place + rng.uniform(-0.12, 0.12, len(values)), values, s=26, linewidths=0,
            color=style.CYCLE[place % len(style.CYCLE)],
        )  # fmt: skip
    left.set_xticks(range(len(groups.names)), groups.names)
    left.set_xlim(-0.5, len(groups.names) - 0.5)
    left.axhline(0, color=style.LINE, linewidth=0.8)
    style.clean(right, x="weight over its bootstrap error", grid="x")
    shades = [style.RED if value > 0 else style.BLUE for value in ratio[shown]]
    right.barh(np.arange(len(shown)), ratio[shown], color=shades, height=0.7)
    right.set_yticks(range(len(shown)), [network.acronym[i] for i in shown], fontsize=7)
    for limit in (-3, 3):
        right.axvline(limit, color=style.INK, linewidth=0.8, linestyle="--")
    return figure
