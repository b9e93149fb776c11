"""How many animals a study needs, from the scatter of animals that one has.

The scatter of every region is estimated from a pilot as a comparison does it. A study is then drawn again and again, on
the scale of log ratios: a share of the regions of one division changes, everything else does not, and the
procedure of a comparison (the tree of divisions and regions, or all regions at once) says what is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from brainmap.cohort.compare import LEVEL_SD
from brainmap.cohort.groups import read_groups
from brainmap.cohort.missing import find_missing, hierarchy_of
from brainmap.cohort.model.densities import find_outliers, log_density, residuals
from brainmap.cohort.model.levels import median_levels
from brainmap.cohort.model.shrinkage import shared_in_divisions
from brainmap.cohort.model.statistics import LEAST_CELLS, fit_counts
from brainmap.cohort.model.tree import Divisions, find_divisions
from brainmap.cohort.selection import select_regions
from brainmap.cohort.table import SIDES, read_cohort
from brainmap.errors import DataError, UsageError

__all__ = ["Pilot", "Power", "PowerSettings", "expected_power", "read_pilot", "study_power"]

Floats = NDArray[np.float64]

ANIMALS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 30, 40)
_REPEATS = 400


@dataclass(frozen=True)
class PowerSettings:
    """What is planned.

    Attributes
    ----------
    effect : float
        Ratio of the densities of two groups in the regions that change; 1.5 and 1/1.5 are equally hard.
    share : float
        Of a division's regions that change.
    power : float
        Chance that is wanted.
    alpha : float
        Rate of false discoveries.
    level, within, hemisphere : str
        Regions, as in a comparison.
    relative : bool, optional
        Levels of the animals are divided out; by default where the pilot's animals differ by them.
    """

    effect: float
    share: float = 0.5
    power: float = 0.8
    alpha: float = 0.05
    level: str = "summary"
    within: str | None = None
    hemisphere: str = "both"
    relative: bool | None = None

    def __post_init__(self) -> None:
        if not self.effect > 0 or self.effect == 1 or not np.isfinite(self.effect):
            raise UsageError(f"--effect is a ratio of densities such as 1.5 or 0.5, not {self.effect:g}")
        for name in ("share", "power", "alpha"):
            if not 0 < getattr(self, name) <= 1:
                raise UsageError(f"--{name} must lie between 0 and 1, not {getattr(self, name):g}")
        if self.hemisphere not in SIDES:
            raise UsageError(f"--hemisphere must be one of {', '.join(SIDES)}, not {self.hemisphere!r}")


@dataclass(frozen=True)
class Pilot:
    """Scatter of animals of one group, natural logarithms; arrays (regions,).

    Attributes
    ----------
    acronym, name : tuples of str
        Of the divisions; one called `all regions` where there are none.
    of : int array
        Division of each region.
    cells : float64 array
        Mean count.
    own : float64 array
        Variance of a region's log density between animals, counting chance included.
    in_division, shared : float
        Variances that the regions of a division and all regions share; parts of `own` are neither.
    prior_freedom : float
        Degrees of freedom that a region borrows.
    group_size : int
        Of the pilot's largest group.
    relative : bool
        Levels are divided out.
    level_sd : float
    tree : bool
        Divisions are tested first.
    """

    acronym: tuple[str, ...]
    name: tuple[str, ...]
    of: NDArray[np.intp]
    cells: Floats
    own: Floats
    in_division: float
    shared: float
    prior_freedom: float
    group_size: int
    relative: bool
    level_sd: float
    tree: bool


@dataclass(frozen=True)
class Power:
    """Chances by division and number of animals a group.

    Attributes
    ----------
    settings : PowerSettings
    pilot : Pilot
    animals : tuple of int
    division : float64 array (divisions, animals)
        Chance that the division is called.
    region : float64 array (divisions, animals)
        Share of the changed regions that is called.
    """

    settings: PowerSettings
    pilot: Pilot
    animals: tuple[int, ...]
    division: Floats
    region: Floats

    def needed(self, chances: Floats) -> int | None:
        """The fewest animals a group with the chance wanted; None if more than the largest number tried."""
        enough = np.flatnonzero(chances >= self.settings.power)
        return int(self.animals[enough[0]]) if len(enough) else None

    def rows(self) -> list[tuple[str, int, float, float, str, str]]:
        """Acronym, regions, cells a region, scatter, and the animals needed for the division and its regions."""
        pilot, found = self.pilot, []
        for d, acronym in enumerate(pilot.acronym):
            inside = pilot.of == d
            sd = float(np.sqrt(np.median(pilot.own[inside]) + pilot.in_division + pilot.shared))
            cells = float(np.median(pilot.cells[inside]))
            division, region = (self._words(self.needed(of[d])) for of in (self.division, self.region))
            found.append((acronym, int(inside.sum()), cells, sd, division, region))
        return found

    def _words(self, animals: int | None) -> str:
        return str(animals) if animals is not None else f"more than {self.animals[-1]}"

    def verdict(self) -> str:
        """What the number of animals of the pilot can be expected to find."""
        n = self.pilot.group_size
        at = int(np.argmin(np.abs(np.array(self.animals) - n)))
        share = float(np.average(self.region[:, at], weights=np.bincount(self.pilot.of)))
        what = f"with {self.animals[at]} animals a group, as in this table"
        said = (
            f"{what}, {share:.0%} of regions that change by {self.settings.effect:g} are expected to be found"
        )
        if share < 0.1 and self.division[:, at].max() < 0.3:
            return f"{said}: practically nothing can be found; use more animals, or ask a coarser question"
        return said

    def lines(self) -> list[tuple[str, str]]:
        """For people."""
        pilot, s = self.pilot, self.settings
        level = "divided out" if pilot.relative else "kept"
        change = f"x{s.effect:g} in {s.share:.0%} of the regions of a division"
        lines = [
            ("change", f"{change}, to be found with a chance of {s.power:.0%}"),
            ("level of each animal", f"{level}; animals of one group differ by {pilot.level_sd:.0%}"),
            (
                "",
                f"{'division':<14}{'regions':>8}{'cells':>8}{'scatter':>9}   animals: division / its regions",
            ),
        ]
        for acronym, regions, cells, sd, division, region in self.rows():
            whole = division if pilot.tree else "-"
            lines.append(("", f"{acronym:<14.14}{regions:>8}{cells:>8.0f}{sd:>9.0%}   {whole} / {region}"))
        return [*lines, ("expected", self.verdict())]


def read_pilot(groups: str | Path, settings: PowerSettings) -> Pilot:
    """Estimate the scatter of a pilot's animals; groups of one animal say nothing and are left aside.

    Raises
    ------
    DataError
        If no group has two animals, or too few regions have cells.
    """
    read = read_groups(groups, any_groups=True)
    table = read_cohort(read)
    selection = select_regions(table, settings.level, settings.within)
    kept = np.array([read.group.count(group) > 1 for group in read.group])
    if not kept.any():
        raise DataError(f"{groups}: scatter needs a group of two animals or more, and there is none")
    side = SIDES.index(settings.hemisphere)
    volume, _ = find_missing(table, table, selection, 0.5)
    count = selection.add_up(table.count)[kept][:, :, side].astype(float)
    volume = volume[kept][:, :, side]
    names = [name for name in read.names if read.group.count(name) > 1]
    group = np.array([g for g in read.group if read.group.count(g) > 1])
    design = np.column_stack([np.ones(len(group)), *(group == name for name in names[1:])]).astype(float)
    levels, sd = median_levels(count, volume), float("nan")
    relative = bool(settings.relative)
    if levels is not None:
        log = np.log(levels.factor)
        left = log - design @ np.linalg.lstsq(design, log, rcond=None)[0]
        sd = float(np.sqrt(left @ left / (len(log) - design.shape[1])))
        relative = sd > LEVEL_SD if settings.relative is None else relative
        volume = volume * (levels.factor[:, None] if relative else 1.0)
    volume = np.where(find_outliers(count, volume, design).flag, np.nan, volume)
    model = fit_counts(count, volume, design)
    scatter = model.scatter
    if scatter is None or model.some.sum() < 2:
        raise DataError(f"{groups}: the regions hold no cells to plan by")
    divisions = find_divisions(hierarchy_of(table), selection)
    of = np.zeros(len(selection), dtype=np.intp) if divisions is None else divisions.of
    cells = np.nanmean(np.where(np.isfinite(volume), count, np.nan)[:, model.some], axis=0)
    values = np.where(np.isfinite(volume), log_density(count, volume), np.nan) * np.log(2.0)
    left = residuals(values, design)[:, model.some]
    in_division = shared_in_divisions(left, design, of[model.some]) if divisions is not None else 0.0
    variance = scatter.quasi * (1.0 / np.maximum(cells, 0.5) + scatter.dispersion)
    usable = (cells * len(group) >= LEAST_CELLS) & (of[model.some] >= 0)
    kept_divisions, renumbered = np.unique(of[model.some][usable], return_inverse=True)
    if not len(kept_divisions):
        raise DataError(f"{groups}: no region has {LEAST_CELLS} cells")
    naming = divisions or Divisions(np.zeros(1, np.intp), ("all",), ("all regions",), of)
    return Pilot(
        acronym=tuple(naming.acronym[i] for i in kept_divisions),
        name=tuple(naming.name[i] for i in kept_divisions),
        of=renumbered,
        cells=cells[usable],
        own=np.maximum(variance[usable] - in_division, 0.5 * variance[usable]),
        in_division=in_division,
        shared=scatter.shared,
        prior_freedom=scatter.prior_freedom,
        group_size=max(read.group.count(name) for name in read.names),
        relative=relative,
        level_sd=sd,
        tree=divisions is not None,
    )


def study_power(groups: str | Path, settings: PowerSettings) -> Power:
    """Read a pilot and say what numbers of animals can find; see `expected_power`."""
    return expected_power(read_pilot(groups, settings), settings)


def expected_power(
    pilot: Pilot, settings: PowerSettings, animals: Sequence[int] = ANIMALS, repeats: int = _REPEATS
) -> Power:
    """Chances of every division by simulation.

    Parameters
    ----------
    pilot : Pilot
    settings : PowerSettings
    animals : sequence of int
        A group, in each of two groups.
    repeats : int
        Of each simulation; the standard error of a chance is at most 0.5 over its root.
    """
    rng = np.random.default_rng(0)
    shape = (len(pilot.acronym), len(animals))
    division, region = np.zeros(shape), np.zeros(shape)
    for j, n in enumerate(animals):
        for d in range(shape[0]):
            division[d, j], region[d, j] = _simulate(rng, pilot, settings, d, n, repeats)
    return Power(settings, pilot, tuple(animals), division, region)


def _simulate(
    rng: np.random.Generator, pilot: Pilot, settings: PowerSettings, d: int, n: int, repeats: int
) -> tuple[float, float]:
    inside = pilot.of == d
    own, cells = pilot.own[inside], pilot.cells[inside]
    count = len(own)
    change = abs(np.log(settings.effect))
    changed = rng.random((repeats, count)).argsort(axis=1) < max(1, round(settings.share * count))
    together = rng.normal(0, 1, (repeats, 1)) * np.sqrt(2 / n * (pilot.shared + pilot.in_division))
    noise = rng.normal(0, 1, (repeats, count)) * np.sqrt(2 / n * own)
    spare = 2 * n - 2
    total = own + pilot.in_division + pilot.shared
    p = _p_values(rng, change * changed + together + noise, 2 / n * total, spare, pilot.prior_freedom)
    if not pilot.tree:
        return _flat(p, changed, settings.alpha)
    # The division's cells: each region by its share of them.
    weight = cells / cells.sum()
    ratio = np.log1p((np.exp(change) - 1.0) * (changed @ weight)) + together[:, 0] + noise @ weight
    variance = 2 / n * (pilot.shared + pilot.in_division + weight**2 @ own)
    of_cells = _p_values(rng, ratio[:, None], np.array([variance]), spare, 0.0)[:, 0]
    ordered = np.sort(p, axis=1)
    simes = (ordered * count / np.arange(1, count + 1)).min(axis=1)
    top = np.minimum(1.0, 2.0 * np.minimum(of_cells, simes))
    # The other divisions do not change: their p-values are even.
    others = np.sort(np.column_stack([top, rng.random((repeats, len(pilot.acronym) - 1))]), axis=1)
    passed = others <= settings.alpha * np.arange(1, others.shape[1] + 1) / others.shape[1]
    limit = np.where(passed, others, 0.0).max(axis=1)
    called = (top <= limit) & (limit > 0)
    below = ordered <= settings.alpha * np.arange(1, count + 1) / count
    found = (p <= np.where(below, ordered, -1.0).max(axis=1)[:, None]) & called[:, None] & changed
    return float(called.mean()), float((found.sum(axis=1) / changed.sum(axis=1)).mean())


def _p_values(rng: np.random.Generator, ratio: Floats, variance: Floats, spare: int, prior: float) -> Floats:
    """Of tests whose variance is estimated with `spare` degrees of freedom and moderated with `prior` more."""
    if not np.isfinite(prior):
        return 2.0 * stats.norm.sf(np.abs(ratio) / np.sqrt(variance))
    estimated = (prior + rng.chisquare(spare, ratio.shape)) / (prior + spare)
    return 2.0 * stats.t.sf(np.abs(ratio) / np.sqrt(variance * estimated), prior + spare)


def _flat(p: Floats, changed: NDArray[np.bool_], alpha: float) -> tuple[float, float]:
    ordered = np.sort(p, axis=1)
    below = ordered <= alpha * np.arange(1, p.shape[1] + 1) / p.shape[1]
    found = (p <= np.where(below, ordered, -1.0).max(axis=1)[:, None]) & changed
    return float(found.any(axis=1).mean()), float((found.sum(axis=1) / changed.sum(axis=1)).mean())
