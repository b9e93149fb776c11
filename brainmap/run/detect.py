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
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from brainmap.errors import BrainmapError, DataError, IncompleteRunError
from brainmap.files import atomic_path, clone_tree, now
from brainmap.image.intensity import Intensity
from brainmap.infer.engine.chunks import unstored_share
from brainmap.infer.engine.engine import DetectionResult, preload, run_detection
from brainmap.infer.engine.estimate import estimate
from brainmap.infer.engine.results import iter_results, stored_from
from brainmap.lock import held
from brainmap.machine import keep_freed_memory
from brainmap.points.table import Points
from brainmap.progress import task
from brainmap.run.cells import ImageFrame, located
from brainmap.run.count import count_in_regions, write_points
from brainmap.run.inputs import Inputs, foreseen, looked_for, options_for, part_with_data, sized
from brainmap.run.pages import write_pages
from brainmap.run.place import RunPlace, require_free
from brainmap.run.request import DetectRequest
from brainmap.run.said import DetectSummary
from brainmap.run.threshold_counts import count_over_thresholds
from brainmap.run_folder import (
    BLOCKS_DIR,
    EXPORTS_DIR,
    INTENSITY_FILE,
    MUCH_UNSTORED,
    POINTS_PARQUET,
    REGISTRATION_DIR,
    RUN_JSON,
    RunRecord,
)
from brainmap.swap import staged

if TYPE_CHECKING:
    from brainmap.registration.register import Registration

__all__ = ["DetectSummary", "detect_brain"]

log = logging.getLogger(__name__)

# Clear cells (by contrast) tell the size of cells; this many, this far from the expected size, are a warning.
_CLEAR_SNR, _ENOUGH_CELLS, _SIZE_RATIO = 10.0, 20, 1.45
# What an interrupted run leaves.
_KEPT = "finished blocks and the registration are kept in {}, and the same command goes on from them"

# What stages are called while they go on.
_SAID = {
    "overview": "measuring background and tissue",
    "regions": "counting cells per region",
}

T = TypeVar("T")


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
    inputs = Inputs.open(request)
    request = sized(request, inputs)
    if request.dry_run:
        return _plan(request, inputs)
    require_free(request.out)
    try:
        with held(request.out, _KEPT.format(request.out)):
            return _Run(request, inputs).all()
    except OSError as error:
        if isinstance(error, BrainmapError):
            raise
        raise DataError(
            f"cannot read or write {error.filename or request.out}: {error.strerror or error}; "
            f"{_KEPT.format(request.out)}"
        ) from error


class _Run:
    """One run: its record, its stages."""

    def __init__(self, request: DetectRequest, inputs: Inputs) -> None:
        self.request, self.inputs = request, inputs
        self.began = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self.warnings = foreseen(request, inputs)
        self.verdict: str | None = None
        self.place = RunPlace.open(request, request.parameters(), inputs.fingerprints(), self._threshold)
        self.folder, self.record = self.place.folder, self.place.record

    def all(self) -> DetectSummary:
        """Every stage, in order; what people read is replaced at the end, all of it or nothing."""
        keep_freed_memory()
        for warning in self.warnings:
            # A run may take hours: what makes it pointless is said before.
            log.warning("%s", warning)
        registration = self._stage("registration", self._register)
        self.part = part_with_data(self.inputs.volume)
        if self.record.status != "complete":
            threading.Thread(target=self._load_ahead, name="brainmap-load-ahead").start()
        intensity = self._stage("overview", self._fit_intensity)
        result = self._stage("detection", lambda: self._detect(intensity))
        with staged(self.folder, RUN_JSON, [EXPORTS_DIR]) as new:
            outside = self._stage("regions", lambda: self._assemble(registration, new))
            self._look_for_chunks(intensity)
            self._finish(result, outside, new)
            write_pages(self.folder, new, self.inputs.volume, self.request.exports)
        self._publish(result)
        return DetectSummary(
            run=self.place.home,
            status=result.status,
            cells=self.cells,
            outside=outside,
            seconds=time.perf_counter() - self.began,
            voxels_per_second=result.voxels / result.seconds if result.voxels else 0.0,
            warnings=tuple(self.warnings),
            registration=self.verdict,
            unstored=self.unstored,
        )

    def _publish(self, result: DetectionResult) -> None:
        """Let the run take its place, unless blocks are missing where a complete one is there; say so."""
        kept = result.failed and self.place.replaces_complete
        if not kept:
            self.place.publish()
        if not result.failed:
            return
        first = next(iter(result.failed.items()))
        rest = f"the rest is in {self.place.home}, and the same command tries them again"
        if kept:
            rest = (
                f"{self.place.home} keeps its complete run until then, and the same command tries them again"
            )
        raise IncompleteRunError(
            f"{len(result.failed)} of {result.blocks} blocks could not be processed "
            f"(block {first[0]}: {first[1]}); {rest}"
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
            self._keep_inside(given)
        if self.inputs.atlas is None or given is not None:
            return given
        from brainmap.registration.register import register

        request, volume = self.request, self.inputs.volume
        channel = request.channel if request.registration_channel is None else request.registration_channel
        image = volume
        if self.inputs.registration_image is not None:
            image = dataclasses.replace(self.inputs.registration_image, orientation=volume.orientation)
        elif channel is not None and channel != volume.channel:
            image = volume.with_channel(channel)
        registration = register(
            image,
            self.inputs.atlas,
            self.folder / REGISTRATION_DIR,
            orientation=request.orientation or volume.orientation,
            mask=None if self.inputs.mask is None else self.inputs.mask.volume,
            reuse=self.place.reusable_registration,
        )
        self._note(registration)
        self.warnings += registration.orientation_warnings
        if request.finds_orientation:
            found = dataclasses.replace(volume, orientation=registration.grid.orientation)
            self.inputs = dataclasses.replace(self.inputs, volume=found)
        return registration

    def _keep_inside(self, given: Registration) -> None:
        """A given registration that lies in the run to be replaced goes over into its successor."""
        inside, own = self.place.home / REGISTRATION_DIR, self.folder / REGISTRATION_DIR
        if self.place.replaces and not own.is_dir() and given.folder.resolve() == inside.resolve():
            with atomic_path(own) as part:
                clone_tree(inside, part)

    def _note(self, registration: Registration) -> None:
        """Carry a registration's verdict and warnings into the record of the run."""
        self.verdict = registration.judgement.verdict
        self.warnings += registration.warnings

    def _load_ahead(self) -> None:
        """Load the network, beside the overview."""
        # What fails here fails again where it is needed, and is said there.
        with suppress(Exception):
            preload(self.part, self.inputs.detector, self.folder, options_for(self.request, self.part))

    def _fit_intensity(self) -> Intensity:
        diameter = looked_for(self.request, self.inputs)
        saved = self.folder / BLOCKS_DIR / INTENSITY_FILE
        if not saved.is_file():
            saved = self.place.overview_of_before(diameter) or saved
        if saved.is_file():
            try:
                return Intensity.load(saved)
            except DataError as error:
                # Equal images give equal ones: finished blocks stay right.
                log.warning("%s", error)
        return Intensity.fit(self.part, diameter)

    def _detect(self, intensity: Intensity) -> DetectionResult:
        if self.inputs.mask is not None:
            inside = self.inputs.mask.touches(intensity, self.part)
            intensity = dataclasses.replace(intensity, tissue=intensity.tissue & inside)
        return run_detection(
            self.part,
            intensity,
            self.inputs.detector,
            self.folder,
            options_for(self.request, self.part),
            meanwhile=_load_report,
        )

    def _assemble(self, registration: Registration | None, new: Path) -> int | None:
        """points.parquet and regions.csv from the finished blocks, in a folder; returns the cells outside the atlas."""
        meta = self._meta(registration)
        sizes = np.zeros(400, np.int64)
        pieces = self._pieces(sizes)
        mapped = write_points(new / POINTS_PARQUET, pieces, meta, self.inputs.atlas, registration)
        self.cells, self.regions_agree = mapped.cells, mapped.regions_agree
        self._compare_size(sizes)
        frame = ImageFrame.of(self.inputs.volume)
        count_over_thresholds(self.folder, new, frame, self.inputs.mask, self.inputs.atlas, registration)
        if mapped.counter is None or registration is None or self.inputs.atlas is None:
            return None
        regions = count_in_regions(
            new, mapped.counter, registration, self.inputs.atlas, frame,
            roi=self.request.roi, mask=self.inputs.mask, level=self.request.level,
        )  # fmt: skip
        return int(regions["count"][0])

    def _look_for_chunks(self, intensity: Intensity) -> None:
        """Warn where much of the tissue is not stored: a copy that was cut short reads as darkness."""
        self.unstored = unstored_share(
            self.folder, self.part, intensity, looked_for(self.request, self.inputs)
        )
        if self.unstored > MUCH_UNSTORED:
            self.warnings.append(
                f"{100 * self.unstored:.3g} % of the tissue is in chunks that are not stored and was read as empty: "
                "cells there are missing; is the copy of the image complete?"
            )
            log.warning("%s", self.warnings[-1])

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
        expected = looked_for(self.request, self.inputs)
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

    def _finish(self, result: DetectionResult, outside: int | None, new: Path) -> None:
        """Write what this command found out into the run.json of a folder."""
        if not result.resumed or result.voxels:
            timings = self.seconds | {f"detection_{k}": v for k, v in result.timings_s.items()}
        else:
            timings = self.record.timings_s
        numbers: dict[str, Any] = {
            "cells": self.cells,
            "orientation": self.inputs.volume.orientation,
            "outside_atlas": outside,
            "regions_agree": self.regions_agree,
            "unstored_tissue": self.unstored,
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
            "cell_diameter_um": looked_for(self.request, self.inputs),
        }
        record = RunRecord.load(self.folder)
        record.updated(
            parameters=self.record.parameters,
            status=result.status,
            finished=now(),
            timings_s=timings | {"total": round(time.perf_counter() - self.began, 3)},
            results={k: v for k, v in (record.results | numbers).items() if v is not None} | settings,
            warnings=tuple(self.warnings),
            execution=self.record.execution
            | self.request.execution()
            | {"backend": self.request.backend, "device": self.request.device},
        ).save(new)


def _load_report() -> None:
    """Load what the report is drawn with: modules, and by a first drawing fonts and styles."""
    # What fails here fails again when the report is written, and then the cells are safe.
    with suppress(Exception):
        import brainmap.report.run_report  # noqa: F401
        from brainmap.report.style import clean, new_figure

        figure = new_figure(1.0, 1.0)
        clean(figure.subplots(), x="0")
        figure.draw_without_rendering()


def _plan(request: DetectRequest, inputs: Inputs) -> DetectSummary:
    """The dry run: what the command would read, need and take."""
    diameter = looked_for(request, inputs)
    part = part_with_data(inputs.volume)
    intensity = Intensity.fit(part, diameter)
    plan = estimate(part, intensity, inputs.detector, options_for(request, part))
    warnings = tuple(foreseen(request, inputs))
    return DetectSummary(
        request.out, "planned", 0, None, 0.0, 0.0, warnings=warnings, plan=dataclasses.asdict(plan),
        registers=inputs.atlas is not None and inputs.registration is None,
    )  # fmt: skip
