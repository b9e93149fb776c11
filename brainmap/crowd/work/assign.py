"""Which tile a worker gets: practice, then quality control, then his data set, each tile held for a time.

Redundancy counts workers who completed a tile. What is held is taken for completed until its time is up, and the
project's row is locked while a tile is chosen: two who ask at once get two different places.
"""

from __future__ import annotations

import secrets
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, case, func, literal, or_, select, update

from brainmap.crowd.store import schema
from brainmap.crowd.store.refused import Refused
from brainmap.crowd.store.site import Site
from brainmap.crowd.work.accounts import Worker

__all__ = [
    "PRACTICE_START",
    "has_next",
    "is_finished",
    "join_project",
    "next_assignment",
    "project_for_worker",
    "project_of",
    "still_needed",
    "wanted",
]

project, tile, assignment, membership = schema.project, schema.tile, schema.assignment, schema.membership

# Coprime to every data set: multiplying by a worker's seed modulo this shuffles tiles in the database.
_PRIME = 1_000_003
PRACTICE_START = -1000


def project_for_worker(connection: Connection, name: str, *, lock: bool = False) -> Any:
    """The row of a project that is being worked on.

    Raises
    ------
    Refused
        404
    """
    query = select(project).where(project.c.name == name)
    row = connection.execute(query.with_for_update() if lock else query).first()
    if row is None:
        raise Refused(404, "there is no such project")
    return row


def project_of(connection: Connection, number: int) -> Any:
    """The row of a project by its number."""
    return connection.execute(select(project).where(project.c.id == number)).one()


def next_assignment(site: Site, connection: Connection, worker: Worker, name: str, after: str | None) -> Any:
    """The row of the worker's unfinished tile, or of a new one; None when nothing is left.

    Parameters
    ----------
    after : str, optional
        Token of the tile he is at: the one behind it is asked for, so that it is there before it is needed.
    """
    row = project_for_worker(connection, name, lock=True)
    if row.paused:
        return None
    joined = join_project(site, connection, worker, row)
    now = site.clock()
    for unfinished in _unfinished(connection, worker, row.id):
        if unfinished.token == after:
            continue
        if unfinished.held_until < now and not still_needed(connection, worker, row, unfinished, now):
            continue
        connection.execute(
            update(assignment)
            .where(assignment.c.id == unfinished.id)
            .values(held_until=now + 60 * site.settings.hold_minutes)
        )
        return unfinished
    chosen = _choose(connection, worker, row, joined, now)
    return None if chosen is None else _open(site, connection, worker, row, chosen, now)


def has_next(site: Site, connection: Connection, worker: Worker, name: str) -> bool:
    """Whether `next_assignment` would return one; nothing is held."""
    row = project_for_worker(connection, name)
    now = site.clock()
    unfinished = _unfinished(connection, worker, row.id)
    if row.paused:
        return False
    if any(a.held_until >= now or still_needed(connection, worker, row, a, now) for a in unfinished):
        return True
    return _choose(connection, worker, row, join_project(site, connection, worker, row), now) is not None


def join_project(site: Site, connection: Connection, worker: Worker, row: Any) -> Any:
    """The worker's membership; on joining he gets the data set that lacks most answers per member."""
    query = select(membership).where(membership.c.worker_id == worker.id, membership.c.project_id == row.id)
    found = connection.execute(query).first()
    if found is not None:
        return found
    connection.execute(
        membership.insert().values(
            worker_id=worker.id, project_id=row.id, dataset=_neediest(connection, row),
            seed=secrets.randbelow(_PRIME - 1) + 1, joined_at=site.clock(),
        )
    )  # fmt: skip
    return connection.execute(query).first()


def _neediest(connection: Connection, row: Any) -> str:
    lacking = func.sum(wanted(row) - tile.c.n_completed)
    needs = connection.execute(
        select(tile.c.dataset, lacking, func.count())
        .where(tile.c.project_id == row.id, tile.c.kind == "work")
        .group_by(tile.c.dataset)
        .order_by(tile.c.dataset)
    ).all()
    joined = connection.execute(
        select(membership.c.dataset, func.count())
        .join(schema.worker, schema.worker.c.id == membership.c.worker_id)
        .where(membership.c.project_id == row.id, schema.worker.c.role == "worker")
        .group_by(membership.c.dataset)
    )
    members = {str(found[0]): int(found[1]) for found in joined}
    if not needs:
        return ""
    # A member who has just joined will answer about one for each tile: he counts for that.
    best = max(needs, key=lambda need: (float(need[1]) - need[2] * members.get(need[0], 0)) / need[2])
    return str(best[0])


def wanted(row: Any) -> ColumnElement[int]:
    """How many workers a tile shall have, as an expression over `tile`.

    Until certain: the least number; then one more than have completed it while the judgement of all their clicks
    left something undecided; never more than the most. What is not judged yet waits for the judgement.
    """
    if row.redundancy is not None:
        return literal(row.redundancy)
    done, judged = tile.c.n_completed, tile.c.n_judged
    return case(
        (done < row.least, literal(row.least)),
        (and_(done < row.most, judged == done, tile.c.n_undecided > 0), done + 1),
        else_=done,
    )


def is_finished(row: Any) -> ColumnElement[bool]:
    """Whether a tile needs no further worker, as an expression over `tile`."""
    if row.redundancy is not None:
        return tile.c.n_completed >= row.redundancy
    done = tile.c.n_completed
    certain = and_(done >= row.least, tile.c.n_judged == done, tile.c.n_undecided == 0)
    return or_(done >= row.most, certain)


def _unfinished(connection: Connection, worker: Worker, project_id: int) -> list[Any]:
    return list(
        connection.execute(
            select(assignment)
            .where(
                assignment.c.worker_id == worker.id,
                assignment.c.project_id == project_id,
                assignment.c.completed_at.is_(None),
            )
            .order_by(assignment.c.position)
        )
    )


def still_needed(connection: Connection, worker: Worker, row: Any, given: Any, now: float) -> bool:
    """Whether a tile whose time ran out still wants this worker's answer."""
    if not given.counts:
        return True
    found = connection.execute(
        select(tile.c.kind, tile.c.n_completed, wanted(row).label("wanted")).where(tile.c.id == given.tile_id)
    ).one()
    others = connection.execute(
        select(func.count()).where(
            assignment.c.tile_id == given.tile_id, assignment.c.id != given.id, *_holds(now)
        )
    ).scalar_one()
    return found.kind != "work" or found.n_completed + others < found.wanted


def _holds(now: float) -> tuple[ColumnElement[bool], ...]:
    return assignment.c.counts, assignment.c.completed_at.is_(None), assignment.c.held_until > now


def _choose(connection: Connection, worker: Worker, row: Any, joined: Any, now: float) -> Any:
    mine = select(assignment.c.tile_id).where(assignment.c.worker_id == worker.id)
    shuffled = (tile.c.id * joined.seed) % _PRIME
    kinds = ("practice", "qc") if worker.role == "worker" else ("qc",)
    for kind in kinds:
        order = tile.c.id if kind == "practice" else shuffled
        found = connection.execute(
            select(tile)
            .where(tile.c.project_id == row.id, tile.c.kind == kind, tile.c.id.not_in(mine))
            .order_by(order)
            .limit(1)
        ).first()
        if found is not None:
            return found
    open_work = select(tile).where(
        tile.c.project_id == row.id,
        tile.c.kind == "work",
        tile.c.dataset == joined.dataset,
        tile.c.id.not_in(mine),
    )
    if not worker.counts:
        return connection.execute(open_work.order_by(shuffled).limit(1)).first()
    holds = (
        select(assignment.c.tile_id, func.count().label("n"))
        .where(assignment.c.project_id == row.id, *_holds(now))
        .group_by(assignment.c.tile_id)
        .subquery()
    )
    taken = tile.c.n_completed + func.coalesce(holds.c.n, 0)
    # Tiles that others have begun come first: what is finished can be used, what is begun cannot.
    return connection.execute(
        open_work.outerjoin(holds, holds.c.tile_id == tile.c.id)
        .where(taken < wanted(row))
        .order_by(taken.desc(), shuffled)
        .limit(1)
    ).first()


def _open(site: Site, connection: Connection, worker: Worker, row: Any, chosen: Any, now: float) -> Any:
    practice = chosen.kind == "practice"
    # Practice counts from -999: it comes before all work, and the work's order starts at 1 with or without it.
    last = connection.execute(
        select(func.max(assignment.c.position)).where(
            assignment.c.worker_id == worker.id,
            assignment.c.project_id == row.id,
            (assignment.c.position < 0) == practice,
        )
    ).scalar()
    position = (PRACTICE_START if practice else 0) + 1 if last is None else last + 1
    token = secrets.token_urlsafe(16)
    connection.execute(
        assignment.insert().values(
            token=token, worker_id=worker.id, tile_id=chosen.id, project_id=row.id, position=position,
            counts=worker.counts and not practice, opened_at=now,
            held_until=now + 60 * site.settings.hold_minutes,
        )
    )  # fmt: skip
    return connection.execute(select(assignment).where(assignment.c.token == token)).one()
