"""The EM: equal to SimpleITK STAPLE and crowd-kit Dawid-Skene (known_answers.json), and never infinite."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from brainmap.errors import DataError
from brainmap.gt.ability import click_weights, dawid_skene, faced_false, votes_from_matrix

CASES = json.loads((Path(__file__).parent / "known_answers.json").read_text())["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{len(c['d'])}x{len(c['d'][0])}")
def test_held_prior_equals_staple(case):
    fit = dawid_skene(case["d"], prior="mean", start=0.99999, tolerance=1e-12, max_iterations=10000)
    np.testing.assert_allclose(fit.sensitivity, case["staple"]["sensitivity"], atol=1e-3)
    np.testing.assert_allclose(fit.specificity, case["staple"]["specificity"], atol=1e-3)
    np.testing.assert_allclose(fit.posterior, case["staple"]["posterior"], atol=1e-3)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{len(c['d'])}x{len(c['d'][0])}")
def test_free_prior_equals_crowd_kit(case):
    d = np.array(case["d"])
    fit = dawid_skene(d, start_posterior=d.mean(axis=1), tolerance=1e-12, max_iterations=2000)
    np.testing.assert_allclose(fit.posterior, case["dawid_skene"]["posterior"], atol=1e-3)
    assert fit.prior == pytest.approx(case["dawid_skene"]["prior"], abs=1e-3)


@pytest.mark.parametrize("vote", [0.0, 1.0])
def test_30000_workers_on_one_item_stay_finite(vote):
    fit = dawid_skene(np.full((1, 30_000), vote))
    assert np.isfinite(fit.posterior).all() and np.isfinite(fit.sensitivity).all()
    assert (fit.posterior[0] > 0.5) == (vote == 1)
    assert np.isfinite(click_weights(fit.sensitivity, fit.specificity)).all()


def test_30000_workers_who_split_two_to_one():
    d = np.zeros((2, 30_000))
    d[0, :20_000] = 1
    d[1, 20_000:] = 1
    fit = dawid_skene(d)
    assert np.isfinite(fit.posterior).all()
    assert fit.posterior[0] > 0.99 > 0.01 > fit.posterior[1]


def test_missing_is_not_no_click():
    rng = np.random.default_rng(0)
    truth = rng.random(300) < 0.4
    d = (rng.random((300, 6)) < np.where(truth, 0.85, 0.05)[:, None]).astype(float)
    d[:150, 0] = np.nan
    fit, taken_as_no = dawid_skene(d), dawid_skene(np.nan_to_num(d, nan=0.0))
    assert fit.sensitivity[0] == pytest.approx(0.85, abs=0.08)
    assert taken_as_no.sensitivity[0] < 0.6
    assert ((fit.posterior >= 0.5) == truth).mean() > 0.98


def test_nobody_ever_clicked_keeps_the_start_where_nothing_is_known():
    fit = dawid_skene(np.zeros((3, 2)), prior=0.0)
    assert fit.sensitivity == pytest.approx([0.7, 0.7])
    assert (fit.posterior == pytest.approx(0.0, abs=1e-6)) and fit.specificity == pytest.approx([1, 1])


def test_who_was_faced_with_something_false():
    votes = votes_from_matrix([[1, 1, np.nan], [1, 0, np.nan], [np.nan, np.nan, 1]])
    assert faced_false(votes, np.array([0.9, 0.4, 0.8])).tolist() == [True, True, False]
    assert not faced_false(votes, np.array([0.9, 0.5, 0.8])).any()


def test_the_em_itself_cannot_tell_the_specificity_of_those_who_agree():
    fit = dawid_skene(np.ones((6, 5)))
    assert fit.sensitivity == pytest.approx(np.ones(5)) and (fit.posterior > 0.98).all()
    assert not faced_false(votes_from_matrix(np.ones((6, 5))), fit.posterior).any()


def test_no_items():
    fit = dawid_skene(np.zeros((0, 3)))
    assert len(fit.posterior) == 0 and fit.sensitivity == pytest.approx([0.7] * 3)


def test_weights_are_the_studys():
    click, none = click_weights(np.array([0.568]), np.array([0.966]))
    assert click[0] == pytest.approx(np.log(0.568 / 0.034))
    assert none[0] == pytest.approx(np.log(0.432 / 0.966))


@pytest.mark.parametrize("bad", [[[0, 2]], [0, 1], [[0.5, 1]]])
def test_only_votes(bad):
    with pytest.raises(DataError, match="0, 1 or NaN"):
        dawid_skene(bad)
