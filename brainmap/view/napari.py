"""A run in napari: the volume, its cells and the atlas warped to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from brainmap.errors import MissingExtraError, NotFoundError
from brainmap.image.volume import Volume
from brainmap.points.table import Points, points_path
from brainmap.run_folder import REGISTRATION_DIR, RunRecord

__all__ = ["view_run"]

# napari draws 1e6 points well and stutters at 1e7.
MOST_POINTS = 1_000_000


def view_run(run: str | Path) -> None:
    """Open a run folder in napari and wait until its window is closed.

    Raises
    ------
    MissingExtraError
        If napari is not installed.
    NotFoundError
        If there is no run, or its volume is gone.
    """
    run = Path(run)
    record = RunRecord.load(run)
    if not points_path(run).is_file():
        raise NotFoundError(f"{run} has no table of points yet (status: {record.status})")
    try:
        import napari
    except ImportError:
        raise MissingExtraError("napari", "napari", "look at a run in a window") from None

    points = Points.read(points_path(run))
    volume = Volume.open(
        # The table names the volume by its absolute address, the record as it was typed.
        points.meta.get("brain") or record.parameters["brain"],
        channel=record.parameters.get("channel"),
        voxel_um=record.parameters.get("voxel_um"),
        timepoint=record.parameters.get("timepoint"),
        axes=record.parameters.get("axes"),
    )
    viewer = napari.Viewer(title=f"brainmap {run.name}")
    viewer.add_image(
        [_lazy(volume, level) for level in range(len(volume.levels))],
        scale=volume.voxel_um, translate=volume.origin_um, name=volume.name, multiscale=True,
    )  # fmt: skip
    annotation = run / REGISTRATION_DIR / "annotation.ome.zarr"
    if annotation.is_dir():
        labels = Volume.open(annotation)
        viewer.add_labels(
            _lazy(labels, 0), scale=labels.voxel_um, translate=labels.origin_um, name="atlas", opacity=0.25
        )
    if len(points) > MOST_POINTS:
        # An even share over the table keeps every part of the brain represented.
        points = points.take(np.linspace(0, len(points) - 1, MOST_POINTS).astype(np.int64))
    viewer.add_points(points.zyx_um, name=f"cells ({len(points):,})", size=10, face_color="orange")
    napari.run()


def _lazy(volume: Volume, level: int) -> Any:
    """A dask array of one level that reads through the volume, channel and all."""
    import dask.array as da

    info = volume.levels[level]

    def read(block_info: dict) -> np.ndarray:
        z, y, x = (slice(start, stop) for start, stop in block_info[None]["array-location"])
        return volume.read(z, y, x, level=level)

    chunks = tuple(
        tuple(min(size, n - start) for start in range(0, n, size))
        for n, size in zip(info.shape, info.shards or info.chunks, strict=True)
    )
    return da.map_blocks(read, chunks=chunks, dtype=volume.dtype, meta=np.empty((0, 0, 0), volume.dtype))
