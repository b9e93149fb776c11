"""Registering a brain to an atlas: fixed = template, moving = brain."""

from __future__ import annotations

import glob
import logging
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brainmap.atlas.atlas import Atlas
from brainmap.coords import Triple, parse_known_letters
from brainmap.errors import BrainmapError, UsageError
from brainmap.files import atomic_path, clone_tree, fingerprint
from brainmap.image.level_evidence import placed_by_evidence
from brainmap.image.plausible import check_voxel_um
from brainmap.lock import held_beside
from brainmap.machine import usable_cores
from brainmap.progress import task
from brainmap.registration.landmarks import Landmarks
from brainmap.registration.orientation import brain_size, settle_orientation
from brainmap.registration.plausible import check_sections
from brainmap.registration.registered import FORMAT, PARTS, REGISTRATION_JSON, Registration
from brainmap.registration.steps import UNREFINED, RegistrationOptions, RegistrationRun

if TYPE_CHECKING:
    from brainmap.image.volume import Volume

__all__ = ["REGISTRATION_JSON", "Registration", "RegistrationOptions", "register", "register_brain"]

log = logging.getLogger(__name__)

#: Beside an unfinished registration: the transforms of its finished stages, in a folder named after its input.
_KEPT = ".{name}-stages-"


def register(
    volume: Volume,
    atlas: Atlas,
    out_dir: str | Path,
    *,
    orientation: str | None = None,
    options: RegistrationOptions | None = None,
    mask: Volume | None = None,
    landmarks: Landmarks | None = None,
    overwrite: bool = False,
    reuse: Path | None = None,
) -> Registration:
    """Register a brain to an atlas, or return the finished registration of the same input.

    Parameters
    ----------
    volume : Volume
        The brain, opened at the channel to register.
    atlas : Atlas
    out_dir : str or Path
        Folder to create; it appears only when everything in it is complete.
    orientation : str, optional
        Orientation of the volume's axes; may be left out where the image has it. Letters to be found are
        dots (``"..l"``), ``"auto"`` finds all.
    options : RegistrationOptions, optional
    mask : Volume, optional
        Tissue to use (nonzero), in the same um as the volume: for partial or damaged brains.
    landmarks : Landmarks, optional
        Pairs of points that the result is to meet. With `overwrite`, the alignment of a registration in the
        folder that differs in its landmarks only is used again.
    overwrite : bool
        Replace a registration of other input or options, or a damaged one.
    reuse : Path, optional
        Folder of another registration: one that is whole and of the same input is copied instead of made anew.

    Raises
    ------
    UsageError
        If no orientation is known, or the folder holds something else.
    DataError
        If the image shows no brain, its orientation cannot be found, landmarks contradict each other, or
        ANTs fails.
    """
    options = options or RegistrationOptions()
    asked = orientation or volume.orientation
    if asked is None:
        raise UsageError(
            f"the orientation of {volume.name} is not known: give --orientation with three letters that name the "
            "side where the z, y and x axes start, for example 'asr', or 'auto'"
        )
    asked = parse_known_letters(asked)
    out = Path(out_dir)
    prints = _prints(volume, atlas, mask, asdict(options) | {"orientation": asked}, landmarks)
    if (found := _made_before(out, prints["fingerprint"], overwrite, reuse)) is not None:
        return found
    atlas.check()
    check_sections(volume, brain_size(atlas))
    with task("registration: checking the orientation"):
        settled = settle_orientation(volume, atlas, asked, mask)
    for warning in settled.warnings:
        log.warning("%s", warning)
    parameters = asdict(options) | {
        "threads": options.threads or usable_cores(),
        "orientation": settled.letters,
    }
    kept = out.with_name(f"{_KEPT.format(name=out.name)}{prints['base_fingerprint'][:12]}")
    with atomic_path(out) as folder:
        folder.mkdir(parents=True)
        aligned = None if landmarks is None else _aligned(out, prints["base_fingerprint"])
        RegistrationRun(
            volume, atlas, folder, settled, options, parameters, mask, landmarks, aligned, kept
        ).write(prints)
    for old in out.parent.glob(f"{_KEPT.format(name=glob.escape(out.name))}*"):
        shutil.rmtree(old)
    return Registration.load(out)


def _prints(
    volume: Volume, atlas: Atlas, mask: Volume | None, parameters: dict[str, Any], landmarks: Landmarks | None
) -> dict[str, str]:
    """What a registration depends on, with and without landmarks."""
    identity = {
        "format": FORMAT,
        "sample": volume.fingerprint(),
        "atlas": atlas.fingerprint_parts(),
        "mask": None if mask is None else mask.fingerprint(),
        # As asked for: "all cores" stays the same request on another machine.
        "parameters": parameters,
    }
    base = fingerprint(identity)
    if landmarks is None:
        return {"base_fingerprint": base, "fingerprint": base}
    whole = fingerprint(identity | {"landmarks": landmarks.fingerprint()})
    return {"base_fingerprint": base, "fingerprint": whole}


def _made_before(out: Path, wanted: str, overwrite: bool, reuse: Path | None) -> Registration | None:
    """The finished registration of the same input in the folder, or a copy of another that is."""
    if (found := _finished(out, wanted, overwrite)) is not None:
        log.info("using the finished registration in %s", out)
        return found
    if reuse is None or not _is_same(reuse, wanted):
        return None
    log.info("using the registration in %s: nothing it depends on has changed", reuse)
    with atomic_path(out) as folder:
        clone_tree(reuse, folder)
    return Registration.load(out)


def register_brain(
    brain: str | Path,
    out_dir: str | Path,
    *,
    atlas: str | Path = "allen_mouse_50um",
    orientation: str | None = None,
    channel: int | None = None,
    voxel_size: Triple | None = None,
    timepoint: int | None = None,
    axes: str | None = None,
    mask: str | Path | None = None,
    landmarks: str | Path | None = None,
    options: RegistrationOptions | None = None,
    overwrite: bool = False,
) -> Registration:
    """The command ``brainmap register``: open everything by name and `register`.

    Raises
    ------
    BrainmapError
        As `Volume.open`, `Atlas.open` and `register` do.
    """
    from brainmap.image.volume import Volume

    opened = Volume.open(brain, channel=channel, timepoint=timepoint, voxel_um=voxel_size, axes=axes)
    opened = placed_by_evidence(opened)
    source = "its metadata" if voxel_size is None else "--voxel-size"
    check_voxel_um(opened.voxel_um, opened.shape, opened.name, source)
    tissue = None if mask is None else Volume.open(mask)
    pairs = None if landmarks is None else Landmarks.read(landmarks, opened)
    found = Atlas.open(atlas)
    with held_beside(Path(out_dir)):
        return register(
            opened,
            found,
            out_dir,
            orientation=orientation,
            options=options,
            mask=tissue,
            landmarks=pairs,
            overwrite=overwrite,
        )


def _finished(out: Path, wanted: str, overwrite: bool) -> Registration | None:
    """Return the finished registration in `out` if it is the wanted one; refuse to touch anything else."""
    if out.is_dir() and any((out / name).exists() for name in PARTS):
        if overwrite:
            return None
        there = Registration.load(out)
        if there.fingerprint == wanted:
            there.check_whole()
            return there
        raise UsageError(
            f"{out} holds a registration of another brain, atlas or other options: give another folder, or "
            "--overwrite to replace it"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists and is not a registration: give another folder")
    return None


def _is_same(folder: Path, wanted: str) -> bool:
    """Whether a folder holds a whole registration of this input."""
    try:
        there = Registration.load(folder)
        there.check_whole()
    except BrainmapError:
        return False
    return there.fingerprint == wanted


def _aligned(out: Path, wanted: str) -> Path | None:
    """Folder of the transforms before landmarks, if `out` holds a registration that differs in those only."""
    try:
        there = Registration.load(out)
    except BrainmapError:
        return None
    if there.record.get("base_fingerprint", there.fingerprint) != wanted:
        return None
    before = out / UNREFINED
    return before if before.is_dir() else out if "landmarks" not in there.record else None
