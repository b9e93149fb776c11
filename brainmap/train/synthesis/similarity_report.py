"""The page that shows synthetic tiles beside real ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from brainmap.files import write_json
from brainmap.lock import held
from brainmap.report.html import Page
from brainmap.report.style import BLUE, LINE, ORANGE, QUIET, clean, new_figure, picture_axes
from brainmap.swap import staged
from brainmap.tiles.tiles import Tiles
from brainmap.train.synthesis.similarity import FEATURES, STUDY, Similarity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_similarity"]

NAMES = {
    "brightness": "mean brightness",
    "contrast": "contrast (standard deviation)",
    "laplacian_variance": "Laplacian variance",
    "gradient": "gradient strength",
    "entropy": "entropy (bits)",
    "signal_minus_background": "signal minus background",
}
_SHOWN = 5
_WINDOW_PX = 320


def write_similarity(folder: Path, similarity: Similarity, real: Tiles, synthetic: Tiles) -> Path:
    """Write `similarity.json` and the self-contained `similarity.html` into a folder.

    Parameters
    ----------
    folder : Path
    similarity : Similarity
        Of `compare_tiles(real, synthetic)`.
    real, synthetic : Tiles

    Returns
    -------
    Path
        The page.
    """
    page = Page("Synthetic against real tiles", f"{len(synthetic)} synthetic, {len(real)} real tiles")
    page.add_numbers(
        [
            ("histogram divergence", f"{similarity.jsd:.4f}"),
            ("of backgrounds", _text(similarity.jsd_background)),
            ("log-power difference", f"{similarity.log_power:.3f}"),
        ]
    )
    page.add_table(
        ["measure", "here", "founding study"],
        [
            ["Jensen-Shannon divergence, all pixels", similarity.jsd, STUDY["jsd"]],
            ["Jensen-Shannon divergence, background", similarity.jsd_background, STUDY["jsd_background"]],
            ["mean |difference of ln power|", similarity.log_power, STUDY["log_power"]],
        ],
        "Beside the founding study, whose tiles and binning are others: compare with care",
        sortable=False,
    )
    page.add_section(
        "Grey levels and spatial frequencies",
        "Divergences are of base 2 on 256 grey levels: 0 equal, 1 nothing in common.",
    )
    page.add_figure(
        _curves(similarity), "Grey levels of all pixels, of pixels away from cells, and power", format="svg"
    )
    page.add_section("Tiles in numbers", "One value per tile.")
    page.add_figure(_features(similarity), "Distribution over the tiles", format="svg")
    rows = [[NAMES[name], *values] for name, values in similarity.means.items()]
    page.add_table(
        ["measure", "real, mean", "synthetic, mean", "Kolmogorov-Smirnov distance"], rows, sortable=False
    )
    page.add_section(
        "Nearest neighbours",
        "Each synthetic tile's nearest real one by these numbers, z-scored. Distances like those among real "
        "tiles mean that synthetic ones lie among them.",
    )
    page.add_figure(_distances(similarity), "Distance to the nearest real tile", format="svg")
    page.add_figure(
        _pairs(similarity, real, synthetic),
        "Synthetic tiles, from the most to the least alike, and the nearest real ones below them "
        f"(corner of at most {_WINDOW_PX} px; one grey scale).",
        format="webp",
    )
    with held(folder, "what was there before stays"), staged(folder, "similarity.html") as new:
        write_json(new / "similarity.json", similarity.to_dict())
        page.write(new / "similarity.html")
    return folder / "similarity.html"


def _text(value: float) -> str | None:
    return None if np.isnan(value) else f"{value:.4f}"


def _curves(similarity: Similarity) -> Figure:
    figure = new_figure(11, 3.2)
    axes = figure.subplots(1, 3)
    both = ((similarity.real, BLUE, "real"), (similarity.synthetic, ORANGE, "synthetic"))
    edges = np.arange(257) / 255
    for axis, name, title in ((axes[0], "histogram", "all pixels"), (axes[1], "background", "background")):
        for side, colour, label in both:
            values = getattr(side, name)
            if not np.isnan(values).any():
                axis.stairs(values, edges, color=colour, label=label, linewidth=1.3)
        divergence = similarity.jsd if name == "histogram" else similarity.jsd_background
        shown = f", divergence {divergence:.4f}" if np.isfinite(divergence) else ": no cells known"
        clean(axis, title=title + shown, x="normalised intensity", y="share of pixels")
        axis.set_xlim(0, 1)
    frequency = (np.arange(len(similarity.real.log_power)) + 0.5) / (2 * len(similarity.real.log_power))
    for side, colour, label in both:
        axes[2].plot(frequency, side.log_power, color=colour, label=label, linewidth=1.3)
        seen = (side.power > 0).all(axis=0)
        low, high = np.quantile(np.log(side.power[:, seen]), [0.1, 0.9], axis=0)
        axes[2].fill_between(frequency[seen], low, high, color=colour, alpha=0.15, linewidth=0)
    title = f"spectrum, difference {similarity.log_power:.3f}"
    clean(axes[2], title=title, x="cycles per pixel (band: 80 % of the tiles)", y="ln power")
    axes[0].legend(frameon=False, fontsize=9)
    return figure


def _features(similarity: Similarity) -> Figure:
    figure = new_figure(11, 4.6)
    for column, (axis, name) in enumerate(zip(figure.subplots(2, 3).ravel(), FEATURES, strict=True)):
        sides = [side.features[:, column] for side in (similarity.real, similarity.synthetic)]
        sides = [values[~np.isnan(values)] for values in sides]
        clean(axis, x=NAMES[name], y="tiles (share)" if column % 3 == 0 else "")
        if not all(len(values) for values in sides):
            axis.text(0.5, 0.5, "no cells known", color=QUIET, ha="center", transform=axis.transAxes)
            continue
        together = np.concatenate(sides)
        edges = np.linspace(together.min(), together.max() + 1e-9, 19)
        for values, colour, label in zip(sides, (BLUE, ORANGE), ("real", "synthetic"), strict=True):
            share = np.histogram(values, edges)[0] / len(values)
            axis.stairs(share, edges, fill=True, color=colour, alpha=0.45, label=label)
            axis.axvline(values.mean(), color=colour, linewidth=1.4)
    figure.axes[0].legend(frameon=False, fontsize=9)
    return figure


def _distances(similarity: Similarity) -> Figure:
    figure = new_figure(11, 2.4)
    axis = figure.subplots()
    # One odd tile must not squeeze the rest into one bar.
    most = float(np.quantile(np.r_[similarity.distance, similarity.real_distance], 0.98)) + 1e-9
    edges = np.linspace(0, most, 31)
    for values, colour, label in (
        (similarity.real_distance, BLUE, "real tile to another real one"),
        (similarity.distance, ORANGE, "synthetic tile to a real one"),
    ):
        share = np.histogram(np.minimum(values, most), edges)[0] / len(values)
        text = f"{label}, median {np.median(values):.2f}"
        axis.stairs(share, edges, fill=True, color=colour, alpha=0.45, label=text)
    axis.legend(frameon=False, fontsize=9)
    clean(axis, x="distance (standard deviations of the real tiles)", y="tiles (share)")
    return figure


def _pairs(similarity: Similarity, real: Tiles, synthetic: Tiles) -> Figure:
    order = np.argsort(similarity.distance, kind="stable")
    shown = order[np.unique(np.linspace(0, len(order) - 1, min(_SHOWN, len(order))).astype(int))]
    figure = new_figure(11, 11 / len(shown) * 2 + 0.3 if len(shown) > 2 else 6)
    axes = figure.subplots(2, len(shown), squeeze=False)
    for column, index in enumerate(shown):
        nearest = int(similarity.nearest[index])
        title = f"synthetic, distance {similarity.distance[index]:.2f}"
        for row, tiles, which, text in (
            (0, synthetic, int(index), title), (1, real, nearest, str(real.ids[nearest])[:24])
        ):  # fmt: skip
            axis = picture_axes(axes[row, column], text)
            picture = tiles.image(which)[:_WINDOW_PX, :_WINDOW_PX]
            axis.imshow(picture, cmap="gray", vmin=0.1, vmax=0.8, interpolation="nearest")
            axis.set_facecolor(LINE)
    return figure
