"""An image as an OME-Zarr that any browser's viewer can read, made on the fly from whatever the image is.

The image may be remote, sharded, of version 0.4 or 0.5, of many channels, in another order of axes, compressed in a way
that no browser knows, or without metadata: what is served is always one channel, z y x, version 0.5, Blosc.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numcodecs
import numpy as np

from brainmap.errors import NotFoundError
from brainmap.image.volume import Volume

__all__ = ["ServedImage"]

# Sides of the chunks that are served: not so small that a plane takes hundreds of requests, nor so large that one
# takes a second.
_LEAST_SIDE, _MOST_VOXELS = 64, 1 << 21
# What browsers hold; others are converted.
_AS_THEY_ARE = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "uint64")


@dataclass(frozen=True)
class ServedImage:
    """One channel of a volume, served.

    Parameters
    ----------
    volume : Volume
    """

    volume: Volume

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """What is served."""
        stored = self.volume.dtype
        if stored.kind == "b":
            return np.dtype(np.uint8)
        return stored if stored.name in _AS_THEY_ARE else np.dtype(np.float32)

    def chunk_shape(self, level: int) -> tuple[int, int, int]:
        """Voxels of a served chunk of a level."""
        record = self.volume.levels[level]
        sides = [min(chunk, size) for chunk, size in zip(record.chunks, record.shape, strict=True)]
        for axis, size in enumerate(record.shape):
            while sides[axis] < min(_LEAST_SIDE, size):
                sides[axis] *= 2
        while math.prod(sides) > _MOST_VOXELS:
            largest = max(range(3), key=lambda axis: sides[axis])
            sides[largest] = -(-sides[largest] // 2)
        return sides[0], sides[1], sides[2]

    def group(self) -> dict[str, Any]:
        """`zarr.json` of the image."""
        datasets = [
            {
                "path": str(number),
                "coordinateTransformations": [
                    {"type": "scale", "scale": list(level.voxel_um)},
                    {"type": "translation", "translation": list(level.origin_um)},
                ],
            }
            for number, level in enumerate(self.volume.levels)
        ]
        axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
        scales = {"name": self.volume.name, "axes": axes, "datasets": datasets}
        return {
            "zarr_format": 3,
            "node_type": "group",
            "attributes": {"ome": {"version": "0.5", "multiscales": [scales]}},
        }

    def array(self, level: int) -> dict[str, Any]:
        """`zarr.json` of a level."""
        self._check(level)
        blosc = {
            "typesize": self.dtype.itemsize,
            "cname": "lz4",
            "clevel": 5,
            "shuffle": "shuffle",
            "blocksize": 0,
        }
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(self.volume.levels[level].shape),
            "data_type": self.dtype.name,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": list(self.chunk_shape(level))},
            },
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0,
            "codecs": [
                {"name": "bytes", "configuration": {"endian": "little"}},
                {"name": "blosc", "configuration": blosc},
            ],
            "attributes": {},
            "dimension_names": ["z", "y", "x"],
        }

    def chunk(self, level: int, index: tuple[int, int, int]) -> bytes:
        """A compressed chunk.

        Raises
        ------
        NotFoundError
            If the image has none there.
        DataError
            If what is stored there is damaged.
        """
        self._check(level)
        shape, sides = self.volume.levels[level].shape, self.chunk_shape(level)
        spans = []
        for place, side, size in zip(index, sides, shape, strict=True):
            if not 0 <= place * side < size:
                raise NotFoundError(f"there is no chunk {index} of level {level}")
            spans.append(slice(place * side, min((place + 1) * side, size)))
        values = self.volume.read(spans[0], spans[1], spans[2], level=level)
        whole = np.zeros(sides, self.dtype.newbyteorder("<"))
        whole[tuple(slice(0, n) for n in values.shape)] = values
        codec = numcodecs.Blosc(cname="lz4", clevel=5, shuffle=numcodecs.Blosc.SHUFFLE)
        return bytes(codec.encode(whole))

    def file(self, path: str) -> tuple[bytes, str]:
        """A file of the image by its path: its content and media type.

        Raises
        ------
        NotFoundError
            If there is no such file.
        """
        parts = path.split("/")
        if parts == ["zarr.json"]:
            return json.dumps(self.group()).encode(), "application/json"
        if all(part.isdecimal() and len(part) < 10 for part in (parts[0], *parts[2:])):
            level = int(parts[0])
            if parts[1:] == ["zarr.json"]:
                return json.dumps(self.array(level)).encode(), "application/json"
            if parts[1:2] == ["c"] and len(parts) == 5:
                z, y, x = map(int, parts[2:])
                return self.chunk(level, (z, y, x)), "application/octet-stream"
        raise NotFoundError(f"the image has no file {path}")

    def _check(self, level: int) -> None:
        if not 0 <= level < len(self.volume.levels):
            raise NotFoundError(f"the image has no level {level}")
