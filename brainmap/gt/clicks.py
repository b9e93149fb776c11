"""Clicks of many workers on many images: read, checked, sorted by image.

A click is (image, worker, x, y), x right and y down, px, 0 = centre of the first pixel. Who saw which image
is part of the data: an image a worker finished without a click is evidence, one he never saw is not.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from brainmap.errors import DataError, NotFoundError, what_it_is
from brainmap.files import plain_text

__all__ = ["Clicks", "read_clicks", "read_point_table"]

log = logging.getLogger(__name__)

# A heat map beyond this (1 GB) comes from a wrong coordinate, not from an image.
MAX_IMAGE_PX = 250_000_000
FALSE_WORDS = ("0", "false", "no", "f", "n")

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Clicks:
    """Clicks sorted by image, then worker, then position.

    `image`, `worker` (N,) index `image_ids`, `worker_ids`; `xy` (N, 2) is x, y. `seen_image`,
    `seen_worker`, `seen_complete` (P,) list who saw what, sorted; a pair that is not complete has clicks,
    but its missing clicks mean nothing. `height`, `width` (I,) px. `dropped` counts unusable rows by reason.
    """

    image_ids: tuple[str, ...]
    worker_ids: tuple[str, ...]
    image: Ints
    worker: Ints
    xy: Floats
    height: Ints
    width: Ints
    seen_image: Ints
    seen_worker: Ints
    seen_complete: npt.NDArray[np.bool_]
    dropped: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.image)

    def rows_of(self, image: int) -> slice:
        """The clicks of one image."""
        return slice(*np.searchsorted(self.image, [image, image + 1]))

    def seen_of(self, image: int) -> slice:
        """The rows of the `seen_*` arrays of one image."""
        return slice(*np.searchsorted(self.seen_image, [image, image + 1]))

    @classmethod
    def build(
        cls,
        image_id: npt.ArrayLike,
        worker_id: npt.ArrayLike,
        x: npt.ArrayLike,
        y: npt.ArrayLike,
        *,
        sizes: dict[str, tuple[int, int]] | None = None,
        assignments: list[tuple[str, str, bool]] | None = None,
    ) -> Clicks:
        """Check and sort clicks given as equal-length arrays.

        Parameters
        ----------
        sizes : dict, optional
            (height, width) by image id; images not named take the bounding box of their clicks.
        assignments : list of (image_id, worker_id, completed), optional
            Without them a worker saw the images he clicked.

        Raises
        ------
        DataError
            An id that cannot be a file name, or an image too large to be one.
        """
        ids, names = np.asarray(image_id, dtype=object), np.asarray(worker_id, dtype=object)
        xy = np.stack([np.asarray(x, np.float64), np.asarray(y, np.float64)], axis=1).reshape(-1, 2)
        dropped: dict[str, int] = {}
        named = np.array([bool(a) and bool(b) for a, b in zip(ids, names, strict=True)], bool)
        ids, names, xy = _kept(named, "without an id", dropped, ids, names, xy)
        ids, names, xy = _kept(
            np.asarray(np.isfinite(xy).all(axis=1)), "without finite coordinates", dropped, ids, names, xy
        )
        assigned, n = list(assignments or []), len(ids)
        image_ids, image = _numbered([*ids, *(a for a, _, _ in assigned)])
        worker_ids, worker = _numbered([*names, *(b for _, b, _ in assigned)])
        check_image_ids(list(image_ids))
        height, width = _sizes(list(image_ids), image[:n], xy, dict(sizes or {}))
        seen = _seen(image, worker, n, assigned)
        image, worker = image[:n], worker[:n]
        inside = (xy >= -0.5).all(axis=1) & (xy[:, 0] < width[image]) & (xy[:, 1] < height[image])
        image, worker, xy = _kept(inside, "outside the image", dropped, image, worker, xy)
        order = np.lexsort((xy[:, 1], xy[:, 0], worker, image))
        image, worker, xy = image[order], worker[order], xy[order]
        first = np.ones(len(image), bool)
        first[1:] = (image[1:] != image[:-1]) | (worker[1:] != worker[:-1]) | (xy[1:] != xy[:-1]).any(axis=1)
        if not first.all():
            dropped["duplicate"] = int((~first).sum())
        image, worker = image[first].astype(np.int64), worker[first].astype(np.int64)
        return cls(image_ids, worker_ids, image, worker, xy[first], height, width, *seen, dropped)

    def without_workers(self, workers: set[str]) -> Clicks:
        """The same clicks as if `workers` had never taken part (images and their sizes stay)."""
        gone = np.array([w in workers for w in self.worker_ids], bool)
        new = np.cumsum(~gone) - 1
        keep, seen = ~gone[self.worker], ~gone[self.seen_worker]
        return Clicks(
            self.image_ids,
            tuple(w for w, g in zip(self.worker_ids, gone, strict=True) if not g),
            self.image[keep],
            new[self.worker[keep]],
            self.xy[keep],
            self.height,
            self.width,
            self.seen_image[seen],
            new[self.seen_worker[seen]],
            self.seen_complete[seen],
            self.dropped,
        )


def check_image_ids(ids: list[str]) -> None:
    """Refuse ids that cannot become `heatmaps/<image_id>.npy`: `/` is a folder, and nothing may leave it."""
    files = set(ids)
    for name in ids:
        parts = name.split("/")
        if any(p in ("", ".", "..") for p in parts) or any(c in name for c in "\\\0:\n\r"):
            raise DataError(f"image id {name!r} cannot be a file name; rename the image")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            if folder.endswith(".npy") and folder[:-4] in files:
                raise DataError(f"image ids {folder[:-4]!r} and {name!r} need the same file; rename one")


def _kept(
    mask: npt.NDArray[np.bool_], reason: str, dropped: dict[str, int], *columns: npt.NDArray[Any]
) -> tuple[npt.NDArray[Any], ...]:
    """The rows of columns where the mask is true; how many are not is noted, and said."""
    if mask.all():
        return columns
    dropped[reason] = int((~mask).sum())
    log.warning("%d clicks dropped: %s", dropped[reason], reason)
    return tuple(column[mask] for column in columns)


def _numbered(names: Sequence[Any]) -> tuple[tuple[str, ...], npt.NDArray[np.intp]]:
    """Distinct names in order, and the number of each given one."""
    known, number = np.unique(np.array([str(name) for name in names], dtype=object), return_inverse=True)
    return tuple(str(name) for name in known), number


def _sizes(ids: list[str], image: Ints, xy: Floats, sizes: dict[str, tuple[int, int]]) -> tuple[Ints, Ints]:
    box = np.zeros((len(ids), 2))
    np.maximum.at(box, image, np.floor(xy[:, ::-1] + 0.5) + 1)
    for row, name in enumerate(ids):
        box[row] = sizes.get(name, box[row])
        if box[row].prod() > MAX_IMAGE_PX:
            raise DataError(
                f"image {name!r} would be {box[row, 0]:.0f} x {box[row, 1]:.0f} px; check its coordinates "
                "or give its size (columns height, width, or --tiles)"
            )
    return box[:, 0].astype(np.int64), box[:, 1].astype(np.int64)


def _seen(
    image: Ints, worker: Ints, n: int, assigned: list[tuple[str, str, bool]]
) -> tuple[Ints, Ints, npt.NDArray[np.bool_]]:
    # An assignment's word on a pair wins over what the clicks imply.
    complete = np.r_[np.ones(n, bool), np.array([c for _, _, c in assigned], bool)]
    order = np.lexsort((-np.arange(len(image)), worker, image))
    i, w, c = image[order], worker[order], complete[order]
    first = np.ones(len(i), bool)
    first[1:] = (i[1:] != i[:-1]) | (w[1:] != w[:-1])
    i, w, c = i[first], w[first], c[first]
    clicked = np.isin(
        i * (worker.max(initial=0) + 1) + w, image[:n] * (worker.max(initial=0) + 1) + worker[:n]
    )
    use = c | clicked  # assigned, not finished and without a click: never seen
    return i[use].astype(np.int64), w[use].astype(np.int64), c[use]


def read_clicks(
    path: str | Path, *, tiles: str | Path | None = None, assignments: str | Path | None = None
) -> Clicks:
    """Read clicks from CSV or Parquet: `image_id worker_id x y`, optional `height width`; others are ignored.

    Parameters
    ----------
    tiles : path, optional
        Tiles folder; its `tiles.parquet` gives image sizes.
    assignments : path, optional
        CSV with `image_id worker_id completed`.

    Raises
    ------
    NotFoundError, DataError
        A missing file; a missing column, a value that is no number, contradicting sizes, no clicks at all.
    """
    table = _read_table(Path(path), ("image_id", "worker_id"), ("x", "y"), ("height", "width"))
    sizes = _column_sizes(table, Path(path))
    if tiles is not None:
        known_tiles = _tile_sizes(Path(tiles))
        _check_ids(table["image_id"].unique().to_pylist(), known_tiles, Path(path), Path(tiles))
        sizes.update(known_tiles)
    pairs = None if assignments is None else _read_assignments(Path(assignments))
    if table.num_rows == 0 and not pairs:
        raise DataError(f"{path} holds no clicks; give --assignments if workers saw images without clicking")
    known = {image for image, _, _ in pairs or []} - set(sizes)
    known -= set(table["image_id"].to_pylist())
    if known:
        raise DataError(f"image {sorted(known)[0]!r} has no clicks and no known size; give --tiles")
    clicks = Clicks.build(
        table["image_id"].to_numpy(),
        table["worker_id"].to_numpy(),
        table["x"].to_numpy(),
        table["y"].to_numpy(),
        sizes=sizes,
        assignments=pairs,
    )
    if not clicks.image_ids:
        reasons = ", ".join(f"{n} {reason}" for reason, n in clicks.dropped.items())
        raise DataError(f"{path} holds no usable clicks ({reasons})")
    return clicks


def _check_ids(images: list[Any], tiles: Mapping[str, Any], path: Path, folder: Path) -> None:
    """Refuse clicks of which none is on a tile of the folder; say which are not."""
    strange = sorted(str(image) for image in images if image is not None and str(image) not in tiles)
    if not strange:
        return
    example = f"such as {strange[0]!r} (the tiles' ids are like {next(iter(tiles), '')!r})"
    if len(strange) == len(images):
        raise DataError(
            f"none of the {len(images)} images of {path}, {example}, is a tile of {folder}; give the tiles that were "
            "clicked on"
        )
    log.warning(
        "%d of %d images of %s are no tiles of %s, %s", len(strange), len(images), path, folder, example
    )


def read_point_table(path: str | Path) -> tuple[list[str], list[str], Floats]:
    """Image ids, worker ids ("expert" without the column) and x, y (N, 2) of an expert's CSV or Parquet."""
    table = _read_table(Path(path), ("image_id",), ("x", "y"), ("worker_id",))
    xy = np.stack([table["x"].to_numpy(), table["y"].to_numpy()], axis=1).reshape(-1, 2)
    if not np.isfinite(xy).all():
        raise DataError(f"{path}: a point has no finite coordinates")
    names = table["worker_id"].to_pylist() if "worker_id" in table.column_names else ["expert"] * len(xy)
    # The table may be one of ours, as a spreadsheet may open it.
    return [plain_text(str(i)) for i in table["image_id"].to_pylist()], [str(n) for n in names], xy


def _read_table(
    path: Path, text: tuple[str, ...], numbers: tuple[str, ...], optional: tuple[str, ...] = ()
) -> pa.Table:
    if not path.is_file():
        raise NotFoundError(f"{path} is no table{what_it_is(path)}")
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            table = pa.parquet.read_table(path)
        else:
            # Everything as text: ids keep their zeros, and a bad number is reported in our words.
            with pa.csv.open_csv(path) as reader:
                header = reader.schema.names
            table = pa.csv.read_csv(
                path,
                convert_options=pa.csv.ConvertOptions(
                    column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False
                ),
            )
    except (pa.ArrowInvalid, pa.ArrowException, UnicodeDecodeError, OSError) as error:
        said = "".join(c for c in str(error).splitlines()[0][:120] if c.isprintable())
        raise DataError(f"{path} cannot be read as a table{what_it_is(path)} ({said})") from error
    names = table.column_names
    for name in (*text, *numbers):
        if names.count(name) != 1:
            raise DataError(
                f"{path} needs one column {name!r}; it has {', '.join(names) or 'none'}{what_it_is(path)}"
            )
    columns: dict[str, Any] = {}
    for name in (*text, *numbers, *(o for o in optional if o in names)):
        column = table[name].combine_chunks()
        columns[name] = _text(column) if name in text or name == "worker_id" else _numbers(column, name, path)
    return pa.table(columns)


def _text(column: Any) -> Any:
    return pc.fill_null(column.cast(pa.string()), "")


def _numbers(column: Any, name: str, path: Path) -> Any:
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = pc.utf8_trim_whitespace(column)
        column = pc.if_else(
            pc.is_in(pc.utf8_lower(column), pa.array(["", "na", "null", "none"])), "nan", column
        )
    try:
        return pc.fill_null(column.cast(pa.float64()), np.nan)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: column {name} holds something that is no number ({error})") from error


def _column_sizes(table: pa.Table, path: Path) -> dict[str, tuple[int, int]]:
    if not {"height", "width"} <= set(table.column_names):
        return {}
    grouped = table.select(["image_id", "height", "width"]).group_by("image_id")
    grouped = grouped.aggregate([(c, f) for c in ("height", "width") for f in ("min", "max")])
    sizes = {}
    for row in grouped.to_pylist():
        values = [row[f"{c}_{f}"] for c in ("height", "width") for f in ("min", "max")]
        if any(v is None or not np.isfinite(v) for v in values):
            continue
        if values[0] != values[1] or values[2] != values[3]:
            raise DataError(f"{path}: image {row['image_id']!r} has more than one size")
        if values[0] < 1 or values[2] < 1:
            raise DataError(f"{path}: image {row['image_id']!r} has size {values[0]:g} x {values[2]:g}")
        sizes[row["image_id"]] = (int(values[0]), int(values[2]))
    return sizes


def _tile_sizes(folder: Path) -> dict[str, tuple[int, int]]:
    path = folder / "tiles.parquet"
    if not path.is_file():
        raise NotFoundError(
            f"{folder} is no tile folder: there is no tiles.parquet in it{what_it_is(folder)}"
        )
    table = _read_table(path, ("image_id",), ("height", "width"))
    return {r["image_id"]: (int(r["height"]), int(r["width"])) for r in table.to_pylist()}


def _read_assignments(path: Path) -> list[tuple[str, str, bool]]:
    # `completed` may be text, a number or a boolean: read it as text.
    if not path.is_file():
        raise NotFoundError(f"no file {path}")
    table = _read_table(path, ("image_id", "worker_id"), ())
    done = [True] * table.num_rows
    try:
        whole = (
            pa.parquet.read_table(path)
            if path.suffix.lower() in (".parquet", ".pq")
            else pa.csv.read_csv(path)
        )
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error
    if "completed" in whole.column_names:
        words = [str(v).strip().lower() for v in whole["completed"].to_pylist()]
        done = [w not in FALSE_WORDS and w != "0.0" for w in words]
    rows = zip(table["image_id"].to_pylist(), table["worker_id"].to_pylist(), done, strict=True)
    return [row for row in rows if row[0] and row[1]]
