"""A brain of any size that nobody stored, and a detector that costs nothing: what is left is the engine.

`install()` registers the file system `virtual://` with fsspec: a bare Zarr array whose chunks are made when they
are read, opened by `Volume.open` like any other. And it puts in place of the detector one that reads a single chunk per
block and returns made-up cells, the same ones every time. Workers of a cluster take this file as their `--preload`.
"""

from __future__ import annotations

import functools
import json
import math
from typing import Any

import fsspec
import numpy as np
from fsspec.spec import AbstractFileSystem
from numpy.typing import NDArray

from brainmap.image.intensity import Intensity
from brainmap.image.volume import Volume
from brainmap.infer.block import process
from brainmap.infer.block.process import COLUMNS, Job, Stages
from brainmap.infer.plan.blocks import Block

__all__ = ["VOXEL_UM", "dask_setup", "install", "open_virtual", "virtual_intensity"]

VOXEL_UM = (1.0, 1.0, 1.0)
CHUNK = (32, 64, 64)


class VirtualFiles(AbstractFileSystem):
    """`virtual://Z-Y-X-CELLS-READ`: a Zarr 3 array of Z x Y x X voxels, uint16, its chunks made when they are read."""

    protocol = "virtual"

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": len(self.cat_file(path)), "type": "file"}

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        name, _, key = self._strip_protocol(path).partition("/")
        if key == "zarr.json":
            return _metadata(name)[start:end]
        if not key.startswith("c/"):
            raise FileNotFoundError(path)
        return _chunk(sum(map(int, key.split("/")[1:])) % 8)[start:end]


@functools.cache
def _metadata(name: str) -> bytes:
    document = {
        "zarr_format": 3, "node_type": "array", "shape": _parse(name)[0], "data_type": "uint16", "fill_value": 0,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": CHUNK}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}], "attributes": {},
    }  # fmt: skip
    return json.dumps(document).encode()


@functools.cache
def _chunk(seed: int) -> bytes:
    return np.random.default_rng(seed).integers(380, 420, math.prod(CHUNK), np.uint16).tobytes()


def _parse(name: str) -> tuple[tuple[int, int, int], int, bool]:
    """Shape and cells per block of a virtual brain, and whether the null detector reads."""
    z, y, x, cells, read = map(int, name.rsplit("/", 1)[-1].split("-"))
    return (z, y, x), cells, bool(read)


def open_virtual(shape: tuple[int, int, int], cells: int, read: bool) -> Volume:
    """A virtual brain of some shape, voxels, with some cells in every block, of which a chunk is read or nothing."""
    return Volume.open(f"virtual://{'-'.join(map(str, (*shape, cells, int(read))))}", voxel_um=VOXEL_UM)


def virtual_intensity(shape: tuple[int, int, int], bin_vox: float = 64.0) -> Intensity:
    """An intensity model of even tissue everywhere."""
    bins = tuple(math.ceil(n / bin_vox) for n in shape)
    tissue = np.ones(bins, bool)
    return Intensity(np.full(bins, 400, np.float32), tissue, (bin_vox,) * 3, shape, 20.0, 400.0, 100.0, False)


def null_block(job: Job, block: Block) -> tuple[dict[str, NDArray[Any]], Stages]:
    """In place of `process_block`: reads one chunk, finds the same made-up cells every time."""
    grid, stages = job.blocks.grid, Stages()
    box = [grid.voxel_span(span, axis) for axis, span in enumerate((block.k, block.y, block.x))]
    corner = [slice(start // c * c, min(start // c * c + c, n)) for (start, _), c, n in
              zip(box, CHUNK, grid.shape, strict=True)]  # fmt: skip
    _, cells, read = _parse(job.volume.url)
    if read:
        with stages.time("read"):
            stages.raw_voxels = job.volume.read(*corner).size
    with stages.time("peaks"):
        places = _places(cells, block.index % 16)
        columns: dict[str, NDArray[Any]] = {
            axis: start + places[i] * (stop - 1 - start)
            for i, (axis, (start, stop)) in enumerate(zip("zyx", box, strict=True))
        }
        for name, kind in COLUMNS.items():
            if name not in columns:
                columns[name] = np.full(len(places[0]), 0.75, kind)
    return columns, stages


@functools.lru_cache(maxsize=64)
def _places(count: int, seed: int) -> NDArray[np.float64]:
    """Places in the unit cube, shape (3, count), rising along z."""
    places = np.random.default_rng(seed).random((3, count))
    return places[:, np.argsort(places[0])]


def install() -> None:
    """Put the virtual file system and the null detector in place, in this process."""
    fsspec.register_implementation("virtual", VirtualFiles, clobber=True)
    process.process_block = null_block


def dask_setup(_: Any) -> None:
    """What a dask worker calls that was started with this file as its `--preload`."""
    install()
