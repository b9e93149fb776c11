"""Atlases in BrainGlobe v3 layout: a manifest, shared OME-Zarr images in millimetres, a terminology."""

from __future__ import annotations

import json
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from brainmap.atlas import Atlas, list_atlases
from brainmap.cli.doctor import _atlases
from brainmap.errors import DataError, NotFoundError

WriteAtlas = Callable[..., Path]


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no atlas of this machine be found."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BRAINGLOBE_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.delenv("BRAINMAP_ATLASES", raising=False)
    monkeypatch.setitem(sys.modules, "brainglobe_atlasapi", None)


def write_image(path: Path, levels: list[np.ndarray], finest_mm: float) -> None:
    """An OME-Zarr 0.5 image with a finer level that belongs to another atlas, as BrainGlobe stores it."""
    datasets = []
    for number, values in enumerate(levels):
        array = zarr.create_array(
            str(path / str(number)),
            shape=values.shape,
            chunks=(4, 4, 4),
            dtype=values.dtype,
            zarr_format=3,
            dimension_names=("z", "y", "x"),
        )
        array[...] = values
        scale = {"type": "scale", "scale": [finest_mm * 2**number] * 3}
        datasets.append({"path": str(number), "coordinateTransformations": [scale]})
    axes = [{"name": name, "type": "space", "unit": "millimeter"} for name in "zyx"]
    attributes = {"ome": {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}}
    (path / "zarr.json").write_text(
        json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes})
    )


@pytest.fixture
def write_v3(write_atlas: WriteAtlas) -> WriteAtlas:
    """Return a function that writes the atlas of `write_atlas` in v3 layout under a root."""
    v2 = write_atlas(folder="pattern")
    ids = tifffile.imread(v2 / "annotation.tiff")
    records = json.loads((v2 / "structures.json").read_text())

    def write(root: Path, version: str = "1_0", with_sides: bool = False, **changes: Any) -> Path:
        sets, template = root / "annotation-sets/tiny/1_0", root / "templates/tiny/1_0/template.ome.zarr"
        levels = [np.kron(ids, np.ones((2, 2, 2), ids.dtype)), ids]
        write_image(template, [(level > 0).astype(np.uint16) * 100 for level in levels], 0.05)
        write_image(sets / "annotations_compressed.ome.zarr", levels, 0.05)
        if with_sides:
            sides = np.ones_like(ids, dtype=np.uint8)
            sides[:, :, 8:] = 2
            write_image(sets / "hemispheres.ome.zarr", [sides], 0.1)
        write_terminology(root / "terminologies/tiny/1_0/terminology.csv", records)
        manifest = {
            "name": "tiny",
            "version": version.replace("_", "."),
            "symmetric": not with_sides,
            "orientation": "asr",
            "resolution": [100.0, 100.0, 100.0],
            "shape": list(ids.shape),
            "terminology": {"name": "tiny", "version": "1.0", "location": "/terminologies/tiny/1_0"},
            "annotation_set": {
                "name": "tiny",
                "location": "/annotation-sets/tiny/1_0",
                "template": {"name": "tiny", "location": "/templates/tiny/1_0"},
            },
        }
        folder = root / "atlases/tiny_100um" / version
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps(manifest | changes))
        return folder

    return write


def write_terminology(path: Path, records: list[dict[str, Any]]) -> None:
    """The ontology as the columns of v3."""
    rows = [
        "identifier,parent_identifier,annotation_value,name,abbreviation,color_hex_triplet,root_identifier_path"
    ]
    for record in records:
        steps, number = record["structure_id_path"], record["id"]
        colour = "#{:02X}{:02X}{:02X}".format(*record["rgb_triplet"])
        parent = steps[-2] if len(steps) > 1 else ""
        rows.append(f'{number},{parent},{number},"{record["name"]}",{record["acronym"]},{colour},"{steps}"')
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(rows) + "\n")


def test_reads_the_same_atlas_as_the_v2_layout(
    tmp_path: Path, write_atlas: WriteAtlas, write_v3: WriteAtlas
) -> None:
    v2, v3 = Atlas.open(write_atlas()), Atlas.open(write_v3(tmp_path / "root"))
    assert (v3.name, v3.label) == ("tiny_100um_v1.0", "tiny_100um")
    assert (v3.resolution_um, v3.shape) == (v2.resolution_um, v2.shape)
    for kind in ("annotation", "reference", "hemispheres"):
        np.testing.assert_array_equal(getattr(v3, kind), getattr(v2, kind))
    assert v3.annotation.max() == 614_454_277
    for field in ("id", "parent_id", "depth", "rgb"):
        np.testing.assert_array_equal(getattr(v3.structures, field), getattr(v2.structures, field))
    assert v3.structures.acronym == v2.structures.acronym
    assert v3.structures.name == v2.structures.name
    points = np.random.default_rng(0).uniform(-100, 1000, (500, 3))
    for found, expected in zip(v3.lookup(points), v2.lookup(points), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_hemispheres_of_an_asymmetric_atlas(tmp_path: Path, write_v3: WriteAtlas) -> None:
    atlas = Atlas.open(write_v3(tmp_path / "root", with_sides=True))
    _, side = atlas.lookup([[150, 150, 150], [150, 150, 850]])
    assert side.tolist() == [1, 2]


def test_found_by_name_beside_v2_folders(
    tmp_path: Path, write_atlas: WriteAtlas, write_v3: WriteAtlas, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atlas(folder="roots/tiny_100um_v1.2")
    newest = write_v3(tmp_path / "roots/brainglobe-atlasapi", "1_10")
    monkeypatch.setenv("BRAINMAP_ATLASES", str(tmp_path / "roots"))
    assert Atlas.open("tiny_100um").folder == newest
    assert Atlas.open("tiny_100um_v1.10").folder == newest
    assert Atlas.open("tiny_100um_v1.2").files.identity()["layout"] == "brainglobe-v2"
    assert list_atlases() == {
        "tiny_100um_v1.2": tmp_path / "roots/tiny_100um_v1.2",
        "tiny_100um_v1.10": newest,
    }
    monkeypatch.setenv("BRAINMAP_ATLASES", str(tmp_path / "roots/brainglobe-atlasapi"))
    assert Atlas.open("tiny_100um").folder == newest


def test_doctor_lists_it(tmp_path: Path, write_v3: WriteAtlas) -> None:
    write_v3(tmp_path / "home/.brainglobe/brainglobe-atlasapi")
    assert "tiny_100um_v1.0" in _atlases().text


def test_voxels_that_were_never_fetched(
    tmp_path: Path, write_v3: WriteAtlas, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_v3(tmp_path / "root")
    voxels = tmp_path / "root/annotation-sets/tiny/1_0/annotations_compressed.ome.zarr/1/c"
    kept = voxels.rename(tmp_path / "elsewhere")
    atlas = Atlas.open(folder)
    with pytest.raises(NotFoundError, match=r"annotation of atlas tiny_100um_v1\.0 has not been fetched"):
        _ = atlas.annotation

    class Fetching:
        def __init__(self, name: str, check_latest: bool) -> None:
            assert (name, check_latest) == ("tiny_100um", False)

        @property
        def annotation(self) -> None:
            shutil.move(kept, voxels)

    module = types.ModuleType("brainglobe_atlasapi")
    module.BrainGlobeAtlas = Fetching  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "brainglobe_atlasapi", module)
    assert atlas.annotation.max() == 614_454_277


def test_other_version_or_terminology_is_another_atlas(tmp_path: Path, write_v3: WriteAtlas) -> None:
    first = Atlas.open(write_v3(tmp_path / "a")).files.identity()
    assert first == Atlas.open(write_v3(tmp_path / "b")).files.identity()
    assert first != Atlas.open(write_v3(tmp_path / "c", citation="other")).files.identity()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"orientation": "axr"}, "three letters"),
        ({"resolution": [25.0, 25.0, 25.0]}, "has no level with voxels of"),
        ({"terminology": {"name": "tiny"}}, "KeyError"),
        ({"terminology": {"location": "/terminologies/other/1_0"}}, "which does not exist: copy the atlas"),
        ({"symmetric": False}, r"hemispheres\.ome\.zarr, which does not exist"),
    ],
)
def test_bad_manifest(tmp_path: Path, write_v3: WriteAtlas, changes: dict[str, Any], message: str) -> None:
    folder = write_v3(tmp_path / "root", **changes)
    with pytest.raises(DataError, match=message):
        _ = Atlas.open(folder).annotation


def test_damaged_terminology(tmp_path: Path, write_v3: WriteAtlas) -> None:
    folder = write_v3(tmp_path / "root")
    (tmp_path / "root/terminologies/tiny/1_0/terminology.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"terminology\.csv cannot be read"):
        Atlas.open(folder)
