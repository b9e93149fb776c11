"""Commands that train and judge, after a failure at every file: the old result is whole, the same command ends well."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from brainmap.errors import UsageError  # noqa: E402
from brainmap.files import atomic_path, read_json, write_json  # noqa: E402
from brainmap.gt.truth import GroundTruth  # noqa: E402
from brainmap.lock import held, held_beside  # noqa: E402
from brainmap.tiles.tiles import Tiles, import_tiles, write_tiles  # noqa: E402
from brainmap.train import commands  # noqa: E402
from brainmap.train.judge import evaluate_report  # noqa: E402
from brainmap.train.learn.centernet import CenterNet, CenterNetConfig  # noqa: E402
from brainmap.train.learn.export import export_detector  # noqa: E402
from brainmap.train.learn.finetune import FinetuneConfig, finetune_network  # noqa: E402
from brainmap.train.learn.loop import load_network  # noqa: E402
from brainmap.train.learn.pool import PoolConfig  # noqa: E402
from brainmap.train.learn.pretrain import PretrainConfig, pretrain  # noqa: E402
from brainmap.train.learn.samples import GridSettings, net_volume, save_volumes  # noqa: E402
from brainmap.train.synthesis import similarity_report  # noqa: E402
from brainmap.train.synthesis.generator import GeneratorConfig, load_generator, train_generator  # noqa: E402
from brainmap.train.synthesis.placement import Placement, StudyRules  # noqa: E402
from brainmap.train.synthesis.synthesis import SynthesisSettings, synthesize  # noqa: E402
from brainmap.train.tissue.tissue import TissueConfig, simulate  # noqa: E402

NETWORK = CenterNetConfig(slices=3, widths=(8, 8))
SIZE = 96


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Tiles:
    rng = np.random.default_rng(0)
    columns = {
        "image_id": ["a", "b", "c"], "brain": ["m"] * 3, "z": [0, 1, 2], "voxel_um": np.tile([4.0, 2.0, 2.0], (3, 1)),
    }  # fmt: skip
    images = [rng.normal(0.4, 0.1, (SIZE, SIZE)).clip(0, 1).astype(np.float32) for _ in range(3)]
    return write_tiles(tmp_path_factory.mktemp("tiles") / "tiles", columns, images)


@pytest.fixture(scope="module")
def truth(tiles: Tiles) -> GroundTruth:
    xy = np.random.default_rng(1).uniform(9, SIZE - 9, (30, 2))
    names = np.repeat(["a", "b", "c"], 10)
    return GroundTruth.from_points(names, xy, dict.fromkeys("abc", (SIZE, SIZE)), sigma_px=1.0)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    easy = TissueConfig(shape=(4, 80, 80), voxel_um=(4.0, 2.0, 2.0), vessels=0)
    save_volumes(
        folder / "volumes-0000.npz", [net_volume(simulate(easy, s), GridSettings()) for s in range(2)]
    )
    return folder


def fresh() -> CenterNet:
    torch.manual_seed(0)
    return CenterNet(NETWORK)


def network(path: Path) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in load_network(path)[0].state_dict().items()}


def generator(path: Path) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in load_generator(path).network.state_dict().items()}


Training = Callable[[Path, int], Path]


@pytest.fixture(params=["pretrain", "finetune", "generator"])
def training(
    request: pytest.FixtureRequest, tiles: Tiles, truth: GroundTruth, pool: Path
) -> tuple[Training, Callable[[Path], dict[str, np.ndarray]]]:
    """A training of some seed into a folder, and the weights of what it made."""
    tiny = PretrainConfig(
        network=NETWORK, pool=PoolConfig(volumes=2), crop=32, batch=2, steps=4, warm_up=1, average=0.8
    )
    tuned = FinetuneConfig(steps=4, crop=32, batch=2, warm_up=1, average=0.8, validation=0.34, check_every=2)
    made = GeneratorConfig(
        size=16, discs=(20.0, 60.0), radius_px=(1.0, 3.0), widths=(6, 8), critic_widths=(6, 8), latent=3, batch=2,
        steps=4, history=8, average=0.9, save_every=2, sample_every=2, log_every=2,
    )  # fmt: skip
    trainings: dict[str, Training] = {
        "pretrain": lambda work, seed: pretrain(replace(tiny, seed=seed), work, pool),
        "finetune": lambda work, seed: finetune_network(
            replace(tuned, seed=seed), work, tiles, truth, fresh(), GridSettings()
        ),
        "generator": lambda work, seed: train_generator(replace(made, seed=seed), work, tiles),
    }
    return trainings[request.param], generator if request.param == "generator" else network


def test_a_training_that_fails_at_any_file_goes_on_to_the_same_end(
    training: tuple[Training, Callable[[Path], dict[str, np.ndarray]]], tmp_path: Path, damage: Any
) -> None:
    train, weights = training
    whole = weights(train(tmp_path / "whole", 1))
    work = tmp_path / "work"
    failed = damage.at_every_file(lambda: train(work, 1), lambda _: None)
    assert {name.rpartition("/")[2] for name in failed} >= {"checkpoint.pt", "checkpoint.json"}
    for name, value in weights(work / "checkpoint.pt").items():
        np.testing.assert_array_equal(value, whole[name])
    assert read_json(work / "checkpoint.json")["step"] == 4
    assert damage.hidden(work) == []


def test_a_training_does_not_touch_another_ones_result(
    training: tuple[Training, Callable[[Path], dict[str, np.ndarray]]], tmp_path: Path, damage: Any
) -> None:
    train, weights = training
    work = tmp_path / "work"
    whole = weights(train(work, 1))
    before = damage.snapshot(work)
    with pytest.raises(UsageError, match="choose another folder"):
        train(work, 2)
    assert damage.snapshot(work) == before
    with held(work, "x"), pytest.raises(UsageError, match="is in use by"):
        train(work, 1)
    # Killed between the two files: the record is made again.
    (work / "checkpoint.json").unlink()
    train(work, 1)
    assert read_json(work / "checkpoint.json")["step"] == 4
    for name, value in weights(work / "checkpoint.pt").items():
        np.testing.assert_array_equal(value, whole[name])


def rules() -> SynthesisSettings:
    return SynthesisSettings(
        height=48,
        width=48,
        stride=4,
        placement=Placement.study(StudyRules(clusters=(1, 2), cells=(20, 5, 10, 30), spread=(0.3, 0.4))),
    )


def made_tiles(kind: str, folder: Path) -> Callable[[Path, int, bool], object]:
    """A command that makes a tiles folder, differently for every seed."""
    if kind == "synthesize":
        return lambda out, seed, overwrite: synthesize(rules(), None, out, 2, seed, overwrite=overwrite)

    def picture(seed: int) -> Path:
        path = folder / f"section{seed}.png"
        pixels = np.random.default_rng(seed).integers(0, 255, (64, 64)).astype(np.uint8)
        path.write_bytes(imagecodecs.png_encode(pixels))
        return path

    return lambda out, seed, overwrite: import_tiles(
        [picture(seed)], out, voxel_um=(5, 2, 2), tile_px=32, normalise=False, overwrite=overwrite
    )


@pytest.mark.parametrize("kind", ["synthesize", "import-tiles"])
def test_tiles_are_replaced_as_a_whole_and_only_when_asked(kind: str, tmp_path: Path, damage: Any) -> None:
    make, out = made_tiles(kind, tmp_path), tmp_path / "tiles"
    make(out, 1, False)
    before = damage.snapshot(out)
    with pytest.raises(UsageError, match="--overwrite"):
        make(out, 2, False)

    def look(name: str) -> None:
        assert damage.snapshot(out) == before, name

    assert damage.at_every_file(lambda: make(out, 2, True), look)
    assert damage.snapshot(out) != before
    with held_beside(out), pytest.raises(UsageError, match="is in use by"):
        make(out, 3, True)
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_export(tmp_path: Path, damage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the translation of the network, which takes seconds and writes elsewhere, done once."""
    knots = [[-4.0, 0.0], [4.0, 1.0]]
    export_detector(
        fresh().eval(), GridSettings(), tmp_path / "start", "start", "1", 0.5, ((-4.0, 0.0), (4.0, 1.0)), {}, "card"
    )  # fmt: skip
    write_json(tmp_path / "first.json", {"calibration": knots, "threshold": 0.5})
    write_json(tmp_path / "second.json", {"calibration": knots, "threshold": 0.6})
    out = tmp_path / "detector"

    def quick(
        _: object, __: object, folder: Path, name: str, version: str, threshold: float, *more: object
    ) -> None:
        for file in sorted((tmp_path / "start").iterdir()):
            with atomic_path(folder / file.name) as part:
                part.write_bytes(file.read_bytes())
        spec = read_json(tmp_path / "start" / "detector.json")
        write_json(folder / "detector.json", spec | {"threshold": threshold})

    monkeypatch.setattr(commands, "export_detector", quick)

    def export(calibration: str, **more: Any) -> None:
        commands.export_network(tmp_path / "start", tmp_path / calibration, out, **more)

    export("first.json")
    before = damage.snapshot(out)
    with pytest.raises(UsageError, match="--overwrite"):
        export("second.json")

    def look(name: str) -> None:
        assert damage.snapshot(out) == before, name

    assert damage.at_every_file(lambda: export("second.json", overwrite=True), look)
    assert read_json(out / "detector.json")["threshold"] == 0.6
    assert [path.name for path in tmp_path.glob(".*")] == []


class Written:
    """Stands for a page: what counts is where its file goes."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None

    def write(self, path: Path) -> Path:
        write_json(path, self.text)
        return path


def test_reports_of_judging_are_replaced_together(
    tmp_path: Path, damage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Judged:
        name, tiles = "a", type("T", (), {"ids": np.array(["a"])})

        def __init__(self, value: int) -> None:
            self.record = {"value": value}

    monkeypatch.setattr(evaluate_report, "_page", lambda several: Written(str(several[0].record)))
    out = tmp_path / "evaluation"
    evaluate_report.write_evaluation(out, [Judged(1)])  # type: ignore[list-item]
    (out / "notes.txt").write_text("mine")
    before = damage.snapshot(out)

    def look(name: str) -> None:
        assert damage.is_whole(out, before), name

    again = lambda: evaluate_report.write_evaluation(out, [Judged(2)])  # type: ignore[list-item]  # noqa: E731
    assert len(damage.at_every_file(again, look)) >= 4
    assert read_json(out / "evaluation.json")["detectors"] == [{"value": 2}]
    assert (out / "notes.txt").read_text() == "mine" and damage.hidden(out) == []


def test_similarity_is_replaced_together(
    tmp_path: Path, damage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Found:
        jsd = jsd_background = log_power = 0.0

        def __init__(self, value: int) -> None:
            self.value, self.means = value, dict[str, list[float]]()

        def to_dict(self) -> dict[str, int]:
            return {"value": self.value}

    monkeypatch.setattr(similarity_report, "Page", lambda *_: Written("page"))
    for name in ("_curves", "_features", "_distances", "_pairs"):
        monkeypatch.setattr(similarity_report, name, lambda *_: None)
    out = tmp_path / "similarity"

    def write(value: int) -> None:
        similarity_report.write_similarity(out, Found(value), [1], [1])  # type: ignore[arg-type]

    write(1)
    before = damage.snapshot(out)

    def look(name: str) -> None:
        assert damage.is_whole(out, before), name

    assert len(damage.at_every_file(lambda: write(2), look)) >= 4
    assert read_json(out / "similarity.json") == {"value": 2}
    assert damage.hidden(out) == []
