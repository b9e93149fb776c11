"""The tables of a comparison: table.csv, comparison.csv, divisions.csv, missing.csv."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from brainmap.cohort.missing import REASONS
from brainmap.cohort.model.statistics import RegionTest
from brainmap.cohort.study import Study
from brainmap.cohort.table import SIDES
from brainmap.files import atomic_path, cell_text

__all__ = [
    "COMPARISON_COLUMNS", "DIVISION_COLUMNS", "MISSING_COLUMNS", "TABLE_COLUMNS", "comparison_rows", "division_rows",
    "table_rows", "write_csv",
]  # fmt: skip

TABLE_COLUMNS = (
    "animal", "group", "region_id", "acronym", "hemisphere", "count", "volume_mm3", "density_per_mm3", "level",
    "missing",
)  # fmt: skip
COMPARISON_COLUMNS = (
    "region_id", "acronym", "division", "hemisphere", "measure", "contrast", "group_a", "group_b", "n_a", "n_b", "n",
    "density_a", "density_b", "log2_ratio", "log2_ratio_low", "log2_ratio_high", "log2_sd", "effect_sd", "p", "q",
    "q_tree", "called", "log2_ratio_pooled", "lfsr", "cells_a", "cells_b", "test",
)  # fmt: skip
MISSING_COLUMNS = ("animal", "region_id", "acronym", "hemisphere", "reason", "factor")


def table_rows(study: Study) -> Iterator[Sequence[Any]]:
    """One row per animal, region and hemisphere."""
    groups, selection = study.groups, study.selection
    for i, (animal, group) in enumerate(zip(groups.animal, groups.group, strict=True)):
        for j, (key, acronym) in enumerate(zip(selection.id, selection.acronym, strict=True)):
            for side in study.settings.sides:
                s = SIDES.index(side)
                count, volume = int(study.count[i, j, s]), float(study.volume_mm3[i, j, s])
                density = count / volume if volume > 0 else math.nan
                reason = REASONS[study.missing.code[i, j, s]]
                yield (
                    animal,
                    group,
                    int(key),
                    acronym,
                    side,
                    count,
                    volume,
                    density,
                    float(study.level[i]),
                    reason,
                )


def comparison_rows(study: Study) -> Iterator[Sequence[Any]]:
    """One row per region and family of tests."""
    selection, divisions = study.selection, study.divisions
    above = [""] * len(selection)
    if divisions is not None:
        above = [divisions.acronym[i] if i >= 0 else "" for i in divisions.of]
    for one in study.comparisons:
        contrast, result = one.contrast, one.result
        pooled = one.shrunk
        unknown = np.full(len(selection), np.nan)
        columns = (
            one.n_a, one.n_b, one.n, *_estimates(result), one.effect, result.p, one.q, one.q_tree, one.called,
            unknown if pooled is None else pooled.log2_ratio, unknown if pooled is None else pooled.lfsr,
            one.cells_a, one.cells_b,
        )  # fmt: skip
        for key, acronym, division, *values in zip(
            selection.id, selection.acronym, above, *columns, strict=True
        ):
            names = (division, one.hemisphere, one.measure, contrast.name, contrast.group_a, contrast.group_b)
            yield int(key), acronym, *names, *(value.item() for value in values), result.test


def _estimates(result: RegionTest) -> tuple[Any, ...]:
    return result.density_a, result.density_b, result.log2_ratio, result.low, result.high, result.sd


DIVISION_COLUMNS = (
    "region_id", "acronym", "hemisphere", "measure", "contrast", "group_a", "group_b", "regions", "regions_called",
    "density_a", "density_b", "log2_ratio", "log2_ratio_low", "log2_ratio_high", "log2_sd", "p_cells", "q_tree",
)  # fmt: skip


def division_rows(study: Study) -> Iterator[Sequence[Any]]:
    """One row per division and family of tests; none where there are no divisions."""
    divisions = study.divisions
    if divisions is None:
        return
    for one in study.comparisons:
        if one.divisions is None or one.q_division is None:
            continue
        contrast, result = one.contrast, one.divisions
        columns = (*_estimates(result), result.p, one.q_division)
        for i, (row, acronym) in enumerate(zip(divisions.row, divisions.acronym, strict=True)):
            names = (one.hemisphere, one.measure, contrast.name, contrast.group_a, contrast.group_b)
            inside = divisions.of == i
            numbers = (int(inside.sum()), int((inside & one.called).sum()))
            yield (
                int(study.table.id[row]),
                acronym,
                *names,
                *numbers,
                *(values[i].item() for values in columns),
            )


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table, complete or not at all; unknown numbers are empty."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_cell(value) for value in row] for row in rows)


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.9g}" if math.isfinite(value) else ""
    return cell_text(value) if isinstance(value, str) else value
