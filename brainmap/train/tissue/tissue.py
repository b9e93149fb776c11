"""Simulated brain tissue with known cells: what the default detector learns from and is judged on.

Everything is drawn from wide ranges, because the point is not one microscope's look but that no look
is new: labels that fill the nucleus or spare it, sparse to packed, bright to barely visible; vessels,
fibres, debris, granules and shadows that are not cells; tissue edges, stripes, tile shading, section
gain, blur and camera noise. Lengths are in micrometres, axes z, y, x.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from brainmap.infer.peaks import suppress
from brainmap.train.tissue.config import TissueConfig
from brainmap.train.tissue.drawing import draw_background, draw_cells, extent_um
from brainmap.train.tissue.optics import add_camera, blur, draw_edge, draw_light

__all__ = ["KINDS", "Tissue", "TissueConfig", "place_cells", "simulate", "simulate_section", "variant"]


@dataclass(frozen=True)
class Tissue:
    """A simulated volume and the truth about it.

    Parameters
    ----------
    image : ndarray of uint16, shape (z, y, x)
        Grey levels as a camera gives them.
    signal : ndarray of float32, shape (z, y, x)
        What the cells alone add to `image`, in grey levels and free of noise.
    centres_vox : ndarray of float64, shape (n, 3)
        Cell centres inside the volume, z, y, x, level-0 voxel index.
    diameter_um : ndarray of float64, shape (n,)
    voxel_um : tuple of float
    """

    image: NDArray[np.uint16]
    signal: NDArray[np.float32]
    centres_vox: NDArray[np.float64]
    diameter_um: NDArray[np.float64]
    voxel_um: tuple[float, float, float]


def _kind(**changes: Any) -> dict[str, Any]:
    return changes


# The five kinds of held-out tissue that the accuracy figures in the documentation refer to.
KINDS: dict[str, dict[str, Any]] = {
    "sparse": _kind(
        shape=(32, 512, 512), voxel_um=(5.0, 1.0, 1.0), density_per_mm3=3_000, brightness=3.0, vessels=4,
        debris=12, granules_per_mm3=2e4, texture_fine=0.06, ring_share=0.2, section_gain=0.08, fibres=4,
    ),
    "dense": _kind(
        shape=(24, 400, 400), voxel_um=(5.0, 1.0, 1.0), density_per_mm3=70_000, clusters=6, brightness=2.0,
        separation=0.75, texture_fine=0.06, vessels=3,
    ),
    "dim": _kind(
        shape=(32, 512, 512), voxel_um=(5.0, 1.0, 1.0), density_per_mm3=8_000, brightness=0.35, photons=60,
        brightness_cv=0.3, texture_fine=0.05, texture_coarse=0.15, vessels=3, vessel_amount=0.3, debris=4,
        stripe_amount=0.05,
    ),
    "coarse": _kind(
        shape=(32, 300, 300), voxel_um=(5.0, 2.0, 2.0), density_per_mm3=12_000, brightness=1.5, debris=8,
        vessels=4, texture_fine=0.08, texture_coarse=0.2, process_share=0.2, shade_amount=0.25,
    ),
    "isotropic": _kind(
        shape=(80, 300, 300), voxel_um=(2.0, 1.8, 1.8), density_per_mm3=12_000, brightness=1.5, debris=8,
        vessels=4, texture_fine=0.06, blur_um=(3.0, 1.0), haze_amount=0.2,
    ),
}  # fmt: skip


def simulate(config: TissueConfig, seed: int) -> Tissue:
    """Make a volume of tissue.

    Parameters
    ----------
    config : TissueConfig
        The look; see `TissueConfig.random` and `KINDS`.
    seed : int
        Equal seeds and looks give equal volumes.

    Returns
    -------
    Tissue
    """
    rng = np.random.default_rng(seed)
    centres, diameters = place_cells(config, rng)
    cells = draw_cells(config, centres, diameters, rng)
    tissue = draw_background(config, rng)
    light = draw_light(config, rng)
    inside = draw_edge(config, rng) if config.edge else None
    if inside is not None:
        mask, rim = inside
        tissue = tissue * mask + rim
        depth = ndimage.map_coordinates(mask, (centres / config.voxel_um).T, order=1, mode="nearest")
        centres, diameters = centres[depth > 0.5], diameters[depth > 0.5]
        cells = cells * mask
    structure = blur(config, cells + tissue, rng)
    signal = blur(config, cells, None) * light * config.background
    image = add_camera(config, structure * light, rng)
    vox = centres / np.asarray(config.voxel_um)
    kept = np.all((vox >= -0.5) & (vox < np.asarray(config.shape) - 0.5), axis=1)
    return Tissue(image, signal.astype(np.float32), vox[kept], diameters[kept], config.voxel_um)


def simulate_section(config: TissueConfig, seed: int) -> Tissue:
    """Make a single section: a volume seen through its thickness.

    The slices are averaged, as a wide-field microscope does, or their maximum is taken, as projections of
    confocal stacks are. Of cells that lie over each other the brighter stays in the truth.
    """
    tissue = simulate(config, seed)
    rng = np.random.default_rng((seed, 1))
    over = np.max if rng.random() < 0.5 else np.mean
    image = np.rint(over(tissue.image, axis=0, keepdims=True)).astype(np.uint16)
    signal = over(tissue.signal, axis=0, keepdims=True).astype(np.float32)
    centres = tissue.centres_vox.copy()
    depth_um = config.shape[0] * config.voxel_um[0]
    centres[:, 0] = 0.0
    index = np.clip(np.rint(centres[:, 1:]).astype(int), 0, np.array(config.shape[1:]) - 1)
    order = np.column_stack([np.zeros(len(index), int), index])
    strength = signal[0][tuple(index.T)]
    keep = suppress(centres * config.voxel_um, strength, order, 0.6 * config.diameter_um)
    voxel = (depth_um, *config.voxel_um[1:])
    return Tissue(image, signal, centres[keep], tissue.diameter_um[keep], voxel)


def variant(kind: str, **changes: Any) -> TissueConfig:
    """One of `KINDS`, with changes."""
    return replace(TissueConfig(**KINDS[kind]), **changes)


def place_cells(
    config: TissueConfig, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centres in um from the centre of voxel 0, also just outside the volume, and diameters."""
    margin = config.diameter_um
    low = -np.asarray([margin] * 3) - np.asarray(config.voxel_um) / 2
    size = extent_um(config) + 2 * margin
    count = rng.poisson(config.density_per_mm3 * np.prod(size) * 1e-9)
    # Density varies in space, as layers and nuclei do.
    centres = rng.random((3 * count, 3)) * size + low
    wave = rng.uniform(-1, 1, 3) / np.asarray([120.0, 150.0, 150.0])
    keep = rng.random(len(centres)) < 0.5 + 0.45 * np.sin(2 * np.pi * centres @ wave + rng.uniform(0, 6.3))
    centres = centres[keep][:count]
    for _ in range(config.clusters):
        middle = rng.random(3) * extent_um(config)
        spread = config.diameter_um * rng.uniform(1.2, 3.0)
        members = rng.normal(size=(rng.integers(10, 60), 3)) * spread
        centres = np.concatenate([centres, middle + members])
    if len(centres) == 0:
        return np.zeros((0, 3)), np.zeros(0)
    diameters = config.diameter_um * np.clip(rng.normal(1, config.diameter_cv, len(centres)), 0.55, 1.6)
    pairs = cKDTree(centres).query_pairs(config.separation * config.diameter_um, output_type="ndarray")
    dropped = np.zeros(len(centres), bool)
    for first, second in pairs[np.lexsort(pairs.T)]:
        if not dropped[first]:
            dropped[second] = True
    return centres[~dropped], diameters[~dropped]
