"""Ctrl-C, kill -9 and too little memory: one sentence, no traceback, no process left, and a way to go on."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from brainmap.gt.simulate import Simulation, simulate
from brainmap.image.volume import write_volume

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs groups of processes")

# A command whose blocks take a while.
SLOW = """
import sys, time
from brainmap.infer.block import process
work, mark = process.process_block, sys.argv[1]
def slow(*given):
    open(mark, "a").write("x")
    time.sleep(0.5)
    {fault}
    return work(*given)
process.process_block = slow
sys.argv[:] = ["brainmap", *sys.argv[2:]]
from brainmap.cli.start import main
main()
"""


@pytest.fixture(scope="module")
def brain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("brain") / "brain.ome.zarr"
    image = np.random.default_rng(0).normal(300, 10, (32, 192, 192)).astype(np.uint16)
    write_volume(path, image, (5.0, 2.0, 2.0), chunks=(8, 96, 96))
    return path


def marked(token: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("BRAINMAP_TEST") == token and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


@contextmanager
def started(repository: Path, arguments: list[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A command in a group of its own, as a terminal makes it, and the mark of all its processes."""
    token = f"{os.getpid()}-{time.monotonic_ns()}"
    environment = os.environ | {"BRAINMAP_TEST": token, "PYTHONPATH": str(repository)}
    process = subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        yield process, token
    finally:
        for left in marked(token):
            left.kill()
        process.communicate()


def wait_for(what: Callable[[], object], process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.05)


def nobody_left(token: str, seconds: float = 20) -> list[str]:
    end = time.monotonic() + seconds
    while (left := marked(token)) and time.monotonic() < end:
        time.sleep(0.2)
    return [" ".join(process.cmdline()[:6]) for process in left]


def detect(brain: Path, out: Path, mark: Path, *more: str, fault: str = "") -> list[str]:
    return [
        sys.executable, "-c", SLOW.format(fault=fault), str(mark), "detect", str(brain), "--no-atlas", "--block",
        "8,96,96", "-q", "--out", str(out), *more,
    ]  # fmt: skip


@pytest.mark.parametrize("times", [1, 5])
@pytest.mark.parametrize("workers", [(), pytest.param(("--workers", "2"), marks=pytest.mark.slow)])
def test_ctrl_c_ends_in_a_sentence(
    brain: Path, tmp_path: Path, repository: Path, times: int, workers: tuple[str, ...]
) -> None:
    mark, out = tmp_path / "mark", tmp_path / "run"
    arguments = detect(brain, out, mark, *workers)
    if workers:
        # Workers import the modules anew: there the blocks are quick, and what counts is that they are at work.
        ready = lambda: list(out.glob("blocks/0*.parquet"))  # noqa: E731
    else:
        ready = mark.is_file
    with started(repository, arguments) as (process, token):
        wait_for(ready, process)
        for _ in range(times):
            # To all processes, as a terminal does it.
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.1)
        said = process.communicate(timeout=120)[1]
        assert nobody_left(token) == []
    if process.returncode == 0:
        pytest.skip("the command was done before it was interrupted")
    assert process.returncode == 130
    lines = [line for line in said.splitlines() if line.strip()]
    assert len(lines) == 1, said
    assert lines[0].startswith("brainmap: interrupted: finished blocks and the registration are kept")
    assert "the same command goes on" in lines[0]


def test_too_little_memory_ends_in_a_sentence(brain: Path, tmp_path: Path, repository: Path) -> None:
    arguments = detect(brain, tmp_path / "run", tmp_path / "mark", fault="raise MemoryError")
    with started(repository, arguments) as (process, _):
        said = process.communicate(timeout=180)[1]
    assert process.returncode == 3
    assert "Traceback" not in said
    last = said.splitlines()[-1]
    assert "out of memory: use fewer --workers or a smaller --block" in last
    assert "the same command tries them again" in last


def test_detect_killed_leaves_no_worker(brain: Path, tmp_path: Path, repository: Path) -> None:
    arguments = detect(brain, tmp_path / "run", tmp_path / "mark", "--workers", "2")
    with started(repository, arguments) as (process, token):
        wait_for(lambda: len(marked(token)) >= 3, process)
        process.kill()
        process.wait()
        assert nobody_left(token) == []


def test_gt_aggregate_killed_leaves_no_worker(tmp_path: Path, repository: Path) -> None:
    crowd = simulate(
        Simulation(n_images=24, size=200, n_cells=25, n_sites=12, n_workers=12, spammers=1, strays=2), 3
    )
    clicks = crowd[0] if isinstance(crowd, tuple) else getattr(crowd, "clicks", crowd)
    with (tmp_path / "clicks.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image_id", "worker_id", "x", "y", "height", "width"])
        for i, w, (x, y) in zip(clicks.image, clicks.worker, clicks.xy, strict=True):
            writer.writerow([clicks.image_ids[i], clicks.worker_ids[w], x, y, 200, 200])
    arguments = [sys.executable, str(repository / "cli.py"), "gt", "aggregate", str(tmp_path / "clicks.csv")]
    arguments += ["--workers", "2", "--out", str(tmp_path / "gt")]
    with started(repository, arguments) as (process, token):
        wait_for(lambda: len(marked(token)) >= 3, process)
        process.kill()
        process.wait()
        assert nobody_left(token) == []
