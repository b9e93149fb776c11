"""Points and labelled volumes -> counts, volumes and densities per structure and hemisphere."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from brainmap.atlas.atlas import LEFT, RIGHT, UNDECIDED, Atlas
from brainmap.atlas.structures import OUTSIDE_ID, Structures
from brainmap.errors import DataError
from brainmap.provenance import atomic_path

__all__ = [
    "COLUMNS",
    "RegionCounter",
    "RegionTable",
    "assign_regions",
    "count_regions",
    "label_volumes",
    "write_regions",
]

COLUMNS = (
    "region_id",
    "acronym",
    "name",
    "parent_id",
    "depth",
    "hemisphere",
    "count",
    "volume_mm3",
    "density_per_mm3",
    "count_direct",
    "volume_direct_mm3",
)

_HEMISPHERES = ("left", "right", "both")
_UM3_PER_MM3 = 1e9


def assign_regions(points_atlas_um: ArrayLike, atlas: Atlas) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
    """Structure and hemisphere of each point; see `Atlas.lookup`.

    Parameters
    ----------
    points_atlas_um : array (N, 3)
        z, y, x in atlas um (asr, from the outer corner).
    atlas : Atlas

    Returns
    -------
    region_id : int64 array (N,)
        0 = outside.
    hemisphere : int8 array (N,)
        0 = none, 1 = left, 2 = right.
    """
    return atlas.lookup(points_atlas_um)


@dataclass(frozen=True)
class RegionTable:
    """One row per structure and hemisphere, as ``regions.csv`` holds it.

    Attributes
    ----------
    columns : dict of arrays
        The columns `COLUMNS`, equal length; the first row is ``0,outside``. Volumes and densities are
        NaN where no volumes were given.
    """

    columns: dict[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.columns["region_id"])

    def __getitem__(self, column: str) -> NDArray[Any]:
        return self.columns[column]

    def select(self, structure: str | int, hemisphere: str = "both") -> dict[str, Any]:
        """Return the row of one structure (id or acronym) and hemisphere as a dict."""
        key = "acronym" if isinstance(structure, str) else "region_id"
        rows = np.flatnonzero((self[key] == structure) & (self["hemisphere"] == hemisphere))
        if len(rows) != 1:
            raise DataError(f"the region table has no single row for {structure!r}, {hemisphere}")
        return {name: values[rows[0]] for name, values in self.columns.items()}


@dataclass
class RegionCounter:
    """Counts points per structure and hemisphere, batch by batch: memory does not grow with the points.

    Attributes
    ----------
    structures : Structures
    direct : int64 array (n + 1, 3)
        Points directly in each structure; columns undecided, left, right; the last row counts outside.
    """

    structures: Structures
    direct: NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.direct = np.zeros((len(self.structures) + 1, 3), dtype=np.int64)

    def add(self, region_id: ArrayLike, hemisphere: ArrayLike) -> None:
        """Count one batch.

        Parameters
        ----------
        region_id : int array (N,)
            0 = outside.
        hemisphere : int array (N,)
            0 = none, 1 = left, 2 = right.

        Raises
        ------
        DataError
            If an id is not in the ontology or a hemisphere is not 0, 1 or 2.
        """
        regions, sides = np.asarray(region_id), np.asarray(hemisphere)
        if regions.shape != sides.shape:
            raise DataError(f"region_id {regions.shape} and hemisphere {sides.shape} differ in length")
        if sides.size and (sides.min() < UNDECIDED or sides.max() > RIGHT):
            raise DataError("hemisphere must be 0 (none), 1 (left) or 2 (right)")
        rows = self.structures.rows_of(regions)
        outside = regions == OUTSIDE_ID
        unknown = (rows < 0) & ~outside
        if unknown.any():
            raise DataError(f"region id {int(regions[unknown][0])} is not in the atlas's ontology")
        rows = np.where(outside, len(self.structures), rows)
        cells = np.bincount(rows * 3 + sides.astype(np.int64), minlength=self.direct.size)
        self.direct += cells.reshape(self.direct.shape)

    @property
    def n_points(self) -> int:
        """Points counted so far, outside included."""
        return int(self.direct.sum())

    def table(self, volumes_mm3: NDArray[np.float64] | None = None) -> RegionTable:
        """Return the table of everything counted so far.

        Parameters
        ----------
        volumes_mm3 : float array (n + 1, 3), optional
            Direct volumes as `label_volumes` returns them.
        """
        n = len(self.structures)
        direct = self.direct[:n]
        volume = np.full((n, 3), np.nan) if volumes_mm3 is None else np.asarray(volumes_mm3, dtype=float)[:n]
        roll_up = self.structures.roll_up
        measures = {
            "count": roll_up(direct),
            "volume_mm3": roll_up(volume),
            "count_direct": direct,
            "volume_direct_mm3": volume,
        }
        # Rows left, right, both per structure; "both" includes what has no hemisphere.
        wide = {
            k: np.stack([v[:, LEFT], v[:, RIGHT], v.sum(axis=1)], axis=1).ravel() for k, v in measures.items()
        }
        outside = int(self.direct[n].sum())
        first = {"count": outside, "volume_mm3": np.nan, "count_direct": outside, "volume_direct_mm3": np.nan}
        columns = {name: np.concatenate([[first[name]], values]) for name, values in wide.items()}
        columns |= _names(self.structures)
        with np.errstate(divide="ignore", invalid="ignore"):
            density = columns["count"] / columns["volume_mm3"]
        columns["density_per_mm3"] = np.where(columns["volume_mm3"] > 0, density, np.nan)
        return RegionTable({name: columns[name] for name in COLUMNS})


def _names(structures: Structures) -> dict[str, NDArray[Any]]:
    def column(first: Any, values: Any) -> NDArray[Any]:
        tail = np.asarray(values)
        return np.concatenate([np.asarray([first], dtype=object), np.repeat(tail.astype(object), 3)])

    n = len(structures)
    return {
        "region_id": column(OUTSIDE_ID, structures.id).astype(np.int64),
        "acronym": column("outside", structures.acronym),
        "name": column("outside", structures.name),
        "parent_id": column(OUTSIDE_ID, structures.parent_id).astype(np.int64),
        "depth": column(0, structures.depth).astype(np.int64),
        "hemisphere": np.array(["both", *_HEMISPHERES * n], dtype=object),
    }


def count_regions(
    batches: Iterable[tuple[ArrayLike, ArrayLike]],
    atlas: Atlas,
    volumes_mm3: NDArray[np.float64] | None = None,
) -> RegionTable:
    """Count batches of ``(region_id, hemisphere)`` and return the table; see `RegionCounter`."""
    counter = RegionCounter(atlas.structures)
    for region_id, hemisphere in batches:
        counter.add(region_id, hemisphere)
    return counter.table(volumes_mm3)


def label_volumes(
    annotation: NDArray[Any],
    hemispheres: NDArray[Any],
    structures: Structures,
    weights_um: tuple[ArrayLike, ArrayLike, ArrayLike],
    mask: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """Volume directly labelled with each structure, per hemisphere.

    Parameters
    ----------
    annotation : int array (z, y, x)
        Structure ids in the sample; 0 = outside.
    hemispheres : int array (z, y, x)
        0 = none, 1 = left, 2 = right.
    structures : Structures
    weights_um : three float arrays
        Per axis the length in um that each voxel contributes (the voxel size; less where a voxel
        reaches beyond the image or the region of interest).
    mask : bool array (z, y, x), optional
        Voxels that were analysed; all by default.

    Returns
    -------
    float64 array (n + 1, 3)
        mm3; columns undecided, left, right; the last row is the volume labelled outside.
    """
    n = len(structures)
    wz, wy, wx = (np.asarray(w, dtype=float) for w in weights_um)
    plane_weight = wy[:, None] * wx[None, :]
    total = np.zeros((n + 1) * 3)
    for z in range(annotation.shape[0]):  # plane by plane: temporaries stay small
        weight = plane_weight * wz[z]
        if mask is not None:
            weight = weight * mask[z]
        rows = structures.rows_of(annotation[z])
        cells = np.where(rows < 0, n, rows) * 3 + hemispheres[z]
        total += np.bincount(cells.ravel(), weights=weight.ravel(), minlength=total.size)
    return total.reshape(n + 1, 3) / _UM3_PER_MM3


def write_regions(table: RegionTable, path: str | Path) -> None:
    """Write ``regions.csv``: header `COLUMNS`; counts as integers, unknown volumes and densities empty."""
    with atomic_path(Path(path)) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(zip(*(_cells(name, table[name]) for name in COLUMNS), strict=True))


def _cells(name: str, values: NDArray[Any]) -> list[Any]:
    if name in ("region_id", "parent_id", "depth", "count", "count_direct"):
        return [int(v) for v in values]
    if values.dtype.kind == "f":
        return ["" if np.isnan(v) else f"{v:.9g}" for v in values]
    return [str(v) for v in values]
