"""The cells of a block's slices, computed with numpy and the backend's network.

A block holds one run of slices (whole storage chunks) and a few slices around the one at work, so its
memory does not grow with its depth.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator

import numpy as np
from numpy.typing import NDArray

from brainmap.infer.block_task import BlockTask, SliceCells, net_places
from brainmap.infer.layout import Strip, heat_cells
from brainmap.infer.measure import diameters, mean_around
from brainmap.infer.net_slices import net_slices
from brainmap.infer.peaks import Heat, find_peaks, weigh_face
from brainmap.infer.stack import SliceStack
from brainmap.infer.tissue import atom_mask, cell_mask, touches

__all__ = ["slice_cells"]

# Group, resampled slice, heat; the heat is None where there is no tissue.
HeatSlice = tuple[int, NDArray[np.float32], Heat | None]


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
        sides = [None if side is None else side[0] for side in (before, after)]
        peaks = find_peaks(sides[0], heat, sides[1], task.lowest_in(k), spec.subpixel)
        peaks["logit"] = weigh_face(peaks, k, task.grid.net_shape[0], task.face)
        y, x = net_places(peaks, window, spec.stride)
        row, column = y - window.read_y[0], x - window.read_x[0]
        found = SliceCells(
            k,
            peaks,
            mean_around(raw, row, column),
            diameters(raw, row, column, spec.pixel_um, spec.cell_diameter_um),
        )
    yield found


def _heat_slices(task: BlockTask) -> Iterator[HeatSlice]:
    """Resampled slice and heat of each needed group."""
    window, stages, context = task.window, task.stages, task.layout.context
    masks = atom_mask(task.intensity, task.grid, window.k, window.y, window.x)
    used = {near for k, m in masks.items() if m is None or m.any() for near in task.seen_in(k)}
    inside = (slice(0, window.read_y[1] - window.read_y[0]), slice(0, window.read_x[1] - window.read_x[0]))
    stack = SliceStack(task.spec.channels, window.padded, inside, task.spec.fill)
    # The slice that is searched next, and those between it and the one read last.
    source = net_slices(task.volume, task.grid, window, context + 1, stages)
    raws: dict[int, NDArray[np.float32]] = {}
    for seen in range(window.k[0] - context, window.k[1] + context):
        image = None
        if window.read_k[0] <= seen < window.read_k[1]:
            _, raws[seen] = next(source)
            if seen in used:
                with stages.time("normalise"):
                    image = _normalised(task, seen, raws[seen])
        stack.push(image, task.spec.offset)
        k = seen - context
        if k < window.k[0]:
            continue
        heat, mask = None, masks[k]
        if mask is None or mask.any():
            heat = _infer(task, stack.latest, mask)
        yield k, raws.pop(k), heat


def _normalised(task: BlockTask, k: int, raw: NDArray[np.float32]) -> NDArray[np.float32]:
    """One slice of the window's readable part, as the network knows it."""
    grid, window = task.grid, task.window
    y = grid.to_vox(np.arange(*window.read_y, dtype=np.float64), 1)
    x = grid.to_vox(np.arange(*window.read_x, dtype=np.float64), 2)
    return task.intensity.normalise(raw[None], grid.group_z(np.array([k])), y, x)[0]


def _infer(task: BlockTask, stack: NDArray[np.float32], mask: NDArray[np.bool_] | None) -> Heat:
    """Heat of the needed window from the slices around it, tile by tile; tiles without tissue are skipped."""
    window, stride = task.window, task.spec.stride
    tiles = list(itertools.product(window.rows, window.columns))
    if len(tiles) == 1:
        logit, offset = _infer_tile(task, stack, *tiles[0])
    else:
        shape = tuple(-(-(s[1] - s[0]) // stride) for s in (window.y, window.x))
        logit, offset = np.full(shape, -np.inf, np.float32), np.zeros((2, *shape), np.float32)
        for row, column in tiles:
            corner = (row.own[0], column.own[0])
            size = (row.own[1] - row.own[0], column.own[1] - column.own[0])
            if mask is None or touches(mask, window.y[0], window.x[0], corner, size):
                _, target = heat_cells(row, column, (window.y[0], window.x[0]), stride)
                logit[target], offset[:, *target] = _infer_tile(task, stack, row, column)
    if mask is not None:
        np.copyto(logit, -np.inf, where=~cell_mask(mask, window.y, window.x, stride))
    return logit, offset


def _infer_tile(task: BlockTask, stack: NDArray[np.float32], row: Strip, column: Strip) -> Heat:
    """The heat that a tile owns."""
    window, (height, width) = task.window, task.layout.tile
    top, left = row.start - window.read_y[0], column.start - window.read_x[0]
    with task.stages.time("infer"):
        part = stack[:, top : top + height, left : left + width]
        logit, offset = task.backend.infer(np.ascontiguousarray(part)[None])
    task.stages.net_pixels += height * width
    inner, _ = heat_cells(row, column, (window.y[0], window.x[0]), task.spec.stride)
    return logit[0, 0][inner], offset[0][:, *inner]
