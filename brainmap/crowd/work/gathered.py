"""The crowd's clicks as `brainmap.gt` takes them, straight from the database."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, select

from brainmap.crowd.store import schema
from brainmap.gt.clicks import Clicks

__all__ = ["gather", "qc_images"]

assignment, click, tile, worker = schema.assignment, schema.click, schema.tile, schema.worker


def gather(connection: Connection, project_id: int, tile_ids: Sequence[int] | None = None) -> Clicks | None:
    """Clicks and assignments of the crowd in a project, or in some of its tiles; None where nobody saw any.

    Experts and practice are left out.
    """
    here = [assignment.c.project_id == project_id, assignment.c.counts]
    if tile_ids is not None:
        here.append(assignment.c.tile_id.in_(list(tile_ids)))
    seen = connection.execute(
        select(tile.c.image_id, worker.c.name, assignment.c.completed_at, tile.c.height, tile.c.width)
        .select_from(assignment)
        .join(tile, tile.c.id == assignment.c.tile_id)
        .join(worker, worker.c.id == assignment.c.worker_id)
        .where(*here)
    ).all()
    if not seen:
        return None
    rows = connection.execute(
        select(tile.c.image_id, worker.c.name, click.c.x, click.c.y)
        .select_from(click)
        .join(assignment, assignment.c.id == click.c.assignment_id)
        .join(tile, tile.c.id == assignment.c.tile_id)
        .join(worker, worker.c.id == assignment.c.worker_id)
        .where(*here, click.c.deleted_at.is_(None))
    ).all()
    columns = list(zip(*rows, strict=True)) if rows else [(), (), (), ()]
    return Clicks.build(
        columns[0],
        columns[1],
        columns[2],
        columns[3],
        sizes={s.image_id: (s.height, s.width) for s in seen},
        assignments=[(s.image_id, s.name, s.completed_at is not None) for s in seen],
    )


def qc_images(connection: Connection, project_id: int) -> list[tuple[int, str]]:
    """Number and image id of each quality-control tile."""
    rows = connection.execute(
        select(tile.c.id, tile.c.image_id)
        .where(tile.c.project_id == project_id, tile.c.kind == "qc")
        .order_by(tile.c.id)
    )
    return [(row.id, row.image_id) for row in rows]
