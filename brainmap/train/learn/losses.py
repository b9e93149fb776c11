"""The CenterNet losses of the founding study (methods 6).

Source: Zhou et al. 2019, "Objects as points", equations 1 to 3; focal exponents alpha 2 and beta 4 are
theirs (section 3), the weights 1, 1, 0.1 too.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, l1_loss, logsigmoid

__all__ = ["agreement_loss", "centernet_loss", "focal_loss", "offset_loss", "soft_map_loss"]

ALPHA, BETA = 2, 4
OFFSET_WEIGHT, SIZE_WEIGHT = 1.0, 0.1


def focal_loss(logit: Tensor, target: Tensor, weight: Tensor, by_image: bool = False) -> Tensor:
    """Penalty-reduced focal loss of a centre heat map.

    Parameters
    ----------
    logit, target, weight : Tensor
        Equal shapes; heat map before the sigmoid, its target in 0..1 (exactly 1 at centres), and a
        weight that is 0 where nothing is known.
    by_image : bool
        Normalise every image by its own number of centres plus two and take the mean, so that one crowded
        image does not outweigh all the sparse ones of its batch.

    Returns
    -------
    Tensor
        Sum over the batch divided by the number of centres; by 1 where there is none.
    """
    centre = (target >= 1).to(logit.dtype) * weight
    score = torch.sigmoid(logit)
    hit = -((1 - score) ** ALPHA) * logsigmoid(logit) * centre
    empty = -((1 - target) ** BETA) * score**ALPHA * logsigmoid(-logit) * weight * (target < 1)
    if by_image:
        return ((hit + empty).flatten(1).sum(1) / (centre.flatten(1).sum(1) + 2)).mean()
    return (hit.sum() + empty.sum()) / centre.sum().clamp(min=1)


def centernet_loss(
    outputs: tuple[Tensor, Tensor, Tensor],
    heat: Tensor,
    weight: Tensor,
    index: Tensor,
    offset: Tensor,
    size: float,
    by_image: bool = False,
) -> tuple[Tensor, dict[str, float]]:
    """Total loss L = L_hm + L_off + 0.1 L_wh of a batch.

    Parameters
    ----------
    outputs : tuple of Tensor
        `CenterNet.forward`'s (logit, offset, size).
    heat, weight : Tensor, shape (batch, 1, h, w)
        Heat map target and weight.
    index : Tensor of int64, shape (n, 3)
        Batch, row and column of every centre.
    offset : Tensor, shape (n, 2)
        Offset target (y, x) at every centre.
    size : float
        Size target in output cells, the same along both axes (methods 6, target A).
    by_image : bool
        Normalisation of the heat map's term; see `focal_loss`.

    Returns
    -------
    loss : Tensor
    parts : dict
        The three terms as numbers, for the log.
    """
    logit, offsets, sizes = outputs
    heat_loss = focal_loss(logit, heat, weight, by_image)
    if len(index):
        at_centre = (index[:, 0], slice(None), index[:, 1], index[:, 2])
        offset_loss = l1_loss(offsets[at_centre], offset)
        size_loss = l1_loss(sizes[at_centre], torch.full_like(offset, size))
    else:
        offset_loss = size_loss = logit.new_zeros(())
    total = heat_loss + OFFSET_WEIGHT * offset_loss + SIZE_WEIGHT * size_loss
    parts = {"heat": heat_loss.item(), "offset": offset_loss.item(), "size": size_loss.item()}
    return total, parts


def soft_map_loss(
    logit: Tensor,
    target: Tensor,
    trust: Tensor,
    background_weight: float,
    positive_weight: float,
    gamma: float,
) -> Tensor:
    """Weighted binary cross-entropy of a soft heat map on logits, mean over the grid (methods 6).

    The weight of an output cell of target y is w = w_bg + (w_pos - w_bg) y^gamma.

    Parameters
    ----------
    logit, target, trust : Tensor
        Equal shapes; heat map before the sigmoid, soft target in 0..1, and a factor of the weight that is
        0 where nothing is known.
    background_weight, positive_weight, gamma : float
        w_bg, w_pos and the exponent.
    """
    weight = (background_weight + (positive_weight - background_weight) * target**gamma) * trust
    loss = binary_cross_entropy_with_logits(logit, target, weight, reduction="sum")
    return loss / (trust > 0).sum().clamp(min=1)


def offset_loss(offsets: Tensor, index: Tensor, offset: Tensor, confidence: Tensor) -> Tensor:
    """L1 of the sub-pixel offsets at cells of known place, weighted by their confidence.

    Parameters
    ----------
    offsets : Tensor, shape (batch, 2, h, w)
        The offset head's map.
    index : Tensor of int64, shape (n, 3)
        Batch, row and column of every cell.
    offset : Tensor, shape (n, 2)
        Target (y, x).
    confidence : Tensor, shape (n,)
        Weight of every cell, 0..1.
    """
    if not len(index):
        return offsets.new_zeros(())
    error = (offsets[index[:, 0], :, index[:, 1], index[:, 2]] - offset).abs().mean(dim=1)
    return (error * confidence).sum() / confidence.sum().clamp(min=1e-6)


def agreement_loss(logit: Tensor, teacher: Tensor) -> Tensor:
    """How far a heat map is from that of another network: Kullback-Leibler divergence, cell by cell.

    Parameters
    ----------
    logit, teacher : Tensor, shape (batch, 1, h, w)
        Heat maps before the sigmoid; the teacher's without gradient.

    Returns
    -------
    Tensor
        Mean over images of the sum over the map divided by the heat in the teacher's plus two: about as large
        as `focal_loss` by image, so that the two can be weighed against each other. 0 where they agree.
    """
    target = torch.sigmoid(teacher)
    against = binary_cross_entropy_with_logits(logit, target, reduction="none")
    own = binary_cross_entropy_with_logits(teacher, target, reduction="none")
    return ((against - own).flatten(1).sum(1) / (target.flatten(1).sum(1) + 2)).mean()
