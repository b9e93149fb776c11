"""Resampling, normalisation, peaks and measurements as torch operations, for `on_device`.

Each does what its namesake on the host does, in the same order, on tensors of one device.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from brainmap.image.intensity import BACKGROUND_VALUE, GAIN, KNEE, NOISE_EXPONENT, linear_places
from brainmap.infer.block.block_task import BlockTask
from brainmap.infer.block.net_slices import Band
from brainmap.infer.block.resample import AxisOperator, touched_rows
from brainmap.infer.peaks import NEIGHBOURS

__all__ = ["Normaliser", "Resampler", "find_peaks", "mean_around", "median", "on_device", "sampled", "upload"]

_local = threading.local()


def on_device(values: NDArray[Any], device: torch.device) -> Tensor:
    """A small array on the device, without waiting for what the device has to do."""
    host = torch.from_numpy(np.ascontiguousarray(values))
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host


def upload(values: NDArray[Any], device: torch.device) -> Tensor:
    """Voxels on the device: as integers where it has those of their kind, else as float32.

    On a GPU they travel from pinned memory on a stream of this thread's own; the current stream waits for them.
    """
    unsigned = values.dtype == np.uint16
    if unsigned:
        # Few operations know unsigned 16-bit integers: they travel as signed ones.
        values = values.view(np.int16)
    elif values.dtype not in (np.uint8, np.int8, np.int16, np.int32, np.float32):
        values = values.astype(np.float32)
    values = np.ascontiguousarray(values)
    host = torch.from_numpy(values if values.flags.writeable else values.copy())
    if device.type == "cuda":
        if not hasattr(_local, "staging"):
            _local.staging = _Staging(device)
        host = _local.staging.send(host)
    return host.to(torch.int32) & 0xFFFF if unsigned else host


class _Staging:
    """Two buffers of pinned memory in turn: one is filled while the other travels."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream()
        self._buffers: list[Tensor] = [torch.empty(0, dtype=torch.uint8) for _ in range(2)]
        self._sent: list[Any] = [torch.cuda.Event() for _ in range(2)]
        self._turn = 0

    def send(self, host: Tensor) -> Tensor:
        turn = self._turn = 1 - self._turn
        size = host.numel() * host.element_size()
        self._sent[turn].synchronize()
        if len(self._buffers[turn]) < size:
            self._buffers[turn] = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        pinned = self._buffers[turn][:size].view(host.dtype).view(host.shape)
        pinned.copy_(host)
        compute = torch.cuda.current_stream()
        with torch.cuda.stream(self._stream):
            there = pinned.to(self._device, non_blocking=True)
            self._sent[turn].record(self._stream)
        compute.wait_event(self._sent[turn])
        # Its memory must not be given to the next copy while the compute stream still reads it.
        there.record_stream(compute)
        return there


class Resampler:
    """Voxels to the net grid, as `brainmap.infer.block.resample.resample_band`.

    Parameters
    ----------
    rows, columns : AxisOperator
        Of the slab's net rows and columns.
    group : int
        Slices per group.
    """

    def __init__(self, rows: AxisOperator, columns: AxisOperator, group: int, device: torch.device) -> None:
        self._rows, self._columns, self._group = rows, columns, group
        self._weights = [on_device(operator.weight, device) for operator in (rows, columns)]

    def add(self, slab: Tensor, raw: Tensor, band: Band) -> None:
        """Add the share of a band of voxels, shape (slices, rows, columns), to a slab that starts at its groups."""
        touched = touched_rows(self._rows, band.y[0], raw.shape[1])
        part = self._rows.rows(touched)
        if len(part.index) == 0:
            return
        mean = self._means(raw)
        narrow = mean.new_zeros((len(mean), len(part.index), raw.shape[2]))
        _add(narrow, mean, part, self._weights[0][touched], band.y[0], axis=1)
        first = band.z[0] // self._group - band.groups[0]
        target = slab[first : first + len(mean), touched]
        _add(target, narrow, self._columns, self._weights[1], self._columns.span[0], axis=2)

    def _means(self, raw: Tensor) -> Tensor:
        if self._group == 1:
            return raw.to(torch.float32)
        means = []
        for group in raw.split(self._group):
            kind = torch.float32 if group.is_floating_point() else torch.int32
            means.append(group.sum(dim=0, dtype=kind).to(torch.float32) * np.float32(1 / len(group)))
        return torch.stack(means)


def _add(out: Tensor, values: Tensor, operator: AxisOperator, weights: Tensor, first: int, axis: int) -> None:
    """Add an operator's share of the inputs from `first` on; its weights are on the device already."""
    shape = [1, 1, 1]
    shape[axis] = -1
    at = (slice(None),) * axis
    for share in operator.shares(first, values.shape[axis]):
        target, source = (
            place if isinstance(place, slice) else on_device(place, out.device)
            for place in (share.target, share.source)
        )
        out[(*at, target)] += values[(*at, source)] * weights[target, share.tap].reshape(shape)


class Normaliser:
    """Slices of a block's window as the network knows them, as `Intensity.normalise` less the detector's offset."""

    def __init__(self, task: BlockTask, device: torch.device) -> None:
        self._intensity, self._grid, self._offset = task.intensity, task.grid, task.spec.offset
        self._device = device
        self._axes = []
        for axis, span in ((1, task.window.read_y), (2, task.window.read_x)):
            vox = task.grid.to_vox(np.arange(*span, dtype=np.float64), axis)
            bins = task.intensity.background.shape[axis]
            low, weight, first, stop = linear_places(vox, task.intensity.bin_vox[axis], bins)
            high = np.minimum(low - first + 1, stop - first - 1)
            places = [on_device(v, device) for v in (low - first, high, weight)]
            self._axes.append((slice(first, stop), *places))

    def __call__(self, image: Tensor, k: int) -> Tensor:
        """One slice, float32, shape (rows, columns); group `k` of the grid."""
        unit = self._intensity
        background = self._at_bins(float(self._grid.group_z(np.array([k]))[0]))
        light = max(unit.typical - unit.dark, 0.0) + 3 * unit.noise
        ratio = (background - np.float32(unit.dark - 3 * unit.noise)) * np.float32(1 / light)
        scale = ratio.clamp_(0.25, 4.0).pow_(NOISE_EXPONENT).mul_(np.float32(unit.noise * KNEE))
        contrast = torch.nan_to_num((image - self._mixed(background)).mul_(self._mixed(scale.reciprocal_())))
        value = contrast.asinh_().mul_(np.float32(GAIN))
        return value.add_(np.float32(BACKGROUND_VALUE)).clamp_(0.0, 1.0).sub_(np.float32(self._offset))

    def _at_bins(self, z_vox: float) -> Tensor:
        """Background at z, in the rows of bins and the columns of the window."""
        grid = self._intensity.background
        low, weight, _, _ = linear_places(np.array([z_vox]), self._intensity.bin_vox[0], grid.shape[0])
        (rows, *_), (columns, x_low, x_high, x_weight) = self._axes
        part = grid[low[0], rows, columns]
        high = grid[min(low[0] + 1, grid.shape[0] - 1), rows, columns]
        mixed = on_device(part + (high - part) * weight[0], self._device)
        left = mixed[:, x_low]
        return left + (mixed[:, x_high] - left) * x_weight

    def _mixed(self, bins: Tensor) -> Tensor:
        """Values in the rows of bins, at the rows of the window."""
        _, low, high, weight = self._axes[0]
        top = bins[low]
        return top + (bins[high] - top) * weight[:, None]


def find_peaks(volume: Tensor, lowest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Local maxima of some slices, as `brainmap.infer.peaks.find_peaks`, without the refinement.

    Parameters
    ----------
    volume : Tensor of float32, shape (n, 3, rows, columns)
        Logits below, here and above, for each slice; -inf where there is nothing.
    lowest : Tensor of float32, shape (n,)
        For each slice the lowest logit of a candidate.

    Returns
    -------
    slice, row, column : Tensor of int64
        Sorted by all three.
    """
    here = volume[:, 1]
    which, row, column = torch.nonzero((here >= lowest[:, None, None]) & torch.isfinite(here), as_tuple=True)
    value = here[which, row, column]
    padded = torch.nn.functional.pad(volume, (1, 1, 1, 1), value=-torch.inf)
    peak = torch.ones_like(value, dtype=torch.bool)
    for z, y, x in NEIGHBOURS:
        near = padded[which, 1 + z, row + 1 + y, column + 1 + x]
        peak &= value > near if (z, y, x) < (0, 0, 0) else value >= near
    return which[peak], row[peak], column[peak]


def sampled(images: Tensor, which: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Linear interpolation at places (float64) of images, constant beyond their outermost pixels; float32.

    Parameters
    ----------
    images : Tensor of float32, shape (n, rows, columns)
    which : Tensor of int64
        The image of each place; it and the places are broadcast.
    """
    places = []
    for at, size in ((row, images.shape[1]), (column, images.shape[2])):
        inside = at.clamp(0, size - 1)
        low = inside.floor()
        first = low.long()
        places.append((first, (first + 1).clamp(max=size - 1), inside - low))
    (top, bottom, down), (left, right, across) = places

    def between(r: Tensor) -> Tensor:
        return images[which, r, left] * (1 - across) + images[which, r, right] * across

    return (between(top) * (1 - down) + between(bottom) * down).to(torch.float32)


def median(values: Tensor) -> Tensor:
    """Median along the last axis, the mean of the two middle values of an even number."""
    ordered = values.sort(dim=-1).values
    n = values.shape[-1]
    return (ordered[..., (n - 1) // 2] + ordered[..., n // 2]) / 2


def mean_around(images: Tensor, which: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Mean of the 3 x 3 pixels around each place, as in `brainmap.infer.block.measure`; images as for `sampled`."""
    height, width = images.shape[1:]
    step = torch.arange(-1, 2, device=images.device)
    r = (row.round().long()[:, None, None] + step[:, None]).expand(-1, 3, 3)
    c = (column.round().long()[:, None, None] + step).expand(-1, 3, 3)
    inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
    values = images[which[:, None, None], r.clamp(0, height - 1), c.clamp(0, width - 1)].double()
    total = torch.where(inside, values, 0).sum(dim=(1, 2))
    return (total / inside.sum(dim=(1, 2)).clamp(min=1)).to(torch.float32)
