"""Do the intervals of `brainmap review` hold the truth? A simulated brain is reviewed 500 times over.

    python benchmarks/review_intervals.py [--repeats 500]

The person is right, the detector's scores are not calibrated, its precision and what it misses differ between
divisions, and missed cells come in clusters. Printed: how often the stated 95 % intervals hold the truth.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np

from brainmap.view.estimate import Fields, Strata, precision, recall
from brainmap.view.samples import draw_fields, order_cells, strata_of


@dataclass
class Brain:
    """A simulated brain: cells found with division, score and truth, and fields with what is missed in them."""

    division: np.ndarray
    score: np.ndarray
    right: np.ndarray
    field_division: np.ndarray
    field_size: np.ndarray
    field_missed: np.ndarray

    @property
    def precision(self) -> float:
        return float(self.right.mean())

    @property
    def recall(self) -> float:
        found = self.right.sum()
        return float(found / (found + self.field_missed.sum()))


def simulate(rng: np.random.Generator, cells: int, divisions: int, quality: float) -> Brain:
    """A brain whose divisions are of very different sizes and qualities."""
    share = rng.dirichlet(np.full(divisions, 0.7))
    division = rng.choice(divisions, cells, p=share)
    score = 0.4 + 0.6 * rng.beta(4, 1.2, cells)
    shift = rng.normal(quality, 0.7, divisions)
    chance = 1 / (1 + np.exp(-(np.log(score / (1.0001 - score)) * 0.7 + shift[division])))
    right = rng.uniform(size=cells) < chance
    fields = max(300, cells // 6)
    field_division = rng.choice(divisions, fields, p=share)
    dense = rng.gamma(0.8, 1 / 0.8, fields)
    found = rng.poisson(dense * cells / fields)
    miss = rng.beta(2, 14, divisions)[field_division] * rng.gamma(2, 0.5, fields)
    return Brain(
        division, score, right, field_division, found + 0.1 * cells / fields, rng.poisson(found * miss)
    )


def review(
    brain: Brain, rng: np.random.Generator, cells: int, fields: int
) -> tuple[Strata, Fields, np.ndarray]:
    """What a person who judges the first cells and fields of the deck finds; the strata by division."""
    stratum, sizes = strata_of(brain.division, brain.score)
    drawn = order_cells(stratum, rng)[:cells]
    judged = np.bincount(stratum[drawn], minlength=len(sizes))
    right = np.bincount(stratum[drawn], brain.right[drawn], minlength=len(sizes)).astype(np.int64)
    chosen = draw_fields(brain.field_size, fields, rng)
    share = brain.field_size / brain.field_size.sum()
    return Strata(sizes, judged, right), Fields(share[chosen], brain.field_missed[chosen]), chosen


def coverage(repeats: int, seed: int, cells: int = 85, fields: int = 15) -> dict[str, float]:
    """Share of repeats whose intervals hold the truth."""
    rng = np.random.default_rng(seed)
    held: dict[str, list[bool]] = {"precision": [], "recall": [], "precision of a division": []}
    widths: dict[str, list[float]] = {"precision": [], "recall": []}
    for repeat in range(repeats):
        if repeat % 5 == 0:
            # A new brain now and then; each repeat is a new sample.
            brain = simulate(
                rng, int(10 ** rng.uniform(3.5, 5)), int(rng.integers(3, 13)), rng.uniform(-0.5, 2.5)
            )
        strata, seen, _ = review(brain, rng, cells, fields)
        for name, found, true in (
            ("precision", precision(strata), brain.precision),
            ("recall", recall(strata, seen, seed=repeat), brain.recall),
        ):
            assert found is not None
            held[name].append(found.low <= true <= found.high)
            widths[name].append(found.high - found.low)
        bins = len(strata.size) // (int(brain.division.max()) + 1)
        for number in range(int(brain.division.max()) + 1):
            part = slice(number * bins, (number + 1) * bins)
            own = Strata(strata.size[part], strata.judged[part], strata.right[part])
            if own.judged.sum() >= 5:
                found = precision(own)
                assert found is not None
                true = float(brain.right[brain.division == number].mean())
                held["precision of a division"].append(found.low <= true <= found.high)
    result = {name: float(np.mean(values)) for name, values in held.items()}
    return result | {f"width of {name}": float(np.mean(values)) for name, values in widths.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for cells, fields in ((85, 15), (40, 10), (250, 50)):
        start = time.perf_counter()
        found = coverage(given.repeats, given.seed, cells, fields)
        print(
            f"{cells} cells and {fields} fields, {given.repeats} repeats, {time.perf_counter() - start:.0f} s"
        )
        for name, value in found.items():
            print(f"  {name:<26}{value:.3f}")


if __name__ == "__main__":
    main()
