"""Registering a brain to an atlas: fixed = template, moving = brain."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from brainmap.atlas.alignment import SCHEDULES, Framed, align, usable_cores
from brainmap.atlas.atlas import Atlas
from brainmap.atlas.figures import draw_contours
from brainmap.atlas.grid import SampleGrid, resample_volume
from brainmap.atlas.prepare import block_mean, prepare
from brainmap.atlas.quality import judge
from brainmap.atlas.registered import FORMAT, REGISTRATION_JSON, Registration
from brainmap.atlas.transforms import Transforms
from brainmap.atlas.warping import bring_to_atlas, bring_to_sample, measure
from brainmap.coords import ATLAS_ORIENTATION, axis_map, parse_orientation
from brainmap.errors import DataError, UsageError
from brainmap.provenance import atomic_path, fingerprint, now, versions, write_json

if TYPE_CHECKING:
    from brainmap.volume import Volume

__all__ = ["REGISTRATION_JSON", "Registration", "RegistrationOptions", "register", "register_brain"]

logger = logging.getLogger(__name__)

Triple = tuple[float, float, float]

#: Labelled volume of the Allen mouse atlas, rounded; lengths in this room are those of such a brain.
_MOUSE_MM3 = 500.0

#: Tissue in the image over the atlas's volume; beyond these the image is not such a brain.
_SIZE_LIMITS = (0.03, 5.0)


@dataclass(frozen=True)
class RegistrationOptions:
    """What can be chosen about a registration; everything here changes the result.

    Attributes
    ----------
    schedule : str
        A key of `brainmap.atlas.alignment.SCHEDULES`: ``mattes``, ``contrast`` or ``affine``.
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

    schedule: str = "mattes"
    finest_um: float = 50.0
    align_um: float = 100.0
    seed: int = 1
    threads: int = 0

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise UsageError(f"schedule must be one of {', '.join(SCHEDULES)}, not {self.schedule!r}")
        if self.threads < 0 or not min(self.finest_um, self.align_um) > 0:
            raise UsageError("threads must not be negative; finest_um and align_um must be positive")


def register(
    volume: Volume,
    atlas: Atlas,
    out_dir: str | Path,
    *,
    orientation: str | None = None,
    options: RegistrationOptions | None = None,
    mask: Volume | None = None,
    overwrite: bool = False,
) -> Registration:
    """Register a brain to an atlas, or return the finished registration of the same input.

    Parameters
    ----------
    volume : Volume
        The brain, opened at the channel to register.
    atlas : Atlas
    out_dir : str or Path
        Folder to create; it appears only when everything in it is complete.
    orientation : str, optional
        Orientation of the volume's axes; may be left out where the image has it.
    options : RegistrationOptions, optional
    mask : Volume, optional
        Tissue to use (nonzero), in the same um as the volume: for partial or damaged brains.
    overwrite : bool
        Replace a registration of other input or options.

    Raises
    ------
    UsageError
        If no orientation is known, or the folder holds something else.
    DataError
        If the image shows no brain, or ANTs fails.
    """
    options = options or RegistrationOptions()
    letters = orientation or volume.orientation
    if letters is None:
        raise UsageError(
            f"the orientation of {volume.name} is not known: give --orientation with three letters that name the "
            "side where the z, y and x axes start, for example 'asr'"
        )
    letters = parse_orientation(letters)
    out = Path(out_dir)
    parameters = asdict(options) | {"threads": options.threads or usable_cores(), "orientation": letters}
    identity = {
        "format": FORMAT,
        "sample": volume.fingerprint(),
        "atlas": atlas.fingerprint_parts(),
        "mask": None if mask is None else mask.fingerprint(),
        # As asked for: "all cores" stays the same request on another machine.
        "parameters": asdict(options) | {"orientation": letters},
    }
    found = _finished(out, fingerprint(identity), overwrite)
    if found is not None:
        logger.info("using the finished registration in %s", out)
        return found
    with atomic_path(out) as folder:
        folder.mkdir(parents=True)
        _Run(volume, atlas, folder, letters, options, parameters, mask).all(fingerprint(identity))
    return Registration.load(out)


def register_brain(
    brain: str | Path,
    out_dir: str | Path,
    *,
    atlas: str | Path = "allen_mouse_50um",
    orientation: str | None = None,
    channel: int | None = None,
    voxel_size: Triple | None = None,
    mask: str | Path | None = None,
    options: RegistrationOptions | None = None,
    overwrite: bool = False,
) -> Registration:
    """The command ``brainmap register``: open everything by name and `register`.

    Raises
    ------
    BrainmapError
        As `Volume.open`, `Atlas.open` and `register` do.
    """
    from brainmap.volume import Volume

    opened = Volume.open(brain, channel=channel, voxel_um=voxel_size, orientation=orientation)
    tissue = None if mask is None else Volume.open(mask)
    return register(opened, Atlas.open(atlas), out_dir, options=options, mask=tissue, overwrite=overwrite)


def _finished(out: Path, wanted: str, overwrite: bool) -> Registration | None:
    """Return the finished registration in `out` if it is the wanted one; refuse to touch anything else."""
    if (out / REGISTRATION_JSON).is_file():
        if overwrite:
            return None
        there = Registration.load(out)
        if there.fingerprint == wanted:
            return there
        raise UsageError(
            f"{out} holds a registration of another brain, atlas or other options: give another folder, or "
            "--overwrite to replace it"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not a registration: give another folder")
    return None


@dataclass(frozen=True)
class _Run:
    """One registration on its way into a new folder."""

    volume: Volume
    atlas: Atlas
    folder: Path
    orientation: str
    options: RegistrationOptions
    parameters: dict[str, Any]
    mask: Volume | None

    def all(self, identity: str) -> None:
        """Do every step and write the record last."""
        clock = _Clock()
        resolution = _scaled(self.atlas.resolution_um, _factor(self.atlas.resolution_um, self._finest_um))
        grid = SampleGrid.over(self.volume, self.orientation, resolution)
        raw = grid.to_asr.array(resample_volume(self.volume, grid))
        clock.lap("read")
        sample, template = self._prepare(raw, grid)
        clock.lap("prepare")
        threads, seed = self.parameters["threads"], self.options.seed
        trusted = None if self.mask is None else ndimage.binary_dilation(sample.prepared.mask)
        align(
            template,
            sample,
            self.options.schedule,
            self.folder,
            threads=threads,
            seed=seed,
            trusted=trusted,
        )
        clock.lap("align")
        transforms = Transforms(self.folder)
        labels, hemispheres = bring_to_sample(transforms, grid, self.atlas)
        shape = tuple(-(-n // _factor(self.atlas.resolution_um, self._finest_um)) for n in self.atlas.shape)
        in_atlas = bring_to_atlas(raw, resolution, transforms, (shape[0], shape[1], shape[2]), resolution)
        self._write_images(grid, labels, hemispheres, in_atlas)
        clock.lap("warp")
        quality = measure(template, sample, transforms, _labelled_mm3(labels, resolution))
        verdict = judge(quality, max(resolution), partial=self.mask is not None)
        figures = draw_contours(raw, labels, self.atlas, resolution, self.folder)
        clock.lap("quality")
        record = {
            "format": FORMAT,
            "fingerprint": identity,
            "created": now(),
            "sample": _described(self.volume),
            "atlas": self.atlas.fingerprint_parts() | {"folder": str(self.atlas.folder)},
            "parameters": self.parameters,
            "grid": grid.to_json(),
            "transforms": sorted(p.name for p in self.folder.iterdir() if p.suffix in (".mat", ".gz")),
            "quality": quality.to_json(),
            "verdict": verdict.verdict,
            "reasons": list(verdict.reasons),
            "figures": figures,
            "seconds": clock.laps,
            "versions": versions(),
        }
        write_json(self.folder / REGISTRATION_JSON, record)
        (logger.info if verdict.verdict == "good" else logger.warning)("%s", verdict.sentence())

    @cached_property
    def _scale(self) -> float:
        """Size of the atlas's brain in mouse brains: lengths chosen for the mouse are multiplied by it."""
        voxels = float(np.count_nonzero(self.atlas.annotation))
        return float((voxels * np.prod(self.atlas.resolution_um) * 1e-9 / _MOUSE_MM3) ** (1 / 3))

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
        sections = grid.to_asr.order.index(
            0
        )  # the stored first axis is the one along which sections were cut
        voxel = _scaled(grid.resolution_asr_um, coarser)
        # To `prepare`, every brain is as large as a mouse's: its lengths are a mouse's anatomy.
        prepared = prepare(block_mean(raw, coarser), _scaled(voxel, 1 / scale), sections, known)
        sample = Framed(prepared, voxel, scale)
        factor = _factor(self.atlas.resolution_um, max(self.options.align_um * scale, self._finest_um))
        labelled = block_mean(self.atlas.annotation > 0, factor) > 0.5
        voxel = _scaled(self.atlas.resolution_um, factor)
        reference = block_mean(self.atlas.reference, factor)
        template = Framed(prepare(reference, _scaled(voxel, 1 / scale), None, labelled), voxel, scale)
        self._check_size(sample, template)
        return sample, template

    def _check_size(self, sample: Framed, template: Framed) -> None:
        found, expected = sample.tissue_mm3, template.tissue_mm3
        if not _SIZE_LIMITS[0] <= found / expected <= _SIZE_LIMITS[1]:
            raise DataError(
                f"{self.volume.name} shows {found:.3g} mm3 of tissue, the atlas {self.atlas.label} has "
                f"{expected:.3g} mm3: it is not a whole brain of this species, or the voxel size is wrong; give the "
                "right voxel size or atlas, or work without an atlas"
            )

    def _write_images(
        self,
        grid: SampleGrid,
        annotation_asr: NDArray[np.uint32],
        hemispheres_asr: NDArray[np.uint8],
        in_atlas: NDArray[np.float32],
    ) -> None:
        from brainmap.volume import write_volume

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
    """Seconds per step."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, step: str) -> None:
        now_ = time.perf_counter()
        self.laps[step] = round(now_ - self._last, 2)
        self._last = now_


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
