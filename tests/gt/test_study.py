"""The study's candidates and heat map, by the letter of methods.md 4."""

from __future__ import annotations

import numpy as np
import pytest

from brainmap.errors import DataError
from brainmap.gt.ability import click_weights
from brainmap.gt.aggregate import aggregate_clicks
from brainmap.gt.candidates import merge_repeats, study_candidates
from brainmap.gt.clicks import Clicks
from brainmap.gt.heatmap import confidence_at, heat_map
from brainmap.gt.settings import GtSettings

STUDY = GtSettings(method="study")


def candidates(points, workers=None):
    xy = np.array(points, float).reshape(-1, 2)
    return study_candidates(xy, np.arange(len(xy)) if workers is None else np.array(workers), STUDY)


@pytest.mark.parametrize(
    ("points", "n"),
    [
        ([], 0),
        ([(5, 5)], 1),
        ([(5, 5), (7, 5)], 1),
        ([(5, 5), (90, 5)], 2),
        ([(5, 5), (7, 5), (6, 6)], 1),
        ([(5, 5), (7, 5), (90, 90)], 2),
        ([(5, 5), (50, 50), (90, 90)], 3),
    ],
)
def test_few_clicks(points, n):
    centres, label = candidates(points)
    assert len(centres) == n and set(label.tolist()) == set(range(n))


def test_one_cell_on_a_tile_is_one_candidate():
    rng = np.random.default_rng(0)
    centres, label = candidates(rng.normal(50, 1.5, (20, 2)))
    assert len(centres) == 1 and (label == 0).all()
    assert centres[0] == pytest.approx([50, 50], abs=1.5)


def test_one_cell_and_far_strays():
    rng = np.random.default_rng(0)
    _, label = candidates(np.r_[rng.normal(50, 1, (20, 2)), [[200, 10], [10, 300]]])
    assert np.bincount(label).max() >= 15
    # The strays are candidates of one click.
    assert label[20] != label[21] and (np.bincount(label)[label[20:]] == 1).all()


def test_two_touching_cells_are_split_by_clicks_per_worker():
    rng = np.random.default_rng(1)
    a, b = rng.normal((50, 50), 1, (15, 2)), rng.normal((56, 50), 1, (15, 2))
    centres, _ = candidates(np.r_[a, b], np.r_[np.arange(15), np.arange(15)])
    assert len(centres) == 2
    assert sorted(centres[:, 0]) == pytest.approx([50, 56], abs=1)


def test_a_workers_repeats_are_one_click_and_another_workers_are_not():
    xy = np.array([[10, 10], [11, 10], [10.5, 10], [30, 30]], float)
    merged, who, index = merge_repeats(xy, np.array([0, 0, 1, 0]), 2.0)
    assert len(merged) == 3 and index[0] == index[1] != index[2]
    assert merged[index[0]] == pytest.approx([10.5, 10]) and who[index[2]] == 1


def test_heat_map_of_full_agreement():
    xy = np.full((10, 2), 20.0)
    heat = heat_map(xy, np.full(10, 3.0), 30.0, (40, 41))
    assert heat.dtype == np.float32 and heat.shape == (40, 41)
    assert heat[20, 20] == pytest.approx(1 - np.exp(-6), abs=1e-6)  # 0.9975
    assert heat[20, 22] == pytest.approx(1 - np.exp(-6 * np.exp(-0.5)), abs=1e-6)
    assert heat[20, 25] > 0 and heat[20, 26] == 0  # cut at 2.5 sigma = 5 px


def test_heat_map_equals_a_direct_sum():
    rng = np.random.default_rng(3)
    xy, weight = rng.uniform(-0.5, 30, (40, 2)), rng.normal(1, 1, 40)
    y, x = np.mgrid[:31, :30]
    total = np.zeros((31, 30))
    for (u, v), w in zip(xy, weight, strict=True):
        square = (x - u) ** 2 + (y - v) ** 2
        total += np.where(square <= 25, w * np.exp(-square / 8), 0)
    expected = 1 - np.exp(-6 * np.maximum(total, 0) / 20.0)
    np.testing.assert_allclose(heat_map(xy, weight, 20.0, (31, 30)), expected, atol=1e-6)


@pytest.mark.parametrize("total", [0.0, -3.0, np.nan])
def test_no_total_weight_is_a_map_of_zeros(total):
    assert (heat_map(np.ones((2, 2)), np.ones(2), total, (5, 5)) == 0).all()


def test_confidence_is_the_maximum_within_3_by_3():
    heat = np.zeros((9, 9), np.float32)
    heat[4, 5] = 0.7
    points = np.array([[4.2, 3.6], [6, 6], [0, 0], [5, 4]])
    assert confidence_at(heat, points) == pytest.approx([0.7, 0, 0, 0.7])


def crowd(qc_missing=()):
    ids, workers, x, y = [], [], [], []
    rng = np.random.default_rng(5)
    for image in ("q1", "q2", "a"):
        for worker in range(6):
            if (image, worker) in qc_missing:
                continue
            for cx, cy in ((20, 20), (60, 30), (40, 80)):
                if rng.random() < 0.85:
                    ids.append(image)
                    workers.append(f"w{worker}")
                    x.append(cx + rng.normal())
                    y.append(cy + rng.normal())
    return Clicks.build(ids, workers, x, y, sizes=dict.fromkeys(("q1", "q2", "a"), (100, 100)))


def test_who_has_not_finished_the_qc_images_is_left_out():
    clicks = crowd(qc_missing={("q2", 4)})
    consensus = aggregate_clicks(clicks, STUDY, qc=["q1", "q2"])
    table = consensus.workers
    assert table.qc_complete.tolist() == [True, True, True, True, False, True]
    assert np.isnan(table.sensitivity[4]) and np.isfinite(np.delete(table.weight_click, 4)).all()
    without = aggregate_clicks(clicks.without_workers({"w4"}), STUDY, qc=["q1", "q2"])
    for one, two in zip(consensus.images, without.images, strict=True):
        np.testing.assert_allclose(one.posterior, two.posterior)
        assert one.total_weight == pytest.approx(two.total_weight)


def test_nobody_finished_qc():
    clicks = Clicks.build(["q1", "q2"], ["v", "w"], [1, 2], [1, 2])
    with pytest.raises(DataError, match="no worker finished all QC images"):
        aggregate_clicks(clicks, STUDY, qc=["q1", "q2"])


def test_the_cells_are_found():
    consensus = aggregate_clicks(crowd(), STUDY)
    for image in consensus.images:
        many = image.xy[image.n_workers >= 2]
        assert sorted(many[:, 0]) == pytest.approx([20, 40, 60], abs=2)
        assert (image.n_workers <= 6).all() and (image.n_workers <= image.n_clicks).all()


def test_where_candidates_are_false_the_weights_are_the_ems():
    rng = np.random.default_rng(8)
    clicks = crowd()
    ids, workers = np.array(clicks.image_ids, object), np.array(clicks.worker_ids, object)
    strays = rng.uniform(0, 99, (30, 2))
    noisy = Clicks.build(
        np.r_[ids[clicks.image], ids[np.arange(30) % 3]],
        np.r_[workers[clicks.worker], workers[np.arange(30) % 5]],
        np.r_[clicks.xy[:, 0], strays[:, 0]], np.r_[clicks.xy[:, 1], strays[:, 1]],
        sizes=dict.fromkeys(clicks.image_ids, (100, 100)),
    )  # fmt: skip
    table = aggregate_clicks(noisy, STUDY).workers
    expected = click_weights(table.sensitivity, table.specificity)
    np.testing.assert_allclose(table.weight_click, expected[0])
    assert not (table.specificity == STUDY.start).any()
    assert table.specificity[5] == pytest.approx(1)  # no stray is his
