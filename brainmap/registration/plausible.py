"""Is this an image that can be registered as a volume? Refusals in words, before any time is spent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from brainmap.coords import Triple
from brainmap.errors import DataError
from brainmap.registration.alignment import Framed

if TYPE_CHECKING:
    from brainmap.image.volume import Volume

__all__ = ["check_sections", "check_tissue", "extent_um"]


#: Sections farther apart than this, um, or fewer, leave too little of a brain between them to align.
_LARGEST_VOXEL_UM = 300.0
_FEWEST_SECTIONS = 20
#: Extent of the tissue over the template's along any axis; half a brain has 0.5 along one.
_LEAST_EXTENT = 0.3
#: Volume of the tissue over the template's: without a mask, and with one (a piece is then meant).
_VOLUME_LIMITS = (0.15, 3.0)
_LEAST_MASKED = 0.03

_INSTEAD = (
    "Detect without regions (--no-atlas), or give a registration that was made otherwise (--registration)"
)


def check_sections(volume: Volume, scale: float) -> None:
    """Refuse images that are no volume of a brain: single or sparse sections.

    Parameters
    ----------
    volume : Volume
    scale : float
        Size of the atlas's brain in mouse brains.

    Raises
    ------
    DataError
    """
    name = volume.name
    for axis, voxel, count in zip("zyx", volume.voxel_um, volume.shape, strict=True):
        if count < _FEWEST_SECTIONS:
            what = "a single section" if count == 1 else f"{count} planes"
            raise DataError(
                f"{name} has {what} along {axis}; fewer than {_FEWEST_SECTIONS} cannot be registered to an atlas as a "
                f"volume. {_INSTEAD}"
            )
        if voxel > _LARGEST_VOXEL_UM * scale:
            raise DataError(
                f"{name} has planes {voxel:g} um apart along {axis}; more than {_LARGEST_VOXEL_UM * scale:.0f} um is "
                f"too far to register them to this atlas as a volume. {_INSTEAD}"
            )


def check_tissue(name: str, sample: Framed, template: Framed, label: str, masked: bool) -> None:
    """Refuse tissue that cannot be this atlas's brain, or a part of it, by its size.

    Raises
    ------
    DataError
    """
    found, expected = sample.tissue_mm3, template.tissue_mm3
    least = _LEAST_MASKED if masked else _VOLUME_LIMITS[0]
    if not least <= found / expected <= _VOLUME_LIMITS[1]:
        factor = (expected / max(found, 1e-9)) ** (1 / 3)
        raise DataError(
            f"{name} shows {found:.3g} mm3 of tissue, the atlas {label} has {expected:.3g} mm3: it is not a brain of "
            f"this species, or the voxel size is wrong (voxels {factor:.2g} times as long would fit), or only a small "
            "piece of the brain is there; give the right --voxel-size or --atlas, a --mask of the piece, or --no-atlas"
        )
    _check_thickness(name, extent_um(sample), extent_um(template), masked)


def extent_um(image: Framed) -> Triple:
    """Size of the box around the tissue, asr."""
    lengths = []
    for axis, voxel in enumerate(image.voxel_um):
        used = np.flatnonzero(image.prepared.mask.any(axis=tuple(i for i in range(3) if i != axis)))
        lengths.append((int(used[-1]) - int(used[0]) + 1) * voxel)
    return lengths[0], lengths[1], lengths[2]


def _check_thickness(name: str, found_um: Triple, expected_um: Triple, masked: bool) -> None:
    if masked:
        return
    ways = ("front to back", "top to bottom", "side to side")
    for way, length, whole in zip(ways, found_um, expected_um, strict=True):
        if length < _LEAST_EXTENT * whole:
            raise DataError(
                f"{name} shows tissue over {length / 1000:.1f} mm from {way}, the atlas's brain {whole / 1000:.1f} mm: "
                "so thin a slab is not registered by itself. Give a --mask of the tissue to try it all the same. "
                + _INSTEAD
            )
