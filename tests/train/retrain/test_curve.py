"""The learning curve says that clicks help where they do, and that they do not where they do not."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from brainmap.train.judge.predict import TilePoints  # noqa: E402
from brainmap.train.learn.centernet import CenterNet, CenterNetConfig  # noqa: E402
from brainmap.train.learn.samples import GridSettings  # noqa: E402
from brainmap.train.retrain import curve as module  # noqa: E402
from brainmap.train.retrain.curve import LearningCurve, fit_curve, peak_features  # noqa: E402

SLICES, EACH = 16, 60


def detections(informative: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Detections of sixteen slices; whether one is right is spread over so many of forty features."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((SLICES * EACH, 41))
    hidden = features[:, 1 : 1 + informative].sum(axis=1) / np.sqrt(max(1, informative))
    odds = 3.0 * hidden if informative else 3.0 * features[:, 0]
    correct = rng.random(len(features)) < 1 / (1 + np.exp(-odds))
    group = np.repeat(np.arange(SLICES), EACH)
    return features, correct, group, np.bincount(group[correct], minlength=SLICES)


def test_what_takes_many_clicks_to_learn_asks_for_more() -> None:
    found = fit_curve(*detections(30), splits=12, seed=0)
    assert found is not None
    assert found.slices == [0, 1, 2, 4, 8, 11]
    assert found.f1[-1] > found.f1[1] + 0.05 > found.f1[0]
    assert found.gain > 0.005
    assert found.gain_low <= found.gain <= found.gain_high
    assert "help" in str(found)
    # What the curve promises is about what as many slices again bring.
    features, correct, group, cells = (np.concatenate([a, b]) for a, b in zip(
        detections(30), detections(30, 1), strict=True))  # fmt: skip
    group[SLICES * EACH :] += SLICES
    more = fit_curve(features, correct, group, cells, splits=12, seed=0)
    assert more is not None
    gained = np.interp(22, more.slices, more.f1) - np.interp(11, more.slices, more.f1)
    assert found.gain == pytest.approx(gained, abs=0.02)


def test_where_the_network_knows_it_all_nothing_is_promised() -> None:
    found = fit_curve(*detections(0), splits=12, seed=0)
    assert found is not None
    assert found.f1[0] > found.f1[1]
    assert found.gain < 0.03
    flat = LearningCurve([1, 2], [0.8, 0.8], [0.8, 0.8], [0.8, 0.8], 4, 0.001, -0.002, 0.004)
    assert "not expected to help" in str(flat)
    assert "will help" in str(LearningCurve([1], [0.8], [0.8], [0.8], 4, 0.03, 0.02, 0.04))
    assert "may help" in str(LearningCurve([1], [0.8], [0.8], [0.8], 4, 0.01, -0.02, 0.04))


def test_without_cells_there_is_no_curve() -> None:
    features, _, group, cells = detections(0)
    assert fit_curve(features, np.zeros(len(features), bool), group, 0 * cells, splits=3, seed=0) is None


def test_features_are_those_of_the_whole_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Computed in pieces they are what the network computes of the whole, wherever a peak lies."""
    torch.manual_seed(0)
    network = CenterNet(CenterNetConfig(slices=3, widths=(8, 12))).eval()
    rng = np.random.default_rng(0)
    image = rng.random((150, 170)).astype(np.float32)

    tiles = SimpleNamespace(columns={"voxel_um": np.array([[4.0, 2.0, 2.0]])}, image=lambda index: image)
    xy = rng.uniform(0, 149, (40, 2))
    none = np.zeros(40)
    found = TilePoints(np.zeros(40, np.int64), xy[:, 0], xy[:, 1], none.astype(np.float32), none)
    whole = peak_features(network, tiles, found, GridSettings(), 10.0)  # type: ignore[arg-type]
    monkeypatch.setattr(module, "_PIECE", 64)
    pieces = peak_features(network, tiles, found, GridSettings(), 10.0)  # type: ignore[arg-type]
    assert whole.shape == (40, 8)
    assert whole.std() > 0
    np.testing.assert_allclose(pieces, whole, atol=1e-5)


def test_slices_without_a_peak_are_no_failure() -> None:
    features, correct, group, cells = detections(30)
    own = group == 0
    found = fit_curve(features[own], correct[own], group[own], cells, splits=6, seed=0)
    assert found is None or np.isfinite(found.f1[0])
