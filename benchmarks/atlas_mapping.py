"""Time to map cells to an atlas: transforms, region, hemisphere, distance to the border, counts.

python benchmarks/atlas_mapping.py REGISTRATION [--points 10000000] [--atlas DIR]

Cells are drawn evenly over the image of a finished registration, in no order: the worst case for memory.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brainmap.atlas import Atlas
from brainmap.atlas.regions import RegionCounter
from brainmap.registration.register import Registration

PIECE = 1_000_000


def clocks() -> NDArray[np.float64]:
    """Wall and processor seconds: on a shared machine only the second says what the work costs."""
    return np.array([time.perf_counter(), time.process_time()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("registration", type=Path)
    parser.add_argument("--points", type=int, default=10_000_000)
    parser.add_argument("--atlas", help="folder or name, where the registration's own is gone")
    options = parser.parse_args()
    registration = Registration.load(options.registration)
    atlas = Atlas.open(options.atlas or registration.atlas_folder)
    seconds: dict[str, NDArray[np.float64]] = {}

    def lap(name: str, since: NDArray[np.float64]) -> NDArray[np.float64]:
        now = clocks()
        seconds[name] = seconds.get(name, np.zeros(2)) + now - since
        return now

    last = clocks()
    counter = RegionCounter(atlas.structures)
    atlas.lookup(np.zeros((1, 3)))
    last = lap("read atlas", last)
    registration.to_atlas_um(np.zeros((1, 3)))
    last = lap("read transforms", last)
    atlas.border_um(np.zeros((1, 3)))
    last = lap("distance map, once", last)
    rng = np.random.default_rng(0)
    grid = registration.grid
    for start in range(0, options.points, PIECE):
        n = min(PIECE, options.points - start)
        points = np.array(grid.corner_um) + rng.random((n, 3)) * grid.extent_um
        last = clocks()
        mapped = registration.to_atlas_um(points)
        last = lap("transforms", last)
        region, side = atlas.lookup(mapped)
        last = lap("region and hemisphere", last)
        atlas.border_um(mapped)
        last = lap("distance to the border", last)
        counter.add(region, side)
        lap("counts", last)
    seconds["together"] = np.sum(list(seconds.values()), axis=0)
    print(f"{options.points} points, atlas {atlas.name}, {counter.direct[:-1].sum()} in a structure")
    for name, (wall, cpu) in seconds.items():
        print(f"{name:24s} {wall:7.2f} s wall {cpu:7.2f} s processor")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
