from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from brainmap.cli.main import app
from brainmap.errors import NotFoundError
from brainmap.infer.block.process import COLUMNS
from brainmap.infer.engine import results
from brainmap.run_folder import RunRecord
from brainmap.view.status import run_status

START = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)


def running(folder: Path, batches: int, failed: dict[str, str] | None = None) -> Path:
    """A run that has finished a batch of four blocks every ten seconds, of a hundred blocks."""
    results.open_plan(
        folder, {"threshold": 0.5, "block_count": [2, 5, 10], "device": "cpu", "backend": "openvino"}
    )
    for number in range(batches):
        columns = {name: np.ones(3, kind) for name, kind in COLUMNS.items()}
        block = np.full(3, 4 * number)
        path = results.write_batch(folder, (4 * number, 4 * number + 4), columns | {"block": block})
        moment = (START + timedelta(seconds=10 * (number + 1))).timestamp()
        os.utime(path, (moment, moment))
    record = RunRecord(
        status="running", started=START.isoformat(), blocks={"total": 100, "empty": 20, "failed": failed or {}},
        execution={"workers": 4}, machine={"cpu": "Chip", "cores": 8},
    )  # fmt: skip
    record.save(folder)
    return folder


def test_a_running_run(tmp_path: Path) -> None:
    found = run_status(running(tmp_path / "run", 5), price_per_hour=3.6, at=START + timedelta(seconds=60))
    assert (found.status, found.stage, found.done, found.total, found.empty) == (
        "running",
        "detecting",
        20,
        100,
        20,
    )
    assert found.cells == 15
    assert found.blocks_per_minute == pytest.approx(24)
    # 60 blocks are left.
    assert found.seconds_left == pytest.approx(150)
    assert found.seconds_since_news == pytest.approx(10)
    assert found.cost == pytest.approx(0.06)
    assert found.devices == ["Chip, 8 cores (openvino)", "4 workers"]


def test_a_run_that_has_gone_quiet_is_said_to_be(tmp_path: Path) -> None:
    found = run_status(running(tmp_path / "run", 5), at=START + timedelta(hours=2))
    assert (found.status, found.seconds_left) == ("quiet", None)


def test_before_and_after_the_blocks(tmp_path: Path) -> None:
    RunRecord(status="running", started=START.isoformat()).save(tmp_path / "early")
    early = run_status(tmp_path / "early", at=START + timedelta(seconds=5))
    assert (early.total, early.done, early.blocks_per_minute) == (None, 0, None)
    assert early.stage.startswith("before the detection")
    assert run_status(running(tmp_path / "late", 20), at=START).stage.startswith("after the detection")


def test_failed_blocks_keep_their_reasons_and_a_finished_run_its_time(run: Path) -> None:
    record = RunRecord.load(run)
    record.updated(
        status="incomplete", started=START.isoformat(), finished=(START + timedelta(minutes=3)).isoformat(),
        blocks=record.blocks | {"failed": {"1": "chunk 0/0/1 is damaged"}}, timings_s={"detection": 60.0},
    ).save(run)  # fmt: skip
    found = run_status(run)
    assert found.failed == {"1": "chunk 0/0/1 is damaged"}
    assert (found.elapsed_s, found.seconds_left, found.blocks_per_minute) == (180, None, 2)
    assert ("failed", "block 1: chunk 0/0/1 is damaged") in found.lines()


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="not a run folder"):
        run_status(tmp_path)


def test_the_command(run: Path, tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["status", str(run)])
    assert shown.exit_code == 0
    assert "2 done, 0 empty, 0 failed, 0 left, of 2" in shown.stdout
    as_json = CliRunner().invoke(app, ["status", str(run), "--json", "--watch", "--price", "2"])
    assert json.loads(as_json.stdout)["status"] == "complete"
    assert CliRunner().invoke(app, ["status", str(tmp_path / "none")]).exit_code == 1
