from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from brainmap.cli import doctor
from brainmap.cli.doctor import EXTRAS, Check, Report, examine


def by_name(report: Report) -> dict[str, Check]:
    return {check.name: check for check in report.checks}


def test_report_covers_what_matters(tmp_path: Path) -> None:
    checks = by_name(examine(tmp_path))
    assert {"brainmap", "CPU", "memory", "GPU", "OpenVINO", "detector", "ANTs", "atlases", "disk"} <= set(
        checks
    )
    assert {f"[{extra}]" for extra in EXTRAS} <= set(checks)
    assert checks["OpenVINO"].status == "ok"
    assert checks["ANTs"].status == "ok"
    assert "free" in checks["disk"].text


def test_missing_extras_come_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        doctor.importlib.util, "find_spec", lambda name: None if name == "neuroglancer" else real(name)
    )
    check = by_name(examine(tmp_path))["[view]"]
    assert (check.status, check.fix) == ("optional", "pip install 'brainmap[view]'")


def test_missing_atlases_are_no_problem_but_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BRAINMAP_ATLASES", str(tmp_path / "atlases"))
    monkeypatch.setenv("BRAINGLOBE_CONFIG_DIR", str(tmp_path))
    check = by_name(examine(tmp_path))["atlases"]
    assert check.status == "optional"
    assert str(tmp_path / "atlases") in check.text
    assert "--no-atlas" in check.fix


def test_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    report = examine(tmp_path)
    check = by_name(report)["disk"]
    assert check.status == "problem"
    assert "Read-only file system" in check.text
    assert not report.ok


def test_little_memory_is_a_problem() -> None:
    check = doctor._memory({"memory_bytes": 2 * doctor.GIB})
    assert check.status == "problem"
    assert "--workers 1" in check.fix


def test_text_says_what_to_do() -> None:
    checks = (Check("a", "ok", "fine"), Check("bcd", "problem", "bad", "mend it"))
    text = Report(checks, {}, {}).text()
    assert "!!  bcd  bad" in text
    assert "-> mend it" in text
    assert "missing" in text.splitlines()[-1]
    assert Report(checks[:1], {}, {}).text().splitlines()[-1] == "This machine can detect cells."
