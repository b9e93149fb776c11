"""How an array is stored, as its own metadata says: `zarr.json` (Zarr 3) or `.zarray` (Zarr 2), parsed here.

What zarr-python keeps of these documents has other names and types in every other release. Arrays that are stored in
a way not known here are left to zarr.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
from numcodecs import zstd

from brainmap.image.storage import blosc
from brainmap.image.storage.blosc import Fetch

__all__ = ["ArrayLayout", "Decode", "NotKnownHereError", "checked"]

# From the bytes stored (a function that reads some, and how many there are): at least some bytes (first, stop) of a
# chunk of so many, and which is the first that is returned.
Decode = Callable[[Fetch, int, int, int, int], tuple[Any, int]]
Sizes = tuple[int, ...]

_TYPES_V3 = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
)  # fmt: skip
_INDEX_CODECS = ("bytes", "crc32c")


class NotKnownHereError(Exception):
    """An array whose storage is left to zarr."""


@dataclass(frozen=True)
class ArrayLayout:
    """An array in storage.

    Attributes
    ----------
    shape, chunks : tuple of int
    shards : tuple of int or None
        What a file holds; None if each chunk is a file.
    order : tuple of int
        The axes of the array in the order in which a chunk's values are stored, slowest first.
    dtype : numpy.dtype
        In stored byte order.
    fill : scalar
        Value of what is not stored.
    decode : callable
        From stored bytes of a chunk to its values' bytes.
    checked : bool
        Whether the last four bytes of a chunk are the CRC-32C of those before, which `decode` gets without them.
    index_first : bool
        Whether the index of a shard lies at its beginning.
    key : callable
        From the place of a file in the grid of files to its name.
    """

    shape: Sizes
    chunks: Sizes
    shards: Sizes | None
    order: Sizes
    dtype: np.dtype[Any]
    fill: Any
    decode: Decode
    checked: bool
    index_first: bool
    key: Callable[[Sizes], str]

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> ArrayLayout:
        """Read a `zarr.json` or `.zarray` that zarr has accepted.

        Raises
        ------
        NotKnownHereError
            If anything in it is not known here.
        """
        try:
            return _parse_v3(document) if document["zarr_format"] == 3 else _parse_v2(document)
        except (KeyError, TypeError, ValueError) as error:
            raise NotKnownHereError(str(error)) from error

    @property
    def decodes_in_blocks(self) -> bool:
        """Whether a part of a chunk can be decoded alone."""
        return self.decode is blosc.read


def _parse_v2(document: Mapping[str, Any]) -> ArrayLayout:
    shape, chunks = tuple(document["shape"]), tuple(document["chunks"])
    dtype = np.dtype(document["dtype"])
    order = {"C": tuple(range(len(shape))), "F": tuple(reversed(range(len(shape))))}[document["order"]]
    if document.get("filters") or dtype.kind not in "biuf":
        raise NotKnownHereError("filters, or values that are not numbers")
    separator = document.get("dimension_separator", ".")
    return ArrayLayout(
        shape, chunks, None, order, dtype, _fill(document["fill_value"], dtype),
        _decoder_v2(document["compressor"]), False, False, lambda place: separator.join(map(str, place)),
    )  # fmt: skip


def _decoder_v2(compressor: Mapping[str, Any] | None) -> Decode:
    if compressor is None:
        return _whole(_as_is)
    known = {"blosc": blosc.read, "zstd": _whole(zstd.decompress)}
    if compressor["id"] in known:
        return known[compressor["id"]]
    try:
        return _whole(numcodecs.get_codec(dict(compressor)).decode)
    except (ImportError, ValueError) as error:  # numcodecs' UnknownCodecError is a ValueError
        raise NotKnownHereError(str(error)) from error


def _parse_v3(document: Mapping[str, Any]) -> ArrayLayout:
    shape, grid = tuple(document["shape"]), document["chunk_grid"]
    if (
        grid["name"] != "regular"
        or document["data_type"] not in _TYPES_V3
        or document.get("storage_transformers")
    ):
        raise NotKnownHereError("another grid, type or transformer")
    files = tuple(grid["configuration"]["chunk_shape"])
    codecs, chunks, shards, index_first = document["codecs"], files, None, False
    if [_name(codec) for codec in codecs] == ["sharding_indexed"]:
        settings = codecs[0]["configuration"]
        codecs, chunks, shards = settings["codecs"], tuple(settings["chunk_shape"]), files
        index_first = settings.get("index_location", "end") == "start"
        index = settings["index_codecs"]
        if tuple(map(_name, index)) != _INDEX_CODECS or _endian(index[0]) != "<":
            raise NotKnownHereError("another index")
    checked = len(codecs) > 1 and _name(codecs[-1]) == "crc32c"
    order, byte_order, decode = _codecs_v3(codecs[:-1] if checked else codecs, len(shape))
    dtype = np.dtype(document["data_type"]).newbyteorder(byte_order)
    return ArrayLayout(
        shape, chunks, shards, order, dtype, _fill(document["fill_value"], dtype), decode, checked, index_first,
        _key_v3(document["chunk_key_encoding"]),
    )  # fmt: skip


def _codecs_v3(codecs: Sequence[Any], ndim: int) -> tuple[Sizes, str, Decode]:
    """Order of the axes, byte order, and how bytes are decoded."""
    order, left = tuple(range(ndim)), list(codecs)
    while left and _name(left[0]) == "transpose":
        axes = left.pop(0)["configuration"]["order"]
        if sorted(axes) != list(range(ndim)):
            raise NotKnownHereError(f"transpose by {axes}")
        order = tuple(order[axis] for axis in axes)
    if not left or _name(left[0]) != "bytes":
        raise NotKnownHereError("another codec of arrays")
    byte_order = _endian(left.pop(0))
    names = [_name(codec) for codec in left]
    if names == ["blosc"]:
        return order, byte_order, blosc.read
    known = {"zstd": zstd.decompress, "gzip": numcodecs.GZip().decode, "crc32c": checked}
    if any(name not in known for name in names):
        raise NotKnownHereError(", ".join(names))
    steps = [known[name] for name in reversed(names)]

    def decode(stored: bytes) -> bytes:
        for step in steps:
            stored = step(stored)
        return stored

    return order, byte_order, _whole(decode)


def _name(codec: Any) -> str:
    # A codec without settings may be written as its name alone.
    return codec if isinstance(codec, str) else str(codec["name"])


def _endian(codec: Any) -> str:
    settings = {} if isinstance(codec, str) else codec.get("configuration") or {}
    return {"little": "<", "big": ">"}[settings.get("endian") or "little"]


def _key_v3(encoding: Mapping[str, Any]) -> Callable[[Sizes], str]:
    settings = encoding.get("configuration") or {}
    if encoding["name"] == "v2":
        separator = settings.get("separator", ".")
        return lambda place: separator.join(map(str, place)) or "0"
    if encoding["name"] != "default":
        raise NotKnownHereError(f"chunk keys {encoding['name']}")
    separator = settings.get("separator", "/")
    return lambda place: separator.join(map(str, ("c", *place)))


def _fill(value: Any, dtype: np.dtype[Any]) -> Any:
    """The fill value: a number, or for floats a word or the bits as hexadecimal digits."""
    if isinstance(value, str):
        if value.startswith("0x"):
            bits = np.array(int(value, 16), f"u{dtype.itemsize}")
            return bits.view(dtype.newbyteorder("="))[()]
        value = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}[value]
    return dtype.newbyteorder("=").type(0 if value is None else value)


def _whole(decode: Callable[[bytes], Any]) -> Decode:
    """For codecs whose chunks are decoded as a whole."""

    def whole(fetch: Fetch, stored: int, first: int, stop: int, chunk: int) -> tuple[Any, int]:
        values = decode(fetch(0, stored))
        if len(values) != chunk:
            raise ValueError(f"{len(values)} bytes were decoded where {chunk} should be")
        return values, 0

    return whole


def _as_is(stored: bytes) -> bytes:
    return stored


def checked(stored: bytes) -> bytes:
    """Bytes without the CRC-32C at their end; ValueError if it is not theirs."""
    values = stored[:-4]
    if google_crc32c.value(values) != int.from_bytes(stored[-4:], "little"):
        raise ValueError("its checksum is wrong")
    return values
