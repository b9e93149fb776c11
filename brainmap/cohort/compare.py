"""Run folders and their groups -> counts and volumes of the chosen regions, and the differences of all pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brainmap.cohort.groups import Groups, read_groups
from brainmap.cohort.selection import Selection, select_regions
from brainmap.cohort.statistics import (
    COUNT_TEST,
    DENSITY_TEST,
    adjust,
    count_test,
    density_ratio,
    group_means,
    in_family,
    relative_levels,
    welch_test,
)
from brainmap.cohort.study import MEASURES, CompareSettings, Comparison, Study
from brainmap.cohort.table import SIDES, CohortTable, read_cohort
from brainmap.errors import DataError

__all__ = ["compare_groups"]

Floats = NDArray[np.float64]

# Cells outside all regions compared that deserve a word.
_MUCH_OUTSIDE = 0.2


def compare_groups(groups: str | Path | Groups, settings: CompareSettings | None = None) -> Study:
    """Compare groups of animals region by region.

    Parameters
    ----------
    groups : path or Groups
        `groups.csv`, see `read_groups`.
    settings : CompareSettings, optional

    Raises
    ------
    UsageError, NotFoundError, DataError
        If the table, a run or a setting cannot be used; see `read_groups`, `read_cohort`, `select_regions`.
    """
    settings = settings or CompareSettings()
    if not isinstance(groups, Groups):
        groups = read_groups(groups, settings.covariates)
    table = read_cohort(groups)
    selection = select_regions(table, settings.level, settings.within)
    count = selection.add_up(table.count).astype(np.int64)
    volume = selection.add_up(table.volume_mm3).astype(np.float64)
    level = np.ones(len(groups))
    if settings.relative:
        level = _relative_levels(table)
    warnings = [*table.warnings, *_selection_warnings(table, selection, count)]
    comparisons: list[Comparison] = []
    for a, b in groups.pairs:
        rows = np.concatenate([groups.rows(a), groups.rows(b)])
        covariates = _design(groups, rows)
        for side in settings.sides:
            s = SIDES.index(side)
            if not (np.nan_to_num(volume[rows, :, s]) > 0).any():
                raise DataError(
                    f"no region has a volume in hemisphere {side}: there are no densities to compare"
                )
            pair = _Pair(a, b, side, count[rows, :, s].astype(float), volume[rows, :, s] * level[rows, None],
                         np.arange(len(rows)) >= len(groups.rows(a)), covariates)  # fmt: skip
            comparisons += [_compare(pair, measure) for measure in MEASURES[settings.measure]]
    return Study(settings, table, selection, count, volume, level, tuple(comparisons), tuple(warnings))


@dataclass(frozen=True)
class _Pair:
    """Two groups in one hemisphere: arrays (animals, regions), group a first."""

    group_a: str
    group_b: str
    hemisphere: str
    count: Floats
    volume: Floats
    in_b: NDArray[np.bool_]
    covariates: Floats


def _compare(pair: _Pair, measure: str) -> Comparison:
    here = np.nan_to_num(pair.volume) > 0
    a, b = ~pair.in_b, pair.in_b
    density = np.where(here, pair.count, np.nan) / np.where(here, pair.volume, np.nan)
    cells = np.where(here, pair.count, 0.0).sum(axis=0)
    scatter = None
    if measure == "count":
        means = group_means(np.where(here, pair.count, np.nan), a, b)
        result = count_test(pair.count, pair.volume, pair.in_b, pair.covariates)
        p, ratio, low, high, name = result.p, result.log2_ratio, result.low, result.high, COUNT_TEST
        scatter = result.scatter
    else:
        means = group_means(density, a, b)
        p, name = welch_test(means), DENSITY_TEST
        ratio = density_ratio(means, np.where(here, pair.volume, 0.0), a, b)
        low = high = np.full(len(p), np.nan)
    return Comparison(
        measure=measure,
        hemisphere=pair.hemisphere,
        group_a=pair.group_a,
        group_b=pair.group_b,
        test=name,
        means=means,
        log2_ratio=ratio,
        low=low,
        high=high,
        p=p,
        q=adjust(p, cells),
        tested=int(in_family(p, cells).sum()),
        scatter=scatter,
    )


def _relative_levels(table: CohortTable) -> Floats:
    """From the finest structures of the whole brain, whatever regions are compared."""
    leaves = select_regions(table, "leaf")
    both = SIDES.index("both")
    level = relative_levels(
        leaves.add_up(table.count)[:, :, both].astype(float), leaves.add_up(table.volume_mm3)[:, :, both]
    )
    if level is None:
        raise DataError(
            "--relative needs ten structures with cells in every animal to find each animal's level; compare without it"
        )
    return level


def _design(groups: Groups, rows: NDArray[np.intp]) -> Floats:
    """Columns of the covariates for these animals: numbers centred, words as indicators."""
    columns: list[Floats] = []
    group = np.array([groups.group[i] for i in rows])
    for name, values in groups.covariates.items():
        own = _indicators(name, [values[i] for i in rows])
        columns += own
        so_far = np.column_stack([np.ones(len(rows)), *columns])
        if so_far.shape[1] + 1 >= len(rows):
            raise DataError(
                f"{len(rows)} animals are too few for {so_far.shape[1] - 1} columns of covariates (up to {name}): "
                "choose among them with --covariates, or --covariates none"
            )
        with_group = np.column_stack([so_far, group == group[-1]])
        if np.linalg.matrix_rank(with_group) < with_group.shape[1]:
            raise DataError(
                f"covariate {name} cannot be told apart from the groups {group[0]} and {group[-1]}, or from another "
                "covariate: leave it out with --covariates"
            )
    return np.column_stack(columns) if columns else np.empty((len(rows), 0))


def _indicators(name: str, values: Sequence[str]) -> list[Floats]:
    try:
        numbers = np.array([float(value) for value in values])
    except ValueError:
        kinds = sorted(set(values))
        return [np.array([value == kind for value in values], dtype=float) for kind in kinds[1:]]
    if not np.isfinite(numbers).all():
        raise DataError(f"covariate {name} holds a number that is not finite")
    spread = numbers.std()
    return [(numbers - numbers.mean()) / spread] if spread > 0 else []


def _selection_warnings(table: CohortTable, selection: Selection, count: NDArray[np.int64]) -> Iterable[str]:
    both = SIDES.index("both")
    if selection.nested:
        yield (
            "some regions contain others: one difference appears in all regions that contain it, so do not count "
            "the regions as separate findings"
        )
    elif selection.level in ("summary", "leaf"):
        inside = int(table.count_direct[:, :, both].sum())
        outside = 1 - count[:, :, both].sum() / max(inside, 1)
        if outside > _MUCH_OUTSIDE:
            yield (
                f"{outside:.0%} of the cells lie in structures that are divided further, but in none of their "
                "parts, and are in no region compared"
            )
