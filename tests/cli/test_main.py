"""The command line: parsing, printing, exit codes. What the commands compute is tested with the rooms."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from brainmap import __version__
from brainmap.cli import main as cli
from brainmap.errors import DataError, IncompleteRunError, MissingExtraError, UsageError
from brainmap.points.table import Points
from brainmap.run.request import DetectRequest

COMMANDS = ("demo", "detect", "register", "regions", "view", "convert", "evaluate", "doctor")


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def run() -> Callable[..., Result]:
    """Run a command in this process."""

    def invoke(*arguments: str | Path) -> Result:
        result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Result(result.exit_code, result.stdout, result.stderr)

    yield invoke
    logger = logging.getLogger("brainmap")
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


@dataclass(frozen=True)
class Summary:
    cells: int

    def __str__(self) -> str:
        return f"{self.cells} cells"


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[DetectRequest]:
    """Catches what `detect` would do."""
    import brainmap.run.detect as pipeline

    caught: list[DetectRequest] = []

    def detect_brain(request: DetectRequest) -> Summary:
        caught.append(request)
        return Summary(len(caught))

    monkeypatch.setattr(pipeline, "detect_brain", detect_brain)
    return caught


def volume(path: Path) -> Path:
    path.mkdir()
    (path / "zarr.json").write_text("{}")
    return path


def test_version_and_help(run: Callable[..., Result]) -> None:
    assert run("--version") == Result(0, f"brainmap {__version__}\n", "")
    shown = run("--help").out
    assert all(command in shown for command in COMMANDS)
    for command in COMMANDS:
        result = run(command, "-h")
        assert result.code == 0
        assert "--verbose" in result.out


def test_without_arguments_help_is_shown(run: Callable[..., Result]) -> None:
    result = run()
    assert result.code == 2
    assert "Usage" in result.out + result.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("bogus",),
        ("detect",),
        ("detect", "--bogus", "x"),
        ("detect", "x", "--threshold", "high"),
        ("evaluate", "a"),
    ],
)
def test_wrong_use_is_2(run: Callable[..., Result], arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert "Error" in result.err


def test_detect_passes_every_option(run: Callable[..., Result], requests: list, tmp_path: Path) -> None:
    brain = volume(tmp_path / "b.zarr")
    settings = tmp_path / "s.toml"
    settings.write_text("threshold = 0.9\nchannel = 3\n")
    result = run(
        "detect", brain, "--out", tmp_path / "run", "--channel", "1", "--registration-channel", "0",
        "--orientation", "psl", "--voxel-size", "5,2,2", "--atlas", "mine", "--detector", "d",
        "--cell-diameter", "9", "--roi", "0:5,:,:", "--block", "8,64,64", "--backend", "openvino",
        "--device", "cpu", "--mask", "m.zarr", "--workers", "2", "--scheduler", "tcp://h:1", "--overwrite",
        "--dry-run", "--export", "napari", "--export", "brainrender", "--config", settings, "-q",
    )  # fmt: skip
    assert (result.code, result.out, result.err) == (0, "1 cells\n", "")
    (made,) = requests
    assert made == DetectRequest(
        brain=str(brain), out=tmp_path / "run", channel=1, registration_channel=0, orientation="psl",
        voxel_um=(5.0, 2.0, 2.0), atlas="mine", detector="d", threshold=0.9, cell_diameter_um=9.0,
        roi=made.roi, block=(8, 64, 64), backend="openvino", device="cpu", mask=Path("m.zarr"), workers=2,
        scheduler="tcp://h:1", overwrite=True, dry_run=True, exports=("napari", "brainrender"), progress=False,
    )  # fmt: skip
    assert str(made.roi) == "0:5,0:,0:"


def test_detect_defaults_come_from_one_place(
    run: Callable[..., Result], requests: list, tmp_path: Path
) -> None:
    brain = volume(tmp_path / "b.zarr")
    assert run("detect", brain).code == 0
    assert requests == [DetectRequest(brain=str(brain), out=tmp_path / "b.zarr.brainmap")]
    assert run("detect", brain, "--no-atlas").code == 0
    assert requests[1].atlas is None


def test_detect_json(run: Callable[..., Result], requests: list, tmp_path: Path) -> None:
    brain = volume(tmp_path / "b.zarr")
    assert json.loads(run("detect", brain, "--json").out) == {"cells": 1}
    other = volume(tmp_path / "c.zarr")
    assert json.loads(run("detect", brain, other, "--json").out) == [{"cells": 2}, {"cells": 3}]


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (DataError("the chunk 0/1/2 is cut"), 1, "the chunk 0/1/2 is cut"),
        (UsageError("--roi is odd"), 2, "--roi is odd"),
        (IncompleteRunError("2 blocks are missing"), 3, "2 blocks are missing"),
        (MissingExtraError("torch", "train", "train"), 1, "pip install 'brainmap[train]'"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device", "/x/y"), 1, "/x/y: No space left on device"),
        (MemoryError(), 1, "out of memory"),
        (ZeroDivisionError("oh"), 1, "unexpected ZeroDivisionError: oh"),
    ],
)
def test_errors_are_one_sentence_and_a_code(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    error: BaseException, code: int, sentence: str,
) -> None:  # fmt: skip
    def fail(request: DetectRequest) -> None:
        raise error

    monkeypatch.setattr("brainmap.run.detect.detect_brain", fail)
    brain = volume(tmp_path / "b.zarr")
    result = run("detect", brain)
    assert result.code == code
    assert result.out == ""
    assert sentence in result.err
    assert result.err.count("\n") == 1
    assert "Traceback" in run("detect", brain, "-vv").err


def test_a_failed_brain_does_not_keep_the_next_from_being_done(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def detect_brain(request: DetectRequest) -> Summary:
        if request.brain.endswith("a.zarr"):
            raise DataError("a is bad")
        if request.brain.endswith("b.zarr"):
            raise IncompleteRunError("b is incomplete")
        return Summary(7)

    monkeypatch.setattr("brainmap.run.detect.detect_brain", detect_brain)
    for name in "abc":
        volume(tmp_path / f"{name}.zarr")
    result = run("detect", tmp_path)
    assert result.out == "7 cells\n"
    assert "a is bad" in result.err
    assert "b is incomplete" in result.err
    assert result.code == 1
    assert run("detect", tmp_path / "b.zarr", tmp_path / "c.zarr").code == 3


def test_missing_brain(run: Callable[..., Result], tmp_path: Path) -> None:
    result = run("detect", tmp_path / "none.zarr")
    assert result.code == 1
    assert result.err == f"brainmap: there is no volume {tmp_path / 'none.zarr'}\n"


@pytest.fixture
def two_tables(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "truth.csv").write_text("z,y,x\n1,2,3\n40,50,60\n")
    z, y, x = np.array([[1.0, 2, 3], [40, 50, 61], [70, 80, 90]]).T
    table = Points({"z": z, "y": y, "x": x, "score": np.array([0.9, 0.8, 0.1])}, {"voxel_um": [1, 1, 1]})
    table.write(tmp_path / "points.parquet")
    return tmp_path / "points.parquet", tmp_path / "truth.csv"


def test_evaluate(run: Callable[..., Result], two_tables: tuple[Path, Path]) -> None:
    result = run("evaluate", *two_tables)
    assert (result.code, result.err) == (0, "")
    lines = dict(line.split("  ", 1) for line in result.out.splitlines())
    assert {name: value.strip() for name, value in lines.items()}["recall"] == "1.0000"
    values = json.loads(run("evaluate", *two_tables, "--tolerance-px", "0.5", "--json").out)
    assert (values["tp"], values["fp"], values["fn"], values["unit"]) == (1, 2, 1, "px")
    assert json.loads(run("evaluate", *two_tables, "--json").out)["best_threshold"] == 0.8


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--tolerance-um", "1", "--tolerance-px", "1"), 2),
        (("--tolerance-um", "-1"), 2),
        (("--rule", "maybe"), 2),
    ],
)
def test_evaluate_wrong_use(
    run: Callable[..., Result], two_tables: tuple[Path, Path], options: tuple[str, ...], code: int
) -> None:
    result = run("evaluate", *two_tables, *options)
    assert (result.code, result.out) == (code, "")


def test_evaluate_bad_data(run: Callable[..., Result], two_tables: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    assert run("evaluate", two_tables[0], tmp_path / "bad.csv").code == 1
    assert run("evaluate", two_tables[0], tmp_path / "none.csv").code == 1


def test_convert_and_open(run: Callable[..., Result], tmp_path: Path) -> None:
    import tifffile

    from brainmap.image.volume import Volume

    stack = np.arange(4 * 20 * 30, dtype=np.uint16).reshape(4, 20, 30)
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack")
    result = run("convert", tmp_path / "stack.tif", tmp_path / "b.zarr", "--voxel-size", "5,2,2")
    assert (result.code, "4x20x30 voxels of 5x2x2 um" in result.out) == (0, True), result.err
    opened = Volume.open(tmp_path / "b.zarr")
    np.testing.assert_array_equal(opened.read(slice(0, 4), slice(0, 20), slice(0, 30)), stack)
    assert run("convert", tmp_path / "stack.tif", tmp_path / "c.zarr", "--voxel-size", "5,2").code == 2


def test_view_without_napari(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from brainmap.run_folder import RunRecord

    RunRecord(parameters={"brain": "b.zarr"}).save(tmp_path)
    Points.empty().write(tmp_path / "points.parquet")
    monkeypatch.setitem(sys.modules, "napari", None)
    result = run("view", tmp_path, "--napari")
    assert result.code == 1
    assert "pip install 'brainmap[napari]'" in result.err
    assert run("view", tmp_path / "none").code == 1


def test_regions_of_something_else(run: Callable[..., Result], tmp_path: Path) -> None:
    result = run("regions", tmp_path)
    assert result.code == 1
    assert "is not a run folder" in result.err


def test_doctor(run: Callable[..., Result]) -> None:
    result = run("doctor")
    assert "OpenVINO" in result.out
    values = json.loads(run("doctor", "--json").out)
    assert values["versions"]["brainmap"] == __version__
    assert result.code == (0 if values["ok"] else 1)


def test_logging_goes_to_stderr_by_level(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def detect_brain(request: DetectRequest) -> Summary:
        log = logging.getLogger("brainmap.test")
        for level in (logging.DEBUG, logging.INFO, logging.WARNING):
            log.log(level, "word %d", level)
        return Summary(0)

    monkeypatch.setattr("brainmap.run.detect.detect_brain", detect_brain)
    brain = volume(tmp_path / "b.zarr")
    for options, words in (((), 2), (("-q",), 1), (("-v",), 3)):
        result = run("detect", brain, *options)
        assert result.out == "0 cells\n"
        assert result.err.count("word") == words
        assert "\x1b" not in result.err


def command_line(
    *arguments: str, code: str = "from brainmap.cli.main import main; main()", **options: Any
) -> Any:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


def test_help_is_quick_because_heavy_packages_stay_out() -> None:
    code = """
import sys
from brainmap.cli.main import app
from typer.testing import CliRunner
assert CliRunner().invoke(app, ["detect", "--help"]).exit_code == 0
heavy = {"numpy", "torch", "ants", "openvino", "dask", "distributed", "zarr", "pandas", "pyarrow", "scipy"}
print(sorted(heavy & set(sys.modules)))
"""
    result = command_line(code=code)
    assert (result.stdout.strip(), result.stderr) == ("[]", "")


def test_checkout_runs_without_installation(repository: Path) -> None:
    result = subprocess.run(
        [sys.executable, "cli.py", "--version"], cwd=repository, capture_output=True, text=True, check=True
    )
    assert result.stdout == f"brainmap {__version__}\n"


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_a_reader_that_goes_away_is_no_traceback(two_tables: tuple[Path, Path], repository: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(
        [sys.executable, "cli.py", "evaluate", *map(str, two_tables)],
        cwd=repository, stdout=write, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(write)
    assert "Traceback" not in result.stderr
