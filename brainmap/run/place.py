"""Where a run is made: in its folder, or in a folder inside it until all is there that takes an earlier run's place."""

from __future__ import annotations

import logging
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brainmap.errors import BrainmapError, NotFoundError, UsageError
from brainmap.files import sweep_inside
from brainmap.image.brain_of_run import way_to_brain
from brainmap.infer.engine.results import stored_from
from brainmap.run.request import DetectRequest
from brainmap.run_folder import (
    BLOCKS_DIR,
    EXPORTS_DIR,
    INTENSITY_FILE,
    POINTS_PARQUET,
    REGISTRATION_DIR,
    RUN_FILES,
    RUN_JSON,
    RunRecord,
    holds_parts_of_a_run,
    other_parameters,
)
from brainmap.swap import REPLACEMENT_DIR, finish_swap, put_in_place

__all__ = ["RunPlace", "require_free"]

log = logging.getLogger(__name__)


def require_free(folder: Path) -> None:
    """Refuse to write into anything but a run folder, an empty one, and what a killed first moment of a run leaves.

    Raises
    ------
    UsageError
        If it is something else.
    """
    if not folder.exists():
        return
    ours = folder.is_dir() and (
        holds_parts_of_a_run(folder) or all(path.name.startswith(".") for path in folder.iterdir())
    )
    if not ours:
        raise UsageError(f"{folder} exists and is not a run folder; give another --out")


@dataclass(frozen=True)
class RunPlace:
    """The folder of a run, held by this command, and what is made there.

    Attributes
    ----------
    home : Path
        The run folder.
    folder : Path
        Where the run is made: `home`, or a folder in it while another run is there.
    record : RunRecord
        Of the run that is made.
    before : RunRecord or None
        Of a run that is to be replaced by another, which may use what has not changed. None where there is none, or
        where all is asked for anew: the parameters are the same, or its record is damaged.
    replaces_complete : bool
        Whether the run that is to be replaced has a complete result.
    """

    home: Path
    folder: Path
    record: RunRecord
    before: RunRecord | None = None
    replaces_complete: bool = False

    @classmethod
    def open(
        cls, request: DetectRequest, parameters: dict[str, Any], prints: dict[str, str], threshold: float
    ) -> RunPlace:
        """Start or resume a run.

        Parameters
        ----------
        request : DetectRequest
        parameters, prints : dict
            Options and fingerprints that decide the result.
        threshold : float
            The one in force.

        Raises
        ------
        UsageError
            If the folder holds a run with other parameters, and --overwrite was not given.
        DataError
            If the record of the run there is damaged or lost, likewise.
        """
        home = request.out
        finish_swap(home)
        execution = request.execution() | {"way_to_brain": way_to_brain(home, request.brain)}
        new = RunRecord(parameters=parameters, fingerprints=prints, execution=execution)
        there = [name for name in RUN_FILES if (home / name).exists()]
        # A registration that was made before a run is used by it, or refused by it.
        if not set(there) - {REGISTRATION_DIR}:
            new.save(home)
            return cls(home, home, new)
        if request.overwrite:
            return cls._replacing(home, new)
        old = RunRecord.load(home)
        found = old.differences(parameters, prints)
        if found:
            _offer_recount(home, old, new, threshold)
            raise _with_waiting(other_parameters(home, found), home, new)
        _say_threshold(home, old, threshold)
        if (home / REPLACEMENT_DIR).is_dir():
            log.info("%s: an unfinished run that was to replace this one waits in %s", home, REPLACEMENT_DIR)
        # Files that were moved are where they are now.
        return cls(home, home, old.updated(parameters=parameters, execution=old.execution | execution))

    @classmethod
    def _replacing(cls, home: Path, new: RunRecord) -> RunPlace:
        folder = home / REPLACEMENT_DIR
        before, made = _readable(home), _readable(folder)
        if made is not None and not made.differences(new.parameters, new.fingerprints):
            log.info("going on with the run that is to replace %s", home)
            finish_swap(folder)
            sweep_inside(folder)
        else:
            if folder.exists():
                shutil.rmtree(folder)
            made = new
            new.save(folder)
        complete = before is not None and before.status == "complete"
        if before is not None and not before.differences(new.parameters, new.fingerprints):
            before = None
        return cls(home, folder, made, before, complete)

    @property
    def replaces(self) -> bool:
        """Whether another run is there until this one is complete."""
        return self.folder != self.home

    @property
    def reusable_registration(self) -> Path | None:
        """The registration of the run that is to be replaced, if that may be used again."""
        return None if self.before is None else self.home / REGISTRATION_DIR

    def overview_of_before(self, diameter_um: float) -> Path | None:
        """The overview of the run that is to be replaced, if it is that of the same image, mask and size of cells."""
        if self.before is None:
            return None
        same = all(
            self.before.fingerprints.get(name) == self.record.fingerprints.get(name)
            for name in ("volume", "mask")
        )
        saved = self.home / BLOCKS_DIR / INTENSITY_FILE
        known = self.before.results.get("cell_diameter_um")
        return saved if same and known == diameter_um and saved.is_file() else None

    def publish(self) -> None:
        """Give the finished run its place."""
        if self.replaces:
            put_in_place(self.home, self.folder, RUN_JSON, [EXPORTS_DIR], RUN_FILES)


def _readable(folder: Path) -> RunRecord | None:
    try:
        return RunRecord.load(folder)
    except BrainmapError:
        return None


def _with_waiting(refusal: UsageError, home: Path, new: RunRecord) -> UsageError:
    """The refusal, with a word about a run with these very parameters that has begun to replace the one there."""
    made = _readable(home / REPLACEMENT_DIR)
    if made is None or made.differences(new.parameters, new.fingerprints):
        return refusal
    return UsageError(f"{refusal}; with --overwrite, the unfinished run that was to replace it goes on")


def _offer_recount(home: Path, old: RunRecord, new: RunRecord, threshold: float) -> None:
    """Refuse a run that differs in nothing but its threshold with the quick way to the other one."""
    same = new.parameters | {"threshold": old.parameters.get("threshold")}
    if old.differences(same, new.fingerprints):
        return
    with suppress(NotFoundError):
        if threshold >= stored_from(home) and (home / POINTS_PARQUET).is_file():
            raise UsageError(
                f"{home} holds a run with another threshold (threshold was {old.parameters.get('threshold')}, is now "
                f"{new.parameters['threshold']}): brainmap regions {home} --threshold {threshold:g} counts it anew in "
                "moments; use --overwrite to detect again, or another --out"
            )


def _say_threshold(home: Path, old: RunRecord, threshold: float) -> None:
    """Say that a threshold chosen after the run gives way to the run's own."""
    chosen = old.results.get("threshold")
    if chosen is not None and chosen != threshold:
        log.warning("%s was at threshold %g by brainmap regions; it goes back to %g", home, chosen, threshold)
