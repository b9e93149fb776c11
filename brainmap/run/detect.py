"""From a brain to a table of cells per region: joins detection, registration, counting and report.

The stages leave their results in the run folder and are not repeated: the same command on the same
folder goes on where the last one stopped.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from brainmap.coords import parse_known_letters
from brainmap.errors import BrainmapError, DataError, IncompleteRunError, NotFoundError, UsageError
from brainmap.export.formats import export_points
from brainmap.files import fingerprint, now
from brainmap.image.cell_size import LARGEST_UM, SMALLEST_UM, measure_cell_size
from brainmap.image.data_box import data_box
from brainmap.image.intensity import Intensity
from brainmap.image.level_evidence import placed_by_evidence
from brainmap.image.mask import Mask
from brainmap.image.plausible import check_voxel_um
from brainmap.image.volume import Volume
from brainmap.infer.detector import Detector
from brainmap.infer.engine.engine import DetectionResult, RunOptions, preload, run_detection
from brainmap.infer.engine.estimate import estimate
from brainmap.infer.engine.results import iter_results, stored_from
from brainmap.machine import keep_freed_memory
from brainmap.points.table import Points
from brainmap.progress import task
from brainmap.run.cells import ImageFrame, located
from brainmap.run.count import count_in_regions, write_points
from brainmap.run.request import DetectRequest
from brainmap.run.swap import finish_swap
from brainmap.run.threshold_counts import count_over_thresholds
from brainmap.run_folder import (
    BLOCKS_DIR,
    INTENSITY_FILE,
    POINTS_PARQUET,
    REGISTRATION_DIR,
    REPORT_HTML,
    RunRecord,
    clear_run,
    is_run,
)

if TYPE_CHECKING:
    from brainmap.atlas.atlas import Atlas
    from brainmap.registration.register import Registration

__all__ = ["DetectSummary", "detect_brain"]

log = logging.getLogger(__name__)

# Clear cells (by contrast) tell the size of cells; this many, this far from the expected size, are a warning.
_CLEAR_SNR, _ENOUGH_CELLS, _SIZE_RATIO = 10.0, 20, 1.45
# Pixels larger than this share of a cell show it as a speck; the shipped detector has seen none above 0.3.
_COARSEST_PIXEL = 0.5
# Pixels larger than so many cells are a mistake, and a grid made for cells would fill the memory.
_SENSELESS_PIXEL = 5.0

# What stages are called while they go on.
_SAID = {
    "overview": "measuring background and tissue",
    "regions": "counting cells per region",
    "report": "writing the report",
}

T = TypeVar("T")


@dataclass(frozen=True)
class DetectSummary:
    """What `brainmap detect` prints.

    Parameters
    ----------
    run : Path
        The run folder.
    status : str
        "complete", "incomplete", or "planned" after a dry run.
    cells, outside : int
        Cells found; those outside the atlas (None without one).
    seconds : float
        Of this command.
    voxels_per_second : float
        Voxels of the blocks processed by this command over the time that took; 0 where none were left.
    warnings : tuple of str
    plan : dict or None
        The estimate of a dry run.
    """

    run: Path
    status: str
    cells: int
    outside: int | None
    seconds: float
    voxels_per_second: float
    warnings: tuple[str, ...] = ()
    plan: dict[str, Any] | None = None

    def __str__(self) -> str:
        if self.plan is not None:
            width = max(map(len, self.plan))
            lines = [f"{name:<{width}}  {value}" for name, value in self.plan.items()]
            return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])
        rate = f", {self.voxels_per_second / 1e6:.3g} Mvoxel/s" if self.voxels_per_second else ""
        lines = [f"{self.cells} cells in {self.seconds:.1f} s{rate}"]
        if self.outside is not None:
            lines.append(f"{self.outside} of them outside the atlas")
        lines += [f"warning: {warning}" for warning in self.warnings]
        lines.append(f"report  {self.run / REPORT_HTML}")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Inputs:
    """Everything a run reads, opened and checked before anything is computed."""

    volume: Volume
    detector: Detector
    atlas: Atlas | None
    registration: Registration | None
    mask: Mask | None

    @classmethod
    def open(cls, request: DetectRequest) -> _Inputs:
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
        return cls(volume, detector, atlas, registration, mask)

    def fingerprints(self) -> dict[str, str]:
        """What the result depends on besides the parameters."""
        found = {"volume": self.volume.fingerprint(), "detector": self.detector.fingerprint}
        if self.registration is not None:
            found["registration"] = self.registration.fingerprint
        if self.atlas is not None:
            found["atlas"] = fingerprint(self.atlas.fingerprint_parts())
        if self.mask is not None:
            found["mask"] = self.mask.volume.fingerprint()
        return found


def detect_brain(request: DetectRequest) -> DetectSummary:
    """Detect the cells of a brain and count them per region.

    Parameters
    ----------
    request : DetectRequest

    Returns
    -------
    DetectSummary
        Also printed by the command line.

    Raises
    ------
    UsageError
        If options are wrong or contradict the image, or the run folder holds a run with other
        parameters.
    DataError, NotFoundError
        If the image, atlas, detector or registration cannot be used.
    IncompleteRunError
        If blocks could not be processed; everything else is done and written.
    """
    inputs = _Inputs.open(request)
    request = _sized(request, inputs)
    if request.dry_run:
        return _plan(request, inputs)
    try:
        return _Run(request, inputs).all()
    except OSError as error:
        if isinstance(error, BrainmapError):
            raise
        raise DataError(
            f"cannot read or write {error.filename or request.out}: {error.strerror or error}; finished blocks are "
            "kept, the same command goes on from them"
        ) from error


class _Run:
    """One run: its record, its stages."""

    def __init__(self, request: DetectRequest, inputs: _Inputs) -> None:
        self.request, self.inputs = request, inputs
        self.folder = request.out
        self.began = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self.warnings = _foreseen(request, inputs)
        self.verdict: str | None = None
        self.record = self._open_record()

    def all(self) -> DetectSummary:
        """Every stage, in order."""
        keep_freed_memory()
        for warning in self.warnings:
            # A run may take hours: what makes it pointless is said before.
            log.warning("%s", warning)
        registration = self._stage("registration", self._register)
        self.part = _part_with_data(self.inputs.volume)
        if self.record.status != "complete":
            threading.Thread(target=self._load_ahead, name="brainmap-load-ahead").start()
        intensity = self._stage("overview", self._fit_intensity)
        result = self._stage("detection", lambda: self._detect(intensity))
        outside = self._stage("regions", lambda: self._assemble(registration))
        self._finish(result, outside)
        self._stage("report", self._report)
        for kind in self.request.exports:
            with task(f"exporting {kind}"):
                log.info("exported %s", export_points(self.folder, kind))
        if result.failed:
            first = next(iter(result.failed.items()))
            raise IncompleteRunError(
                f"{len(result.failed)} of {result.blocks} blocks could not be processed "
                f"(block {first[0]}: {first[1]}); the rest is in {self.folder}, and the same command tries them again"
            )
        return DetectSummary(
            run=self.folder,
            status=result.status,
            cells=self.cells,
            outside=outside,
            seconds=time.perf_counter() - self.began,
            voxels_per_second=result.voxels / result.seconds if result.voxels else 0.0,
            warnings=tuple(self.warnings),
        )

    def _open_record(self) -> RunRecord:
        """Start or resume; refuse a folder that holds another run or something else."""
        parameters, prints = self.request.parameters(), self.inputs.fingerprints()
        if is_run(self.folder):
            finish_swap(self.folder)
            old = RunRecord.load(self.folder)
            if not self.request.overwrite:
                self._offer_recount(old, parameters, prints)
                old.require_same(self.folder, parameters, prints)
                self._say_threshold(old)
                return old
            clear_run(self.folder)
        elif self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise UsageError(f"{self.folder} exists and is not a run folder; give another --out")
        record = RunRecord(parameters=parameters, fingerprints=prints, execution=self.request.execution())
        try:
            record.save(self.folder)
        except OSError as error:
            raise DataError(f"cannot write to {self.folder}: {error.strerror or error}") from error
        return record

    def _offer_recount(self, old: RunRecord, parameters: dict[str, Any], prints: dict[str, str]) -> None:
        """Refuse a run that differs in nothing but its threshold with the quick way to the other one."""
        if len(old.differences(parameters, prints)) != 1 or old.differences(
            parameters | {"threshold": old.parameters.get("threshold")}, prints
        ):
            return
        with suppress(NotFoundError):
            if self._threshold >= stored_from(self.folder) and (self.folder / POINTS_PARQUET).is_file():
                raise UsageError(
                    f"{self.folder} holds a run with another threshold (threshold was "
                    f"{old.parameters.get('threshold')}, is now {self.request.threshold}): brainmap regions "
                    f"{self.folder} --threshold {self._threshold:g} counts it anew in moments; use --overwrite to "
                    "detect again, or another --out"
                )

    def _say_threshold(self, old: RunRecord) -> None:
        """Say that a threshold chosen after the run gives way to the run's own."""
        chosen = old.results.get("threshold")
        if chosen is not None and chosen != self._threshold:
            log.warning(
                "%s was at threshold %g by brainmap regions; it goes back to %g",
                self.folder,
                chosen,
                self._threshold,
            )

    @property
    def _threshold(self) -> float:
        asked = self.request.threshold
        return self.inputs.detector.spec.threshold if asked is None else asked

    def _stage(self, name: str, work: Callable[[], T]) -> T:
        start = time.perf_counter()
        # Registration and detection report themselves.
        with task(_SAID[name]) if name in _SAID else nullcontext():
            result = work()
        self.seconds[name] = round(time.perf_counter() - start, 3)
        return result

    def _register(self) -> Registration | None:
        given = self.inputs.registration
        if given is not None:
            self._note(given)
        if self.inputs.atlas is None or given is not None:
            return given
        from brainmap.registration.register import register

        request, volume = self.request, self.inputs.volume
        channel = request.channel if request.registration_channel is None else request.registration_channel
        source = request.brain if request.registration_image is None else str(request.registration_image)
        if request.registration_image is not None:
            image = Volume.open(source, channel=request.registration_channel, orientation=volume.orientation)
        elif channel is not None and channel != volume.channel:
            image = volume.with_channel(channel)
        else:
            image = volume
        registration = register(
            image,
            self.inputs.atlas,
            self.folder / REGISTRATION_DIR,
            orientation=request.orientation or volume.orientation,
            mask=None if self.inputs.mask is None else self.inputs.mask.volume,
        )
        self._note(registration)
        self.warnings += registration.orientation_warnings
        if request.finds_orientation:
            found = dataclasses.replace(volume, orientation=registration.grid.orientation)
            self.inputs = dataclasses.replace(self.inputs, volume=found)
        return registration

    def _note(self, registration: Registration) -> None:
        """Carry a registration's verdict and warnings into the record of the run."""
        self.verdict = registration.judgement.verdict
        self.warnings += registration.warnings

    def _load_ahead(self) -> None:
        """Load the network, beside the overview."""
        # What fails here fails again where it is needed, and is said there.
        with suppress(Exception):
            preload(self.part, self.inputs.detector, self.folder, _options(self.request, self.part))

    def _fit_intensity(self) -> Intensity:
        saved = self.folder / BLOCKS_DIR / INTENSITY_FILE
        if saved.is_file():
            return Intensity.load(saved)
        return Intensity.fit(self.part, _diameter(self.request, self.inputs))

    def _detect(self, intensity: Intensity) -> DetectionResult:
        if self.inputs.mask is not None:
            inside = self.inputs.mask.touches(intensity, self.part)
            intensity = dataclasses.replace(intensity, tissue=intensity.tissue & inside)
        return run_detection(
            self.part,
            intensity,
            self.inputs.detector,
            self.folder,
            _options(self.request, self.part),
            meanwhile=_load_report,
        )

    def _assemble(self, registration: Registration | None) -> int | None:
        """points.parquet and regions.csv from the finished blocks; returns the cells outside the atlas."""
        meta = self._meta(registration)
        sizes = np.zeros(400, np.int64)
        pieces = self._pieces(sizes)
        mapped = write_points(self.folder / POINTS_PARQUET, pieces, meta, self.inputs.atlas, registration)
        self.cells, self.regions_agree = mapped.cells, mapped.regions_agree
        self._compare_size(sizes)
        frame = ImageFrame.of(self.inputs.volume)
        count_over_thresholds(
            self.folder, self.folder, frame, self.inputs.mask, self.inputs.atlas, registration
        )
        if mapped.counter is None or registration is None or self.inputs.atlas is None:
            return None
        regions = count_in_regions(
            self.folder, mapped.counter, registration, self.inputs.atlas, frame,
            roi=self.request.roi, mask=self.inputs.mask, level=self.request.level,
        )  # fmt: skip
        return int(regions["count"][0])

    def _pieces(self, sizes: NDArray[np.int64]) -> Iterator[Points]:
        """Cells with their um, inside the mask; counts the diameters of clear ones in half um."""
        for piece in located(iter_results(self.folder), ImageFrame.of(self.inputs.volume), self.inputs.mask):
            clear = piece["diameter_um"][piece["snr"] > _CLEAR_SNR]
            place = np.clip(2 * clear[np.isfinite(clear)], 0, len(sizes) - 1).astype(np.int64)
            sizes += np.bincount(place, minlength=len(sizes))
            yield piece

    def _compare_size(self, sizes: NDArray[np.int64]) -> None:
        """Warn where the cells are much larger or smaller than the detector was told."""
        count = int(sizes.sum())
        if count < _ENOUGH_CELLS:
            return
        median = (int(np.searchsorted(np.cumsum(sizes), count / 2)) + 0.5) / 2
        expected = _diameter(self.request, self.inputs)
        if not 1 / _SIZE_RATIO < median / expected < _SIZE_RATIO:
            self.warnings.append(
                f"the clear cells measure about {median:.0f} um across (median of {count}), the detector looked for "
                f"{expected:g} um: compare with --cell-diameter {median:.0f}"
            )

    def _meta(self, registration: Registration | None) -> dict[str, Any]:
        volume, detector = self.inputs.volume, self.inputs.detector
        return {
            "frame": "z y x: level-0 voxel index, 0 is the centre of the first voxel",
            "units": {"z_um": "um in the sample", "atlas_z_um": "um in the atlas from its outer corner, asr"},
            "voxel_um": volume.voxel_um,
            "origin_um": volume.origin_um,
            "shape": volume.shape,
            "brain": volume.url,
            "orientation": volume.orientation,
            "detector": {
                "name": detector.spec.name,
                "version": detector.spec.version,
                "sha256": detector.fingerprint,
            },
            "atlas": None if registration is None else registration.atlas_name,
            "atlas_resolution_um": None if self.inputs.atlas is None else self.inputs.atlas.resolution_um,
            "registration": None if registration is None else registration.fingerprint,
        }

    def _report(self) -> None:
        from brainmap.report.run_report import write_run_report

        write_run_report(self.folder)

    def _finish(self, result: DetectionResult, outside: int | None) -> None:
        """Write what this command found out into run.json."""
        if not result.resumed or result.voxels:
            timings = self.seconds | {f"detection_{k}": v for k, v in result.timings_s.items()}
        else:
            timings = self.record.timings_s
        numbers: dict[str, Any] = {
            "cells": self.cells,
            "orientation": self.inputs.volume.orientation,
            "outside_atlas": outside,
            "regions_agree": self.regions_agree,
            "registration_verdict": self.verdict,
            "voxels": result.voxels,
            "voxels_per_second": result.voxels / result.seconds if result.voxels else None,
            "read_voxels": result.read_voxels,
            "read_amplification": result.read_voxels / result.voxels if result.voxels else None,
            "peak_memory_bytes": result.peak_memory_bytes,
        }
        settings = {
            "threshold": self._threshold,
            "threshold_from": "the detector"
            if self.request.threshold is None
            else "brainmap detect --threshold",
            "candidate_score": stored_from(self.folder),
            "cell_diameter_um": _diameter(self.request, self.inputs),
        }
        record = RunRecord.load(self.folder)
        record.updated(
            status=result.status,
            finished=now(),
            timings_s=timings | {"total": round(time.perf_counter() - self.began, 3)},
            results={k: v for k, v in (record.results | numbers).items() if v is not None} | settings,
            warnings=tuple(self.warnings),
            execution=self.request.execution()
            | {"backend": self.request.backend, "device": self.request.device},
        ).save(self.folder)


def _load_report() -> None:
    """Load what the report is drawn with: modules, and by a first drawing fonts and styles."""
    # What fails here fails again when the report is written, and then the cells are safe.
    with suppress(Exception):
        import brainmap.report.run_report  # noqa: F401
        from brainmap.report.style import clean, new_figure

        figure = new_figure(1.0, 1.0)
        clean(figure.subplots(), x="0")
        figure.draw_without_rendering()


def _part_with_data(volume: Volume) -> Volume:
    """The volume, or the box of it that holds data: cells at its faces are judged as at those of a volume."""
    box = data_box(volume)
    if all(span == (0, n) for span, n in zip(box, volume.shape, strict=True)):
        return volume
    log.info(
        "%s: data lie in %s (z, y, x); the rest is blank and takes no part",
        volume.name, ", ".join(f"{a}:{b}" for a, b in box),
    )  # fmt: skip
    return volume.cropped(box)


def _options(request: DetectRequest, part: Volume) -> RunOptions:
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
        overwrite=request.overwrite,
        progress=request.progress,
    )


def _sized(request: DetectRequest, inputs: _Inputs) -> DetectRequest:
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


def _diameter(request: DetectRequest, inputs: _Inputs) -> float:
    """Expected diameter of a cell, um."""
    return _asked_diameter(request) or inputs.detector.spec.cell_diameter_um


def _foreseen(request: DetectRequest, inputs: _Inputs) -> list[str]:
    """What can be said against a run before it starts."""
    y, x = inputs.volume.voxel_um[1:]
    diameter = _diameter(request, inputs)
    if max(y, x) <= _COARSEST_PIXEL * diameter:
        return []
    return [
        f"pixels of {y:g} x {x:g} um are too coarse for cells of {diameter:g} um: they would be specks, like much "
        "else; give the image at full resolution, or the true --voxel-size or --cell-diameter"
    ]


def _plan(request: DetectRequest, inputs: _Inputs) -> DetectSummary:
    """The dry run: what the command would read, need and take."""
    diameter = _diameter(request, inputs)
    part = _part_with_data(inputs.volume)
    intensity = Intensity.fit(part, diameter)
    plan = estimate(part, intensity, inputs.detector, _options(request, part))
    warnings = tuple(_foreseen(request, inputs))
    return DetectSummary(
        request.out, "planned", 0, None, 0.0, 0.0, warnings=warnings, plan=dataclasses.asdict(plan)
    )
