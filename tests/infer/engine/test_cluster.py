"""Starting clusters, and refusing what cannot work."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from brainmap.errors import DataError, MissingExtraError, NotFoundError, UsageError
from brainmap.infer.engine.cluster import (
    _worker_exports,
    connect,
    in_this_process,
    read_slurm_file,
    visible_gpus,
)
from brainmap.infer.engine.progress import Progress
from brainmap.machine import usable_cores

if TYPE_CHECKING:
    from distributed import Worker


def test_default_is_threads_of_this_process() -> None:
    import distributed  # noqa: F401, sets its own level when it is imported

    level = logging.getLogger("distributed").level
    with connect() as client:
        assert list(client.nthreads().values()) == [usable_cores()]
        assert client.submit(sum, [1, 2], pure=False).result() == 3
        assert client.cluster.scheduler.address.startswith("inproc://")
    assert logging.getLogger("distributed").level == level


def _samples_stacks(dask_worker: Worker) -> bool:
    return "profile" in dask_worker.periodic_callbacks


@pytest.mark.parametrize("workers", [None, 1])
def test_no_worker_samples_stacks(workers: int | None) -> None:
    # In Python 3.11 that can lock up a process for ever, most easily while its first tasks start threads.
    with connect(workers) as client:
        assert list(client.run(_samples_stacks).values()) == [False]


def test_a_worker_started_by_a_script_gets_the_settings() -> None:
    import dask

    lines = dict(line.removeprefix("export ").split("=") for line in _worker_exports())
    found = dask.config.collect(paths=[], env=lines)
    assert found["distributed"]["worker"]["profile"] == {"enabled": False}
    assert found["distributed"]["worker"]["memory"]["terminate"] == 0.98


def test_a_running_scheduler_is_used() -> None:
    from distributed import LocalCluster

    with (
        LocalCluster(
            n_workers=1, processes=False, protocol="tcp", host="127.0.0.1", dashboard_address=None
        ) as cluster,
        connect(scheduler=cluster.scheduler_address) as client,
    ):
        assert client.submit(sum, [2, 2], pure=False).result() == 4


def _gpu_of_worker() -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")


@pytest.mark.parametrize(("workers", "wanted"), [(None, ["3", "5"]), (3, ["3", "3", "5"])])
def test_each_worker_process_sees_one_gpu(
    workers: int | None, wanted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert not in_this_process(workers, None, "cuda")
    with connect(workers, device="cuda") as client:
        client.wait_for_workers(len(wanted))
        assert sorted(client.run(_gpu_of_worker).values()) == wanted
        client.restart()
        assert sorted(client.run(_gpu_of_worker).values()) == wanted


@pytest.mark.parametrize(
    ("visible", "gpus"), [("1", ["1"]), ("", []), ("-1", []), ("GPU-a, GPU-b", ["GPU-a", "GPU-b"])]
)
def test_one_gpu_or_none_needs_no_process_of_its_own(
    visible: str, gpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_gpus() == gpus
    assert in_this_process(None, None, "cuda") == (len(gpus) < 2)
    assert in_this_process(None, None, "cpu")
    assert not in_this_process(None, "tcp://host:8786", "cpu")


def test_impossible_clusters_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for options, error, words in (
        ({"workers": 0}, UsageError, "--workers"),
        ({"workers": 1, "scheduler": "tcp://x:1"}, UsageError, "not both"),
        ({"scheduler": "nonsense://x"}, DataError, "does not answer"),
    ):
        with pytest.raises(error, match=words), connect(**options):  # type: ignore[arg-type]
            pass
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="dask-jobqueue"), connect(scheduler="slurm:x.toml"):
        pass


def test_a_worker_that_dies_as_it_starts_is_one_sentence() -> None:
    import dask
    import distributed  # noqa: F401, its defaults must be loaded before one is replaced

    with (
        dask.config.set({"distributed.worker.preload": ["raise ImportError('libneeded.so is missing')"]}),
        pytest.raises(
            DataError, match=r"--workers 1: a worker process did not start: libneeded\.so is missing"
        ),
        connect(workers=1),
    ):
        pass


def test_slurm_settings_are_read(tmp_path: Path) -> None:
    path = tmp_path / "slurm.toml"
    path.write_text('cores = 8\nmemory = "32GB"\nqueue = "gpu"\njobs = [0, 4]\n')
    assert read_slurm_file(path) == {
        "cores": 8,
        "memory": "32GB",
        "queue": "gpu",
        "jobs": [0, 4],
        "processes": 1,
        "gpus": 0,
        "job_script_prologue": [],
        "job_extra_directives": [],
    }
    for text, words in (
        ("cores = 8", "memory"),
        ("cores =", "TOML"),
        ('cores=1\nmemory="1GB"\njobs=[3,1]', "jobs"),
        ('cores=1\nmemory="1GB"\njob_script_prologue="module load x"', "prologue"),
        ('cores=1\nmemory="1GB"\ngpus=4', "gpus is 4"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=words):
            read_slurm_file(path)
    with pytest.raises(NotFoundError, match="no such file"):
        read_slurm_file(tmp_path / "none.toml")


def test_the_example_in_the_guide_is_valid(tmp_path: Path, repository: Path) -> None:
    guide = (repository / "docs" / "clusters.md").read_text(encoding="utf-8")
    path = tmp_path / "slurm.toml"
    path.write_text(guide.split("```toml\n")[1].split("```")[0], encoding="utf-8")
    options = read_slurm_file(path)
    assert (options["gpus"], options["jobs"]) == (1, [1, 16])


SBATCH = """#!/bin/sh
# A node with one GPU: jobs run at once, here. The script is gone when this returns: SLURM, too, keeps a copy.
[ "$1" = --test-only ] || {{
  cp "$1" {log}.sh
  sh {log}.sh > {log} 2>&1 & echo $! >> {started}
  echo "Submitted batch job $!"
  exit
}}
grep -q -e "-p moon" "$2" || exit 0
echo "allocation failure: Requested node configuration is not available" >&2
exit 1
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file of settings, beside the commands of a SLURM that has this machine as its only node."""
    # Not imported here: it takes Ctrl-C for itself, from all tests that follow.
    if importlib.util.find_spec("dask_jobqueue") is None:
        pytest.skip("workers through SLURM need the extra slurm")
    started = tmp_path / "started"
    commands = {
        "sbatch": SBATCH.format(log=tmp_path / "job.log", started=started),
        # Numbers of processes are used again: only one that is still the job is ended.
        "scancel": f'#!/bin/sh\ngrep -q {tmp_path} "/proc/$1/cmdline" && kill "$1"\ntrue\n',
    }
    for name, script in commands.items():
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    path = tmp_path / "slurm.toml"
    path.write_text('cores = 1\nmemory = "1GB"\ngpus = 1\njobs = [1, 1]\n')
    yield path
    for number in started.read_text().split() if started.exists() else ():
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(int(number))
            if str(tmp_path) in " ".join(process.cmdline()):
                process.kill()


def test_jobs_of_slurm_work(slurm: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with connect(scheduler=f"slurm:{slurm}", device="cuda") as client:
        assert client.submit(sum, [1, 3], pure=False).result() == 4
        assert "#SBATCH --gres=gpu:1" in client.cluster.job_script()
        assert "export DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=False" in client.cluster.job_script()
        assert signal.getsignal(signal.SIGINT) is before, "Ctrl-C ends a run in a sentence here, too"


def test_jobs_that_slurm_cannot_run_are_refused_at_once(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(words: str, error: type[Exception] = UsageError) -> None:
        with pytest.raises(error, match=words), connect(scheduler=f"slurm:{slurm}", device="cuda"):
            pass

    slurm.write_text('cores = 1\nmemory = "1GB"\ngpus = 1\nqueue = "moon"\n')
    refused("SLURM cannot run the jobs that .* asks for: .*not available")
    slurm.write_text('cores = 1\nmemory = "1GB"\n')
    refused("asks for no GPU")
    slurm.write_text('cores = 1\nmemory = "1GB"\ngpus = 1\nwalltme = "1:00:00"\n')
    refused("walltme")
    monkeypatch.setenv("PATH", "")
    refused("needs the command sbatch", DataError)


def test_progress_bar_shows_rate_and_cells(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(10_000_000, shown=True) as bar:
        bar.update(5_000_000, 1234, 1, 2.0)
        bar.within(3, 1_000_000)
        assert bar._task is not None and bar._task.done == 6_000_000
        bar.within(3, 0)
        bar.update(5_500_000, 1234, 1, 2.0)
        assert bar._task.done == 6_000_000, "never back"
        bar.within(4, 1e9)
        assert bar._task.done == 10_000_000
        assert "2.8 Mvox/s, 1,234 cells, 1 blocks failed" in bar._task.words()
    assert capsys.readouterr().out == ""
    with Progress(10, shown=False) as bar:
        bar.update(5, 1, 0, 2.0)
    assert capsys.readouterr().err == ""
