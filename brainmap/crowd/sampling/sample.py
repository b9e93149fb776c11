"""From runs to a folder of tiles: the work of `brainmap crowd sample`.

All squares that lie in a region -> a bounded number of them, even over animals and regions -> read through the
run's own intensity model and held against the quality rule -> the strategy's choice within each animal and region
-> QC tiles and data sets -> `tiles.parquet`, `images/`, `detected.parquet`, `report.html`, `sample.json`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.crowd.sampling.budget import deal, spread
from brainmap.crowd.sampling.doubt import Doubt, LastTruth, crowd_doubt, last_truth
from brainmap.crowd.sampling.network import TileNetwork
from brainmap.crowd.sampling.pool import Pool, look_at_tiles, members_of, seed_for
from brainmap.crowd.sampling.request import PER_DATASET, SampleRequest
from brainmap.crowd.sampling.sampled import REPORT, Sampled
from brainmap.crowd.sampling.source import TileCells, open_brains
from brainmap.crowd.sampling.strategies import choose, choose_qc, standardised, statistics
from brainmap.errors import DataError
from brainmap.files import atomic_path, now, write_json
from brainmap.infer.detector import Detector
from brainmap.machine import versions
from brainmap.progress import tracked
from brainmap.tiles.detected import write_detected
from brainmap.tiles.tiles import Tiles, check_target, write_tiles

__all__ = ["RECORD", "sample_tiles"]

log = logging.getLogger(__name__)

RECORD = "sample.json"
Floats = NDArray[np.float64]


def sample_tiles(request: SampleRequest) -> Sampled:
    """Choose tiles of one or many runs and write them.

    Raises
    ------
    UsageError
        An unknown region; OUT exists and is no tile folder.
    NotFoundError, DataError
        A run that cannot be sampled, a tile larger than the regions, no tile that passes.
    """
    check_target(request.out)
    brains = open_brains(request.runs, request.brains)
    last = None if request.truth is None else last_truth(request)
    pool = look_at_tiles(request, brains, frozenset() if last is None else last.names)
    passed = pool.passed
    if len(passed) <= request.qc:
        raise DataError(
            f"{len(passed)} tiles pass the quality rule, {request.qc} are to be QC tiles: nothing is left to annotate; "
            "give more runs, more --sections or a smaller --tile"
        )
    features, doubt, compared = _features(request, pool, passed, last)
    chosen = _choose(request, pool, passed, features, doubt)
    if request.budget is not None and len(chosen) < request.budget:
        log.warning("only %d tiles pass, of the %d that the budget allows", len(chosen), request.budget)
    cells = _cells(pool, passed[chosen])
    counts = np.bincount(cells.tile, minlength=len(chosen))
    columns = _columns(
        request,
        pool,
        passed[chosen],
        counts,
        features[chosen],
        None if doubt is None else doubt.value[chosen],
    )
    order = np.argsort(columns["image_id"])
    rows = passed[chosen][order]
    with atomic_path(request.out) as part:
        tiles = write_tiles(part, {k: v[order] for k, v in columns.items()}, _images(pool, rows))
        write_detected(part, columns["image_id"][cells.tile], cells.xy, cells.score)
        sampled = Sampled(tiles, pool, rows, doubt, compared)
        from brainmap.crowd.sampling.report import write_sample_report

        write_sample_report(part / REPORT, request, sampled)
        write_json(part / RECORD, _record(request, sampled))
    return Sampled(Tiles.open(request.out), pool, rows, doubt, compared)


def _features(
    request: SampleRequest, pool: Pool, passed: NDArray[np.int64], last: LastTruth | None
) -> tuple[Floats, Doubt | None, str]:
    """What the tiles look like, how doubtful they are, and in words by what they are compared."""
    plain = np.stack([statistics(pool.image(int(row))) for row in passed])
    if request.strategy not in ("active", "uncertain"):
        return standardised(plain), None, "grey levels and fine structure"
    detector = Detector.open(request.detector or pool.brains[0].detector)
    network = TileNetwork(detector)
    looks = []
    for row in tracked(passed, "looking at tiles", unit="tiles"):
        diameter = pool.brains[pool.places.brain[row]].cell_diameter_um
        looks.append(network.look(pool.image(int(row)), pool.voxel_um(int(row)), diameter))
    features = standardised(np.stack([look.feature for look in looks]))
    compared = f"the deepest layer of the detector {detector.spec.name}"
    if request.strategy == "active":
        return features, None, compared
    own = np.array([look.doubt(detector.spec.threshold) for look in looks])
    if last is None:
        words = f"wrong answers that the detector {detector.spec.name} expects of itself"
        return features, Doubt(own, words), compared
    diameter = pool.brains[0].cell_diameter_um
    raw = np.column_stack([plain, own, np.stack([look.feature for look in looks])])
    return features, crowd_doubt(last, network, diameter, raw, own), compared


def _choose(
    request: SampleRequest, pool: Pool, passed: NDArray[np.int64], features: Floats, doubt: Doubt | None
) -> NDArray[np.int64]:
    """Indices into `passed`: the budget over animals and regions, the strategy within."""
    places = pool.places.take(passed)
    animals, regions = len(pool.brains), len(pool.regions)
    groups = members_of(places, animals, regions)
    available = np.array([[len(groups[a, r]) for r in range(regions)] for a in range(animals)], np.int64)
    quota = spread(request.budget, available)
    chosen = []
    for key, rows in groups.items():
        value = None if doubt is None else doubt.value[rows]
        seed = seed_for(request, 2, *key)
        picks = choose(request.strategy, int(quota[key]), places.take(rows).zyx, features[rows], value, seed)
        chosen.append(rows[picks])
    return np.sort(np.concatenate(chosen))


def _cells(pool: Pool, rows: NDArray[np.int64]) -> TileCells:
    """What the runs detected on tiles, by index into `rows`."""
    places = pool.places.take(rows)
    found = []
    for index, brain in enumerate(pool.brains):
        own = np.flatnonzero(places.brain == index)
        cells = brain.cells_on(places.z[own], places.y0[own], places.x0[own], pool.size)
        found.append(cells._replace(tile=own[cells.tile]))
    return TileCells(*(np.concatenate(column) for column in zip(*found, strict=True)))


def _columns(
    request: SampleRequest, pool: Pool, rows: NDArray[np.int64], cells: NDArray[np.int64], features: Floats,
    doubt: Floats | None,
) -> dict[str, NDArray[Any]]:  # fmt: skip
    """Columns of the table of tiles; `cells` are the numbers of cells detected on each."""
    places = pool.places.take(rows)
    is_qc = np.zeros(len(rows), bool)
    is_qc[choose_qc(request.qc, places.region, places.brain, cells, features, request.seed)] = True
    rest = np.flatnonzero(~is_qc)
    sets = request.datasets or max(1, round(len(rest) / PER_DATASET))
    if sets > len(rest):
        raise DataError(f"{len(rest)} tiles beside the QC tiles cannot be dealt into {sets} data sets")
    hand = deal([places.region[rest], places.brain[rest]], sets, cells[rest].astype(np.float64), request.seed)
    dataset = np.full(len(rows), "", dtype=object)
    dataset[rest] = [f"set{i + 1:0{len(str(sets))}d}" for i in hand]
    return {
        "image_id": np.array([pool.name(int(row)) for row in rows], dtype=object),
        "brain": np.array([pool.brains[i].name for i in places.brain], dtype=object),
        "z": places.z,
        "y0": places.y0,
        "x0": places.x0,
        "region_id": pool.region_id[places.region],
        "region": np.array([pool.regions[i] for i in places.region], dtype=object),
        "region_share": places.share,
        "dataset": dataset,
        "is_qc": is_qc,
        "voxel_um": np.stack([pool.voxel_um(int(row)) for row in rows]),
        "cells_detected": cells,
        "doubt": np.full(len(rows), np.nan) if doubt is None else doubt,
    }


def _images(pool: Pool, rows: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
    # Read again rather than kept: memory must not grow with the number of tiles.
    for row in rows:
        yield pool.image(int(row))


def _record(request: SampleRequest, sampled: Sampled) -> dict[str, Any]:
    pool = sampled.pool
    return {
        "made": now(),
        "options": request.record(),
        "runs": {b.name: {"run": b.run.resolve(), "brain": b.volume.url, "volume": b.volume.fingerprint()}
                 for b in pool.brains},
        "grey_levels_end": {b.name: q.end for b, q in zip(pool.brains, pool.quality, strict=True)},
        "truth": request.truth,
        "features": sampled.features,
        "doubt": None if sampled.doubt is None else sampled.doubt.words,
        "squares": pool.found,
        "looked_at": len(pool.places),
        "passed": len(pool.passed),
        "left_out_as_annotated": pool.annotated,
        "versions": versions(),
    }  # fmt: skip
