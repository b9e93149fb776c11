"""The cells of a run from the candidates in its folder: placed in micrometres, inside the mask."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brainmap.coords import vox_to_um
from brainmap.errors import DataError, UsageError
from brainmap.image.mask import Mask
from brainmap.points.table import Points
from brainmap.run_folder import RunRecord

if TYPE_CHECKING:
    from brainmap.image.volume import Volume

__all__ = ["ImageFrame", "located", "mask_of"]

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class ImageFrame:
    """Where a brain's image lies; known from the run's table of cells, also when the image is gone.

    Attributes
    ----------
    shape : (z, y, x)
        Level-0 voxels.
    voxel_um, origin_um : (z, y, x)
        Voxel size, and um of the centre of the first voxel.
    """

    shape: tuple[int, int, int]
    voxel_um: Triple
    origin_um: Triple

    @classmethod
    def of(cls, volume: Volume) -> ImageFrame:
        """The frame of an open image."""
        return cls(volume.shape, volume.voxel_um, volume.origin_um)

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any], where: str | Path) -> ImageFrame:
        """The frame that the metadata of a run's table names.

        Raises
        ------
        DataError
            If it does not.
        """
        try:
            shape, voxel, origin = (tuple(meta[name]) for name in ("shape", "voxel_um", "origin_um"))
        except (KeyError, TypeError):
            raise DataError(f"{where} does not say where its image lies: detect again") from None
        return cls(shape, voxel, origin)


def located(pieces: Iterable[Points], frame: ImageFrame, mask: Mask | None) -> Iterator[Points]:
    """Cells with `z_um y_um x_um`, those outside a mask left out."""
    for piece in pieces:
        um = vox_to_um(piece.zyx_vox, frame.voxel_um, frame.origin_um)
        if mask is not None:
            inside = mask.contains(um)
            piece, um = piece.take(inside), um[inside]
        yield piece.with_columns(z_um=um[:, 0], y_um=um[:, 1], x_um=um[:, 2])


def mask_of(record: RunRecord) -> Mask | None:
    """The mask a run was made with; None where it had none.

    Raises
    ------
    NotFoundError, DataError
        If it is gone or cannot be read.
    UsageError
        If it is another one now.
    """
    path = record.parameters.get("mask")
    if not path:
        return None
    mask = Mask.open(path)
    known = record.fingerprints.get("mask")
    if known is not None and mask.volume.fingerprint() != known:
        raise UsageError(f"the mask {path} is not the one of the run any more: detect again with --overwrite")
    return mask
