"""Agreement of the crowd and ability of its workers while the work goes on: `brainmap.gt` in a process of its own.

`python -m brainmap.crowd.work.analysis SITE PROJECT` computes and stores; the site starts it and shows what is stored:
no page waits for an aggregation and no click for a page.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Connection, delete, func, insert, select

from brainmap.crowd.store import schema
from brainmap.crowd.store.site import Site
from brainmap.crowd.work.certainty import count_undecided
from brainmap.crowd.work.gathered import gather, qc_images
from brainmap.crowd.work.projects import find_project

__all__ = ["analyse", "heat_of_tile", "stored_analysis"]

log = logging.getLogger(__name__)


def analyse(site: Site, name: str) -> dict[str, Any] | None:
    """Aggregate a project's clicks as they are now, and store what came out; None where there are none.

    Returns
    -------
    dict
        `workers`: {name: {sensitivity, specificity, weight_click, qc_complete}}; `tiles`: {image_id: {workers,
        cells, candidates, undecided, agreement}}, agreement = mean share of a tile's workers who marked an accepted
        cell; `agreement` over all tiles.
    """
    from brainmap.gt.aggregate import ACCEPT, aggregate_clicks
    from brainmap.gt.settings import GtSettings

    with site.database.snapshot() as connection:
        project = find_project(connection, name)
        clicks = gather(connection, project.id)
        qc = [image for _, image in qc_images(connection, project.id)]
    if clicks is None or not len(clicks):
        return None
    known = set(clicks.image_ids)
    consensus = aggregate_clicks(clicks, GtSettings(), qc=[image for image in qc if image in known])
    seen = np.bincount(clicks.seen_image, minlength=len(clicks.image_ids))
    tiles: dict[str, dict[str, Any]] = {}
    shares = []
    for row, (image, found) in enumerate(zip(clicks.image_ids, consensus.images, strict=True)):
        cells = found.posterior >= ACCEPT
        share = found.n_workers[cells] / max(int(seen[row]), 1)
        shares.append(share)
        tiles[image] = {
            "workers": int(seen[row]),
            "cells": int(cells.sum()),
            "candidates": len(cells),
            "undecided": count_undecided(found.posterior),
            "agreement": float(share.mean()) if len(share) else None,
        }
    table = consensus.workers
    workers = {
        worker: {
            "sensitivity": _number(table.sensitivity[row]),
            "specificity": _number(table.specificity[row]),
            "weight_click": _number(table.weight_click[row]),
            "qc_complete": bool(table.qc_complete[row]),
        }
        for row, worker in enumerate(clicks.worker_ids)
    }
    every = np.concatenate(shares)
    result = {
        "workers": workers, "tiles": tiles, "agreement": float(every.mean()) if len(every) else None,
        "cells": sum(tile["cells"] for tile in tiles.values()),
    }  # fmt: skip
    with site.database.write() as connection:
        table_ = schema.analysis
        connection.execute(delete(table_).where(table_.c.project_id == project.id))
        connection.execute(
            insert(table_).values(
                project_id=project.id, at=site.clock(), n_clicks=len(clicks), result=json.dumps(result)
            )
        )
    return result


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def stored_analysis(connection: Connection, project_id: int) -> dict[str, Any] | None:
    """The last result of `analyse`, with `at` and `n_clicks`."""
    table = schema.analysis
    row = connection.execute(select(table).where(table.c.project_id == project_id)).first()
    return None if row is None else {**json.loads(row.result), "at": row.at, "n_clicks": row.n_clicks}


def heat_of_tile(connection: Connection, tile: Any, weights: dict[str, float]) -> np.ndarray:
    """Heat map of a tile's clicks as they are now, float32 (height, width) in 0..1.

    Parameters
    ----------
    weights : dict
        Weight of a click by worker, from the last analysis; 1 where there is none.
    """
    from brainmap.gt.heatmap import heat_map

    assignment, click, worker = schema.assignment, schema.click, schema.worker
    here = [assignment.c.tile_id == tile.id, assignment.c.counts]
    rows = connection.execute(
        select(click.c.x, click.c.y, worker.c.name)
        .join(assignment, assignment.c.id == click.c.assignment_id)
        .join(worker, worker.c.id == assignment.c.worker_id)
        .where(*here, click.c.deleted_at.is_(None))
    ).all()
    names = (
        connection.execute(
            select(worker.c.name).join(assignment, assignment.c.worker_id == worker.c.id).where(*here)
        )
        .scalars()
        .all()
    )
    xy = np.array([(row.x, row.y) for row in rows], float).reshape(-1, 2)
    weight = np.array([weights.get(row.name, 1.0) for row in rows], float)
    total = sum(weights.get(name, 1.0) for name in names)
    return heat_map(xy, weight, float(total), (tile.height, tile.width))


def clicks_per_worker(connection: Connection, tile_id: int) -> list[dict[str, Any]]:
    """Everybody's live clicks on a tile: {worker, role, completed, clicks: [[x, y], ...]}, experts included."""
    assignment, click, worker = schema.assignment, schema.click, schema.worker
    rows = connection.execute(
        select(assignment.c.id, assignment.c.completed_at, worker.c.name, worker.c.role)
        .join(worker, worker.c.id == assignment.c.worker_id)
        .where(assignment.c.tile_id == tile_id)
        .order_by(assignment.c.id)
    ).all()
    found = []
    for row in rows:
        places = connection.execute(
            select(click.c.x, click.c.y).where(click.c.assignment_id == row.id, click.c.deleted_at.is_(None))
        ).all()
        found.append(
            {
                "worker": row.name,
                "role": row.role,
                "completed": row.completed_at is not None,
                "clicks": [[place.x, place.y] for place in places],
            }
        )
    return found


def annotations_per_image(
    connection: Connection, project_id: int, offset: int = 0, count: int = 200
) -> list[dict[str, Any]]:
    """Of each tile: finished and begun answers, clicks; in the order of the images' names."""
    tile, assignment = schema.tile, schema.assignment
    rows = connection.execute(
        select(
            tile.c.id,
            tile.c.image_id,
            tile.c.kind,
            tile.c.dataset,
            tile.c.n_completed,
            tile.c.n_undecided,
            func.count(assignment.c.id).label("begun"),
            func.coalesce(func.sum(assignment.c.n_clicks), 0).label("clicks"),
        )
        .outerjoin(assignment, (assignment.c.tile_id == tile.c.id) & assignment.c.counts)
        .where(tile.c.project_id == project_id, tile.c.kind != "practice")
        .group_by(tile.c.id)
        .order_by(tile.c.image_id)
        .offset(offset)
        .limit(count)
    )
    return [dict(row._mapping) for row in rows]


def main() -> None:
    """Analyse the project that the command line names."""
    logging.basicConfig(level=logging.WARNING)
    site = Site.open(Path(sys.argv[1]))
    try:
        analyse(site, sys.argv[2])
    finally:
        site.close()


if __name__ == "__main__":
    main()
