"""The OpenVINO backend in threads."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from brainmap.infer.block.folding import folded, unfolded
from brainmap.infer.detector import Detector, load_backend

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


def test_images_at_work_together_keep_their_memory_and_their_heat() -> None:
    detector = Detector.open()
    backend = load_backend(detector, "openvino", tile=(64, 64), threads=1, precision="f32")
    images = np.random.default_rng(0).normal(0, 0.1, (4, detector.spec.channels, 64, 64)).astype(np.float32)
    wanted = backend.infer(images)[0]
    # Nothing but what is at work holds the planes; others would take their place in memory.
    begun = [
        backend.begin(
            folded(image, backend.folds.image), lambda logit, _: unfolded(logit, backend.folds.heat)
        )
        for image in images
    ]
    for i in (2, 0, 3, 1):
        np.testing.assert_array_equal(begun[i](), wanted[i])
