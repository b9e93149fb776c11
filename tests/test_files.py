from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from brainmap.errors import DataError, NotFoundError
from brainmap.files import atomic_path, cell_text, fingerprint, plain_text, read_json, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_atomic_file_appears_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "table.csv"
    with atomic_path(target) as temporary:
        assert temporary.suffix == ".csv"
        assert temporary.parent == target.parent
        temporary.write_text("half")
        assert not target.exists()
    assert target.read_text() == "half"
    assert names(target.parent) == ["table.csv"]


def test_atomic_failure_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "table.csv"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="boom"), atomic_path(target) as temporary:
        temporary.write_text("new")
        raise RuntimeError("boom")
    assert target.read_text() == "old"
    assert names(tmp_path) == ["table.csv"]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_atomic_cleans_up_when_interrupted(tmp_path: Path, interruption: type[BaseException]) -> None:
    with pytest.raises(interruption), atomic_path(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "part").write_text("x")
        raise interruption
    assert names(tmp_path) == []


def test_atomic_folder_replaces_a_folder(tmp_path: Path) -> None:
    target = tmp_path / "image.zarr"
    for content in ("old", "new"):
        with atomic_path(target) as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert names(target) == ["new"]
    assert names(tmp_path) == ["image.zarr"]


def test_atomic_without_output_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing was written"), atomic_path(tmp_path / "a"):
        pass


def test_fingerprint_depends_on_values_only() -> None:
    first = fingerprint({"a": 1, "b": (1.5, None), "c": Path("x")})
    assert first == fingerprint({"c": "x", "b": [np.float64(1.5), None], "a": np.int8(1)})
    assert first != fingerprint({"a": 2, "b": (1.5, None), "c": "x"})
    assert len(first) == 64
    # The known answer of SHA-256.
    assert fingerprint(b"abc").startswith("ba7816bf8f01cfea")


@dataclass(frozen=True)
class Record:
    size: tuple[int, int]


def test_json_round_trip_of_scientific_values(tmp_path: Path) -> None:
    path = tmp_path / "a" / "x.json"
    write_json(path, {"z": np.arange(3), "nan": float("nan"), "record": Record((1, 2)), "µ": np.bool_(True)})
    assert read_json(path) == {"z": [0, 1, 2], "nan": None, "record": {"size": [1, 2]}, "µ": True}
    assert json.loads(path.read_text())["nan"] is None
    assert names(path.parent) == ["x.json"]


def test_json_of_unknown_things_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="object"):
        write_json(tmp_path / "x.json", object())
    assert names(tmp_path) == []


def test_read_json_says_where(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(DataError, match=r"bad\.json is not valid JSON"):
        read_json(tmp_path / "bad.json")
    with pytest.raises(NotFoundError, match=r"none\.json"):
        read_json(tmp_path / "none.json")


@pytest.mark.parametrize(
    "name", ["=1+2", "+a", "-5", "@sum", "'quoted", "''", "'=x", "\tx", "plain", "", "0001", "a=b", "'"]
)
def test_names_in_spreadsheets(name: str) -> None:
    """No cell starts as a formula does, and every name comes back as it was."""
    cell = cell_text(name)
    assert not cell.startswith(("=", "+", "-", "@", "\t"))
    assert plain_text(cell) == name


def test_tables_of_others_stay_as_they_are() -> None:
    assert plain_text("'tis") == "'tis"
