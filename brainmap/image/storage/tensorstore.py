"""Read regions of local Zarr arrays by tensorstore, the extra `[fast]`.

`brainmap.image.storage.local` decodes the usual codecs in less processor time (benchmarks/reading.py).
Tensorstore takes the other arrays, which zarr-python would read: transposed or checksummed chunks for instance.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["TensorStoreChunks"]

_DRIVERS = {2: "zarr", 3: "zarr3"}


class TensorStoreChunks:
    """Regions of one local array.

    Parameters
    ----------
    folder : Path
        The array's own folder.
    zarr_format : int
        2 or 3.

    Raises
    ------
    ValueError
        If tensorstore does not know the array's codecs.
    """

    def __init__(self, folder: Path, zarr_format: int) -> None:
        import tensorstore

        # Decoded chunks are not kept: blocks are chosen so that hardly any is needed twice.
        context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 0}})
        spec = {
            "driver": _DRIVERS[zarr_format],
            "kvstore": {"driver": "file", "path": f"{folder}/"},
        }
        self._array = tensorstore.open(spec, context=context, open=True, read=True).result()

    @classmethod
    def of(cls, folder: Path, zarr_format: int) -> TensorStoreChunks | None:
        """Return a reader, or None without tensorstore and for an array that it cannot read."""
        if importlib.util.find_spec("tensorstore") is None:
            return None
        try:
            return cls(folder, zarr_format)
        except ValueError:
            return None

    def read(self, region: tuple[slice, ...]) -> NDArray[Any]:
        """Region, all axes kept. Raises whatever decoding raises."""
        return np.asarray(self._array[region].read().result())
