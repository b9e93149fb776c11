"""The folder `brainmap compare` writes: table.csv, comparison.csv, report.html, compare.json."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from brainmap.cohort.compare import compare_groups
from brainmap.cohort.folder import KEPT, require_free, require_outside
from brainmap.cohort.groups import read_groups
from brainmap.cohort.missing import rows_of_missing
from brainmap.cohort.study import CompareSettings, Comparison, Study
from brainmap.cohort.table import SIDES
from brainmap.cohort.tables import (
    COMPARISON_COLUMNS,
    DIVISION_COLUMNS,
    MISSING_COLUMNS,
    TABLE_COLUMNS,
    comparison_rows,
    division_rows,
    table_rows,
    write_csv,
)
from brainmap.files import now, to_jsonable, write_json
from brainmap.lock import held
from brainmap.machine import versions
from brainmap.swap import finish_swap, staged

__all__ = ["compare", "study_record", "write_study"]

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
    if not out.is_dir():
        require_free(out, RECORD, "a comparison", overwrite)
    with held(out, KEPT):
        finish_swap(out)
        require_free(out, RECORD, "a comparison", overwrite)
        table = read_groups(groups, formula=settings.formula, paired=settings.paired)
        require_outside(out, table)
        study = compare_groups(table, settings)
        _write(study, out)
    return study


def write_study(study: Study, out: str | Path) -> None:
    """Write a comparison's folder, complete or not at all."""
    with held(Path(out), KEPT):
        _write(study, Path(out))


def _write(study: Study, out: Path) -> None:
    from brainmap.cohort.report.page import write_report

    with staged(out, RECORD) as folder:
        write_csv(folder / "table.csv", TABLE_COLUMNS, table_rows(study))
        write_csv(folder / "comparison.csv", COMPARISON_COLUMNS, comparison_rows(study))
        write_csv(folder / "divisions.csv", DIVISION_COLUMNS, division_rows(study))
        missing = rows_of_missing(study.missing, study.groups.labels, study.selection, study.settings.sides)
        write_csv(folder / "missing.csv", MISSING_COLUMNS, missing)
        write_report(study, folder / "report.html")
        write_json(folder / RECORD, study_record(study))


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
