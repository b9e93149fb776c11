"""The folder of a run: the names of its files, its record, and whether a command may go on with it.

Every run leaves a `run.json` (`RunRecord`) from which a later command can tell whether it may resume.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brainmap.errors import DataError, NotFoundError, UsageError, what_it_is
from brainmap.files import now, read_json, to_jsonable, write_json
from brainmap.machine import machine, versions

__all__ = [
    "BLOCKS_DIR",
    "EXPORTS_DIR",
    "INTENSITY_FILE",
    "MUCH_UNSTORED",
    "PLAN_FILE",
    "POINTS_PARQUET",
    "REGIONS_CSV",
    "REGISTRATION_DIR",
    "REPORT_HTML",
    "RUN_FILES",
    "RUN_JSON",
    "SUMMARY_CSV",
    "THRESHOLDS_CSV",
    "RunRecord",
    "changes",
    "holds_parts_of_a_run",
    "is_run",
    "other_parameters",
]

# More tissue without stored chunks than this share is said, and in doubt of being an incomplete copy.
MUCH_UNSTORED = 0.05

RUN_JSON = "run.json"
POINTS_PARQUET = "points.parquet"
REGIONS_CSV, SUMMARY_CSV, THRESHOLDS_CSV = "regions.csv", "regions_summary.csv", "thresholds.csv"
REPORT_HTML = "report.html"
REGISTRATION_DIR, EXPORTS_DIR = "registration", "exports"
# Finished blocks, and what all of them depend on.
BLOCKS_DIR, PLAN_FILE, INTENSITY_FILE = "blocks", "plan.json", "intensity.npz"
# All that a run leaves; what else lies in its folder is other people's.
RUN_FILES = (
    BLOCKS_DIR, REGISTRATION_DIR, EXPORTS_DIR, POINTS_PARQUET, REGIONS_CSV, SUMMARY_CSV, THRESHOLDS_CSV, REPORT_HTML,
    RUN_JSON,
)  # fmt: skip

STATUSES = ("running", "complete", "incomplete")
# Parameters that name a file or folder -> the fingerprint of what is in it, which says more than where it lies.
_FINGERPRINTED = {
    "brain": "volume",
    "detector": "detector",
    "atlas": "atlas",
    "registration": "registration",
    "registration_image": "registration_image",
    "mask": "mask",
}

# Fields of a record that are tables.
_TABLES = ("parameters", "fingerprints", "execution", "versions", "machine", "timings_s", "blocks", "results")


@dataclass(frozen=True)
class RunRecord:
    """The content of a run folder's `run.json`.

    `parameters` and `fingerprints` together decide the result: a command may resume a folder only if
    both are equal to its own. What may differ between the commands of one run (workers, scheduler,
    exports) belongs into `execution`.

    Attributes
    ----------
    status : str
        `running`, `complete`, or `incomplete` (finished with missing blocks).
    parameters, fingerprints : dict
        The options that decide the result; SHA-256 of the input, detector, atlas.
    execution : dict
        Device, backend, workers, scheduler: how it was computed.
    timings_s : dict
        Seconds per stage.
    blocks : dict
        `total`, `done`, `empty`, `finished` (names), `failed` (block -> reason).
    results : dict
        Numbers worth keeping: cells, voxels, voxels_per_second, peak_memory_bytes, ...
    """

    status: str = "running"
    parameters: dict[str, Any] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    execution: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=versions)
    machine: dict[str, Any] = field(default_factory=machine)
    started: str = field(default_factory=now)
    finished: str | None = None
    timings_s: dict[str, float] = field(default_factory=dict)
    blocks: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}, not {self.status!r}")

    @classmethod
    def load(cls, run: str | Path) -> RunRecord:
        """Read `run.json` of a run folder.

        Raises
        ------
        NotFoundError, DataError
            If the folder has none, or one that is damaged.
        """
        path = Path(run) / RUN_JSON
        way_on = "make the run anew with --overwrite, or give another --out"
        if not is_run(run):
            if holds_parts_of_a_run(run):
                raise DataError(f"{run} has lost its {RUN_JSON}: {way_on}")
            raise NotFoundError(f"{run} is not a run folder: it has no {RUN_JSON}{what_it_is(run)}")
        try:
            content = read_json(path)
        except DataError as error:
            raise DataError(f"{error}; {way_on}") from error
        known = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(content, dict) or content.get("status") not in STATUSES:
            raise DataError(f"{path} is not a run record: it has no valid status; {way_on}")
        # Keys of a newer brainmap are left alone rather than refused.
        values = {key: value for key, value in content.items() if key in known}
        warnings = values.get("warnings", [])
        odd = [key for key in _TABLES if not isinstance(values.get(key, {}), dict)]
        if odd or not isinstance(warnings, list):
            what = odd[0] if odd else "warnings"
            raise DataError(f"{path} is not a run record: {what} is damaged; {way_on}")
        return cls(**values | {"warnings": tuple(str(warning) for warning in warnings)})

    def save(self, run: str | Path) -> None:
        """Write `run.json` into the run folder, atomically."""
        write_json(Path(run) / RUN_JSON, self)

    def updated(self, **changes: Any) -> RunRecord:
        """A copy with some fields replaced."""
        return dataclasses.replace(self, **changes)

    def differences(self, parameters: Mapping[str, Any], fingerprints: Mapping[str, str]) -> list[str]:
        """What differs from the run that another command asks for, as short phrases.

        A file or folder that was moved is the same: what has a fingerprint is compared by that.
        """
        known = {
            name
            for name, mark in _FINGERPRINTED.items()
            if mark in self.fingerprints and mark in fingerprints
        }
        found = changes(_without(self.parameters, known), _without(parameters, known))
        for name in sorted(known):
            if self.fingerprints[_FINGERPRINTED[name]] != fingerprints[_FINGERPRINTED[name]]:
                other = changes({name: self.parameters.get(name)}, {name: parameters.get(name)})
                found += other or [f"what is in {name} {_short(parameters.get(name))} has changed"]
        marks = {_FINGERPRINTED[name] for name in known}
        return found + changes(_without(self.fingerprints, marks), _without(fingerprints, marks))

    def require_same(
        self, run: str | Path, parameters: Mapping[str, Any], fingerprints: Mapping[str, str]
    ) -> None:
        """Refuse to resume a run made with other parameters or from other data.

        Raises
        ------
        UsageError
            Naming every difference.
        """
        found = self.differences(parameters, fingerprints)
        if found:
            raise other_parameters(run, found)


def is_run(folder: str | Path) -> bool:
    """Whether a folder holds a run, of whatever status."""
    return (Path(folder) / RUN_JSON).is_file()


def holds_parts_of_a_run(folder: str | Path) -> bool:
    """Whether a folder holds what a run leaves, with or without its record."""
    return any((Path(folder) / name).exists() for name in RUN_FILES)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two records of settings, as short phrases; values are compared as JSON."""
    old, new = to_jsonable(before), to_jsonable(now)
    return [
        f"{key} was {_short(old.get(key))}, is now {_short(new.get(key))}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def other_parameters(run: str | Path, found: list[str]) -> UsageError:
    """The refusal to go on with a run of other parameters, which are named."""
    return UsageError(
        f"{run} holds a run with other parameters ({'; '.join(found)}); use --overwrite to replace it, or another --out"
    )


def _without(values: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
