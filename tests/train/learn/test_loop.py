"""The loop on a network of a few weights: it stops, it resumes, it says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from brainmap.errors import DataError, NotFoundError, UsageError  # noqa: E402
from brainmap.train.learn import loop  # noqa: E402
from brainmap.train.learn.centernet import CenterNet, CenterNetConfig  # noqa: E402
from brainmap.train.learn.loop import (  # noqa: E402
    CHECKPOINT,
    WEIGHTS,
    Job,
    Schedule,
    learning_rate,
    load_network,
    mixed_precision,
    train,
)
from brainmap.train.learn.samples import GridSettings  # noqa: E402

NETWORK = CenterNetConfig(slices=1, widths=(4, 4))
SCHEDULE = Schedule(
    steps=12, learning_rate=1e-2, weight_decay=1e-4, warm_up=2, clip=5.0, average=0.8, save_every=4, log_every=2
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    target: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Settings:
        return cls(**record)


def job(
    schedule: Schedule = SCHEDULE,
    settings: Settings = Settings(),
    validate: Callable[[CenterNet], float] | None = None,
    kill_at: int = -1,
    kind: str = "pretrain",
) -> Job:
    """A job that teaches a constant from noise of both random generators."""
    torch.manual_seed(3)
    model = CenterNet(NETWORK).train()
    steps = []

    def loss(model: CenterNet, average: CenterNet, rng: np.random.Generator) -> tuple[Any, dict[str, float]]:
        steps.append(1)
        if len(steps) == kill_at:
            raise KeyboardInterrupt
        image = torch.from_numpy(rng.normal(size=(2, 1, 16, 16)).astype(np.float32))
        logit, _, _ = model(image + 0.1 * torch.randn(image.shape))
        value = ((logit - settings.target) ** 2).mean()
        return value, {"part": value.item() / 2}

    return Job(kind, settings, schedule, model, GridSettings(), loss, 5, {"tiles": "abc"}, validate)


def state(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def rising(network: CenterNet) -> float:
    """A score that follows the network, so that resuming must restore it too."""
    with torch.no_grad():
        return float(network(torch.zeros(1, 1, 16, 16))[0].mean())


@pytest.mark.parametrize("kill_at", [2, 7, 12])
def test_interrupted_and_resumed_is_the_same_to_the_last_bit(kill_at: int, tmp_path: Path) -> None:
    schedule = replace(SCHEDULE, check_every=3)
    whole = train(job(schedule, validate=rising), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(job(schedule, validate=rising, kill_at=kill_at), tmp_path / "parts")
    # Of a training without a checkpoint nothing is left, not even its folder.
    (tmp_path / "parts").mkdir(exist_ok=True)
    with (tmp_path / "parts" / "log.jsonl").open("a") as file:
        file.write('{"step": 1')
    parts = train(job(schedule, validate=rising), tmp_path / "parts")
    assert same(state(whole), state(parts))
    steps = [
        [json.loads(line)["step"] for line in (path.parent / "log.jsonl").read_text().splitlines()]
        for path in (whole, parts)
    ]
    assert steps[0] == steps[1] == [2, 4, 6, 8, 10, 12]


def test_a_finished_training_is_left_alone(tmp_path: Path) -> None:
    path = train(job(), tmp_path)
    before = path.stat().st_mtime_ns
    assert train(job(kill_at=1), tmp_path) == path
    assert path.stat().st_mtime_ns == before


def test_it_stops_when_the_score_no_longer_rises_and_keeps_the_best(tmp_path: Path) -> None:
    scores = iter([0.1, 0.5, 0.4, 0.3, 0.9, 0.9])
    seen = []

    def validate(network: CenterNet) -> float:
        seen.append({k: v.clone() for k, v in network.state_dict().items()})
        return next(scores)

    path = train(job(replace(SCHEDULE, check_every=2, patience=2), validate=validate), tmp_path)
    record = state(path)
    assert (record["step"], record["best"]["step"], record["best"]["score"]) == (8, 4, 0.5)
    network, _ = load_network(path)
    assert same(dict(network.state_dict()), seen[1])
    # Stopped is stopped: no further step when called again.
    assert train(job(replace(SCHEDULE, check_every=2, patience=2), validate=validate, kill_at=1), tmp_path)
    readable = json.loads((tmp_path / "checkpoint.json").read_text())
    assert readable["finished"] is True
    assert readable["best"] == {"step": 4, "score": 0.5}
    assert [look["step"] for look in readable["validation"]] == [2, 4, 6, 8]


def test_the_record_says_what_was_trained(tmp_path: Path) -> None:
    train(job(), tmp_path)
    record = json.loads((tmp_path / "checkpoint.json").read_text())
    assert record["kind"] == "pretrain"
    assert record["config"] == {"target": 1.0}
    assert record["inputs"] == {"tiles": "abc"}
    assert record["network"]["widths"] == [4, 4]
    assert record["parameters"] == sum(p.numel() for p in CenterNet(NETWORK).parameters())
    assert {"torch", "numpy"} <= set(record["versions"])


def test_other_settings_data_or_kind_are_refused(tmp_path: Path) -> None:
    train(job(), tmp_path)
    with pytest.raises(UsageError, match="other settings"):
        train(job(settings=Settings(2.0)), tmp_path)
    with pytest.raises(UsageError, match="belongs to pretrain"):
        train(job(kind="finetune"), tmp_path)
    other = job()
    other.inputs = {"tiles": "xyz"}
    with pytest.raises(UsageError, match="other data"):
        train(other, tmp_path)


def test_a_loss_that_is_no_number_is_an_error_and_leaves_the_checkpoint(tmp_path: Path) -> None:
    sick = job()
    healthy, count = sick.loss, []

    def loss(model: CenterNet, average: CenterNet, rng: np.random.Generator) -> tuple[Any, dict[str, float]]:
        count.append(1)
        value, parts = healthy(model, average, rng)
        return (value * float("nan") if len(count) > 6 else value), parts

    sick.loss = loss
    with pytest.raises(DataError, match="the loss is nan at step 6"):
        train(sick, tmp_path)
    assert state(tmp_path / CHECKPOINT)["step"] == 4


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_a_damaged_checkpoint_is_one_sentence(content: bytes | None, tmp_path: Path) -> None:
    path = train(job(), tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] if content is None else content)
    for attempt in (lambda: train(job(), tmp_path), lambda: load_network(path)):
        with pytest.raises(DataError, match="not a readable checkpoint"):
            attempt()


def test_networks_are_found_in_files_and_folders(tmp_path: Path) -> None:
    path = train(job(), tmp_path)
    for place in (path, tmp_path):
        network, grid = load_network(place)
        assert not network.training
        assert grid == GridSettings()
        assert same(dict(network.state_dict()), state(path)["average"])
    folder = tmp_path / "detector"
    folder.mkdir()
    record = {"network": NETWORK.to_dict(), "grid": {"pixel_um": 1.5}, "average": network.state_dict()}
    torch.save(record, folder / WEIGHTS)
    again, grid = load_network(folder)
    assert grid.pixel_um == 1.5
    assert same(dict(again.state_dict()), dict(network.state_dict()))


def test_what_holds_no_network_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no checkpoint"):
        load_network(tmp_path / "missing.pt")
    with pytest.raises(NotFoundError, match="neither"):
        load_network(tmp_path)
    torch.save({"weights": 1}, tmp_path / "other.pt")
    with pytest.raises(DataError, match="not a checkpoint"):
        load_network(tmp_path / "other.pt")
    torch.save({"network": NETWORK.to_dict(), "grid": {}, "average": {}}, tmp_path / "empty.pt")
    with pytest.raises(DataError, match="does not hold a network"):
        load_network(tmp_path / "empty.pt")


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cpu, cuda or mps"):
        train(job(), tmp_path, device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="not available"):
            train(job(), tmp_path, device="cuda")


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate(replace(SCHEDULE, steps=100, warm_up=10), step) for step in range(100)]
    assert rates[0] == pytest.approx(1e-3)
    assert max(rates) == pytest.approx(1e-2)
    assert int(np.argmax(rates)) in (9, 10)
    assert (np.diff(rates[10:]) < 0).all()
    assert rates[-1] == pytest.approx(1e-4, rel=0.2)


@pytest.mark.parametrize("fast", [False, True])
def test_half_precision_only_where_the_processor_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    monkeypatch.setattr(loop, "has_bf16", lambda: fast)
    layer = torch.nn.Linear(4, 4)
    with mixed_precision(layer):
        assert layer(torch.zeros(1, 4)).dtype == (torch.bfloat16 if fast else torch.float32)
