from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from typer.testing import CliRunner

from brainmap.cli.main import app
from brainmap.cohort.compare import compare_groups
from brainmap.cohort.results import compare
from brainmap.cohort.simulate import Simulation, simulate, write_runs
from brainmap.cohort.study import CompareSettings
from brainmap.cohort.tables import COMPARISON_COLUMNS, TABLE_COLUMNS
from brainmap.errors import DataError, UsageError
from brainmap.run_folder import RunRecord

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
        "compare.json", "comparison.csv", "divisions.csv", "figures", "missing.csv", "report.html", "table.csv",
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
    assert np.flatnonzero(counts["called"] == "yes").tolist() == truth.planted.tolist()
    assert (np.sign(counts["log2_ratio"][truth.planted]) == truth.direction[truth.planted]).all()
    np.testing.assert_allclose(counts["q"], stats.false_discovery_control(counts["p"]), rtol=1e-6)
    assert counts["cells_a"][7] == table.query("acronym == 'R007' and group == 'control'")["count"].mean()

    welch = found[found["measure"] == "density_per_mm3"].set_index("acronym").loc["R007"]
    part = table[table["acronym"] == "R007"]
    values = np.log2((part["count"] + 0.5) / part["volume_mm3"]).groupby(part["group"]).apply(list)
    expected = stats.ttest_ind(values["treated"], values["control"], equal_var=False)
    assert welch["p"] == pytest.approx(expected.pvalue, rel=1e-5)
    interval = expected.confidence_interval(0.95)
    assert (welch["log2_ratio_low"], welch["log2_ratio_high"]) == pytest.approx(interval, rel=1e-5)

    record = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert record["settings"]["level"] == "summary" and len(record["animals"]) == 8
    assert record["families"][0]["found"] == 4 and record["design"]["formula"] == "group"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "treated against control: counts, both hemispheres" in page
    figures = {path.suffix: 0 for path in (tmp_path / "out" / "figures").iterdir()}
    assert set(figures) == {".svg", ".csv"}
    assert page.count("<img") == len(list((tmp_path / "out" / "figures").glob("*.svg"))) == 8


@pytest.mark.parametrize("relative", [False, True])
def test_the_columns_of_a_row_tell_one_story(tmp_path: Path, relative: bool) -> None:
    """Staining of 60 %, a covariate, outliers: densities, ratio, effect, interval and p never contradict each other."""
    cohort = simulate(Simulation(planted=30, fold=3, shared_sd=0.6, regions=120, animals=(5, 5)), 3)
    groups = with_column(write_runs(cohort, tmp_path), "sex", list("mfmfmfmfmm"))
    settings = CompareSettings(relative=relative, covariates=("sex",))
    compare(groups, tmp_path / "out", settings)
    found = pd.read_csv(tmp_path / "out" / "comparison.csv")
    known = found[found["p"].notna() & (found["cells_a"] + found["cells_b"] > 20)]
    np.testing.assert_allclose(
        np.log2(known["density_b"] / known["density_a"]), known["log2_ratio"], atol=1e-6
    )
    np.testing.assert_allclose(known["log2_ratio"] / known["log2_sd"], known["effect_sd"], atol=1e-5)
    assert (known["log2_ratio_low"] <= known["log2_ratio"]).all()
    # Intervals leave out 1 where p is clearly below 0.05 and hold it where it is clearly above.
    excludes = (known["log2_ratio_low"] > 0) | (known["log2_ratio_high"] < 0)
    assert excludes[known["p"] < 0.03].mean() > 0.9 and not excludes[known["p"] > 0.1].any()


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
    assert all(one.tested == 40 and len(one.found) == 4 for one in found.comparisons)


def test_three_groups_are_compared_in_pairs_against_the_scatter_of_all(tmp_path: Path) -> None:
    cohort = simulate(Simulation(animals=(3, 3, 3), regions=60, planted=10, fold=6, dispersion=0.03), 0)
    groups = write_runs(cohort, tmp_path, ("a", "b", "c"))
    study = compare_groups(groups, CompareSettings(measure="count"))
    names = [(one.contrast.group_a, one.contrast.group_b) for one in study.comparisons]
    assert names == [("a", "b"), ("a", "c"), ("b", "c")]
    scatters = {id(one.result.scatter) for one in study.comparisons}
    assert len(scatters) == 1 and study.comparisons[0].result.scatter.shared_freedom == 6
    assert any("all groups together" in note for note in study.notes)
    whole = compare_groups(groups, CompareSettings(measure="count", contrasts=("group",))).comparisons[0]
    assert not whole.is_ratio and np.isnan(whole.result.log2_ratio).all()
    assert set(cohort.planted) & set(whole.found.tolist())


def test_swapped_groups_change_the_signs(study: Path) -> None:
    one = compare_groups(study)
    header, *rows = study.read_text().splitlines()
    study.write_text("\n".join([header, *rows[4:], *rows[:4]]) + "\n")
    other = compare_groups(study)
    for a, b in zip(one.comparisons, other.comparisons, strict=True):
        assert a.contrast.name == "treated - control" and b.contrast.name == "control - treated"
        np.testing.assert_allclose(a.result.p, b.result.p, rtol=1e-3)
        np.testing.assert_allclose(a.result.log2_ratio, -b.result.log2_ratio, atol=1e-5)
        np.testing.assert_allclose(a.result.low, -b.result.high, atol=1e-4)


def test_covariates_are_those_asked_for(study: Path) -> None:
    plain = compare_groups(study, CompareSettings(measure="count"))
    with_column(study, "sex", list("mfmfmfmf"))
    with_column(study, "age", ["8", "9", "8.5", "10", "9", "8", "10", "8.5"])
    with_column(study, "ear_tag", [str(1000 + i) for i in range(8)])
    none = compare_groups(study, CompareSettings(measure="count"))
    np.testing.assert_array_equal(none.comparisons[0].result.p, plain.comparisons[0].result.p)
    assert none.notes == ("columns not used: sex, age, ear_tag (--covariate adjusts for one)",)
    both = compare_groups(study, CompareSettings(measure="count", covariates=("sex", "age")))
    scatter = both.comparisons[0].result.scatter
    assert scatter is not None and scatter.shared_freedom == 4
    assert ("  age", "a number, 8 to 10: one slope") in both.lines()
    assert ("  sex", "levels m (4), f (4)") in both.lines()


@pytest.mark.parametrize(
    ("covariate", "values", "says"),
    [
        (
            "x",
            [f"animal number {i}" for i in range(8)],
            "x cannot be told apart from group|too few for 7|x\\[T",
        ),
        ("x", list("aaaabbbb"), "x cannot be told apart from group"),
        ("x:number", ["1", "2", "nan", "1", "2", "3", "1", "2"], "x holds a number that is not finite"),
        ("x", ["1", "2", "", "1", "2", "3", "1", "2"], "animal m02 has no x"),
        ("x", list("12312312"), "x holds whole numbers.*x:number or x:factor"),
        (
            "ear_tag:number",
            [str(i) for i in range(8)],
            "ear_tag is different in every animal and seems to name it",
        ),
        ("x:number", list("abababab"), "x is to be a number, and 'a' is none"),
        ("y", list("abababab"), "the table of groups has no column y"),
    ],
)
def test_covariates_that_are_refused(study: Path, covariate: str, values: list[str], says: str) -> None:
    table = with_column(study, covariate.partition(":")[0].replace("y", "x"), values)
    with pytest.raises((DataError, UsageError), match=says):
        compare_groups(table, CompareSettings(covariates=(covariate,)))


def test_batches_named_by_numbers_are_levels_where_it_is_said(study: Path) -> None:
    table = with_column(study, "batch", list("12311231"))
    factor = compare_groups(table, CompareSettings(measure="count", covariates=("batch:factor",)))
    line = compare_groups(table, CompareSettings(measure="count", covariates=("batch:number",)))
    assert (factor.design.spare, line.design.spare) == (4, 5)


def test_paired_animals_are_compared_within_pairs(tmp_path: Path) -> None:
    """Pairs of littermates with levels of their own: the pair takes them, and more is found."""
    rng = np.random.default_rng(5)
    cohort = simulate(
        Simulation(animals=(5, 5), planted=20, fold=2, shared_sd=0.0, dispersion=0.02, fewest=50), 7
    )
    litter = rng.normal(0, 0.8, (5, cohort.count.shape[1]))
    count = rng.poisson(cohort.count * np.exp(np.concatenate([litter, litter])))
    groups = write_runs(replace(cohort, count=count), tmp_path)
    with_column(groups, "litter", [f"L{i}" for i in [*range(5), *range(5)]])
    found = [
        len(set(compare_groups(groups, CompareSettings(measure=measure, paired=paired)).comparisons[0].found.tolist())
            & set(cohort.planted.tolist()))
        for measure in ("count", "density") for paired in (None, "litter")
    ]  # fmt: skip
    assert found[1] > 14 > found[0] and found[3] > found[2]


def test_an_animal_with_two_runs_is_its_own_pair(tmp_path: Path) -> None:
    cohort = simulate(Simulation(animals=(4, 4), regions=40, fewest=50), 1)
    groups = write_runs(cohort, tmp_path, ("before", "after"))
    lines = groups.read_text().splitlines()
    groups.write_text(
        "\n".join([lines[0], *(f"runs/m{i:02d},a{i % 4},{'before' if i < 4 else 'after'}" for i in range(8))])
    )
    study = compare_groups(groups, CompareSettings(measure="count", paired="animal"))
    assert study.design.spare == 3 and study.groups.labels[4] == "a0 (after)"
    assert (study.comparisons[0].n_a == 4).all() and np.isfinite(study.comparisons[0].result.p).all()


def test_litters_can_be_the_units(tmp_path: Path) -> None:
    cohort = simulate(Simulation(animals=(6, 6), regions=40, fewest=50), 1)
    groups = with_column(write_runs(cohort, tmp_path), "litter", [f"L{i // 2}" for i in range(12)])
    study = compare_groups(groups, CompareSettings(measure="count", unit="litter"))
    assert len(study.groups) == 6 and study.groups.animal[0] == "L0" and study.design.spare == 4
    np.testing.assert_array_equal(study.count[0, :, 2], cohort.count[:2].sum(axis=0))
    with pytest.raises(DataError, match=r"litter cannot be told apart from group.*--unit"):
        compare_groups(groups, CompareSettings(measure="count", covariates=("litter",)))
    with_column(groups, "cage", list("aabbccddeeff"[1:]) + ["a"])
    with pytest.raises(DataError, match=r"has animals of the groups control and treated.*--paired cage"):
        compare_groups(groups, CompareSettings(unit="cage"))


def test_interactions_by_formula(tmp_path: Path) -> None:
    """A drug that works in females alone: found by the interaction, and by the drug in females."""
    cohort = simulate(Simulation(animals=(6, 6), regions=60, fewest=100, dispersion=0.02, shared_sd=0.05), 2)
    sex = list("mmmfff" * 2)
    count = cohort.count.copy()
    count[np.ix_([9, 10, 11], [3, 17])] *= 5
    groups = with_column(write_runs(replace(cohort, count=count), tmp_path), "sex", sex)
    contrasts = (
        "interaction = (treated:f - control:f) - (treated:m - control:m)",
        "treated:m - control:m",
        "group:sex",
    )
    study = compare_groups(
        groups, CompareSettings(measure="both", formula="group * sex", contrasts=contrasts)
    )
    found = {(one.contrast.name, one.measure): one.found.tolist() for one in study.comparisons}
    assert sorted(found["interaction", "count"]) == [3, 17] and sorted(found["group:sex", "count"]) == [3, 17]
    assert found["treated:m - control:m", "count"] == []
    assert study.comparisons[0].result.log2_ratio[3] == pytest.approx(np.log2(5), abs=0.7)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"formula": "group + sex + drug"}, "no column drug"),
        ({"formula": "group + open('x')"}, "no column open"),
        ({"formula": "group +* sex"}, "cannot read 'group \\+\\* sex'"),
        ({"formula": "1"}, "names no column"),
        ({"contrasts": ("treated - nothing",)}, "cannot read 'nothing'"),
        ({"contrasts": ("treated",)}, "add up to 1"),
        ({"contrasts": ("treated - treated",)}, "zero whatever"),
        ({"contrasts": ("treated - control", "treated - control")}, "named twice"),
        ({"relative": True, "control": ("R001",)}, "both divide out"),
        ({"paired": "sex", "unit": "sex"}, "one column can do one"),
        ({"family": "forest"}, "--family must be one of tree, flat"),
        ({"coverage": 2.0}, "--coverage must lie between"),
    ],
)  # fmt: skip
def test_designs_that_are_refused(study: Path, settings: dict[str, Any], says: str) -> None:
    with pytest.raises((DataError, UsageError), match=says):
        compare_groups(with_column(study, "sex", list("mfmfmfmf")), CompareSettings(**settings))


def test_relative_divides_out_the_level_of_an_animal(tmp_path: Path) -> None:
    cohort = simulate(Simulation(planted=20, fold=4, shared_sd=0.6, dispersion=0.05, dispersion_freedom=0), 4)
    groups = write_runs(cohort, tmp_path)
    found = [
        len(compare_groups(groups, CompareSettings(measure="count", relative=relative)).comparisons[0].found)
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
        (["--covariate", "sex"], 2, "has no column sex"),
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


def test_one_damaged_animal_does_not_ruin_a_study(tmp_path: Path) -> None:
    """Twenty regions of one animal at a tenth, or eightfold: said, missing there, and the others are found "
    "as before."""
    simulation = Simulation(
        planted=20, fold=2.5, fewest=50, dispersion=0.04, dispersion_freedom=0, shared_sd=0
    )
    cohort = simulate(simulation, 4)
    clean = compare_groups(write_runs(cohort, tmp_path / "clean"), CompareSettings(measure="count"))
    usual = set(clean.comparisons[0].found.tolist())
    for name, factor in (("damaged", 0.1), ("artefact", 8.0)):
        count = cohort.count.copy()
        hit = np.arange(50, 70)
        count[2, hit] = np.round(count[2, hit] * factor)
        groups = write_runs(replace(cohort, count=count), tmp_path / name)
        study = compare_groups(groups, CompareSettings(measure="count"))
        gone = np.flatnonzero(study.missing.code[2, :, 2])
        assert len(set(gone) & set(hit)) >= 15 and (study.missing.code[[0, 1, 3, 4, 5, 6, 7]] > 0).sum() <= 2
        assert any("m02: " in w and "stand out" in w for w in study.warnings)
        assert study.comparisons[0].n_a[gone[0]] == 3
        kept = set(study.comparisons[0].found.tolist())
        assert len(kept & usual) >= 0.75 * len(usual)
        blind = compare_groups(groups, CompareSettings(measure="count", keep_outliers=True))
        assert not (blind.missing.code > 0).any() and (blind.comparisons[0].n_a == 4).all()


def test_missing_is_not_zero(study: Path, tmp_path: Path) -> None:
    (tmp_path / "damaged.csv").write_text("animal;structure\nm01;R007\nm04;R009\nm05;R009\nm06;R009\n")
    found = compare_groups(study, CompareSettings(exclude=tmp_path / "damaged.csv", measure="both"))
    for one in found.comparisons:
        assert one.n_a[7] == 3 and one.n_b[7] == 4 and np.isfinite(one.result.p[7])
        assert one.n_b[9] == 1 and np.isnan(one.result.p[9])
    assert any("m01: 1 regions are left out" in warning for warning in found.warnings)
    (tmp_path / "odd.csv").write_text("animal,structure\nm99,R007\n")
    with pytest.raises(DataError, match="line 2: there is no animal 'm99'"):
        compare_groups(study, CompareSettings(exclude=tmp_path / "odd.csv"))
    (tmp_path / "odd.csv").write_text("animal,structure\nm01,R777\n")
    with pytest.raises(DataError, match="line 2: the atlas has no structure 'R777'"):
        compare_groups(study, CompareSettings(exclude=tmp_path / "odd.csv"))


def test_regions_outside_an_image_and_bad_registrations_are_missing(study: Path) -> None:
    run = study.parent / "runs" / "m03"
    lines = (run / "regions.csv").read_text().splitlines()
    for i, line in enumerate(lines):
        cells = line.split(",")
        if cells[1] in ("R011", "R012"):
            share = 0.1 if cells[1] == "R011" else 4.0
            cells[7] = f"{float(cells[7]) * share:.9g}"
            lines[i] = ",".join(cells)
    (run / "regions.csv").write_text("\n".join(lines) + "\n")
    bad = study.parent / "runs" / "m06"
    RunRecord.load(bad).updated(results={"registration_verdict": "bad"}).save(bad)
    found = compare_groups(study, CompareSettings(measure="count"))
    one = found.comparisons[0]
    assert one.n_a[[10, 11, 12]].tolist() == [4, 3, 3] and (one.n_b == 3).all()
    said = " ".join(found.warnings)
    assert (
        "m03: 1 regions are not in its image" in said
        and "m03: 1 regions have a volume out of proportion" in said
    )
    assert "the registration of m06 is bad" in said


def test_an_animal_with_hardly_a_cell_is_told(study: Path) -> None:
    cohort = simulate(PLANTED, 2)
    count = cohort.count.copy()
    count[5] = np.random.default_rng(0).binomial(count[5], 0.03)
    write_runs(replace(cohort, count=count), study.parent)
    said = compare_groups(study, CompareSettings(measure="count")).warnings
    assert any("m05 has 3% of the usual cells" in warning for warning in said)


def test_two_animals_and_unequal_scatter_are_told(tmp_path: Path) -> None:
    few = write_runs(simulate(Simulation(animals=(2, 4), regions=30), 0), tmp_path / "few")
    assert any("group control has two animals" in w for w in compare_groups(few).warnings)
    rng = np.random.default_rng(0)
    cohort = simulate(Simulation(animals=(4, 8), fewest=100, dispersion=0.01, shared_sd=0), 0)
    count = cohort.count.copy()
    count[:4] = rng.poisson(count[:4] * rng.gamma(4, 0.25, count[:4].shape))
    groups = write_runs(replace(cohort, count=count), tmp_path / "unlike")
    found = compare_groups(groups)
    assert any("the groups scatter unlike" in w for w in found.warnings)
    # Either measure alone is too liberal then: both call what both call.
    counts, densities = found.comparisons
    np.testing.assert_array_equal(counts.result.p, densities.result.p)
    assert not np.array_equal(counts.result.log2_ratio, densities.result.log2_ratio)


def test_names_in_any_script(tmp_path: Path) -> None:
    cohort = simulate(Simulation(regions=30, planted=5, fold=6), 1)
    groups = write_runs(cohort, tmp_path, ("対照 $x$", "6-OHDA, größe"))
    text = groups.read_text().replace("6-OHDA, größe", '"6-OHDA, größe"')
    groups.write_text(text)
    compare(groups, tmp_path / "out", CompareSettings(measure="count"))
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "6-OHDA, größe against 対照 $x$" in page
    assert pd.read_csv(tmp_path / "out" / "comparison.csv")["group_b"][0] == "6-OHDA, größe"
