"""Writes the phantom: volume, atlas and truth in one folder."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from brainmap.coords import vox_to_edge_um, vox_to_um
from brainmap.errors import UsageError
from brainmap.files import atomic_path, read_json, write_json
from brainmap.image.volume import write_volume
from brainmap.phantom.anatomy import (
    FIELD_UNITS,
    LEFT,
    RIGHT,
    STRUCTURES,
    Anatomy,
    grid_points,
    structure_paths,
    write_atlas,
)
from brainmap.phantom.cells import Cells, place_cells
from brainmap.phantom.tissue import CHANNEL_NAMES, build_scene, record_slices
from brainmap.phantom.warp import SmoothWarp

__all__ = ["Phantom", "write_phantom"]

ORIENTATION = "psl"
_RECORD = "phantom.json"


@dataclass(frozen=True)
class Recipe:
    """A size of phantom: voxels of the volume, anatomical unit, atlas voxel and how crowded it is."""

    shape: tuple[int, int, int]
    voxel_um: tuple[float, float, float]
    unit_um: float
    atlas_um: float
    density_factor: float


SIZES = {
    "demo": Recipe((202, 410, 510), (5.0, 2.0, 2.0), 100.0, 10.0, 1.25),
    "tiny": Recipe((101, 206, 256), (5.0, 2.0, 2.0), 50.0, 8.0, 1.5),
}


@dataclass(frozen=True)
class Phantom:
    """Where a phantom lies and what is true of it.

    Attributes
    ----------
    folder, brain, atlas, truth, truth_regions : Path
        The folder, and in it ``brain.ome.zarr``, the atlas folder, ``truth.csv`` (one row per cell) and
        ``truth_regions.csv`` (the columns of a run's ``regions.csv``).
    orientation : str
        Stored orientation of the volume; also in its metadata.
    voxel_um : (3,) tuple
    signal_channel, registration_channel : int
    seed : int
    size : str
    n_cells : int
    warp : SmoothWarp
        The exact map from sample to atlas.
    """

    folder: Path
    brain: Path
    atlas: Path
    truth: Path
    truth_regions: Path
    orientation: str
    voxel_um: tuple[float, float, float]
    signal_channel: int
    registration_channel: int
    seed: int
    size: str
    n_cells: int
    warp: SmoothWarp

    @classmethod
    def load(cls, folder: str | Path) -> Phantom:
        """Read the record of a phantom written before.

        Raises
        ------
        NotFoundError, DataError
            If there is none, or it is damaged.
        """
        folder = Path(folder)
        record = read_json(folder / _RECORD)
        paths = {key: folder / record[key] for key in ("brain", "atlas", "truth", "truth_regions")}
        rest = {
            k: record[k]
            for k in ("orientation", "signal_channel", "registration_channel", "seed", "size", "n_cells")
        }
        return cls(
            folder=folder,
            voxel_um=tuple(record["voxel_um"]),
            warp=SmoothWarp.from_json(record["warp"]),
            **paths,
            **rest,
        )

    def to_atlas_um(self, points_vox: ArrayLike) -> NDArray[np.float64]:
        """Map level-0 voxel indices (N, 3) to atlas um exactly, for judging a registration."""
        return self.warp.to_atlas_um(vox_to_edge_um(points_vox, self.voxel_um))


def write_phantom(
    folder: str | Path, seed: int = 0, size: str = "demo", changes: Mapping[str, float] | None = None
) -> Phantom:
    """Write a phantom brain, its atlas and the truth about it; equal seeds give equal files.

    Parameters
    ----------
    folder : str or Path
        Made if needed; a phantom in it is replaced.
    seed : int
        Fixes cells, warp, texture and noise. The atlas is the same for all seeds.
    size : {"demo", "tiny"}
        demo: 42 Mvox per channel, about 3,400 cells; tiny: 5 Mvox, a few hundred cells, for tests.
    changes : dict of float, optional
        Acronym of a structure without parts -> by what its density of cells is multiplied: an animal of another group.

    Raises
    ------
    UsageError
        If `size` is not known.
    """
    if size not in SIZES:
        raise UsageError(f"phantom size {size!r} is not known; choose one of {', '.join(SIZES)}")
    recipe, folder = SIZES[size], Path(folder)
    anatomy = Anatomy(recipe.unit_um)
    extent = tuple(n * s for n, s in zip(recipe.shape, recipe.voxel_um, strict=True))
    # Independent streams: a change in how noise is drawn does not move the cells.
    warp_rng, cell_rng, scene_rng, camera_rng = (
        np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(4)
    )
    warp = SmoothWarp.random(
        warp_rng, ORIENTATION, (extent[0], extent[1], extent[2]), np.array(FIELD_UNITS) * recipe.unit_um
    )
    cells = place_cells(
        cell_rng, anatomy, warp, recipe.shape, recipe.voxel_um, recipe.density_factor, changes
    )
    folder.mkdir(parents=True, exist_ok=True)
    atlas = write_atlas(
        folder / "atlas", anatomy, recipe.atlas_um, f"phantom_{size}" if size != "demo" else "phantom"
    )
    scene = build_scene(scene_rng, anatomy, warp, cells, recipe.shape, recipe.voxel_um)
    brain = folder / "brain.ome.zarr"
    write_volume(
        brain,
        record_slices(camera_rng, scene),
        recipe.voxel_um,
        shape=(2, *recipe.shape),
        dtype=np.uint16,
        orientation=ORIENTATION,
        channel_names=CHANNEL_NAMES,
        overwrite=True,
    )
    _write_cells(folder / "truth.csv", cells, recipe.voxel_um)
    _write_regions(folder / "truth_regions.csv", cells, anatomy, warp, extent)
    record = {
        "brain": brain.name,
        "atlas": str(atlas.relative_to(folder)),
        "truth": "truth.csv",
        "truth_regions": "truth_regions.csv",
        "orientation": ORIENTATION,
        "voxel_um": recipe.voxel_um,
        "signal_channel": 0,
        "registration_channel": 1,
        "seed": seed,
        "size": size,
        "n_cells": len(cells),
        "warp": warp.to_json(),
    }
    write_json(folder / _RECORD, record)
    return Phantom.load(folder)


def _write_cells(path: Path, cells: Cells, voxel_um: tuple[float, float, float]) -> None:
    acronym = {s.id: s.acronym for s in STRUCTURES}
    um = vox_to_um(cells.vox, voxel_um)
    columns = (
        "z y x z_um y_um x_um atlas_z_um atlas_y_um atlas_x_um region_id acronym hemisphere diameter_um brightness ring"
    ).split()
    rows = (
        [
            *(f"{v:.3f}" for v in (*cells.vox[i], *um[i], *cells.atlas_um[i])),
            cells.region_id[i],
            acronym[int(cells.region_id[i])],
            cells.hemisphere[i],
            f"{cells.diameter_um[i]:.2f}",
            f"{cells.brightness[i]:.0f}",
            int(cells.ring[i]),
        ]
        for i in range(len(cells))
    )
    _write_csv(path, columns, rows)


def _write_regions(
    path: Path, cells: Cells, anatomy: Anatomy, warp: SmoothWarp, extent: Sequence[float]
) -> None:
    """True counts and volumes per structure and side, rolled up, in the columns of a run's regions.csv."""
    step = extent[0] / 100
    grid = tuple(round(e / step) for e in extent)
    grid_um = tuple(e / n for e, n in zip(extent, grid, strict=True))
    atlas_um = warp.to_atlas_um(grid_points(grid, grid_um))
    labels, sides = anatomy.labels(atlas_um).astype(np.int64), anatomy.hemisphere(atlas_um)
    voxel_mm3 = float(np.prod(grid_um)) * 1e-9
    paths = structure_paths()
    outside = int((cells.region_id == 0).sum())
    rows: list[list[Any]] = [[0, "outside", "outside", 0, 0, "both", outside, "", "", outside, ""]]
    direct = {}
    for structure in STRUCTURES:
        for side in (LEFT, RIGHT):
            count = int(((cells.region_id == structure.id) & (cells.hemisphere == side)).sum())
            direct[structure.id, side] = (
                count,
                ((labels == structure.id) & (sides == side)).sum() * voxel_mm3,
            )
    for structure in STRUCTURES:
        family = [s.id for s in STRUCTURES if structure.id in paths[s.id]]
        for hemisphere, wanted in (("left", (LEFT,)), ("right", (RIGHT,)), ("both", (LEFT, RIGHT))):
            count = sum(direct[i, side][0] for i in family for side in wanted)
            volume = sum(direct[i, side][1] for i in family for side in wanted)
            own = [sum(direct[structure.id, side][part] for side in wanted) for part in (0, 1)]
            density = f"{count / volume:.1f}" if volume else ""
            rows.append(
                [
                    structure.id,
                    structure.acronym,
                    structure.name,
                    structure.parent_id,
                    len(paths[structure.id]) - 1,
                ]
                + [hemisphere, count, f"{volume:.8f}", density, own[0], f"{own[1]:.8f}"]
            )
    columns = "region_id acronym name parent_id depth hemisphere count volume_mm3 density_per_mm3".split()
    _write_csv(path, [*columns, "count_direct", "volume_direct_mm3"], rows)


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
