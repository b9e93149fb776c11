"""The cells of a run drawn on its image: examples from different regions and depths, and whole slices."""

from __future__ import annotations

import numpy as np

from brainmap.coords import vox_to_um
from brainmap.report import figures, style
from brainmap.report.html import Page
from brainmap.report.run_facts import Run
from brainmap.report.slices import Crop, choose_crops, choose_slices, read_crop, read_slices
from brainmap.report.summary import points_near
from brainmap.report.truth import missed_cells

__all__ = ["add_pictures"]

_CROP_CELLS = 28  # side of a close-up in cell diameters


def add_pictures(page: Page, run: Run, scored: bool) -> None:
    """Add the section, where there are an image and a table of cells.

    Parameters
    ----------
    page : Page
    run : Run
    scored : bool
        Whether the true cells are known; missed ones are drawn then.
    """
    if run.volume is None or run.summary is None or run.points is None:
        return
    volume, step = run.volume, run.volume.voxel_um[0]
    slices = choose_slices(run.summary.per_slice, volume.shape[0])
    reach = max(0.5, 1.1 * run.cell_um / step)  # light of a cell reaches a little beyond its body
    points = points_near(run.points, slices, reach)
    page.add_section(
        "Cells in the image",
        "The tissue as it is, and beside it the same with its cells. A picture opens large when clicked.",
    )
    overviews = read_slices(volume, slices)
    missed = missed_cells(run) if scored else None
    names = {region.id: region.name for region in run.regions.regions} if run.regions else {}
    crops = choose_crops(volume, overviews, points, _CROP_CELLS * run.cell_um)
    scale = ("score 0", "1", _score_colours())
    if crops:
        page.add_subheading("Examples at full resolution")
        page.add_text(
            "Solid circles: the centre of the cell lies in this slice; dotted: a little above or below it. The colour "
            "is the score." + (" Crosses: true cells that were not found." if missed is not None else "")
        )
        for number, crop in enumerate(crops):
            near = points[slices.index(crop.z)]
            crosses = missed[np.abs(missed[:, 0] - crop.z) <= reach][:, 1:] if missed is not None else None
            white = overviews[slices.index(crop.z)].window()[1]
            picture = read_crop(volume, crop)
            pair = [
                (figures.closeup(picture, drawn, volume.voxel_um, run.cell_um, crosses, white), "")
                for drawn in (None, near)
            ]
            page.add_gallery(
                pair, _caption(crop, names, step), kind="pair", dpi=130, scale=scale if number == 0 else None,
                place=_place(run, crop.z, sum(crop.y) / 2, sum(crop.x) / 2),
            )  # fmt: skip
    page.add_subheading("Whole slices")
    for image, near in zip(overviews, points, strict=True):
        depth_mm = (image.z + 0.5) * step / 1000
        caption = (
            f"Slice z {image.z}, {depth_mm:.3g} mm deep: {len(near):,} cells within {reach * step:.3g} µm."
        )
        pair = [(figures.overview(image, drawn, volume.voxel_um), "") for drawn in (None, near)]
        _, height, width = volume.shape
        page.add_gallery(pair, caption, dpi=140, place=_place(run, image.z, height / 2, width / 2))
    page.add_text(
        "Brightness is stretched from the 1st percentile of each picture to the 99.7th of its slice, with a gamma of "
        "0.75: pictures of one slice can be compared, those of several cannot."
    )


def _place(run: Run, *vox: float) -> str:
    """z, y, x in um, as the viewer takes it."""
    assert run.volume is not None
    um = vox_to_um(np.array([vox]), run.volume.voxel_um, run.volume.origin_um)[0]
    return ",".join(f"{value:.1f}" for value in um)


def _caption(crop: Crop, names: dict[int, str], step_um: float) -> str:
    region = f", {names[crop.region]}" if crop.region in names else ""
    depth = f"{(crop.z + 0.5) * step_um / 1000:.3g} mm deep"
    return f"{crop.title}{region}; {depth} (z {crop.z}, y {crop.y[0]} to {crop.y[1]}, x {crop.x[0]} to {crop.x[1]})."


def _score_colours() -> list[str]:
    from matplotlib.colors import to_hex

    colours = style.score_map()
    return [to_hex(colours(i / 8)) for i in range(9)]
