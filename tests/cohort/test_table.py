from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from brainmap.cohort.groups import read_groups
from brainmap.cohort.table import SIDES, read_cohort
from brainmap.errors import DataError, NotFoundError
from brainmap.run_folder import RunRecord


def test_every_animal_and_side_is_read(study: Path) -> None:
    table = read_cohort(read_groups(study))
    assert table.count.shape == (8, 41, 3) and table.acronym[:2] == ("root", "R000")
    both = SIDES.index("both")
    np.testing.assert_array_equal(table.count[:, :, :2].sum(axis=2), table.count[:, :, both])
    np.testing.assert_array_equal(table.count[:, 1:, both].sum(axis=1), table.count[:, 0, both])
    assert table.present.all() and not table.warnings
    assert len(set(table.fingerprints)) == 8


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"status": "incomplete", "blocks": {"failed": {"3": "x"}}}, "m02.*not complete .1 blocks failed"),
        ({"status": "running"}, "m02.*not complete .its status is running"),
        (
            {"fingerprints": {"atlas": "other"}, "parameters": {"atlas": "rat"}},
            "m02 .atlas rat.*different atlases",
        ),
    ],
)
def test_runs_that_are_refused(study: Path, change: dict[str, object], says: str) -> None:
    for run in (study.parent / "runs").iterdir():
        record = RunRecord.load(run).updated(fingerprints={"atlas": "usual"})
        (record.updated(**change) if run.name == "m02" else record).save(run)
    with pytest.raises(DataError, match=says):
        read_cohort(read_groups(study))


def test_other_structures_are_another_atlas(study: Path) -> None:
    regions = study.parent / "runs" / "m05" / "regions.csv"
    lines = regions.read_text().splitlines()
    regions.write_text("\n".join(lines[:-3]) + "\n")
    with pytest.raises(DataError, match="m00 and m05 list different structures"):
        read_cohort(read_groups(study))


def test_without_regions_or_record(study: Path) -> None:
    run = study.parent / "runs" / "m05"
    (run / "regions.csv").unlink()
    with pytest.raises(DataError, match="made without an atlas"):
        read_cohort(read_groups(study))
    (run / "run.json").unlink()
    with pytest.raises(NotFoundError, match="not a run folder"):
        read_cohort(read_groups(study))


def test_other_settings_and_a_runs_own_warnings_are_told(study: Path) -> None:
    run = study.parent / "runs" / "m05"
    record = RunRecord.load(run)
    record.updated(results={"threshold": 0.9}, warnings=("the registration is poor",)).save(run)
    warnings = read_cohort(read_groups(study)).warnings
    assert len(warnings) == 2
    assert "same threshold (different: m05)" in warnings[0] and warnings[1] == "m05: the registration is poor"


def test_one_run_under_two_names_is_refused(study: Path) -> None:
    import shutil

    runs = study.parent / "runs"
    shutil.rmtree(runs / "m05")
    shutil.copytree(runs / "m02", runs / "m05")
    with pytest.raises(DataError, match="m02 and m05 have the same table of regions"):
        read_cohort(read_groups(study))


def test_another_channel_is_told(study: Path) -> None:
    for run in (study.parent / "runs").iterdir():
        record = RunRecord.load(run)
        record.updated(parameters=record.parameters | {"channel": 1 if run.name == "m06" else 0}).save(run)
    (warning,) = read_cohort(read_groups(study)).warnings
    assert "same channel (different: m06)" in warning
