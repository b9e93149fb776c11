"""The training loop that pre-training and fine-tuning share.

What is learnt from, and by which loss, is the caller's: a function of the network, its average and the random
numbers. The loop steps, averages the weights, watches a score on held-out data, and keeps a checkpoint from
which an interrupted training goes on exactly as it would have, with a readable record beside it.

All random numbers are drawn on the CPU, so that a checkpoint resumes on any device.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from brainmap.errors import BrainmapError, DataError, NotFoundError, UsageError
from brainmap.files import atomic_path, now, read_json, to_jsonable, write_json
from brainmap.lock import held
from brainmap.machine import has_bf16, versions
from brainmap.progress import task
from brainmap.train.learn.centernet import CenterNet, CenterNetConfig
from brainmap.train.learn.samples import GridSettings

__all__ = [
    "CHECKPOINT",
    "WEIGHTS",
    "Job",
    "Schedule",
    "fingerprint_weights",
    "learning_rate",
    "load_network",
    "mixed_precision",
    "read_checkpoint",
    "train",
]

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
# What an interrupted training leaves.
KEPT = "the steps up to the last checkpoint are kept in {work}, and the same command goes on from there"
# Inside a detector folder: {"network": dict, "grid": dict, "average": state of the network}.
WEIGHTS = "weights.pt"

# Network, average of it (the teacher), random numbers -> loss and its parts.
Loss = Callable[[CenterNet, CenterNet, np.random.Generator], tuple[Tensor, dict[str, float]]]


class Config(Protocol):
    """Settings of a training, as `PretrainConfig`."""

    def to_dict(self) -> dict[str, Any]: ...

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Self: ...


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    Parameters
    ----------
    steps : int
        Optimiser steps.
    learning_rate, weight_decay, warm_up : float, float, int
        AdamW; linear warm-up over `warm_up` steps, then half a cosine down to a hundredth.
    clip : float
        Largest gradient norm.
    average : float
        Decay of the exponential moving average of the weights.
    save_every, log_every : int
        Steps between checkpoints and between lines of the log.
    check_every, patience : int
        Steps between looks at the validation score, and looks without a better one after which training
        stops; 0 for either: no look, no stop.
    """

    steps: int
    learning_rate: float
    weight_decay: float
    warm_up: int
    clip: float
    average: float
    save_every: int = 500
    log_every: int = 100
    check_every: int = 0
    patience: int = 0


@dataclass
class Job:
    """One training.

    Parameters
    ----------
    kind : str
        "pretrain" or "finetune"; a checkpoint of another kind is refused.
    config : Config
        Kept in the checkpoint; a checkpoint of another configuration is refused.
    schedule : Schedule
    model : CenterNet
        Start; its mode and the parameters that require gradients are the caller's choice.
    grid : GridSettings
        Of the network; kept in the checkpoint.
    loss : callable
        (network, average, random numbers) -> loss and its parts as numbers.
    seed : int
    inputs : dict
        Fingerprints of the data; a checkpoint made from others is refused.
    validate : callable, optional
        Score of the averaged network, higher is better.
    """

    kind: str
    config: Config
    schedule: Schedule
    model: CenterNet
    grid: GridSettings
    loss: Loss
    seed: int = 0
    inputs: dict[str, Any] = field(default_factory=dict)
    validate: Callable[[CenterNet], float] | None = None


@dataclass
class _State:
    """Everything that changes while training; what a checkpoint holds beside the settings."""

    model: CenterNet
    average: CenterNet
    optimiser: torch.optim.Optimizer
    rng: np.random.Generator
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Any] | None = None

    def save(self, path: Path, job: Job) -> None:
        record = {
            "kind": job.kind,
            "config": job.config.to_dict(),
            "network": job.model.config.to_dict(),
            "grid": asdict(job.grid),
            "inputs": job.inputs,
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "numpy": self.rng.bit_generator.state,
            "torch": torch.get_rng_state(),
            "history": self.history,
            "best": self.best,
        }
        with atomic_path(path) as part:
            torch.save(record, part)

    def load(self, path: Path, job: Job) -> None:
        record = read_checkpoint(path)
        kind = record.get("kind", "pretrain")
        if kind != job.kind:
            raise UsageError(f"{path} belongs to {kind}, not to {job.kind}; choose another folder")
        if type(job.config).from_dict(record["config"]) != job.config:
            raise UsageError(f"{path} was trained with other settings; choose another folder or delete it")
        if record.get("inputs", job.inputs) != job.inputs:
            raise UsageError(f"{path} was trained on other data; choose another folder or delete it")
        self.model.load_state_dict(record["model"])
        self.average.load_state_dict(record["average"])
        self.optimiser.load_state_dict(record["optimiser"])
        self.rng.bit_generator.state = record["numpy"]
        torch.set_rng_state(record["torch"])
        self.step = int(record["step"])
        self.history, self.best = list(record.get("history", [])), record.get("best")


def train(job: Job, work: Path, device: str = "cpu") -> Path:
    """Train, or go on training; returns the checkpoint.

    Parameters
    ----------
    job : Job
    work : Path
        Folder for `checkpoint.pt`, `checkpoint.json` (readable) and `log.jsonl`.
    device : str
        "cpu", "cuda" or "mps".

    Raises
    ------
    DataError
        If the loss stops being a number, or the checkpoint cannot be read.
    UsageError
        If `work` holds a checkpoint of other settings or data, or the device is not there.
    """
    check_device(device)
    with held(work, KEPT.format(work=work)):
        return _train(job, work, device)


def _train(job: Job, work: Path, device: str) -> Path:
    torch.manual_seed(job.seed)
    state = _start(job, device)
    checkpoint = work / CHECKPOINT
    if checkpoint.exists():
        state.load(checkpoint, job)
    _cut_log(work / "log.jsonl", state.step)
    if state.step and recorded_step(work) != state.step:
        # Stopped between the two files.
        _write_record(work, job, state, device, 0.0, 0)
    schedule, sums, began, first = job.schedule, dict[str, float](), time.monotonic(), state.step
    with task("training the network", schedule.steps, "steps", first) as steps:
        while state.step < schedule.steps and not _should_stop(schedule, state):
            for name, value in _step(job, state).items():
                sums[name] = sums.get(name, 0.0) + value
            steps.update(state.step)
            if state.step % schedule.log_every == 0:
                _write_log(work / "log.jsonl", state.step, began, sums, schedule.log_every)
                sums = {}
            last = state.step == schedule.steps
            checked = job.validate is not None and schedule.check_every > 0
            if checked and (last or state.step % schedule.check_every == 0):
                _look(job, state)
            if last or state.step % schedule.save_every == 0 or _should_stop(schedule, state):
                state.save(checkpoint, job)
                _write_record(work, job, state, device, time.monotonic() - began, state.step - first)
    return checkpoint


def _start(job: Job, device: str) -> _State:
    model = job.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = CenterNet(model.config).to(device)
    average.load_state_dict(model.state_dict())
    average.requires_grad_(False).eval()
    optimiser = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=job.schedule.learning_rate,
        weight_decay=job.schedule.weight_decay,
    )
    return _State(model, average, optimiser, np.random.default_rng(job.seed))


def _step(job: Job, state: _State) -> dict[str, float]:
    """One optimiser step; the loss and its parts."""
    for group in state.optimiser.param_groups:
        group["lr"] = learning_rate(job.schedule, state.step)
    loss, parts = job.loss(state.model, state.average, state.rng)
    if not torch.isfinite(loss):
        raise DataError(
            f"the loss is {loss.item()} at step {state.step}; lower the learning rate or check the tiles"
        )
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(state.model.parameters(), job.schedule.clip)
    state.optimiser.step()
    state.step += 1
    _blend(state.average, state.model, min(job.schedule.average, (1 + state.step) / (10 + state.step)))
    return {"loss": loss.item(), **parts}


def _look(job: Job, state: _State) -> None:
    """Score the averaged network on held-out data, and keep the best one so far."""
    assert job.validate is not None
    score = float(job.validate(state.average))
    state.history.append({"step": state.step, "score": score})
    log.info("step %d: validation score %.4f", state.step, score)
    if state.best is None or score > state.best["score"]:
        weights = {name: value.clone() for name, value in state.average.state_dict().items()}
        state.best = {"step": state.step, "score": score, "average": weights}


def _should_stop(schedule: Schedule, state: _State) -> bool:
    if not schedule.patience or state.best is None:
        return False
    return sum(look["step"] > state.best["step"] for look in state.history) >= schedule.patience


def learning_rate(schedule: Schedule, step: int) -> float:
    """Learning rate of a step."""
    if step < schedule.warm_up:
        return schedule.learning_rate * (step + 1) / schedule.warm_up
    progress = (step - schedule.warm_up) / max(1, schedule.steps - schedule.warm_up)
    return schedule.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


@torch.no_grad()
def _blend(average: CenterNet, model: CenterNet, decay: float) -> None:
    """Move the averaged weights towards the model's; buffers are copied where they count."""
    for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
        mine.lerp_(theirs, 1 - decay)
    for mine, theirs in zip(average.buffers(), model.buffers(), strict=True):
        if mine.is_floating_point():
            mine.lerp_(theirs, 1 - decay)
        else:
            mine.copy_(theirs)


def check_device(device: str) -> None:
    """Refuse a device that this machine or this torch does not have."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device not in there:
        raise UsageError(f"device is {device!r}; give cpu, cuda or mps")
    if not there[device]:
        raise UsageError(f"device {device} is not available here; use cpu")


def mixed_precision(model: torch.nn.Module) -> torch.autocast:
    """bf16 where it is safe and the network's device computes in it; elsewhere nothing changes."""
    device = next(model.parameters()).device.type
    fast = has_bf16() if device == "cpu" else device != "cuda" or torch.cuda.is_bf16_supported(False)
    return torch.autocast(device, dtype=torch.bfloat16, enabled=fast)


def _write_log(path: Path, step: int, began: float, sums: dict[str, float], count: int) -> None:
    record = {"step": step, "seconds": round(time.monotonic() - began, 1)}
    record |= {name: round(value / count, 4) for name, value in sums.items()}
    log.debug("%s", record)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def _cut_log(path: Path, step: int) -> None:
    """Drop the lines of steps after the checkpoint, which are about to be made again, and torn ones."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        with suppress(ValueError):
            if json.loads(line)["step"] <= step:
                kept.append(line)
    with atomic_path(path) as part:
        part.write_text("".join(kept), encoding="utf-8")


def recorded_step(work: Path) -> int | None:
    """The step that `checkpoint.json` is about; None where it is lost or damaged."""
    try:
        return int(read_json(work / "checkpoint.json")["step"])
    except (BrainmapError, KeyError, TypeError, ValueError):
        return None


def _write_record(work: Path, job: Job, state: _State, device: str, seconds: float, steps: int) -> None:
    """`checkpoint.json`: what a person wants to know of `checkpoint.pt` without torch."""
    best = None if state.best is None else {k: state.best[k] for k in ("step", "score")}
    write_json(
        work / "checkpoint.json",
        {
            "kind": job.kind,
            "step": state.step,
            "finished": state.step >= job.schedule.steps or _should_stop(job.schedule, state),
            "config": job.config.to_dict(),
            "network": job.model.config.to_dict(),
            "parameters": sum(p.numel() for p in job.model.parameters()),
            "inputs": to_jsonable(job.inputs),
            "validation": state.history,
            "best": best,
            "device": device,
            "seconds": round(seconds, 1),
            "seconds_per_step": round(seconds / max(1, steps), 4),
            "written": now(),
            "versions": versions(),
        },
    )


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's record; a missing or damaged one is one sentence."""
    if not path.is_file():
        raise NotFoundError(f"there is no checkpoint {path}")
    try:
        record = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(
            f"{path} is not a readable checkpoint ({error}); delete it to start afresh"
        ) from error
    if not isinstance(record, dict) or "average" not in record:
        raise DataError(f"{path} is not a checkpoint of brainmap's training")
    return record


def load_network(path: Path) -> tuple[CenterNet, GridSettings]:
    """The trained network of a checkpoint or a detector folder, ready to infer, and its grid.

    Parameters
    ----------
    path : Path
        `checkpoint.pt` of pre-training or fine-tuning, the folder that holds one, or a detector folder
        with `weights.pt`. Of a training that watched a validation score the best network is taken, else
        the last; averaged weights both.

    Raises
    ------
    NotFoundError
        If there is no such file.
    DataError
        If the file is damaged or no network of brainmap's.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in (WEIGHTS, CHECKPOINT) if (path / name).is_file()]
        if not found:
            raise NotFoundError(f"{path} holds neither {WEIGHTS} nor {CHECKPOINT}: no network to train from")
        path = found[0]
    record = read_checkpoint(path)
    settings = record if "network" in record else record.get("config", {})
    best = record.get("best") or record
    try:
        model = CenterNet(CenterNetConfig.from_dict(settings["network"]))
        model.load_state_dict(best["average"])
        return model.eval(), GridSettings(**settings["grid"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise DataError(f"{path} does not hold a network of brainmap's ({error})") from error


def fingerprint_weights(model: CenterNet) -> str:
    """SHA-256 of a network's weights."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()
