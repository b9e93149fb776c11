"""The direct reader of local chunks: the same values as zarr for every codec it takes on, and no others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from zarr.codecs import (
    BloscCodec,
    BytesCodec,
    Crc32cCodec,
    GzipCodec,
    ShardingCodec,
    TransposeCodec,
    ZstdCodec,
)

from brainmap.errors import DataError
from brainmap.image.storage import arrays, local
from brainmap.image.storage.layout import ArrayLayout, NotKnownHereError
from brainmap.image.storage.local import LocalChunks
from brainmap.image.volume import Volume, write_volume

SHAPE = (13, 21, 35)
REGIONS = [
    (slice(0, 13), slice(0, 21), slice(0, 35)),
    (slice(3, 4), slice(5, 17), slice(34, 35)),
    (slice(4, 8), slice(8, 16), slice(16, 32)),
    (slice(7, 13), slice(0, 1), slice(9, 20)),
]


def sharded(*inner: Any, location: str = "end") -> Any:
    return ShardingCodec(chunk_shape=(2, 4, 8), codecs=inner, index_location=location)


KNOWN: dict[str, dict[str, Any]] = {
    "raw": {"compressors": None},
    "blosc": {"compressors": BloscCodec(cname="lz4")},
    "blosc of many blocks": {"compressors": BloscCodec(cname="zstd", shuffle="bitshuffle", blocksize=256)},
    "zstd": {"compressors": ZstdCodec(level=3)},
    "gzip": {"compressors": GzipCodec()},
    "big endian": {"compressors": ZstdCodec(), "serializer": BytesCodec(endian="big")},
    "shards": {"shards": (8, 16, 32), "compressors": BloscCodec()},
    "raw shards": {"shards": (8, 16, 32), "compressors": None},
    "index first": {"serializer": sharded(BytesCodec(), ZstdCodec(), location="start"), "compressors": None},
    "v2 raw": {"zarr_format": 2, "compressors": None},
    "v2 blosc": {"zarr_format": 2, "compressors": numcodecs.Blosc("lz4")},
    "v2 zlib": {"zarr_format": 2, "compressors": numcodecs.Zlib()},
    "v2 lz4": {"zarr_format": 2, "compressors": numcodecs.LZ4()},
    "v2 zstd": {"zarr_format": 2, "compressors": numcodecs.Zstd()},
    "v2 big endian": {"zarr_format": 2, "dtype": ">u2"},
    "v2 big endian blosc": {"zarr_format": 2, "dtype": ">u2", "compressors": numcodecs.Blosc(blocksize=256)},
    "v2 F order": {"zarr_format": 2, "order": "F"},
    "v2 F order, blosc of many blocks": {
        "zarr_format": 2,
        "order": "F",
        "compressors": numcodecs.Blosc(blocksize=256),
    },
    "F order": {"filters": TransposeCodec(order=(2, 1, 0))},
    "transposed": {"filters": TransposeCodec(order=(1, 2, 0)), "compressors": BloscCodec(blocksize=256)},
    "twice transposed": {"filters": [TransposeCodec(order=(1, 2, 0)), TransposeCodec(order=(0, 2, 1))]},
    "transposed in shards": {
        "serializer": sharded(TransposeCodec(order=(2, 0, 1)), BytesCodec(), ZstdCodec()),
        "compressors": None,
    },
    "big endian in shards": {
        "serializer": sharded(BytesCodec(endian="big"), BloscCodec()),
        "compressors": None,
    },
    "checksum": {"compressors": [ZstdCodec(), Crc32cCodec()]},
    "blosc with checksum": {"compressors": [BloscCodec(blocksize=256), Crc32cCodec()]},
    "blosc with checksum in shards": {
        "shards": (8, 16, 32),
        "compressors": [BloscCodec(cname="zstd", blocksize=256), Crc32cCodec()],
    },
    "keys of Zarr 2": {"chunk_key_encoding": {"name": "v2", "separator": "."}},
}
UNKNOWN: dict[str, dict[str, Any]] = {
    "transposed shards": {
        "filters": TransposeCodec(order=(2, 1, 0)),
        "serializer": sharded(BytesCodec()),
        "chunks": (8, 16, 16),
        "compressors": None,
    },
    "v2 filter": {"zarr_format": 2, "filters": numcodecs.Delta(dtype="u2")},
}


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint16]:
    return np.random.default_rng(8).integers(1, 60000, SHAPE).astype(np.uint16)


def make(path: Path, pixels: NDArray[np.uint16], **options: Any) -> Any:
    settings = {"chunks": (4, 8, 16), "dtype": "u2", "fill_value": 7, **options}
    array = zarr.create_array(path, shape=SHAPE, **settings)
    array[:9] = pixels[:9]  # the rest is never stored
    return array


def reader_of(folder: Path) -> LocalChunks | None:
    names = [name for name in ("zarr.json", ".zarray") if (folder / name).is_file()]
    return LocalChunks.of(json.loads((folder / names[0]).read_text()), folder, lambda key: key)


@pytest.mark.parametrize("name", KNOWN)
def test_same_values_as_zarr(name: str, pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    array = make(tmp_path / "a.zarr", pixels, **KNOWN[name])
    reader = reader_of(tmp_path / "a.zarr")
    assert reader is not None
    for region in REGIONS:
        values = reader.read(region)
        assert values.dtype == np.uint16
        assert values.dtype.isnative
        np.testing.assert_array_equal(values, array[region])
    assert (reader.read(REGIONS[0])[12] == 7).all()


def test_the_unit_of_decoding_is_a_chunk_or_some_of_its_sections(
    pixels: NDArray[np.uint16], tmp_path: Path
) -> None:
    def unit(name: str, **options: Any) -> tuple[int, ...]:
        make(tmp_path / name, pixels, **options)
        reader = reader_of(tmp_path / name)
        assert reader is not None
        return reader.unit

    assert unit("whole", compressors=ZstdCodec()) == unit("one block", compressors=BloscCodec()) == (4, 8, 16)
    # A section of a chunk has 256 bytes.
    for block, depth in {128: 1, 256: 1, 512: 2, 1024: 4}.items():
        assert unit(f"{block}", compressors=BloscCodec(cname="zstd", blocksize=block)) == (depth, 8, 16)
    assert unit(
        "F order", compressors=BloscCodec(blocksize=256), filters=TransposeCodec(order=(2, 1, 0))
    ) == (
        4,
        8,
        4,
    )
    zarr.create_array(
        tmp_path / "empty", shape=SHAPE, chunks=(4, 8, 16), dtype="u2", compressors=BloscCodec(blocksize=256)
    )
    reader = reader_of(tmp_path / "empty")
    assert reader is not None
    assert reader.unit == (4, 8, 16)
    (tmp_path / "damaged").mkdir()
    make(tmp_path / "damaged", pixels, shards=(8, 16, 32), compressors=BloscCodec(blocksize=256))
    for shard in (tmp_path / "damaged").rglob("c/*/*/*"):
        shard.write_bytes(b"nothing of a shard")
    reader = reader_of(tmp_path / "damaged")
    assert reader is not None
    assert reader.unit == (4, 8, 16)


@pytest.mark.filterwarnings("ignore:Combining a `sharding_indexed` codec:UserWarning")
@pytest.mark.parametrize("name", UNKNOWN)
def test_other_codecs_are_left_to_zarr(name: str, pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    array = make(tmp_path / "a.zarr", pixels, **UNKNOWN[name])
    assert reader_of(tmp_path / "a.zarr") is None
    volume = Volume.open(tmp_path / "a.zarr", voxel_um=(1, 1, 1))
    np.testing.assert_array_equal(volume.read(*REGIONS[1]), array[REGIONS[1]])


def test_a_damaged_shard_index_is_noticed(pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    make(tmp_path / "a.zarr", pixels, **KNOWN["shards"])
    reader = reader_of(tmp_path / "a.zarr")
    assert reader is not None
    file = tmp_path / "a.zarr" / "c" / "0" / "0" / "0"
    data = bytearray(file.read_bytes())
    data[-40] ^= 255
    file.write_bytes(data)
    with pytest.raises(ValueError, match="index of the shard is damaged"):
        reader.read(REGIONS[0])
    with pytest.raises(ValueError, match="index of the shard is damaged"):
        reader.read((slice(0, 1), slice(0, 1), slice(0, 1)))


def test_damage_behind_a_checksum_is_noticed(pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    make(tmp_path / "a.zarr", pixels, compressors=Crc32cCodec())
    chunk = tmp_path / "a.zarr" / "c" / "0" / "0" / "0"
    data = bytearray(chunk.read_bytes())
    data[100] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(DataError, match=r"chunk 0/0/0 .* is damaged .*checksum"):
        Volume.open(tmp_path / "a.zarr", voxel_um=(1, 1, 1)).read(*REGIONS[0])


FILLS = {"NaN": np.nan, "Infinity": np.inf, "-Infinity": -np.inf, "0x3f800000": 1.0, 2.5: 2.5, 0: 0.0}


@pytest.mark.parametrize("stored", FILLS)
def test_fill_values(stored: Any, tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", shape=(3, 3, 3), chunks=(2, 2, 2), dtype="f4", fill_value=0)
    document = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text()) | {"fill_value": stored}
    reader = LocalChunks.of(document, tmp_path / "a.zarr", lambda key: key)
    assert reader is not None
    values = reader.read((slice(0, 3), slice(0, 3), slice(0, 3)))
    np.testing.assert_array_equal(values, np.full((3, 3, 3), FILLS[stored], np.float32))


PLAIN: dict[str, Any] = {
    "zarr_format": 3, "shape": [4, 4, 4], "data_type": "uint16", "fill_value": 0,
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2, 2, 2]}},
    "chunk_key_encoding": {"name": "default"}, "codecs": ["bytes"],
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"data_type": "string"}, {"data_type": {"name": "numpy.datetime64"}}, {"fill_value": "nothing"},
        {"chunk_grid": {"name": "rectilinear"}}, {"chunk_key_encoding": {"name": "fanout"}}, {"codecs": []},
        {"codecs": ["bytes", "lzma"]}, {"codecs": ["vlen-utf8"]}, {"storage_transformers": [{"name": "x"}]},
        {"codecs": [{"name": "transpose", "configuration": {"order": [0, 0, 1]}}, "bytes"]},
        {"codecs": [{"name": "bytes", "configuration": {"endian": "middle"}}]}, {"zarr_format": None},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_known_is_not_guessed(change: dict[str, Any]) -> None:
    assert ArrayLayout.parse(PLAIN).key((1, 2, 3)) == "c/1/2/3"
    with pytest.raises(NotKnownHereError):
        ArrayLayout.parse(PLAIN | change)


# Ways to store a chunk, and to read it: here, or by zarr.
STORED = ("raw", "blosc", "zstd", "v2 raw", "v2 blosc", "raw shards", "shards", "blosc with checksum")


def chunk_file(folder: Path, name: str) -> Path:
    return folder / ("0.0.0" if name.startswith("v2") else "c/0/0/0")


def both_ways(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What reading the first chunk raises: read here, and left to zarr."""
    said = []
    for left_to_zarr in (False, True):
        with monkeypatch.context() as patch:
            arrays._readers.clear()
            if left_to_zarr:
                patch.setattr(LocalChunks, "of", classmethod(lambda *_: None))
            with pytest.raises(DataError) as caught:
                Volume.open(folder, voxel_um=(1, 1, 1)).read(*(slice(0, n) for n in (4, 8, 16)))
            said.append(str(caught.value))
    return said


@pytest.mark.parametrize("name", [n for n in STORED if "shards" not in n])
def test_a_chunk_that_is_too_long_is_damaged_whoever_reads_it(
    name: str, pixels: NDArray[np.uint16], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "a.zarr", pixels, **KNOWN[name])
    chunk = chunk_file(tmp_path / "a.zarr", name)
    chunk.write_bytes(chunk.read_bytes() + b"some more bytes.")
    for said in both_ways(tmp_path / "a.zarr", monkeypatch):
        assert "chunk 0/0/0" in said
        assert "is damaged or truncated" in said


@pytest.mark.parametrize("name", STORED)
def test_a_folder_in_place_of_a_chunk_is_damage_and_not_emptiness(
    name: str, pixels: NDArray[np.uint16], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "a.zarr", pixels, **KNOWN[name])
    chunk = chunk_file(tmp_path / "a.zarr", name)
    chunk.unlink()
    chunk.mkdir()
    for said in both_ways(tmp_path / "a.zarr", monkeypatch):
        assert "a folder lies where its bytes should be" in said


def test_a_file_in_place_of_a_folder_of_chunks(
    pixels: NDArray[np.uint16], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "a.zarr", pixels, **KNOWN["raw"])
    shutil.rmtree(tmp_path / "a.zarr" / "c" / "0")
    (tmp_path / "a.zarr" / "c" / "0").touch()
    for said in both_ways(tmp_path / "a.zarr", monkeypatch):
        assert "a file lies where its folder should be" in said


@pytest.mark.parametrize("shards", [None, (4, 16, 32)])
def test_a_flipped_bit_anywhere_in_what_we_write_is_noticed(
    shards: tuple[int, int, int] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.random.default_rng(1).normal(500, 9, (4, 8, 16)).astype(np.uint16)
    write_volume(tmp_path / "a.zarr", image, (5, 2, 2), chunks=(4, 8, 16), shards=shards, levels=1)
    (chunk,) = (path for path in (tmp_path / "a.zarr" / "0" / "c").rglob("*") if path.is_file())
    whole = chunk.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(whole), 40).tolist():
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        chunk.write_bytes(damaged)
        arrays._readers.clear()
        with pytest.raises(DataError, match=r"checksum|index of the shard|stored where"):
            # A part of a chunk too: its checksum is that of the whole.
            Volume.open(tmp_path / "a.zarr").read(slice(0, 1), slice(0, 8), slice(0, 16))
    chunk.write_bytes(whole)
    arrays._readers.clear()
    np.testing.assert_array_equal(
        Volume.open(tmp_path / "a.zarr").read(slice(0, 4), slice(0, 8), slice(0, 16)), image
    )


def test_a_chunk_is_checked_once_while_it_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.random.default_rng(1).normal(500, 9, (8, 16, 16)).astype(np.uint16)
    write_volume(tmp_path / "a.zarr", image, (5, 2, 2), chunks=(8, 16, 16), shards=(8, 16, 16), levels=1)
    looked = []
    check = local.checked
    monkeypatch.setattr(local, "checked", lambda stored: looked.append(len(stored)) or check(stored))
    volume = Volume.open(tmp_path / "a.zarr")
    for z in range(8):
        volume.read(slice(z, z + 1), slice(0, 16), slice(0, 16))
    assert len(looked) == 1
    (chunk,) = (path for path in (tmp_path / "a.zarr" / "0" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(bytes([chunk.read_bytes()[0] ^ 1]) + chunk.read_bytes()[1:])
    with pytest.raises(DataError, match="checksum"):
        volume.read(slice(0, 1), slice(0, 16), slice(0, 16))
