"""The engine: a volume in, the cells of every block on disk. All blocks, one batch, one block.

Blocks are numbers; workers open the volume themselves and write their cells themselves, so the
scheduler holds a bounded window of small records whatever the size of the brain.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brainmap.errors import BrainmapError, DataError, UsageError
from brainmap.image.intensity import Intensity
from brainmap.image.volume import Volume
from brainmap.infer.block import process
from brainmap.infer.block.process import Job
from brainmap.infer.detector import Detector, choose_backend
from brainmap.infer.engine import results
from brainmap.infer.engine.batch import peak_memory, process_name
from brainmap.infer.engine.choose import choose_block
from brainmap.infer.engine.chunks import drop_stale
from brainmap.infer.engine.cluster import connect, in_this_process, threads_here
from brainmap.infer.engine.dispatch import Dispatcher
from brainmap.infer.engine.progress import Progress
from brainmap.infer.engine.tally import EMPTY, LEFT, Tally
from brainmap.infer.plan.blocks import Grid, Roi, block_in_net, partition
from brainmap.infer.plan.layout import make_layout
from brainmap.machine import usable_cores
from brainmap.run_folder import BLOCKS_DIR, INTENSITY_FILE

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["DetectionResult", "RunOptions", "make_job", "preload", "run_detection"]

log = logging.getLogger(__name__)

# A run without any worker for so long is given up.
_PATIENCE_S = 180.0


@dataclass(frozen=True)
class RunOptions:
    """What a user can choose about a run.

    Parameters
    ----------
    threshold : float, optional
        Lowest calibrated score; by default the detector's.
    cell_diameter_um : float, optional
        By default the detector's.
    roi : tuple of (start, stop), optional
        Voxel ranges along z, y, x.
    block : tuple of int, optional
        Block in voxels; chosen from storage, tile and memory by default.
    backend, device, precision
        As for `load_backend`. The environment's BRAINMAP_PRECISION is the default of `precision`.
    workers, scheduler
        As for `connect`.
    overwrite : bool
        Forget blocks of an earlier run in the folder.
    progress : bool, optional
        Show a progress bar; by default where stderr is a terminal.
    """

    threshold: float | None = None
    cell_diameter_um: float | None = None
    roi: Roi | None = None
    block: tuple[int, int, int] | None = None
    backend: str = "auto"
    device: str | None = None
    precision: str = field(default_factory=lambda: os.environ.get("BRAINMAP_PRECISION", "auto"))
    workers: int | None = None
    scheduler: str | None = None
    overwrite: bool = False
    progress: bool | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UsageError(f"--threshold is {self.threshold}; give a score between 0 and 1")
        if self.workers is not None and self.scheduler is not None:
            raise UsageError("give --workers or --scheduler, not both")


@dataclass(frozen=True)
class DetectionResult:
    """How a run went; the cells are read with `iter_results`.

    Attributes
    ----------
    status : str
        "complete", or "incomplete" where blocks failed.
    cells : int
        Cells at or above the threshold, blocks of earlier runs of the same command included.
    blocks, empty, resumed : int
        All blocks; those without tissue; those that were finished before.
    failed : dict
        Block -> reason.
    voxels : int
        Voxels of the blocks with tissue that were processed now.
    seconds : float
        Wall time of the processing, without registration and the like.
    timings_s : dict
        Seconds per stage, summed over threads.
    read_voxels, net_pixels : int
        Voxels read and pixels through the network, borders of blocks counted each time.
    peak_memory_bytes : int
        Of this process and its workers together.
    """

    status: str
    cells: int
    blocks: int
    empty: int
    resumed: int
    failed: dict[int, str]
    voxels: int
    seconds: float
    timings_s: dict[str, float]
    read_voxels: int
    net_pixels: int
    peak_memory_bytes: int


def preload(volume: Volume, detector: Detector, run_dir: str | Path, options: RunOptions) -> None:
    """Load the network that `run_detection` will need with the same arguments; for a thread beside other work.

    Raises
    ------
    BrainmapError
        As `run_detection` would.
    """
    job = make_job(volume, detector, Path(run_dir).absolute(), options)
    if in_this_process(options.workers, options.scheduler, job.device):
        process.backend_of(_with_threads(job, threads_here(job.streams)))


def run_detection(
    volume: Volume,
    intensity: Intensity,
    detector: Detector,
    run_dir: str | Path,
    options: RunOptions | None = None,
    meanwhile: Callable[[], None] | None = None,
) -> DetectionResult:
    """Detect the cells of a volume, block by block.

    Parameters
    ----------
    volume : Volume
        The image.
    intensity : Intensity
        Its intensity model.
    detector : Detector
        The detector.
    run_dir : Path
        The run folder; blocks of the same command that are there already are kept.
    options : RunOptions, optional
        What the user chose.
    meanwhile : callable, optional
        Called once, when the first blocks are at work and this thread would only wait.

    Raises
    ------
    UsageError
        If an option is wrong, or the folder holds a run with other parameters.
    DataError
        If results cannot be written, or the cluster cannot be used.
    KeyboardInterrupt
        When interrupted; finished blocks are kept.
    """
    options = options or RunOptions()
    run_dir = Path(run_dir).absolute()
    job = make_job(volume, detector, run_dir, options)
    try:
        if options.overwrite:
            results.clear(run_dir)
        results.open_plan(run_dir, _plan(job, volume, detector))
        drop_stale(job)
        intensity.save(Path(job.intensity))
    except OSError as error:
        if isinstance(error, BrainmapError):
            raise
        raise DataError(f"cannot write to {run_dir}: {error.strerror or error}") from error
    tally = Tally.of(job, intensity)
    started = time.perf_counter()
    status = "running"
    if not tally.states.count(LEFT) and tally.is_saved_as_complete():
        return _result(tally, "complete", 0.0)
    try:
        tally.save(status)
        if tally.states.count(LEFT):
            _run_blocks(job, tally, options, meanwhile)
        status = "incomplete" if tally.failed else "complete"
    finally:
        # An interrupted run stays "running" or, seen by a person, resumable.
        tally.save("incomplete" if status == "incomplete" else "running")
    return _result(tally, status, time.perf_counter() - started)


def _result(tally: Tally, status: str, seconds: float) -> DetectionResult:
    here = {process_name(): peak_memory()}
    return DetectionResult(
        status=status,
        cells=tally.cells,
        blocks=len(tally.states.values),
        empty=tally.states.count(EMPTY),
        resumed=tally.resumed,
        failed=dict(sorted(tally.failed.items())),
        voxels=tally.voxels,
        seconds=seconds,
        timings_s={k: round(v, 3) for k, v in tally.seconds.items()},
        read_voxels=tally.read_voxels,
        net_pixels=tally.net_pixels,
        peak_memory_bytes=sum((tally.peaks | here).values()),
    )


def make_job(volume: Volume, detector: Detector, run_dir: Path, options: RunOptions) -> Job:
    """The record that workers get: grid, blocks and tiles of a run."""
    spec = detector.spec.scaled(options.cell_diameter_um)
    backend, device = choose_backend(options.backend, options.device)
    grid = Grid.of(volume.shape, volume.voxel_um, spec)
    here = in_this_process(options.workers, options.scheduler, device)
    # Fewer and larger blocks at a time: borders are computed twice, and every block holds slices of its own.
    streams = 2 if here and backend == "openvino" and usable_cores() > 1 else 1
    # A run goes on with the blocks it has, also with other workers or on another machine.
    planned = None if options.overwrite else results.planned_block(run_dir)
    if options.block is not None:
        size = block_in_net(grid, options.block)
    elif planned is not None:
        size = planned
    else:
        size = choose_block(volume, grid, spec, options.roi, threads_here(streams), device, streams)
    blocks = partition(grid, size, options.roi)
    return Job(
        volume=volume,
        intensity=str(run_dir / BLOCKS_DIR / INTENSITY_FILE),
        # Tasks carry the record; the training history would be dead weight.
        detector=dataclasses.replace(detector, spec=dataclasses.replace(detector.spec, training={})),
        spec=dataclasses.replace(spec, training={}),
        blocks=blocks,
        layout=make_layout(spec, blocks),
        threshold=spec.threshold if options.threshold is None else options.threshold,
        roi=options.roi,
        run_dir=str(run_dir),
        backend=backend,
        device=device,
        precision=options.precision,
        streams=streams,
    )


def _with_threads(job: Job, threads: int) -> Job:
    """The job of workers with so many threads each."""
    return dataclasses.replace(job, threads=threads * job.streams)


def _plan(job: Job, volume: Volume, detector: Detector) -> dict[str, Any]:
    """What decides every block's result, and what `iter_results` must know."""
    return {
        "volume": volume.fingerprint(),
        "voxel_um": volume.voxel_um,
        "detector": detector.fingerprint,
        "cell_diameter_um": job.spec.cell_diameter_um,
        "threshold": job.threshold,
        "candidate_score": job.candidate_score,
        "roi": job.roi,
        "backend": job.backend,
        "device": job.device,
        "precision": job.precision,
        "group": job.blocks.grid.group,
        "block_size": job.blocks.size,
        "block_first": job.blocks.first,
        "block_count": job.blocks.count,
        "tile": job.layout.tile,
    }


def _run_blocks(job: Job, tally: Tally, options: RunOptions, meanwhile: Callable[[], None] | None) -> None:
    """All blocks that are left, on a cluster."""
    # Takes a quarter of a second, while another thread may still be loading the network.
    import distributed  # noqa: F401

    total = tally.voxels_left()
    if in_this_process(options.workers, options.scheduler, job.device):
        # Loaded here for the threads of this process: what is missing shows before a cluster is started.
        process.backend_of(_with_threads(job, threads_here(job.streams)))
    with (
        connect(options.workers, options.scheduler, job.device, job.streams) as client,
        Progress(total, options.progress) as bar,
    ):
        job = _with_threads(job, max(client.nthreads().values()))
        process.cancelled.discard(job.run_dir)
        dispatcher = Dispatcher(client, job, tally, bar)
        # A queue of a cluster may well have nobody at work for hours.
        queued = (options.scheduler or "").startswith("slurm:")
        try:
            with nullcontext() if queued else _no_one_left(client, dispatcher.futures):
                dispatcher.run(meanwhile)
        except BaseException:
            # Threads of this process cannot be killed: they stop at their next slice.
            process.cancelled.add(job.run_dir)
            raise


@contextmanager
def _no_one_left(client: Client, futures: dict[str, Future]) -> Iterator[None]:
    """Give a run up, by cancelling its tasks, when there has been no worker for some minutes.

    Otherwise tasks would wait for ever, for a nanny that failed to restart its worker for instance.
    """
    over = threading.Event()

    def watch() -> None:
        alone = 0
        while not over.wait(_PATIENCE_S / 10):
            alone = 0 if client.nthreads() else alone + 1
            if alone >= 10:
                client.cancel(list(futures.values()), force=True)
                return

    thread = threading.Thread(target=watch, name="brainmap-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
