"""Candidate detection of cellfinder on one array; started by `benchmarks/cellfinder.py` with the Python that has it.

    python run_cellfinder.py CROP.npy VOXEL_Z,VOXEL_Y,VOXEL_X SOMA_UM OUT.json N_SDS [N_SDS ...]

Needs nothing of brainmap. The compilers are warmed up on the crop's first planes, then every threshold is timed.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from cellfinder.core.detect.detect import main as detect

ARTIFACT = -1


def cpu_time() -> float:
    """CPU seconds of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def peak_kib() -> int:
    """Largest memory of this process, without its workers and without what its parent held (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def run(crop: np.ndarray, voxel_um: tuple[float, ...], soma_um: float, n_sds: float) -> dict[str, Any]:
    """Candidates, wall and CPU time, that of its worker processes included."""
    start, cpu = time.perf_counter(), cpu_time()
    cells = detect(
        signal_array=crop,
        voxel_sizes=voxel_um,
        soma_diameter=soma_um,
        n_free_cpus=0,
        torch_device="cpu",
        n_sds_above_mean_thresh=n_sds,
    )
    seconds, cpu_seconds = time.perf_counter() - start, cpu_time() - cpu
    places = [[c.z, c.y, c.x] for c in cells if c.type != ARTIFACT]
    return {"n_sds": n_sds, "seconds": seconds, "cpu_seconds": cpu_seconds, "zyx": places}


def main() -> None:
    path, voxel, soma, out, *thresholds = sys.argv[1:]
    crop = np.load(path)
    voxel_um = tuple(float(v) for v in voxel.split(","))
    run(crop[:16], voxel_um, float(soma), 10.0)
    runs = [run(crop, voxel_um, float(soma), float(n)) for n in thresholds]
    Path(out).write_text(json.dumps({"runs": runs, "peak_memory_gib": peak_kib() / 2**20}))


if __name__ == "__main__":
    main()
