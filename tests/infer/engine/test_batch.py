"""What a task reports of its process."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from brainmap.infer.engine.batch import peak_memory


def test_peak_memory_remembers_the_most_that_was_held() -> None:
    before = peak_memory()
    size = before + (100 << 20)
    array = np.ones(size, np.uint8)
    peak = peak_memory()
    assert peak >= size
    del array
    assert peak_memory() >= 0.98 * peak


def test_peak_memory_leaves_out_what_the_parent_held() -> None:
    array = np.ones(1 << 30, np.uint8)
    code = "from brainmap.infer.engine.batch import peak_memory; print(peak_memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    if sys.platform == "linux":
        assert int(done.stdout) < len(array)
