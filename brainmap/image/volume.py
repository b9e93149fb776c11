"""Volume: a brain image stored as OME-Zarr (or a bare Zarr array), opened lazily and read by region.

Axis order is z, y, x. Voxel index 0 is the centre of the first voxel; ``um = index * voxel_um + origin_um``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from brainmap.coords import Shape, Triple, parse_orientation
from brainmap.errors import DataError, UsageError
from brainmap.image.axes import in_zyx_order, parse_axes, warn_of_planes_as_channels
from brainmap.image.levels import Level, check_arrays, image_of, levels_of, parse_voxel_um, spatial
from brainmap.image.ngff import is_collection
from brainmap.image.storage.arrays import Reader, ZarrFormat, locate, open_reader, read_node
from brainmap.image.writer import VolumeWriter

__all__ = ["Level", "Volume", "VolumeWriter", "parse_voxel_um", "write_volume"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Volume:
    """A 3-D image of one channel with its resolution levels; a small record that opens arrays lazily.

    It can be pickled and sent to other processes; reads are safe from many threads.

    Attributes
    ----------
    url : str
        Absolute path or URL.
    name : str
    levels : tuple of Level
        0 is full resolution.
    n_channels : int
    channel : int or None
        The channel that `read` returns; None if the image has no channel axis.
    channel_names : tuple of str
        Empty if the image names none.
    orientation : str or None
        BrainGlobe letters of the sides where z, y, x start; None if unknown.
    dtype : numpy.dtype
        Native byte order.
    timepoint : int or None
    axes : tuple of str
        Roles of the stored axes, e.g. ("c", "z", "y", "x").
    zarr_format : int
        2 or 3.
    crop : tuple of (start, stop), or None
        Voxels z, y, x of the stored level 0 that are seen, where it is a part of the image.
    """

    url: str
    name: str
    levels: tuple[Level, ...]
    n_channels: int
    channel: int | None
    channel_names: tuple[str, ...]
    orientation: str | None
    dtype: np.dtype[Any]
    timepoint: int | None
    axes: tuple[str, ...]
    zarr_format: ZarrFormat
    crop: tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None = None

    @classmethod
    def open(
        cls,
        source: str | Path,
        *,
        channel: int | None = None,
        timepoint: int | None = None,
        voxel_um: Sequence[float] | None = None,
        orientation: str | None = None,
        axes: str | None = None,
        any_order: bool = False,
    ) -> Volume:
        """Open an OME-Zarr image (0.4, 0.5; Zarr 2, 3) or a bare Zarr array. Reads metadata only.

        Parameters
        ----------
        source : str or Path
            Local folder, or a URL that fsspec understands (http, s3, ...).
        channel, timepoint : int, optional
            Needed if the image has several.
        voxel_um : sequence of 3 floats, optional
            Voxel size z, y, x of level 0. Needed for a bare array; overrides the metadata.
        orientation : str, optional
            Overrides the metadata.
        axes : str, optional
            What each stored axis is, such as "xyz" or "ctzyx"; overrides the metadata.
        any_order : bool
            Take an image whose metadata puts x, y, z in another order; it is read transposed, which is slow.

        Raises
        ------
        NotFoundError
            If there is nothing at `source`.
        DataError
            If it is not a usable image.
        UsageError
            If a channel, timepoint or voxel size must be given, or a given one is wrong.
        """
        url = locate(source)
        given = None if voxel_um is None else parse_voxel_um(voxel_um)
        letters = None if orientation is None else parse_orientation(orientation)
        node = read_node(url)
        if is_collection(node.attributes):
            log.warning("%s is a collection of images (bioformats2raw); the first one, /0, is used", url)
            url += "/0"
            node = read_node(url)
        image = image_of(node, url, given, None if axes is None else parse_axes(axes), any_order)
        readers = [open_reader(url, d.path, node.zarr_format) for d in image.datasets]
        check_arrays(image, [r.info for r in readers], url)
        levels = levels_of(image, [r.info for r in readers], given)
        sizes = dict(zip(image.axes, readers[0].info.shape, strict=True))
        warn_of_planes_as_channels(sizes.get("c", 1), sizes.get("z", 1), url)
        names = image.channel_names if len(image.channel_names) == sizes.get("c", 1) else ()
        return cls(
            url=url,
            name=_name_of(url),
            levels=levels,
            n_channels=sizes.get("c", 1),
            channel=_chosen("channel", channel, sizes.get("c"), names, url),
            channel_names=names,
            orientation=letters or image.orientation,
            dtype=readers[0].info.dtype,
            timepoint=_chosen("timepoint", timepoint, sizes.get("t"), (), url),
            axes=image.axes,
            zarr_format=node.zarr_format,
        )

    @property
    def shape(self) -> Shape:
        """Voxels of level 0."""
        return self.levels[0].shape

    @property
    def chunks(self) -> Shape:
        """Chunk of level 0."""
        return self.levels[0].chunks

    @cached_property
    def unit(self) -> Shape:
        """Voxels of level 0 that are decoded at a time: a chunk, or fewer of its sections where the codec can."""
        return spatial(self.axes, self.reader().unit)

    @property
    def shards(self) -> Shape | None:
        """Shard of level 0, or None."""
        return self.levels[0].shards

    @property
    def voxel_um(self) -> Triple:
        """Voxel size of level 0, um."""
        return self.levels[0].voxel_um

    @property
    def origin_um(self) -> Triple:
        """um of the centre of voxel 0 of level 0."""
        return self.levels[0].origin_um

    @property
    def reading_shape(self) -> Shape:
        """Voxels of one stored file of level 0 (shard, else chunk); aligned reads decode nothing twice."""
        return self.shards or self.chunks

    def with_channel(self, channel: int) -> Volume:
        """Return the same image seen through another channel."""
        checked = _chosen("channel", channel, self.n_channels, self.channel_names, self.url)
        return replace(self, channel=checked if "c" in self.axes else None)

    def cropped(self, box: Sequence[tuple[int, int]]) -> Volume:
        """A part of the image as a volume of its own, with faces where the part ends.

        Parameters
        ----------
        box : three (start, stop)
            Voxels z, y, x of level 0, inside this volume.

        Returns
        -------
        Volume
            Its positions in um are those of the whole; its voxel 0 is the first one of the part. Coarse voxels that
            the part does not hold as a whole are left out, and with them levels without any.
        """
        full = self.levels[0]
        levels: list[Level] = []
        for level in self.levels:
            start, stop = [], []
            for axis, (first, end) in enumerate(box):
                corner = (
                    level.origin_um[axis]
                    - full.origin_um[axis]
                    + (full.voxel_um[axis] - level.voxel_um[axis]) / 2
                )
                ratio = full.voxel_um[axis] / level.voxel_um[axis]
                shift = corner / level.voxel_um[axis]
                start.append(max(0, math.ceil(first * ratio - shift - 1e-6)))
                stop.append(min(level.shape[axis], math.floor(end * ratio - shift + 1e-6)))
            if any(a >= b for a, b in zip(start, stop, strict=True)):
                break
            levels.append(level.cropped((start[0], start[1], start[2]), (stop[0], stop[1], stop[2])))
        origin = self.offset
        crop = tuple((a + o, b + o) for (a, b), o in zip(box, origin, strict=True))
        return replace(self, levels=tuple(levels), crop=crop)  # type: ignore[arg-type]

    @property
    def offset(self) -> Shape:
        """Stored level-0 voxel that is voxel 0 here."""
        return self.levels[0].offset

    def reader(self, level: int = 0) -> Reader:
        """Return this process's shared reader of a level."""
        record = self.levels[level]
        return open_reader(self.url, record.path, self.zarr_format, record.digest)

    def read(
        self, z: slice, y: slice, x: slice, level: int = 0, out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """Read a region.

        Parameters
        ----------
        z, y, x : slice
            Voxels of the level, step 1, inside its shape; an open end means the face of the volume.
        level : int
            0 = full resolution.
        out : array (z, y, x), optional
            Filled and returned, instead of a new array: C-contiguous, of the region's shape and `dtype`.

        Returns
        -------
        array (z, y, x)
            Stored values in native byte order; what was never stored has the fill value.

        Raises
        ------
        DataError
            If the region leaves the volume, or stored data is damaged (names volume, level and chunk).
        """
        region = self._region((z, y, x), level)
        shape = [r.stop - r.start for r in region]
        index = self._index(region, level)
        if [role for role in self.axes if role in "zyx"] in (["z", "y", "x"], ["y", "x"]):
            return self.reader(level).read(index, out).reshape(shape)
        values = in_zyx_order(self.reader(level).read(index), self.axes).reshape(shape)
        if out is None:
            return np.ascontiguousarray(values)
        out.reshape(shape)[...] = values
        return out

    def _index(self, region: Sequence[slice], level: int) -> tuple[int | slice, ...]:
        """A region of a level in the axes of its array."""
        shift = self.levels[level].offset
        stored = [slice(r.start + o, r.stop + o) for r, o in zip(region, shift, strict=True)]
        others = {"c": self.channel, "t": self.timepoint}
        return tuple(
            stored["zyx".index(role)] if role in "zyx" else others.get(role) or 0 for role in self.axes
        )

    def unstored(self, z: slice, y: slice, x: slice) -> list[Shape]:
        """Which chunks of a region of level 0 this process has read and found not stored; they have the fill value.

        Returns
        -------
        list of (z, y, x)
            Places in the grid of chunks of the stored level 0.
        """
        places = self.reader().unstored(self._index(self._region((z, y, x), 0), 0))
        where = [self.axes.index(role) if role in self.axes else None for role in "zyx"]
        return [tuple(0 if at is None else place[at] for at in where) for place in places]  # type: ignore[misc]

    def stamps(self, z: slice, y: slice, x: slice) -> dict[str, tuple[int, int] | None] | None:
        """Bytes and time of change (ns) of the files that hold a region of level 0; None for an image by URL."""
        return self.reader().stamps(self._index(self._region((z, y, x), 0), 0))

    def _region(self, slices: tuple[slice, slice, slice], level: int) -> tuple[slice, slice, slice]:
        if not 0 <= level < len(self.levels):
            raise DataError(f"{self.url} has levels 0 to {len(self.levels) - 1}, not {level}")
        shape = self.levels[level].shape
        bounds = []
        for axis, part, size in zip("zyx", slices, shape, strict=True):
            start = 0 if part.start is None else int(part.start)
            stop = size if part.stop is None else int(part.stop)
            if part.step not in (None, 1) or not 0 <= start < stop <= size:
                raise DataError(
                    f"{self.url}: region {axis} {part.start}:{part.stop} does not lie inside level {level}, "
                    f"which has {size} voxels along {axis}"
                )
            bounds.append(slice(start, stop))
        return bounds[0], bounds[1], bounds[2]

    def level_near(self, um: float) -> int:
        """Coarsest level whose voxels are nowhere larger than `um` (with 1 % tolerance); 0 if none is."""
        fitting = [i for i, level in enumerate(self.levels) if max(level.voxel_um) <= um * 1.01]
        # A z step larger than `um` from the start must not force reading the full resolution in plane.
        if not fitting:
            fitting = [i for i, level in enumerate(self.levels) if max(level.voxel_um[1:]) <= um * 1.01]
        return max(fitting, default=0)

    def storage_bytes(self, z: slice, y: slice, x: slice, level: int = 0) -> int:
        """Bytes to decode for reading a region: whole units, uncompressed, of one channel."""
        region = self._region((z, y, x), level)
        unit = spatial(self.axes, self.reader(level).unit) if level else self.unit
        shape = self.levels[level].shape
        voxels = 1
        for part, step, size, offset in zip(region, unit, shape, self.levels[level].offset, strict=True):
            first, last = (part.start + offset) // step, -(-(part.stop + offset) // step)
            voxels *= min(last * step, size + offset) - first * step
        return voxels * self.dtype.itemsize

    def fingerprint(self) -> str:
        """Fingerprint of the image: all metadata plus the stored bytes of a few chunks of every level.

        Cheap (a few small reads per level), the same wherever the data lies; a change in a chunk
        that is not sampled goes unnoticed.
        """
        digest = hashlib.sha256()
        for number, level in enumerate(self.levels):
            digest.update(json.dumps([level.path, level.digest, level.voxel_um, level.origin_um]).encode())
            samples = list(self.reader(number).samples(16 if number == 0 else 4))
            if all(stored is None for _, stored in samples):
                log.warning(
                    "%s, level %r: none of %d chunks looked for is stored; is the copy complete?",
                    self.url, level.path, len(samples),
                )  # fmt: skip
            for key, stored in samples:
                digest.update(key.encode())
                digest.update(b"missing" if stored is None else hashlib.sha256(stored).digest())
        view: list[Any] = [self.channel, self.timepoint]
        if self.crop is not None:
            view.append(self.crop)
        digest.update(json.dumps(view).encode())
        return digest.hexdigest()


def _chosen(what: str, wanted: int | None, count: int | None, names: tuple[str, ...], url: str) -> int | None:
    """The channel or timepoint to read; None if the image has no such axis."""
    size = 1 if count is None else count
    listing = ", ".join(f"{i} ({n})" if n else str(i) for i, n in enumerate(names)) or f"0 to {size - 1}"
    if wanted is None:
        if size > 1:
            other = "; if they are something else, say so with --axes" if what == "timepoint" else ""
            raise UsageError(f"{url} has {size} {what}s: choose one of {listing} with --{what}{other}")
        wanted = 0
    if not 0 <= wanted < size:
        has = f"has {size} {what}s ({listing})" if size > 1 else f"has one {what}, number 0"
        raise UsageError(f"{url} {has}; --{what} {wanted} is not there")
    return None if count is None else int(wanted)


def _name_of(url: str) -> str:
    name = url.rstrip("/").rsplit("/", 1)[-1]
    for ending in (".ome.zarr", ".zarr"):
        name = name.removesuffix(ending)
    return name or url


def write_volume(
    path: str | Path,
    data: NDArray[Any] | Iterable[NDArray[Any]],
    voxel_um: Sequence[float],
    *,
    shape: Sequence[int] | None = None,
    dtype: DTypeLike | None = None,
    orientation: str | None = None,
    channel_names: Sequence[str] | None = None,
    chunks: Sequence[int] | None = None,
    shards: Sequence[int] | None = None,
    zarr_format: int = 3,
    levels: int | None = None,
    method: str = "mean",
    origin_um: Sequence[float] = (0.0, 0.0, 0.0),
    overwrite: bool = False,
) -> Volume:
    """Write an OME-Zarr pyramid: 0.5 (Zarr 3), or 0.4 (Zarr 2).

    Parameters
    ----------
    path : str or Path
        Folder to make; it appears only when complete.
    data : array (z, y, x), (y, x) or (c, z, y, x), or an iterable of such slabs in z order
        Slabs may be of any thickness; with an iterable, `shape` and `dtype` must be given.
    voxel_um : sequence of 3 floats
        Voxel size z, y, x.
    shape, dtype
        Of the whole, for an iterable.
    orientation : str, optional
        BrainGlobe letters, stored with the image.
    channel_names : sequence of str, optional
        One per channel; gives the image a channel axis.
    chunks, shards : sequence of 3 ints, optional
        Voxels; shards are multiples of chunks.
    zarr_format : int
        3 or 2.
    levels : int, optional
        Number of levels; by default until the longest side is 256 or less.
    method : str
        "mean" for images; "nearest" for label images, whose values must not mix.
    origin_um : sequence of 3 floats
        um of the centre of voxel 0.
    overwrite : bool
        Replace what is at `path`.

    Returns
    -------
    Volume
        Opened; of channel 0 if there are several.
    """
    slabs: Iterable[NDArray[Any]]
    if isinstance(data, np.ndarray):
        whole = data[None] if data.ndim == 2 else data
        slabs, shape, dtype = (whole,), whole.shape, whole.dtype
    else:
        if shape is None or dtype is None:
            raise UsageError("writing slabs needs the shape and dtype of the whole volume")
        slabs = data
    with VolumeWriter(
        path,
        tuple(shape),
        dtype,
        parse_voxel_um(voxel_um),
        orientation=None if orientation is None else parse_orientation(orientation),
        channel_names=channel_names,
        chunks=chunks,
        shards=shards,
        zarr_format=zarr_format,
        levels=levels,
        method=method,
        origin_um=origin_um,
        overwrite=overwrite,
    ) as writer:
        for slab in slabs:
            writer.append(slab)
    several = writer.n_channels > 1
    return Volume.open(path, channel=0 if several else None)
