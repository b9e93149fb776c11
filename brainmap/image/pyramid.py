"""Coarser levels of an image: by which factors, and the means themselves."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.coords import Shape

__all__ = ["Shape", "downsample", "downsample_by", "pyramid_factors"]


_COARSEST_SIDE = 256
# Pieces that stay in the cache of one processor with their sums.
_PIECE_BYTES = 2**19


def pyramid_factors(
    shape: Sequence[int], voxel_um: Sequence[float], levels: int | None = None
) -> list[Shape]:
    """Factors 1 or 2 per axis from each level to the next.

    Axes that are finer than the coarsest-in-turn catch up first: an axis is halved while its voxel is at
    most sqrt(2) of the smallest, so the voxels become as nearly cubic as factors of two allow.

    Parameters
    ----------
    shape, voxel_um
        Of level 0, z, y, x.
    levels : int, optional
        Number of levels, level 0 included; by default until the longest side is 256 or less.
    """
    size, voxel = list(shape), list(voxel_um)
    steps: list[Shape] = []
    while len(steps) + 1 < levels if levels is not None else max(size) > _COARSEST_SIDE:
        splittable = [v for v, n in zip(voxel, size, strict=True) if n > 1]
        if not splittable:
            break
        limit = min(splittable) * 2**0.5
        step = [2 if n > 1 and v <= limit else 1 for v, n in zip(voxel, size, strict=True)]
        size = [-(-n // f) for n, f in zip(size, step, strict=True)]
        voxel = [v * f for v, f in zip(voxel, step, strict=True)]
        steps.append((step[0], step[1], step[2]))
    return steps


def downsample(values: NDArray[Any], factors: Shape, method: str = "mean") -> NDArray[Any]:
    """Halve the last three axes where the factor is 2.

    Parameters
    ----------
    values : array (..., z, y, x)
    factors : tuple of int
        1 or 2 per axis.
    method : str
        "mean": mean of the voxels (an odd last voxel counts twice), integers rounded half up and exact
        over the whole range of their type; "nearest": the first voxel of each pair.

    Returns
    -------
    array
        Same type, ``ceil(n / factor)`` voxels per axis.
    """
    if method == "nearest":
        return np.ascontiguousarray(values[..., :: factors[0], :: factors[1], :: factors[2]])
    if max(factors) == 1:
        return values
    count = int(np.prod(factors))
    if values.dtype.kind == "f":
        return (_sums(values, factors) / values.dtype.type(count)).astype(values.dtype, copy=False)
    native = values.astype(values.dtype.newbyteorder("="), copy=False)
    if native.dtype.kind == "u":
        return _integer_means(native, factors, count)
    # Shifted to non-negative numbers, which changes nothing about the rounding.
    unsigned, sign = native.dtype.str.replace("i", "u"), 1 << (8 * native.dtype.itemsize - 1)
    lifted = native.view(unsigned) ^ np.dtype(unsigned).type(sign)
    return (_integer_means(lifted, factors, count) ^ lifted.dtype.type(sign)).view(native.dtype)


def downsample_by(pool: Executor, values: NDArray[Any], factors: Shape, method: str) -> NDArray[Any]:
    """`downsample` of (c, z, y, x) by the threads of `pool`, in pieces that stay in the cache."""
    shape = [-(-n // f) for n, f in zip(values.shape[-3:], factors, strict=True)]
    out = np.empty((values.shape[0], *shape), values.dtype)
    deep, high = factors[:2]
    row_bytes = deep * high * values.shape[0] * values.shape[-1] * values.dtype.itemsize
    rows = max(1, _PIECE_BYTES // row_bytes)

    def fill(z: int) -> None:
        for y in range(0, shape[1], rows):
            piece = values[:, z * deep : (z + 1) * deep, y * high : (y + rows) * high]
            out[:, z : z + 1, y : y + rows] = downsample(piece, factors, method)

    for _ in pool.map(fill, range(shape[0])):
        pass
    return out


def _integer_means(values: NDArray[Any], factors: Shape, count: int) -> NDArray[Any]:
    """Rounded means of unsigned integers."""
    shift, bits = count.bit_length() - 1, 8 * values.dtype.itemsize
    if bits == 64:
        # The sum of eight has no type: whole parts and remainders are summed on their own.
        low = values & np.uint64(count - 1)
        whole, rest = _sums(values >> np.uint64(shift), factors), _sums(low, factors)
        return whole + ((rest + np.uint64(count // 2)) >> np.uint64(shift))
    wide = np.dtype(f"u{2 * values.dtype.itemsize}")
    if factors[2] == 2 and bits <= 16:
        # Two neighbours are one number of twice the width: no strided access, vectorised by numpy.
        even = values if values.shape[-1] % 2 == 0 else np.concatenate([values, values[..., -1:]], axis=-1)
        pairs = np.ascontiguousarray(even).view(wide)
        total = pairs >> wide.type(bits)
        total += pairs & wide.type((1 << bits) - 1)
        total = _sums(total, (factors[0], factors[1], 1))
    else:
        total = _sums(values.astype(wide), factors)
    total += wide.type(count // 2)
    total >>= wide.type(shift)
    return total.astype(values.dtype)


def _sums(values: NDArray[Any], factors: Shape) -> NDArray[Any]:
    for axis, factor in zip((-3, -2, -1), factors, strict=True):
        if factor == 2:
            values = _pair_sums(values, axis)
    return values


def _pair_sums(values: NDArray[Any], axis: int) -> NDArray[Any]:
    even = [slice(None)] * values.ndim
    odd = [slice(None)] * values.ndim
    even[axis], odd[axis] = slice(0, None, 2), slice(1, None, 2)
    first, second = values[tuple(even)], values[tuple(odd)]
    if first.shape[axis] == second.shape[axis]:
        return first + second
    paired, last = [slice(None)] * values.ndim, [slice(None)] * values.ndim
    paired[axis], last[axis] = slice(0, -1), slice(-1, None)
    return np.concatenate([first[tuple(paired)] + second, first[tuple(last)] * 2], axis=axis)
