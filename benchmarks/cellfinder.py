"""brainmap and cellfinder's candidate detection on the same simulated tissue, in the same call.

    python benchmarks/cellfinder.py --python VENV/bin/python [--shape 92,1024,1024] [--kind sparse] [--json FILE]

cellfinder is not a dependency; it goes into an environment of its own, whose Python is named by --python:

    python -m venv VENV
    VENV/bin/pip install torch cellfinder

Both get the same array of 5 x 1 x 1 um voxels with known cells and all cores, both are timed warm (compilers and
networks loaded), from the image to a list of places; the time of `brainmap detect` as a command, process start
included, stands beside. F1 counts pairs up to 10 um apart. cellfinder's classifier, which needs trained weights,
is not run; its candidates are scored at its default threshold and at the best of several, chosen with the truth
in hand.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from brainmap.image.intensity import Intensity
from brainmap.image.volume import Volume, write_volume
from brainmap.infer.detector import Detector
from brainmap.infer.engine.engine import RunOptions, run_detection
from brainmap.points.matching import match_points
from brainmap.points.table import Points
from brainmap.train.tissue.tissue import Tissue, simulate, variant

SEED = 75_000
TOLERANCE_UM = 10.0
# cellfinder's default first.
THRESHOLDS = (10.0, 5.0, 20.0)


def f1(found_um: np.ndarray, truth_um: np.ndarray) -> float:
    """Harmonic mean of precision and recall."""
    hits = len(match_points(found_um.reshape(-1, 3), truth_um, TOLERANCE_UM).index_a)
    return 2 * hits / max(1, len(found_um) + len(truth_um))


def run_cellfinder(python: str, tissue: Tissue, diameter_um: float, scratch: Path) -> dict[str, Any]:
    """cellfinder in its own environment; SystemExit with the way to install it where it is not there."""
    probe = [python, "-I", "-c", "import cellfinder.core.detect.detect"]
    try:
        missing = subprocess.run(probe, capture_output=True, check=False).returncode != 0
    except OSError:
        missing = True
    if missing:
        sys.exit(
            f"{python} has no cellfinder; make an environment for it and name its Python with --python: "
            "python -m venv VENV && VENV/bin/pip install torch cellfinder"
        )
    np.save(scratch / "crop.npy", tissue.image)
    voxel = ",".join(map(str, tissue.voxel_um))
    command = [
        python,
        "-I",
        str(Path(__file__).with_name("run_cellfinder.py")),
        str(scratch / "crop.npy"),
        voxel,
    ]
    command += [str(diameter_um), str(scratch / "cells.json"), *map(str, THRESHOLDS)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    record: dict[str, Any] = json.loads((scratch / "cells.json").read_text())
    return record


def run_warm(brain: Path, scratch: Path) -> tuple[float, float]:
    """Wall and CPU time of intensity model and detection in a process that has the network loaded."""
    for turn in range(2):
        start, cpu = time.perf_counter(), time.process_time()
        volume = Volume.open(brain)
        options = RunOptions(progress=False)
        run_detection(volume, Intensity.fit(volume), Detector.open(), scratch / f"warm{turn}", options)
    return time.perf_counter() - start, time.process_time() - cpu


def run_command(brain: Path, run: Path) -> tuple[float, float, np.ndarray]:
    """Wall time and peak memory in GiB of the command, and the places it finds, um."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "brainmap", "detect", str(brain), "--no-atlas", "--out", str(run), "-q"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    peak = json.loads((run / "run.json").read_text())["results"]["peak_memory_bytes"]
    return seconds, peak / 2**30, np.asarray(Points.read(run / "points.parquet").zyx_um)


def compare(python: str, kind: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Both on one volume."""
    config = variant(kind, shape=shape, voxel_um=(5.0, 1.0, 1.0))
    tissue = simulate(config, SEED)
    truth = tissue.centres_vox * tissue.voxel_um
    mvox = tissue.image.size / 1e6
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        theirs = run_cellfinder(python, tissue, config.diameter_um, scratch)
        brain = scratch / "crop.ome.zarr"
        write_volume(brain, tissue.image, tissue.voxel_um)
        seconds, cpu = run_warm(brain, scratch)
        command_s, peak, found = run_command(brain, scratch / "run")
    scores = [f1(np.array(r["zyx"], float) * tissue.voxel_um, truth) for r in theirs["runs"]]
    first = theirs["runs"][0]
    return {
        "kind": kind,
        "mvox": mvox,
        "true_cells": len(truth),
        "brainmap": {
            "mvox_per_s": mvox / seconds,
            "mvox_per_cpu_s": mvox / cpu,
            "command_mvox_per_s": mvox / command_s,
            "peak_memory_gib": peak,
            "f1": f1(found, truth),
        },
        "cellfinder": {
            "mvox_per_s": mvox / first["seconds"],
            "mvox_per_cpu_s": mvox / first["cpu_seconds"],
            "peak_memory_gib": theirs["peak_memory_gib"],
            "f1": scores[0],
            "best_f1": max(scores),
        },
        "times_faster": first["seconds"] / seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="the Python that has cellfinder")
    parser.add_argument("--shape", default="92,1024,1024", help="voxels z,y,x")
    parser.add_argument("--kind", nargs="+", default=["sparse"], help="of brainmap.train.tissue.tissue.KINDS")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    options = parser.parse_args()
    z, y, x = (int(n) for n in options.shape.split(","))
    rows = [compare(options.python, kind, (z, y, x)) for kind in options.kind]
    for row in rows:
        print(f"{row['kind']}: {row['mvox']:.1f} Mvoxel, {row['true_cells']} true cells")
        print("| | Mvoxel/s warm | Mvoxel per CPU s | peak GiB | F1 at 10 um |\n|---|---|---|---|---|")
        for name in ("brainmap", "cellfinder"):
            r = row[name]
            best = f" (best threshold {r['best_f1']:.3f})" if "best_f1" in r else ""
            print(
                f"| {name} | {r['mvox_per_s']:.1f} | {r['mvox_per_cpu_s']:.1f} | {r['peak_memory_gib']:.2f} | "
                f"{r['f1']:.3f}{best} |"
            )
        command = row["brainmap"]["command_mvox_per_s"]
        print(f"{row['times_faster']:.1f} times faster; as a command, start included, {command:.1f} Mvoxel/s")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
