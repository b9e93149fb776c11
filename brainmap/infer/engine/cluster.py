"""Where blocks are computed: threads here, processes here, or workers elsewhere."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from brainmap.children import keeping_interrupts, without_interrupts
from brainmap.errors import DataError, MissingExtraError, NotFoundError, UsageError
from brainmap.machine import usable_cores

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["connect", "in_this_process", "threads_here", "visible_gpus"]

log = logging.getLogger(__name__)

_SETTINGS = {
    # Workers hold a known, small amount of memory: only one that is about to run out is stopped.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": 0.9,
    "distributed.worker.memory.terminate": 0.98,
    # Its samples of all threads' stacks can lock up a whole process for ever while threads start or end:
    # Python 3.11 collects garbage in the middle of taking them (CPython issue 106883).
    "distributed.worker.profile.enabled": False,
    "distributed.comm.timeouts.connect": "30s",
    # Each server asks fifty times a second whether its loop runs late: 2 % of a core, of those that compute.
    "distributed.admin.tick.interval": "1s",
    # Its logs of messages hold the tasks themselves: a thousand of them are kept by default, of each kind.
    "distributed.admin.low-level-log-length": 20,
    # A task whose worker died comes back at once: the engine decides what is tried again, and how.
    "distributed.scheduler.allowed-failures": 0,
}
# How long to wait for the first worker of a cluster that is not ours.
_WAIT_S = 60
_WAIT_QUEUE_S = 24 * 3600


def threads_here(streams: int) -> int:
    """Threads of this process that keep all its cores busy, each with so many streams of the network."""
    return -(-usable_cores() // streams)


def visible_gpus() -> list[str]:
    """The NVIDIA GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def in_this_process(workers: int | None, scheduler: str | None, device: str | None) -> bool:
    """Whether threads of this process do the work; see `connect`."""
    several = device == "cuda" and len(visible_gpus()) > 1
    return workers is None and scheduler is None and not several


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep distributed's own log to errors: what matters of it, the engine says in its own words."""
    logger = logging.getLogger("distributed")
    # Several of its loggers have a level of their own.
    names = [n for n in logging.root.manager.loggerDict if n.startswith("distributed")]
    levels = {n: logging.getLogger(n).level for n in names}
    before = logger.level
    try:
        logger.setLevel(logging.CRITICAL)
        for name in names:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        yield
    finally:
        logger.setLevel(before)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def connect(
    workers: int | None = None, scheduler: str | None = None, device: str | None = None, streams: int = 1
) -> Iterator[Client]:
    """Yield a client with at least one worker, and close what was started for it.

    Parameters
    ----------
    workers : int, optional
        Worker processes on this machine. By default threads of this process do the work; with several GPUs,
        one process for each. More workers than GPUs share them in turn.
    scheduler : str, optional
        Address of a running scheduler (tcp://host:8786), or `slurm:FILE` with a TOML file of
        dask-jobqueue settings. Under Python 3.11, start the workers of a running scheduler with
        DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=False: see `_SETTINGS`.
    device : str, optional
        What the workers will compute on; "cuda" with a `slurm:FILE` that asks for no GPU is refused.
    streams : int
        Cores that a thread of this process will keep busy.

    Raises
    ------
    UsageError
        If both are given, or one makes no sense; if SLURM has no nodes like those that are asked for.
    DataError
        If the scheduler does not answer or has no workers, or workers here do not start.
    MissingExtraError
        If SLURM is asked for without dask-jobqueue.
    """
    if workers is not None and scheduler is not None:
        raise UsageError("give --workers or --scheduler, not both")
    if workers is not None and workers < 1:
        raise UsageError(f"--workers is {workers}; give 1 or more")
    import dask
    import distributed  # noqa: F401, its defaults must be loaded before some are replaced

    with dask.config.set(_SETTINGS), _quiet():
        if scheduler is None:
            yield from _local(workers, device, streams)
        elif scheduler.startswith("slurm:"):
            yield from _slurm(Path(scheduler.removeprefix("slurm:")), device)
        else:
            yield from _running(scheduler)


def _local(workers: int | None, device: str | None, streams: int) -> Iterator[Client]:
    from distributed import Client, LocalCluster

    gpus = visible_gpus() if device == "cuda" else []
    if workers is None and len(gpus) > 1:
        workers = len(gpus)

    options: dict[str, Any] = {
        "dashboard_address": "127.0.0.1:0",
        "silence_logs": logging.CRITICAL,
        "host": "127.0.0.1",
    }
    if workers is None:
        options |= {"processes": False, "n_workers": 1, "memory_limit": 0}
        options |= {"threads_per_worker": threads_here(streams)}
        # One batch of blocks after another shows nothing that the progress bar does not; it costs half a second.
        options |= {"protocol": "inproc", "host": None, "scheduler_kwargs": {"dashboard": False}}
    else:
        # Without a nanny's limit a worker could only be killed by the system, silently.
        options |= {"processes": True, "n_workers": workers, "memory_limit": _share_of_memory(workers)}
        options |= {"threads_per_worker": max(1, usable_cores() // workers)}
    try:
        # Its worker processes, also those started again later, inherit from the threads started here.
        with without_interrupts():
            cluster = LocalCluster(**options)
    except RuntimeError as error:
        what = "the workers of this process" if workers is None else f"--workers {workers}: a worker process"
        raise DataError(f"{what} did not start: {error.__cause__ or error}") from error
    with cluster, Client(cluster) as client:
        if workers is not None:
            log.info("dashboard: %s", _dashboard(cluster))
        _wait(client, "the cluster on this machine", _WAIT_S, "its worker processes die as they start")
        if workers is not None and gpus:
            from brainmap.infer.engine.gpu_worker import OneGpu

            client.register_plugin(OneGpu(gpus))
        yield client


def _dashboard(cluster: Any) -> str:
    """The dashboard of a cluster on this machine, at the address it listens on."""
    port = urlsplit(cluster.dashboard_link).port
    return f"http://127.0.0.1:{port}/status"


def _share_of_memory(workers: int) -> int:
    import psutil

    return int(psutil.virtual_memory().total / workers)


def _running(address: str) -> Iterator[Client]:
    from distributed import Client

    try:
        client = Client(address, timeout="20s")
    except (OSError, TimeoutError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"--scheduler {address} does not answer: {reason}") from error
    with client:
        _wait(client, f"--scheduler {address}", _WAIT_S, "start some with: dask worker ADDRESS")
        log.info("dashboard: %s", client.dashboard_link)
        yield client


def _wait(client: Client, what: str, seconds: float, advice: str) -> None:
    try:
        client.wait_for_workers(1, timeout=seconds)
    except TimeoutError as error:
        raise DataError(f"{what} has no workers; {advice}") from error


def _slurm(path: Path, device: str | None) -> Iterator[Client]:
    if importlib.util.find_spec("dask_jobqueue") is None:
        raise MissingExtraError("dask-jobqueue", "slurm", "start workers through SLURM")
    options = read_slurm_file(path)
    jobs, gpus = options.pop("jobs"), options.pop("gpus")
    if device == "cuda" and not gpus:
        raise UsageError(f"{path} asks for no GPU, which --device cuda needs; add: gpus = 1")
    if shutil.which("sbatch") is None:
        raise DataError(
            f"--scheduler slurm:{path} needs the command sbatch; run this on a node that submits jobs"
        )
    with keeping_interrupts():
        from dask_jobqueue import SLURMCluster
        from dask_jobqueue.core import Job, JobQueueCluster
        from dask_jobqueue.slurm import SLURMJob
    from distributed import Client

    # Found here by name: a cluster that fails half made leaves threads and warnings behind.
    known = {name for c in (SLURMCluster, JobQueueCluster, SLURMJob, Job) for name in signature(c).parameters}
    if unknown := sorted(set(options) - known):
        raise UsageError(
            f"{path} has keys that dask_jobqueue.SLURMCluster does not know: {', '.join(unknown)}"
        )
    options["job_script_prologue"] = [*_worker_exports(), *options["job_script_prologue"]]
    if gpus:
        options["job_extra_directives"] = [*options["job_extra_directives"], "--gres=gpu:1"]
    try:
        cluster = SLURMCluster(**options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path} is not a valid SLURM cluster: {error}") from error
    with cluster:
        _check_satisfiable(path, cluster.job_script())
        with Client(cluster) as client:
            cluster.adapt(minimum_jobs=jobs[0], maximum_jobs=jobs[1])
            log.info("dashboard: %s", _dashboard(cluster))
            advice = "see its queue and the logs of its jobs"
            _wait(client, f"the SLURM cluster of {path}", _WAIT_QUEUE_S, advice)
            yield client


def _check_satisfiable(path: Path, script: str) -> None:
    """Ask SLURM whether it could ever run such a job: one that it cannot would wait in silence."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh", encoding="utf-8") as file:
        file.write(script)
        file.flush()
        asked = subprocess.run(
            ["sbatch", "--test-only", file.name], capture_output=True, text=True, check=False
        )
    if asked.returncode:
        lines = [line.strip() for line in asked.stderr.splitlines() if line.strip()]
        reason = lines[-1] if lines else f"exit code {asked.returncode}"
        raise UsageError(f"SLURM cannot run the jobs that {path} asks for: {reason}")


def _worker_exports() -> list[str]:
    """Shell lines that give workers started by a script the settings of workers started here."""
    return [
        f"export DASK_{name.upper().replace('.', '__').replace('-', '_')}={value}"
        for name, value in _SETTINGS.items()
        if not name.startswith("distributed.scheduler.")
    ]


def read_slurm_file(path: Path) -> dict[str, Any]:
    """Settings of dask_jobqueue.SLURMCluster, `jobs = [min, max]` and `gpus` (0 or 1 per job), from a TOML file."""
    if not path.is_file():
        raise NotFoundError(f"--scheduler slurm:{path}: there is no such file")
    try:
        options = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    jobs = options.setdefault("jobs", [1, 1])
    if not (isinstance(jobs, list) and len(jobs) == 2 and 0 <= jobs[0] <= jobs[1] and jobs[1] > 0):
        raise UsageError(f"{path}: jobs is {jobs!r}; give [minimum, maximum]")
    for name in ("cores", "memory"):
        if name not in options:
            raise UsageError(f"{path} lacks {name!r}, which SLURM needs for each job")
    if options.setdefault("gpus", 0) not in (0, 1):
        raise UsageError(
            f"{path}: gpus is {options['gpus']!r}; a job is one worker on one GPU: give gpus = 1 and more jobs"
        )
    options.setdefault("processes", 1)
    for name in ("job_script_prologue", "job_extra_directives"):
        if not isinstance(options.setdefault(name, []), list):
            raise UsageError(f"{path}: {name} is not a list of lines")
    return options
