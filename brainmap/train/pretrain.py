"""Pre-training on simulated tissue: model P of the founding study.

Reads top to bottom: pool of volumes, batches, one step, checkpoints. A run that is interrupted goes on
from its last checkpoint with the weights, the optimiser and the random numbers it had.
"""

from __future__ import annotations

import json
import logging
import math
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from brainmap.errors import DataError, UsageError
from brainmap.provenance import atomic_path
from brainmap.train.centernet import CenterNet, CenterNetConfig
from brainmap.train.losses import centernet_loss
from brainmap.train.samples import GridSettings, NetVolume, Samples, load_volumes, make_volumes, save_volumes

__all__ = ["PretrainConfig", "load_model", "prepare_pool", "pretrain"]

log = logging.getLogger(__name__)

# Seeds of training tissue begin here; calibration and tests stay below.
TRAINING_SEED = 1_000_000
_PER_FILE = 25
SAVE_EVERY, LOG_EVERY = 500, 100


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides the outcome of pre-training; stored in the checkpoint.

    Parameters
    ----------
    grid : GridSettings
    network : CenterNetConfig
    volumes : int
        Simulated volumes in the pool.
    crop, batch : int
        Samples are `crop` network pixels wide, `batch` of them make a step.
    steps : int
        Optimiser steps.
    learning_rate, weight_decay, warm_up : float, float, int
        AdamW; linear warm-up over `warm_up` steps, then half a cosine down to a hundredth.
    clip : float
        Largest gradient norm.
    average : float
        Decay of the exponential moving average of the weights; the average is what is exported.
    seed : int
    """

    grid: GridSettings = field(default_factory=GridSettings)
    network: CenterNetConfig = field(default_factory=CenterNetConfig)
    volumes: int = 2000
    crop: int = 128
    batch: int = 16
    steps: int = 12_000
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    warm_up: int = 200
    clip: float = 5.0
    average: float = 0.998
    seed: int = 0

    def __post_init__(self) -> None:
        if self.crop % self.network.multiple:
            raise UsageError(f"crop is {self.crop}; give a multiple of {self.network.multiple}")
        for name in ("volumes", "batch", "steps", "learning_rate"):
            if getattr(self, name) <= 0:
                raise UsageError(f"{name} is {getattr(self, name)}; give a positive number")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> PretrainConfig:
        """From a dict as TOML or a checkpoint holds it; an unknown key is an error."""
        unknown = set(record) - {f.name for f in fields(cls)}
        if unknown:
            raise UsageError(f"unknown setting {sorted(unknown)[0]!r} for pre-training")
        record = dict(record)
        if "grid" in record:
            record["grid"] = GridSettings(**record["grid"])
        if "network" in record:
            record["network"] = CenterNetConfig.from_dict(record["network"])
        return cls(**record)


def prepare_pool(folder: Path, config: PretrainConfig, processes: int = 2) -> list[Path]:
    """Simulate the pool of training volumes; files that are there already are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"volumes-{index:04d}.npz" for index in range(-(-config.volumes // _PER_FILE))]
    missing = [(path, index) for index, path in enumerate(files) if not path.exists()]
    if missing:
        log.info("simulating %d volumes", len(missing) * _PER_FILE)
        if processes < 2:
            for path, index in missing:
                _make_file(path, index, config.grid)
            return files
        with ProcessPoolExecutor(processes) as executor:
            jobs = [executor.submit(_make_file, path, index, config.grid) for path, index in missing]
            for job in jobs:
                job.result()
    return files


def _make_file(path: Path, index: int, grid: GridSettings) -> None:
    first = TRAINING_SEED + _PER_FILE * index
    save_volumes(path, make_volumes(range(first, first + _PER_FILE), grid))


def load_pool(files: list[Path], volumes: int) -> list[NetVolume]:
    """The first `volumes` volumes of the files."""
    pool: list[NetVolume] = []
    for path in files:
        pool.extend(load_volumes(path))
    if len(pool) < volumes:
        raise DataError(
            f"{files[0].parent} holds {len(pool)} volumes, {volumes} are needed; delete it and rerun"
        )
    return pool[:volumes]


def pretrain(config: PretrainConfig, work: Path, pool: Path | None = None) -> Path:
    """Train model P; returns the checkpoint.

    Parameters
    ----------
    config : PretrainConfig
    work : Path
        Folder for `checkpoint.pt` and `log.jsonl`. A checkpoint of the same configuration is
        continued; one of another configuration is refused.
    pool : Path, optional
        Folder of the simulated volumes, `work/pool` by default.

    Raises
    ------
    DataError
        If the loss stops being a number, or the checkpoint cannot be read.
    UsageError
        If `work` holds a checkpoint of another configuration.
    """
    work.mkdir(parents=True, exist_ok=True)
    volumes = load_pool(prepare_pool(pool or work / "pool", config), config.volumes)
    samples = Samples(
        volumes, config.crop, config.network.slices, config.network.stride, config.grid.pixel_um
    )
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    model = CenterNet(config.network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = CenterNet(config.network)
    average.load_state_dict(model.state_dict())
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    checkpoint = work / "checkpoint.pt"
    state = _State(model, average, optimiser, rng)
    step = state.load(checkpoint, config) if checkpoint.exists() else 0
    model.train()
    began, sums = time.monotonic(), {"loss": 0.0, "heat": 0.0, "offset": 0.0, "size": 0.0}
    while step < config.steps:
        image, heat, weight, index, offset = _batch(samples, config.batch, rng)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(config, step)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = model(_change_contrast(image).contiguous(memory_format=torch.channels_last))
        loss, parts = centernet_loss(
            tuple(o.float() for o in outputs), heat, weight, index, offset, 8.0 / config.network.stride
        )
        if not torch.isfinite(loss):
            raise DataError(
                f"the loss is {loss.item()} at step {step}; lower the learning rate or check the tiles"
            )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimiser.step()
        step += 1
        _blend(average, model, min(config.average, (1 + step) / (10 + step)))
        for name, value in {"loss": loss.item(), **parts}.items():
            sums[name] += value
        if step % LOG_EVERY == 0:
            record = {"step": step, "seconds": round(time.monotonic() - began, 1)}
            record |= {name: round(value / LOG_EVERY, 4) for name, value in sums.items()}
            sums = dict.fromkeys(sums, 0.0)
            log.info("%s", record)
            with (work / "log.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")
        if step % SAVE_EVERY == 0 or step == config.steps:
            state.save(checkpoint, config, step)
    return checkpoint


def learning_rate(config: PretrainConfig, step: int) -> float:
    """Learning rate of a step."""
    if step < config.warm_up:
        return config.learning_rate * (step + 1) / config.warm_up
    progress = (step - config.warm_up) / max(1, config.steps - config.warm_up)
    return config.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def _batch(
    samples: Samples, size: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Images, heat maps, weights, and the centres of the whole batch."""
    drawn = [samples.draw(rng) for _ in range(size)]
    images = np.stack([image for image, _ in drawn])
    heat = np.stack([targets.heat for _, targets in drawn])[:, None]
    weight = np.stack([targets.weight for _, targets in drawn])[:, None]
    index: list[NDArray[np.int64]] = [
        np.column_stack([np.full(len(t.centres), n), t.centres]) for n, (_, t) in enumerate(drawn)
    ]
    offset = np.concatenate([t.offset for _, t in drawn])
    arrays = (images, heat, weight, np.concatenate(index).astype(np.int64), offset)
    images_t, heat_t, weight_t, index_t, offset_t = (torch.from_numpy(a) for a in arrays)
    return images_t, heat_t, weight_t, index_t, offset_t


def _change_contrast(image: Tensor) -> Tensor:
    """Scale, shift and roughen the contrast of each sample, as another brain's normalisation might."""
    shape = (len(image), 1, 1, 1)
    # Beyond the volume's faces there is nothing, exactly.
    filled = image != 0
    contrast = torch.sinh(image / 0.14)
    contrast = contrast * torch.exp(0.25 * torch.randn(shape)) + 0.12 * torch.randn(shape)
    noisy = (torch.rand(shape) < 0.25) * torch.rand(shape) * 0.35
    contrast = contrast + noisy * torch.randn(image.shape)
    return (0.14 * torch.asinh(contrast)).clamp(-0.3, 0.7) * filled


@torch.no_grad()
def _blend(average: CenterNet, model: CenterNet, decay: float) -> None:
    """Move the averaged weights towards the model's; buffers are copied."""
    for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
        mine.lerp_(theirs, 1 - decay)
    for mine, theirs in zip(average.buffers(), model.buffers(), strict=True):
        if mine.is_floating_point():
            mine.lerp_(theirs, 1 - decay)
        else:
            mine.copy_(theirs)


@dataclass
class _State:
    """What a checkpoint holds."""

    model: CenterNet
    average: CenterNet
    optimiser: torch.optim.Optimizer
    rng: np.random.Generator

    def save(self, path: Path, config: PretrainConfig, step: int) -> None:
        record = {
            "config": config.to_dict(),
            "step": step,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "numpy": self.rng.bit_generator.state,
            "torch": torch.get_rng_state(),
        }
        with atomic_path(path) as part:
            torch.save(record, part)

    def load(self, path: Path, config: PretrainConfig) -> int:
        record = read_checkpoint(path)
        if PretrainConfig.from_dict(record["config"]) != config:
            raise UsageError(f"{path} was trained with other settings; choose another folder or delete it")
        self.model.load_state_dict(record["model"])
        self.average.load_state_dict(record["average"])
        self.optimiser.load_state_dict(record["optimiser"])
        self.rng.bit_generator.state = record["numpy"]
        torch.set_rng_state(record["torch"])
        return int(record["step"])


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's record; a damaged one is one sentence."""
    try:
        record = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(
            f"{path} is not a readable checkpoint ({error}); delete it to start afresh"
        ) from error
    if not isinstance(record, dict) or "average" not in record:
        raise DataError(f"{path} is not a checkpoint of brainmap's pre-training")
    return record


def load_model(path: Path) -> tuple[CenterNet, PretrainConfig]:
    """The averaged network of a checkpoint, ready to infer, and its configuration."""
    record = read_checkpoint(path)
    config = PretrainConfig.from_dict(record["config"])
    model = CenterNet(config.network)
    model.load_state_dict(record["average"])
    return model.eval(), config
