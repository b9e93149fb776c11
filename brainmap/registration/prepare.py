"""Intensities for registration: background off, tails clipped, section gain and bias evened out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from brainmap.errors import DataError
from brainmap.image.otsu import otsu

__all__ = ["Prepared", "block_mean", "prepare", "tissue_mask"]

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: Sigma of the local mean and spread that `Prepared.local` is measured against, um. Wider than the
#: layers it should keep, narrower than shading.
_LOCAL_UM = 400.0
#: Sigma of the bias field, um.
_BIAS_UM = 2000.0
#: What is farther from tissue than this is debris or noise.
_NEAR_UM = 300.0


@dataclass(frozen=True)
class Prepared:
    """An image ready to be registered.

    Attributes
    ----------
    global_ : float32 array (z, y, x)
        About 0 outside the tissue, about 0..1 inside, clipped.
    local : float32 array (z, y, x)
        Contrast against the neighbourhood in units of its spread, 0..1; 0.5 = like the surroundings.
    mask : bool array (z, y, x)
        Tissue.
    """

    global_: Image
    local: Image
    mask: Mask


def prepare(
    image: Image, voxel_um: tuple[float, float, float], section_axis: int | None, mask: Mask | None = None
) -> Prepared:
    """Prepare one image for registration.

    Parameters
    ----------
    image : float32 array (z, y, x)
        Raw intensities.
    voxel_um : tuple of float
    section_axis : int or None
        Axis along which sections were cut: their gains are evened out. None for a template.
    mask : bool array, optional
        Tissue, where it is known.

    Raises
    ------
    DataError
        If the image has no tissue.
    """
    tissue = tissue_mask(image, voxel_um) if mask is None else mask
    if tissue.sum() < 64:
        raise DataError("the image shows no tissue to register: it is empty, constant or all background")
    outside = image[~tissue]
    level = float(np.median(outside)) if outside.size else float(image.min())
    # The mask only takes debris away, from a distance: at the surface the image itself has to decide.
    near = ndimage.distance_transform_edt(~tissue, sampling=voxel_um) < _NEAR_UM
    signal = np.where(near, np.maximum(image - level, 0), 0).astype(np.float32)
    if section_axis is not None:
        signal = _even_sections(signal, tissue, section_axis)
    top = float(np.percentile(signal[tissue], 99.0)) or 1.0
    signal = np.minimum(signal / top, 1.0)
    signal = _even_bias(signal, tissue, voxel_um)
    return Prepared(signal, _local_contrast(signal, tissue, voxel_um), tissue)


def tissue_mask(image: Image, voxel_um: tuple[float, float, float]) -> Mask:
    """Tissue: brighter than a threshold between the two modes of the log intensities, closed, largest parts."""
    smooth = ndimage.gaussian_filter(image.astype(np.float32), [50.0 / v for v in voxel_um])
    low = float(np.percentile(smooth, 0.5))
    log = np.log1p(np.maximum(smooth - low, 0) / max(float(np.percentile(smooth, 90)) - low, 1e-6) * 20)
    mask = log > sum(otsu(log)) / 2
    if mask.any() and not mask.all():
        # The logarithm finds dim tissue, and too much at the rim, where blur spreads bright tissue.
        dark, bright = float(np.median(smooth[~mask])), float(np.median(smooth[mask]))
        mask &= smooth > dark + 0.3 * (bright - dark)
    labels, n = ndimage.label(mask)
    if n > 1:
        sizes = np.bincount(labels.ravel())[1:]
        mask = np.isin(labels, 1 + np.flatnonzero(sizes >= 0.05 * sizes.max()))
    return ndimage.binary_fill_holes(mask)


def block_mean(values: NDArray[Any], factor: int) -> Image:
    """Mean over cubes of `factor` voxels from index 0 on; the last cubes are filled by repeating the border."""
    if factor == 1:
        return np.ascontiguousarray(values, dtype=np.float32)
    padded = np.pad(values, [(0, -n % factor) for n in values.shape], mode="edge")
    blocks = padded.reshape([v for n in padded.shape for v in (n // factor, factor)])
    return blocks.mean(axis=(1, 3, 5), dtype=np.float32)


def _even_sections(signal: Image, tissue: Mask, axis: int) -> Image:
    """Divide each section by its gain against its neighbours (ratio of medians to their running median)."""
    planes, masks = np.moveaxis(signal, axis, 0), np.moveaxis(tissue, axis, 0)
    enough = masks.sum(axis=(1, 2)) >= 30
    medians = np.array(
        [np.median(p[m]) if ok else np.nan for p, m, ok in zip(planes, masks, enough, strict=True)]
    )
    known = np.flatnonzero(np.isfinite(medians) & (medians > 0))
    if len(known) < 9:
        return signal
    running = ndimage.median_filter(medians[known], size=9, mode="nearest")
    gain = np.ones(len(medians), dtype=np.float32)
    gain[known] = np.clip(medians[known] / running, 0.5, 2.0)
    shape = [1, 1, 1]
    shape[axis] = -1
    return signal / gain.reshape(shape)


def _masked_mean(values: Image, weight: Image, sigma: list[float]) -> Image:
    """Gaussian mean over the tissue only (normalised convolution).

    Computed on a coarser grid and interpolated back: a wide mean has no fine detail, and the full grid
    would take most of the time of a registration's preparation.
    """
    factor = max(1, int(min(sigma) // 3))
    coarse = [s / factor for s in sigma]
    sums = [ndimage.gaussian_filter(block_mean(v, factor), coarse) for v in (values * weight, weight)]
    mean = sums[0] / np.maximum(sums[1], 1e-3)
    if factor == 1:
        return mean
    offset = (1 - factor) / (2 * factor)  # fine index i lies at i / factor + offset of the coarse grid
    for axis in range(3):
        mean = _stretch(mean, axis, values.shape[axis], factor, offset)
    return mean.astype(np.float32)


def _stretch(mean: Image, axis: int, n: int, factor: int, offset: float) -> Image:
    place = np.clip(np.arange(n) / factor + offset, 0, mean.shape[axis] - 1)
    low = np.minimum(place.astype(int), max(mean.shape[axis] - 2, 0))
    high = np.minimum(low + 1, mean.shape[axis] - 1)
    shape = [1, 1, 1]
    shape[axis] = -1
    share = (place - low).astype(np.float32).reshape(shape)
    return np.take(mean, low, axis=axis) * (1 - share) + np.take(mean, high, axis=axis) * share


def _even_bias(signal: Image, tissue: Mask, voxel_um: tuple[float, float, float]) -> Image:
    """Take out half of the very slow variation, in log: shading goes, large structures keep their contrast."""
    weight = tissue.astype(np.float32)
    sigma = [_BIAS_UM / v for v in voxel_um]
    slow = _masked_mean(signal, weight, sigma) / max(float(signal[tissue].mean()), 1e-6)
    return np.minimum(signal / np.sqrt(np.maximum(slow, 0.1)), 1.5).astype(np.float32)


def _local_contrast(signal: Image, tissue: Mask, voxel_um: tuple[float, float, float]) -> Image:
    everywhere = np.ones_like(signal)
    sigma = [_LOCAL_UM / v for v in voxel_um]
    mean = _masked_mean(signal, everywhere, sigma)
    spread = np.sqrt(np.maximum(_masked_mean((signal - mean) ** 2, everywhere, sigma), 0))
    floor = 0.3 * float(np.median(spread[tissue])) + 1e-6
    return np.clip(0.5 + (signal - mean) / (spread + floor) / 6.0, 0.0, 1.0).astype(np.float32)
