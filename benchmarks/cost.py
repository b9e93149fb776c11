"""What a teravoxel costs in a cloud: hours on a machine times its price.

    python benchmarks/cost.py [--mvox 100] [--tissue 0.5] [--price HOUR ...]

    cost = 1e12 * tissue / (speed * 3600) * price / busy  +  files * price of a request

`speed` is measured end to end on such a machine (benchmarks/throughput.py, or `voxels_per_second` in a run's
run.json), in voxels with tissue; nothing here is a measurement. The prices are public ones, on demand, noted from
memory: check them, they change. Reading storage of the same region costs nothing but requests; moving the image out of
the cloud does cost, and is not counted.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

PRICES_OF = "2025-11, to be checked"


@dataclass(frozen=True)
class Machine:
    """A machine that a cloud rents by the hour.

    Parameters
    ----------
    cloud, name, device : str
        Who rents it, under what name, and what computes.
    dollars_per_hour : float
        On demand, Linux, a United States region.
    """

    cloud: str
    name: str
    device: str
    dollars_per_hour: float


MACHINES = (
    Machine("AWS", "p5.4xlarge", "1 H100", 6.88),
    Machine("AWS", "g6.xlarge", "1 L4", 0.805),
    Machine("Google", "a3-highgpu-1g", "1 H100", 11.06),
    Machine("Google", "g2-standard-4", "1 L4", 0.707),
)
# 1000 reads of objects, either cloud.
DOLLARS_PER_1000_REQUESTS = 0.0004


def hours_per_teravoxel(voxels_per_second: float, tissue: float = 1.0, busy: float = 0.9) -> float:
    """Hours one machine needs for a teravoxel.

    Parameters
    ----------
    voxels_per_second : float
        End to end, voxels of blocks with tissue.
    tissue : float
        Share of the blocks that hold tissue; the others are not read.
    busy : float
        Share of the paid time that is computed in: machines start, and wait for the last block.
    """
    if voxels_per_second <= 0 or not 0 < tissue <= 1 or not 0 < busy <= 1:
        raise ValueError("speed must be positive, tissue and busy shares between 0 and 1")
    return 1e12 * tissue / (voxels_per_second * 3600 * busy)


def dollars_per_teravoxel(
    dollars_per_hour: float,
    voxels_per_second: float,
    tissue: float = 1.0,
    busy: float = 0.9,
    file_voxels: float = 64 * 512 * 512,
) -> float:
    """Price of a teravoxel: machine time and requests for stored files of `file_voxels` each.

    The number of machines does not matter: twice as many need half the time.
    """
    time = hours_per_teravoxel(voxels_per_second, tissue, busy) * dollars_per_hour
    return time + 1e12 * tissue / file_voxels * DOLLARS_PER_1000_REQUESTS / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--mvox", type=float, nargs="+", default=[100, 300, 1000], help="Mvoxel/s of one machine"
    )
    parser.add_argument("--tissue", type=float, default=1.0, help="share of blocks with tissue")
    parser.add_argument("--price", type=float, nargs="*", default=[], help="further prices, dollars per hour")
    options = parser.parse_args()
    machines = [*MACHINES, *(Machine("given", f"{p:g} $/h", "", p) for p in options.price)]
    print(f"dollars per teravoxel (prices: {PRICES_OF}; tissue {options.tissue:g}) at so many Mvoxel/s:")
    print(f"{'':34}{'$/h':>8}" + "".join(f"{speed:>10g}" for speed in options.mvox))
    for machine in machines:
        costs = [
            dollars_per_teravoxel(machine.dollars_per_hour, v * 1e6, options.tissue) for v in options.mvox
        ]
        row = f"{machine.cloud:8}{machine.name:18}{machine.device:8}{machine.dollars_per_hour:>8.2f}"
        print(row + "".join(f"{cost:>10.2f}" for cost in costs))
    hours = [hours_per_teravoxel(v * 1e6, options.tissue) for v in options.mvox]
    print(f"{'hours on one machine':42}" + "".join(f"{h:>10.2f}" for h in hours))


if __name__ == "__main__":
    main()
