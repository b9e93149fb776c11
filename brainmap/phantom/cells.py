"""The phantom's cells: where they are, and what the microscope makes of them.

A cell is a nucleus-like body of about 10 um with an uneven outline, a soft edge and inner texture; some are rings
(label in the cytoplasm, dark nucleus). It is drawn on a 1 um grid and brought to voxels by one linear operator per
axis: the Gaussian point spread function (longer along z) integrated over the voxel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import spatial, special

from brainmap.coords import vox_to_edge_um
from brainmap.phantom.anatomy import LEFT, STRUCTURES, Anatomy
from brainmap.phantom.warp import SmoothWarp

__all__ = ["Cells", "Patch", "place_cells", "render_cells"]

Floats = NDArray[np.float64]

#: Point spread function, standard deviation along z, y, x in um (about a 0.5 NA objective).
PSF_UM = (2.4, 0.9, 0.9)
_SPACING_UM = 10.5
_PAIR_SHARE = 0.04
_FACE_CELLS = 6
_FINE_UM = 1.0


@dataclass(frozen=True)
class Cells:
    """The true cells, as columns.

    Attributes
    ----------
    vox : float64 (N, 3)
        Centre, level-0 voxel index.
    atlas_um : float64 (N, 3)
        Centre in the atlas.
    region_id : int64 (N,)
    hemisphere : int8 (N,)
        1 left, 2 right.
    diameter_um : float64 (N,)
    brightness : float64 (N,)
        Contrast in camera counts before blur.
    ring : bool (N,)
    """

    vox: Floats
    atlas_um: Floats
    region_id: NDArray[np.int64]
    hemisphere: NDArray[np.int8]
    diameter_um: Floats
    brightness: Floats
    ring: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.vox)


@dataclass(frozen=True)
class Patch:
    """A small box of added light: `values` (nz, ny, nx) float32 with its first voxel at `start`."""

    start: tuple[int, int, int]
    values: NDArray[np.float32]


def place_cells(
    rng: np.random.Generator,
    anatomy: Anatomy,
    warp: SmoothWarp,
    shape: tuple[int, int, int],
    voxel_um: tuple[float, float, float],
    density_factor: float,
    changes: Mapping[str, float] | None = None,
) -> Cells:
    """Draw cells with each region's and side's own density, at least 10.5 um apart but for touching pairs.

    Positions are uniform in the volume (its first and last slice included) and kept with the probability that the
    region's density asks for, so the region of every cell is known exactly: the warp is analytic. `changes`
    multiply the density of structures, by acronym.
    """
    volume_mm3 = float(np.prod(shape) * np.prod(voxel_um)) * 1e-9
    factors = {structure.acronym: (changes or {}).get(structure.acronym, 1.0) for structure in STRUCTURES}
    highest = (
        max(max(s.density_left, s.density_right) * factors[s.acronym] for s in STRUCTURES) * density_factor
    )
    count = rng.poisson(highest * volume_mm3)
    edges = np.asarray(shape, float)
    vox = rng.uniform(-0.5, edges - 0.5, (count, 3))
    # The posterior face cuts through the brain: a few extra cells there make sure that faces are tested.
    face = rng.uniform([-0.5, -0.5, -0.5], [0.9, edges[1] - 0.5, edges[2] - 0.5], (40 * _FACE_CELLS, 3))
    wanted = _density(anatomy, warp, vox, voxel_um, factors) * density_factor
    vox = vox[rng.uniform(0, highest, count) < wanted]
    face = face[_density(anatomy, warp, face, voxel_um, factors) > 0][:_FACE_CELLS]
    vox = _thin(np.concatenate([face, vox]), voxel_um, _SPACING_UM)
    vox = np.concatenate([vox, _partners(rng, vox, voxel_um)])
    inside = np.all((vox >= -0.5) & (vox < edges - 0.5), axis=1)
    vox = vox[inside & (_density(anatomy, warp, vox, voxel_um, factors) > 0)]
    vox = _thin(vox, voxel_um, 8.5)
    vox = vox[np.lexsort(vox.T[::-1])]
    atlas_um = warp.to_atlas_um(vox_to_edge_um(vox, voxel_um))
    number = len(vox)
    return Cells(
        vox=vox,
        atlas_um=atlas_um,
        region_id=anatomy.labels(atlas_um).astype(np.int64),
        hemisphere=anatomy.hemisphere(atlas_um).astype(np.int8),
        diameter_um=np.clip(rng.normal(10.0, 1.0, number), 8.0, 12.5),
        brightness=np.clip(rng.lognormal(np.log(1000.0), 0.5, number), 480.0, 4000.0),
        ring=rng.uniform(size=number) < 0.12,
    )


def render_cells(
    rng: np.random.Generator, cells: Cells, shape: tuple[int, int, int], voxel_um: tuple[float, float, float]
) -> Iterator[Patch]:
    """Draw every cell; yields one `Patch` per cell, clipped to the volume."""
    half = int(np.ceil((cells.diameter_um.max(initial=10.0) * 0.65 + 2.0) / _FINE_UM))
    fine: Floats = np.arange(-half, half + 1).astype(np.float64) * _FINE_UM
    grid = np.stack(np.meshgrid(fine, fine, fine, indexing="ij"))
    radius = np.sqrt((grid**2).sum(axis=0))
    directions = grid / np.maximum(radius, 1e-6)
    for i in range(len(cells)):
        body = _body(rng, directions, radius, cells.diameter_um[i] / 2, bool(cells.ring[i]))
        starts, operators = zip(
            *(_sampling(fine, cells.vox[i, a], voxel_um[a], PSF_UM[a], shape[a]) for a in range(3)),
            strict=True,
        )
        # Plain einsum: the matrices are too small for BLAS, whose threads would only fight over the cores.
        light = np.einsum("zi,ijk->zjk", operators[0], body)
        light = np.einsum("xk,zyk->zyx", operators[2], np.einsum("yj,zjk->zyk", operators[1], light))
        yield Patch((starts[0], starts[1], starts[2]), (light * cells.brightness[i]).astype(np.float32))


def _density(
    anatomy: Anatomy,
    warp: SmoothWarp,
    vox: Floats,
    voxel_um: tuple[float, float, float],
    factors: Mapping[str, float],
) -> Floats:
    """Cells per mm3 asked for at voxel positions; 0 outside and within 4 um of the brain's surface."""
    atlas_um = warp.to_atlas_um(vox_to_edge_um(vox, voxel_um))
    labels, left = anatomy.labels(atlas_um), anatomy.hemisphere(atlas_um) == LEFT
    result = np.zeros(len(vox))
    for structure in STRUCTURES:
        here = labels == structure.id
        densities = np.where(left[here], structure.density_left, structure.density_right)
        result[here] = densities * factors[structure.acronym]
    result[anatomy.surface(atlas_um) > -4.0] = 0.0
    return result


def _thin(vox: Floats, voxel_um: tuple[float, float, float], spacing_um: float) -> Floats:
    """Drop the later one of every two points closer than `spacing_um`."""
    tree = spatial.cKDTree(vox * voxel_um)
    keep = np.ones(len(vox), bool)
    for i, j in sorted(map(sorted, tree.query_pairs(spacing_um))):
        if keep[i]:
            keep[j] = False
    return vox[keep]


def _partners(rng: np.random.Generator, vox: Floats, voxel_um: tuple[float, float, float]) -> Floats:
    """For some cells a neighbour that touches it, mostly beside it: above each other two blur into one."""
    chosen = vox[rng.uniform(size=len(vox)) < _PAIR_SHARE]
    direction = rng.normal(0, [0.35, 1.0, 1.0], (len(chosen), 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    return chosen + direction * rng.uniform(9.0, 10.5, (len(chosen), 1)) / voxel_um


def _body(
    rng: np.random.Generator, directions: Floats, distance: Floats, radius: float, ring: bool
) -> Floats:
    """Light emitted by one cell on the fine grid, 0..1."""
    axis = rng.normal(size=3)
    axis /= np.linalg.norm(axis)
    along = np.tensordot(axis, directions, axes=1)
    stretch = rng.normal(0.0, 0.10)
    lump = np.tensordot(rng.normal(0.0, 0.05, 3), directions, axes=1)
    outline = radius * (1.0 + stretch * (1.5 * along**2 - 0.5) + lump)
    body = special.expit((outline - distance) / 0.45)
    if ring:
        return body * (1.0 - 0.7 * special.expit((0.62 * outline - distance) / 0.4))
    # One darker nucleolus-like spot somewhere inside, and a slightly domed profile.
    spot = axis * rng.uniform(0.2, 0.5) * radius
    gap2 = ((directions * distance - spot[:, None, None, None]) ** 2).sum(axis=0)
    return (
        body * (1.0 - 0.25 * (distance / radius) ** 2 * (distance < radius)) * (1 - 0.3 * np.exp(-gap2 / 2.0))
    )


def _sampling(fine: Floats, centre: float, step: float, sigma: float, size: int) -> tuple[int, Floats]:
    """First voxel and matrix (voxels, fine) that blurs by the PSF and integrates over voxels along one axis."""
    reach = (fine[-1] + 2.5 * sigma) / step
    first = max(0, int(np.floor(centre - reach)))
    last = min(size, int(np.ceil(centre + reach)) + 1)
    offset = (np.arange(first, last)[:, None] - centre) * step - fine[None, :]
    scale = sigma * np.sqrt(2.0)
    weight = special.erf((offset + step / 2) / scale) - special.erf((offset - step / 2) / scale)
    return first, weight * (0.5 * _FINE_UM / step)
