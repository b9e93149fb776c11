"""A whole brain in coarse bins: its grey levels without the cells, and where there is tissue."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from brainmap.errors import DataError
from brainmap.image.otsu import otsu

__all__ = ["Source", "find_tissue", "overview", "overview_level", "pooled", "smooth_inside"]

log = logging.getLogger(__name__)

# A background bin is a few cells wide and holds 4 x 4 sub-bins about as wide as one cell: a low
# quantile over the sub-bins ignores cells until they cover most of the bin.
_SUBBINS = 4
_SUBBIN_CELLS = 0.8
_QUANTILE = 0.3
# The overview stays this small for any brain, by pooling sections and widening bins.
_MAX_BINS = 32_000_000
_SLAB_VOXELS = 48_000_000
_PIECE_VOXELS = 1 << 19


class Source(Protocol):
    """What `Intensity.fit` needs of a volume; `brainmap.image.volume.Volume` is one."""

    @property
    def levels(self) -> tuple[Any, ...]: ...

    def read(self, z: slice, y: slice, x: slice, level: int = 0) -> NDArray[Any]: ...


def overview_level(levels: tuple[Any, ...], cell_um: float) -> int:
    """Coarsest level that still resolves a sub-bin in the plane and its sections well enough."""
    z_limit = max(levels[0].voxel_um[0], 2 * cell_um)
    for index in range(len(levels) - 1, 0, -1):
        z, y, x = levels[index].voxel_um
        if max(y, x) <= _SUBBIN_CELLS * cell_um * 1.05 and z <= z_limit * 1.05:
            return index
    return 0


def overview(source: Source, cell_um: float) -> tuple[NDArray[np.float32], tuple[float, float, float]]:
    """Low quantile of a volume's grey levels in bins a few cells wide.

    Parameters
    ----------
    source : Source
        Read at a coarse pyramid level where there is one, else at level 0, once, in slabs.
    cell_um : float
        Diameter of a typical cell.

    Returns
    -------
    ndarray of float32, shape (nz, ny, nx)
        NaN where there are no data: exact zeros (padding, masks, tiles that are missing) or values that are
        not finite. +inf where storage is damaged.
    tuple of float
        Width of a bin along z, y, x in level-0 voxels.
    """
    level = overview_level(source.levels, cell_um)
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
    """A box of a level, values that are not finite as NaN; +inf for the chunks that cannot be read."""
    try:
        return _finite_or_nan(source.read(*box, level=level))
    except DataError as error:
        log.warning("the overview goes on without a damaged part: %s", error)
    corner = [s.start for s in box]
    result = np.full([s.stop - s.start for s in box], np.inf, np.float32)
    steps = [range(s.start, s.stop, c) for s, c in zip(box, source.levels[level].chunks, strict=True)]
    for place in itertools.product(*steps):
        chunk = [
            slice(a, min((a // c + 1) * c, s.stop))
            for a, c, s in zip(place, source.levels[level].chunks, box, strict=True)
        ]
        with suppress(DataError):
            target = tuple(slice(s.start - c, s.stop - c) for s, c in zip(chunk, corner, strict=True))
            result[target] = _finite_or_nan(source.read(chunk[0], chunk[1], chunk[2], level=level))
    return result


def _finite_or_nan(values: NDArray[Any]) -> NDArray[Any]:
    """Infinite values as NaN: in an overview, infinity is a chunk that cannot be read."""
    if values.dtype.kind != "f":
        return values
    # What float32 cannot hold is not a grey level either.
    with np.errstate(over="ignore"):
        single = values.astype(np.float32, copy=False)
    odd = np.isinf(single)
    return np.where(odd, np.float32(np.nan), single) if odd.any() else single


def pooled(image: NDArray[Any], factors: tuple[int, int]) -> NDArray[np.float32]:
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
    depth, height, width = slab.shape
    # A few sections at a time, in memory that is there already: fresh memory takes longer than all the arithmetic.
    step = max(1, _PIECE_VOXELS // (height * width))
    return np.concatenate([_quantile_of(slab[z : z + step], sub) for z in range(0, depth, step)])


def _quantile_of(sections: NDArray[Any], sub: list[int]) -> NDArray[np.float32]:
    means = pooled(sections, (sub[0], sub[1]))
    depth, height, width = means.shape
    pad = [(0, 0), (0, -height % _SUBBINS), (0, -width % _SUBBINS)]
    if any(map(any, pad)):
        means = np.pad(means, pad, mode="edge")
    rows, columns = means.shape[1] // _SUBBINS, means.shape[2] // _SUBBINS
    bins = means.reshape(depth, rows, _SUBBINS, columns, _SUBBINS).swapaxes(2, 3)
    bins = bins.reshape(depth, rows, columns, _SUBBINS**2)
    # A mean of grey levels is exactly 0 where all of them are: nothing was recorded there.
    empty = (bins == 0) | np.isnan(bins)
    if empty.any():
        return _quantile_of_known(np.where(empty, np.float32(np.nan), bins))
    rank = round(_QUANTILE * (_SUBBINS**2 - 1))
    return np.partition(bins, rank, axis=-1)[..., rank]


def _quantile_of_known(bins: NDArray[np.float32]) -> NDArray[np.float32]:
    """The low quantile along the last axis of what is not NaN; NaN where nothing is left."""
    count = bins.shape[-1] - np.isnan(bins).sum(axis=-1)
    rank = np.rint(_QUANTILE * np.maximum(count - 1, 0)).astype(np.intp)
    return np.take_along_axis(np.sort(bins, axis=-1), rank[..., None], axis=-1)[..., 0]


def find_tissue(
    low: NDArray[np.float32], data: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.bool_], float, bool]:
    """Tissue bins, dark level, and whether there are dark surroundings at all.

    The surroundings must be dark and even, clearly apart from the tissue, and reach the border; the
    tissue must be one mass and not scattered bins. Otherwise everything is tissue: analysing too much
    costs time, too little loses cells.

    Parameters
    ----------
    low : ndarray of float32, shape (nz, ny, nx)
        Finite.
    data : ndarray of bool, same shape, optional
        Bins where something was recorded: only they decide, and only they are tissue.
    """
    everything = np.ones(low.shape, bool) if data is None else data
    known = low[_without_rim(everything)]
    floor = float(known.min())
    values = np.log1p((np.maximum(known, floor) - floor) / max(float(np.median(known)) - floor, 1e-6))
    _, threshold = otsu(values)
    dim, bright = known[values <= threshold], known[values > threshold]
    if dim.size < 0.02 * known.size or bright.size < 0.02 * known.size:
        return everything, floor, False
    dark, light = float(np.median(dim)), float(np.median(bright))
    spread = 1.4826 * float(np.median(np.abs(dim - dark)))
    cut = dark + max(4 * spread, 0.15 * (light - dark))
    tissue = (low > cut) & everything
    solid = ndimage.binary_opening(tissue, np.ones((1, 3, 3), bool))
    apart = light - dark > 8 * spread and light - dark > 0.5 * (light - floor)
    if not apart or solid.sum() < 0.6 * tissue.sum() or _border(tissue, everything).mean() > 0.9:
        return everything, floor, False
    return _fill(solid) & everything, dark, True


def _without_rim(data: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Bins with data all around: those at an edge of the data are only covered in part."""
    if data.all():
        return data
    inner: NDArray[np.bool_] = ndimage.binary_erosion(data, np.ones((1, 3, 3), bool), border_value=1)
    return inner if inner.any() else data


def _border(tissue: NDArray[np.bool_], data: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Tissue in the outermost bins with data."""
    if data.all():
        return np.concatenate([tissue[:, [0, -1]].ravel(), tissue[:, :, [0, -1]].ravel()])
    return tissue[data & ~ndimage.binary_erosion(data, np.ones((1, 3, 3), bool))]


def _fill(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Fill holes section by section: ventricles are part of the brain."""
    return np.stack([ndimage.binary_fill_holes(section) for section in mask])


def smooth_inside(low: NDArray[np.float32], tissue: NDArray[np.bool_]) -> NDArray[np.float32]:
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
