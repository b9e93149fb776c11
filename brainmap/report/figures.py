"""The pictures of a run: slices with their cells, histograms, depth profile, regions left and right, truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from brainmap.points.table import Points
from brainmap.report import style
from brainmap.report.region_rows import RegionTree
from brainmap.report.slices import SliceImage
from brainmap.report.summary import SCORE_BINS, PointSummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "cell_histograms",
    "closeup",
    "counts_against_truth",
    "depth_profile",
    "overview",
    "score_curve",
]


def overview(
    image: SliceImage, points: Points | None, voxel_um: Sequence[float], width: float = 7.0
) -> Figure:
    """A whole slice, plain or with a dot on every cell.

    Parameters
    ----------
    image : SliceImage
    points : Points or None
        Cells of the slice (y, x level-0 voxel index, score); None draws the tissue alone.
    voxel_um : (3,) floats
        Level-0 voxel size.
    width : float
        Inches.
    """
    figure, axes = _tissue(image, width)
    if points is not None:
        few = len(points) <= 2000
        size = 40.0 if few else float(np.clip(20000.0 / len(points), 0.6, 8.0))
        _dots(axes, points, voxel_um, size=size, hollow=few)
    return figure


def closeup(
    image: SliceImage,
    points: Points | None,
    voxel_um: Sequence[float],
    cell_um: float,
    missed: NDArray[np.float64] | None = None,
    white: float = 0.0,
    width: float = 4.5,
) -> Figure:
    """Full-resolution crop, plain or with a circle around every cell, coloured by score.

    Circles are solid for cells centred within half a diameter of the slice, dotted for those above or below it.

    Parameters
    ----------
    image : SliceImage
    points : Points or None
        Cells near the slice (z, y, x, score), anywhere in it: those outside the crop are not drawn. None draws the
        tissue alone.
    voxel_um : (3,) floats
        Level-0 voxel size.
    cell_um : float
        Expected diameter of a cell: the circles are 1.8 times as wide.
    missed : float64 array (N, 2), optional
        y, x level-0 voxels of true cells that were not found; drawn as crosses.
    white : float
        Lowest white level, for example the whole slice's: noise where there are no cells stays dim.
    width : float
        Inches.
    """
    figure, marked = _tissue(image, width, white)
    if points is None:
        return figure
    y0, y1, x0, x1 = image.extent_um
    y_um, x_um = _um(points, voxel_um)
    inside = (y_um >= y0) & (y_um < y1) & (x_um >= x0) & (x_um < x1)
    points_per_um = 72 * width * 0.97 / image.size_um[1]
    size = (1.8 * cell_um * points_per_um) ** 2
    centred = np.abs(points["z"] - image.z) * voxel_um[0] <= max(cell_um, voxel_um[0]) / 2
    _dots(marked, points.take(inside & centred), voxel_um, size=size, hollow=True)
    _dots(marked, points.take(inside & ~centred), voxel_um, size=size, hollow=True, line=":")
    if missed is not None and len(missed):
        y_um, x_um = ((missed[:, i] + 0.5) * voxel_um[i + 1] for i in (0, 1))
        inside = (y_um >= y0) & (y_um < y1) & (x_um >= x0) & (x_um < x1)
        size = (0.9 * cell_um * points_per_um) ** 2
        marked.scatter(x_um[inside], y_um[inside], s=size, marker="x", c="white", linewidths=1.2)
    return figure


def cell_histograms(summary: PointSummary, threshold: float | None = None) -> Figure:
    """Histograms of score, signal-to-noise ratio and diameter, as far as they were measured."""
    columns = [n for n in ("score", "snr", "diameter_um") if n in summary.sample]
    figure = style.new_figure(11.0, 2.6)
    names = {"score": "score (probability)", "snr": "signal to noise", "diameter_um": "diameter (µm)"}
    for axes, name in zip(figure.subplots(1, max(len(columns), 1), squeeze=False)[0], columns, strict=False):
        style.clean(axes, x=names[name], y="cells" if name == columns[0] else "", grid="y")
        if name == "score":
            edges = np.linspace(0.0, 1.0, SCORE_BINS + 1)
            axes.stairs(summary.score_counts, edges, fill=True, color=style.BLUE)
            axes.set_xlim(0, 1)
            if threshold is not None:
                axes.axvline(threshold, color=style.RED, linewidth=1.2, linestyle="--")
        else:
            values = summary.sample[name][np.isfinite(summary.sample[name])]
            if len(values):
                low, high = np.percentile(values, [0.5, 99.0])
                counts, edges = np.histogram(
                    values, 40, (min(low, 0.0) if name == "snr" else low, max(high, low + 1e-3))
                )
                axes.stairs(
                    counts * (summary.n / max(len(summary.sample[name]), 1)),
                    edges,
                    fill=True,
                    color=style.BLUE,
                )
        _thousands(axes, "y")
    return figure


def depth_profile(
    summary: PointSummary, slice_um: float, shown: Sequence[int] = (), width: float = 11.0
) -> Figure:
    """Cells per slice along z; the slices shown in the report are marked."""
    figure = style.new_figure(width, 2.2)
    axes = style.clean(figure.subplots(), x="depth z (mm)", y="cells per slice", grid="y")
    edges = np.arange(len(summary.per_slice) + 1) * slice_um / 1000
    axes.stairs(summary.per_slice, edges, fill=True, color=style.SKY)
    for k in shown:
        axes.axvline((k + 0.5) * slice_um / 1000, color=style.INK, linewidth=0.8, linestyle=":")
    axes.set_xlim(0, edges[-1])
    axes.set_ylim(bottom=0)
    _thousands(axes, "y")
    return figure


def counts_against_truth(found: RegionTree, truth: RegionTree, width: float = 5.5) -> Figure:
    """Cells found against true cells, a point per structure and side, around the line of equality."""
    figure = style.new_figure(width, width * 0.8)
    axes = style.clean(figure.subplots(), x="true cells", y="cells found", grid="both")
    true = {region.id: region for region in truth.regions}
    pairs = [(region, true[region.id]) for region in found.regions if region.id in true]
    highest = 1.0
    for side, colour, marker in (("left", style.LEFT, "o"), ("right", style.RIGHT, "s")):
        xy = np.array([[t.count[side], f.count[side]] for f, t in pairs] or [[0, 0]], float)
        highest = max(highest, xy.max())
        axes.scatter(xy[:, 0], xy[:, 1], s=22, c=colour, marker=marker, alpha=0.8, linewidths=0, label=side)
    axes.plot([0, highest * 1.1], [0, highest * 1.1], color=style.QUIET, linewidth=0.8)
    for scale in (axes.set_xscale, axes.set_yscale):
        scale("symlog", linthresh=10)
    axes.set_xlim(0, highest * 1.3)
    axes.set_ylim(0, highest * 1.3)
    for letter in "xy":
        _thousands(axes, letter)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    return figure


def score_curve(
    threshold: NDArray[Any], precision: NDArray[Any], recall: NDArray[Any], width: float = 5.5
) -> Figure:
    """Precision and recall over the threshold of the score."""
    figure = style.new_figure(width, width * 0.8)
    axes = style.clean(figure.subplots(), x="threshold of the score", y="share", grid="both")
    axes.plot(threshold, precision, color=style.BLUE, label="precision")
    axes.plot(threshold, recall, color=style.RED, linestyle="--", label="recall")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.legend(frameon=False, fontsize=9, loc="lower left")
    return figure


def _tissue(image: SliceImage, width: float, white: float = 0.0) -> tuple[Figure, Axes]:
    """A picture of tissue, with a scale bar, to draw on in um."""
    low, high = image.window(white)
    y0, y1, x0, x1 = image.extent_um
    # A little gamma, so that dim cells and bright ones are both seen.
    shown = np.clip((image.values - low) / (high - low), 0.0, 1.0) ** 0.75
    height = float(np.clip(width * image.size_um[0] / image.size_um[1], 0.8, 11.0))
    figure = style.literal_figure(width, height, "black")
    axes = style.picture_axes(figure.subplots())
    axes.imshow(
        shown, cmap=style.TISSUE_MAP, vmin=0, vmax=1, extent=(x0, x1, y1, y0), interpolation="antialiased"
    )
    style.scale_bar(axes, image.size_um)
    return figure, axes


def _um(points: Points, voxel_um: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """y and x of points, um from the volume's outer corner."""
    return (points["y"] + 0.5) * voxel_um[1], (points["x"] + 0.5) * voxel_um[2]


def _dots(
    axes: Axes,
    points: Points,
    voxel_um: Sequence[float],
    *,
    size: float,
    hollow: bool = False,
    line: str = "-",
) -> None:
    y_um, x_um = _um(points, voxel_um)
    score = points["score"] if "score" in points else np.ones(len(points))
    colours = style.score_map()(np.clip(np.asarray(score, float), 0, 1))
    if hollow:
        axes.scatter(
            x_um, y_um, s=size, facecolors="none", edgecolors=colours, linewidths=1.1, linestyles=line
        )
    else:
        axes.scatter(x_um, y_um, s=size, c=colours, linewidths=0)


def _thousands(axes: Axes, which: str) -> None:
    from matplotlib.ticker import FuncFormatter

    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:,.0f}" if value == int(value) else f"{value:g}")
    )
