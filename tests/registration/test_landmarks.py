"""Landmarks: known answers of the bend, both directions, contradictions and bad files in words."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from brainmap.errors import DataError, NotFoundError
from brainmap.image.volume import Volume, write_volume
from brainmap.registration.grid import SampleGrid
from brainmap.registration.landmarks import Landmarks, refine
from brainmap.registration.transforms import DisplacementField, Transforms

BOX_UM = (5200.0, 4000.0, 6000.0)
SCALE = 0.5
MATRIX = np.diag([1.1, 0.95, 1.0])
OFFSET_MM = np.array([0.2, -0.1, 0.3])


def _linear(folder: Path) -> Transforms:
    parameters = np.concatenate([MATRIX.ravel(), OFFSET_MM])
    columns = {"AffineTransform_float_3_3": parameters, "fixed": np.zeros(3)}
    columns = {name: values.astype(np.float32)[:, None] for name, values in columns.items()}
    scipy.io.savemat(folder / "affine.mat", columns, format="4")
    return Transforms(folder)


def _bent(folder: Path) -> Transforms:
    """A linear transform and a smooth deformation with its numerical inverse."""
    _linear(folder)
    index = np.indices((53, 41, 61)) * 0.1
    z, y, x = index
    values = np.stack([0.15 * np.sin(y), 0.1 * np.sin(x), 0.12 * np.sin(z)]).astype(np.float32)
    warp = DisplacementField(values, np.zeros(3), np.full(3, 0.1))
    points = index.reshape(3, -1).T
    found = points.copy()
    for _ in range(50):
        found = points - warp.at(found)
    back = (found - points).T.reshape(values.shape).astype(np.float32)
    warp.write(folder / "warp.nii.gz")
    DisplacementField(back, np.zeros(3), np.full(3, 0.1)).write(folder / "inverse_warp.nii.gz")
    return Transforms(folder)


def _pairs(transforms: Transforms, shifts_um: np.ndarray, seed: int = 0) -> tuple[Landmarks, np.ndarray]:
    """Landmarks whose atlas points lie `shifts_um` from where the transforms put their sample points."""
    rng = np.random.default_rng(seed)
    atlas = rng.uniform(0.3, 0.7, (len(shifts_um), 3)) * BOX_UM
    sample = transforms.to_sample_edge_um(atlas - shifts_um)
    names = tuple(f"p{i}" for i in range(len(atlas)))
    return Landmarks(names, sample, atlas, np.ones(len(atlas))), sample


def _refine(folder: Path, landmarks: Landmarks, sample: np.ndarray):
    return refine(folder, landmarks, sample, BOX_UM, spacing_um=100.0, scale=SCALE)


def test_a_field_written_is_the_field_read(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(3, 5, 6, 7)).astype(np.float32)
    field = DisplacementField(values, np.array([0.1, 0.2, 0.3]), np.array([0.1, 0.05, 0.2]))
    field.write(tmp_path / "field.nii.gz")
    again = DisplacementField.read(tmp_path / "field.nii.gz")
    np.testing.assert_array_equal(again.values, values)
    np.testing.assert_allclose(
        [again.origin_mm, again.spacing_mm], [field.origin_mm, field.spacing_mm], atol=1e-6
    )


@pytest.mark.parametrize("make", [_linear, _bent])
def test_landmarks_are_met_and_both_directions_stay_inverse(tmp_path: Path, make) -> None:
    shift = np.tile([120.0, -60.0, 90.0], (24, 1))
    landmarks, sample = _pairs(make(tmp_path), shift)
    fit = _refine(tmp_path, landmarks, sample)
    np.testing.assert_allclose(fit.before_um, np.linalg.norm(shift, axis=1), rtol=0.02)
    assert np.median(fit.after_um) < 15
    assert fit.after_um.max() < 30
    # A shift that all share is known also where one of them is left out.
    assert np.median(fit.left_out_um) < 0.6 * np.median(fit.before_um)
    assert fit.jacobian_min > 0.5
    after = Transforms(tmp_path)
    points = np.random.default_rng(1).uniform(0.2, 0.8, (4000, 3)) * BOX_UM
    moved = after.to_sample_edge_um(points)
    back = np.linalg.norm(after.to_atlas_um(moved) - points, axis=1)
    assert np.percentile(back, 95) < 3
    assert (after.warp.jacobian() > 0).all()  # type: ignore[union-attr]


def test_the_reach_is_limited(tmp_path: Path) -> None:
    before = _linear(tmp_path)
    atlas = np.array([[1200.0, 2000.0, 1500.0]])
    sample = before.to_sample_edge_um(atlas - [100.0, 0.0, 0.0])
    landmarks = Landmarks(("one",), sample, atlas, np.ones(1))
    points = np.array([[1200.0, 2000.0, 1500.0 + d] for d in (0.0, 600.0, 1300.0, 3000.0)])
    expected = before.to_sample_edge_um(points)
    fit = _refine(tmp_path, landmarks, sample)
    moved = np.linalg.norm(Transforms(tmp_path).to_sample_edge_um(points) - expected, axis=1)
    assert moved[0] == pytest.approx(110, rel=0.05)  # 100 um in the atlas are 110 in the stretched sample
    assert 5 < moved[1] < moved[0]
    np.testing.assert_allclose(moved[2:], 0, atol=1e-3)
    assert np.isnan(fit.left_out_um).all()
    assert fit.to_json()["pairs"] == 1


def test_a_heavy_landmark_is_met_closer(tmp_path: Path) -> None:
    landmarks, sample = _pairs(_linear(tmp_path), np.array([[150.0, 0, 0]]))
    shutil.copytree(tmp_path, tmp_path / "heavy")
    heavy = Landmarks(landmarks.names, landmarks.sample_um, landmarks.atlas_um, np.array([50.0]))
    light = _refine(tmp_path, landmarks, sample).after_um[0]
    assert _refine(tmp_path / "heavy", heavy, sample).after_um[0] < light < 10


def test_contradictions_are_refused_and_change_nothing(tmp_path: Path) -> None:
    transforms = _linear(tmp_path)
    atlas = np.array([[2500.0, 2000.0, 3000.0], [2500.0, 2000.0, 3100.0]])
    sample = transforms.to_sample_edge_um(atlas + [[0, 0, 300.0], [0, 0, -300.0]])
    with pytest.raises(DataError, match="landmarks up and down contradict each other: 100 um apart"):
        _refine(tmp_path, Landmarks(("up", "down"), sample, atlas, np.ones(2)), sample)
    huge = transforms.to_sample_edge_um(atlas[:1] + [[0, 0, 1500.0]])
    with pytest.raises(DataError, match="would fold the atlas"):
        _refine(tmp_path, Landmarks(("huge",), huge, atlas[:1], np.ones(1)), huge)
    assert [path.name for path in tmp_path.iterdir()] == ["affine.mat"]


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    image = np.zeros((4, 5, 6), np.uint16)
    return write_volume(tmp_path / "v.zarr", image, (50.0, 40.0, 30.0), origin_um=(10.0, 0.0, 0.0))


def test_landmarks_outside_are_refused(volume: Volume) -> None:
    grid = SampleGrid.over(volume, "asr", (50.0, 50.0, 50.0))
    inside = Landmarks(("a",), np.full((1, 3), 100.0), np.full((1, 3), 3000.0), np.ones(1))
    inside.check_inside(grid, BOX_UM, "v")
    with pytest.raises(DataError, match=r"landmark a lies outside v, at z, y, x 9100, 9100, 9100 um"):
        replace(inside, sample_um=inside.sample_um + 9000).check_inside(grid, BOX_UM, "v")
    with pytest.raises(DataError, match=r"outside the atlas.*ends at 5200, 4000, 6000 um"):
        replace(inside, atlas_um=inside.atlas_um + 1001).check_inside(grid, BOX_UM, "v")


HEADER = "name,z,y,x,atlas_z_um,atlas_y_um,atlas_x_um,weight\n"


def test_reading_voxels_and_um(tmp_path: Path, volume: Volume) -> None:
    (tmp_path / "vox.csv").write_text(HEADER + "a,1,2,3,100,200,300,2\n,0,0,0,1,2,3,1\n")
    (tmp_path / "um.csv").write_text(
        "z_um, y_um, x_um, atlas_z_um, atlas_y_um, atlas_x_um\n60,80,90,100,200,300\n10,0,0,1,2,3\n"
    )
    vox, um = (Landmarks.read(tmp_path / name, volume) for name in ("vox.csv", "um.csv"))
    np.testing.assert_allclose(vox.sample_um, [[60, 80, 90], [10, 0, 0]])
    np.testing.assert_allclose(um.sample_um, vox.sample_um)
    assert vox.names == ("a", "2") and um.names == ("1", "2")
    assert vox.weights.tolist() == [2, 1]
    assert vox.fingerprint() != um.fingerprint()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it has: none"),
        (HEADER, "holds no landmark"),
        ("z,y,x\n1,2,3\n", "needs the columns"),
        (HEADER + "a,1,2,three,1,2,3,1\n", "line 2: x is 'three'"),
        (HEADER + "a,1,2,nan,1,2,3,1\n", "line 2: x is 'nan'"),
        (HEADER + "a,1,2\n", "line 2: x is None"),
        (HEADER + "a,1,2,3,1,2,3,0\n", "weights of landmarks must be positive"),
    ],
)
def test_bad_files_in_words(tmp_path: Path, volume: Volume, text: str, words: str) -> None:
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        Landmarks.read(tmp_path / "bad.csv", volume)


def test_no_file(tmp_path: Path, volume: Volume) -> None:
    with pytest.raises(NotFoundError, match="no file of landmarks"):
        Landmarks.read(tmp_path / "none.csv", volume)
