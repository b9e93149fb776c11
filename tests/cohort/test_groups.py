from __future__ import annotations

from pathlib import Path

import pytest

from brainmap.cohort.groups import read_groups, require_columns
from brainmap.errors import BrainmapError, DataError, NotFoundError, UsageError

ROWS = ["m1,a1,control", "m2,a2,control", "m3,a3,treated", "m4,a4,treated"]


def write(folder: Path, header: str = "run,animal,group", rows: list[str] = ROWS) -> Path:
    for row in ["m1", "m2", "m3", "m4"]:
        (folder / row).mkdir(exist_ok=True)
    path = folder / "groups.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_runs_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path.parent)
    groups = read_groups(write(tmp_path))
    assert groups.run[0] == tmp_path.resolve() / "m1"
    assert groups.names == ("control", "treated") and groups.pairs == [("control", "treated")]
    assert groups.rows("treated").tolist() == [2, 3] and len(groups) == 4


def test_further_columns_are_kept_as_text(tmp_path: Path) -> None:
    rows = [f"{row},{sex},{age}" for row, sex, age in zip(ROWS, "fmfm", ["1", "", "03", "4"], strict=True)]
    groups = read_groups(write(tmp_path, "run,animal,group,sex,age", rows))
    assert groups.columns == {"sex": tuple("fmfm"), "age": ("1", "", "03", "4")}
    assert groups.values("sex") == tuple("fmfm") and groups.values("group")[0] == "control"


def test_a_design_can_stand_in_the_file(tmp_path: Path) -> None:
    remarks = "# formula: group + sex,,\n# contrast: change = treated - control\n# by hand\n"
    rows = [f"{row},{sex}" for row, sex in zip(ROWS, "fmfm", strict=True)]
    path = write(tmp_path, f"{remarks}run,animal,group,sex", rows)
    groups = read_groups(path)
    assert groups.formula == "group + sex" and groups.contrasts == ("change = treated - control",)
    assert groups.free and len(groups) == 4


def test_with_a_formula_groups_need_not_be_there(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "run,animal,dose",
        [f"{row.rpartition(',')[0]},{dose}" for row, dose in zip(ROWS, "0124", strict=True)],
    )
    assert read_groups(path, formula="dose").names == ("all",)
    with pytest.raises(DataError, match="no column group"):
        read_groups(path)


def test_an_animal_may_have_several_runs_where_they_are_compared(tmp_path: Path) -> None:
    rows = ["m1,a1,control", "m2,a2,control", "m3,a1,treated", "m4,a2,treated"]
    path = write(tmp_path, rows=rows)
    with pytest.raises(DataError, match=r"a1 is listed twice.*--paired animal"):
        read_groups(path)
    assert read_groups(path, paired="animal").labels[2] == "a1 (treated)"


def test_tables_as_spreadsheets_save_them(tmp_path: Path) -> None:
    path = write(tmp_path)
    text = path.read_text().replace(",", ";").replace("\n", "\r\n") + ";;\r\n\r\n"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_groups(path).animal == ("a1", "a2", "a3", "a4")


@pytest.mark.parametrize(
    ("header", "rows", "says"),
    [
        ("run,animal", ["m1,a1"], "no column group"),
        ("run,animal,group", [], "no animals"),
        ("run,animal,group", ROWS[:2], "all 2 animals are of group control"),
        ("run,animal,group", ROWS[:3], "group treated has one animal"),
        ("run,animal,group", [*ROWS, "m1,a5,treated"], "the run .* listed twice"),
        ("run,animal,group", [*ROWS[:3], "m4,a1,treated"], "the animal a1 is listed twice"),
        ("run,animal,group", [*ROWS[:3], "m4,,treated"], "line 5: there is no animal"),
        ("run,animal,group", [*ROWS[:3], "m4,a4"], "line 5: there is no group"),
        ("run,animal,group,sex,sex", ROWS, "two columns sex"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, header: str, rows: list[str], says: str) -> None:
    with pytest.raises(DataError, match=says):
        read_groups(write(tmp_path, header, rows))


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no table of groups"):
        read_groups(tmp_path / "nothing.csv")
    with pytest.raises(NotFoundError, match="no run folder gone"):
        read_groups(write(tmp_path, rows=[*ROWS, "gone,a5,treated"]))
    with pytest.raises(
        UsageError, match="--unit: the table of groups has no column sex; it has no further column"
    ):
        require_columns(read_groups(write(tmp_path)), ["sex"], "--unit")
    (tmp_path / "latin.csv").write_bytes("run,animal,group\nm1,Mäusle,k\n".encode("latin-1"))
    with pytest.raises(BrainmapError, match="UTF-8"):
        read_groups(tmp_path / "latin.csv")
