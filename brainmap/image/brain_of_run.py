"""The image a run was made from, wherever it lies now: known by its fingerprint, not by its place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from brainmap.errors import BrainmapError, NotFoundError, UsageError
from brainmap.image.level_evidence import placed_by_evidence
from brainmap.image.volume import Volume
from brainmap.run_folder import RunRecord

__all__ = ["brain_of_run", "way_to_brain"]


def way_to_brain(run: Path, brain: str) -> str | None:
    """How to come from a run folder to its brain: what stays true when both are moved together.

    None for a brain by URL, or on another drive.
    """
    if "://" in brain:
        return None
    try:
        return os.path.relpath(Path(brain).absolute(), run.absolute())
    except ValueError:
        return None


def brain_of_run(run: str | Path, brain: str | Path | None = None) -> Volume:
    """Open the image that a run was made from, with the run's channel, voxel size and axes.

    Looked for where it was, then at the same way from the run folder, and beside the run folder.

    Parameters
    ----------
    run : path
        Run folder.
    brain : path or URL, optional
        Where it lies now.

    Raises
    ------
    NotFoundError
        If it is nowhere.
    UsageError
        If `brain` is another image, or what lies at the known places is.
    """
    run = Path(run)
    record = RunRecord.load(run)
    if brain is not None:
        volume = _open(brain, record)
        if not _is_same(volume, record):
            raise UsageError(
                f"{brain} is not the image that {run} was made from, or has changed since: metadata or voxels differ"
            )
        return volume
    recorded = str(record.parameters.get("brain"))
    changed = None
    for place in _places(run, recorded, record.execution.get("way_to_brain")):
        try:
            volume = _open(place, record)
        except BrainmapError:
            continue
        if _is_same(volume, record):
            return volume
        changed = place
    if changed is not None:
        raise UsageError(
            f"the image {changed} is not the one that {run} was made from, or has changed since: say with --brain "
            "where the right one lies"
        )
    raise NotFoundError(
        f"the image that {run} was made from is not at {recorded} any more: say with --brain where it lies now"
    )


def _places(run: Path, recorded: str, way: object) -> Iterator[str]:
    yield recorded
    if "://" in recorded:
        return
    if isinstance(way, str):
        yield os.path.normpath(run.absolute() / way)
    yield str(run.absolute().parent / Path(recorded).name)


def _open(place: str | Path, record: RunRecord) -> Volume:
    known = record.parameters
    volume = Volume.open(
        place,
        channel=known.get("channel"),
        timepoint=known.get("timepoint"),
        voxel_um=known.get("voxel_um"),
        axes=known.get("axes"),
    )
    return placed_by_evidence(volume)


def _is_same(volume: Volume, record: RunRecord) -> bool:
    wanted = record.fingerprints.get("volume")
    return wanted is None or volume.fingerprint() == wanted
