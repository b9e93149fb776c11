"""What each strategy takes, on tiles whose right answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from brainmap.crowd.sampling.quality import Quality, levels_of, reach
from brainmap.crowd.sampling.strategies import choose, choose_qc, representatives, standardised, statistics
from brainmap.tiles.tiles import QualityRule


def line(n: int) -> np.ndarray:
    return np.column_stack([np.arange(n), np.zeros(n), np.zeros(n)]).astype(float)


def test_even_leaves_equal_gaps_whatever_the_order_of_the_tiles() -> None:
    order = line(40)[np.random.default_rng(0).permutation(40)]
    for seed in range(5):
        z = np.sort(order[choose("even", 8, order, None, None, seed), 0])
        assert np.diff(z).tolist() == [5] * 7


def test_random_is_decided_by_its_seed() -> None:
    picks = [choose("random", 5, line(50), None, None, seed).tolist() for seed in (1, 1, 2)]
    assert picks[0] == picks[1] != picks[2]
    assert len(set(picks[0])) == 5


def test_active_takes_one_of_each_look() -> None:
    rng = np.random.default_rng(0)
    kind = np.repeat([0, 1, 2], [60, 8, 4])
    features = np.eye(3)[kind] * 10 + rng.normal(0, 0.3, (72, 3))
    chosen = choose("active", 3, line(72), features, None, 0)
    assert sorted(kind[chosen]) == [0, 1, 2]


def test_active_takes_the_typical_not_the_outlier() -> None:
    features = np.random.default_rng(0).normal(0, 1, (30, 2))
    (chosen,) = representatives(features, 1, np.ones(30), 0)
    assert np.linalg.norm(features[chosen] - features.mean(axis=0)) < 0.6


def test_uncertain_takes_doubtful_tiles_that_differ() -> None:
    doubt = np.zeros(60)
    doubt[:12] = np.linspace(5, 6, 12)
    features = np.zeros((60, 2))
    features[1:12:2, 0] = 10
    chosen = choose("uncertain", 2, line(60), features, doubt, 0)
    assert doubt[chosen].min() >= 5
    assert len(np.unique(features[chosen], axis=0)) == 2


def test_all_are_taken_where_there_are_no_more() -> None:
    for strategy in ("even", "random", "active", "uncertain"):
        assert choose(strategy, 9, line(4), None, None, 0).tolist() == [0, 1, 2, 3]


def test_tiles_that_all_look_alike_are_still_as_many_as_asked_for() -> None:
    chosen = representatives(np.zeros((10, 2)), 4, np.ones(10), 0)
    assert len(set(chosen.tolist())) == 4


def test_qc_tiles_cover_regions_and_animals_and_have_cells() -> None:
    region, animal = np.repeat(np.arange(5), 8), np.tile(np.arange(4), 10)
    cells = np.tile([0, 0, 0, 0, 9, 9, 9, 9], 5)
    features = np.random.default_rng(0).normal(size=(40, 3))
    qc = choose_qc(5, region, animal, cells, features, 0)
    assert sorted(region[qc]) == [0, 1, 2, 3, 4]
    assert len(set(animal[qc])) == 4
    assert cells[qc].min() == 9


def test_qc_tiles_of_one_region_look_different() -> None:
    features = np.r_[np.zeros((20, 1)), np.full((1, 1), 9.0)]
    qc = choose_qc(2, np.zeros(21, int), np.zeros(21, int), np.ones(21, int), features, 0)
    assert sorted(features[qc, 0]) == [0.0, 9.0]


def test_standardised_features_have_one_scale_and_survive_constant_ones() -> None:
    rng = np.random.default_rng(0)
    values = np.column_stack([rng.normal(0, 1000, 50), rng.normal(0, 0.001, 50), np.full(50, 7.0)])
    out = standardised(values)
    assert out.shape == (50, 2)
    assert 0.5 < out.std(axis=0).min() <= out.std(axis=0).max() < 1.01
    assert standardised(np.ones((4, 3))).tolist() == [[0.0]] * 4


def image_of(*parts: tuple[float, float]) -> np.ndarray:
    """An image with a share of its 10,000 pixels at each level."""
    values = np.concatenate([np.full(round(share * 10_000), level) for share, level in parts])
    return values.reshape(100, 100).astype(np.float32)


GOOD = ((0.4, 0.1), (0.59, 0.5), (0.01, 0.8))


@pytest.mark.parametrize(
    ("parts", "reasons"),
    [
        (GOOD, ()),
        (((0.5, 0.1), (0.49, 0.5), (0.01, 0.8)), ("background",)),
        (((0.4999, 0.1), (0.4901, 0.5), (0.01, 0.8)), ()),
        (((0.9, 0.3), (0.09, 0.35), (0.01, 0.8)), ("flat",)),
        (((0.4, 0.1), (0.5991, 0.5), (0.0009, 0.8)), ("dim",)),
        (((0.4, 0.1), (0.599, 0.5), (0.001, 0.8)), ()),
        (((1.0, 0.1),), ("background", "flat", "dim")),
    ],
)
def test_the_rule_at_known_histograms_of_a_brain_that_ends_at_0_8(
    parts: tuple[tuple[float, float], ...], reasons: tuple[str, ...]
) -> None:
    assert Quality(QualityRule(), 0.8).reasons(image_of(*parts)) == reasons


def test_on_the_scale_of_detection_the_same_tile_is_dim() -> None:
    assert Quality(QualityRule(), 1.0).reasons(image_of(*GOOD)) == ("dim",)


def test_a_brain_ends_where_its_grey_levels_do_but_for_dust() -> None:
    levels = levels_of(image_of(*GOOD)) * 100
    levels[255] = 50
    assert reach(levels) == pytest.approx(0.8)
    levels[255] = 5000
    assert reach(levels) == 1.0


def test_statistics_tell_cells_from_their_absence() -> None:
    flat = np.full((40, 40), 0.3, np.float32)
    spotted = flat.copy()
    spotted[::8, ::8] = 0.9
    assert statistics(spotted)[2] > statistics(flat)[2] + 0.01
