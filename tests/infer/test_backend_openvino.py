"""The OpenVINO backend in threads."""

from __future__ import annotations

import subprocess
import sys

import pytest

CHILD = """
import os, sys, threading
import numpy as np
from brainmap.infer.detector import Detector, load_backend

backend = load_backend(Detector.open(), "openvino", tile=(128, 128), threads=2)
sys.setswitchinterval(1e-5)
together = threading.Barrier(2)

def call():
    batch = np.zeros((1, Detector.open().spec.channels, 128, 128), np.float32)
    together.wait()
    backend.infer(batch)

threads = [threading.Thread(target=call, daemon=True) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(60)
os._exit(any(thread.is_alive() for thread in threads))
"""


@pytest.mark.parametrize("attempt", range(3))
def test_two_threads_may_make_their_first_call_together(attempt: int) -> None:
    # Without the call that `load` makes beforehand about two of five such processes stopped for ever.
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
