"""Folders of results of a cohort: what may be replaced, and what may not."""

from __future__ import annotations

from pathlib import Path

from brainmap.cohort.groups import Groups
from brainmap.errors import UsageError

__all__ = ["KEPT", "require_free", "require_outside"]

KEPT = "what was there before stays"


def require_free(out: Path, record: str, what: str, overwrite: bool) -> None:
    """Refuse a place that holds anything else, or results that are not to be replaced.

    Parameters
    ----------
    out : Path
        Folder to write; need not be there.
    record : str
        Name of the file that every such folder has.
    what : str
        What it is called, such as "a comparison".
    overwrite : bool
        Whether earlier results may be replaced.

    Raises
    ------
    UsageError
    """
    if not out.exists():
        return
    # Names with a dot are ours: the lock, and what killed commands left.
    if out.is_dir() and all(path.name.startswith(".") for path in out.iterdir()):
        return
    if not (out / record).is_file():
        raise UsageError(f"{out} exists and does not hold {what}; give another --out")
    if not overwrite:
        raise UsageError(f"{out} holds {what}; use --overwrite to replace it, or another --out")


def require_outside(out: Path, groups: Groups) -> None:
    """Refuse a folder that holds a run of the study (UsageError): it would be replaced along with the results."""
    for run in groups.run:
        if run.is_relative_to(out.resolve()):
            raise UsageError(
                f"--out {out} contains the run folder {run}, which it would replace; give another"
            )
