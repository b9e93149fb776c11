"""Where the cells of a run lie: their density seen through the atlas, or through the image where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from brainmap.atlas.atlas import Atlas
from brainmap.points.table import iter_points
from brainmap.report import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "CellMap", "View", "colours_of", "map_in_atlas", "map_in_image", "view_figure"]

COLOURS = "inferno"
#: Bins along the longest side: about 100 um in a mouse brain.
_BINS = 132
#: Smoothing, bins, and the least depth of tissue, bins, through which a density means something.
_SMOOTH, _SHALLOW = 1.0, 3.0
#: Structures outlined: as far below the root as the Allen atlas has its large divisions.
_DIVISION_DEPTH = 5
#: Where the outlined section lies along each axis: off the middle for the sagittal one, where a mouse brain has little.
_SECTION = (0.5, 0.5, 0.33)

Volume3 = NDArray[np.float64]


@dataclass(frozen=True)
class View:
    """A look through the brain along one axis.

    Attributes
    ----------
    title : str
    density : float64 array (rows, columns)
        Mean along the line of sight; NaN where there is no tissue.
    borders : bool array (rows, columns) or None
        Borders of the large divisions in a section through the middle, in finer pixels.
    size_mm : (height, width)
    letters : (left, right, top, bottom)
        What lies there; empty where it is not known.
    """

    title: str
    density: NDArray[np.float64]
    borders: NDArray[np.bool_] | None
    size_mm: tuple[float, float]
    letters: tuple[str, str, str, str]


@dataclass(frozen=True)
class CellMap:
    """The views, with the density that is drawn brightest."""

    views: tuple[View, ...]
    top: float
    unit: str
    where: str


#: Side where an axis starts -> what lies at its start and at its end.
_SIDES = {
    "a": ("anterior", "posterior"),
    "p": ("posterior", "anterior"),
    "s": ("dorsal", "ventral"),
    "i": ("ventral", "dorsal"),
    "r": ("R", "L"),
    "l": ("L", "R"),
}
# Axis that is looked along, name, and what lies left, right, above, below in asr (rows are the first axis left).
_PLANES = (
    (0, "coronal", ("R", "L", "dorsal", "ventral")),
    (2, "sagittal", ("anterior", "posterior", "dorsal", "ventral")),
    (1, "horizontal", ("R", "L", "anterior", "posterior")),
)


def map_in_atlas(points: Path, atlas: Atlas) -> CellMap:
    """The cells of a table (with `atlas_*_um`) in their atlas.

    Parameters
    ----------
    points : Path
        ``points.parquet``, read in batches.
    atlas : Atlas
    """
    step = max(max(atlas.extent_um) / _BINS, *atlas.resolution_um)
    factor = tuple(max(1, round(step / r)) for r in atlas.resolution_um)
    bin_um = tuple(f * r for f, r in zip(factor, atlas.resolution_um, strict=True))
    shape = tuple(-(-n // f) for n, f in zip(atlas.shape, factor, strict=True))
    counts = _histogram(points, [f"atlas_{axis}_um" for axis in "zyx"], bin_um, shape, 0.0)
    tissue = _shares(atlas, factor, shape)
    mm3 = np.prod(bin_um) / 1e9
    views = []
    for axis, title, letters in _PLANES:
        cells, depth = counts.sum(axis=axis), tissue.sum(axis=axis)
        cells, depth = (ndimage.gaussian_filter(values, _SMOOTH) for values in (cells, depth))
        density = np.where(depth >= _SHALLOW, cells / np.maximum(depth, _SHALLOW) / mm3, np.nan)
        rows, columns = (i for i in range(3) if i != axis)
        size = (shape[rows] * bin_um[rows] / 1000, shape[columns] * bin_um[columns] / 1000)
        borders = _borders(atlas, axis)
        if axis == 2:
            # The first axis left is depth here (anterior first): laid across, dorsal up.
            density, size, borders = density.T, (size[1], size[0]), borders.T
        views.append(View(title, density, borders, size, letters))
    return CellMap(tuple(views), _top(views), "cells per mm³", f"in the atlas {atlas.label}")


def map_in_image(
    points: Path, shape: Sequence[int], voxel_um: Sequence[float], orientation: str | None
) -> CellMap:
    """The cells of a table in their image: seen along its three axes, or along z for a few slices.

    Parameters
    ----------
    points : Path
    shape, voxel_um : three numbers
        Of level 0.
    orientation : str or None
        Three letters that name the sides where z, y, x start.
    """
    extent = np.array(shape) * np.array(voxel_um)
    step = float(extent.max()) / _BINS
    factor = [max(1, round(step / v)) for v in voxel_um]
    bins = tuple(f * v for f, v in zip(factor, voxel_um, strict=True))
    size = tuple(-(-n // f) for n, f in zip(shape, factor, strict=True))
    counts = _histogram(points, list("zyx"), tuple(float(f) for f in factor), size, 0.5)
    axes = (0, 1, 2) if extent.min() > 0.15 * extent.max() else (int(np.argmin(extent)),)
    views = []
    for axis in axes:
        rows, columns = (i for i in range(3) if i != axis)
        area = bins[rows] * bins[columns] / 1e6
        density = ndimage.gaussian_filter(counts.sum(axis=axis), _SMOOTH) / area
        letters = ("", "", "", "")
        if orientation:
            letters = (*_SIDES[orientation[columns]], *_SIDES[orientation[rows]])
        height, width = (size[i] * bins[i] / 1000 for i in (rows, columns))
        name = f"seen along {'zyx'[axis]}"
        views.append(View(name, density, None, (height, width), letters))
    return CellMap(tuple(views), _top(views), "cells per mm² seen", "in the image")


def view_figure(view: View, top: float, width: float = 4.0) -> Figure:
    """One view on black, with what lies where and a scale bar."""
    from matplotlib import patheffects

    height_mm, width_mm = view.size_mm
    figure = style.literal_figure(width, float(np.clip(width * height_mm / width_mm, 1.2, 6.0)), "black")
    axes = style.picture_axes(figure.subplots())
    axes.set_facecolor("black")
    extent = (0, width_mm * 1000, height_mm * 1000, 0)
    axes.imshow(view.density, cmap=COLOURS, vmin=0, vmax=top, extent=extent, interpolation="bilinear")
    if view.borders is not None:
        lines = np.zeros((*view.borders.shape, 4), np.float32)
        lines[view.borders] = (0.75, 0.85, 1.0, 0.45)
        axes.imshow(lines, extent=extent, interpolation="antialiased")
    outline = [patheffects.withStroke(linewidth=2.5, foreground="black")]
    left, right, above, below = view.letters
    for text, (x, y), align in (
        (left, (0.01, 0.5), ("left", "center")),
        (right, (0.99, 0.5), ("right", "center")),
        (above, (0.5, 0.99), ("center", "top")),
        (below, (0.5, 0.01), ("center", "bottom")),
    ):
        turn = 90 if x != 0.5 and len(text) > 2 else 0
        axes.text(x, y, text, transform=axes.transAxes, color="#c8d0da", fontsize=10, rotation=turn,
                  ha=align[0], va=align[1], path_effects=outline)  # fmt: skip
    style.scale_bar(axes, (height_mm * 1000, width_mm * 1000))
    return figure


def colours_of(name: str) -> list[str]:
    """A colour map as colours evenly along it, for a page."""
    import matplotlib
    from matplotlib.colors import to_hex

    colours = matplotlib.colormaps[name]
    return [to_hex(colours(i / 8)) for i in range(9)]


def _histogram(
    points: Path, columns: list[str], bin_size: Sequence[float], shape: Sequence[int], shift: float
) -> Volume3:
    """Cells per bin (z, y, x); those without a place or beyond the box are left out."""
    total = np.zeros(int(np.prod(shape)))
    for batch in iter_points(points, columns=columns):
        place = (np.stack([np.asarray(batch[c], float) for c in columns]) + shift) / np.array(bin_size)[
            :, None
        ]
        inside = np.isfinite(place).all(axis=0)
        index = np.floor(place[:, inside]).astype(np.int64)
        inside = ((index >= 0) & (index < np.array(shape)[:, None])).all(axis=0)
        flat = np.ravel_multi_index(tuple(index[:, inside]), tuple(shape))
        total += np.bincount(flat, minlength=len(total))
    return total.reshape(tuple(shape))


def _shares(atlas: Atlas, factor: Sequence[int], shape: Sequence[int]) -> Volume3:
    """Share of each bin that is labelled."""
    total = np.zeros(tuple(shape))
    places = [np.arange(0, n, f) for n, f in zip(atlas.shape[1:], factor[1:], strict=True)]
    for z in range(atlas.shape[0]):
        labelled = (atlas.annotation[z] > 0).astype(np.float32)
        plane = np.add.reduceat(np.add.reduceat(labelled, places[0], axis=0), places[1], axis=1)
        total[z // factor[0]] += plane
    return total / np.prod(factor)


def _borders(atlas: Atlas, axis: int) -> NDArray[np.bool_]:
    """Borders of the large divisions in the section of a plane."""
    used = np.flatnonzero(atlas.annotation.any(axis=tuple(i for i in range(3) if i != axis)))
    low, high = (int(used[0]), int(used[-1])) if len(used) else (0, atlas.shape[axis] - 1)
    ids = np.take(atlas.annotation, round(low + _SECTION[axis] * (high - low)), axis=axis)
    structures = atlas.structures
    row = np.arange(len(structures))
    for _ in range(int(structures.depth.max(initial=0))):
        deep = (structures.depth[row] > _DIVISION_DEPTH) & (structures.parent_row[row] >= 0)
        row = np.where(deep, structures.parent_row[row], row)
    rows = structures.rows_of(ids)
    division = np.where(rows < 0, -1, row[np.maximum(rows, 0)])
    border = np.zeros(division.shape, bool)
    border[:-1] |= division[:-1] != division[1:]
    border[:, :-1] |= division[:, :-1] != division[:, 1:]
    return border


def _top(views: list[View]) -> float:
    """Density drawn brightest: few places lie above it."""
    values: NDArray[Any] = np.concatenate([v.density[np.isfinite(v.density)] for v in views] or [np.zeros(1)])
    top = float(np.percentile(values, 99.7)) if len(values) else 0.0
    if top <= 0:
        top = float(values.max(initial=0.0)) or 1.0
    # Two digits: the number stands beside the colours.
    digits = 10.0 ** (np.floor(np.log10(top)) - 1)
    return float(np.ceil(top / digits) * digits)
