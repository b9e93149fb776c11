from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from brainmap.cli.main import app
from brainmap.cohort.planning import brains
from brainmap.cohort.planning.brains import plan_study, read_study, run_study
from brainmap.cohort.simulate import Simulation, simulate, write_runs
from brainmap.cohort.study import CompareSettings
from brainmap.errors import DataError, NotFoundError, UsageError
from brainmap.phantom import write_phantom
from brainmap.run.request import DetectRequest
from brainmap.run_folder import REGIONS_CSV, RunRecord

HEADER = "brain,animal,group,orientation,channel,voxel-size,sex"
ROWS = [f'b{i}.zarr,m{i},{"saline" if i < 3 else "drug"},asr,0,"5,2,2",{"fm"[i % 2]}' for i in range(6)]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    for i in range(6):
        (tmp_path / f"b{i}.zarr").mkdir()
        (tmp_path / f"b{i}.zarr" / "zarr.json").write_text("{}")
    path = tmp_path / "study.csv"
    path.write_text("\n".join([HEADER, *ROWS]) + "\n")
    return path


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """In place of detection: runs of a simulated study are written; their names in order."""
    cohort = simulate(
        Simulation(animals=(3, 3), regions=40, planted=4, fold=8, fewest=100, dispersion=0.02), 1
    )
    write_runs(cohort, tmp_path / "made")
    done: list[str] = []

    def detect(request: DetectRequest) -> None:
        name = request.out.name
        done.append(name)
        RunRecord(status="running", parameters=request.parameters(), machine={}).save(request.out)
        source = tmp_path / "made" / "runs" / f"m0{name[1]}" / REGIONS_CSV
        (request.out / REGIONS_CSV).write_bytes(source.read_bytes())
        RunRecord(status="complete", parameters=request.parameters(), machine={}).save(request.out)

    monkeypatch.setattr(brains, "detect_brain", detect)
    return done


def test_columns_are_options_of_detect_or_of_the_comparison(table: Path) -> None:
    found = read_study(table)
    assert found.brain[0] == str(table.parent / "b0.zarr")
    assert found.options[0] == {"orientation": "asr", "channel": 0, "voxel-size": "5,2,2"}
    assert found.columns == {"sex": tuple("fmfmfm")}
    plan = plan_study(table, table.parent / "out")
    assert plan.requests[0].voxel_um == (5, 2, 2) and plan.runs[1] == table.parent / "out" / "runs" / "m1"


def test_from_brains_to_a_comparison(table: Path, counted: list[str]) -> None:
    out = table.parent / "out"
    done = CliRunner().invoke(app, ["study", str(table), "--out", str(out), "--covariate", "sex", "-q"])
    assert done.exit_code == 0, done.output
    assert counted == [f"m{i}" for i in range(6)]
    assert (out / "groups.csv").read_text().splitlines()[1] == "runs/m0,m0,saline,f"
    result = pd.read_csv(out / "comparison" / "comparison.csv")
    assert (result.query("measure == 'count'")["called"] == "yes").sum() >= 3
    again = CliRunner().invoke(app, ["study", str(table), "--out", str(out), "--dry-run"])
    assert again.output.count("done") == 6 and "to detect" not in again.output


def test_an_interrupted_study_goes_on_where_it_was(
    table: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    detect = brains.detect_brain

    def interrupted(request: DetectRequest) -> None:
        if request.out.name == "m3":
            raise KeyboardInterrupt
        detect(request)

    monkeypatch.setattr(brains, "detect_brain", interrupted)
    plan = plan_study(table, table.parent / "out")
    with pytest.raises(KeyboardInterrupt):
        run_study(plan)
    assert counted == ["m0", "m1", "m2"] and not (plan.out / "comparison").exists()
    assert [request.out.name for request in plan.waiting()] == ["m3", "m4", "m5"]
    monkeypatch.setattr(brains, "detect_brain", detect)
    run_study(plan, CompareSettings(measure="count"))
    assert counted == [f"m{i}" for i in range(6)] and (plan.out / "comparison" / "report.html").exists()


def test_other_options_are_another_run(table: Path, counted: list[str]) -> None:
    out = table.parent / "out"
    run_study(plan_study(table, out), CompareSettings(measure="count"))
    table.write_text(table.read_text().replace("m2,saline,asr", "m2,saline,psl"))
    plan = plan_study(table, out, overwrite=True)
    assert [request.out.name for request in plan.waiting()] == ["m2"]
    assert plan.requests[2].overwrite and not plan.requests[1].overwrite


def test_a_brain_that_fails_does_not_keep_the_others(
    table: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    detect = brains.detect_brain

    def failing(request: DetectRequest) -> None:
        if request.out.name == "m1":
            raise DataError("the image is damaged")
        detect(request)

    monkeypatch.setattr(brains, "detect_brain", failing)
    plan = plan_study(table, table.parent / "out")
    with pytest.raises(DataError, match=r"1 of 6 brains could not be detected \(m1: the image is damaged\)"):
        run_study(plan)
    assert len(counted) == 5 and not (plan.out / "comparison").exists()


def test_finished_runs_are_taken_as_they_are(table: Path, counted: list[str], tmp_path: Path) -> None:
    lines = table.read_text().splitlines()
    table.write_text(
        "\n".join([f"{lines[0]},run", *(f"{line}," for line in lines[1:6]), ",m9,drug,,,,m,made/runs/m05"])
        + "\n"
    )
    run_study(plan_study(table, tmp_path / "out"), CompareSettings(measure="count"))
    assert counted == [f"m{i}" for i in range(5)]
    assert (tmp_path / "out" / "groups.csv").read_text().splitlines()[-1].endswith("made/runs/m05,m9,drug,m")


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (("group", "kind"), DataError, "has no column group"),
        (("b1.zarr", ""), DataError, "line 3: there is no brain"),
        (("m1", "m0"), DataError, "the animal m0 is listed twice"),
        (("b1.zarr", "b0.zarr"), DataError, "the brain b0.zarr is listed twice"),
        (("m1", "m 0"), None, ""),
        (("m1,", "m/0,"), None, ""),
        (("asr,0", "asr,one"), UsageError, "m0: --channel: cannot use the value"),
        (("asr,0", "asq,0"), UsageError, "orientation"),
    ],
)
def test_tables_that_are_refused(
    table: Path, change: tuple[str, str], error: type[Exception] | None, says: str
) -> None:
    table.write_text(table.read_text().replace(*change))
    if error is None:
        names = [run.name for run in plan_study(table, table.parent / "out").runs]
        assert names[1] == "m_0"
    else:
        with pytest.raises(error, match=says):
            plan_study(table, table.parent / "out")


def test_what_is_not_there(table: Path) -> None:
    with pytest.raises(NotFoundError, match="no table of a study"):
        plan_study(table.parent / "nothing.csv", table.parent / "out")
    table.write_text("brain,animal,group\n")
    with pytest.raises(DataError, match="lists no brain"):
        plan_study(table, table.parent / "out")


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_six_phantom_animals_from_volumes_to_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way with the real detector, interrupted after two brains; two structures were changed."""
    lines: list[str] = []
    atlas: Any = None
    for i in range(6):
        treated = i >= 3
        changes = {"STR": 3.0, "ISO2/3": 0.3} if treated else None
        phantom = write_phantom(tmp_path / f"p{i}", seed=i, size="tiny", changes=changes)
        atlas = phantom.atlas
        lines.append(f"p{i}/{phantom.brain.name},a{i},{'drug' if treated else 'saline'}")
    table = tmp_path / "study.csv"
    table.write_text("\n".join(["brain,animal,group", *lines]) + "\n")
    config = tmp_path / "detect.toml"
    config.write_text(f'channel = 0\nregistration-channel = 1\natlas = "{atlas}"\n')
    detect, calls = brains.detect_brain, []

    def interrupted(request: DetectRequest) -> Any:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(request.out.name)
        return detect(request)

    monkeypatch.setattr(brains, "detect_brain", interrupted)
    command = ["study", str(table), "--out", str(tmp_path / "out"), "--config", str(config), "-q"]
    options = ["--level", "leaf", "--absolute"]
    assert CliRunner().invoke(app, [*command, *options]).exit_code == 130
    monkeypatch.setattr(brains, "detect_brain", detect)
    done = CliRunner().invoke(app, [*command, *options])
    assert done.exit_code == 0, done.output
    result = pd.read_csv(tmp_path / "out" / "comparison" / "comparison.csv")
    counts = result[result["measure"] == "count"].set_index("acronym")
    assert counts.loc["STR", "log2_ratio"] > 0.8 and counts.loc["ISO2/3", "log2_ratio"] < -0.8
    smallest = counts["p"].nsmallest(2).index
    assert set(smallest) == {"STR", "ISO2/3"}
    assert (tmp_path / "out" / "comparison" / "report.html").stat().st_size > 50_000
