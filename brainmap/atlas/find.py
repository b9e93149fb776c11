"""Where atlases are looked for.

A name such as ``allen_mouse_50um`` is looked up, in this order, in

1. the folders listed in the environment variable ``BRAINMAP_ATLASES`` (separated like ``PATH``),
2. the ``brainglobe_dir`` of BrainGlobe's configuration (``bg_config.conf`` in
   ``BRAINGLOBE_CONFIG_DIR`` or ``~/.config/brainglobe``),
3. ``~/.brainglobe``,

as a folder ``<name>_v<version>`` or ``<name>`` (BrainGlobe v2 layout, or `brainmap.atlas.plain_folder`), or as
``brainglobe-atlasapi/atlases/<name>/<version>`` (v3 layout; the folder ``brainglobe-atlasapi`` itself may
be listed too); the newest version wins. What is nowhere is downloaded by brainglobe-atlasapi where that
is installed (`brainmap.atlas.download`).
"""

from __future__ import annotations

import configparser
import os
import re
from pathlib import Path

from brainmap.atlas.layout import MANIFEST, v3_name
from brainmap.atlas.plain_folder import ATLAS_JSON
from brainmap.errors import NotFoundError, did_you_mean

__all__ = ["ATLASES_VARIABLE", "atlas_roots", "find_atlas_folder", "list_atlases"]

ATLASES_VARIABLE = "BRAINMAP_ATLASES"

#: Where a root of atlases holds those of the v3 layout.
_V3_PLACES = (f"brainglobe-atlasapi/atlases/*/*/{MANIFEST}", f"atlases/*/*/{MANIFEST}")

#: Files by which a folder is known as an atlas: BrainGlobe v2, one of one's own.
_MARKERS = ("structures.json", ATLAS_JSON)

_VERSIONED = re.compile(r"(?P<name>.+)_v(?P<version>\d+(?:\.\d+)*)")


def atlas_roots() -> list[Path]:
    """Return the folders that are searched for atlases, first match first; some may not exist."""
    listed = [
        Path(part).expanduser() for part in os.environ.get(ATLASES_VARIABLE, "").split(os.pathsep) if part
    ]
    return list(dict.fromkeys([*listed, *_configured(), Path.home() / ".brainglobe"]))


def list_atlases() -> dict[str, Path]:
    """Return the atlases found on this machine: name with version -> folder, in search order."""
    found: dict[str, Path] = {}
    for root in atlas_roots():
        for pattern in _MARKERS:
            for marker in sorted(root.glob(f"*/{pattern}")):
                found.setdefault(marker.parent.name, marker.parent)
        for name, folder in _v3_folders(root).items():
            found.setdefault(name, folder)
    return found


def find_atlas_folder(name_or_dir: str | Path) -> Path:
    """Return the folder of an atlas given by folder or name (see the module's docstring).

    Raises
    ------
    NotFoundError
        If nothing is found and nothing can be downloaded.
    """
    given = Path(name_or_dir).expanduser()
    if given.is_dir():
        return given.resolve()
    name = str(name_or_dir)
    if given.is_absolute() or len(given.parts) != 1 or given.is_file():
        raise NotFoundError(f"there is no atlas folder {given}")
    found = _newest(name)
    if found is None:
        from brainmap.atlas.download import download_atlas

        download_atlas(name)
        found = _newest(name)
    if found is None:
        raise NotFoundError(_advice(name))
    return found


def _advice(name: str) -> str:
    known = sorted(list_atlases())
    near = did_you_mean(name, [re.sub(r"_v[\d.]+$", "", full) for full in known])
    return (
        f"atlas {name!r} was not found{near}{' Else put' if near else ': put'} its folder {name}_v<version> "
        "(metadata.json, structures.json, "
        f"reference.tiff, annotation.tiff) into {atlas_roots()[0]}, give the folder itself, or list the folder "
        f"that holds your atlases in {ATLASES_VARIABLE}; with a network, pip install brainglobe-atlasapi fetches "
        f"BrainGlobe's by name; found here: {', '.join(known) if known else 'none'}"
    )


def _newest(name: str) -> Path | None:
    for root in atlas_roots():
        exact = root / name
        if any((exact / marker).is_file() for marker in _MARKERS):
            return exact
        shared = _v3_folders(root)
        if name in shared:
            return shared[name]
        # A name may hold glob characters; compare names instead of globbing for them. Of equal versions
        # the v2 folder wins: it holds all its voxels.
        folders = shared | {folder.name: folder for folder in root.glob("*_v*") if folder.is_dir()}
        versions = {
            tuple(int(n) for n in match["version"].split(".")): folder
            for full_name, folder in folders.items()
            if (match := _VERSIONED.fullmatch(full_name)) and match["name"] == name
        }
        if versions:
            return versions[max(versions)]
    return None


def _v3_folders(root: Path) -> dict[str, Path]:
    manifests = [path for place in _V3_PLACES for path in sorted(root.glob(place))]
    return {v3_name(path.parent): path.parent for path in manifests}


def _configured() -> list[Path]:
    folder = Path(os.environ.get("BRAINGLOBE_CONFIG_DIR") or Path.home() / ".config" / "brainglobe")
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(folder / "bg_config.conf", encoding="utf-8")
        text = parser.get("default_dirs", "brainglobe_dir", fallback="")
    except (configparser.Error, UnicodeDecodeError):
        return []
    return [Path(text).expanduser()] if text else []
