"""Run folders for the tests of sampling: small brains with known regions, without detection or registration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from brainmap.files import write_json
from brainmap.image.intensity import Intensity
from brainmap.image.volume import Volume, write_volume
from brainmap.phantom.anatomy import STRUCTURES, Anatomy, write_atlas
from brainmap.points.table import Points
from brainmap.registration.grid import SampleGrid
from brainmap.registration.registered import FORMAT
from brainmap.run_folder import RunRecord

IDS = {s.acronym: s.id for s in STRUCTURES}
VOXEL = (10.0, 2.0, 2.0)
SHAPE = (24, 144, 208)
GRID_UM = (20.0, 16.0, 16.0)
# Columns of the sample that belong to each region: layer 2/3 is part of ISO, CA of HPF.
BANDS = {"ISO2/3": slice(8, 104), "CA": slice(104, 160), "STR": slice(160, 200)}
# Rows without a cell, where every tile is dim.
EMPTY = slice(0, 48)


def draw_brain(seed: int) -> tuple[NDArray[np.uint16], NDArray[np.float64]]:
    """Tissue with cells 10 um across in all but the first rows; the image and the cells' z, y, x."""
    rng = np.random.default_rng(seed)
    image = rng.normal(1000, 25, SHAPE)
    image *= np.linspace(0.95, 1.05, SHAPE[2])
    n = 1500
    cells = np.column_stack([
        rng.integers(0, SHAPE[0], n), rng.uniform(EMPTY.stop + 4, SHAPE[1] - 5, n), rng.uniform(4, SHAPE[2] - 5, n)
    ])  # fmt: skip
    y, x = np.mgrid[-3:4, -3:4]
    for z, cy, cx in cells:
        i, j = round(cy), round(cx)
        spot = 2500 * np.exp(-((y + i - cy) ** 2 + (x + j - cx) ** 2) / (2 * 1.5**2))
        image[int(z), i - 3 : i + 4, j - 3 : j + 4] += spot
    return np.clip(image, 0, 60000).astype(np.uint16), cells[np.lexsort(cells.T[::-1])]


def write_run(folder: Path, name: str, seed: int = 0, **parameters: Any) -> Path:
    """A finished run of a small brain; returns its folder."""
    image, cells = draw_brain(seed)
    volume = write_volume(folder / f"{name}.ome.zarr", image, VOXEL, orientation="asr", levels=2)
    run = folder / f"{name}.brainmap"
    Intensity.fit(volume).save(run / "blocks" / "intensity.npz")
    write_registration(run / "registration", volume, folder / "atlas")
    zyx = {axis: cells[:, i] for i, axis in enumerate("zyx")}
    um = {f"{axis}_um": cells[:, i] * VOXEL[i] for i, axis in enumerate("zyx")}
    score = {"score": np.linspace(0.42, 0.99, len(cells), dtype=np.float32)}
    Points({**zyx, **um, **score}, {"brain": volume.url}).write(run / "points.parquet")
    RunRecord(
        status="complete",
        parameters={"brain": str(volume.url), "channel": None, "voxel_um": None, "atlas": "phantom",
                    "registration": None, "detector": "default", "roi": None, **parameters},
        fingerprints={"volume": volume.fingerprint()},
        results={"cell_diameter_um": 10.0},
    ).save(run)  # fmt: skip
    return run


def write_registration(folder: Path, volume: Volume, atlas: Path) -> None:
    """A registration that finds `BANDS`, on a grid coarser than the image."""
    if not atlas.is_dir():
        write_atlas(atlas, Anatomy(50.0), 60.0, "phantom")
    (atlas_folder,) = atlas.iterdir()
    grid = SampleGrid.over(volume, "asr", GRID_UM)
    labels = np.zeros(grid.shape, np.uint32)
    for acronym, columns in BANDS.items():
        step = round(GRID_UM[2] / VOXEL[2])
        labels[:, :, columns.start // step : columns.stop // step] = IDS[acronym]
    write_volume(
        folder / "annotation.ome.zarr", labels, grid.resolution_um, method="nearest", levels=1,
        origin_um=grid.origin_um, orientation="asr",
    )  # fmt: skip
    write_json(
        folder / "registration.json",
        {"format": FORMAT, "grid": grid.to_json(), "verdict": "good", "reasons": [], "fingerprint": "f",
         "atlas": {"name": atlas_folder.name, "folder": str(atlas_folder)}},
    )  # fmt: skip


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    """`write_run`, for tests that spoil one."""
    return write_run


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Finished runs of three small brains."""
    folder = tmp_path_factory.mktemp("runs")
    return tuple(write_run(folder, f"mouse{i}", seed=i) for i in range(3))
