"""The direct reader of local chunks: the same values as zarr for every codec it takes on, and no others."""

from __future__ import annotations

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

from brainmap.image.storage.local import LocalChunks
from brainmap.image.volume import Volume

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
}
UNKNOWN: dict[str, dict[str, Any]] = {
    "transposed": {"filters": TransposeCodec(order=(2, 1, 0))},
    "checksum": {"compressors": [ZstdCodec(), Crc32cCodec()]},
    "v2 order": {"zarr_format": 2, "order": "F"},
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


def identity(key: str) -> str:
    return key


@pytest.mark.parametrize("name", KNOWN)
def test_same_values_as_zarr(name: str, pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    array = make(tmp_path / "a.zarr", pixels, **KNOWN[name])
    reader = LocalChunks.of(array, tmp_path / "a.zarr", identity)
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
        reader = LocalChunks.of(make(tmp_path / name, pixels, **options), tmp_path / name, identity)
        assert reader is not None
        return reader.unit

    assert unit("whole", compressors=ZstdCodec()) == unit("one block", compressors=BloscCodec()) == (4, 8, 16)
    # A section of a chunk has 256 bytes.
    for block, depth in {128: 1, 256: 1, 512: 2, 1024: 4}.items():
        assert unit(f"{block}", compressors=BloscCodec(cname="zstd", blocksize=block)) == (depth, 8, 16)
    empty = zarr.create_array(
        tmp_path / "empty", shape=SHAPE, chunks=(4, 8, 16), dtype="u2", compressors=BloscCodec(blocksize=256)
    )
    reader = LocalChunks.of(empty, tmp_path / "empty", identity)
    assert reader is not None
    assert reader.unit == (4, 8, 16)
    (tmp_path / "damaged").mkdir()
    array = make(tmp_path / "damaged", pixels, shards=(8, 16, 32), compressors=BloscCodec(blocksize=256))
    for shard in (tmp_path / "damaged").rglob("c/*/*/*"):
        shard.write_bytes(b"nothing of a shard")
    reader = LocalChunks.of(array, tmp_path / "damaged", identity)
    assert reader is not None
    assert reader.unit == (4, 8, 16)


@pytest.mark.parametrize("name", UNKNOWN)
def test_other_codecs_are_left_to_zarr(name: str, pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    array = make(tmp_path / "a.zarr", pixels, **UNKNOWN[name])
    assert LocalChunks.of(array, tmp_path / "a.zarr", identity) is None
    volume = Volume.open(tmp_path / "a.zarr", voxel_um=(1, 1, 1))
    np.testing.assert_array_equal(volume.read(*REGIONS[1]), array[REGIONS[1]])


def test_a_damaged_shard_index_is_noticed(pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    array = make(tmp_path / "a.zarr", pixels, **KNOWN["shards"])
    reader = LocalChunks.of(array, tmp_path / "a.zarr", identity)
    assert reader is not None
    file = tmp_path / "a.zarr" / "c" / "0" / "0" / "0"
    data = bytearray(file.read_bytes())
    data[-40] ^= 255
    file.write_bytes(data)
    with pytest.raises(ValueError, match="index of the shard is damaged"):
        reader.read(REGIONS[0])
    with pytest.raises(ValueError, match="index of the shard is damaged"):
        reader.read((slice(0, 1), slice(0, 1), slice(0, 1)))
