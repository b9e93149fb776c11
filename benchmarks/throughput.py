"""End-to-end speed of `brainmap detect --no-atlas`, process start included, beside the bare network.

    python benchmarks/throughput.py [--gvox 1.6] [--repeats 1] [--workers N] [--device cpu|cuda] [--keep DIR]
        [--json FILE]

Writes a volume of simulated tissue that fills it to every face (a tile of the kind "sparse", 3000 cells a cubic
millimetre, repeated with fresh noise; 5 x 1 x 1 um, OME-Zarr with a pyramid), runs the command on it as a process
of its own, and prints voxels per second, CPU time, peak memory, read amplification and where the time went. In
the same call the bare network runs before and after, without halo, reading or anything else: on as many threads as
there are cores, or on images that lie on the GPU.

On a machine that others share take several repeats: bare network and command run in turn, and each command is
compared with the bare network right before and after it. The median of the shares and its range are printed.
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
from typing import Any

import numpy as np

from brainmap.image.volume import write_volume
from brainmap.infer.detector import Detector, load_backend
from brainmap.machine import usable_cores
from brainmap.train.tissue.tissue import simulate, variant

VOXEL = (5.0, 1.0, 1.0)
SIDE, TILE = 2048, 512


def slabs(depth: int, side: int) -> Iterator[np.ndarray]:
    """Tissue of any size from one simulated tile: repeated, turned, with noise of its own everywhere."""
    tile = simulate(variant("sparse", shape=(32, TILE, TILE), voxel_um=VOXEL), 71_000).image
    rng = np.random.default_rng(0)
    repeat = -(-side // TILE)
    noise = rng.integers(-12, 13, (1 << 24) + side * side, dtype=np.int32)
    for z in range(depth):
        section = tile[z % 32] if (z // 32) % 2 == 0 else tile[31 - z % 32]
        plane = np.tile(np.rot90(section, z // 32), (repeat, repeat))[:side, :side].astype(np.int32)
        start = int(rng.integers(1 << 24))
        plane += noise[start : start + side * side].reshape(side, side)
        yield np.clip(plane, 0, 65535).astype(np.uint16)[None]


def bare_network(device: str | None, seconds: float = 6.0) -> tuple[float, float]:
    """Voxels of 5 x 1 x 1 um through the network alone: per second on the whole device, and per CPU second."""
    from concurrent.futures import ThreadPoolExecutor

    detector, threads = Detector.open(), usable_cores()
    backend = load_backend(detector, device=device, tile=(TILE, TILE), threads=threads)
    if backend.device == "cuda":
        return bare_on_gpu(backend, detector, seconds)
    batch = np.random.default_rng(0).normal(0, 0.05, (1, detector.spec.channels, TILE, TILE))
    batch = batch.astype(np.float32)
    backend.infer(batch)
    start, cpu = time.perf_counter(), time.process_time()
    end = start + seconds

    def work(_: int) -> int:
        count = 0
        while time.perf_counter() < end:
            backend.infer(batch)
            count += 1
        return count

    with ThreadPoolExecutor(threads) as pool:
        tiles = sum(pool.map(work, range(threads)))
    voxels = tiles * TILE**2 * detector.spec.pixel_um**2 / (VOXEL[1] * VOXEL[2])
    return voxels / (time.perf_counter() - start), voxels / (time.process_time() - cpu)


def bare_on_gpu(backend: Any, detector: Detector, seconds: float) -> tuple[float, float]:
    """As `bare_network`, from and to the GPU's memory, one stream, many images at a time."""
    import torch

    from brainmap.infer.block.on_device import compute_stream

    with compute_stream(backend.device), torch.inference_mode():
        images = torch.randn(16, detector.spec.channels, TILE, TILE, device=backend.device) / 20
        for _ in range(3):
            backend.heat(images)
        torch.cuda.synchronize()
        start, cpu, batches = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - start < seconds:
            for _ in range(10):
                backend.heat(images)
            torch.cuda.synchronize()
            batches += 10
    voxels = batches * images.shape[0] * TILE**2 * detector.spec.pixel_um**2 / (VOXEL[1] * VOXEL[2])
    return voxels / (time.perf_counter() - start), voxels / (time.process_time() - cpu)


def end_to_end(brain: Path, run: Path, workers: int | None, device: str | None) -> dict[str, Any]:
    """One run of the command."""
    command = [sys.executable, "-m", "brainmap", "detect", str(brain), "--no-atlas", "--out", str(run), "-q"]
    command += ["--workers", str(workers)] if workers else []
    command += ["--device", device] if device else []
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    record = json.loads((run / "run.json").read_text())
    return {
        "seconds": seconds,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_memory_gib": record["results"]["peak_memory_bytes"] / 2**30,
        "cells": record["results"]["cells"],
        "read_amplification": record["results"]["read_voxels"] / record["results"]["voxels"],
        "stages_s": record["timings_s"],
    }


def volume_in(folder: Path, gvox: float) -> tuple[Path, int]:
    """The volume to run on, made if it is not there, and its voxels."""
    depth = max(32, round(gvox * 1e9 / SIDE**2))
    brain = folder / f"speed-{depth}.ome.zarr"
    if not brain.exists():
        write_volume(brain, slabs(depth, SIDE), VOXEL, shape=(depth, SIDE, SIDE), dtype=np.uint16)
    return brain, depth * SIDE**2


def measure(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Both in turn on one volume, a record for each repeat."""
    brain, voxels = volume_in(folder, options.gvox)
    rows = []
    before = bare_network(options.device)
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as scratch:
            result = end_to_end(brain, Path(scratch) / "run", options.workers, options.device)
        after = bare_network(options.device)
        # The time that a voxel takes, half by each.
        bare, bare_cpu = (2 / (1 / a + 1 / b) for a, b in zip(before, after, strict=True))
        before, speed = after, voxels / result["seconds"]
        rows.append({
            "gvox": voxels / 1e9,
            "mvox_per_s": speed / 1e6,
            "bare_mvox_per_s": bare / 1e6,
            "share_of_bare": speed / bare,
            "share_of_bare_by_cpu_time": voxels / result["cpu_seconds"] / bare_cpu,
            **result,
        })  # fmt: skip
    return rows


def show(row: dict[str, Any]) -> None:
    print(f"{row['gvox']:.2f} Gvoxel of 5 x 1 x 1 um, {row['cells']} cells")
    print(f"  end to end      {row['seconds']:.1f} s, {row['mvox_per_s']:.1f} Mvoxel/s, start included")
    print(f"  bare network    {row['bare_mvox_per_s']:.1f} Mvoxel/s")
    print(f"  share of bare   {row['share_of_bare']:.0%}, by CPU time {row['share_of_bare_by_cpu_time']:.0%}")
    print(f"  CPU time        {row['cpu_seconds']:.1f} s, peak memory {row['peak_memory_gib']:.2f} GiB")
    print(f"  decoded         {row['read_amplification']:.2f} voxels for each of the volume's")
    for stage, value in row["stages_s"].items():
        print(f"    {stage:<20} {value:8.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gvox", type=float, default=1.6)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--device", help="cpu or cuda; by default what `brainmap detect` would take")
    parser.add_argument(
        "--keep", type=Path, help="folder for the volumes; they are used again if they are there"
    )
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure(options, options.keep or Path(scratch))
    for row in rows:
        show(row)
    for name in ("mvox_per_s", "bare_mvox_per_s", "share_of_bare", "share_of_bare_by_cpu_time"):
        values = [row[name] for row in rows]
        print(f"{name}: median {np.median(values):.3g}, {min(values):.3g} to {max(values):.3g}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
