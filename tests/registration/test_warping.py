"""Images through known transforms: ids exactly, grey values where they belong, numbers that tell good from bad."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from scipy import ndimage

from brainmap.atlas.atlas import Atlas
from brainmap.registration.alignment import Framed
from brainmap.registration.grid import SampleGrid
from brainmap.registration.prepare import prepare
from brainmap.registration.transforms import AFFINE_FILE, Transforms
from brainmap.registration.warping import bring_to_atlas, bring_to_sample, depth_um, measure

VOXEL = (100.0, 100.0, 100.0)


def shifted_by(folder: Path, shift_um: tuple[float, float, float]) -> Transforms:
    """Transforms in which a sample point is the atlas point plus a shift."""
    parameters = np.concatenate([np.eye(3).ravel(), np.array(shift_um) / 1000])
    folder.mkdir(exist_ok=True)
    scipy.io.savemat(
        folder / AFFINE_FILE,
        {"AffineTransform_double_3_3": parameters[:, None], "fixed": np.zeros((3, 1))},
        format="4",
    )
    return Transforms(folder)


def test_ids_are_carried_whole(write_atlas: Callable[..., Path], tmp_path: Path) -> None:
    atlas = Atlas.open(write_atlas())
    grid = SampleGrid(atlas.shape, VOXEL, (0.0, 0.0, 0.0), tuple(100.0 * n for n in atlas.shape), "asr")  # type: ignore[arg-type]
    transforms = shifted_by(tmp_path / "t", (100.0, 0.0, 200.0))
    ids, sides = bring_to_sample(transforms, grid, atlas)
    assert ids.dtype == np.uint32
    np.testing.assert_array_equal(ids[1:, :, 2:], atlas.annotation[:-1, :, :-2])
    np.testing.assert_array_equal(sides[1:, :, 2:], atlas.hemispheres[:-1, :, :-2])
    assert not ids[0].any()
    assert not sides[:, :, :2].any()
    assert int(ids.max()) == int(atlas.annotation.max()) > 2**24


def test_grey_values_come_to_the_atlas(tmp_path: Path) -> None:
    sample = np.random.default_rng(0).uniform(1, 2, (6, 7, 8)).astype(np.float32)
    transforms = shifted_by(tmp_path / "t", (0.0, 100.0, 0.0))
    there = bring_to_atlas(sample, VOXEL, transforms, (6, 7, 8), VOXEL)
    np.testing.assert_allclose(there[:, :-1], sample[:, 1:], rtol=1e-5)
    # On a grid twice as fine, between two voxels: their mean.
    fine = bring_to_atlas(
        sample, VOXEL, shifted_by(tmp_path / "i", (0, 0, 0)), (12, 14, 16), (50.0, 50.0, 50.0)
    )
    np.testing.assert_allclose(fine[1:-1:2, 1:-1:2, 1:-1:2].mean(), sample.mean(), rtol=0.02)


def framed(image: np.ndarray) -> Framed:
    return Framed(prepare(image.astype(np.float32), VOXEL, None), VOXEL, scale=0.3)


@pytest.fixture(scope="module")
def body() -> np.ndarray:
    z, y, x = (np.indices((40, 36, 44)) - np.array([19.5, 17.5, 21.5])[:, None, None, None]) / 13
    inside = z**2 + (1.1 * y) ** 2 + (0.9 * x) ** 2 < 1
    texture = ndimage.gaussian_filter(np.random.default_rng(0).normal(0, 1, inside.shape), 1.5) * 8
    return 20 + inside * (300 + 60 * texture)


def test_the_right_transform_scores_better_than_a_wrong_one(body: np.ndarray, tmp_path: Path) -> None:
    template, sample = framed(body), framed(np.roll(body, 2, axis=0))
    right = measure(template, sample, shifted_by(tmp_path / "right", (200.0, 0, 0)), sample.tissue_mm3)
    wrong = measure(template, sample, shifted_by(tmp_path / "wrong", (-400.0, 300.0, 0)), sample.tissue_mm3)
    assert right.mutual_information_after > wrong.mutual_information_after
    assert right.contrast_correlation > 0.9 > wrong.contrast_correlation
    assert right.mask_dice > 0.97 > wrong.mask_dice
    assert right.edge_mean_um < 60 < wrong.edge_mean_um
    assert right.volume_ratio == pytest.approx(1.0)
    assert (right.affine_scale_min, right.affine_scale_max) == pytest.approx((1.0, 1.0))
    assert right.jacobian_min == pytest.approx(1.0, abs=1e-3)
    assert right.folded_share == 0
    assert right.round_trip_p95_um < 1e-3


def test_depth_counts_from_the_surface(body: np.ndarray) -> None:
    image = framed(body)
    depth = depth_um(image)
    assert (depth > 0).sum() == image.prepared.mask.sum()
    assert depth.max() == pytest.approx(13 / 1.1 * 100, rel=0.12)
    assert np.unravel_index(depth.argmax(), depth.shape) == pytest.approx((19.5, 17.5, 21.5), abs=2)
