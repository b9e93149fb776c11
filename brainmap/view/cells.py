"""The cells of a run for a viewer: annotations by a spatial index, and look-ups of single ones.

Made once and kept in `RUN/view/`; made again when the run's cells changed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.errors import BrainmapError
from brainmap.export.neuroglancer import Cells, Property, write_layer
from brainmap.files import atomic_path, fingerprint, read_json, write_json
from brainmap.points.spatial_order import SpatialOrder
from brainmap.points.table import points_path
from brainmap.run_folder import BLOCKS_DIR
from brainmap.view.run_data import ViewedRun

__all__ = ["VIEW_DIR", "CellIndex", "open_cells"]

log = logging.getLogger(__name__)

VIEW_DIR = "view"
LAYER, ORDER, MADE = "layer", "order", "made.json"
# Another layout of the files makes them anew.
FORMAT = 2
SIDES = {0: "none", 1: "left", 2: "right"}
#: Where cells and weaker candidates lie in no region.
GREY = (150, 150, 150)


@dataclass(frozen=True)
class CellIndex:
    """Cells of a run, looked up by place.

    Attributes
    ----------
    layer : Path
        Annotations for neuroglancer.
    order : SpatialOrder
        The same records by place: `p_score p_region p_hemisphere`.
    """

    layer: Path
    order: SpatialOrder

    def nearest(self, zyx_um: NDArray[np.float64], radius_um: float, lowest: float) -> dict[str, Any] | None:
        """The nearest cell whose score reaches the lowest; None where none is near."""
        found, distance = self.order.nearest(zyx_um, radius_um)
        for record, apart in zip(found, distance, strict=True):
            if record["p_score"] >= np.float32(lowest):
                return {
                    "id": int(record["row"]),
                    "zyx_um": [float(record[axis]) for axis in "zyx"],
                    "score": float(record["p_score"]),
                    "region_id": int(record["p_region"]),
                    "hemisphere": SIDES[int(record["p_hemisphere"])],
                    "distance_um": float(apart),
                }
        return None


def open_cells(run: ViewedRun) -> CellIndex:
    """The index of a run's cells, made where it is missing or of other cells."""
    folder = run.folder / VIEW_DIR
    state = _state(run)
    try:
        if read_json(folder / MADE) == state:
            return CellIndex(folder / LAYER, SpatialOrder.open(folder / ORDER))
    except BrainmapError:
        pass
    start = time.monotonic()
    with atomic_path(folder) as new:
        new.mkdir()
        write_layer(new / LAYER, _cells(run), _properties(run), keep=new / ORDER)
        write_json(new / MADE, state)
    found = CellIndex(folder / LAYER, SpatialOrder.open(folder / ORDER))
    log.info("indexed %d cells in %.1f s", found.order.n, time.monotonic() - start)
    return found


def _state(run: ViewedRun) -> dict[str, Any]:
    """What tells one set of cells from another, without reading all of them."""
    files = [points_path(run.folder), *sorted((run.folder / BLOCKS_DIR).glob("*.parquet"))]
    known = [(path.name, stat.st_size, stat.st_mtime_ns) for path in files for stat in [path.stat()]]
    return {"format": FORMAT, "cells": fingerprint([known, run.meta, run.threshold])}


def _properties(run: ViewedRun) -> list[Property]:
    names = {0: "outside"}
    if run.atlas is not None:
        structures = run.atlas.structures
        names |= {int(key): name for key, name in zip(structures.id, structures.acronym, strict=True)}
    return [
        Property("score", "float32"),
        Property("region", "uint32", names),
        Property("color", "rgb"),
        Property("hemisphere", "uint8", SIDES),
    ]


def _cells(run: ViewedRun) -> Iterator[Cells]:
    structures = None if run.atlas is None else run.atlas.structures
    # The last row is the colour of what lies in no region: row -1.
    palette = np.array([GREY], np.uint8) if structures is None else np.vstack([structures.rgb, [GREY]])
    for piece in run.cells():
        region = piece["region_id"]
        rows = np.full(len(piece), -1) if structures is None else structures.rows_of(region)
        yield (
            piece.zyx_um,
            {
                "score": piece["score"].astype(np.float32),
                "region": region.astype(np.uint32),
                "color": palette[rows],
                "hemisphere": piece["hemisphere"].astype(np.uint8),
            },
        )
