"""The pool of volumes that pre-training draws from: simulated tissue, simulated sections, real tissue.

Every part is made from seeds of its own and written in files of a few volumes, so that an interrupted
preparation goes on and a larger pool keeps what a smaller one had.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brainmap.children import end_with_parent, without_interrupts
from brainmap.errors import DataError, UsageError
from brainmap.progress import tracked
from brainmap.settings import check_keys
from brainmap.train.learn.samples import GridSettings, NetVolume, load_volumes, net_volume, save_volumes
from brainmap.train.tissue.inserted import Background, insert_cells
from brainmap.train.tissue.tissue import TissueConfig, simulate, simulate_section

__all__ = [
    "Pool",
    "PoolConfig",
    "backgrounds_of",
    "load_pool",
    "make_inserted",
    "make_sections",
    "make_volumes",
    "prepare_pool",
]

log = logging.getLogger(__name__)

BackgroundFile = tuple[Path, tuple[float, float, float]]

# Seeds of training tissue begin here; calibration and tests stay below.
TRAINING_SEED = 1_000_000
_PER_FILE = 25


@dataclass(frozen=True)
class PoolConfig:
    """What the pool holds.

    Parameters
    ----------
    volumes, faint, sections : int
        Simulated volumes, volumes of faint cells, and single sections.
    inserted : int
        Parts of real tissue with simulated cells; needs `backgrounds`.
    faint_share, section_share, inserted_share : float
        Probability that a sample is of these kinds; the rest are simulated volumes.
    backgrounds : tuple of str
        TIFF stacks of tissue without labelled cells, relative to the data folder.
    background_voxel_um : tuple of tuple of float
        Their voxel sizes z, y, x.
    """

    volumes: int = 2400
    faint: int = 0
    sections: int = 0
    inserted: int = 0
    faint_share: float = 0.2
    section_share: float = 0.12
    inserted_share: float = 0.12
    backgrounds: tuple[str, ...] = ()
    background_voxel_um: tuple[tuple[float, float, float], ...] = ()

    def __post_init__(self) -> None:
        if self.volumes < 1 or min(self.faint, self.sections, self.inserted) < 0:
            raise UsageError("the pool needs at least one simulated volume; give volumes of 1 or more")
        if len(self.backgrounds) != len(self.background_voxel_um):
            raise UsageError("give one voxel size in background_voxel_um for every stack in backgrounds")
        if self.inserted and not self.backgrounds:
            raise UsageError(f"inserted is {self.inserted} but no backgrounds are named")

    @classmethod
    def from_dict(cls, record: dict[str, object]) -> PoolConfig:
        """From TOML or a checkpoint; lists become tuples."""
        check_keys(cls, record, "the pool")
        values = dict(record)
        values["backgrounds"] = tuple(values.get("backgrounds", ()))  # type: ignore[arg-type]
        sizes = values.get("background_voxel_um", ())
        values["background_voxel_um"] = tuple(tuple(float(v) for v in size) for size in sizes)  # type: ignore
        return cls(**values)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Pool:
    """Volumes, and the probability with which each is drawn."""

    volumes: list[NetVolume]
    probability: NDArray[np.float64]


def make_volumes(seeds: range, settings: GridSettings) -> list[NetVolume]:
    """Random tissue for the given seeds, as the network sees it."""
    return [
        net_volume(simulate(TissueConfig.random(np.random.default_rng(seed)), seed), settings)
        for seed in seeds
    ]


def make_faint(seeds: range, settings: GridSettings) -> list[NetVolume]:
    """Random tissue of faint cells for the given seeds, as the network sees it."""
    return [
        net_volume(simulate(TissueConfig.faint(np.random.default_rng(seed)), seed), settings)
        for seed in seeds
    ]


def make_sections(seeds: range, settings: GridSettings) -> list[NetVolume]:
    """Random single sections for the given seeds, as the network sees them."""
    return [
        net_volume(simulate_section(TissueConfig.section(np.random.default_rng(seed)), seed), settings)
        for seed in seeds
    ]


def backgrounds_of(config: PoolConfig, data: Path | None) -> list[BackgroundFile]:
    """Path and voxel size of the backgrounds a pool names, relative to the data folder."""
    places = [(data or Path()) / name for name in config.backgrounds]
    return list(zip(places, config.background_voxel_um, strict=True))


def make_inserted(seeds: range, settings: GridSettings, backgrounds: list[BackgroundFile]) -> list[NetVolume]:
    """Real tissue with simulated cells for the given seeds, as the network sees it."""
    opened = [Background.open(path, voxel_um) for path, voxel_um in backgrounds]
    return [net_volume(insert_cells(opened[seed % len(opened)], seed), settings) for seed in seeds]


def prepare_pool(
    folder: Path, config: PoolConfig, grid: GridSettings, data: Path | None = None, processes: int = 2
) -> dict[str, list[Path]]:
    """Make what is missing of the pool; returns the files of each kind.

    Parameters
    ----------
    folder : Path
        Of the pool.
    config : PoolConfig
    grid : GridSettings
    data : Path, optional
        Folder that `config.backgrounds` are relative to.
    processes : int
        Files made at the same time.

    Raises
    ------
    NotFoundError
        If a background is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    places = backgrounds_of(config, data)
    makers: dict[str, tuple[int, Callable[[range, GridSettings], list[NetVolume]]]] = {
        "volumes": (config.volumes, make_volumes),
        "faint": (config.faint, make_faint),
        "sections": (config.sections, make_sections),
        "inserted": (config.inserted, partial(make_inserted, backgrounds=places)),
    }
    files: dict[str, list[Path]] = {}
    jobs = []
    for kind, (count, maker) in makers.items():
        files[kind] = [folder / f"{kind}-{index:04d}.npz" for index in range(-(-count // _PER_FILE))]
        jobs += [(path, i, grid, maker) for i, path in enumerate(files[kind]) if not path.exists()]
    if jobs:
        log.info("making %d files of the pool in %s", len(jobs), folder)
    if processes < 2:
        for job in tracked(jobs, "simulating tissue", unit="files"):
            _make_file(*job)
    else:
        with ProcessPoolExecutor(processes, initializer=end_with_parent) as executor:
            with without_interrupts():
                made = [executor.submit(_make_file, *job) for job in jobs]
            for done in tracked(made, "simulating tissue", unit="files"):
                done.result()
    return files


def _make_file(
    path: Path, index: int, grid: GridSettings, maker: Callable[[range, GridSettings], list[NetVolume]]
) -> None:
    first = TRAINING_SEED + _PER_FILE * index
    save_volumes(path, maker(range(first, first + _PER_FILE), grid))


def load_pool(files: dict[str, list[Path]], config: PoolConfig) -> Pool:
    """Read the pool; kinds are drawn by their shares, volumes of a kind equally often."""
    counts = {name: getattr(config, name) for name in ("volumes", "faint", "sections", "inserted")}
    shares = {
        "faint": config.faint_share,
        "sections": config.section_share,
        "inserted": config.inserted_share,
    }
    share = {name: value for name, value in shares.items() if counts[name]}
    share["volumes"] = 1 - sum(share.values())
    volumes: list[NetVolume] = []
    probability: list[NDArray[np.float64]] = []
    for kind, count in counts.items():
        loaded = [volume for path in files[kind] for volume in load_volumes(path)][:count]
        if len(loaded) < count:
            raise DataError(f"the pool holds {len(loaded)} {kind}, {count} are needed; delete it and rerun")
        volumes += loaded
        probability.append(np.full(count, share.get(kind, 0) / max(1, count)))
    return Pool(volumes, np.concatenate(probability))
