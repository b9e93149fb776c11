"""Export: clicks, assignments, workers and tiles, as `brainmap gt aggregate` takes them.

One consistent state of the database is read while others go on writing; rows stream tile by tile, so that memory
does not grow with the number of clicks.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from sqlalchemy import Connection, func, select

from brainmap.crowd.store import audit, schema
from brainmap.crowd.store.formulas import neutral
from brainmap.crowd.store.site import Site
from brainmap.crowd.work.projects import find_project
from brainmap.errors import DataError, UsageError
from brainmap.files import atomic_path
from brainmap.tiles.tiles import IMAGES, TILES_PARQUET

__all__ = [
    "ASSIGNMENT_COLUMNS",
    "CLICK_COLUMNS",
    "FILES",
    "WORKER_COLUMNS",
    "Export",
    "csv_lines",
    "export_project",
    "table_rows",
]

assignment, click, tile, worker = schema.assignment, schema.click, schema.tile, schema.worker

CLICK_COLUMNS = (
    "image_id", "worker_id", "x", "y", "timestamp", "order", "subtile", "height", "width", "click_id",
)  # fmt: skip
ASSIGNMENT_COLUMNS = ("image_id", "worker_id", "completed", "order", "opened", "finished", "n_clicks")
WORKER_COLUMNS = (
    "worker_id", "role", "language", "dataset", "tiles_done", "n_clicks", "consent_version", "consent_at",
)  # fmt: skip
_PIECE = 64 * 1024
FILES = ("clicks.csv", "assignments.csv", "workers.csv", "experts.csv")


@dataclass(frozen=True)
class Export:
    """What was written."""

    path: Path
    clicks: int
    assignments: int
    workers: int
    tiles: int
    expert_clicks: int


def export_project(site: Site, name: str, out: str | Path) -> Export:
    """Write a project's `clicks.csv`, `assignments.csv`, `workers.csv`, `experts.csv` and `tiles/`.

    Practice is never part of it. Experts' clicks are in `experts.csv` alone. An earlier export at the same place
    is replaced, file by file, each complete.

    Raises
    ------
    NotFoundError
        No such project.
    UsageError
        `out` is a file.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; --out names a folder")
    with site.database.snapshot() as connection:
        project = find_project(connection, name)
        written = {}
        for file in FILES:
            header, rows = table_rows(connection, project.id, file)
            with atomic_path(out / file) as temporary:
                with temporary.open("w", newline="", encoding="utf-8") as stream:
                    written[file] = write_rows(stream, header, rows)
        tiles = _write_tiles(site, connection, project.id, out / "tiles")
    with site.database.write() as connection:
        audit.note(site, connection, "export", project=name, clicks=written["clicks.csv"])
    return Export(
        out, written["clicks.csv"], written["assignments.csv"], written["workers.csv"], tiles,
        written["experts.csv"],
    )  # fmt: skip


def write_rows(stream: TextIO, header: Sequence[str], rows: Iterator[Sequence[Any]]) -> int:
    """Write a CSV in which no cell is a formula to a spreadsheet; return the number of rows."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    count = 0
    for row in rows:
        writer.writerow([neutral(value) if isinstance(value, str) else value for value in row])
        count += 1
    return count


def csv_lines(site: Site, project_id: int, file: str) -> Iterator[str]:
    """One of the exported tables as text, piece by piece, from one state of the database."""
    with site.database.snapshot() as connection:
        header, rows = table_rows(connection, project_id, file)
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(header)
        for row in rows:
            writer.writerow([neutral(value) if isinstance(value, str) else value for value in row])
            if buffer.tell() > _PIECE:
                yield buffer.getvalue()
                buffer.seek(0)
                buffer.truncate()
        yield buffer.getvalue()


def table_rows(
    connection: Connection, project_id: int, file: str
) -> tuple[Sequence[str], Iterator[Sequence[Any]]]:
    """Header and rows of one of the exported tables, ordered, for streaming."""
    if file == "clicks.csv":
        return CLICK_COLUMNS, _clicks(connection, project_id, expert=False)
    if file == "experts.csv":
        return CLICK_COLUMNS, _clicks(connection, project_id, expert=True)
    if file == "assignments.csv":
        return ASSIGNMENT_COLUMNS, _assignments(connection, project_id)
    if file == "workers.csv":
        return WORKER_COLUMNS, _workers(connection, project_id)
    raise DataError(f"there is no table {file!r}; known are {', '.join(FILES)}")


def _clicks(connection: Connection, project_id: int, *, expert: bool) -> Iterator[Sequence[Any]]:
    for one in _tiles(connection, project_id):
        rows = connection.execute(
            select(click, worker.c.name, assignment.c.position)
            .join(assignment, assignment.c.id == click.c.assignment_id)
            .join(worker, worker.c.id == assignment.c.worker_id)
            .where(
                assignment.c.tile_id == one.id,
                assignment.c.counts.is_(not expert),
                click.c.deleted_at.is_(None),
            )
            .order_by(worker.c.id, click.c.at, click.c.id)
        ).all()
        for c in rows:
            yield (
                one.image_id, c.name, c.x, c.y, iso(c.at), c.position, c.subtile, one.height, one.width, c.id,
            )  # fmt: skip


def _assignments(connection: Connection, project_id: int) -> Iterator[Sequence[Any]]:
    for one in _tiles(connection, project_id):
        rows = connection.execute(
            select(assignment, worker.c.name)
            .join(worker, worker.c.id == assignment.c.worker_id)
            .where(assignment.c.tile_id == one.id, assignment.c.counts)
            .order_by(worker.c.id)
        ).all()
        for a in rows:
            done = "true" if a.completed_at is not None else "false"
            yield (
                one.image_id, a.name, done, a.position, iso(a.opened_at), iso(a.completed_at), a.n_clicks,
            )  # fmt: skip


def _workers(connection: Connection, project_id: int) -> Iterator[Sequence[Any]]:
    rows = connection.execute(
        select(
            worker,
            schema.membership.c.dataset,
            func.count(assignment.c.completed_at).label("tiles_done"),
            func.sum(assignment.c.n_clicks).label("clicks"),
        )
        .join(assignment, assignment.c.worker_id == worker.c.id)
        .outerjoin(
            schema.membership,
            (schema.membership.c.worker_id == worker.c.id)
            & (schema.membership.c.project_id == assignment.c.project_id),
        )
        .where(assignment.c.project_id == project_id, assignment.c.position > 0)
        .group_by(worker.c.id, schema.membership.c.dataset)
        .order_by(worker.c.id)
    ).all()
    for w in rows:
        yield (
            w.name, w.role, w.language, w.dataset or "", w.tiles_done, w.clicks, w.consent_version or "",
            iso(w.consent_at),
        )  # fmt: skip


def _tiles(connection: Connection, project_id: int) -> list[Any]:
    return list(
        connection.execute(
            select(tile.c.id, tile.c.image_id, tile.c.height, tile.c.width, tile.c.file, tile.c.kind,
                   tile.c.dataset, tile.c.origin)
            .where(tile.c.project_id == project_id, tile.c.kind != "practice")
            .order_by(tile.c.image_id)
        )
    )  # fmt: skip


def _write_tiles(site: Site, connection: Connection, project_id: int, folder: Path) -> int:
    rows = _tiles(connection, project_id)
    with atomic_path(folder) as part:
        for one in rows:
            target = part / IMAGES / f"{one.image_id}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(site.tiles / one.file, target)
        pa.parquet.write_table(_tile_table(rows), part / TILES_PARQUET)
    return len(rows)


def _tile_table(rows: Sequence[Any]) -> pa.Table:
    records = [
        {
            "image_id": one.image_id, "height": one.height, "width": one.width, "dataset": one.dataset,
            "is_qc": one.kind == "qc", **json.loads(one.origin),
        }
        for one in rows
    ]  # fmt: skip
    columns: dict[str, Any] = {
        name: [record.get(name) for record in records]
        for name in dict.fromkeys(k for r in records for k in r)
    }
    voxel = np.array(columns.pop("voxel_um"), np.float64)
    table = pa.table(columns)
    return table.append_column("voxel_um", pa.FixedSizeListArray.from_arrays(pa.array(voxel.ravel()), 3))


def iso(seconds: float | None) -> str:
    """A time as ISO 8601 in UTC, to the millisecond; empty for none."""
    if seconds is None:
        return ""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
