"""Read and decode a part of a Blosc chunk: a few sections of a deep chunk need a fraction of its blocks.

A Blosc 1 frame is a header of 16 bytes, the place of every block (int32), and the blocks, each shuffled and
compressed on its own (Blosc's README_CHUNK_FORMAT). Some of its blocks with a header of their own are a frame again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numcodecs import blosc

__all__ = ["Fetch", "block_bytes", "read"]

# Bytes of a frame: where they begin, and how many.
Fetch = Callable[[int, int], bytes]

_HEADER = 16
_VERSION, _STORED_AS_IS = 2, 0x2


@dataclass(frozen=True)
class Frame:
    """What the header of a frame says.

    Attributes
    ----------
    encoded, block, size : int
        Bytes encoded, bytes of them in a block, bytes of the frame.
    blocks : int
        Its blocks, each of which can be decoded alone; 1 where the header is of another version.
    as_is : bool
        Whether the bytes are stored as they are, for they could not be compressed.
    """

    encoded: int
    block: int
    size: int
    blocks: int
    as_is: bool

    @classmethod
    def of(cls, start: bytes, stored: int) -> Frame:
        """Read the header, of a frame of which there are so many bytes; ValueError if they are fewer or more."""
        encoded, block, size = (int.from_bytes(start[at : at + 4], "little") for at in (4, 8, 12))
        if stored != (needed := size if stored >= _HEADER else _HEADER):
            # The decoder does not know how long its input is: a truncated frame could decode to garbage.
            raise ValueError(f"{stored} bytes are stored where {needed} should be")
        known = start[0] == _VERSION and block > 0
        as_is = known and bool(start[2] & _STORED_AS_IS)
        return cls(encoded, block, size, -(-encoded // block) if known and not as_is else 1, as_is)


def read(fetch: Fetch, stored: int, first: int, stop: int, chunk: int) -> tuple[bytes, int]:
    """Read and decode at least some bytes of what a frame encodes.

    Parameters
    ----------
    fetch : callable
        Reads bytes of the frame.
    stored : int
        Bytes there are of the frame.
    first, stop : int
        The bytes wanted, of those encoded.
    chunk : int
        Bytes that it should encode.

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
    whole = stop - first == chunk
    start = fetch(0, stored if whole else _HEADER)
    frame = Frame.of(start, stored)
    if frame.encoded != chunk:
        raise ValueError(f"{frame.encoded} bytes are encoded where {chunk} should be")
    if whole:
        return blosc.decompress(start), 0
    if frame.as_is:
        return fetch(_HEADER + first, stop - first), first
    low, high = first // frame.block, -(-stop // frame.block)
    if high == frame.blocks and frame.encoded % frame.block:
        # Blosc takes no frame that is shorter than a block.
        low = max(0, min(low, high - 2))
    if frame.blocks == 1 or high - low == frame.blocks:
        return blosc.decompress(fetch(0, frame.size)), 0
    return blosc.decompress(_some_blocks(fetch, frame, start, low, high)), low * frame.block


def block_bytes(fetch: Fetch, stored: int) -> int:
    """How many bytes a frame encodes together: what `read` decodes is whole blocks of so many.

    Raises
    ------
    ValueError
        If the frame is truncated.
    """
    frame = Frame.of(fetch(0, _HEADER), stored)
    return frame.block if frame.blocks > 1 or frame.as_is else frame.encoded


def _some_blocks(fetch: Fetch, frame: Frame, header: bytes, low: int, high: int) -> bytes:
    """A frame of the blocks [low, high) of another."""
    count = frame.blocks
    starts = np.frombuffer(fetch(_HEADER, 4 * count), "<i4").astype(np.int64)
    if starts.min() < _HEADER + 4 * count or starts.max() >= frame.size:
        raise ValueError("the places of its blocks are damaged")
    # Blocks lie without gaps, but in the order in which threads finished them.
    limits = np.append(np.sort(starts), frame.size)
    ends = limits[np.searchsorted(limits, starts, side="right")]
    begin, end = int(starts[low:high].min()), int(ends[low:high].max())
    span = fetch(begin, end - begin)
    blocks = [span[a - begin : b - begin] for a, b in zip(starts[low:high], ends[low:high], strict=True)]
    lengths = [len(b) for b in blocks]
    places = _HEADER + 4 * len(blocks) + np.cumsum([0, *lengths[:-1]])
    encoded = min(high * frame.block, frame.encoded) - low * frame.block
    numbers = np.array([encoded, frame.block, int(places[-1]) + lengths[-1]], "<i4")
    return b"".join([header[:4], numbers.tobytes(), places.astype("<i4").tobytes(), *blocks])
