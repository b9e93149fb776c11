"""Decode a part of a Blosc chunk: a section of a deep chunk needs a fraction of its blocks.

A Blosc 1 frame is a header of 16 bytes, the place of every block (int32), and the blocks, each shuffled and
compressed on its own (Blosc's README_CHUNK_FORMAT). Some of its blocks with a header of their own are a frame again.
"""

from __future__ import annotations

import numpy as np
from numcodecs import blosc

__all__ = ["decode"]

_HEADER = 16
_VERSION, _STORED_AS_IS = 2, 0x2


def decode(frame: bytes, first: int, stop: int) -> tuple[bytes, int]:
    """Decode at least some bytes of a frame.

    Parameters
    ----------
    frame : bytes
        All of a Blosc 1 frame.
    first, stop : int
        The bytes wanted, of those encoded.

    Returns
    -------
    bytes
        Whole blocks.
    int
        Which of the encoded bytes is the first of them.

    Raises
    ------
    ValueError, RuntimeError
        If the frame is truncated or damaged.
    """
    if len(frame) < _HEADER or len(frame) < (size := _number(frame, 12)):
        announced = _HEADER if len(frame) < _HEADER else size
        # The decoder does not know how long its input is: a truncated frame could decode to garbage.
        raise ValueError(f"{len(frame)} bytes are stored where {announced} should be")
    part, begins = _blocks(frame, first, stop)
    return blosc.decompress(part), begins


def _blocks(frame: bytes, first: int, stop: int) -> tuple[bytes, int]:
    """A frame of the blocks that hold some bytes; all of it where nothing can be left out."""
    nbytes, block, size = (_number(frame, at) for at in (4, 8, 12))
    if frame[0] != _VERSION or frame[2] & _STORED_AS_IS or not 0 < block < nbytes:
        return frame, 0
    count = -(-nbytes // block)
    low, high = first // block, min(-(-stop // block), count)
    if high == count and nbytes % block:
        # Blosc takes no frame that is shorter than a block.
        low = min(low, count - 2)
    if not 0 <= low < high or high - low == count:
        return frame, 0
    starts = np.frombuffer(frame, "<i4", count, _HEADER).astype(np.int64)
    if starts.min() < _HEADER + 4 * count or starts.max() >= size:
        raise ValueError("the places of its blocks are damaged")
    # Blocks lie without gaps, but in the order in which threads finished them.
    limits = np.append(np.sort(starts), size)
    ends = limits[np.searchsorted(limits, starts, side="right")]
    blocks = [frame[a:b] for a, b in zip(starts[low:high], ends[low:high], strict=True)]
    lengths = [len(b) for b in blocks]
    places = _HEADER + 4 * len(blocks) + np.cumsum([0, *lengths[:-1]])
    numbers = [min(high * block, nbytes) - low * block, block, int(places[-1]) + lengths[-1]]
    parts = [frame[:4], np.array(numbers, "<i4").tobytes(), places.astype("<i4").tobytes(), *blocks]
    return b"".join(parts), low * block


def _number(frame: bytes, at: int) -> int:
    return int.from_bytes(frame[at : at + 4], "little")
