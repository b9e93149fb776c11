"""How good `brainmap tune` is: marks simulated on scores that are wrong in known ways.

    python benchmarks/tune.py [--repeats 500] [--marks 50] [--seed 1]
    python benchmarks/tune.py --candidates TABLE.csv    real candidates: columns score,is_cell

Every repeat draws a data set: cells and false candidates whose scores were calibrated elsewhere (a shift, another
slope), a third population of tissue texture that the detector never met, cells without any candidate. A simulated
person goes through some of what is shown at the present threshold, says yes or no, and marks what is missed around
there (`fields`), or is asked about candidates of all scores (`deck`). Printed: how often the 95 % intervals of
precision, recall and F1 hold the truth, and the F1 lost against the best threshold, that only the truth tells.
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from brainmap.infer.peaks import reaches
from brainmap.points.recalibration import Marked, Recalibration, Spread, thresholds_between
from brainmap.run.tune import supported

LOWEST = 0.05


@dataclass(frozen=True)
class DataSet:
    """Candidates of a brain with the truth; `never` cells have none."""

    score: NDArray[np.float64]
    is_cell: NDArray[np.bool_]
    never: int

    def scores_at(self, threshold: float) -> tuple[float, float, float]:
        """Precision, recall, F1."""
        shown = reaches(self.score, threshold)
        hits, cells = int(self.is_cell[shown].sum()), int(self.is_cell.sum()) + self.never
        return hits / max(1, shown.sum()), hits / cells, 2 * hits / max(1, int(shown.sum()) + cells)


def simulate(rng: np.random.Generator) -> DataSet:
    """A brain on which a detector's score is not the probability it claims to be."""
    cells = int(np.exp(rng.uniform(np.log(2_000), np.log(40_000))))
    apart = rng.uniform(2.5, 5.0)
    # Log odds of a detector calibrated on as many cells as false candidates, each with a spread of its own.
    true = rng.normal(apart / 2, np.sqrt(apart), cells)
    false = rng.normal(-apart / 2, np.sqrt(apart), int(cells * np.exp(rng.normal(0.3, 0.7))))
    texture = rng.normal(rng.uniform(-1.5, 1.0), rng.uniform(0.6, 1.2), int(cells * rng.uniform(0.0, 1.0)))
    logit = np.concatenate([true, false, texture])
    logit = rng.normal(0, 0.7) + np.exp(rng.normal(0, 0.2)) * logit
    score = 1 / (1 + np.exp(-logit))
    is_cell = np.arange(len(logit)) < cells
    kept = reaches(score, LOWEST)
    never = int((~kept[:cells]).sum()) + int(rng.uniform(0, 0.08) * cells)
    return DataSet(score[kept].astype(np.float32).astype(np.float64), is_cell[kept], never)


def mark(data: DataSet, present: float, count: int, how: str, rng: np.random.Generator) -> Marked:
    """About `count` marks of a person who makes no mistakes."""
    shown, cell = reaches(data.score, present), data.is_cell
    if how == "deck":
        # As many of every tenth of the scores.
        tenth = np.minimum((data.score * 10).astype(int), 9)
        weight = 1.0 / np.bincount(tenth, minlength=10)[tenth]
        chosen = rng.choice(len(data.score), min(count, len(cell)), replace=False, p=weight / weight.sum())
        return Marked(data.score[chosen], cell[chosen], np.empty(0), 0)
    total = int(shown.sum()) + int((cell & ~shown).sum()) + data.never
    seen = rng.random(len(cell)) < count / total
    asked, missed = seen & shown, seen & cell & ~shown
    never = int(rng.binomial(data.never, count / total))
    return Marked(data.score[asked], cell[asked], data.score[missed], never, complete=True)


def judge(
    data: DataSet, present: float, count: int, how: str, rng: np.random.Generator
) -> dict[str, float] | None:
    """One repeat; None where the marks are refused (all of one kind)."""
    marked = mark(data, present, count, how, rng)
    if marked.is_cell.all() or not marked.is_cell.any():
        return None
    spread = Spread.over(thresholds_between(LOWEST, present))
    spread.add(data.score)
    result = Recalibration(spread, marked, present)
    chosen = result.best
    changed = supported(result, chosen)
    used = chosen if changed else present
    best = max(data.scores_at(t)[2] for t in spread.thresholds)
    row = {
        "before": data.scores_at(present)[2], "best": best, "after": data.scores_at(used)[2],
        "at once": data.scores_at(chosen)[2], "changed": float(changed),
    }  # fmt: skip
    for name, threshold in (("now", present), ("new", chosen)):
        if how == "deck":
            # Without missed marks the cells that have no candidate are unknown: recall is of the candidates.
            truth = DataSet(data.score, data.is_cell, 0).scores_at(threshold)
        else:
            truth = data.scores_at(threshold)
        estimate = result.estimate(threshold)
        for kind, value in zip(("precision", "recall", "f1"), truth, strict=True):
            interval = getattr(estimate, kind)
            row[f"{kind} {name} held"] = float(interval.low <= value <= interval.high)
            row[f"{kind} {name} width"] = interval.high - interval.low
    return row


def real_data(path: str) -> DataSet:
    """Candidates with the truth from a CSV."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    score = np.array([float(row["score"]) for row in rows])
    is_cell = np.array([row["is_cell"] in ("1", "True", "true", "yes") for row in rows])
    kept = score >= LOWEST
    return DataSet(score[kept], is_cell[kept], int(is_cell[~kept].sum()))


def run(
    repeats: int, count: int, how: str, seed: int, present: float, given: DataSet | None
) -> dict[str, float]:
    """Means over repeats, and the share that ends within 0.02 of the best F1."""
    rows = []
    for repeat in range(repeats):
        rng = np.random.default_rng([seed, repeat])
        row = judge(given or simulate(rng), present, count, how, rng)
        if row is not None:
            rows.append(row)
    found = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    lost = np.array([row["best"] - row["after"] for row in rows])
    found |= {"repeats": len(rows), "lost": float(lost.mean()), "within 0.02": float((lost <= 0.02).mean())}
    return found


def main() -> None:
    """Print a table per way of marking."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=500)
    parser.add_argument("--marks", type=int, nargs="+", default=[50])
    parser.add_argument("--present", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--candidates")
    parser.add_argument("--how", nargs="+", default=["fields", "deck"], choices=["fields", "deck"])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    given = None if options.candidates is None else real_data(options.candidates)
    for how in options.how:
        for count in options.marks:
            found = run(options.repeats, count, how, options.seed, options.present, given)
            if options.json:
                print(json.dumps({"how": how, "marks": count, **found}))
                continue
            print(f"\n{how}, {count} marks, {found['repeats']} repeats")
            for name, value in found.items():
                print(f"  {name:<22}{value:.3f}")


if __name__ == "__main__":
    main()
