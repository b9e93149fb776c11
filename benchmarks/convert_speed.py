"""Speed of `brainmap convert` on a made-up series of 16-bit sections: MB of source per second and per CPU-second.

    python benchmarks/convert_speed.py FOLDER [--planes 128] [--size 2048] [--compression none] [--runs 2]

Writes the sections (smooth structure, background and shot noise, so that they compress like sections do) and the
result below FOLDER, and removes both. The read-back check is part of the time. "disk" is the share of the
uncompressed source that level 0 and the whole pyramid take. Peak memory is that of the whole process.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import time
from pathlib import Path

import numpy as np
import tifffile
from scipy.ndimage import zoom

from brainmap.convert.convert import convert


def write_sections(folder: Path, planes: int, size: int, compression: str | None) -> int:
    """Sections with tissue on an ellipse, empty background and shot noise; returns their bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    grid = np.linspace(-1, 1, size)
    inside = (grid[:, None] / 0.8) ** 2 + (grid[None] / 0.9) ** 2 < 1
    texture = zoom(rng.normal(0, 1, (size // 64, size // 64)).astype("f4"), 64, order=1)
    clean = np.where(inside, 900 + 250 * texture, 110).astype("f4").clip(1)
    spread, total = np.sqrt(clean), 0
    noises = [rng.standard_normal(clean.shape, "f4") for _ in range(4)]
    for z in range(planes):
        # Noise that is moved on from plane to plane: no plane repeats, and drawing it does not take for ever.
        noise = np.roll(noises[z % len(noises)], (37 * z, 53 * z), (0, 1))
        plane = (clean + noise * spread).clip(0, 65535).astype("u2")
        tifffile.imwrite(folder / f"section_{z:04d}.tif", plane, compression=compression)
        total += plane.nbytes
    return total


def disk_bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="scratch folder")
    parser.add_argument("--planes", type=int, default=128)
    parser.add_argument("--size", type=int, default=2048, help="width and height of a plane, px")
    parser.add_argument("--compression", default="none", help="of the sections: none, deflate, lzw, zstd")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--workers", type=int, default=None)
    given = parser.parse_args()
    source, dest = given.folder / "sections", given.folder / "sections.zarr"
    compression = None if given.compression == "none" else given.compression
    total = write_sections(source, given.planes, given.size, compression)
    try:
        for _ in range(given.runs):
            shutil.rmtree(dest, ignore_errors=True)
            wall, cpu = time.perf_counter(), time.process_time()
            convert(source, dest, (4, 2, 2), workers=given.workers)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            finest, everything = (disk_bytes(path) / total for path in (dest / "0", dest))
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(
                f"{total / 1e6:.0f} MB: {total / 1e6 / wall:.0f} MB/s, {total / 1e6 / cpu:.0f} MB per CPU-s, "
                f"{cpu / total * 1e9:.1f} CPU-s/GB; disk {finest:.3f} (level 0) {everything:.3f} (all); "
                f"peak {peak:.0f} MB"
            )
    finally:
        for folder in (source, dest):
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
