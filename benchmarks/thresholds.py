"""How long another threshold takes: `brainmap regions RUN --threshold F` on a made-up run of many candidates.

    python benchmarks/thresholds.py [--candidates 10000000] [--atlas NAME|DIR] [--no-atlas]

Makes a run folder as detection leaves it (blocks of candidates over a whole brain, a registration with a deformation
on the atlas's own grid) and counts it anew, in a process of its own, at a threshold that keeps half of the candidates
and at the lowest one, which keeps all. Printed: seconds, peak memory, bytes per candidate. The brain's image is not
there, so the report shows no slices.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from brainmap.atlas.atlas import Atlas
from brainmap.files import write_json
from brainmap.image.volume import write_volume
from brainmap.infer.block.process import CANDIDATE_SCORE, COLUMNS
from brainmap.infer.engine import results
from brainmap.points.table import Points
from brainmap.registration.grid import SampleGrid
from brainmap.registration.registered import FORMAT
from brainmap.registration.transforms import DisplacementField
from brainmap.run_folder import POINTS_PARQUET, RunRecord

VOXEL_UM = (5.0, 1.8, 1.8)
BATCH = 100_000


def write_registration(folder: Path, atlas: Atlas, grid: SampleGrid) -> None:
    """A registration of a sample whose corner is the atlas's, bent a little; its grid has the atlas's resolution."""
    import scipy.io

    folder.mkdir()
    affine = {"AffineTransform_double_3_3": np.array([[1.0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]]).T}
    scipy.io.savemat(folder / "affine.mat", affine | {"fixed": np.zeros((3, 1))}, format="4")
    z, y, x = np.meshgrid(*(np.linspace(0, 6, n) for n in atlas.shape), indexing="ij", sparse=True)
    spacing = np.array(atlas.resolution_um) / 1000
    wave = 0.02 * float((spacing * atlas.shape).min()) * np.sin(z) * np.sin(y) * np.sin(x)
    for name in ("warp.nii.gz", "inverse_warp.nii.gz"):
        field = np.stack([wave] * 3).astype(np.float32)
        DisplacementField(field, spacing / 2, spacing).write(folder / name)
    origin = grid.origin_um
    common = tuple(slice(0, min(pair)) for pair in zip(grid.shape, atlas.shape, strict=True))
    for name, values in (("annotation", atlas.annotation), ("hemispheres", atlas.hemispheres)):
        image = np.zeros(grid.shape, values.dtype)
        image[common] = values[common]
        write_volume(folder / f"{name}.ome.zarr", image, grid.resolution_um, origin_um=origin)
    write_json(
        folder / "registration.json",
        {
            "format": FORMAT, "grid": grid.to_json(), "fingerprint": "made up", "verdict": "good", "reasons": [],
            "atlas": {"name": atlas.name, "folder": str(atlas.folder)}, "quality": {},
        },
    )  # fmt: skip


def write_run(folder: Path, count: int, atlas: Atlas | None) -> None:
    """A finished run with `count` candidates spread over the brain, block after block."""
    size_um = np.array(atlas.shape) * atlas.resolution_um if atlas else np.array([13200.0, 8000.0, 11400.0])
    shape = tuple(int(v) for v in size_um / VOXEL_UM)
    plan = {"threshold": 0.5, "candidate_score": CANDIDATE_SCORE}
    results.open_plan(folder, plan)
    batches = -(-count // BATCH)
    rng = np.random.default_rng(0)
    for i in range(batches):
        rows = min(BATCH, count - i * BATCH)
        # A block reaches over a part of z and of the plane; the order along z comes from sorting.
        low, high = shape[0] * (i // 4) / (batches // 4 + 1), shape[0] * (i // 4 + 1) / (batches // 4 + 1)
        columns = {
            "z": np.sort(rng.uniform(low, high, rows)),
            "y": rng.uniform(0, shape[1] - 1, rows),
            "x": rng.uniform((i % 4) * shape[2] / 4, (i % 4 + 1) * shape[2] / 4 - 1, rows),
            # Faint ones are many.
            "score": np.clip(CANDIDATE_SCORE * 19 ** rng.random(rows), CANDIDATE_SCORE, 1),
            "intensity": rng.normal(500, 100, rows), "snr": rng.gamma(4, 4, rows),
            "diameter_um": rng.normal(9, 1, rows),
        }  # fmt: skip
        columns = {name: columns[name].astype(kind) for name, kind in COLUMNS.items()}
        columns[results.BLOCK_COLUMN] = np.full(rows, i)
        results.write_batch(folder, (i, i + 1), columns, int((columns["score"] >= 0.5).sum()))
    meta = {
        "shape": shape, "voxel_um": VOXEL_UM, "origin_um": (0.0, 0.0, 0.0), "brain": "made_up.ome.zarr",
        "orientation": "asr", "registration": None if atlas is None else "made up",
    }  # fmt: skip
    Points.empty(meta=meta).write(folder / POINTS_PARQUET)
    if atlas is not None:
        corner = tuple(-v / 2 for v in VOXEL_UM)
        extent = tuple(n * v for n, v in zip(shape, VOXEL_UM, strict=True))
        write_registration(
            folder / "registration",
            atlas,
            SampleGrid(atlas.shape, atlas.resolution_um, corner, extent, "asr"),
        )
    parameters = {"brain": "made_up.ome.zarr", "atlas": None if atlas is None else atlas.name}
    RunRecord(status="complete", parameters=parameters, results={"threshold": 0.5}).save(folder)


def count_anew(folder: Path, threshold: float) -> None:
    """`brainmap regions --threshold` as a process: seconds and its peak memory."""
    code = (
        "import sys; from brainmap.cli.main import main\ntry:\n    main()\nfinally:\n"
        "    from brainmap.infer.engine.batch import peak_memory; print(peak_memory(), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, "regions", str(folder), "--threshold", str(threshold), "-q"]
    began, spent = time.perf_counter(), _spent()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, spent = time.perf_counter() - began, _spent() - spent
    peak = int(done.stderr.split()[-1])
    used = f"{seconds:.1f} s ({spent:.1f} s of processor), peak {peak / 2**30:.2f} GiB"
    print(f"--threshold {threshold:g}: {used}, {done.stdout.strip()}", flush=True)


def _spent() -> float:
    """Processor time of all finished child processes, s."""
    times = os.times()
    return times.children_user + times.children_system


def main() -> None:
    """Make the run, count it anew twice."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--candidates", type=int, default=10_000_000)
    parser.add_argument("--atlas", default="allen_mouse_50um")
    parser.add_argument("--no-atlas", action="store_true")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    atlas = None if options.no_atlas else Atlas.open(options.atlas)
    with tempfile.TemporaryDirectory(dir=options.folder) as work:
        folder = Path(work) / "run"
        write_run(folder, options.candidates, atlas)
        size = sum(path.stat().st_size for path in (folder / "blocks").glob("*.parquet"))
        print(f"{options.candidates:,} candidates, {size / options.candidates:.1f} bytes each")
        # The first one also counts over all thresholds, as the run itself would have.
        count_anew(folder, float(np.sqrt(CANDIDATE_SCORE * 0.95)))
        count_anew(folder, float(np.sqrt(CANDIDATE_SCORE * 0.95)))
        count_anew(folder, CANDIDATE_SCORE)


if __name__ == "__main__":
    main()
