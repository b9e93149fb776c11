"""What a worker does on a tile: puts, moves and removes clicks, looks through sub-tiles, finishes.

Every request may arrive twice, late, or after its answer was lost: the client names each click, the same name again
updates that one click, and a deletion wins over whatever arrives after it.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from brainmap.crowd.store import schema
from brainmap.crowd.store.refused import Refused
from brainmap.crowd.store.site import Site
from brainmap.crowd.work.accounts import Worker
from brainmap.crowd.work.assign import PRACTICE_START
from brainmap.crowd.work.practice import feedback
from brainmap.crowd.work.subtiles import subtiles, window_of

__all__ = [
    "Put",
    "change_clicks",
    "complete_tile",
    "describe",
    "own_assignment",
    "parse_put",
    "parse_uuid",
    "see_subtile",
]

assignment, click, seen, tile = schema.assignment, schema.click, schema.subtile_seen, schema.tile

NEW, KNOWN, GONE = 201, 200, 204
BATCH = 1000

# Every click asks these: they are built once.
_OWN = (
    select(assignment, tile.c.height, tile.c.width, tile.c.kind, tile.c.file, tile.c.sha256)
    .join(tile, tile.c.id == assignment.c.tile_id)
    .where(assignment.c.token == bindparam("own_token"), assignment.c.worker_id == bindparam("own_worker"))
)
_OWN_LOCKED = _OWN.with_for_update(of=assignment)
_KNOWN = select(click).where(
    click.c.assignment_id == bindparam("of_assignment"), click.c.id.in_(bindparam("ids", expanding=True))
)
_ROWS = select(func.count()).where(click.c.assignment_id == bindparam("of_assignment"))
_ADD = insert(click)
_GROW = update(assignment).where(assignment.c.id == bindparam("this_assignment"))


@dataclass(frozen=True)
class Put:
    """A click as the client sends it: tile pixels, sub-tile, time by the client's clock."""

    id: str
    x: float
    y: float
    subtile: int | None
    at: float | None


def parse_uuid(value: object) -> str:
    """A UUID in its usual form.

    Raises
    ------
    Refused
        422
    """
    try:
        found = uuid.UUID(value) if isinstance(value, str) and len(value) <= 45 else None
    except ValueError:
        found = None
    if found is None:
        raise Refused(422, "a click is named by a UUID that the client makes")
    return str(found)


def parse_put(id: object, body: Mapping[str, Any]) -> Put:
    """A click from JSON; whether it lies in its tile is not known here.

    Raises
    ------
    Refused
        422
    """
    x, y = (_number(body.get(name), name) for name in ("x", "y"))
    subtile = body.get("subtile")
    if subtile is not None and (isinstance(subtile, bool) or not isinstance(subtile, int)):
        raise Refused(422, "subtile must be a whole number")
    return Put(parse_uuid(id), x, y, subtile, _time(body.get("at")))


def _number(value: object, name: str) -> float:
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    # An integer of a thousand digits is JSON, too, and no float.
    if not good or (isinstance(value, int) and abs(value) > 1e9) or not math.isfinite(value):  # type: ignore[arg-type]
        raise Refused(422, f"{name} must be a number, in pixels of the tile")
    return float(value)  # type: ignore[arg-type]


def _time(value: object) -> float | None:
    """Seconds since 1970 from ISO 8601 text, seconds, or milliseconds as browsers count them."""
    if value is None:
        return None
    if isinstance(value, str) and len(value) <= 40:
        try:
            moment = datetime.fromisoformat(value.replace("Z", "+00:00"))
        except ValueError:
            raise Refused(422, "at must be a time, as in 2026-05-01T12:00:00Z") from None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e14:
        raise Refused(422, "at must be a time, as in 2026-05-01T12:00:00Z")
    return value / 1000 if value > 1e11 else float(value)


def own_assignment(connection: Connection, worker: Worker, token: str, *, lock: bool = False) -> Any:
    """The worker's assignment of a token, with the size of its tile, locked against his own other requests.

    Raises
    ------
    Refused
        404: no such tile, or another worker's.
    """
    asked = {"own_token": token[:60], "own_worker": worker.id}
    row = connection.execute(_OWN_LOCKED if lock else _OWN, asked).first()
    if row is None:
        raise Refused(404, "there is no such tile")
    return row


def change_clicks(
    site: Site, worker: Worker, token: str, put: Iterable[Put], remove: Iterable[str]
) -> list[int]:
    """Put and delete clicks in one transaction; a status for each: 201 new, 200 known, 204 deleted, 422.

    Raises
    ------
    Refused
        404: not the worker's tile. 409: more clicks than a tile may have.
    """
    put, remove = list(put), list(remove)

    def change(connection: Connection) -> list[int]:
        row = own_assignment(connection, worker, token, lock=True)
        now = site.clock()
        asked = {"of_assignment": row.id, "ids": list({p.id for p in put} | set(remove))}
        found = {known.id: known for known in connection.execute(_KNOWN, asked)}
        known: dict[str, dict[str, Any]] = {id: dict(old._mapping) for id, old in found.items()}
        statuses = [_put(site, row, known, p, now) for p in put]
        statuses += [_remove(row, known, id, now) for id in remove]
        change = _store(connection, found, known)
        # Only removals leave rows behind that are no clicks.
        crowded = bool(remove) and _crowded(site, connection, row.id)
        if crowded or row.n_clicks + change > site.settings.clicks_per_tile:
            raise Refused(409, f"a tile takes {site.settings.clicks_per_tile} clicks at most")
        values: dict[str, Any] = {"n_clicks": row.n_clicks + change}
        if row.completed_at is None:
            values["held_until"] = now + 60 * site.settings.hold_minutes
        connection.execute(_GROW, {"this_assignment": row.id, **values})
        return statuses

    return site.database.together(change)


def _put(site: Site, row: Any, known: dict[str, dict[str, Any]], p: Put, now: float) -> int:
    if not (-0.5 <= p.x <= row.width - 0.5 and -0.5 <= p.y <= row.height - 0.5):
        return 422
    windows = subtiles(row.height, row.width)
    if p.subtile is not None and not 0 <= p.subtile < len(windows):
        return 422
    at = now if p.at is None else p.at
    subtile = window_of(p.x, p.y, windows) if p.subtile is None else p.subtile
    old = known.get(p.id)
    if old is None:
        known[p.id] = {
            "assignment_id": row.id, "id": p.id, "x": p.x, "y": p.y, "subtile": subtile, "at": at,
            "received_at": now, "deleted_at": None,
        }  # fmt: skip
        return NEW
    if old["deleted_at"] is None:
        known[p.id] = old | {"x": p.x, "y": p.y, "subtile": subtile}
    return KNOWN


def _remove(row: Any, known: dict[str, dict[str, Any]], id: str, now: float) -> int:
    old = known.get(id)
    if old is None:
        # Remembered, so that the put that is still under way finds it deleted.
        known[id] = {
            "assignment_id": row.id, "id": id, "x": None, "y": None, "subtile": None, "at": None,
            "received_at": now, "deleted_at": now,
        }  # fmt: skip
    elif old["deleted_at"] is None:
        known[id] = old | {"deleted_at": now}
    return GONE


def _store(connection: Connection, found: dict[str, Any], known: dict[str, dict[str, Any]]) -> int:
    """Write what changed; return by how many the tile's clicks grew."""
    new = [values for id, values in known.items() if id not in found]
    if new:
        connection.execute(_ADD, new)
    grown = sum(values["deleted_at"] is None for values in new)
    for id, old in found.items():
        values = known[id]
        if values == dict(old._mapping):
            continue
        changed = {name: values[name] for name in ("x", "y", "subtile", "deleted_at")}
        connection.execute(
            update(click).where(click.c.assignment_id == old.assignment_id, click.c.id == id).values(changed)
        )
        grown -= old.deleted_at is None and values["deleted_at"] is not None
    return grown


def _crowded(site: Site, connection: Connection, assignment_id: int) -> bool:
    """Whether clicks and the memory of deleted ones are more than any person makes."""
    rows = connection.execute(_ROWS, {"of_assignment": assignment_id}).scalar_one()
    return bool(rows > 4 * site.settings.clicks_per_tile)


def see_subtile(site: Site, worker: Worker, token: str, index: int, done: bool) -> None:
    """Record that a worker has looked through a sub-tile, or that he has not.

    Raises
    ------
    Refused
        404: not his tile, or no such sub-tile.
    """

    def see(connection: Connection) -> None:
        row = own_assignment(connection, worker, token, lock=True)
        if not 0 <= index < len(subtiles(row.height, row.width)):
            raise Refused(404, "there is no such sub-tile")
        here = (seen.c.assignment_id == row.id) & (seen.c.idx == index)
        there = connection.execute(select(seen.c.idx).where(here)).first() is not None
        if done and not there:
            connection.execute(insert(seen).values(assignment_id=row.id, idx=index, at=site.clock()))
        elif not done and there and row.completed_at is None:
            connection.execute(delete(seen).where(here))

    site.database.together(see)


def complete_tile(site: Site, worker: Worker, token: str) -> dict[str, Any]:
    """Finish a tile; finishing it again changes nothing. For a practice tile: what was found and missed.

    Returns
    -------
    dict
        `tile_id`, `project_id`, `counted` (whether this was the moment it came to count), and `practice`.

    Raises
    ------
    Refused
        404; 409 with `subtiles`, those not yet seen.
    """
    with site.database.write() as connection:
        row = own_assignment(connection, worker, token, lock=True)
        counted = False
        if row.completed_at is None:
            done = set(connection.execute(select(seen.c.idx).where(seen.c.assignment_id == row.id)).scalars())
            missing = sorted(set(range(len(subtiles(row.height, row.width)))) - done)
            if missing:
                shown = ", ".join(str(index) for index in missing[:5]) + (" ..." if len(missing) > 5 else "")
                raise Refused(409, f"these sub-tiles have not been looked through: {shown}", subtiles=missing)
            connection.execute(
                update(assignment).where(assignment.c.id == row.id).values(completed_at=site.clock())
            )
            if row.counts:
                counted = True
                connection.execute(
                    update(tile).where(tile.c.id == row.tile_id).values(n_completed=tile.c.n_completed + 1)
                )
        result = {"tile_id": row.tile_id, "project_id": row.project_id, "counted": counted}
        if row.kind == "practice":
            result["practice"] = feedback(connection, row)
    return result


def describe(connection: Connection, row: Any) -> dict[str, Any]:
    """What the page is told about an assignment: nothing in it depends on the kind of tile, but practice."""
    there = connection.execute(
        select(tile.c.height, tile.c.width, tile.c.kind, tile.c.sha256).where(tile.c.id == row.tile_id)
    ).one()
    done = set(connection.execute(select(seen.c.idx).where(seen.c.assignment_id == row.id)).scalars())
    own = connection.execute(
        select(click.c.id, click.c.x, click.c.y, click.c.subtile)
        .where(click.c.assignment_id == row.id, click.c.deleted_at.is_(None))
        .order_by(click.c.received_at, click.c.id)
    )
    practice = there.kind == "practice"
    return {
        "tile": row.token,
        "order": row.position - PRACTICE_START if practice else row.position,
        "image": f"/api/tiles/{row.token}/image",
        "width": there.width,
        "height": there.height,
        "subtiles": [
            {"index": i, "x": w.x, "y": w.y, "width": w.width, "height": w.height, "done": i in done}
            for i, w in enumerate(subtiles(there.height, there.width))
        ],
        "clicks": [{"id": c.id, "x": c.x, "y": c.y, "subtile": c.subtile} for c in own],
        "hidden": False,
        "practice": practice,
    }
