"""Which tiles need another worker: `--until-certain`.

A tile is decided when the aggregation of its clicks leaves no candidate in doubt. Until then it goes to further
workers, three at least and twelve at most. The site asks `undecided`, a function of clicks and assignments alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.errors import UsageError
from brainmap.gt.aggregate import aggregate_clicks
from brainmap.gt.clicks import Clicks
from brainmap.gt.consensus import Consensus
from brainmap.gt.settings import GtSettings

__all__ = ["HIGH", "LOW", "CertaintyRule", "TileState", "count_undecided", "judge_tiles", "undecided"]

# A candidate whose posterior lies between these is undecided (crowd.md, rules of assignment).
LOW, HIGH = 0.1, 0.9


def count_undecided(posterior: NDArray[np.floating], low: float = LOW, high: float = HIGH) -> int:
    """How many candidates are neither cells nor none."""
    return int(((posterior > low) & (posterior < high)).sum())


@dataclass(frozen=True)
class CertaintyRule:
    """When a tile has seen enough workers.

    Parameters
    ----------
    least, most : int
        Workers who completed the tile: never stop before, never go beyond.
    low, high : float
        Posteriors between these are undecided.
    tolerated : float
        Undecided candidates that a tile may keep, as a share of its accepted cells (rounded down). 0: none.
    """

    least: int = 3
    most: int = 12
    low: float = LOW
    high: float = HIGH
    tolerated: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise UsageError(f"at least {self.least} and at most {self.most} workers is no range")
        if not 0 <= self.low < self.high <= 1:
            raise UsageError(f"undecided cannot mean a posterior between {self.low} and {self.high}")
        if not 0 <= self.tolerated < math.inf:
            raise UsageError(f"the tolerated share of undecided candidates cannot be {self.tolerated}")


@dataclass(frozen=True)
class TileState:
    """Where a tile stands.

    Parameters
    ----------
    n_workers : int
        Workers who completed it.
    n_cells, n_undecided : int
        Candidates with posterior >= 0.5, and those in doubt.
    more : bool
        Whether another worker should see it.
    why : str
        "few": not enough workers yet; "undecided"; "certain"; "most": in doubt, but enough is enough.
    """

    n_workers: int
    n_cells: int
    n_undecided: int
    more: bool
    why: str


def undecided(
    clicks: Mapping[str, Any],
    assignments: Iterable[tuple[str, str, bool]],
    *,
    sizes: Mapping[str, tuple[int, int]],
    qc: Iterable[str] = (),
    rule: CertaintyRule = CertaintyRule(),
    settings: GtSettings | None = None,
) -> dict[str, TileState]:
    """The state of every tile; those with `more` need another worker. A pure function: nothing is read or written.

    Parameters
    ----------
    clicks : mapping of str to sequence
        Columns `image_id worker_id x y` of equal length (tile px, 0 = centre of the first pixel), all clicks of the
        project, QC tiles included: they say how able a worker is.
    assignments : iterable of (image_id, worker_id, completed)
        Who was given what. A tile that nobody completed has no workers, whatever its clicks.
    sizes : mapping of str to (height, width)
        Of every tile of the project; one that nobody was given is in the answer, too.
    qc : iterable of str
        QC tiles: they estimate ability, go to everybody, and never need another worker.
    rule : CertaintyRule
    settings : GtSettings, optional

    Returns
    -------
    dict of str to TileState
        By tile, sorted; without the QC tiles.

    Raises
    ------
    DataError
        Clicks or assignments of a tile without a size, or an id that cannot be a file name.
    """
    table = Clicks.build(
        np.asarray(clicks["image_id"], dtype=object),
        np.asarray(clicks["worker_id"], dtype=object),
        clicks["x"],
        clicks["y"],
        sizes={str(name): size for name, size in sizes.items()},
        assignments=[(str(tile), str(worker), bool(done)) for tile, worker, done in assignments],
    )
    known = set(table.image_ids)
    checked = sorted(set(qc) & known)
    states = (
        judge_tiles(table, aggregate_clicks(table, settings or GtSettings(), qc=checked), rule)
        if known
        else {}
    )
    unseen = TileState(0, 0, 0, True, "few")
    return {name: states.get(name, unseen) for name in sorted(sizes) if name not in set(qc)}


def judge_tiles(
    clicks: Clicks, consensus: Consensus, rule: CertaintyRule = CertaintyRule()
) -> dict[str, TileState]:
    """The state of every image of an aggregation."""
    completed = np.bincount(clicks.seen_image[clicks.seen_complete], minlength=len(clicks.image_ids))
    found = {}
    for name, image, workers in zip(clicks.image_ids, consensus.images, completed, strict=True):
        cells = int((image.posterior >= 0.5).sum())
        doubtful = count_undecided(image.posterior, rule.low, rule.high)
        if workers < rule.least:
            more, why = True, "few"
        elif doubtful <= math.floor(rule.tolerated * cells):
            more, why = False, "certain"
        elif workers >= rule.most:
            more, why = False, "most"
        else:
            more, why = True, "undecided"
        found[name] = TileState(int(workers), cells, doubtful, more, why)
    return found
