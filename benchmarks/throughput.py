"""End-to-end speed of `brainmap detect --no-atlas`, process start included.

    python benchmarks/throughput.py [--gvox 1.0] [--workers N] [--keep DIR]

Writes a volume of simulated tissue (a tile repeated with fresh noise, 5 x 1 x 1 um, sharded OME-Zarr with a
pyramid), runs the command as a process of its own, and prints voxels per second, peak memory and where the
time went; beside it the bare network on the same tile, alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from brainmap.infer.detector import Detector, load_backend
from brainmap.train.tissue import simulate, variant
from brainmap.volume import write_volume

VOXEL = (5.0, 1.0, 1.0)


def slabs(depth: int, side: int) -> Iterator[np.ndarray]:
    """Tissue of any size from one simulated tile: repeated, turned, with noise of its own everywhere."""
    tile = simulate(variant("sparse", shape=(32, 512, 512), voxel_um=VOXEL), 71_000).image
    rng = np.random.default_rng(0)
    repeat = -(-side // 512)
    noise = rng.integers(-12, 13, (1 << 24) + side * side, dtype=np.int32)
    for z in range(depth):
        section = tile[z % 32] if (z // 32) % 2 == 0 else tile[31 - z % 32]
        plane = np.tile(np.rot90(section, z // 32), (repeat, repeat))[:side, :side].astype(np.int32)
        start = int(rng.integers(1 << 24))
        plane += noise[start : start + side * side].reshape(side, side)
        yield np.clip(plane, 0, 65535).astype(np.uint16)[None]


def bare_network(seconds: float = 6.0) -> float:
    """Voxels of 5 x 1 x 1 um per second through the network alone, on all cores."""
    from concurrent.futures import ThreadPoolExecutor

    from brainmap.infer.cluster import cores

    detector, threads = Detector.open(), cores()
    backend = load_backend(detector, tile=(512, 512), threads=threads)
    batch = np.random.default_rng(0).normal(0, 0.05, (1, detector.spec.channels, 512, 512)).astype(np.float32)
    backend.infer(batch)
    end, start = time.perf_counter() + seconds, time.perf_counter()

    def work(_: int) -> int:
        count = 0
        while time.perf_counter() < end:
            backend.infer(batch)
            count += 1
        return count

    with ThreadPoolExecutor(threads) as pool:
        tiles = sum(pool.map(work, range(threads)))
    pixels = tiles * 512 * 512 / (time.perf_counter() - start)
    return pixels * detector.spec.pixel_um**2 / (VOXEL[1] * VOXEL[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gvox", type=float, default=1.0)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--keep", type=Path, help="folder for the volume; it is used again if it is there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        side = 2048
        depth = max(32, round(options.gvox * 1e9 / side**2))
        brain = folder / f"speed-{depth}.ome.zarr"
        if not brain.exists():
            write_volume(brain, slabs(depth, side), VOXEL, shape=(depth, side, side), dtype=np.uint16)
        run = Path(scratch) / "run"
        command = [
            sys.executable,
            "-m",
            "brainmap",
            "detect",
            str(brain),
            "--no-atlas",
            "--out",
            str(run),
            "-q",
        ]
        command += ["--workers", str(options.workers)] if options.workers else []
        start = time.perf_counter()
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - start
        record = json.loads((run / "run.json").read_text())
        voxels = depth * side * side
        print(f"volume             {voxels / 1e9:.2f} Gvoxel of 5 x 1 x 1 um")
        print(
            f"end to end         {seconds:.1f} s, {voxels / seconds / 1e6:.1f} Mvoxel/s, process start included"
        )
        print(f"bare network       {bare_network() / 1e6:.1f} Mvoxel/s without halo or input")
        print(f"peak memory        {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20:.2f} GiB")
        print(f"cells              {record['results']['cells']}")
        for stage, value in record["timings_s"].items():
            print(f"  {stage:<20} {value:8.1f} s")


if __name__ == "__main__":
    main()
