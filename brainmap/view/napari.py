"""A run in napari: the volume, its cells and the atlas warped to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from brainmap.errors import MissingExtraError
from brainmap.image.volume import Volume
from brainmap.points.table import Points, points_path
from brainmap.view.run_data import ViewedRun

__all__ = ["view_run"]

# napari draws 1e6 points well and stutters at 1e7.
MOST_POINTS = 1_000_000


def view_run(run: str | Path, brain: str | Path | None = None) -> None:
    """Open a run folder in napari and wait until its window is closed; `brain` says where its image was moved.

    Cells are rings as wide as a cell, seen in every plane that they reach to, coloured by score; the status bar names
    region and score of the one under the pointer.

    Raises
    ------
    MissingExtraError
        If napari is not installed.
    NotFoundError
        If there is no run, or its volume is gone.
    """
    opened = ViewedRun.open(run, brain)
    try:
        import napari
    except ImportError:
        raise MissingExtraError("napari", "napari", "look at a run in a window") from None

    volume = opened.volume
    viewer = napari.Viewer(title=f"brainmap {opened.name}")
    viewer.add_image(
        [_lazy(volume, level) for level in range(len(volume.levels))],
        scale=volume.voxel_um, translate=volume.origin_um, name=volume.name, multiscale=True,
    )  # fmt: skip
    if opened.registration is not None and (opened.registration.folder / "annotation.ome.zarr").is_dir():
        labels = Volume.open(opened.registration.folder / "annotation.ome.zarr")
        viewer.add_labels(
            _lazy(labels, 0), scale=labels.voxel_um, translate=labels.origin_um, name="atlas", opacity=0.25
        )
    points = Points.read(points_path(opened.folder))
    total = len(points)
    if total > MOST_POINTS:
        # An even share over the table keeps every part of the brain represented.
        points = points.take(np.linspace(0, total - 1, MOST_POINTS).astype(np.int64))
    # In planes rather than um: the slider steps from plane to plane. One unit for all axes: cells stay round.
    plane = volume.voxel_um[0]
    viewer.add_points(
        (points.zyx_um - np.array(volume.origin_um)) / plane,
        scale=(plane,) * 3, translate=volume.origin_um, size=opened.diameter_um / plane, out_of_slice_display=True,
        name=f"cells ({len(points):,} of {total:,})" if len(points) < total else f"cells ({total:,})",
        features=_features(opened, points), face_color="transparent", symbol="ring",
        border_color="score" if "score" in points else "orange", border_colormap="viridis",
        border_contrast_limits=(0, 1),
    )  # fmt: skip
    napari.run()


def _features(opened: ViewedRun, points: Points) -> dict[str, Any]:
    """What napari says of a point: score, region, hemisphere, as far as they are known."""
    found: dict[str, Any] = {}
    if "score" in points:
        found["score"] = points["score"].astype(np.float64)
    if "region_id" in points and opened.atlas is not None:
        structures = opened.atlas.structures
        names = np.array([*structures.acronym, "outside"])
        # Row -1, no region, is the last name.
        found["region"] = names[structures.rows_of(points["region_id"])]
    if "hemisphere" in points:
        found["hemisphere"] = np.array(["none", "left", "right"])[points["hemisphere"].astype(np.int64)]
    return found


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
