"""What a brain's grey values mean: background, noise and tissue, decided once per brain.

Detection and tile sampling look at intensity relative to the tissue around it. Both are taken from an
overview of the whole brain before the first block is read, so a cell looks the same whatever block it
falls into.

Two quantities follow from a raw value I at a place:

contrast
    u = (I - b) / s, in units of the tissue's own noise: b is the local background (illumination,
    section gain and autofluorescence included), s the noise expected there.
normalised
    v = 0.3 + 0.14 asinh(u / 3), clipped to 0..1: linear near the background, logarithmic for bright
    cells, so that touching bright cells keep the dip between them and dim ones stay visible.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from brainmap.errors import DataError
from brainmap.files import atomic_path
from brainmap.image.overview import Source, find_tissue, overview, pooled, smooth_inside

__all__ = [
    "BACKGROUND_VALUE",
    "BAND_CELLS",
    "GAIN",
    "KNEE",
    "LEAST_TEXTURE",
    "NOISE_EXPONENT",
    "Intensity",
    "IntensityWindow",
    "linear_places",
    "noise_of",
    "texture_of",
]

log = logging.getLogger(__name__)

BACKGROUND_VALUE = 0.3
GAIN, KNEE = 0.14, 3.0
_NOISE_PATCHES = 48
# Reading them is mostly waiting where the image lies far away.
_NOISE_THREADS = 4
_NOISE_PATCH_CELLS = 12
# So many exact zeros in a row are no photons that happened not to come.
_LINE_PX = 16
# Patches with a smaller share of data say nothing.
_LEAST_DATA = 0.05
# Pixels of a band of rows: some arrays of so many fit into a core's cache.
_BAND_PIXELS = 1 << 16
# Widths of the difference of Gaussians that picks out what is as large as a cell, in cell diameters.
BAND_CELLS = (1 / 3, 0.6)
# What remains of white noise of one standard deviation a pixel of a fifth of a cell: no texture is less.
LEAST_TEXTURE = 0.1
# Noise grows with the light: between its root (photon noise) and itself (gain).
NOISE_EXPONENT = 0.7


@dataclass(frozen=True)
class Intensity:
    """Background, noise and tissue of one brain on a coarse grid.

    Parameters
    ----------
    background : ndarray of float32, shape (nz, ny, nx)
        Background grey level of each bin.
    tissue : ndarray of bool, shape (nz, ny, nx)
        Bins that hold tissue, with a rim of two bins.
    bin_vox : tuple of float
        Width of a bin along z, y, x in level-0 voxels. Bin i is centred on voxel index
        (i + 0.5) * bin_vox - 0.5.
    shape : tuple of int
        Shape of the level-0 volume, z, y, x.
    noise : float
        Standard deviation of the tissue at the resolution of a detector pixel, in grey levels, where
        the background is at `typical`.
    typical, dark : float
        Median background inside the tissue, and grey level of the empty surroundings, in grey levels.
    surrounded : bool
        Whether dark surroundings were found; without them the whole volume counts as tissue.
    texture : float
        Robust standard deviation of the tissue's contrast at the scale of a cell, in units of its noise: of its
        difference of Gaussians, median over places spread over the tissue. White noise has 0.1.
    """

    background: NDArray[np.float32]
    tissue: NDArray[np.bool_]
    bin_vox: tuple[float, float, float]
    shape: tuple[int, int, int]
    noise: float
    typical: float
    dark: float
    surrounded: bool
    texture: float = LEAST_TEXTURE

    @classmethod
    def fit(cls, source: Source, cell_diameter_um: float = 10.0) -> Intensity:
        """Decide background, noise and tissue of a volume.

        Parameters
        ----------
        source : Volume
            The volume; a coarse pyramid level is used where there is one, else level 0 is read once in
            slabs.
        cell_diameter_um : float
            Diameter of a typical cell; sets the scale that counts as background.

        Raises
        ------
        DataError
            If the volume holds one grey level only, or no finite value.
        """
        full = source.levels[0]
        low, bin_vox = overview(source, cell_diameter_um)
        known, unreadable = np.isfinite(low), np.isinf(low)
        if not known.any():
            raise DataError(
                "the volume holds one grey level only (0), or no finite value, wherever it can be read; "
                "check the channel and the input image"
            )
        low = np.where(known, low, np.median(low[known])).astype(np.float32)
        data = known | unreadable
        tissue, dark, surrounded = find_tissue(low, data)
        # Where the image could not be read, detection must try and fail in the open.
        tissue = tissue | unreadable
        background = smooth_inside(low, tissue)
        typical = float(np.median(background[tissue]))
        if surrounded:
            tissue = data & ndimage.binary_dilation(tissue, np.ones((1, 3, 3), bool), iterations=2)
        unit = cls(background, tissue, bin_vox, full.shape, 1.0, typical, dark, surrounded)
        noise, texture = _sample_noise(source, unit, cell_diameter_um)
        log.debug(
            "intensity: background %.4g, noise %.4g, texture %.2g, dark %.4g, tissue %.1f %% of the volume",
            typical, noise, texture, dark, 100 * tissue.mean(),
        )  # fmt: skip
        return cls(background, tissue, bin_vox, full.shape, noise, typical, dark, surrounded, texture)

    def window(self, y_vox: NDArray[Any], x_vox: NDArray[Any]) -> IntensityWindow:
        """This intensity on a separable grid of level-0 voxel coordinates, made ready for many sections."""
        return IntensityWindow(self, y_vox, x_vox)

    def background_at(
        self, z_vox: NDArray[Any], y_vox: NDArray[Any], x_vox: NDArray[Any]
    ) -> NDArray[np.float32]:
        """Background on a separable grid of level-0 voxel coordinates; shape (len(z), len(y), len(x))."""
        window = self.window(y_vox, x_vox)
        return np.stack([window.background(float(z)) for z in z_vox])

    def scale_at(self, background: NDArray[np.float32]) -> NDArray[np.float32]:
        """Noise expected in tissue of a background, grey levels."""
        light = max(self.typical - self.dark, 0.0) + 3 * self.noise
        ratio = (background - np.float32(self.dark - 3 * self.noise)) * np.float32(1 / light)
        return np.clip(ratio, 0.25, 4.0) ** np.float32(NOISE_EXPONENT) * np.float32(self.noise)

    def scale_near(self, z_vox: float, y_vox: NDArray[Any], x_vox: NDArray[Any]) -> NDArray[np.float32]:
        """Noise expected at single places of a slice, grey levels; parameters as for `contrast_near`."""
        return self.scale_at(self._background_near(z_vox, y_vox, x_vox))

    def contrast_near(
        self, values: NDArray[Any], z_vox: float, y_vox: NDArray[Any], x_vox: NDArray[Any]
    ) -> NDArray[np.float32]:
        """Contrast at single places of a slice.

        Parameters
        ----------
        values : ndarray, shape (n,)
            Raw grey levels.
        z_vox : float
            The slice, level-0 voxel coordinate.
        y_vox, x_vox : ndarray of float, shape (n,)
            Level-0 voxel coordinates.
        """
        background = self._background_near(z_vox, y_vox, x_vox)
        contrast = (values - background) / self.scale_at(background)
        return np.nan_to_num(contrast.astype(np.float32, copy=False), copy=False)

    def _background_near(self, z_vox: float, y_vox: NDArray[Any], x_vox: NDArray[Any]) -> NDArray[np.float32]:
        at = np.broadcast_arrays(*(np.asarray(v, np.float64) for v in (z_vox, y_vox, x_vox)))
        place = [(v + 0.5) / w - 0.5 for v, w in zip(at, self.bin_vox, strict=True)]
        return ndimage.map_coordinates(self.background, place, order=1, mode="nearest")  # type: ignore[no-any-return]

    def contrast(
        self, values: NDArray[Any], z_vox: NDArray[Any], y_vox: NDArray[Any], x_vox: NDArray[Any]
    ) -> NDArray[np.float32]:
        """Contrast u = (I - b) / s on a separable grid.

        Parameters
        ----------
        values : ndarray, shape (len(z_vox), len(y_vox), len(x_vox))
            Raw grey levels.
        z_vox, y_vox, x_vox : ndarray of float, 1-D
            Level-0 voxel coordinates of the grid; 0 is the centre of the first voxel.

        Returns
        -------
        ndarray of float32
            Same shape; 0 is background, 1 one standard deviation of the tissue's noise.
        """
        window = self.window(y_vox, x_vox)
        return np.stack([window.contrast(v, float(z)) for v, z in zip(values, z_vox, strict=True)])

    def normalise(
        self, values: NDArray[Any], z_vox: NDArray[Any], y_vox: NDArray[Any], x_vox: NDArray[Any]
    ) -> NDArray[np.float32]:
        """Normalised intensity v in 0..1 on a separable grid; parameters as for `contrast`."""
        window = self.window(y_vox, x_vox)
        return np.stack([window.normalise(v, float(z)) for v, z in zip(values, z_vox, strict=True)])

    def tissue_fraction(self, z: slice, y: slice, x: slice) -> float:
        """Share of a box of level-0 voxels that is tissue, at the resolution of the bins."""
        part = self.tissue
        for axis, box in enumerate((z, y, x)):
            first = int(box.start / self.bin_vox[axis])
            stop = int(np.ceil(box.stop / self.bin_vox[axis]))
            size = self.tissue.shape[axis]
            first = min(first, size - 1)
            part = part[(slice(None),) * axis + (slice(first, max(first + 1, min(stop, size))),)]
        return float(part.mean())

    def save(self, path: Path) -> None:
        """Write to one `.npz` file, atomically; compressed it would be half as large and take as long as the fit."""
        record = {field.name: getattr(self, field.name) for field in fields(self)}
        record["tissue"] = np.packbits(self.tissue)
        with atomic_path(path) as part, part.open("wb") as file:
            np.savez(file, **record)

    @classmethod
    def load(cls, path: Path) -> Intensity:
        """Read what `save` wrote.

        Raises
        ------
        DataError
            If the file is damaged.
        """
        try:
            return cls._load(path)
        # Whatever zip, zlib, pickle and numpy say about damaged bytes.
        except Exception as error:
            raise DataError(
                f"{path} is damaged ({type(error).__name__}); the same brainmap detect makes it anew"
            ) from error

    @classmethod
    def _load(cls, path: Path) -> Intensity:
        with path.open("rb") as file, np.load(file) as record:
            background = record["background"]
            tissue = np.unpackbits(record["tissue"], count=background.size).astype(bool)
            return cls(
                background=background,
                tissue=tissue.reshape(background.shape),
                bin_vox=tuple(float(v) for v in record["bin_vox"]),  # type: ignore[arg-type]
                shape=tuple(int(v) for v in record["shape"]),  # type: ignore[arg-type]
                noise=float(record["noise"]),
                typical=float(record["typical"]),
                dark=float(record["dark"]),
                surrounded=bool(record["surrounded"]),
                # Runs of versions before had none.
                texture=float(record["texture"]) if "texture" in record else LEAST_TEXTURE,
            )


class IntensityWindow:
    """An `Intensity` at the pixels of a window, section by section.

    Background and 1 / s are known in the rows of bins and interpolated between them. All is done in bands of a few
    rows, which stay in the processor's cache: every step over a whole image would wait for memory.

    Parameters
    ----------
    unit : Intensity
    y_vox, x_vox : ndarray of float, 1-D
        Level-0 voxel coordinates of the window's rows and columns.
    """

    def __init__(self, unit: Intensity, y_vox: NDArray[Any], x_vox: NDArray[Any]) -> None:
        self._unit = unit
        low, weight, first, stop = linear_places(y_vox, unit.bin_vox[1], unit.background.shape[1])
        self._rows, self._low, self._weight = slice(first, stop), low - first, weight[:, None]
        low, self._x_weight, first, stop = linear_places(x_vox, unit.bin_vox[2], unit.background.shape[2])
        self._columns, self._x_low = slice(first, stop), low - first
        self._x_high = np.minimum(self._x_low + 1, stop - first - 1)
        self._shape = (len(self._low), len(self._x_low))

    def background(self, z_vox: float) -> NDArray[np.float32]:
        """Background of a section, shape (rows, columns)."""
        out = np.empty(self._shape, np.float32)
        for rows, (light,) in self._mixed(self._at_bins(z_vox)[None]):
            out[rows] = light
        return out

    def contrast(self, image: NDArray[Any], z_vox: float) -> NDArray[np.float32]:
        """Contrast u of a section of raw grey levels, shape (rows, columns)."""
        out = np.empty(self._shape, np.float32)
        for rows, contrast in self._contrasts(image, z_vox, 1.0):
            out[rows] = contrast
        return out

    def normalise(self, image: NDArray[Any], z_vox: float) -> NDArray[np.float32]:
        """Normalised intensity v in 0..1 of a section of raw grey levels, shape (rows, columns)."""
        out = np.empty(self._shape, np.float32)
        for rows, contrast in self._contrasts(image, z_vox, KNEE):
            np.arcsinh(contrast, out=contrast)
            contrast *= np.float32(GAIN)
            contrast += np.float32(BACKGROUND_VALUE)
            np.clip(contrast, 0.0, 1.0, out=out[rows])
        return out

    def _contrasts(
        self, image: NDArray[Any], z_vox: float, unit: float
    ) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Contrast in units of `unit`, band by band."""
        light = self._at_bins(z_vox)
        inverse = np.reciprocal(self._unit.scale_at(light) * np.float32(unit))
        for rows, (background, gain) in self._mixed(np.stack([light, inverse])):
            contrast = (image[rows] - background).astype(np.float32, copy=False)
            contrast *= gain
            # A sum is much quicker than a search for values that hardly any volume has.
            with np.errstate(over="ignore"):
                finite = np.isfinite(contrast.sum())
            if not finite:
                np.nan_to_num(contrast, copy=False)
            yield rows, contrast

    def _at_bins(self, z_vox: float) -> NDArray[np.float32]:
        """Background at z, in the rows of bins and the columns of the window."""
        bins = self._unit.background[:, self._rows, self._columns]
        (low,), (weight,), _, _ = linear_places(np.array([z_vox]), self._unit.bin_vox[0], len(bins))
        part = bins[low] + (bins[min(low + 1, len(bins) - 1)] - bins[low]) * weight
        left = part.take(self._x_low, axis=1)
        return left + (part.take(self._x_high, axis=1) - left) * self._x_weight

    def _mixed(self, fields: NDArray[np.float32]) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Fields (n, rows of bins, columns) at the rows of the window, band by band."""
        steps = np.diff(fields, axis=1, append=fields[:, -1:])
        band = max(1, _BAND_PIXELS // max(1, self._shape[1]))
        for start in range(0, self._shape[0], band):
            rows = slice(start, start + band)
            mixed = steps.take(self._low[rows], axis=1)
            mixed *= self._weight[rows]
            mixed += fields.take(self._low[rows], axis=1)
            yield rows, mixed


def noise_of(detail: NDArray[Any], data: NDArray[np.bool_] | None = None) -> float:
    """Standard deviation of the noise in an image that also holds cells.

    Cells only brighten, so the spread is taken below the median; smooth variation wider than about
    eight pixels is removed first.

    Parameters
    ----------
    detail : ndarray, shape (z, y, x)
        Grey levels at detector resolution.
    data : ndarray of bool, same shape, optional
        Where something was recorded; the rest takes no part.
    """
    image = np.asarray(detail, np.float32)
    if data is None or data.all():
        fine = image - ndimage.gaussian_filter(image, (0, 4, 4), mode="nearest")
    else:
        weight = data.astype(np.float32)
        around = ndimage.gaussian_filter(image * weight, (0, 4, 4), mode="nearest")
        share = np.maximum(ndimage.gaussian_filter(weight, (0, 4, 4), mode="nearest"), 1e-6)
        fine = (image - around / share)[data]
    centred = fine - np.median(fine)
    return float(1.4826 * np.median(-centred[centred <= 0])) if centred.size else 0.0


def linear_places(
    vox: NDArray[Any], width: float, size: int
) -> tuple[NDArray[np.intp], NDArray[np.float32], int, int]:
    """Lower bin, weight of the upper bin, and the range of bins needed, for voxel coordinates."""
    position = np.clip((np.asarray(vox, np.float64) + 0.5) / width - 0.5, 0, size - 1)
    low = np.floor(position).astype(np.intp)
    weight = (position - low).astype(np.float32)
    first, stop = int(low.min()), min(int(low.max()) + 2, size)
    return low, weight, first, stop


def _sample_noise(source: Source, unit: Intensity, cell_um: float) -> tuple[float, float]:
    """Noise at detector resolution and texture, from patches of level 0 spread evenly over the tissue."""
    inside = np.flatnonzero(unit.tissue)
    picks = inside[np.linspace(0, len(inside) - 1, min(_NOISE_PATCHES, len(inside))).astype(int)]
    places = np.stack(np.unravel_index(picks, unit.tissue.shape), axis=1)
    with ThreadPoolExecutor(_NOISE_THREADS, thread_name_prefix="brainmap-noise") as pool:
        patches = list(pool.map(lambda place: _noise_patch(source, unit, cell_um, place), places))
    spreads = [patch[0] for patch in patches if patch is not None]
    values = [patch[1] for patch in patches if patch is not None]
    if not values:
        raise DataError(
            "none of the places sampled in the full-resolution image could be read; check the image"
        )
    everything = np.concatenate(values)
    span = float(np.quantile(everything, 0.999) - np.median(everything))
    if not np.isfinite(span) or everything.max() == everything.min():
        raise DataError(
            f"the volume holds one grey level only ({everything[0]:g}) wherever it was sampled; "
            "check the channel and the input image"
        )
    # Where tissue has a few grey levels, rounding is the noise: neighbours are rounded alike, so it does not average
    # away. An image without noise (saturated black) still needs a scale.
    rounding = float(np.median([patch[2] for patch in patches if patch is not None])) / math.sqrt(12)
    noise = max(float(np.quantile(spreads, 0.4)), rounding, 0.004 * span, 1e-6)
    texture = float(np.median([patch[3] for patch in patches if patch is not None]))
    return noise, max(texture / noise, LEAST_TEXTURE)


def _noise_patch(
    source: Source, unit: Intensity, cell_um: float, place: NDArray[np.integer]
) -> tuple[float, NDArray[np.float32], float, float] | None:
    """Noise, pixels, `_grain` and texture around a bin, as if its light were `typical`; None if unreadable."""
    full = source.levels[0]
    pixel = cell_um / 5
    pool = (max(1, round(pixel / full.voxel_um[1])), max(1, round(pixel / full.voxel_um[2])))
    depth = max(1, round(2 * pixel / full.voxel_um[0]))
    box = []
    for axis in range(3):
        size = depth if axis == 0 else round(_NOISE_PATCH_CELLS * cell_um / full.voxel_um[axis])
        size = min(max(size, 1), full.shape[axis])
        centre = (int(place[axis]) + 0.5) * unit.bin_vox[axis]
        start = int(np.clip(round(centre - size / 2), 0, full.shape[axis] - size))
        box.append(slice(start, start + size))
    try:
        voxels = source.read(box[0], box[1], box[2])
    except DataError:
        return None
    patch = voxels.astype(np.float32).mean(axis=0, keepdims=True)
    patch = np.nan_to_num(pooled(patch, pool), posinf=0, neginf=0)
    data = _recorded(patch)
    if data.mean() < _LEAST_DATA:
        return None
    axes = (
        np.array([box[0].start + (depth - 1) / 2]),
        box[1].start + (np.arange(patch.shape[1]) + 0.5) * pool[0] - 0.5,
        box[2].start + (np.arange(patch.shape[2]) + 0.5) * pool[1] - 0.5,
    )
    light = np.median(unit.background_at(*axes)) - unit.dark
    ratio = light / max(unit.typical - unit.dark, 1e-6)
    gain = float(np.clip(ratio, 0.25, 4.0)) ** NOISE_EXPONENT
    widths = [cell_um / (n * v) for n, v in zip(pool, full.voxel_um[1:], strict=True)]
    texture = texture_of(patch[0], (widths[0], widths[1]), data[0]) / gain
    return noise_of(patch, data) / gain, patch[data], _grain(voxels), texture


def texture_of(
    image: NDArray[np.float32], cell_px: tuple[float, float], data: NDArray[np.bool_] | None = None
) -> float:
    """Robust standard deviation of an image at the scale of a cell, in its own unit.

    Parameters
    ----------
    image : ndarray of float32, shape (y, x)
    cell_px : tuple of float
        Diameter of a cell along y and x, pixels.
    data : ndarray of bool, shape (y, x), optional
        Where there is an image; everywhere by default.
    """
    narrow, wide = (
        ndimage.gaussian_filter(image, [w * c for c in cell_px], mode="nearest") for w in BAND_CELLS
    )
    band = np.abs(narrow - wide)
    return float(1.4826 * np.median(band if data is None else band[data]))


def _grain(voxels: NDArray[Any]) -> float:
    """Smallest step between grey levels; 0 for floating-point images, which are not rounded."""
    if not np.issubdtype(voxels.dtype, np.integer):
        return 0.0
    levels = np.unique(voxels)
    return float(np.diff(levels.astype(np.float64)).min()) if len(levels) > 1 else 0.0


def _recorded(patch: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where an image (1, y, x) is no padding, mask or lost line: exact zeros side by side; single ones are noise."""
    zero = patch == 0
    if not zero.any():
        return ~zero
    shapes = ((1, 3, 3), (1, 1, _LINE_PX), (1, _LINE_PX, 1))
    opened = [ndimage.binary_opening(zero, np.ones(shape, bool)) for shape in shapes]
    return ~np.logical_or.reduce(opened)
