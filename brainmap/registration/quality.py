"""Is a registration good? Numbers, and what they mean in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Judgement", "Quality", "judge", "mutual_information"]

#: Limits of the verdict: (worse than this is doubtful, worse than this is bad). Lengths are a mouse brain's.
_MASK_DICE = (0.92, 0.85)
_EDGE_UM = (150.0, 300.0)
_CONTRAST = (0.35, 0.2)
_FOLDED = (0.001, 0.01)
_JACOBIAN = ((0.3, 3.0), (0.1, 8.0))
_VOLUME_RATIO = ((0.7, 1.45), (0.4, 2.5))
_SCALE = ((0.8, 1.25), (0.5, 2.0))
_STRETCH = (1.25, 1.6)
_ROUND_TRIP_VOXELS = (0.5, 2.0)


@dataclass(frozen=True)
class Quality:
    """Numbers that tell how well a sample and an atlas were brought together.

    Attributes
    ----------
    mutual_information_before, mutual_information_after : float
        Nats, 32 bins, over the template's tissue; before = centres of mass aligned.
    mask_dice : float
        Overlap of the sample's tissue, brought to the atlas, with the template's tissue; where both are compared.
    edge_mean_um, edge_p95_um : float
        Distance between the two outlines there, both ways; clefts count as closed.
    contrast_correlation : float
        Correlation of the local contrasts of sample and template, deep in the tissue; near 0 where structures do
        not meet, negative in stains that are bright where the template is dark.
    jacobian_min, jacobian_p1, jacobian_p99, jacobian_max : float
        Local volume change of the deformation (without the affine), in tissue; 1 = none.
    folded_share : float
        Share of tissue where the deformation folds (Jacobian <= 0).
    volume_ratio : float
        Volume of the atlas brought to the sample, over the volume of the sample's tissue.
    affine_scale_min, affine_scale_max : float
        Stretch from atlas to sample along the principal axes of the affine.
    round_trip_p95_um : float
        95th percentile of the distance after sample -> atlas -> sample.
    """

    mutual_information_before: float
    mutual_information_after: float
    mask_dice: float
    edge_mean_um: float
    edge_p95_um: float
    contrast_correlation: float
    jacobian_min: float
    jacobian_p1: float
    jacobian_p99: float
    jacobian_max: float
    folded_share: float
    volume_ratio: float
    affine_scale_min: float
    affine_scale_max: float
    round_trip_p95_um: float

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``registration.json``."""
        return asdict(self)


@dataclass(frozen=True)
class Judgement:
    """The verdict on a registration.

    Attributes
    ----------
    verdict : str
        ``good``, ``doubtful`` or ``bad``.
    reasons : tuple of str
        One sentence per number that is out of the ordinary.
    """

    verdict: str
    reasons: tuple[str, ...]

    def sentence(self) -> str:
        """One sentence for a person."""
        if not self.reasons:
            return "The registration looks good by its numbers; look at the contours all the same."
        verdict = self.verdict.upper() if self.verdict == "bad" else self.verdict
        return (
            f"The registration is {verdict}: {'; '.join(self.reasons)}. Look at the contours before using it."
        )


def judge(quality: Quality, resolution_um: float, partial: bool = False, scale: float = 1.0) -> Judgement:
    """Turn the numbers into a verdict.

    Parameters
    ----------
    quality : Quality
    resolution_um : float
        Voxel size of the registration grid.
    partial : bool
        Whether the sample is known to be a part of a brain (a mask was given); its tissue then need not fill the
        template.
    scale : float
        Size of the atlas's brain in mouse brains.
    """
    found: list[tuple[int, str]] = []

    def note(level: int, sentence: str) -> None:
        if level:
            found.append((level, sentence))

    before, after = quality.mutual_information_before, quality.mutual_information_after
    note(
        # A brain that needs a shift only loses a little to interpolation.
        2 if not after > 0.9 * before else 0,
        f"sample and template are less alike after it than before (mutual information {before:.2f} -> {after:.2f})",
    )
    if not partial:
        dice = quality.mask_dice
        note(_below(dice, _MASK_DICE), f"the outlines overlap by {dice:.2f} only (0.92 or more is usual)")
        edge = quality.edge_mean_um
        note(
            _above(edge / scale, _EDGE_UM),
            f"the outlines of brain and atlas lie {edge:.0f} um apart on average",
        )
        ratio = quality.volume_ratio
        note(
            _beyond(ratio, _VOLUME_RATIO),
            f"the atlas fills {ratio:.2f} times the volume of the sample's tissue",
        )
    contrast = abs(quality.contrast_correlation)
    note(
        _below(contrast, _CONTRAST),
        f"the structures inside hardly match: their local contrasts correlate by {contrast:.2f}",
    )
    folded = quality.folded_share
    note(_above(folded, _FOLDED), f"the deformation folds in {folded:.2%} of the tissue")
    change = (quality.jacobian_p1, quality.jacobian_p99)
    note(
        max(_beyond(value, _JACOBIAN) for value in change),
        f"the deformation changes volumes by factors {change[0]:.2f} to {change[1]:.2f}, more than one believes",
    )
    scales = (quality.affine_scale_min, quality.affine_scale_max)
    note(
        max(_beyond(scale, _SCALE) for scale in scales),
        f"the brain differs from the atlas in size by factors {scales[0]:.2f} to {scales[1]:.2f} along its axes "
        "(check the voxel size and the orientation)",
    )
    stretch = scales[1] / scales[0]
    note(
        _above(stretch, _STRETCH),
        f"the brain is stretched against the atlas, by {stretch:.2f} along one axis more than along another (check "
        "the voxel size, or whether a part of the brain is missing)",
    )
    voxels = quality.round_trip_p95_um / resolution_um
    note(
        _above(voxels, _ROUND_TRIP_VOXELS),
        f"points do not come back: {quality.round_trip_p95_um:.0f} um off after sample -> atlas -> sample",
    )
    worst = max((level for level, _ in found), default=0)
    return Judgement(("good", "doubtful", "bad")[worst], tuple(sentence for _, sentence in found))


def mutual_information(a: NDArray[Any], b: NDArray[Any], bins: int = 32) -> float:
    """Mutual information of two equally long samples of intensities, nats."""
    if a.size == 0:
        return 0.0
    joint, _, _ = np.histogram2d(a.ravel(), b.ravel(), bins=bins)
    p = joint / joint.sum()
    expected = p.sum(axis=1, keepdims=True) * p.sum(axis=0, keepdims=True)
    used = p > 0
    return float(np.sum(p[used] * np.log(p[used] / expected[used])))


def _below(value: float, limits: tuple[float, float]) -> int:
    return 2 if not value >= limits[1] else 1 if value < limits[0] else 0


def _above(value: float, limits: tuple[float, float]) -> int:
    return 2 if not value <= limits[1] else 1 if value > limits[0] else 0


def _beyond(value: float, limits: tuple[tuple[float, float], tuple[float, float]]) -> int:
    (low, high), (lowest, highest) = limits
    return 2 if not lowest <= value <= highest else 1 if not low <= value <= high else 0
