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

__all__ = ["KINDS", "Tissue", "TissueConfig", "simulate"]

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class TissueConfig:
    """One look of simulated tissue.

    Intensities are relative to the mean background of the tissue, which is 1 before `background`
    turns it into grey levels. Amplitudes named `*_amount` are 0 where a structure is absent.

    Parameters
    ----------
    shape : tuple of int
        Voxels along z, y, x.
    voxel_um : tuple of float
        Voxel size.
    density_per_mm3 : float
        Cells per cubic millimetre, clusters not counted.
    clusters : int
        Dense groups of cells, of 10 to 60 cells each.
    diameter_um, diameter_cv : float
        Mean cell diameter and its coefficient of variation.
    brightness, brightness_cv : float
        Median peak intensity of a cell above background, and the spread of its logarithm.
    ring_share, process_share : float
        Share of cells whose centre is dark, and of cells with processes.
    edge_power, glow : float
        Profile of a cell: 0.5 ** (radius ** edge_power), 2 a Gaussian, 8 a disc; `glow` of its peak
        spreads around it.
    separation : float
        Least distance of two cells, in cell diameters.
    photons : float
        Photons per background unit; sets the shot noise.
    """

    shape: tuple[int, int, int]
    voxel_um: tuple[float, float, float]
    density_per_mm3: float = 5_000.0
    clusters: int = 0
    diameter_um: float = 10.0
    diameter_cv: float = 0.12
    brightness: float = 2.0
    brightness_cv: float = 0.4
    ring_share: float = 0.1
    process_share: float = 0.0
    lumpiness: float = 0.3
    edge_power: float = 6.0
    glow: float = 0.0
    separation: float = 0.8
    haze_amount: float = 0.0
    texture_fine: float = 0.05
    texture_coarse: float = 0.1
    shadow_amount: float = 0.0
    vessels: int = 2
    vessel_amount: float = 0.3
    fibres: int = 0
    debris: int = 0
    granules_per_mm3: float = 0.0
    regions: float = 0.0
    holes: int = 0
    seams: float = 0.0
    elongation: float = 0.12
    edge: bool = False
    stripe_amount: float = 0.0
    shade_amount: float = 0.1
    section_gain: float = 0.03
    section_jitter_um: float = 0.0
    illumination: float = 0.2
    blur_um: tuple[float, float] = (1.5, 0.7)
    photons: float = 200.0
    read_noise: float = 0.01
    noise_blur: float = 0.0
    hot_pixels: float = 0.0
    background: float = 300.0
    dark: float = 100.0
    maximum: int = 65535

    @classmethod
    def random(cls, rng: np.random.Generator, extent_um: float = 300.0, groups: int = 12) -> TissueConfig:
        """Draw a look: `groups` detector slices deep and `extent_um` wide, of any kind."""
        pixel = float(np.exp(rng.uniform(np.log(0.5), np.log(3.0))))
        step = float(np.exp(rng.uniform(np.log(2.0), np.log(10.0))))
        pooled = max(1, round(4.0 / step))
        side = round(extent_um / pixel)
        # Mostly near the detector's nominal 10 um; a third up to large projection neurons.
        diameter = float(rng.uniform(7.0, 13.0) if rng.random() < 0.65 else rng.uniform(12.0, 22.0))
        busy = float(rng.choice([0.3, 1.0, 2.0], p=[0.3, 0.5, 0.2]))

        # At most a tenth of the space is cells.
        most = min(150_000.0, 0.1 / (np.pi / 6 * (diameter * 1e-3) ** 3))

        def sometimes(p: float, low: float, high: float) -> float:
            return float(rng.uniform(low, high)) if rng.random() < min(1.0, p * busy) else 0.0

        return cls(
            shape=(groups * pooled, side, side),
            voxel_um=(step, pixel, pixel),
            density_per_mm3=float(np.exp(rng.uniform(np.log(1_500), np.log(most)))) * (rng.random() > 0.06),
            clusters=int(rng.integers(1, 5)) if rng.random() < 0.3 else 0,
            diameter_um=diameter,
            diameter_cv=float(rng.uniform(0.03, 0.28)),
            brightness=float(np.exp(rng.uniform(np.log(0.2), np.log(15.0)))),
            brightness_cv=float(rng.uniform(0.1, 0.7)),
            ring_share=float(rng.choice([0.0, 0.15, 0.9], p=[0.5, 0.35, 0.15])),
            process_share=sometimes(0.25, 0.1, 0.8),
            lumpiness=float(rng.uniform(0.0, 0.6)),
            edge_power=float(np.exp(rng.uniform(np.log(1.7), np.log(9.0)))),
            glow=sometimes(0.35, 0.02, 0.15),
            separation=float(rng.uniform(0.7, 1.0)),
            haze_amount=sometimes(0.25, 0.1, 0.6),
            texture_fine=float(np.exp(rng.uniform(np.log(0.005), np.log(0.18)))),
            texture_coarse=float(np.exp(rng.uniform(np.log(0.02), np.log(0.5)))),
            shadow_amount=sometimes(0.3, 0.05, 0.5),
            vessels=int(rng.integers(1, 7)) if rng.random() < 0.6 * busy else 0,
            vessel_amount=float(rng.choice([-0.7, 0.3, 1.0, 4.0])),
            fibres=int(rng.integers(1, 30)) if rng.random() < 0.3 * busy else 0,
            debris=int(rng.integers(1, 25)) if rng.random() < 0.4 * busy else 0,
            granules_per_mm3=sometimes(0.45, 5e3, 3e5),
            regions=sometimes(0.35, 0.1, 0.8),
            holes=int(rng.integers(1, 4)) if rng.random() < 0.15 * busy else 0,
            seams=sometimes(0.3, 0.03, 0.25),
            elongation=float(rng.choice([0.08, 0.15, 0.28])),
            edge=bool(rng.random() < 0.25),
            stripe_amount=sometimes(0.25, 0.02, 0.25),
            shade_amount=float(rng.uniform(0.0, 0.4)),
            section_gain=float(rng.choice([0.0, 0.03, 0.15], p=[0.4, 0.4, 0.2])),
            section_jitter_um=sometimes(0.2, 0.3, 2.0),
            illumination=float(rng.uniform(0.0, 0.6)),
            blur_um=(float(rng.uniform(0.5, 4.0)), float(rng.uniform(0.3, 1.6))),
            photons=float(np.exp(rng.uniform(np.log(8), np.log(2000)))),
            read_noise=float(rng.uniform(0.0, 0.05)),
            noise_blur=float(rng.choice([0.0, 0.6, 1.0], p=[0.5, 0.25, 0.25])),
            hot_pixels=sometimes(0.08, 1e-5, 2e-4),
            background=float(np.exp(rng.uniform(np.log(20), np.log(4000)))),
            dark=float(rng.choice([0.0, 100.0, 400.0])),
            maximum=int(rng.choice([65535, 4095, 16383])),
        )


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
    signal: FloatArray
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
    centres, diameters = _place_cells(config, rng)
    cells = _draw_cells(config, centres, diameters, rng)
    tissue = _draw_background(config, rng)
    light = _light(config, rng)
    inside = _edge(config, rng) if config.edge else None
    if inside is not None:
        mask, rim = inside
        tissue = tissue * mask + rim
        depth = ndimage.map_coordinates(mask, (centres / config.voxel_um).T, order=1, mode="nearest")
        centres, diameters = centres[depth > 0.5], diameters[depth > 0.5]
        cells = cells * mask
    structure = _blur(config, cells + tissue, rng)
    signal = _blur(config, cells, None) * light * config.background
    image = _camera(config, structure * light, rng)
    vox = centres / np.asarray(config.voxel_um)
    kept = np.all((vox >= -0.5) & (vox < np.asarray(config.shape) - 0.5), axis=1)
    return Tissue(image, signal.astype(np.float32), vox[kept], diameters[kept], config.voxel_um)


def variant(kind: str, **changes: Any) -> TissueConfig:
    """One of `KINDS`, with changes."""
    return replace(TissueConfig(**KINDS[kind]), **changes)


def _extent(config: TissueConfig) -> NDArray[np.float64]:
    return np.asarray(config.shape) * np.asarray(config.voxel_um)


def _place_cells(
    config: TissueConfig, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centres in um from the centre of voxel 0, also just outside the volume, and diameters."""
    margin = config.diameter_um
    low = -np.asarray([margin] * 3) - np.asarray(config.voxel_um) / 2
    size = _extent(config) + 2 * margin
    count = rng.poisson(config.density_per_mm3 * np.prod(size) * 1e-9)
    # Density varies in space, as layers and nuclei do.
    centres = rng.random((3 * count, 3)) * size + low
    wave = rng.uniform(-1, 1, 3) / np.asarray([120.0, 150.0, 150.0])
    keep = rng.random(len(centres)) < 0.5 + 0.45 * np.sin(2 * np.pi * centres @ wave + rng.uniform(0, 6.3))
    centres = centres[keep][:count]
    for _ in range(config.clusters):
        middle = rng.random(3) * _extent(config)
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


def _draw_cells(
    config: TissueConfig,
    centres: NDArray[np.float64],
    diameters: NDArray[np.float64],
    rng: np.random.Generator,
) -> FloatArray:
    canvas = np.zeros(config.shape, np.float32)
    brightness = config.brightness * np.exp(rng.normal(0, config.brightness_cv, len(centres)))
    ring = rng.random(len(centres)) < config.ring_share
    process = rng.random(len(centres)) < config.process_share
    for index, centre in enumerate(centres):
        _draw_cell(config, canvas, centre, diameters[index], brightness[index], bool(ring[index]), rng)
        if process[index]:
            for _ in range(rng.integers(1, 5)):
                path = _walk(centre, rng, length_um=rng.uniform(15, 120), wander=0.2, flat=0.5)
                fade = np.linspace(1, rng.uniform(0.1, 0.8), len(path))
                width = rng.uniform(0.05, 0.16) * diameters[index] * np.linspace(1, 0.5, len(path))
                _draw_path(config, canvas, path, width, brightness[index] * rng.uniform(0.15, 0.9) * fade)
    return canvas


def _box(
    config: TissueConfig, centre: NDArray[np.float64], reach: NDArray[np.float64] | float
) -> tuple[tuple[slice, ...], list[NDArray[np.float64]]] | None:
    """Voxels within `reach` um of a centre, and their distances along each axis in um."""
    box, offsets = [], []
    for axis in range(3):
        voxel = config.voxel_um[axis]
        span = reach if np.isscalar(reach) else reach[axis]  # type: ignore[index]
        first = max(0, int(np.floor((centre[axis] - span) / voxel)))
        stop = min(config.shape[axis], int(np.ceil((centre[axis] + span) / voxel)) + 1)
        if stop <= first:
            return None
        box.append(slice(first, stop))
        shape = [1, 1, 1]
        shape[axis] = -1
        offsets.append((np.arange(first, stop) * voxel - centre[axis]).reshape(shape))
    return tuple(box), offsets


def _draw_cell(
    config: TissueConfig,
    canvas: FloatArray,
    centre: NDArray[np.float64],
    diameter: float,
    brightness: float,
    ring: bool,
    rng: np.random.Generator,
) -> None:
    """Add one cell: a lumpy ellipsoid of half its intensity at the radius, dark in the middle if it is a ring."""
    axes = 0.5 * diameter * np.exp(np.clip(rng.normal(0, config.elongation, 3), -0.5, 0.5))
    reach = 2.6 if config.glow > 0 or config.edge_power < 3 else 1.7
    found = _box(config, centre, reach * axes.max())
    if found is None:
        return
    box, (z, y, x) = found
    angle = rng.uniform(0, np.pi)
    along = (x * np.cos(angle) + y * np.sin(angle)) / axes[2]
    across = (y * np.cos(angle) - x * np.sin(angle)) / axes[1]
    theta = np.arctan2(across, along)
    lump = config.lumpiness * 0.25 * np.cos(rng.integers(2, 5) * theta + rng.uniform(0, 6.3))
    core = rng.uniform(0.45, 0.7)
    hollow = rng.uniform(0.5, 0.95)
    power = config.edge_power * float(np.exp(rng.normal(0, 0.15)))
    # A section integrates over its thickness: average the profile over it.
    total = np.zeros(np.broadcast_shapes(along.shape, z.shape), np.float64)
    fractions = (-0.33, 0.0, 0.33) if config.voxel_um[0] > 2.5 else (0.0,)
    for fraction in fractions:
        height = (z + fraction * config.voxel_um[0] * 0.8) / axes[0]
        radius = np.sqrt(along**2 + across**2 + height**2) * (1 + lump)
        profile = 0.5 ** np.minimum(radius**power, 60)
        if ring:
            profile -= hollow * 0.5 ** np.minimum((radius / core) ** max(power, 4), 60)
        profile += config.glow * np.exp(-0.5 * (radius / 1.6) ** 2)
        total += profile
    if config.lumpiness > 0.2:
        grain = rng.normal(0, 0.5 * config.lumpiness, total.shape)
        width = [1.2 / v for v in config.voxel_um]
        smooth = ndimage.gaussian_filter(grain, width)
        total *= np.clip(1 + smooth * (0.5 * config.lumpiness / max(smooth.std(), 1e-6)), 0.2, 2)
    canvas[box] += (brightness / len(fractions) * total).astype(np.float32)


def _walk(
    start: NDArray[np.float64], rng: np.random.Generator, length_um: float, wander: float, flat: float
) -> NDArray[np.float64]:
    """Points every 2 um along a smooth random curve; `flat` < 1 keeps it near the plane."""
    steps = max(2, int(length_um / 2))
    direction = rng.normal(size=3) * [flat, 1, 1]
    turns = rng.normal(size=(steps, 3)) * wander * [flat, 1, 1]
    directions = direction / np.linalg.norm(direction) + np.cumsum(turns, axis=0) * 0.3
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return start + np.cumsum(2 * directions, axis=0)


def _draw_path(
    config: TissueConfig,
    canvas: FloatArray,
    path: NDArray[np.float64],
    radius: float | NDArray[np.float64],
    amount: float | NDArray[np.float64],
) -> None:
    """Add a tube of Gaussian profile along points; overlaps take the larger value, not the sum.

    Radius and amount may change from point to point.
    """
    voxel = np.asarray(config.voxel_um)
    radii, amounts = np.broadcast_to(radius, len(path)), np.broadcast_to(amount, len(path))
    pieces: list[tuple[tuple[slice, ...], Any]] = []
    for point, width, height in zip(path, radii, amounts, strict=True):
        widths = np.maximum(width, 0.5 * voxel)
        found = _box(config, point, 2 * np.maximum(width, 0.6 * voxel))
        if found is None:
            continue
        box, (z, y, x) = found
        # What is thinner than a voxel fills only a part of it.
        thin = float(np.min(width / widths))
        value = np.exp(-0.5 * ((z / widths[0]) ** 2 + (y / widths[1]) ** 2 + (x / widths[2]) ** 2))
        pieces.append((box, height * thin * value))
    if not pieces:
        return
    low = [min(b[a].start for b, _ in pieces) for a in range(3)]
    high = [max(b[a].stop for b, _ in pieces) for a in range(3)]
    dark = bool(np.max(amounts) < 0)
    part = np.zeros([h - lo for h, lo in zip(high, low, strict=True)], np.float32)
    for box, value in pieces:
        target = part[tuple(slice(s.start - lo, s.stop - lo) for s, lo in zip(box, low, strict=True))]
        (np.minimum if dark else np.maximum)(target, value, out=target)
    canvas[tuple(slice(lo, h) for lo, h in zip(low, high, strict=True))] += part


def _field(config: TissueConfig, rng: np.random.Generator, scale_um: tuple[float, float]) -> FloatArray:
    """Smooth random field of mean 0 and standard deviation 1, correlated over `scale_um` (z, xy)."""
    widths = [scale_um[0] / config.voxel_um[0]] + [scale_um[1] / v for v in config.voxel_um[1:]]
    # Drawn on a grid no finer than the correlation needs, then enlarged: coarse fields cost nothing.
    shrink = [max(1.0, w / 1.5) for w in widths]
    shape = [max(3, int(np.ceil(n / s)) + 3) for n, s in zip(config.shape, shrink, strict=True)]
    noise = rng.standard_normal(shape, np.float32)
    noise = ndimage.gaussian_filter(noise, [w / s for w, s in zip(widths, shrink, strict=True)], mode="wrap")
    noise = (noise - noise.mean()) / max(float(noise.std()), 1e-6)
    for axis, (size, factor) in enumerate(zip(config.shape, shrink, strict=True)):
        if factor > 1:
            position = np.arange(size) / factor
            low = position.astype(np.intp)
            weight = (position - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
            noise = noise.take(low, axis) * (1 - weight) + noise.take(low + 1, axis) * weight
        else:
            noise = noise.take(np.arange(size), axis)
    return noise


def _draw_background(config: TissueConfig, rng: np.random.Generator) -> FloatArray:
    """Everything that is not a labelled cell."""
    coarse = rng.uniform(25, 120)
    tissue = np.exp(config.texture_coarse * _field(config, rng, (coarse, coarse)))
    fine = float(rng.uniform(1.5, 6.0))
    tissue *= 1 + config.texture_fine * np.clip(_field(config, rng, (fine, fine)), -3, 6)
    middle = float(rng.uniform(8, 25))
    tissue *= 1 + 0.5 * config.texture_fine * _field(config, rng, (middle, middle))
    if config.regions:
        # Nuclei, layers and tracts: steps of brightness with soft or sharp borders.
        wide = rng.uniform(30, 90)
        border = _field(config, rng, (wide, wide)) / rng.uniform(0.03, 0.5)
        tissue *= 1 - config.regions / (1 + np.exp(np.clip(border, -30, 30)))
    if config.shadow_amount:
        _draw_shadows(config, tissue, rng)
    for _ in range(config.vessels):
        start = rng.random(3) * _extent(config)
        path = _walk(start, rng, length_um=rng.uniform(100, 500), wander=0.15, flat=rng.uniform(0.1, 1.5))
        amount = config.vessel_amount * rng.uniform(0.4, 1.2)
        _draw_path(config, tissue, path, float(rng.uniform(1.5, 7)), amount)
    for _ in range(config.fibres):
        start = rng.random(3) * _extent(config)
        path = _walk(start, rng, length_um=rng.uniform(30, 300), wander=0.1, flat=0.3)
        bright = config.brightness * rng.uniform(0.1, 0.9)
        beads = np.exp(rng.normal(0, rng.uniform(0, 0.8), len(path)))
        _draw_path(config, tissue, path, float(rng.uniform(0.4, 1.5)), bright * np.minimum(beads, 3))
    _draw_debris(config, tissue, rng)
    for _ in range(config.holes):
        _cut_hole(config, tissue, rng)
    if config.haze_amount:
        spots = np.zeros(config.shape, np.float32)
        for _ in range(rng.integers(3, 15)):
            spots[tuple(int(rng.integers(n)) for n in config.shape)] = rng.uniform(0.3, 1)
        wide = rng.uniform(12, 30)
        spots = ndimage.gaussian_filter(spots, [wide / v for v in config.voxel_um])
        tissue += config.haze_amount * config.brightness * spots / max(float(spots.max()), 1e-9)
    return np.maximum(tissue, 0.02).astype(np.float32)


def _draw_shadows(config: TissueConfig, tissue: FloatArray, rng: np.random.Generator) -> None:
    """Dark unlabelled somata in bright neuropil."""
    count = min(600, rng.poisson(60_000 * np.prod(_extent(config)) * 1e-9))
    for centre in rng.random((count, 3)) * _extent(config):
        radius = 0.5 * config.diameter_um * rng.uniform(0.6, 1.3)
        found = _box(config, centre, 1.6 * radius)
        if found is not None:
            box, (z, y, x) = found
            distance = np.sqrt(z**2 + y**2 + x**2) / radius
            tissue[box] *= (1 - config.shadow_amount / (1 + np.exp((distance - 1) / 0.15))).astype(np.float32)


def _cut_hole(config: TissueConfig, tissue: FloatArray, rng: np.random.Generator) -> None:
    """A ventricle or tear: dark inside, sharply bordered, the border sometimes bright."""
    found = _box(config, rng.random(3) * _extent(config), np.array([1000.0, 90.0, 90.0]))
    if found is None:
        return
    box, (z, y, x) = found
    angle = rng.uniform(0, np.pi)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    across = across + rng.uniform(0, 15) * np.sin(along / rng.uniform(10, 30) + rng.uniform(0, 6)) + 0.2 * z
    radius = np.sqrt((along / rng.uniform(20, 80)) ** 2 + (across / rng.uniform(8, 35)) ** 2)
    depth = (1 - radius) * 20
    tissue[box] *= (1 - rng.uniform(0.5, 0.95) / (1 + np.exp(np.clip(-depth, -30, 30)))).astype(np.float32)
    lining = rng.choice([0.0, 0.5, 2.0]) * np.exp(-0.5 * (depth / rng.uniform(0.5, 2)) ** 2)
    tissue[box] += lining.astype(np.float32)


def _draw_debris(config: TissueConfig, tissue: FloatArray, rng: np.random.Generator) -> None:
    """Bright things of the wrong size or shape: dust, crystals, clumps, lipofuscin granules."""
    for _ in range(config.debris):
        centre = rng.random(3) * _extent(config)
        amount = config.brightness * float(np.exp(rng.normal(0.3, 0.8)))
        kind = rng.integers(3)
        if kind == 0:
            _blob(config, tissue, centre, rng.uniform(0.5, 1.8, 3), amount)
        elif kind == 1:
            _blob(
                config,
                tissue,
                centre,
                rng.uniform(1.2, 3.5) * config.diameter_um * rng.uniform(0.5, 1, 3),
                amount,
            )
        else:
            path = _walk(centre, rng, length_um=rng.uniform(25, 60), wander=0.5, flat=0.2)
            _draw_path(config, tissue, path, float(rng.uniform(1, 4)), amount)
    count = min(2500, rng.poisson(config.granules_per_mm3 * np.prod(_extent(config)) * 1e-9))
    amount = config.brightness * float(rng.uniform(0.2, 1.5))
    for centre in rng.random((count, 3)) * _extent(config):
        _blob(config, tissue, centre, rng.uniform(0.4, 1.2, 3), amount * rng.uniform(0.3, 1))


def _blob(
    config: TissueConfig,
    canvas: FloatArray,
    centre: NDArray[np.float64],
    radii_um: NDArray[np.float64],
    amount: float,
) -> None:
    """Add a Gaussian of standard deviations `radii_um`, thinned where it is smaller than a voxel."""
    widths = np.maximum(radii_um, 0.35 * np.asarray(config.voxel_um))
    found = _box(config, centre, 2.5 * widths)
    if found is None:
        return
    box, offsets = found
    exponent = sum((o / w) ** 2 for o, w in zip(offsets, widths, strict=True))
    thin = float(np.prod(radii_um / widths))
    canvas[box] += (amount * thin * np.exp(-0.5 * exponent)).astype(np.float32)


def _edge(config: TissueConfig, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """A curved border with nothing behind it, and a rim of bright meninges along it."""
    extent = _extent(config)
    z, y, x = (np.arange(n) * v for n, v in zip(config.shape, config.voxel_um, strict=True))
    if rng.random() < 0.25:
        # A missing tile or the edge of the scan: straight, sharp, along an axis.
        depth = (x[None, None] - extent[2] * rng.uniform(0.05, 0.6)) * rng.choice([-1.0, 1.0])
        if rng.random() < 0.5:
            depth = (y[None, :, None] - extent[1] * rng.uniform(0.05, 0.6)) * rng.choice([-1.0, 1.0])
        mask = np.broadcast_to(depth > 0, config.shape).astype(np.float32)
        return mask, np.zeros_like(mask)
    angle = rng.uniform(0, 2 * np.pi)
    across = np.cos(angle) * (x[None, None] - extent[2] / 2) + np.sin(angle) * (
        y[None, :, None] - extent[1] / 2
    )
    along = np.cos(angle) * (y[None, :, None] - extent[1] / 2) - np.sin(angle) * (
        x[None, None] - extent[2] / 2
    )
    curve = along**2 / rng.uniform(300, 3000) + rng.uniform(-1, 1) * 0.3 * z[:, None, None]
    wave = rng.uniform(0, 8) * np.sin(along / rng.uniform(8, 40) + rng.uniform(0, 6))
    depth = across + curve + wave + rng.uniform(-0.25, 0.35) * extent[2]
    softness = rng.uniform(1, 4)
    mask = 1 / (1 + np.exp(np.clip(-depth / softness, -30, 30)))
    rim = rng.uniform(0, 2) * np.exp(-0.5 * ((depth - 3) / rng.uniform(1.5, 5)) ** 2)
    return mask.astype(np.float32), (rim * (rng.random() < 0.6)).astype(np.float32)


def _light(config: TissueConfig, rng: np.random.Generator) -> FloatArray:
    """Multiplicative light: illumination, tile shading, stripes, section gain."""
    nz, ny, nx = config.shape
    _z, y, x = (np.arange(n) * v for n, v in zip(config.shape, config.voxel_um, strict=True))
    light = np.exp(config.illumination * 0.5 * _field(config, rng, (150, 200)))
    tile = rng.uniform(120, 400)
    phase = rng.uniform(0, tile, 2)
    bowl = [(((v + p) % tile) / tile - 0.5) ** 2 * 2 for v, p in zip((y, x), phase, strict=True)]
    light *= (1 - config.shade_amount * (bowl[0][:, None] + bowl[1][None]))[None].astype(np.float32)
    if config.seams:
        cells = [((v + p) // tile).astype(int) for v, p in zip((y, x), phase, strict=True)]
        gains = np.exp(rng.normal(0, config.seams, (cells[0][-1] + 1, cells[1][-1] + 1)))
        light *= gains[np.ix_(*cells)][None].astype(np.float32)
    if config.stripe_amount:
        down = rng.random() < 0.5
        stripes = ndimage.gaussian_filter1d(
            rng.standard_normal((nz, ny if down else nx)), rng.uniform(0.7, 6), axis=1
        )
        stripes = 1 + config.stripe_amount * stripes / max(float(stripes.std()), 1e-6)
        stripes = stripes[:, :, None] if down else stripes[:, None, :]
        light *= np.clip(stripes, 0.3, 2).astype(np.float32)
    gains = np.exp(rng.normal(0, config.section_gain, nz)) if config.section_gain else np.ones(nz)
    return (light * gains[:, None, None]).astype(np.float32)


def _blur(config: TissueConfig, image: FloatArray, rng: np.random.Generator | None) -> FloatArray:
    """Point spread of the microscope; with `rng` also sections that do not lie quite true."""
    widths = [config.blur_um[0] / config.voxel_um[0]] + [config.blur_um[1] / v for v in config.voxel_um[1:]]
    image = ndimage.gaussian_filter(image, [w if w > 0.15 else 0 for w in widths], truncate=3)
    if rng is None or not config.section_jitter_um:
        return image
    for section in image:
        shift = rng.normal(0, config.section_jitter_um, 2) / config.voxel_um[1:]
        section[:] = ndimage.shift(section, shift, order=1, mode="nearest")
    return image


def _camera(config: TissueConfig, light: FloatArray, rng: np.random.Generator) -> NDArray[np.uint16]:
    """Photon noise, read noise, hot pixels, offset, clipping."""
    photons = np.maximum(light, 0) * config.photons
    noise = rng.standard_normal(light.shape, np.float32) * np.sqrt(photons)
    noise += config.photons * config.read_noise * rng.standard_normal(light.shape, np.float32)
    if config.noise_blur:
        # Stitching and resampling leave neighbouring pixels correlated.
        before = float(noise.std())
        noise = ndimage.gaussian_filter(noise, (0, config.noise_blur, config.noise_blur))
        noise *= before * (1 - 0.3 * config.noise_blur) / max(float(noise.std()), 1e-9)
    noisy = (photons + noise) / config.photons
    if config.hot_pixels:
        count = rng.poisson(config.hot_pixels * noisy.size)
        noisy.ravel()[rng.integers(0, noisy.size, count)] += rng.uniform(1, 10) * max(config.brightness, 0.5)
    grey = noisy * config.background + config.dark
    return np.clip(np.rint(grey), 0, config.maximum).astype(np.uint16)
