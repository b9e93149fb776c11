"""Registration of small synthetic brains: points land where the image does, sides stay sides."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import zarr
from scipy import ndimage

from brainmap import coords
from brainmap.atlas import Atlas, assign_regions
from brainmap.errors import DataError, NotFoundError, UsageError
from brainmap.image.volume import Volume, write_volume
from brainmap.registration import register as registration
from brainmap.registration import steps as registration_run
from brainmap.registration.grid import SampleGrid
from brainmap.registration.landmarks import Landmarks
from brainmap.registration.orientation import Settled
from brainmap.registration.register import Registration, RegistrationOptions, register, register_brain
from brainmap.registration.steps import UNREFINED
from brainmap.registration.transforms import AFFINE_FILE, INVERSE_WARP_FILE, WARP_FILE

SHAPE = (50, 38, 56)  # not cubic: a mix-up of axes cannot pass
RESOLUTION = (100.0, 100.0, 100.0)
#: Threads wait for each other at every iteration, which takes long on a busy machine.
ONE_THREAD = RegistrationOptions(threads=1)
LINEAR = RegistrationOptions("affine", threads=1)


def _template(seed: int = 0) -> np.ndarray:
    """Textured ellipsoid, without symmetry."""
    rng = np.random.default_rng(seed)
    grid = np.indices(SHAPE).astype(float)
    radius = sum(((g - (n - 1) / 2) / (0.40 * n)) ** 2 for g, n in zip(grid, SHAPE, strict=True))
    texture = ndimage.gaussian_filter(rng.normal(size=SHAPE), 2.5)
    texture = 150 + 40 * texture / texture.std()
    return np.where(radius < 1, np.clip(texture, 40, 400), 0).astype(np.float32)


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    """Two halves (ids 1 right, 2 left) of the ellipsoid under one root, Allen-like large id in the front."""
    import tifffile

    folder = tmp_path_factory.mktemp("atlases") / "synthetic_100um_v1.0"
    folder.mkdir()
    template = _template()
    ids = np.where(template > 0, 1, 0).astype(np.uint32)
    ids[:20][ids[:20] > 0] = 614_454_277
    tifffile.imwrite(folder / "reference.tiff", template.astype(np.uint16), photometric="minisblack")
    tifffile.imwrite(folder / "annotation.tiff", ids, photometric="minisblack")
    records = [
        {"id": 997, "acronym": "root", "name": "root", "structure_id_path": [997], "rgb_triplet": [1, 1, 1]},
        {"id": 1, "acronym": "back", "name": "back", "structure_id_path": [997, 1], "rgb_triplet": [1, 1, 1]},
        {"id": 614_454_277, "acronym": "front", "name": "front", "structure_id_path": [997, 614_454_277]},
    ]
    (folder / "structures.json").write_text(json.dumps(records))
    facts = {
        "name": "synthetic",
        "resolution": RESOLUTION,
        "orientation": "asr",
        "shape": SHAPE,
        "version": "1.0",
    }
    (folder / "metadata.json").write_text(json.dumps(facts))
    return Atlas.open(folder)


Mapping = Callable[[np.ndarray], np.ndarray]


def _brain(atlas: Atlas, to_atlas_vox: Mapping, seed: int = 1) -> np.ndarray:
    """The brain (asr, 100 um) whose voxel i shows the template at ``to_atlas_vox(i)``, with other intensities."""
    index = np.indices(SHAPE).reshape(3, -1).T.astype(float)
    values = ndimage.map_coordinates(atlas.reference.astype(np.float32), to_atlas_vox(index).T, order=1)
    noise = np.random.default_rng(seed).normal(size=values.shape) * 3
    return np.clip(30 + 1.7 * values + noise, 0, 65535).reshape(SHAPE).astype(np.uint16)


def _shift(points: np.ndarray) -> np.ndarray:
    return points + np.array([3.0, -2.0, 1.5])


def _affine(points: np.ndarray) -> np.ndarray:
    centre = (np.array(SHAPE) - 1) / 2
    angle = np.deg2rad(6)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    return (points - centre) @ (turn @ np.diag([1.06, 0.95, 1.04])).T + centre + np.array([1.0, 1.5, -1.0])


def _warp(points: np.ndarray) -> np.ndarray:
    z, y, x = (points / np.array(SHAPE) * 2 * np.pi).T
    return points + np.stack([1.8 * np.sin(y), 1.5 * np.sin(x), 1.6 * np.sin(z)], axis=1)


def _store(
    path: Path, brain_asr: np.ndarray, orientation: str, origin: tuple[float, ...] = (0, 0, 0)
) -> Volume:
    stored = coords.reorient(brain_asr, "asr", orientation)
    return write_volume(
        path, np.ascontiguousarray(stored), RESOLUTION, orientation=orientation, origin_um=origin
    )


def _tissue_points(brain: np.ndarray, n: int = 2000) -> np.ndarray:
    inside = ndimage.binary_erosion(brain > 90, iterations=2)
    index = np.argwhere(inside)
    return index[np.random.default_rng(3).integers(0, len(index), n)].astype(float)


def _as_stored_um(points_asr_vox: np.ndarray, volume: Volume) -> np.ndarray:
    vox = coords.axis_map("asr", volume.orientation or "asr").vox(points_asr_vox, SHAPE)
    return coords.vox_to_um(vox, volume.voxel_um, volume.origin_um)


def _errors_in_voxels(
    result: Registration, volume: Volume, brain: np.ndarray, to_atlas_vox: Mapping
) -> np.ndarray:
    points = _tissue_points(brain)
    mapped = result.to_atlas_um(_as_stored_um(points, volume))
    truth = coords.vox_to_edge_um(to_atlas_vox(points), RESOLUTION)
    return np.linalg.norm(mapped - truth, axis=1) / RESOLUTION[0]


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the check of the letters (see test_orientation) and without figures, which take longest here."""
    monkeypatch.setattr(
        registration, "settle_orientation", lambda volume, atlas, asked, mask: Settled(asked, None, ())
    )
    for name in ("draw_contours", "draw_checkerboard", "draw_deformation"):
        monkeypatch.setattr(registration_run, name, lambda *arguments: [])


@pytest.mark.usefixtures("bare")
def test_known_affine(atlas: Atlas, tmp_path: Path) -> None:
    brain = _brain(atlas, _affine)
    volume = _store(tmp_path / "brain.zarr", brain, "psl", origin=(500.0, -300.0, 40.0))
    result = register(volume, atlas, tmp_path / "reg", options=LINEAR)
    error = _errors_in_voxels(result, volume, brain, _affine)
    assert np.median(error) <= 0.3
    assert np.percentile(error, 95) <= 0.3
    assert result.judgement.verdict == "good", result.judgement.sentence()
    # Without a deformation the way back is exact.
    um = _as_stored_um(_tissue_points(brain), volume)
    np.testing.assert_allclose(result.to_sample_um(result.to_atlas_um(um)), um, atol=1e-6)


@pytest.mark.usefixtures("bare")
def test_wrong_letters_are_not_good(atlas: Atlas, tmp_path: Path) -> None:
    """What is stored as psl, said to be asl: the outlines of this brain agree, the structures do not."""
    volume = _store(tmp_path / "brain.zarr", _brain(atlas, _affine)[::-1], "psl")
    result = register(volume, atlas, tmp_path / "reg", options=LINEAR)
    assert result.judgement.verdict != "good"
    assert any("structures inside hardly match" in reason for reason in result.judgement.reasons)


@pytest.mark.usefixtures("bare")
def test_part_of_a_brain_with_a_mask(atlas: Atlas, tmp_path: Path) -> None:
    """The front third is missing; the mask keeps the template's front out of the comparison."""
    brain = _brain(atlas, _shift)
    brain[:17] = 30
    kept = np.zeros(SHAPE, dtype=np.uint8)
    kept[19:] = brain[19:] > 90
    volume = _store(tmp_path / "brain.zarr", brain, "asr")
    mask = _store(tmp_path / "mask.zarr", kept, "asr")
    result = register(volume, atlas, tmp_path / "reg", mask=mask, options=LINEAR)
    error = _errors_in_voxels(result, volume, brain * kept, _shift)
    assert np.percentile(error, 95) <= 0.5, f"p95 {np.percentile(error, 95):.2f} voxels"


@pytest.mark.usefixtures("bare")
def test_one_hemisphere_without_a_mask(atlas: Atlas, tmp_path: Path) -> None:
    """The left one; `test_partial` finds either."""
    brain = _brain(atlas, _shift)
    middle = SHAPE[2] / 2 - 1.5  # where the brain, shifted, has its midline
    brain[np.indices(SHAPE)[2] < middle] = 30
    volume = _store(tmp_path / "brain.zarr", brain, "asr")
    result = register(volume, atlas, tmp_path / "reg", options=LINEAR)
    assert result.part.side == "left"
    assert result.record["part"]["certain"]
    assert any("Registered as the left hemisphere" in warning for warning in result.warnings)
    error = _errors_in_voxels(result, volume, brain, _shift)
    assert np.percentile(error, 95) <= 0.5, f"p95 {np.percentile(error, 95):.2f} voxels"
    volumes = result.volumes_mm3(atlas)  # columns: no side, left, right
    assert volumes[:-1, 1].sum() > 10
    assert volumes[:-1, 2].sum() == 0


@pytest.fixture(scope="module")
def finished(atlas: Atlas, tmp_path_factory: pytest.TempPathFactory) -> tuple[Volume, Registration]:
    """A smoothly warped brain stored as ``ipr`` and its registration."""
    folder = tmp_path_factory.mktemp("finished")
    volume = _store(folder / "brain.zarr", _brain(atlas, _warp), "ipr", origin=(1000.0, 0.0, 0.0))
    return volume, register(volume, atlas, folder / "reg", options=ONE_THREAD)


@pytest.fixture
def landmarks(finished: tuple[Volume, Registration], atlas: Atlas) -> Landmarks:
    """Those of somebody who believes that everything lies 80 um further back."""
    volume, result = finished
    rng = np.random.default_rng(0)
    sample = _as_stored_um(_tissue_points(_brain(atlas, _warp))[rng.integers(0, 2000, 12)], volume)
    return Landmarks(tuple("abcdefghijkl"), sample, result.to_atlas_um(sample) + [80, 0, 0], np.ones(12))


@pytest.mark.usefixtures("bare")
def test_landmarks_refine_a_finished_registration(
    finished: tuple[Volume, Registration],
    landmarks: Landmarks,
    atlas: Atlas,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The same folder with other landmarks: the alignment stays, the pairs are met, each set bends it anew."""
    volume, result = finished
    folder = tmp_path / "reg"
    shutil.copytree(result.folder, folder)
    with pytest.raises(UsageError, match="--overwrite"):
        register(volume, atlas, folder, options=ONE_THREAD, landmarks=landmarks)
    for marks in (replace(landmarks, weights=landmarks.weights * 2), landmarks):
        caplog.clear()
        with caplog.at_level("INFO"):
            bent = register(volume, atlas, folder, options=ONE_THREAD, landmarks=marks, overwrite=True)
        assert "only landmarks are new" in caplog.text
        assert bent.fingerprint != result.fingerprint
    after = np.linalg.norm(bent.to_atlas_um(landmarks.sample_um) - landmarks.atlas_um, axis=1)
    assert np.median(after) < 15
    fit = bent.record["landmarks"]
    assert fit["median_before_um"] == pytest.approx(80, rel=0.05)
    assert fit["median_after_um"] == pytest.approx(np.median(after), abs=1)
    assert fit["median_left_out_um"] < 90  # so few in so small a brain do not reach one another
    assert fit["residuals"][0]["name"] == "a"
    assert bent.record["quality"]["folded_share"] == 0
    assert bent.record["quality"]["round_trip_p95_um"] < 30
    back = bent.to_sample_um(bent.to_atlas_um(landmarks.sample_um)) - landmarks.sample_um
    assert np.linalg.norm(back, axis=1).max() < 30
    outside = replace(landmarks, sample_um=landmarks.sample_um + 9e4)
    with pytest.raises(DataError, match="landmark a lies outside brain"):
        register(volume, atlas, tmp_path / "no", options=ONE_THREAD, landmarks=outside)
    assert not (tmp_path / "no").exists()


@pytest.mark.usefixtures("bare")
def test_equal_inputs_give_equal_transforms(
    finished: tuple[Volume, Registration], landmarks: Landmarks, atlas: Atlas, tmp_path: Path
) -> None:
    """The second time with landmarks, which bend the transforms only after the alignment."""
    volume, _ = finished
    coarse = replace(ONE_THREAD, align_um=450.0)  # takes less time
    first = register(volume, atlas, tmp_path / "first", options=coarse)
    second = register(volume, atlas, tmp_path / "second", options=coarse, landmarks=landmarks)
    assert second.record["base_fingerprint"] == first.record["base_fingerprint"]
    for name in (AFFINE_FILE, WARP_FILE, INVERSE_WARP_FILE):
        again = (second.folder / UNREFINED / name).read_bytes()
        assert again == (first.folder / name).read_bytes()


def test_known_smooth_warp(finished: tuple[Volume, Registration], atlas: Atlas) -> None:
    """Mean shift 1.6 voxels; on this brain the two ways to compare reach medians of 0.14 and 0.19."""
    volume, result = finished
    brain = _brain(atlas, _warp)
    error = _errors_in_voxels(result, volume, brain, _warp)
    assert np.median(error) <= 0.3, (
        f"median {np.median(error):.2f}, p95 {np.percentile(error, 95):.2f} voxels"
    )
    um = _as_stored_um(_tissue_points(brain), volume)
    back = np.linalg.norm(result.to_sample_um(result.to_atlas_um(um)) - um, axis=1)
    assert np.percentile(back, 95) <= 0.3 * RESOLUTION[0]


def test_folder_is_the_contract(finished: tuple[Volume, Registration]) -> None:
    _, result = finished
    names = {path.name for path in result.folder.iterdir()}
    assert names >= {
        "registration.json", "affine.mat", "warp.nii.gz", "inverse_warp.nii.gz",
        "annotation.ome.zarr", "sample_in_atlas.ome.zarr", "quality_coronal.png", "quality_checkerboard.png",
        "quality_deformation.png",
    }  # fmt: skip
    record = json.loads((result.folder / "registration.json").read_text())
    assert record["parameters"]["orientation"] == "ipr"
    assert record["quality"]["mask_dice"] > 0.85
    assert record["quality"]["folded_share"] == 0
    assert record["quality"]["edge_mean_um"] < RESOLUTION[0]
    assert record["quality"]["contrast_correlation"] > 0.6
    assert record["part"]["part"] == "whole brain"
    assert record["quality"]["mutual_information_after"] > record["quality"]["mutual_information_before"]
    assert [path.name for path in result.folder.parent.iterdir() if path.name.startswith(".tmp")] == []
    assert zarr.open_group(str(result.folder / "annotation.ome.zarr"), mode="r")["0"].dtype == np.uint32


def test_warped_annotation_overlays_the_sample(finished: tuple[Volume, Registration], atlas: Atlas) -> None:
    volume, result = finished
    warped = Volume.open(result.folder / "annotation.ome.zarr")
    assert warped.orientation == volume.orientation
    assert warped.shape == volume.shape
    rng = np.random.default_rng(0)
    index = np.stack([rng.integers(0, n, 3000) for n in warped.shape], axis=1)
    um = coords.vox_to_um(index, warped.voxel_um, warped.origin_um)
    region, hemisphere = atlas.lookup(result.to_atlas_um(um))
    assert np.array_equal(region, result.annotation[tuple(index.T)])
    inside = region > 0
    assert np.array_equal(hemisphere[inside], result.hemispheres[tuple(index[inside].T)])
    assert {1, 614_454_277} <= set(region.tolist())


def test_sample_in_atlas_lies_on_the_template(finished: tuple[Volume, Registration], atlas: Atlas) -> None:
    _, result = finished
    brought = Volume.open(result.folder / "sample_in_atlas.ome.zarr")
    assert brought.origin_um == (50.0, 50.0, 50.0)
    assert brought.orientation == "asr"
    image = brought.read(*(slice(0, n) for n in brought.shape))
    inside = ndimage.binary_erosion(atlas.annotation > 0, iterations=2)
    assert np.corrcoef(image[inside], atlas.reference[inside])[0, 1] > 0.95


def test_volumes_are_those_of_the_sample(finished: tuple[Volume, Registration], atlas: Atlas) -> None:
    _, result = finished
    volumes = result.volumes_mm3(atlas)
    assert volumes[:-1].sum() == pytest.approx((result.annotation > 0).sum() * 1e-3)
    low, high = result.grid.corner_um, np.add(result.grid.corner_um, result.grid.extent_um)
    half = tuple(
        (lo, (lo + hi) / 2 if axis == 0 else hi) for axis, (lo, hi) in enumerate(zip(low, high, strict=True))
    )
    part = result.volumes_mm3(atlas, box_um=half)  # type: ignore[arg-type]
    expected = (result.annotation[: SHAPE[1] // 2] > 0).sum() * 1e-3
    assert part[:-1].sum() == pytest.approx(expected)
    with pytest.raises(UsageError, match="the mask has shape"):
        result.volumes_mm3(atlas, mask=np.ones((2, 2, 2), dtype=bool))


def test_far_away_points_and_nan_are_well_defined(
    finished: tuple[Volume, Registration], atlas: Atlas
) -> None:
    _, result = finished
    mapped = result.to_atlas_um([[1e5, 1e5, -1e5], [np.nan, 0, 0], *[[1500.0, 2000.0, 3000.0]] * 2])
    assert np.isfinite(mapped[0]).all()
    assert np.isnan(mapped[1]).all()
    assert np.array_equal(mapped[2], mapped[3])
    assert atlas.lookup(mapped)[0][:2].tolist() == [0, 0]
    assert result.to_atlas_um(np.zeros((0, 3))).shape == (0, 3)


def test_same_command_reuses_and_others_refuse(
    finished: tuple[Volume, Registration], atlas: Atlas, tmp_path: Path
) -> None:
    volume, result = finished
    before = (result.folder / "registration.json").stat().st_mtime_ns
    assert register(volume, atlas, result.folder, options=ONE_THREAD).fingerprint == result.fingerprint
    assert (result.folder / "registration.json").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="another brain, atlas or other options"):
        register(volume, atlas, result.folder, options=RegistrationOptions(seed=7))
    other = tmp_path / "precious"
    other.mkdir()
    (other / "notes.txt").write_text("keep")
    with pytest.raises(UsageError, match="is not a registration"):
        register(volume, atlas, other, overwrite=True)
    assert (other / "notes.txt").read_text() == "keep"


def test_reuse_checks_that_it_belongs_to_the_volume(
    finished: tuple[Volume, Registration], atlas: Atlas, tmp_path: Path
) -> None:
    volume, result = finished
    loaded = Registration.load(result.folder)
    loaded.check_belongs(volume)
    shifted = _store(tmp_path / "shifted.zarr", _brain(atlas, _warp), "ipr", origin=(0.0, 0.0, 0.0))
    with pytest.raises(UsageError, match="does not belong to"):
        loaded.check_belongs(shifted)
    with pytest.raises(UsageError, match="orientation ipr, not ipl"):
        loaded.check_belongs(volume, "ipl")


def test_point_mapping_agrees_with_ants(finished: tuple[Volume, Registration]) -> None:
    import ants
    import pandas as pd

    _, result = finished
    files = [str(result.folder / name) for name in ("affine.mat", "inverse_warp.nii.gz", "warp.nii.gz")]
    rng = np.random.default_rng(0)
    edge_um = rng.uniform(1500, 3000, (400, 3))
    frame = pd.DataFrame(edge_um / 1000.0, columns=["x", "y", "z"])
    theirs = (
        ants.apply_transforms_to_points(3, frame, files[:2], whichtoinvert=[True, False]).to_numpy() * 1000
    )
    np.testing.assert_allclose(result.transforms.to_atlas_um(edge_um), theirs, atol=0.01)
    theirs = ants.apply_transforms_to_points(3, frame, [files[2], files[0]], whichtoinvert=[False, False])
    np.testing.assert_allclose(
        result.transforms.to_sample_edge_um(edge_um), theirs.to_numpy() * 1000, atol=0.01
    )


@pytest.mark.parametrize("orientation", coords.ORIENTATIONS)
def test_left_marker_is_counted_left_in_any_orientation(
    atlas: Atlas, tmp_path: Path, orientation: str
) -> None:
    """Invariant 5: with the identity as transform the orientation alone decides."""
    identity = {"AffineTransform_float_3_3": [1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0], "fixed": [0, 0, 0]}
    columns = {name: np.array(values, dtype=np.float32)[:, None] for name, values in identity.items()}
    scipy.io.savemat(tmp_path / "affine.mat", columns, format="4")
    marker = np.zeros(SHAPE, dtype=np.uint8)
    marker[18:30, 15:25, 40:45] = 1  # asr: high index on the last axis = left
    stored = coords.reorient(marker, "asr", orientation)
    voxel = (100.0, 100.0, 100.0)
    extent = tuple(100.0 * n for n in stored.shape)
    grid = SampleGrid(stored.shape, voxel, (-50.0, 20.0, 7.0), extent, orientation)  # type: ignore[arg-type]
    result = Registration(tmp_path, grid, {})
    um = coords.vox_to_um(np.argwhere(stored), voxel, grid.origin_um)
    region, hemisphere = assign_regions(result.to_atlas_um(um), atlas)
    assert set(region) <= {1, 614_454_277}
    assert (hemisphere == 1).all()
    np.testing.assert_allclose(result.to_sample_um(result.to_atlas_um(um)), um, atol=1e-6)


def test_command_level_function_and_its_errors(atlas: Atlas, tmp_path: Path) -> None:
    brain = _brain(atlas, _shift)
    write_volume(tmp_path / "brain.zarr", brain, RESOLUTION)  # no orientation in the image
    folder = atlas.files.folder  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="--orientation"):
        register_brain(tmp_path / "brain.zarr", tmp_path / "reg", atlas=folder)
    with pytest.raises(UsageError, match="three letters"):
        register_brain(tmp_path / "brain.zarr", tmp_path / "reg", atlas=folder, orientation="xyz")
    write_volume(tmp_path / "empty.zarr", np.zeros_like(brain), RESOLUTION)
    with pytest.raises(DataError, match="no tissue"):
        register_brain(tmp_path / "empty.zarr", tmp_path / "reg", atlas=folder, orientation="asr")
    write_volume(tmp_path / "tiny.zarr", brain, (28.0, 28.0, 28.0))
    with pytest.raises(DataError, match="voxel size is wrong"):
        register_brain(tmp_path / "tiny.zarr", tmp_path / "reg", atlas=folder, orientation="asr")
    assert not (tmp_path / "reg").exists()


def test_loading_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no finished registration"):
        Registration.load(tmp_path)
    (tmp_path / "registration.json").write_text('{"format": 1}')
    with pytest.raises(DataError, match="is damaged"):
        Registration.load(tmp_path)


@pytest.mark.parametrize("change", [{"schedule": "magic"}, {"threads": -1}, {"finest_um": 0.0}])
def test_options_are_checked(change: dict) -> None:
    with pytest.raises(UsageError):
        RegistrationOptions(**change)
