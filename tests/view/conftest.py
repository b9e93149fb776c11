"""A small finished run with an atlas, made without any detection: bright spots, and the cells that lie on them."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.io

from brainmap.atlas.atlas import Atlas
from brainmap.coords import vox_to_um
from brainmap.files import write_json
from brainmap.image.volume import Volume, write_volume
from brainmap.infer.block.process import COLUMNS
from brainmap.infer.detector import Detector
from brainmap.infer.engine import results
from brainmap.points.table import Points
from brainmap.registration.grid import SampleGrid
from brainmap.registration.registered import Registration
from brainmap.run.cells import ImageFrame
from brainmap.run.threshold_counts import count_over_thresholds
from brainmap.run_folder import POINTS_PARQUET, RunRecord

# An id as large as Allen's largest.
BIG_ID = 614_454_277
RECORDS = [
    {"id": key, "acronym": acronym, "name": name, "structure_id_path": path, "rgb_triplet": color}
    for key, acronym, name, path, color in (
        (997, "root", "root", [997], [255, 255, 255]),
        (8, "grey", "Grey matter", [997, 8], [1, 2, 3]),
        (11, "CTX", "Cortex", [997, 8, 11], [90, 200, 90]),
        (BIG_ID, "BIG", "Big", [997, 8, BIG_ID], [90, 90, 220]),
        (73, "VS", "ventricles", [997, 73], [7, 7, 7]),
    )
]
SHAPE, VOXEL_UM, ORIGIN_UM = (40, 160, 200), (5.0, 2.0, 2.0), (10.0, -4.0, 6.0)
THRESHOLD = 0.5
# Of 400 candidates every fifth is weaker than the threshold.
SHOWN, WEAK = 320, 80


def places() -> np.ndarray:
    """Voxels (n, 3) of the spots, on a lattice far wider than a cell."""
    grid = np.stack(
        np.meshgrid(range(4, 40, 8), range(10, 160, 20), range(10, 200, 20), indexing="ij"), axis=-1
    )
    return grid.reshape(-1, 3).astype(float)


def write_run(folder: Path, brain: Path, atlas_folder: Path) -> None:
    """The run folder; every fifth candidate is weaker than the threshold."""
    at = places()
    n = len(at)
    rng = np.random.default_rng(1)
    score = np.where(np.arange(n) % 5 == 0, rng.uniform(0.1, 0.45, n), rng.uniform(0.55, 0.99, n)).astype(
        np.float32
    )
    results.open_plan(folder, {"threshold": THRESHOLD, "candidate_score": 0.05, "block_count": [1, 1, 2]})
    columns: dict[str, Any] = dict(zip("zyx", at.T, strict=True)) | {"score": score}
    columns |= {name: np.ones(n) for name in COLUMNS if name not in columns}
    columns = {name: columns[name].astype(kind) for name, kind in COLUMNS.items()}
    shown = score >= THRESHOLD
    results.write_batch(folder, (0, 2), columns | {"block": np.zeros(n, np.int64)}, int(shown.sum()))
    volume = Volume.open(brain, channel=0)
    registration = write_registration(folder / "registration", volume, Atlas.open(atlas_folder))
    atlas = Atlas.open(atlas_folder)
    um = vox_to_um(at[shown], VOXEL_UM, ORIGIN_UM)
    region, side = atlas.lookup(registration.to_atlas_um(um))
    meta = {"brain": str(brain), "shape": SHAPE, "voxel_um": VOXEL_UM, "origin_um": ORIGIN_UM,
            "registration": registration.fingerprint, "atlas": "tiny"}  # fmt: skip
    table = dict(zip(("z", "y", "x"), at[shown].T, strict=True))
    table |= dict(zip(("z_um", "y_um", "x_um"), um.T, strict=True))
    table |= {"score": score[shown], "region_id": region, "hemisphere": side}
    Points(table, meta).write(folder / POINTS_PARQUET)
    record = RunRecord(
        status="complete", parameters={"brain": str(brain), "channel": 0, "detector": "default"},
        fingerprints={"detector": Detector.open().fingerprint},
        blocks={"total": 2, "done": 2, "empty": 0, "failed": {}, "finished": ["0-1"]},
        results={"threshold": THRESHOLD, "cell_diameter_um": 10.0, "cells": int(shown.sum())},
    )  # fmt: skip
    record.save(folder)
    count_over_thresholds(folder, folder, ImageFrame.of(volume), None, atlas, registration)


def write_registration(folder: Path, volume: Volume, atlas: Atlas) -> Registration:
    """The identity, with the atlas's annotation as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    identity = {"AffineTransform_float_3_3": [1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0], "fixed": [0, 0, 0]}
    columns = {name: np.array(values, dtype=np.float32)[:, None] for name, values in identity.items()}
    scipy.io.savemat(folder / "affine.mat", columns, format="4")
    grid = SampleGrid.over(volume, "asr", atlas.resolution_um)
    record = {"format": 1, "grid": grid.to_json(), "fingerprint": "f" * 64, "verdict": "good", "reasons": [],
              "atlas": {"name": "tiny", "folder": str(atlas.folder)}}  # fmt: skip
    write_json(folder / "registration.json", record)
    for name in ("annotation", "hemispheres"):
        write_volume(
            folder / f"{name}.ome.zarr", np.array(getattr(atlas, name)), grid.resolution_um, origin_um=grid.origin_um,
            method="nearest",
        )  # fmt: skip
    return Registration.load(folder)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run folder to be copied, its brain and its atlas."""
    root = tmp_path_factory.mktemp("view")
    rng = np.random.default_rng(0)
    image = rng.normal(200, 8, SHAPE)
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    for at in places():
        near = tuple(slice(max(0, int(v) - r), int(v) + r + 1) for v, r in zip(at, (4, 10, 10), strict=True))
        grid = [
            axis[tuple(near[i] if axis.shape[i] > 1 else slice(None) for i in range(3))] for axis in (z, y, x)
        ]
        distance = sum(((axis - v) * um) ** 2 for axis, v, um in zip(grid, at, VOXEL_UM, strict=True))
        image[near] += 2000 * 0.5 ** (distance / 4.0**2)
    both = np.stack([image, rng.normal(100, 5, SHAPE)]).astype(np.uint16)
    write_two_channels(root / "brain.ome.zarr", both)
    annotation = np.zeros((10, 16, 20), np.uint32)
    annotation[:, 1:15, 1:10] = 11
    annotation[:, 1:15, 10:19] = BIG_ID
    atlas = write_small_atlas(root / "tiny_20um_v1.0", annotation)
    write_run(root / "run", root / "brain.ome.zarr", atlas)
    return SimpleNamespace(run=root / "run", brain=root / "brain.ome.zarr", atlas=atlas, image=both)


def write_two_channels(path: Path, both: np.ndarray) -> None:
    """An OME-Zarr 0.5 of two channels and two levels, sharded."""
    import zarr

    group = zarr.create_group(path, zarr_format=3)
    datasets = []
    for level in range(2):
        data = both[:, :, :: 2**level, :: 2**level]
        array = group.create_array(
            str(level), shape=data.shape, dtype=data.dtype, chunks=(1, 8, 40, 50), shards=(1, 16, 80, 100)
        )
        array[...] = data
        # The first voxel of a level is the first of every level: decimated, not averaged.
        scale = [1, VOXEL_UM[0], VOXEL_UM[1] * 2**level, VOXEL_UM[2] * 2**level]
        datasets.append({"path": str(level), "coordinateTransformations": [
            {"type": "scale", "scale": scale}, {"type": "translation", "translation": [0, *ORIGIN_UM]}]})  # fmt: skip
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
    group.attrs["ome"] = {
        "version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}],
        "omero": {"channels": [{"label": "cfos"}, {"label": "auto"}]},
    }  # fmt: skip


def write_small_atlas(path: Path, annotation: np.ndarray) -> Path:
    """An atlas in BrainGlobe's second layout."""
    import json

    import tifffile

    path.mkdir()
    tifffile.imwrite(path / "annotation.tiff", annotation, photometric="minisblack")
    tifffile.imwrite(path / "reference.tiff", (annotation > 0).astype(np.uint16), photometric="minisblack")
    (path / "structures.json").write_text(json.dumps(RECORDS))
    facts = {"name": "tiny", "resolution": [20.0] * 3, "orientation": "asr", "shape": list(annotation.shape),
             "version": "1.0", "symmetric": True}  # fmt: skip
    (path / "metadata.json").write_text(json.dumps(facts))
    return path


@pytest.fixture
def run(made: SimpleNamespace, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    shutil.copytree(made.run, tmp_path / "run")
    return tmp_path / "run"
