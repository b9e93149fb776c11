"""What the engine itself costs: blocks of a virtual teravoxel brain, a detector that does nothing.

    python benchmarks/engine.py [--blocks 100000] [--cells 10] [--workers N] [--no-read] [--out FILE.json]

Runs detection on a brain whose chunks are made when they are read, with a detector that reads one chunk per block
and returns made-up cells (see virtual_brain.py), each run a process of its own:

whole    all blocks, then the final table in order; wall and processor time per block, and memory over the blocks
killed   the same, killed when nine blocks of ten are finished
resumed  the same command again: how long until the first new block is handed out, and whether the cells are the same

A block is 200 x 224 x 224 voxels: 100,000 of them are a teravoxel. `--cells 1000` makes 1e8 cells of them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from virtual_brain import install, open_virtual, virtual_intensity

from brainmap.infer.detector import Detector
from brainmap.infer.engine import dispatch, engine
from brainmap.infer.engine.engine import RunOptions, run_detection
from brainmap.infer.engine.results import finished, iter_results
from brainmap.points.table import PointsWriter

BLOCK = (200, 224, 224)
PRELOAD = Path(__file__).with_name("virtual_brain.py")
# Memory is judged once so many blocks are done: until then libraries are loaded and pools fill.
WARM = 10_000


class Watch:
    """Memory of this process and its children against blocks done, sampled four times a second."""

    def __init__(self, blocks: int) -> None:
        self.blocks, self.samples = blocks, [(0.0, 0.0)]
        self.share, self.first_s = 0.0, float("nan")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        me = psutil.Process()
        while not self._over.wait(0.25):
            rss = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    rss += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.samples.append((self.share * self.blocks, rss / 1e6))

    def stop(self) -> dict[str, float]:
        """Largest memory, MB, and its slope per 10,000 blocks after the warm-up."""
        self._over.set()
        self._thread.join()
        done, rss = np.array(self.samples).T
        late = done >= min(WARM, self.blocks / 4)
        slope = np.polyfit(done[late], rss[late], 1)[0] * 1e4 if late.sum() > 3 else float("nan")
        return {"peak_mb": round(float(rss.max()), 1), "slope_mb_per_10000_blocks": round(float(slope), 3)}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """One run in this process, and its numbers."""
    install()
    began = time.time()
    counts = [max(1, round(options.blocks ** (1 / 3)))] * 2
    counts = [-(-options.blocks // (counts[0] * counts[1])), *counts]
    shape = tuple(n * b for n, b in zip(counts, BLOCK, strict=True))
    volume, intensity, detector = (
        open_virtual(shape, options.cells, not options.no_read),
        virtual_intensity(shape),
        Detector.open(),
    )
    watch = Watch(int(np.prod(counts)))
    first_tasks = dispatch.Dispatcher._fill

    def progress(self: engine.Progress, voxels: int, *_: object) -> None:
        watch.share = voxels / self._total

    def fill(self: dispatch.Dispatcher, completed: Any) -> None:
        first_tasks(self, completed)
        if watch.first_s != watch.first_s:
            watch.first_s = time.time() - options.since

    engine.Progress.update = progress  # type: ignore[method-assign]
    dispatch.Dispatcher._fill = fill  # type: ignore[method-assign]
    scheduler = None
    if options.workers:
        from distributed import LocalCluster

        # The workers must know the virtual files, too: a cluster of our own with a preload, used by its address.
        cluster = LocalCluster(
            n_workers=options.workers, threads_per_worker=1, preload=[str(PRELOAD)], dashboard_address=None
        )  # fmt: skip
        scheduler = cluster.scheduler_address
    started = time.perf_counter()
    result = run_detection(
        volume, intensity, detector, options.run, RunOptions(block=BLOCK, scheduler=scheduler, progress=False)
    )
    seconds = time.perf_counter() - started
    memory = watch.stop()
    if scheduler:
        cluster.close()
    cpu = sum(os.times()[:4])
    computed = result.blocks - result.resumed
    table = Watch(result.blocks)
    ordered = time.perf_counter()
    digest = write_table(options.run)
    return {
        "blocks": result.blocks,
        "resumed": result.resumed,
        "voxels": float(np.prod(shape)),
        "cells": result.cells,
        "files": len(finished(options.run)),
        "ms_per_block": round(1e3 * seconds / max(1, computed), 4),
        "cpu_ms_per_block": round(1e3 * cpu / max(1, computed), 4),
        "until_first_task_s": round(watch.first_s, 2),
        "seconds": round(seconds, 2),
        "process_s": round(time.time() - began, 2),
        **memory,
        "table_s": round(time.perf_counter() - ordered, 2),
        "table_peak_mb": table.stop()["peak_mb"],
        "digest": digest,
    }


def write_table(run: Path) -> str:
    """Write the final table as the pipeline does; a hash of its rows."""
    digest = hashlib.sha256()
    with PointsWriter(run / "points.parquet") as writer:
        for piece in iter_results(run):
            writer.append(piece)
            digest.update(piece.zyx_vox.tobytes())
    return digest.hexdigest()[:16]


def child(options: argparse.Namespace, run_dir: Path) -> subprocess.Popen[str]:
    """The same script as a process that does one run."""
    command = [sys.executable, __file__, "--run", str(run_dir), "--since", str(time.time())]
    command += ["--blocks", str(options.blocks), "--cells", str(options.cells)]
    command += ["--no-read"] if options.no_read else []
    command += ["--workers", str(options.workers)] if options.workers else []
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def numbers(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a run printed last."""
    output = process.communicate()[0]
    if process.returncode:
        raise SystemExit(f"a run ended with exit code {process.returncode}")
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def kill_late(process: subprocess.Popen[str], run_dir: Path, blocks: int) -> int:
    """Kill a run when nine blocks of ten are finished; returns how many are."""
    done = 0
    while process.poll() is None and done < 0.9 * blocks:
        time.sleep(0.1)
        done = sum(stop - start for (start, stop), _ in finished(run_dir))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return sum(stop - start for (start, stop), _ in finished(run_dir))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=100_000)
    parser.add_argument("--cells", type=int, default=10, help="per block")
    parser.add_argument("--workers", type=int, help="worker processes; by default threads of one process")
    parser.add_argument("--no-read", action="store_true", help="do not read a chunk per block either")
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--since", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run is not None:
        print(json.dumps(run(options)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        whole = numbers(child(options, Path(scratch) / "whole"))
        print("whole  ", json.dumps(whole), flush=True)
        killed = kill_late(
            child(options, Path(scratch) / "killed"), Path(scratch) / "killed", whole["blocks"]
        )
        print(f"killed  with {killed} of {whole['blocks']} blocks finished", flush=True)
        resumed = numbers(child(options, Path(scratch) / "killed"))
        print("resumed", json.dumps(resumed))
        same = resumed["digest"] == whole["digest"]
        print("the cells are the same" if same else "THE CELLS DIFFER")
    if options.out is not None:
        found = {"whole": whole, "killed_at": killed, "resumed": resumed, "same_cells": same}
        options.out.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
