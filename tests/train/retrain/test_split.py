"""Slices are dealt whole, and by their past."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from brainmap.tiles.tiles import Tiles
from brainmap.train.retrain.split import HELD_OUT, TEACHES, deal


def tiles(slices: int, each: int = 2, step_um: float = 100.0) -> Tiles:
    count = slices * each
    return Tiles(Path(), {
        "image_id": np.array([f"t{i}" for i in range(count)], object),
        "brain": np.array(["b"] * count, object),
        "z": np.repeat(np.arange(slices), each),
        "voxel_um": np.tile([step_um, 1.0, 1.0], (count, 1)),
    })  # fmt: skip


def parts(slices: int, seen: int = 0, judged: int = 0, **changes: float) -> list[int]:
    """Part of each slice; the first `seen` taught an ancestor, the next `judged` only judged."""
    z = np.repeat(np.arange(slices), 2)
    fold = deal(
        tiles(slices), z < seen, (z >= seen) & (z < seen + judged), 0.3, 3, int(changes.get("seed", 0))
    )
    assert (fold[::2] == fold[1::2]).all()
    return fold[::2].tolist()


@pytest.mark.parametrize("seed", range(5))
def test_every_new_slice_has_a_part(seed: int) -> None:
    found = parts(10, seed=seed)
    assert sorted(found) == [-1, -1, -1, 0, 0, 0, 1, 1, 2, 2]


def test_two_slices_leave_none_to_hold_out() -> None:
    assert sorted(parts(2)) == [0, 1]
    assert sorted(parts(3)) == [HELD_OUT, 0, 1]


@pytest.mark.parametrize(
    ("slices", "seen", "judged", "expected"),
    [
        (8, 4, 0, [TEACHES] * 4 + [HELD_OUT, 0, 1, 2]),  # a share of the new ones judges
        (8, 4, 2, [TEACHES] * 4 + [HELD_OUT, HELD_OUT, 0, 1]),  # those that judged go on; enough of them
        (5, 4, 0, [HELD_OUT, 0, 0, 1, 2]),  # the only new one judges; what calibrates was seen
        (5, 4, 1, [HELD_OUT, 0, 0, 1, 2]),
        (4, 4, 0, [0, 0, 1, 2]),  # nothing is unseen
        (3, 1, 0, [TEACHES, HELD_OUT, 0]),
        (2, 1, 0, [TEACHES, 0]),  # too few to hold one out: cross-fitting
    ],
)
def test_parts_follow_the_past(slices: int, seen: int, judged: int, expected: list[int]) -> None:
    for seed in range(4):
        found = parts(slices, seen, judged, seed=seed)
        assert sorted(found) == sorted(expected)
        if HELD_OUT in expected:
            assert HELD_OUT not in found[:seen]
            assert set(found[seen : seen + judged]) <= {HELD_OUT}


def test_slices_that_share_cells_are_dealt_in_runs() -> None:
    none = np.zeros(24, bool)
    for seed in range(4):
        fold = deal(tiles(12, step_um=5.0), none, none, 0.3, 3, seed, cell_diameter_um=10.0)[::2]
        # Each part is one run of neighbours.
        assert np.count_nonzero(np.diff(fold)) == 3
        assert np.count_nonzero(fold == HELD_OUT) == 4
