"""Which tiles need another worker, on answers whose state is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from brainmap.crowd.work.certainty import CertaintyRule, undecided
from brainmap.errors import DataError, UsageError

SIZES = {
    "agreed": (100, 100),
    "split": (100, 100),
    "few": (100, 100),
    "untouched": (100, 100),
    "qc": (100, 100),
}
CELLS = [(x, y) for x in range(10, 100, 20) for y in range(10, 100, 20)]


def answers(seed: int = 0) -> tuple[dict[str, list[Any]], list[tuple[str, str, bool]]]:
    """Six workers: they agree on one tile, half of the cells of another are clicked by chance, two saw the third."""
    rng = np.random.default_rng(seed)
    clicks: dict[str, list[Any]] = {"image_id": [], "worker_id": [], "x": [], "y": []}
    assigned = []
    for name, workers in (("agreed", 6), ("split", 6), ("few", 2), ("qc", 6)):
        for w in range(workers):
            assigned.append((name, f"w{w}", True))
            for k, (x, y) in enumerate(CELLS):
                if name == "split" and k % 2 and rng.random() > 0.5:
                    continue
                dx, dy = rng.normal(0, 0.5, 2)
                for column, value in zip(clicks.values(), (name, f"w{w}", x + dx, y + dy), strict=True):
                    column.append(value)
    return clicks, assigned


def test_agreement_ends_a_tile_and_doubt_keeps_it() -> None:
    states = undecided(*answers(), sizes=SIZES, qc=["qc"])
    assert list(states) == ["agreed", "few", "split", "untouched"]
    assert (states["agreed"].more, states["agreed"].why, states["agreed"].n_cells) == (
        False,
        "certain",
        len(CELLS),
    )
    assert (states["few"].more, states["few"].why, states["few"].n_workers) == (True, "few", 2)
    assert (states["untouched"].more, states["untouched"].why) == (True, "few")
    assert states["split"].n_undecided > 0 and states["split"].why == "undecided"


def test_twelve_workers_are_enough_and_three_the_least() -> None:
    clicks, assigned = answers()
    states = undecided(clicks, assigned, sizes=SIZES, rule=CertaintyRule(least=3, most=6))
    assert (states["split"].more, states["split"].why) == (False, "most")
    states = undecided(clicks, assigned, sizes=SIZES, rule=CertaintyRule(least=8))
    assert states["agreed"].why == "few"
    assert CertaintyRule() == CertaintyRule(3, 12, 0.1, 0.9, 0.0)


def test_a_worker_who_did_not_finish_is_not_counted() -> None:
    clicks, assigned = answers()
    begun = [(tile, worker, worker != "w0") for tile, worker, _ in assigned]
    assert undecided(clicks, begun, sizes=SIZES)["agreed"].n_workers == 5


def test_what_is_tolerated_ends_a_tile() -> None:
    states = undecided(*answers(), sizes=SIZES, rule=CertaintyRule(tolerated=1.0))
    assert states["split"].why == "certain"


def test_the_answer_does_not_depend_on_the_order_of_what_is_given() -> None:
    clicks, assigned = answers()
    order = np.random.default_rng(0).permutation(len(clicks["x"]))
    mixed = {name: [values[i] for i in order] for name, values in clicks.items()}
    assert undecided(mixed, assigned[::-1], sizes=SIZES) == undecided(clicks, assigned, sizes=SIZES)


def test_a_project_that_nobody_began_needs_workers_everywhere() -> None:
    nothing: dict[str, list[Any]] = {"image_id": [], "worker_id": [], "x": [], "y": []}
    states = undecided(nothing, [], sizes=SIZES)
    assert all(state.why == "few" for state in states.values()) and len(states) == 5


def test_tiles_finished_without_a_click_are_decided() -> None:
    nothing: dict[str, list[Any]] = {"image_id": [], "worker_id": [], "x": [], "y": []}
    states = undecided(nothing, [("few", f"w{i}", True) for i in range(3)], sizes={"few": (50, 50)})
    assert (states["few"].n_workers, states["few"].n_cells, states["few"].why) == (3, 0, "certain")


@pytest.mark.parametrize(
    "values", [{"least": 0}, {"least": 5, "most": 4}, {"low": 0.9, "high": 0.1}, {"tolerated": -1.0}]
)
def test_rules_that_make_no_sense_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        CertaintyRule(**values)


def test_an_id_that_cannot_be_a_file_is_refused() -> None:
    with pytest.raises(DataError):
        undecided({"image_id": ["../x"], "worker_id": ["w"], "x": [1], "y": [1]}, [], sizes={"../x": (9, 9)})
