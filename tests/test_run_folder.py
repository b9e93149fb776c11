from __future__ import annotations

from pathlib import Path

import pytest

from brainmap.errors import DataError, NotFoundError, UsageError
from brainmap.files import read_json, write_json
from brainmap.run_folder import RunRecord


def test_run_record_round_trip(tmp_path: Path) -> None:
    record = RunRecord(parameters={"threshold": 0.5}, fingerprints={"input": "ab"}, warnings=("dim",))
    record.updated(status="complete", results={"cells": 3}).save(tmp_path)
    loaded = RunRecord.load(tmp_path)
    assert loaded == record.updated(status="complete", results={"cells": 3})


def test_run_record_of_a_newer_brainmap_is_read(tmp_path: Path) -> None:
    RunRecord().save(tmp_path)
    content = read_json(tmp_path / "run.json") | {"mood": "good"}
    write_json(tmp_path / "run.json", content)
    assert RunRecord.load(tmp_path).status == "running"


@pytest.mark.parametrize("content", ['{"status": "fine"}', "[]", "{"])
def test_damaged_run_record_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(DataError, match=r"run\.json"):
        RunRecord.load(tmp_path)


def test_folder_without_run_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="is not a run folder"):
        RunRecord.load(tmp_path)


def test_run_record_status_is_checked() -> None:
    with pytest.raises(ValueError, match="status"):
        RunRecord(status="great")


def test_other_parameters_are_refused_by_name() -> None:
    record = RunRecord(parameters={"voxel_um": (5, 2, 2), "detector": "default"}, fingerprints={"input": "a"})
    record.require_same("out", {"voxel_um": [5.0, 2.0, 2.0], "detector": "default"}, {"input": "a"})
    with pytest.raises(UsageError, match=r"detector was default, is now other.*--overwrite") as caught:
        record.require_same("out", {"voxel_um": [5, 2, 2], "detector": "other"}, {"input": "b"})
    assert "input was a, is now b" in str(caught.value)
