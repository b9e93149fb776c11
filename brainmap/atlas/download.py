"""Fetching an atlas through brainglobe-atlasapi, where that package is installed."""

from __future__ import annotations

import logging

from brainmap.errors import NotFoundError

__all__ = ["download_atlas"]

log = logging.getLogger(__name__)


def download_atlas(name: str) -> None:
    """Let brainglobe-atlasapi download an atlas into its own folder; without the package do nothing.

    Parameters
    ----------
    name : str
        BrainGlobe name without version, e.g. ``allen_mouse_50um``.

    Raises
    ------
    NotFoundError
        If the package is there but cannot deliver the atlas (unknown name, no network).
    """
    try:
        from brainglobe_atlasapi import BrainGlobeAtlas
    except ImportError:
        return
    log.info("downloading atlas %s through brainglobe-atlasapi", name)
    try:
        # check_latest=False: with the atlas present no network is touched.
        atlas = BrainGlobeAtlas(name, check_latest=False)
        # From version 3 on, the voxels come only when they are read.
        for kind in ("template", "annotation", "hemispheres"):
            getattr(atlas, kind, None)
    except Exception as error:  # the package raises plain ValueError, network and archive errors alike
        raise NotFoundError(
            f"brainglobe-atlasapi could not deliver atlas {name!r} ({error}): check the name and the network, or "
            "copy the atlas folder from a machine that has it"
        ) from error
