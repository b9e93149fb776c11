"""The default method: simulated crowds with known truth, and the real crowd set."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from brainmap.gt.aggregate import aggregate_clicks
from brainmap.gt.clicks import Clicks, read_clicks
from brainmap.gt.compare import calibration_error
from brainmap.gt.jitter import fit_scatter
from brainmap.gt.settings import GtSettings
from brainmap.gt.simulate import Simulation, simulate
from brainmap.points.matching import match_points, score


def f1(images, truth, tolerance=3.0):
    counts = np.zeros(3, int)
    for image, true in zip(images, truth, strict=True):
        cells = image.xy[image.posterior >= 0.5]
        counts += len(match_points(cells, true, tolerance)), len(cells), len(true)
    return score(*counts.tolist()).f1


@pytest.fixture(scope="module")
def crowd():
    return simulate(Simulation(n_images=12, size=300, n_cells=30, n_sites=30), 7)


@pytest.fixture(scope="module")
def consensus(crowd):
    return aggregate_clicks(crowd.clicks, GtSettings())


def test_better_than_the_study_on_a_crowd_like_the_studys(crowd, consensus):
    study = aggregate_clicks(crowd.clicks, GtSettings(method="study"))
    assert f1(consensus.images, crowd.truth) > max(0.9, f1(study.images, crowd.truth))


def test_abilities_are_recovered(crowd, consensus):
    honest = ~crowd.spammer
    table = consensus.workers
    assert np.abs(table.sensitivity - crowd.sensitivity)[honest].mean() < 0.05
    assert np.abs(table.specificity - crowd.specificity)[honest].mean() < 0.05
    assert np.abs(table.weight_click[crowd.spammer]).max() < 0.5 < 2 < np.median(table.weight_click[honest])


def test_a_shifted_worker_is_as_good_as_his_eyes(crowd, consensus):
    (row,) = np.flatnonzero(crowd.shifted)
    assert consensus.workers.sensitivity[row] == pytest.approx(crowd.sensitivity[row], abs=0.1)
    bias = consensus.details["worker_bias_px"][crowd.clicks.worker_ids[row]]
    assert np.hypot(*bias) == pytest.approx(3.0, abs=1.2)


def test_posteriors_are_calibrated(crowd, consensus):
    hits = []
    for image, true in zip(consensus.images, crowd.truth, strict=True):
        hit = np.zeros(len(image.xy))
        hit[match_points(image.xy, true, 3.0).index_a] = 1
        hits.append(hit)
    posterior = np.concatenate([i.posterior for i in consensus.images])
    assert calibration_error(posterior, np.concatenate(hits)) < 0.05


def test_a_worker_on_the_wrong_image_is_void_there():
    crowd = simulate(
        Simulation(
            n_images=4, size=200, n_cells=20, n_sites=4, n_workers=10, missing=0, spammers=0, shifted=0
        )
    )
    clicks = crowd.clicks
    worker, image = 5, 2
    xy = clicks.xy.copy()
    rows = (clicks.worker == worker) & (clicks.image == image)
    # He clicks what he saw somewhere else: his clicks, turned by a quarter.
    xy[rows] = np.stack([xy[rows, 1], 199 - xy[rows, 0]], axis=1)
    ids, workers = np.array(clicks.image_ids, object), np.array(clicks.worker_ids, object)
    turned = Clicks.build(
        ids[clicks.image],
        workers[clicks.worker],
        xy[:, 0],
        xy[:, 1],
        sizes=dict.fromkeys(clicks.image_ids, (200, 200)),
    )
    consensus = aggregate_clicks(turned, GtSettings())
    assert 1 <= consensus.details["void_image_worker_pairs"] <= 3
    assert f1(consensus.images, crowd.truth) > 0.9


@pytest.mark.parametrize("jitter", [0.8, 2.0, 5.0])
def test_scatter_is_measured(jitter):
    crowd = simulate(
        replace(
            Simulation(),
            n_images=4,
            n_workers=8,
            spammers=0,
            shifted=0,
            jitter=jitter,
            bias=0.0,
            n_cells=25,
            spacing=40.0,
            n_sites=0,
            jitter_spread=0.0,
        )
    )
    assert fit_scatter(crowd.clicks).width == pytest.approx(np.hypot(jitter, 0.29), rel=0.2)


def test_the_real_crowd(brainmap_data):
    clicks = read_clicks(brainmap_data / "crowd" / "clicks.csv")
    truth = np.genfromtxt(
        brainmap_data / "crowd" / "truth.csv", delimiter=",", names=True, dtype=None, encoding="utf-8"
    )
    for prefix, least in (("synth_cells", 0.86), ("snr", 0.785)):
        names = [n for n in clicks.image_ids if n.startswith(prefix)]
        use = np.isin(np.array(clicks.image_ids)[clicks.image], names)
        ids, workers = np.array(clicks.image_ids, object), np.array(clicks.worker_ids, object)
        part = Clicks.build(
            ids[clicks.image[use]],
            workers[clicks.worker[use]],
            clicks.xy[use, 0],
            clicks.xy[use, 1],
            sizes=dict.fromkeys(names, (300, 300)),
        )
        true = [
            np.stack([truth["x"], truth["y"]], 1)[truth["image_id"] == n].astype(float)
            for n in part.image_ids
        ]
        assert f1(aggregate_clicks(part, GtSettings()).images, true) > least
