"""What `--until-certain` saves against fixed redundancy, at equal F1: simulated crowds and a real one, replayed.

Every image gets its workers in a random order. Fixed redundancy takes the first r of every image; until-certain
begins with three and gives one more to every image that `brainmap.crowd.work.certainty` does not call decided. Both are
aggregated by `brainmap gt`. What is saved is read off the curve of fixed redundancy: how many workers an image
would need for the F1 that until-certain reached, against how many it took.

    python benchmarks/crowd_certainty.py [--data DIR] [--seeds 5] [--images 24] [--only real|study|uneven]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

from brainmap.crowd.work.certainty import CertaintyRule, judge_tiles
from brainmap.gt.aggregate import aggregate_clicks
from brainmap.gt.clicks import Clicks, read_clicks, read_point_table
from brainmap.gt.settings import GtSettings
from brainmap.gt.simulate import Simulation, simulate
from brainmap.points.matching import match_points, score

REDUNDANCY = range(3, 13)
TOLERATED = (0.0, 0.1, 0.3, 0.6)

Truth = dict[str, np.ndarray]
Crowd = tuple[Clicks, Truth, float]


class Replay:
    """A crowd with the order in which each image gets its workers; what was aggregated once is kept."""

    def __init__(self, clicks: Clicks, truth: Truth, tolerance: float, seed: int) -> None:
        self.clicks, self.truth, self.tolerance = clicks, truth, tolerance
        rng = np.random.default_rng(seed)
        images = range(len(clicks.image_ids))
        self.order = [rng.permutation(clicks.seen_worker[clicks.seen_of(i)]) for i in images]
        self.there = np.array([len(w) for w in self.order])
        self._known: dict[tuple[int, ...], tuple] = {}

    def at(self, given: np.ndarray) -> tuple:
        """Clicks, consensus and F1 when each image has so many workers."""
        key = tuple(int(n) for n in given)
        if key not in self._known:
            some = self._part({(i, int(w)) for i, who in enumerate(self.order) for w in who[: given[i]]})
            consensus = aggregate_clicks(some, GtSettings())
            self._known[key] = (some, consensus, self._f1(consensus))
        return self._known[key]

    def fixed(self) -> np.ndarray:
        """Mean workers and F1 for each redundancy."""
        given = [np.minimum(r, self.there) for r in REDUNDANCY]
        return np.array([(g.mean(), self.at(g)[2]) for g in given])

    def until_certain(self, rule: CertaintyRule) -> tuple[float, float, int]:
        """Mean workers, F1, and images that ended in doubt."""
        given = np.minimum(rule.least, self.there)
        while True:
            some, consensus, f1 = self.at(given)
            states = judge_tiles(some, consensus, rule)
            names = self.clicks.image_ids
            more = np.array([states[name].more for name in names]) & (given < self.there)
            if not more.any():
                return float(given.mean()), f1, sum(states[name].why != "certain" for name in names)
            given = given + more

    def _part(self, pairs: set[tuple[int, int]]) -> Clicks:
        clicks = self.clicks
        use = np.array([(i, w) in pairs for i, w in zip(clicks.image, clicks.worker, strict=True)], bool)
        names, workers = np.array(clicks.image_ids, object), np.array(clicks.worker_ids, object)
        return Clicks.build(
            names[clicks.image[use]], workers[clicks.worker[use]], *clicks.xy[use].T, sizes=sizes_of(clicks),
            assignments=[(clicks.image_ids[i], clicks.worker_ids[w], True) for i, w in sorted(pairs)],
        )  # fmt: skip

    def _f1(self, consensus) -> float:
        matched = found = true = 0
        for name, image in zip(self.clicks.image_ids, consensus.images, strict=True):
            xy = image.xy[image.posterior >= 0.5]
            matched += len(match_points(xy, self.truth[name], self.tolerance).index_a)
            found, true = found + len(xy), true + len(self.truth[name])
        return score(matched, found, true).f1


def sizes_of(clicks: Clicks) -> dict[str, tuple[int, int]]:
    sides = zip(clicks.image_ids, clicks.height, clicks.width, strict=True)
    return {name: (int(h), int(w)) for name, h, w in sides}


def equal_f1(curve: np.ndarray, f1: float) -> float:
    """Workers that fixed redundancy needs for an F1, between the two redundancies beside it; nan beyond the ends."""
    best = np.maximum.accumulate(curve[:, 1])
    if not best[0] <= f1 <= best[-1]:
        return float("nan")
    keep = np.r_[True, np.diff(best) > 0]
    return float(np.interp(f1, best[keep], curve[keep, 0]))


def replay(name: str, crowds: list[Crowd], seeds: int) -> None:
    """One table: the curve of fixed redundancy, and every rule beside it."""
    print(f"\n## {name}\n", flush=True)
    runs = [Replay(*crowds[k % len(crowds)], 100 + k) for k in range(seeds)]
    mean = np.mean([run.fixed() for run in runs], axis=0)
    print("| fixed redundancy | " + " | ".join(f"{n:.1f}" for n in mean[:, 0]) + " |")
    print("|---" * (len(REDUNDANCY) + 1) + "|")
    print("| F1 | " + " | ".join(f"{f:.3f}" for f in mean[:, 1]) + " |\n")
    print(
        "| in doubt, tolerated | workers | F1 | fixed needs | saved | saved against 12 | F1 lost | left in doubt |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for tolerated in TOLERATED:
        found = np.array([run.until_certain(CertaintyRule(tolerated=tolerated)) for run in runs])
        workers, f1, doubt = found.mean(axis=0)
        need = equal_f1(mean, float(f1))
        cells = [
            f"{tolerated:.0%}", f"{workers:.2f}", f"{f1:.3f}", f"{need:.2f}", f"{1 - workers / need:+.0%}",
            f"{1 - workers / mean[-1, 0]:.0%}", f"{mean[-1, 1] - f1:+.3f}", f"{doubt:.1f}",
        ]  # fmt: skip
        print("| " + " | ".join(cells) + " |", flush=True)


def simulated(images: int, seeds: int, **changes: float) -> list[Crowd]:
    crowds = []
    for seed in range(seeds):
        crowd = simulate(Simulation(n_images=images, missing=0.0, n_workers=36, **changes), seed)
        truth = {f"image_{i:04d}": xy for i, xy in enumerate(crowd.truth)}
        crowds.append((crowd.clicks, truth, 4.0))
    return crowds


def uneven(images: int, seeds: int) -> list[Crowd]:
    """Half of the images easy, half hard, for the same workers."""
    easy = simulated(images // 2, seeds, difficulty=0.3, sensitivity=0.9, n_sites=10)
    hard = simulated(images // 2, seeds, difficulty=1.5, sensitivity=0.55)
    return [joined({"easy": a, "hard": b}) for a, b in zip(easy, hard, strict=True)]


def joined(parts: dict[str, Crowd]) -> Crowd:
    columns: tuple[list, ...] = ([], [], [], [])
    pairs, sizes, truth = [], {}, {}
    for label, (clicks, cells, _) in parts.items():
        names = [f"{label}_{n}" for n in clicks.image_ids]
        new = (
            [names[i] for i in clicks.image],
            [clicks.worker_ids[w] for w in clicks.worker],
            *clicks.xy.T.tolist(),
        )
        for column, values in zip(columns, new, strict=True):
            column += values
        seen = zip(clicks.seen_image, clicks.seen_worker, strict=True)
        pairs += [(names[i], clicks.worker_ids[w], True) for i, w in seen]
        sizes |= {f"{label}_{n}": size for n, size in sizes_of(clicks).items()}
        truth |= {f"{label}_{n}": xy for n, xy in cells.items()}
    ids, workers = (np.array(c, dtype=object) for c in columns[:2])
    return Clicks.build(ids, workers, columns[2], columns[3], sizes=sizes, assignments=pairs), truth, 4.0


def real(folder: Path) -> Crowd:
    clicks = read_clicks(folder / "clicks.csv")
    images, _, xy = read_point_table(folder / "truth.csv")
    return clicks, {n: xy[np.array(images) == n] for n in clicks.image_ids}, 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("BRAINMAP_DATA", "../shared/data"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--only", default="real,study,uneven")
    options = parser.parse_args()
    crowds = {
        "real": lambda: ("Real crowd (Vo-Phamhi et al. 2021)", [real(Path(options.data) / "crowd")]),
        "study": lambda: ("Simulated: the study's crowd", simulated(options.images, options.seeds)),
        "uneven": lambda: (
            "Simulated: half of the images easy, half hard",
            uneven(options.images, options.seeds),
        ),
    }
    for name in options.only.split(","):
        replay(*crowds[name](), options.seeds)


if __name__ == "__main__":
    main()
