"""Writing pyramids: strictly by the rules, the same whatever the slabs, complete or absent."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from brainmap.errors import DataError, UsageError
from brainmap.image.volume import Volume, VolumeWriter, write_volume
from brainmap.image.writer import default_chunks, downsample, pyramid_factors

ALL = slice(None)
VOXEL = (5.0, 2.0, 2.0)
LAYOUTS: dict[str, dict[str, Any]] = {
    "0.5": {},
    "0.4": {"zarr_format": 2},
    "sharded": {"chunks": (4, 16, 16), "shards": (8, 32, 32)},
    "channel": {"channel_names": ["signal"]},
}


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint16]:
    """A volume whose sides no chunk divides."""
    return np.random.default_rng(1).integers(1, 60000, (13, 21, 35)).astype(np.uint16)


def whole(volume: Volume, level: int = 0) -> NDArray[Any]:
    return volume.read(ALL, ALL, ALL, level)


def block_mean(values: NDArray[Any], factors: tuple[int, int, int]) -> NDArray[Any]:
    """Mean over blocks, the slow and plain way: pad by the edge, reshape, round half up."""
    odd = [(0, -n % f) for n, f in zip(values.shape, factors, strict=True)]
    padded = np.pad(values.astype(float), odd, mode="edge")
    z, y, x = (n // f for n, f in zip(padded.shape, factors, strict=True))
    mean = padded.reshape(z, factors[0], y, factors[1], x, factors[2]).mean(axis=(1, 3, 5))
    return np.floor(mean + 0.5).astype(values.dtype) if values.dtype.kind in "iu" else mean


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "u4", "i8", "f4", "f8"])
@pytest.mark.parametrize("factors", [(1, 2, 2), (2, 2, 2), (2, 1, 1)])
def test_downsampling_is_the_mean(dtype: str, factors: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(2)
    low = -50 if dtype[0] == "i" else 0
    values = rng.integers(low, 120, (5, 7, 8)).astype(dtype)
    np.testing.assert_allclose(downsample(values, factors), block_mean(values, factors), rtol=1e-6)
    assert downsample(values, factors).dtype == values.dtype
    np.testing.assert_array_equal(
        downsample(values, factors, "nearest"), values[:: factors[0], :: factors[1], :: factors[2]]
    )


def test_downsampling_does_not_overflow() -> None:
    for dtype in (np.uint8, np.int8, np.uint16, np.int16, np.int32, np.uint32, np.int64, np.uint64):
        for extreme in (np.iinfo(dtype).max, np.iinfo(dtype).min):
            values = np.full((2, 2, 2), extreme, dtype)
            assert downsample(values, (2, 2, 2)).item() == extreme


@pytest.mark.parametrize("dtype", ["i1", "u2", "i2", "u4", "i8", "u8", ">u2"])
def test_means_are_exact_over_the_whole_range(dtype: str) -> None:
    """Against Python's integers, which have no range."""
    limits = np.iinfo(dtype)
    values = np.random.default_rng(3).integers(limits.min, limits.max, (4, 6, 8), dtype[-2:], endpoint=True)
    blocks = values.astype(object).reshape(2, 2, 3, 2, 4, 2).sum(axis=(1, 3, 5))
    means = downsample(values.astype(dtype), (2, 2, 2)).tolist()
    assert means == ((blocks + 4) // 8).tolist()


def test_factors_make_voxels_cubic() -> None:
    assert pyramid_factors((100, 4000, 4000), (8, 2, 2))[:3] == [(1, 2, 2), (1, 2, 2), (2, 2, 2)]
    assert pyramid_factors((1, 2000, 600), (10, 2, 2)) == [(1, 2, 2)] * 3
    assert pyramid_factors((100, 100, 100), (2, 2, 2)) == []
    assert len(pyramid_factors((4, 4, 4), (2, 2, 2), levels=9)) == 2


def test_default_chunks_bound_a_slab() -> None:
    assert default_chunks((500, 2000, 2000), 2 * 2000 * 2000) == (64, 128, 128)
    depth, _, _ = default_chunks((500, 20000, 20000), 2 * 20000**2)
    assert depth * 2 * 20000**2 <= 2**30
    assert default_chunks((3, 40, 900), 2 * 40 * 900) == (3, 40, 512)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_written_files_keep_the_rules(zarr_format: int, pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    path = tmp_path / "a.ome.zarr"
    write_volume(path, pixels[None], VOXEL, zarr_format=zarr_format, levels=2)
    if zarr_format == 3:
        group = json.loads((path / "zarr.json").read_text())
        assert group["node_type"] == "group"
        paths = [d["path"] for d in group["attributes"]["ome"]["multiscales"][0]["datasets"]]
        for level in paths:
            array = json.loads((path / level / "zarr.json").read_text())
            assert array["dimension_names"] == ["c", "z", "y", "x"]
            assert {c["name"] for c in array["codecs"]} <= {"bytes", "blosc", "crc32c", "sharding_indexed"}
            assert (path / level / "c" / "0" / "0" / "0" / "0").is_file()
    else:
        assert (path / ".zgroup").is_file()
        for level in ("0", "1"):
            array = json.loads((path / level / ".zarray").read_text())
            assert array["dimension_separator"] == "/"
            assert (path / level / "0" / "0" / "0" / "0").is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["a.ome.zarr"]


@pytest.mark.parametrize("thickness", [1, 5, 20])
@pytest.mark.parametrize("layout", ["0.5", "0.4", "sharded"])
def test_slabs_of_any_thickness_give_the_same_files(
    thickness: int, layout: str, pixels: NDArray[np.uint16], tmp_path: Path
) -> None:
    data = pixels[:, :, :18]
    options = {"chunks": (3, 16, 16), "levels": 4, **LAYOUTS[layout]}
    at_once = write_volume(tmp_path / "a.zarr", data, (2, 2, 2), **options)
    slabs = (data[z : z + thickness] for z in range(0, len(data), thickness))
    streamed = write_volume(
        tmp_path / "b.zarr", slabs, (2, 2, 2), shape=data.shape, dtype=data.dtype, **options
    )
    assert len(streamed.levels) == 4
    for level in range(4):
        np.testing.assert_array_equal(whole(streamed, level), whole(at_once, level))


def test_a_reused_buffer_does_no_harm(tmp_path: Path) -> None:
    buffer = np.zeros((1, 8, 8), "u2")
    with VolumeWriter(tmp_path / "a.zarr", (6, 8, 8), "u2", (1, 1, 1), chunks=(4, 8, 8)) as writer:
        for z in range(6):
            buffer[:] = z
            writer.append(buffer)
    assert whole(Volume.open(tmp_path / "a.zarr"))[:, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    def slabs() -> Iterator[NDArray[np.uint16]]:
        yield np.zeros((2, 4, 4), np.uint16)
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        write_volume(tmp_path / "a.zarr", slabs(), VOXEL, shape=(4, 4, 4), dtype="u2")
    with pytest.raises(DataError, match="2 planes came, 4 were announced"):
        write_volume(tmp_path / "a.zarr", [np.zeros((2, 4, 4), "u2")], VOXEL, shape=(4, 4, 4), dtype="u2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "slab",
    [np.zeros((5, 4, 4), "u2"), np.zeros((1, 4, 5), "u2"), np.zeros((1, 4, 4), "f4"), np.zeros((4, 4), "u2")],
)
def test_slabs_that_do_not_fit(slab: NDArray[Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a slab"):
        write_volume(tmp_path / "a.zarr", [slab], VOXEL, shape=(4, 4, 4), dtype="u2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"shards": (10, 10, 10), "chunks": (4, 4, 4)}, "not multiples"),
        ({"shards": (8, 8, 8), "chunks": (4, 4, 4), "zarr_format": 2}, "no shards"),
        ({"chunks": (0, 4, 4)}, "three positive numbers"),
        ({"method": "median"}, "not one of mean, nearest"),
        ({"zarr_format": 1}, "not 2 or 3"),
        ({"channel_names": ["a", "b"]}, "2 channel names"),
        ({"orientation": "aaa"}, "orientation"),
    ],
)
def test_wrong_options(options: dict[str, Any], part: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=part):
        write_volume(tmp_path / "a.zarr", np.zeros((4, 4, 4), "u2"), VOXEL, **options)
    assert list(tmp_path.iterdir()) == []


def test_unfit_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="type bool"):
        write_volume(tmp_path / "a.zarr", np.zeros((4, 4, 4), bool), VOXEL)
    with pytest.raises(UsageError, match="shape"):
        write_volume(tmp_path / "a.zarr", np.zeros((1, 2, 4, 4, 4), "u1"), VOXEL)
    with pytest.raises(UsageError, match="shape and dtype"):
        write_volume(tmp_path / "a.zarr", [np.zeros((4, 4, 4), "u1")], VOXEL)


def test_existing_output_is_kept(pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    write_volume(tmp_path / "a.zarr", pixels, VOXEL)
    with pytest.raises(UsageError, match="exists already"):
        write_volume(tmp_path / "a.zarr", pixels + 1, VOXEL)
    np.testing.assert_array_equal(whole(Volume.open(tmp_path / "a.zarr")), pixels)
    write_volume(tmp_path / "a.zarr", pixels + 1, VOXEL, overwrite=True)
    np.testing.assert_array_equal(whole(Volume.open(tmp_path / "a.zarr")), pixels + 1)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_only_images_are_replaced(pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    for path in (tmp_path / "precious", tmp_path / "precious" / "thesis.txt"):
        with pytest.raises(UsageError, match="is not a Zarr image, so it is not replaced"):
            write_volume(path, pixels, VOXEL, overwrite=True)
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    np.testing.assert_array_equal(
        whole(write_volume(tmp_path / "empty", pixels, VOXEL, overwrite=True)), pixels
    )


def test_output_that_cannot_be_written(pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written"):
        write_volume(tmp_path / "file" / "a.zarr", pixels, VOXEL)


def test_full_disk(pixels: NDArray[np.uint16], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zarr.storage._local._put", refuse)
    with pytest.raises(DataError, match=r"a\.zarr cannot be written: No space left"):
        write_volume(tmp_path / "a.zarr", pixels, VOXEL)
    assert list(tmp_path.iterdir()) == []


def test_two_channels(pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    both = np.stack([pixels, pixels // 2])
    volume = write_volume(tmp_path / "a.zarr", both, VOXEL, channel_names=["auto", "cfos"], levels=2)
    assert (volume.n_channels, volume.channel) == (2, 0)
    np.testing.assert_array_equal(whole(Volume.open(tmp_path / "a.zarr", channel=1)), pixels // 2)
    assert Volume.open(tmp_path / "a.zarr", channel=1).channel_names == ("auto", "cfos")


def test_written_images_are_read_without_complaint(
    pixels: NDArray[np.uint16], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for name, options in LAYOUTS.items():
            data = pixels[None] if name == "channel" else pixels
            write_volume(tmp_path / f"{name}.zarr", data, VOXEL, **{"chunks": (4, 16, 16), **options})
    assert not caplog.records


def test_chunks_are_compressed_in_large_blocks(tmp_path: Path) -> None:
    """Blosc's own, small blocks take twice the time; what zarr writes and what is written directly agree."""
    values = np.random.default_rng(0).integers(0, 999, (64, 256, 128)).astype(np.uint16)
    for name, shards in (("direct", "auto"), ("zarr", None)):
        write_volume(tmp_path / name, values, (2.0, 2.0, 2.0), chunks=(64, 128, 128), shards=shards)
        files = [f for f in (tmp_path / name / "0" / "c").rglob("*") if f.is_file()]
        blocks = {int.from_bytes(f.read_bytes()[8:12], "little") for f in files}  # of the blosc header
        assert blocks == {2**19}, name
        assert '"blocksize": 524288' in (tmp_path / name / "0" / "zarr.json").read_text()
