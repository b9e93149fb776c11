"""What the microscope records of the phantom brain: tissue, vessels, fibres, cells, shading and camera noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse, special

from brainmap.coords import Shape, Triple, vox_to_edge_um
from brainmap.phantom.anatomy import Anatomy, grey_levels, grid_points
from brainmap.phantom.cells import PSF_UM, Cells, render_cells
from brainmap.phantom.warp import SmoothWarp

__all__ = ["CHANNEL_NAMES", "Scene", "build_scene", "record_slices"]

Floats = NDArray[np.float32]

CHANNEL_NAMES = ("signal", "autofluorescence")

_OFFSET = 100.0  # camera counts in the dark
_TISSUE = (330.0, 620.0)  # cortex above the offset, per channel
_PER_PHOTON = 1.1  # counts per photo-electron
_READ_NOISE = 6.0  # counts
_SECTION_UM = 50.0  # a physical section is imaged in several optical planes
_TILE_UM = 270.0  # field of view of one stage position
_COARSE_UM = 10.0  # grid of everything smooth
_TEXTURE_STEP = (1, 2, 2)  # voxels per texture sample


@dataclass(frozen=True)
class Scene:
    """The brain before the camera, as small grids that slices are interpolated from.

    Attributes
    ----------
    shape, voxel_um : tuple
        Of the volume that is recorded.
    surface, grey : float32 (coarse grid)
        Signed distance to the brain's surface (um) and relative autofluorescence, every 10 um.
    haze : float32 (coarse grid)
        Light of cells out of focus, counts.
    texture : float32 (every second pixel)
        Mottle of the tissue, relative.
    lumen : float32 (every second pixel)
        1 in blood vessels.
    light : tuple of (index, value) arrays per slice
        Flat pixel index and counts added by cells and fibres in the signal channel.
    """

    shape: Shape
    voxel_um: Triple
    surface: Floats
    grey: Floats
    haze: Floats
    texture: Floats
    lumen: Floats
    light: tuple[tuple[NDArray[np.int64], Floats], ...]


def build_scene(
    rng: np.random.Generator, anatomy: Anatomy, warp: SmoothWarp, cells: Cells, shape: Shape, voxel_um: Triple
) -> Scene:
    """Make everything that is random or smooth, once, for all slices and both channels."""
    extent = [n * step for n, step in zip(shape, voxel_um, strict=True)]
    coarse_shape = tuple(round(e / _COARSE_UM) for e in extent)
    points = warp.to_atlas_um(
        grid_points(coarse_shape, tuple(e / n for e, n in zip(extent, coarse_shape, strict=True)))
    )
    surface = anatomy.surface(points).reshape(coarse_shape)
    labels = anatomy.labels(points).reshape(coarse_shape)
    # Grey levels continue a little beyond the surface, so that the sharp edge comes from the surface alone.
    inside = (labels > 0).astype(np.float32)
    spread = ndimage.gaussian_filter(grey_levels(labels), 0.8)
    grey = spread / np.maximum(ndimage.gaussian_filter(inside, 0.8), 0.05)
    grid = (shape[0], -(-shape[1] // _TEXTURE_STEP[1]), -(-shape[2] // _TEXTURE_STEP[2]))
    grid_um = (voxel_um[0], voxel_um[1] * _TEXTURE_STEP[1], voxel_um[2] * _TEXTURE_STEP[2])
    return Scene(
        shape=shape,
        voxel_um=voxel_um,
        surface=surface,
        grey=grey.astype(np.float32),
        haze=_haze(cells, coarse_shape, shape),
        texture=_texture(rng, grid, grid_um),
        lumen=_vessels(rng, anatomy, warp, grid, grid_um),
        light=_light(rng, anatomy, warp, cells, shape, voxel_um),
    )


def record_slices(rng: np.random.Generator, scene: Scene) -> Iterator[NDArray[np.uint16]]:
    """Yield the recorded slices in order, each (2, 1, y, x) uint16: both channels as the camera saw them."""
    depth, height, width = scene.shape
    coarse = [_interpolation(n, m) for n, m in zip(scene.shape, scene.surface.shape, strict=True)]
    fine = [_interpolation(n, m) for n, m in zip(scene.shape[1:], scene.texture.shape[1:], strict=True)]
    shading = _shading(scene.shape, scene.voxel_um)
    gains = _gains(rng, depth, scene.voxel_um[0])

    for k in range(depth):
        surface, grey, haze = (
            _enlarge(_plane(coarse[0], grid, k), coarse[1:])
            for grid in (scene.surface, scene.grey, scene.haze)
        )
        texture, lumen = (_enlarge(grid[k], fine) for grid in (scene.texture, scene.lumen))
        edge = special.expit(-surface / 1.6)
        rim = 0.20 * np.exp(-(((surface + 5.0) / 6.0) ** 2))
        glow = 14.0 * np.exp(-np.maximum(surface, 0.0) / 60.0)
        light = np.bincount(*scene.light[k], height * width).reshape(height, width).astype(np.float32)
        tissue = edge * (grey + rim) * (1.0 + texture)
        signal = _TISSUE[0] * tissue * (1.0 - 0.65 * lumen) + edge * haze + light + glow
        auto = _TISSUE[1] * tissue**1.3 * (1.0 - 0.5 * lumen) + 0.03 * light + glow
        frames = [_camera(rng, frame * shading * gains[c, k]) for c, frame in enumerate((signal, auto))]
        yield np.stack(frames)[:, None]


def _camera(rng: np.random.Generator, light: NDArray[np.floating]) -> NDArray[np.uint16]:
    """Counts for expected counts above the offset: shot noise (normal for so many photons) plus read noise."""
    light = light.astype(np.float32)
    spread = np.sqrt(_PER_PHOTON * np.maximum(light, 0.0) + np.float32(_READ_NOISE**2))
    noisy = light + spread * rng.standard_normal(light.shape, dtype=np.float32)
    return np.clip(noisy + np.float32(_OFFSET + 0.5), 0, 65535).astype(np.uint16)


def _texture(rng: np.random.Generator, grid: Shape, grid_um: Triple) -> Floats:
    """Mottle at two scales: neuropil of a few um and slow unevenness; relative to the tissue's level."""
    fine = rng.standard_normal(grid, dtype=np.float32)
    fine = ndimage.gaussian_filter(fine, [2.5 / s for s in grid_um], truncate=3.0)
    small = tuple(-(-n // 6) for n in grid)
    slow = ndimage.gaussian_filter(rng.standard_normal(small, dtype=np.float32), 1.0)
    slow = slow.repeat(6, 0).repeat(6, 1).repeat(6, 2)[: grid[0], : grid[1], : grid[2]]
    slow = ndimage.uniform_filter(slow, 6)
    return (0.075 * fine / fine.std() + 0.05 * slow / slow.std()).astype(np.float32)


def _vessels(
    rng: np.random.Generator, anatomy: Anatomy, warp: SmoothWarp, grid: Shape, grid_um: Triple
) -> Floats:
    """Winding tubes of 2.5 to 7 um radius, most of them entering from the surface."""
    extent = np.asarray(grid) * grid_um
    lumen = np.zeros(grid, np.float32)
    for _ in range(round(90 * np.prod(extent) / 0.9e9) + 12):
        radius = rng.uniform(2.5, 4.5) if rng.uniform() < 0.8 else rng.uniform(4.5, 7.0)
        path = _walk(rng, rng.uniform(0.1, 0.9, 3) * extent, rng.uniform(150, 450), 2.5, 0.12)
        inside = anatomy.surface(warp.to_atlas_um(path)) < -2.0
        for point in path[inside]:
            _stamp_ball(lumen, point / grid_um - 0.5, radius, grid_um)
    return lumen


def _walk(
    rng: np.random.Generator, start: NDArray[np.float64], length: float, step: float, turn: float
) -> NDArray[np.float64]:
    """A smooth random path, points (N, 3) every `step` um."""
    count = max(2, int(length / step))
    heading = rng.normal(size=3) + np.cumsum(rng.normal(0, turn, (count, 3)), axis=0)
    heading /= np.linalg.norm(heading, axis=1, keepdims=True)
    return start + np.cumsum(heading * step, axis=0)


def _stamp_ball(grid: Floats, centre: NDArray[np.float64], radius: float, grid_um: Triple) -> None:
    low = [max(0, int(np.ceil(c - radius / s - 1))) for c, s in zip(centre, grid_um, strict=True)]
    high = [
        min(n, int(np.floor(c + radius / s + 1)) + 1)
        for c, s, n in zip(centre, grid_um, grid.shape, strict=True)
    ]
    if any(b <= a for a, b in zip(low, high, strict=True)):
        return
    axes = [(np.arange(a, b) - c) * s for a, b, c, s in zip(low, high, centre, grid_um, strict=True)]
    distance = np.sqrt(axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2)
    box = grid[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    np.maximum(box, np.clip((radius - distance) / 2.0 + 0.5, 0.0, 1.0), out=box)


def _haze(cells: Cells, coarse: tuple[int, ...], shape: Shape) -> Floats:
    """Out-of-focus light of the cells: a wide blur of their brightness."""
    grid = np.zeros(coarse, np.float32)
    index = np.floor((cells.vox + 0.5) * (np.asarray(coarse) / shape)).astype(int)
    index = np.clip(index, 0, np.asarray(coarse) - 1)
    np.add.at(grid, tuple(index.T), cells.brightness.astype(np.float32))
    return ndimage.gaussian_filter(grid, (2.2, 1.4, 1.4)) * np.float32(0.5)


def _light(
    rng: np.random.Generator, anatomy: Anatomy, warp: SmoothWarp, cells: Cells, shape: Shape, voxel_um: Triple
) -> tuple[tuple[NDArray[np.int64], Floats], ...]:
    """Cells and fibres as added light, sorted by slice."""
    indices: list[list[NDArray[np.int64]]] = [[] for _ in range(shape[0])]
    values: list[list[Floats]] = [[] for _ in range(shape[0])]
    for patch in render_cells(rng, cells, shape, voxel_um):
        z, y, x = patch.start
        _, height, width = patch.values.shape
        flat = ((y + np.arange(height))[:, None] * shape[2] + x + np.arange(width)).ravel()
        for k, layer in enumerate(patch.values):
            indices[z + k].append(flat)
            values[z + k].append(layer.ravel())
    for k, flat, value in _fibres(rng, anatomy, warp, cells, shape, voxel_um):
        indices[k].append(flat)
        values[k].append(value)
    return tuple(
        (np.concatenate(i or [np.zeros(0, np.int64)]), np.concatenate(v or [np.zeros(0, np.float32)]))
        for i, v in zip(indices, values, strict=True)
    )


def _fibres(
    rng: np.random.Generator, anatomy: Anatomy, warp: SmoothWarp, cells: Cells, shape: Shape, voxel_um: Triple
) -> Iterator[tuple[int, NDArray[np.int64], Floats]]:
    """Faint processes that leave some of the cells, as (slice, flat pixel index, counts)."""
    paths, weights = [np.zeros((0, 3))], [np.zeros(0)]
    for i in np.flatnonzero(rng.uniform(size=len(cells)) < 0.3):
        centre = vox_to_edge_um(cells.vox[i : i + 1], voxel_um)[0]
        for _ in range(rng.integers(1, 4)):
            path = _walk(rng, centre, rng.uniform(15, 60), 0.7, 0.1)
            paths.append(path)
            weights.append(np.linspace(0.07, 0.025, len(path)) * cells.brightness[i])
    points, counts = np.concatenate(paths), np.concatenate(weights)
    inside = anatomy.surface(warp.to_atlas_um(points)) < -2.0
    # The point spread function, as a few displaced copies of every point.
    points, counts = points[inside].repeat(4, 0), counts[inside].repeat(4) / 2.0
    vox = (points + rng.normal(0, PSF_UM, points.shape)) / voxel_um - 0.5
    base = np.floor(vox).astype(np.int64)
    for corner in np.ndindex(2, 2, 2):
        index = base + corner
        share = np.prod(1.0 - np.abs(vox - index), axis=1) * counts
        inside = np.all((index >= 0) & (index < shape), axis=1)
        z, flat, value = index[inside, 0], index[inside, 1] * shape[2] + index[inside, 2], share[inside]
        order = np.argsort(z, kind="stable")
        z, flat, value = z[order], flat[order], value[order].astype(np.float32)
        for k in np.unique(z):
            here = slice(*np.searchsorted(z, [k, k + 1]))
            yield int(k), flat[here], value[here]


def _shading(shape: Shape, voxel_um: Triple) -> Floats:
    """Uneven illumination, (y, x): a slow slope over the brain and a vignette in every tile of the mosaic."""
    y, x = ((np.arange(n) + 0.5) * s for n, s in zip(shape[1:], voxel_um[1:], strict=True))
    slope = 1.0 + 0.08 * (y[:, None] / y[-1] - 0.5) - 0.06 * (x / x[-1] - 0.5)
    tile = [1.0 - 0.07 * (2.0 * ((axis / _TILE_UM) % 1.0) - 1.0) ** 4 for axis in (y, x)]
    return (slope * tile[0][:, None] * tile[1]).astype(np.float32)


def _gains(rng: np.random.Generator, depth: int, step_um: float) -> Floats:
    """Gain per channel and slice: sections differ, planes deeper in a section are darker, lamps flicker."""
    per_section = max(1, round(_SECTION_UM / step_um))
    section = np.arange(depth) // per_section
    within = (np.arange(depth) % per_section) / per_section
    gains = 1.0 + 0.035 * rng.standard_normal((2, section[-1] + 1))[:, section]
    return (gains * (1.0 - 0.07 * within) * (1.0 + 0.008 * rng.standard_normal((2, depth)))).astype(
        np.float32
    )


def _interpolation(size: int, samples: int) -> sparse.csr_array:
    """Operator (size, samples): linear interpolation between cell-centred samples spread over `size` pixels."""
    position = np.clip((np.arange(size) + 0.5) * samples / size - 0.5, 0, samples - 1)
    left = np.minimum(position.astype(int), max(samples - 2, 0))
    right = np.minimum(left + 1, samples - 1)
    weight = (position - left).astype(np.float32)
    rows = np.arange(size)
    entries = (
        np.concatenate([1 - weight, weight]),
        (np.concatenate([rows, rows]), np.concatenate([left, right])),
    )
    return sparse.csr_array(entries, shape=(size, samples))


def _plane(operator: sparse.csr_array, grid: Floats, k: int) -> Floats:
    """The plane of a coarse grid at slice k."""
    span = slice(operator.indptr[k], operator.indptr[k + 1])
    return np.tensordot(operator.data[span], grid[operator.indices[span]], axes=1)


def _enlarge(plane: Floats, operators: Sequence[sparse.csr_array]) -> Floats:
    """Interpolate a coarse plane along y and x."""
    return np.ascontiguousarray((operators[1] @ (operators[0] @ plane).T).T)
