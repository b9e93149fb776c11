"""The rough fit: a known turn, size and shift come back."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from brainmap.coords import ORIENTATIONS, axis_map
from brainmap.errors import DataError
from brainmap.registration.coarse_fit import CoarseImage, Placement, fit, likeness, nearest_turn, place
from brainmap.registration.prepare import Prepared, prepare

VOXEL = 100.0


def lopsided(shape: tuple[int, int, int] = (44, 40, 48)) -> np.ndarray:
    """A body that looks different from every side: an egg with bumps and inner structures."""
    z, y, x = (np.indices(shape) + 0.5) / np.array(shape)[:, None, None, None] * 2 - 1
    body = (z / (0.75 + 0.15 * x)) ** 2 + (y / 0.6) ** 2 + (x / 0.7) ** 2 < 1
    bump = (z - 0.5) ** 2 + (y - 0.35) ** 2 + (x + 0.3) ** 2 < 0.12
    inner = (z + 0.2) ** 2 + (y + 0.25) ** 2 + (x - 0.3) ** 2 < 0.05
    image = 300.0 * (body | bump) + 250.0 * inner + 120.0 * ((x > 0.1) & body)
    return ndimage.gaussian_filter(image, 0.7).astype(np.float32)


def coarse(image: np.ndarray) -> CoarseImage:
    return CoarseImage.of(prepare(image, (VOXEL, VOXEL, VOXEL), None), VOXEL, 2)


@pytest.fixture(scope="module")
def template() -> CoarseImage:
    return coarse(lopsided())


def test_a_turned_image_is_laid_back(template: CoarseImage) -> None:
    turned = np.ascontiguousarray(lopsided().transpose(2, 0, 1)[::-1])
    sample = coarse(turned)
    # Sample axes (x reversed, z, y) -> template axes.
    right = np.array([[0.0, 1, 0], [0, 0, 1], [-1, 0, 0]])
    wrong = [np.eye(3), np.array([[0.0, 1, 0], [0, 0, -1], [1, 0, 0]])]
    placements = place(sample, template, [right, *wrong])
    scores = [likeness(sample, template, fit(sample, template, p, 8, affine=False)) for p in placements]
    assert int(np.argmax(scores)) == 0
    assert scores[0] > 0.9


def test_a_known_shift_and_size_come_back(template: CoarseImage) -> None:
    moved = ndimage.affine_transform(lopsided(), np.eye(3) / 1.1, offset=-np.array([2.0, -1.0, 3.0]), order=1)
    sample = coarse(moved)
    start = place(sample, template, [np.eye(3)])[0]
    found = fit(sample, template, start, 20, affine=False)
    size = np.linalg.det(found.matrix) ** (1 / 3)
    assert size == pytest.approx(1 / 1.1, abs=0.02)
    assert likeness(sample, template, found) > likeness(sample, template, start) - 1e-6
    # The centre of the sample's tissue is that of the template's, moved and resized.
    assert np.abs(found.shift_um).max() < VOXEL


def test_a_stretch_needs_the_affine_fit(template: CoarseImage) -> None:
    stretched = ndimage.zoom(lopsided(), (1.15, 1.0, 0.9), order=1)
    sample = coarse(stretched)
    start = fit(sample, template, place(sample, template, [np.eye(3)])[0], 10, affine=False)
    found = fit(sample, template, start, 20, affine=True)
    assert likeness(sample, template, found) > likeness(sample, template, start)
    np.testing.assert_allclose(np.diag(found.matrix), [1 / 1.15, 1, 1 / 0.9], atol=0.04)


def test_a_placement_means_the_same_on_finer_images() -> None:
    prepared = prepare(lopsided(), (VOXEL, VOXEL, VOXEL), None)
    rough, fine = (CoarseImage.of(prepared, VOXEL, factor) for factor in (4, 2))
    matrix = np.eye(3) * 1.05
    before = Placement(matrix, np.array([30.0, -20.0, 10.0]))
    after = before.refined((rough, rough), (fine, fine))
    point = np.array([700.0, 900.0, 800.0])

    def mapped(p: Placement, image: CoarseImage) -> np.ndarray:
        return p.matrix @ (point - image.centre_um) + p.shift_um + image.centre_um

    np.testing.assert_allclose(mapped(before, rough), mapped(after, fine), atol=1e-6)


def test_the_nearest_turn_has_the_same_handedness() -> None:
    turns = {letters: axis_map(letters).matrix for letters in ORIENTATIONS}
    rng = np.random.default_rng(0)
    for letters, turn in turns.items():
        assert nearest_turn(turn * 1.1 + rng.normal(0, 0.1, (3, 3)), turns) == letters


def test_an_image_without_tissue_is_refused() -> None:
    grain = np.zeros((20, 20, 20), np.float32)
    grain[10, 10:13, 10] = 1
    with pytest.raises(DataError, match="too little tissue"):
        CoarseImage.of(Prepared(grain, grain, grain > 0), VOXEL, 2)
