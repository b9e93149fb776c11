"""Projects: a set of tiles put before workers, and images that are added later."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray
from sqlalchemy import Connection, func, select
from sqlalchemy.exc import IntegrityError

from brainmap.crowd.store import audit, schema
from brainmap.crowd.store.formulas import neutral
from brainmap.crowd.store.settings import LANGUAGES
from brainmap.crowd.store.site import Site
from brainmap.errors import BrainmapError, DataError, NotFoundError, UsageError
from brainmap.files import atomic_path
from brainmap.gt.clicks import check_image_ids, read_point_table
from brainmap.tiles.detected import DETECTED_PARQUET
from brainmap.tiles.tiles import IMAGES, TILES_PARQUET, Tiles

__all__ = [
    "ADDED",
    "ProjectSpec",
    "Scan",
    "add_image",
    "add_project",
    "find_project",
    "names_of_projects",
    "png_for_display",
    "scan_project",
]

log = logging.getLogger(__name__)

DEFAULT_REDUNDANCY = 5
LEAST_WORKERS, MOST_WORKERS = 3, 12
PRACTICE = "practice"
# Brain of images that came without a table: nothing is known of them.
ADDED = "added"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,59}")
_CRITICAL_CHUNKS = {b"IHDR", b"IDAT", b"IEND"}
# Columns of a tile table that have a column of their own in the database.
_OWN = ("image_id", "height", "width", "dataset", "is_qc")


@dataclass(frozen=True)
class ProjectSpec:
    """What a project is to be.

    Parameters
    ----------
    name : str
        Letters, digits, dash, underscore: it is part of URLs.
    tiles : Path
        Tile folder.
    redundancy : int, optional
        Workers who finish each tile; None with `until_certain`.
    until_certain : bool
        Ask further workers only while aggregation leaves candidates undecided, 3 to 12 workers.
    practice : tuple of Path, optional
        Tile folder and its ground truth (a folder, or a table `image_id x y`).
    title : str
        For people; by default the name.
    languages : tuple of str
    """

    name: str
    tiles: Path
    redundancy: int | None = None
    until_certain: bool = False
    practice: tuple[Path, Path] | None = None
    title: str = ""
    languages: tuple[str, ...] = LANGUAGES

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(
                f"the project's name {self.name!r} is part of URLs: use letters, digits, - and _, 60 at most"
            )
        if self.until_certain and self.redundancy is not None:
            raise UsageError("give either --redundancy or --until-certain")
        if self.redundancy is not None and self.redundancy < 1:
            raise UsageError(f"redundancy is {self.redundancy}; a tile needs at least one worker")
        if unknown := set(self.languages) - set(LANGUAGES):
            raise UsageError(f"unknown language {min(unknown)!r}; known are {', '.join(LANGUAGES)}")


@dataclass(frozen=True)
class Scan:
    """What a scan of a project's folder found: names of new images, and reasons of those left out."""

    added: tuple[str, ...]
    refused: tuple[str, ...]


def add_project(site: Site, spec: ProjectSpec) -> int:
    """Copy the tiles into the site, prepared for display, and register the project; return its number.

    Raises
    ------
    UsageError, DataError, NotFoundError
        A name that is taken; tiles or practice truth that cannot be used; a practice tile that is among the tiles.
    """
    tiles = Tiles.open(spec.tiles)
    folder = site.tiles / spec.name
    if folder.exists():
        raise UsageError(f"there is a project {spec.name!r} already")
    practice = _practice(spec.practice) if spec.practice else None
    with atomic_path(folder) as part:
        rows = _copy_tiles(tiles, part, spec.name, "")
        pa.parquet.write_table(_site_table(tiles), part / TILES_PARQUET)
        if (tiles.folder / DETECTED_PARQUET).is_file():
            shutil.copyfile(tiles.folder / DETECTED_PARQUET, part / DETECTED_PARQUET)
        practice_rows = []
        if practice is not None:
            practice_rows = _copy_tiles(practice[0], part / PRACTICE, spec.name, f"{PRACTICE}/")
            _refuse_shared(rows, practice_rows)
    redundancy = None if spec.until_certain else spec.redundancy or DEFAULT_REDUNDANCY
    try:
        with site.database.write() as connection:
            added = connection.execute(
                schema.project.insert().values(
                    name=spec.name, title=spec.title or spec.name, languages=",".join(spec.languages),
                    redundancy=redundancy, least=LEAST_WORKERS, most=MOST_WORKERS, created_at=site.clock(),
                )
            )  # fmt: skip
            number = int(added.inserted_primary_key[0])  # type: ignore[index]
            _insert_tiles(connection, number, rows)
            if practice is not None:
                _insert_practice(connection, number, practice_rows, practice[1])
            audit.note(site, connection, "project added", project=spec.name, tiles=len(rows))
    except IntegrityError:
        raise UsageError(f"there is a project {spec.name!r} already") from None
    return number


def find_project(connection: Connection, name: str) -> Any:
    """The row of a project.

    Raises
    ------
    NotFoundError
    """
    table = schema.project
    row = connection.execute(select(table).where(table.c.name == name)).first()
    if row is None:
        known = ", ".join(connection.execute(select(table.c.name)).scalars().all()) or "none"
        raise NotFoundError(f"there is no project {name!r}; known are: {known}")
    return row


def names_of_projects(connection: Connection) -> list[str]:
    """Names of all projects, oldest first."""
    return list(connection.execute(select(schema.project.c.name).order_by(schema.project.c.id)).scalars())


def scan_project(site: Site, name: str) -> Scan:
    """Register images that were put into a project's `images/` since the last scan.

    Size and place come from the folder's `tiles.parquet` if it names the image; else the image is a tile of
    its own, in the data set that has fewest.
    """
    folder = site.tiles / name
    with site.database.read() as connection:
        project = find_project(connection, name)
        table = schema.tile
        known = set(
            connection.execute(
                select(table.c.image_id).where(table.c.project_id == project.id, table.c.kind != "practice")
            ).scalars()
        )
        count = func.count()
        smallest = connection.execute(
            select(table.c.dataset)
            .where(table.c.project_id == project.id, table.c.kind == "work")
            .group_by(table.c.dataset)
            .order_by(count, table.c.dataset)
        ).scalar()
    images = folder / IMAGES
    found = {path.relative_to(images).with_suffix("").as_posix(): path for path in images.rglob("*.png")}
    listed = pa.parquet.read_table(folder / TILES_PARQUET)
    by_id = {row["image_id"]: row for row in listed.to_pylist()}
    template = next(iter(by_id.values()))
    added, refused, rows, new_rows = [], [], [], []
    for image_id in sorted(set(found) - known):
        try:
            check_image_ids([image_id])
            image = _decode(found[image_id])
        except BrainmapError as error:
            refused.append(str(error))
            continue
        row = by_id.get(image_id)
        if row is None:
            row = template | {
                "image_id": image_id, "brain": ADDED, "z": 0, "y0": 0, "x0": 0, "region_id": 0,
                "dataset": smallest or "", "is_qc": False, "split": "",
            }  # fmt: skip
            new_rows.append(row)
        row = row | {"height": image.shape[0], "width": image.shape[1]}
        rows.append(_row(row, name, "", _clean(found[image_id], image)))
        added.append(image_id)
    if rows:
        if new_rows:
            with atomic_path(folder / TILES_PARQUET) as temporary:
                merged = pa.Table.from_pylist(listed.to_pylist() + new_rows, schema=listed.schema)
                pa.parquet.write_table(merged, temporary)
        with site.database.write() as connection:
            _insert_tiles(connection, project.id, rows)
            audit.note(site, connection, "images added", project=name, images=len(rows))
    for reason in refused:
        log.warning("project %s: %s", name, reason)
    return Scan(tuple(added), tuple(refused))


def add_image(site: Site, name: str, image_id: str, content: bytes) -> Path:
    """Put an image into a project's folder; the next scan registers it.

    Raises
    ------
    DataError, UsageError
        No 8-bit grey PNG, a name that can be no file, or one that is there already.
    """
    with site.database.read() as connection:
        find_project(connection, name)
    check_image_ids([image_id])
    if image_id.startswith("/") or len(image_id) > 200:
        raise DataError(f"image id {image_id!r} cannot be a file name; rename the image")
    path = site.tiles / name / IMAGES / f"{image_id}.png"
    if path.exists():
        raise UsageError(f"there is an image {image_id!r} already")
    with atomic_path(path) as temporary:
        temporary.write_bytes(png_for_display(content, image_id))
    return path


def png_for_display(content: bytes, name: str) -> bytes:
    """A PNG with nothing in it but its pixels: text in it could tell workers apart what they must not know.

    Raises
    ------
    DataError
        It is no 8-bit grey PNG.
    """
    image = _decode_bytes(content, name)
    if set(_chunks(content)) <= _CRITICAL_CHUNKS:
        return content
    return bytes(imagecodecs.png_encode(image))


def _chunks(content: bytes) -> Iterable[bytes]:
    at = 8
    while at + 8 <= len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        yield content[at + 4 : at + 8]
        at += 12 + length


def _decode(path: Path) -> NDArray[np.uint8]:
    return _decode_bytes(path.read_bytes(), path.name)


def _decode_bytes(content: bytes, name: str) -> NDArray[np.uint8]:
    try:
        image = imagecodecs.png_decode(content)
    except (ValueError, RuntimeError) as error:
        raise DataError(f"{name} cannot be read as a PNG: {error}") from error
    if image.dtype != np.uint8 or image.ndim != 2 or 0 in image.shape:
        raise DataError(f"{name} is {image.dtype} of shape {image.shape}; tiles are 8-bit grey PNG")
    return np.asarray(image)


def _clean(path: Path, image: NDArray[np.uint8]) -> bytes:
    content = path.read_bytes()
    clean = png_for_display(content, path.name)
    if clean != content:
        with atomic_path(path) as temporary:
            temporary.write_bytes(clean)
    return clean


def _copy_tiles(tiles: Tiles, target: Path, project: str, below: str) -> list[dict[str, Any]]:
    """Copy images, prepared for display; return the rows of table `tile`."""
    rows = []
    names = list(tiles.columns)
    for index, image_id in enumerate(tiles.ids):
        path = target / IMAGES / f"{image_id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = png_for_display(tiles.image_path(image_id).read_bytes(), f"tile {image_id}")
        path.write_bytes(content)
        row = {name: _plain(tiles.columns[name][index]) for name in names}
        shape = _decode_bytes(content, image_id).shape
        if shape != (row["height"], row["width"]):
            raise DataError(f"tile {image_id!r} is {shape} px; its table says {row['height'], row['width']}")
        rows.append(_row(row, project, below, content))
    return rows


def _row(row: dict[str, Any], project: str, below: str, content: bytes) -> dict[str, Any]:
    if neutral(row["image_id"]) != row["image_id"]:
        # Exports guard such text from spreadsheets: the id there would differ from the tile's.
        raise DataError(f"image id {row['image_id']!r} would be a formula to a spreadsheet; rename the image")
    return {
        "image_id": row["image_id"],
        "kind": "qc" if row.get("is_qc") else "work",
        "dataset": str(row.get("dataset") or ""),
        "file": f"{project}/{below}{IMAGES}/{row['image_id']}.png",
        "height": int(row["height"]),
        "width": int(row["width"]),
        "sha256": hashlib.sha256(content).hexdigest(),
        "origin": json.dumps({name: value for name, value in row.items() if name not in _OWN}),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value


def _site_table(tiles: Tiles) -> pa.Table:
    return pa.parquet.read_table(tiles.folder / TILES_PARQUET)


def _insert_tiles(connection: Connection, project: int, rows: list[dict[str, Any]]) -> None:
    connection.execute(schema.tile.insert(), [{"project_id": project, **row} for row in rows])


def _insert_practice(
    connection: Connection, project: int, rows: list[dict[str, Any]], truth: dict[str, NDArray[np.float64]]
) -> None:
    for row in rows:
        added = connection.execute(
            schema.tile.insert().values({"project_id": project, **row, "kind": "practice", "dataset": ""})
        )
        number = int(added.inserted_primary_key[0])  # type: ignore[index]
        cells = [{"tile_id": number, "x": float(x), "y": float(y)} for x, y in truth[row["image_id"]]]
        if cells:
            connection.execute(schema.practice_cell.insert(), cells)


def _practice(given: tuple[Path, Path]) -> tuple[Tiles, dict[str, NDArray[np.float64]]]:
    """Practice tiles, and x, y (n, 2) of the cells of each."""
    from brainmap.gt.truth import GroundTruth

    folder, truth = given
    tiles = Tiles.open(folder)
    if truth.is_dir():
        opened = GroundTruth.open(truth)
        use = [name in opened for name in tiles.ids]
        cells = {str(name): opened.accepted(str(name))[0] for name in tiles.ids[np.array(use)]}
    else:
        images, _, xy = read_point_table(truth)
        use = [name in set(images) for name in tiles.ids]
        mine = np.array(images, dtype=object)
        cells = {str(name): xy[mine == name] for name in tiles.ids[np.array(use)]}
    if not any(use):
        raise DataError(f"{truth} knows no cell of any tile in {folder}; practice needs a known answer")
    return tiles.take(np.array(use)), cells


def _refuse_shared(rows: list[dict[str, Any]], practice: list[dict[str, Any]]) -> None:
    pixels = {row["sha256"]: row["image_id"] for row in rows}
    for row in practice:
        if row["sha256"] in pixels:
            raise DataError(
                f"practice tile {row['image_id']!r} is also tile {pixels[row['sha256']]!r} of the project; "
                "take other tiles for practice"
            )
