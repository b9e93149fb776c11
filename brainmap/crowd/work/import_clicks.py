"""Clicks collected elsewhere, taken into a project as the work of workers who cannot log in."""

from __future__ import annotations

import csv
import uuid
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, select, update

from brainmap.crowd.store import audit, schema
from brainmap.crowd.store.formulas import original
from brainmap.crowd.store.site import Site
from brainmap.crowd.work.accounts import name_key
from brainmap.crowd.work.projects import find_project
from brainmap.crowd.work.subtiles import subtiles, window_of
from brainmap.errors import DataError, NotFoundError
from brainmap.gt.clicks import FALSE_WORDS

__all__ = ["Import", "import_clicks"]

assignment, click, tile, worker = schema.assignment, schema.click, schema.tile, schema.worker

# Names the clicks of a table that brings no ids: importing it twice finds them again.
_NAMESPACE = uuid.UUID("5a0a3a43-7a2b-4f55-9a3c-6f2f8f6d4c11")


@dataclass(frozen=True)
class Import:
    """What was new, and what was there already."""

    clicks: int
    known: int
    workers: int
    assignments: int


def import_clicks(site: Site, name: str, path: str | Path, assignments: str | Path | None = None) -> Import:
    """Import a table of clicks; importing it again changes nothing.

    Parameters
    ----------
    path : path
        CSV `image_id worker_id x y`, optional `timestamp order subtile click_id`, as `export_project` writes it.
    assignments : path, optional
        CSV `image_id worker_id completed`; without it a worker finished the images he clicked.

    Raises
    ------
    NotFoundError, DataError
        No file or project; an image the project does not have, a place outside its image, a worker who bears
        the name of an account of this site.
    """
    rows = _read(Path(path), ("image_id", "worker_id", "x", "y"))
    pairs = {(row["image_id"], row["worker_id"]): True for row in rows}
    if assignments is not None:
        for row in _read(Path(assignments), ("image_id", "worker_id", "completed")):
            done = row["completed"].strip().lower() not in FALSE_WORDS
            pairs[row["image_id"], row["worker_id"]] = done
    with site.database.write() as connection:
        project = find_project(connection, name)
        tiles = {
            row.image_id: row
            for row in connection.execute(
                select(tile).where(tile.c.project_id == project.id, tile.c.kind != "practice")
            )
        }
        for image, _ in pairs:
            if image not in tiles:
                raise DataError(f"{path}: project {name!r} has no image {image!r}")
        numbers, new_workers = _workers(site, connection, sorted({w for _, w in pairs}), str(path))
        given, new_given = _assignments(site, connection, project.id, pairs, numbers, tiles)
        new, known = _clicks(site, connection, project.id, str(path), rows, given, tiles)
        audit.note(site, connection, "import", project=name, clicks=new, workers=new_workers)
    return Import(new, known, new_workers, new_given)


def _read(path: Path, needed: tuple[str, ...]) -> list[dict[str, str]]:
    if not path.is_file():
        raise NotFoundError(f"no file {path}")
    with path.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        names = reader.fieldnames or []
        if missing := [name for name in needed if name not in names]:
            raise DataError(f"{path} needs a column {missing[0]!r}; it has {', '.join(names) or 'none'}")
        rows = [{k: original(v or "") for k, v in row.items() if isinstance(k, str)} for row in reader]
    for line, row in enumerate(rows, 2):
        if not row["image_id"] or not row["worker_id"]:
            raise DataError(f"{path}, line {line}: a row without image_id or worker_id")
    return rows


def _workers(site: Site, connection: Connection, names: list[str], where: str) -> tuple[dict[str, int], int]:
    """Number of each worker; those who are not there yet are added."""
    known = {
        row.name_key: row
        for row in connection.execute(select(worker.c.id, worker.c.name, worker.c.name_key, worker.c.role))
    }
    numbers, new = {}, 0
    for name in names:
        if name_key(name) in known:
            raise DataError(
                f"{where}: worker_id {name!r} is the name of an account of this site; rename it in the file"
            )
        # Imported names are kept apart from those of accounts, and may differ by case alone.
        key = f"imported\n{name}"
        if key in known:
            numbers[name] = int(known[key].id)
            continue
        added = connection.execute(
            insert(worker).values(
                name=name[:200], name_key=key[:250], role="imported", language="en", created_at=site.clock()
            )
        )
        numbers[name] = int(added.inserted_primary_key[0])  # type: ignore[index]
        new += 1
    return numbers, new


def _assignments(
    site: Site,
    connection: Connection,
    project_id: int,
    pairs: dict[tuple[str, str], bool],
    numbers: dict[str, int],
    tiles: dict[str, Any],
) -> tuple[dict[tuple[str, str], Any], int]:
    """Number of the assignment of each pair, finished where the table says so."""
    there: dict[tuple[int, int], Any] = {
        (row.worker_id, row.tile_id): row
        for row in connection.execute(select(assignment).where(assignment.c.project_id == project_id))
    }
    last: dict[int, int] = defaultdict(int)
    for (worker_id, _), row in there.items():
        last[worker_id] = max(last[worker_id], row.position)
    given, new, now = {}, 0, site.clock()
    for (image, name), done in pairs.items():
        worker_id, one = numbers[name], tiles[image]
        old = there.get((worker_id, one.id))
        if old is None:
            last[worker_id] += 1
            added = connection.execute(
                insert(assignment).values(
                    token=str(uuid.uuid4()), worker_id=worker_id, tile_id=one.id, project_id=project_id,
                    position=last[worker_id], counts=True, opened_at=now, held_until=0.0,
                    completed_at=now if done else None,
                )
            )  # fmt: skip
            given[image, name] = int(added.inserted_primary_key[0])  # type: ignore[index]
            new += 1
        else:
            given[image, name] = int(old.id)
        if done and (old is None or old.completed_at is None):
            if old is not None:
                connection.execute(
                    update(assignment).where(assignment.c.id == old.id).values(completed_at=now)
                )
            connection.execute(
                update(tile).where(tile.c.id == one.id).values(n_completed=tile.c.n_completed + 1)
            )
    return given, new


def _clicks(
    site: Site,
    connection: Connection,
    project_id: int,
    where: str,
    rows: list[dict[str, str]],
    given: dict[tuple[str, str], int],
    tiles: dict[str, Any],
) -> tuple[int, int]:
    """Add the clicks that are not there yet; return how many were new and how many known."""
    known = {
        (row.assignment_id, row.id)
        for row in connection.execute(
            select(click.c.assignment_id, click.c.id)
            .join(assignment, assignment.c.id == click.c.assignment_id)
            .where(assignment.c.project_id == project_id)
        )
    }
    repeats: Counter[tuple[str, ...]] = Counter()
    grown: Counter[int] = Counter()
    new = []
    now = site.clock()
    for line, row in enumerate(rows, 2):
        one = tiles[row["image_id"]]
        x, y = (_number(row[axis], f"{where}, line {line}: {axis}") for axis in ("x", "y"))
        if not (-0.5 <= x <= one.width - 0.5 and -0.5 <= y <= one.height - 0.5):
            raise DataError(f"{where}, line {line}: ({x:g}, {y:g}) lies outside image {row['image_id']!r}")
        same = (row["image_id"], row["worker_id"], row["x"], row["y"], row.get("timestamp", ""))
        repeats[same] += 1
        id = row.get("click_id") or str(uuid.uuid5(_NAMESPACE, "\n".join([*same, str(repeats[same])])))
        number = given[row["image_id"], row["worker_id"]]
        if (number, id) in known:
            continue
        known.add((number, id))
        grown[number] += 1
        windows = subtiles(one.height, one.width)
        subtile = row.get("subtile", "")
        new.append(
            {
                "assignment_id": number, "id": id[:36], "x": x, "y": y, "received_at": now,
                "subtile": int(subtile) if subtile.isdigit() else window_of(x, y, windows),
                "at": _moment(row.get("timestamp", ""), f"{where}, line {line}") or now,
            }
        )  # fmt: skip
    for start in range(0, len(new), 5000):
        connection.execute(insert(click), new[start : start + 5000])
    for number, count in grown.items():
        connection.execute(
            update(assignment).where(assignment.c.id == number).values(n_clicks=assignment.c.n_clicks + count)
        )
    return len(new), len(rows) - len(new)


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise DataError(f"{where} is {text!r}, no number") from None
    if value != value or abs(value) > 1e9:
        raise DataError(f"{where} is {text!r}, no place in an image")
    return value


def _moment(text: str, where: str) -> float | None:
    if not text:
        return None
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except ValueError:
        pass
    if not text.replace(".", "", 1).isdigit() or len(text) > 20:
        raise DataError(
            f"{where}: timestamp is {text!r}; write it as 2026-05-01T12:00:00Z or in (milli)seconds"
        )
    value = float(text)
    return value / 1000 if value > 1e11 else value
