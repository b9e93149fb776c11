"""Draws docs/images/overview.png, the picture of the README, from the phantom brain.

    python docs/make_figures.py [FOLDER]

FOLDER keeps the phantom (made there if it is missing); by default a temporary one is used.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from brainmap.errors import NotFoundError
from brainmap.image.volume import Volume
from brainmap.phantom import Phantom, write_phantom
from brainmap.phantom.anatomy import STRUCTURES, Anatomy
from brainmap.points.table import Points, read_locations
from brainmap.report import style
from brainmap.report.region_rows import read_regions
from brainmap.report.slices import Crop, SliceImage, read_crop

OUT = Path(__file__).parent / "images" / "overview.png"
SLICE = 124
CELL_UM = 10.0
SHOWN = (
    "Isocortex, layer 2/3",
    "Isocortex, layer 5",
    "Piriform area",
    "Hypothalamus",
    "Striatum",
    "Dentate gyrus",
)


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(temporary) / "phantom"
        try:
            phantom = Phantom.load(folder)
        except NotFoundError:
            phantom = write_phantom(folder)
        figure = draw(phantom)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, facecolor="white")
    save_small(buffer)


def draw(phantom: Phantom) -> Figure:
    """Four panels with arrows between them: volume, cells, atlas, numbers."""
    volume = Volume.open(phantom.brain, channel=phantom.signal_channel)
    cells = read_locations(phantom.truth)
    figure = style.new_figure(12.0, 3.15)
    figure.set_layout_engine("none")
    boxes = [(0.005, 0.225, 0.06), (0.268, 0.2, 0.06), (0.502, 0.225, 0.06), (0.852, 0.14, 0.17)]
    panels = [figure.add_axes((left, bottom, width, 0.82 - bottom)) for left, width, bottom in boxes]
    draw_stack(panels[0], volume)
    draw_cells(panels[1], volume, cells)
    draw_atlas(panels[2], volume, phantom, cells)
    draw_counts(panels[3], phantom)
    titles = (
        "a whole-brain volume",
        "every cell, once",
        "brought to the atlas",
        "counted per region",
    )
    lefts = (0.006, 0.268, 0.502, 0.76)
    for number, (title, left) in enumerate(zip(titles, lefts, strict=True), start=1):
        figure.text(left, 0.92, f"{number}  {title}", fontsize=12, fontweight="bold", color=style.INK)
    for start, stop in ((0.234, 0.262), (0.472, 0.499), (0.731, 0.757)):
        arrow = FancyArrowPatch(
            (start, 0.45), (stop, 0.45), transform=figure.transFigure, arrowstyle="-|>", mutation_scale=16,
            color=style.BLUE, linewidth=2,
        )  # fmt: skip
        figure.add_artist(arrow)
    return figure


def stretched(image: SliceImage) -> np.ndarray:
    low, high = image.window()
    return np.clip((image.values - low) / (high - low), 0, 1) ** 0.75


def whole(volume: Volume, z: int) -> SliceImage:
    return read_crop(volume, Crop("", z, (0, volume.shape[1]), (0, volume.shape[2])))


def draw_stack(axes: Axes, volume: Volume) -> None:
    """Slices one behind another."""
    style.picture_axes(axes)
    shift = 75.0
    chosen = (20, 36, 52, 68, 82, 96, 110, 130)
    for i, z in enumerate(chosen):
        image = whole(volume, z)
        height, width = image.size_um
        dx, dy = shift * (len(chosen) - 1 - i), -shift * 0.62 * (len(chosen) - 1 - i)
        axes.imshow(stretched(image), cmap="gray", extent=(dx, dx + width, height + dy, dy), zorder=i)
        edge_x, edge_y = [dx, dx + width, dx + width, dx, dx], [dy, dy, dy + height, dy + height, dy]
        axes.plot(edge_x, edge_y, color="#6b7684", linewidth=0.8, zorder=i)
    axes.set_xlim(-20, shift * len(chosen) + width - 40)
    axes.set_ylim(height + 20, -shift * 0.62 * len(chosen) + 10)
    axes.set_aspect("equal")


def draw_cells(axes: Axes, volume: Volume, cells: Points) -> None:
    """A close-up with a circle around each cell."""
    crop = Crop("", SLICE, (95, 255), (70, 245))
    image = read_crop(volume, crop)
    y0, y1, x0, x1 = image.extent_um
    axes.imshow(stretched(image), cmap="gray", extent=(x0, x1, y1, y0))
    style.picture_axes(axes)
    y_um, x_um = ((cells[a] + 0.5) * volume.voxel_um[i] for i, a in ((1, "y"), (2, "x")))
    near = np.abs(cells["z"] - SLICE) * volume.voxel_um[0] <= 0.9 * CELL_UM
    near &= (y_um > y0) & (y_um < y1) & (x_um > x0) & (x_um < x1)
    axes.scatter(x_um[near], y_um[near], s=110, facecolors="none", edgecolors=style.ORANGE, linewidths=1.3)
    axes.set_xlim(x0, x1)
    axes.set_ylim(y1, y0)
    style.scale_bar(axes, image.size_um)


def draw_atlas(axes: Axes, volume: Volume, phantom: Phantom, cells: Points) -> None:
    """A slice tinted by structure, with the cells around it."""
    image = whole(volume, SLICE)
    rows, columns = np.meshgrid(*(np.arange(0, n, 2) for n in volume.shape[1:]), indexing="ij")
    vox = np.stack([np.full(rows.size, SLICE), rows.ravel(), columns.ravel()], axis=1)
    labels = Anatomy(100.0).labels(phantom.to_atlas_um(vox)).reshape(rows.shape)
    tint = np.zeros((*labels.shape, 4))
    for structure in STRUCTURES:
        tint[labels == structure.id] = (*(np.array(structure.rgb) / 255), 0.42)
    y0, y1, x0, x1 = image.extent_um
    axes.imshow(stretched(image), cmap="gray", extent=(x0, x1, y1, y0))
    axes.imshow(tint, extent=(x0, x1, y1, y0), interpolation="bilinear")
    near = np.abs(cells["z"] - SLICE) <= 6
    voxel = volume.voxel_um
    axes.scatter(
        (cells["x"][near] + 0.5) * voxel[2],
        (cells["y"][near] + 0.5) * voxel[1],
        s=3.0,
        c="white",
        linewidths=0,
    )
    style.picture_axes(axes)


def draw_counts(axes: Axes, phantom: Phantom) -> None:
    """Cells per region, left and right."""
    regions = {region.name: region for region in read_regions(phantom.truth_regions).regions}
    chosen = [regions[name] for name in SHOWN]
    places = np.arange(len(chosen))
    for side, colour, shift in (("left", style.LEFT, -0.2), ("right", style.RIGHT, 0.2)):
        axes.barh(places + shift, [r.count[side] for r in chosen], 0.38, color=colour, label=side)
    axes.set_yticks(places, [r.name.replace("Isocortex, layer", "Cortex, layer") for r in chosen])
    axes.invert_yaxis()
    style.clean(axes, grid="x", x="cells")
    axes.tick_params(axis="y", length=0, labelsize=9, labelcolor=style.INK)
    axes.legend(frameon=False, fontsize=9, loc="lower right")


def save_small(picture: io.BytesIO) -> None:
    """Save with a palette: a photograph in a README need not be larger."""
    from PIL import Image

    OUT.parent.mkdir(exist_ok=True)
    Image.open(picture).convert("RGB").quantize(200, dither=Image.Dither.NONE).save(OUT, optimize=True)
    sys.stdout.write(f"{OUT} {OUT.stat().st_size / 1000:.0f} kB\n")


if __name__ == "__main__":
    main()
