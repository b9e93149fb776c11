"""Generator of tissue background around given cells: a mask-conditioned WGAN-GP on unlabelled real tiles.

Source: the founding study, methods 5. A random mask M of discs and a cell image C are mapped to a background
B = G(M, C); X = C M + B (1 - M) must look like a real tile to the critic. Reads top to bottom:
training, one step, what is kept, use; settings, data and networks have their modules.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from brainmap.errors import DataError, UsageError
from brainmap.files import atomic_path, fingerprint, now, write_json
from brainmap.lock import held
from brainmap.machine import versions
from brainmap.progress import task
from brainmap.tiles.tiles import Tiles
from brainmap.train.learn.loop import CHECKPOINT, KEPT, check_device, read_checkpoint, recorded_step
from brainmap.train.synthesis.generator_data import (
    DiscSource,
    History,
    RandomDiscs,
    RealCrops,
    mask_and_cells,
)
from brainmap.train.synthesis.generator_networks import BackgroundNet, Critic, Noise, gradient_penalty
from brainmap.train.synthesis.generator_settings import GeneratorConfig, read_generator_config

__all__ = ["Generator", "GeneratorConfig", "load_generator", "read_generator_config", "train_generator"]

log = logging.getLogger(__name__)

KIND = "generator"
# Sample grids always show the same masks and the same noise, so that they can be compared.
_SHOWN, _SHOWN_SEED = 4, 20_000


def train_generator(
    config: GeneratorConfig, work: Path, tiles: Tiles, device: str = "cpu", discs: DiscSource | None = None
) -> Path:
    """Train, or go on training; returns the checkpoint.

    On a CPU an interrupted training ends with exactly the weights of one that was not.

    Parameters
    ----------
    config : GeneratorConfig
    work : Path
        Folder for `checkpoint.pt`, `checkpoint.json` (readable), `log.jsonl` and `samples/`.
    tiles : Tiles
        Real tiles; labels are not needed.
    device : str
        "cpu", "cuda" or "mps".
    discs : DiscSource, optional
        Where discs lie, such as a `Placement` fitted to annotations; by default anywhere, as `config` says.

    Raises
    ------
    DataError
        If there are no tiles, a loss stops being a number, or the checkpoint cannot be read.
    UsageError
        If `work` holds a checkpoint of other settings or data, or the device is not there.
    """
    check_device(device)
    real = RealCrops(tiles, config.size, config.fit)
    job = _Job(config, real, discs or RandomDiscs(config.discs, config.radius_px))
    with held(work, KEPT.format(work=work)):
        return _train(job, work, device, len(tiles))


def _train(job: _Job, work: Path, device: str, tiles: int) -> Path:
    config, state = job.config, _State.start(job, device)
    checkpoint = work / CHECKPOINT
    if checkpoint.exists():
        state.load(checkpoint, job)
    _cut_log(work / "log.jsonl", state.step)
    if state.step and recorded_step(work) != state.step:
        # Stopped between the two files.
        _write_record(work / "checkpoint.json", job, state, tiles, 0.0)
    began, first = time.monotonic(), state.step
    with task("training the generator", config.steps, "steps", first) as steps:
        while state.step < config.steps:
            for _ in range(config.critic_steps):
                state.add(_critic_step(job, state))
            state.add({"steps": 1, **_generator_step(job, state)})
            state.step += 1
            steps.update(state.step)
            last = state.step == config.steps
            if state.step % config.log_every == 0:
                _write_log(work / "log.jsonl", state, time.monotonic() - began)
            if last or state.step % config.sample_every == 0:
                _write_samples(work / "samples" / f"step-{state.step:06d}.png", job, state)
            if last or state.step % config.save_every == 0:
                state.save(checkpoint, job)
                speed = (time.monotonic() - began) / (state.step - first)
                _write_record(work / "checkpoint.json", job, state, tiles, speed)
    return checkpoint


@dataclass(frozen=True)
class _Job:
    """What does not change while training."""

    config: GeneratorConfig
    real: RealCrops
    discs: DiscSource

    @property
    def inputs(self) -> dict[str, str]:
        return {"tiles": self.real.fingerprint, "discs": fingerprint(self.discs)}

    def cells(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Masks and cell images, (count, 1, size, size) each."""
        shape = (self.config.size, self.config.size)
        drawn = [
            mask_and_cells(*self.discs.sample(shape, rng), shape, self.config.look, rng) for _ in range(count)
        ]
        mask, cells = (torch.from_numpy(np.stack(images)[:, None]) for images in zip(*drawn, strict=True))
        return mask, cells

    def noise(self, count: int, rng: torch.Generator) -> Noise:
        config = self.config
        return Noise.draw(count, (config.size, config.size), len(config.widths), config.latent, rng)


def _compose(net: BackgroundNet, mask: Tensor, cells: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
    """X = C M + B (1 - M) and B, both in 0..1."""
    background = (net(mask, cells, noise) + 1) / 2
    return cells * mask + background * (1 - mask), background


def _critic_step(job: _Job, state: _State) -> dict[str, float]:
    """Raise E[D(real)] - E[D(fake)] - penalty E[(|grad D(X^)| - 1)^2]."""
    config, device = job.config, state.device
    real = job.real.draw(config.batch, state.rng).to(device)
    with torch.no_grad(), state.autocast(config):
        fake, _ = _made(job, state)
    fake = state.history.mix(fake, config.history_share, state.rng)
    with state.autocast(config):
        distance = state.critic(real).mean() - state.critic(fake).mean()
    mix = torch.rand(config.batch, 1, 1, 1, generator=state.noise_rng).to(device)
    penalty = gradient_penalty(state.critic, real, fake, mix)
    loss = config.penalty * penalty - distance
    _descend(loss, state.critic_optimiser, "critic", state.step)
    share = 1 / config.critic_steps
    parts = {"critic": loss, "penalty": penalty, "wasserstein": distance}
    return {name: value.item() * share for name, value in parts.items()}


def _generator_step(job: _Job, state: _State) -> dict[str, float]:
    """Lower -E[D(fake)], and move the average."""
    with state.autocast(job.config):
        fake, _ = _made(job, state)
        loss = -state.critic(fake).mean()
    _descend(loss, state.generator_optimiser, "generator", state.step)
    decay = min(job.config.average, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        for mine, theirs in zip(state.average.parameters(), state.generator.parameters(), strict=True):
            mine.lerp_(theirs, 1 - decay)
    return {"generator": loss.item()}


def _made(job: _Job, state: _State) -> tuple[Tensor, Tensor]:
    mask, cells = job.cells(job.config.batch, state.rng)
    noise = job.noise(job.config.batch, state.noise_rng).to(state.device)
    return _compose(state.generator, mask.to(state.device), cells.to(state.device), noise)


def _descend(loss: Tensor, optimiser: torch.optim.Optimizer, name: str, step: int) -> None:
    if not torch.isfinite(loss):
        raise DataError(
            f"the {name}'s loss is {loss.item()} at step {step}; lower the learning rate or check the tiles"
        )
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()


@dataclass
class _State:
    """Everything that changes while training; what a checkpoint holds beside the settings."""

    generator: BackgroundNet
    average: BackgroundNet
    critic: Critic
    generator_optimiser: torch.optim.Optimizer
    critic_optimiser: torch.optim.Optimizer
    history: History
    rng: np.random.Generator
    noise_rng: torch.Generator
    device: torch.device
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    recent: dict[str, float] = field(default_factory=dict)

    @classmethod
    def start(cls, job: _Job, device: str) -> _State:
        config, place = job.config, torch.device(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            generator, critic = BackgroundNet(config.widths, config.latent), Critic(config.critic_widths)
        generator.start_at(job.real.mean)
        average = BackgroundNet(config.widths, config.latent)
        average.load_state_dict(generator.state_dict())
        for network in (generator, critic, average):
            network.to(place, memory_format=torch.channels_last)
        return cls(
            generator,
            average.requires_grad_(False),
            critic,
            torch.optim.Adam(generator.parameters(), config.generator_rate, config.betas),
            torch.optim.Adam(critic.parameters(), config.critic_rate, config.betas),
            History(config.history, config.size),
            np.random.default_rng(config.seed),
            torch.Generator().manual_seed(config.seed),
            place,
        )

    @contextmanager
    def autocast(self, config: GeneratorConfig) -> Iterator[None]:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=config.precision == "bfloat16"):
            yield

    def add(self, losses: dict[str, float]) -> None:
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def save(self, path: Path, job: _Job) -> None:
        record = {
            "kind": KIND,
            "config": job.config.to_dict(),
            "inputs": job.inputs,
            "step": self.step,
            "generator": self.generator.state_dict(),
            "average": self.average.state_dict(),
            "critic": self.critic.state_dict(),
            "generator_optimiser": self.generator_optimiser.state_dict(),
            "critic_optimiser": self.critic_optimiser.state_dict(),
            "history": self.history.state(),
            "numpy": self.rng.bit_generator.state,
            "torch": self.noise_rng.get_state(),
            "sums": self.sums,
        }
        with atomic_path(path) as part:
            torch.save(record, part)

    def load(self, path: Path, job: _Job) -> None:
        record = _read(path)
        settings = GeneratorConfig.from_dict(record["config"]).to_dict()
        if {**settings, "steps": 0} != {**job.config.to_dict(), "steps": 0}:
            raise UsageError(f"{path} was trained with other settings; choose another folder or delete it")
        if record["inputs"] != job.inputs:
            raise UsageError(f"{path} was trained on other data; choose another folder or delete it")
        self.generator.load_state_dict(record["generator"])
        self.average.load_state_dict(record["average"])
        self.critic.load_state_dict(record["critic"])
        self.generator_optimiser.load_state_dict(record["generator_optimiser"])
        self.critic_optimiser.load_state_dict(record["critic_optimiser"])
        self.history.restore(record["history"])
        self.rng.bit_generator.state = record["numpy"]
        self.noise_rng.set_state(record["torch"])
        self.step, self.sums = int(record["step"]), dict(record["sums"])


def _read(path: Path) -> dict[str, Any]:
    record = read_checkpoint(path)
    if record.get("kind") != KIND:
        raise DataError(f"{path} is a checkpoint of {record.get('kind', 'a detector')}, not of a generator")
    return record


def _cut_log(path: Path, step: int) -> None:
    """Drop the lines of steps after the checkpoint: they are about to be made again."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        with atomic_path(path) as part:
            part.write_text("".join(x for x in lines if json.loads(x)["step"] <= step), encoding="utf-8")


def _write_log(path: Path, state: _State, seconds: float) -> None:
    """Mean losses since the last line: critic, penalty, Wasserstein estimate, generator."""
    count = state.sums.pop("steps")
    state.recent = {name: round(value / count, 5) for name, value in state.sums.items()}
    state.sums = {}
    record = {"step": state.step, "seconds": round(seconds, 1), **state.recent}
    log.debug("%s", record)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


@torch.no_grad()
def _write_samples(path: Path, job: _Job, state: _State) -> None:
    """Rows from above: real crops, composed tiles, their backgrounds, their masks."""
    rng = np.random.default_rng(_SHOWN_SEED)
    mask, cells = job.cells(_SHOWN, rng)
    noise = job.noise(_SHOWN, torch.Generator().manual_seed(_SHOWN_SEED)).to(state.device)
    composed, background = _compose(state.average, mask.to(state.device), cells.to(state.device), noise)
    rows = [job.real.draw(_SHOWN, rng), composed.cpu(), background.cpu(), mask]
    grid = np.vstack([np.hstack(list(np.pad(row.numpy()[:, 0], ((0, 0), (0, 2), (0, 2))))) for row in rows])
    with atomic_path(path) as part:
        part.write_bytes(imagecodecs.png_encode(np.rint(grid * 255).astype(np.uint8)))


def _write_record(path: Path, job: _Job, state: _State, tiles: int, seconds_per_step: float) -> None:
    """`checkpoint.json`: what a person wants to know of `checkpoint.pt` without torch."""
    networks: dict[str, torch.nn.Module] = {"generator": state.generator, "critic": state.critic}
    content = {
        "kind": KIND,
        "step": state.step,
        "finished": state.step >= job.config.steps,
        "config": job.config.to_dict(),
        "parameters": {k: sum(p.numel() for p in n.parameters()) for k, n in networks.items()},
        "tiles": tiles,
        "inputs": job.inputs,
        "losses": state.recent,
        "device": str(state.device),
        "seconds_per_step": round(seconds_per_step, 4),
        "written": now(),
        "versions": versions(),
    }
    write_json(path, content)


class Generator:
    """A trained generator, ready to make backgrounds.

    Parameters
    ----------
    config : GeneratorConfig
        Of its training.
    network : BackgroundNet
    device : str
    """

    def __init__(self, config: GeneratorConfig, network: BackgroundNet, device: str = "cpu") -> None:
        self.config, self.network, self.device = config, network.to(device).eval(), torch.device(device)

    @property
    def look(self) -> str:
        """How cells were drawn in training, and should be drawn for it: "study" or "soft"."""
        return self.config.look

    @torch.no_grad()
    def background(
        self, mask: NDArray[np.floating], cells: NDArray[np.floating], seed: int
    ) -> NDArray[np.float32]:
        """Background B around the cells of a tile of any size.

        Parameters
        ----------
        mask : ndarray, (height, width)
            Discs, 0 and 1; opacities 0..1 for a generator of the soft look.
        cells : ndarray, (height, width)
            Cell image C, 0..1.
        seed : int
            Equal seeds give equal backgrounds.

        Returns
        -------
        ndarray of float32, (height, width), 0..1
            To be composed as C * M + B * (1 - M).

        Raises
        ------
        DataError
            If mask and cells are not images of one shape with values 0..1.
        """
        mask, cells = (np.asarray(image, np.float32) for image in (mask, cells))
        if mask.ndim != 2 or mask.shape != cells.shape or mask.size == 0:
            raise DataError(
                f"mask and cell image have shapes {mask.shape} and {cells.shape}; give two images of one shape"
            )
        for name, image in (("mask", mask), ("cell image", cells)):
            if not (image.min() >= 0 and image.max() <= 1):
                raise DataError(f"the {name} holds values outside 0..1 or not finite")
        step = self.network.multiple
        shape = tuple(max(2, -(-n // step)) * step for n in mask.shape)
        pad = [(0, new - old) for new, old in zip(shape, mask.shape, strict=True)]
        inputs = [
            torch.from_numpy(np.pad(i, pad, mode="edge"))[None, None].to(self.device) for i in (mask, cells)
        ]
        rng = torch.Generator().manual_seed(seed)
        noise = Noise.draw(1, shape, self.network.levels, self.network.latent, rng)  # type: ignore[arg-type]
        made = self.network(*inputs, noise.to(self.device))[0, 0, : mask.shape[0], : mask.shape[1]]
        return ((made.cpu().numpy() + 1) / 2).astype(np.float32)


def load_generator(path: str | Path, device: str = "cpu") -> Generator:
    """The generator of a checkpoint, or of the folder that holds it.

    Raises
    ------
    NotFoundError
        If there is no such file.
    DataError
        If the file is damaged or no generator's.
    """
    check_device(device)
    path = Path(path)
    path = path / CHECKPOINT if path.is_dir() else path
    record = _read(path)
    try:
        config = GeneratorConfig.from_dict(record["config"])
        network = BackgroundNet(config.widths, config.latent)
        network.load_state_dict(record["average"])
    except (KeyError, TypeError, RuntimeError, UsageError) as error:
        raise DataError(f"{path} does not hold a generator of this version ({error})") from error
    return Generator(config, network, device)
