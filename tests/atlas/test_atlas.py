"""Opening atlases: layout, lookup by name, ids, hemispheres, and what is said about bad folders."""

from __future__ import annotations

import csv
import logging
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brainmap.atlas import Atlas, list_atlases
from brainmap.errors import DataError, NotFoundError, UsageError

BIG_ID = 614_454_277
WriteAtlas = Callable[..., Path]


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no atlas of this machine be found."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BRAINGLOBE_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.delenv("BRAINMAP_ATLASES", raising=False)
    monkeypatch.setitem(sys.modules, "brainglobe_atlasapi", None)


def test_opens_a_folder_and_reads_arrays_lazily(write_atlas: WriteAtlas) -> None:
    folder = write_atlas()
    (folder / "reference.tiff").write_bytes(b"not a tiff")
    atlas = Atlas.open(folder)  # the ontology needs no image
    assert atlas.structures.acronym == ("root", "grey", "CTX", "BIG", "VS")
    assert atlas.shape == (8, 6, 10)
    assert atlas.resolution_um == (100, 100, 100)
    assert atlas.extent_um == (800, 600, 1000)
    assert (atlas.name, atlas.label, atlas.orientation) == ("tiny_100um_v1.0", "tiny_100um", "asr")
    with pytest.raises(DataError, match=r"reference\.tiff cannot be read"):
        _ = atlas.reference


def test_large_ids_survive(write_atlas: WriteAtlas) -> None:
    atlas = Atlas.open(write_atlas())
    region, _ = atlas.lookup([[450.0, 150.0, 150.0]])
    assert region.dtype == np.int64
    assert region[0] == BIG_ID


def test_lookup_outside_edges_and_nan(write_atlas: WriteAtlas) -> None:
    atlas = Atlas.open(write_atlas())
    points = [
        [50, 50, 50],  # in the box, not in tissue
        [-1, 150, 150],
        [800, 150, 150],
        [np.nan, 1, 1],
        [100, 100, 100],  # first voxel of tissue, its very corner
        [150, 150, 499.9],
        [150, 150, 500],
    ]
    region, hemisphere = atlas.lookup(points)
    assert region.tolist() == [0, 0, 0, 0, 11, 11, 11]
    assert hemisphere.tolist() == [0, 0, 0, 0, 2, 2, 1]
    assert hemisphere.dtype == np.int8


@pytest.mark.parametrize(("n", "right"), [(4, 2), (5, 2), (7, 4), (228, 114)])
def test_brainglobe_rule_of_hemispheres(write_atlas: WriteAtlas, n: int, right: int) -> None:
    ids = np.full((2, 2, n), 997, dtype=np.uint32)
    volume = Atlas.open(write_atlas(annotation=ids)).hemispheres
    assert (volume[0, 0] == 2).sum() == right
    assert (volume[1, 1, :right] == 2).all()
    assert (volume[0, 0, right:] == 1).all()


def test_own_hemisphere_volume_wins(write_atlas: WriteAtlas) -> None:
    volume = np.ones((8, 6, 10), dtype=np.uint8)
    volume[:, :, 8:] = 2
    atlas = Atlas.open(write_atlas(hemispheres=volume))
    _, hemisphere = atlas.lookup([[150, 150, 150], [150, 150, 850]])
    assert hemisphere.tolist() == [1, 2]


def test_other_orientations_are_brought_to_asr(write_atlas: WriteAtlas) -> None:
    expected = Atlas.open(write_atlas()).annotation
    stored = expected[::-1, :, ::-1].transpose(2, 0, 1)  # stored axes: left-right, posterior-anterior, s-i
    atlas = Atlas.open(
        write_atlas(folder="other", annotation=np.ascontiguousarray(stored), orientation="lps")
    )
    np.testing.assert_array_equal(atlas.annotation, expected)
    assert atlas.shape == expected.shape


def test_found_by_name_newest_version_first(
    write_atlas: WriteAtlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("1.2", "1.10", "1.9"):
        write_atlas(folder=f"roots/tiny_100um_v{version}")
    write_atlas(folder="roots/tiny_100um_extra_v3.0")
    monkeypatch.setenv("BRAINMAP_ATLASES", f"{tmp_path}/nowhere:{tmp_path}/roots")
    assert Atlas.open("tiny_100um").name == "tiny_100um_v1.10"
    assert Atlas.open("tiny_100um_v1.2").name == "tiny_100um_v1.2"
    assert set(list_atlases()) >= {"tiny_100um_v1.9", "tiny_100um_extra_v3.0"}


def test_brainglobe_configuration_and_home_are_searched(write_atlas: WriteAtlas, tmp_path: Path) -> None:
    write_atlas(folder="configured/one_v1.0")
    write_atlas(folder="home/.brainglobe/two_v1.0")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "bg_config.conf").write_text(
        f"[default_dirs]\nbrainglobe_dir = {tmp_path}/configured\n"
    )
    assert Atlas.open("one").name == "one_v1.0"
    assert Atlas.open("two").name == "two_v1.0"


@pytest.mark.parametrize("name", ["no_such_10um", "*", "a[b"])
def test_unknown_name_says_what_to_put_where(name: str) -> None:
    with pytest.raises(NotFoundError, match=r"put its folder .*_v<version>.*BRAINMAP_ATLASES"):
        Atlas.open(name)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no atlas folder"):
        Atlas.open(tmp_path / "nothing")


def test_download_is_tried_where_the_package_is(
    write_atlas: WriteAtlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def fetch(name: str, check_latest: bool = True) -> None:
        asked.append(name)
        if name != "fetched":
            raise ValueError("is not a valid atlas name!")
        write_atlas(folder="home/.brainglobe/fetched_v2.0")

    module = types.ModuleType("brainglobe_atlasapi")
    module.BrainGlobeAtlas = fetch  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "brainglobe_atlasapi", module)
    assert Atlas.open("fetched").name == "fetched_v2.0"
    with pytest.raises(NotFoundError, match="could not deliver"):
        Atlas.open("nonsense")
    assert asked == ["fetched", "nonsense"]


def test_wrong_folder_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not an atlas folder.*metadata\.json, structures\.json"):
        Atlas.open(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"orientation": "axr"}, "three letters"),
        ({"orientation": None}, "three letters"),
        ({"shape": [8, 6]}, "three positive numbers"),
        ({"resolution": (0.0, 1.0, 1.0)}, "three positive numbers"),
    ],
)
def test_bad_metadata(write_atlas: WriteAtlas, change: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Atlas.open(write_atlas(**change))


def test_shape_that_contradicts_the_metadata(write_atlas: WriteAtlas) -> None:
    atlas = Atlas.open(write_atlas(shape=[8, 6, 11]))
    with pytest.raises(DataError, match="does not agree with the metadata"):
        _ = atlas.annotation


def test_float_annotation_is_refused(write_atlas: WriteAtlas) -> None:
    atlas = Atlas.open(write_atlas(annotation=np.zeros((4, 4, 4), dtype=np.float32)))
    with pytest.raises(DataError, match="cannot hold every id"):
        _ = atlas.annotation


def test_many_ids_missing_in_the_ontology_is_an_error(write_atlas: WriteAtlas) -> None:
    ids = np.full((8, 6, 10), 5, dtype=np.uint32)
    with pytest.raises(DataError, match=r"1 ids.*missing in the ontology.*add a row for each"):
        _ = Atlas.open(write_atlas(annotation=ids)).annotation


def test_few_unknown_ids_count_as_outside(write_atlas: WriteAtlas, caplog: pytest.LogCaptureFixture) -> None:
    ids = np.full((8, 6, 10), 11, dtype=np.uint32)
    ids[3, 3, 3] = 12345
    atlas = Atlas.open(write_atlas(annotation=ids))
    with caplog.at_level(logging.WARNING):
        region, _ = atlas.lookup([[350, 350, 350], [350, 350, 450]])
    assert region.tolist() == [0, 11]
    assert "missing in the ontology" in caplog.text


def test_pickle_leaves_the_arrays_behind(write_atlas: WriteAtlas) -> None:
    atlas = Atlas.open(write_atlas())
    assert atlas.annotation.any()
    assert atlas.hemispheres.any()
    assert atlas.reference.any()
    again = pickle.loads(pickle.dumps(atlas))
    assert "annotation" not in again.__dict__
    np.testing.assert_array_equal(again.annotation, atlas.annotation)


def test_structures_paths_and_descendants(write_atlas: WriteAtlas) -> None:
    structures = Atlas.open(write_atlas()).structures
    assert structures.path("BIG") == (997, 8, BIG_ID) == structures.path(BIG_ID)
    assert sorted(structures.descendants("grey")) == [8, 11, BIG_ID]
    assert structures.rows_of([[8, 1], [BIG_ID, 0]]).tolist() == [[1, -1], [3, -1]]
    with pytest.raises(UsageError, match="no structure 'nope'"):
        structures.row("nope")
    with pytest.raises(UsageError, match="no structure 4"):
        structures.row(4)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "no structures"),
        ([{"id": 1}], "needs id, acronym"),
        ([{"id": 0, "acronym": "a", "name": "a", "structure_id_path": [0]}], "positive"),
        ([{"id": 1, "acronym": "a", "name": "a", "structure_id_path": [1]}] * 2, "repeated, for example 1"),
        ([{"id": 1, "acronym": "a", "name": "a", "structure_id_path": [2]}], "does not end with itself"),
        ([{"id": 1, "acronym": "a", "name": "a", "structure_id_path": [2, 1]}], "parent 2, which is not"),
    ],
)
def test_bad_ontologies(write_atlas: WriteAtlas, records: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Atlas.open(write_atlas(records=records))


def test_real_atlas_rolls_up(brainmap_data: Path) -> None:
    atlas = Atlas.open(brainmap_data / "atlases" / "allen_mouse_100um_v1.2")
    assert len(atlas.structures) == 1327
    assert atlas.annotation.max() == BIG_ID
    rows = atlas.structures.rows_of(atlas.annotation)
    direct = np.bincount(rows[rows >= 0], minlength=len(atlas.structures))
    total = atlas.structures.roll_up(direct)
    assert total[atlas.structures.row("root")] == (atlas.annotation > 0).sum()
    for acronym in ("Isocortex", "HPF", "CA", "fiber tracts"):
        ids = atlas.structures.descendants(acronym)
        assert total[atlas.structures.row(acronym)] == np.isin(atlas.annotation, ids).sum() > 0


@pytest.fixture
def plain(write_atlas: WriteAtlas, tmp_path: Path) -> Path:
    """The small atlas as a plain folder: one image as TIFF, one as NumPy file."""
    v2, folder = write_atlas(folder="pattern"), tmp_path / "roots" / "mine"
    folder.mkdir(parents=True)
    np.save(folder / "annotation.npy", Atlas.open(v2).annotation)
    (v2 / "reference.tiff").rename(folder / "reference.tif")
    (folder / "atlas.json").write_text('{"resolution": [100, 100, 100], "orientation": "asr"}')
    rows = [(997, "root", "root", ""), (8, "grey", "Grey, matter", 997), (11, "CTX", "Cortex", 8)]
    rows += [(BIG_ID, "BIG", "Big", 8), (73, "VS", "ventricles", 997)]
    with (folder / "structures.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "acronym", "name", "parent_id"), *rows])
    return folder


def test_an_atlas_of_ones_own(plain: Path, write_atlas: WriteAtlas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRAINMAP_ATLASES", str(plain.parent))
    ours, known = Atlas.open("mine"), Atlas.open(write_atlas())
    assert "mine" in list_atlases() and ours.name == "mine"
    assert (ours.shape, ours.resolution_um) == (known.shape, known.resolution_um)
    np.testing.assert_array_equal(ours.annotation, known.annotation)
    np.testing.assert_array_equal(ours.reference, known.reference)
    np.testing.assert_array_equal(ours.hemispheres, known.hemispheres)
    for name in ("id", "acronym", "name", "parent_id", "depth"):
        np.testing.assert_array_equal(getattr(ours.structures, name), getattr(known.structures, name))
    assert ours.fingerprint_parts()["layout"] == "plain"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("atlas.json", "{}", "resolution .* and orientation are needed"),
        ("atlas.json", '{"resolution": [1, 1, 0], "orientation": "asr"}', "positive"),
        ("atlas.json", '{"resolution": [1, 1, 1], "orientation": "abc"}', "three letters"),
        ("structures.csv", "id,name\n1,a\n", "must have the columns id,acronym,name,parent_id"),
        ("structures.csv", "id,acronym,name,parent_id\n1,a,a,5\n", "parent 5, which is not in the table"),
        ("structures.csv", "id,acronym,name,parent_id\n1,a,a,2\n2,b,b,1\n", "lies inside itself"),
        ("structures.csv", None, "has no structures.csv"),
        ("annotation.npy", None, "has no image annotation"),
        ("reference.tif", None, "has no image reference"),
        ("annotation.npy", "text", "cannot be read as an image"),
    ],
)
def test_mistakes_in_an_atlas_of_ones_own(plain: Path, name: str, content: str | None, message: str) -> None:
    (plain / name).unlink()
    if content is not None:
        (plain / name).write_text(content)
    with pytest.raises(DataError, match=message):
        Atlas.open(plain)


def small_annotation() -> np.ndarray:
    """A block of root with a border of 0."""
    ids = np.zeros((8, 6, 10), dtype=np.uint32)
    ids[1:7, 1:5, 1:9] = 997
    return ids


def sides_of(ids: np.ndarray) -> np.ndarray:
    """2 in the right half (asr starts at the right), 1 in the left."""
    sides = np.ones(ids.shape, np.uint8)
    sides[..., : ids.shape[2] // 2] = 2
    return sides


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda sides: np.ones_like(sides), r"the right \(2\) side has 0.0%"),
        (lambda sides: np.full_like(sides, 2), r"the left \(1\) side has 0.0%"),
        (lambda sides: sides - 1, r"must be 1 in the left and 2 in the right hemisphere \(not 0 and 1\)"),
        (lambda sides: np.zeros_like(sides), "side has 0.0%"),
        (lambda sides: sides * 50, r"must be 0 \(none\), 1 \(left\) or 2 \(right\)"),
    ],
)
def test_a_map_without_one_of_the_sides_is_refused(
    write_atlas: WriteAtlas, change: Any, sentence: str
) -> None:
    ids = small_annotation()
    atlas = Atlas.open(write_atlas(hemispheres=change(sides_of(ids))))
    with pytest.raises(DataError, match=sentence):
        atlas.check()


def test_swapped_sides_are_worth_a_warning(write_atlas: WriteAtlas, caplog: pytest.LogCaptureFixture) -> None:
    ids = small_annotation()
    Atlas.open(write_atlas(hemispheres=3 - sides_of(ids))).check()
    assert "swapped" in caplog.text
    caplog.clear()
    Atlas.open(write_atlas("right_100um_v1.0", hemispheres=sides_of(ids))).check()
    assert caplog.text == ""


def test_an_atlas_of_one_half_has_one_side(write_atlas: WriteAtlas) -> None:
    ids = small_annotation()
    ids[..., : ids.shape[2] // 2] = 0
    Atlas.open(write_atlas(annotation=ids, hemispheres=np.ones(ids.shape, np.uint8))).check()


def test_an_annotation_without_labels_is_refused(write_atlas: WriteAtlas) -> None:
    with pytest.raises(DataError, match="labels no voxel"):
        Atlas.open(write_atlas(annotation=np.zeros((8, 6, 10), np.uint32))).check()


@pytest.mark.parametrize("identifier", [2**63, 2**80, -(2**70), "1e30", None, [1], float("inf"), "inf"])
def test_ids_that_no_integer_holds(write_atlas: WriteAtlas, identifier: Any) -> None:
    records = [
        {"id": 997, "acronym": "root", "name": "root", "structure_id_path": [997]},
        {"id": identifier, "acronym": "X", "name": "x", "structure_id_path": [997, identifier]},
    ]
    with pytest.raises(DataError, match="every structure needs"):
        Atlas.open(write_atlas(records=records))


def test_the_cases(cases: Path) -> None:
    with pytest.raises(DataError, match=r"the right \(2\) side"):
        Atlas.open(cases / "atlas_one_sided_hemispheres").check()
    with pytest.raises(DataError, match="add a row for each of these ids"):
        Atlas.open(cases / "atlas_ids_missing").check()
