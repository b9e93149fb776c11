"""The files that one block crosses are those that docs/architecture.md lists, and they stay few."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

import brainmap
from brainmap.image.intensity import Intensity
from brainmap.image.volume import Volume
from brainmap.infer.block import process
from brainmap.infer.detector import Detector
from brainmap.infer.engine.batch import process_batch
from brainmap.infer.engine.engine import RunOptions, make_job
from brainmap.infer.engine.results import iter_results, open_plan
from brainmap.machine import keep_freed_memory
from brainmap.run.count import write_points

PACKAGE = Path(brainmap.__file__).parent
# What hands the block to whoever computes it; how the run was set up before is another way.
BEFORE = {"cli/main.py", "run/detect.py", "infer/engine/engine.py", "infer/engine/dispatch.py"}
MOST_FILES = 31


def crossed(work: Callable[[], Any]) -> set[str]:
    """The package's files whose functions run, in any thread, while `work` does."""
    found: set[str] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_name != "<module>":
            found.add(frame.f_code.co_filename)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    inside = (Path(name) for name in found if name.startswith(str(PACKAGE)))
    return {path.relative_to(PACKAGE).as_posix() for path in inside}


def test_the_files_a_block_crosses(
    brain: tuple[Volume, Intensity, np.ndarray], toy: Detector, tmp_path: Path, repository: Path
) -> None:
    volume, intensity, _ = brain

    run = tmp_path / "run"
    job = make_job(volume, toy, run, RunOptions(device="cpu", backend="openvino"))
    open_plan(run, {})
    intensity.save(Path(job.intensity))
    # Once for each process, whatever blocks follow.
    keep_freed_memory()
    process.backend_of(job)
    process.intensity_of(job)

    def all_blocks() -> None:
        report = process_batch(job, tuple(range(len(job.blocks))))
        assert report.cells
        write_points(run / "points.parquet", iter_results(run), {}, None, None)

    files = crossed(all_blocks) | BEFORE
    text = (repository / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.split("## The way of a block")[1].split("\n## ")[0]
    listed = {name for name in re.findall(r"`([\w/]+\.py)`", section) if not name.startswith("tests/")}
    assert files == listed
    assert len(files) <= MOST_FILES
