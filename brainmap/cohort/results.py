"""The folder `brainmap compare` writes: table.csv, comparison.csv, report.html, compare.json."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from brainmap.cohort.compare import compare_groups
from brainmap.cohort.groups import Groups, read_groups
from brainmap.cohort.study import CompareSettings, Comparison, Study
from brainmap.cohort.table import SIDES
from brainmap.errors import UsageError
from brainmap.files import atomic_path, cell_text, now, to_jsonable, write_json
from brainmap.lock import held
from brainmap.machine import versions
from brainmap.swap import staged

__all__ = ["COMPARISON_COLUMNS", "TABLE_COLUMNS", "compare", "study_record", "write_study"]

TABLE_COLUMNS = (
    "animal", "group", "region_id", "acronym", "hemisphere", "count", "volume_mm3", "density_per_mm3",
)  # fmt: skip
COMPARISON_COLUMNS = (
    "region_id", "acronym", "hemisphere", "measure", "group_a", "group_b", "n_a", "n_b", "mean_a", "mean_b",
    "sd_a", "sd_b", "effect", "log2_ratio", "p", "q", "test",
)  # fmt: skip

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
    table = read_groups(groups, settings.covariates)
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
    from brainmap.cohort.report import write_report

    out = Path(out)
    with held(out, "what was there before stays"), staged(out, RECORD) as folder:
        _write_csv(folder / "table.csv", TABLE_COLUMNS, _table_rows(study))
        _write_csv(folder / "comparison.csv", COMPARISON_COLUMNS, _comparison_rows(study))
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
                yield animal, group, int(key), acronym, side, count, volume, density


def _comparison_rows(study: Study) -> Iterator[Sequence[Any]]:
    for one in study.comparisons:
        means = one.means
        columns = (
            means.n_a, means.n_b, means.mean_a, means.mean_b, means.sd_a, means.sd_b,
            one.effect, one.log2_ratio, one.p, one.q,
        )  # fmt: skip
        for key, acronym, *values in zip(study.selection.id, study.selection.acronym, *columns, strict=True):
            names = (one.hemisphere, one.measure, one.group_a, one.group_b)
            yield int(key), acronym, *names, *(value.item() for value in values), one.test


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_cell(value) for value in row] for row in rows)


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.9g}" if math.isfinite(value) else ""
    return cell_text(value) if isinstance(value, str) else value


def study_record(study: Study) -> dict[str, Any]:
    """Everything needed to know what was done, and to repeat it."""
    groups = study.groups
    return {
        "made": now(),
        "versions": versions(),
        "settings": to_jsonable(study.settings),
        "animals": [
            {"animal": animal, "group": group, "run": str(run), "regions_sha256": sha256, "level": level}
            for animal, group, run, sha256, level in zip(
                groups.animal,
                groups.group,
                groups.run,
                study.table.fingerprints,
                study.level.tolist(),
                strict=True,
            )
        ],
        "covariates": {name: list(values) for name, values in groups.covariates.items()},
        "regions": len(study.selection),
        "families": [_family(one, study.settings.alpha) for one in study.comparisons],
        "warnings": list(study.warnings),
    }


def _family(one: Comparison, alpha: float) -> dict[str, Any]:
    names = ("measure", "hemisphere", "group_a", "group_b", "test", "tested")
    found: dict[str, Any] = {name: getattr(one, name) for name in names}
    found["found"] = len(one.found(alpha))
    if one.scatter is not None:
        found |= {
            "dispersion": one.scatter.dispersion,
            "shared_sd": math.sqrt(one.scatter.shared),
            "borrowed_freedom": one.scatter.prior_freedom,
        }
    return found
