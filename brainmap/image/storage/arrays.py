"""The Zarr arrays behind a volume: find them, describe them, read regions of them.

Everything zarr, fsspec and the codecs can raise ends here as one of brainmap's errors. What a
volume needs of an array is the small `Reader` protocol, so another library can take zarr's place.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import itertools
import json
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import ByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.errors import ContainsGroupError
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from brainmap.errors import BrainmapError, DataError, MissingExtraError, NotFoundError, what_it_is
from brainmap.image.storage.local import LocalChunks, require_place

__all__ = ["ArrayInfo", "Node", "Reader", "ZarrFormat", "locate", "open_reader", "read_node"]

log = logging.getLogger(__name__)

Index = tuple[int | slice, ...]
ZarrFormat = Literal[2, 3]

# Packages that fsspec needs for the common kinds of URL.
_URL_PACKAGES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}


_METADATA = (".json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")
_MOST_READERS = 256
_readers: dict[tuple[str, str, str | None], Reader] = {}


@dataclass(frozen=True)
class Node:
    """A Zarr group or array as found at a path or URL.

    Attributes
    ----------
    kind : str
        "group" or "array".
    zarr_format : int
        2 or 3.
    attributes : dict
    """

    kind: str
    zarr_format: ZarrFormat
    attributes: dict[str, Any]


@dataclass(frozen=True)
class ArrayInfo:
    """What the metadata of an array says.

    `chunks` are the units of decoding, `shards` the files they are packed in (None: each chunk is
    a file). `dtype` is in native byte order. `digest` changes when the metadata changes.
    """

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    dtype: np.dtype[Any]
    dimension_names: tuple[str, ...] | None
    digest: str


class Reader(Protocol):
    """Reads regions of one array; safe to use from many threads."""

    info: ArrayInfo

    @property
    def unit(self) -> tuple[int, ...]:
        """What is decoded at a time: a chunk, or fewer of its outermost sections."""

    def read(self, index: Index, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Return a region (integers drop their axis) in native byte order.

        Parameters
        ----------
        index : tuple of int and slice
        out : ndarray, optional
            Memory to fill instead of new one: C-contiguous, as many elements as the region, the array's type.

        Raises
        ------
        DataError
            If stored data cannot be decoded; the sentence names the chunk.
        """

    def samples(self, count: int) -> Iterator[tuple[str, bytes | None]]:
        """Yield key and leading stored bytes of up to `count` evenly spaced chunks (None: not stored)."""

    def unstored(self, index: Index) -> list[tuple[int, ...]]:
        """Grid positions of the chunks of a region that this process has read and that are not stored."""

    def stamps(self, index: Index) -> dict[str, tuple[int, int] | None] | None:
        """Bytes and time of change (ns) of each file of a region; None for one that is not there.

        None where the image is not on a disk.
        """


def locate(source: str | Path) -> str:
    """Return a URL as it is, and a local path made absolute, without trailing slash."""
    text = str(source)
    if text.startswith("file://"):
        text = text[len("file://") :]
    if "://" in text:
        return text.rstrip("/")
    return str(Path(text).expanduser().absolute())


def is_url(location: str) -> bool:
    """Tell a URL from a local path."""
    return "://" in location


@functools.lru_cache(maxsize=64)
def _store(location: str) -> Store:
    if not is_url(location):
        return LocalStore(location, read_only=True)
    scheme = location.split("://", 1)[0]
    package = _URL_PACKAGES.get(scheme, "fsspec")
    if importlib.util.find_spec("fsspec") is None or importlib.util.find_spec(package) is None:
        raise MissingExtraError(package, "remote", f"read {scheme}:// addresses")
    try:
        return FsspecStore.from_url(location, read_only=True)
    except (ImportError, ValueError, OSError) as error:
        raise NotFoundError(f"{location} cannot be opened: {_first_line(error)}") from error


class _CheckedStore(WrapperStore[Store]):
    """Compares the length of what a store returns with what was asked for.

    The Blosc decoder does not know how long its input is: without this check a truncated chunk could
    decode to garbage. And a web server that ignores byte ranges sends whole shards for each chunk.

    Attributes
    ----------
    blosc_chunks : bool
        Whether every stored file is one Blosc frame.
    nested : bool
        Whether chunk keys 0.1.2 of the metadata are stored as 0/1/2.
    folder : Path or None
        Of a local image.
    missing : set of str
        Keys of files of chunks that were asked for and are not there.
    """

    blosc_chunks = False
    nested = False
    folder: Path | None = None

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.missing: set[str] = set()

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        buffer = await self._store.get(self.stored_key(key), prototype, byte_range)
        if buffer is None:
            if not key.endswith(_METADATA):
                if self.folder is not None:
                    require_place(self.folder / self.stored_key(key))
                self.missing.add(key)
            return None
        if byte_range is None:
            if self.blosc_chunks and not key.endswith(_METADATA):
                _check_blosc_length(buffer)
            return buffer
        if isinstance(byte_range, RangeByteRequest):
            wanted = byte_range.end - byte_range.start
        elif isinstance(byte_range, SuffixByteRequest):
            wanted = byte_range.suffix
        else:
            return buffer
        if len(buffer) > wanted:
            raise OSError("the server does not support byte ranges, which sharded images need")
        if len(buffer) < wanted:
            raise ValueError(f"{len(buffer)} bytes are stored where {wanted} should be")
        return buffer

    def stored_key(self, key: str) -> str:
        """Where a chunk of the metadata's name really lies."""
        folder, slash, name = key.rpartition("/")
        return folder + slash + name.replace(".", "/") if self.nested and not name.startswith(".") else key


def _check_blosc_length(buffer: Buffer) -> None:
    header = buffer[:16].to_bytes()
    announced = int.from_bytes(header[12:16], "little") if len(header) == 16 else 16
    if len(buffer) != announced:
        raise ValueError(f"{len(buffer)} bytes are stored where {announced} should be")


def _fetch(location: str, key: str, limit: int | None = None) -> bytes | None:
    """Stored bytes under a key (at most the first `limit`), or None if there are none."""
    wanted = None if limit is None else RangeByteRequest(0, limit)
    store = _store(location)
    try:
        buffer = sync(store.get(key, prototype=default_buffer_prototype(), byte_range=wanted))
    except Exception as error:  # aiohttp, botocore, OSError: whatever the transport raises
        raise DataError(f"{location}/{key} cannot be read: {_first_line(error)}") from error
    return None if buffer is None else buffer.to_bytes()[:limit]


def _document(location: str, key: str) -> dict[str, Any] | None:
    raw = _fetch(location, key)
    if raw is None:
        return None
    try:
        document = json.loads(raw)
    except ValueError as error:
        raise DataError(f"{location}/{key} is damaged: not valid JSON ({_first_line(error)})") from error
    if not isinstance(document, dict):
        raise DataError(f"{location}/{key} is damaged: it is not a JSON object")
    return document


def read_node(location: str) -> Node:
    """Read the metadata document of the group or array at a path or URL.

    Raises
    ------
    NotFoundError
        If there is nothing.
    DataError
        If there is something else than Zarr, or the document is damaged.
    """
    if not is_url(location) and not Path(location).exists():
        raise NotFoundError(f"{location} does not exist")
    if not is_url(location) and not Path(location).is_dir():
        raise DataError(f"{location} is a file, not an OME-Zarr folder{what_it_is(location)}")
    document = _document(location, "zarr.json")
    if document is not None:
        return _node_v3(location, document)
    attributes = _document(location, ".zattrs") or {}
    if _document(location, ".zarray") is not None:
        return Node("array", 2, attributes)
    # A group whose .zgroup was lost in copying can still be read.
    if "multiscales" not in attributes and _document(location, ".zgroup") is None:
        raise _not_zarr(location)
    return Node("group", 2, attributes)


def _node_v3(location: str, document: dict[str, Any]) -> Node:
    kind, attributes = document.get("node_type"), document.get("attributes") or {}
    if document.get("zarr_format") != 3 or kind not in ("group", "array") or not isinstance(attributes, dict):
        raise DataError(f"{location}/zarr.json is damaged: it describes neither a Zarr 3 group nor an array")
    return Node(kind, 3, attributes)


def _not_zarr(location: str) -> BrainmapError:
    if is_url(location):
        return NotFoundError(f"{location}: no Zarr metadata found there (zarr.json, .zgroup or .zarray)")
    names = sorted(p.name for p in Path(location).iterdir())
    inside = [name for name in names if name.endswith(".zarr")]
    hint = ": it has no zarr.json, .zgroup or .zarray"
    if inside:
        hint += f"; it contains {inside[0]}"
    elif known := what_it_is(location).removeprefix("; it is "):
        hint = f" but {known}"
    if "run.json" in names:
        hint = " but the folder of a run; give the brain it was made from"
    return DataError(f"{location} is not a Zarr image{hint}")


def open_reader(location: str, path: str, zarr_format: ZarrFormat, digest: str | None = None) -> Reader:
    """Open an array for reading.

    Parameters
    ----------
    location : str
        Path or URL of the group (or of a bare array, then `path` is "").
    path : str
        Path of the array in the group.
    zarr_format : int
        2 or 3.
    digest : str, optional
        `ArrayInfo.digest` of an earlier opening: then the reader that this process keeps is returned.

    Raises
    ------
    NotFoundError, DataError
        If there is no such array, or its metadata is damaged or not supported.
    """
    known = _readers.get((location, path, digest))
    if known is not None:
        return known
    reader = ZarrReader(location, path, zarr_format)
    if len(_readers) >= _MOST_READERS:
        _readers.clear()
    _readers[location, path, reader.info.digest] = reader
    return reader


class ZarrReader:
    """`Reader` on zarr-python."""

    def __init__(self, location: str, path: str, zarr_format: ZarrFormat) -> None:
        self.location, self.path = location, path
        self._array = _open_zarr(location, path, zarr_format)
        self.info = self._describe()
        if zarr_format == 2 and self._is_nested():
            log.warning("%s: its chunks lie in nested folders, which its metadata does not say", self._name())
            self._array.store.nested = True

    def _is_nested(self) -> bool:
        """Old writers stored chunks as 0/1/2 without saying so: they would all seem to be missing."""
        document = _document(self.location, self._key(".zarray")) or {}
        if "dimension_separator" in document or len(self.info.shape) == 1:
            return False
        keys = [self._key(key) for key in self._sample_keys(8)]
        if any(_fetch(self.location, key, limit=1) is not None for key in keys):
            return False
        nested = [self._key(key.replace(".", "/")) for key in self._sample_keys(8)]
        return any(_fetch(self.location, key, limit=1) is not None for key in nested)

    def _key(self, name: str) -> str:
        return f"{self.path}/{name}" if self.path else name

    def _describe(self) -> ArrayInfo:
        array = self._array
        metadata = json.dumps(array.metadata.to_dict(), sort_keys=True, default=str)
        names = getattr(array.metadata, "dimension_names", None)
        return ArrayInfo(
            shape=tuple(array.shape),
            chunks=tuple(array.chunks),
            shards=None if array.shards is None else tuple(array.shards),
            dtype=np.dtype(array.dtype).newbyteorder("="),
            dimension_names=None if names is None else tuple(str(n) for n in names),
            digest=hashlib.sha256(metadata.encode()).hexdigest(),
        )

    @functools.cached_property
    def _local(self) -> LocalChunks | None:
        """A quicker way to chunks of a local array, where there is one."""
        if is_url(self.location):
            return None
        store: _CheckedStore = self._array.store
        name = "zarr.json" if self._array.metadata.zarr_format == 3 else ".zarray"
        document = _document(self.location, self._key(name)) or {}
        return LocalChunks.of(document, Path(self.location) / self.path, store.stored_key)

    @property
    def unit(self) -> tuple[int, ...]:
        """See `Reader.unit`."""
        return self.info.chunks if self._local is None else self._local.unit

    def read(self, index: Index, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """See `Reader.read`."""
        try:
            values = self._values(index, out)
        except MemoryError:
            raise
        except Exception as error:  # codecs raise RuntimeError, ValueError, zlib.error, OSError, ...
            raise self._damage(index, error) from error
        return np.ascontiguousarray(values, dtype=self.info.dtype)

    def _values(self, index: Index, out: NDArray[Any] | None = None) -> NDArray[Any]:
        box = tuple(slice(i, i + 1) if isinstance(i, int) else i for i in index)
        shape = [r.stop - r.start for r in box]
        if self._local is not None:
            values = self._local.read(box, None if out is None else out.reshape(shape))
        else:
            values = np.asarray(self._array[index])
            if out is not None:
                out.reshape(shape)[...] = values.reshape(shape)
                values = out
        kept = [n for n, i in zip(shape, index, strict=True) if not isinstance(i, int)]
        return values.reshape(kept)

    def _damage(self, index: Index, error: Exception) -> DataError:
        """Name the first chunk of a region that cannot be read."""
        for chunk in _grid_of(index, self.info.chunks):
            region = tuple(
                slice(i * c, min((i + 1) * c, n))
                for i, c, n in zip(chunk, self.info.chunks, self.info.shape, strict=True)
            )
            try:
                self._values(region)
            except Exception as chunk_error:
                corners = ", ".join(f"{r.start}:{r.stop}" for r in region)
                fault = "cannot be read" if _is_transport(chunk_error) else "is damaged or truncated"
                return DataError(
                    f"{self._name()}: chunk {'/'.join(map(str, chunk))} (region {corners}) {fault}: "
                    f"{_first_line(chunk_error)}"
                )
        region_text = ", ".join(str(i) if isinstance(i, int) else f"{i.start}:{i.stop}" for i in index)
        return DataError(f"{self._name()}: region {region_text} cannot be read: {_first_line(error)}")

    def _name(self) -> str:
        return f"{self.location}, level {self.path!r}" if self.path else self.location

    def samples(self, count: int) -> Iterator[tuple[str, bytes | None]]:
        """See `Reader.samples`."""
        store: _CheckedStore = self._array.store
        for key in self._sample_keys(count):
            yield key, _fetch(self.location, store.stored_key(self._key(key)), limit=1 << 15)

    def unstored(self, index: Index) -> list[tuple[int, ...]]:
        """See `Reader.unstored`."""
        local = set() if self._local is None else self._local.unstored
        missing = self._array.store.missing
        found = []
        for chunk in _grid_of(index, self.info.chunks):
            corner = self._file_of(chunk)
            if chunk in local or (missing and self._key(self._encoded(corner)) in missing):
                found.append(chunk)
        return found

    def stamps(self, index: Index) -> dict[str, tuple[int, int] | None] | None:
        """See `Reader.stamps`."""
        if is_url(self.location):
            return None
        found: dict[str, tuple[int, int] | None] = {}
        for corner in _grid_of(index, self.info.shards or self.info.chunks):
            key = self._encoded(corner)
            try:
                stat = os.stat(f"{self.location}/{self._array.store.stored_key(self._key(key))}")
                found[key] = (stat.st_size, stat.st_mtime_ns)
            except OSError:
                found[key] = None
        return found

    def _file_of(self, chunk: tuple[int, ...]) -> tuple[int, ...]:
        files = self.info.shards or self.info.chunks
        return tuple(i * c // f for i, c, f in zip(chunk, self.info.chunks, files, strict=True))

    def _encoded(self, corner: tuple[int, ...]) -> str:
        return str(self._array.metadata.encode_chunk_key(corner))

    def _sample_keys(self, count: int) -> list[str]:
        file_shape = self.info.shards or self.info.chunks
        grid = [-(-n // c) for n, c in zip(self.info.shape, file_shape, strict=True)]
        total = math.prod(grid)
        chosen = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(np.int64))
        corners = [tuple(int(i) for i in np.unravel_index(flat, grid)) for flat in chosen]
        return [self._encoded(corner) for corner in corners]


def _grid_of(index: Index, size: tuple[int, ...]) -> itertools.product[tuple[int, ...]]:
    """Places, in a grid of pieces of a size, that a region touches."""
    ranges = [(i, i + 1) if isinstance(i, int) else (i.start, i.stop) for i in index]
    return itertools.product(*(range(a // c, -(-b // c)) for (a, b), c in zip(ranges, size, strict=True)))


def _open_zarr(location: str, path: str, zarr_format: ZarrFormat) -> Any:
    where = f"{location}, level {path!r}" if path else location
    store = _CheckedStore(_store(location))
    try:
        array = zarr.open_array(store, path=path, mode="r", zarr_format=zarr_format)
        store.blosc_chunks = array.shards is None and _is_blosc(array)
        store.folder = None if is_url(location) else Path(location)
    except (FileNotFoundError, ContainsGroupError) as error:
        raise DataError(f"{where}: the array that the metadata lists is not there") from error
    except OSError as error:
        raise DataError(f"{where}: array metadata cannot be read: {_first_line(error)}") from error
    except Exception as error:  # json, codec and dtype errors of many kinds
        raise DataError(f"{where}: array metadata damaged or not supported: {_first_line(error)}") from error
    return array


def _is_transport(error: BaseException) -> bool:
    """Tell a failure of disk or network from one of a codec."""
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in ("aiohttp", "botocore")


def _is_blosc(array: Any) -> bool:
    last = array.compressors[-1] if array.compressors else None
    return type(last).__name__.lower().startswith("blosc")


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0].rstrip(".") if text else type(error).__name__
