"""How much faster two workers are than one, each a process with one thread.

    python benchmarks/scaling.py [--gvox 0.2] [--workers 1 2] [--repeats 3] [--free] [--out FILE.json]

Detection on the same simulated tissue with different numbers of workers in turn, several times in one call; each
worker has loaded the network before the clock starts. A worker reads and prepares slices while its network is at
work, so one alone would use a part of a second core: every worker is bound to a core of its own, unless `--free` is
given (elsewhere than on Linux it must be). Where other programs use the machine, wall times say little:
processor seconds per gigavoxel stand beside them. Workers that hinder each other need more of them.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
from throughput import VOXEL, slabs

from brainmap.image.intensity import Intensity
from brainmap.image.volume import Volume, write_volume
from brainmap.infer.detector import Detector
from brainmap.infer.engine.engine import RunOptions, run_detection

SIDE = 1024
# One thread each, also inside the libraries.
SETTINGS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def processor_seconds() -> float:
    """Processor time of the worker processes that live now."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def bind(core: int) -> None:
    """Let all threads of this process, and those that they start, run on one core."""
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), {core})


def measure(
    volume: Volume, intensity: Intensity, workers: int, scratch: Path, free: bool
) -> dict[str, float]:
    """A run with so many workers of one thread: voxels, wall and processor seconds."""
    from distributed import Client, LocalCluster

    detector, size = Detector.open(), volume.shape
    with LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster:
        if not free:
            with Client(cluster) as client:
                cores = sorted(os.sched_getaffinity(0))
                for core, worker in zip(cores, client.scheduler_info(n_workers=-1)["workers"], strict=False):
                    client.run(bind, core, workers=[worker])
        options = RunOptions(scheduler=cluster.scheduler_address, block=(32, 512, 512), progress=False)
        first = ((0, min(32, size[0])), (0, size[1]), (0, size[2]))
        run_detection(
            volume, intensity, detector, scratch / "warm", replace(options, roi=first, overwrite=True)
        )
        before = processor_seconds()
        result = run_detection(volume, intensity, detector, scratch / "run", replace(options, overwrite=True))
        used = processor_seconds() - before
    return {"workers": workers, "seconds": result.seconds, "voxels": result.voxels, "cpu_s": used}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gvox", type=float, default=0.2)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--free", action="store_true", help="do not bind workers to cores")
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    options = parser.parse_args()
    os.environ.update(SETTINGS)
    found: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        depth = max(32, round(options.gvox * 1e9 / SIDE**2))
        brain = Path(scratch) / "brain.ome.zarr"
        volume = write_volume(brain, slabs(depth, SIDE), VOXEL, shape=(depth, SIDE, SIDE), dtype=np.uint16)
        intensity = Intensity.fit(volume)
        for _ in range(options.repeats):
            for workers in options.workers:
                row = measure(volume, intensity, workers, Path(scratch), options.free)
                found.append(row)
                rate, cost = row["voxels"] / row["seconds"] / 1e6, row["cpu_s"] / row["voxels"] * 1e9
                print(
                    f"{workers} workers {row['seconds']:8.2f} s {rate:8.2f} Mvoxel/s {cost:8.1f} processor s/Gvoxel"
                )
    one = [row["seconds"] for row in found if row["workers"] == options.workers[0]]
    for workers in options.workers[1:]:
        many = [row["seconds"] for row in found if row["workers"] == workers]
        ratios = ", ".join(f"{a / b:.2f}" for a, b in zip(one, many, strict=True))
        print(f"{options.workers[0]} -> {workers} workers: {ratios} times as fast")
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
