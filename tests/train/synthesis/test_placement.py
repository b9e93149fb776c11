"""Placement of cells: the study's rules one by one, and patterns learnt from known processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from brainmap.errors import DataError, NotFoundError, UsageError
from brainmap.train.synthesis.placement import FittedRules, Placement, StudyRules, contained
from brainmap.train.synthesis.point_process import CoxProcess, count_pairs, nearest_distances

Floats = NDArray[np.float64]
SIDE = 300
SHAPE = (SIDE, SIDE)


def uniform(tiles: int, mean: float, seed: int = 0) -> list[Floats]:
    rng = np.random.default_rng(seed)
    return [rng.uniform(-0.5, SIDE - 0.5, (rng.poisson(mean), 2)) for _ in range(tiles)]


def thomas(tiles: int, parents: float, children: float, spread: float) -> list[Floats]:
    """Clusters of Poisson many points around uniform parents, some of them beyond the tile."""
    rng = np.random.default_rng(1)
    rim, result = 4 * spread, []
    for _ in range(tiles):
        number = rng.poisson(parents * ((SIDE + 2 * rim) / SIDE) ** 2)
        middles = rng.uniform(-rim, SIDE + rim, (number, 2))
        parts = [m + rng.normal(0, spread, (rng.poisson(children), 2)) for m in middles]
        xy = np.concatenate([*parts, np.zeros((0, 2))])
        result.append(xy[((xy >= -0.5) & (xy < SIDE - 0.5)).all(axis=1)])
    return result


def apart(tiles: int, count: int, least: float) -> list[Floats]:
    rng = np.random.default_rng(2)
    result = []
    for _ in range(tiles):
        kept: list[Floats] = []
        while len(kept) < count:
            xy = rng.uniform(-0.5, SIDE - 0.5, 2)
            if not kept or np.hypot(*(np.array(kept) - xy).T).min() >= least:
                kept.append(xy)
        result.append(np.array(kept))
    return result


def drawn(process: CoxProcess, tiles: int = 30, shape: tuple[int, int] = SHAPE) -> list[Floats]:
    rng = np.random.default_rng(7)
    return [process.sample(shape, rng) for _ in range(tiles)]


# --- statistics of patterns


def test_pair_correlation_of_chance_is_one() -> None:
    points = uniform(60, 120)
    pairs = count_pairs(points, [SHAPE] * 60)
    many = pairs.found > 300
    assert many.sum() > 10
    np.testing.assert_allclose(pairs.correlation[many], 1, atol=0.12)


def test_pair_correlation_of_clusters_is_known() -> None:
    spread, parents = 8.0, 6.0
    points = thomas(120, parents, 10, spread)
    pairs = count_pairs(points, [SHAPE] * 120)
    density = parents / SIDE**2
    expected = 1 + np.exp(-(pairs.distance**2) / (4 * spread**2)) / (4 * np.pi * spread**2 * density)
    use = (pairs.distance > 3) & (pairs.distance < 60)
    np.testing.assert_allclose(pairs.correlation[use], expected[use], rtol=0.25)


def test_pairs_agree_with_counting_by_hand() -> None:
    xy = np.array([[0.0, 0.0], [3.0, 4.0], [100.0, 0.0]])
    pairs = count_pairs([xy, np.zeros((0, 2)), xy[:1]], [SHAPE] * 3, np.array([0.0, 6, 50, 101, 200]))
    np.testing.assert_array_equal(pairs.found, [1, 0, 2, 0])
    # Every pair of places has some distance.
    whole = count_pairs([xy], [SHAPE], np.linspace(0, SIDE * 1.5, 50))
    assert whole.expected.sum() == pytest.approx(3**2 / 2, rel=0.01)


def test_nearest_distances() -> None:
    xy = np.array([[0.0, 0.0], [3.0, 4.0], [100.0, 0.0]])
    np.testing.assert_allclose(np.sort(nearest_distances([xy, xy[:1]])), [5, 5, np.hypot(97, 4)])
    assert len(nearest_distances([xy[:1]])) == 0


# --- the learnt process


@pytest.mark.parametrize(
    ("points", "nearest"),
    [(uniform(40, 60), 0.08), (thomas(60, 5, 12, 9.0), 0.12), (apart(20, 60, 14.0), 0.25)],
    ids=["chance", "clusters", "apart"],
)
def test_reproduces_known_processes(points: list[Floats], nearest: float) -> None:
    process = CoxProcess.fit(points, [SHAPE] * len(points))
    made = drawn(process)
    truth, copy = (count_pairs(p, [SHAPE] * len(p)) for p in (points, made))
    sure = (truth.expected > 30) & (truth.found > 30) & (copy.found > 10)
    assert sure.sum() > 8
    difference = np.abs(np.log(truth.correlation[sure]) - np.log(copy.correlation[sure]))
    assert difference.mean() < 0.2
    counts, copies = (np.array([len(xy) for xy in p]) for p in (points, made))
    assert copies.mean() == pytest.approx(counts.mean(), rel=0.2)
    assert copies.std() < 2 * counts.std() + 1.4 * np.sqrt(counts.mean())
    assert ks_2samp(nearest_distances(points), nearest_distances(made)).statistic < nearest


def test_learns_what_was_put_in() -> None:
    chance = CoxProcess.fit(uniform(40, 60), [SHAPE] * 40)
    assert chance.clustering < 1 and chance.gradient < 0.1 and chance.excess < 0.02
    clusters = CoxProcess.fit(thomas(60, 5, 12, 9.0), [SHAPE] * 60)
    assert clusters.clustering > 5
    assert clusters.range_px[0] == pytest.approx(9.0 * np.sqrt(2), rel=0.25)


def test_keeps_the_least_distance() -> None:
    process = CoxProcess.fit(apart(20, 60, 14.0), [SHAPE] * 20)
    assert 14 <= process.least_px < 15
    assert nearest_distances(drawn(process)).min() >= process.least_px


def test_learns_a_gradient() -> None:
    rng = np.random.default_rng(3)
    points = []
    for _ in range(40):
        # Density falls off along a random side, by e^2 across the tile.
        xy = rng.uniform(-0.5, SIDE - 0.5, (150, 2))
        axis, sign = int(rng.integers(2)), rng.choice([-1, 1])
        points.append(xy[rng.random(150) < np.exp(-1 + sign * 2 * (xy[:, axis] / SIDE - 0.5))])
    process = CoxProcess.fit(points, [SHAPE] * 40)
    # The logarithm falls by 2 along a line: variance 2^2 / 12.
    assert process.gradient == pytest.approx(1 / 3, abs=0.1)

    def lopsided(tiles: list[Floats]) -> float:
        return float(np.mean([np.abs((xy > SIDE / 2).mean(axis=0) - 0.5).max() for xy in tiles if len(xy)]))

    # Many tiles: the mean over thirty strays by a quarter. Random hills are less lopsided than a straight slope.
    made = lopsided(drawn(process, 200))
    assert made > 1.4 * lopsided(uniform(200, 60))
    assert made > 0.5 * lopsided(points)


def test_smaller_tiles_are_cut_from_fitted_ones() -> None:
    points = thomas(60, 5, 12, 9.0)
    process = CoxProcess.fit(points, [SHAPE] * 60)
    made = drawn(process, 40, (150, 100))
    counts = np.array([len(xy) for xy in made])
    assert counts.mean() == pytest.approx(process.density * 150 * 100, rel=0.35)
    every = np.concatenate(made)
    assert every.min() >= -0.5 and every[:, 0].max() < 99.5 and every[:, 1].max() < 149.5


def test_counts_spread_as_they_do() -> None:
    rng = np.random.default_rng(5)
    even = [xy[: rng.poisson(30)] for xy in uniform(50, 200)]
    odd = [xy[: rng.poisson(rng.gamma(2, 15))] for xy in uniform(50, 200)]
    assert CoxProcess.fit(even, [SHAPE] * 50).excess < 0.1
    process = CoxProcess.fit(odd, [SHAPE] * 50)
    assert process.excess == pytest.approx(0.5, rel=0.5)
    counts = np.array([len(xy) for xy in drawn(process)])
    assert counts.std() > 1.5 * np.sqrt(counts.mean())


def test_too_few_points() -> None:
    with pytest.raises(DataError, match="from 3 points"):
        CoxProcess.fit([np.zeros((3, 2))], [SHAPE])
    with pytest.raises(DataError, match="12 points"):
        CoxProcess.fit([np.zeros((1, 2))] * 12, [SHAPE] * 12)


# --- the study's rules


def test_study_placement_stays_inside() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        centres, radii = Placement.study().sample((256, 400), rng)
        assert centres.shape == (len(radii), 2)
        assert (centres >= radii[:, None] - 1e-9).all()
        assert (centres <= np.array([399, 255]) - radii[:, None] + 1e-9).all()
        assert radii.min() >= 2 and radii.max() <= 8
        assert not contained(centres, radii).any()


def test_study_number_of_cells() -> None:
    rules = StudyRules(cells=(60, 20, 30, 100))
    rng = np.random.default_rng(0)
    counts = np.array([len(rules.sample((512, 512), rng)[0]) for _ in range(200)])
    assert counts.min() >= 30 and counts.max() <= 100
    assert counts.mean() == pytest.approx(62, abs=4)
    quarter = np.array([len(rules.sample((256, 256), rng)[0]) for _ in range(200)])
    assert quarter.mean() == pytest.approx(counts.mean() / 4, rel=0.1)


def test_study_clusters() -> None:
    rng = np.random.default_rng(0)
    one = StudyRules(clusters=(1, 1), linear_share=0, spread=(0.05, 0.05), cells=(80, 1, 79, 81))
    spread = [one.sample((512, 512), rng)[0].std(axis=0) for _ in range(30)]
    # Clipping at the border narrows some.
    assert np.median(spread) == pytest.approx(0.05 * 512, rel=0.15)
    line = StudyRules(clusters=(1, 1), linear_share=1, linear_spread=(0.001, 0.001), cells=(80, 1, 79, 81))
    thin = 0
    for _ in range(30):
        centres, _radii = line.sample((512, 512), rng)
        widths = np.sqrt(np.linalg.eigvalsh(np.cov(centres.T)))
        thin += widths[0] < 0.1 * widths[1]
    assert thin > 10  # the others are bent by clipping


def test_contained() -> None:
    centres = np.array([[0.0, 0.0], [1.0, 0.0], [10.0, 0.0], [10.0, 0.0], [13.0, 0.0]])
    radii = np.array([5.0, 3.0, 2.0, 2.0, 2.0])
    np.testing.assert_array_equal(contained(centres, radii), [False, True, False, True, False])
    assert contained(np.zeros((0, 2)), np.zeros(0)).shape == (0,)


def test_same_seed_same_cells() -> None:
    fitted = Placement.fit(thomas(20, 5, 12, 9.0), [SHAPE] * 20)
    for placement in (Placement.study(), fitted):
        first = placement.sample(SHAPE, np.random.default_rng(5))
        again = placement.sample(SHAPE, np.random.default_rng(5))
        other = placement.sample(SHAPE, np.random.default_rng(6))
        np.testing.assert_array_equal(first[0], again[0])
        np.testing.assert_array_equal(first[1], again[1])
        assert len(first[0]) != len(other[0]) or (first[0] != other[0]).any()


def test_radii_follow_those_known() -> None:
    known = np.random.default_rng(0).normal(7, 1, 500)
    placement = Placement.fit(uniform(20, 60), [SHAPE] * 20, radii=known)
    assert isinstance(placement.rules, FittedRules)
    _centres, radii = placement.rules.sample(SHAPE, np.random.default_rng(1))
    assert radii.mean() == pytest.approx(7, abs=0.5)
    assert radii.min() >= known.min() and radii.max() <= known.max()


# --- records


def test_records_come_back(tmp_path: Path) -> None:
    for placement in (
        Placement.study(StudyRules(cells=(5, 1, 2, 9))),
        Placement.fit(uniform(20, 60), [SHAPE] * 20),
    ):
        placement.save(tmp_path / "p.json")
        assert Placement.load(tmp_path / "p.json") == placement
        assert Placement.from_dict(placement.to_dict()) == placement


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"kind": "magic"}, "magic"),
        ({"clusters": [3]}, "give 2 numbers"),
        ({"clusters": [6, 3]}, "least first"),
        ({"cels": 3}, "unknown setting 'cels'"),
        ({"cells": [10, 0, 1, 2]}, "cells needs"),
        ({"linear_share": 2}, "within 0..1"),
        ({"kind": "fitted"}, "placement.process"),
    ],
)
def test_bad_records(record: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Placement.from_dict(record)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        Placement.load(tmp_path / "none.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(DataError, match="no placement"):
        Placement.load(tmp_path / "list.json")
