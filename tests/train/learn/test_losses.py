"""Losses against their formulas, written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from brainmap.train.learn.losses import (  # noqa: E402
    agreement_loss,
    centernet_loss,
    focal_loss,
    offset_loss,
    soft_map_loss,
)


def test_focal_loss_is_the_formula() -> None:
    rng = np.random.default_rng(0)
    logit = rng.normal(0, 2, (2, 1, 8, 8))
    target = rng.uniform(0, 0.9, logit.shape)
    target[0, 0, 2, 3] = target[1, 0, 5, 5] = 1
    score = 1 / (1 + np.exp(-logit))
    ones = target == 1
    expected = -((1 - score[ones]) ** 2 * np.log(score[ones])).sum()
    rest = ~ones
    expected -= ((1 - target[rest]) ** 4 * score[rest] ** 2 * np.log(1 - score[rest])).sum()
    got = focal_loss(*(torch.tensor(a) for a in (logit, target, np.ones_like(target))))
    assert float(got) == pytest.approx(expected / 2, rel=1e-6)


def test_without_a_centre_only_the_second_term_counts() -> None:
    logit = torch.zeros(1, 1, 4, 4)
    loss = focal_loss(logit, torch.zeros_like(logit), torch.ones_like(logit))
    assert float(loss) == pytest.approx(16 * 0.25 * np.log(2), rel=1e-6)


def test_what_has_no_weight_does_not_count() -> None:
    logit = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    weight = torch.zeros_like(logit)
    assert float(focal_loss(logit, torch.zeros_like(logit), weight)) == 0


def test_offsets_and_sizes_are_l1_at_centres() -> None:
    logit = torch.zeros(1, 1, 4, 4)
    offsets, sizes = torch.zeros(1, 2, 4, 4), torch.full((1, 2, 4, 4), 6.0)
    offsets[0, :, 1, 2] = torch.tensor([0.1, -0.3])
    index = torch.tensor([[0, 1, 2]])
    wanted = torch.tensor([[0.2, 0.1]])
    heat = torch.zeros_like(logit)
    heat[0, 0, 1, 2] = 1
    _, parts = centernet_loss((logit, offsets, sizes), heat, torch.ones_like(heat), index, wanted, 8.0)
    assert parts["offset"] == pytest.approx((0.1 + 0.4) / 2, rel=1e-5)
    assert parts["size"] == pytest.approx(2.0)


def test_a_batch_without_cells_has_a_gradient() -> None:
    logit = torch.zeros(1, 1, 4, 4, requires_grad=True)
    maps = torch.zeros(1, 2, 4, 4)
    none = torch.zeros((0, 3), dtype=torch.int64)
    heat = torch.zeros(1, 1, 4, 4)
    loss, _ = centernet_loss((logit, maps, maps), heat, torch.ones_like(heat), none, torch.zeros(0, 2), 8.0)
    loss.backward()
    assert torch.isfinite(logit.grad).all()


def test_soft_map_loss_is_the_formula() -> None:
    rng = np.random.default_rng(1)
    logit, target = rng.normal(0, 2, (2, 1, 6, 6)), rng.uniform(0, 1, (2, 1, 6, 6))
    trust = rng.choice([0.0, 0.5, 1.0], logit.shape)
    score = 1 / (1 + np.exp(-logit))
    entropy = -(target * np.log(score) + (1 - target) * np.log(1 - score))
    weight = (0.5 + (8.0 - 0.5) * target**2) * trust
    expected = (weight * entropy).sum() / (trust > 0).sum()
    got = soft_map_loss(*(torch.tensor(a) for a in (logit, target, trust)), 0.5, 8.0, 2.0)
    assert float(got) == pytest.approx(expected, rel=1e-9)


def test_soft_map_loss_is_least_at_the_target() -> None:
    target = torch.linspace(0.05, 0.95, 19).reshape(1, 1, 1, 19)
    logit = torch.logit(target).requires_grad_()
    soft_map_loss(logit, target, torch.ones_like(target), 1.0, 10.0, 1.0).backward()
    assert float(logit.grad.abs().max()) < 1e-6


def test_nothing_known_has_a_gradient_of_nothing() -> None:
    logit = torch.zeros(1, 1, 4, 4, requires_grad=True)
    soft_map_loss(logit, torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), 1.0, 10.0, 1.0).backward()
    assert float(logit.grad.abs().max()) == 0


def test_offsets_of_confident_cells_count_more() -> None:
    offsets = torch.zeros(1, 2, 4, 4)
    index = torch.tensor([[0, 1, 2], [0, 3, 3]])
    wanted = torch.tensor([[0.2, 0.4], [0.5, 0.5]])
    got = offset_loss(offsets, index, wanted, torch.tensor([0.75, 0.25]))
    assert float(got) == pytest.approx(0.75 * 0.3 + 0.25 * 0.5)
    none = offset_loss(offsets, index[:0], wanted[:0], torch.zeros(0))
    assert float(none) == 0


def test_agreement_is_the_divergence_of_two_heat_maps() -> None:
    rng = np.random.default_rng(0)
    mine, theirs = rng.normal(0, 2, (2, 3, 1, 4, 4))
    p, q = 1 / (1 + np.exp(-theirs)), 1 / (1 + np.exp(-mine))
    divergence = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    expected = (divergence.sum(axis=(1, 2, 3)) / (p.sum(axis=(1, 2, 3)) + 2)).mean()
    logit = torch.tensor(mine, requires_grad=True)
    loss = agreement_loss(logit, torch.tensor(theirs))
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    same = torch.tensor(theirs, requires_grad=True)
    agreement_loss(same, torch.tensor(theirs)).backward()
    assert agreement_loss(same, torch.tensor(theirs)).item() == pytest.approx(0, abs=1e-12)
    assert float(same.grad.abs().max()) == pytest.approx(0, abs=1e-12)
