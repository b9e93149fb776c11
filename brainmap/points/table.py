"""The table of cells: columns of equal length, never an object per cell.

A table is stored as Parquet (zstd, row groups of about 100,000 rows), its frame, units, voxel size,
detector and atlas as JSON in the file's metadata. Positions are `z y x`, float voxel indices of
level 0 (0 is the CENTRE of the first voxel), and `z_um y_um x_um`; `atlas_z_um ...` are micrometres
from the atlas's outer corner, axes as in "asr". `border_um` is the distance, in the atlas, to the border of
the cell's region; NaN without atlas and beyond its box.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from brainmap.errors import DataError, NotFoundError, what_it_is
from brainmap.files import atomic_path, to_jsonable
from brainmap.run_folder import POINTS_PARQUET

__all__ = [
    "COLUMNS",
    "Points",
    "PointsWriter",
    "iter_points",
    "points_path",
    "read_locations",
]

META_KEY = b"brainmap"
ROW_GROUP = 100_000

# The columns of a run's table in their order, with their types. Positions are float64: their um must
# equal index * scale + translation to the last digit a reader may check. Others may follow.
COLUMNS: dict[str, str] = {
    "z": "float64", "y": "float64", "x": "float64",
    "z_um": "float64", "y_um": "float64", "x_um": "float64",
    "score": "float32",
    "atlas_z_um": "float64", "atlas_y_um": "float64", "atlas_x_um": "float64",
    "region_id": "int64",
    "hemisphere": "int8",
    "border_um": "float32",
}  # fmt: skip

# Columns that hold names: 0001 stays 0001.
ID_COLUMNS = ("image_id", "worker_id")


@dataclass(frozen=True)
class Points:
    """Cells as named columns.

    Attributes
    ----------
    columns : dict of str to array
        Equal lengths, one row per cell.
    meta : dict
        Frame, units, `voxel_um` (z, y, x), detector, atlas, ...: anything JSON can hold.
    """

    columns: dict[str, npt.NDArray]
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        arrays = {str(name): np.asarray(array) for name, array in self.columns.items()}
        lengths = {array.shape for array in arrays.values()}
        if len(lengths) > 1 or any(len(shape) != 1 for shape in lengths):
            shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
            raise DataError(f"columns must be one-dimensional and of equal length: {shapes}")
        object.__setattr__(self, "columns", arrays)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def __getitem__(self, name: str) -> npt.NDArray:
        try:
            return self.columns[name]
        except KeyError:
            have = ", ".join(self.columns) or "none"
            raise DataError(f"the table of points has no column {name!r} (it has: {have})") from None

    @classmethod
    def empty(
        cls,
        columns: Iterable[str] | Mapping[str, Any] = tuple(COLUMNS),
        meta: Mapping[str, Any] | None = None,
    ) -> Points:
        """A table without rows; columns by name (types as in `COLUMNS`) or as name -> dtype."""
        types = columns if isinstance(columns, Mapping) else {n: COLUMNS.get(n, "float64") for n in columns}
        return cls({name: np.empty(0, dtype) for name, dtype in types.items()}, dict(meta or {}))

    @classmethod
    def concat(cls, parts: Sequence[Points]) -> Points:
        """All rows one after another; the parts have the same columns; `meta` is the first part's."""
        if not parts:
            return cls.empty()
        names = list(parts[0].columns)
        for part in parts:
            if set(part.columns) != set(names):
                raise DataError(f"tables to join have different columns: {names} and {list(part.columns)}")
        return cls({n: np.concatenate([part[n] for part in parts]) for n in names}, dict(parts[0].meta))

    def with_columns(self, **arrays: npt.ArrayLike) -> Points:
        """A copy with columns added or replaced."""
        return Points(self.columns | {k: np.asarray(v) for k, v in arrays.items()}, self.meta)

    def with_meta(self, **values: Any) -> Points:
        """A copy with metadata added or replaced."""
        return Points(self.columns, self.meta | values)

    def take(self, index: npt.ArrayLike | slice) -> Points:
        """The rows of an index array, boolean mask or slice."""
        chosen = index if isinstance(index, slice) else np.asarray(index)
        if not isinstance(chosen, slice) and chosen.size == 0 and chosen.dtype != bool:
            chosen = chosen.astype(np.int64)
        return Points({name: array[chosen] for name, array in self.columns.items()}, self.meta)

    def coordinates(self, *names: str) -> npt.NDArray[np.float64]:
        """Columns side by side, float64 of shape (N, number of names)."""
        return np.column_stack([np.asarray(self[name], dtype=np.float64) for name in names])

    @property
    def zyx_vox(self) -> npt.NDArray[np.float64]:
        """Level-0 voxel indices, shape (N, 3), order z, y, x."""
        return self.coordinates("z", "y", "x")

    @property
    def zyx_um(self) -> npt.NDArray[np.float64]:
        """Micrometres in the sample, shape (N, 3), order z, y, x."""
        return self.coordinates("z_um", "y_um", "x_um")

    @property
    def atlas_zyx_um(self) -> npt.NDArray[np.float64]:
        """Micrometres in the atlas from its outer corner ("asr"), shape (N, 3); NaN where unknown."""
        return self.coordinates("atlas_z_um", "atlas_y_um", "atlas_x_um")

    @classmethod
    def read(cls, path: str | Path, columns: Sequence[str] | None = None) -> Points:
        """Read a Parquet table, or some of its columns.

        Raises
        ------
        NotFoundError, DataError
            If there is no such file, it is not Parquet, or a column is missing.
        """
        with _open(path) as file:
            _require(path, file, columns)
            return _from_arrow(file.read(columns=columns and list(columns)), _meta(file))

    def write(self, path: str | Path) -> None:
        """Write a Parquet table, atomically."""
        with PointsWriter(path, self.meta) as writer:
            writer.append(self)


class PointsWriter:
    """Write a table piece by piece with bounded memory; the file appears when the block ends.

    >>> with PointsWriter("points.parquet", {"voxel_um": [5, 2, 2]}) as writer:  # doctest: +SKIP
    ...     for piece in pieces:
    ...         writer.append(piece)

    The first piece decides columns and types; without any the table has the columns of `COLUMNS` and
    no rows. `meta` may be added to until the block ends. After an error nothing is left.
    """

    def __init__(self, path: str | Path, meta: Mapping[str, Any] | None = None) -> None:
        self.path = Path(path)
        self.meta: dict[str, Any] = dict(meta or {})
        self.rows = 0
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> PointsWriter:
        self._atomic = atomic_path(self.path)
        self._temporary = self._atomic.__enter__()
        return self

    def append(self, points: Points) -> None:
        """Add rows."""
        table = pa.table({name: _to_arrow(array) for name, array in points.columns.items()})
        if self._writer is not None or self._pending:
            schema = self._pending[0].schema if self._pending else self._schema
            if set(table.column_names) != set(schema.names):
                raise DataError(
                    f"{self.path}: rows with columns {table.column_names} do not fit {schema.names}"
                )
            table = table.select(schema.names).cast(schema)
        self._pending.append(table)
        self._pending_rows += len(points)
        self.rows += len(points)
        if self._pending_rows >= ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        table = pa.concat_tables(self._pending)
        if self._writer is None:
            self._schema = table.schema
            self._writer = pq.ParquetWriter(self._temporary, table.schema, compression="zstd")
        self._writer.write_table(table, row_group_size=ROW_GROUP)
        self._pending, self._pending_rows = [], 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                if self._writer is None and not self._pending:
                    self.append(Points.empty())
                if self._pending:
                    self._flush()
                if self._writer is not None:
                    text = json.dumps(to_jsonable(self.meta), sort_keys=True)
                    self._writer.add_key_value_metadata({META_KEY: text.encode()})
            if self._writer is not None:
                self._writer.close()
        except BaseException as problem:
            self._atomic.__exit__(type(problem), problem, problem.__traceback__)
            raise
        self._atomic.__exit__(kind, error, trace)


def iter_points(
    path: str | Path, batch_rows: int = 1_000_000, columns: Sequence[str] | None = None
) -> Iterator[Points]:
    """Read a table in pieces of at most `batch_rows` rows; a table without rows gives none.

    Raises
    ------
    NotFoundError, DataError
        As `Points.read`.
    """
    with _open(path) as file:
        _require(path, file, columns)
        meta = _meta(file)
        for batch in file.iter_batches(batch_size=batch_rows, columns=columns and list(columns)):
            yield _from_arrow(pa.Table.from_batches([batch]), meta)


def points_path(path: str | Path) -> Path:
    """The table of a run folder, or the path itself."""
    path = Path(path)
    return path / POINTS_PARQUET if path.is_dir() else path


def read_locations(path: str | Path) -> Points:
    """Read points leniently: a run folder, a Parquet table, or a CSV with z,y,x or x,y.

    CSV files may use commas, semicolons or tabs, name the axes as napari does (`axis-0`..., of which the last
    three are z, y, x), and have further columns; `image_id` and `worker_id` stay strings.

    Raises
    ------
    NotFoundError
        If there is no such file.
    DataError
        If the columns z,y,x or x,y are missing, or a coordinate is not a finite number.
    """
    path = points_path(path)
    if not path.is_file():
        given = path.parent if path.name == POINTS_PARQUET and path.parent.is_dir() else path
        raise NotFoundError(f"there is no table of points {path}{what_it_is(given)}")
    with path.open("rb") as file:
        is_parquet = file.read(4) == b"PAR1"
    points = Points.read(path) if is_parquet else _read_csv(path)
    axes = ("z", "y", "x") if "z" in points else ("y", "x")
    for axis in axes:
        if axis not in points:
            have = ", ".join(points.columns) or "none"
            raise DataError(f"{path} needs columns z,y,x or x,y, it has: {have}{what_it_is(path)}")
        values = _numbers(points[axis], path, axis)
        points = points.with_columns(**{axis: values})
    for name in ID_COLUMNS:
        if name in points:
            points = points.with_columns(**{name: points[name].astype(str)})
    return points


def _read_csv(path: Path) -> Points:
    with path.open("rb") as file:
        header = file.readline().decode("utf-8-sig", errors="replace").strip()
    if not header:
        raise DataError(f"{path} is empty")
    delimiter = max(",;\t", key=header.count)
    raw = [name.strip().strip('"') for name in header.split(delimiter)]
    try:
        # Header and rows apart, so that odd header spellings do not matter; ids are read as text.
        table = pa_csv.read_csv(
            path,
            read_options=pa_csv.ReadOptions(column_names=raw, skip_rows=1),
            parse_options=pa_csv.ParseOptions(delimiter=delimiter),
            convert_options=pa_csv.ConvertOptions(
                column_types={name: pa.string() for name in raw if name.lower() in ID_COLUMNS},
                strings_can_be_null=False,
            ),
        )
    except (pa.ArrowInvalid, UnicodeDecodeError, OSError) as error:
        if "Empty CSV" not in str(error):
            said = "".join(c for c in str(error).splitlines()[0][:120] if c.isprintable())
            raise DataError(f"{path} is not a readable CSV table{what_it_is(path)} ({said})") from error
        table = pa.table({name: pa.array([], pa.float64()) for name in raw})
    names = [name.lower() for name in raw]
    names = _napari_names(names, table, path)
    if len(set(names)) != len(names):
        raise DataError(f"{path} has two columns of the same name: {', '.join(names)}")
    return _from_arrow(table.rename_columns(names), {})


def _napari_names(names: list[str], table: pa.Table, path: Path) -> list[str]:
    """Columns axis-0, axis-1, ... by their letters: the last ones are z, y, x; any before must not vary."""
    numbered = sorted((int(m[1]), name) for name in names if (m := re.fullmatch(r"axis-(\d{1,3})", name)))
    axes = [name for _, name in numbered]
    if [number for number, _ in numbered] != list(range(len(axes))) or len(axes) == 1:
        raise DataError(
            f"{path} has the columns {', '.join(axes)}; points have axis-0, axis-1 and so on, two or more"
        )
    for name in axes[:-3]:
        if len(table.column(names.index(name)).unique()) > 1:
            raise DataError(
                f"{path}: {name} varies, so the points are of several images (of {len(axes)} axes the last three are "
                "z, y, x); give the points of one image"
            )
    letters = dict(zip(reversed(axes), "xyz", strict=False))
    return [letters.get(name, name) for name in names]


def _numbers(values: npt.NDArray, path: Path, axis: str) -> npt.NDArray[np.float64]:
    try:
        numbers = values.astype(np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{path}: column {axis} holds values that are not numbers") from None
    bad = np.flatnonzero(~np.isfinite(numbers))
    if len(bad):
        raise DataError(f"{path}: column {axis} has no finite number in row {bad[0] + 1}")
    return numbers


def _open(path: str | Path) -> pq.ParquetFile:
    if not Path(path).is_file():
        raise NotFoundError(f"there is no table of points {path}")
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet table: {error}") from error


def _require(path: str | Path, file: pq.ParquetFile, columns: Sequence[str] | None) -> None:
    missing = [name for name in columns or () if name not in file.schema_arrow.names]
    if missing:
        raise DataError(f"{path} lacks the column {', '.join(missing)}")


def _meta(file: pq.ParquetFile) -> dict[str, Any]:
    raw = (file.metadata.metadata or {}).get(META_KEY)
    if raw is None:
        return {}
    try:
        return dict(json.loads(raw))
    except ValueError as error:
        raise DataError(f"the brainmap metadata of a table of points is damaged: {error}") from error


# pyarrow's own conversions load pandas, only to look for its types: 0.3 s of every command and worker. Plain numbers
# do without.


def _to_arrow(values: npt.NDArray[Any]) -> pa.Array:
    if values.dtype.kind not in "iuf" or not values.dtype.isnative:
        return pa.array(values)
    values = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def _to_numpy(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    plain = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    if not plain or column.null_count or not column.num_chunks:
        return column.to_numpy()
    return np.concatenate([np.from_dlpack(chunk) for chunk in column.chunks])


def _from_arrow(table: pa.Table, meta: dict[str, Any]) -> Points:
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        # A column without any value has no type: NaN says that best.
        array = _to_numpy(column.cast(pa.float64()) if pa.types.is_null(column.type) else column)
        columns[name] = array.astype(str) if array.dtype == object else array
    return Points(columns, meta)
