"""Settings of the generator of tissue background: one frozen record, read from TOML; an unknown key is an error."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from brainmap.errors import UsageError
from brainmap.settings import check_keys, read_table

__all__ = ["FITS", "LOOKS", "PRECISIONS", "GeneratorConfig", "read_generator_config"]

LOOKS = ("study", "soft")
FITS = ("crop", "resize")
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class GeneratorConfig:
    """Everything that decides the outcome; stored in the checkpoint. Values marked (study) are from methods 5.

    Parameters
    ----------
    size : int
        Width of a training image, pixels (study).
    fit : str
        "crop": random windows at the tiles' own resolution; "resize": whole tiles, resized and
        centre-cropped (study). The same for tiles of about `size`.
    look : str
        How cells are drawn, see `mask_and_cells`: "study" (study) or "soft".
    discs : tuple of float
        Least and greatest mean number of discs on 100 x 100 px. The study gives none; this spans the cell
        numbers it reports for its tiles (about 250 on 500 x 500 px, 1 on 1000 px).
    radius_px : tuple of float
        Least and greatest radius of a disc (study).
    widths : tuple of int
        Channels of the U-Net at 1, 1/2, 1/4, ... of the resolution.
    latent : int
        Random numbers that set the look of a whole tile.
    critic_widths : tuple of int
        Channels of the critic at 1/2, 1/4, ... of the resolution.
    steps : int
        Generator steps; more may be asked of a finished training, which is then continued.
    batch, critic_steps, penalty : int, int, float
        Images in a step, critic steps to one of the generator, weight of the gradient penalty (study).
    generator_rate, critic_rate, betas : float, float, tuple of float
        Adam (study).
    history, history_share : int, float
        Generated images kept (study), and share of older ones in a critic's batch.
    average : float
        Decay of the moving average of the generator's weights, which is what is used; 0: the last weights
        (study).
    precision : str
        "float32", or "bfloat16" for the convolutions; the gradient penalty is always single precision.
    seed : int
    save_every, sample_every, log_every : int
        Steps between checkpoints, sample grids and lines of the log.
    """

    size: int = 512
    fit: str = "crop"
    look: str = "study"
    discs: tuple[float, float] = (2.0, 14.0)
    radius_px: tuple[float, float] = (1.0, 8.0)
    widths: tuple[int, ...] = (32, 64, 128, 256, 256)
    latent: int = 16
    critic_widths: tuple[int, ...] = (64, 128, 256, 512)
    steps: int = 40_000
    batch: int = 4
    critic_steps: int = 2
    penalty: float = 10.0
    generator_rate: float = 1e-4
    critic_rate: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.999)
    history: int = 500
    history_share: float = 0.5
    average: float = 0.999
    precision: str = "float32"
    seed: int = 0
    save_every: int = 500
    sample_every: int = 500
    log_every: int = 50

    def __post_init__(self) -> None:
        positive = (
            "size", "latent", "steps", "batch", "critic_steps", "penalty", "generator_rate", "critic_rate",
            "save_every", "sample_every", "log_every",
        )  # fmt: skip
        for name in positive:
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}; give a positive number")
        for name, allowed in (("fit", FITS), ("look", LOOKS), ("precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                raise UsageError(f"{name} is {getattr(self, name)!r}; give one of {', '.join(allowed)}")
        for name in ("discs", "radius_px"):
            least, most = getattr(self, name)
            if not 0 <= least <= most < math.inf:
                raise UsageError(f"{name} is {least:g} to {most:g}; give a range that begins at 0 or above")
        for name in ("average", "history_share"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name):g}; give a number from 0 to below 1")
        if len(self.widths) < 2 or not self.critic_widths or min(*self.widths, *self.critic_widths) < 1:
            raise UsageError("widths needs two levels or more and critic_widths one, all positive")
        multiple = max(2 ** (len(self.widths) - 1), 2 ** len(self.critic_widths))
        if self.size % multiple or self.size < 2 * multiple:
            raise UsageError(f"size is {self.size}; give a multiple of {multiple}, twice that or more")
        if self.history < 0:
            raise UsageError(f"history is {self.history}; give 0 or more")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> GeneratorConfig:
        """From a dict as TOML or a checkpoint holds it; an unknown key is an error."""
        check_keys(cls, record, "the generator's settings")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        try:
            return cls(**values)
        except (TypeError, ValueError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(f"a setting of the generator is of the wrong type ({error})") from error


def read_generator_config(path: str | Path | None, **overrides: Any) -> GeneratorConfig:
    """Settings of a TOML file with a `[generator]` table; `overrides` that are not None win.

    Raises
    ------
    NotFoundError, UsageError
        No such file; not TOML, an unknown key, or a value out of its range or of another type.
    """
    table = read_table(path, "generator")
    given = {name: value for name, value in overrides.items() if value is not None}
    return GeneratorConfig.from_dict({**table, **given})
