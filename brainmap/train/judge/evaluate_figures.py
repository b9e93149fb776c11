"""The figures of an evaluation; each shows one detector, or several beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from brainmap.report.style import (
    BLUE,
    GREEN,
    INK,
    LINE,
    ORANGE,
    PURPLE,
    QUIET,
    RED,
    TISSUE_MAP,
    clean,
    new_figure,
    picture_axes,
    score_map,
)
from brainmap.train.judge.evaluate import Evaluation
from brainmap.train.judge.scores import Scored, match_truth

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "MAP_THETAS",
    "confidence_figure",
    "curves_figure",
    "grid_figure",
    "maps_figure",
    "maxima_figure",
    "tolerance_figure",
]

COLOURS = (BLUE, ORANGE, GREEN, PURPLE)
# Predictions are drawn from these scores on (methods 7).
MAP_THETAS = (0.05, 0.40, 0.90)
_CROP_PX = 360


def curves_figure(evaluations: Sequence[Evaluation]) -> Figure:
    """Precision against recall, and FROC, one column for each tolerance; a dot marks the best F1."""
    tolerances = evaluations[0].settings.tolerances_px
    figure = new_figure(11.0, 6.6)
    axes = figure.subplots(2, len(tolerances), squeeze=False)
    for column, tolerance in enumerate(tolerances):
        top, bottom = axes[:, column]
        for one, colour in zip(evaluations, COLOURS, strict=False):
            curve, record = one.curves[tolerance], one.record["tolerances"][f"{tolerance:g}"]
            per_tile = curve.fp / max(1, one.record["pairs"])
            label = f"{one.name}: {record['auprc']:.3f}"
            top.plot(curve.recall, curve.precision, color=colour, linewidth=1.4, label=label)
            bottom.plot(per_tile, curve.recall, color=colour, linewidth=1.4)
            best = record["best"]
            top.plot(best["recall"], best["precision"], "o", color=colour)
            bottom.plot(best["false_positives_per_tile"], best["recall"], "o", color=colour)
            if (own := record["at_threshold"]) is not None:
                ring = {"color": colour, "marker": "o", "markerfacecolor": "white"}
                top.plot(own["recall"], own["precision"], **ring)
                bottom.plot(own["false_positives_per_tile"], own["recall"], **ring)
        _f1_lines(top)
        top.set(xlim=(0, 1.02), ylim=(0, 1.02))
        top.legend(frameon=False, fontsize=8, loc="lower left", title="AUPRC", title_fontsize=8)
        clean(top, title=f"within {tolerance:g} px", x="recall", y="precision" if column == 0 else "")
        bottom.set(xlim=(0, max(evaluations[0].settings.false_positives)), ylim=(0, 1.02))
        clean(bottom, x="false positives per tile", y="recall" if column == 0 else "", grid="both")
    return figure


def _f1_lines(axes: Axes) -> None:
    """Lines of equal F1."""
    recall = np.linspace(0.01, 1, 200)
    for f1 in (0.2, 0.4, 0.6, 0.8):
        with np.errstate(divide="ignore"):
            precision = f1 * recall / (2 * recall - f1)
        shown = (precision > 0) & (precision <= 1)
        axes.plot(recall[shown], precision[shown], color=LINE, linewidth=0.8, zorder=0)
        axes.annotate(
            f"{f1:g}", (1.0, f1 / (2 - f1)), color=QUIET, fontsize=7, ha="right", va="bottom", zorder=0
        )


def tolerance_figure(evaluations: Sequence[Evaluation]) -> Figure:
    """AUPRC and best F1 over the tolerance, F1 over the score, and how far matched pairs lie apart."""
    figure = new_figure(11.0, 3.0)
    axes = figure.subplots(1, 4)
    for one, colour in zip(evaluations, COLOURS, strict=False):
        tolerances = list(one.settings.tolerances_px)
        records = [one.record["tolerances"][f"{t:g}"] for t in tolerances]
        axes[0].plot(tolerances, [r["auprc"] for r in records], "o-", color=colour, label=one.name)
        axes[1].plot(tolerances, [r["best"]["f1"] for r in records], "o-", color=colour)
        median = [np.nan if r["localisation"]["median_px"] is None else r["localisation"]["median_px"]
                  for r in records]  # fmt: skip
        axes[3].plot(tolerances, median, "o-", color=colour)
        curve = one.curves[one.settings.main_px]
        axes[2].plot(curve.threshold, curve.f1, color=colour, linewidth=1.4)
        if one.threshold is not None:
            axes[2].axvline(one.threshold, color=colour, linewidth=1, linestyle="--")
    for axis in axes[:3]:
        axis.set_ylim(0, 1.02)
    axes[2].set_xlim(0, 1)
    axes[3].set_ylim(0, 1.15 * axes[3].get_ylim()[1])
    axes[0].legend(frameon=False, fontsize=8, loc="lower right")
    main = evaluations[0].settings.main_px
    clean(axes[0], title="AUPRC", x="tolerance (px)", grid="y")
    clean(axes[1], title="Best F1", x="tolerance (px)", grid="y")
    clean(axes[2], title=f"F1 within {main:g} px", x="score from which it counts", grid="y")
    clean(axes[3], title="Median distance (px)", x="tolerance (px)", grid="y")
    return figure


def confidence_figure(evaluations: Sequence[Evaluation]) -> Figure:
    """Score as a probability, score against the ground truth's confidence, and recall by that confidence."""
    figure = new_figure(11.0, 4.2)
    upper, lower = figure.subplots(2, 3, height_ratios=(3, 1), sharex="col")
    width = 0.8 / len(evaluations)
    for index, (one, colour) in enumerate(zip(evaluations, COLOURS, strict=False)):
        probability, pairs = one.record["calibration"][0], one.record["confidence"]
        place = (np.arange(10) + 0.5 + (index - (len(evaluations) - 1) / 2) * width) / 10
        for column, record in enumerate((probability, pairs)):
            use = np.asarray(record["count"]) > 0
            mean, share = (np.asarray(record[key], np.float64)[use] for key in ("predicted", "observed"))
            label = f"{one.name}: ECE {record['ece']:.3f}" if use.any() else f"{one.name}: nothing"
            upper[column].plot(mean, share, "o-", color=colour, markersize=4, label=label)
            lower[column].bar(place, record["count"], width / 10, color=colour)
        rows = pairs["recall_by_confidence"]
        recall = [np.nan if row["recall"] is None else row["recall"] for row in rows]
        upper[2].bar(place, recall, width / 10, color=colour, label=one.name)
        lower[2].bar(place, [row["n"] for row in rows], width / 10, color=colour)
    for axis in upper[:2]:
        axis.plot([0, 1], [0, 1], color=LINE, zorder=0)
    upper[0].legend(frameon=False, fontsize=8, loc="upper left")
    upper[1].legend(frameon=False, fontsize=8, loc="lower right")
    for axis in upper:
        axis.set(xlim=(0, 1), ylim=(0, 1.02))
    for axis in lower[:2]:
        axis.set_yscale("symlog", linthresh=1)
    clean(upper[0], title="All detections", y="share that is right")
    clean(upper[1], title="Matched pairs", y="ground-truth confidence")
    clean(upper[2], title="Ground truth", y="recall", grid="y")
    clean(lower[0], x="score", y="count")
    clean(lower[1], x="score", y="pairs")
    clean(lower[2], x="ground-truth confidence", y="points")
    return figure


def grid_figure(evaluations: Sequence[Evaluation]) -> Figure:
    """F1 over both thresholds for each detector, and the best F1 for each threshold of the ground truth."""
    count = len(evaluations)
    figure = new_figure(11.0, 3.6)
    axes = figure.subplots(1, count + 1, width_ratios=[1.0] * count + [1.1])
    for axis, one, colour in zip(axes[:-1], evaluations, COLOURS, strict=False):
        grid = one.record["grid"]
        theta, theta_gt, f1 = (np.asarray(grid[key]) for key in ("theta", "theta_gt", "f1"))
        mesh = axis.pcolormesh(theta, theta_gt, f1, cmap="viridis", vmin=0, vmax=1, shading="nearest")
        best, top = grid["best"], grid["optimum"]
        axis.plot([row["theta"] for row in best], theta_gt, color="white", linewidth=1)
        axis.plot(top["theta"], top["theta_gt"], "*", color="white", markersize=11, markeredgecolor=INK)
        clean(axis, title=f"{one.name}: F1 {top['f1']:.3f} at the star", x="score from which it counts")
        axes[-1].plot(theta_gt, [row["f1"] for row in best], "o-", color=colour, markersize=4, label=one.name)
    clean(axes[0], title=axes[0].get_title(loc="left"), y="ground truth from this confidence on")
    bar = figure.colorbar(mesh, ax=axes[-2], fraction=0.05, pad=0.02)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(labelsize=8, color=LINE)
    axes[-1].set(xlim=(0, 1), ylim=(0, 1.02))
    axes[-1].legend(frameon=False, fontsize=8, loc="lower left")
    clean(axes[-1], title="Best F1", x="ground truth from this confidence on", grid="y")
    return figure


def maxima_figure(evaluations: Sequence[Evaluation]) -> Figure:
    """Highest score of every tile."""
    figure = new_figure(11.0, 1.0 + 0.55 * len(evaluations))
    axis = figure.subplots()
    rng = np.random.default_rng(0)
    for row, (one, colour) in enumerate(zip(evaluations, COLOURS, strict=False)):
        values = np.asarray(one.record["tile_maxima"]["values"])
        spread = rng.uniform(-0.22, 0.22, len(values))
        axis.scatter(values, row + spread, s=14, color=colour, alpha=0.6, linewidths=0)
        axis.plot([np.median(values)] * 2, [row - 0.35, row + 0.35], color=INK, linewidth=1.6)
    axis.set_yticks(range(len(evaluations)), [one.name for one in evaluations])
    axis.set(xlim=(0, 1.01), ylim=(len(evaluations) - 0.5, -0.5))
    return clean(axis, x="highest score of the tile (line: median)", grid="x").figure  # type: ignore[return-value]


def maps_figure(evaluations: Sequence[Evaluation], index: int) -> Figure:
    """One tile: its ground truth, and each detector's predictions from three scores on.

    Parameters
    ----------
    index : int
        Of the tile, the same in all evaluations.
    """
    first = evaluations[0]
    image = first.tiles.image(index)
    truth = next(t for t in first.truths.values() if index in t.seen)
    window = _window(image.shape, truth.xy[truth.image == index])
    ratio = (window[1] - window[0]) / (window[3] - window[2])
    panel = 11.2 / (1 + len(MAP_THETAS))
    figure = new_figure(11.2, len(evaluations) * (panel * ratio + 0.35))
    axes = figure.subplots(len(evaluations), 1 + len(MAP_THETAS), squeeze=False)
    for row, one in zip(axes, evaluations, strict=True):
        own = next(t for t in one.truths.values() if index in t.seen)
        true = own.take(own.image == index)
        _picture(row[0], image, window, f"ground truth ({len(true)})")
        row[0].scatter(
            *true.xy.T, s=36, marker="o", facecolors="none", linewidths=1.2,
            edgecolors=score_map()(true.confidence),
        )  # fmt: skip
        for axis, theta in zip(row[1:], MAP_THETAS, strict=True):
            use = (one.found.image == index) & (one.found.score >= theta)
            found = Scored(one.found.image[use], one.found.xy[use], one.found.score[use])
            match = match_truth(found, true, one.settings.main_px, one.settings.rule)
            right, missed = np.zeros(len(found), bool), np.ones(len(true), bool)
            right[match.index_a], missed[match.index_b] = True, False
            name = f"{one.name}, " if len(evaluations) > 1 else ""
            _picture(
                axis, image, window, f"{name}score ≥ {theta:g}: {right.sum()} right, {(~right).sum()} false"
            )
            _mark(axis, found.xy[right], found.xy[~right], true.xy[missed])
    return figure


def _mark(axes: Axes, right: NDArray[Any], false: NDArray[Any], missed: NDArray[Any]) -> None:
    axes.scatter(right[:, 0], right[:, 1], s=36, facecolors="none", edgecolors=GREEN, linewidths=1.2)
    axes.scatter(false[:, 0], false[:, 1], s=36, facecolors="none", edgecolors=RED, linewidths=1.2)
    axes.scatter(missed[:, 0], missed[:, 1], s=22, marker="x", color=ORANGE, linewidths=1.2)


def _picture(axes: Axes, image: NDArray[np.float32], window: tuple[int, int, int, int], title: str) -> None:
    part = image[window[0] : window[1], window[2] : window[3]]
    low, high = np.quantile(part, [0.02, 0.998])
    picture_axes(axes, title).imshow(image, cmap=TISSUE_MAP, vmin=low, vmax=max(high, low + 0.1))
    axes.set_xlim(window[2] - 0.5, window[3] - 0.5)
    axes.set_ylim(window[1] - 0.5, window[0] - 0.5)


def _window(shape: tuple[int, ...], xy: NDArray[np.float64]) -> tuple[int, int, int, int]:
    """The part to show: rows from, to, columns from, to; where most true points lie together."""
    size = [min(_CROP_PX, n) for n in shape]
    centre = np.array(shape) / 2
    if len(xy):
        inside = [(np.abs(xy - one) <= np.array(size[::-1]) / 2).all(axis=1).sum() for one in xy]
        centre = xy[int(np.argmax(inside))][::-1]
    top, left = (int(np.clip(c - s / 2, 0, n - s)) for c, s, n in zip(centre, size, shape, strict=True))
    return top, top + size[0], left, left + size[1]
