from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from scipy import spatial

from brainmap.coords import ATLAS_ORIENTATION, atlas_um_to_index, axis_map
from brainmap.errors import NotFoundError, UsageError
from brainmap.image.volume import Volume
from brainmap.phantom import Phantom, write_phantom
from brainmap.phantom.anatomy import STRUCTURES, Anatomy
from brainmap.phantom.warp import SmoothWarp

ALL = slice(None)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Phantom:
    return write_phantom(tmp_path_factory.mktemp("phantom"), seed=3, size="tiny")


@pytest.fixture(scope="module")
def truth(phantom: Phantom) -> dict[str, np.ndarray]:
    table = np.genfromtxt(phantom.truth, delimiter=",", names=True, dtype=None, encoding="utf-8")
    return {name: table[name] for name in table.dtype.names}


@pytest.fixture(scope="module")
def regions(phantom: Phantom) -> list[dict[str, str]]:
    with phantom.truth_regions.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture(scope="module")
def signal(phantom: Phantom) -> np.ndarray:
    return Volume.open(phantom.brain, channel=phantom.signal_channel).read(ALL, ALL, ALL)


def _zyx(truth: dict[str, np.ndarray], suffix: str = "", prefix: str = "") -> np.ndarray:
    return np.stack([truth[f"{prefix}{axis}{suffix}"] for axis in "zyx"], axis=1)


def test_volume_says_what_it_is(phantom: Phantom) -> None:
    volume = Volume.open(phantom.brain, channel=1)
    assert (volume.orientation, volume.n_channels, volume.dtype) == (phantom.orientation, 2, np.uint16)
    assert volume.voxel_um == pytest.approx(phantom.voxel_um)
    assert volume.channel_names == ("signal", "autofluorescence")
    assert len(set(volume.shape)) == 3  # swapped axes cannot go unnoticed


def test_equal_seeds_give_equal_phantoms(phantom: Phantom, signal: np.ndarray, tmp_path: Path) -> None:
    again = write_phantom(tmp_path / "again", seed=3, size="tiny")
    assert again.truth.read_bytes() == phantom.truth.read_bytes()
    assert again.truth_regions.read_bytes() == phantom.truth_regions.read_bytes()
    np.testing.assert_array_equal(Volume.open(again.brain, channel=0).read(ALL, ALL, ALL), signal)


def test_load_returns_what_write_returned(phantom: Phantom) -> None:
    loaded = Phantom.load(phantom.folder)
    assert (loaded.brain, loaded.atlas, loaded.n_cells) == (phantom.brain, phantom.atlas, phantom.n_cells)
    points = np.random.default_rng(0).uniform(0, 100, (20, 3))
    np.testing.assert_array_equal(loaded.to_atlas_um(points), phantom.to_atlas_um(points))


def test_bad_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="huge"):
        write_phantom(tmp_path, size="huge")
    with pytest.raises(NotFoundError):
        Phantom.load(tmp_path / "nowhere")


def test_every_cell_lies_in_its_region_and_side(phantom: Phantom, truth: dict[str, np.ndarray]) -> None:
    atlas_um = phantom.to_atlas_um(_zyx(truth))
    np.testing.assert_allclose(atlas_um, _zyx(truth, "_um", "atlas_"), atol=0.02)
    metadata = json.loads((phantom.atlas / "metadata.json").read_text())
    annotation = tifffile.imread(phantom.atlas / "annotation.tiff")
    hemispheres = tifffile.imread(phantom.atlas / "hemispheres.tiff")
    index, inside = atlas_um_to_index(atlas_um, metadata["resolution"], annotation.shape)
    assert inside.all()
    # The truth is analytic, the atlas its voxels: they may differ only beside a border.
    assert np.mean(annotation[tuple(index.T)] == truth["region_id"]) > 0.8
    assert np.mean(hemispheres[tuple(index.T)] == truth["hemisphere"]) > 0.98
    assert (truth["region_id"] > 0).all()


def test_left_cells_are_on_the_stored_left(phantom: Phantom, truth: dict[str, np.ndarray]) -> None:
    assert phantom.orientation[2] == "l"
    x = truth["x"]
    assert x[truth["hemisphere"] == 1].mean() < x[truth["hemisphere"] == 2].mean() - 50
    left_share = [np.mean(truth["hemisphere"][truth["acronym"] == a] == 1) for a in ("ISO2/3", "STR")]
    assert left_share[0] > 0.55 > 0.45 > left_share[1]


def test_um_are_voxels_times_scale(phantom: Phantom, truth: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(_zyx(truth, "_um"), _zyx(truth) * phantom.voxel_um, atol=0.01)


def test_cells_keep_apart_touch_and_reach_the_faces(phantom: Phantom, truth: dict[str, np.ndarray]) -> None:
    distance = spatial.cKDTree(_zyx(truth, "_um")).query(_zyx(truth, "_um"), k=2)[0][:, 1]
    assert distance.min() > 8.4
    assert np.count_nonzero(distance < 11) >= 10
    assert np.count_nonzero(truth["z"] < 1) >= 3
    assert (_zyx(truth) >= -0.5).all()
    assert (_zyx(truth) < np.array(Volume.open(phantom.brain, channel=0).shape) - 0.5).all()
    assert 8 <= truth["diameter_um"].min() and truth["diameter_um"].max() <= 12.5


def test_cells_are_bright_where_the_truth_says(truth: dict[str, np.ndarray], signal: np.ndarray) -> None:
    centre = np.clip(np.rint(_zyx(truth)).astype(int), 0, np.array(signal.shape) - 1)

    def mean_at(shift: int) -> np.ndarray:
        y, x = (np.clip(centre[:, a] + shift, 1, signal.shape[a] - 2) for a in (1, 2))
        rows = [
            signal[z, j - 1 : j + 2, i - 1 : i + 2].mean() for z, j, i in zip(centre[:, 0], y, x, strict=True)
        ]
        return np.array(rows)

    solid = truth["ring"] == 0
    assert np.mean((mean_at(0) - mean_at(7))[solid] > 90) > 0.95


def test_brain_is_surrounded_by_dark(signal: np.ndarray) -> None:
    border = np.concatenate([signal[:, :6].ravel(), signal[:, -6:].ravel(), signal[-2:].ravel()])
    assert 90 < np.median(border) < 130
    assert np.median(signal[20:60, 80:120, 100:150]) > 300


def test_truth_regions_follow_the_invariants(
    truth: dict[str, np.ndarray], regions: list[dict[str, str]]
) -> None:
    assert (regions[0]["region_id"], regions[0]["acronym"], regions[0]["hemisphere"]) == (
        "0",
        "outside",
        "both",
    )
    rows = {(int(r["region_id"]), r["hemisphere"]): r for r in regions[1:]}
    assert len(rows) == 3 * len(STRUCTURES)
    assert sum(int(r["count_direct"]) for r in regions if r["hemisphere"] == "both") == len(truth["z"])
    for structure in STRUCTURES:
        left, right, both = (rows[structure.id, side] for side in ("left", "right", "both"))
        assert int(both["count"]) == int(left["count"]) + int(right["count"])
        assert float(both["volume_mm3"]) == pytest.approx(
            float(left["volume_mm3"]) + float(right["volume_mm3"]), abs=2e-8
        )
        children = [rows[s.id, "both"] for s in STRUCTURES if s.parent_id == structure.id]
        own = int(both["count_direct"])
        assert int(both["count"]) == own + sum(int(child["count"]) for child in children)
        assert int(left["count"]) == sum(
            np.count_nonzero((truth["region_id"] == s.id) & (truth["hemisphere"] == 1))
            for s in STRUCTURES
            if s.id == structure.id or _descends(s.id, structure.id)
        )


def _descends(child: int, ancestor: int) -> bool:
    parent = {s.id: s.parent_id for s in STRUCTURES}
    while child in parent:
        child = parent[child]
        if child == ancestor:
            return True
    return False


def test_atlas_follows_the_brainglobe_layout(phantom: Phantom) -> None:
    metadata = json.loads((phantom.atlas / "metadata.json").read_text())
    structures = json.loads((phantom.atlas / "structures.json").read_text())
    images = {
        n: tifffile.imread(phantom.atlas / f"{n}.tiff") for n in ("reference", "annotation", "hemispheres")
    }
    resolution = metadata["resolution"][0]
    assert phantom.atlas.name == f"{metadata['name']}_{resolution:g}um_v{metadata['version']}"
    assert metadata["orientation"] == ATLAS_ORIENTATION and metadata["symmetric"] is False
    assert [images[n].dtype for n in images] == [np.uint16, np.uint32, np.uint8]
    assert all(list(image.shape) == metadata["shape"] for image in images.values())
    assert set(np.unique(images["annotation"])) - {0} <= {s["id"] for s in structures}
    for structure in structures:
        assert (
            structure["structure_id_path"][0] == 997 and structure["structure_id_path"][-1] == structure["id"]
        )
        assert set(structure) == {"acronym", "id", "name", "structure_id_path", "rgb_triplet"}
    # Right starts at index 0 of the last axis.
    assert images["hemispheres"][:, :, :20].max() == images["hemispheres"][:, :, :20].min() == 2


def test_ids_catch_narrow_types() -> None:
    ids = [s.id for s in STRUCTURES]
    assert max(ids) > 2**24 and len(set(ids)) == len(ids)
    assert len({float(np.float32(i)) for i in ids}) < len(ids), "two ids are equal in float32"
    assert len({i % 2**16 for i in ids}) < len(ids) or max(ids) > 2**16


def test_left_and_right_differ_in_shape() -> None:
    anatomy = Anatomy(100.0)
    volumes = []
    points = np.random.default_rng(0).uniform(0, [1080, 800, 1000], (60_000, 3))
    labels, side = anatomy.labels(points), anatomy.hemisphere(points)
    for hemisphere in (1, 2):
        volumes.append(
            [np.count_nonzero((labels == s.id) & (side == hemisphere)) for s in STRUCTURES if s.grey]
        )
    assert np.abs(np.diff(volumes, axis=0)).max() > 20
    assert np.corrcoef(volumes)[0, 1] > 0.98


@pytest.mark.parametrize("orientation", ["psl", "asr", "ial", "lpi"])
def test_warp_inverts_and_keeps_anatomy(orientation: str) -> None:
    extent = (500.0, 400.0, 460.0)
    atlas = np.array(axis_map(orientation, "asr").sequence(extent))
    warp = SmoothWarp.random(np.random.default_rng(5), orientation, extent, atlas * 1.1)
    points = np.random.default_rng(1).uniform(40, np.array(extent) - 40, (200, 3))
    mapped = warp.to_atlas_um(points)
    np.testing.assert_allclose(warp.from_atlas_um(mapped), points, atol=1e-5)
    # A step towards the sample's left moves to the atlas's left (growing index in asr).
    axis = next(i for i, letter in enumerate(orientation) if letter in "lr")
    step = np.zeros(3)
    step[axis] = 5.0 if orientation[axis] == "r" else -5.0
    assert ((warp.to_atlas_um(points + step) - mapped)[:, 2] > 3.0).all()
    copy = SmoothWarp.from_json(json.loads(json.dumps(warp.to_json())))
    np.testing.assert_array_equal(copy.to_atlas_um(points), mapped)
