"""Which way a brain lies: found up to mirror, checked when given, refused when it cannot be told."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from brainmap import coords
from brainmap.atlas import Atlas, assign_regions
from brainmap.errors import DataError, UsageError
from brainmap.image.volume import Volume, write_volume
from brainmap.registration.orientation import (
    OrientationFound,
    check_orientation,
    find_orientation,
    settle_orientation,
)
from brainmap.registration.register import RegistrationOptions, register, register_brain
from brainmap.run.request import DetectRequest

SHAPE = (60, 40, 52)
RESOLUTION = (100.0, 100.0, 100.0)


def _template() -> np.ndarray:
    """Textured egg, pointed in front and flat below, its left and right alike."""
    z, y, x = (2 * (np.indices(SHAPE)[i] + 0.5) / SHAPE[i] - 1 for i in range(3))
    width = 0.85 - 0.35 * np.clip(-z, 0, None)
    inside = (z / 0.85) ** 2 + (y / width) ** 2 + (x / width) ** 2 < 1
    inside &= y < 0.55
    texture = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=SHAPE), 2.5)
    texture += texture[:, :, ::-1]
    return np.where(inside, np.clip(150 + 40 * texture / texture.std(), 40, 400), 0).astype(np.float32)


def _write_atlas(folder: Path, template: np.ndarray) -> Atlas:
    folder.mkdir(parents=True)
    tifffile.imwrite(folder / "reference.tiff", template.astype(np.uint16), photometric="minisblack")
    ids = np.where(template > 0, 1, 0).astype(np.uint32)
    tifffile.imwrite(folder / "annotation.tiff", ids, photometric="minisblack")
    records = [
        {"id": 997, "acronym": "root", "name": "root", "structure_id_path": [997], "rgb_triplet": [1, 1, 1]},
        {"id": 1, "acronym": "all", "name": "all", "structure_id_path": [997, 1], "rgb_triplet": [1, 1, 1]},
    ]
    (folder / "structures.json").write_text(json.dumps(records))
    facts = {"name": "egg", "resolution": RESOLUTION, "orientation": "asr", "shape": SHAPE, "version": "1.0"}
    (folder / "metadata.json").write_text(json.dumps(facts))
    return Atlas.open(folder)


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    return _write_atlas(tmp_path_factory.mktemp("atlases") / "egg_100um_v1.0", _template())


def _brain(tilt_degrees: float = 8.0, seed: int = 1) -> np.ndarray:
    """The template tilted, a little smaller, with other intensities, shading and noise; in asr."""
    centre = (np.array(SHAPE) - 1) / 2
    angle = np.deg2rad(tilt_degrees)
    tilt = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    at = (np.indices(SHAPE).reshape(3, -1).T - centre) @ (1.07 * tilt).T + centre + [1.0, -0.5, 1.5]
    values = ndimage.map_coordinates(_template(), at.T, order=1).reshape(SHAPE)
    shade = np.linspace(0.8, 1.2, SHAPE[1])[None, :, None]
    noise = np.random.default_rng(seed).normal(size=SHAPE) * 4
    return np.clip(30 + 1.7 * shade * values + noise, 0, 65535).astype(np.uint16)


def _store(path: Path, brain_asr: np.ndarray, orientation: str) -> Volume:
    stored = coords.reorient(brain_asr, "asr", orientation)
    return write_volume(path, np.ascontiguousarray(stored), RESOLUTION)


def _found(ranked: dict[str, float], known: str = "...") -> OrientationFound:
    order = sorted(ranked.items(), key=lambda pair: -pair[1])
    return OrientationFound(
        order[0][0], coords.mirrored(order[0][0]), tuple(order), order[0][1] - order[1][1], known
    )


@pytest.mark.parametrize("orientation", ["asr", "lip", "sal"])
def test_found_up_to_mirror(atlas: Atlas, tmp_path: Path, orientation: str) -> None:
    found = find_orientation(_store(tmp_path / "brain.zarr", _brain(), orientation), atlas)
    assert orientation in (found.best, found.mirror)
    assert found.clear
    assert len(found.ranked) == 24
    assert [score for _, score in found.ranked] == sorted((s for _, s in found.ranked), reverse=True)
    # Of the two mirror images the one is assumed that an unmirrored image shows.
    assert np.linalg.det(coords.axis_map(found.best).matrix) > 0


def test_known_letters_are_kept_and_settle_the_sides(atlas: Atlas, tmp_path: Path) -> None:
    volume = _store(tmp_path / "brain.zarr", _brain(), "psl")
    for known, expected in (("..r", "psr"), ("..l", "psl"), ("p..", "psl")):
        found = find_orientation(volume, atlas, known=known)
        assert found.best == expected, found
        assert all(letters in coords.matching_orientations(known) for letters, _ in found.ranked)
        assert any("assumed" in sentence for sentence in found.sentences()) == (known == "p..")


def test_part_of_a_brain_and_a_stain_turned_over(atlas: Atlas, tmp_path: Path) -> None:
    part = _brain()
    part[:15] = 30
    assert find_orientation(_store(tmp_path / "part.zarr", part, "ial"), atlas).best in ("ial", "iar")
    brain = _brain()
    turned = np.where(brain > 90, 700 - brain.astype(int), brain).astype(np.uint16)
    assert find_orientation(_store(tmp_path / "turned.zarr", turned, "psl"), atlas).best == "psl"


def test_what_cannot_be_told_is_not_guessed(tmp_path: Path) -> None:
    """A ball without texture looks alike from all sides."""
    grid = np.indices((48, 48, 48)) - 23.5
    ball = np.where((grid**2).sum(axis=0) < 18**2, 200.0, 0.0)
    template = np.zeros(SHAPE, np.float32)
    template[6:54, :, 2:50] = ball[:, 4:44]
    atlas = _write_atlas(tmp_path / "ball_100um_v1.0", template)
    rng = np.random.default_rng(0)
    volume = write_volume(
        tmp_path / "ball.zarr", (ball + rng.normal(50, 4, ball.shape)).astype(np.uint16), RESOLUTION
    )
    with pytest.raises(DataError, match=r"cannot be told.*--orientation with three letters"):
        settle_orientation(volume, atlas, "...")


def test_given_letters_are_checked(atlas: Atlas, tmp_path: Path) -> None:
    volume = _store(tmp_path / "brain.zarr", _brain(), "psl")
    settled = settle_orientation(volume, atlas, "ail")
    assert settled.letters == "ail"
    assert settled.search is not None
    (warning,) = settled.warnings
    assert "ail fits the atlas worse" in warning
    assert "psl" in warning
    right = settle_orientation(volume, atlas, "psr")
    assert right.warnings == ()
    assert right.search is not None
    assert right.search.best == "psr"


def test_empty_images(atlas: Atlas, tmp_path: Path) -> None:
    volume = write_volume(tmp_path / "empty.zarr", np.zeros(SHAPE, np.uint16), RESOLUTION)
    for search in (find_orientation, lambda v, a: check_orientation(v, a, "asr")):
        with pytest.raises(DataError, match="no tissue"):
            search(volume, atlas)
    # A check says nothing: the registration itself refuses such an image, in its own words.
    assert settle_orientation(volume, atlas, "asr").warnings == ()


def test_sentences() -> None:
    clear = _found({"psl": 0.8, "asr": 0.5})
    first, about_sides = clear.sentences()
    assert "back, top and left: orientation psl" in first
    assert "--orientation ..l if the x axis starts at the animal's left, ..r" in about_sides
    doubtful = _found({"psl": 0.52, "asr": 0.5, "ipr": 0.2}, known="..l")
    assert "it may be psl or asr" in doubtful.sentences()[1]
    assert len(doubtful.sentences()) == 2
    assert not doubtful.clear
    assert replace(clear, best="lsp", mirror="rsp").sentences()[1].count("l..") == 1


@pytest.mark.parametrize("known", ["", "..", "x..", "aa.", "a.p", "....", "autos"])
def test_impossible_letters(known: str) -> None:
    with pytest.raises(UsageError, match="not valid"):
        coords.parse_known_letters(known)


def test_letters_are_read_leniently() -> None:
    assert coords.parse_known_letters(" AUTO ") == "..."
    assert coords.parse_known_letters("..L") == "..l"
    assert coords.parse_known_letters("PSL") == "psl"
    assert len(coords.matching_orientations("...")) == 48
    assert coords.mirrored("lsp") == "rsp"


def test_request_for_a_run() -> None:
    request = DetectRequest("b.zarr", Path("run"), orientation="...")
    assert request.orientation == "auto"
    assert request.finds_orientation
    assert DetectRequest("b.zarr", Path("run"), orientation="..L").orientation == "..l"
    assert not DetectRequest("b.zarr", Path("run"), orientation="psl").finds_orientation
    with pytest.raises(UsageError, match="needs an atlas"):
        DetectRequest("b.zarr", Path("run"), orientation="auto", atlas=None)


def test_register_with_auto(atlas: Atlas, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One call from a stored brain of unknown orientation to cells on the right side."""
    brain = _brain()
    marker = np.zeros(SHAPE, bool)
    marker[25:35, 15:25, 33:40] = True  # asr: high index on the last axis = left
    volume = _store(tmp_path / "brain.zarr", brain, "psl")
    options = RegistrationOptions("affine", threads=1)
    with caplog.at_level(logging.WARNING, logger="brainmap"):
        result = register(volume, atlas, tmp_path / "reg", orientation="auto", options=options)
    assert result.grid.orientation == "psl"
    assert result.record["parameters"]["orientation"] == "psl"
    assert result.record["orientation_search"]["known"] == "..."
    (warning,) = result.orientation_warnings
    assert "settle it" in warning
    assert warning in caplog.text
    index = np.argwhere(coords.reorient(marker, "asr", "psl"))
    mapped = result.to_atlas_um(coords.vox_to_um(index, volume.voxel_um, volume.origin_um))
    assert (assign_regions(mapped, atlas)[1] == 1).all()
    # The orientation that was asked for identifies the registration.
    again = register(volume, atlas, tmp_path / "reg", orientation="auto", options=options)
    assert again.record["created"] == result.record["created"]
    with pytest.raises(UsageError, match="other options"):
        register(volume, atlas, tmp_path / "reg", orientation="psl", options=options)
    result.check_orientation("..l")
    with pytest.raises(UsageError, match=r"psl, not \.\.r"):
        result.check_orientation("..r")


def test_impossible_letters_at_the_command(atlas: Atlas, tmp_path: Path) -> None:
    _store(tmp_path / "brain.zarr", _brain(), "psl")
    with pytest.raises(UsageError, match="not valid"):
        register_brain(tmp_path / "brain.zarr", tmp_path / "reg", atlas=atlas.folder, orientation="..x")
    assert not (tmp_path / "reg").exists()


@pytest.mark.parametrize("orientation", ["psl", "rai"])
def test_real_brain(brainmap_data: Path, tmp_path: Path, orientation: str) -> None:
    atlas = Atlas.open(brainmap_data / "atlases" / "allen_mouse_100um_v1.2")
    stored = tifffile.imread(brainmap_data / "brains" / "stpt_psl_50x40x40um.tif")
    brain = ndimage.zoom(
        stored[::2, ::2, ::2].astype(np.float32), (1.0, 0.8, 0.8), order=1, grid_mode=True, mode="nearest"
    )
    image = coords.reorient(np.clip(brain, 0, 65535).astype(np.uint16), "psl", orientation)
    found = find_orientation(
        write_volume(tmp_path / "brain.zarr", np.ascontiguousarray(image), RESOLUTION), atlas
    )
    assert orientation in (found.best, found.mirror), found
    assert found.clear


def test_real_brain_by_another_writer(brainmap_data: Path) -> None:
    volume = Volume.open(brainmap_data / "ome_zarr" / "stpt_brain_100um_ngffzarr_v0.4.ome.zarr")
    found = find_orientation(volume, Atlas.open(brainmap_data / "atlases" / "allen_mouse_100um_v1.2"))
    # The writer turned the psl stack to asr: their images correlate by 0.84 then, by 0.42 as stored.
    assert found.best == "asr"
