"""Time of an aggregation: 500 workers, 2,000 images, a million clicks, two processes.

python benchmarks/gt_speed.py OUT [--images N] [--workers N]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from brainmap.gt.aggregate import aggregate


def write_clicks(path: Path, images: int) -> int:
    """About 500 clicks on each image: 40 cells, 15 of 500 workers, jitter 1.5 px, strays."""
    rng = np.random.default_rng(0)
    lines = []
    for image in range(images):
        cells = rng.uniform(5, 495, (40, 2))
        for worker in rng.choice(500, 15, replace=False):
            on = cells[rng.random(40) < 0.75]
            at = np.r_[on + rng.normal(0, 1.5, on.shape), rng.uniform(0, 499, (3, 2))]
            at = np.clip(np.round(at), 0, 499).astype(int)
            lines.extend(f"i{image:05d},w{worker:03d},{x},{y},500,500" for x, y in at)
    path.write_text("image_id,worker_id,x,y,height,width\n" + "\n".join(lines) + "\n")
    return len(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    n = write_clicks(options.out / "clicks.csv", options.images)
    wall, cpu = time.perf_counter(), time.process_time()
    result = aggregate(options.out / "clicks.csv", options.out / "gt", workers=options.workers)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{n} clicks, {result.n_accepted} cells: {wall:.0f} s wall, {cpu:.0f} s CPU in the parent")


if __name__ == "__main__":
    main()
