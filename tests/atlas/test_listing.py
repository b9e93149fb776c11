"""`brainmap atlas`: what is here, what BrainGlobe offers, and the structures of an atlas."""

from __future__ import annotations

import csv
import io
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from brainmap.atlas import Atlas
from brainmap.atlas.listing import local_atlases, offered_atlases
from brainmap.cli.main import app
from brainmap.errors import DataError, NotFoundError

WriteAtlas = Callable[..., Path]


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no atlas of this machine be found."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BRAINGLOBE_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("BRAINMAP_ATLASES", str(tmp_path / "atlases"))
    monkeypatch.setitem(sys.modules, "brainglobe_atlasapi", None)


def offer(monkeypatch: pytest.MonkeyPatch, result: object) -> None:
    """A brainglobe-atlasapi that knows these atlases, or fails."""

    def versions() -> object:
        print("chatter of the package")
        if isinstance(result, Exception):
            raise result
        return result

    package, module = types.ModuleType("brainglobe_atlasapi"), types.ModuleType("list_atlases")
    module.get_all_atlases_lastversions = versions  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "brainglobe_atlasapi", package)
    monkeypatch.setitem(sys.modules, "brainglobe_atlasapi.list_atlases", module)


def test_what_is_here(write_atlas: WriteAtlas, tmp_path: Path) -> None:
    sides = np.ones((8, 6, 10), dtype=np.uint8)
    write_atlas(folder="atlases/tiny_100um_v1.0")
    write_atlas(folder="atlases/lop_100um_v2.0", hemispheres=sides)
    write_atlas(folder="atlases/torn_100um_v1.0", resolution=(0.0, 1.0, 1.0))
    found = {entry.name: entry for entry in local_atlases()}
    assert set(found) == {"tiny_100um_v1.0", "lop_100um_v2.0", "torn_100um_v1.0"}
    assert found["tiny_100um_v1.0"].shape == (8, 6, 10) and found["tiny_100um_v1.0"].symmetric
    assert not found["lop_100um_v2.0"].symmetric
    assert "three positive numbers" in found["torn_100um_v1.0"].problem
    shown = CliRunner().invoke(app, ["atlas", "list"])
    assert shown.exit_code == 0
    assert "tiny_100um_v1.0  100x100x100 um, 8x6x10 voxels, brainglobe-v2" in shown.stdout
    assert "torn_100um_v1.0  cannot be used: " in shown.stdout
    assert str(tmp_path / "atlases") in shown.stderr
    records = json.loads(CliRunner().invoke(app, ["atlas", "list", "--json"]).stdout)
    assert {record["name"] for record in records} == set(found)


def test_nothing_here_says_where_atlases_belong() -> None:
    shown = CliRunner().invoke(app, ["atlas", "list"])
    assert shown.exit_code == 0 and shown.stdout == ""
    assert "no atlas found" in shown.stderr
    fetched = CliRunner().invoke(app, ["atlas", "download", "allen_mouse_25um"])
    assert fetched.exit_code == 1
    for words in (
        "annotation.tiff",
        "BRAINMAP_ATLASES",
        "brainglobe-atlasapi",
        "allen_mouse_25um_v<version>",
    ):
        assert words in fetched.stderr


def test_download_prints_the_folder(write_atlas: WriteAtlas) -> None:
    folder = write_atlas(folder="atlases/tiny_100um_v1.0")
    shown = CliRunner().invoke(app, ["atlas", "download", "tiny_100um"])
    assert shown.stdout.strip() == str(folder)


def test_what_brainglobe_offers(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFoundError, match="pip install brainglobe-atlasapi"):
        offered_atlases()
    offer(monkeypatch, {"whs_sd_rat_39um": "1.2", "allen_mouse_10um": "1.2"})
    assert list(offered_atlases()) == ["allen_mouse_10um", "whs_sd_rat_39um"]
    shown = CliRunner().invoke(app, ["atlas", "list", "--offered", "--json"])
    assert json.loads(shown.stdout) == {"allen_mouse_10um": "1.2", "whs_sd_rat_39um": "1.2"}
    assert "chatter" in shown.stderr
    offer(monkeypatch, FileNotFoundError("last_versions.conf"))
    with pytest.raises(NotFoundError, match="is there a network"):
        offered_atlases()


def test_structures_to_choose_from(write_atlas: WriteAtlas) -> None:
    folder = str(write_atlas())

    def rows(*options: str) -> list[str]:
        shown = CliRunner().invoke(app, ["atlas", "structures", folder, *options])
        assert shown.exit_code == 0, shown.stderr
        return [row["acronym"] for row in csv.DictReader(io.StringIO(shown.stdout))]

    assert rows() == ["root", "grey", "CTX", "BIG", "VS"]
    assert rows("--find", "ventr") == ["VS"]
    assert rows("--level", "leaf") == ["CTX", "BIG", "VS"]
    bad = CliRunner().invoke(app, ["atlas", "structures", folder, "--level", "cortex"])
    assert bad.exit_code == 2 and "do you mean" in bad.stderr


def test_the_folder_above_the_atlas_is_recognised(write_atlas: WriteAtlas, tmp_path: Path) -> None:
    write_atlas(folder="atlases/tiny_100um_v1.0")
    with pytest.raises(DataError, match=r"it holds tiny_100um_v1\.0: give one of these folders"):
        Atlas.open(tmp_path / "atlases")


def test_impossible_hemispheres_are_refused(write_atlas: WriteAtlas) -> None:
    atlas = Atlas.open(write_atlas(hemispheres=np.full((8, 6, 10), 3, dtype=np.uint8)))
    with pytest.raises(
        DataError, match=r"hemispheres must be 0 \(none\), 1 \(left\) or 2 \(right\), not 3 to 3"
    ):
        _ = atlas.hemispheres
