"""Run folders and groups -> correlations of regions in every group, what differs, modules, patterns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brainmap.cohort.compare import compare_groups
from brainmap.cohort.groups import read_groups
from brainmap.cohort.model.densities import log_density
from brainmap.cohort.networks.correlation import CorrelationTest, correlate, difference_test
from brainmap.cohort.networks.modules import Modularity, modularity_test
from brainmap.cohort.networks.pls import Pls, task_pls
from brainmap.cohort.study import CompareSettings, Study
from brainmap.cohort.table import SIDES
from brainmap.errors import DataError, UsageError

__all__ = ["FEWEST", "Network", "NetworkSettings", "make_network"]

Floats = NDArray[np.float64]

#: Animals a group; with fewer a correlation of 0.8 is nothing unusual.
FEWEST = 6
_FEWEST_AT_ALL = 4
_LEAST_REGIONS = 4
_LEAST_CELLS = 10  # on average over animals: counting chance alone would hide any correlation


@dataclass(frozen=True)
class NetworkSettings:
    """How networks are made and compared.

    Attributes
    ----------
    level, within, hemisphere, control
        See `CompareSettings`.
    relative : bool, optional
        Divide out each animal's level; by default always, where it is known.
    permutations : int
        Of the differences and of the patterns; bootstraps are as many.
    density : float
        Share of all pairs that are edges when modules are looked for.
    alpha : float
        Rate of false discoveries.
    few : bool
        Also groups of four or five animals.
    """

    level: str = "summary"
    within: str | None = None
    hemisphere: str = "both"
    relative: bool | None = None
    control: tuple[str, ...] = ()
    permutations: int = 1000
    density: float = 0.1
    alpha: float = 0.05
    few: bool = False

    def __post_init__(self) -> None:
        if self.hemisphere == "each":
            raise UsageError("--hemisphere must be left, right or both: a network is of one of them")
        if self.permutations < 10:
            raise UsageError(f"--permutations must be 10 or more, not {self.permutations}")
        if not 0 < self.density <= 1:
            raise UsageError(f"--density must lie between 0 and 1, not {self.density}")


@dataclass(frozen=True)
class Network:
    """Networks of all groups; regions are in the order of their divisions.

    Attributes
    ----------
    settings : NetworkSettings
    study : Study
        The animals, with what is missing and the levels divided out.
    region : int array (regions,)
        Of the study's selection.
    division : tuple of str
        Of each region; empty where there is none.
    values : float64 array (animals, regions)
        log2 densities; NaN where missing.
    r, n : dict of arrays (regions, regions)
        Correlations and the animals they rest on, by group.
    differences : dict of CorrelationTest
        By pair of groups.
    modules : dict of Modularity
        By group.
    pls : Pls or None
        Patterns of all groups; None with one group.
    """

    settings: NetworkSettings
    study: Study
    region: NDArray[np.intp]
    division: tuple[str, ...]
    values: Floats
    r: dict[str, Floats]
    n: dict[str, NDArray[np.int64]]
    differences: dict[tuple[str, str], CorrelationTest]
    modules: dict[str, Modularity]
    pls: Pls | None

    @property
    def acronym(self) -> tuple[str, ...]:
        """Of each region."""
        return tuple(self.study.selection.acronym[i] for i in self.region)

    @property
    def pairs(self) -> int:
        """Of regions."""
        return len(self.region) * (len(self.region) - 1) // 2

    def lines(self) -> list[tuple[str, str]]:
        """Names and values for people."""
        groups = self.study.groups
        rows = [
            ("animals", ", ".join(f"{groups.group.count(name)} {name}" for name in groups.names)),
            ("regions", f"{len(self.region)} with cells enough ({self.study.selection.level})"),
            ("level of each animal", self.study.level_words()),
        ]
        for (a, b), test in self.differences.items():
            found = int((np.triu(test.q, 1) <= self.settings.alpha)[np.triu_indices(len(test.q), 1)].sum())
            rows.append(
                (
                    f"correlations, {b} against {a}",
                    f"{found} of {self.pairs:,} differ at q <= {self.settings.alpha:g}; whole network p = "
                    f"{test.p_whole:.2g}",
                )
            )
        for name, one in self.modules.items():
            rows.append(
                (
                    f"modules, {name}",
                    f"{one.label.max() + 1}, modularity {one.q:.2f} (rewired {one.rewired.mean():.2f}; animals "
                    f"shuffled {one.shuffled.mean():.2f}, p = {one.p_shuffled:.2g})",
                )
            )
        if self.pls is not None:
            rows += [
                (
                    f"pattern {k + 1}",
                    f"{self.pls.share[k]:.0%} of what groups differ by, p = {self.pls.p[k]:.2g}",
                )
                for k in range(len(self.pls.p))
            ]
        return rows + [("warning", warning) for warning in self.warnings()]

    def warnings(self) -> Iterator[str]:
        """What may be wrong."""
        groups = self.study.groups
        small = [f"{name} has {n}" for name in groups.names if (n := groups.group.count(name)) < 10]
        if small:
            # By Student's t: |r| that chance exceeds in one pair of twenty.
            fewest = min(groups.group.count(name) for name in groups.names)
            yield (
                f"few animals ({', '.join(small)}): with {fewest} a correlation beyond +-{_chance(fewest):.2f} is seen "
                "in one of twenty pairs that have nothing in common"
            )
        if not self.study.levels_divided_out:
            yield (
                "the animals' levels are kept: what differs between whole brains (staining) correlates all regions "
                "(--relative divides it out, --control by structures that you name)"
            )
        yield from self.study.warnings


def _chance(n: int) -> float:
    from scipy import stats

    t = float(stats.t.isf(0.025, n - 2))
    return t / float(np.sqrt(n - 2 + t**2))


def make_network(groups: str | Path, settings: NetworkSettings | None = None) -> Network:
    """Correlate regions over the animals of each group.

    Raises
    ------
    DataError
        If a group has fewer than six animals (four with `few`), or fewer than four regions have cells enough.
    UsageError, NotFoundError
        See `compare_groups`.
    """
    settings = settings or NetworkSettings()
    animals = read_groups(groups)
    least = _FEWEST_AT_ALL if settings.few else FEWEST
    for name in animals.names:
        if (size := animals.group.count(name)) < least:
            way_on = "" if settings.few or size < _FEWEST_AT_ALL else "; --few computes them nonetheless"
            raise DataError(
                f"group {name} has {size} animals: correlations over fewer than {least} say nothing{way_on}"
            )
    study = compare_groups(
        animals,
        CompareSettings(
            level=settings.level,
            within=settings.within,
            hemisphere=settings.hemisphere,
            measure="density",
            relative=settings.relative,
            control=settings.control,
        ),
    )
    if settings.relative is None and study.levels is not None:
        # A level shared by all regions is correlation everywhere, however small it is beside a region's own scatter.
        study = replace(study, level=study.levels.factor)
    region, division, values = _values(study, settings.hemisphere)
    names = study.groups.names
    of = {name: values[study.groups.rows(name)] for name in names}
    both = {name: correlate(of[name]) for name in names}
    return Network(
        settings,
        study,
        region,
        division,
        values,
        {name: pair[0] for name, pair in both.items()},
        {name: pair[1] for name, pair in both.items()},
        {(a, b): difference_test(of[a], of[b], settings.permutations) for a, b in combinations(names, 2)},
        {name: modularity_test(of[name], settings.density, 99) for name in names},
        task_pls(
            values,
            np.array([names.index(g) for g in study.groups.group]),
            settings.permutations,
            settings.permutations,
        )
        if len(names) > 1
        else None,
    )


def _values(study: Study, hemisphere: str) -> tuple[NDArray[np.intp], tuple[str, ...], Floats]:
    """Regions with cells enough, by division; their division; log2 densities, NaN where missing."""
    side = SIDES.index(hemisphere)
    volume = study.volume_mm3[:, :, side] * study.level[:, None]
    count = study.count[:, :, side].astype(float)
    there = np.nan_to_num(volume) > 0
    cells = np.where(there, count, 0.0).sum(axis=0)
    enough = cells >= _LEAST_CELLS * np.maximum(there.sum(axis=0), 1)
    of = np.full(len(study.selection), -1) if study.divisions is None else study.divisions.of
    order = np.argsort(np.where(of < 0, len(study.selection), of), kind="stable")
    region = order[enough[order]]
    if len(region) < _LEAST_REGIONS:
        raise DataError(
            f"only {len(region)} regions have {_LEAST_CELLS} cells an animal: a network needs {_LEAST_REGIONS} (a "
            "coarser --level has more cells a region)"
        )
    names = () if study.divisions is None else study.divisions.acronym
    division = tuple(names[of[i]] if of[i] >= 0 else "" for i in region)
    return region, division, np.where(there, log_density(count, volume), np.nan)[:, region]
