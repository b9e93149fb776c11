"""What a run is, as facts: the record all sections of its report draw from, and the lists at the page's head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brainmap.image.volume import Volume
from brainmap.points.table import Points
from brainmap.report.html import format_value
from brainmap.report.region_rows import Region, RegionTree
from brainmap.report.summary import PointSummary
from brainmap.run_folder import RunRecord

__all__ = [
    "Run",
    "cost_facts",
    "indented",
    "input_facts",
    "is_number",
    "lookup",
    "method_facts",
    "plain",
]

_DEFAULT_CELL_UM = 10.0


@dataclass(frozen=True)
class Run:
    """Everything the sections draw from; what could not be read is None. `folder` holds the tables."""

    folder: Path
    registration: Path
    record: RunRecord
    volume: Volume | None
    points: Path | None
    summary: PointSummary | None
    regions: RegionTree | None
    truth: Points | None
    truth_regions: RegionTree | None

    @property
    def cell_um(self) -> float:
        """Expected diameter of a cell, um."""
        return float(lookup(self.record, "cell_diameter_um") or _DEFAULT_CELL_UM)


def cost_facts(run: Run) -> list[tuple[str, object]]:
    """What the run took."""
    record = run.record
    results, timings = record.results, record.timings_s
    facts: list[tuple[str, object]] = [
        ("Time", _duration(timings.get("total") or sum(timings.values()) or None))
    ]
    if rate := results.get("voxels_per_second"):
        facts.append(("Speed", f"{rate / 1e6:.3g} million voxels per second"))
    if memory := results.get("peak_memory_bytes"):
        facts.append(("Peak memory", f"{memory / 2**30:.2f} GiB"))
    facts.append(("Processor", f"{record.machine.get('cpu')}, {record.machine.get('cores')} cores"))
    facts.append(("Status", record.status))
    return facts


def input_facts(run: Run) -> list[tuple[str, object]]:
    """The brain: where it lies, its size and orientation."""
    record, volume = run.record, run.volume
    facts: list[tuple[str, object]] = [("Path", record.parameters.get("brain"))]
    if volume:
        names = volume.channel_names
        if volume.n_channels > 1 and volume.channel is not None:
            label = f" ({names[volume.channel]})" if names else ""
            facts.append(("Channel", f"{volume.channel}{label} of {volume.n_channels}"))
        facts.append(("Voxels (z, y, x)", " × ".join(f"{n:,}" for n in volume.shape)))
        facts.append(("Voxel size", " × ".join(f"{v:g}" for v in volume.voxel_um) + " µm"))
        extent = (n * v / 1000 for n, v in zip(volume.shape, volume.voxel_um, strict=True))
        facts.append(("Extent", " × ".join(f"{e:.3g}" for e in extent) + " mm"))
        facts.append(("Stored as", f"{volume.dtype}, {len(volume.levels)} levels"))
    if is_number(unstored := record.results.get("unstored_tissue")):
        facts.append(("Tissue not stored", f"{100 * unstored:.2g} %"))
    orientation = lookup(record, "orientation") or (volume.orientation if volume else None)
    facts.append(("Orientation", f"{orientation} (sides where z, y, x start)" if orientation else None))
    if record.parameters.get("roi"):
        facts.append(("Region of interest", plain(record.parameters["roi"])))
    return facts


def method_facts(run: Run) -> list[tuple[str, object]]:
    """The detector, the atlas and the machine."""
    record = run.record
    facts: list[tuple[str, object]] = [("Detector", plain(record.parameters.get("detector")))]
    for label, key in (("Threshold", "threshold"), ("Cell diameter", "cell_diameter_um")):
        value = lookup(record, key)
        unit = " µm" if key.endswith("_um") else ""
        facts.append((label, f"{format_value(value)}{unit}" if value is not None else "the detector's own"))
    atlas = record.parameters.get("atlas") or record.parameters.get("registration")
    facts.append(("Atlas", Path(str(atlas)).name if atlas else "none"))
    blocks = record.blocks
    count = ", ".join(
        f"{format_value(blocks[k])} {k}" for k in ("total", "done", "empty") if is_number(blocks.get(k))
    )
    facts.append(("Blocks", count or None))
    for label, key in (("Backend", "backend"), ("Device", "device"), ("Workers", "workers")):
        value = record.execution.get(key, record.parameters.get(key))
        if value is not None:
            facts.append((label, plain(value)))
    return facts


def lookup(record: RunRecord, key: str) -> Any:
    """A setting as it was used: from the results (which resolve defaults) or else as it was asked for."""
    for source in (record.results, record.execution, record.parameters):
        if source.get(key) is not None:
            return source[key]
    return None


def plain(value: Any) -> Any:
    """A value of a JSON record as one line of text; numbers stay numbers."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {format_value(plain(v))}" for key, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(format_value(plain(v)) for v in value)
    return str(value)


def indented(region: Region) -> str:
    return "\N{NO-BREAK SPACE}" * 3 * max(region.depth, 0) + region.name


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
