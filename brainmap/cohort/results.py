"""The folder `brainmap compare` writes: table.csv, comparison.csv, report.html, compare.json."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from brainmap.cohort.compare import compare_groups
from brainmap.cohort.groups import Groups, read_groups
from brainmap.cohort.missing import REASONS, rows_of_missing
from brainmap.cohort.model.statistics import RegionTest
from brainmap.cohort.study import CompareSettings, Comparison, Study
from brainmap.cohort.table import SIDES
from brainmap.errors import UsageError
from brainmap.files import atomic_path, cell_text, now, to_jsonable, write_json
from brainmap.lock import held
from brainmap.machine import versions
from brainmap.swap import staged

__all__ = ["COMPARISON_COLUMNS", "TABLE_COLUMNS", "compare", "study_record", "write_csv", "write_study"]

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

RECORD = "compare.json"


def compare(
    groups: str | Path, out: str | Path, settings: CompareSettings | None = None, *, overwrite: bool = False
) -> Study:
    """Compare groups of animals and write the folder of results; see `compare_groups`.

    Parameters
    ----------
    groups : path
        `groups.csv`.
    out : path
        Folder to write, complete or not at all.
    settings : CompareSettings, optional
    overwrite : bool
        Replace an earlier comparison there. One that is empty is used; one that holds anything else never is.

    Raises
    ------
    UsageError
        If `out` cannot be used.
    """
    settings, out = settings or CompareSettings(), Path(out)
    _require_free(out, overwrite)
    table = read_groups(groups, formula=settings.formula, paired=settings.paired)
    _require_outside(out, table)
    study = compare_groups(table, settings)
    write_study(study, out)
    return study


def _require_free(out: Path, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / RECORD).is_file():
        raise UsageError(f"{out} exists and does not hold a comparison; give another --out")
    if not overwrite:
        raise UsageError(f"{out} holds a comparison; use --overwrite to replace it, or another --out")


def _require_outside(out: Path, groups: Groups) -> None:
    for run in groups.run:
        if run.is_relative_to(out.resolve()):
            raise UsageError(
                f"--out {out} contains the run folder {run}, which it would replace; give another"
            )


def write_study(study: Study, out: str | Path) -> None:
    """Write a comparison's folder, complete or not at all."""
    from brainmap.cohort.report.page import write_report

    out = Path(out)
    with held(out, "what was there before stays"), staged(out, RECORD) as folder:
        write_csv(folder / "table.csv", TABLE_COLUMNS, _table_rows(study))
        write_csv(folder / "comparison.csv", COMPARISON_COLUMNS, _comparison_rows(study))
        if study.divisions is not None:
            write_csv(folder / "divisions.csv", DIVISION_COLUMNS, _division_rows(study))
        missing = rows_of_missing(study.missing, study.groups.labels, study.selection, study.settings.sides)
        write_csv(folder / "missing.csv", MISSING_COLUMNS, missing)
        write_report(study, folder / "report.html")
        write_json(folder / RECORD, study_record(study))


def _table_rows(study: Study) -> Iterator[Sequence[Any]]:
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


def _comparison_rows(study: Study) -> Iterator[Sequence[Any]]:
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


def _division_rows(study: Study) -> Iterator[Sequence[Any]]:
    divisions = study.divisions
    assert divisions is not None
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


def study_record(study: Study) -> dict[str, Any]:
    """Everything needed to know what was done, and to repeat it."""
    animals, design = study.table.groups, study.design
    levels = [math.nan] * len(animals) if study.levels is None else study.levels.factor.tolist()
    rows = zip(animals.animal, animals.group, animals.run, study.table.fingerprints, levels, strict=True)
    return {
        "made": now(),
        "versions": versions(),
        "settings": to_jsonable(study.settings),
        "animals": [
            {"animal": animal, "group": group, "run": str(run), "regions_sha256": sha256, "level": level}
            for animal, group, run, sha256, level in rows
        ],
        "design": {
            "formula": design.formula,
            "coefficients": list(design.names),
            "columns": {c.name: c.words(study.groups.values(c.name)) for c in design.codings},
            "contrasts": {c.name: c.matrix.T.tolist() for c in design.contrasts},
        },
        "columns": {name: list(values) for name, values in animals.columns.items()},
        "level": {
            "divided_out": study.levels_divided_out,
            "sd_within_groups": study.level_sd,
            "whole_brain": {
                c.name: {"log2_ratio": float(t.log2_ratio[0]), "p": float(t.p[0])}
                for c, t in zip(study.design.contrasts, study.overall, strict=False)
            },
        },
        "regions": len(study.selection),
        "missing": int((study.missing.code[:, :, [SIDES.index(s) for s in study.settings.sides]] > 0).sum()),
        "families": [_family(one) for one in study.comparisons],
        "warnings": list(study.warnings),
        "notes": list(study.notes),
    }


def _family(one: Comparison) -> dict[str, Any]:
    found: dict[str, Any] = {
        "measure": one.measure, "hemisphere": one.hemisphere, "contrast": one.contrast.name,
        "group_a": one.contrast.group_a, "group_b": one.contrast.group_b, "test": one.result.test,
        "tested": one.tested, "found": len(one.found),
    }  # fmt: skip
    scatter = one.result.scatter
    if scatter is not None:
        found |= {
            "dispersion": scatter.dispersion,
            "shared_sd": math.sqrt(scatter.shared),
            "borrowed_freedom": scatter.prior_freedom,
        }
    return found
