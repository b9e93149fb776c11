"""Fine-tuning on aggregated real tiles: model T of the founding study (methods 6, target B).

Starts from a network, most often model P. The heat map is taught by the soft maps of the ground truth, or by its
cells as the exact centres of pre-training; the sub-pixel offset by its cells. Simulated volumes may be mixed in,
so that a detector of 3-D tissue does not forget the slices beside a section, with their own truth and with what
the start said of them; tiles without ground truth may be taught by the network's own average.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from brainmap.errors import DataError, UsageError
from brainmap.files import fingerprint
from brainmap.gt.truth import GroundTruth
from brainmap.settings import check_keys
from brainmap.tiles.tiles import Tiles, hold_out
from brainmap.train.judge.predict import predict_tiles
from brainmap.train.judge.scores import Scored, TruePoints, sweep
from brainmap.train.learn.centernet import CenterNet
from brainmap.train.learn.loop import Job, Schedule, fingerprint_weights, load_network, mixed_precision, train
from brainmap.train.learn.losses import agreement_loss, focal_loss, offset_loss, soft_map_loss
from brainmap.train.learn.pretrain import Batch, change_contrast, draw_batch
from brainmap.train.learn.samples import GridSettings, NetVolume, Samples, load_volumes
from brainmap.train.learn.tile_samples import TileBatch, TileSamples, prepare_tiles

__all__ = ["TARGETS", "FinetuneConfig", "finetune", "finetune_network", "steps_for"]

log = logging.getLogger(__name__)

# Scores at which validation looks: enough for an average precision that is compared with itself.
_LEVELS = 1 / (1 + np.exp(-np.linspace(-4.5, 6, 43)))
TARGETS = ("soft", "centres")


@dataclass(frozen=True)
class FinetuneConfig:
    """Everything that decides the outcome of fine-tuning; stored in the checkpoint.

    Parameters
    ----------
    cell_diameter_um : float
        Typical cell in the tiles.
    steps, learning_rate, weight_decay, warm_up, clip, average
        As in `PretrainConfig`.
    epochs, most_steps : float, int
        With `epochs` above 0 the steps follow the data: so many times the area of the tiles is drawn, in
        at least `steps` and at most `most_steps`.
    target : str
        "soft": the maps of the ground truth, by a weighted cross-entropy (target B of the study); "centres":
        its accepted cells, by the loss of pre-training, so that a logit goes on meaning what it meant to a start
        that was trained that way.
    crop, batch : int
        Samples are `crop` network pixels wide, `batch` of them, rehearsal included, make a step.
    background_weight, positive_weight, gamma : float
        Weight of an output cell of soft target y: w_bg + (w_pos - w_bg) y^gamma.
    doubt : float
        How much less undecided candidates count, 0 to 1 (see `tile_samples.soft_tile`).
    on_cells : float
        Share of the crops laid over a cell drawn by its confidence.
    scales : tuple of float
        Cells appear this much larger than the network expects, one of these at random.
    offset_weight : float
        Weight of the offset loss at accepted cells; 0: regression heads get no gradient (the study's way).
    freeze_statistics : bool
        Whether batch normalisation keeps the statistics of the start.
    rehearsal, rehearsal_weight : float
        Share of the batch drawn from simulated volumes, where there are any, and the weight of its loss.
    distil : float
        Share of that loss that holds the heat against the start's own; the rest holds it against the truth.
    unlabelled, consistency : float
        Share of the batch drawn from tiles without ground truth, where there are any, and the weight of
        their loss against the average network's heat map.
    validation : float
        Share of the tiles, whole slices only, that decide when to stop; 0: all tiles teach.
    check_every, patience : int
        Steps between looks at the validation score; looks without a better one before stopping.
    seed : int
    """

    cell_diameter_um: float = 10.0
    steps: int = 200
    epochs: float = 0.0
    most_steps: int = 1500
    target: str = "soft"
    learning_rate: float = 6e-4
    weight_decay: float = 1e-4
    warm_up: int = 20
    clip: float = 5.0
    average: float = 0.99
    crop: int = 96
    batch: int = 6
    background_weight: float = 1.0
    positive_weight: float = 30.0
    gamma: float = 1.0
    doubt: float = 0.0
    on_cells: float = 0.5
    scales: tuple[float, ...] = (0.85, 1.0, 1.18)
    offset_weight: float = 0.1
    freeze_statistics: bool = False
    rehearsal: float = 0.4
    rehearsal_weight: float = 1.0
    distil: float = 0.0
    unlabelled: float = 0.25
    consistency: float = 0.0
    validation: float = 0.2
    check_every: int = 25
    patience: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("cell_diameter_um", "steps", "learning_rate", "crop", "batch", "check_every"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}; give a positive number")
        for name in ("doubt", "on_cells", "rehearsal", "distil", "unlabelled", "validation"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)}; give a share between 0 and 1")
        if self.target not in TARGETS:
            raise UsageError(f"target is {self.target!r}; give one of {', '.join(TARGETS)}")
        if not self.epochs >= 0 or (self.epochs and self.most_steps < self.steps):
            raise UsageError(
                f"epochs is {self.epochs} and most_steps {self.most_steps}; give an epochs that is not negative, "
                f"and a most_steps of at least steps, {self.steps}"
            )
        if not self.scales or min(self.scales) <= 0:
            raise UsageError(f"scales is {self.scales}; give positive numbers such as 1.0")
        if self.rehearsal + self.unlabelled >= 1:
            raise UsageError(
                "rehearsal and unlabelled leave no room for the tiles; their sum must stay below 1"
            )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> FinetuneConfig:
        """From a dict as TOML or a checkpoint holds it; an unknown key is an error."""
        check_keys(cls, record, "fine-tuning")
        record = dict(record)
        if "scales" in record:
            record["scales"] = tuple(float(s) for s in record["scales"])
        return cls(**record)


def finetune(
    config: FinetuneConfig,
    work: Path,
    tiles: Tiles,
    truth: GroundTruth,
    start: Path,
    pool: Path | None = None,
    unlabelled: Tiles | None = None,
    device: str = "cpu",
) -> Path:
    """Train model T from a network on disk; returns the checkpoint.

    Parameters
    ----------
    config : FinetuneConfig
    work : Path
        Folder for `checkpoint.pt`, `checkpoint.json` and `log.jsonl`; an interrupted training goes on.
    tiles : Tiles
        Tiles that `truth` knows.
    truth : GroundTruth
    start : Path
        Checkpoint or detector folder; see `load_network`.
    pool : Path, optional
        Folder of volumes to rehearse, as pre-training prepares it.
    unlabelled : Tiles, optional
        Tiles without ground truth, used where `config.consistency` is above 0.
    device : str
        "cpu", "cuda" or "mps".

    Raises
    ------
    DataError, NotFoundError, UsageError
        Data that cannot be used, or a checkpoint of other settings or data.
    """
    model, grid = load_network(start)
    volumes = _read_pool(pool) if pool is not None and config.rehearsal else []
    return finetune_network(config, work, tiles, truth, model, grid, volumes, unlabelled, device)


def finetune_network(
    config: FinetuneConfig,
    work: Path,
    tiles: Tiles,
    truth: GroundTruth,
    model: CenterNet,
    grid: GridSettings,
    volumes: list[NetVolume] | None = None,
    unlabelled: Tiles | None = None,
    device: str = "cpu",
) -> Path:
    """`finetune` from a network in memory; a fresh one shows what pre-training is worth."""
    if config.crop % model.config.multiple:
        raise UsageError(f"crop is {config.crop}; give a multiple of {model.config.multiple}")
    if config.consistency == 0:
        unlabelled = None
    inputs = {
        "start_sha256": fingerprint_weights(model),
        "tiles_sha256": _fingerprint_tiles(tiles, truth),
        "rehearsed_volumes": len(volumes or []),
        "unlabelled_tiles": [] if unlabelled is None else [str(name) for name in unlabelled.ids],
    }
    held_out = _hold_out(tiles, config)
    teaching = tiles.take(~held_out)
    loss = _make_loss(config, teaching, truth, model, grid, volumes or [], unlabelled)
    validate = None
    if held_out.any():
        checked = tiles.take(held_out)

        def validate(network: CenterNet) -> float:
            return _validation_score(network, checked, truth, grid, config.cell_diameter_um)

    _set_mode(model, config)
    shares = _shares(config, bool(volumes), unlabelled is not None)
    schedule = Schedule(
        steps_for(config, teaching, grid, shares[0]), config.learning_rate, config.weight_decay, config.warm_up,
        config.clip, config.average, config.check_every, config.check_every, config.check_every, config.patience,
    )  # fmt: skip
    log.info("fine-tuning on %d tiles, %d held out", len(teaching), int(held_out.sum()))
    job = Job("finetune", config, schedule, model, grid, loss, config.seed, inputs, validate)
    return train(job, work, device)


def _set_mode(model: CenterNet, config: FinetuneConfig) -> None:
    """Which parts learn: heat map and backbone; the offset where it is taught; never the size."""
    model.train()
    model.size.requires_grad_(False)
    model.offset.requires_grad_(config.offset_weight > 0)
    if config.freeze_statistics:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


def _make_loss(
    config: FinetuneConfig,
    tiles: Tiles,
    truth: GroundTruth,
    model: CenterNet,
    grid: GridSettings,
    volumes: list[NetVolume],
    unlabelled: Tiles | None,
) -> Callable[[CenterNet, CenterNet, np.random.Generator], tuple[Tensor, dict[str, float]]]:
    """The loss of a random batch: tiles first, then what is rehearsed, then what has no ground truth."""
    network = model.config
    diameter, scales = config.cell_diameter_um, config.scales
    exact = config.target == "centres"
    prepared = prepare_tiles(tiles, truth, network, grid, diameter, scales, config.doubt, exact)
    taught = TileSamples(prepared, config.crop, network, config.on_cells)
    n_taught, n_rehearsed, n_free = _shares(config, bool(volumes), unlabelled is not None)
    simulated = Samples(volumes, config.crop, network.slices, network.stride, grid.pixel_um)
    start = copy.deepcopy(model).eval().requires_grad_(False) if config.distil else None
    free = None
    if unlabelled is not None and n_free:
        blank = prepare_tiles(unlabelled, None, network, grid, diameter, scales)
        free = TileSamples(blank, config.crop, network)

    def loss(
        model: CenterNet, average: CenterNet, rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        device = next(model.parameters()).device
        batch = taught.draw_batch(n_taught, rng)
        images = [batch.image]
        if n_rehearsed:
            rehearsed = draw_batch(simulated, n_rehearsed, rng)
            images.append(rehearsed[0])
        if free is not None:
            images.append(free.draw_batch(n_free, rng).image)
        image = change_contrast(torch.cat(images)).to(device)
        with mixed_precision(model):
            outputs = model(image.contiguous(memory_format=torch.channels_last))
        logit, offset, _ = (o.float() for o in outputs)
        total, parts = _tile_loss(config, logit[:n_taught], offset[:n_taught], batch)
        if n_rehearsed:
            own = slice(n_taught, n_taught + n_rehearsed)
            value = _rehearsal_loss(config, logit[own], offset[own], rehearsed)
            if start is not None:
                with torch.no_grad():
                    before = start.to(device)(image[own])[0].float()
                kept = agreement_loss(logit[own], before)
                value = (1 - config.distil) * value + config.distil * kept
                parts["kept"] = kept.item()
            total = total + config.rehearsal_weight * value
            parts["rehearsal"] = value.item()
        if free is not None:
            value = _consistency_loss(config, logit[-n_free:], images[-1].to(device), average)
            total = total + config.consistency * value
            parts["consistency"] = value.item()
        return total, parts

    return loss


def steps_for(config: FinetuneConfig, tiles: Tiles, grid: GridSettings, taught: int) -> int:
    """Optimiser steps for some tiles, of which a step sees `taught` crops."""
    if not config.epochs:
        return config.steps
    pixel_um = grid.pixel_um * config.cell_diameter_um / grid.cell_diameter_um
    side = tiles.shapes * tiles.columns["voxel_um"][:, 1:] / pixel_um
    steps = math.ceil(config.epochs * float(side.prod(axis=1).sum()) / (taught * config.crop**2))
    return min(max(steps, config.steps), config.most_steps)


def _shares(config: FinetuneConfig, rehearse: bool, unlabelled: bool) -> tuple[int, int, int]:
    """Samples of a batch from tiles with ground truth, from volumes, and from tiles without."""
    n_rehearsed = round(config.batch * config.rehearsal) if rehearse else 0
    n_free = round(config.batch * config.unlabelled) if unlabelled else 0
    n_taught = config.batch - n_rehearsed - n_free
    if n_taught < 1:
        raise UsageError(f"a batch of {config.batch} leaves no room for tiles with ground truth; enlarge it")
    return n_taught, n_rehearsed, n_free


def _tile_loss(
    config: FinetuneConfig, logit: Tensor, offsets: Tensor, batch: TileBatch
) -> tuple[Tensor, dict[str, float]]:
    device = logit.device
    heat = _heat_loss(config, logit, batch.target.to(device), batch.weight.to(device))
    if not config.offset_weight:
        return heat, {"heat": heat.item()}
    place = offset_loss(offsets, batch.index.to(device), batch.offset.to(device), batch.confidence.to(device))
    return heat + config.offset_weight * place, {"heat": heat.item(), "offset": place.item()}


def _rehearsal_loss(config: FinetuneConfig, logit: Tensor, offsets: Tensor, batch: Batch) -> Tensor:
    """The tiles' own losses on simulated volumes: scores of another loss would draw the tiles' along."""
    _, heat, weight, index, place = (part.to(logit.device) for part in batch)
    loss = _heat_loss(config, logit, heat, weight)
    sure = torch.ones(len(index), device=logit.device)
    return loss + config.offset_weight * offset_loss(offsets, index, place, sure)


def _heat_loss(config: FinetuneConfig, logit: Tensor, target: Tensor, trust: Tensor) -> Tensor:
    if config.target == "centres":
        return focal_loss(logit, target, trust, by_image=True)
    return soft_map_loss(logit, target, trust, config.background_weight, config.positive_weight, config.gamma)


def _consistency_loss(config: FinetuneConfig, logit: Tensor, plain: Tensor, average: CenterNet) -> Tensor:
    """Heat of the changed image against the average network's of the plain one (mean teacher)."""
    with torch.no_grad():
        teacher = average(plain)[0].float()
    if config.target == "centres":
        return agreement_loss(logit, teacher)
    target = torch.sigmoid(teacher)
    weights = (config.background_weight, config.positive_weight, config.gamma)
    return soft_map_loss(logit, target, torch.ones_like(target), *weights)


def _hold_out(tiles: Tiles, config: FinetuneConfig) -> np.ndarray:
    """Tiles that watch the training; none where all come from one slice."""
    none = np.zeros(len(tiles), bool)
    if config.validation == 0:
        return none
    if len(np.unique(tiles.slice_key)) < 2:
        log.warning("all tiles come from one slice: nothing can be held out, training runs all its steps")
        return none
    return hold_out(tiles, config.validation, config.seed)


def _validation_score(
    network: CenterNet, tiles: Tiles, truth: GroundTruth, grid: GridSettings, cell_diameter_um: float
) -> float:
    """Average precision at a third of a cell's diameter against the validation points of the ground truth."""
    found = predict_tiles(network, tiles, grid, cell_diameter_um)
    peaks = [truth.peaks(str(name)) for name in tiles.ids]
    image = np.repeat(np.arange(len(peaks)), [len(xy) for xy, _ in peaks])
    xy, confidence = (np.concatenate(parts) for parts in zip(*peaks, strict=True))
    pixel_um = tiles.columns["voxel_um"][:, [2, 1]].astype(np.float64)
    true = TruePoints(np.arange(len(peaks)), image, xy * pixel_um[image], confidence)
    scored = Scored(found.image, found.xy * pixel_um[found.image], found.score)
    return sweep(scored, [true], cell_diameter_um / 3, levels=_LEVELS).average_precision


def _read_pool(folder: Path) -> list[NetVolume]:
    volumes = [volume for path in sorted(folder.glob("*.npz")) for volume in load_volumes(path)]
    if not volumes:
        raise DataError(f"{folder} holds no volumes to rehearse; give a pool of pre-training")
    return volumes


def _fingerprint_tiles(tiles: Tiles, truth: GroundTruth) -> str:
    """Of the tiles' names and their points; images and maps follow from them."""
    return fingerprint([[str(name), *(v.round(3) for v in truth.points(str(name)))] for name in tiles.ids])
