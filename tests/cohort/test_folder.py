"""Where results of a cohort may be written."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from brainmap.cli.main import app
from brainmap.cohort.folder import require_free, require_outside
from brainmap.cohort.groups import read_groups
from brainmap.errors import UsageError


def test_what_may_be_written(tmp_path: Path) -> None:
    require_free(tmp_path / "new", "maps.json", "maps", False)
    require_free(tmp_path, "maps.json", "maps", False)
    (tmp_path / ".lock").touch()
    require_free(tmp_path, "maps.json", "maps", False)
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(UsageError, match="does not hold maps"):
        require_free(tmp_path, "maps.json", "maps", True)
    with pytest.raises(UsageError, match="does not hold maps"):
        require_free(tmp_path / "thesis.txt", "maps.json", "maps", True)
    (tmp_path / "maps.json").touch()
    require_free(tmp_path, "maps.json", "maps", True)
    with pytest.raises(UsageError, match="--overwrite"):
        require_free(tmp_path, "maps.json", "maps", False)


def test_a_folder_that_holds_a_run_is_not_replaced(tmp_path: Path) -> None:
    rows = ["run,animal,group"]
    for number, group in enumerate("xxyy"):
        (tmp_path / "all" / f"m{number}").mkdir(parents=True)
        rows.append(f"all/m{number},{number},{group}")
    table = tmp_path / "groups.csv"
    table.write_text("\n".join(rows) + "\n")
    groups = read_groups(table)
    require_outside(tmp_path / "out", groups)
    with pytest.raises(UsageError, match="contains the run folder"):
        require_outside(tmp_path / "all", groups)


@pytest.mark.parametrize("command", ["maps", "network", "compare"])
def test_a_place_that_cannot_be_used_is_refused_before_any_work(tmp_path: Path, command: str) -> None:
    """The table of groups does not exist: it has not been looked for."""
    (tmp_path / "thesis.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "thesis.txt"):
        done = CliRunner().invoke(app, [command, str(tmp_path / "none.csv"), "--out", str(out)])
        assert done.exit_code == 2 and "does not hold" in done.output
    assert (tmp_path / "thesis.txt").read_text() == "mine"
