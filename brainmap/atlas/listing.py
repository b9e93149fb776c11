"""Which atlases are on this machine, and which BrainGlobe offers."""

from __future__ import annotations

import contextlib
import logging
import sys
from dataclasses import dataclass
from pathlib import Path

from brainmap.atlas.find import list_atlases
from brainmap.atlas.layout import open_layout
from brainmap.errors import BrainmapError, NotFoundError

__all__ = ["AtlasEntry", "local_atlases", "offered_atlases"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AtlasEntry:
    """An atlas on this machine.

    Attributes
    ----------
    name : str
        With version, as ``--atlas`` takes it.
    folder : Path
    layout : str
        Empty where the folder cannot be read.
    resolution_um, shape : tuples or None
        In the order of its files.
    symmetric : bool
        Without a volume of hemispheres.
    problem : str
        Why it cannot be used; empty if it can.
    """

    name: str
    folder: Path
    layout: str = ""
    resolution_um: tuple[float, float, float] | None = None
    shape: tuple[int, int, int] | None = None
    symmetric: bool = True
    problem: str = ""


def local_atlases() -> list[AtlasEntry]:
    """The atlases found on this machine (see `brainmap.atlas.find`), in search order; images are not read."""
    return [_entry(name, folder) for name, folder in list_atlases().items()]


def _entry(name: str, folder: Path) -> AtlasEntry:
    try:
        files = open_layout(folder)
        return AtlasEntry(
            name,
            folder,
            str(files.identity()["layout"]),
            files.resolution_um,
            files.shape,
            not files.has("hemispheres"),
        )
    except BrainmapError as error:
        return AtlasEntry(name, folder, problem=str(error))


def offered_atlases() -> dict[str, str]:
    """Names and newest versions of the atlases that BrainGlobe offers, as brainglobe-atlasapi knows them.

    Raises
    ------
    NotFoundError
        If brainglobe-atlasapi is not installed, or knows none: there is no network and it has never fetched the list.
    """
    try:
        from brainglobe_atlasapi.list_atlases import get_all_atlases_lastversions
    except ImportError as error:
        raise NotFoundError(
            "the list of BrainGlobe's atlases needs brainglobe-atlasapi: pip install brainglobe-atlasapi"
        ) from error
    try:
        # It prints what it does; stdout is for the result.
        with contextlib.redirect_stdout(sys.stderr):
            offered = get_all_atlases_lastversions()
    except Exception as error:  # network, archive and configuration errors, all plain
        raise NotFoundError(
            f"brainglobe-atlasapi cannot list what BrainGlobe offers ({error!r}): is there a network?"
        ) from error
    return {str(name): str(version) for name, version in sorted(offered.items())}
