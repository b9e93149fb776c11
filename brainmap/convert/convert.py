"""Convert TIFF stacks (and other images) to OME-Zarr 0.5 pyramids, streamed and checked."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from brainmap.convert.stacks import Reading, Stack, open_stack
from brainmap.coords import Triple, parse_orientation
from brainmap.errors import UsageError
from brainmap.files import fingerprint
from brainmap.image.axes import parse_axes
from brainmap.image.journal import ConversionJournal
from brainmap.image.plausible import check_voxel_um
from brainmap.image.volume import Volume, parse_voxel_um
from brainmap.image.writer import VolumeWriter
from brainmap.lock import held_beside
from brainmap.machine import usable_cores
from brainmap.progress import task

__all__ = ["convert"]

log = logging.getLogger(__name__)

# Part of what an unfinished conversion must agree with: raise it when the same settings give other files.
_FORMAT = 3


def convert(
    source: str | Path,
    dest: str | Path,
    voxel_um: Sequence[float] | None = None,
    channel_names: Sequence[str] | None = None,
    *,
    orientation: str | None = None,
    axes: str | None = None,
    timepoint: int | None = None,
    planes: str | None = None,
    allow_gaps: bool = False,
    chunks: Sequence[int] | None = None,
    shards: Sequence[int] | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Volume:
    """Convert an image stack to a sharded OME-Zarr 0.5 pyramid.

    Planes are decoded by several threads while the planes before them are compressed; two slabs of
    planes are in memory at a time. Every slab is read back and compared. `dest` appears only when
    all is written.

    A conversion that was stopped, by whatever, goes on where it was when it is asked for again, and gives
    the same bytes. Until then its finished part lies beside `dest` as `.converting-NAME`.

    Parameters
    ----------
    source : str or Path
        Folder of TIFF, PNG or JPEG files (one plane each, ordered by the number in their names), a .txt file
        that lists planes, a TIFF, BigTIFF, OME-TIFF or ImageJ stack, a .npy file, a Zarr image, or what bioio reads.
    dest : str or Path
        The .zarr folder to make.
    voxel_um : sequence of 3 floats, optional
        Voxel size z, y, x; needed unless the file's OME or ImageJ metadata has it.
    channel_names : sequence of str, optional
        One per channel.
    orientation : str, optional
        BrainGlobe letters, stored with the image.
    axes : str, optional
        What each stored axis is, such as "zyx" where planes were saved as channels; overrides the metadata.
    timepoint : int, optional
        Needed if there are several.
    planes : str, optional
        Of a folder, only files of this name: * is anything, ? a character, # a number.
    allow_gaps : bool
        Take a folder with missing planes; they stay empty.
    chunks, shards : sequence of 3 ints, optional
        Voxels z, y, x. Default: chunks of about 1 Mvoxel in shards of 1024 x 1024 in plane.
    overwrite : bool
        Replace `dest`, and discard an unfinished conversion of another source or with other settings.
    workers : int, optional
        Threads that decode planes; default: the number of processors.
    on_progress : callable (planes done, planes in all), optional

    Returns
    -------
    Volume
        The converted image (channel 0).

    Raises
    ------
    NotFoundError, DataError
        If the source is missing, not an image stack, or a plane cannot be read.
    UsageError
        If `dest` exists, the voxel size must be given, or an unfinished conversion of another source or with
        other settings is beside `dest`.
    MissingExtraError
        If the source is of a format that needs bioio.
    """
    reading = Reading(
        axes=None if axes is None else parse_axes(axes),
        timepoint=timepoint,
        planes=planes,
        allow_gaps=allow_gaps,
        voxel_um=None if voxel_um is None else parse_voxel_um(voxel_um),
    )
    path = Path(dest).expanduser().absolute()
    kept = f"what is finished is kept beside {dest}, and the same command goes on from there"
    with held_beside(path, kept):
        if path.exists() and not overwrite:
            raise UsageError(f"{dest} exists already; replace it with --overwrite, or choose another name")
        with open_stack(source, reading) as stack:
            options = _options(stack, reading, channel_names, orientation, chunks, shards)
            _write(stack, path, options, overwrite, workers or usable_cores(), on_progress)
    return Volume.open(dest, channel=0)


def _options(
    stack: Stack,
    reading: Reading,
    channel_names: Sequence[str] | None,
    orientation: str | None,
    chunks: Sequence[int] | None,
    shards: Sequence[int] | None,
) -> dict[str, Any]:
    """What the writer must know of the image to come."""
    names = channel_names or stack.channel_names
    if names is not None and len(names) != stack.shape[0]:
        raise UsageError(
            f"{len(names)} channel names were given; {stack.name} has {stack.shape[0]} channel(s)"
        )
    return {
        "shape": stack.shape if names is not None else stack.shape[1:],
        "dtype": stack.dtype,
        "voxel_um": _voxel_um(stack, reading.voxel_um),
        "orientation": None if orientation is None else parse_orientation(orientation),
        "channel_names": names,
        "chunks": chunks,
        "shards": shards or "auto",
    }


def _write(
    stack: Stack,
    path: Path,
    options: dict[str, Any],
    overwrite: bool,
    workers: int,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    """All slabs of planes, from the first that is not finished on."""
    settings = {**options, "files": fingerprint([file.name for file in stack.files]), "format": _FORMAT}
    journal = ConversionJournal(path, settings, stack.fingerprint, overwrite)
    with ExitStack() as opened:
        opened.enter_context(journal)
        writer = VolumeWriter(path, **options, overwrite=overwrite, verify=True, journal=journal)
        opened.enter_context(writer)
        pool = opened.enter_context(ThreadPoolExecutor(workers))
        if writer.planes_taken:
            log.info("%s: going on after %d of %d planes", path, writer.planes_taken, stack.shape[1])
        planes = opened.enter_context(
            task(f"converting {stack.name}", stack.shape[1], "planes", writer.planes_taken)
        )
        for slab in _slabs(stack, writer.planes_taken, writer.slab_depth, pool):
            writer.append(slab)
            planes.update(writer.planes_taken)
            if on_progress is not None:
                on_progress(writer.planes_taken, stack.shape[1])


def _voxel_um(stack: Stack, given: Triple | None) -> Triple:
    if given is not None:
        check_voxel_um(given, stack.shape[1:], stack.name, "--voxel-size")
        return given
    z, y, x = stack.voxel_um
    if z is None and stack.shape[1] == 1:
        z = y  # the thickness of a single section is not known and not needed
    if z is None or y is None or x is None:
        raise UsageError(f"{stack.name} does not tell its voxel size; give it in um with --voxel-size Z,Y,X")
    check_voxel_um((z, y, x), stack.shape[1:], stack.name, "its metadata")
    log.info("%s: voxel size %g, %g, %g um from its metadata", stack.name, z, y, x)
    return z, y, x


def _slabs(stack: Stack, first: int, depth: int, pool: ThreadPoolExecutor) -> Iterator[NDArray[Any]]:
    """Slabs of `depth` planes from plane `first` on, the next one being read while one is in use."""
    starts = range(first, stack.shape[1], depth)
    with ThreadPoolExecutor(1) as ahead:
        pending = [ahead.submit(stack.read, s, min(s + depth, stack.shape[1]), pool) for s in starts[:1]]
        for start in (*starts[1:], None) if starts else ():
            slab = pending.pop().result()
            if start is not None:
                pending.append(ahead.submit(stack.read, start, min(start + depth, stack.shape[1]), pool))
            yield slab
