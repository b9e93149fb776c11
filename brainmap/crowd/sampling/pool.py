"""The tiles that are looked at: a bounded number of squares, read once, and held against the quality rule."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from brainmap.crowd.sampling.budget import spread
from brainmap.crowd.sampling.places import Places, find_places
from brainmap.crowd.sampling.quality import Quality, levels_of, reach
from brainmap.crowd.sampling.request import LOOKED_AT, SampleRequest
from brainmap.crowd.sampling.source import SampledBrain, find_regions
from brainmap.crowd.sampling.strategies import choose
from brainmap.errors import DataError

__all__ = ["Pool", "look_at_tiles", "members_of", "seed_for"]

log = logging.getLogger(__name__)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pool:
    """The tiles that were looked at.

    Parameters
    ----------
    brains : list of SampledBrain
    regions : tuple of str
        Acronyms; `places.region` counts in them.
    region_id : ndarray of int64
        Structure id of each region.
    without : tuple of str
        Regions that have no tile anywhere.
    size : int
        Height and width, px.
    found : int
        Squares that lie in a region, of which the places are a part.
    annotated : int
        Squares left out because an earlier round has them.
    places : Places
        Those that were looked at.
    reasons : list of tuple of str
        Why each place was rejected; empty for a good one.
    quality : list of Quality
        The rule for each brain.
    """

    brains: list[SampledBrain]
    regions: tuple[str, ...]
    region_id: NDArray[np.int64]
    without: tuple[str, ...]
    size: int
    found: int
    annotated: int
    places: Places
    reasons: list[tuple[str, ...]] = field(default_factory=list)
    quality: list[Quality] = field(default_factory=list)

    @property
    def passed(self) -> NDArray[np.int64]:
        """Rows of the places that were not rejected."""
        return np.array([i for i, reasons in enumerate(self.reasons) if not reasons], np.int64)

    def name(self, row: int) -> str:
        """image_id of a place: where it is, so that it has one name in every sampling."""
        p = self.places
        return f"{self.brains[p.brain[row]].name}_z{p.z[row]:05d}_y{p.y0[row]:05d}_x{p.x0[row]:05d}"

    def image(self, row: int) -> NDArray[np.float32]:
        """Normalised intensity of a place."""
        p = self.places
        return self.brains[p.brain[row]].tile(int(p.z[row]), int(p.y0[row]), int(p.x0[row]), self.size)

    def voxel_um(self, row: int) -> Floats:
        """Voxel size at a place, z, y, x."""
        return np.array(self.brains[self.places.brain[row]].volume.voxel_um)


def look_at_tiles(request: SampleRequest, brains: list[SampledBrain], old: frozenset[str]) -> Pool:
    """Find the squares, look at a bounded number of them, reject the poor ones.

    Parameters
    ----------
    request : SampleRequest
    brains : list of SampledBrain
    old : frozenset of str
        Tiles of an earlier round, which are left out.

    Raises
    ------
    UsageError, DataError
        Unknown regions, atlases that differ, a tile larger than the regions, nothing new to cut.
    """
    given = request.regions is not None
    ids = [find_regions(brain.structures, request.wanted_regions, given) for brain in brains]
    _check_atlases(brains, ids)
    places, without = find_places(brains, ids, request.tile_px, request.sections, request.least_share, given)
    names = tuple(ids[0])
    region_id = np.array([ids[0][name][0] for name in names], np.int64)
    found = Pool(brains, names, region_id, without, request.tile_px, len(places), 0, places)
    fresh = np.array([found.name(row) not in old for row in range(len(places))], bool)
    if not fresh.any():
        raise DataError(
            f"all {len(places)} tiles that could be cut are in {request.truth} already; "
            "give more runs or more --sections"
        )
    places = places.take(fresh)
    return _enough(request, Pool(
        brains, names, region_id, without, request.tile_px, found.found, int((~fresh).sum()), places
    ))  # fmt: skip


def _enough(request: SampleRequest, every: Pool) -> Pool:
    """Look at some tiles for each one of the budget; at more of an animal and region of which too few pass."""
    places, shape = every.places, (len(every.brains), len(every.regions))
    groups = members_of(places, *shape)
    available = np.array([[len(groups[a, r]) for r in range(shape[1])] for a in range(shape[0])], np.int64)
    wanted = spread(request.budget, available)
    quota = spread(None if request.budget is None else LOOKED_AT * request.budget, available)
    strategy = "random" if request.strategy == "random" else "even"
    seen: dict[int, Ints] = {}
    while True:
        rows = np.sort(np.concatenate([
            own[choose(strategy, int(quota[key]), places.take(own).zyx, None, None, seed_for(request, 1, *key))]
            for key, own in groups.items()
        ]))  # fmt: skip
        log.info("looking at %d of %d squares", len(rows), every.found)
        seen |= {int(row): levels_of(every.image(int(row))) for row in rows if int(row) not in seen}
        pool = _judged(request, every, rows, [seen[int(row)] for row in rows])
        passed = pool.places.take(pool.passed)
        good = np.zeros(shape, np.int64)
        np.add.at(good, (passed.brain, passed.region), 1)
        short = (good < wanted) & (quota < available)
        if not short.any():
            return pool
        quota = np.where(short, np.minimum(available, 2 * quota + 1), quota)


def _judged(request: SampleRequest, every: Pool, rows: Ints, levels: Sequence[Ints]) -> Pool:
    """Some of the places with their verdicts; where a brain's grey levels end is learnt from its places."""
    places = every.places.take(rows)
    quality = []
    for index in range(len(every.brains)):
        own = [levels[k] for k in np.flatnonzero(places.brain == index)]
        learnt = request.bright == "brain" and len(own) > 0
        quality.append(Quality(request.quality, reach(np.sum(own, axis=0)) if learnt else 1.0))
    reasons = [quality[brain].reasons_of(own) for brain, own in zip(places.brain, levels, strict=True)]
    return Pool(
        every.brains, every.regions, every.region_id, every.without, every.size, every.found, every.annotated,
        places, reasons, quality,
    )  # fmt: skip


def _check_atlases(brains: list[SampledBrain], ids: list[dict[str, Ints]]) -> None:
    for brain, own in zip(brains, ids, strict=True):
        if list(own) != list(ids[0]) or any(own[name][0] != ids[0][name][0] for name in own):
            raise DataError(
                f"the runs {brains[0].run} and {brain.run} were made with atlases whose regions differ "
                f"({brains[0].atlas.name}, {brain.atlas.name}); sample them apart"
            )


def members_of(places: Places, animals: int, regions: int) -> dict[tuple[int, int], Ints]:
    """Rows of the places of each animal and region."""
    return {
        (a, r): np.flatnonzero((places.brain == a) & (places.region == r)).astype(np.int64)
        for a in range(animals) for r in range(regions)
    }  # fmt: skip


def seed_for(request: SampleRequest, *keys: int) -> int:
    """A seed for one purpose, animal and region, so that a further run does not change what is drawn from others."""
    return int(np.random.SeedSequence([request.seed, *keys]).generate_state(1)[0] % 2**31)
