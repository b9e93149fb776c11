"""What a run reads, opened and checked before anything is computed, and what the request means for it."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from brainmap.coords import parse_known_letters
from brainmap.errors import DataError, UsageError
from brainmap.files import fingerprint
from brainmap.image.cell_size import LARGEST_UM, SMALLEST_UM, measure_cell_size
from brainmap.image.data_box import data_box
from brainmap.image.intensity import Intensity
from brainmap.image.level_evidence import placed_by_evidence
from brainmap.image.mask import Mask
from brainmap.image.plausible import check_voxel_um
from brainmap.image.volume import Volume
from brainmap.infer.detector import Detector
from brainmap.infer.engine.engine import RunOptions
from brainmap.run.request import DetectRequest

if TYPE_CHECKING:
    from brainmap.atlas.atlas import Atlas
    from brainmap.registration.register import Registration

__all__ = ["Inputs", "foreseen", "looked_for", "options_for", "part_with_data", "sized"]

log = logging.getLogger(__name__)

# Pixels larger than this share of a cell show it as a speck; the shipped detector has seen none above 0.3.
_COARSEST_PIXEL = 0.5
# Pixels larger than so many cells are a mistake, and a grid made for cells would fill the memory.
_SENSELESS_PIXEL = 5.0


@dataclass(frozen=True)
class Inputs:
    """Everything a run reads, opened and checked before anything is computed."""

    volume: Volume
    detector: Detector
    atlas: Atlas | None
    registration: Registration | None
    mask: Mask | None
    registration_image: Volume | None = None

    @classmethod
    def open(cls, request: DetectRequest) -> Inputs:
        volume = Volume.open(
            request.brain,
            channel=request.channel,
            timepoint=request.timepoint,
            voxel_um=request.voxel_um,
            axes=request.axes,
        )
        volume = placed_by_evidence(volume)
        if request.roi is not None:
            request.roi.slices(volume.shape)
        source = "its metadata" if request.voxel_um is None else "--voxel-size"
        check_voxel_um(volume.voxel_um, volume.shape, volume.name, source)
        if request.orientation is not None:
            # What is asked for replaces what the image says, also where it is still to be found.
            letters = None if request.finds_orientation else request.orientation
            volume = dataclasses.replace(volume, orientation=letters)
        registration = atlas = None
        if request.registration is not None:
            from brainmap.registration.register import Registration

            registration = Registration.load(request.registration)
            registration.check_whole()
            registration.check_belongs(volume)
            if request.finds_orientation:
                registration.check_orientation(parse_known_letters(str(request.orientation)))
                volume = dataclasses.replace(volume, orientation=registration.grid.orientation)
        if request.wants_regions:
            from brainmap.atlas.atlas import Atlas
            from brainmap.atlas.region_sets import check_level

            if volume.orientation is None and registration is None and not request.finds_orientation:
                raise UsageError(
                    f"the orientation of {volume.name} is not known; give --orientation with three letters that name "
                    "the side where its z, y and x axes start (such as asr), --orientation auto, or --no-atlas"
                )
            atlas = Atlas.open(registration.atlas_folder) if registration else Atlas.open(str(request.atlas))
            check_level(request.level, atlas.structures)
            atlas.check()
        elif needless := sorted({"brainmapper", "brainrender"} & set(request.exports)):
            raise UsageError(f"--export {needless[0]} needs an atlas; leave --no-atlas out")
        detector = Detector.open(request.detector)
        pixel, diameter = max(volume.voxel_um[1:]), _asked_diameter(request) or detector.spec.cell_diameter_um
        if pixel > _SENSELESS_PIXEL * diameter:
            raise UsageError(
                f"{volume.name} has pixels of {pixel:g} um, many times wider than cells of {diameter:g} um: no "
                "cell can be seen; give the image at full resolution, or the true --voxel-size or --cell-diameter"
            )
        mask = None if request.mask is None else Mask.open(request.mask)
        image = None
        if request.registration_image is not None:
            image = Volume.open(request.registration_image, channel=request.registration_channel)
        return cls(volume, detector, atlas, registration, mask, image)

    def fingerprints(self) -> dict[str, str]:
        """What the result depends on besides the parameters."""
        found = {"volume": self.volume.fingerprint(), "detector": self.detector.fingerprint}
        if self.registration is not None:
            found["registration"] = self.registration.fingerprint
        if self.atlas is not None:
            found["atlas"] = fingerprint(self.atlas.fingerprint_parts())
        if self.mask is not None:
            found["mask"] = self.mask.volume.fingerprint()
        if self.registration_image is not None:
            found["registration_image"] = self.registration_image.fingerprint()
        return found


def part_with_data(volume: Volume) -> Volume:
    """The volume, or the box of it that holds data: cells at its faces are judged as at those of a volume."""
    box = data_box(volume)
    if all(span == (0, n) for span, n in zip(box, volume.shape, strict=True)):
        return volume
    log.info(
        "%s: data lie in %s (z, y, x); the rest is blank and takes no part",
        volume.name, ", ".join(f"{a}:{b}" for a, b in box),
    )  # fmt: skip
    return volume.cropped(box)


def options_for(request: DetectRequest, part: Volume) -> RunOptions:
    roi = None
    if request.roi is not None:
        crop = part.crop or tuple((0, n) for n in part.shape)
        ends = (request.roi.z, request.roi.y, request.roi.x)
        spans = [
            (max(start, a) - a, (b if stop is None else min(stop, b)) - a)
            for (start, stop), (a, b) in zip(ends, crop, strict=True)
        ]
        if any(start >= stop for start, stop in spans):
            raise DataError(f"--roi {request.roi} holds no data: the image is blank there")
        roi = (spans[0], spans[1], spans[2])
    return RunOptions(
        threshold=request.threshold,
        cell_diameter_um=_asked_diameter(request),
        roi=roi,
        block=request.block,
        backend=request.backend,
        device=request.device,
        workers=request.workers,
        scheduler=request.scheduler,
        progress=request.progress,
    )


def sized(request: DetectRequest, inputs: Inputs) -> DetectRequest:
    """The request with the diameter of the cells measured, where that is asked for; equal images give equal ones.

    Where there are too few clear cells to measure, the detector's own diameter stays, with a warning.
    """
    if request.cell_diameter_um != "auto":
        return request
    own = inputs.detector.spec.cell_diameter_um
    size = measure_cell_size(inputs.volume, Intensity.fit(inputs.volume, own))
    if not size.known:
        log.warning(
            "--cell-diameter auto: only %d clear cells to measure on sample patches; the detector's %g um is taken",
            size.blobs, own,
        )  # fmt: skip
        return dataclasses.replace(request, cell_diameter_um=None)
    # A tenth of a micrometre more or less makes no difference.
    diameter = round(min(max(size.diameter_um, SMALLEST_UM), LARGEST_UM), 1)
    log.info("--cell-diameter auto: %g um, measured on %d clear cells", diameter, size.blobs)
    return dataclasses.replace(request, cell_diameter_um=diameter)


def _asked_diameter(request: DetectRequest) -> float | None:
    """The diameter that was given as a number, or measured."""
    return None if request.cell_diameter_um == "auto" else request.cell_diameter_um


def looked_for(request: DetectRequest, inputs: Inputs) -> float:
    """Expected diameter of a cell, um."""
    return _asked_diameter(request) or inputs.detector.spec.cell_diameter_um


def foreseen(request: DetectRequest, inputs: Inputs) -> list[str]:
    """What can be said against a run before it starts."""
    y, x = inputs.volume.voxel_um[1:]
    diameter = looked_for(request, inputs)
    if max(y, x) <= _COARSEST_PIXEL * diameter:
        return []
    return [
        f"pixels of {y:g} x {x:g} um are too coarse for cells of {diameter:g} um: they would be specks, like much "
        "else; give the image at full resolution, or the true --voxel-size or --cell-diameter"
    ]
