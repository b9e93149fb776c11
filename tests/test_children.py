"""A process that brainmap starts ends with the one that waits for it, and not before."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from brainmap.registration import ants_process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the system's signal is Linux's")

CHILD = "import sys, time; from brainmap.children import end_with_starter; end_with_starter({pid}); "
#: Holds the interpreter, as a library may, so that no thread of the child can look for its parent.
DEAF = "import ctypes; ctypes.PyDLL(None).usleep(20_000_000)"
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1].replace("PID", str(__import__("os").getpid()))])
print(child.pid, flush=True)
child.wait()
"""


class Silent:
    """Takes what the process says and counts nothing."""

    def read(self, line: str) -> bool:
        return False


def run(seconds: float) -> tuple[int, list[str]]:
    said: deque[str] = deque()
    code = CHILD.format(pid=os.getpid()) + f"time.sleep({seconds}); print('whole')"
    status = ants_process._run([sys.executable, "-c", code], dict(os.environ), Silent(), said)  # type: ignore[arg-type]
    return status, [line.strip() for line in said]


def test_a_registration_started_from_a_thread_ends_well() -> None:
    """Also when other threads, and that of an earlier one, end meanwhile."""
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(run, 0.0)
        long = pool.submit(run, 1.5)
        assert first.result() == (0, ["whole"])
        for _ in range(3):
            other = threading.Thread(target=time.sleep, args=(0.05,))
            other.start()
            other.join()
        assert long.result() == (0, ["whole"])


def test_the_thread_that_starts_it_stays_until_it_has_ended() -> None:
    """On Linux the process would be killed at the end of that thread."""
    began = time.monotonic()
    thread = threading.Thread(target=run, args=(1.0,))
    thread.start()
    thread.join()
    assert time.monotonic() - began >= 1.0


def gone(pid: int, seconds: float = 6) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("busy", ["time.sleep(20)", DEAF])
def test_it_ends_with_a_killed_parent(busy: str) -> None:
    code = CHILD.format(pid="PID") + busy
    parent = subprocess.Popen([sys.executable, "-c", PARENT, code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(1.0)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone(child)


def test_it_ends_at_once_where_the_parent_is_gone_already() -> None:
    code = CHILD.format(pid=2**22 + 1) + "print('still here')"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (1, "")
