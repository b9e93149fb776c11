"""Pictures of a registration: borders over the sample, sample and template in one board, the deformation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from brainmap.atlas.atlas import Atlas
from brainmap.coords import Triple
from brainmap.files import atomic_path
from brainmap.registration.prepare import block_mean
from brainmap.registration.transforms import Transforms

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CHECKERBOARD", "DEFORMATION", "PLANES", "draw_checkerboard", "draw_contours", "draw_deformation"]

CHECKERBOARD, DEFORMATION = "quality_checkerboard.png", "quality_deformation.png"

Image = NDArray[np.float32]

#: Name of the plane -> axis of asr that it is perpendicular to.
PLANES = {"coronal": 0, "horizontal": 1, "sagittal": 2}

#: Where along the axis, as shares of the labelled range.
_POSITIONS = (0.2, 0.4, 0.6, 0.8)
#: The same where a plane has two sections only.
_TWO_POSITIONS = (0.35, 0.6)
#: Fields of the checkerboard along the longest axis of the atlas, and lines of the deformation grid.
_FIELDS, _LINES = 13, 40
#: Ends of the colour scale of volume change, as powers of two.
_VOLUME_RANGE = 1.0
_SUMMARY_DEPTH = 5  # Allen: isocortex, hippocampal formation, striatum, ...


def draw_contours(
    sample: NDArray[np.float32],
    annotation: NDArray[np.uint32],
    atlas: Atlas,
    voxel_um: tuple[float, float, float],
    folder: Path,
) -> list[str]:
    """Draw three pictures, ``quality_<plane>.png``: sections of the sample with the atlas's borders.

    Parameters
    ----------
    sample : float32 array (z, y, x)
        The sample on the registration grid, brought to asr.
    annotation : uint32 array (z, y, x)
        The annotation warped to the sample, brought to asr.
    atlas : Atlas
    voxel_um : tuple of float
    folder : Path

    Returns
    -------
    list of str
        File names.
    """
    rows = atlas.structures.rows_of(annotation)
    division = np.where(rows < 0, -1, _ancestor_rows(atlas)[rows])
    labelled = sample[annotation > 0]
    top = float(np.percentile(labelled if labelled.size else sample, 99.5)) or 1.0
    names = []
    for plane, axis in PLANES.items():
        name = f"quality_{plane}.png"
        _draw_plane(np.clip(sample / top, 0, 1), rows, division, axis, voxel_um, plane, folder / name)
        names.append(name)
    return names


def _ancestor_rows(atlas: Atlas) -> NDArray[np.intp]:
    """Row of each structure's ancestor at the summary depth (itself where it lies higher)."""
    structures = atlas.structures
    current = np.arange(len(structures))
    for _ in range(int(structures.depth.max(initial=0))):
        deep = structures.depth[current] > _SUMMARY_DEPTH
        current = np.where(
            deep & (structures.parent_row[current] >= 0), structures.parent_row[current], current
        )
    return current


def _draw_plane(
    image: NDArray[np.float32],
    rows: NDArray[np.intp],
    division: NDArray[np.intp],
    axis: int,
    voxel_um: tuple[float, float, float],
    plane: str,
    path: Path,
) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 10), layout="constrained", facecolor="black")
    for number, index in enumerate(_sections(rows >= 0, axis, _POSITIONS), start=1):
        axes = figure.add_subplot(2, 2, number)
        grey = np.take(image, index, axis=axis) ** 0.7
        picture = np.repeat(grey[..., None], 3, axis=2)
        fine, coarse = (_borders(np.take(labels, index, axis=axis)) for labels in (rows, division))
        picture[fine] = 0.55 * picture[fine] + 0.45 * np.array([0.2, 0.6, 1.0])
        picture[coarse] = [1.0, 0.75, 0.1]
        _show(axes, picture, axis, index, voxel_um, plane)
    _save(figure, path)


def draw_checkerboard(in_atlas: Image, resolution_um: Triple, atlas: Atlas, folder: Path) -> list[str]:
    """Draw sample (warm) and template (cool) in alternating squares, two sections of each plane.

    Parameters
    ----------
    in_atlas : float32 array (z, y, x)
        The sample brought to the atlas, asr.
    resolution_um : tuple of float
        Its voxel size.
    atlas : Atlas
    folder : Path

    Returns
    -------
    list of str
        File names.
    """
    from matplotlib.figure import Figure

    factor = round(resolution_um[0] / atlas.resolution_um[0])
    template = block_mean(atlas.reference, factor)
    tissue = block_mean(atlas.annotation > 0, factor) > 0.5
    sample = _matched(in_atlas, template, tissue)
    template = np.clip(template / max(float(np.percentile(template[tissue], 99.5)), 1e-6), 0, 1)
    side = max(1, round(max(template.shape) / _FIELDS))
    figure = Figure(figsize=(12, 13), layout="constrained", facecolor="black")
    for row, (plane, axis) in enumerate(PLANES.items()):
        for column, index in enumerate(_sections(tissue, axis, _TWO_POSITIONS)):
            axes = figure.add_subplot(3, 2, 2 * row + column + 1)
            warm = np.take(sample, index, axis=axis)[..., None] ** 0.8 * np.array([1.0, 0.85, 0.6])
            cool = np.take(template, index, axis=axis)[..., None] ** 0.8 * np.array([0.65, 0.85, 1.0])
            board = (np.indices(warm.shape[:2]) // side).sum(axis=0) % 2 == 0
            _show(axes, np.where(board[..., None], warm, cool), axis, index, resolution_um, plane)
    _save(figure, folder / CHECKERBOARD)
    return [CHECKERBOARD]


def draw_deformation(transforms: Transforms, atlas: Atlas, folder: Path) -> list[str]:
    """Draw a regular grid of the atlas as the deformation bends it, coloured by local volume change.

    Parameters
    ----------
    transforms : Transforms
    atlas : Atlas
    folder : Path

    Returns
    -------
    list of str
        File names; none after a linear registration.
    """
    field = transforms.warp
    if field is None:
        return []
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import LineCollection
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    extent = np.asarray(atlas.extent_um) / 1000.0
    change = np.log2(np.maximum(field.jacobian(), 1e-3))
    scale = Normalize(-_VOLUME_RANGE, _VOLUME_RANGE)
    figure = Figure(figsize=(12, 13), layout="constrained", facecolor="black")
    panels = []
    for row, (plane, axis) in enumerate(PLANES.items()):
        for column, index in enumerate(_sections(atlas.annotation > 0, axis, _TWO_POSITIONS)):
            axes = figure.add_subplot(3, 2, 2 * row + column + 1)
            depth = (index + 0.5) * atlas.resolution_um[axis] / 1000.0
            segments, points = _bent_lines(field, axis, depth, extent)
            places = ((points - field.origin_mm) / field.spacing_mm).T
            values = ndimage.map_coordinates(change, places, order=1, mode="nearest")
            tissue = np.take(atlas.annotation, index, axis=axis) > 0
            down, across = (i for i in range(3) if i != axis)
            box = (0, extent[across], extent[down], 0)
            axes.imshow(tissue, extent=box, cmap="gray", vmin=0, vmax=5, interpolation="nearest")
            lines = LineCollection(list(segments), cmap="coolwarm", norm=scale, linewidths=0.9)
            lines.set_array(values)
            axes.add_collection(lines)
            axes.set_title(f"{plane}, {depth:.2f} mm", color="white", fontsize=13)
            _letters(axes, axis)
            axes.axis("off")
            panels.append(axes)
    bar = figure.colorbar(
        ScalarMappable(scale, "coolwarm"), ax=panels, shrink=0.5, ticks=[-1, -0.5, 0, 0.5, 1]
    )
    bar.ax.set_yticklabels(["1/2", "0.7", "1", "1.4", "2"], color="white")
    bar.set_label("volume in the brain over volume in the atlas, beside the affine", color="white")
    _save(figure, folder / DEFORMATION)
    return [DEFORMATION]


def _bent_lines(
    field: Any, axis: int, depth_mm: float, extent_mm: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Short pieces (N, 2, 2: across, down) of bent grid lines, and the atlas point (N, 3) of each one's start."""
    down, across = (i for i in range(3) if i != axis)
    step = float(extent_mm.max()) / _LINES
    segments, starts = [], []
    for along, other in ((down, across), (across, down)):
        fine = np.arange(0, extent_mm[along], step / 4)
        for place in np.arange(step / 2, extent_mm[other], step):
            points = np.full((len(fine), 3), depth_mm)
            points[:, along], points[:, other] = fine, place
            moved = (points + field.at(points))[:, [across, down]]
            segments.append(np.stack([moved[:-1], moved[1:]], axis=1))
            starts.append(points[:-1])
    return np.concatenate(segments), np.concatenate(starts)


def _matched(sample: Image, template: Image, tissue: NDArray[np.bool_]) -> Image:
    """The sample in the template's grey values (equal ranks in the tissue), 0..1, so that squares can be compared."""
    top = max(float(np.percentile(template[tissue], 99.5)), 1e-6)
    shares = np.linspace(0, 1, 101)
    source, target = (np.quantile(values[tissue], shares) for values in (sample, template))
    outside = sample[~tissue & (sample > 0)]
    dark = min(float(np.median(outside)) if outside.size else 0.0, float(source[5]))
    keep = np.concatenate([[True], np.diff(source) > 0])
    ranked = np.interp(sample, source[keep], target[keep])
    # Ranks would make the background as bright as the darkest tissue.
    fade = np.clip((sample - dark) / max(float(source[5]) - dark, 1e-6), 0, 1) ** 2
    return np.clip(fade * ranked / top, 0, 1).astype(np.float32)


def _sections(tissue: NDArray[np.bool_], axis: int, shares: tuple[float, ...]) -> list[int]:
    used = np.flatnonzero(tissue.any(axis=tuple(i for i in range(3) if i != axis)))
    low, high = (int(used[0]), int(used[-1])) if used.size else (0, tissue.shape[axis] - 1)
    return [round(low + share * (high - low)) for share in shares]


def _show(axes: Any, picture: NDArray[Any], axis: int, index: int, voxel_um: Triple, plane: str) -> None:
    height, width = (voxel_um[i] for i in range(3) if i != axis)
    axes.imshow(picture, interpolation="nearest", aspect=height / width)
    axes.set_title(f"{plane}, {index * voxel_um[axis] / 1000:.2f} mm", color="white", fontsize=13)
    _letters(axes, axis)
    axes.axis("off")


def _letters(axes: Any, axis: int) -> None:
    if axis != 2:  # index 0 of the last axis is right
        for place, letter in ((0.02, "R"), (0.96, "L")):
            axes.text(place, 0.93, letter, transform=axes.transAxes, color="white", fontsize=15)


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, facecolor="black", format="png")


def _borders(labels: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Pixels whose right or lower neighbour has another label."""
    border = np.zeros(labels.shape, dtype=bool)
    border[:-1] |= labels[:-1] != labels[1:]
    border[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    return border
