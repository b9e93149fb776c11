"""Cells as a neuroglancer "precomputed" annotation layer with a multi-level spatial index.

The format is the one of neuroglancer's `src/datasource/precomputed/annotations.md`: every level of
the spatial index holds a random subset of the cells on a grid, so that a viewer loads few cells when
it looks at the whole brain and all of them when it looks closely. The index by id is sharded
(`sharding.md`, uint64 keys): about 65,000 cells a file instead of one file a cell.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brainmap.files import write_json

__all__ = ["write_annotations"]

# Cells shown at once per grid cell of a level.
LIMIT = 5000
# Ids are consecutive: 2^9 of them share a minishard, 2^7 minishards a shard file.
PRESHIFT_BITS, MINISHARD_BITS = 9, 7
PER_SHARD = 1 << (PRESHIFT_BITS + MINISHARD_BITS)


def write_annotations(
    folder: Path, zyx_um: npt.NDArray[np.float32], properties: dict[str, npt.NDArray], limit: int = LIMIT
) -> None:
    """Write points as a neuroglancer annotation layer.

    Holds about 50 bytes a point in memory.

    Parameters
    ----------
    folder : Path
        Folder to create.
    zyx_um : array, shape (N, 3)
        Micrometres, order z, y, x. Neuroglancer puts the centre of an OME-Zarr voxel where its
        transformations put it, so these are `index * scale + translation` as everywhere.
    properties : dict of str to array, shape (N,)
        Of 32-bit types: float32, uint32 or int32.
    limit : int
        Most points per grid cell and level.
    """
    folder.mkdir(parents=True)
    records = _records(zyx_um, properties)
    xyz = np.ascontiguousarray(zyx_um[:, ::-1], dtype=np.float32)
    lower = np.floor(xyz.min(axis=0)).astype(np.float64) if len(xyz) else np.zeros(3)
    # The upper bound is exclusive, and no side may be empty.
    upper = np.floor(xyz.max(axis=0)).astype(np.float64) + 1 if len(xyz) else np.ones(3)
    spatial = _write_spatial(folder, records, xyz, lower, upper, limit)
    sharding = _write_by_id(folder / "by_id", records)
    write_json(
        folder / "info",
        {
            "@type": "neuroglancer_annotations_v1",
            "dimensions": {axis: [1e-6, "m"] for axis in "xyz"},
            "lower_bound": lower,
            "upper_bound": upper,
            "annotation_type": "POINT",
            "properties": [{"id": name, "type": array.dtype.name} for name, array in properties.items()],
            "relationships": [],
            "by_id": {"key": "by_id", "sharding": sharding},
            "spatial": spatial,
        },
    )


def _records(zyx_um: npt.NDArray, properties: dict[str, npt.NDArray]) -> npt.NDArray:
    """One fixed-size record per point, as every index stores it."""
    types = [("x", "<f4"), ("y", "<f4"), ("z", "<f4")]
    types += [(f"p_{name}", array.dtype.newbyteorder("<").str) for name, array in properties.items()]
    records = np.empty(len(zyx_um), dtype=types)
    for axis, name in enumerate("zyx"):
        records[name] = zyx_um[:, axis]
    for name, array in properties.items():
        if array.dtype.name not in ("float32", "uint32", "int32"):
            raise ValueError(f"property {name} must have a 32-bit type, not {array.dtype}")
        records[f"p_{name}"] = array
    return records


def _write_spatial(
    folder: Path,
    records: npt.NDArray,
    xyz: npt.NDArray[np.float32],
    lower: npt.NDArray[np.float64],
    upper: npt.NDArray[np.float64],
    limit: int,
) -> list[dict[str, Any]]:
    """Write the levels from coarse to fine; return their entries of `info`."""
    # A fixed seed: equal points give equal files.
    remaining = np.random.default_rng(0).permutation(len(xyz))
    grid = np.ones(3, dtype=np.int64)
    levels: list[dict[str, Any]] = []
    while len(remaining) or not levels:
        chunk = (upper - lower) / grid
        key = f"spatial{len(levels)}"
        levels.append({"key": key, "grid_shape": grid.copy(), "chunk_size": chunk, "limit": limit})
        (folder / key).mkdir()
        index = np.clip(((xyz[remaining] - lower) / chunk).astype(np.int64), 0, grid - 1)
        flat = np.ravel_multi_index(tuple(index.T), tuple(grid))
        # Stable, so that the order within a cell stays random.
        order = np.argsort(flat, kind="stable")
        cells, starts, counts = np.unique(flat[order], return_index=True, return_counts=True)
        share = min(1.0, limit / counts.max()) if len(counts) else 1.0
        # The same share of every cell, as the format asks for, and at least one point: the loop ends.
        take = np.minimum(np.ceil(counts * share).astype(np.int64), limit)
        for cell, start, n in zip(cells, starts, take, strict=True):
            chosen = remaining[order[start : start + n]]
            name = "_".join(str(i) for i in np.unravel_index(cell, tuple(grid)))
            _write_cell(folder / key / name, records[chosen], chosen)
        rank = np.arange(len(order)) - np.repeat(starts, counts)
        remaining = remaining[order[rank >= np.repeat(take, counts)]]
        # Halve the longer sides only: cells become cubes.
        grid = np.where(chunk > chunk.max() / math.sqrt(2), grid * 2, grid)
    return levels


def _write_cell(path: Path, records: npt.NDArray, ids: npt.NDArray) -> None:
    with path.open("wb") as file:
        file.write(np.uint64(len(records)).astype("<u8").tobytes())
        file.write(records.tobytes())
        file.write(ids.astype("<u8").tobytes())


def _write_by_id(folder: Path, records: npt.NDArray) -> dict[str, Any]:
    """Write the sharded index by id (the row number); return its sharding specification."""
    folder.mkdir()
    n_shards = max(1, math.ceil(len(records) / PER_SHARD))
    shard_bits = (n_shards - 1).bit_length()
    digits = max(1, math.ceil(shard_bits / 4))
    for shard in range(n_shards):
        part = records[shard * PER_SHARD : (shard + 1) * PER_SHARD]
        (folder / f"{shard:0{digits}x}.shard").write_bytes(_shard(part, shard * PER_SHARD))
    return {
        "@type": "neuroglancer_uint64_sharded_v1",
        "preshift_bits": PRESHIFT_BITS,
        "hash": "identity",
        "minishard_bits": MINISHARD_BITS,
        "shard_bits": shard_bits,
        "minishard_index_encoding": "raw",
        "data_encoding": "raw",
    }


def _shard(records: npt.NDArray, first_id: int) -> bytes:
    """A shard file: the shard index, the data of all minishards, then the minishard indices."""
    size, per_minishard = records.itemsize, 1 << PRESHIFT_BITS
    data = records.tobytes()
    index = np.zeros((1 << MINISHARD_BITS, 2), dtype="<u8")
    minishards = []
    offset = len(data)
    for number, start in enumerate(range(0, len(records), per_minishard)):
        n = min(per_minishard, len(records) - start)
        # Rows: ids and offsets as differences to the one before, then sizes. Offsets count from the
        # end of the shard index, and from the end of the entry before.
        table = np.zeros((3, n), dtype="<u8")
        table[0] = 1
        table[0, 0] = first_id + start
        table[1, 0] = start * size
        table[2] = size
        minishards.append(table.tobytes())
        index[number] = offset, offset + table.nbytes
        offset += table.nbytes
    # Empty minishards have start == end.
    index[len(minishards) :] = offset
    return b"".join([index.tobytes(), data, *minishards])
