"""Which tiles to annotate, tested on labelled data (methods 11): animals x slices x strategy at equal budget.

Animals are held out in turn. From the others a budget of tiles is chosen in every way of the design; what a detector
would learn from them is estimated (`brainmap.crowd.loop.study_judge`) and judged on each held-out animal, by two:
F1 at the detector's threshold, in which a choice that shifts the calibration counts (doubtful tiles make a detector
timid), and AUPRC, in which only the order of the scores does.

All ways are judged on the same animals, so that differences are paired. Two things are a sample: the animals that judge
and the selections that are drawn. The variance of a mean difference is taken as that over judging animals plus that
over repeats, each over its number; what both share is counted twice, which makes intervals wide rather than narrow.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brainmap.crowd.loop.study_judge import Labelled, judge_selection, look_at_labelled
from brainmap.crowd.loop.study_record import Claim, Design, Study, StudyRequest
from brainmap.crowd.sampling.budget import fill
from brainmap.crowd.sampling.network import TileNetwork
from brainmap.crowd.sampling.strategies import choose
from brainmap.errors import DataError
from brainmap.files import atomic_path, write_json
from brainmap.gt.clicks import read_point_table
from brainmap.gt.truth import GroundTruth
from brainmap.infer.detector import Detector
from brainmap.tiles.tiles import Tiles

__all__ = ["designs_of", "run_study", "select"]

log = logging.getLogger(__name__)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Active choice counts as better than random where it gains more than this.
_MARGIN = 0.01


def run_study(request: StudyRequest) -> Study:
    """Compare the ways to spend a budget on labelled tiles, and write the report.

    Raises
    ------
    DataError
        Tiles without truth, no cells, or all tiles from one slice.
    """
    tiles = Tiles.open(request.tiles)
    truth = _truth(request.truth, tiles)
    known = np.array([str(name) in truth for name in tiles.ids], bool)
    if not known.any():
        raise DataError(
            f"{request.truth} says nothing of the tiles of {request.tiles}; image_id must be the same"
        )
    detector = Detector.open(request.detector)
    diameter = request.cell_diameter_um or detector.spec.cell_diameter_um
    tiles = tiles.take(known)
    log.info("looking at %d labelled tiles", len(tiles))
    data = look_at_labelled(tiles, truth, TileNetwork(detector), diameter, request.tolerance_cells)
    study = _compare(request, data, detector.spec.threshold)
    _write(request, study)
    return study


def _truth(path: Path, tiles: Tiles) -> GroundTruth:
    if path.is_dir():
        return GroundTruth.open(path)
    images, _, xy = read_point_table(path)
    sizes = {str(n): (int(h), int(w)) for n, (h, w) in zip(tiles.ids, tiles.shapes, strict=True)}
    use = np.array([name in sizes for name in images], bool)
    return GroundTruth.from_points(np.array(images, dtype=object)[use], xy[use], sizes)


def _compare(request: StudyRequest, data: Labelled, threshold: float) -> Study:
    """Every design in every repeat."""
    groups = _groups(data)
    n = int(groups.max()) + 1
    test = max(1, min(n - 1, round(request.held_out * n)))
    budget = request.budget or max(2, int(np.median(np.bincount(groups))) // 2)
    designs = designs_of(data, groups, n - test, budget, request.strategies)
    f1, auprc = np.full((2, request.repeats, len(designs), n), np.nan)
    ends = np.full((2, 2, request.repeats, n), np.nan)
    turns = _turns(n, test, request)
    for repeat, judges in enumerate(turns):
        rng = np.random.default_rng([request.seed, 1, repeat])
        rest = np.setdiff1d(np.arange(n), judges)
        held_out = {int(g): np.flatnonzero(groups == g) for g in judges}
        f1[repeat][:, judges] = auprc[repeat][:, judges] = 0.0
        for row, chosen in enumerate((None, np.flatnonzero(np.isin(groups, rest)))):
            for g, judged in judge_selection(data, chosen, held_out, threshold).items():
                ends[row, :, repeat, g] = judged.f1, judged.auprc
        for _ in range(request.draws):
            # The same animals for all strategies and numbers of slices: only what is compared differs.
            drawn, seed = rng.permutation(rest), int(rng.integers(2**31))
            for column, design in enumerate(designs):
                chosen = select(data, groups, drawn[: design.animals], design, budget, seed)
                for g, judged in judge_selection(data, chosen, held_out, threshold).items():
                    f1[repeat, column, g] += judged.f1 / request.draws
                    auprc[repeat, column, g] += judged.auprc / request.draws
    study = Study(
        request.out,
        int(data.animal.max()) + 1,
        len(data.n_true),
        budget,
        test,
        designs,
        f1,
        auprc,
        ends[0],
        ends[1],
    )
    for name, values in (("F1", f1), ("AUPRC", auprc)):
        study.claims.extend(_claims(study, name, values))
    return study


def _turns(n: int, test: int, request: StudyRequest) -> list[Ints]:
    """Who judges in each repeat: everybody in turn, in random order, before anybody does again."""
    rng = np.random.default_rng([request.seed, 0])
    waiting: list[int] = []
    turns = []
    for _ in range(request.repeats):
        if len(waiting) < test:
            again = [int(g) for g in rng.permutation(n)]
            # Whoever still waits comes last in the next round, so that nobody judges twice in one turn.
            waiting = waiting + sorted(again, key=lambda g: g in waiting)
        turns.append(np.array(sorted(waiting[:test]), np.int64))
        waiting = waiting[test:]
    return turns


def _groups(data: Labelled) -> Ints:
    """What is held out together: animals, or sections where there is one animal."""
    groups = data.animal if data.animal.max() > 0 else data.section
    if groups.max() == 0:
        raise DataError("all tiles come from one slice: nothing to hold out, nothing to compare")
    return groups


def designs_of(
    data: Labelled, groups: Ints, training: int, budget: int, strategies: Sequence[str]
) -> list[Design]:
    """The ways to spend a budget that the data allow.

    Parameters
    ----------
    data : Labelled
    groups : ndarray of int64
        Animal of each tile.
    training : int
        Animals that are not held out.
    budget : int
    strategies : sequence of str

    Raises
    ------
    DataError
        No number of animals has so many tiles.
    """
    tiles = np.sort(np.bincount(groups))
    sections = np.array([len(np.unique(data.section[groups == g])) for g in range(int(groups.max()) + 1)])
    levels = [a for a in (1, 2, 4, 8, 16, 32) if a < training] + [training]
    # Whatever animals are drawn, they must have the budget.
    levels = [a for a in levels if a <= budget and tiles[:a].sum() >= budget and tiles[0] >= -(-budget // a)]
    if not levels:
        raise DataError(
            f"a budget of {budget} tiles is too large for {training} animals with {tiles[0]} to {tiles[-1]} tiles each"
        )
    slices = ("few", "many") if data.animal.max() > 0 and sections.max() > 1 else ("many",)
    return [Design(a, s, strategy) for a in levels for s in slices for strategy in strategies]


def select(data: Labelled, groups: Ints, animals: Ints, design: Design, budget: int, seed: int) -> Ints:
    """Choose the tiles of a design.

    Parameters
    ----------
    data : Labelled
    groups : ndarray of int64
        Animal of each tile.
    animals : ndarray of int64
        Those to choose from; the budget is spread evenly over them.
    design : Design
        "few" slices takes all tiles of a slice before the next; "many" takes one of each slice in turn.
    budget, seed : int

    Returns
    -------
    ndarray of int64
        Indices of `budget` tiles.
    """
    room = np.array([int((groups == a).sum()) for a in animals], np.int64)
    chosen = []
    for k, (animal, n) in enumerate(zip(animals, fill(budget, room), strict=True)):
        own = np.flatnonzero(groups == animal)
        sections, member, size = np.unique(data.section[own], return_inverse=True, return_counts=True)
        if design.slices == "few":
            wanted = int(np.searchsorted(np.cumsum(np.sort(size)[::-1]), n) + 1)
        else:
            wanted = min(len(sections), int(n))
        picked = _sections(data, own, member, len(sections), wanted, design.strategy, seed + k)
        quota = _section_quota(int(n), size, picked)
        for section in np.flatnonzero(quota):
            rows = own[member == section]
            some = choose(
                design.strategy, int(quota[section]), data.place[rows], data.feature[rows], data.doubt[rows],
                seed + 1000 * k + int(section),
            )  # fmt: skip
            chosen.append(rows[some])
    return np.sort(np.concatenate(chosen))


def _sections(data: Labelled, own: Ints, member: Ints, n: int, wanted: int, strategy: str, seed: int) -> Ints:
    """Sections of one animal, by the strategy: a section is what its tiles are on average."""
    mean = np.stack([data.feature[own[member == s]].mean(axis=0) for s in range(n)])
    doubt = np.array([data.doubt[own[member == s]].mean() for s in range(n)])
    place = np.stack([data.place[own[member == s]].mean(axis=0) for s in range(n)])
    return choose(strategy, wanted, place, mean, doubt, seed)


def _section_quota(n: int, size: Ints, picked: Ints) -> Ints:
    """Tiles of each section: evenly over those that were picked, the rest over the others."""
    quota = np.zeros_like(size)
    quota[picked] = fill(min(n, int(size[picked].sum())), size[picked])
    left = n - int(quota.sum())
    return quota + fill(left, size - quota) if left else quota


def _claims(study: Study, name: str, values: Floats) -> list[Claim]:
    """The review's statements, held against one measure."""
    levels = sorted({d.animals for d in study.designs})
    claims = []
    text = "many animals with few tiles each beat few animals with many"
    if len(levels) > 1 and study.animals > 1:
        gain = study.mean_of(values, animals=levels[-1]) - study.mean_of(values, animals=levels[0])
        measure = f"{name} with {levels[-1]} animals minus {levels[0]}"
        claims.append(_better(study, text, measure, gain))
    else:
        claims.append(Claim(text, "not tested", "the data allow one number of animals only"))
    text = "many slices of an animal beat few, at equal animals"
    if {d.slices for d in study.designs} == {"few", "many"}:
        gain = study.mean_of(values, slices="many") - study.mean_of(values, slices="few")
        claims.append(_better(study, text, f"{name} with many slices minus few", gain))
    else:
        claims.append(Claim(text, "not tested", "the data have one slice of each animal"))
    strategies = {d.strategy for d in study.designs}
    plain = [s for s in ("random", "even") if s in strategies]
    for strategy in ("active", "uncertain"):
        text = f"random or even choice does as well as {strategy}"
        if strategy not in strategies or not plain:
            claims.append(Claim(text, "not tested", "one of them was left out"))
            continue
        base = np.mean([study.mean_of(values, strategy=s) for s in plain], axis=0)
        mean, low, high = study.interval(study.mean_of(values, strategy=strategy) - base)
        # A gain within the margin is as well, however sure it is.
        verdict = "confirmed" if high < _MARGIN else "contradicted" if low > 0 else "not decided"
        claims.append(
            Claim(text, verdict, f"{name} of {strategy} minus mean of {' and '.join(plain)}", mean, low, high)
        )
    return claims


def _better(study: Study, text: str, measure: str, gain: Floats) -> Claim:
    mean, low, high = study.interval(gain)
    verdict = "confirmed" if low > 0 else "contradicted" if high < 0 else "not decided"
    return Claim(text, verdict, measure, mean, low, high)


def _write(request: StudyRequest, study: Study) -> None:
    from brainmap.crowd.loop.study_report import write_study_report

    request.out.mkdir(parents=True, exist_ok=True)
    with (
        atomic_path(request.out / "study.csv") as part,
        part.open("w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("animals", "slices", "strategy", "repeat", "judged_on", "f1", "auprc"))
        for repeat, column, animal in np.argwhere(~np.isnan(study.f1)):
            d, at = study.designs[column], (repeat, column, animal)
            writer.writerow(
                (
                    d.animals,
                    d.slices,
                    d.strategy,
                    repeat,
                    animal,
                    f"{study.f1[at]:.6f}",
                    f"{study.auprc[at]:.6f}",
                )
            )
    write_study_report(request.out / "report.html", request, study)
    write_json(request.out / "study.json", {
        "tiles": study.tiles, "animals": study.animals, "budget": study.budget, "held_out_animals": study.held_out,
        "repeats": len(study.f1), "without_annotation": np.nanmean(study.nothing, axis=(1, 2)),
        "with_all": np.nanmean(study.everything, axis=(1, 2)), "claims": study.claims,
    })  # fmt: skip
