"""Studies with a known truth: counts of animals, and run folders that hold them, for tests, guides and benchmarks."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.cohort.model.negative_binomial import Floats
from brainmap.files import atomic_path
from brainmap.run_folder import REGIONS_CSV, RunRecord

__all__ = ["Cohort", "Simulation", "simulate", "write_runs"]

_COLUMNS = (
    "region_id", "acronym", "name", "parent_id", "depth", "hemisphere", "count", "volume_mm3", "density_per_mm3",
    "count_direct", "volume_direct_mm3",
)  # fmt: skip
_ROOT = 997


@dataclass(frozen=True)
class Simulation:
    """What is simulated.

    Attributes
    ----------
    animals : tuple of int
        In each group.
    regions : int
    fewest, most : float
        Range of the regions' mean counts, even in the logarithm.
    dispersion : float
        Typical variance of a region's density between animals, over its squared mean.
    dispersion_freedom : float
        How alike the regions' dispersions are: they are `dispersion` times freedom over chi-square; 0: all equal.
    shared_sd : float
        Standard deviation of the logarithm of an animal's level (staining), the same in all its regions.
    planted : int
        Regions that differ between the groups, half of them each way.
    fold : float
        By how much.
    lognormal : bool
        Densities scatter between animals as a log-normal, not as a gamma distribution.
    """

    animals: tuple[int, ...] = (4, 4)
    regions: int = 300
    fewest: float = 2.0
    most: float = 5000.0
    dispersion: float = 0.1
    dispersion_freedom: float = 6.0
    shared_sd: float = 0.2
    planted: int = 0
    fold: float = 2.0
    lognormal: bool = False


@dataclass(frozen=True)
class Cohort:
    """A simulated study.

    Attributes
    ----------
    count : int64 array (animals, regions)
    volume_mm3 : float64 array (animals, regions)
    group : int64 array (animals,)
        0, 1, ...; the planted regions differ by `fold` for every step.
    planted : int64 array
        Regions that differ.
    direction : int64 array (regions,)
        1 or -1 where planted, else 0.
    """

    count: NDArray[np.int64]
    volume_mm3: Floats
    group: NDArray[np.int64]
    planted: NDArray[np.int64]
    direction: NDArray[np.int64]


def simulate(simulation: Simulation, seed: int) -> Cohort:
    """Draw a study."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(len(simulation.animals)), simulation.animals)
    shape = (len(group), simulation.regions)
    expected = np.exp(rng.uniform(np.log(simulation.fewest), np.log(simulation.most), simulation.regions))
    typical = rng.gamma(2.0, 0.5, simulation.regions)
    volume = typical * np.exp(rng.normal(0, 0.05, shape))
    direction = np.zeros(simulation.regions, dtype=np.int64)
    planted = np.sort(rng.choice(simulation.regions, simulation.planted, replace=False))
    direction[planted] = np.where(np.arange(len(planted)) % 2, -1, 1)
    steps = group - group.mean()
    mean = expected * volume / typical * simulation.fold ** (steps[:, None] * direction)
    mean *= np.exp(rng.normal(0, simulation.shared_sd, len(group)))[:, None]
    dispersion = np.full(simulation.regions, simulation.dispersion)
    if simulation.dispersion_freedom:
        freedom = simulation.dispersion_freedom
        dispersion *= freedom / rng.chisquare(freedom, simulation.regions)
    if simulation.lognormal:
        variance = np.log1p(dispersion)
        mean *= np.exp(rng.normal(0, 1, shape) * np.sqrt(variance) - variance / 2)
    else:
        mean *= rng.gamma(1 / dispersion, dispersion, shape)
    return Cohort(rng.poisson(mean), volume, group, planted, direction)


def write_runs(cohort: Cohort, folder: str | Path, names: tuple[str, ...] = ("control", "treated")) -> Path:
    """Write a run folder for every animal and `groups.csv`; return the path of the latter.

    Regions ``R000``, ``R001``, ... lie under one root; cells are dealt to the left and right half in turn.
    """
    folder = Path(folder)
    lines = ["run,animal,group"]
    for i, group in enumerate(cohort.group):
        run = folder / "runs" / f"m{i:02d}"
        run.mkdir(parents=True, exist_ok=True)
        _write_regions(run / REGIONS_CSV, cohort.count[i], cohort.volume_mm3[i])
        RunRecord(status="complete", parameters={"atlas": "simulated"}, machine={}).save(run)
        lines.append(f"runs/{run.name},{run.name},{names[group]}")
    path = folder / "groups.csv"
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _write_regions(path: Path, count: NDArray[np.int64], volume: Floats) -> None:
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerow([0, "outside", "outside", 0, 0, "both", 0, "", "", 0, ""])
        total = (_ROOT, "root", "root", 0, 0)
        _write_rows(writer, total, int(count.sum()), float(volume.sum()), direct=False)
        for i in range(len(count)):
            names = (i + 1, f"R{i:03d}", f"Region {i}", _ROOT, 1)
            _write_rows(writer, names, int(count[i]), float(volume[i]), direct=True)


def _write_rows(writer: Any, names: tuple[object, ...], count: int, volume: float, *, direct: bool) -> None:
    halves = {
        "left": (count // 2, volume / 2),
        "right": (count - count // 2, volume / 2),
        "both": (count, volume),
    }
    for side, (cells, mm3) in halves.items():
        own = (cells, f"{mm3:.9g}") if direct else (0, 0)
        writer.writerow([*names, side, cells, f"{mm3:.9g}", f"{cells / mm3:.9g}", *own])
