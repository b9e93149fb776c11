"""The commands: options reach the room, refusals are a sentence and a code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from brainmap.cli.main import app
from brainmap.crowd import sampling
from brainmap.crowd.loop import study

runner = CliRunner()


def test_sample_passes_its_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[sampling.SampleRequest] = []

    class Made:
        def as_dict(self) -> dict[str, Any]:
            return {"tiles": 12}

    def spy(request: sampling.SampleRequest) -> Made:
        asked.append(request)
        return Made()

    monkeypatch.setattr(sampling, "sample_tiles", spy)
    out = runner.invoke(app, [
        "crowd", "sample", "a", "b", "--out", str(tmp_path / "t"), "--regions", "ISO, STR", "--tile", "64", "--budget",
        "40", "--strategy", "active", "--qc", "3", "--datasets", "2", "--seed", "9", "--json",
    ])  # fmt: skip
    assert out.exit_code == 0, out.output
    assert json.loads(out.stdout) == {"tiles": 12}
    expected = sampling.SampleRequest(
        (Path("a"), Path("b")), tmp_path / "t", ("ISO", "STR"), 64, 40, "active", 3, 2, seed=9
    )
    assert asked == [expected]


def test_study_passes_its_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[study.StudyRequest] = []

    class Found:
        def lines(self) -> list[tuple[str, str]]:
            return [("confirmed", "all of it")]

    def spy(request: study.StudyRequest) -> Found:
        asked.append(request)
        return Found()

    monkeypatch.setattr(study, "run_study", spy)
    words = [
        "crowd",
        "study",
        "t",
        "g",
        "--out",
        "o",
        "--budget",
        "6",
        "--strategies",
        "even,random",
        "--draws",
        "2",
    ]
    out = runner.invoke(app, words)
    assert out.exit_code == 0, out.output
    assert "all of it" in out.stdout
    expected = study.StudyRequest(
        Path("t"), Path("g"), Path("o"), budget=6, strategies=("even", "random"), draws=2
    )
    assert asked == [expected]


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["sample", "nowhere", "--out", "t"], 1, "nowhere is not a run folder"),
        (["sample", "nowhere", "--out", "t", "--strategy", "best"], 2, "--strategy is 'best'"),
        (["sample", "nowhere", "--out", "t", "--budget", "3"], 2, "--budget 3 is too small: 5 QC tiles"),
        (["study", "nowhere", "g", "--out", "o"], 1, "nowhere is no tile folder"),
        (["round", "site", "p", "--out", "o", "--from", "nothing"], 1, "nothing"),
    ],
)
def test_refusals(
    words: list[str], code: int, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = runner.invoke(app, ["crowd", *words])
    assert out.exit_code == code, out.output
    assert sentence in out.stderr
    assert len(out.stderr.strip().splitlines()) == 1
