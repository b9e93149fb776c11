"""Scores come from other folds, and the simpler detector is kept unless the other is clearly better."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from brainmap.tiles.tiles import Tiles  # noqa: E402
from brainmap.train.judge.predict import TilePoints  # noqa: E402
from brainmap.train.retrain.steps import (  # noqa: E402
    FINETUNED,
    RECALIBRATED,
    START,
    Crossed,
    choose,
    cross_calibrate,
)

SLICES, CELLS = 8, 20


@dataclass
class Data:
    """Tiles of eight slices with twenty cells each, 10 px apart along a line; four folds."""

    tiles: Tiles
    fold: np.ndarray
    cells: tuple[np.ndarray, np.ndarray]
    right: np.ndarray | None = None
    tolerance_px: float = 2.0

    def correct(self, found: TilePoints) -> np.ndarray:
        assert self.right is not None
        return self.right


@pytest.fixture
def data() -> Any:
    columns = {
        "image_id": np.array([f"t{i}" for i in range(SLICES)], object), "brain": np.array(["b"] * SLICES, object),
        "z": np.arange(SLICES), "height": np.full(SLICES, 400), "width": np.full(SLICES, 400),
    }  # fmt: skip
    tile = np.repeat(np.arange(SLICES), CELLS)
    xy = np.column_stack([np.tile(np.arange(CELLS) * 10.0, SLICES), np.full(SLICES * CELLS, 5.0)])
    return Data(Tiles(Path(), columns), np.arange(SLICES) % 4, (tile, xy))


def marks(hits: list[int], false: int = 5) -> Crossed:
    """So many hits in each slice, and false detections far away."""
    tile = np.concatenate([np.full(h + false, i) for i, h in enumerate(hits)])
    x = np.concatenate([np.arange(h + false) * 10.0 for h in hits])
    y = np.concatenate([np.where(np.arange(h + false) < h, 5.0, 300.0) for h in hits])
    score = np.ones(len(tile))
    return Crossed(TilePoints(tile, x, y, score.astype(np.float32), score), np.ones(len(tile), bool), None)


def test_a_clear_lead_is_taken_and_a_chance_one_is_not(data: Any) -> None:
    simple = marks([12, 14, 13, 12, 14, 13, 12, 14])
    better = choose({RECALIBRATED: simple, FINETUNED: marks([16] * SLICES)}, data, seed=0)
    assert better.chosen == FINETUNED
    assert better.f1[FINETUNED] == pytest.approx(2 * 16 / (16 + 5 + 20))
    lucky = choose({RECALIBRATED: simple, FINETUNED: marks([19, 14, 12, 11, 14, 13, 12, 14])}, data, seed=0)
    assert lucky.f1[FINETUNED] > lucky.f1[RECALIBRATED]
    assert lucky.chosen == RECALIBRATED
    worse = choose({RECALIBRATED: simple, FINETUNED: marks([8] * SLICES)}, data, seed=0)
    assert worse.chosen == RECALIBRATED


def test_the_start_is_compared_but_never_chosen(data: Any) -> None:
    found = choose(
        {START: marks([18] * SLICES), RECALIBRATED: marks([10] * SLICES), FINETUNED: marks([14] * SLICES)},
        data,
        0,
    )
    assert found.chosen == FINETUNED
    assert found.record()["f1"][START] > 0.8  # type: ignore[index]


def test_no_fold_is_scored_by_its_own_truth(data: Any) -> None:
    rng = np.random.default_rng(0)
    tile = np.repeat(np.arange(SLICES), 60)
    logit = rng.normal(0, 2, len(tile)).astype(np.float32)
    found = TilePoints(tile, logit * 0.0, logit * 0.0, logit, logit * 0.0)
    data.right = rng.random(len(tile)) < 1 / (1 + np.exp(-2.0 * logit))
    prior = tuple((float(a), float(1 / (1 + np.exp(-a)))) for a in np.linspace(-5, 5, 21))
    for curve in (None, prior):
        data.right = rng.random(len(tile)) < 1 / (1 + np.exp(-2.0 * logit))
        before = cross_calibrate(found, data, curve)
        own = data.fold[tile] == 0
        data.right[own] = ~data.right[own]
        after = cross_calibrate(found, data, curve)
        np.testing.assert_array_equal(after.found.score[own], before.found.score[own])
        np.testing.assert_array_equal(after.marked[own], before.marked[own])
        assert (after.found.score[~own] != before.found.score[~own]).any()
        assert before.calibration is not None
