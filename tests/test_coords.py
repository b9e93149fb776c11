"""Frames: every conversion is undone by its inverse, and points follow the array."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainmap import coords
from brainmap.errors import UsageError

SHAPE = (3, 4, 5)


def _marker_volume(orientation: str, letter: str) -> np.ndarray:
    """Volume of that orientation whose first plane on the anatomical side `letter` is 1."""
    volume = np.zeros(SHAPE)
    opposite = {"a": "p", "p": "a", "s": "i", "i": "s", "r": "l", "l": "r"}[letter]
    axis = next(i for i, side in enumerate(orientation) if side in (letter, opposite))
    side = [slice(None)] * 3
    side[axis] = slice(0, 1) if orientation[axis] == letter else slice(-1, None)
    volume[tuple(side)] = 1
    return volume


def test_there_are_48_orientations() -> None:
    assert len(set(coords.ORIENTATIONS)) == 48
    assert {"asr", "psl", "las"} <= set(coords.ORIENTATIONS)


@pytest.mark.parametrize("text", ["ASR", " asr ", "Asr"])
def test_orientation_is_read_leniently(text: str) -> None:
    assert coords.parse_orientation(text) == "asr"


@pytest.mark.parametrize("text", ["", "as", "asrl", "aar", "apl", "xyz", "as r", "lps1"])
def test_wrong_letters_are_a_sentence(text: str) -> None:
    with pytest.raises(UsageError, match="three letters"):
        coords.parse_orientation(text)


@pytest.mark.parametrize("orientation", coords.ORIENTATIONS)
def test_every_anatomical_side_lands_where_asr_has_it(orientation: str) -> None:
    expected = {"a": (0, 0), "p": (0, -1), "s": (1, 0), "i": (1, -1), "r": (2, 0), "l": (2, -1)}
    for letter, (axis, index) in expected.items():
        volume = coords.reorient(_marker_volume(orientation, letter), orientation)
        assert np.take(volume, index, axis=axis).all(), letter
        assert volume.sum() == np.take(volume, index, axis=axis).size


@pytest.mark.parametrize("orientation", coords.ORIENTATIONS)
def test_points_follow_the_array_and_come_back(orientation: str) -> None:
    volume = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    there = coords.axis_map(orientation, "asr")
    back = coords.axis_map("asr", orientation)
    moved = there.array(volume)
    points = np.argwhere(volume >= 0)
    moved_points = there.vox(points, SHAPE)
    assert np.array_equal(moved[tuple(moved_points.astype(int).T)], volume[tuple(points.T)])
    assert moved.shape == there.sequence(SHAPE)
    np.testing.assert_array_equal(back.array(moved), volume)
    np.testing.assert_allclose(back.vox(moved_points, moved.shape), points)


@pytest.mark.parametrize("orientation", coords.ORIENTATIONS[::5])
def test_edge_um_and_voxel_index_move_alike(orientation: str) -> None:
    voxel = (50.0, 40.0, 20.0)
    points = np.random.default_rng(1).uniform(-1, 5, (20, 3))
    mapping = coords.axis_map(orientation)
    extent = tuple(n * v for n, v in zip(SHAPE, voxel, strict=True))
    by_um = mapping.edge_um(coords.vox_to_edge_um(points, voxel), extent)
    by_vox = coords.vox_to_edge_um(mapping.vox(points, SHAPE), mapping.sequence(voxel))
    np.testing.assert_allclose(by_um, by_vox)


def test_reorient_is_a_view_and_keeps_its_input() -> None:
    volume = np.zeros(SHAPE)
    coords.reorient(volume, "psl")[0, 0, 0] = 7
    assert volume[2, 0, 4] == 7
    points = np.ones((2, 3))
    coords.axis_map("psl").vox(points, SHAPE)
    assert (points == 1).all()


def test_um_applies_scale_and_translation() -> None:
    um = coords.vox_to_um([[0, 0, 0], [1, 2, 3]], (5, 2, 2), (10, 20, 30))
    np.testing.assert_array_equal(um, [[10, 20, 30], [15, 24, 36]])
    np.testing.assert_array_equal(coords.um_to_vox(um, (5, 2, 2), (10, 20, 30)), [[0, 0, 0], [1, 2, 3]])


def test_atlas_um_do_not_depend_on_the_resolution() -> None:
    # The centre of 50 um voxel 0 is the corner between the 25 um voxels 0 and 1.
    assert coords.vox_to_edge_um([[0, 0, 0]], (50,) * 3)[0, 0] == 25.0
    assert coords.edge_um_to_vox([[25.0] * 3], (25,) * 3)[0, 0] == 0.5


def test_index_of_atlas_points() -> None:
    points = [[0, 0, 0], [49.999, 50, 99.9], [-0.001, 10, 10], [100, 10, 10], [np.nan, 1, 1], [np.inf, 1, 1]]
    index, inside = coords.atlas_um_to_index(points, (50, 50, 50), (2, 2, 2))
    assert inside.tolist() == [True, True, False, False, False, False]
    assert index[:2].tolist() == [[0, 0, 0], [0, 1, 1]]


def test_mm_round_trip_and_empty_points() -> None:
    np.testing.assert_allclose(coords.mm_to_edge_um(coords.edge_um_to_mm([[1, 2, 3]])), [[1, 2, 3]])
    assert coords.vox_to_um([], (1, 1, 1)).shape == (0, 3)
    with pytest.raises(UsageError, match=r"\(N, 3\)"):
        coords.vox_to_um([[1, 2]], (1, 1, 1))


QUICK = settings(max_examples=60, deadline=None, derandomize=True)
LETTERS = st.sampled_from(coords.ORIENTATIONS)
NUMBERS = st.tuples(*[st.floats(-1e5, 1e5)] * 3)
VOXELS = st.tuples(*[st.floats(0.05, 200)] * 3)


@QUICK
@given(NUMBERS, VOXELS, NUMBERS)
def test_every_frame_and_back(point, voxel, origin):
    back = coords.um_to_vox(coords.vox_to_um([point], voxel, origin), voxel, origin)
    np.testing.assert_allclose(back, [point], atol=1e-6 * (1 + np.abs(origin).max() / min(voxel)))
    edge = coords.vox_to_edge_um([point], voxel)
    np.testing.assert_allclose(coords.edge_um_to_vox(edge, voxel), [point], rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(coords.mm_to_edge_um(coords.edge_um_to_mm(edge)), edge, rtol=1e-12)


@QUICK
@given(LETTERS, LETTERS, st.tuples(*[st.integers(1, 6)] * 3), st.integers(0, 2**31))
def test_a_voxel_goes_where_its_value_goes(source, target, shape, seed):
    """Array and points are turned by one rule, and turning back undoes it."""
    image = np.random.default_rng(seed).permutation(int(np.prod(shape))).reshape(shape)
    turned = coords.reorient(image, source, target)
    np.testing.assert_array_equal(coords.reorient(turned, target, source), image)
    places = np.argwhere(image >= 0)
    moved = np.rint(coords.axis_map(source, target).vox(places, shape)).astype(int)
    np.testing.assert_array_equal(turned[tuple(moved.T)], image[tuple(places.T)])


@QUICK
@given(LETTERS, LETTERS, LETTERS)
def test_turns_follow_one_another(first, second, third):
    a, b, whole = (
        coords.axis_map(*pair).matrix for pair in ((first, second), (second, third), (first, third))
    )
    np.testing.assert_array_equal(b @ a, whole)
    assert abs(np.linalg.det(whole)) == 1


@QUICK
@given(st.text(max_size=5))
def test_any_text_is_an_orientation_or_refused(text):
    try:
        letters = coords.parse_orientation(text)
    except UsageError:
        return
    assert letters in coords.ORIENTATIONS


@QUICK
@given(st.tuples(*[st.integers(1, 30)] * 3), VOXELS, st.integers(0, 2**31))
def test_the_centre_of_an_atlas_voxel_is_in_it(shape, resolution, seed):
    index = np.random.default_rng(seed).integers(0, shape, (20, 3))
    found, inside = coords.atlas_um_to_index(coords.vox_to_edge_um(index, resolution), resolution, shape)
    assert inside.all()
    np.testing.assert_array_equal(found, index)
