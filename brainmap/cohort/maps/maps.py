"""Density maps of all animals in atlas space, and where they differ, as images."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from brainmap.atlas.atlas import Atlas
from brainmap.cohort.groups import Groups, read_groups
from brainmap.cohort.maps.permutation import MapTest, permutation_test
from brainmap.cohort.model.design import Contrast, Design, build_design
from brainmap.cohort.model.levels import median_levels
from brainmap.cohort.selection import select_regions
from brainmap.cohort.table import SIDES, CohortTable, read_cohort
from brainmap.coords import atlas_um_to_index
from brainmap.errors import BrainmapError, DataError, UsageError
from brainmap.points.table import iter_points, points_path

__all__ = ["CohortMaps", "MapSettings", "make_maps", "read_densities"]

log = logging.getLogger(__name__)

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

_UM3_PER_MM3 = 1e9
_COLUMNS = ("atlas_z_um", "atlas_y_um", "atlas_x_um", "region_id")


@dataclass(frozen=True)
class MapSettings:
    """How maps are made and tested.

    Attributes
    ----------
    voxel_um, sigma_um : float
        Of the maps; the standard deviation of the Gaussian that smooths them.
    repeats : int
        Most permutations.
    alpha : float
        Family-wise rate of error.
    fold : bool
        The right side is laid onto the left one, and their mean is taken.
    relative : bool
        Each animal's level over the brain is divided out.
    smooth_variance_um : float
        Standard deviation of a Gaussian over the variance; 0: none.
    covariates, formula, contrasts, paired
        See `brainmap.cohort.model.design.build_design`.
    """

    voxel_um: float = 200.0
    sigma_um: float = 200.0
    repeats: int = 1000
    alpha: float = 0.05
    fold: bool = False
    relative: bool = True
    smooth_variance_um: float = 0.0
    covariates: tuple[str, ...] = ()
    formula: str | None = None
    contrasts: tuple[str, ...] = ()
    paired: str | None = None

    def __post_init__(self) -> None:
        if not self.voxel_um > 0 or not self.sigma_um >= 0 or not self.smooth_variance_um >= 0:
            raise UsageError("--voxel, --sigma and --smooth-variance are lengths in um")
        if self.repeats < 20:
            raise UsageError(
                f"--permutations must be 20 or more, not {self.repeats}: p cannot be below 1 / number"
            )
        if not 0 < self.alpha < 1:
            raise UsageError(f"--alpha must lie between 0 and 1, not {self.alpha}")


@dataclass(frozen=True)
class CohortMaps:
    """Maps of a cohort, all in atlas space (asr).

    Attributes
    ----------
    settings : MapSettings
    groups : Groups
    design : Design
    density : float64 array (animals, z, y, x)
        Cells per mm3, smoothed, the level divided out where that was asked for.
    mask : bool array (z, y, x)
        Inside the brain.
    tests : tuple of (Contrast, MapTest)
        Effects are log2 ratios of densities, one cell in the kernel's volume added.
    origin_um : tuple of float
        Centre of the first voxel.
    """

    settings: MapSettings
    groups: Groups
    design: Design
    density: Floats
    mask: Flags
    tests: tuple[tuple[Contrast, MapTest], ...]
    origin_um: tuple[float, float, float]

    def mean(self, group: str) -> Floats:
        """Mean density of a group."""
        return np.asarray(self.density[self.groups.rows(group)].mean(axis=0))

    def lines(self) -> list[tuple[str, str]]:
        """For people."""
        shape = " x ".join(map(str, self.mask.shape))
        rows = [
            ("animals", ", ".join(f"{self.groups.group.count(name)} {name}" for name in self.groups.names)),
            ("design", self.design.formula),
            (
                "maps",
                f"{shape} voxels of {self.settings.voxel_um:g} um, {int(self.mask.sum())} of them in the brain",
            ),
        ]
        for contrast, test in self.tests:
            found = self.mask & (np.nan_to_num(test.p, nan=1.0) <= self.settings.alpha)
            up = int((found & (np.nan_to_num(test.effect) > 0)).sum())
            how = "all" if test.exact else "random"
            rows.append(
                (
                    contrast.name,
                    f"{up} voxels more, {int(found.sum()) - up} fewer, at a family-wise rate of "
                    f"{self.settings.alpha:g} ({how} {test.permutations} permutations, least p "
                    f"{np.nanmin(test.p):.3g})",
                )
            )
        return rows


def make_maps(groups: str | Path, settings: MapSettings | None = None) -> CohortMaps:
    """Make the maps of all animals and test them.

    Raises
    ------
    UsageError, NotFoundError, DataError
        See `read_groups`, `read_cohort`, `build_design`, `permutation_test`; where runs lack atlas coordinates.
    """
    settings = settings or MapSettings()
    read = read_groups(groups, formula=settings.formula, paired=settings.paired)
    table = read_cohort(read)
    if "bad" in table.verdicts:
        label = read.labels[table.verdicts.index("bad")]
        raise DataError(
            f"the registration of {label} is bad: its map would lie elsewhere; leave the animal out"
        )
    design = build_design(
        read,
        settings.covariates,
        formula=settings.formula,
        contrasts=settings.contrasts,
        paired=settings.paired,
    )
    density, extent = read_densities(read, settings)
    mask = _brain(table, density, extent, settings)
    if settings.fold:
        density, mask = _folded(density), _folded(mask.astype(float)[None])[0] > 0.5
    density = density / _levels(table, settings)[:, None, None, None]
    # One cell in the volume of the kernel: what lies below is chance, and logarithms stay finite.
    floor = _UM3_PER_MM3 / max((2 * math.sqrt(math.pi) * settings.sigma_um) ** 3, settings.voxel_um**3)
    values = np.log2(density + floor)
    blocks = None
    if settings.paired is not None:
        blocks = np.unique(read.values(settings.paired), return_inverse=True)[1]
    tests = []
    for contrast in design.contrasts:
        if contrast.matrix.shape[1] > 1:
            raise UsageError(
                f"maps test one difference at a time, and {contrast.name} has several: name a contrast"
            )
        log.info("%s: permutations", contrast.name)
        test = permutation_test(
            values, mask, design.matrix, contrast.matrix[:, 0], blocks=blocks, repeats=settings.repeats,
            smooth_vox=settings.smooth_variance_um / settings.voxel_um,
        )  # fmt: skip
        tests.append((contrast, test))
    origin = (settings.voxel_um / 2,) * 3
    return CohortMaps(settings, read, design, density, mask, tuple(tests), origin)


def read_densities(groups: Groups, settings: MapSettings) -> tuple[Floats, Floats]:
    """Smoothed cells per mm3 of every run, (animals, z, y, x), and the extent of the atlas in um.

    Raises
    ------
    DataError
        If a run has no atlas coordinates, or runs differ in the extent of their atlas.
    """
    maps, extents = [], []
    for run, label in zip(groups.run, groups.labels, strict=True):
        counts: NDArray[np.float64] | None = None
        extent = np.zeros(3)
        for points in iter_points(points_path(run), columns=_COLUMNS):
            if counts is None:
                extent = _extent(points.meta, label)
                counts = np.zeros([max(1, math.ceil(e / settings.voxel_um - 1e-6)) for e in extent])
            shape = (counts.shape[0], counts.shape[1], counts.shape[2])
            place = points.take(points["region_id"] != 0).atlas_zyx_um
            index, inside = atlas_um_to_index(place, (settings.voxel_um,) * 3, shape)
            np.add.at(counts, tuple(index[inside].T), 1)
        if counts is None:
            raise DataError(f"the run of {label} ({run}) has no cells: there is nothing to map")
        sigma = settings.sigma_um / settings.voxel_um
        maps.append(
            ndimage.gaussian_filter(counts * (_UM3_PER_MM3 / settings.voxel_um**3), sigma, mode="constant")
        )
        extents.append(extent)
    if any(not np.allclose(extent, extents[0]) for extent in extents):
        raise DataError("the runs were mapped to atlases of different extents; detect all animals with one")
    return np.stack(maps), extents[0]


def _extent(meta: dict[str, Any], label: str) -> Floats:
    shape, resolution = meta.get("atlas_shape"), meta.get("atlas_resolution_um")
    if shape is None or resolution is None:
        raise DataError(
            f"the run of {label} does not name the shape of its atlas: map it again with brainmap regions"
        )
    return np.asarray(shape, dtype=float) * np.asarray(resolution, dtype=float)


def _brain(table: CohortTable, density: Floats, extent: Floats, settings: MapSettings) -> Flags:
    """Voxels of which half lies in the atlas's brain; where the atlas is not at hand, those with cells."""
    name = next((name for name in table.atlases if name), None)
    shape = density.shape[1:]
    try:
        if name is None:
            raise DataError("the runs name no atlas")
        atlas = Atlas.open(name)
        inside = (atlas.annotation > 0).astype(np.float32)
    except BrainmapError as error:
        log.warning("the brain is taken to be where cells are, as the atlas cannot be read: %s", error)
        mean = density.mean(axis=0)
        return np.asarray(mean > 0.001 * mean.max())
    # Each voxel of the map looks at the atlas at its centre, after a mean over its size.
    step = np.asarray(settings.voxel_um) / np.asarray(atlas.resolution_um)
    smooth = ndimage.uniform_filter(inside, np.maximum(1, np.round(step)).astype(int).tolist())
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"))
    place = (grid + 0.5) * step.reshape(3, 1, 1, 1) - 0.5
    return np.asarray(ndimage.map_coordinates(smooth, place, order=1, mode="nearest") > 0.5)


def _folded(values: Floats) -> Floats:
    """Mean of a map and its mirror image, the half of index 0 of the last axis."""
    half = -(-values.shape[-1] // 2)
    return ((values + values[..., ::-1]) / 2)[..., :half]


def _levels(table: CohortTable, settings: MapSettings) -> Floats:
    if not settings.relative:
        return np.ones(len(table.groups))
    both = SIDES.index("both")
    leaves = select_regions(table, "leaf")
    found = median_levels(
        leaves.add_up(table.count)[:, :, both].astype(float), leaves.add_up(table.volume_mm3)[:, :, both]
    )
    if found is None:
        raise DataError("each animal's level needs ten structures with cells in every animal: use --absolute")
    return found.factor
