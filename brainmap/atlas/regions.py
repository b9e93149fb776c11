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
from brainmap.errors import DataError, NotFoundError
from brainmap.files import atomic_path, cell_text, plain_text

__all__ = [
    "COLUMNS",
    "HEMISPHERES",
    "RegionCounter",
    "RegionTable",
    "assign_regions",
    "atlas_volumes",
    "count_regions",
    "density",
    "label_volumes",
    "read_region_table",
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
    "atlas_volume_mm3",
    "density_per_atlas_mm3",
    "atlas_volume_direct_mm3",
)

HEMISPHERES = ("left", "right", "both")
_UM3_PER_MM3 = 1e9
_INTEGERS = ("region_id", "parent_id", "depth", "count", "count_direct")
_TEXTS = ("acronym", "name", "hemisphere", "shares_cells_with")
# Of a structure's volume in the sample: with less analysed, its count cannot be set against its volume in the atlas.
_WHOLE = 0.99
# Brains differ in size, but not by so much: with a smaller share of its volume in the atlas, a side is not there.
_PRESENT = 0.1


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
    """One row per structure and hemisphere, as ``regions.csv`` holds it (or ``regions_summary.csv``).

    Attributes
    ----------
    columns : dict of arrays
        The columns `COLUMNS`, equal length; the first row is ``0,outside``, then three rows (left, right, both)
        per structure. Volumes and densities are NaN where they are not known.
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

    def table(
        self,
        volumes_mm3: NDArray[np.float64] | None = None,
        *,
        atlas_mm3: NDArray[np.float64] | None = None,
        whole_mm3: NDArray[np.float64] | None = None,
    ) -> RegionTable:
        """Return the table of everything counted so far.

        Parameters
        ----------
        volumes_mm3 : float array (n + 1, 3), optional
            Direct volumes of what was analysed in the sample, as `label_volumes` returns them.
        atlas_mm3 : float array (n + 1, 3), optional
            Direct volumes in the atlas, see `atlas_volumes`.
        whole_mm3 : float array (n + 1, 3), optional
            Direct volumes in the sample, analysed or not; by default all was analysed. Structures of which a part
            was left out get no density by atlas volume.
        """
        n = len(self.structures)
        direct, roll_up = self.direct[:n], self.structures.roll_up
        volume, atlas = _known(volumes_mm3, n), _known(atlas_mm3, n)
        wide = {
            "count": _sides(roll_up(direct)),
            "volume_mm3": _sides(roll_up(volume)),
            "count_direct": _sides(direct),
            "volume_direct_mm3": _sides(volume),
            "atlas_volume_mm3": _sides(roll_up(atlas)),
            "atlas_volume_direct_mm3": _sides(atlas),
        }
        wide["density_per_mm3"] = density(wide["count"], wide["volume_mm3"])
        wide["density_per_atlas_mm3"] = density(wide["count"], wide["atlas_volume_mm3"])
        if whole_mm3 is not None:
            part = wide["volume_mm3"] < _WHOLE * _sides(roll_up(_known(whole_mm3, n)))
            wide["density_per_atlas_mm3"][part] = np.nan
        wide["density_per_atlas_mm3"][_absent(wide["volume_mm3"], wide["atlas_volume_mm3"])] = np.nan
        outside = int(self.direct[n].sum())
        first = dict.fromkeys(wide, np.nan) | {"count": outside, "count_direct": outside}
        columns = {name: np.concatenate([[first[name]], values]) for name, values in wide.items()}
        columns |= _names(self.structures)
        return RegionTable({name: columns[name] for name in COLUMNS})


def _absent(volume_mm3: NDArray[np.float64], atlas_mm3: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Rows (left, right, both) of which the sample lacks a side, as half a brain does: nothing to set against it."""
    sides = (volume_mm3 < _PRESENT * atlas_mm3).reshape(-1, 3)
    sides[:, 2] = sides[:, 0] | sides[:, 1]
    return sides.ravel()


def density(count: NDArray[Any], volume_mm3: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cells per mm3; NaN where the volume is unknown or zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(volume_mm3 > 0, count / volume_mm3, np.nan)


def _known(volumes_mm3: NDArray[np.float64] | None, n: int) -> NDArray[np.float64]:
    return np.full((n, 3), np.nan) if volumes_mm3 is None else np.asarray(volumes_mm3, dtype=float)[:n]


def _sides(values: NDArray[Any]) -> NDArray[Any]:
    """Rows left, right, both per structure, shape (3n,); "both" includes what has no hemisphere."""
    return np.stack([values[:, LEFT], values[:, RIGHT], values.sum(axis=1)], axis=1).ravel()


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
        "hemisphere": np.array(["both", *HEMISPHERES * n], dtype=object),
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
        labels, sides = annotation[z].ravel(), hemispheres[z].ravel()
        # Runs of equal voxels: an id is looked up once for each.
        new = (labels[1:] != labels[:-1]) | (sides[1:] != sides[:-1])
        starts = np.concatenate([[0], np.flatnonzero(new) + 1])
        rows = structures.rows_of(labels[starts])
        cells = np.where(rows < 0, n, rows) * 3 + sides[starts]
        lengths = np.add.reduceat(weight.ravel(), starts)
        total += np.bincount(cells, weights=lengths, minlength=total.size)
    return total.reshape(n + 1, 3) / _UM3_PER_MM3


def atlas_volumes(atlas: Atlas) -> NDArray[np.float64]:
    """Volume directly labelled with each structure in the atlas itself, per hemisphere; see `label_volumes`."""
    lengths = [np.full(n, step) for n, step in zip(atlas.shape, atlas.resolution_um, strict=True)]
    weights = (lengths[0], lengths[1], lengths[2])
    return label_volumes(atlas.annotation, atlas.hemispheres, atlas.structures, weights)


def write_regions(table: RegionTable, path: str | Path) -> None:
    """Write ``regions.csv``: counts as integers, unknown volumes and densities empty."""
    with atomic_path(Path(path)) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(table.columns)
        writer.writerows(zip(*(_cells(*column) for column in table.columns.items()), strict=True))


def _cells(name: str, values: NDArray[Any]) -> list[Any]:
    if name in _INTEGERS:
        return [int(v) for v in values]
    if name in _TEXTS:
        return [cell_text(str(v)) for v in values]
    return ["" if np.isnan(v) else f"{v:.9g}" for v in values]


def read_region_table(path: str | Path) -> RegionTable:
    """Read a ``regions.csv``; columns that older ones lack are NaN.

    Raises
    ------
    NotFoundError, DataError
        If it is not there, or not a table of regions.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except FileNotFoundError:
        raise NotFoundError(
            f"there is no table of regions {path}: detect with --atlas, or count with brainmap regions"
        ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a readable table: {error}") from error
    try:
        columns = {name: _column(name, [row.get(name) for row in rows]) for name in COLUMNS}
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path} is not a table of regions ({error})") from error
    sides = columns["hemisphere"].tolist()
    if (
        sides[:1] != ["both"]
        or sides[1:] != [*HEMISPHERES] * (len(rows) // 3)
        or columns["region_id"][0] != 0
    ):
        raise DataError(
            f"{path} is not a table of regions: it needs 0,outside first, then three rows a structure"
        )
    return RegionTable(columns)


def _column(name: str, texts: list[str | None]) -> NDArray[Any]:
    if name in _INTEGERS:
        return np.array([int(text) for text in texts], dtype=np.int64)  # type: ignore[arg-type]
    if name in _TEXTS:
        if None in texts:
            raise ValueError(f"the column {name} is missing")
        return np.array([plain_text(str(text)) for text in texts], dtype=object)
    return np.array([float(text or "nan") for text in texts])
