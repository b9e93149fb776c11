"""Stop when certain: after enough workers a tile is judged by `brainmap.gt`, and asked for again only in doubt.

A tile is judged from the clicks of all who finished it together with the quality-control tiles of the project, from
which the workers' abilities come. The judgement holds for the number of workers it was made with: one more worker,
or one who left, and it is made again.
"""

from __future__ import annotations

import logging
import threading

from sqlalchemy import select, update

from brainmap.crowd.store import schema
from brainmap.crowd.store.site import Site
from brainmap.crowd.work.certainty import count_undecided
from brainmap.crowd.work.gathered import gather, qc_images

__all__ = ["judge", "judge_pending"]

log = logging.getLogger(__name__)

# Aggregation takes a core: one tile at a time.
_turn = threading.Lock()


def judge_pending(site: Site, project_id: int) -> int:
    """Judge all tiles of a project that have enough workers and no judgement of them all; return how many."""
    tile, project = schema.tile, schema.project
    with site.database.read() as connection:
        row = connection.execute(select(project).where(project.c.id == project_id)).one()
        if row.redundancy is not None:
            return 0
        pending = list(
            connection.execute(
                select(tile.c.id).where(
                    tile.c.project_id == project_id,
                    tile.c.kind == "work",
                    tile.c.n_completed >= row.least,
                    tile.c.n_completed < row.most,
                    tile.c.n_judged != tile.c.n_completed,
                )
            ).scalars()
        )
    for tile_id in pending:
        judge(site, project_id, tile_id)
    return len(pending)


def judge(site: Site, project_id: int, tile_id: int) -> int:
    """Judge one tile; return how many of its candidates are undecided."""
    from brainmap.gt.aggregate import aggregate_clicks
    from brainmap.gt.settings import GtSettings

    tile = schema.tile
    with _turn:
        with site.database.snapshot() as connection:
            here = connection.execute(
                select(tile.c.image_id, tile.c.n_completed).where(tile.c.id == tile_id)
            ).one()
            qc = qc_images(connection, project_id)
            clicks = gather(connection, project_id, [tile_id, *(number for number, _ in qc)])
        found = 0
        if clicks is not None and len(clicks):
            seen = set(clicks.image_ids)
            images = [name for _, name in qc if name in seen]
            consensus = aggregate_clicks(clicks, GtSettings(), qc=images)
            found = count_undecided(consensus.images[clicks.image_ids.index(here.image_id)].posterior)
        with site.database.write() as connection:
            # Only if nobody finished the tile meanwhile: then it is judged anew.
            connection.execute(
                update(tile)
                .where(tile.c.id == tile_id, tile.c.n_completed == here.n_completed)
                .values(n_judged=here.n_completed, n_undecided=found)
            )
    log.debug("tile %s after %d workers: %d undecided", here.image_id, here.n_completed, found)
    return found
