"""Scores are probabilities, also on tissue they were not fitted to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from brainmap.errors import DataError  # noqa: E402
from brainmap.gt.truth import GroundTruth  # noqa: E402
from brainmap.infer.detector import PLAIN_PROMINENCE, Detector  # noqa: E402
from brainmap.tiles.tiles import Tiles, write_tiles  # noqa: E402
from brainmap.train.judge.calibrate import (  # noqa: E402
    Judged,
    best_threshold,
    prominence_weights,
    rising_knots,
)
from brainmap.train.judge.calibrate_tiles import calibrate_on_tiles, tile_calibration  # noqa: E402
from brainmap.train.judge.predict import calibrated, predict_tiles  # noqa: E402
from brainmap.train.judge.scores import reliability  # noqa: E402


def _draw(
    n: int, seed: int, slope: float = 2.0, at: float = -0.5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits whose probability of being right is known; most are far below any threshold."""
    rng = np.random.default_rng(seed)
    logit = np.concatenate([rng.normal(-4, 0.5, n * 3 // 4), rng.normal(0, 1.5, n - n * 3 // 4)]).clip(-5)
    right = rng.random(n) < 1 / (1 + np.exp(-slope * (logit - at)))
    return logit.astype(np.float32), right, rng.integers(0, 6, n)


@pytest.mark.parametrize("n", [200, 1000, 20_000])
def test_probabilities_hold_on_new_data(n: int) -> None:
    logit, right, group = _draw(n, 0)
    result = tile_calibration(logit, right, group, int(right.sum()))
    new, truth, _ = _draw(40_000, 1)
    score = calibrated(new, result.knots)
    assert reliability(score, truth).ece < 0.03
    shown = score >= 0.05
    assert reliability(score[shown], truth[shown]).ece < 0.09
    assert result.ece < 0.05


def test_knots_are_fit_for_a_detector() -> None:
    logit, right, group = _draw(3000, 2)
    at, value = np.array(tile_calibration(logit, right, group, 500).knots).T
    assert (np.diff(at) > 0).all() and (np.diff(value) >= 0).all()
    assert value.min() >= 0 and value.max() <= 1
    assert at[0] <= logit.min() + 1e-3


def test_any_shape_is_followed_with_enough_data() -> None:
    rng = np.random.default_rng(3)
    logit = rng.uniform(-5, 5, 60_000).astype(np.float32)
    share = np.select([logit < -1, logit < 2], [0.02, 0.5], 0.95)
    right = rng.random(60_000) < share
    result = tile_calibration(logit, right, rng.integers(0, 10, 60_000), int(right.sum()))
    assert result.method == "isotonic"
    np.testing.assert_allclose(
        calibrated(np.array([-3.0, 0.5, 4.0]), result.knots), [0.02, 0.5, 0.95], atol=0.03
    )


def test_threshold_is_half_the_best_f1() -> None:
    logit, right, group = _draw(40_000, 4)
    result = tile_calibration(logit, right, group, int(right.sum()))
    score = calibrated(logit, result.knots)
    levels = np.linspace(0.05, 0.95, 91)
    f1 = [2 * right[score >= t].sum() / ((score >= t).sum() + right.sum()) for t in levels]
    assert result.expected_f1 == pytest.approx(max(f1), abs=0.01)
    assert result.threshold == pytest.approx(max(f1) / 2, abs=0.02)
    own = score >= result.threshold
    assert 2 * right[own].sum() / (own.sum() + right.sum()) > max(f1) - 0.005


def test_one_group_and_a_falling_curve() -> None:
    logit, right, _ = _draw(2000, 5)
    assert tile_calibration(logit, right, np.zeros(2000, int), 200).ece < 0.05
    _, value = np.array(tile_calibration(-logit, right, np.zeros(2000, int), 200).knots).T
    assert (np.diff(value) >= 0).all()


def test_nothing_to_calibrate_on() -> None:
    logit, _, group = _draw(100, 6)
    with pytest.raises(DataError, match="0 of 100"):
        tile_calibration(logit, np.zeros(100, bool), group, 50)
    with pytest.raises(DataError, match="100 of 100"):
        tile_calibration(logit, np.ones(100, bool), group, 50)


@pytest.fixture(scope="module")
def spotted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiles, GroundTruth]:
    """Three tiles of normalised intensity with soft discs, of which the truth knows two tiles."""
    rng = np.random.default_rng(7)
    rows, columns = np.mgrid[:160, :160]
    images, names, places = [], [], []
    for index in range(3):
        image = rng.normal(0.3, 0.04, (160, 160))
        for y in range(14, 160, 22):
            for x in range(14, 160, 22):
                yx = np.array([y, x]) + rng.uniform(-4, 4, 2)
                away = np.hypot(rows - yx[0], columns - yx[1])
                image += rng.uniform(0.0, 0.3) / (1 + np.exp((away - 2.3) / 0.5))
                names.append(f"t{index}")
                places.append(yx[::-1])
        images.append(image.clip(0, 1).astype(np.float32))
    ids = [f"t{i}" for i in range(3)]
    folder = tmp_path_factory.mktemp("tiles") / "tiles"
    tiles = write_tiles(
        folder, {"image_id": ids, "brain": ids, "z": [0] * 3, "voxel_um": [(4, 2, 2)] * 3}, images
    )
    known = np.array(names) != "t2"
    truth = GroundTruth.from_points(
        np.array(names)[known], np.array(places)[known], {"t0": (160, 160), "t1": (160, 160)}
    )
    return tiles, truth


def test_calibrate_a_detector_on_tiles(spotted: tuple[Tiles, GroundTruth]) -> None:
    tiles, truth = spotted
    detector = Detector.open("default")
    knots, threshold = calibrate_on_tiles(detector, tiles, truth)
    found = predict_tiles(detector, tiles).calibrated(knots)
    assert 0.05 < threshold < 0.9
    assert 30 < (found.score >= threshold).sum() < 200
    strange = GroundTruth.from_points([], np.zeros((0, 2)), {"other": (5, 5)})
    with pytest.raises(DataError, match="none of the 3 tiles"):
        calibrate_on_tiles(detector, tiles, strange)


def test_prominence_is_used_where_brains_differ_in_texture() -> None:
    rng = np.random.default_rng(0)

    def brain(texture: int) -> list[Judged]:
        """Cells of one look, and blobs of texture that the network likes the more there is of it."""
        right = np.arange(400 + texture) < 400
        logit = np.where(right, rng.normal(1, 0.7, len(right)), rng.normal(0.6, 0.7, len(right)))
        stands_out = np.where(right, rng.normal(2.8, 0.3, len(right)), rng.normal(1.2, 0.3, len(right)))
        prominence = np.sinh(stands_out).astype(np.float32)
        return [Judged(logit.astype(np.float32), right, 400, prominence=prominence)]

    clean, textured = brain(20), brain(3000)
    weight, enough = prominence_weights(clean, textured)
    assert weight >= 0.5
    lowered = [[j.lowered((weight, enough)) for j in group] for group in (clean, textured)]
    assert best_threshold(*lowered)[1] > best_threshold(clean, textured)[1] + 0.2
    assert all((a.logit <= b.logit).all() for (a,), (b,) in zip(lowered, (clean, textured), strict=True))
    blind = [
        [replace(j, prominence=np.full(len(j.logit), 50.0)) for j in group] for group in (clean, textured)
    ]
    assert prominence_weights(*blind) == PLAIN_PROMINENCE
    assert prominence_weights([Judged(clean[0].logit, clean[0].correct, 400)]) == PLAIN_PROMINENCE


def test_logits_nearer_than_a_thousandth_make_a_valid_curve() -> None:
    """A network that knows nothing gives every peak the same height."""
    for spread in (0.0, 1e-5, 1e-3):
        at = np.linspace(-4.595, -4.595 + spread, 25)
        knots = np.array(rising_knots(at, np.linspace(0.3, 0.2, 25)))
        assert len(knots) >= 2
        assert (np.diff(knots[:, 0]) > 0).all() and (np.diff(knots[:, 1]) >= 0).all()
