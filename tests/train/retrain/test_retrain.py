"""The whole loop in miniature: clicks and tiles in, a better detector out, or a refusal that says why."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from brainmap.errors import DataError, NotFoundError, UsageError  # noqa: E402
from brainmap.image.array_source import ArraySource  # noqa: E402
from brainmap.image.intensity import Intensity  # noqa: E402
from brainmap.image.volume import write_volume  # noqa: E402
from brainmap.infer.detector import Detector  # noqa: E402
from brainmap.points.table import Points  # noqa: E402
from brainmap.run.detect import detect_brain  # noqa: E402
from brainmap.run.request import DetectRequest  # noqa: E402
from brainmap.run_folder import RunRecord  # noqa: E402
from brainmap.tiles.tiles import Tiles, write_tiles  # noqa: E402
from brainmap.train.judge.calibrate import Judged  # noqa: E402
from brainmap.train.judge.predict import predict_tiles  # noqa: E402
from brainmap.train.judge.switch import Difference  # noqa: E402
from brainmap.train.learn.centernet import CenterNet, CenterNetConfig  # noqa: E402
from brainmap.train.learn.finetune import FinetuneConfig  # noqa: E402
from brainmap.train.learn.samples import GridSettings, net_volume  # noqa: E402
from brainmap.train.retrain import retrain as module  # noqa: E402
from brainmap.train.retrain import split as splitting  # noqa: E402
from brainmap.train.retrain import steps  # noqa: E402
from brainmap.train.retrain.lineage import Lineage  # noqa: E402
from brainmap.train.retrain.request import (  # noqa: E402
    RetrainRequest,
    RetrainSettings,
    read_retrain_settings,
)
from brainmap.train.retrain.retrain import RetrainResult, decide, retrain  # noqa: E402
from brainmap.train.tissue import tissue  # noqa: E402
from brainmap.train.tissue.tissue import TissueConfig, simulate  # noqa: E402

SIDE = 96
LOOK = TissueConfig(
    shape=(2, SIDE, SIDE), voxel_um=(4.0, 2.0, 2.0), density_per_mm3=90_000, brightness=6.0,
    brightness_cv=0.1, vessels=0, ring_share=0.0, texture_fine=0.02, photons=2000,
)  # fmt: skip
TEACH = FinetuneConfig(
    steps=50, learning_rate=5e-3, warm_up=5, average=0.8, crop=32, batch=4, scales=(1.0,), validation=0.0
)
SETTINGS = RetrainSettings(folds=2, rehearsal=0, finetune=TEACH)


def write_checkpoint(path: Path, seed: int = 0) -> Path:
    """A network that has learnt nothing."""
    torch.manual_seed(seed)
    config = CenterNetConfig(slices=3, widths=(8, 8))
    grid = {"pixel_um": 2.0, "z_target_um": 4.0, "cell_diameter_um": 10.0}
    state = CenterNet(config).state_dict()
    torch.save({"network": config.to_dict(), "grid": grid, "average": state}, path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiles of four slices, and the clicks of three workers who mark every cell a little off."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    images, rows, clicks = [], [], ["image_id,worker_id,x,y"]
    for z in range(4):
        made = simulate(LOOK, 10 + z)
        intensity = Intensity.fit(ArraySource(made.image, made.voxel_um), 10.0)
        axes = [np.arange(float(n)) for n in made.image.shape]
        images.append(intensity.normalise(made.image, *axes)[0])
        rows.append(f"tile{z}")
        for worker in "abc":
            for _, y, x in made.centres_vox:
                x, y = np.clip(np.array([x, y]) + rng.normal(0, 0.5, 2), 0, SIDE - 1)
                clicks.append(f"tile{z},{worker},{x:.2f},{y:.2f}")
    columns = {"image_id": rows, "brain": ["b"] * 4, "z": range(4), "voxel_um": [(4.0, 2.0, 2.0)] * 4}
    write_tiles(folder / "tiles", columns, images)
    (folder / "clicks.csv").write_text("\n".join(clicks) + "\n")
    write_checkpoint(folder / "start.pt")
    return folder


def shrink(patch: pytest.MonkeyPatch) -> None:
    """One small kind of simulated tissue, and no pages about the clicks, which have tests of their own."""
    patch.setattr("brainmap.gt.report.write_report", lambda *a, **k: None)
    look = {"shape": (10, 64, 64), "voxel_um": (4.0, 2.0, 2.0), "density_per_mm3": 60_000, "vessels": 0}
    patch.setattr(tissue, "KINDS", {"coarse": look})
    patch.setattr(tissue.TissueConfig, "section", classmethod(lambda cls, rng: cls(**look)))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)


def request_for(data: Path, folder: Path, **changes: Any) -> RetrainRequest:
    values = {
        "clicks": data / "clicks.csv", "tiles": data / "tiles", "out": folder / "better",
        "start": str(data / "start.pt"), "settings": SETTINGS,
    }  # fmt: skip
    return RetrainRequest(**{**values, **changes})


@dataclass(frozen=True)
class Made:
    """A retraining that was interrupted before its last training, and finished by the same command."""

    request: RetrainRequest
    result: RetrainResult
    trained: list[str]


@pytest.fixture(scope="module")
def made(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    request = request_for(data, tmp_path_factory.mktemp("made"))
    trained: list[str] = []
    real = steps.finetune_network

    def finetune(config: FinetuneConfig, work: Path, *rest: Any) -> Path:
        if work.name == "final" and "final" not in trained:
            trained.append(work.name)
            raise KeyboardInterrupt
        before = fingerprint_of(work)
        checkpoint = real(config, work, *rest)
        if fingerprint_of(work) != before:
            trained.append(work.name)
        return checkpoint

    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        patch.setattr(steps, "finetune_network", finetune)
        with pytest.raises(KeyboardInterrupt):
            retrain(request)
        return Made(request, retrain(request), trained)


def fingerprint_of(work: Path) -> float:
    path = work / "checkpoint.pt"
    return path.stat().st_mtime if path.exists() else 0.0


def test_a_network_that_knew_nothing_gets_better(made: Made) -> None:
    outcome = made.result.outcome
    assert outcome["switch"], outcome["reason"]
    f1, auprc = outcome["held_out"]["f1"], outcome["held_out"]["auprc"]
    assert f1["new"] > f1["old"] + 0.1
    assert auprc["new"] > auprc["old"]
    assert f1["low"] <= f1["new"] - f1["old"] <= f1["high"]
    simulated, sections = outcome["simulated"]
    assert (simulated["kind"], sections["kind"]) == ("coarse", "sections")
    assert outcome["choice"]["chosen"] == "fine-tuned"
    assert outcome["choice"]["f1"]["fine-tuned"] > outcome["choice"]["f1"]["recalibrated"] + 0.1
    assert simulated["auprc"]["new"] > simulated["auprc"]["old"]
    assert 0 < simulated["f1"]["new"] <= 1


def test_an_interrupted_retraining_goes_on_where_it_stopped(made: Made) -> None:
    # The first "final" is the interruption; the folds were not trained again after it.
    assert made.trained == ["fold-0", "fold-1", "final", "final"]


def test_no_slice_is_on_two_sides(made: Made, data: Path) -> None:
    fold = json.loads((made.request.work_folder / "split.json").read_text())["fold"]
    assert sorted(fold) == ["tile0", "tile1", "tile2", "tile3"]
    assert sorted(fold.values()) == [-1, 0, 0, 1]
    held_out = [row["image_id"] for row in made.result.outcome["per_tile"]]
    assert held_out == [name for name, number in fold.items() if number == -1]


def test_the_detector_folder_is_whole(made: Made) -> None:
    folder, outcome = made.request.out, made.result.outcome
    assert made.result.detector == folder
    detector = Detector.open(folder)
    assert detector.spec.threshold == outcome["threshold"]["new"]
    assert detector.spec.training["training"] == outcome["training"]
    assert detector.spec.training["switch"] is True
    assert {path.name for path in folder.iterdir()} == {
        "card.md", "detector.json", "evaluation", "model.onnx", "outcome.json", "report.html", "weights.pt",
    }  # fmt: skip
    card = (folder / "card.md").read_text()
    assert f"{outcome['training']['cells']} cells on 3 tiles" in card
    assert outcome["reason"] in card


def test_the_report_says_whether_to_switch_and_why(made: Made) -> None:
    page = made.result.report.read_text()
    assert "Switch: " in page
    assert made.result.outcome["reason"].split(":")[0] in page
    for row in made.result.outcome["per_tile"]:
        assert row["image_id"] in page
    assert page.count("data:image") >= 2
    lines = dict(made.result.lines())
    assert lines["switch"].startswith("yes")
    assert "before" in lines["F1"]


def test_the_new_detector_finds_what_the_report_says(made: Made, data: Path) -> None:
    held_out = [row["image_id"] for row in made.result.outcome["per_tile"]]
    tiles = Tiles.open(data / "tiles")
    tiles = tiles.take(np.isin(tiles.ids.astype(str), held_out))
    detector = Detector.open(made.request.out)
    found = predict_tiles(detector, tiles, precision="f32")
    marked = sum(row["found_new"] + row["false_new"] for row in made.result.outcome["per_tile"])
    assert int((found.score >= detector.spec.threshold).sum()) == pytest.approx(marked, abs=2)


def test_the_new_detector_runs_in_detect(made: Made, tmp_path: Path) -> None:
    section = simulate(LOOK, 50)
    write_volume(tmp_path / "brain.zarr", section.image, voxel_um=section.voxel_um)
    summary = detect_brain(
        DetectRequest(
            brain=str(tmp_path / "brain.zarr"), out=tmp_path / "run", atlas=None, progress=False,
            detector=str(made.request.out),
        )
    )  # fmt: skip
    assert summary.status == "complete"
    assert len(Points.read(tmp_path / "run" / "points.parquet")) > 0


def test_the_same_command_again_trains_nothing(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_make", lambda request: pytest.fail("trained again"))
    monkeypatch.setattr(module, "_export", lambda *a: pytest.fail("exported again"))
    assert retrain(made.request) == made.result


def test_an_existing_detector_is_not_overwritten(made: Made, data: Path) -> None:
    with pytest.raises(UsageError, match="exists; give another --out, or --overwrite"):
        retrain(replace(made.request, cell_diameter_um=12.0))
    other = replace(made.request, out=made.request.out.with_name("other"), work=made.request.work_folder)
    with pytest.raises(UsageError, match="cell_diameter_um was null, is now 12"):
        retrain(replace(other, cell_diameter_um=12.0))
    with pytest.raises(UsageError, match="exists and is no detector folder"):
        retrain(replace(made.request, out=data, overwrite=True))
    (data / "other_run").mkdir()
    RunRecord(parameters={"brain": "b.zarr"}).save(data / "other_run")
    with pytest.raises(UsageError, match="holds another kind of run"):
        retrain(replace(other, work=data / "other_run", overwrite=True))
    assert (data / "other_run" / "run.json").is_file()
    with pytest.raises(UsageError, match="is the detector to start from"):
        request_for(data, made.request.out.parent, start=str(made.request.out))


def test_what_is_not_better_is_not_written(
    made: Made, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = net_volume(simulate(replace(LOOK, shape=(6, 64, 64)), 1), GridSettings())
    asked: list[int] = []
    monkeypatch.setattr(module, "write_full_evaluation", lambda *a: None)
    monkeypatch.setattr(steps, "prepare_pool", lambda folder, config, grid: asked.append(config.volumes))
    monkeypatch.setattr(steps, "load_pool", lambda files, config: SimpleNamespace(volumes=[volume]))
    teach = replace(TEACH, steps=1, learning_rate=1e-9, consistency=RetrainSettings().finetune.consistency)
    still = replace(SETTINGS, rehearsal=2, finetune=teach)
    start = made.request.work_folder / "final" / "checkpoint.pt"
    request = request_for(data, tmp_path, start=str(start), settings=still, unlabelled=data / "tiles")
    result = retrain(request)
    assert asked == [2, 2, 2]
    trained = json.loads((request.work_folder / "final" / "checkpoint.json").read_text())["inputs"]
    assert (trained["rehearsed_volumes"], len(trained["unlabelled_tiles"])) == (1, 4)
    assert still.finetune.consistency == 0.3
    assert result.detector is None
    assert not result.outcome["switch"]
    assert not request.out.exists()
    assert "Do not switch" in result.report.read_text()
    written: list[dict[str, Any]] = []
    monkeypatch.setattr(module, "_export", lambda request, outcome: written.append(outcome))
    accepted = retrain(replace(request, accept_worse=True))
    assert accepted.detector == request.out
    assert written == [result.outcome]


def judgement(
    f1: Difference, auprc: Difference, old: float = 0.9, new: float = 0.9, f1_new: float = 0.9
) -> Any:
    return SimpleNamespace(
        difference={"f1": f1, "auprc": auprc},
        simulated=[{"kind": "coarse", "auprc": {"old": old, "new": new}, "f1": {"old": 0.9, "new": f1_new}}],
    )


CLEAR, CHANCE = Difference(0.6, 0.7, 0.05, 0.15), Difference(0.6, 0.7, -0.05, 0.2)
LOSS, FLAT = Difference(0.7, 0.6, -0.15, 0.05), Difference(0.6, 0.6, 0.0, 0.0)


def test_auprc_of_a_volume_agrees_with_scikit_learn() -> None:
    from sklearn.metrics import average_precision_score

    from brainmap.train.retrain.bench import _auprc

    rng = np.random.default_rng(0)
    logit, correct = rng.normal(size=200).astype(np.float32), rng.random(200) < 0.4
    found = average_precision_score(correct, logit)
    # Cells that are not found at all lower it in proportion.
    judged = Judged(logit, correct, 2 * int(correct.sum()))
    assert _auprc(judged) == pytest.approx(found / 2)
    assert _auprc(Judged(logit[:0], correct[:0], 3)) == 0


@pytest.mark.parametrize(
    ("case", "switch", "word"),
    [
        (judgement(CLEAR, CHANCE), True, "F1 on the held-out tiles is better beyond chance"),
        (judgement(FLAT, CLEAR), True, "AUPRC on the held-out tiles is better"),
        (judgement(CHANCE, CHANCE), False, "within chance"),
        (judgement(CLEAR, LOSS), False, "AUPRC on the held-out tiles is not better"),
        (judgement(LOSS, CLEAR), False, "F1 on the held-out tiles is not better"),
        (judgement(CLEAR, CLEAR, new=0.85), False, "forgotten"),
        (judgement(CLEAR, CLEAR, new=0.89), True, "better beyond chance"),
        (judgement(CLEAR, CLEAR, f1_new=0.8), True, "elsewhere it is worse: .* F1 falls from 0.900 to 0.800"),
        (SimpleNamespace(difference={}, simulated=[]), False, "no tile is unseen"),
    ],
)
def test_the_decision(case: Any, switch: bool, word: str) -> None:
    decided, reason = decide(case, check_loss=0.02, check_f1_loss=0.05)
    assert decided is switch
    assert re.search(word, reason)


def copy_of(data: Path, folder: Path, keep: int = 4, clicks: str | None = None) -> dict[str, Path]:
    """The first tiles, and other clicks."""
    whole = Tiles.open(data / "tiles")
    images = [whole.image(index) for index in range(keep)]
    write_tiles(folder / "tiles", whole.take(np.arange(keep)).columns, images)
    text = clicks or (data / "clicks.csv").read_text()
    (folder / "clicks.csv").write_text(text)
    return {"tiles": folder / "tiles", "clicks": folder / "clicks.csv"}


HEAD = "image_id,worker_id,x,y\n"


@pytest.mark.parametrize(
    ("keep", "clicks", "sentence"),
    [
        (1, None, "come from 1 slice; retraining needs at least 2"),
        (4, HEAD + "elsewhere,a,1,1\nelsewhere,b,1,1\n", "none of the 1 images .* is a tile of"),
        (4, HEAD + "".join(f"tile{i},w{i},5,5\n" for i in range(4)), "too few|agree on no cell"),
    ],
)
def test_data_that_cannot_teach(
    data: Path, tmp_path: Path, keep: int, clicks: str | None, sentence: str
) -> None:
    request = request_for(data, tmp_path, **copy_of(data, tmp_path, keep, clicks))
    with pytest.raises(DataError, match=sentence):
        retrain(request)
    assert not request.out.exists()


def renamed(data: Path, folder: Path, keep: list[int], new: int = 0) -> dict[str, Path]:
    """Tiles of the first round under other names and of another brain, and new ones; with everybody's clicks."""
    whole, text = Tiles.open(data / "tiles"), (data / "clicks.csv").read_text()
    images = [whole.image(index) for index in keep]
    names = [f"again{index}" for index in keep] + [f"new{index}" for index in range(new)]
    lines = [
        line.replace("tile", "again") for line in text.splitlines() if line[:5] in [f"tile{i}" for i in keep]
    ]
    for index in range(new):
        section = simulate(LOOK, 100 + index)
        fit = Intensity.fit(ArraySource(section.image, section.voxel_um), 10.0)
        images.append(fit.normalise(section.image, *(np.arange(float(n)) for n in section.image.shape))[0])
        inside = np.clip(section.centres_vox[:, 1:], 0, SIDE - 1)
        lines += [f"new{index},{worker},{x:.2f},{y:.2f}" for worker in "abc" for y, x in inside]
    count = len(images)
    columns = {"image_id": names, "brain": ["c"] * count, "z": range(50, 50 + 10 * count, 10),
               "voxel_um": [(4.0, 2.0, 2.0)] * count}  # fmt: skip
    write_tiles(folder / "tiles", columns, images)
    (folder / "clicks.csv").write_text(HEAD + "\n".join(lines) + "\n")
    return {"tiles": folder / "tiles", "clicks": folder / "clicks.csv"}


def first_parts(made: Made) -> dict[str, int]:
    fold: dict[str, int] = json.loads((made.request.work_folder / "split.json").read_text())["fold"]
    return {name.replace("tile", "again"): part for name, part in fold.items()}


def test_a_second_round_never_judges_on_what_the_first_has_learnt(
    made: Made, data: Path, tmp_path: Path
) -> None:
    uses = {use.tile.image_id: use.roles for use in lineage_of(made).uses}
    first = first_parts(made)
    assert uses == {
        name.replace("again", "tile"): ("judged",) if part == -1 else ("trained", "calibrated")
        for name, part in first.items()
    }
    folders = renamed(data, tmp_path, [0, 1, 2, 3], new=3)
    for seed in range(6):
        again = replace(SETTINGS, seed=seed)
        request = request_for(data, tmp_path, **folders, start=str(made.request.out), settings=again)
        made_split = splitting.split_tiles(request, 10.0, request.lineage)
        names = made_split.data.tiles.ids
        second = dict(zip(names, made_split.data.fold.tolist(), strict=True))
        for name, part in first.items():
            # What taught teaches on and gives no score its meaning; what judged goes on judging.
            assert second[name] == (splitting.HELD_OUT if part == -1 else splitting.TEACHES)
        assert made_split.seen.tolist() == [first.get(name, -1) != -1 for name in names]
        assert sorted(second[f"new{i}"] for i in range(3)) == [0, 0, 1]
        assert (made_split.judged_by, made_split.calibrated_on_seen) == ("held-out", False)
    third = splitting.split_tiles(request, 10.0, made_split.after("second"))
    held_out = set(third.data.held_out.tiles.ids)
    assert held_out == {name for name, part in first.items() if part == -1}
    assert {use.detector for use in third.after("third").uses} == {"better", "second", "third"}


def lineage_of(made: Made) -> Lineage:
    return Lineage.of_network(made.request.out, Detector.open(made.request.out).spec.training)


def test_where_nothing_is_unseen_there_is_no_score(made: Made, data: Path, tmp_path: Path) -> None:
    keep = [int(name[-1]) for name, part in first_parts(made).items() if part != -1]
    quick = replace(SETTINGS, finetune=replace(TEACH, steps=1, learning_rate=1e-9))
    request = request_for(
        data, tmp_path, **renamed(data, tmp_path, keep), start=str(made.request.out), settings=quick
    )
    result = retrain(request)
    assert result.outcome["held_out"] is None
    assert result.outcome["split"]["judged_by"] == ""
    assert not result.outcome["switch"]
    assert "no tile is unseen" in result.outcome["reason"]
    assert result.detector is None
    lines = dict(result.lines())
    assert "F1" not in lines
    assert "no tile is unseen" in lines["judged on"]
    page = result.report.read_text()
    assert "no tile is unseen" in page
    assert "F1 before" not in page.split("Simulated volumes")[0]
    written = retrain(replace(request, accept_worse=True))
    assert written.detector is not None
    card = (written.detector / "card.md").read_text()
    assert "no tile was unseen" in card
    lineage = Lineage.of_network(written.detector, Detector.open(written.detector).spec.training)
    assert len(lineage.uses) == 4 + len(keep)
    # The first start was a bare checkpoint: nobody knows what trained that.
    assert not lineage.complete


def test_two_slices_are_judged_by_cross_fitting(data: Path, tmp_path: Path) -> None:
    quick = replace(SETTINGS, check_volumes=0)
    request = request_for(data, tmp_path, **copy_of(data, tmp_path, 2), settings=quick)
    result = retrain(request)
    outcome = result.outcome
    assert outcome["split"]["judged_by"] == "cross-fitting"
    assert outcome["held_out"]["slices"] == outcome["training"]["slices"] == 2
    assert outcome["held_out"]["f1"]["new"] > outcome["held_out"]["f1"]["old"] + 0.1
    assert "by cross-fitting" in result.report.read_text()


def test_tiles_without_clicks_are_left_out_and_counted(data: Path, tmp_path: Path) -> None:
    text = (data / "clicks.csv").read_text()
    kept = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("tile3"))
    request = request_for(data, tmp_path, clicks=copy_of(data, tmp_path, clicks=kept)["clicks"])
    split = splitting.split_tiles(request, 10.0, request.lineage)
    assert split.left_out == {"tiles without clicks": 1, "clicked images without a tile": 0}
    assert sorted(split.data.fold.tolist()) == [-1, 0, 1]


def test_one_expert_is_enough(data: Path, tmp_path: Path) -> None:
    """A single worker has nobody to be compared with: his clicks weigh nothing, but his cells count."""
    text = (data / "clicks.csv").read_text()
    alone = HEAD + "".join(line for line in text.splitlines(keepends=True) if ",a," in line)
    request = request_for(data, tmp_path, clicks=copy_of(data, tmp_path, clicks=alone)["clicks"])
    split = splitting.split_tiles(request, 10.0, request.lineage).data
    cells = split.extent["cells"]
    assert cells == alone.count("\n") - 1
    assert sum(len(split.truth.peaks(str(name))[0]) for name in split.tiles.ids) == cells
    assert split.truth.heatmap("tile0").max() > 0.9


def test_missing_input_is_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nowhere is not a detector"):
        request_for(data, tmp_path, start="nowhere")
    with pytest.raises(NotFoundError, match=r"no file .*none\.csv"):
        retrain(request_for(data, tmp_path, clicks=tmp_path / "none.csv"))
    with pytest.raises(NotFoundError, match="is no tile folder"):
        retrain(request_for(data, tmp_path, tiles=tmp_path))


def test_settings_are_read_and_checked(repository: Path, tmp_path: Path) -> None:
    assert read_retrain_settings(repository / "configs" / "retrain.toml") == RetrainSettings()
    (tmp_path / "s.toml").write_text("folds = 2\n[finetune]\nsteps = 7\n[gt]\nmethod = 'study'\n")
    settings = read_retrain_settings(tmp_path / "s.toml", seed=3, rehearsal=None)
    assert (settings.folds, settings.seed, settings.rehearsal) == (2, 3, RetrainSettings().rehearsal)
    assert (settings.finetune.steps, settings.finetune.validation, settings.gt.method) == (7, 0.0, "study")
    for text in ("fold = 2", "folds = 'two'", "folds = 1", "[finetune]\nstep = 7", "[finetune]\nseed = 7",
                 "[gt]\nx = 1", "held_out = 1.0", "check_volumes = true"):  # fmt: skip
        (tmp_path / "wrong.toml").write_text(text + "\n")
        with pytest.raises(UsageError):
            read_retrain_settings(tmp_path / "wrong.toml")
