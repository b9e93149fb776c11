"""Several hosts: a scheduler and two workers with network addresses of their own, one of them cut off mid-run.

Hosts are network namespaces on one bridge; the disk is shared, as it is on a cluster.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pytest

from brainmap.image.intensity import Intensity
from brainmap.image.volume import Volume
from brainmap.infer.engine.results import finished
from brainmap.points.table import Points
from brainmap.run_folder import RunRecord

Brain = tuple[Volume, Intensity, np.ndarray]

HOSTS = {"scheduler": "10.77.3.1", "worker1": "10.77.3.2", "worker2": "10.77.3.3"}
SWITCH = "switch"
# A connection that is cut says nothing: how long until it is taken for dead.
ENVIRONMENT = {
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "12s",
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "20s",
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    "OMP_NUM_THREADS": "1",
}


class Network:
    """Hosts on a bridge, each a network namespace; named after this process, so that tests can run side by side."""

    def __init__(self) -> None:
        self.stack = ExitStack()

    def space(self, host: str) -> str:
        return f"brainmap{os.getpid()}-{host}"

    def make(self) -> None:
        """Skips the test where the system does not permit it."""
        self._ip("netns", "add", self.space(SWITCH))
        self.stack.callback(self._ip, "netns", "del", self.space(SWITCH))
        self._ip("-n", self.space(SWITCH), "link", "add", "bridge", "type", "bridge")
        self._ip("-n", self.space(SWITCH), "link", "set", "bridge", "up")
        for host, address in HOSTS.items():
            there = self.space(host)
            self._ip("netns", "add", there)
            self.stack.callback(self._ip, "netns", "del", there)
            # Each end is made in its namespace: the machine's own network never sees them.
            cable = ("type", "veth", "peer", "name", host, "netns", self.space(SWITCH))
            self._ip("-n", there, "link", "add", "eth0", *cable)
            self._ip("-n", self.space(SWITCH), "link", "set", host, "master", "bridge", "up")
            self._ip("-n", there, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                self._ip("-n", there, "link", "set", device, "up")

    def cut(self, host: str) -> None:
        """Pull the cable of a host."""
        self._ip("-n", self.space(SWITCH), "link", "set", host, "down")

    def start(self, host: str, log: Path, *command: str) -> subprocess.Popen[bytes]:
        """Start a Python process on a host; it is ended with the network."""
        with log.open("wb") as file:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.space(host), sys.executable, *command],
                stdout=file, stderr=file, env=os.environ | ENVIRONMENT, start_new_session=True,
            )  # fmt: skip
        self.stack.callback(self._end, process)
        return process

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """End a process and what it started; dask's workers are children of their nannies."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _ip(self, *words: str) -> None:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no network namespaces here: ip {' '.join(words)}: {done.stderr.strip()}")


@pytest.fixture
def network() -> Iterator[Network]:
    if shutil.which("ip") is None:
        pytest.skip("no network namespaces here: the command ip is missing")
    network = Network()
    with network.stack:
        network.make()
        yield network


def wait_for(condition: Callable[[], bool], seconds: float = 600) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_run_survives_a_host_that_is_cut_off(
    brain: Brain, tmp_path: Path, network: Network, repository: Path
) -> None:
    detect = [
        str(repository / "cli.py"),
        "detect",
        brain[0].url,
        "--no-atlas",
        "--block",
        "4,32,48",
        "-q",
        "--out",
    ]
    alone = tmp_path / "alone"
    subprocess.run([sys.executable, *detect, str(alone)], check=True, env=os.environ | ENVIRONMENT)

    address = f"tcp://{HOSTS['scheduler']}:8786"
    log = tmp_path / "scheduler.log"
    network.start(
        "scheduler", log, "-m", "distributed.cli.dask_scheduler",
        "--host", HOSTS["scheduler"], "--port", "8786", "--no-dashboard",
    )  # fmt: skip
    workers = [
        network.start(
            worker, tmp_path / f"{worker}.log", "-m", "distributed.cli.dask_worker", address,
            "--host", HOSTS[worker], "--nthreads", "1", "--no-dashboard", "--local-directory", str(tmp_path / worker),
        )
        for worker in ("worker1", "worker2")
    ]  # fmt: skip
    wait_for(
        lambda: log.read_text().count("Register worker") == 2 or any(w.poll() is not None for w in workers)
    )
    assert [w.poll() for w in workers] == [None, None], (tmp_path / "worker1.log").read_text()

    run = tmp_path / "run"
    command = network.start("scheduler", tmp_path / "detect.log", *detect, str(run), "--scheduler", address)
    wait_for(lambda: len(finished(run)) >= 2 or command.poll() is not None)
    assert command.poll() is None, (tmp_path / "detect.log").read_text()
    network.cut("worker2")
    before = {path for _, path in finished(run)}
    assert command.wait(600) == 0, (tmp_path / "detect.log").read_text()

    lost = log.read_text().split("Remove worker", 1)
    assert len(lost) == 2 and HOSTS["worker2"] in lost[1].splitlines()[0]
    assert len(finished(run)) > len(before)
    assert RunRecord.load(run).status == "complete"
    one, many = (Points.read(folder / "points.parquet") for folder in (alone, run))
    assert len(one) == len(many) > 10
    for name in one.columns:
        np.testing.assert_allclose(many[name], one[name], atol=1e-3, rtol=1e-3, err_msg=name)
