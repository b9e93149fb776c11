"""What a study of sampling is asked for, and what it finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from brainmap.crowd.sampling.request import STRATEGIES
from brainmap.errors import UsageError

__all__ = ["Claim", "Design", "Study", "StudyRequest", "means"]

Floats = NDArray[np.float64]

_LEVEL = 0.90


@dataclass(frozen=True)
class Design:
    """One way to spend the budget: `animals`, slices of each (`few` or `many`), and the strategy within."""

    animals: int
    slices: str
    strategy: str


@dataclass(frozen=True)
class StudyRequest:
    """One study.

    Parameters
    ----------
    tiles : Path
        Labelled tiles; `brain` is the animal.
    truth : Path
        Ground-truth folder, or a table `image_id x y`.
    out : Path
        Folder for report.html, study.csv and study.json.
    detector : str
        The detector that would be trained.
    budget : int or None
        Tiles to annotate; None: as many as most animals have, halved.
    repeats : int
        Choices of the animals to hold out.
    draws : int
        Choices of the animals to annotate in each repeat; their mean counts, so that the luck of one draw does not.
    held_out : float
        Share of the animals to judge on.
    cell_diameter_um : float or None
        Typical cell; None: the detector's.
    tolerance_cells : float
        Largest distance of a detection from its cell, in cell diameters.
    strategies : tuple of str
    seed : int
    """

    tiles: Path
    truth: Path
    out: Path
    detector: str = "default"
    budget: int | None = None
    repeats: int = 10
    draws: int = 4
    held_out: float = 0.3
    cell_diameter_um: float | None = None
    tolerance_cells: float = 0.5
    strategies: tuple[str, ...] = STRATEGIES
    seed: int = 0

    def __post_init__(self) -> None:
        if self.repeats < 3:
            raise UsageError(f"--repeats is {self.repeats}; an interval needs at least 3")
        if self.draws < 1:
            raise UsageError(f"--draws is {self.draws}; give at least 1")
        if not 0 < self.held_out < 1:
            raise UsageError(f"the share to hold out is {self.held_out}; it must lie between 0 and 1")
        if self.budget is not None and self.budget < 1:
            raise UsageError(f"--budget is {self.budget}; give at least 1")
        if unknown := [s for s in self.strategies if s not in STRATEGIES]:
            raise UsageError(f"there is no strategy {unknown[0]!r}; choose from {', '.join(STRATEGIES)}")


@dataclass(frozen=True)
class Claim:
    """A statement of the review, and what these data say.

    Parameters
    ----------
    text : str
    verdict : str
        "confirmed", "contradicted", "not decided" or "not tested".
    measure : str
        What was compared.
    mean, low, high : float
        Difference and its 90 % interval; NaN where it was not tested.
    """

    text: str
    verdict: str
    measure: str
    mean: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")


@dataclass(frozen=True)
class Study:
    """What was found.

    Parameters
    ----------
    out : Path
    animals, tiles, budget, held_out : int
        Of the data; tiles per selection; animals that judge in each repeat.
    designs : list of Design
    f1, auprc : ndarray of float64, shape (repeats, designs, animals)
        Means over the draws; NaN for animals that were not held out.
    nothing, everything : ndarray of float64, shape (2, repeats, animals)
        F1 and AUPRC of the detector as it is, and of one that learnt from all tiles of the other animals.
    claims : list of Claim
    """

    out: Path
    animals: int
    tiles: int
    budget: int
    held_out: int
    designs: list[Design]
    f1: Floats
    auprc: Floats
    nothing: Floats
    everything: Floats
    claims: list[Claim] = field(default_factory=list)

    def mean_of(self, values: Floats, **wanted: Any) -> Floats:
        """Mean over the designs that have some values, shape (repeats, animals)."""
        use = [all(getattr(d, k) == v for k, v in wanted.items()) for d in self.designs]
        return np.asarray(values[:, use].mean(axis=1))

    def interval(self, difference: Floats) -> tuple[float, float, float]:
        """Mean of a paired difference (repeats, animals) and its 90 % interval, see the module."""
        by_animal = means(difference, 0)
        by_repeat = means(difference, 1)
        mean = float(by_animal.mean())
        error = np.sqrt(sum(v.var(ddof=1) / len(v) for v in (by_animal, by_repeat)))
        half = float(stats.t.ppf(0.5 + _LEVEL / 2, min(len(by_animal), len(by_repeat)) - 1) * error)
        return mean, mean - half, mean + half

    def lines(self) -> list[tuple[str, str]]:
        """The result as names and values, for people."""
        lines = [
            (
                "data",
                f"{self.tiles} tiles of {self.animals} animals, {self.held_out} held out, budget {self.budget}",
            ),
            (
                "F1",
                f"{np.nanmean(self.nothing[0]):.3f} without annotation, {np.nanmean(self.everything[0]):.3f} with all",
            ),
        ]
        for claim in self.claims:
            span = (
                "" if np.isnan(claim.mean) else f" ({claim.mean:+.3f}, {claim.low:+.3f} to {claim.high:+.3f})"
            )
            lines.append((claim.verdict, f"{claim.text}: {claim.measure}{span}"))
        return [*lines, ("report", str(self.out / "report.html"))]


def means(values: Floats, axis: int) -> Floats:
    """Means along an axis, without what has no value at all."""
    there = ~np.isnan(values).all(axis=axis)
    kept = values[:, there] if axis == 0 else values[there]
    return np.asarray(np.nanmean(kept, axis=axis))
