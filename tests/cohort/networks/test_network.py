from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from brainmap.cli.main import app
from brainmap.cohort.networks import network as module
from brainmap.cohort.networks import write
from brainmap.cohort.networks.network import NetworkSettings, make_network
from brainmap.cohort.networks.write import write_network
from brainmap.cohort.simulate import Simulation, simulate, write_runs
from brainmap.errors import DataError, UsageError

SIMULATION = Simulation(
    animals=(9, 9),
    regions=24,
    planted=4,
    fold=4,
    dispersion=0.02,
    dispersion_freedom=0,
    fewest=200,
    shared_sd=0.3,
)


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nine against nine; in the second group R000 to R005 go together."""
    monkeypatch.setattr(write, "render", lambda figure: b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    cohort = simulate(SIMULATION, 3)
    factor = np.ones(cohort.count.shape)
    factor[9:, :6] = np.exp(np.random.default_rng(0).normal(0, 0.9, (9, 1)))
    return write_runs(
        replace(cohort, count=np.round(cohort.count * factor).astype(np.int64)), tmp_path / "study"
    )


def test_from_run_folders_to_a_network(groups: Path, tmp_path: Path) -> None:
    out = tmp_path / "network"
    command = ["network", str(groups), "--out", str(out), "--permutations", "99", "--density", "0.08", "-q"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    pairs = pd.read_csv(out / "correlations.csv").set_index(["acronym_1", "acronym_2"])
    assert len(pairs) == 24 * 23 // 2 and (pairs["n_control"] <= 9).all()
    chosen = pairs.loc[[pair for pair in pairs.index if max(pair) <= "R005"]]
    assert (chosen["r_treated"] > 0.7).all() and (chosen["z treated - control"] > 0).mean() > 0.8
    assert (chosen["q treated - control"] <= 0.05).any()
    regions = pd.read_csv(out / "regions.csv").set_index("acronym")
    assert regions.loc["R000":"R005", "module_treated"].nunique() == 1
    assert "whole network p" in (out / "report.html").read_text(encoding="utf-8")
    assert len(list((out / "figures").iterdir())) == 3
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 2 and "--overwrite" in again.output


def test_a_level_shared_by_all_regions_is_no_correlation(groups: Path) -> None:
    kept = make_network(groups, NetworkSettings(permutations=10, relative=False))
    out = make_network(groups, NetworkSettings(permutations=10))
    off = np.triu_indices(24, 1)
    assert np.mean(kept.r["control"][off]) > 0.6 and abs(np.mean(out.r["control"][off])) < 0.2
    assert any("levels are kept" in text for text in kept.warnings())
    assert not any("levels are kept" in text for text in out.warnings())
    assert any("beyond +-0.67" in text for text in out.warnings())


def test_few_animals_are_refused_unless_asked_for(tmp_path: Path) -> None:
    five = write_runs(simulate(replace(SIMULATION, animals=(5, 6)), 0), tmp_path / "five")
    with pytest.raises(DataError, match=r"group control has 5 animals.*--few computes them"):
        make_network(five)
    assert make_network(five, NetworkSettings(permutations=10, few=True)).n["control"].max() == 5
    three = write_runs(simulate(replace(SIMULATION, animals=(3, 6)), 0), tmp_path / "three")
    with pytest.raises(DataError, match=r"fewer than 4 say nothing$"):
        make_network(three, NetworkSettings(few=True))


def test_regions_without_cells_are_no_part_of_it(tmp_path: Path) -> None:
    sparse = write_runs(simulate(replace(SIMULATION, fewest=0.1, most=2), 0), tmp_path / "sparse")
    with pytest.raises(DataError, match="regions have 10 cells an animal"):
        make_network(sparse)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hemisphere": "each"}, "--hemisphere"),
        ({"density": 0.0}, "--density"),
        ({"permutations": 0}, "--permut"),
    ],
)
def test_bad_settings(change: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        NetworkSettings(**change)


def test_what_is_there_is_not_replaced_untold(
    groups: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "modularity_test", lambda values, *_: module.Modularity(
        np.zeros(values.shape[1], dtype=np.intp), 0.1, np.zeros(3), np.zeros(3)
    ))  # fmt: skip
    found = make_network(groups, NetworkSettings(permutations=10))
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="does not hold networks"):
        write_network(found, other, overwrite=True)
    assert (other / "mine.txt").read_text() == "mine"
    write_network(found, tmp_path / "new")
    assert write_network(found, tmp_path / "new", overwrite=True).exists()
