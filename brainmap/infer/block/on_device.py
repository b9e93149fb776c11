"""The cells of a block's slices, computed on a GPU: voxels go there as they are stored, only cells come back.

Resampling, normalisation, network, peaks and measurements are those of `on_host`, as torch operations. All threads of
a process share one compute stream, so that memory is reused in its order; copies to the device have a stream per
thread and run beside it.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from brainmap.errors import MissingExtraError
from brainmap.infer.block.block_task import BlockTask, SliceCells, net_places
from brainmap.infer.block.measure import band_weights, profile_diameters, ring_places
from brainmap.infer.block.net_slices import read_bands
from brainmap.infer.block.resample import axis_operator
from brainmap.infer.detector import Backend
from brainmap.infer.peaks import BESIDE, refined, weigh_face
from brainmap.infer.plan.layout import heat_cells
from brainmap.infer.plan.tissue import atom_mask, cell_atoms, touches

try:
    import torch
    from torch import Tensor
except ImportError as _error:
    raise MissingExtraError("torch", "tensorrt", "run a detector on an NVIDIA GPU") from _error

from brainmap.infer.block.device_ops import (
    Normaliser,
    Resampler,
    find_peaks,
    mean_around,
    median,
    on_device,
    sampled,
    upload,
)

__all__ = ["DeviceBackend", "compute_stream", "slice_cells"]

# Slices through the network at a time.
_BATCH = 4


class DeviceBackend(Backend, Protocol):
    """A backend whose network takes and gives tensors on its device."""

    def heat(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n, 1, h, w) and offsets (n, 2, h, w), float32, of images (n, channels, H, W), float32.

        Work is put on the current stream; nothing is waited for.
        """
        ...


def slice_cells(task: BlockTask) -> Generator[SliceCells, None, None]:
    """Detections of the block's slices, in z order; as `on_host.slice_cells`."""
    with compute_stream(task.backend.device), _room(task.backend.device):
        yield from _Block(task).run()


# Blocks on a GPU at once take at most this share of its free memory; each holds a run of resampled slices and
# some of their heat.
_SHARE, _BLOCK_BYTES = 0.6, 1500 << 20
_making, _networking = threading.Lock(), threading.Lock()
_streams: dict[str, Any] = {}
_rooms: dict[str, threading.Semaphore] = {}


def compute_stream(device: str) -> AbstractContextManager[Any]:
    """Make the process's compute stream the current one of this thread; nothing to do without a GPU."""
    if device != "cuda":
        return nullcontext()
    with _making:
        if device not in _streams:
            # Not the default stream, which would wait for all others.
            _streams[device] = torch.cuda.Stream()
    return torch.cuda.stream(_streams[device])


def _room(device: str) -> AbstractContextManager[Any]:
    """Wait until there is memory for one more block."""
    if device != "cuda":
        return nullcontext()
    with _making:
        if device not in _rooms:
            free, _ = torch.cuda.mem_get_info()
            _rooms[device] = threading.Semaphore(max(1, int(_SHARE * free / _BLOCK_BYTES)))
    return _rooms[device]


class _Block:
    """One block on its way through the device; what it holds there is dropped slice by slice."""

    def __init__(self, task: BlockTask) -> None:
        self.task, self.device = task, torch.device(task.backend.device)
        grid, window = task.grid, task.window
        self.masks = atom_mask(task.intensity, grid, window.k, window.y, window.x)
        filled = [k for k, mask in self.masks.items() if mask is None or mask.any()]
        self.used = {near for k in filled for near in task.seen_in(k)}
        self.needed = set(filled)
        self.normalise = Normaliser(task, self.device)
        self.atoms = [on_device(a, self.device) for a in cell_atoms(window.y, window.x, task.spec.stride)]
        dy, dx = ring_places(task.spec.pixel_um, task.spec.cell_diameter_um)
        self.rings = [on_device(np.asarray(d, np.float64), self.device) for d in (dy, dx)]
        self.empty = torch.full(window.padded, task.spec.fill, device=self.device)
        shape = [-(-(s[1] - s[0]) // task.spec.stride) for s in (window.y, window.x)]
        self.nothing = torch.full(shape, -torch.inf, device=self.device)
        # By group: resampled slices, the network's input, logits, offsets.
        self.raw: dict[int, Tensor] = {}
        self.image: dict[int, Tensor] = {}
        self.logit: dict[int, Tensor] = {}
        self.offset: dict[int, Tensor] = {}

    @torch.inference_mode()
    def run(self) -> Iterator[SliceCells]:
        task, window = self.task, self.task.window
        ready = searched = window.k[0]
        for groups, slab in self._slabs():
            for i, k in enumerate(range(*groups)):
                self.raw[k] = slab[i]
                if k in self.used:
                    with task.stages.time("normalise"):
                        self.image[k] = self._padded(self.normalise(slab[i], k))
            # Slices whose neighbours have all come, or will never.
            ended = groups[1] == window.read_k[1]
            stop = window.k[1] if ended else min(window.k[1], groups[1] - task.layout.context)
            for first in range(ready, stop, _BATCH):
                self._infer(range(first, min(first + _BATCH, stop)))
                done = min(first + _BATCH, stop)
                to = done if ended and done == stop else done - 1
                yield from self._search(range(searched, to))
                searched = max(searched, to)
                self._forget(searched - 1, done - task.layout.context)
            ready = max(ready, stop)

    def _slabs(self) -> Iterator[tuple[tuple[int, int], Tensor]]:
        """Runs of resampled slices, shape (groups, rows, columns)."""
        task, window = self.task, self.task.window
        rows, columns = axis_operator(task.grid, 1, window.read_y), axis_operator(task.grid, 2, window.read_x)
        resampler = Resampler(rows, columns, task.grid.group, self.device)
        shape = (window.read_y[1] - window.read_y[0], window.read_x[1] - window.read_x[0])
        slab: Tensor | None = None
        bands = read_bands(task.volume, task.grid, window, rows.span, columns.span, task.stages)
        with closing(bands):
            for band, raw in bands:
                with task.stages.time("resample"):
                    if slab is None:
                        slab = torch.zeros((band.groups[1] - band.groups[0], *shape), device=self.device)
                    resampler.add(slab, upload(raw, self.device), band)
                if band.last:
                    yield band.groups, slab
                    slab = None

    def _padded(self, image: Tensor) -> Tensor:
        if image.shape == self.empty.shape:
            return image
        padded = self.empty.clone()
        padded[: image.shape[0], : image.shape[1]] = image
        return padded

    def _infer(self, slices: range) -> None:
        """Heat of some slices, tile by tile; tiles without tissue are skipped."""
        task, window, stride = self.task, self.task.window, self.task.spec.stride
        height, width = task.layout.tile
        origin = (window.y[0], window.x[0])
        for k in slices:
            self.logit[k] = self.nothing
            if k in self.needed:
                self.logit[k] = self.nothing.clone()
                self.offset[k] = torch.zeros((2, *self.nothing.shape), device=self.device)
        for row, column in itertools.product(window.rows, window.columns):
            corner = (row.own[0], column.own[0])
            size = (row.own[1] - row.own[0], column.own[1] - column.own[0])
            chosen = [
                k
                for k in slices
                if k in self.needed
                and ((mask := self.masks[k]) is None or touches(mask, *origin, corner, size))
            ]
            if not chosen:
                continue
            top, left = row.start - window.read_y[0], column.start - window.read_x[0]
            part = (slice(top, top + height), slice(left, left + width))
            with task.stages.time("infer"), _networking:
                # One network at a time is put on the stream: its activations are the largest thing there.
                images = torch.stack([
                    torch.stack([self.image.get(near, self.empty)[part] for near in task.seen_in(k)]) for k in chosen
                ])  # fmt: skip
                one, two = task.backend.heat(images)  # type: ignore[attr-defined]
            inner, target = heat_cells(row, column, origin, stride)
            for i, k in enumerate(chosen):
                self.logit[k][target] = one[i, 0][inner]
                self.offset[k][:, *target] = two[i][:, *inner]
            task.stages.net_pixels += len(chosen) * height * width
        for k in slices:
            if (mask := self.masks[k]) is not None and k in self.needed:
                allowed = on_device(mask, self.device)[self.atoms[0]][:, self.atoms[1]]
                self.logit[k] = torch.where(allowed, self.logit[k], -torch.inf)

    def _search(self, slices: range) -> Iterator[SliceCells]:
        """Cells of some slices, all at once: every question to the device waits for all that it has to do."""
        task, spec, window = self.task, self.task.spec, self.task.window
        chosen = [k for k in slices if k in self.needed and k in task.searched]
        if not chosen:
            return
        with task.stages.time("peaks"):
            near = [[self.logit.get(k + d, self.nothing) for d in (-1, 0, 1)] for k in chosen]
            volume = torch.stack([torch.stack(sides) for sides in near])
            offset = torch.stack([self.offset[k] for k in chosen])
            lowest = on_device(np.array([task.lowest_in(k) for k in chosen], np.float32), self.device)
            place = find_peaks(volume, lowest)
            which, row, column = place
            values = [volume[which, i, row, column] for i in range(3)]
            values += [offset[which, i, row, column] for i in range(2)]
            if spec.subpixel == "parabola":
                wide = torch.nn.functional.pad(volume[:, 1], (1, 1, 1, 1), value=-torch.inf)
                values += [wide[which, row + 1 + y, column + 1 + x] for y, x in BESIDE]
            below, logit, above, dy, dx, *beside = torch.stack(values).cpu().numpy()
            of, rows, columns = torch.stack(place).cpu().numpy()
            peaks = refined(rows, columns, logit, (below, above), np.stack([dy, dx]), beside or None)
            intensity, diameter, band = self._measured(chosen, which, *net_places(peaks, window, spec.stride))
            bounds = np.searchsorted(of, np.arange(len(chosen) + 1))
        for k, a, b in zip(chosen, bounds, bounds[1:], strict=False):
            own = {name: column[a:b] for name, column in peaks.items()}
            own["logit"] = weigh_face(own, k, task.grid.net_shape[0], task.face)
            yield SliceCells(k, own, intensity[a:b], diameter[a:b], band[a:b])

    def _measured(
        self, slices: list[int], which: Tensor, y: NDArray[np.float64], x: NDArray[np.float64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Grey level, diameter, band of cells in some slices; `which` each is in, y and x on the net grid."""
        window, diameter_um = self.task.window, self.task.spec.cell_diameter_um
        raw = torch.stack([self.raw[k] for k in slices])
        row, column = on_device(np.stack([y - window.read_y[0], x - window.read_x[0]]), self.device)
        at = (part[:, None, None] + ring for part, ring in zip((row, column), self.rings, strict=True))
        values = sampled(raw, which[:, None, None], *at)
        band = values.mean(dim=2) @ on_device(band_weights(), self.device).to(values.dtype)
        single = [mean_around(raw, which, row, column)[:, None], band[:, None].float()]
        found = torch.cat([*single, median(values)], dim=1).cpu().numpy()
        return found[:, 0], profile_diameters(found[:, 2:], diameter_um), found[:, 1]

    def _forget(self, heat_before: int, image_before: int) -> None:
        """Drop what no later slice needs."""
        for store, first in (
            (self.logit, heat_before), (self.offset, heat_before), (self.raw, heat_before), (self.image, image_before)
        ):  # fmt: skip
            for k in [k for k in store if k < first]:
                del store[k]
