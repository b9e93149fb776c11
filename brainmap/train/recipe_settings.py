"""Settings of the recipe of the shipped detector, as `configs/default_detector.toml` holds them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from brainmap.settings import check_keys, read_settings
from brainmap.train.learn.pretrain import PretrainConfig
from brainmap.train.learn.real_tissue import RealStacks

__all__ = ["Calibration", "Polish", "Recipe", "Round", "Student"]


@dataclass(frozen=True)
class Calibration:
    """How much of each kind is simulated for calibration and threshold.

    Parameters
    ----------
    volumes, sections, inserted : int
    """

    volumes: int = 160
    sections: int = 0
    inserted: int = 0


@dataclass(frozen=True)
class Round:
    """A further round of pre-training, from a lower learning rate, that meets faint cells more often.

    Parameters
    ----------
    faint : int
        Volumes of faint cells added to the pool.
    faint_share : float
        Probability that a sample is one of them.
    steps, learning_rate : int, float
        As in `PretrainConfig`.
    """

    faint: int = 600
    faint_share: float = 0.2
    steps: int = 10_000
    learning_rate: float = 1e-3


@dataclass(frozen=True)
class Polish:
    """A last stage: real annotated sections, and other real tissue, among simulated tissue.

    Parameters
    ----------
    images, clicks : str
        Folder of section images and table of clicks (`image_id worker_id x y`), relative to the data folder.
    pixel_um, cell_diameter_um : float
        Of the sections.
    folds : int
        The sections are dealt into so many parts; each is judged by a network polished on the others.
    steps, learning_rate : int, float
        As in `PretrainConfig`.
    share : float
        Probability that a sample is a real section.
    contrast_spread, grey_levels : float
        As in `PretrainConfig`.
    stacks : tuple of RealStacks
        Other real tissue, and how often it is met.
    """

    images: str
    clicks: str
    pixel_um: float
    cell_diameter_um: float
    folds: int = 2
    steps: int = 2000
    learning_rate: float = 3e-4
    share: float = 0.15
    contrast_spread: float = 0.25
    grey_levels: float = 0.0
    stacks: tuple[RealStacks, ...] = ()

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Polish:
        """From TOML; an unknown key is an error."""
        check_keys(cls, record, "polish")
        stacks = tuple(RealStacks.from_dict(part) for part in record.get("stacks", ()))
        return cls(**(record | {"stacks": stacks}))

    @property
    def real_share(self) -> float:
        """Probability that a sample is real tissue of any kind."""
        return self.share + sum(stack.share for stack in self.stacks)


@dataclass(frozen=True)
class Student:
    """After everything else: a smaller network learns the answers of the one that was trained, on the same tissue.

    Parameters
    ----------
    widths : tuple of int
        As `CenterNetConfig.widths`; none above the teacher's.
    steps, learning_rate : int, float
        As in `PretrainConfig`.
    """

    widths: tuple[int, ...]
    steps: int = 4500
    learning_rate: float = 2e-3

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Student:
        """From TOML; an unknown key is an error."""
        check_keys(cls, record, "the student")
        return cls(**(record | {"widths": tuple(record["widths"])}))


@dataclass(frozen=True)
class Recipe:
    """Settings of the whole recipe, as in `configs/default_detector.toml`.

    Parameters
    ----------
    name, version : str
        Of the detector.
    sources : str
        Whose images were used and under which terms, for the card.
    calibration : Calibration
    pretrain : PretrainConfig
    rounds : tuple of Round
        In this order, each from the network of the one before.
    polish : tuple of Polish
        In this order, each from the network of the one before; all of them on the same sections. Empty: simulated
        cells only.
    student : Student, optional
        Made of the network that was trained; it is what is exported then.
    """

    name: str = "default"
    version: str = "1"
    sources: str = ""
    calibration: Calibration = dataclasses.field(default_factory=Calibration)
    pretrain: PretrainConfig = dataclasses.field(default_factory=PretrainConfig)
    rounds: tuple[Round, ...] = ()
    polish: tuple[Polish, ...] = ()
    student: Student | None = None

    def settings(self, part: Round) -> PretrainConfig:
        """Pre-training as a round changes it."""
        pool = replace(self.pretrain.pool, faint=part.faint, faint_share=part.faint_share)
        return replace(self.pretrain, pool=pool, steps=part.steps, learning_rate=part.learning_rate)

    @property
    def last(self) -> PretrainConfig:
        """Settings of the last round of pre-training."""
        return self.settings(self.rounds[-1]) if self.rounds else self.pretrain

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """From a TOML file; an unknown key is an error."""
        record = read_settings(path, [f.name for f in dataclasses.fields(cls)])
        if "pretrain" in record:
            record["pretrain"] = PretrainConfig.from_dict(record["pretrain"])
        for part in (parts := record.pop("rounds", [])):
            check_keys(Round, part, "a round")
        record["rounds"] = tuple(Round(**part) for part in parts)
        if "calibration" in record:
            check_keys(Calibration, record["calibration"], "calibration")
            record["calibration"] = Calibration(**record["calibration"])
        if "student" in record:
            record["student"] = Student.from_dict(record["student"])
        record["polish"] = tuple(Polish.from_dict(part) for part in record.pop("polish", []))
        return cls(**record)
