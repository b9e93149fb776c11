"""`brainmap train ...` and `brainmap retrain`: parsing, printing, exit codes, and what joins the rooms."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import imagecodecs
import numpy as np
import pytest
from typer.testing import CliRunner

from brainmap.cli import main as cli
from brainmap.tiles.tiles import Tiles, write_tiles

COMMANDS = (
    "import-tiles", "generator", "synthesize", "similarity", "pretrain", "finetune", "calibrate", "evaluate",
    "export",
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[..., Result]]:
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


def sections(folder: Path, count: int = 3) -> list[Path]:
    """PNGs of dark tissue with bright spots."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:96, :96]
    paths = []
    for index in range(count):
        image = rng.normal(40, 4, (96, 96))
        for row, column in rng.uniform(10, 85, (12, 2)):
            image += 120 * np.exp(-((y - row) ** 2 + (x - column) ** 2) / 12)
        paths.append(folder / f"s{index}.png")
        paths[-1].write_bytes(imagecodecs.png_encode(image.clip(0, 255).astype(np.uint8)))
    return paths


RADIUS, OPACITY = 4.0, 0.5


def cells_of(seed: int) -> np.ndarray:
    """Centres of 25 cells that stand free, x and y."""
    x, y = (values.ravel() for values in np.mgrid[18:111:23, 18:111:23])
    return np.stack([x, y], axis=1) + np.random.default_rng(seed).uniform(-2, 2, (25, 2))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def tiles(data: Path) -> Path:
    """Tiles with soft cells of one radius and opacity."""
    rng, images = np.random.default_rng(0), []
    y, x = np.mgrid[:128, :128]
    for seed in range(3):
        image = rng.uniform(0.25, 0.35, (128, 128))
        for cx, cy in cells_of(seed):
            cover = OPACITY / (1 + np.exp((np.hypot(x - cx, y - cy) / RADIUS - 1) / 0.1))
            image = cover + image * (1 - cover)
        images.append(image.astype(np.float32))
    columns = {
        "image_id": ["a", "b", "c"],
        "brain": ["x"] * 3,
        "z": range(3),
        "voxel_um": [(5.0, 1.0, 1.0)] * 3,
    }
    write_tiles(data / "tiles", columns, images)
    return data / "tiles"


@pytest.fixture(scope="module")
def gt(data: Path, tiles: Path, run: Callable[..., Result]) -> Path:
    """Ground truth of two of the tiles, by two workers."""
    rng = np.random.default_rng(1)
    rows = ["image_id,worker_id,x,y"]
    for seed, name in enumerate("ab"):
        for x, y in cells_of(seed):
            rows += [f"{name},{w},{x + rng.normal(0, 0.5):.2f},{y + rng.normal(0, 0.5):.2f}" for w in "uv"]
    (data / "clicks.csv").write_text("\n".join(rows) + "\n")
    assert run("gt", "aggregate", data / "clicks.csv", "--tiles", tiles, "--out", data / "gt").code == 0
    return data / "gt"


def checkpoint(path: Path) -> Path:
    """A network that has learnt nothing."""
    torch = pytest.importorskip("torch")
    from brainmap.train.learn.centernet import CenterNet, CenterNetConfig

    torch.manual_seed(0)
    config = CenterNetConfig(slices=3, widths=(8, 8))
    grid = {"pixel_um": 2.0, "z_target_um": 4.0, "cell_diameter_um": 10.0}
    torch.save({"network": config.to_dict(), "grid": grid, "average": CenterNet(config).state_dict()}, path)
    return path


def test_every_command_has_help(run: Callable[..., Result]) -> None:
    shown = run("train", "--help").out
    for command in COMMANDS:
        assert command in shown
        assert "--verbose" in run("train", command, "--help").out
    assert "--accept-worse" in run("retrain", "--help").out


@pytest.mark.parametrize(
    "arguments",
    [
        ("retrain", "--clicks", "c.csv", "--tiles", "t", "--out", "d"),
        ("train", "pretrain", "--work", "w"),
        ("train", "finetune", "--tiles", "t", "--gt", "g", "--work", "w"),
        ("train", "generator", "--tiles", "t", "--work", "w"),
        ("train", "synthesize", "--out", "o"),
        ("train", "similarity", "r", "s", "--out", "o"),
        ("train", "calibrate", "n", "--tiles", "t", "--gt", "g", "--out", "o.json"),
        ("train", "evaluate", "n", "--tiles", "t", "--gt", "g", "--out", "o"),
        ("train", "export", "n", "--out", "o", "--calibration", "c.json"),
    ],
)
def test_without_torch_the_install_line_is_given(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "torch" else find(name, *a)
    )
    result = run(*arguments)
    assert result.code == 1
    assert "pip install 'brainmap[train]'" in result.err
    assert result.err.count("\n") == 1


def test_import_tiles(run: Callable[..., Result], tmp_path: Path) -> None:
    images = sections(tmp_path / "images")
    result = run("train", "import-tiles", *images, "--out", tmp_path / "tiles", "--voxel-size", "5,1,1")
    assert (result.code, result.out) == (0, f"3 tiles  {tmp_path / 'tiles'}\n"), result.err
    made = Tiles.open(tmp_path / "tiles")
    assert made.ids.tolist() == ["s0", "s1", "s2"]
    assert made.columns["voxel_um"][0].tolist() == [5, 1, 1]
    result = run(
        "train", "import-tiles", images[0], "--out", tmp_path / "cut", "--voxel-size", "5,1,1",
        "--tile-px", "48", "--no-normalise", "--json",
    )  # fmt: skip
    assert json.loads(result.out)["tiles"] == 4
    for wrong in (
        ("--voxel-size", "5,1"),
        ("--voxel-size", "5,1,0"),
        ("--voxel-size", "5,1,1", "--tile-px", "0"),
    ):
        assert run("train", "import-tiles", images[0], "--out", tmp_path / "x", *wrong).code == 2
    result = run(
        "train", "import-tiles", tmp_path / "none.png", "--out", tmp_path / "x", "--voxel-size", "5,1,1"
    )
    assert (result.code, "none.png" in result.err) == (1, True)


def test_synthesize_and_compare(run: Callable[..., Result], tmp_path: Path, tiles: Path, gt: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "s.toml").write_text("[synthesis]\nheight = 96\nwidth = 96\n")
    result = run(
        "train", "synthesize", "--out", tmp_path / "made", "--count", "2", "--config", tmp_path / "s.toml"
    )
    assert (result.code, result.out) == (0, f"2 tiles  {tmp_path / 'made'}\n"), result.err
    result = run(
        "train", "synthesize", "--out", tmp_path / "like", "--count", "2", "--config", tmp_path / "s.toml",
        "--like", tiles, "--gt", gt, "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    settings = json.loads(result.out)["settings"]
    assert settings["placement"]["kind"] == "fitted"
    assert settings["voxel_um"] == [5, 1, 1]
    # The look is learnt as well: that of the cells in the tiles, not the default's.
    assert settings["placement"]["radius_px"][0] == pytest.approx(RADIUS, abs=0.5)
    assert settings["cells"]["opacity"][0] == pytest.approx(OPACITY, abs=0.06)
    result = run("train", "similarity", tiles, tmp_path / "like", "--gt", gt, "--out", tmp_path / "report")
    assert (result.code, result.out.startswith("JSD 0.")) == (0, True), result.err
    assert (tmp_path / "report" / "similarity.json").is_file()
    result = run("train", "similarity", tiles, tmp_path / "like", "--out", tmp_path / "report", "--json")
    assert json.loads(result.out)["real_tiles"] == 3
    assert run("train", "synthesize", "--out", tmp_path / "x", "--gt", gt).code == 2
    assert run("train", "synthesize", "--out", tmp_path / "x", "--count", "0").code == 2


def test_settings_like_tiles(tmp_path: Path, tiles: Path, gt: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("torch")
    from brainmap.train.commands import settings_like
    from brainmap.train.synthesis.cell_images import CellLook
    from brainmap.train.synthesis.placement import Placement, StudyRules
    from brainmap.train.synthesis.synthesis import SynthesisSettings

    settings, texture = settings_like(SynthesisSettings(), tiles, None)
    assert settings == SynthesisSettings(voxel_um=(5, 1, 1))
    assert texture is not None and len(texture) == 3
    white = SynthesisSettings(cells=CellLook(look="study"), texture=False)
    settings, texture = settings_like(white, tiles, gt)
    assert settings.cells == white.cells and texture is None
    assert settings.placement.rules.radius_px[0] == pytest.approx(RADIUS, abs=0.5)
    assert not caplog.records
    # Cells of quite another size than the settings name cannot be measured: where they lie is learnt all the same.
    large = Placement.study(StudyRules(radius_px=(15.0, 1.0, 13.0, 17.0)))
    settings, _ = settings_like(SynthesisSettings(placement=large), tiles, gt)
    assert settings.placement.rules.radius_px == (15.0, 1.0, 13.0, 17.0)
    assert settings.cells == CellLook() and settings.placement != large
    assert "stand free and near the radius of 15 px" in caplog.text


def test_generator_places_cells_as_annotated(
    run: Callable[..., Result], tmp_path: Path, tiles: Path, gt: Path
) -> None:
    pytest.importorskip("torch")
    (tmp_path / "g.toml").write_text(
        "[generator]\nsize = 32\nsteps = 1\nbatch = 1\nwidths = [4, 4]\ncritic_widths = [4]\n"
    )
    options = (
        "train",
        "generator",
        "--tiles",
        tiles,
        "--work",
        tmp_path / "w",
        "--config",
        tmp_path / "g.toml",
    )
    result = run(*options, "--gt", gt)
    assert (result.code, result.out) == (0, f"{tmp_path / 'w' / 'checkpoint.pt'}  step 1\n"), result.err
    # Discs anywhere would be another training.
    result = run(*options, "--steps", "2")
    assert (result.code, "was trained on other data" in result.err) == (2, True)
    result = run(*options, "--gt", gt, "--steps", "2", "--json")
    assert json.loads(result.out)["step"] == 2
    made = ("train", "synthesize", "--out", tmp_path / "s", "--count", "1", "--generator", tmp_path / "w")
    result = run(*made, "--like", tiles, "--gt", gt)
    assert (result.code, "cells of the look 'study', and these are drawn 'soft'" in result.err) == (0, True)


def test_pretrain_and_finetune_pass_their_options(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiles: Path, gt: Path
) -> None:
    pytest.importorskip("torch")
    from brainmap.train.learn import finetune, pretrain

    caught: list[Any] = []

    def train(*arguments: Any) -> Path:
        caught.append(arguments)
        (tmp_path / "checkpoint.json").write_text('{"step": 7}')
        return tmp_path / "checkpoint.pt"

    monkeypatch.setattr(pretrain, "pretrain", train)
    monkeypatch.setattr(finetune, "finetune", train)
    (tmp_path / "s.toml").write_text("[pretrain]\nsteps = 7\n")
    result = run("train", "pretrain", "--work", tmp_path, "--config", tmp_path / "s.toml", "--pool", "p")
    assert (result.code, result.out) == (0, f"{tmp_path / 'checkpoint.pt'}  step 7\n"), result.err
    assert (caught[0][0].steps, caught[0][2]) == (7, Path("p"))
    start = checkpoint(tmp_path / "start.pt")
    (tmp_path / "f.toml").write_text("[finetune]\nsteps = 9\nseed = 1\n")
    result = run(
        "train", "finetune", "--tiles", tiles, "--gt", gt, "--work", tmp_path, "--from", start,
        "--cell-diameter", "12", "--config", tmp_path / "f.toml", "--seed", "5", "--json",
    )  # fmt: skip
    assert json.loads(result.out)["step"] == 7
    settings = caught[1][0]
    assert (settings.steps, settings.seed, settings.cell_diameter_um) == (9, 5, 12.0)
    assert caught[1][4] == start
    (tmp_path / "f.toml").write_text("[finetune]\nstep = 9\n")
    result = run(
        "train", "finetune", "--tiles", tiles, "--gt", gt, "--work", tmp_path, "--config", tmp_path / "f.toml"
    )
    assert (result.code, "unknown setting 'step'" in result.err) == (2, True)


def test_calibrate_evaluate_export(
    run: Callable[..., Result], tmp_path: Path, data: Path, tiles: Path, gt: Path
) -> None:
    network = checkpoint(tmp_path / "network.pt")
    knots = tmp_path / "calibration.json"
    result = run(
        "train", "calibrate", network, "--tiles", tiles, "--gt", gt, "--out", knots, "--cell-diameter", "8"
    )
    assert result.code == 0, result.err
    record = json.loads(knots.read_text())
    assert f"threshold {record['threshold']:.3f}" in result.out
    assert record["cell_diameter_um"] == 8
    result = run("train", "evaluate", network, "--tiles", tiles, "--gt", gt, "--out", tmp_path / "e")
    assert (result.code, "AUPRC" in result.out) == (0, True), result.err
    assert json.loads((tmp_path / "e" / "evaluation.json").read_text())["detectors"][0]["tiles"] == 2
    assert run("train", "evaluate", network, "--tiles", tiles, "--out", tmp_path / "e").code == 2
    result = run(
        "train", "evaluate", network, "--tiles", tiles, "--experts", data / "clicks.csv", "--out",
        tmp_path / "e", "--tolerance-px", "4", "--json",
    )  # fmt: skip
    assert json.loads(result.out)["detectors"][0]["experts"] == ["u", "v"]


def test_export_scales_the_grid_to_the_cells(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    network = checkpoint(tmp_path / "network.pt")
    from brainmap.train import commands

    caught: list[Any] = []

    def export(model: Any, grid: Any, folder: Path, *rest: Any) -> None:
        caught.append((grid, *rest))
        folder.mkdir()
        (folder / "detector.json").write_text("{}")

    monkeypatch.setattr(commands, "export_detector", export)
    spec = SimpleNamespace(threshold=0.4)
    monkeypatch.setattr(commands.Detector, "open", lambda folder: SimpleNamespace(spec=spec, fingerprint="f"))
    knots = tmp_path / "c.json"
    knots.write_text(
        json.dumps({"calibration": [[-1, 0.1], [2, 0.9]], "threshold": 0.4, "cell_diameter_um": 15})
    )
    result = run("train", "export", network, "--out", tmp_path / "mine", "--calibration", knots)
    assert (result.code, result.out) == (0, f"{tmp_path / 'mine'}  threshold 0.400\n"), result.err
    grid, name, version, threshold, calibration, *_ = caught[0]
    assert (grid.pixel_um, grid.z_target_um, grid.cell_diameter_um) == (3.0, 6.0, 15.0)
    assert (name, version, threshold, calibration) == ("mine", "1", 0.4, ((-1.0, 0.1), (2.0, 0.9)))
    result = run("train", "export", network, "--out", tmp_path / "mine", "--calibration", knots)
    assert (result.code, "--overwrite" in result.err) == (2, True)
    knots.write_text("{}")
    result = run("train", "export", network, "--out", tmp_path / "other", "--calibration", knots)
    assert (result.code, "is no calibration" in result.err) == (1, True)


@pytest.fixture
def outcome(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Catches what `retrain` would do; the first retraining helps, the second does not."""
    pytest.importorskip("torch")
    from brainmap.train.retrain import retrain

    caught: list[Any] = []
    difference = {"old": 0.6, "new": 0.7, "low": 0.05, "high": 0.15}
    numbers = {"f1": difference, "auprc": difference, "tiles": 4, "cells": 80}

    def run(request: Any) -> Any:
        caught.append(request)
        better = len(caught) == 1
        record = {
            "switch": better, "reason": "it is" if better else "it is not", "held_out": numbers,
            "split": {"judged_by": "held-out", "lineage_complete": False}, "choice": {"chosen": "fine-tuned"},
            "simulated": [{"auprc": {"old": 0.9, "new": 0.8}, "f1": {"old": 0.7, "new": 0.6}}],
            "curve": {"sentence": "more slices may help"},
        }  # fmt: skip
        return retrain.RetrainResult(request.out if better else None, request.out / "report.html", record)

    monkeypatch.setattr(retrain, "retrain", run)
    return caught


def test_retrain_prints_and_ends_with_the_right_code(
    run: Callable[..., Result], outcome: list[Any], tmp_path: Path
) -> None:
    start = checkpoint(tmp_path / "start.pt")
    options = (
        "retrain", "--clicks", "c.csv", "--tiles", "t", "--from", start, "--out", "mine", "--qc", "a", "--qc",
        "b", "--rehearsal", "3", "--seed", "4", "--cell-diameter", "12",
    )  # fmt: skip
    result = run(*options)
    assert (result.code, result.err) == (0, "")
    lines = dict(line.split("  ", 1) for line in result.out.splitlines())
    assert lines["F1"].strip().startswith("0.600 before, 0.700 now, difference +0.100")
    assert lines["detector"].strip() == "mine"
    assert lines["judged on"].strip().startswith("4 held-out tiles with 80 cells; what else trained")
    assert lines["simulated AUPRC"].strip() == "0.900 before, 0.800 now"
    assert lines["simulated F1"].strip() == "0.700 before, 0.600 now"
    assert (lines["kept"].strip(), lines["more clicks"].strip()) == ("fine-tuned", "more slices may help")
    (request,) = outcome
    assert (request.qc, request.settings.rehearsal, request.settings.seed) == (("a", "b"), 3, 4)
    assert (request.cell_diameter_um, request.accept_worse, request.work_folder) == (
        12,
        False,
        Path("mine.work"),
    )
    result = run(*options, "--json")
    assert result.code == 1
    assert json.loads(result.out)["switch"] is False
    assert "mine was not written: it is not" in result.err
    assert "--accept-worse" in result.err
    assert result.err.count("\n") == 1


def test_retrain_wrong_use(run: Callable[..., Result], tmp_path: Path) -> None:
    start = checkpoint(tmp_path / "start.pt")
    base = ("retrain", "--clicks", "c.csv", "--tiles", "t", "--from", start, "--out")
    assert run(*base, tmp_path / "new", "--cell-diameter", "0").code == 2
    (tmp_path / "there").mkdir()
    result = run(*base, tmp_path / "there", "--overwrite")
    assert (result.code, "is no detector folder" in result.err) == (2, True)
    result = run(*base, start)
    assert (result.code, "is the detector to start from" in result.err) == (2, True)
    assert run(*base, tmp_path / "new").code == 1  # there are no clicks
    assert not (tmp_path / "new").exists()
