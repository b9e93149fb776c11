from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from typer.testing import CliRunner

from brainmap.cli.main import app
from brainmap.cohort.compare import compare_groups
from brainmap.cohort.results import COMPARISON_COLUMNS, TABLE_COLUMNS, compare
from brainmap.cohort.simulate import Simulation, simulate, write_runs
from brainmap.cohort.study import CompareSettings
from brainmap.errors import DataError, UsageError

PLANTED = Simulation(
    regions=40, fewest=50, planted=4, fold=10, dispersion=0.02, dispersion_freedom=0, shared_sd=0
)  # of the fixture `study`


def with_column(groups: Path, name: str, values: list[str]) -> Path:
    header, *rows = groups.read_text().splitlines()
    lines = [f"{header},{name}", *(f"{row},{value}" for row, value in zip(rows, values, strict=True))]
    groups.write_text("\n".join(lines) + "\n")
    return groups


def test_from_run_folders_to_tables(study: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["compare", str(study), "--out", str(tmp_path / "out"), "-q"])
    assert done.exit_code == 0, done.output
    assert "4 control, 4 treated" in done.output and "4 of 40 regions differ" in done.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "compare.json", "comparison.csv", "report.html", "table.csv",
    ]  # fmt: skip
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    assert tuple(table.columns) == TABLE_COLUMNS and len(table) == 8 * 40
    np.testing.assert_allclose(table["count"] / table["volume_mm3"], table["density_per_mm3"], rtol=1e-6)
    one = pd.read_csv(study.parent / "runs" / "m03" / "regions.csv").query(
        "acronym == 'R007' and hemisphere == 'both'"
    )
    row = table.query("animal == 'm03' and acronym == 'R007'")
    assert row["count"].item() == one["count"].item()

    found = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert tuple(found.columns) == COMPARISON_COLUMNS and len(found) == 2 * 40
    assert set(found["measure"]) == {"count", "density_per_mm3"}
    assert (found["n_a"] == 4).all() and found["p"].between(0, 1).all()
    truth = simulate(PLANTED, 2)
    counts = found[found["measure"] == "count"].reset_index()
    assert np.flatnonzero(counts["q"] <= 0.05).tolist() == truth.planted.tolist()
    assert (np.sign(counts["effect"][truth.planted]) == truth.direction[truth.planted]).all()
    np.testing.assert_allclose(counts["q"], stats.false_discovery_control(counts["p"]), rtol=1e-6)

    welch = found[found["measure"] == "density_per_mm3"].set_index("acronym").loc["R007"]
    values = table[table["acronym"] == "R007"].groupby("group")["density_per_mm3"].apply(list)
    expected = stats.ttest_ind(values["control"], values["treated"], equal_var=False)
    assert welch["p"] == pytest.approx(expected.pvalue, rel=1e-5)
    assert welch["mean_a"] == pytest.approx(np.mean(values["control"]), rel=1e-6)
    assert welch["sd_b"] == pytest.approx(np.std(values["treated"], ddof=1), rel=1e-6)

    record = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert record["settings"]["level"] == "summary" and len(record["animals"]) == 8
    assert record["families"][0]["found"] == 4
    page = (tmp_path / "out" / "report.html").read_text()
    assert "treated against control: counts, both hemispheres" in page and page.count("<img") == 5


def test_equal_inputs_give_equal_tables(study: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        compare(study, tmp_path / name, CompareSettings(measure="count"))
    for name in ("table.csv", "comparison.csv", "report.html"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_an_earlier_result_is_replaced_only_when_told(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    compare(study, out, CompareSettings(measure="density"))
    with pytest.raises(UsageError, match="--overwrite"):
        compare(study, out)
    compare(study, out, CompareSettings(measure="density", level="R001,R002"), overwrite=True)
    assert len(pd.read_csv(out / "comparison.csv")) == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(UsageError, match="does not hold a comparison"):
        compare(study, tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_each_hemisphere_is_a_family(study: Path) -> None:
    found = compare_groups(study, CompareSettings(hemisphere="each", measure="count"))
    assert [one.hemisphere for one in found.comparisons] == ["left", "right"]
    assert all(one.tested == 40 and len(one.found(0.05)) == 4 for one in found.comparisons)


def test_three_groups_are_compared_in_pairs_that_do_not_depend_on_the_third(tmp_path: Path) -> None:
    cohort = simulate(Simulation(animals=(3, 3, 3), regions=30, planted=5, fold=6), 0)
    groups = write_runs(cohort, tmp_path, ("a", "b", "c"))
    study = compare_groups(groups, CompareSettings(measure="count"))
    assert [(one.group_a, one.group_b) for one in study.comparisons] == [("a", "b"), ("a", "c"), ("b", "c")]
    lines = groups.read_text().splitlines()
    groups.write_text("\n".join(lines[:7]) + "\n")
    alone = compare_groups(groups, CompareSettings(measure="count")).comparisons[0]
    np.testing.assert_array_equal(alone.p, study.comparisons[0].p)


def test_swapped_groups_change_the_signs(study: Path) -> None:
    one = compare_groups(study)
    header, *rows = study.read_text().splitlines()
    study.write_text("\n".join([header, *rows[4:], *rows[:4]]) + "\n")
    other = compare_groups(study)
    for a, b in zip(one.comparisons, other.comparisons, strict=True):
        assert (a.group_a, a.group_b) == (b.group_b, b.group_a)
        np.testing.assert_allclose(a.p, b.p, rtol=1e-3)
        np.testing.assert_allclose(a.effect, -b.effect, rtol=1e-9)
        np.testing.assert_allclose(a.log2_ratio, -b.log2_ratio, atol=1e-5)


def test_covariates_enter_the_regression(study: Path) -> None:
    plain = compare_groups(study, CompareSettings(measure="count"))
    with_column(study, "sex", list("mfmfmfmf"))
    with_column(study, "age", ["8", "9", "8.5", "10", "9", "8", "10", "8.5"])
    both = compare_groups(study, CompareSettings(measure="count"))
    assert both.comparisons[0].scatter is not None and both.comparisons[0].scatter.shared_freedom == 4
    none = compare_groups(study, CompareSettings(measure="count", covariates=()))
    np.testing.assert_array_equal(none.comparisons[0].p, plain.comparisons[0].p)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([f"animal number {i}" for i in range(8)], "too few for 7 columns of covariates"),
        (list("aaaabbbb"), "x cannot be told apart from the groups control and treated"),
        (["1", "2", "nan", "1", "2", "3", "1", "2"], "x holds a number that is not finite"),
    ],
)
def test_covariates_that_are_refused(study: Path, values: list[str], says: str) -> None:
    with pytest.raises(DataError, match=says):
        compare_groups(with_column(study, "x", values))


def test_relative_divides_out_the_level_of_an_animal(tmp_path: Path) -> None:
    cohort = simulate(Simulation(planted=20, fold=4, shared_sd=0.6, dispersion=0.05, dispersion_freedom=0), 4)
    groups = write_runs(cohort, tmp_path)
    found = [
        len(
            compare_groups(groups, CompareSettings(measure="count", relative=relative))
            .comparisons[0]
            .found(0.05)
        )
        for relative in (False, True)
    ]
    assert found[1] >= 15 > found[0]


def test_nested_regions_are_told(study: Path) -> None:
    found = compare_groups(study, CompareSettings(level="all", measure="density"))
    assert len(found.selection) == 41 and "some regions contain others" in found.warnings[0]
    assert ("warning", found.warnings[0]) in found.lines()


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--hemisphere", "top"], 2, "--hemisphere must be one of left, right, both, each"),
        (["--measure", "size"], 2, "--measure must be one of count, density, both"),
        (["--alpha", "5"], 2, "--alpha must lie between 0 and 1"),
        (["--level", "R999"], 2, "no structure 'R999'"),
        (["--covariates", "sex"], 2, "has no column sex"),
    ],
)
def test_bad_options_are_one_sentence(
    study: Path, tmp_path: Path, options: list[str], code: int, says: str
) -> None:
    done = CliRunner().invoke(app, ["compare", str(study), "--out", str(tmp_path / "out"), *options])
    assert done.exit_code == code and says in done.output and len(done.output.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_out_never_swallows_the_runs(study: Path) -> None:
    (study.parent / "compare.json").write_text("{}")
    with pytest.raises(UsageError, match="contains the run folder"):
        compare(study, study.parent, overwrite=True)
    assert (study.parent / "runs" / "m00" / "regions.csv").exists()


def test_the_result_as_json(study: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["compare", str(study), "--out", str(tmp_path / "out"), "--json", "-q"])
    assert json.loads(done.stdout)["regions"] == 40
