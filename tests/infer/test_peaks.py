"""Peaks, refinement and suppression against plain loops over the whole heat map."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from brainmap.infer.peaks import (
    PLAIN_FACE,
    FaceWeights,
    Heat,
    face_at,
    find_peaks,
    lowest_on_face,
    margin_cells,
    share_cells,
    suppress,
    weigh_face,
)


def oracle(logit: np.ndarray, lowest: float) -> set[tuple[int, int, int]]:
    """3 x 3 x 3 local maxima; of equal neighbours the first wins."""
    found = set()
    for place in itertools.product(*map(range, logit.shape)):
        value = logit[place]
        if not np.isfinite(value) or value < lowest:
            continue
        best = True
        for step in itertools.product((-1, 0, 1), repeat=3):
            other = tuple(a + b for a, b in zip(place, step, strict=True))
            if other == place or any(not 0 <= a < n for a, n in zip(other, logit.shape, strict=True)):
                continue
            best &= value > logit[other] if other < place else value >= logit[other]
        if best:
            found.add(place)
    return found


def all_peaks(logit: np.ndarray, lowest: float) -> set[tuple[int, int, int]]:
    found = set()
    offset = np.zeros((2, *logit.shape[1:]), np.float32)
    for k in range(len(logit)):
        below = logit[k - 1] if k else None
        above = logit[k + 1] if k + 1 < len(logit) else None
        peaks = find_peaks(below, Heat.of(logit[k], offset, lowest), above)
        found |= {(k, int(r), int(c)) for r, c in zip(peaks["row"], peaks["column"], strict=True)}
    return found


@pytest.mark.parametrize("levels", [1000, 6, 2])
@pytest.mark.parametrize("lowest", [-np.inf, 0.0])
def test_peaks_equal_the_plain_definition(levels: int, lowest: float) -> None:
    rng = np.random.default_rng(levels)
    logit = (rng.integers(0, levels, (6, 17, 19)) - levels // 2).astype(np.float32)
    logit[rng.random(logit.shape) < 0.1] = -np.inf
    assert all_peaks(logit, lowest) == oracle(logit, lowest)


NO_OFFSET = np.zeros((2, 21, 21), np.float32)


def heat_of(place: tuple[float, float, float], shape: tuple[int, int, int] = (5, 21, 21)) -> np.ndarray:
    axes = np.meshgrid(*map(np.arange, shape), indexing="ij")
    distance = sum(((a - p) / s) ** 2 for a, p, s in zip(axes, place, (0.8, 1.5, 1.5), strict=True))
    heat = np.clip(0.97 * np.exp(-distance / 2), 1e-6, None)
    return np.log(heat / (1 - heat)).astype(np.float32)


@pytest.mark.parametrize("place", [(2.0, 10.0, 10.0), (2.3, 10.2, 9.6), (1.6, 9.5, 10.5), (2.45, 8.0, 11.49)])
def test_parabola_finds_the_centre_of_a_gaussian(place: tuple[float, float, float]) -> None:
    logit = heat_of(place)
    k = round(place[0])
    peaks = find_peaks(logit[k - 1], Heat.of(logit[k], NO_OFFSET, 0.0), logit[k + 1], "parabola")
    assert len(peaks["row"]) == 1
    found = (k + peaks["dz"][0], peaks["row"][0] + peaks["dy"][0], peaks["column"][0] + peaks["dx"][0])
    np.testing.assert_allclose(found, place, atol=0.02)


def test_offset_head_moves_the_peak_and_is_bounded() -> None:
    logit = heat_of((2, 10, 10))
    offset = np.zeros((2, 21, 21), np.float32)
    offset[:, 10, 10] = 0.25, -7.0
    peaks = find_peaks(logit[1], Heat.of(logit[2], offset, 0.0), logit[3])
    assert (peaks["dy"][0], peaks["dx"][0]) == (0.25, -1.0)


@pytest.mark.parametrize("k", [0, 4])
def test_a_cell_cut_by_a_face_stays_in_the_last_slice(k: int) -> None:
    logit = heat_of((k, 10, 10))
    sides = [logit[i] if 0 <= i < 5 else None for i in (k - 1, k + 1)]
    peaks = find_peaks(sides[0], Heat.of(logit[k], NO_OFFSET, 0.0), sides[1])
    assert peaks["dz"].tolist() == [0.0]


def test_a_peak_on_a_face_is_weighed_with_the_slice_inside() -> None:
    peaks = {
        "logit": np.float32([1, 1, 2]),
        "below": np.float32([-3, -np.inf, 0]),
        "above": np.float32([0, -np.inf, 9]),
    }
    weights = (-0.5, 0.5, 0.25, 0.0)
    assert weigh_face(peaks, 0, 5, weights).tolist() == [0.0, 1.0, 2.75]
    assert weigh_face(peaks, 4, 5, weights).tolist() == [-0.75, 1.0, 0.5]
    # Inside the volume, in a slice that stands alone and for a detector without the rule nothing changes.
    for k, groups, rule in ((2, 5, weights), (0, 1, weights), (0, 5, PLAIN_FACE)):
        assert weigh_face(peaks, k, groups, rule).tolist() == [1.0, 1.0, 2.0]


def test_slices_far_apart_do_not_share_cells() -> None:
    assert share_cells(5.0, 10.0)
    assert not share_cells(8.0, 10.0)
    assert share_cells(8.0, 15.0)
    weights = (-0.5, 0.5, 0.25, 2.0)
    assert face_at(weights, 8.0, 10.0) == PLAIN_FACE
    assert face_at(weights, 4.0, 10.0) == pytest.approx((0.3, 0.5, 0.25, 0.0))


@pytest.mark.parametrize(
    "weights", [PLAIN_FACE, (-0.2, 0.6, 0.2, 0), (0.4, 0.3, 0.5, 0), (-1.0, 2.0, 0.0, 0)]
)
def test_no_peak_on_a_face_is_left_out_too_early(weights: FaceWeights) -> None:
    rng = np.random.default_rng(0)
    logit = rng.uniform(-6, 6, 2000).astype(np.float32)
    # A peak is at least as high as what lies beside it.
    inside = (logit - rng.exponential(1.0, 2000)).astype(np.float32)
    weighed = weigh_face({"logit": logit, "above": inside}, 0, 9, weights)
    for lowest in (-2.0, 0.0, 1.5):
        assert logit[weighed >= lowest].min() >= lowest_on_face(lowest, weights) - 1e-5


def test_rim_cells_can_be_peaks() -> None:
    logit = np.full((3, 4, 4), -5, np.float32)
    logit[1, 0, 3] = 2
    assert (1, 0, 3) in all_peaks(logit, 0.0)


def plain_suppress(place: np.ndarray, logit: np.ndarray, order: np.ndarray, separation: float) -> np.ndarray:
    keep = np.ones(len(place), bool)
    for i, j in itertools.permutations(range(len(place)), 2):
        near = np.linalg.norm(place[i] - place[j]) <= separation
        stronger = (-logit[j], *order[j]) < (-logit[i], *order[i])
        keep[i] &= not (near and stronger)
    return keep


def test_suppression_equals_the_plain_definition_in_any_order() -> None:
    rng = np.random.default_rng(0)
    place = rng.uniform(0, 40, (150, 3))
    logit = rng.integers(0, 5, 150).astype(np.float32)
    order = rng.permutation(150)[:, None] * np.ones((1, 3), int)
    keep = suppress(place, logit, order, 6.0)
    np.testing.assert_array_equal(keep, plain_suppress(place, logit, order, 6.0))
    mixed = rng.permutation(150)
    np.testing.assert_array_equal(suppress(place[mixed], logit[mixed], order[mixed], 6.0), keep[mixed])


def test_neighbours_beyond_the_separation_stay() -> None:
    place = np.array([[0.0, 0, 0], [0, 7.0, 0], [0, 0, 5.0]])
    keep = suppress(place, np.array([3.0, 2.0, 1.0]), np.arange(9).reshape(3, 3), 6.0)
    assert keep.tolist() == [True, True, False]
    assert suppress(np.zeros((0, 3)), np.zeros(0), np.zeros((0, 3), int), 6.0).tolist() == []


def test_margin_holds_all_that_can_decide_a_cell() -> None:
    # Two detections a separation apart, both moved by a full cell towards each other.
    in_plane, along_z = margin_cells(6.0, 2.0, 4.0)
    assert in_plane >= 6 / 2 + 2 + 1
    assert along_z >= int(6 / 4 + 1) + 1
