"""What `--until-certain` saves against fixed redundancy, at equal F1: simulated crowds and a real one, replayed.

Every image gets its workers in a random order. Fixed redundancy takes the first r of every image; until-certain
begins with three and gives one more to every image that `brainmap.crowd.certainty` does not call decided. Both are
aggregated by `brainmap gt`. What is saved is read off the curve of fixed redundancy: how many workers an image
would need for the F1 that until-certain reached, against how many it took.

    python benchmarks/crowd_certainty.py [--data DIR] [--seeds 5] [--images 24]
"""

from __future__ import annotations

import argparse
import csv
import os
from pathlib import Path

import numpy as np

from brainmap.crowd.certainty import CertaintyRule, judge_tiles
from brainmap.gt.aggregate import aggregate_clicks
from brainmap.gt.clicks import Clicks, read_clicks, read_point_table
from brainmap.gt.settings import GtSettings
from brainmap.gt.simulate import Simulation, simulate
from brainmap.points.matching import match_points, score

REDUNDANCY = range(3, 13)
RULES = {
    "no candidate in doubt": CertaintyRule(),
    "up to 10 % in doubt": CertaintyRule(tolerated=0.10),
    "up to 30 % in doubt": CertaintyRule(tolerated=0.30),
    "up to 60 % in doubt": CertaintyRule(tolerated=0.60),
}


def part(clicks: Clicks, pairs: set[tuple[int, int]]) -> Clicks:
    """The clicks of some (image, worker) pairs; all images stay."""
    chosen = np.array([(i, w) in pairs for i, w in zip(clicks.image, clicks.worker, strict=True)], bool)
    names, workers = np.array(clicks.image_ids, dtype=object), np.array(clicks.worker_ids, dtype=object)
    return Clicks.build(
        names[clicks.image[chosen]], workers[clicks.worker[chosen]], *clicks.xy[chosen].T,
        sizes={n: (int(h), int(w)) for n, h, w in zip(clicks.image_ids, clicks.height, clicks.width, strict=True)},
        assignments=[(clicks.image_ids[i], clicks.worker_ids[w], True) for i, w in sorted(pairs)],
    )  # fmt: skip


def judged(clicks: Clicks, consensus, truth: dict[str, np.ndarray], tolerance: float) -> float:
    """F1 of the accepted candidates over all images."""
    matched = found = true = 0
    for name, image in zip(clicks.image_ids, consensus.images, strict=True):
        xy = image.xy[image.posterior >= 0.5]
        matched += len(match_points(xy, truth[name], tolerance).index_a)
        found, true = found + len(xy), true + len(truth[name])
    return score(matched, found, true).f1


def orders(clicks: Clicks, seed: int) -> list[np.ndarray]:
    """Workers of each image, in random order."""
    rng = np.random.default_rng(seed)
    return [rng.permutation(clicks.seen_worker[clicks.seen_of(i)]) for i in range(len(clicks.image_ids))]


def fixed(clicks: Clicks, order: list[np.ndarray], truth: dict[str, np.ndarray], tolerance: float):
    """Mean workers and F1 for each redundancy."""
    curve = []
    for r in REDUNDANCY:
        some = part(clicks, {(i, int(w)) for i, workers in enumerate(order) for w in workers[:r]})
        f1 = judged(some, aggregate_clicks(some, GtSettings()), truth, tolerance)
        curve.append((np.mean([min(r, len(w)) for w in order]), f1))
    return np.array(curve)


def until_certain(clicks, order, truth, tolerance, rule: CertaintyRule) -> tuple[float, float, int]:
    """Mean workers, F1, and images that ended in doubt."""
    given = np.array([min(rule.least, len(w)) for w in order])
    while True:
        some = part(clicks, {(i, int(w)) for i, workers in enumerate(order) for w in workers[: given[i]]})
        consensus = aggregate_clicks(some, GtSettings())
        states = judge_tiles(some, consensus, rule)
        more = np.array([states[name].more for name in clicks.image_ids])
        more &= given < np.array([len(w) for w in order])
        if not more.any():
            doubt = sum(states[name].why != "certain" for name in clicks.image_ids)
            return float(given.mean()), judged(some, consensus, truth, tolerance), doubt
        given[more] += 1


def equal_f1(curve: np.ndarray, f1: float) -> float:
    """Workers that fixed redundancy needs for an F1: between the two redundancies beside it; nan beyond the ends."""
    best = np.maximum.accumulate(curve[:, 1])
    if not best[0] <= f1 <= best[-1]:
        return float("nan")
    keep = np.r_[True, np.diff(best) > 0]
    return float(np.interp(f1, best[keep], curve[keep, 0]))


def replay(name: str, crowds: list[tuple[Clicks, dict[str, np.ndarray], float]], seeds: int) -> None:
    """One table: the curve of fixed redundancy, and every rule beside it."""
    print(f"\n## {name}\n", flush=True)
    runs = [
        (clicks, orders(clicks, 100 + k), truth, tol)
        for k in range(seeds)
        for clicks, truth, tol in [crowds[k % len(crowds)]]
    ]
    curves = [fixed(*run) for run in runs]
    mean = np.mean(curves, axis=0)
    print("| fixed redundancy | " + " | ".join(f"{r}" for r in REDUNDANCY) + " |")
    print("|---" * (len(REDUNDANCY) + 1) + "|")
    print("| F1 | " + " | ".join(f"{f:.3f}" for f in mean[:, 1]) + " |\n")
    print(
        "| until certain | workers an image | F1 | fixed needs | saved | saved against 12 | F1 lost against 12 | images left in doubt |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for title, rule in RULES.items():
        found = np.array([until_certain(*run, rule) for run in runs])
        need = np.array([equal_f1(curve, f1) for curve, f1 in zip(curves, found[:, 1], strict=True)])
        pooled = equal_f1(mean, float(found[:, 1].mean()))
        saved = 1 - found[:, 0].mean() / pooled
        each = 1 - found[:, 0] / need
        spread = f" ({np.nanmin(each):+.0%} to {np.nanmax(each):+.0%})" if np.isfinite(each).any() else ""
        print(
            f"| {title} | {found[:, 0].mean():.2f} | {found[:, 1].mean():.3f} | {pooled:.2f} | {saved:+.0%}{spread} | "
            f"{1 - found[:, 0].mean() / mean[-1, 0]:.0%} | {mean[-1, 1] - found[:, 1].mean():+.3f} | {found[:, 2].mean():.1f} |"
        )


def simulated(images: int, seeds: int, **changes) -> list[tuple[Clicks, dict[str, np.ndarray], float]]:
    crowds = []
    for seed in range(seeds):
        crowd = simulate(Simulation(n_images=images, missing=0.0, n_workers=36, **changes), seed)
        truth = {f"image_{i:04d}": xy for i, xy in enumerate(crowd.truth)}
        crowds.append((crowd.clicks, truth, 4.0))
    return crowds


def real(folder: Path) -> tuple[Clicks, dict[str, np.ndarray], float]:
    clicks = read_clicks(folder / "clicks.csv")
    with (folder / "truth.csv").open(encoding="utf-8") as stream:
        header = next(csv.reader(stream))
    assert {"image_id", "x", "y"} <= set(header), header
    images, _, xy = read_point_table(folder / "truth.csv")
    return clicks, {n: xy[np.array(images) == n] for n in clicks.image_ids}, 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("BRAINMAP_DATA", "../shared/data"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, default=24)
    options = parser.parse_args()
    folder = Path(options.data) / "crowd"
    if folder.is_dir():
        replay("Real crowd (Vo-Phamhi et al. 2021)", [real(folder)], options.seeds)
    else:
        print(f"no real crowd at {folder}")
    replay("Simulated: the study's crowd", simulated(options.images, options.seeds), options.seeds)
    uneven = []
    for (easy, truth_a, tol), (hard, truth_b, _) in zip(
        simulated(options.images // 2, options.seeds, difficulty=0.3, sensitivity=0.9, n_sites=10),
        simulated(options.images // 2, options.seeds, difficulty=1.5, sensitivity=0.55),
        strict=True,
    ):
        uneven.append((*joined(easy, truth_a, hard, truth_b), tol))
    replay("Simulated: half of the images easy, half hard", uneven, options.seeds)


def joined(a: Clicks, truth_a, b: Clicks, truth_b):
    """Two crowds as one: the same workers, the images of both."""
    columns: list[list] = [[], [], [], []]
    pairs, sizes, truth = [], {}, {}
    for label, clicks, cells in (("easy", a, truth_a), ("hard", b, truth_b)):
        names = [f"{label}_{n}" for n in clicks.image_ids]
        columns[0] += [names[i] for i in clicks.image]
        columns[1] += [clicks.worker_ids[w] for w in clicks.worker]
        columns[2] += clicks.xy[:, 0].tolist()
        columns[3] += clicks.xy[:, 1].tolist()
        pairs += [
            (names[i], clicks.worker_ids[w], True)
            for i, w in zip(clicks.seen_image, clicks.seen_worker, strict=True)
        ]
        sizes |= {n: (int(h), int(w)) for n, h, w in zip(names, clicks.height, clicks.width, strict=True)}
        truth |= {f"{label}_{n}": xy for n, xy in cells.items()}
    ids, workers = (np.array(c, dtype=object) for c in columns[:2])
    return Clicks.build(ids, workers, columns[2], columns[3], sizes=sizes, assignments=pairs), truth


if __name__ == "__main__":
    main()
