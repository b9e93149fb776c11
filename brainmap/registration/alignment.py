"""The alignment itself: translation, affine stages coarse to fine, then SyN, through `ants_process`."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brainmap.errors import DataError
from brainmap.files import atomic_path
from brainmap.registration.ants_process import Metric, Stage, StageImages, run_stage
from brainmap.registration.prepare import Prepared
from brainmap.registration.transforms import AFFINE_FILE, INVERSE_WARP_FILE, WARP_FILE

__all__ = ["SCHEDULES", "Framed", "Schedule", "align"]

log = logging.getLogger(__name__)

#: Background kept around the tissue, um: room for the warp to fade out.
_MARGIN_UM = 600.0
#: A level with fewer voxels than this along an axis says nothing.
_FEWEST_VOXELS = 12


@dataclass(frozen=True)
class Schedule:
    """The stages of a registration.

    Attributes
    ----------
    linear : tuple of Stage
        On one thread: repeatable (see `ants_process`).
    deformable : tuple of Stage
        Empty for a linear registration.
    """

    linear: tuple[Stage, ...]
    deformable: tuple[Stage, ...]

    def fitting(self, shape: tuple[int, ...]) -> Schedule:
        """Return the schedule without levels too coarse for images of this shape."""
        coarsest = max(1, min(shape) // _FEWEST_VOXELS)

        def fit(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
            return tuple(stage.without_coarser(coarsest) for stage in stages)

        return Schedule(fit(self.linear), fit(self.deformable))


def _mattes(sampling: float) -> tuple[Metric, ...]:
    return (Metric("Mattes", "global", 32, sampling),)


_LINEAR = (
    Stage("Rigid[0.1]", _mattes(0.5), (200, 100), (4, 2), (2, 1)),
    Stage("Affine[0.1]", _mattes(0.5), (200, 100), (4, 2), (2, 1)),
    Stage("Affine[0.05]", _mattes(0.2), (30,), (1,), (0.5,)),
)

_MATTES_BOTH = (Metric("Mattes", "global", 32), Metric("Mattes", "local", 32))
_CORRELATION = (Metric("CC", "global", 2),)

#: "correlation" compares the images in small windows (radius 2 voxels), whatever gain and sign the stain has
#: there, and keeps the whole displacement smooth: the default. "mattes" asks for a statistical relation of the
#: intensities and of the local contrasts over the whole brain: for stains that look nothing like the template
#: even locally. The trials that led here, with figures, are in docs/registration.md.
SCHEDULES = {
    "correlation": Schedule(
        _LINEAR, (Stage("SyN[0.25,6,2]", _CORRELATION, (60, 40, 15), (4, 2, 1), (1, 0.5, 0.25)),)
    ),
    "mattes": Schedule(
        _LINEAR, (Stage("SyN[0.25,3,0]", _MATTES_BOTH, (60, 50, 15), (4, 2, 1), (2, 1, 0.5)),)
    ),
    "affine": Schedule(_LINEAR, ()),
}


@dataclass(frozen=True)
class Framed:
    """A prepared image in asr with its voxel size; physical points are mm from the outer corner.

    `scale` is the size of the brain in mouse brains.
    """

    prepared: Prepared
    voxel_um: tuple[float, float, float]
    scale: float = 1.0

    @property
    def tissue_mm3(self) -> float:
        """Volume of the tissue."""
        return float(self.prepared.mask.sum()) * float(np.prod(self.voxel_um)) / 1e9

    def crop(self) -> tuple[tuple[slice, slice, slice], tuple[float, float, float]]:
        """Box around the tissue plus a margin, and the physical point of its first voxel's centre, mm."""
        slices, origin = [], []
        for axis, voxel in enumerate(self.voxel_um):
            others = tuple(i for i in range(3) if i != axis)
            used = np.flatnonzero(self.prepared.mask.any(axis=others))
            margin = int(np.ceil(_MARGIN_UM * self.scale / voxel))
            low = max(int(used[0]) - margin, 0)
            high = min(int(used[-1]) + 1 + margin, self.prepared.mask.shape[axis])
            slices.append(slice(low, high))
            origin.append((low + 0.5) * voxel / 1000.0)
        return (slices[0], slices[1], slices[2]), (origin[0], origin[1], origin[2])


def align(
    template: Framed,
    sample: Framed,
    schedule: str,
    folder: Path,
    *,
    threads: int,
    seed: int,
    trusted: NDArray[np.bool_] | None = None,
    compared: NDArray[np.bool_] | None = None,
    kept: Path | None = None,
) -> None:
    """Register the sample (moving) to the template (fixed) and leave the transforms in a folder.

    Parameters
    ----------
    template, sample : Framed
        Both in asr.
    schedule : str
        A key of `SCHEDULES`.
    folder : Path
        Gets ``affine.mat`` and, unless the schedule is linear, ``warp.nii.gz`` and ``inverse_warp.nii.gz``.
    threads, seed : int
        Results are repeatable for equal values of both.
    trusted : bool array, optional
        Part of the sample that is to be compared (partial and damaged brains); what the template has beyond
        it is left out.
    compared : bool array, optional
        Part of the template that is to be compared: what the sample is known to show.
    kept : Path, optional
        Folder in which each stage leaves its transform, and finds that of a registration of the same images that was
        interrupted after it.

    Raises
    ------
    DataError
        If ANTs fails.
    """
    images = _images(template, sample, trusted, compared)
    stages = SCHEDULES[schedule].fitting(images.fixed["global"].shape)
    written: list[Path] = []
    if not _found(kept, folder, AFFINE_FILE):
        what = "registration: coarse alignment"
        written += run_stage(stages.linear, images, None, folder / "linear_", threads=1, seed=seed, what=what)
        _one(written, "GenericAffine.mat").rename(folder / AFFINE_FILE)
        _keep(kept, folder, AFFINE_FILE)
    if stages.deformable and not _found(kept, folder, WARP_FILE, INVERSE_WARP_FILE):
        start, prefix = str(folder / AFFINE_FILE), folder / "syn_"
        what = "registration: fine alignment"
        written += run_stage(stages.deformable, images, start, prefix, threads=threads, seed=seed, what=what)
        _one(written, "1Warp.nii.gz").rename(folder / WARP_FILE)
        _one(written, "1InverseWarp.nii.gz").rename(folder / INVERSE_WARP_FILE)
        _keep(kept, folder, WARP_FILE, INVERSE_WARP_FILE)
    for path in written:
        path.unlink(missing_ok=True)


def _found(kept: Path | None, folder: Path, *names: str) -> bool:
    """Take the transforms of a stage that was done before the interruption, if all of them are there."""
    if kept is None or not all((kept / name).is_file() for name in names):
        return False
    log.info("registration: %s is there from before the interruption", " and ".join(names))
    for name in names:
        shutil.copyfile(kept / name, folder / name)
    return True


def _keep(kept: Path | None, folder: Path, *names: str) -> None:
    if kept is not None:
        for name in names:
            with atomic_path(kept / name) as temporary:
                shutil.copyfile(folder / name, temporary)


def _one(paths: list[Path], ending: str) -> Path:
    for path in paths:
        if path.name.endswith(ending):
            return path
    raise DataError(
        f"the registration wrote no {ending}: {', '.join(p.name for p in paths) or 'nothing at all'}"
    )


def _images(
    template: Framed,
    sample: Framed,
    trusted: NDArray[np.bool_] | None,
    compared: NDArray[np.bool_] | None,
) -> StageImages:
    fixed_box, fixed_origin = template.crop()
    moving_box, moving_origin = sample.crop()
    pairs = ("global", "local")
    fixed = (template.prepared.global_, template.prepared.local)
    moving = (sample.prepared.global_, sample.prepared.local)
    return StageImages(
        fixed={name: image[fixed_box] for name, image in zip(pairs, fixed, strict=True)},
        moving={name: image[moving_box] for name, image in zip(pairs, moving, strict=True)},
        fixed_origin_mm=fixed_origin,
        fixed_spacing_mm=_mm(template.voxel_um),
        moving_origin_mm=moving_origin,
        moving_spacing_mm=_mm(sample.voxel_um),
        fixed_mask=None if compared is None else compared[fixed_box],
        moving_mask=None if trusted is None else trusted[moving_box],
    )


def _mm(voxel_um: tuple[float, float, float]) -> tuple[float, float, float]:
    return voxel_um[0] / 1000.0, voxel_um[1] / 1000.0, voxel_um[2] / 1000.0
