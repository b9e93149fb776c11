"""The part of a volume that holds data: blank slices at its ends and padding around it are no image.

A stack is often made larger than what was recorded: with empty slices, with zeros or NaN around a piece. Cells at
the faces of the data are judged as at the faces of a volume, so detection works on the box that holds the data.
"""

from __future__ import annotations

import itertools
import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.errors import DataError
from brainmap.image.volume import Volume

__all__ = ["data_box"]

log = logging.getLogger(__name__)

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

_SLAB_VOXELS = 40_000_000


def data_box(volume: Volume) -> Box:
    """The smallest box of level-0 voxels that holds all values other than exact zeros, NaN and infinity.

    Parameters
    ----------
    volume : Volume
        Its faces are read; where they are blank, what lies behind them too, until something is found. A part that
        cannot be read counts as data.

    Returns
    -------
    tuple of (start, stop)
        z, y, x. The whole volume where it holds no data at all.
    """
    whole = tuple((0, n) for n in volume.shape)
    box: list[tuple[int, int]] = list(whole)
    for axis in range(3):
        start = _first(volume, box, axis, outwards=False)
        if start is None:
            return whole  # type: ignore[return-value]
        stop = _first(volume, box, axis, outwards=True)
        box[axis] = (start, start + 1 if stop is None else stop + 1)
    return box[0], box[1], box[2]


def _first(volume: Volume, box: list[tuple[int, int]], axis: int, outwards: bool) -> int | None:
    """First plane along an axis with data, from the low end or (outwards) from the high one."""
    low, high = box[axis]
    step = max(1, volume.reading_shape[axis] if axis else volume.chunks[axis])
    edges = [low, *range((low // step + 1) * step, high, step), high]
    spans = list(itertools.pairwise(edges))
    for span in reversed(spans) if outwards else spans:
        filled = np.flatnonzero(_planes(volume, box, axis, span))
        if len(filled):
            return span[0] + int(filled[-1] if outwards else filled[0])
    return None


def _planes(
    volume: Volume, box: list[tuple[int, int]], axis: int, span: tuple[int, int]
) -> NDArray[np.bool_]:
    """Whether each plane of a span along an axis holds data, inside the box; read in pieces."""
    found = np.zeros(span[1] - span[0], bool)
    others = [a for a in range(3) if a != axis]
    # Along the first of the other axes, in whole chunks.
    split = others[0]
    # Whole chunks are decoded, however thin the span.
    area = max(volume.chunks[axis], span[1] - span[0]) * (box[others[1]][1] - box[others[1]][0])
    chunk = volume.chunks[split]
    most = max(1, _SLAB_VOXELS // max(1, area * chunk)) * chunk
    low, high = box[split]
    # In tissue the first chunk tells; where it is blank, pieces double so that a long search has few reads.
    start, step = low - low % chunk, chunk
    while start < high and not found.all():
        part = list(box)
        part[axis], part[split] = span, (max(low, start), min(high, start + step))
        found |= _holds_data(volume, part).any(axis=tuple(others))
        start, step = start + step, min(most, 2 * step)
    return found


def _holds_data(volume: Volume, part: list[tuple[int, int]]) -> NDArray[np.bool_]:
    try:
        z, y, x = (slice(*s) for s in part)
        values: NDArray[Any] = volume.read(z, y, x)
    except DataError as error:
        log.debug("taken for data: %s", error)
        return np.ones([b - a for a, b in part], bool)
    filled = values != 0
    if values.dtype.kind == "f":
        filled &= np.isfinite(values)
    return filled
