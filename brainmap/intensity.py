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

import itertools
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from brainmap.errors import DataError
from brainmap.provenance import atomic_path

__all__ = [
    "BACKGROUND_VALUE",
    "GAIN",
    "KNEE",
    "NOISE_EXPONENT",
    "Intensity",
    "Source",
    "linear_places",
    "noise_of",
]

log = logging.getLogger(__name__)

BACKGROUND_VALUE = 0.3
GAIN, KNEE = 0.14, 3.0
# A background bin is a few cells wide and holds 4 x 4 sub-bins about as wide as one cell: a low
# quantile over the sub-bins ignores cells until they cover most of the bin.
_SUBBINS = 4
_SUBBIN_CELLS = 0.8
_QUANTILE = 0.3
# The overview stays this small for any brain, by pooling sections and widening bins.
_MAX_BINS = 32_000_000
_SLAB_VOXELS = 48_000_000
_NOISE_PATCHES = 48
# Reading them is mostly waiting where the image lies far away.
_NOISE_THREADS = 4
_NOISE_PATCH_CELLS = 12
# Noise grows with the light: between its root (photon noise) and itself (gain).
NOISE_EXPONENT = 0.7


class Source(Protocol):
    """What `Intensity.fit` needs of a volume; `brainmap.volume.Volume` is one."""

    @property
    def levels(self) -> tuple[Any, ...]: ...

    def read(self, z: slice, y: slice, x: slice, level: int = 0) -> NDArray[Any]: ...


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
    """

    background: NDArray[np.float32]
    tissue: NDArray[np.bool_]
    bin_vox: tuple[float, float, float]
    shape: tuple[int, int, int]
    noise: float
    typical: float
    dark: float
    surrounded: bool

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
        level = _overview_level(source.levels, cell_diameter_um)
        low, bin_vox = _overview(source, level, cell_diameter_um)
        known = np.isfinite(low)
        if not known.any():
            raise DataError("the volume holds no finite value that can be read; check the input image")
        low = np.where(known, low, np.median(low[known])).astype(np.float32)
        tissue, dark, surrounded = _find_tissue(low)
        # Where the image could not be read, detection must try and fail in the open.
        tissue |= ~known
        background = _smooth_inside(low, tissue)
        typical = float(np.median(background[tissue]))
        if surrounded:
            tissue = ndimage.binary_dilation(tissue, np.ones((1, 3, 3), bool), iterations=2)
        unit = cls(background, tissue, bin_vox, full.shape, 1.0, typical, dark, surrounded)
        noise = _sample_noise(source, unit, cell_diameter_um)
        log.info(
            "intensity: background %.4g, noise %.4g, dark %.4g, tissue %.1f %% of the volume",
            typical, noise, dark, 100 * tissue.mean(),
        )  # fmt: skip
        return cls(background, tissue, bin_vox, full.shape, noise, typical, dark, surrounded)

    def background_at(
        self, z_vox: NDArray[Any], y_vox: NDArray[Any], x_vox: NDArray[Any]
    ) -> NDArray[np.float32]:
        """Background on a separable grid of level-0 voxel coordinates; shape (len(z), len(y), len(x))."""
        part = self.background
        # The single slices of a block are mixed first and the rows, the longest pass, last.
        for axis, vox in ((0, z_vox), (2, x_vox), (1, y_vox)):
            low, weight, first, stop = linear_places(vox, self.bin_vox[axis], self.background.shape[axis])
            part = part[(slice(None),) * axis + (slice(first, stop),)]
            shape = [1, 1, 1]
            shape[axis] = -1
            high = np.minimum(low - first + 1, part.shape[axis] - 1)
            w = weight.reshape(shape)
            upper = part.take(high, axis)
            part = part.take(low - first, axis)
            upper -= part
            upper *= w
            part += upper
        return part

    def scale_at(self, background: NDArray[np.float32]) -> NDArray[np.float32]:
        """Noise expected in tissue of a background, grey levels."""
        return self._to_scale(background.copy())

    def _to_scale(self, background: NDArray[np.float32]) -> NDArray[np.float32]:
        """`scale_at`, in the memory of the background."""
        light = max(self.typical - self.dark, 0.0) + 3 * self.noise
        background -= np.float32(self.dark - 3 * self.noise)
        background *= np.float32(1 / light)
        np.clip(background, 0.25, 4.0, out=background)
        np.power(background, np.float32(NOISE_EXPONENT), out=background)
        background *= np.float32(self.noise)
        return background

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
        at = [np.broadcast_to(np.asarray(v, np.float64), values.shape) for v in (z_vox, y_vox, x_vox)]
        place = [(v + 0.5) / w - 0.5 for v, w in zip(at, self.bin_vox, strict=True)]
        background = ndimage.map_coordinates(self.background, place, order=1, mode="nearest")
        contrast = (values - background) / self.scale_at(background)
        return np.nan_to_num(contrast.astype(np.float32, copy=False), copy=False)

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
        background = self.background_at(z_vox, y_vox, x_vox)
        contrast = (values - background).astype(np.float32, copy=False)
        contrast /= self._to_scale(background)
        # A sum is much quicker than a search for values that hardly any volume has.
        with np.errstate(over="ignore"):
            finite = np.isfinite(contrast.sum())
        if not finite:
            np.nan_to_num(contrast, copy=False)
        return contrast

    def normalise(
        self, values: NDArray[Any], z_vox: NDArray[Any], y_vox: NDArray[Any], x_vox: NDArray[Any]
    ) -> NDArray[np.float32]:
        """Normalised intensity v in 0..1 on a separable grid; parameters as for `contrast`."""
        contrast = self.contrast(values, z_vox, y_vox, x_vox)
        contrast *= np.float32(1 / KNEE)
        np.arcsinh(contrast, out=contrast)
        contrast *= np.float32(GAIN)
        contrast += np.float32(BACKGROUND_VALUE)
        return np.clip(contrast, 0.0, 1.0, out=contrast)

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
        """Read what `save` wrote."""
        with np.load(path) as record:
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
            )


def noise_of(detail: NDArray[Any]) -> float:
    """Standard deviation of the noise in an image that also holds cells.

    Cells only brighten, so the spread is taken below the median; smooth variation wider than about
    eight pixels is removed first.

    Parameters
    ----------
    detail : ndarray, shape (z, y, x)
        Grey levels at detector resolution.
    """
    image = np.asarray(detail, np.float32)
    fine = image - ndimage.gaussian_filter(image, (0, 4, 4), mode="nearest")
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


def _overview_level(levels: tuple[Any, ...], cell_um: float) -> int:
    """Coarsest level that still resolves a sub-bin in the plane and its sections well enough."""
    z_limit = max(levels[0].voxel_um[0], 2 * cell_um)
    for index in range(len(levels) - 1, 0, -1):
        z, y, x = levels[index].voxel_um
        if max(y, x) <= _SUBBIN_CELLS * cell_um * 1.05 and z <= z_limit * 1.05:
            return index
    return 0


def _overview(
    source: Source, level: int, cell_um: float
) -> tuple[NDArray[np.float32], tuple[float, float, float]]:
    """Low quantile of every bin, and the bin's width in level-0 voxels."""
    record, full = source.levels[level], source.levels[0]
    sub = [max(1, round(_SUBBIN_CELLS * cell_um / record.voxel_um[axis])) for axis in (1, 2)]
    sub = [min(s, max(1, n // _SUBBINS)) for s, n in zip(sub, record.shape[1:], strict=True)]
    sections = 1
    count = np.prod([-(-record.shape[a + 1] // (sub[a] * _SUBBINS)) for a in (0, 1)]) * record.shape[0]
    if count > _MAX_BINS:
        sections = int(np.ceil(count / _MAX_BINS))
    low = np.concatenate([_quantile_bins(slab, sub) for slab in _slabs(source, level, sections)])
    ratio = [record.voxel_um[axis] / full.voxel_um[axis] for axis in range(3)]
    width = (sections * ratio[0], sub[0] * _SUBBINS * ratio[1], sub[1] * _SUBBINS * ratio[2])
    return low, width


def _slabs(source: Source, level: int, sections: int) -> Iterator[NDArray[np.float32]]:
    """The level in slabs of whole storage chunks, `sections` slices averaged into one."""
    record = source.levels[level]
    depth, height, width = record.shape
    step = max(record.chunks[0], _SLAB_VOXELS // (height * width) // record.chunks[0] * record.chunks[0])
    step = -(-step // sections) * sections
    plane = (slice(0, height), slice(0, width))
    for start in range(0, depth, step):
        slab = _read_readable(source, (slice(start, min(start + step, depth)), *plane), level)
        if sections > 1:
            edges = np.arange(0, len(slab), sections)
            counts = np.diff(np.append(edges, len(slab)))[:, None, None]
            yield (np.add.reduceat(slab, edges, axis=0, dtype=np.float32) / counts).astype(np.float32)
        else:
            yield slab


def _read_readable(source: Source, box: tuple[slice, slice, slice], level: int) -> NDArray[Any]:
    """A box of a level; where storage is damaged, NaN for the chunks that cannot be read."""
    try:
        return source.read(*box, level=level)
    except DataError as error:
        log.warning("the overview goes on without a damaged part: %s", error)
    corner = [s.start for s in box]
    result = np.full([s.stop - s.start for s in box], np.nan, np.float32)
    steps = [range(s.start, s.stop, c) for s, c in zip(box, source.levels[level].chunks, strict=True)]
    for place in itertools.product(*steps):
        chunk = [
            slice(a, min((a // c + 1) * c, s.stop))
            for a, c, s in zip(place, source.levels[level].chunks, box, strict=True)
        ]
        with suppress(DataError):
            target = tuple(slice(s.start - c, s.stop - c) for s, c in zip(chunk, corner, strict=True))
            result[target] = source.read(chunk[0], chunk[1], chunk[2], level=level)
    return result


def _pool(image: NDArray[Any], factors: tuple[int, int]) -> NDArray[np.float32]:
    """Mean over in-plane windows; the last window of an axis may be cut short."""
    for axis, factor in ((2, factors[1]), (1, factors[0])):
        if factor > 1:
            edges = np.arange(0, image.shape[axis], factor)
            counts = np.diff(np.append(edges, image.shape[axis]))
            shape = [1, 1, 1]
            shape[axis] = -1
            total = np.add.reduceat(image, edges, axis=axis, dtype=np.float32)
            image = total / counts.reshape(shape).astype(np.float32)
    return np.asarray(image, np.float32)


def _quantile_bins(slab: NDArray[Any], sub: list[int]) -> NDArray[np.float32]:
    """Low quantile over the sub-bins of each bin of a slab; shape (z, ceil(ny/4), ceil(nx/4))."""
    means = _pool(slab, (sub[0], sub[1]))
    depth, height, width = means.shape
    pad = [(0, 0), (0, -height % _SUBBINS), (0, -width % _SUBBINS)]
    means = np.pad(means, pad, mode="edge")
    rows, columns = means.shape[1] // _SUBBINS, means.shape[2] // _SUBBINS
    bins = means.reshape(depth, rows, _SUBBINS, columns, _SUBBINS).swapaxes(2, 3)
    bins = bins.reshape(depth, rows, columns, _SUBBINS**2)
    rank = round(_QUANTILE * (_SUBBINS**2 - 1))
    return np.partition(bins, rank, axis=-1)[..., rank]


def _find_tissue(low: NDArray[np.float32]) -> tuple[NDArray[np.bool_], float, bool]:
    """Tissue bins, dark level, and whether there are dark surroundings at all.

    The surroundings must be dark and even, clearly apart from the tissue, and reach the border; the
    tissue must be one mass and not scattered bins. Otherwise everything is tissue: analysing too much
    costs time, too little loses cells.
    """
    everything = np.ones(low.shape, bool)
    floor = float(low.min())
    values = np.log1p((low - floor) / max(float(np.median(low)) - floor, 1e-6))
    threshold = _otsu(values)
    dim, bright = low[values <= threshold], low[values > threshold]
    if dim.size < 0.02 * low.size or bright.size < 0.02 * low.size:
        return everything, floor, False
    dark, light = float(np.median(dim)), float(np.median(bright))
    spread = 1.4826 * float(np.median(np.abs(dim - dark)))
    cut = dark + max(4 * spread, 0.15 * (light - dark))
    tissue = low > cut
    solid = ndimage.binary_opening(tissue, np.ones((1, 3, 3), bool))
    border = np.concatenate([tissue[:, [0, -1]].ravel(), tissue[:, :, [0, -1]].ravel()])
    apart = light - dark > 8 * spread and light - dark > 0.5 * (light - floor)
    if not apart or solid.sum() < 0.6 * tissue.sum() or border.mean() > 0.9:
        return everything, floor, False
    return _fill(solid), dark, True


def _otsu(values: NDArray[Any]) -> float:
    """Otsu's threshold from a 256-bin histogram."""
    counts, edges = np.histogram(values, 256)
    centres = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    sums = np.cumsum(counts * centres)
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = sums[:-1] / below - (sums[-1] - sums[:-1]) / above
    score = np.where((below > 0) & (above > 0), below * above * gap**2, 0.0)
    return float(edges[int(np.argmax(score)) + 1])


def _fill(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Fill holes section by section: ventricles are part of the brain."""
    return np.stack([ndimage.binary_fill_holes(section) for section in mask])


def _smooth_inside(low: NDArray[np.float32], tissue: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Background of tissue bins, smoothed among tissue only and carried outwards past its edge.

    Averaging across the edge would put a bright rim on the tissue side and hide its outline.
    """
    median = ndimage.median_filter(low, size=(1, 3, 3), mode="nearest")
    if tissue.all():
        return ndimage.gaussian_filter(median, (0, 1, 1), mode="nearest")
    inner = ndimage.binary_erosion(tissue, np.ones((1, 3, 3), bool), border_value=1)
    inner |= tissue & ~ndimage.binary_dilation(inner, np.ones((1, 5, 5), bool))
    weight = inner.astype(np.float32)
    top = ndimage.gaussian_filter(median * weight, (0, 1, 1), mode="nearest")
    bottom = ndimage.gaussian_filter(weight, (0, 1, 1), mode="nearest")
    known = bottom > 0.05
    smooth = np.where(known, top / np.maximum(bottom, 1e-6), 0)
    result = np.empty_like(low)
    for section in range(len(low)):
        if not known[section].any():
            result[section] = np.median(low[inner])
            continue
        nearest = ndimage.distance_transform_edt(~known[section], return_distances=False, return_indices=True)
        result[section] = smooth[section][tuple(nearest)]
    return result


def _sample_noise(source: Source, unit: Intensity, cell_um: float) -> float:
    """Noise at detector resolution, from patches of level 0 spread evenly over the tissue."""
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
    # An image without noise (8-bit, saturated black) still needs a scale.
    return max(float(np.quantile(spreads, 0.4)), 0.004 * span, 1e-6)


def _noise_patch(
    source: Source, unit: Intensity, cell_um: float, place: NDArray[np.integer]
) -> tuple[float, NDArray[np.float32]] | None:
    """Noise around the middle of a bin, as if the light were `typical`, and the pixels; None if unreadable."""
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
        patch = source.read(box[0], box[1], box[2]).astype(np.float32).mean(axis=0, keepdims=True)
    except DataError:
        return None
    patch = np.nan_to_num(_pool(patch, pool))
    axes = (
        np.array([box[0].start + (depth - 1) / 2]),
        box[1].start + (np.arange(patch.shape[1]) + 0.5) * pool[0] - 0.5,
        box[2].start + (np.arange(patch.shape[2]) + 0.5) * pool[1] - 0.5,
    )
    light = np.median(unit.background_at(*axes)) - unit.dark
    ratio = light / max(unit.typical - unit.dark, 1e-6)
    return noise_of(patch) / float(np.clip(ratio, 0.25, 4.0)) ** NOISE_EXPONENT, patch.ravel()
