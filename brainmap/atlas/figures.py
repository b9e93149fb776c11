"""Pictures of a registration: the atlas's borders drawn over the sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brainmap.atlas.atlas import Atlas
from brainmap.provenance import atomic_path

__all__ = ["PLANES", "draw_contours"]

#: Name of the plane -> axis of asr that it is perpendicular to.
PLANES = {"coronal": 0, "horizontal": 1, "sagittal": 2}

#: Where along the axis, as shares of the labelled range.
_POSITIONS = (0.2, 0.4, 0.6, 0.8)
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

    used = np.flatnonzero((rows >= 0).any(axis=tuple(i for i in range(3) if i != axis)))
    low, high = (int(used[0]), int(used[-1])) if used.size else (0, image.shape[axis] - 1)
    height, width = (voxel_um[i] for i in range(3) if i != axis)
    figure = Figure(figsize=(12, 10), layout="constrained", facecolor="black")
    for number, share in enumerate(_POSITIONS, start=1):
        index = round(low + share * (high - low))
        axes = figure.add_subplot(2, 2, number)
        grey = np.take(image, index, axis=axis) ** 0.7
        picture = np.repeat(grey[..., None], 3, axis=2)
        fine, coarse = (_borders(np.take(labels, index, axis=axis)) for labels in (rows, division))
        picture[fine] = 0.55 * picture[fine] + 0.45 * np.array([0.2, 0.6, 1.0])
        picture[coarse] = [1.0, 0.75, 0.1]
        axes.imshow(picture, interpolation="nearest", aspect=height / width)
        axes.set_title(f"{plane}, {index * voxel_um[axis] / 1000:.2f} mm", color="white", fontsize=9)
        if axis != 2:  # index 0 of the last axis is right
            for place, letter in ((0.02, "R"), (0.96, "L")):
                axes.text(place, 0.93, letter, transform=axes.transAxes, color="white", fontsize=11)
        axes.axis("off")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, facecolor="black", format="png")


def _borders(labels: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Pixels whose right or lower neighbour has another label."""
    border = np.zeros(labels.shape, dtype=bool)
    border[:-1] |= labels[:-1] != labels[1:]
    border[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    return border
