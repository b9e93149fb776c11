"""Effects on the atlas: a series of coronal sections coloured by the ratio of every region."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from brainmap.atlas.atlas import Atlas
from brainmap.cohort.missing import hierarchy_of
from brainmap.cohort.report.charts import EFFECT_MAP, Chart
from brainmap.cohort.study import Comparison, Study
from brainmap.errors import BrainmapError
from brainmap.report import style

__all__ = ["Brain", "coronal_series"]

log = logging.getLogger(__name__)

_SECTIONS = 10
_COLUMNS = 5
_PIXELS = 180  # of a section, across


@dataclass(frozen=True)
class Brain:
    """Sections of the atlas, coarse: which region each pixel is of.

    Attributes
    ----------
    region : int array (sections, y, x)
        Row of the selection; -1: in none; -2: outside the brain.
    hemisphere : uint8 array (sections, y, x)
    place_mm : float64 array (sections,)
        From the front of the atlas.
    """

    region: NDArray[np.intp]
    hemisphere: NDArray[np.uint8]
    place_mm: NDArray[np.float64]

    @classmethod
    def of(cls, study: Study) -> Brain | None:
        """The atlas of the runs; None where it is not on this machine."""
        name = next((name for name in study.table.atlases if name), None)
        if name is None:
            return None
        try:
            atlas = Atlas.open(name)
            annotation, hemispheres = atlas.annotation, atlas.hemispheres
        except BrainmapError as error:
            log.info("no picture of the brain in the report: %s", error)
            return None
        width = annotation.shape[2]
        filled = np.flatnonzero([plane.any() for plane in annotation])
        if not len(filled):
            return None
        shares = (np.arange(_SECTIONS) + 0.5) / _SECTIONS
        planes = np.round(filled[0] + shares * (filled[-1] - filled[0])).astype(int)
        step = max(1, width // _PIXELS)
        labels = annotation[planes, ::step, ::step]
        sides = hemispheres[planes, ::step, ::step]
        row_of = _rows_of_structures(study)
        ids, inverse = np.unique(labels, return_inverse=True)
        rows = np.array([-2 if key == 0 else row_of.get(int(key), -1) for key in ids])
        place = (planes + 0.5) * atlas.resolution_um[0] / 1000.0
        return cls(rows[inverse].reshape(labels.shape), sides, place)


def _rows_of_structures(study: Study) -> dict[int, int]:
    """Region of every structure, its parts included."""
    hierarchy = hierarchy_of(study.table)
    found: dict[int, int] = {}
    for i in reversed(range(len(study.selection))):
        for row in np.flatnonzero(hierarchy.inside(study.selection.members[i])):
            found[int(hierarchy.id[row])] = i
    return found


def coronal_series(study: Study, one: Comparison, brain: Brain, name: str) -> Chart:
    """Ten sections from front to back; regions not called different are pale."""
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    ratio, called = one.result.log2_ratio, one.called
    shown = np.abs(ratio[called]) if called.any() else np.abs(ratio[np.isfinite(ratio)])
    limit = float(np.clip(np.quantile(shown, 0.95) if len(shown) else 1.0, 0.5, 3.0))
    colours = matplotlib.colormaps[EFFECT_MAP]((np.nan_to_num(ratio) + limit) / (2 * limit))[:, :3]
    pale = 0.72
    colours = np.where(called[:, None], colours, pale * 0.93 + (1 - pale) * colours)
    colours[~np.isfinite(one.result.p)] = 0.8
    table = np.concatenate([colours, [[1.0, 1.0, 1.0]], [[0.9, 0.9, 0.9]]])  # -2: outside, -1: in no region
    rows = -(-len(brain.region) // _COLUMNS)
    height, width = brain.region.shape[1:]
    figure = style.new_figure(9.0, 9.0 / _COLUMNS * rows * height / width + 0.9)
    panels = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for axes, section, sides, place in zip(
        panels, brain.region, brain.hemisphere, brain.place_mm, strict=False
    ):
        picture = table[section]
        if one.hemisphere != "both":
            other = 2 if one.hemisphere == "left" else 1
            picture = np.where(((sides == other) & (section > -2))[..., None], 0.9, picture)
        edge = (section != np.roll(section, 1, 0)) | (section != np.roll(section, 1, 1))
        picture = np.where(edge[..., None], picture * 0.75, picture)
        # Index 0 of the last axis is the right side: seen from behind, as sections are shown.
        axes.imshow(picture[:, ::-1], interpolation="nearest")
        style.picture_axes(axes, f"{place:.1f} mm")
    for axes in panels[len(brain.region) :]:
        axes.set_visible(False)
    scale = ScalarMappable(Normalize(-limit, limit), matplotlib.colormaps[EFFECT_MAP])
    bar = figure.colorbar(scale, ax=list(panels), orientation="horizontal", shrink=0.5, pad=0.02, aspect=40)
    title = (
        f"log2 of {one.contrast.group_b} over {one.contrast.group_a}"
        if one.contrast.group_a
        else "log2 ratio"
    )
    bar.set_label(title, fontsize=8)
    bar.ax.tick_params(labelsize=8)
    caption = (
        "Sections of the atlas from front to back, the left side at the left, coloured by the ratio of every region; "
        "regions that are not called different are pale."
    )
    numbers = [(study.selection.acronym[i], ratio[i], bool(called[i])) for i in range(len(ratio))]
    return Chart(name, figure, caption, ("acronym", "log2_ratio", "called"), numbers)
