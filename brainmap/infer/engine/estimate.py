"""What a run would cost, before it is started: the numbers behind --dry-run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brainmap.image.intensity import Intensity
from brainmap.image.volume import Volume
from brainmap.infer.block.process import Job
from brainmap.infer.detector import Detector, load_backend
from brainmap.infer.engine.batch import peak_memory
from brainmap.infer.engine.choose import BlockCost, block_cost
from brainmap.infer.engine.engine import RunOptions, make_job
from brainmap.infer.plan.tissue import has_tissue
from brainmap.machine import usable_cores

__all__ = ["Estimate", "estimate"]

# The share of tissue is judged by at most this many blocks, evenly spaced.
_SAMPLES = 2000
_DECODE_BYTES_PER_S = 1e9
_PIXEL_S = 25e-9


@dataclass(frozen=True)
class Estimate:
    """What a run would need.

    Attributes
    ----------
    blocks, blocks_with_tissue : int
        Blocks, and how many of them would be read.
    tissue_share : float
        Share of the volume (or region) that is tissue.
    block_vox : tuple of int
        Voxels that an inner block owns.
    tile : tuple of int
        Network input.
    bytes_to_read : int
        Bytes to decode, uncompressed, borders of blocks counted each time.
    read_amplification : float
        Bytes to read over bytes owned.
    memory_bytes : int
        Peak memory of all workers.
    seconds : float
        Wall time of detection.
    megapixels_per_second : float
        Measured speed of the network on one thread.
    backend, device, precision : str
        What would compute.
    threads : int
        Threads that would compute on this machine.
    """

    blocks: int
    blocks_with_tissue: int
    tissue_share: float
    block_vox: tuple[int, int, int]
    tile: tuple[int, int]
    bytes_to_read: int
    read_amplification: float
    memory_bytes: int
    seconds: float
    megapixels_per_second: float
    backend: str
    device: str
    precision: str
    threads: int


def estimate(
    volume: Volume, intensity: Intensity, detector: Detector, options: RunOptions | None = None
) -> Estimate:
    """Estimate a run on this machine; the network's speed is measured on one tile.

    Parameters
    ----------
    volume, intensity, detector, options
        As for `run_detection`.
    """
    options = options or RunOptions()
    job = make_job(volume, detector, Path("."), options)
    processes = options.workers or 1
    threads = processes * max(1, usable_cores() // processes)
    pixel_s, backend = _measure(job, detector)
    count = len(job.blocks)
    with_tissue = round(count * _share_of_blocks(job, intensity))
    cost = block_cost(volume, job.blocks, job.layout, streams=job.streams)
    busy = min(threads, max(count, 1) * job.streams)
    seconds = with_tissue * _block_seconds(cost, pixel_s, volume.dtype.itemsize) / busy
    block_vox = _owned_voxels(job)
    roi = options.roi or tuple((0, n) for n in volume.shape)
    itemsize = volume.dtype.itemsize
    return Estimate(
        blocks=count,
        blocks_with_tissue=with_tissue,
        tissue_share=intensity.tissue_fraction(*(slice(*r) for r in roi)),
        block_vox=block_vox,
        tile=job.layout.tile,
        bytes_to_read=with_tissue * cost.decoded_voxels * itemsize,
        read_amplification=cost.decoded_voxels / float(np.prod(block_vox)),
        memory_bytes=-(-threads // job.streams) * cost.peak_bytes + processes * peak_memory(),
        seconds=seconds,
        megapixels_per_second=1e-6 / pixel_s,
        backend=backend[0],
        device=backend[1],
        precision=backend[2],
        threads=threads,
    )


def _measure(job: Job, detector: Detector) -> tuple[float, tuple[str, str, str]]:
    """Seconds per network pixel on one thread, and what computed it."""
    tile = job.layout.tile
    backend = load_backend(detector, job.backend, job.device, tile, 1, job.precision)
    batch = np.zeros((1, job.spec.channels, *tile), np.float32)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        backend.infer(batch)
        times.append(time.perf_counter() - started)
    return min(times) / (tile[0] * tile[1]), (backend.name, backend.device, backend.precision)


def _block_seconds(cost: BlockCost, pixel_s: float, itemsize: int) -> float:
    read = cost.decoded_voxels * itemsize / _DECODE_BYTES_PER_S
    return read + cost.net_pixels * (pixel_s + _PIXEL_S)


def _share_of_blocks(job: Job, intensity: Intensity) -> float:
    count = len(job.blocks)
    chosen = np.unique(np.linspace(0, count - 1, min(count, _SAMPLES)).astype(int))
    found = [has_tissue(intensity, job.blocks.grid, job.blocks[int(i)]) for i in chosen]
    return float(np.mean(found))


def _owned_voxels(job: Job) -> tuple[int, int, int]:
    grid = job.blocks.grid
    z, y, x = (grid.voxel_span((0, n), axis)[1] for axis, n in enumerate(job.blocks.size))
    return z, y, x
