"""Drawing simulated tissue: cells, and everything that is not a cell."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from brainmap.train.tissue.config import TissueConfig

__all__ = ["draw_background", "draw_cells", "extent_um", "smooth_field"]

FloatArray = NDArray[np.float32]


def extent_um(config: TissueConfig) -> NDArray[np.float64]:
    return np.asarray(config.shape) * np.asarray(config.voxel_um)


def draw_cells(
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


def smooth_field(config: TissueConfig, rng: np.random.Generator, scale_um: tuple[float, float]) -> FloatArray:
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


def draw_background(config: TissueConfig, rng: np.random.Generator) -> FloatArray:
    """Everything that is not a labelled cell."""
    coarse = rng.uniform(25, 120)
    tissue = np.exp(config.texture_coarse * smooth_field(config, rng, (coarse, coarse)))
    fine = float(rng.uniform(1.5, 6.0))
    tissue *= 1 + config.texture_fine * np.clip(smooth_field(config, rng, (fine, fine)), -3, 6)
    middle = float(rng.uniform(8, 25))
    tissue *= 1 + 0.5 * config.texture_fine * smooth_field(config, rng, (middle, middle))
    if config.regions:
        # Nuclei, layers and tracts: steps of brightness with soft or sharp borders.
        wide = rng.uniform(30, 90)
        border = smooth_field(config, rng, (wide, wide)) / rng.uniform(0.03, 0.5)
        tissue *= 1 - config.regions / (1 + np.exp(np.clip(border, -30, 30)))
    if config.shadow_amount:
        _draw_shadows(config, tissue, rng)
    for _ in range(config.vessels):
        start = rng.random(3) * extent_um(config)
        path = _walk(start, rng, length_um=rng.uniform(100, 500), wander=0.15, flat=rng.uniform(0.1, 1.5))
        amount = config.vessel_amount * rng.uniform(0.4, 1.2)
        _draw_path(config, tissue, path, float(rng.uniform(1.5, 7)), amount)
    for _ in range(config.fibres):
        start = rng.random(3) * extent_um(config)
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
    count = min(600, rng.poisson(60_000 * np.prod(extent_um(config)) * 1e-9))
    for centre in rng.random((count, 3)) * extent_um(config):
        radius = 0.5 * config.diameter_um * rng.uniform(0.6, 1.3)
        found = _box(config, centre, 1.6 * radius)
        if found is not None:
            box, (z, y, x) = found
            distance = np.sqrt(z**2 + y**2 + x**2) / radius
            tissue[box] *= (1 - config.shadow_amount / (1 + np.exp((distance - 1) / 0.15))).astype(np.float32)


def _cut_hole(config: TissueConfig, tissue: FloatArray, rng: np.random.Generator) -> None:
    """A ventricle or tear: dark inside, sharply bordered, the border sometimes bright."""
    found = _box(config, rng.random(3) * extent_um(config), np.array([1000.0, 90.0, 90.0]))
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
        centre = rng.random(3) * extent_um(config)
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
    count = min(2500, rng.poisson(config.granules_per_mm3 * np.prod(extent_um(config)) * 1e-9))
    amount = config.brightness * float(rng.uniform(0.2, 1.5))
    for centre in rng.random((count, 3)) * extent_um(config):
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
