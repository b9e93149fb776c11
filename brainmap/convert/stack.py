"""What every source of an image is made into: a `Stack`, read slab by slab.

A `Stack` knows shape, type and (where the file tells) voxel size, and returns any range of planes,
so that a brain can be converted with a few planes in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.convert.tiff import PartialVoxel
from brainmap.errors import DataError, UsageError
from brainmap.files import fingerprint
from brainmap.image.axes import check_axes

__all__ = ["Reading", "Stack", "checked_dtype", "chosen_timepoint", "first_line", "size_text"]


@dataclass(frozen=True)
class Reading:
    """How a source is to be read, where its owner knows better than its metadata.

    Attributes
    ----------
    axes : tuple of str or None
        Roles of the stored axes, as `brainmap.image.axes.parse_axes` gives them.
    timepoint : int or None
        Needed if there are several.
    planes : str or None
        Names of the files of a folder that are read.
    allow_gaps : bool
        Whether planes may be missing.
    voxel_um : tuple of float or None
        z, y, x: then the file's own does not matter.
    """

    axes: tuple[str, ...] | None = None
    timepoint: int | None = None
    planes: str | None = None
    allow_gaps: bool = False
    voxel_um: tuple[float, float, float] | None = None

    def roles(self, stored: Sequence[str], shape: Sequence[int], where: str) -> tuple[str, ...]:
        """Roles of stored axes: as given, or as their letters say.

        Axes of one entry may be left out of what is given.
        """
        if self.axes is None:
            return tuple(stored)
        long = [i for i, (name, n) in enumerate(zip(stored, shape, strict=True)) if n > 1 or name in "yx"]
        if len(self.axes) == len(long) != len(stored):
            told = dict(zip(long, self.axes, strict=True))
            return tuple(told.get(i, "?") for i in range(len(stored)))
        return check_axes(self.axes, stored, where)


@dataclass(frozen=True)
class Stack:
    """A stack of planes.

    Attributes
    ----------
    name : str
        Path, for messages.
    shape : (c, z, y, x)
    dtype : numpy.dtype
        Native byte order.
    voxel_um : tuple of float or None
        z, y, x as the file tells; None where it does not.
    channel_names : tuple of str or None
        None if the stack has no channel axis.
    read_plane : callable (c, z) -> array (y, x)
        Safe to call from many threads.
    files : tuple of Path
        What the stack is read from: one file per plane (of each channel in turn), or the files of the whole.
    """

    name: str
    shape: tuple[int, int, int, int]
    dtype: np.dtype[Any]
    voxel_um: PartialVoxel
    channel_names: tuple[str, ...] | None
    read_plane: Callable[[int, int], NDArray[Any]]
    files: tuple[Path, ...] = ()

    def fingerprint(self, start: int, stop: int) -> str:
        """Changes when a file of planes start:stop does: names, sizes and times of change."""
        files: tuple[Path, ...] = self.files
        if len(self.files) == self.shape[0] * self.shape[1]:
            firsts = range(0, len(self.files), self.shape[1])
            files = tuple(file for first in firsts for file in self.files[first + start : first + stop])
        facts = [(file.name, file.stat()) for file in files]
        return fingerprint([(name, stat.st_size, stat.st_mtime_ns) for name, stat in facts])

    def read(self, start: int, stop: int, pool: Executor) -> NDArray[Any]:
        """Planes start:stop of all channels, shape (c, n, y, x), read by the threads of `pool`.

        Raises
        ------
        DataError
            If a plane cannot be read or has another shape or type than the first.
        """
        slab = np.empty((self.shape[0], stop - start, *self.shape[2:]), self.dtype)

        def fill(position: tuple[int, int]) -> None:
            channel, z = position
            plane = self.read_plane(channel, z)
            if plane.shape != self.shape[2:] or plane.dtype.newbyteorder("=") != self.dtype:
                raise DataError(
                    f"{self.name}: plane {z} is {size_text(plane.shape)} of {plane.dtype}, "
                    f"the first one {size_text(self.shape[2:])} of {self.dtype}; all planes must be alike"
                )
            slab[channel, z - start] = plane

        positions = [(c, z) for c in range(self.shape[0]) for z in range(start, stop)]
        for _ in pool.map(fill, positions):
            pass
        return slab


def chosen_timepoint(count: int, wanted: int | None, where: str) -> int:
    """The timepoint to read.

    Raises
    ------
    UsageError
        If one must be given, or the given one is not there.
    """
    if wanted is None and count > 1:
        raise UsageError(
            f"{where} holds {count} timepoints: choose one of 0 to {count - 1} with --timepoint, or, if they are "
            "planes, say so with --axes (such as ZYX)"
        )
    if wanted is not None and not 0 <= wanted < count:
        raise UsageError(
            f"{where} holds {count} timepoint{'s' if count > 1 else ''}; --timepoint {wanted} is not there"
        )
    return wanted or 0


def size_text(shape: Sequence[int]) -> str:
    """A shape as people write it: 12 x 128 x 128."""
    return " x ".join(str(n) for n in shape)


def checked_dtype(dtype: Any, name: str) -> np.dtype[Any]:
    """The type in native byte order.

    Raises
    ------
    DataError
        If it is not one of grey levels.
    """
    native = np.dtype(dtype).newbyteorder("=")
    if native.kind not in "iuf" or native.itemsize > 8:
        raise DataError(f"{name} holds values of type {native}; brainmap reads integer and float images")
    return native


def first_line(error: BaseException) -> str:
    """What an error of another library says, as part of a sentence."""
    text = str(error).strip().splitlines()
    return text[0].rstrip(".") if text else type(error).__name__
