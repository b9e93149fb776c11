"""The steps of one registration, from the image to the finished folder."""

from __future__ import annotations

import logging
import math
import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from brainmap.atlas.atlas import Atlas
from brainmap.coords import ATLAS_ORIENTATION, Triple, axis_map
from brainmap.errors import DataError, UsageError
from brainmap.files import now, write_json
from brainmap.machine import versions
from brainmap.progress import task
from brainmap.registration.alignment import SCHEDULES, Framed, align
from brainmap.registration.figures import draw_checkerboard, draw_contours, draw_deformation
from brainmap.registration.grid import SampleGrid, resample_volume
from brainmap.registration.landmarks import LandmarkFit, Landmarks, refine
from brainmap.registration.orientation import Settled, brain_size
from brainmap.registration.partial import PartFound, cut_template, cut_unmasked, find_part
from brainmap.registration.plausible import check_tissue
from brainmap.registration.prepare import block_mean, prepare
from brainmap.registration.quality import Judgement, Quality, judge
from brainmap.registration.registered import FORMAT, REGISTRATION_JSON
from brainmap.registration.transforms import AFFINE_FILE, INVERSE_WARP_FILE, WARP_FILE, Transforms
from brainmap.registration.warping import bring_to_atlas, bring_to_sample, measure

if TYPE_CHECKING:
    from brainmap.image.volume import Volume

__all__ = ["UNREFINED", "RegistrationOptions", "RegistrationRun"]

log = logging.getLogger(__name__)


#: Folder, inside that of a registration with landmarks, of its transforms without them.
UNREFINED = "before_landmarks"
#: What the transforms of a registration consist of; a linear one has the first only.
_TRANSFORM_FILES = (AFFINE_FILE, WARP_FILE, INVERSE_WARP_FILE)


@dataclass(frozen=True)
class RegistrationOptions:
    """What can be chosen about a registration; everything here changes the result.

    Attributes
    ----------
    schedule : str
        A key of `brainmap.registration.alignment.SCHEDULES`: ``correlation``, ``mattes`` or ``affine``.
    finest_um : float
        Voxel size of the registration grid (the warped annotation): the atlas's, but no finer than this.
        As every length here for a mouse brain; for an atlas of another size in proportion.
    align_um : float
        Voxel size of the images that are aligned: the grid's, but no finer than this. Finer costs time
        and gains nothing: the deformation is smoother than that.
    seed : int
    threads : int
        Results are repeatable for a fixed number; 0 = all cores this process may use.
    """

    schedule: str = "correlation"
    finest_um: float = 50.0
    align_um: float = 100.0
    seed: int = 1
    threads: int = 0

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise UsageError(f"schedule must be one of {', '.join(SCHEDULES)}, not {self.schedule!r}")
        if self.threads < 0 or not min(self.finest_um, self.align_um) > 0:
            raise UsageError("threads must not be negative; finest_um and align_um must be positive")


@dataclass(frozen=True)
class RegistrationRun:
    """One registration on its way into a new folder.

    Attributes
    ----------
    volume : Volume
    atlas : Atlas
    folder : Path
        Empty; gets everything.
    settled : Settled
        The orientation.
    options : RegistrationOptions
    parameters : dict
        The options as they are recorded.
    mask : Volume or None
        Tissue to use.
    landmarks : Landmarks or None
    aligned : Path or None
        Folder of transforms to take instead of aligning anew.
    kept : Path or None
        Folder where the stages of the alignment outlive an interruption.
    """

    volume: Volume
    atlas: Atlas
    folder: Path
    settled: Settled
    options: RegistrationOptions
    parameters: dict[str, Any]
    mask: Volume | None
    landmarks: Landmarks | None
    aligned: Path | None
    kept: Path | None = None

    def write(self, prints: dict[str, str]) -> None:
        """Do every step and write the record, with these fingerprints, last.

        Raises
        ------
        DataError
            If the image shows no brain, landmarks contradict each other, or ANTs fails.
        """
        with _Clock() as clock:
            self._write(prints, clock)

    def _write(self, prints: dict[str, str], clock: _Clock) -> None:
        clock.begin("reading the brain")
        resolution = _scaled(self.atlas.resolution_um, _factor(self.atlas.resolution_um, self._finest_um))
        grid = SampleGrid.over(self.volume, self.settled.letters, resolution)
        if self.landmarks is not None:
            self.landmarks.check_inside(grid, self.atlas.extent_um, self.volume.name)
        raw = grid.to_asr.array(resample_volume(self.volume, grid))
        clock.lap("read", "evening out the brain")
        sample, whole = self._prepare(raw, grid)
        found = self._find_part(whole, sample)
        template, compared = cut_template(whole, found, self.atlas)
        if self.mask is not None:
            template, compared = self._cut_unmasked(template, sample, compared)
        clock.lap("prepare")
        self._align(template, sample, compared)
        clock.lap("align", "bringing the atlas to the brain")
        fit = self._refine(grid)
        transforms = Transforms(self.folder)
        labels, hemispheres = bring_to_sample(transforms, grid, self.atlas)
        shape = tuple(-(-n // _factor(self.atlas.resolution_um, self._finest_um)) for n in self.atlas.shape)
        in_atlas = bring_to_atlas(raw, resolution, transforms, (shape[0], shape[1], shape[2]), resolution)
        self._write_images(grid, labels, hemispheres, in_atlas)
        clock.lap("warp", "judging and drawing")
        shown = np.where(found.part.excludes(self.atlas, labels, hemispheres), 0, labels)
        quality = measure(template, sample, transforms, _labelled_mm3(shown, resolution), compared)
        verdict = judge(quality, max(resolution), partial=self.mask is not None, scale=self._scale)
        figures = draw_contours(raw, shown, self.atlas, resolution, self.folder)
        figures += draw_checkerboard(in_atlas, resolution, self.atlas, self.folder)
        figures += draw_deformation(transforms, self.atlas, self.folder)
        clock.lap("quality")
        record = self._record(prints, grid, found, fit, quality, verdict)
        write_json(self.folder / REGISTRATION_JSON, record | {"figures": figures, "seconds": clock.laps})

    def _record(
        self,
        prints: dict[str, str],
        grid: SampleGrid,
        found: PartFound,
        fit: LandmarkFit | None,
        quality: Quality,
        verdict: Judgement,
    ) -> dict[str, Any]:
        return {
            "format": FORMAT,
            **prints,
            "created": now(),
            "sample": _described(self.volume),
            "atlas": self.atlas.fingerprint_parts() | {"folder": str(self.atlas.folder)},
            "parameters": self.parameters,
            "orientation_search": self.settled.to_json(),
            "part": found.to_json(),
            **({} if fit is None else {"landmarks": fit.to_json()}),
            "grid": grid.to_json(),
            "transforms": sorted(p.name for p in self.folder.iterdir() if p.suffix in (".mat", ".gz")),
            "quality": quality.to_json(),
            "verdict": verdict.verdict,
            "reasons": list(verdict.reasons),
            "versions": versions(),
        }

    def _find_part(self, template: Framed, sample: Framed) -> PartFound:
        """What the sample shows of the brain; with a mask a guess is enough, without one it must be certain."""
        found = find_part(template, sample, self.atlas)
        if found.part.whole or found.certain:
            log.info("%s shows the %s", self.volume.name, found.part.words)
            return found
        if self.mask is not None:
            return found.as_whole()
        raise DataError(
            f"{self.volume.name} may show a part of a brain only, most likely the {found.part.words} (its outline "
            f"overlaps by {found.agreement:.2f}), but that is not certain: check orientation and voxel size, or give "
            "--mask with an image of the tissue that is there"
        )

    def _cut_unmasked(
        self, template: Framed, sample: Framed, compared: NDArray[np.bool_]
    ) -> tuple[Framed, NDArray[np.bool_]]:
        rough = self.folder / "rough"
        rough.mkdir()
        self._run_ants(template, sample, compared, "affine", rough)
        cut = cut_unmasked(template, sample, Transforms(rough), compared)
        shutil.rmtree(rough)
        return cut

    def _align(self, template: Framed, sample: Framed, compared: NDArray[np.bool_]) -> None:
        if self.aligned is not None:
            log.info("using the alignment that is there; only landmarks are new")
            _copy_transforms(self.aligned, self.folder)
            return
        self._run_ants(template, sample, compared, self.options.schedule, self.folder, self.kept)

    def _run_ants(
        self,
        template: Framed,
        sample: Framed,
        compared: NDArray[np.bool_],
        schedule: str,
        folder: Path,
        kept: Path | None = None,
    ) -> None:
        align(
            template,
            sample,
            schedule,
            folder,
            threads=self.parameters["threads"],
            seed=self.options.seed,
            trusted=None if self.mask is None else ndimage.binary_dilation(sample.prepared.mask),
            compared=None if compared.all() else compared,
            kept=kept,
        )

    def _refine(self, grid: SampleGrid) -> LandmarkFit | None:
        """Bend the transforms to the landmarks; those from before are kept beside them."""
        if self.landmarks is None:
            return None
        before = self.folder / UNREFINED
        before.mkdir()
        _copy_transforms(self.folder, before)
        spacing = max(self.options.align_um * self._scale, *self.atlas.resolution_um)
        return refine(
            self.folder,
            self.landmarks,
            grid.um_to_asr_edge_um(self.landmarks.sample_um),
            self.atlas.extent_um,
            spacing_um=spacing,
            scale=self._scale,
        )

    @cached_property
    def _scale(self) -> float:
        """Size of the atlas's brain in mouse brains: lengths chosen for the mouse are multiplied by it."""
        return brain_size(self.atlas)

    @property
    def _finest_um(self) -> float:
        return self.options.finest_um * self._scale

    def _prepare(self, raw: NDArray[np.float32], grid: SampleGrid) -> tuple[Framed, Framed]:
        """Bring sample and template (both asr) to the resolution of the alignment and even them out."""
        scale = self._scale
        coarser = _factor(grid.resolution_asr_um, self.options.align_um * scale)
        known = None
        if self.mask is not None:
            known = block_mean(grid.to_asr.array(resample_volume(self.mask, grid)), coarser) > 0.5
        sections = grid.to_asr.order.index(0)  # sections are cut along the axis that is stored first
        voxel = _scaled(grid.resolution_asr_um, coarser)
        # To `prepare`, every brain is as large as a mouse's: its lengths are a mouse's anatomy.
        prepared = prepare(block_mean(raw, coarser), _scaled(voxel, 1 / scale), sections, known)
        sample = Framed(prepared, voxel, scale)
        factor = _factor(self.atlas.resolution_um, max(self.options.align_um * scale, self._finest_um))
        labelled = block_mean(self.atlas.annotation > 0, factor) > 0.5
        voxel = _scaled(self.atlas.resolution_um, factor)
        reference = block_mean(self.atlas.reference, factor)
        template = Framed(prepare(reference, _scaled(voxel, 1 / scale), None, labelled), voxel, scale)
        check_tissue(self.volume.name, sample, template, self.atlas.label, self.mask is not None)
        return sample, template

    def _write_images(
        self,
        grid: SampleGrid,
        annotation_asr: NDArray[np.uint32],
        hemispheres_asr: NDArray[np.uint8],
        in_atlas: NDArray[np.float32],
    ) -> None:
        from brainmap.image.volume import write_volume

        back = axis_map(ATLAS_ORIENTATION, grid.orientation)
        labels: dict[str, NDArray[Any]] = {"annotation": annotation_asr, "hemispheres": hemispheres_asr}
        for name, values in labels.items():
            write_volume(
                self.folder / f"{name}.ome.zarr",
                np.ascontiguousarray(back.array(values)),
                grid.resolution_um,
                orientation=grid.orientation,
                origin_um=grid.origin_um,
                method="nearest",
            )
        write_volume(
            self.folder / "sample_in_atlas.ome.zarr",
            in_atlas,
            grid.resolution_asr_um,
            orientation=ATLAS_ORIENTATION,
            origin_um=tuple(r / 2 for r in grid.resolution_asr_um),
        )


class _Clock:
    """Seconds per step, each of which is reported while it goes on."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()
        self._step = ExitStack()

    def __enter__(self) -> _Clock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._step.close()

    def begin(self, what: str) -> None:
        self._step.close()
        if what:
            self._step.enter_context(task(f"registration: {what}"))

    def lap(self, step: str, next_: str = "") -> None:
        now_ = time.perf_counter()
        self.laps[step] = round(now_ - self._last, 2)
        self._last = now_
        self.begin(next_)


def _copy_transforms(source: Path, target: Path) -> None:
    for name in _TRANSFORM_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _factor(resolution: Triple, finest_um: float) -> int:
    """Return the whole number of voxels to merge so that none is finer than `finest_um` (to a fifth)."""
    return max(1, math.ceil(0.8 * finest_um / min(resolution)))


def _scaled(resolution: Triple, factor: float) -> Triple:
    return resolution[0] * factor, resolution[1] * factor, resolution[2] * factor


def _labelled_mm3(labels: NDArray[np.uint32], resolution: Triple) -> float:
    return float(np.count_nonzero(labels)) * float(np.prod(resolution)) / 1e9


def _described(volume: Volume) -> dict[str, Any]:
    return {
        "name": volume.name,
        "shape": volume.shape,
        "voxel_um": volume.voxel_um,
        "origin_um": volume.origin_um,
        "channel": volume.channel,
    }
