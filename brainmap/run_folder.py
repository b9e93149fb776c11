"""The folder of a run: its record, and whether a command may go on with it.

Every run leaves a `run.json` (`RunRecord`) from which a later command can tell whether it may resume.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brainmap.errors import DataError, NotFoundError, UsageError
from brainmap.files import now, read_json, to_jsonable, write_json
from brainmap.machine import machine, versions

__all__ = ["RunRecord"]

RUN_JSON = "run.json"
STATUSES = ("running", "complete", "incomplete")


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
        if not path.is_file():
            raise NotFoundError(f"{run} is not a run folder: it has no {RUN_JSON}")
        content = read_json(path)
        known = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(content, dict) or content.get("status") not in STATUSES:
            raise DataError(f"{path} is not a run record: it has no valid status")
        # Keys of a newer brainmap are left alone rather than refused.
        values = {key: value for key, value in content.items() if key in known}
        return cls(**values | {"warnings": tuple(values.get("warnings", ()))})

    def save(self, run: str | Path) -> None:
        """Write `run.json` into the run folder, atomically."""
        write_json(Path(run) / RUN_JSON, self)

    def updated(self, **changes: Any) -> RunRecord:
        """A copy with some fields replaced."""
        return dataclasses.replace(self, **changes)

    def differences(self, parameters: Mapping[str, Any], fingerprints: Mapping[str, str]) -> list[str]:
        """What differs from the run that another command asks for, as short phrases."""
        found: list[str] = []
        for mine, theirs in ((self.parameters, parameters), (self.fingerprints, fingerprints)):
            mine, theirs = to_jsonable(mine), to_jsonable(theirs)
            found.extend(
                f"{key} was {_short(mine.get(key))}, is now {_short(theirs.get(key))}"
                for key in sorted({*mine, *theirs})
                if mine.get(key) != theirs.get(key)
            )
        return found

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
            raise UsageError(
                f"{run} holds a run with other parameters ({'; '.join(found)}); "
                "use --overwrite to replace it, or another --out"
            )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
