"""A run's cells in the formats of other tools.

Everything is read from the run folder (`points.parquet`, `regions.csv`): neither detector nor atlas
is needed, and tables of any size are streamed. BrainGlobe files hold whole
voxels and are lossy; `points.parquet` stays the table of record.
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pa_csv

from brainmap.errors import DataError, NotFoundError, UsageError
from brainmap.export import EXPORT_KINDS, EXPORT_NAMES
from brainmap.export.neuroglancer import Cells, Property, write_layer
from brainmap.files import atomic_path, cell_text
from brainmap.points.table import Points, iter_points, points_path
from brainmap.run_folder import EXPORTS_DIR, REGIONS_CSV

__all__ = ["export_points"]

log = logging.getLogger(__name__)

BRAINGLOBE_CELL = 2  # Type 2 is "cell"; readers that take cells only ignore the others.
# The version of brainglobe-utils whose YAML layout is written.
BRAINGLOBE_UTILS = "0.11.2"
# Nutil's report per region of the reference atlas, and the two sides.
QUINT_COLUMNS = (
    "Region ID", "Region name", "Region pixels", "Region area", "Area unit", "Object count", "Object pixels",
    "Object area", "Load", "Left region area", "Left object count", "Right region area", "Right object count",
)  # fmt: skip
HEMISPHERES = np.array(["", "left", "right"])
BATCH = 200_000


def export_points(run_dir: str | Path, kind: str, out: str | Path | None = None) -> Path:
    """Write the cells of a run in another tool's format.

    Parameters
    ----------
    run_dir : path
        Run folder.
    kind : str
        One of `brainmap.export.EXPORT_KINDS`.
    out : path, optional
        File, or folder for `brainmapper`, `neuroglancer` and `density`; default `RUN/exports/<name>`.

    Returns
    -------
    Path
        What was written.

    Raises
    ------
    UsageError
        For an unknown kind.
    NotFoundError, DataError
        If the run lacks the table or a column that the format needs.
    """
    if kind not in EXPORT_KINDS:
        raise UsageError(f"--export must be one of {', '.join(EXPORT_KINDS)}, not {kind!r}")
    run = Path(run_dir)
    if not points_path(run).is_file():
        raise NotFoundError(f"{run} has no table of points to export")
    target = Path(out) if out is not None else run / EXPORTS_DIR / EXPORT_NAMES[kind]
    with atomic_path(target) as temporary:
        _WRITERS[kind](run, temporary)
    return target


def _batches(run: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Points]:
    """The run's rows piece by piece, with the `columns` it must and the `optional` ones it may have."""
    path = points_path(run)
    have = _column_names(path)
    missing = [name for name in columns if name not in have]
    if missing:
        raise DataError(f"{path} lacks the column {', '.join(missing)}, which this export needs")
    yield from iter_points(path, BATCH, [*columns, *(name for name in optional if name in have)])


def _column_names(path: Path) -> list[str]:
    import pyarrow.parquet as pq

    return list(pq.read_schema(path).names)


def _meta(run: Path) -> dict[str, Any]:
    """The metadata of the run's table, also of one without rows."""
    path = points_path(run)
    return Points.read(path, _column_names(path)[:1]).meta


def _whole_voxels(points: Points) -> npt.NDArray[np.int64]:
    """The nearest voxels, shape (N, 3), order x, y, z."""
    return np.rint(points.coordinates("x", "y", "z")).astype(np.int64)


def _write_xml(run: Path, path: Path) -> None:
    raised = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(
            '<?xml version="1.0" encoding="UTF-8"?>\n<CellCounter_Marker_File>\n'
            "  <Image_Properties>\n    <Image_Filename>placeholder.tif</Image_Filename>\n"
            "  </Image_Properties>\n  <Marker_Data>\n    <Current_Type>1</Current_Type>\n"
            f"    <Marker_Type>\n      <Type>{BRAINGLOBE_CELL}</Type>\n"
        )
        for points in _batches(run, ("z", "y", "x")):
            xyz = _whole_voxels(points)
            # BrainGlobe writes (and ImageJ's cell counter knows) no coordinate below 1.
            raised += int((xyz < 1).any(axis=1).sum())
            file.writelines(
                f"      <Marker>\n        <MarkerX>{x}</MarkerX>\n        <MarkerY>{y}</MarkerY>\n"
                f"        <MarkerZ>{z}</MarkerZ>\n      </Marker>\n"
                for x, y, z in np.maximum(xyz, 1).tolist()
            )
        file.write("    </Marker_Type>\n  </Marker_Data>\n</CellCounter_Marker_File>\n")
    if raised:
        log.warning("the XML format starts at voxel 1: %d cells in voxel 0 were written there", raised)


def _write_csv(run: Path, path: Path) -> None:
    # As cells_to_csv: an unnamed index, the metadata, then x, y, z, type.
    rows = 0
    with _CsvFile(path, ("", "score", "z_vox", "y_vox", "x_vox", "x", "y", "z", "type")) as file:
        for points in _batches(run, ("z", "y", "x"), ("score",)):
            xyz = _whole_voxels(points)
            file.write(
                np.arange(rows, rows + len(points)), _score(points),
                *(np.round(points[axis], 4) for axis in "zyx"), *xyz.T,
                np.full(len(points), BRAINGLOBE_CELL),
            )  # fmt: skip
            rows += len(points)


def _write_yaml(run: Path, path: Path) -> None:
    n = sum(len(points) for points in _batches(run, ("z",)))
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(
            f"brainglobe_utils_version: {BRAINGLOBE_UTILS}\n"
            f"CellCounter_Marker_File: true\nnum_candidates: {n}\n"
        )
        file.write("candidate_cells:\n" if n else "candidate_cells: []\n")
        for points in _batches(run, ("z", "y", "x"), ("score",)):
            columns = (*_whole_voxels(points).T, _score(points), points["z"], points["y"], points["x"])
            file.writelines(
                f"  - x: {x}\n    y: {y}\n    z: {z}\n    type: {BRAINGLOBE_CELL}\n    metadata:\n"
                f"      score: {s:.6g}\n      z_vox: {fz:.4f}\n      y_vox: {fy:.4f}\n      x_vox: {fx:.4f}\n"
                for x, y, z, s, fz, fy, fx in zip(*(column.tolist() for column in columns), strict=True)
            )


def _write_napari(run: Path, path: Path) -> None:
    rows = 0
    with _CsvFile(path, ("index", "axis-0", "axis-1", "axis-2", "score")) as file:
        for points in _batches(run, ("z", "y", "x"), ("score",)):
            index = np.arange(rows, rows + len(points))
            file.write(index, *(np.round(points[axis], 4) for axis in "zyx"), _score(points))
            rows += len(points)


def _write_brainrender(run: Path, path: Path) -> None:
    columns = ("atlas_z_um", "atlas_y_um", "atlas_x_um")
    kept, seen, mapped = [], 0, 0
    for points in _batches(run, columns, ("region_id",)):
        known = np.isfinite(points.atlas_zyx_um).all(axis=1)
        seen, mapped = seen + len(points), mapped + int(known.sum())
        # Cells that map outside the atlas would hang beside the brain that is drawn.
        inside = known & (points["region_id"] != 0) if "region_id" in points else known
        kept.append(points.atlas_zyx_um[inside])
    if seen and not mapped:
        raise DataError(
            f"{run} has no atlas coordinates: detect with --atlas, or map it with brainmap regions"
        )
    cells = np.concatenate(kept) if kept else np.empty((0, 3))
    with path.open("wb") as file:
        np.save(file, cells.astype(np.float32))


def _write_neuroglancer(run: Path, path: Path) -> None:
    needed = ("z_um", "y_um", "x_um")
    properties = [Property("score", "float32")]
    # The format has no 64-bit properties; ids that do not fit are left out rather than cut.
    if "region_id" in _column_names(points_path(run)) and all(
        piece["region_id"].min(initial=0) >= 0 and piece["region_id"].max(initial=0) < 2**32
        for piece in _batches(run, ("region_id",))
    ):
        properties.append(Property("region_id", "uint32"))

    def cells() -> Iterator[Cells]:
        for piece in _batches(run, needed, ("score", "region_id")):
            values = {"score": _score(piece).astype(np.float32)}
            if len(properties) > 1:
                values["region_id"] = piece["region_id"].astype(np.uint32)
            yield piece.zyx_um, values

    write_layer(path, cells(), properties)


def _write_brainmapper(run: Path, path: Path) -> None:
    regions = _read_regions(run)
    path.mkdir()
    _write_all_points(run, path / "all_points.csv", regions)
    rows = _direct_by_name(regions)
    sides = ("left", "right", "total")
    with (path / "volumes.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["structure_name", *(f"{side}_volume_mm3" for side in sides)])
        writer.writerows([cell_text(name), *volumes] for name, (_, volumes) in rows.items() if volumes[2] > 0)
    with (path / "summary.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["structure_name", "left_cell_count", "right_cell_count", "total_cells"]
            + [f"{side}_volume_mm3" for side in sides]
            + ["left_cells_per_mm3", "right_cells_per_mm3"]
        )
        for name, (counts, volumes) in rows.items():
            # A density without a volume would be infinite: brainmapper leaves it empty.
            density = [n / v if v > 0 else "" for n, v in zip(counts[:2], volumes[:2], strict=True)]
            writer.writerow([cell_text(name), *counts, *volumes, *density])


def _write_all_points(run: Path, path: Path, regions: list[dict[str, Any]]) -> None:
    names = {row["region_id"]: row["name"] for row in regions if row["region_id"] != 0}
    header = [f"coordinate_{frame}_axis_{axis}" for frame in ("raw", "atlas") for axis in range(3)]
    outside = 0
    with _CsvFile(path, (*header, "structure_name", "hemisphere")) as file:
        columns = ("z", "y", "x", "atlas_z_um", "atlas_y_um", "atlas_x_um", "region_id", "hemisphere")
        for points in _batches(run, columns):
            inside = points["region_id"] != 0
            outside += int((~inside).sum())
            points = points.take(inside)
            ids, position = np.unique(points["region_id"], return_inverse=True)
            unknown = [int(i) for i in ids if int(i) not in names]
            if unknown:
                raise DataError(f"{run / REGIONS_CSV} has no region {unknown[0]}, which a cell lies in")
            region_names = np.array([cell_text(names[int(i)]) for i in ids], dtype=str)
            atlas_vox = np.floor(points.atlas_zyx_um / _atlas_resolution(run, points.meta)).astype(np.int64)
            file.write(
                *np.rint(points.zyx_vox).astype(np.int64).T, *atlas_vox.T,
                region_names[position] if len(ids) else np.array([], dtype=str),
                HEMISPHERES[points["hemisphere"]],
            )  # fmt: skip
    if outside:
        log.info("brainmapper has no row for cells outside the atlas: %d are left out", outside)


def _write_quint(run: Path, path: Path) -> None:
    regions = _read_regions(run)
    voxel_um = _meta(run).get("voxel_um")
    if voxel_um is None:
        raise DataError(f"{points_path(run)} does not name the voxel size, which this export needs")
    voxel_mm3 = float(np.prod(voxel_um)) / 1e9
    sides: dict[int, dict[str, dict[str, Any]]] = {}
    for row in regions:
        sides.setdefault(row["region_id"], {})[row["hemisphere"]] = row
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=";", lineterminator="\n")
        writer.writerow(QUINT_COLUMNS)
        for number, of_side in sides.items():
            both = of_side["both"]
            volume = both["volume_direct_mm3"]
            pixels = "N/A" if np.isnan(volume) else round(volume / voxel_mm3)
            cells = [
                number,
                cell_text(both["name"]),
                pixels,
                _known(volume),
                "mm3",
                both["count_direct"],
                *["N/A"] * 3,
            ]
            for side in ("left", "right"):
                one = of_side.get(side)
                known = ["N/A"] * 2
                if one is not None:
                    known = [_known(one["volume_direct_mm3"]), one["count_direct"]]
                cells += known
            writer.writerow(cells)


def _known(value: float) -> str:
    """A number for a table; N/A where it is unknown."""
    return "N/A" if np.isnan(value) else f"{value:.9g}"


def _write_density(run: Path, path: Path) -> None:
    from brainmap.export.density import VOXEL_UM, density_volume
    from brainmap.image.volume import write_volume

    batches = _batches(run, ("atlas_z_um", "atlas_y_um", "atlas_x_um", "region_id"))
    first = list(islice(batches, 1))
    meta = _meta(run)
    if "atlas_shape" not in meta:
        raise DataError(
            f"{points_path(run)} does not name the shape of its atlas, which this export needs: "
            "detect with --atlas, or map it again with brainmap regions"
        )
    extent = np.array(meta["atlas_shape"]) * _atlas_resolution(run, meta)
    inside = (points.take(points["region_id"] != 0).atlas_zyx_um for points in chain(first, batches))
    density = density_volume(inside, extent)
    voxel = (VOXEL_UM,) * 3
    write_volume(path, density, voxel, orientation="asr", origin_um=tuple(v / 2 for v in voxel))


def _atlas_resolution(run: Path, meta: dict[str, Any]) -> npt.NDArray[np.float64]:
    """Voxel size of the atlas, um, shape (3,) or (1,): as the table names it, or by the atlas's name."""
    named = meta.get("atlas_resolution_um")
    if named is None:
        # BrainGlobe names carry the resolution: allen_mouse_50um_v1.2.
        found = re.search(r"_(\d+(?:\.\d+)?)um(?:_|$)", str(meta.get("atlas")))
        named = [float(found[1])] if found else None
    if named is None:
        raise DataError(
            f"{points_path(run)} does not name the resolution of its atlas, which this export needs"
        )
    return np.asarray(named, dtype=np.float64)


def _read_regions(run: Path) -> list[dict[str, Any]]:
    """Rows of the run's table of regions."""
    from brainmap.atlas.regions import read_region_table

    columns = read_region_table(run / REGIONS_CSV).columns
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _direct_by_name(regions: list[dict[str, Any]]) -> dict[str, tuple[list[int], list[float]]]:
    """Counts and volumes (left, right, total) of structures that have any of their own, by name."""
    column = {"left": 0, "right": 1, "both": 2}
    found: dict[str, tuple[list[int], list[float]]] = {}
    for row in regions:
        if row["region_id"] == 0:
            continue
        counts, volumes = found.setdefault(row["name"], ([0, 0, 0], [0.0, 0.0, 0.0]))
        side = column[row["hemisphere"]]
        counts[side] += row["count_direct"]
        volumes[side] += np.nan_to_num(row["volume_direct_mm3"])
    return {name: found[name] for name in sorted(found) if found[name][0][2] > 0 or found[name][1][2] > 0}


def _score(points: Points) -> npt.NDArray[np.float64]:
    if "score" not in points:
        return np.ones(len(points), dtype=np.float64)
    return np.asarray(np.round(points["score"], 6), dtype=np.float64)


class _CsvFile:
    """A CSV file written column-wise, piece by piece."""

    def __init__(self, path: Path, header: Sequence[str]) -> None:
        self._file = path.open("wb")
        self._header = list(header)
        self._file.write((",".join(self._header) + "\n").encode())

    def __enter__(self) -> _CsvFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, *columns: npt.NDArray) -> None:
        arrays = [pa.array(column) for column in columns]
        table = pa.table(arrays, names=[str(i) for i in range(len(arrays))])
        pa_csv.write_csv(table, self._file, pa_csv.WriteOptions(include_header=False))


_WRITERS: dict[str, Callable[[Path, Path], None]] = {
    "brainglobe-xml": _write_xml,
    "brainglobe-csv": _write_csv,
    "brainglobe-yaml": _write_yaml,
    "brainmapper": _write_brainmapper,
    "napari": _write_napari,
    "neuroglancer": _write_neuroglancer,
    "brainrender": _write_brainrender,
    "quint": _write_quint,
    "density": _write_density,
}
