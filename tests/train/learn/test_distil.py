"""A smaller network from a larger one: what is kept, and that it learns the larger one's answer."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from brainmap.errors import UsageError  # noqa: E402
from brainmap.train.learn.centernet import CenterNet, CenterNetConfig  # noqa: E402
from brainmap.train.learn.distil import distillation_loss, narrowed  # noqa: E402


def teacher(stride: int = 1, dead: int = 0) -> CenterNet:
    """A network with random weights whose first `dead` channels of every layer give nothing."""
    torch.manual_seed(1)
    model = CenterNet(CenterNetConfig(5, stride, (8, 12, 16)))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.running_mean, 0, 0.1)
            module.weight.data[:dead] = 0
            module.bias.data[:dead] = 0
    return model.eval()


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_channels_that_give_nothing_are_left_out(stride: int) -> None:
    large = teacher(stride, dead=4)
    small = narrowed(large, (4, 8, 12)).eval()
    image = torch.randn(2, 5, 32, 48)
    with torch.no_grad():
        for answer, expected in zip(small(image), large(image), strict=True):
            torch.testing.assert_close(answer, expected)


@pytest.mark.parametrize("widths", [(8, 12), (8, 12, 24)])
def test_only_narrower(widths: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="give 3 numbers, none above"):
        narrowed(teacher(), widths)


def test_it_agrees_with_itself() -> None:
    large = teacher()
    loss, parts = distillation_loss(large, large, torch.randn(2, 5, 32, 32))
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert set(parts) == {"heat", "offset"}


def test_it_learns_the_larger_ones_answer() -> None:
    large, image = teacher(), torch.randn(4, 5, 32, 32)
    small = narrowed(large, (4, 8, 12)).train()
    optimiser = torch.optim.AdamW(small.parameters(), 5e-3)
    before = after = 0.0
    for step in range(60):
        loss, _ = distillation_loss(small, large, image)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        before, after = (loss.item(), after) if step == 0 else (before, loss.item())
    assert after < 0.3 * before
