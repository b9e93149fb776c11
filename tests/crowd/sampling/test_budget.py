"""The budget goes to animals first, then to regions; data sets are equal mixes."""

from __future__ import annotations

import numpy as np
import pytest

from brainmap.crowd.sampling.budget import deal, fill, spread


def test_animals_get_equal_shares_and_regions_within_them() -> None:
    quota = spread(24, np.full((4, 3), 100))
    assert quota.tolist() == [[2, 2, 2]] * 4


def test_what_an_animal_lacks_goes_to_the_others() -> None:
    quota = spread(20, np.array([[1, 1], [50, 50], [50, 50]]))
    assert quota.sum(axis=1).tolist() == [2, 9, 9]
    assert quota.sum() == 20


def test_leftovers_of_animals_go_to_different_regions() -> None:
    # Four tiles for each of three animals and three regions: one region gets two, each time another.
    quota = spread(12, np.full((3, 3), 10))
    assert quota.sum(axis=1).tolist() == [4, 4, 4]
    assert quota.sum(axis=0).tolist() == [4, 4, 4]


def test_more_animals_than_tiles_gives_one_each_to_as_many_as_it_reaches() -> None:
    quota = spread(3, np.full((5, 2), 10))
    assert sorted(quota.sum(axis=1).tolist()) == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("budget", [None, 1000])
def test_a_budget_beyond_what_there_is_takes_all(budget: int | None) -> None:
    available = np.array([[3, 0], [2, 7]])
    np.testing.assert_array_equal(spread(budget, available), available)


@pytest.mark.parametrize("seed", range(20))
def test_fill_is_as_even_as_the_room_allows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    room = rng.integers(0, 12, 6)
    amount = int(rng.integers(0, room.sum() + 1))
    level = fill(amount, room)
    assert level.sum() == amount
    assert (level <= room).all()
    unfilled = level[level < room]
    # Whoever has room left is at most one below the fullest.
    if len(unfilled):
        assert level.max() - unfilled.min() <= 1


def test_fill_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        fill(5, np.array([2, 2]))


def test_data_sets_have_equal_mixes_of_regions_and_animals() -> None:
    region = np.repeat(np.arange(5), 12)
    animal = np.tile(np.repeat(np.arange(4), 3), 5)
    load = np.random.default_rng(0).integers(0, 60, 60).astype(float)
    hand = deal([region, animal], 3, load, seed=0)
    for group in (region, animal):
        for value in np.unique(group):
            assert np.bincount(hand[group == value], minlength=3).tolist() == [np.sum(group == value) / 3] * 3
    work = np.bincount(hand, load, 3)
    assert work.max() - work.min() < 0.12 * load.sum()


@pytest.mark.parametrize("seed", range(10))
def test_uneven_numbers_differ_by_one_at_most(seed: int) -> None:
    rng = np.random.default_rng(seed)
    region, animal = rng.integers(0, 4, 53), rng.integers(0, 5, 53)
    hand = deal([region, animal], 4, rng.random(53), seed)
    assert np.ptp(np.bincount(hand, minlength=4)) <= 1
    for value in range(4):
        assert np.ptp(np.bincount(hand[region == value], minlength=4)) <= 1
    for value in range(5):
        assert np.ptp(np.bincount(hand[animal == value], minlength=4)) <= 3
