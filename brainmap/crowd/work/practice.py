"""Feedback on practice tiles: which known cells were found, which missed, and which marks hit none."""

from __future__ import annotations

from typing import Any

import numpy as np
from sqlalchemy import Connection, select

from brainmap.crowd.store import schema

__all__ = ["TOLERANCE_PX", "feedback"]

# The study's tolerance against experts (methods 7).
TOLERANCE_PX = 10.0


def feedback(connection: Connection, row: Any) -> dict[str, Any]:
    """Compare a worker's clicks on a practice tile with the known cells.

    Returns
    -------
    dict
        `cells`: list of {x, y, found}; `extra`: list of {x, y}, the marks that match no cell.
    """
    # A site without practice starts without SciPy.
    from scipy.optimize import linear_sum_assignment

    known, click = schema.practice_cell, schema.click
    cells = np.array(
        connection.execute(select(known.c.x, known.c.y).where(known.c.tile_id == row.tile_id)).all(), float
    ).reshape(-1, 2)
    marks = np.array(
        connection.execute(
            select(click.c.x, click.c.y).where(click.c.assignment_id == row.id, click.c.deleted_at.is_(None))
        ).all(),
        float,
    ).reshape(-1, 2)
    distance = np.linalg.norm(cells[:, None] - marks[None], axis=2)
    # Pairs out of reach cost more than any pairing within it.
    cost = np.where(distance <= TOLERANCE_PX, distance, 1e6)
    pairs = [(i, j) for i, j in zip(*linear_sum_assignment(cost), strict=True) if cost[i, j] < 1e6]
    found, used = {i for i, _ in pairs}, {j for _, j in pairs}
    return {
        "cells": [{"x": x, "y": y, "found": i in found} for i, (x, y) in enumerate(cells.tolist())],
        "extra": [{"x": x, "y": y} for j, (x, y) in enumerate(marks.tolist()) if j not in used],
    }
