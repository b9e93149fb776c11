"""Pre-training on simulated tissue: model P of the founding study.

Reads top to bottom: pool of volumes, batches, one step; steps, averaging and checkpoints are `loop`'s. A run
that is interrupted goes on from its last checkpoint with the weights, the optimiser and the random numbers
it had.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from brainmap.errors import UsageError
from brainmap.files import fingerprint
from brainmap.image.intensity import GAIN, KNEE
from brainmap.settings import check_keys
from brainmap.train.learn.centernet import CenterNet, CenterNetConfig
from brainmap.train.learn.distil import distillation_loss
from brainmap.train.learn.loop import (
    Job,
    Schedule,
    fingerprint_weights,
    mixed_precision,
    read_checkpoint,
    train,
)
from brainmap.train.learn.losses import centernet_loss
from brainmap.train.learn.pool import PoolConfig, load_pool, prepare_pool
from brainmap.train.learn.samples import GridSettings, NetVolume, Samples

__all__ = ["PretrainConfig", "load_model", "pretrain"]

log = logging.getLogger(__name__)

SAVE_EVERY = 500

# Images, heat maps, weights, (sample, row, column) of centres and their offsets.
Batch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides the outcome of pre-training; stored in the checkpoint.

    Parameters
    ----------
    grid : GridSettings
    network : CenterNetConfig
    pool : PoolConfig
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
    extra_share : float
        Probability that a sample is drawn from the `extra` volumes given to `pretrain`.
    by_image : bool
        Whether the heat map's loss is normalised image by image; see `losses.focal_loss`.
    contrast_spread : float
        Spread of the logarithm of the factor by which each sample's contrast is changed.
    grey_levels : float
        Probability that a sample has only as many grey levels as a dark 8-bit image has.
    seed : int
    """

    grid: GridSettings = field(default_factory=GridSettings)
    network: CenterNetConfig = field(default_factory=CenterNetConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    crop: int = 128
    batch: int = 16
    steps: int = 12_000
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    warm_up: int = 200
    clip: float = 5.0
    average: float = 0.998
    extra_share: float = 0.0
    by_image: bool = False
    contrast_spread: float = 0.25
    grey_levels: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.crop % self.network.multiple:
            raise UsageError(f"crop is {self.crop}; give a multiple of {self.network.multiple}")
        for name in ("batch", "steps", "learning_rate"):
            if getattr(self, name) <= 0:
                raise UsageError(f"{name} is {getattr(self, name)}; give a positive number")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> PretrainConfig:
        """From a dict as TOML or a checkpoint holds it; an unknown key is an error."""
        check_keys(cls, record, "pre-training")
        record = dict(record)
        if "grid" in record:
            check_keys(GridSettings, record["grid"], "the grid")
            record["grid"] = GridSettings(**record["grid"])
        if "pool" in record:
            record["pool"] = PoolConfig.from_dict(record["pool"])
        if "network" in record:
            record["network"] = CenterNetConfig.from_dict(record["network"])
        return cls(**record)


def pretrain(
    config: PretrainConfig,
    work: Path,
    pool: Path | None = None,
    device: str = "cpu",
    data: Path | None = None,
    start: CenterNet | None = None,
    extra: list[NetVolume] | None = None,
    extra_weight: list[float] | None = None,
    teacher: CenterNet | None = None,
) -> Path:
    """Train model P; returns the checkpoint.

    Parameters
    ----------
    config : PretrainConfig
    work : Path
        Folder for `checkpoint.pt`, `checkpoint.json` and `log.jsonl`. A checkpoint of the same
        configuration is continued; one of another configuration is refused.
    pool : Path, optional
        Folder of the simulated volumes, `work/pool` by default.
    device : str
        "cpu", "cuda" or "mps".
    data : Path, optional
        Folder of real images that the pool's settings refer to.
    start : CenterNet, optional
        Network to go on from instead of random weights.
    extra : list of NetVolume, optional
        Further volumes, such as annotated sections; drawn with probability `config.extra_share`.
    extra_weight : list of float, optional
        How often each of them is drawn, relative to the others; equally often by default.
    teacher : CenterNet, optional
        Network whose answers are learnt instead of the truth; see `distil`.

    Raises
    ------
    DataError
        If the loss stops being a number, or the checkpoint cannot be read.
    UsageError
        If `work` holds a checkpoint of another configuration, or the device is not there.
    """
    network, grid = config.network, config.grid
    made = load_pool(prepare_pool(pool or work / "pool", config.pool, grid, data), config.pool)
    extra = (extra or []) if config.extra_share else []
    share = config.extra_share if extra else 0.0
    weight = np.array(extra_weight if extra_weight and extra else [1.0] * len(extra))
    probability = np.append(made.probability * (1 - share), share * weight / max(weight.sum(), 1e-12))
    samples = Samples(
        made.volumes + extra, config.crop, network.slices, network.stride, grid.pixel_um, probability
    )

    def loss(
        model: CenterNet, average: CenterNet, rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        batch = draw_batch(samples, config.batch, rng)
        image = change_contrast(batch[0], config.contrast_spread, config.grey_levels)
        if teacher is not None:
            return distillation_loss(model, teacher, image)
        return centernet_step(model, (image, *batch[1:]), config.by_image)

    torch.manual_seed(config.seed)
    inputs: dict[str, Any] = {}
    if start is not None:
        inputs["start_sha256"] = fingerprint_weights(start)
    if teacher is not None:
        teacher = teacher.to(device).eval()
        inputs["teacher_sha256"] = fingerprint_weights(teacher)
    if extra:
        inputs["extra_sha256"] = fingerprint([v.cells.tolist() for v in extra])
    model = CenterNet(network)
    if start is not None:
        model.load_state_dict(start.state_dict())
    schedule = Schedule(
        config.steps, config.learning_rate, config.weight_decay, config.warm_up, config.clip,
        config.average, SAVE_EVERY,
    )  # fmt: skip
    return train(Job("pretrain", config, schedule, model, grid, loss, config.seed, inputs), work, device)


def pretraining_loss(
    model: CenterNet, batch: Batch, by_image: bool = False
) -> tuple[Tensor, dict[str, float]]:
    """CenterNet's loss of a batch, contrast changed at random; the network's mode is the caller's."""
    return centernet_step(model, (change_contrast(batch[0]), *batch[1:]), by_image)


def centernet_step(model: CenterNet, batch: Batch, by_image: bool = False) -> tuple[Tensor, dict[str, float]]:
    """CenterNet's loss of a batch as it is."""
    device = next(model.parameters()).device
    image, heat, weight, index, offset = (part.to(device) for part in batch)
    with mixed_precision(model):
        outputs = model(image.contiguous(memory_format=torch.channels_last))
    size = 8.0 / model.config.stride
    return centernet_loss(tuple(o.float() for o in outputs), heat, weight, index, offset, size, by_image)


def draw_batch(samples: Samples, size: int, rng: np.random.Generator) -> Batch:
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


def change_contrast(image: Tensor, spread: float = 0.25, grey_levels: float = 0.0) -> Tensor:
    """Scale, shift and roughen the contrast of each sample, as another brain's normalisation might.

    Parameters
    ----------
    image : Tensor
        (batch, slices, H, W), network input.
    spread : float
        Standard deviation of the logarithm of each sample's factor.
    grey_levels : float
        Probability that a sample is rounded to steps of 0.1 to 0.66 standard deviations of the noise, as an image
        whose tissue has five to forty grey levels is.
    """
    shape = (len(image), 1, 1, 1)
    # Beyond the volume's faces there is nothing, exactly.
    filled = image != 0
    contrast = torch.sinh(image / GAIN)
    contrast = contrast * torch.exp(spread * torch.randn(shape)) + 0.12 * torch.randn(shape)
    noisy = (torch.rand(shape) < 0.25) * torch.rand(shape) * 0.35
    contrast = contrast + noisy * torch.randn(image.shape)
    if grey_levels:
        step = (0.1 + 0.56 * torch.rand(shape)) / KNEE
        contrast = torch.where(torch.rand(shape) < grey_levels, torch.round(contrast / step) * step, contrast)
    return (GAIN * torch.asinh(contrast)).clamp(-0.3, 0.7) * filled


def load_model(path: Path) -> tuple[CenterNet, PretrainConfig]:
    """The averaged network of a checkpoint, ready to infer, and its configuration."""
    record = read_checkpoint(path)
    config = PretrainConfig.from_dict(record["config"])
    model = CenterNet(config.network)
    model.load_state_dict(record["average"])
    return model.eval(), config
