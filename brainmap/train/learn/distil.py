"""A smaller network that answers as a larger one does.

The smaller one begins with the channels of the larger that carry most, and learns the larger one's heat map, the
whole of it, instead of the truth (Hinton et al. 2015, "Distilling the knowledge in a neural network"). So any
image teaches it, marked or not, and what the teacher doubts the student doubts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from brainmap.errors import UsageError
from brainmap.train.learn.centernet import CenterNet, CenterNetConfig
from brainmap.train.learn.losses import OFFSET_WEIGHT, agreement_loss

__all__ = ["distillation_loss", "narrowed"]


def narrowed(teacher: CenterNet, widths: tuple[int, ...]) -> CenterNet:
    """A network of fewer channels that starts from a larger one's.

    Of every layer the channels with the largest gain are kept: absolute scale of the batch normalisation times
    the norm of the kernel that makes the channel (Liu et al. 2017, "Network slimming").

    Parameters
    ----------
    teacher : CenterNet
    widths : tuple of int
        As `CenterNetConfig.widths`; as many as the teacher's, none larger.

    Raises
    ------
    UsageError
        If `widths` does not fit into the teacher's.
    """
    own = teacher.config.widths
    if len(widths) != len(own) or any(new > old for new, old in zip(widths, own, strict=True)):
        raise UsageError(f"widths is {list(widths)}; give {len(own)} numbers, none above {list(own)}")
    config = CenterNetConfig(teacher.config.slices, teacher.config.stride, widths)
    student = CenterNet(config)
    source, made = teacher.state_dict(), student.state_dict()

    def layer(name: str, count: int, inputs: Tensor | None) -> Tensor:
        """Copy one convolution with its normalisation; the channels that were kept."""
        kernel = source[f"{name}.0.weight"] if inputs is None else source[f"{name}.0.weight"][:, inputs]
        gain = source[f"{name}.1.weight"].abs() * kernel.flatten(1).norm(dim=1)
        kept = torch.sort(torch.argsort(gain, descending=True)[:count]).values
        made[f"{name}.0.weight"] = kernel[kept].clone()
        for part in ("weight", "bias", "running_mean", "running_var"):
            made[f"{name}.1.{part}"] = source[f"{name}.1.{part}"][kept].clone()
        return kept

    kept: Tensor | None = None
    skips: list[Tensor] = []
    for level, width in enumerate(widths):
        kept = layer(f"down.{level}.1", width, layer(f"down.{level}.0", width, kept))
        skips.append(kept)
    for step in range(len(teacher.up)):
        level = len(widths) - 2 - step
        below = layer(f"reduce.{step}", widths[level], kept)
        kept = layer(f"up.{step}", widths[level], torch.cat([skips[level], own[level] + below]))
    kept = layer("neck", made["neck.0.weight"].shape[0], kept)
    for head in ("heat", "offset", "size"):
        made[f"{head}.0.weight"] = source[f"{head}.0.weight"][:, kept].clone()
        made[f"{head}.0.bias"] = source[f"{head}.0.bias"].clone()
    student.load_state_dict(made)
    return student


def distillation_loss(
    student: CenterNet, teacher: CenterNet, image: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """How far the student's answer to a batch is from the teacher's.

    The heat maps' divergence, and the L1 distance of the offsets weighted by the teacher's heat.

    Parameters
    ----------
    student, teacher : CenterNet
        The teacher in evaluation mode.
    image : Tensor, shape (batch, slices, H, W)
        As `CenterNet.forward`.
    """
    image = image.to(next(student.parameters()).device).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        asked, place, _ = teacher(image)
    logit, offset, _ = student(image)
    heat = agreement_loss(logit, asked)
    trust = torch.sigmoid(asked)
    distance = ((offset - place).abs().mean(dim=1, keepdim=True) * trust).sum() / trust.sum().clamp(min=1e-6)
    return heat + OFFSET_WEIGHT * distance, {"heat": heat.item(), "offset": distance.item()}
