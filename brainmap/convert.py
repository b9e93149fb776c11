"""Convert TIFF stacks (and other images) to OME-Zarr 0.5 pyramids, streamed and checked."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from brainmap.coords import parse_orientation
from brainmap.errors import UsageError
from brainmap.ngff import Triple
from brainmap.stacks import Stack, open_stack
from brainmap.volume import Volume, parse_voxel_um
from brainmap.volume_writer import VolumeWriter

__all__ = ["convert"]

log = logging.getLogger(__name__)


def convert(
    source: str | Path,
    dest: str | Path,
    voxel_um: Sequence[float] | None = None,
    channel_names: Sequence[str] | None = None,
    *,
    orientation: str | None = None,
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

    Parameters
    ----------
    source : str or Path
        Folder of TIFF files (one plane each, in natural order of their names), a TIFF, BigTIFF,
        OME-TIFF or ImageJ stack, a .npy file, or a Zarr image.
    dest : str or Path
        The .zarr folder to make.
    voxel_um : sequence of 3 floats, optional
        Voxel size z, y, x; needed unless the file's OME or ImageJ metadata has it.
    channel_names : sequence of str, optional
        One per channel.
    orientation : str, optional
        BrainGlobe letters, stored with the image.
    chunks, shards : sequence of 3 ints, optional
        Voxels z, y, x. Default: chunks of about 1 Mvoxel in shards of 1024 x 1024 in plane.
    overwrite : bool
        Replace `dest`.
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
        If `dest` exists, or the voxel size must be given.
    """
    if Path(dest).exists() and not overwrite:
        raise UsageError(f"{dest} exists already; remove it or choose another name")
    with open_stack(source) as stack:
        names = channel_names or stack.channel_names
        if names is not None and len(names) != stack.shape[0]:
            raise UsageError(
                f"{len(names)} channel names were given; {stack.name} has {stack.shape[0]} channel(s)"
            )
        writer = VolumeWriter(
            dest,
            stack.shape if names is not None else stack.shape[1:],
            stack.dtype,
            _voxel_um(stack, voxel_um),
            orientation=None if orientation is None else parse_orientation(orientation),
            channel_names=names,
            chunks=chunks,
            shards=shards or "auto",
            overwrite=overwrite,
            verify=True,
        )
        with writer, ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
            for slab in _slabs(stack, writer.slab_depth, pool):
                writer.append(slab)
                if on_progress is not None:
                    on_progress(writer.planes_taken, stack.shape[1])
    return Volume.open(dest, channel=0)


def _voxel_um(stack: Stack, given: Sequence[float] | None) -> Triple:
    if given is not None:
        return parse_voxel_um(given)
    z, y, x = stack.voxel_um
    if z is None and stack.shape[1] == 1:
        z = y  # the thickness of a single section is not known and not needed
    if z is None or y is None or x is None:
        raise UsageError(f"{stack.name} does not tell its voxel size; give it in um with --voxel-size Z,Y,X")
    log.info("%s: voxel size %g, %g, %g um from its metadata", stack.name, z, y, x)
    return z, y, x


def _slabs(stack: Stack, depth: int, pool: ThreadPoolExecutor) -> Iterator[NDArray[Any]]:
    """Slabs of `depth` planes, the next one being read while one is in use."""
    starts = range(0, stack.shape[1], depth)
    with ThreadPoolExecutor(1) as ahead:
        pending = [ahead.submit(stack.read, s, min(s + depth, stack.shape[1]), pool) for s in starts[:1]]
        for start in (*starts[1:], None):
            slab = pending.pop().result()
            if start is not None:
                pending.append(ahead.submit(stack.read, start, min(start + depth, stack.shape[1]), pool))
            yield slab
