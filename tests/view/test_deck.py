"""The review deck: a person who knows the truth goes through it, and it finds what he knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brainmap.coords import vox_to_um
from brainmap.errors import UsageError
from brainmap.run.marks import read_marks
from brainmap.view.desk import Desk

from .conftest import ORIGIN_UM, SHOWN, VOXEL_UM, WEAK, places

UM = vox_to_um(places(), VOXEL_UM, ORIGIN_UM)


@pytest.fixture
def desk(run: Path) -> Desk:
    return Desk.open(run)


def answer(desk: Desk, card: dict[str, Any], wrong: set[int]) -> None:
    """Say of a card what is true: cells of the set are none, all others are, the weak ones included."""
    if card["kind"] == "cell":
        which = int(np.linalg.norm(UM - card["zyx_um"], axis=1).argmin())
        desk.review_answer({"kind": "cell", "key": card["key"], "mark": "no" if which in wrong else "yes",
                            "sample": card["sample"]})  # fmt: skip
        return
    weak = np.arange(len(UM)) % 5 == 0
    inside = ((card["low_um"] <= UM) & (card["high_um"] >= UM)).all(axis=1)
    desk.review_answer({"kind": "field", "key": card["key"], "missed": UM[inside & weak][:, 1:].tolist()})


def test_after_a_hundred_answers_it_says_how_good_the_counts_are(desk: Desk, run: Path) -> None:
    wrong = {number for number in range(len(UM)) if number % 5 and number % 4 == 0}
    kinds = []
    for _ in range(100):
        card = desk.review_next("random")
        assert card is not None
        kinds.append(card["kind"])
        answer(desk, card, wrong)
    assert 10 <= kinds.count("field") <= 20
    found = desk.review_result()
    assert found["enough"] is True
    true_precision = 1 - len(wrong) / SHOWN
    assert found["precision"].low < true_precision < found["precision"].high
    assert found["precision"].high - found["precision"].low < 0.25
    hits = SHOWN * true_precision
    true_recall = hits / (hits + WEAK)
    assert found["recall"].low < true_recall < found["recall"].high
    assert {row["division"]: row["cells"] for row in found["divisions"]}.keys() <= {"VS", "grey", "other"}
    # Everything else reads the same answers.
    marks = read_marks(run / "marks.csv", desk.run.frame)
    assert marks.number("yes") + marks.number("no") == kinds.count("cell")


def test_cards_do_not_come_twice_and_the_deck_goes_on_after_a_restart(desk: Desk, run: Path) -> None:
    seen = set()
    for _ in range(12):
        card = desk.review_next("random")
        assert card is not None
        seen.add((card["kind"], card["key"]))
        answer(desk, card, set())
    assert len(seen) == 12
    again = Desk.open(run).review_next("random")
    assert again is not None
    assert (again["kind"], again["key"]) not in seen
    assert again["answered"] == 12


def test_a_card_shows_nothing_of_the_score(desk: Desk) -> None:
    card = desk.review_next("random")
    assert card is not None
    assert set(card) == {"kind", "key", "zyx_um", "image", "answered", "sample"}


def test_undo_of_a_field_takes_its_marks_along(desk: Desk) -> None:
    field = None
    while field is None:
        card = desk.review_next("random")
        assert card is not None
        if card["kind"] == "field":
            field = card
        else:
            answer(desk, card, set())
    before = len(desk.keeper.marks.rows())
    y, x = (field["low_um"][1:] + field["high_um"][1:]) / 2
    free = [[y + dy, x + dx] for dy in (-15, 0, 15) for dx in (-15, 0, 15)]
    found = desk.review_answer({"kind": "field", "key": field["key"], "missed": [*free, [y + 4000, x]]})
    assert found["written"] > 2
    assert found["written"] + found["ignored"] == 10
    assert len(desk.keeper.marks.rows()) == before + found["written"]
    assert desk.deck.undo()["undone"]["sample"] == "random"
    assert len(desk.keeper.marks.rows()) == before
    again = desk.review_next("random")
    assert again is not None
    assert (again["kind"], again["key"]) == ("field", field["key"])


def test_hard_cells_are_kept_apart(desk: Desk, run: Path) -> None:
    for _ in range(10):
        card = desk.review_next("hard")
        assert card is not None
        answer(desk, card, set())
    assert {row["sample"] for row in desk.keeper.marks.rows()} == {"hard"}
    assert read_marks(run / "marks.csv", desk.run.frame).hard == 10
    result = desk.review_result()
    # A cell that is first in the random order too may count; others do not, or the sample would be no random one.
    assert result["judged"] <= 1
    with pytest.raises(UsageError, match="random or hard"):
        desk.review_next("easy")


def test_a_run_without_an_atlas_is_reviewed_as_a_whole(run: Path) -> None:
    import shutil

    shutil.rmtree(run / "registration")
    desk = Desk.open(run)
    for _ in range(20):
        card = desk.review_next("random")
        assert card is not None
        answer(desk, card, set())
    found = desk.review_result()
    assert [row["division"] for row in found["divisions"]] == ["whole image"]
    assert found["precision"].value == pytest.approx(1)
    assert found["more"] == 80
