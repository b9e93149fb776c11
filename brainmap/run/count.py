"""From cells to a table per region: maps cells to the atlas, writes them, counts them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from brainmap.coords import atlas_um_to_index
from brainmap.image.mask import Mask
from brainmap.points.table import COLUMNS, Points, PointsWriter
from brainmap.run.cells import ImageFrame
from brainmap.run.request import Roi
from brainmap.run_folder import REGIONS_CSV, SUMMARY_CSV

if TYPE_CHECKING:
    from brainmap.atlas.atlas import Atlas
    from brainmap.atlas.regions import RegionCounter, RegionTable
    from brainmap.registration.grid import SampleGrid
    from brainmap.registration.register import Registration

__all__ = ["Mapped", "count_in_regions", "write_points"]

ATLAS_COLUMNS = ("atlas_z_um", "atlas_y_um", "atlas_x_um")


@dataclass(frozen=True)
class Mapped:
    """What `write_points` found out.

    Attributes
    ----------
    cells : int
        Rows written.
    counter : RegionCounter or None
        Cells per region; None without an atlas.
    regions_agree : float or None
        Share of the cells whose region is the same in the annotation warped to the sample as in the atlas
        at the mapped point: two ways through the same registration. None without an atlas or cells.
    """

    cells: int
    counter: RegionCounter | None
    regions_agree: float | None


def write_points(
    path: Path,
    pieces: Iterator[Points],
    meta: dict[str, Any],
    atlas: Atlas | None,
    registration: Registration | None,
) -> Mapped:
    """Map cells to the atlas piece by piece, write the table, count.

    Parameters
    ----------
    path : Path
        Table to write.
    pieces : iterator of Points
        Cells with `z_um y_um x_um`.
    meta : dict
        Metadata of the table; shape and voxel size of the atlas are added.
    atlas, registration
        Both or neither.
    """
    counter, agreeing = None, 0
    if atlas is not None and registration is not None:
        from brainmap.atlas.regions import RegionCounter

        counter = RegionCounter(atlas.structures)
        warped = registration.annotation
        meta = meta | {"atlas_shape": atlas.shape, "atlas_resolution_um": atlas.resolution_um}
    with PointsWriter(path, meta) as writer:
        for piece in pieces:
            mapped = np.full((len(piece), 3), np.nan)
            region, hemisphere = np.zeros(len(piece), np.int64), np.zeros(len(piece), np.int8)
            border = np.full(len(piece), np.nan, np.float32)
            if atlas is not None and registration is not None and counter is not None:
                mapped = registration.to_atlas_um(piece.zyx_um)
                region, hemisphere = atlas.lookup(mapped)
                border = atlas.border_um(mapped)
                counter.add(region, hemisphere)
                agreeing += int((_warped_region(piece.zyx_um, warped, registration.grid) == region).sum())
            columns = dict(zip(ATLAS_COLUMNS, mapped.T, strict=True))
            columns |= {"region_id": region, "hemisphere": hemisphere, "border_um": border}
            writer.append(_ordered(piece.with_columns(**columns)))
    share = agreeing / writer.rows if counter is not None and writer.rows else None
    return Mapped(writer.rows, counter, share)


def _warped_region(
    points_um: NDArray[np.float64], warped: NDArray[np.uint32], grid: SampleGrid
) -> NDArray[np.int64]:
    """Region of sample points by the annotation warped to the sample; 0 beyond the image."""
    index, inside = atlas_um_to_index(points_um - np.array(grid.corner_um), grid.resolution_um, grid.shape)
    z, y, x = index.T
    return np.where(inside, warped[z, y, x].astype(np.int64), 0)


def _ordered(points: Points) -> Points:
    """The columns of the contract first, measured ones after them."""
    names = [name for name in COLUMNS if name in points] + [n for n in points.columns if n not in COLUMNS]
    return Points({name: points[name] for name in names}, points.meta)


def count_in_regions(
    folder: Path,
    counter: RegionCounter,
    registration: Registration,
    atlas: Atlas,
    frame: ImageFrame,
    *,
    roi: Roi | None,
    mask: Mask | None,
    level: str,
) -> RegionTable:
    """Write the tables of regions of a run: all structures, and the summary at a level.

    Parameters
    ----------
    folder : Path
        Run folder.
    counter : RegionCounter
        With the run's cells.
    registration, atlas, frame
        Of the run.
    roi, mask
        What was analysed; None is everything.
    level : str
        Regions of the summary, see `brainmap.atlas.region_sets`.

    Returns
    -------
    RegionTable
        All structures.
    """
    from brainmap.atlas.regions import atlas_volumes, write_regions
    from brainmap.atlas.summary import summarise

    whole = registration.volumes_mm3(atlas)
    analysed = whole if roi is None and mask is None else _analysed(registration, atlas, frame, roi, mask)
    table = counter.table(analysed, atlas_mm3=atlas_volumes(atlas), whole_mm3=whole)
    write_regions(table, folder / REGIONS_CSV)
    write_regions(summarise(table, level), folder / SUMMARY_CSV)
    return table


def _analysed(
    registration: Registration, atlas: Atlas, frame: ImageFrame, roi: Roi | None, mask: Mask | None
) -> NDArray[np.float64]:
    """Volume of each structure inside the region of interest and the mask."""
    box = None
    if roi is not None:
        box = tuple(
            (s.start * v + o - v / 2, s.stop * v + o - v / 2)
            for s, v, o in zip(roi.slices(frame.shape), frame.voxel_um, frame.origin_um, strict=True)
        )
    inside = None
    if mask is not None:
        from brainmap.registration.grid import resample_volume

        inside = resample_volume(mask.volume, registration.grid) > 0.5
    return registration.volumes_mm3(atlas, mask=inside, box_um=box)  # type: ignore[arg-type]
