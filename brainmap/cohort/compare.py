"""Run folders and a design -> counts and volumes of the chosen regions, and what differs between the animals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brainmap.atlas.region_sets import Selection
from brainmap.cohort import checks
from brainmap.cohort.groups import Groups, read_groups
from brainmap.cohort.missing import OUTLIER, Missing, exclude, find_missing, hierarchy_of, read_exclusions
from brainmap.cohort.model.densities import contrast_densities, find_outliers, log_density, residuals
from brainmap.cohort.model.design import Contrast, Design, build_design
from brainmap.cohort.model.levels import Levels, control_levels, median_levels
from brainmap.cohort.model.shrinkage import Shrunk, shared_in_divisions, shrink
from brainmap.cohort.model.statistics import (
    LEAST_CELLS,
    CountModel,
    RegionTest,
    adjust,
    contrast_counts,
    fit_counts,
    in_family,
)
from brainmap.cohort.model.tree import Divisions, adjust_tree, find_divisions
from brainmap.cohort.selection import select_regions
from brainmap.cohort.study import COUNT, MEASURES, CompareSettings, Comparison, Study
from brainmap.cohort.table import SIDES, CohortTable, read_cohort
from brainmap.cohort.units import Units, make_units
from brainmap.errors import DataError

__all__ = ["LEVEL_SD", "add_up_divisions", "cautious", "compare_groups", "contrast_error"]

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

#: Levels that animals of one group differ in by more than this are divided out, unless one says otherwise.
LEVEL_SD = 0.15


def compare_groups(groups: str | Path | Groups, settings: CompareSettings | None = None) -> Study:
    """Compare animals region by region.

    Parameters
    ----------
    groups : path or Groups
        `groups.csv`, see `read_groups`.
    settings : CompareSettings, optional

    Raises
    ------
    UsageError, NotFoundError, DataError
        If the table, a run or a setting cannot be used; see `read_groups`, `read_cohort`, `build_design`,
        `select_regions`.
    """
    settings = settings or CompareSettings()
    if not isinstance(groups, Groups):
        groups = read_groups(groups, formula=settings.formula, paired=settings.paired)
    animals = _Animals.read(groups, settings)
    units = make_units(groups, settings.unit) if settings.unit else None
    subjects = units.groups if units else groups
    design = build_design(
        subjects,
        settings.covariates,
        formula=settings.formula,
        contrasts=settings.contrasts,
        paired=settings.paired,
    )
    level, level_sd, overall = _divided_out(animals, units, design, settings)
    animals = replace(animals, level=level)
    count, volume, effective, missing = animals.subjects(units)
    divisions = find_divisions(hierarchy_of(animals.table), animals.selection)
    comparisons: list[Comparison] = []
    scatters = []
    for side in settings.sides:
        s = SIDES.index(side)
        if not (np.nan_to_num(effective[:, :, s]) > 0).any():
            raise DataError(f"no region has a volume in hemisphere {side}: there are no densities to compare")
        if not settings.keep_outliers:
            outliers = find_outliers(count[:, :, s].astype(float), effective[:, :, s], design.matrix)
            missing.code[:, :, s][outliers.flag] = OUTLIER
            missing.log2_factor[:, :, s] = outliers.log2_factor
            effective[:, :, s][outliers.flag] = volume[:, :, s][outliers.flag] = np.nan
        family = _Side(
            side, design, subjects, count[:, :, s].astype(float), effective[:, :, s], divisions, settings
        )
        comparisons += family.all()
        scatters.append(family.model.scatter)
    warnings = [
        *animals.table.warnings,
        *checks.of_animals(animals.table),
        *checks.of_selection(animals.table, animals.selection, animals.count),
        *checks.of_design(subjects, design, scatters),
        *checks.of_levels(design, overall, bool((level != 1).any())),
        *checks.of_missing(missing, subjects, animals.selection, settings.sides),
    ]
    notes = checks.notes(subjects, design, settings)
    return Study(
        settings, animals.table, subjects, design, animals.selection, divisions, count, volume, missing,
        animals.levels, level if units is None else np.ones(len(subjects)), level_sd, overall, tuple(comparisons),
        tuple(dict.fromkeys(warnings)), tuple(notes),
    )  # fmt: skip


@dataclass(frozen=True)
class _Animals:
    """The runs at the chosen regions, before animals are joined to units; arrays (animals, regions, sides)."""

    table: CohortTable
    selection: Selection
    count: NDArray[np.int64]
    volume: Floats
    missing: Missing
    levels: Levels | None
    level: Floats

    @classmethod
    def read(cls, groups: Groups, settings: CompareSettings) -> _Animals:
        whole = read_cohort(groups)
        table = exclude(whole, read_exclusions(settings.exclude, whole)) if settings.exclude else whole
        selection = select_regions(table, settings.level, settings.within)
        count = selection.add_up(table.count).astype(np.int64)
        volume, missing = find_missing(table, whole, selection, settings.coverage)
        levels = _levels(table, settings)
        if settings.relative and levels is None:
            raise DataError(
                "--relative needs ten structures with cells in every animal to find each animal's level; compare "
                "without it, or name --control structures"
            )
        return cls(table, selection, count, volume, missing, levels, np.ones(len(groups)))

    def subjects(self, units: Units | None) -> tuple[NDArray[np.int64], Floats, Floats, Missing]:
        """Counts, volumes, volumes times level, and what is missing, of animals or units."""
        effective = self.volume * self.level[:, None, None]
        if units is None:
            return self.count, self.volume.copy(), effective, self.missing
        there = np.isfinite(self.volume)
        count = units.add_up(np.where(there, self.count, 0)).astype(np.int64)
        # A unit lacks a region that all its animals lack.
        code = np.stack([self.missing.code[rows].min(axis=0) for rows in units.members])
        volume, together = units.add_up(self.volume), units.add_up(effective)
        return count, volume.astype(float), together.astype(float), Missing(code, np.full(code.shape, np.nan))


def _divided_out(
    animals: _Animals, units: Units | None, design: Design, settings: CompareSettings
) -> tuple[Floats, float, tuple[RegionTest, ...]]:
    """What is divided out of each animal, how much animals of one group differ, and the tests of the level itself.

    Decided by the scatter within groups alone, which knows nothing of any difference between them.
    """
    levels = animals.levels
    if levels is None:
        return animals.level, float("nan"), ()
    log = np.log(levels.factor)
    own = log if units is None else np.array([log[rows].mean() for rows in units.members])
    error = levels.error if units is None else np.array([levels.error[rows].mean() for rows in units.members])
    x = design.matrix
    residual = own - x @ np.linalg.lstsq(x, own, rcond=None)[0]
    sd = float(np.sqrt(max(residual @ residual / design.spare - np.mean(error**2), 0.0)))
    overall = tuple(
        contrast_densities(own[:, None] / np.log(2.0), x, contrast, None) for contrast in design.contrasts
    )
    out = bool(settings.control) or (sd > LEVEL_SD if settings.relative is None else settings.relative)
    return (levels.factor if out else animals.level), sd, overall


def _levels(table: CohortTable, settings: CompareSettings) -> Levels | None:
    both = SIDES.index("both")
    if settings.control:
        chosen = select_regions(table, ",".join(settings.control))
        volume = np.stack([np.nansum(table.volume_mm3[:, r, both], axis=1) for r in chosen.members], axis=1)
        return control_levels(chosen.add_up(table.count)[:, :, both].astype(float), volume, chosen.acronym)
    # From the finest structures of the whole brain, whatever regions are compared.
    leaves = select_regions(table, "leaf")
    return median_levels(
        leaves.add_up(table.count)[:, :, both].astype(float), leaves.add_up(table.volume_mm3)[:, :, both]
    )


class _Side:
    """All comparisons in one hemisphere; arrays (animals, regions)."""

    def __init__(
        self,
        hemisphere: str,
        design: Design,
        groups: Groups,
        count: Floats,
        volume: Floats,
        divisions: Divisions | None,
        settings: CompareSettings,
    ) -> None:
        self.hemisphere, self.design, self.settings, self.divisions = hemisphere, design, settings, divisions
        self.count, self.volume = count, volume
        self.there = np.nan_to_num(volume) > 0
        self.cells = np.where(self.there, count, 0.0).sum(axis=0)
        self.group = np.array(groups.group)
        kinds = design.kinds
        self.plain = {coding.name for coding in design.codings} == {"group"}
        self.model = fit_counts(count, volume, design.matrix, kinds)
        if divisions is not None:
            self.sums = add_up_divisions(count, volume, divisions)
            self.division_model = fit_counts(*self.sums, design.matrix, kinds)

    def all(self) -> Iterator[Comparison]:
        for measure in MEASURES[self.settings.measure]:
            for contrast in self.design.contrasts:
                yield self._one(measure, contrast)

    def _sides(self, contrast: Contrast) -> Flags | None:
        """Animals of a and of b, where these are groups."""
        sides = np.stack([self.group == contrast.group_a, self.group == contrast.group_b])
        return sides if sides.any(axis=1).all() else None

    def _one(self, measure: str, contrast: Contrast) -> Comparison:
        sides = self._sides(contrast)
        result = self._test(measure, contrast, sides, self.model, self.count, self.volume)
        family = in_family(result.p, self.cells)
        q = adjust(result.p, self.cells)
        q_tree, of_divisions, q_division = np.full(len(q), np.nan), None, None
        if self.divisions is not None:
            of_divisions = self._test(measure, contrast, sides, self.division_model, *self.sums)
            q_tree, q_division = adjust_tree(result.p, family, self.divisions, of_divisions.p)
        by_tree = self.divisions is not None and self.settings.family == "tree"
        called = np.nan_to_num(q_tree if by_tree else q, nan=1.0) <= self.settings.alpha
        n, cells = self._describe(sides)
        return Comparison(
            measure, self.hemisphere, contrast, result, self.there.sum(axis=0), n[0], n[1], cells[0], cells[1], q,
            q_tree, called, int(family.sum()), self._shrunk(contrast, result) if measure == COUNT else None,
            of_divisions, q_division,
        )  # fmt: skip

    def _test(
        self,
        measure: str,
        contrast: Contrast,
        sides: Flags | None,
        model: CountModel,
        count: Floats,
        volume: Floats,
    ) -> RegionTest:
        densities = contrast_densities(
            log_density(count, volume), self.design.matrix, contrast, sides, welch=self.plain
        )
        counts = contrast_counts(model, self.design.matrix, contrast, sides)
        of_both = cautious(counts, densities)
        if measure == COUNT:
            return of_both
        return densities if of_both is counts else replace(densities, p=of_both.p)

    def _describe(self, sides: Flags | None) -> tuple[NDArray[np.int64], Floats]:
        if sides is None:
            return np.zeros((2, len(self.cells)), dtype=np.int64), np.full((2, len(self.cells)), np.nan)
        n = np.stack([self.there[side].sum(axis=0) for side in sides])
        total = np.stack([np.where(self.there[side], self.count[side], 0.0).sum(axis=0) for side in sides])
        return n, np.divide(total, n, out=np.full(total.shape, np.nan), where=n > 0)

    def _shrunk(self, contrast: Contrast, result: RegionTest) -> Shrunk | None:
        if result.scatter is None or contrast.matrix.shape[1] > 1:
            return None
        of = np.full(len(result.p), -1) if self.divisions is None else self.divisions.of
        x = self.design.matrix
        vector = contrast.matrix[:, 0]
        shared = contrast_error(result.scatter.shared, x, vector)
        enough = in_family(result.p, self.cells)
        ratio = np.where(enough, result.log2_ratio, np.nan)
        own = contrast_error(shared_in_divisions(self._residual(), x, of), x, vector)
        return shrink(ratio, result.error, result.freedom, of, shared, own)

    def _residual(self) -> Floats:
        """Of log densities (natural) from the design, the animals' levels in it; NaN where a region is missing."""
        values = log_density(self.count, self.volume) * np.log(2.0)
        return residuals(
            np.where(self.there & (self.cells >= LEAST_CELLS), values, np.nan), self.design.matrix
        )


def cautious(counts: RegionTest, densities: RegionTest) -> RegionTest:
    """Where groups scatter unlike, a region counts as different only by counts and densities: the larger p of both.

    Counts know such scatter as one factor for all regions, and alone are far too liberal then. Log densities compare
    medians, which differ where means do not if one group scatters more, so they alone are too liberal as well.
    """
    scatter = counts.scatter
    if scatter is None or scatter.variance.max() <= scatter.variance.min():
        return counts
    return replace(counts, p=np.fmax(counts.p, np.where(np.isfinite(counts.p), densities.p, np.nan)))


def contrast_error(variance: float, design: Floats, vector: Floats) -> float:
    """Standard error, log2, of a contrast of means whose values have this variance (of natural logarithms)."""
    spread = float(vector @ np.linalg.inv(design.T @ design) @ vector)
    return float(np.sqrt(variance * spread) / np.log(2.0))


def add_up_divisions(count: Floats, volume: Floats, divisions: Divisions) -> tuple[Floats, Floats]:
    """Cells and volumes of divisions, (animals, divisions).

    Where animals lack regions, a division's volume is what the animal has, each region weighted by its usual density:
    else an animal without its densest region would seem to have fewer cells.
    """
    there = np.nan_to_num(volume) > 0
    cells = np.where(there, count, 0.0)
    mm3 = np.where(there, volume, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        usual = cells.sum(axis=0) / mm3.sum(axis=0)
    sums, volumes = (np.zeros((len(count), len(divisions))) for _ in range(2))
    for i in range(len(divisions)):
        inside = (divisions.of == i) & there.any(axis=0)
        sums[:, i] = cells[:, inside].sum(axis=1)
        plain = mm3[:, inside].sum(axis=1)
        if there[:, inside].all() or not cells[:, inside].any():
            volumes[:, i] = plain
        else:
            expected = mm3[:, inside] @ usual[inside]
            volumes[:, i] = expected * plain.sum() / expected.sum()
    return sums, np.where(volumes > 0, volumes, np.nan)
