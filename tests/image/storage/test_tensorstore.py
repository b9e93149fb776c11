"""tensorstore behind the same seam: the same values as zarr, and damage named the same way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, TransposeCodec, ZstdCodec

from brainmap.errors import DataError
from brainmap.image.storage.arrays import ZarrReader
from brainmap.image.storage.tensorstore import TensorStoreChunks
from brainmap.image.volume import Volume

SHAPE = (13, 21, 35)
REGIONS = [
    (slice(0, 13), slice(0, 21), slice(0, 35)),
    (slice(3, 4), slice(5, 17), slice(34, 35)),
    (slice(7, 13), slice(0, 1), slice(9, 20)),
]
ARRAYS: dict[str, dict[str, Any]] = {
    "blosc": {"compressors": BloscCodec(cname="lz4")},
    "shards": {"shards": (8, 16, 32), "compressors": ZstdCodec()},
    "transposed": {"filters": TransposeCodec(order=(2, 1, 0))},
    "checksum": {"compressors": [ZstdCodec(), Crc32cCodec()]},
    "v2 blosc": {"zarr_format": 2, "compressors": numcodecs.Blosc("lz4")},
    "v2 order": {"zarr_format": 2, "order": "F"},
    "v2 big endian": {"zarr_format": 2, "dtype": ">u2"},
}


def make(path: Path, **options: Any) -> tuple[Any, NDArray[np.uint16]]:
    pixels = np.random.default_rng(8).integers(1, 60000, SHAPE).astype(np.uint16)
    settings = {"chunks": (4, 8, 16), "dtype": "u2", "fill_value": 7, **options}
    array = zarr.create_array(path, shape=SHAPE, **settings)
    array[:9] = pixels[:9]  # the rest is never stored
    return array, pixels


@pytest.mark.parametrize("name", ARRAYS)
def test_same_values_as_zarr(name: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorstore", reason="needs the extra [fast]")
    array, _ = make(tmp_path / "a.zarr", **ARRAYS[name])
    reader = TensorStoreChunks(tmp_path / "a.zarr", ARRAYS[name].get("zarr_format", 3))
    for region in REGIONS:
        values = reader.read(region)
        assert values.dtype == np.uint16
        np.testing.assert_array_equal(values, array[region])


def test_volumes_with_unusual_codecs_read_by_tensorstore(tmp_path: Path) -> None:
    pytest.importorskip("tensorstore", reason="needs the extra [fast]")
    array, _ = make(tmp_path / "a.zarr", **ARRAYS["checksum"])
    volume = Volume.open(tmp_path / "a.zarr", voxel_um=(1, 1, 1))
    reader = volume.reader()
    assert isinstance(reader, ZarrReader)
    assert isinstance(reader._local, TensorStoreChunks)
    np.testing.assert_array_equal(volume.read(*REGIONS[1]), array[REGIONS[1]])
    chunk = tmp_path / "a.zarr" / "c" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"chunk 0/0/0 .* is damaged or truncated"):
        volume.read(*REGIONS[0])


def test_without_tensorstore_zarr_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array, _ = make(tmp_path / "a.zarr", **ARRAYS["checksum"])
    monkeypatch.setattr("brainmap.image.storage.tensorstore.importlib.util.find_spec", lambda name: None)
    assert TensorStoreChunks.of(tmp_path / "a.zarr", 3) is None
    volume = Volume.open(tmp_path / "a.zarr", voxel_um=(1, 1, 1))
    np.testing.assert_array_equal(volume.read(*REGIONS[0]), array[REGIONS[0]])


def test_codecs_that_tensorstore_lacks_are_left_to_zarr(tmp_path: Path) -> None:
    pytest.importorskip("tensorstore", reason="needs the extra [fast]")
    make(tmp_path / "a.zarr", zarr_format=2, filters=numcodecs.Delta(dtype="u2"))
    assert TensorStoreChunks.of(tmp_path / "a.zarr", 2) is None
