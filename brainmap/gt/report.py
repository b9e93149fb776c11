"""The page of a ground truth: the study's figures on workers, and tiles before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr

from brainmap.gt.clicks import Clicks
from brainmap.gt.consensus import ACCEPT, Aggregated, Consensus
from brainmap.gt.heatmap import heat_map
from brainmap.gt.settings import GtSettings
from brainmap.report.html import Page
from brainmap.report.style import (
    BLUE,
    ORANGE,
    RED,
    SKY,
    YELLOW,
    clean,
    literal_figure,
    new_figure,
    picture_axes,
)

__all__ = ["write_report"]

EXAMPLES = 3
# Below, the answer to "can it be trusted" is to look closer.
_FEW_WORKERS, _MUCH_DOUBT, _ABLE = 3, 0.15, 0.6
#: What the numbers of the methods are called for people.
_NAMES = {
    "click_scatter_px": "Clicks scatter around a cell by (px)",
    "click_tail": "Clicks that land far off (degrees of freedom: fewer, more of them)",
    "difficulty_logits": "How much cells differ in being seen (logits)",
    "attractiveness_logits": "How much other places differ in drawing clicks (logits)",
    "share_of_cells": "Share of the places clicked that are cells",
    "void_image_worker_pairs": "Images left out for one worker, who clicked as if at random",
    "unfinished_image_worker_pairs": "Images a worker did not finish: what is blank there says nothing",
    "prior": "Share of the places clicked that are cells, as learnt",
    "em_iterations": "Rounds until nothing changed",
    "em_converged": "Settled",
    "ability_images": "Images that estimate ability",
    "workers_left_out": "Workers left out",
}
GROUPS = ("below", "mixed", "above")


def write_report(
    path: Path,
    clicks: Clicks,
    consensus: Consensus,
    settings: GtSettings,
    groups: list[str],
    result: Aggregated,
    *,
    tiles: str | Path | None,
    qc: Sequence[str],
) -> None:
    """Write report.html; figures that need more workers or images than there are are left out."""
    page = Page("Ground truth from clicks", subtitle=f"method {settings.method}")
    for reason, count in clicks.dropped.items():
        page.add_warning(f"{count} clicks were dropped: {reason}")
    page.add_numbers(
        [
            ("cells accepted", result.n_accepted),
            ("images", result.n_images),
            ("workers", result.n_workers),
            ("clicks", result.n_clicks),
            ("places clicked at all", result.n_candidates),
        ]
    )
    page.add_checks("Can it be trusted?", _checks(clicks, consensus))
    page.add_steps(
        "What to do next (GT is the folder of this page)",
        [
            ("Look at the cells below: are they cells to your eyes?", ""),
            ("Compare with an expert's marks on some of the images.", "brainmap gt compare GT EXPERT.csv"),
            ("Teach the detector.", "brainmap retrain --clicks CLICKS.csv --tiles TILES --out DETECTOR"),
        ],
    )
    _tiles(page, clicks, consensus, settings, None if tiles is None else Path(tiles))
    _workers(page, clicks, consensus, groups, qc)
    _candidates(page, consensus)
    page.add_section("How this was made", "What the method found out on the way; gt.json holds all of it.")
    facts = [
        (_NAMES.get(k, k.replace("_", " ")), v)
        for k, v in consensus.details.items()
        if isinstance(v, (str, bool, int, float))
    ]
    page.add_facts([*facts, ("Quality-control images", ", ".join(qc) or "none: all images estimate ability")])
    page.write(path)


def _checks(clicks: Clicks, consensus: Consensus) -> list[tuple[str, str, str]]:
    """What can be said for and against the result: opinions per image, agreement, able workers."""
    seen = np.bincount(clicks.seen_image, minlength=len(clicks.image_ids))
    few = int((seen < _FEW_WORKERS).sum())
    found = [
        (
            "Enough opinions?",
            "look" if few else "good",
            f"An image was seen by {np.median(seen):.0f} workers (median)."
            + (f" {few} of {len(seen)} images were seen by fewer than {_FEW_WORKERS}." if few else ""),
        )
    ]
    posterior = np.concatenate([i.posterior for i in consensus.images] + [np.zeros(0)])
    if len(posterior):
        open_ = float(((posterior > 0.2) & (posterior < 0.8)).mean())
        found.append(
            (
                "Do the workers agree?",
                "good" if open_ < _MUCH_DOUBT else "look",
                f"{100 * open_:.0f} % of the places clicked are in doubt (between 20 and 80 % sure to be cells).",
            )
        )
    able = consensus.workers.sensitivity
    if np.isfinite(able).any():
        middle = float(np.nanmedian(able))
        found.append(
            (
                "Do they find the cells?",
                "good" if middle >= _ABLE else "look",
                f"A worker in the middle clicks {100 * middle:.0f} % of the accepted cells.",
            )
        )
    return found


def _workers(page: Page, clicks: Clicks, consensus: Consensus, groups: list[str], qc: Sequence[str]) -> None:
    page.add_section(
        "Workers", "Sensitivity: share of cells clicked. Specificity: share of other candidates left alone."
    )
    table = consensus.workers
    known = ~np.isnan(table.sensitivity)
    images = [clicks.image_ids.index(name) for name in qc] or list(range(len(clicks.image_ids)))
    n = len(clicks.worker_ids)
    made = np.bincount(clicks.worker[np.isin(clicks.image, images)], minlength=n)
    if known.any():
        page.add_figure(_ability_figure(table, known), "Abilities and weights of the workers", format="svg")
        page.add_figure(
            _activity_figure(table, known, made), "Number of clicks against ability", format="svg"
        )
    if any(groups):
        page.add_figure(
            _group_figure(clicks, groups, images),
            "Clicks per image by consistency group: workers who click more than the image's mean on at most "
            "20 % (below), at least 80 % (above) or some of the images (mixed)",
            format="svg",
        )
    values = zip(
        clicks.worker_ids,
        np.bincount(clicks.seen_worker, minlength=n).tolist(),
        np.bincount(clicks.worker, minlength=n).tolist(),
        table.sensitivity.tolist(),
        table.specificity.tolist(),
        table.weight_click.tolist(),
        table.weight_no_click.tolist(),
        groups,
        strict=True,
    )
    columns = [
        "worker",
        "images",
        "clicks",
        "sensitivity",
        "specificity",
        "weight click",
        "weight none",
        "group",
    ]
    page.add_table(
        columns,
        [list(v) for v in values],
        "All workers",
        max_rows=500,
        search=True,
        download="workers_shown.csv",
    )


def _ability_figure(table: Any, known: Any) -> Any:
    figure = new_figure(11, 2.8)
    axes = figure.subplots(1, 3)
    axes[0].hist(table.sensitivity[known], np.linspace(0, 1, 21), color=BLUE)
    clean(axes[0], x=f"sensitivity (mean {table.sensitivity[known].mean():.3f})", y="workers")
    axes[1].hist(table.specificity[known], np.linspace(0, 1, 41), color=BLUE)
    clean(axes[1], x=f"specificity (mean {table.specificity[known].mean():.3f})", y="workers")
    for values, colour, name in (
        (table.weight_click, BLUE, "click"),
        (table.weight_no_click, ORANGE, "no click"),
    ):
        mean = values[known].mean()
        axes[2].hist(values[known], 20, color=colour, alpha=0.8, label=f"{name}, mean {mean:+.2f}")
    axes[2].legend(frameon=False, fontsize=8)
    clean(axes[2], x="weight", y="workers")
    return figure


def _activity_figure(table: Any, known: Any, made: Any) -> Any:
    figure = new_figure(11, 2.8)
    axes = figure.subplots(1, 3)
    for axis, values, name in (
        (axes[0], table.sensitivity, "sensitivity"),
        (axes[1], table.specificity, "specificity"),
        (axes[2], table.weight_click, "weight of a click"),
    ):
        x, y = made[known].astype(float), values[known]
        axis.scatter(x, y, s=14, color=BLUE)
        title = ""
        if len(x) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0:
            title = f"Pearson {pearsonr(x, y)[0]:.2f}, Spearman {spearmanr(x, y)[0]:.2f}"
        clean(axis, title=title, x="clicks", y=name)
    return figure


def _group_figure(clicks: Clicks, groups: list[str], images: list[int]) -> Any:
    shown = images[:8]
    figure = new_figure(11, 2.8)
    axis = figure.subplots()
    of_worker = np.array(groups)
    for offset, (group, colour) in enumerate(zip(GROUPS, (ORANGE, BLUE, RED), strict=True)):
        boxes, places = [], []
        for place, image in enumerate(shown):
            who = clicks.seen_worker[clicks.seen_of(image)]
            made = np.bincount(clicks.worker[clicks.rows_of(image)], minlength=len(groups))[who]
            values = made[of_worker[who] == group]
            if len(values):
                boxes.append(values)
                places.append(place + (offset - 1) * 0.27)
        if boxes:
            style = {"facecolor": colour, "alpha": 0.6}
            axis.boxplot(
                boxes, positions=places, widths=0.22, patch_artist=True, boxprops=style, showfliers=False
            )
        axis.plot([], [], color=colour, lw=6, alpha=0.6, label=f"{group} ({(of_worker == group).sum()})")
    axis.set_xticks(range(len(shown)), [clicks.image_ids[i][-18:] for i in shown])
    axis.legend(frameon=False, fontsize=8)
    clean(axis, y="clicks per worker")
    return figure


def _candidates(page: Page, consensus: Consensus) -> None:
    posterior = np.concatenate([i.posterior for i in consensus.images] + [np.zeros(0)])
    if len(posterior) == 0:
        return
    page.add_section("Places clicked")
    votes = np.concatenate([i.n_workers for i in consensus.images])
    figure = new_figure(11, 2.8)
    axes = figure.subplots(1, 2)
    axes[0].hist(posterior, np.linspace(0, 1, 41), color=BLUE, log=True)
    clean(axes[0], x="probability of a cell", y="places")
    bins = np.arange(0.5, votes.max() + 1.5)
    bins = bins if len(bins) < 80 else np.linspace(0.5, votes.max() + 0.5, 80)
    parts = [votes[posterior >= 0.5], votes[posterior < 0.5]]
    axes[1].hist(parts, bins, stacked=True, color=[BLUE, ORANGE], label=["cells", "others"], log=True)
    axes[1].legend(frameon=False, fontsize=8)
    clean(axes[1], x="workers who clicked", y="places")
    page.add_figure(
        figure, "How sure the places clicked are cells, and by how many they were clicked", format="svg"
    )


def _tiles(
    page: Page, clicks: Clicks, consensus: Consensus, settings: GtSettings, tiles: Path | None
) -> None:
    """Images with most clicks: the tissue with every click, with the accepted cells, and how sure they are."""
    count = np.bincount(clicks.image, minlength=len(clicks.image_ids))
    chosen = [int(i) for i in np.argsort(-count, kind="stable")[:EXAMPLES] if count[i]]
    if not chosen:
        return
    page.add_section(
        "Clicks and cells",
        "The images with most clicks, at most 300 px of each: every click, the cells they make, and how sure a cell "
        "is there." + ("" if tiles else " The tissue itself is drawn where --tiles names the images."),
    )
    for image in chosen:
        name = clicks.image_ids[image]
        pictures = _tile_figures(clicks, consensus, settings, image, _picture(tiles, name))
        page.add_gallery(pictures, name, dpi=110)


def _picture(tiles: Path | None, name: str) -> Any:
    if tiles is None:
        return None
    path = tiles / "images" / f"{name}.png"
    if not path.is_file():
        return None
    import matplotlib.image

    return matplotlib.image.imread(path)


def _tile_figures(
    clicks: Clicks, consensus: Consensus, settings: GtSettings, image: int, picture: Any
) -> list[tuple[Any, str]]:
    """Part of an image three times: with its clicks, with its accepted cells, and as a heat map."""
    one = consensus.images[image]
    shape = (int(clicks.height[image]), int(clicks.width[image]))
    xy = clicks.xy[clicks.rows_of(image)]
    size = np.minimum(300, shape[::-1])
    corner = np.clip(np.median(xy, axis=0) - size / 2, 0, np.array(shape[::-1]) - size)
    heat = heat_map(
        one.mark_xy,
        one.mark_weight,
        one.total_weight,
        shape,
        sigma=settings.sigma_px,
        cut=settings.cut_sigmas,
        saturation=settings.saturation,
    )
    sure = one.posterior >= ACCEPT
    found = []
    for what in ("clicks", "cells", "map"):
        figure = literal_figure(4.0, 4.0 * float(size[1] / size[0]), "black")
        axes = picture_axes(figure.subplots())
        axes.set_facecolor("black")
        if what == "map":
            axes.imshow(heat, cmap="magma", vmin=0, vmax=1)
            title = "How sure a cell is (dark: not at all)"
        elif picture is not None:
            axes.imshow(picture, cmap="gray", vmin=0, vmax=float(np.max(picture)) or 1.0)
        if what == "clicks":
            axes.scatter(xy[:, 0], xy[:, 1], s=8, color=ORANGE, alpha=0.8, linewidths=0)
            title = f"{len(xy)} clicks in the whole image"
        elif what == "cells":
            for places, colour, line in ((one.xy[~sure], SKY, ":"), (one.xy[sure], YELLOW, "-")):
                axes.scatter(
                    places[:, 0],
                    places[:, 1],
                    s=70,
                    facecolors="none",
                    edgecolors=colour,
                    linewidths=1.1,
                    linestyles=line,
                )
            title = f"{sure.sum()} accepted cells (solid) and {(~sure).sum()} rejected places (dotted)"
        axes.set_aspect("equal")
        axes.set_xlim(corner[0] - 0.5, corner[0] + size[0] - 0.5)
        axes.set_ylim(corner[1] + size[1] - 0.5, corner[1] - 0.5)
        found.append((figure, title))
    return found
