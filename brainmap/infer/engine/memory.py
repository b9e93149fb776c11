"""How a worker's process holds memory."""

from __future__ import annotations

import ctypes
import functools
import sys

__all__ = ["keep_freed_memory"]

# Parameters of glibc's mallopt, and the largest block that its heap may serve (larger ones are mapped one by one).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_ON_HEAP = 32 << 20
_KEPT_BYTES = 128 << 20


@functools.cache
def keep_freed_memory() -> None:
    """Let the C library keep up to 128 MiB of what numpy frees, for the next slice.

    Every slice of a block takes and frees the same few megabytes; given back to the system each time, they
    come again page by page. dask's nannies ask for exactly that (MALLOC_TRIM_THRESHOLD_=65536), which
    costs their workers a tenth of the time. Nothing happens where the C library is not glibc.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_ON_HEAP)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
