"""From a brain to a table of cells per region: joins detection, registration, counting and report.

The stages leave their results in the run folder and are not repeated: the same command on the same
folder goes on where the last one stopped.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from brainmap.config import DetectRequest
from brainmap.coords import vox_to_um
from brainmap.errors import BrainmapError, DataError, IncompleteRunError, NotFoundError, UsageError
from brainmap.exports import export_points
from brainmap.infer.detector import Detector
from brainmap.infer.engine import INTENSITY_FILE, DetectionResult, RunOptions, run_detection
from brainmap.infer.estimate import estimate
from brainmap.infer.results import BLOCKS_DIR, iter_results
from brainmap.intensity import Intensity
from brainmap.mask import Mask
from brainmap.points import POINTS_PARQUET, Points, PointsWriter, iter_points
from brainmap.provenance import RunRecord, atomic_path, fingerprint, now
from brainmap.volume import Volume

if TYPE_CHECKING:
    from brainmap.atlas.atlas import Atlas
    from brainmap.atlas.registration import Registration
    from brainmap.atlas.regions import RegionTable

__all__ = ["DetectSummary", "detect_brain", "recount", "run_demo"]

log = logging.getLogger(__name__)

REGISTRATION_DIR, REGIONS_CSV, REPORT = "registration", "regions.csv", "report.html"
ATLAS_COLUMNS = ("atlas_z_um", "atlas_y_um", "atlas_x_um")

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
            return "\n".join(f"{name:<{width}}  {value}" for name, value in self.plan.items())
        rate = f", {self.voxels_per_second / 1e6:.1f} Mvoxel/s" if self.voxels_per_second else ""
        lines = [f"{self.cells} cells in {self.seconds:.1f} s{rate}"]
        if self.outside is not None:
            lines.append(f"{self.outside} of them outside the atlas")
        lines += [f"warning: {warning}" for warning in self.warnings]
        lines.append(f"report  {self.run / REPORT}")
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
        if request.orientation == "auto":
            raise UsageError("--orientation auto is not supported yet; give three letters such as asr")
        volume = Volume.open(
            request.brain, channel=request.channel, voxel_um=request.voxel_um, orientation=request.orientation
        )
        registration = atlas = None
        if request.registration is not None:
            from brainmap.atlas.registration import Registration

            registration = Registration.load(request.registration)
            registration.check_belongs(volume, request.orientation)
        if request.wants_regions:
            from brainmap.atlas.atlas import Atlas

            if registration is None and volume.orientation is None:
                raise UsageError(
                    f"the orientation of {volume.name} is not known; give --orientation with three letters that name "
                    "the side where its z, y and x axes start (such as asr), or --no-atlas"
                )
            atlas = Atlas.open(registration.atlas_folder) if registration else Atlas.open(str(request.atlas))
        elif needless := sorted({"brainmapper", "brainrender"} & set(request.exports)):
            raise UsageError(f"--export {needless[0]} needs an atlas; leave --no-atlas out")
        detector = Detector.open(request.detector)
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
        self.warnings: list[str] = []
        self.record = self._open_record()

    def all(self) -> DetectSummary:
        """Every stage, in order."""
        registration = self._stage("registration", self._register)
        intensity = self._stage("overview", self._fit_intensity)
        result = self._stage("detection", lambda: self._detect(intensity))
        outside = self._stage("regions", lambda: self._assemble(registration))
        self._finish(result, outside)
        self._stage("report", lambda: _write_report(self.folder))
        for kind in self.request.exports:
            log.info("exported %s", export_points(self.folder, kind))
        if result.failed:
            first = next(iter(result.failed.items()))
            raise IncompleteRunError(
                f"{len(result.failed)} of {result.blocks} blocks could not be processed (block {first[0]}: {first[1]}); "
                f"the rest is in {self.folder}, and the same command tries them again"
            )
        return DetectSummary(
            run=self.folder,
            status=result.status,
            cells=result.cells if outside is None else self.cells,
            outside=outside,
            seconds=time.perf_counter() - self.began,
            voxels_per_second=result.voxels / result.seconds if result.voxels else 0.0,
            warnings=tuple(self.warnings),
        )

    def _open_record(self) -> RunRecord:
        """Start or resume; refuse a folder that holds another run or something else."""
        parameters, prints = self.request.parameters(), self.inputs.fingerprints()
        if (self.folder / "run.json").is_file():
            old = RunRecord.load(self.folder)
            if not self.request.overwrite:
                old.require_same(self.folder, parameters, prints)
                return old
            _clear(self.folder)
        elif self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise UsageError(f"{self.folder} exists and is not a run folder; give another --out")
        record = RunRecord(parameters=parameters, fingerprints=prints, execution=self.request.execution())
        try:
            record.save(self.folder)
        except OSError as error:
            raise DataError(f"cannot write to {self.folder}: {error.strerror or error}") from error
        return record

    def _stage(self, name: str, work: Callable[[], T]) -> T:
        start = time.perf_counter()
        result = work()
        self.seconds[name] = round(time.perf_counter() - start, 3)
        return result

    def _register(self) -> Registration | None:
        if self.inputs.atlas is None or self.inputs.registration is not None:
            return self.inputs.registration
        from brainmap.atlas.registration import register

        request, volume = self.request, self.inputs.volume
        channel = request.channel if request.registration_channel is None else request.registration_channel
        source = request.brain if request.registration_image is None else str(request.registration_image)
        if request.registration_image is not None:
            image = Volume.open(source, channel=request.registration_channel, orientation=volume.orientation)
        elif channel != volume.channel:
            image = Volume.open(
                source, channel=channel, voxel_um=request.voxel_um, orientation=volume.orientation
            )
        else:
            image = volume
        registration = register(
            image,
            self.inputs.atlas,
            self.folder / REGISTRATION_DIR,
            orientation=volume.orientation,
            mask=None if self.inputs.mask is None else self.inputs.mask.volume,
        )
        if registration.judgement.verdict != "good":
            self.warnings.append(registration.judgement.sentence())
        return registration

    def _fit_intensity(self) -> Intensity:
        saved = self.folder / BLOCKS_DIR / INTENSITY_FILE
        if saved.is_file():
            return Intensity.load(saved)
        diameter = self.request.cell_diameter_um or self.inputs.detector.spec.cell_diameter_um
        return Intensity.fit(self.inputs.volume, diameter)

    def _detect(self, intensity: Intensity) -> DetectionResult:
        if self.inputs.mask is not None:
            inside = self.inputs.mask.touches(intensity, self.inputs.volume)
            intensity = dataclasses.replace(intensity, tissue=intensity.tissue & inside)
        return run_detection(
            self.inputs.volume, intensity, self.inputs.detector, self.folder, _options(self.request, self.inputs)
        )

    def _assemble(self, registration: Registration | None) -> int | None:
        """points.parquet and regions.csv from the finished blocks; returns the cells outside the atlas."""
        meta = self._meta(registration)
        pieces = self._pieces()
        self.cells, table = write_points(self.folder / POINTS_PARQUET, pieces, meta, self.inputs.atlas, registration)
        if table is None or registration is None or self.inputs.atlas is None:
            return None
        from brainmap.atlas.regions import write_regions

        volumes = _analysed_volumes(registration, self.inputs.atlas, self.request, self.inputs.volume, self.inputs.mask)
        regions = table.table(volumes)
        write_regions(regions, self.folder / REGIONS_CSV)
        return int(regions["count"][0])

    def _pieces(self) -> Iterator[Points]:
        volume, mask = self.inputs.volume, self.inputs.mask
        for piece in iter_results(self.folder):
            um = vox_to_um(piece.zyx_vox, volume.voxel_um, volume.origin_um)
            if mask is not None:
                inside = mask.contains(um)
                piece, um = piece.take(inside), um[inside]
            yield piece.with_columns(z_um=um[:, 0], y_um=um[:, 1], x_um=um[:, 2])

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
            "detector": {"name": detector.spec.name, "version": detector.spec.version, "sha256": detector.fingerprint},
            "atlas": None if registration is None else registration.atlas_name,
            "registration": None if registration is None else registration.fingerprint,
        }

    def _finish(self, result: DetectionResult, outside: int | None) -> None:
        """Write what this command found out into run.json."""
        if not result.resumed or result.voxels:
            timings = self.seconds | {f"detection_{k}": v for k, v in result.timings_s.items()}
        else:
            timings = self.record.timings_s
        numbers: dict[str, Any] = {
            "cells": self.cells,
            "outside_atlas": outside,
            "voxels": result.voxels,
            "voxels_per_second": result.voxels / result.seconds if result.voxels else None,
            "read_voxels": result.read_voxels,
            "peak_memory_bytes": result.peak_memory_bytes,
        }
        spec = self.inputs.detector.spec
        settings = {
            "threshold": spec.threshold if self.request.threshold is None else self.request.threshold,
            "cell_diameter_um": self.request.cell_diameter_um or spec.cell_diameter_um,
        }
        record = RunRecord.load(self.folder)
        record.updated(
            status=result.status,
            finished=now(),
            timings_s=timings | {"total": round(time.perf_counter() - self.began, 3)},
            results={k: v for k, v in (record.results | numbers).items() if v is not None} | settings,
            warnings=tuple(self.warnings),
            execution=self.request.execution() | {"backend": self.request.backend, "device": self.request.device},
        ).save(self.folder)


def write_points(
    path: Path,
    pieces: Iterator[Points],
    meta: dict[str, Any],
    atlas: Atlas | None,
    registration: Registration | None,
) -> tuple[int, Any]:
    """Map cells to the atlas piece by piece, write the table, count.

    Parameters
    ----------
    path : Path
        Table to write.
    pieces : iterator of Points
        Cells with `z_um y_um x_um`.
    meta : dict
        Metadata of the table.
    atlas, registration
        Both or neither.

    Returns
    -------
    cells : int
    counter : RegionCounter or None
    """
    counter = None
    if atlas is not None:
        from brainmap.atlas.regions import RegionCounter

        counter = RegionCounter(atlas.structures)
    with PointsWriter(path, meta) as writer:
        for piece in pieces:
            mapped = np.full((len(piece), 3), np.nan)
            region, hemisphere = np.zeros(len(piece), np.int64), np.zeros(len(piece), np.int8)
            if atlas is not None and registration is not None and counter is not None:
                mapped = registration.to_atlas_um(piece.zyx_um)
                region, hemisphere = atlas.lookup(mapped)
                counter.add(region, hemisphere)
            columns = dict(zip(ATLAS_COLUMNS, mapped.T, strict=True))
            writer.append(_ordered(piece.with_columns(region_id=region, hemisphere=hemisphere, **columns)))
        return writer.rows, counter


def _ordered(points: Points) -> Points:
    """The columns of the contract first, measured ones after them."""
    from brainmap.points import COLUMNS

    names = [name for name in COLUMNS if name in points] + [n for n in points.columns if n not in COLUMNS]
    return Points({name: points[name] for name in names}, points.meta)


def recount(run: str | Path, registration_dir: str | Path | None = None) -> RegionTable:
    """Map a run's cells to the atlas again and rewrite its tables and report.

    Parameters
    ----------
    run : path
        A finished run folder.
    registration_dir : path, optional
        A finished registration of the same brain; by default the run's own.

    Raises
    ------
    NotFoundError
        If the run has no table of cells, or there is no registration.
    UsageError
        If the registration is of another brain.
    """
    from brainmap.atlas.atlas import Atlas
    from brainmap.atlas.registration import Registration
    from brainmap.atlas.regions import write_regions

    folder = Path(run)
    record = RunRecord.load(folder)
    table = folder / POINTS_PARQUET
    if not table.is_file():
        raise NotFoundError(f"{folder} has no {POINTS_PARQUET}; run brainmap detect first")
    meta = next((piece.meta for piece in iter_points(table, 1)), None) or Points.read(table, ["z"]).meta
    own = record.parameters.get("registration") or folder / REGISTRATION_DIR
    registration = Registration.load(registration_dir or own)
    request = DetectRequest(brain=str(record.parameters["brain"]), out=folder, registration=registration.folder)
    request = dataclasses.replace(request, roi=_roi_of(record))
    volume = Volume.open(
        meta["brain"], channel=record.parameters.get("channel"), voxel_um=meta["voxel_um"],
        orientation=meta.get("orientation"),
    )  # fmt: skip
    registration.check_belongs(volume)
    atlas = Atlas.open(registration.atlas_folder)
    mask = Mask.open(record.parameters["mask"]) if record.parameters.get("mask") else None
    meta = meta | {"atlas": registration.atlas_name, "registration": registration.fingerprint}
    _, counter = write_points(table, iter_points(table), meta, atlas, registration)
    regions = counter.table(_analysed_volumes(registration, atlas, request, volume, mask))
    write_regions(regions, folder / REGIONS_CSV)
    _write_report(folder)
    return regions


def run_demo(out: str | Path) -> str:
    """Make a phantom brain, run the whole pipeline on it and score it against the known truth.

    Parameters
    ----------
    out : path
        Folder to write; a demo that is already there is used again.

    Returns
    -------
    str
        Recall, precision, counts per region beside the truth, and the report to open.
    """
    from brainmap.evaluation import evaluate_files
    from brainmap.phantom import write_phantom
    from brainmap.report.run_report import write_run_report
    from brainmap.report.region_rows import read_regions

    folder = Path(out)
    log.info("making a phantom brain in %s", folder)
    phantom = write_phantom(folder / "phantom")
    request = DetectRequest(
        brain=str(phantom.brain),
        out=folder / "run",
        channel=phantom.signal_channel,
        registration_channel=phantom.registration_channel,
        atlas=str(phantom.atlas),
        overwrite=True,
    )
    summary = detect_brain(request)
    report = write_run_report(summary.run, truth=phantom.truth, truth_regions=phantom.truth_regions)
    scores = evaluate_files(summary.run, phantom.truth).scores
    found, true = read_regions(summary.run / REGIONS_CSV), read_regions(phantom.truth_regions)
    truth = {region.id: region for region in true.regions}
    lines = [
        f"{summary.cells} cells found, {phantom.n_cells} are there",
        f"recall {scores.recall:.3f}  precision {scores.precision:.3f}  F1 {scores.f1:.3f}",
        "",
        f"{'region':<28}{'left':>7}{'true':>7}{'right':>8}{'true':>7}",
    ]
    for region in found.regions:
        row = f"{'  ' * region.depth + region.name:<28.28}"
        for side in ("left", "right"):
            row += f"{region.count[side]:>{7 if side == 'left' else 8}}{truth[region.id].count[side]:>7}"
        lines.append(row)
    return "\n".join([*lines, "", f"open {report}"])


def _options(request: DetectRequest, inputs: _Inputs) -> RunOptions:
    roi = None
    if request.roi is not None:
        z, y, x = request.roi.slices(inputs.volume.shape)
        roi = ((z.start, z.stop), (y.start, y.stop), (x.start, x.stop))
    return RunOptions(
        threshold=request.threshold,
        cell_diameter_um=request.cell_diameter_um,
        roi=roi,
        block=request.block,
        backend=request.backend,
        device=request.device,
        workers=request.workers,
        scheduler=request.scheduler,
        overwrite=request.overwrite,
        progress=request.progress,
    )


def _plan(request: DetectRequest, inputs: _Inputs) -> DetectSummary:
    """The dry run: what the command would read, need and take."""
    diameter = request.cell_diameter_um or inputs.detector.spec.cell_diameter_um
    intensity = Intensity.fit(inputs.volume, diameter)
    plan = estimate(inputs.volume, intensity, inputs.detector, _options(request, inputs))
    return DetectSummary(request.out, "planned", 0, None, 0.0, 0.0, plan=dataclasses.asdict(plan))


def _analysed_volumes(
    registration: Registration, atlas: Atlas, request: DetectRequest, volume: Volume, mask: Mask | None
) -> Any:
    """Volume of each structure inside the region of interest and the mask."""
    box = None
    if request.roi is not None:
        box = tuple(
            (s.start * v + o - v / 2, s.stop * v + o - v / 2)
            for s, v, o in zip(request.roi.slices(volume.shape), volume.voxel_um, volume.origin_um, strict=True)
        )
    inside = None
    if mask is not None:
        from brainmap.atlas.grid import resample_volume

        inside = resample_volume(mask.volume, registration.grid) > 0.5
    return registration.volumes_mm3(atlas, mask=inside, box_um=box)  # type: ignore[arg-type]


def _write_report(folder: Path) -> Path:
    from brainmap.report.run_report import write_run_report

    return write_run_report(folder)


def _roi_of(record: RunRecord) -> Any:
    from brainmap.config import Roi

    roi = record.parameters.get("roi")
    return Roi(*(tuple(roi[axis]) for axis in "zyx")) if roi else None


def _clear(folder: Path) -> None:
    """Remove what an earlier run left; other files in the folder stay."""
    for name in (BLOCKS_DIR, REGISTRATION_DIR, "exports"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("run.json", POINTS_PARQUET, REGIONS_CSV, REPORT):
        (folder / name).unlink(missing_ok=True)
