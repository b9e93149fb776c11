"""Light and camera of a simulated microscope, and where its tissue ends."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from brainmap.train.tissue.config import TissueConfig
from brainmap.train.tissue.drawing import extent_um, smooth_field

__all__ = ["add_camera", "blur", "draw_edge", "draw_light"]

FloatArray = NDArray[np.float32]


def draw_edge(config: TissueConfig, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """A curved border with nothing behind it, and a rim of bright meninges along it."""
    extent = extent_um(config)
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


def draw_light(config: TissueConfig, rng: np.random.Generator) -> FloatArray:
    """Multiplicative light: illumination, tile shading, stripes, section gain."""
    nz, ny, nx = config.shape
    _z, y, x = (np.arange(n) * v for n, v in zip(config.shape, config.voxel_um, strict=True))
    light = np.exp(config.illumination * 0.5 * smooth_field(config, rng, (150, 200)))
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


def blur(config: TissueConfig, image: FloatArray, rng: np.random.Generator | None) -> FloatArray:
    """Point spread of the microscope; with `rng` also sections that do not lie quite true."""
    widths = [config.blur_um[0] / config.voxel_um[0]] + [config.blur_um[1] / v for v in config.voxel_um[1:]]
    image = ndimage.gaussian_filter(image, [w if w > 0.15 else 0 for w in widths], truncate=3)
    if rng is None or not config.section_jitter_um:
        return image
    for section in image:
        shift = rng.normal(0, config.section_jitter_um, 2) / config.voxel_um[1:]
        section[:] = ndimage.shift(section, shift, order=1, mode="nearest")
    return image


def add_camera(config: TissueConfig, light: FloatArray, rng: np.random.Generator) -> NDArray[np.uint16]:
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
