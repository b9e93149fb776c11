"""Reading speed of a local volume, sharded and unsharded, by each reader.

    python benchmarks/reading.py [--mvox 256] [--threads N] [--json FILE]

Writes simulated grey values (smooth tissue with camera noise) as OME-Zarr 0.5 with the settings of `brainmap
convert`, and reads whole chunks in slabs: by the direct reader and by zarr-python. Files are in the system's cache, so
that decoding is what is measured. Both must return the same values.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from scipy import ndimage

from brainmap.image.storage.local import LocalChunks
from brainmap.image.volume import write_volume
from brainmap.machine import usable_cores

SIDE, CHUNK, SHARD = 1024, (64, 128, 128), (64, 512, 512)
Read = Callable[[tuple[slice, ...]], np.ndarray]


def grey_values(depth: int) -> np.ndarray:
    """Tissue-like values, uint16."""
    rng = np.random.default_rng(0)
    smooth = ndimage.zoom(rng.normal(300, 40, (4, 16, 16)), (depth / 4, SIDE / 16, SIDE / 16), order=1)
    noise = rng.integers(-30, 31, smooth.shape)
    return np.clip(smooth + noise, 0, 65535).astype(np.uint16)


def readers_of(array_folder: Path) -> dict[str, Read]:
    """What can read an array, by name."""
    array = zarr.open_array(array_folder, mode="r")
    found: dict[str, Read] = {}
    document = json.loads((array_folder / "zarr.json").read_text())
    if (direct := LocalChunks.of(document, array_folder, lambda key: key)) is not None:
        found["direct"] = direct.read
    found["zarr-python"] = lambda box: np.asarray(array[box])
    return found


def measure(read: Read, depth: int, threads: int) -> tuple[float, float]:
    """MB per second of wall time and of CPU time, best of three."""
    rows = range(0, SIDE, 2 * CHUNK[1])
    boxes = [
        (slice(z, min(z + CHUNK[0], depth)), slice(y, y + 2 * CHUNK[1]), slice(0, SIDE))
        for z in range(0, depth, CHUNK[0])
        for y in rows
    ]
    best, least_cpu = np.inf, np.inf
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(3):
            start, cpu = time.perf_counter(), time.process_time()
            total = sum(pool.map(lambda box: read(box).nbytes, boxes))
            best = min(best, time.perf_counter() - start)
            least_cpu = min(least_cpu, time.process_time() - cpu)
    return total / best / 1e6, total / least_cpu / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mvox", type=float, default=256)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    options = parser.parse_args()
    depth = max(CHUNK[0], round(options.mvox * 1e6 / SIDE**2 / CHUNK[0]) * CHUNK[0])
    values = grey_values(depth)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, shards in (("unsharded", None), ("sharded", SHARD)):
            path = Path(scratch) / f"{name}.ome.zarr"
            write_volume(path, values, (5.0, 1.0, 1.0), chunks=CHUNK, shards=shards, levels=1)
            stored = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            for reader, read in readers_of(path / "0").items():
                if not np.array_equal(read((slice(0, depth), slice(0, 64), slice(0, SIDE))), values[:, :64]):
                    raise SystemExit(f"{reader} returns other values than were written")
                wall, cpu = measure(read, depth, options.threads)
                rows.append(
                    {
                        "storage": name,
                        "reader": reader,
                        "mb_per_s": wall,
                        "mb_per_cpu_s": cpu,
                        "compression": values.nbytes / stored,
                    }
                )
    print(f"{values.nbytes / 1e6:.0f} MB, {options.threads} threads\n")
    print("| storage | reader | MB/s | MB per CPU second |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['storage']} | {row['reader']} | {row['mb_per_s']:.0f} | {row['mb_per_cpu_s']:.0f} |")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
