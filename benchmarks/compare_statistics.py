"""The tests of `brainmap compare` on studies with a known truth, beside plain ones.

python benchmarks/compare_statistics.py [--repeats N] [--only TEXT] [--json FILE]

Studies of 300 regions: overdispersed counts whose dispersion differs between regions, densities gamma or log-normal
between animals, and a staining factor shared by all regions of an animal. Without a difference: the share of p below
0.05 and 0.001, and the share of studies with any discovery at q <= 0.05, which is then the rate of false discoveries.
With 20 regions changed 2- or 3-fold: the share found, and of the discoveries the share that is false.
`plain Wald` is a negative binomial regression of each region by itself with a normal reference.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import stats

from brainmap.cohort.model.densities import contrast_densities, log_density
from brainmap.cohort.model.design import Contrast
from brainmap.cohort.model.levels import median_levels
from brainmap.cohort.model.negative_binomial import deviance, fit_means
from brainmap.cohort.model.statistics import adjust, count_test
from brainmap.cohort.simulate import Cohort, Simulation, simulate

STUDIES = {
    "no staining factor": Simulation(shared_sd=0.0),
    "staining 20 %": Simulation(),
    "staining 40 %": Simulation(shared_sd=0.4),
    "staining 20 %, log-normal": Simulation(lognormal=True),
    "dispersion 0.3, log-normal": Simulation(dispersion=0.3, dispersion_freedom=4.0, lognormal=True),
    "few cells (0.2 to 30)": Simulation(fewest=0.2, most=30.0),
    "regions alike, dispersion 0.05": Simulation(shared_sd=0.0, dispersion=0.05, dispersion_freedom=0),
    "3 against 3": Simulation(animals=(3, 3)),
    "4 against 8": Simulation(animals=(4, 8)),
}
FOUND_IN = ("regions alike, dispersion 0.05", "no staining factor", "staining 20 %")
ALPHA = 0.05
WALD_REPEATS = 50  # slow, and far enough off to be seen in a few


def moderated(cohort: Cohort) -> np.ndarray:
    return count_test(cohort.count.astype(float), cohort.volume_mm3, cohort.group == 1).p


def relative(cohort: Cohort) -> np.ndarray:
    level = median_levels(cohort.count.astype(float), cohort.volume_mm3).factor
    return count_test(cohort.count.astype(float), cohort.volume_mm3 * level[:, None], cohort.group == 1).p


def welch(cohort: Cohort) -> np.ndarray:
    in_b = cohort.group == 1
    values = log_density(cohort.count.astype(float), cohort.volume_mm3)
    design = np.column_stack([np.ones(len(in_b)), in_b]).astype(float)
    contrast = Contrast("b - a", np.array([[0.0], [1.0]]))
    return contrast_densities(values, design, contrast, np.stack([~in_b, in_b]), welch=True).p


def plain_wald(cohort: Cohort) -> np.ndarray:
    """Dispersion of each region alone by maximum likelihood on a grid; z-test of the coefficient."""
    y, offset = cohort.count.T.astype(float), np.log(cohort.volume_mm3.T)
    design = np.column_stack([np.ones(len(cohort.group)), cohort.group == 1])
    weight = np.ones_like(y)
    best, p = np.full(len(y), -np.inf), np.ones(len(y))
    for dispersion in np.geomspace(3e-3, 5, 10):
        fit = fit_means(y, offset, design, dispersion, weight)
        likelihood = -deviance(y, fit.mean, dispersion, weight).sum(axis=1) / 2
        likelihood += saturated(y, dispersion).sum(axis=1)
        z = fit.coefficients[:, 1] / np.sqrt(fit.covariance[:, 1, 1])
        better = likelihood > best
        best, p = np.where(better, likelihood, best), np.where(better, 2 * stats.norm.sf(np.abs(z)), p)
    return p


def saturated(y: np.ndarray, dispersion: float) -> np.ndarray:
    """Log-likelihood of each count at a mean equal to it."""
    size = 1 / dispersion
    return np.where(y > 0, stats.nbinom.logpmf(y, size, size / (size + np.maximum(y, 1e-9))), 0.0)


TESTS: dict[str, Callable[[Cohort], np.ndarray]] = {
    "compare, count": moderated,
    "compare, count, --relative": relative,
    "compare, density (Welch)": welch,
    "plain Wald": plain_wald,
}


def run(simulation: Simulation, repeats: int) -> dict[str, dict[str, float]]:
    """Means over repeated studies, per test."""
    rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in TESTS}
    for seed in range(repeats):
        cohort = simulate(simulation, seed)
        cells = cohort.count.sum(axis=0)
        null = (cells > 0) & (cohort.direction == 0)
        for name, test in TESTS.items():
            if test is plain_wald and seed >= WALD_REPEATS:
                continue
            p = test(cohort)
            found = adjust(p, cells) <= ALPHA
            false = (found & null).sum() / max(found.sum(), 1)
            power = found[cohort.planted].mean() if len(cohort.planted) else np.nan
            rows[name].append(((p[null] < 0.05).mean(), (p[null] < 0.001).mean(), found.any(), false, power))
    keys = ("p < 0.05", "p < 0.001", "any discovery", "false discoveries", "found")
    return {
        name: dict(zip(keys, np.mean(values, axis=0).tolist(), strict=True)) for name, values in rows.items()
    }


def show(title: str, result: dict[str, dict[str, float]], keys: tuple[str, ...]) -> None:
    print(f"\n{title}\n{'':<28}" + "".join(f"{key:>19}" for key in keys))
    for name, values in result.items():
        print(f"{name:<28}" + "".join(f"{values[key]:>19.4f}" for key in keys), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--only", default="", help="studies whose title contains this")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = {}
    for name, simulation in STUDIES.items():
        title = f"no difference, {name}"
        if options.only in title:
            results[title] = run(simulation, options.repeats)
            show(title, results[title], ("p < 0.05", "p < 0.001", "any discovery"))
    for name in FOUND_IN:
        for fold in (2.0, 3.0):
            simulation = Simulation(**vars(STUDIES[name]) | {"planted": 20, "fold": fold})
            title = f"20 of 300 changed {fold:g}-fold, {name}"
            if options.only not in title:
                continue
            results[title] = run(simulation, options.repeats)
            show(title, results[title], ("found", "false discoveries", "p < 0.05"))
    cohort = simulate(Simulation(), 0)
    start = time.process_time()
    moderated(cohort)
    print(f"\n300 regions, 8 animals: {time.process_time() - start:.3f} s of CPU")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
