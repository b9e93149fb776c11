"""The page of a ground truth: the study's figures on workers, and tiles before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr

from brainmap.gt.clicks import Clicks
from brainmap.gt.consensus import Aggregated, Consensus
from brainmap.gt.heatmap import heat_map
from brainmap.gt.settings import GtSettings
from brainmap.report.html import Page
from brainmap.report.style import BLUE, ORANGE, RED, clean, new_figure

__all__ = ["write_report"]

EXAMPLES = 3
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
            ("images", result.n_images),
            ("workers", result.n_workers),
            ("clicks", result.n_clicks),
            ("candidates", result.n_candidates),
            ("cells (posterior >= 0.5)", result.n_accepted),
        ]
    )
    facts = [(k.replace("_", " "), v) for k, v in consensus.details.items() if not isinstance(v, dict)]
    page.add_facts([*facts, ("QC images", ", ".join(qc) or "none: all images estimate ability")])
    _workers(page, clicks, consensus, groups, qc)
    _candidates(page, consensus)
    _tiles(page, clicks, consensus, settings, None if tiles is None else Path(tiles))
    page.write(path)


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
        page.add_figure(_ability_figure(table, known), "Abilities and weights of the workers")
        page.add_figure(_activity_figure(table, known, made), "Number of clicks against ability")
    if any(groups):
        page.add_figure(
            _group_figure(clicks, groups, images),
            "Clicks per image by consistency group: workers who click more than the image's mean on at most "
            "20 % (below), at least 80 % (above) or some of the images (mixed)",
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
    page.add_table(columns, [list(v) for v in values], "All workers", max_rows=500, collapsed=n > 40)


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
    page.add_section("Candidates")
    votes = np.concatenate([i.n_workers for i in consensus.images])
    figure = new_figure(11, 2.8)
    axes = figure.subplots(1, 2)
    axes[0].hist(posterior, np.linspace(0, 1, 41), color=BLUE, log=True)
    clean(axes[0], x="posterior", y="candidates")
    bins = np.arange(0.5, votes.max() + 1.5)
    bins = bins if len(bins) < 80 else np.linspace(0.5, votes.max() + 0.5, 80)
    parts = [votes[posterior >= 0.5], votes[posterior < 0.5]]
    axes[1].hist(parts, bins, stacked=True, color=[BLUE, ORANGE], label=["cells", "others"], log=True)
    axes[1].legend(frameon=False, fontsize=8)
    clean(axes[1], x="workers who clicked", y="candidates")
    page.add_figure(figure, "Posteriors, and votes of accepted and other candidates")


def _tiles(
    page: Page, clicks: Clicks, consensus: Consensus, settings: GtSettings, tiles: Path | None
) -> None:
    count = np.bincount(clicks.image, minlength=len(clicks.image_ids))
    chosen = [int(i) for i in np.argsort(-count, kind="stable")[:EXAMPLES] if count[i]]
    if not chosen:
        return
    page.add_section(
        "Tiles before and after", "Left: all clicks. Right: heat map and accepted cells. Largest 300 px."
    )
    for image in chosen:
        name = clicks.image_ids[image]
        page.add_figure(_tile_figure(clicks, consensus, settings, image, _picture(tiles, name)), name)


def _picture(tiles: Path | None, name: str) -> Any:
    if tiles is None:
        return None
    path = tiles / "images" / f"{name}.png"
    if not path.is_file():
        return None
    import matplotlib.image

    return matplotlib.image.imread(path)


def _tile_figure(clicks: Clicks, consensus: Consensus, settings: GtSettings, image: int, picture: Any) -> Any:
    one = consensus.images[image]
    shape = (int(clicks.height[image]), int(clicks.width[image]))
    xy = clicks.xy[clicks.rows_of(image)]
    size = np.minimum(300, shape[::-1])
    corner = np.clip(np.median(xy, axis=0) - size / 2, 0, np.array(shape[::-1]) - size)
    figure = new_figure(11, 5.4)
    left, right = figure.subplots(1, 2)
    if picture is not None:
        left.imshow(picture, cmap="gray")
    left.scatter(xy[:, 0], xy[:, 1], s=3, color=RED, alpha=0.6, linewidths=0)
    clean(left, title=f"{len(xy)} clicks")
    heat = heat_map(
        one.mark_xy,
        one.mark_weight,
        one.total_weight,
        shape,
        sigma=settings.sigma_px,
        cut=settings.cut_sigmas,
        saturation=settings.saturation,
    )
    right.imshow(heat, cmap="magma", vmin=0, vmax=1)
    cells = one.xy[one.posterior >= 0.5]
    right.scatter(cells[:, 0], cells[:, 1], s=40, facecolors="none", edgecolors="white", linewidths=0.7)
    clean(right, title=f"{len(cells)} cells")
    for axis in (left, right):
        axis.set_aspect("equal")
        axis.set_xlim(corner[0] - 0.5, corner[0] + size[0] - 0.5)
        axis.set_ylim(corner[1] + size[1] - 0.5, corner[1] - 0.5)
    return figure
