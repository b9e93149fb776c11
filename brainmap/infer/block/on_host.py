"""The cells of a block's slices, computed with numpy and the backend's network.

A block holds one run of slices (whole storage chunks) and a few slices around the one at work, so its
memory does not grow with its depth.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from brainmap.infer.block.block_task import BlockTask, SliceCells, net_places
from brainmap.infer.block.folding import Folds, folded_values, unfolded
from brainmap.infer.block.measure import mean_around, shapes
from brainmap.infer.block.net_slices import net_slices
from brainmap.infer.block.stack import SliceStack
from brainmap.infer.detector import Backend
from brainmap.infer.peaks import Heat, find_peaks, weigh_face
from brainmap.infer.plan.layout import heat_cells
from brainmap.infer.plan.tissue import atom_mask, cell_mask, touches

__all__ = ["HostBackend", "slice_cells"]

# Group, resampled slice, heat; the heat is None where there is no tissue.
HeatSlice = tuple[int, NDArray[np.float32], Heat | None]
# Rows and columns of a map.
Box = tuple[slice, slice]
T = TypeVar("T")


class HostBackend(Backend, Protocol):
    """A backend that takes and gives arrays, as planes where that saves work."""

    folds: Folds

    def begin(
        self,
        planes: NDArray[np.float32],
        use: Callable[[NDArray[np.float32], NDArray[np.float32]], T],
    ) -> Callable[[], T]:
        """Start on the heat map and offsets of one image; see `brainmap.infer.block.folding`.

        Parameters
        ----------
        planes : ndarray of float32, shape (channels x f**2, H / f, W / f)
            C-contiguous network input, `folds.image` = f; H, W as given to `load_backend`. It is read until the
            result has been waited for.
        use : callable
            Takes logit (g**2, H / stride / g, W / stride / g) and offset (2 x g**2, ...), float32, `folds.heat` = g;
            both are valid only within it.

        Returns
        -------
        callable
            Waits, to be called once by the same thread, and returns what `use` does.
        """
        ...


def host_backend(task: BlockTask) -> HostBackend:
    """The task's backend, which is one of these where blocks are computed here."""
    return cast(HostBackend, task.backend)


def slice_cells(task: BlockTask) -> Generator[SliceCells, None, None]:
    """Detections of the block's slices, in z order; a slice is searched once the next has come."""
    before: Heat | None = None
    last: HeatSlice | None = None
    for heat_slice in _heat_slices(task):
        if last is not None:
            yield from _search(task, before, last, heat_slice[2])
            before = last[2]
        last = heat_slice
    if last is not None:
        yield from _search(task, before, last, None)


def _search(
    task: BlockTask, before: Heat | None, here: HeatSlice, after: Heat | None
) -> Iterator[SliceCells]:
    """Cells of a slice, once, where it is one to be searched."""
    k, raw, heat = here
    if heat is None or k not in task.searched:
        return
    spec, window = task.spec, task.window
    with task.stages.time("peaks"):
        sides = [None if side is None else side.logit for side in (before, after)]
        peaks = find_peaks(sides[0], heat, sides[1], spec.subpixel)
        peaks["logit"] = weigh_face(peaks, k, task.grid.net_shape[0], task.face)
        y, x = net_places(peaks, window, spec.stride)
        row, column = y - window.read_y[0], x - window.read_x[0]
        found = SliceCells(
            k,
            peaks,
            mean_around(raw, row, column),
            *shapes(raw, row, column, spec.pixel_um, spec.cell_diameter_um),
        )
    yield found


def _heat_slices(task: BlockTask) -> Iterator[HeatSlice]:
    """Resampled slice and heat of each needed group; the network is at work on the next ones meanwhile."""
    window, stages, context = task.window, task.stages, task.layout.context
    masks = atom_mask(task.intensity, task.grid, window.k, window.y, window.x)
    used = {near for k, m in masks.items() if m is None or m.any() for near in task.seen_in(k)}
    inside = (window.read_y[1] - window.read_y[0], window.read_x[1] - window.read_x[0])
    fold = host_backend(task).folds.image
    # While a slice is pushed, as many as there are streams are at work.
    stack = SliceStack(task.spec.channels, window.padded, inside, task.spec.fill, fold, valid=task.streams)
    light = task.intensity.window(
        task.grid.to_vox(np.arange(*window.read_y, dtype=np.float64), 1),
        task.grid.to_vox(np.arange(*window.read_x, dtype=np.float64), 2),
    )
    # The slice that is searched next, those at work, and those between them and the one read last.
    source = net_slices(task.volume, task.grid, window, context + 1 + task.streams, stages)
    raws: dict[int, NDArray[np.float32]] = {}
    at_work: deque[Callable[[], HeatSlice]] = deque()
    try:
        for seen in range(window.k[0] - context, window.k[1] + context):
            image = None
            if window.read_k[0] <= seen < window.read_k[1]:
                _, raws[seen] = next(source)
                if seen in used:
                    with stages.time("normalise"):
                        image = light.normalise(raws[seen], float(task.grid.group_z(np.array([seen]))[0]))
            stack.push(image, task.spec.offset)
            k = seen - context
            if k < window.k[0]:
                continue
            at_work.append(_begin(task, k, raws.pop(k), stack.latest, masks[k]))
            # One more than there are streams, for the first that is free.
            if len(at_work) > task.streams:
                yield at_work.popleft()()
        while at_work:
            yield at_work.popleft()()
    finally:
        # The network must not outlive its input.
        for wait in at_work:
            wait()


def _begin(
    task: BlockTask,
    k: int,
    raw: NDArray[np.float32],
    stack: NDArray[np.float32],
    mask: NDArray[np.bool_] | None,
) -> Callable[[], HeatSlice]:
    """Start on the heat of the needed window of slice `k`; what is returned waits for it.

    Tiles without tissue are skipped. Of others only the first is at work when this returns.

    Parameters
    ----------
    raw : ndarray of float32
        The slice, for the result.
    stack : ndarray of float32
        The slices around it, as `SliceStack.latest`; to stay as it is until the result has been waited for.
    mask : ndarray of bool, optional
        From `atom_mask`.
    """
    window, stride = task.window, task.spec.stride
    origin, lowest = (window.y[0], window.x[0]), task.lowest_in(k)
    tiles = []
    for row, column in itertools.product(window.rows, window.columns):
        corner, size = (row.own[0], column.own[0]), (row.own[1] - row.own[0], column.own[1] - column.own[0])
        if mask is None or touches(mask, *origin, corner, size):
            tiles.append(((row.start, column.start), *heat_cells(row, column, origin, stride)))
    if not tiles:
        return lambda: (k, raw, None)
    # Each is started when it is asked for.
    begun = (_begin_tile(task, stack, start, inner, lowest) for start, inner, _ in tiles)
    first = next(begun)

    def finish() -> HeatSlice:
        parts: list[tuple[Box, Heat]] = []
        # The next one is started before this one is waited for.
        pairs = itertools.pairwise(itertools.chain([first], begun, [first]))
        for (_, _, target), (wait, _) in zip(tiles, pairs, strict=True):
            with task.stages.time("infer"):
                parts.append((target, wait()))
        shape = (-(-(window.y[1] - window.y[0]) // stride), -(-(window.x[1] - window.x[0]) // stride))
        heat = _joined(shape, parts)
        if mask is not None:
            np.copyto(heat.logit, -np.inf, where=~cell_mask(mask, window.y, window.x, stride))
        return k, raw, heat

    return finish


def _begin_tile(
    task: BlockTask, stack: NDArray[np.float32], start: tuple[int, int], inner: Box, lowest: float
) -> Callable[[], Heat]:
    """Start on the heat of the cells `inner` of the tile that starts at a net pixel."""
    backend, window = host_backend(task), task.window
    fold, unfold = backend.folds.image, backend.folds.heat
    box = tuple(
        slice((a - first) // fold, (a - first + n) // fold)
        for a, first, n in zip(start, (window.read_y[0], window.read_x[0]), task.layout.tile, strict=True)
    )

    def use(logit: NDArray[np.float32], offset: NDArray[np.float32]) -> Heat:
        found = unfolded(logit, unfold)[0][inner]
        place = np.flatnonzero(found >= lowest)
        row, column = np.divmod(place, found.shape[1])
        return Heat(
            found, place, folded_values(offset, unfold, row + inner[0].start, column + inner[1].start)
        )

    task.stages.net_pixels += task.layout.tile[0] * task.layout.tile[1]
    return backend.begin(np.ascontiguousarray(stack[:, *box]), use)


def _joined(shape: tuple[int, int], parts: list[tuple[Box, Heat]]) -> Heat:
    """One map of the tiles' own cells, each with where they go; no heat anywhere else."""
    if len(parts) == 1 and parts[0][1].logit.shape == shape:
        return parts[0][1]
    logit = np.full(shape, -np.inf, np.float32)
    places, offsets = [np.empty(0, np.int64)], [np.empty((2, 0), np.float32)]
    for target, heat in parts:
        logit[target] = heat.logit
        row, column = np.divmod(heat.place, heat.logit.shape[1])
        places.append((row + target[0].start) * shape[1] + column + target[1].start)
        offsets.append(heat.offset)
    place = np.concatenate(places)
    order = np.argsort(place)
    return Heat(logit, place[order], np.concatenate(offsets, axis=1)[:, order])
