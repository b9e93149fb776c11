"""Marks are on the disk before anybody is told so, and the tables stay readable whatever they were."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from brainmap.errors import DataError, UsageError
from brainmap.run.cells import ImageFrame
from brainmap.run.marks import MARK_COLUMNS, read_marks
from brainmap.view.marks import MarkKeeper

SHAPE = (20, 30, 40)
FRAME = ImageFrame(SHAPE, (5.0, 2.0, 2.0), (0.0, 0.0, 0.0))


@pytest.fixture
def keeper(tmp_path: Path) -> MarkKeeper:
    return MarkKeeper(tmp_path, SHAPE)


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_marks_are_what_tune_reads(keeper: MarkKeeper, tmp_path: Path) -> None:
    keeper.mark((1, 2, 3.25), "yes", "Ann", "random")
    keeper.mark((4, 5, 6), "no")
    keeper.mark((7, 8, 9), "missed", sample="free")
    keeper.mark((7, 8, 19), "unsure", sample="hard")
    found = read_marks(tmp_path / "marks.csv", FRAME)
    assert found.word.tolist() == ["yes", "no", "missed"]
    assert found.zyx_vox[0].tolist() == [1, 2, 3.25]
    assert (found.unsure, found.hard) == (1, 0)
    header, first, *_ = rows(tmp_path / "marks.csv")
    assert tuple(header) == MARK_COLUMNS
    assert first[:4] == ["1.000", "2.000", "3.250", "yes"]
    assert first[5:] == ["Ann", "random"]


def test_undo_takes_back_what_was_said_last_of_either_kind(keeper: MarkKeeper, tmp_path: Path) -> None:
    keeper.mark((1, 2, 3), "yes")
    keeper.field((0, 0, 0), (5, 5, 5))
    keeper.mark((1, 2, 4), "no")
    assert (keeper.undo() or {})["mark"] == "no"
    assert (keeper.undo() or {})["z1"] == "5.000"
    assert rows(tmp_path / "fields.csv")[1:] == []
    assert [row["mark"] for row in keeper.marks.rows()] == ["yes"]
    # A new start knows no order; what is on the disk can still be taken back, one by one, and then nothing more.
    again = MarkKeeper(tmp_path, SHAPE)
    assert (again.undo() or {})["mark"] == "yes"
    assert again.undo() is None
    assert len(rows(tmp_path / "marks.csv")) == 1


@pytest.mark.parametrize(
    ("place", "word", "sample", "message"),
    [
        ((0, 0, 40), "yes", "free", "outside"),
        ((-1, 0, 0), "yes", "free", "outside"),
        ((float("nan"), 0, 0), "yes", "free", "outside"),
        ((0, 0, 0), "maybe", "free", "a mark is one of yes, no"),
        ((0, 0, 0), "yes", "easy", "a sample is one of random"),
    ],
)
def test_bad_marks_are_refused_and_write_nothing(
    keeper: MarkKeeper, tmp_path: Path, place: tuple[float, ...], word: str, sample: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        keeper.mark(place, word, sample=sample)
    assert not (tmp_path / "marks.csv").exists()


def test_fields_must_be_boxes(keeper: MarkKeeper) -> None:
    with pytest.raises(UsageError, match="ends before it starts"):
        keeper.field((3, 0, 0), (2, 5, 5))


def test_a_table_written_by_hand_is_widened_and_kept(tmp_path: Path) -> None:
    (tmp_path / "marks.csv").write_text("mark,z,y,x,note\nyes,1,2,3,bright")
    keeper = MarkKeeper(tmp_path, SHAPE)
    keeper.mark((4, 5, 6), "no", "Ann")
    header, first, second = rows(tmp_path / "marks.csv")
    assert header == ["mark", "z", "y", "x", "note", "at", "who", "sample"]
    assert first == ["yes", "1", "2", "3", "bright", "", "", ""]
    assert second[:5] == ["no", "4.000", "5.000", "6.000", ""]
    assert second[6:] == ["Ann", "free"]
    assert read_marks(tmp_path / "marks.csv", FRAME).word.tolist() == ["yes", "no"]


def test_a_line_that_was_cut_off_does_not_swallow_the_next(keeper: MarkKeeper, tmp_path: Path) -> None:
    keeper.mark((1, 2, 3), "yes")
    path = tmp_path / "marks.csv"
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    keeper.mark((4, 5, 6), "no")
    assert [row["mark"] for row in keeper.marks.rows()] == ["yes", "no"]


def test_something_else_of_that_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "marks.csv").write_text("# notes\nhello\n")
    with pytest.raises(DataError, match="move it away"):
        MarkKeeper(tmp_path, SHAPE).mark((1, 1, 1), "yes")
    assert (tmp_path / "marks.csv").read_text() == "# notes\nhello\n"


@pytest.mark.parametrize("name", ["=HYPERLINK(1)", "a\nb", "x" * 500, '"quoted", name'])
def test_names_cannot_break_the_table_or_run_in_a_spreadsheet(keeper: MarkKeeper, name: str) -> None:
    keeper.mark((1, 2, 3), "yes", name)
    (row,) = keeper.marks.rows()
    assert not row["who"].startswith("=")
    assert "\n" not in row["who"]
    assert len(row["who"]) <= 81
