"""From cells to a table per region: maps cells to the atlas, writes them, counts them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from brainmap.coords import atlas_um_to_index
from brainmap.errors import NotFoundError
from brainmap.image.mask import Mask
from brainmap.image.volume import Volume
from brainmap.points.table import COLUMNS, Points, PointsWriter, iter_points
from brainmap.run.request import Roi
from brainmap.run_folder import POINTS_PARQUET, REGIONS_CSV, REGISTRATION_DIR, SUMMARY_CSV, RunRecord

if TYPE_CHECKING:
    from brainmap.atlas.atlas import Atlas
    from brainmap.atlas.regions import RegionCounter, RegionTable
    from brainmap.registration.grid import SampleGrid
    from brainmap.registration.register import Registration

__all__ = ["Mapped", "count_in_regions", "recount", "summarise_run", "write_points"]

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


def recount(
    run: str | Path, registration_dir: str | Path | None = None, level: str | None = None
) -> RegionTable:
    """Map a run's cells to the atlas again and rewrite its tables and report.

    Parameters
    ----------
    run : path
        A finished run folder.
    registration_dir : path, optional
        A finished registration of the same brain; by default the run's own.
    level : str, optional
        Regions of the summary, see `brainmap.atlas.region_sets`; by default the run's.

    Raises
    ------
    NotFoundError
        If the run has no table of cells, or there is no registration.
    UsageError
        If the registration is of another brain, or the atlas has no such level.
    """
    from brainmap.atlas.atlas import Atlas
    from brainmap.atlas.region_sets import check_level
    from brainmap.registration.register import Registration
    from brainmap.report.run_report import write_run_report

    folder = Path(run)
    record = RunRecord.load(folder)
    table = folder / POINTS_PARQUET
    if not table.is_file():
        raise NotFoundError(f"{folder} has no {POINTS_PARQUET}; run brainmap detect first")
    meta = next((piece.meta for piece in iter_points(table, 1)), None) or Points.read(table, ["z"]).meta
    own = record.parameters.get("registration") or folder / REGISTRATION_DIR
    registration = Registration.load(registration_dir or own)
    volume = Volume.open(
        meta["brain"], channel=record.parameters.get("channel"), voxel_um=meta["voxel_um"],
        orientation=meta.get("orientation"),
        timepoint=record.parameters.get("timepoint"), axes=record.parameters.get("axes"),
    )  # fmt: skip
    registration.check_belongs(volume)
    atlas = Atlas.open(registration.atlas_folder)
    level = _level(level, record)
    check_level(level, atlas.structures)
    mask = Mask.open(record.parameters["mask"]) if record.parameters.get("mask") else None
    meta = meta | {"atlas": registration.atlas_name, "registration": registration.fingerprint}
    mapped = write_points(table, iter_points(table), meta, atlas, registration)
    assert mapped.counter is not None
    regions = count_in_regions(
        folder, mapped.counter, registration, atlas, volume, roi=_roi_of(record), mask=mask, level=level
    )
    agree = {} if mapped.regions_agree is None else {"regions_agree": mapped.regions_agree}
    record.updated(results=record.results | agree, execution=record.execution | {"level": level}).save(folder)
    write_run_report(folder)
    return regions


def summarise_run(run: str | Path, level: str | None = None, out: str | Path | None = None) -> Path:
    """Write the summary of a counted run anew, at a level of choice; nothing is mapped again.

    Parameters
    ----------
    run : path
        Run folder with a table of regions.
    level : str, optional
        See `brainmap.atlas.region_sets`; by default the run's.
    out : path, optional
        CSV file to write; by default the run's own summary.

    Raises
    ------
    NotFoundError, DataError, UsageError
        If there is no table of regions, or its atlas has no such level.
    """
    from brainmap.atlas.regions import read_region_table, write_regions
    from brainmap.atlas.summary import summarise

    folder = Path(run)
    record = RunRecord.load(folder)
    level = _level(level, record)
    target = folder / SUMMARY_CSV if out is None else Path(out)
    write_regions(summarise(read_region_table(folder / REGIONS_CSV), level), target)
    if out is None:
        record.updated(execution=record.execution | {"level": level}).save(folder)
    return target


def count_in_regions(
    folder: Path,
    counter: RegionCounter,
    registration: Registration,
    atlas: Atlas,
    volume: Volume,
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
    registration, atlas, volume
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
    analysed = whole if roi is None and mask is None else _analysed(registration, atlas, volume, roi, mask)
    table = counter.table(analysed, atlas_mm3=atlas_volumes(atlas), whole_mm3=whole)
    write_regions(table, folder / REGIONS_CSV)
    write_regions(summarise(table, level), folder / SUMMARY_CSV)
    return table


def _analysed(
    registration: Registration, atlas: Atlas, volume: Volume, roi: Roi | None, mask: Mask | None
) -> NDArray[np.float64]:
    """Volume of each structure inside the region of interest and the mask."""
    box = None
    if roi is not None:
        box = tuple(
            (s.start * v + o - v / 2, s.stop * v + o - v / 2)
            for s, v, o in zip(roi.slices(volume.shape), volume.voxel_um, volume.origin_um, strict=True)
        )
    inside = None
    if mask is not None:
        from brainmap.registration.grid import resample_volume

        inside = resample_volume(mask.volume, registration.grid) > 0.5
    return registration.volumes_mm3(atlas, mask=inside, box_um=box)  # type: ignore[arg-type]


def _level(asked: str | None, record: RunRecord) -> str:
    """The level asked for, or else the run's; files by their absolute path, as the record keeps it."""
    level = asked or str(record.execution.get("level") or "summary")
    return str(Path(level).absolute()) if level.lower().endswith(".csv") else level


def _roi_of(record: RunRecord) -> Roi | None:
    roi = record.parameters.get("roi")
    return Roi(*(tuple(roi[axis]) for axis in "zyx")) if roi else None
