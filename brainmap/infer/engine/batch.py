"""One batch: what a task on a worker does. It writes the cells and returns numbers."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brainmap.errors import BrainmapError, DataError
from brainmap.infer.block import process
from brainmap.infer.block.process import Job
from brainmap.infer.engine import chunks, results
from brainmap.infer.peaks import reaches
from brainmap.machine import keep_freed_memory

__all__ = ["BatchReport", "process_batch"]

log = logging.getLogger(__name__)

# Between two reports of how far a batch is.
_TELL_EVERY_S = 1.0


@dataclass(frozen=True)
class BatchReport:
    """What comes back from a worker.

    Attributes
    ----------
    done : tuple of int
        Blocks whose cells are on disk.
    failed : dict
        Block -> reason.
    cells, read_voxels, net_pixels : int
        Sums over the done blocks: cells at or above the threshold; voxels of whole storage chunks, each time they
        are decoded.
    seconds : dict
        Seconds per stage.
    process, peak_bytes
        Name of the worker's process and its largest memory so far.
    """

    done: tuple[int, ...]
    failed: dict[int, str]
    cells: int
    read_voxels: int
    net_pixels: int
    seconds: dict[str, float]
    process: str
    peak_bytes: int


def process_batch(job: Job, indices: tuple[int, ...], topic: str = "") -> BatchReport:
    """Process neighbouring blocks and write their cells, and tell the listeners of `topic` meanwhile how far it is.

    A block that fails is reported and the others are kept. What all blocks would meet is raised: no
    backend, no room on the disk.
    """
    keep_freed_memory()
    process.backend_of(job)
    process.intensity_of(job)
    seconds: dict[str, float] = defaultdict(float)
    failed: dict[int, str] = {}
    done: dict[int, dict[str, Any]] = {}
    read_voxels = net_pixels = 0
    # Before the first of them is read: what changes meanwhile is noticed by the next command.
    stamps = {index: chunks.stamps_of(job, index) for index in indices}
    tell = _teller(topic, indices)
    for place, index in enumerate(indices):

        def told(share: float, place: int = place) -> None:
            tell((place + share) / len(indices))

        try:
            done[index], stages = process.process_block(job, job.blocks[index], told)
        except process.BlockCancelledError:
            raise
        except Exception as error:
            log.debug("block %d failed", index, exc_info=True)
            failed[index] = _reason(error)
            continue
        read_voxels += stages.raw_voxels
        net_pixels += stages.net_pixels
        for stage, value in stages.seconds.items():
            seconds[stage] += value
    started = time.perf_counter()
    cells = _write(job, done, stamps)
    seconds["write"] += time.perf_counter() - started
    return BatchReport(
        tuple(done), failed, cells, read_voxels, net_pixels, dict(seconds), process_name(), peak_memory()
    )


def _teller(topic: str, indices: tuple[int, ...]) -> Callable[[float], None]:
    """What tells the listeners of `topic` which share of a batch is done, now and then; nothing without a topic."""
    told = time.monotonic()

    def tell(share: float) -> None:
        nonlocal told
        if topic and time.monotonic() - told > _TELL_EVERY_S:
            from distributed import get_worker

            told = time.monotonic()
            get_worker().log_event(topic, {"batch": indices, "share": share})

    return tell


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "out of memory: use fewer --workers or a smaller --block"
    return str(error) if isinstance(error, BrainmapError) else f"{type(error).__name__}: {error}"


def _write(job: Job, done: dict[int, dict[str, Any]], stamps: dict[int, chunks.Stamps | None]) -> int:
    cells = 0
    for span in results.ranges(sorted(done)):
        parts = [done[i] for i in range(*span)]
        columns = {name: np.concatenate([p[name] for p in parts]) for name in process.COLUMNS}
        columns[results.BLOCK_COLUMN] = np.repeat(np.arange(*span), [len(p["z"]) for p in parts])
        reaching = int(np.count_nonzero(reaches(columns["score"], job.threshold)))
        try:
            note = chunks.note_of(job, range(*span), stamps)
            results.write_batch(Path(job.run_dir), span, columns, reaching, note)
        except OSError as error:
            raise DataError(f"cannot write results to {job.run_dir}: {error.strerror or error}") from error
        cells += reaching
    return cells


def process_name() -> str:
    """Host and number of this process."""
    import platform

    return f"{platform.node()}:{os.getpid()}"


def peak_memory() -> int:
    """Largest resident memory of this process so far, bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Linux: `getrusage` would also count what the process that started this one held.
        found = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(psutil.Process().memory_info().rss)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
