from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from brainmap.cli.main import app
from brainmap.cohort.model.statistics import adjust, count_test
from brainmap.cohort.planning.power import Pilot, PowerSettings, expected_power, read_pilot, study_power
from brainmap.cohort.simulate import Simulation, simulate, write_runs
from brainmap.errors import DataError, UsageError

SIMULATION = Simulation(
    animals=(6, 6), regions=80, fewest=100, dispersion=0.05, dispersion_freedom=0, shared_sd=0
)


def pilot_of(**changes: object) -> Pilot:
    pilot = Pilot(
        acronym=("A", "B", "C", "D"), name=("a", "b", "c", "d"), of=np.repeat(np.arange(4), 20),
        cells=np.full(80, 500.0), own=np.full(80, 0.09), in_division=0.0, shared=0.0, prior_freedom=np.inf,
        group_size=4, relative=False, level_sd=0.1, tree=True,
    )  # fmt: skip
    return replace(pilot, **changes)  # type: ignore[arg-type]


def test_the_scatter_of_a_pilot_is_that_of_its_animals(tmp_path: Path) -> None:
    pilot = read_pilot(write_runs(simulate(SIMULATION, 0), tmp_path), PowerSettings(2.0))
    assert np.sqrt(np.median(pilot.own)) == pytest.approx(np.sqrt(0.05), rel=0.2)
    assert not pilot.relative and not pilot.tree and pilot.group_size == 6 and pilot.acronym == ("all",)


def test_what_is_expected_is_what_a_comparison_finds(tmp_path: Path) -> None:
    """Forty studies drawn from the same animals, tested as a comparison tests them."""
    pilot = read_pilot(write_runs(simulate(SIMULATION, 0), tmp_path), PowerSettings(1.5))
    expected = expected_power(pilot, PowerSettings(1.5, share=0.25), animals=(6,)).region[0, 0]
    found = []
    for seed in range(40):
        cohort = simulate(replace(SIMULATION, planted=20, fold=1.5), 100 + seed)
        q = adjust(
            count_test(cohort.count.astype(float), cohort.volume_mm3, cohort.group == 1).p,
            cohort.count.sum(0),
        )
        found.append((q[cohort.planted] <= 0.05).mean())
    assert expected == pytest.approx(np.mean(found), abs=0.12) and 0.2 < expected < 0.95


def test_more_animals_larger_changes_and_less_scatter_find_more() -> None:
    few, many = expected_power(pilot_of(), PowerSettings(1.7), animals=(3, 8)).region[0]
    assert many > few + 0.3
    weak = expected_power(pilot_of(), PowerSettings(1.3), animals=(6,)).region[0, 0]
    strong = expected_power(pilot_of(), PowerSettings(2.5), animals=(6,)).region[0, 0]
    assert strong > weak + 0.5
    restless = expected_power(pilot_of(own=np.full(80, 0.4)), PowerSettings(1.7), animals=(6,)).region[0, 0]
    assert restless < expected_power(pilot_of(), PowerSettings(1.7), animals=(6,)).region[0, 0] - 0.3


def test_a_change_and_its_inverse_are_equally_hard() -> None:
    up, down = (
        expected_power(pilot_of(), PowerSettings(e), animals=(5,)).region[0, 0] for e in (1.6, 1 / 1.6)
    )
    assert up == pytest.approx(down, abs=0.08)


def test_where_nothing_can_be_found_it_is_said_before() -> None:
    """Four against four with a scatter of 60 %: no region that doubles is found."""
    restless = pilot_of(own=np.full(80, np.log1p(0.36)), prior_freedom=4.0)
    found = expected_power(restless, PowerSettings(1.5, share=0.1), repeats=200)
    assert "practically nothing can be found" in found.verdict()
    assert "practically nothing" not in expected_power(pilot_of(), PowerSettings(2.0), repeats=200).verdict()


def test_animals_needed(tmp_path: Path) -> None:
    found = expected_power(pilot_of(), PowerSettings(1.7), repeats=200)
    needed = found.needed(found.region[0])
    at = found.animals.index(needed)
    assert found.region[0, at] >= 0.8 > found.region[0, at - 1]
    hopeless = expected_power(pilot_of(own=np.full(80, 4.0)), PowerSettings(1.1), repeats=50)
    assert hopeless.needed(hopeless.region[0]) is None and hopeless.rows()[0][5] == "more than 40"


def test_the_command_writes_a_table_curves_and_a_page(tmp_path: Path) -> None:
    groups = write_runs(simulate(SIMULATION, 0), tmp_path / "pilot")
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["power", str(groups), "--effect", "1.5", "--out", str(out), "-q"])
    assert done.exit_code == 0, done.output
    assert "with 6 animals a group, as in this table" in done.output
    assert sorted(path.name for path in out.iterdir()) == ["power.csv", "power.svg", "report.html"]
    table = pd.read_csv(out / "power.csv")
    assert table["share_of_regions"].between(0, 1).all() and table["animals_a_group"].max() == 40
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    refused = CliRunner().invoke(
        app, ["power", str(groups), "--effect", "2", "--out", str(tmp_path / "mine")]
    )
    assert refused.exit_code == 2 and "holds something else" in refused.output


def test_a_pilot_of_one_group_is_enough_and_single_animals_say_nothing(tmp_path: Path) -> None:
    groups = write_runs(simulate(SIMULATION, 0), tmp_path)
    lines = groups.read_text().splitlines()
    groups.write_text("\n".join([*lines[:5], lines[7]]) + "\n")
    assert study_power(groups, PowerSettings(2.0)).pilot.group_size == 4
    groups.write_text("\n".join([lines[0], lines[1], lines[7]]) + "\n")
    with pytest.raises(DataError, match="a group of two animals or more"):
        study_power(groups, PowerSettings(2.0))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"effect": 1.0}, "--effect is a ratio"),
        ({"effect": -2.0}, "--effect is a ratio"),
        ({"effect": 2.0, "share": 0.0}, "--share must lie"),
        ({"effect": 2.0, "power": 1.5}, "--power must lie"),
        ({"effect": 2.0, "hemisphere": "each"}, "--hemisphere must be one of left, right, both"),
    ],
)
def test_settings_that_are_refused(options: dict[str, float], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        PowerSettings(**options)  # type: ignore[arg-type]
