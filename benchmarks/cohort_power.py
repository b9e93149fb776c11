"""Rates of false discoveries and power of `brainmap compare` on studies with a known truth, beside other tests.

python benchmarks/cohort_power.py [--repeats N] [--only TEXT] [--slow] [--csv FILE]
    [--figure FILE.svg] [--power-figure FILE.svg]

Studies of 300 regions in 12 divisions, 5 to 3000 cells. A region's density scatters between animals by its own
coefficient of variation (15 to 60 %), regions of a division share a part of it, and an animal's staining multiplies all
its densities (0.6 to 1.6). Without a difference: the share of studies with any discovery, which is then the rate of
false discoveries. With 20 regions changed twofold inside two divisions: the share of them found, of the two divisions'
cells that changed the share found to change, and of the discoveries the share that is false.

`flat, levels kept` is Benjamini and Hochberg over all regions with staining left in; `Welch` is Welch's t-test of log
densities; with --slow also statsmodels' negative binomial regression of each region, and PyDESeq2 if it is installed.
"""

from __future__ import annotations

import argparse
import csv
import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from brainmap.cohort.compare import LEVEL_SD, add_up_divisions, cautious, contrast_error
from brainmap.cohort.model.densities import contrast_densities, find_outliers, log_density, residuals
from brainmap.cohort.model.design import Contrast
from brainmap.cohort.model.levels import median_levels
from brainmap.cohort.model.shrinkage import shared_in_divisions, shrink
from brainmap.cohort.model.statistics import adjust, contrast_counts, fit_counts, in_family
from brainmap.cohort.model.tree import Divisions, adjust_tree

REGIONS, DIVISIONS, ALPHA = 300, 12, 0.05


@dataclass(frozen=True)
class Scene:
    """What is simulated; see the module."""

    n: tuple[int, ...] = (6, 6)
    cv: tuple[float, float] = (0.15, 0.6)
    staining: tuple[float, float] = (0.6, 1.6)
    division_sd: float = 0.15
    unequal: float = 1.0
    pairs: bool = False
    batch: float = 0.0
    cross: bool = False
    planted: int = 0
    fold: float = 2.0
    lognormal: bool = True


@dataclass(frozen=True)
class Drawn:
    """A study: arrays (animals, regions); `contrast` is what is tested."""

    count: np.ndarray
    volume: np.ndarray
    design: np.ndarray
    contrast: Contrast
    sides: np.ndarray | None
    group: np.ndarray
    of: np.ndarray
    changed: np.ndarray
    plain: bool = field(default=True)


def draw(scene: Scene, seed: int) -> Drawn:
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(len(scene.n)), scene.n)
    animals = len(group)
    sizes = rng.multinomial(REGIONS - 5 * DIVISIONS, rng.dirichlet(np.full(DIVISIONS, 3.0))) + 5
    of = np.repeat(np.arange(DIVISIONS), sizes)
    mean = np.exp(rng.uniform(np.log(5), np.log(3000), REGIONS))
    typical = rng.gamma(2.0, 0.5, REGIONS)
    volume = typical * np.exp(rng.normal(0, 0.08, (animals, REGIONS)))
    changed = np.zeros(REGIONS, dtype=bool)
    if scene.planted:
        large = np.argsort(-sizes)[:6]
        for division in rng.choice(large, 2, replace=False):
            changed[rng.choice(np.flatnonzero(of == division), scene.planted // 2, replace=False)] = True
    active = group == 1
    columns = [np.ones(animals), *(group == g for g in range(1, len(scene.n)))]
    vector = np.zeros(len(scene.n))
    vector[1] = 1.0
    log = np.log(mean) + np.log(volume / typical)
    if scene.cross:
        sex = np.arange(animals) % 2
        columns += [sex, sex * active]
        vector = np.array([0.0, 0.0, 0.0, 1.0])
        active = active & (sex == 1)
    if scene.batch:
        batch = np.arange(animals) % 2 if not scene.pairs else np.zeros(animals)
        columns.append(batch)
        log = log + batch[:, None] * rng.normal(0, scene.batch, REGIONS)
    if scene.pairs:
        pair = np.concatenate([np.arange(n) for n in scene.n])
        columns += [pair == p for p in range(1, max(scene.n))]
        log = log + rng.normal(0, 0.4, (max(scene.n), REGIONS))[pair]
    log = log + np.log(scene.fold) * (active[:, None] & changed)
    cv = rng.uniform(*scene.cv, REGIONS)
    shared = np.minimum(scene.division_sd, 0.7 * cv)
    spread = np.where(group == 1, scene.unequal, 1.0)[:, None]
    log = log + spread * shared * rng.normal(0, 1, (animals, DIVISIONS))[:, of]
    own = np.sqrt(np.log1p(cv**2) - np.minimum(shared**2, 0.5 * np.log1p(cv**2)))
    if scene.lognormal:
        log = log + spread * own * rng.normal(0, 1, (animals, REGIONS))
    else:
        shape = 1 / (spread * own) ** 2
        log = log + np.log(rng.gamma(shape, 1 / shape))
    if scene.unequal != 1.0:
        # Groups that scatter differently have the same mean, not the same median.
        total = shared**2 + (own**2 if scene.lognormal else 0.0)
        log = log - spread**2 * total / 2
    log = log + np.log(rng.uniform(*scene.staining, animals))[:, None]
    design = np.column_stack(columns).astype(float)
    vector = np.concatenate([vector, np.zeros(design.shape[1] - len(vector))])
    simple = not (scene.cross or scene.pairs or scene.batch)
    sides = None if scene.cross else np.stack([group == 0, group == 1])
    contrast = Contrast("b - a", vector[:, None])
    return Drawn(rng.poisson(np.exp(log)), volume, design, contrast, sides, group, of, changed, simple)


@dataclass(frozen=True)
class Called:
    """What a method calls: regions, and divisions if it tests them."""

    region: np.ndarray
    division: np.ndarray | None = None


@dataclass(frozen=True)
class Tested:
    """p-values of regions and divisions, and who is in the family."""

    p: np.ndarray
    p_division: np.ndarray
    family: np.ndarray
    cells: np.ndarray


@functools.cache
def prepared(key: Key, relative: bool | None) -> tuple[np.ndarray, np.ndarray]:
    """Counts and volumes with levels divided out and outliers missing, as `brainmap compare` does it."""
    study = key.study
    count, volume = study.count.astype(float), study.volume
    levels = median_levels(count, volume)
    if relative is not False and levels is not None:
        log = np.log(levels.factor)
        residual = log - study.design @ np.linalg.lstsq(study.design, log, rcond=None)[0]
        spare = len(log) - study.design.shape[1]
        sd = np.sqrt(max(residual @ residual / spare - np.mean(levels.error**2), 0))
        if relative or sd > LEVEL_SD:
            volume = volume * levels.factor[:, None]
    flag = find_outliers(count, volume, study.design).flag
    return count, np.where(flag, np.nan, volume)


@functools.cache
def tested(key: Key, relative: bool | None, measure: str) -> Tested:
    """The tests of `brainmap compare` on arrays."""
    study = key.study
    count, volume = prepared(key, relative)
    cells = np.where(np.isfinite(volume), count, 0).sum(axis=0)

    def test(count: np.ndarray, volume: np.ndarray) -> np.ndarray:
        values = log_density(count, volume)
        other = contrast_densities(values, study.design, study.contrast, study.sides, welch=study.plain)
        if measure == "welch":
            return other.p
        model = fit_counts(count, volume, study.design, None if study.sides is None else study.group)
        counts = contrast_counts(model, study.design, study.contrast, study.sides)
        both = cautious(counts, other)
        return other.p if measure == "density" and both is counts else both.p

    p = test(count, volume)
    sums = add_up_divisions(count, volume, divisions_of(study))
    return Tested(p, test(*sums), in_family(p, cells), cells)


class Key:
    """A study as a key: the same object is the same study."""

    def __init__(self, study: Drawn) -> None:
        self.study = study


def divisions_of(study: Drawn) -> Divisions:
    names = tuple(map(str, range(DIVISIONS)))
    return Divisions(np.arange(DIVISIONS), names, names, study.of)


def compare(key: Key, *, relative: bool | None, tree: bool, measure: str = "count") -> Called:
    """What is called, down the tree or all regions at once."""
    found = tested(key, relative, measure)
    if not tree:
        return Called(np.nan_to_num(adjust(found.p, found.cells), nan=1) <= ALPHA)
    q, q_division = adjust_tree(found.p, found.family, divisions_of(key.study), found.p_division)
    return Called(np.nan_to_num(q, nan=1) <= ALPHA, np.nan_to_num(q_division, nan=1) <= ALPHA)


def pooled(key: Key) -> Called:
    """Regions whose sign is in doubt by less than 5 %."""
    study = key.study
    count, volume = prepared(key, None)
    model = fit_counts(count, volume, study.design, None if study.sides is None else study.group)
    result = contrast_counts(model, study.design, study.contrast, study.sides)
    vector = study.contrast.matrix[:, 0]
    shared = contrast_error(result.scatter.shared, study.design, vector)
    left = residuals(log_density(count, volume) * np.log(2), study.design)
    own = contrast_error(shared_in_divisions(left, study.design, study.of), study.design, vector)
    ratio = np.where(tested(key, None, "count").family, result.log2_ratio, np.nan)
    found = shrink(ratio, result.error, result.freedom, study.of, shared, own)
    return Called(np.nan_to_num(found.lfsr, nan=1) <= ALPHA)


def statsmodels_nb(key: Key) -> Called:
    """Negative binomial regression of each region with the animals' level as offset; Wald."""
    import statsmodels.api as sm

    study = key.study
    levels = median_levels(study.count.astype(float), study.volume)
    offset = np.log(study.volume * levels.factor[:, None])
    p = np.ones(REGIONS)
    for i in range(REGIONS):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                fit = sm.NegativeBinomial(study.count[:, i], study.design, offset=offset[:, i]).fit(
                    disp=0, maxiter=50
                )
                p[i] = fit.t_test(study.contrast.matrix.T).pvalue.item()
            except Exception:
                p[i] = 1.0
    return Called(adjust(np.nan_to_num(p, nan=1.0), study.count.sum(axis=0)) <= ALPHA)


def pydeseq2(key: Key) -> Called:
    """DESeq2 in Python; it knows no volumes, so densities are scaled to counts."""
    import pandas as pd
    from pydeseq2.dds import DeseqDataSet
    from pydeseq2.ds import DeseqStats

    study = key.study
    index = [f"m{i}" for i in range(len(study.group))]
    typical = np.exp(np.log(study.volume).mean(axis=0))
    counts = np.round(study.count / study.volume * typical).astype(int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        meta = pd.DataFrame({"group": np.where(study.group == 1, "b", "a")}, index=index)
        data = DeseqDataSet(
            counts=pd.DataFrame(counts, index=index), metadata=meta, design="~group", quiet=True, n_cpus=1
        )
        data.deseq2()
        stats = DeseqStats(data, contrast=["group", "b", "a"], quiet=True, n_cpus=1)
        stats.summary()
    return Called(stats.results_df["padj"].fillna(1).to_numpy() <= ALPHA)


METHODS: dict[str, Callable[[Key], Called]] = {
    "compare (tree)": lambda s: compare(s, relative=None, tree=True),
    "compare, flat": lambda s: compare(s, relative=None, tree=False),
    "flat, levels kept": lambda s: compare(s, relative=False, tree=False),
    "tree, levels kept": lambda s: compare(s, relative=False, tree=True),
    "densities, tree": lambda s: compare(s, relative=None, tree=True, measure="density"),
    "Welch, levels kept": lambda s: compare(s, relative=False, tree=False, measure="welch"),
    "sign in doubt < 5 %": pooled,
}
SLOW: dict[str, Callable[[Key], Called]] = {"statsmodels NB": statsmodels_nb, "PyDESeq2": pydeseq2}

NULLS = {
    "3 v 3": Scene((3, 3)),
    "4 v 4": Scene((4, 4)),
    "6 v 6": Scene((6, 6)),
    "8 v 8": Scene((8, 8)),
    "6 v 6, gamma": Scene((6, 6), lognormal=False),
    "6 v 6, regions correlated": Scene((6, 6), division_sd=0.4),
    "4 v 4, animals alike": Scene((4, 4), staining=(1, 1), cv=(0.15, 0.3), division_sd=0.05),
    "4 v 8": Scene((4, 8)),
    "8 v 4, b scatters twice as much": Scene((8, 4), unequal=2.0),
    "6 v 6, b scatters twice as much": Scene((6, 6), unequal=2.0),
    "paired 6 v 6": Scene((6, 6), pairs=True),
    "three groups of 5": Scene((5, 5, 5)),
    "batches 6 v 6": Scene((6, 6), batch=0.4),
    "interaction 8 v 8": Scene((8, 8), cross=True),
}
POWERS = {
    "6 v 6, twofold": Scene((6, 6), planted=20),
    "6 v 6, animals alike, twofold": Scene(
        (6, 6), planted=20, staining=(1, 1), cv=(0.15, 0.3), division_sd=0.05
    ),
    "4 v 4, twofold": Scene((4, 4), planted=20),
    "8 v 8, twofold": Scene((8, 8), planted=20),
    "paired 6 v 6, twofold": Scene((6, 6), planted=20, pairs=True),
    "interaction 8 v 8, threefold": Scene((8, 8), planted=20, cross=True, fold=3.0),
}


KEYS = ("any", "FDR", "FDR tree", "found", "divisions")
Rows = dict[str, list[list[float]]]


def judge(study: Drawn, methods: dict[str, Callable[[Key], Called]]) -> dict[str, list[float]]:
    """What every method makes of one study, in the order of `KEYS`."""
    key = Key(study)
    true = np.array([study.changed[study.of == d].any() for d in range(DIVISIONS)])
    rows = {}
    for name, method in methods.items():
        called = method(key)
        region, division = called.region, called.division
        none = np.full(DIVISIONS, False) if division is None else division
        false = (region & ~study.changed).sum()
        rows[name] = [
            float(region.any() or none.any()),
            false / max(region.sum(), 1),
            (false + (none & ~true).sum()) / max(region.sum() + none.sum(), 1),
            region[study.changed].mean() if study.changed.any() else np.nan,
            np.nan if division is None or not true.any() else none[true].mean(),
        ]
    prepared.cache_clear()
    tested.cache_clear()
    return rows


class Ledger:
    """Results of every study, kept in a CSV as they come: a run that is stopped goes on where it was."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.rows, self.done = path, {}, set()
        if path is not None and path.exists():
            with path.open(encoding="utf-8", newline="") as stream:
                for title, seed, method, *values in csv.reader(stream):
                    self._keep(title, int(seed), method, [float(v) for v in values])

    def _keep(self, title: str, seed: int, method: str, values: list[float]) -> None:
        self.rows.setdefault(title, {}).setdefault(method, []).append(values)
        self.done.add((title, seed))

    def add(self, title: str, seed: int, found: dict[str, list[float]]) -> None:
        for method, values in found.items():
            self._keep(title, seed, method, values)
        if self.path is not None:
            with self.path.open("a", encoding="utf-8", newline="") as stream:
                writer = csv.writer(stream, lineterminator="\n")
                writer.writerows([title, seed, method, *map(float, v)] for method, v in found.items())

    def means(self, title: str) -> dict[str, dict[str, float]]:
        return {
            method: dict(zip(KEYS, np.mean(values, axis=0).tolist(), strict=True)) | {"studies": len(values)}
            for method, values in self.rows.get(title, {}).items()
        }


def show(title: str, result: dict[str, dict[str, float]]) -> None:
    print(f"\n{title}\n{'':<24}" + "".join(f"{key:>11}" for key in next(iter(result.values()))))
    for name, values in result.items():
        print(f"{name:<24}" + "".join(f"{value:>11.3f}" for value in values.values()), flush=True)


def draw_figure(results: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """Rate of false discoveries without any difference, with its standard error, by study and method."""
    from brainmap.report import style

    figure = style.new_figure(9.0, 0.42 * len(results) + 1.6)
    axes = style.clean(figure.subplots(), x="rate of false discoveries without a difference", grid="x")
    for k, name in enumerate(next(iter(results.values()))):
        rate = np.array([values[name]["any"] for values in results.values()])
        studies = np.array([values[name]["studies"] for values in results.values()])
        y = np.arange(len(results)) + (k - 3) * 0.1
        error = np.sqrt(np.maximum(rate * (1 - rate), 0.5 / studies * (1 - 0.5 / studies)) / studies)
        colour = (*style.CYCLE, style.QUIET)[k % 7]
        axes.errorbar(rate, y, xerr=error, fmt="o", markersize=4, color=colour, label=name, linewidth=1)
    axes.axvline(ALPHA, color=style.INK, linewidth=1, linestyle="--")
    titles = [title.removeprefix("no difference, ") for title in results]
    axes.set_yticks(range(len(results)), titles, fontsize=9)
    axes.set_ylim(len(results) - 0.5, -0.5)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path)


def draw_power(results: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """What each method finds of the changed regions, against the false share of what it calls."""
    from brainmap.report import style

    figure = style.new_figure(3.4 * min(len(results), 3), 3.2 * (1 + (len(results) - 1) // 3))
    panels = np.atleast_1d(
        figure.subplots((len(results) + 2) // 3, min(len(results), 3), sharey=True)
    ).ravel()
    for panel in panels[len(results) :]:
        panel.set_axis_off()
    for axes, (title, methods) in zip(panels, results.items(), strict=False):
        style.clean(axes, title=title.split(", ", 1)[1], x="false among regions called", grid="both")
        for k, (name, values) in enumerate(methods.items()):
            colour, marker = style.CYCLE[k % len(style.CYCLE)], "o" if k < len(style.CYCLE) else "s"
            axes.plot(values["FDR"], values["found"], marker, color=colour, markersize=6, label=name)
        axes.axvline(ALPHA, color=style.INK, linewidth=1, linestyle="--")
        axes.set_xlim(left=-0.005)
        axes.set_ylim(-0.02, 1.02)
    panels[0].set_ylabel("changed regions found")
    handles = {h.get_label(): h for axes in panels for h in axes.get_lines() if h.get_marker() in "os"}
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=8
    )
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=500)
    parser.add_argument("--only", default="", help="studies whose title contains one of these, by |")
    parser.add_argument("--slow", action="store_true", help="also statsmodels and PyDESeq2")
    parser.add_argument("--csv", type=Path, help="where every study is kept; the same command goes on")
    parser.add_argument("--figure", type=Path, help="of the studies without a difference")
    parser.add_argument("--power-figure", type=Path, help="of the others")
    options = parser.parse_args()
    methods = METHODS | (SLOW if options.slow else {})
    scenes = {f"no difference, {name}": scene for name, scene in NULLS.items()}
    scenes |= {f"20 of 300 changed, {name}": scene for name, scene in POWERS.items()}
    scenes = {
        title: scene for title, scene in scenes.items() if any(w in title for w in options.only.split("|"))
    }
    ledger = Ledger(options.csv)
    # In turn, so that whenever it is stopped all kinds of study were repeated equally often.
    for seed in range(options.repeats):
        for title, scene in scenes.items():
            usable = dict(methods)
            if scene.pairs or scene.cross or scene.batch or len(scene.n) > 2:
                usable.pop("PyDESeq2", None)
            if (title, seed) not in ledger.done:
                ledger.add(title, seed, judge(draw(scene, seed), usable))
    for title in scenes:
        result = ledger.means(title)
        show(title, result)
    nulls = {title: ledger.means(title) for title in scenes if title.startswith("no difference")}
    powers = {title: ledger.means(title) for title in scenes if not title.startswith("no difference")}
    if options.figure and nulls:
        draw_figure(nulls, options.figure)
    if options.power_figure and powers:
        draw_power(powers, options.power_figure)


if __name__ == "__main__":
    main()
