"""How far everybody is: one worker, one project, the whole site."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, and_, case, func, not_, or_, select

from brainmap.crowd.store import schema
from brainmap.crowd.store.site import Site
from brainmap.crowd.work.accounts import Worker
from brainmap.crowd.work.assign import is_finished, wanted

__all__ = ["ProjectStatus", "project_status", "projects_of", "site_status", "worker_rows"]

assignment, tile, membership, project = schema.assignment, schema.tile, schema.membership, schema.project


@dataclass(frozen=True)
class ProjectStatus:
    """Numbers of a project; practice is not counted, experts' answers only in `expert_clicks`.

    `finished` tiles need no further worker, `in_work` have been begun, `undecided` are those in which aggregation
    was in doubt when last asked (projects until certain). `answers` = finished tiles summed over workers.
    """

    name: str
    title: str
    redundancy: int | None
    until_certain: bool
    paused: bool
    workers: int
    tiles: int
    clicks: int
    finished: int
    in_work: int
    undecided: int
    answers: int
    expert_clicks: int


def project_status(connection: Connection, row: Any) -> ProjectStatus:
    """Status of a project."""
    begun = (
        select(assignment.c.tile_id).where(assignment.c.project_id == row.id, assignment.c.counts).distinct()
    )
    # Quality control goes to everybody: it is finished when as many did it as a tile wants, and stays open.
    done = is_finished(row) if row.redundancy is not None else _finished_until_certain(row)
    counts = connection.execute(
        select(
            func.count().label("tiles"),
            func.coalesce(func.sum(case((done, 1), else_=0)), 0).label("finished"),
            func.coalesce(func.sum(case((and_(not_(done), tile.c.id.in_(begun)), 1), else_=0)), 0).label(
                "in_work"
            ),
            func.coalesce(func.sum(case((tile.c.n_undecided > 0, 1), else_=0)), 0).label("undecided"),
            func.coalesce(func.sum(tile.c.n_completed), 0).label("answers"),
        ).where(tile.c.project_id == row.id, tile.c.kind != "practice")
    ).one()
    clicks = dict(
        connection.execute(
            select(assignment.c.counts, func.coalesce(func.sum(assignment.c.n_clicks), 0))
            .where(assignment.c.project_id == row.id, assignment.c.position > 0)
            .group_by(assignment.c.counts)
        ).all()  # type: ignore[arg-type]
    )
    workers = connection.execute(
        select(func.count(func.distinct(assignment.c.worker_id))).where(
            assignment.c.project_id == row.id, assignment.c.counts
        )
    ).scalar_one()
    return ProjectStatus(
        row.name, row.title, row.redundancy, row.redundancy is None, bool(row.paused), workers,
        counts.tiles, int(clicks.get(True, 0)), int(counts.finished), int(counts.in_work),
        int(counts.undecided), int(counts.answers), int(clicks.get(False, 0)),
    )  # fmt: skip


def _finished_until_certain(row: Any) -> Any:
    return or_(
        and_(tile.c.kind == "qc", tile.c.n_completed >= row.least),
        and_(tile.c.kind == "work", is_finished(row)),
    )


def site_status(site: Site) -> dict[str, Any]:
    """Status of all projects, and the number of accounts."""
    with site.database.read() as connection:
        rows = connection.execute(select(project).order_by(project.c.id)).all()
        accounts = connection.execute(
            select(func.count()).where(schema.worker.c.password.is_not(None))
        ).scalar_one()
        return {
            "site": str(site.folder),
            "accounts": accounts,
            "projects": [asdict(project_status(connection, row)) for row in rows],
        }


def projects_of(site: Site, connection: Connection, worker: Worker) -> list[dict[str, Any]]:
    """What a worker sees of all projects: how many tiles he finished, and how many there are for him.

    The total is what he has finished plus what he could get now: it shrinks where others are faster.
    """
    found = []
    for row in connection.execute(select(project).order_by(project.c.id)).all():
        own = connection.execute(
            select(func.count(assignment.c.completed_at).label("done"), func.count().label("all")).where(
                assignment.c.worker_id == worker.id,
                assignment.c.project_id == row.id,
                assignment.c.position > 0,
            )
        ).one()
        found.append(
            {
                "name": row.name,
                "title": row.title,
                "languages": row.languages.split(","),
                "tiles_done": own.done,
                "tiles_total": own.all + (0 if row.paused else _available(connection, worker, row)),
                "paused": bool(row.paused),
            }
        )
    return found


def _available(connection: Connection, worker: Worker, row: Any) -> int:
    """Tiles a worker has not begun and could get."""
    mine = select(assignment.c.tile_id).where(assignment.c.worker_id == worker.id)
    dataset = connection.execute(
        select(membership.c.dataset).where(
            membership.c.worker_id == worker.id, membership.c.project_id == row.id
        )
    ).scalar()
    if dataset is None:
        # Not joined yet: the largest of the data sets, which he may get.
        dataset = connection.execute(
            select(tile.c.dataset)
            .where(tile.c.project_id == row.id, tile.c.kind == "work")
            .group_by(tile.c.dataset)
            .order_by(func.count().desc(), tile.c.dataset)
        ).scalar()
    work = [tile.c.kind == "work", tile.c.dataset == (dataset or "")]
    if worker.counts:
        work.append(tile.c.n_completed < wanted(row))
    return int(
        connection.execute(
            select(func.count()).where(
                tile.c.project_id == row.id,
                tile.c.id.not_in(mine),
                or_(tile.c.kind == "qc", and_(*work)),
            )
        ).scalar_one()
    )


def worker_rows(connection: Connection, project_id: int) -> list[dict[str, Any]]:
    """Progress by worker in a project, those who did most first."""
    worker = schema.worker
    rows = connection.execute(
        select(
            worker.c.id,
            worker.c.name,
            worker.c.role,
            func.count(assignment.c.completed_at).label("tiles_done"),
            func.count().label("tiles_begun"),
            func.coalesce(func.sum(assignment.c.n_clicks), 0).label("clicks"),
            func.max(assignment.c.completed_at).label("last"),
        )
        .join(assignment, assignment.c.worker_id == worker.c.id)
        .where(assignment.c.project_id == project_id, assignment.c.position > 0)
        .group_by(worker.c.id, worker.c.name, worker.c.role)
        .order_by(func.count(assignment.c.completed_at).desc(), worker.c.id)
    )
    return [dict(row._mapping) for row in rows]
