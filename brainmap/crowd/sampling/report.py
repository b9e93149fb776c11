"""The report of a sampling: what passed, what was rejected and why, who got what, and how the tiles look."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from brainmap.report.html import Page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from brainmap.crowd.sampling.request import SampleRequest
    from brainmap.crowd.sampling.sampled import Sampled

__all__ = ["write_sample_report"]

# What the quality rule's words mean (methods 2).
_REASONS = {
    "background": "background: at least half of the pixels are dark",
    "flat": "flat: the grey levels hardly vary",
    "dim": "dim: hardly a bright pixel, nothing that could be a cell",
}
# Pictures of each region, and their size in the report.
_PICTURES, _PIXELS = 6, 160


def write_sample_report(path: Path, request: SampleRequest, sampled: Sampled) -> Path:
    """Write the report of `brainmap crowd sample`."""
    pool, tiles = sampled.pool, sampled.tiles
    page = Page(
        "Tiles to annotate", f"{len(tiles)} tiles of {len(pool.brains)} brains, strategy {request.strategy}"
    )
    rejected = len(pool.places) - len(pool.passed)
    page.add_numbers([
        ("tiles", len(tiles)), ("QC tiles", int(tiles.columns["is_qc"].sum())),
        ("data sets", len(set(tiles.columns["dataset"]) - {""})),
        ("passed", len(pool.passed)), ("rejected", rejected),
    ])  # fmt: skip
    if pool.without:
        page.add_warning(
            f"No tile of {', '.join(pool.without)}: the region is smaller than a tile, or not in the brains"
        )
    if request.budget is not None and len(tiles) < request.budget:
        page.add_warning(f"Only {len(tiles)} tiles pass, of the {request.budget} that the budget allows")
    page.add_facts([
        ("tile", f"{pool.size} px, {pool.size * tiles.columns['voxel_um'][0][1]:.0f} um"),
        ("strategy", request.strategy), ("seed", request.seed), ("looks compared by", sampled.features),
        ("squares in the regions", pool.found), ("left out: annotated before", pool.annotated),
        ("looked at", len(pool.places)),
    ])  # fmt: skip
    _counts(page, sampled)
    _rejections(page, sampled)
    _doubt(page, sampled)
    _pictures(page, sampled)
    return page.write(path)


def _counts(page: Page, sampled: Sampled) -> None:
    columns, pool = sampled.tiles.columns, sampled.pool
    page.add_section("Who got what", "The budget is spread over animals first, then over regions.")
    rows: list[list[Any]] = []
    for brain in pool.brains:
        own = columns["brain"] == brain.name
        sections = len(np.unique(columns["z"][own]))
        rows.append(
            [
                brain.name,
                *(int((own & (columns["region"] == r)).sum()) for r in pool.regions),
                int(own.sum()),
                sections,
            ]
        )
    rows.append(
        [
            "all",
            *(int((columns["region"] == r).sum()) for r in pool.regions),
            len(sampled.tiles),
            sum(r[-1] for r in rows),
        ]
    )
    page.add_table(
        ["animal", *pool.regions, "tiles", "sections"], rows, "Tiles by animal and region", sortable=False
    )
    mixes = []
    for name in sorted(set(columns["dataset"])):
        own = columns["dataset"] == name
        mixes.append([
            name or "QC, for everybody", *(int((own & (columns["region"] == r)).sum()) for r in pool.regions),
            *(int((own & (columns["brain"] == b.name)).sum()) for b in pool.brains),
            int(own.sum()), int(columns["cells_detected"][own].sum()),
        ])  # fmt: skip
    names = ["data set", *pool.regions, *(b.name for b in pool.brains), "tiles", "cells detected"]
    page.add_table(names, mixes, "Tiles by data set", sortable=False)


def _rejections(page: Page, sampled: Sampled) -> None:
    pool = sampled.pool
    page.add_section(
        "Passed and rejected",
        "A tile that fails several rules counts for each. Settings of the rule: methods of the founding study.",
    )
    region = pool.places.region
    good = np.array([not reasons for reasons in pool.reasons], bool)
    rows: list[list[Any]] = []
    for i, name in enumerate(pool.regions):
        own = [reasons for reasons, r in zip(pool.reasons, region, strict=True) if r == i]
        rejected = [sum(reason in reasons for reasons in own) for reason in _REASONS]
        rows.append([name, len(own), int((good & (region == i)).sum()), *rejected])
    rows.append(["all", *(sum(row[k] for row in rows) for k in range(1, 3 + len(_REASONS)))])
    page.add_table(["region", "looked at", "passed", *_REASONS], rows, "By region", sortable=False)
    ends = [(brain.name, quality.end) for brain, quality in zip(pool.brains, pool.quality, strict=True)]
    page.add_facts(
        ends, title="Where the grey levels of each brain end (bright is the upper sixth of that range)"
    )
    for reason, words in _REASONS.items():
        poor = [row for row, reasons in enumerate(pool.reasons) if reason in reasons][:_PICTURES]
        if poor:
            figure = _mosaic([pool.image(row) for row in poor], [pool.name(row) for row in poor])
            page.add_figure(figure, f"Rejected as {words}", format="webp")


def _doubt(page: Page, sampled: Sampled) -> None:
    doubt = sampled.doubt
    if doubt is None:
        return
    page.add_section("Doubt", f"Tiles were chosen for: {doubt.words}.")
    own = sampled.tiles.columns["doubt"]
    page.add_facts([
        ("mean of the tiles that passed", float(doubt.value.mean())), ("mean of the tiles chosen", float(own.mean())),
        ("explained, of left-out tiles (share of variance)", doubt.skill),
    ])  # fmt: skip
    if doubt.skill is not None and doubt.skill <= 0:
        page.add_warning(
            "How the annotated tiles look does not tell which were hard: the detector's own doubt was used"
        )


def _pictures(page: Page, sampled: Sampled) -> None:
    tiles = sampled.tiles
    page.add_section("The tiles", "As workers see them. QC tiles are framed here, and nowhere else.")
    for region in sampled.pool.regions:
        own = np.flatnonzero(tiles.columns["region"] == region)
        if not len(own):
            continue
        # The QC tiles, and an even share of the others.
        qc = own[tiles.columns["is_qc"][own]]
        rest = np.setdiff1d(own, qc)
        n = min(len(rest), max(1, _PICTURES - len(qc)))
        shown = np.concatenate(
            [qc, rest[np.linspace(0, len(rest) - 1, n).astype(np.int64)] if len(rest) else rest]
        )
        images = [tiles.image(int(i)) for i in shown]
        figure = _mosaic(
            images, [str(tiles.ids[i]) for i in shown], [bool(tiles.columns["is_qc"][i]) for i in shown]
        )
        page.add_figure(figure, f"{region}: {len(shown)} of {len(own)} tiles", format="webp")


def _mosaic(images: list[NDArray[np.float32]], titles: list[str], framed: list[bool] | None = None) -> Figure:
    """Tiles beside each other, small enough that a report of many stays small."""
    from brainmap.report.style import new_figure, picture_axes

    columns = min(len(images), _PICTURES)
    rows = -(-len(images) // columns)
    figure = new_figure(1.5 * columns, 1.7 * rows)
    axes: Any = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.ravel():
        axis.set_visible(False)
    for k, (image, title) in enumerate(zip(images, titles, strict=True)):
        axis = picture_axes(axes.ravel()[k])
        axis.set_visible(True)
        step = max(1, image.shape[0] // _PIXELS)
        axis.imshow(image[::step, ::step], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(title.removeprefix(title.split("_z")[0] + "_"), fontsize=5.5)
        if framed and framed[k]:
            for spine in axis.spines.values():
                spine.set_visible(True)
                spine.set_color("#d9822b")
                spine.set_linewidth(2.5)
    return figure
