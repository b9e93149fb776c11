"""Starting clusters, and refusing what cannot work."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from brainmap.errors import DataError, MissingExtraError, NotFoundError, UsageError
from brainmap.infer.cluster import _worker_exports, connect, cores, read_slurm_file
from brainmap.infer.progress import Progress

if TYPE_CHECKING:
    from distributed import Worker


def test_default_is_threads_of_this_process() -> None:
    import distributed  # noqa: F401, sets its own level when it is imported

    level = logging.getLogger("distributed").level
    with connect() as client:
        assert list(client.nthreads().values()) == [cores()]
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
        "job_script_prologue": [],
    }
    for text, words in (
        ("cores = 8", "memory"),
        ("cores =", "TOML"),
        ('cores=1\nmemory="1GB"\njobs=[3,1]', "jobs"),
        ('cores=1\nmemory="1GB"\njob_script_prologue="module load x"', "prologue"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=words):
            read_slurm_file(path)
    with pytest.raises(NotFoundError, match="no such file"):
        read_slurm_file(tmp_path / "none.toml")


def test_progress_bar_shows_rate_and_cells(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(10_000_000, shown=True) as bar:
        bar.update(5_000_000, 1234, 1, 2.0)
    assert capsys.readouterr().out == ""
    with Progress(10, shown=False) as bar:
        bar.update(5, 1, 0, 2.0)
    assert capsys.readouterr().err == ""
