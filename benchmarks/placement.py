"""Placement of cells against held-out annotated sections: learnt from annotations, and the study's rules.

    python benchmarks/placement.py DATA [--size 512]

DATA holds sections/cfos/consensus.csv. In each of several random halvings one half of the sections teaches and
the other is compared with. Rows: the teaching half itself (the floor), learnt placement, the study's rules with
their default numbers, and with the mean and spread of the teaching half's counts ("tuned"). Columns: mean
absolute difference of ln pair correlation beyond 8 px; Kolmogorov-Smirnov distance of nearest-neighbour
distances and of cells per tile.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import ks_2samp

from brainmap.train.synthesis.placement import Placement, StudyRules
from brainmap.train.synthesis.point_process import count_pairs, nearest_distances

SECTION_PX = 1024
RADIUS_PX = (6.8, 1.8, 3.0, 12.0)


def difference(real: list[np.ndarray], other: list[np.ndarray], size: int) -> list[float]:
    mine, theirs = (count_pairs(points, [(size, size)] * len(points)) for points in (real, other))
    seen = mine.distance > 8
    logs = [np.log((pairs.found[seen] + 0.5) / pairs.expected[seen]) for pairs in (mine, theirs)]
    counts = [[len(xy) for xy in points] for points in (real, other)]
    nearest = ks_2samp(nearest_distances(real), nearest_distances(other)).statistic
    return [float(np.abs(logs[0] - logs[1]).mean()), nearest, ks_2samp(*counts).statistic]


def cut(points: list[np.ndarray], size: int) -> list[np.ndarray]:
    tiles = []
    for xy in points:
        for y in range(0, SECTION_PX, size):
            for x in range(0, SECTION_PX, size):
                moved = xy - (x, y)
                tiles.append(moved[((moved >= -0.5) & (moved < size - 0.5)).all(axis=1)])
    return tiles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder that holds sections/")
    parser.add_argument("--size", type=int, default=512, help="width of a tile, px")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--tiles", type=int, default=40, help="tiles sampled per split")
    given = parser.parse_args()
    table = pd.read_csv(given.data / "sections/cfos/consensus.csv", dtype={"image_id": str})
    sections = [group[["x", "y"]].to_numpy(float) for _, group in table.groupby("image_id")]
    halving, rng = np.random.default_rng(0), np.random.default_rng(1)
    shape = (given.size, given.size)
    found: dict[str, list[list[float]]] = {}
    for _ in range(given.splits):
        order = halving.permutation(len(sections))
        halves = np.array_split(order, 2)
        teaching, held = (cut([sections[i] for i in half], given.size) for half in halves)
        counts = np.array([len(xy) for xy in teaching]) * (512 / given.size) ** 2
        numbers = (float(counts.mean()), float(counts.std()), 0.0, float(counts.max() + 1))
        tuned = StudyRules(cells=numbers, radius_px=RADIUS_PX)
        ways = {
            "learnt": Placement.fit(teaching, [shape] * len(teaching), radius_px=RADIUS_PX),
            "study": Placement.study(),
            "study, tuned": Placement.study(tuned),
        }
        found.setdefault("real", []).append(difference(held, teaching, given.size))
        for name, way in ways.items():
            made = [way.sample(shape, rng)[0] for _ in range(given.tiles)]
            found.setdefault(name, []).append(difference(held, made, given.size))
    print(f"{'':14}{'ln g':>8}{'nearest':>9}{'counts':>8}")
    for name, rows in found.items():
        print(
            f"{name:14}"
            + "".join(f"{v:{w}.3f}" for v, w in zip(np.mean(rows, axis=0), (8, 9, 8), strict=True))
        )


if __name__ == "__main__":
    main()
