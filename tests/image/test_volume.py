"""Volume: opening, reading and writing images, and what happens with bad ones."""

from __future__ import annotations

import functools
import http.server
import json
import pickle
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from scipy import ndimage
from zarr.codecs import TransposeCodec

from brainmap.errors import DataError, NotFoundError, UsageError
from brainmap.image.volume import Volume, write_volume
from brainmap.image.writer import pyramid_factors

ALL = slice(None)
VOXEL = (5.0, 2.0, 2.0)
LAYOUTS: dict[str, dict[str, Any]] = {
    "0.5": {},
    "0.4": {"zarr_format": 2},
    "sharded": {"chunks": (4, 16, 16), "shards": (8, 32, 32)},
    "channel": {"channel_names": ["signal"]},
}


@pytest.fixture(scope="session")
def pixels() -> NDArray[np.uint16]:
    """A volume whose sides no chunk divides."""
    return np.random.default_rng(1).integers(1, 60000, (13, 21, 35)).astype(np.uint16)


def whole(volume: Volume, level: int = 0) -> NDArray[Any]:
    return volume.read(ALL, ALL, ALL, level)


def metadata_file(path: Path) -> Path:
    return path / "zarr.json" if (path / "zarr.json").exists() else path / ".zattrs"


def change_metadata(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Edit the OME metadata of a written image."""
    file = metadata_file(path)
    document = json.loads(file.read_text())
    change(document["attributes"]["ome"] if file.name == "zarr.json" else document)
    file.write_text(json.dumps(document))


# ---- reading what was written -------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_layouts_read_alike(layout: str, pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    options = {"chunks": (8, 16, 16), **LAYOUTS[layout]}
    data = pixels[None] if "channel_names" in options else pixels
    volume = write_volume(tmp_path / "brain.ome.zarr", data, VOXEL, levels=3, orientation="psl", **options)
    reopened = Volume.open(tmp_path / "brain.ome.zarr")
    assert reopened == volume
    assert volume.name == "brain"
    assert volume.shape == pixels.shape
    assert volume.voxel_um == VOXEL
    assert volume.orientation == "psl"
    assert volume.dtype == np.uint16
    assert volume.n_channels == 1
    assert (volume.shards is not None) == (layout == "sharded")
    np.testing.assert_array_equal(whole(volume), pixels)
    np.testing.assert_array_equal(
        volume.read(slice(3, 11), slice(7, 19), slice(1, 2)), pixels[3:11, 7:19, 1:2]
    )
    expected = pixels
    for level, factors in enumerate(pyramid_factors(pixels.shape, VOXEL, 3), start=1):
        expected = block_mean(expected, factors)
        np.testing.assert_array_equal(whole(volume, level), expected)


def block_mean(values: NDArray[Any], factors: tuple[int, int, int]) -> NDArray[Any]:
    """Mean over blocks, the slow and plain way: pad by the edge, reshape, round half up."""
    odd = [(0, -n % f) for n, f in zip(values.shape, factors, strict=True)]
    padded = np.pad(values.astype(float), odd, mode="edge")
    z, y, x = (n // f for n, f in zip(padded.shape, factors, strict=True))
    mean = padded.reshape(z, factors[0], y, factors[1], x, factors[2]).mean(axis=(1, 3, 5))
    return np.floor(mean + 0.5).astype(values.dtype) if values.dtype.kind in "iu" else mean


@pytest.mark.parametrize("method", ["mean", "nearest"])
def test_levels_show_the_same_blob_at_the_same_place(method: str, tmp_path: Path) -> None:
    grid = np.indices((40, 120, 120)).astype(float)
    centre_um = np.array([93.0, 121.0, 87.0])
    distance = sum(((g * v - c) / 25) ** 2 for g, v, c in zip(grid, VOXEL, centre_um, strict=True))
    data = (10000 * np.exp(-distance / 2)).astype(np.float32)
    volume = write_volume(tmp_path / "blob.zarr", data, VOXEL, levels=4, method=method)
    assert len(volume.levels) == 4
    for number, level in enumerate(volume.levels):
        index = np.array(ndimage.center_of_mass(whole(volume, number)))
        um = index * level.voxel_um + level.origin_um
        np.testing.assert_allclose(um, centre_um, atol=0.5)


def test_origin_is_kept(tmp_path: Path) -> None:
    volume = write_volume(
        tmp_path / "a.zarr", np.ones((4, 8, 8), "u1"), (1, 1, 1), origin_um=(7, 8, 9), levels=2
    )
    assert volume.origin_um == (7, 8, 9)
    assert volume.levels[1].origin_um == (7.5, 8.5, 9.5)


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", ">f4", "f8", "i4", "u8"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_types_and_byte_orders(dtype: str, zarr_format: Any, tmp_path: Path) -> None:
    data = np.arange(60).reshape(3, 4, 5).astype(dtype)
    array = zarr.create_array(
        tmp_path / "bare.zarr", shape=data.shape, dtype=dtype, chunks=(2, 2, 2), zarr_format=zarr_format
    )
    array[:] = data
    volume = Volume.open(tmp_path / "bare.zarr", voxel_um=VOXEL)
    values = whole(volume)
    assert values.dtype.isnative
    assert volume.dtype == values.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(values, data)


def test_nan_is_read_as_it_is(tmp_path: Path) -> None:
    data = np.full((2, 3, 4), np.nan, np.float32)
    data[0] = 1
    np.testing.assert_array_equal(whole(write_volume(tmp_path / "nan.zarr", data, VOXEL)), data)


def test_bare_arrays(pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    write_volume(tmp_path / "brain.zarr", pixels, VOXEL)
    bare = Volume.open(tmp_path / "brain.zarr" / "0", voxel_um=(5, 2, 2))
    np.testing.assert_array_equal(whole(bare), pixels)
    with pytest.raises(UsageError, match="--voxel-size"):
        Volume.open(tmp_path / "brain.zarr" / "0")


def test_a_section_is_a_volume_with_one_slice(tmp_path: Path) -> None:
    section = np.arange(20, dtype="u2").reshape(4, 5)
    zarr.create_array(tmp_path / "s.zarr", data=section, chunks=(3, 3))
    volume = Volume.open(tmp_path / "s.zarr", voxel_um=(10, 2, 2))
    assert volume.shape == (1, 4, 5)
    assert volume.chunks == (1, 3, 3)
    np.testing.assert_array_equal(volume.read(slice(0, 1), slice(1, 4), ALL), section[None, 1:4])
    written = write_volume(tmp_path / "t.zarr", section, (10, 2, 2))
    np.testing.assert_array_equal(whole(written), section[None])


def many_axes(path: Path) -> NDArray[np.uint16]:
    """A 0.5 image with two timepoints and three channels."""
    data = np.random.default_rng(3).integers(0, 999, (2, 3, 4, 5, 6)).astype("u2")
    axes = [{"name": "t", "type": "time"}, {"name": "c", "type": "channel"}]
    axes += [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"]
    steps = [{"type": "scale", "scale": [1, 1, 5, 2, 2]}]
    multiscale = {"axes": axes, "datasets": [{"path": "full", "coordinateTransformations": steps}]}
    omero = {"channels": [{"label": n} for n in ("auto", "cfos", "dapi")]}
    group = zarr.create_group(
        path, attributes={"ome": {"version": "0.5", "multiscales": [multiscale], "omero": omero}}
    )
    group.create_array("full", data=data, chunks=(1, 1, 2, 3, 3), dimension_names=list("tczyx"))
    return data


def test_channels_and_timepoints(tmp_path: Path) -> None:
    path = tmp_path / "movie.zarr"
    data = many_axes(path)
    volume = Volume.open(path, channel=1, timepoint=1)
    assert (volume.n_channels, volume.channel, volume.channel_names) == (3, 1, ("auto", "cfos", "dapi"))
    np.testing.assert_array_equal(whole(volume), data[1, 1])
    np.testing.assert_array_equal(whole(volume.with_channel(2)), data[1, 2])
    with pytest.raises(UsageError, match=r"3 channels.*0 \(auto\), 1 \(cfos\), 2 \(dapi\).*--channel"):
        Volume.open(path, timepoint=0)
    with pytest.raises(UsageError, match=r"2 timepoints.*--timepoint"):
        Volume.open(path, channel=0)
    with pytest.raises(UsageError, match="--channel 3 is not there"):
        Volume.open(path, channel=3, timepoint=0)
    with pytest.raises(UsageError, match="--channel -1 is not there"):
        volume.with_channel(-1)


def test_the_only_channel_may_be_named(pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    write_volume(tmp_path / "a.zarr", pixels, VOXEL)
    assert Volume.open(tmp_path / "a.zarr", channel=0).channel is None
    with pytest.raises(UsageError, match="one channel, number 0"):
        Volume.open(tmp_path / "a.zarr", channel=1)


def test_voxel_size_and_orientation_may_be_overridden(pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    write_volume(tmp_path / "a.zarr", pixels, VOXEL, levels=2, orientation="asr")
    volume = Volume.open(tmp_path / "a.zarr", voxel_um=(10, 1, 1), orientation="PSL")
    assert volume.orientation == "psl"
    assert volume.voxel_um == (10, 1, 1)
    assert volume.levels[1].voxel_um == (10, 2, 2)
    assert volume.levels[1].origin_um == (0, 0.5, 0.5)
    with pytest.raises(UsageError, match="orientation"):
        Volume.open(tmp_path / "a.zarr", orientation="abc")
    with pytest.raises(UsageError, match="voxel size"):
        Volume.open(tmp_path / "a.zarr", voxel_um=(1, 2, 0))


def test_choosing_a_level(tmp_path: Path) -> None:
    volume = write_volume(tmp_path / "a.zarr", np.zeros((20, 64, 64), "u1"), (4, 2, 2), levels=4)
    assert [level.voxel_um for level in volume.levels] == [(4, 2, 2), (4, 4, 4), (8, 8, 8), (16, 16, 16)]
    assert [volume.level_near(um) for um in (1, 2, 4, 10, 100)] == [0, 0, 1, 2, 3]
    thick = write_volume(tmp_path / "b.zarr", np.zeros((4, 64, 64), "u1"), (50, 2, 2), levels=4)
    assert thick.level_near(10) == 2


def test_bytes_to_read(pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    volume = write_volume(tmp_path / "a.zarr", pixels, VOXEL, chunks=(4, 16, 16))
    assert volume.storage_bytes(ALL, ALL, ALL) == pixels.nbytes
    assert volume.storage_bytes(slice(0, 1), slice(0, 1), slice(15, 17)) == 4 * 16 * 32 * 2
    assert volume.reading_shape == (4, 16, 16)


# ---- processes, threads, URLs -------------------------------------------------------------------


def _sum(volume: Volume) -> int:
    return int(whole(volume).sum())


def test_pickled_to_another_process(pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    volume = write_volume(tmp_path / "a.zarr", pixels, VOXEL)
    data = pickle.dumps(volume)
    assert len(data) < 3000
    assert pickle.loads(data) == volume
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(_sum, volume).result() == pixels.sum()


@pytest.mark.parametrize("layout", ["0.5", "sharded"])
def test_many_threads(layout: str, pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    volume = write_volume(tmp_path / "a.zarr", pixels, VOXEL, **{"chunks": (4, 16, 16), **LAYOUTS[layout]})
    corners = [(z, y, x) for z in (0, 5) for y in range(0, 20, 6) for x in range(0, 35, 8)]

    def right(corner: tuple[int, int, int]) -> bool:
        region = tuple(slice(c, c + 9) for c in corner)
        z, y, x = (slice(r.start, min(r.stop, n)) for r, n in zip(region, pixels.shape, strict=True))
        return bool((volume.read(z, y, x) == pixels[z, y, x]).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(right, corners))


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """A file server that answers byte ranges, as object stores do."""

    ranges = True

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        size = len(data)
        if wanted and self.ranges:
            first, last = wanted.groups()
            data = data[int(first) : int(last or size) + 1] if first else data[-int(last) :]
        self.send_response(206 if wanted and self.ranges else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class PlainHandler(RangeHandler):
    """A file server that ignores byte ranges."""

    ranges = False


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Serve a folder on this machine; returns its address."""
    servers = []

    def start(folder: Path, handler: type[RangeHandler] = RangeHandler) -> str:
        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(handler, directory=str(folder))
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_over_http(
    layout: str, pixels: NDArray[np.uint16], tmp_path: Path, serve: Callable[..., str]
) -> None:
    data = pixels[None] if layout == "channel" else pixels
    local = write_volume(tmp_path / "brain.zarr", data, VOXEL, levels=2, **LAYOUTS[layout])
    remote = Volume.open(serve(tmp_path) + "/brain.zarr/")
    assert remote.levels == local.levels
    assert remote.name == "brain"
    np.testing.assert_array_equal(whole(remote), pixels)
    np.testing.assert_array_equal(whole(remote, 1), whole(local, 1))
    assert remote.fingerprint() == local.fingerprint()


def test_bad_addresses(pixels: NDArray[np.uint16], tmp_path: Path, serve: Callable[..., str]) -> None:
    write_volume(tmp_path / "brain.zarr", pixels, VOXEL, **LAYOUTS["sharded"])
    address = serve(tmp_path)
    with pytest.raises(NotFoundError, match="no Zarr metadata found there"):
        Volume.open(address + "/nothing.zarr")
    with pytest.raises(DataError, match="cannot be read"):
        Volume.open("http://127.0.0.1:9/brain.zarr")
    with pytest.raises(NotFoundError, match="cannot be opened"):
        Volume.open("nonsense://brain.zarr")
    careless = Volume.open(serve(tmp_path, PlainHandler) + "/brain.zarr")
    with pytest.raises(DataError, match="does not support byte ranges"):
        whole(careless)


def test_memory_address(pixels: NDArray[np.uint16]) -> None:
    zarr.create_array("memory://brainmap-test/a.zarr", data=pixels)
    np.testing.assert_array_equal(whole(Volume.open("memory://brainmap-test/a.zarr", voxel_um=VOXEL)), pixels)


# ---- files by other writers ---------------------------------------------------------------------


@pytest.fixture(scope="session")
def others(brainmap_data: Path) -> Path:
    return brainmap_data / "ome_zarr"


@pytest.mark.parametrize("name", ["image-01", "image-02", "image-03", "image-04"])
def test_valid_files(name: str, others: Path, caplog: pytest.LogCaptureFixture) -> None:
    volume = Volume.open(others / "valid" / f"{name}.zarr")
    assert whole(volume).shape == volume.shape
    assert volume.voxel_um == (1, 1, 1)
    assert not caplog.records


def test_warning_file(others: Path, caplog: pytest.LogCaptureFixture) -> None:
    volume = Volume.open(others / "warning" / "image-01.zarr")
    assert whole(volume).shape == (1, 64, 64)
    assert whole(volume, 1).shape == (1, 32, 32)
    assert "values are float64, but int64 in level 0" in caplog.text


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("invalid/image-01.zarr", "no OME-NGFF image metadata"),
        ("invalid/image-02.zarr", "no OME-NGFF image metadata"),
        ("invalid/image-03.zarr", "level '0': the array that the metadata lists is not there"),
        ("invalid/image-04.zarr", "level '1': the array has 2 axes, the metadata 3 (z, y, x)"),
        ("valid/plate-01.zarr", "a plate of many images"),
        ("valid", "it contains image-01.zarr"),
    ],
)
def test_invalid_files(path: str, part: str, others: Path) -> None:
    with pytest.raises(DataError, match=re.escape(part)):
        Volume.open(others / path)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_simple_files(version: str, others: Path) -> None:
    volume = Volume.open(others / f"simple_{version}")
    expected = [(0.004, 0.03), (0.008, 0.06), (0.016, 0.12)]
    np.testing.assert_allclose([level.voxel_um[1:] for level in volume.levels], expected)
    assert volume.levels[2].origin_um == pytest.approx((0, 0.006, 0.045))
    assert whole(volume).shape == (1, 10, 10)


def test_the_same_brain_in_both_versions(others: Path) -> None:
    old = Volume.open(others / "stpt_brain_100um_ngffzarr_v0.4.ome.zarr")
    new = Volume.open(others / "stpt_brain_100um_ngffzarr_v0.5.ome.zarr")
    assert old.shape == new.shape == (135, 77, 108)
    assert new.voxel_um == (100, 100, 100)
    centres = []
    for number, level in enumerate(new.levels):
        assert old.levels[number].origin_um == level.origin_um
        values = whole(new, number)
        np.testing.assert_array_equal(values, whole(old, number))
        centres.append(np.array(ndimage.center_of_mass(values)) * level.voxel_um + level.origin_um)
    # The brain has its centre of mass at the same um in every level (its writer dropped an odd last
    # plane, which moves it a little); without the translations it would move by 50 and 150 um.
    np.testing.assert_allclose(centres, [centres[0]] * 3, atol=45)


def test_collection_of_images(pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "raw.zarr", attributes={"ome": {"bioformats2raw.layout": 3}})
    write_volume(tmp_path / "raw.zarr" / "0", pixels, VOXEL)
    np.testing.assert_array_equal(whole(Volume.open(tmp_path / "raw.zarr")), pixels)


def test_missing_dimension_names_are_a_warning(
    pixels: NDArray[np.uint16], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_volume(tmp_path / "a.zarr", pixels, VOXEL, levels=1)
    assert not caplog.records
    file = tmp_path / "a.zarr" / "0" / "zarr.json"
    document = json.loads(file.read_text())
    del document["dimension_names"]
    file.write_text(json.dumps(document))
    np.testing.assert_array_equal(whole(Volume.open(tmp_path / "a.zarr")), pixels)
    assert "does not name its dimensions" in caplog.text


def test_dot_separators(pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    """Version 0.4 demands `/`, but files with `.` exist."""
    write_volume(tmp_path / "a.zarr", pixels, VOXEL, zarr_format=2, levels=1)
    shutil.rmtree(tmp_path / "a.zarr" / "0")
    group = zarr.open_group(tmp_path / "a.zarr", mode="r+", zarr_format=2)
    group.create_array(
        "0", data=pixels, chunks=(4, 16, 16), chunk_key_encoding={"name": "v2", "separator": "."}
    )
    np.testing.assert_array_equal(whole(Volume.open(tmp_path / "a.zarr")), pixels)


def test_nested_chunks_that_the_metadata_does_not_mention(
    pixels: NDArray[np.uint16], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a check such a file would read as an empty brain."""
    write_volume(tmp_path / "a.zarr", pixels, VOXEL, zarr_format=2, levels=1, chunks=(4, 16, 16))
    file = tmp_path / "a.zarr" / "0" / ".zarray"
    document = json.loads(file.read_text())
    del document["dimension_separator"]
    file.write_text(json.dumps(document))
    volume = Volume.open(tmp_path / "a.zarr")
    np.testing.assert_array_equal(whole(volume), pixels)
    assert "nested folders" in caplog.text
    volume.fingerprint()
    assert "is the copy complete" not in caplog.text


def test_the_same_scale_for_all_levels_is_not_believed(
    pixels: NDArray[np.uint16], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    right = write_volume(tmp_path / "a.zarr", pixels, VOXEL, levels=3)

    def flatten(ome: dict[str, Any]) -> None:
        for dataset in ome["multiscales"][0]["datasets"]:
            dataset["coordinateTransformations"] = [{"type": "scale", "scale": list(VOXEL)}]

    change_metadata(tmp_path / "a.zarr", flatten)
    assert Volume.open(tmp_path / "a.zarr").levels == right.levels
    assert "does not fit its shape" in caplog.text


# ---- bad input ----------------------------------------------------------------------------------


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nothing\.zarr does not exist"):
        Volume.open(tmp_path / "nothing.zarr")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="not a Zarr image"):
        Volume.open(tmp_path / "empty")
    (tmp_path / "file.tif").write_bytes(b"II*")
    with pytest.raises(DataError, match=r"is a file.*brainmap convert"):
        Volume.open(tmp_path / "file.tif")


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_damaged_documents(zarr_format: int, pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    write_volume(path, pixels, VOXEL, zarr_format=zarr_format, levels=2)
    change_metadata(path, lambda ome: ome["multiscales"][0]["datasets"][0].pop("coordinateTransformations"))
    with pytest.raises(DataError, match=r"gives no scale.*--voxel-size"):
        Volume.open(path)
    np.testing.assert_array_equal(whole(Volume.open(path, voxel_um=VOXEL)), pixels)
    array = path / "1" / ("zarr.json" if zarr_format == 3 else ".zarray")
    array.write_text(array.read_text()[:50])
    with pytest.raises(DataError, match="level '1': array metadata damaged"):
        Volume.open(path, voxel_um=VOXEL)
    array.unlink()
    with pytest.raises(DataError, match="level '1': the array that the metadata lists is not there"):
        Volume.open(path, voxel_um=VOXEL)
    metadata_file(path).write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        Volume.open(path)
    metadata_file(path).write_text("[1]")
    with pytest.raises(DataError, match="not a JSON object"):
        Volume.open(path)
    if zarr_format == 3:
        metadata_file(path).write_text('{"zarr_format": 9}')
        with pytest.raises(DataError, match="neither a Zarr 3 group nor an array"):
            Volume.open(path)


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (np.zeros((2, 2, 2), bool), "type bool"),
        (np.zeros((2, 2, 2), complex), "type complex128"),
        (np.zeros((2, 2, 2, 2), "u1"), "4 axes"),
        (np.zeros(5, "u1"), "1 axes"),
        (np.zeros((0, 2, 2), "u1"), "empty"),
    ],
)
def test_unfit_arrays(data: NDArray[Any], part: str, tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", shape=data.shape, dtype=data.dtype, chunks=(2,) * data.ndim)
    with pytest.raises(DataError, match=part):
        Volume.open(tmp_path / "a.zarr", voxel_um=VOXEL)


def chunk_files(level: Path) -> list[Path]:
    """Stored chunks (or shards) of a level."""
    return sorted(
        p for p in level.rglob("*") if p.is_file() and p.name not in ("zarr.json", ".zarray", ".zattrs")
    )


# Grid position of the first chunk in the last stored file.
CHUNK = {"0.5": "3/1/2", "0.4": "3/1/2", "channel": "3/1/2", "sharded": "2/0/2"}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.999])
def test_truncated_chunk(layout: str, keep: float, pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    path = tmp_path / "brain.zarr"
    data = pixels[None] if layout == "channel" else pixels
    volume = write_volume(path, data, VOXEL, levels=1, **{"chunks": (4, 16, 16), **LAYOUTS[layout]})
    victim = chunk_files(path / "0")[-1]
    victim.write_bytes(victim.read_bytes()[: int(victim.stat().st_size * keep)])
    with pytest.raises(DataError) as caught:
        whole(volume)
    message = str(caught.value)
    assert "brain.zarr, level '0'" in message
    assert ("chunk 0/" if layout == "channel" else "chunk ") + CHUNK[layout] in message
    assert "region" in message
    assert "\n" not in message
    # The rest of the volume is still readable.
    np.testing.assert_array_equal(volume.read(slice(0, 8), ALL, ALL), pixels[:8])


@pytest.mark.parametrize("codec", ["lz4", "zstd", "gzip", None])
@pytest.mark.parametrize("lost", [1, 7, 100])
def test_a_chunk_short_of_a_few_bytes_is_never_read_as_data(
    codec: str | None, lost: int, tmp_path: Path
) -> None:
    from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

    codecs = {"lz4": BloscCodec(cname="lz4"), "zstd": ZstdCodec(), "gzip": GzipCodec(), None: None}
    data = np.random.default_rng(4).integers(0, 4000, (4, 32, 32)).astype("u2")
    zarr.create_array(tmp_path / "a.zarr", data=data, compressors=codecs[codec])
    volume = Volume.open(tmp_path / "a.zarr", voxel_um=VOXEL)
    (victim,) = chunk_files(tmp_path / "a.zarr")
    victim.write_bytes(victim.read_bytes()[:-lost])
    with pytest.raises(DataError, match="chunk 0/0/0"):
        whole(volume)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_missing_chunk_is_the_fill_value(layout: str, pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    path = tmp_path / "brain.zarr"
    data = pixels[None] if layout == "channel" else pixels
    volume = write_volume(path, data, VOXEL, levels=1, **{"chunks": (4, 16, 16), **LAYOUTS[layout]})
    chunk_files(path / "0")[-1].unlink()
    values = whole(volume)
    assert values[-1, -1, -1] == 0
    np.testing.assert_array_equal(values[:8], pixels[:8])
    assert volume.fingerprint() == Volume.open(path).fingerprint()


def test_a_copy_without_any_chunk_is_suspicious(
    pixels: NDArray[np.uint16], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    volume = write_volume(tmp_path / "a.zarr", pixels, VOXEL)
    shutil.rmtree(tmp_path / "a.zarr" / "0" / "c")
    volume.fingerprint()
    assert "is the copy complete?" in caplog.text


@pytest.mark.parametrize("codecs", [{}, {"filters": TransposeCodec(order=(2, 1, 0))}, {"compressors": None}])
def test_a_region_is_read_into_given_memory(
    pixels: NDArray[np.uint16], tmp_path: Path, codecs: dict[str, Any]
) -> None:
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=pixels.shape, chunks=(4, 8, 16), dtype="u2", **codecs
    )
    array[:] = pixels
    volume = Volume.open(tmp_path / "a.zarr", voxel_um=VOXEL)
    room = np.zeros((5, 7, 9), np.uint16)
    region = (slice(2, 7), slice(1, 8), slice(10, 19))
    values = volume.read(*region, out=room)
    assert np.shares_memory(values, room)
    np.testing.assert_array_equal(room, pixels[region])


def test_a_chunk_that_the_disk_refuses(
    pixels: NDArray[np.uint16], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = write_volume(tmp_path / "a.zarr", pixels, VOXEL)

    def refuse(*args: Any, **options: Any) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("brainmap.image.storage.local.LocalChunks._places", refuse)
        with pytest.raises(DataError, match=r"chunk 0/0/0 .* cannot be read: .*Input/output error"):
            whole(volume)
    monkeypatch.setattr("zarr.storage._local._get", refuse)
    with pytest.raises(DataError, match=r"cannot be read: .*Input/output error"):
        Volume.open(tmp_path / "a.zarr")


@pytest.mark.parametrize(
    "region",
    [
        (slice(0, 14), ALL, ALL),
        (ALL, slice(-1, 3), ALL),
        (ALL, ALL, slice(5, 5)),
        (ALL, ALL, slice(0, 10, 2)),
        (slice(30, 40), ALL, ALL),
    ],
)
def test_regions_must_lie_inside(region: Any, pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    volume = write_volume(tmp_path / "a.zarr", pixels, VOXEL)
    with pytest.raises(DataError, match="does not lie inside level 0"):
        volume.read(*region)
    with pytest.raises(DataError, match="levels 0 to 0, not 1"):
        volume.read(ALL, ALL, ALL, level=1)


# ---- fingerprint --------------------------------------------------------------------------------


def test_fingerprint(pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    first = write_volume(tmp_path / "a.zarr", pixels, VOXEL, chunks=(4, 16, 16))
    shutil.copytree(tmp_path / "a.zarr", tmp_path / "copy.zarr")
    changed = pixels.copy()
    changed[0, 0, 0] += 1
    prints = [
        first.fingerprint(),
        write_volume(tmp_path / "b.zarr", changed, VOXEL, chunks=(4, 16, 16)).fingerprint(),
        write_volume(tmp_path / "c.zarr", pixels, (5, 2, 2.5), chunks=(4, 16, 16)).fingerprint(),
        write_volume(tmp_path / "d.zarr", pixels[:12], VOXEL, chunks=(4, 16, 16)).fingerprint(),
    ]
    assert len(set(prints)) == 4
    assert Volume.open(tmp_path / "copy.zarr").fingerprint() == prints[0]


def test_a_rewritten_volume_is_seen_in_the_same_process(pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    write_volume(tmp_path / "a.zarr", pixels, VOXEL)
    second = write_volume(tmp_path / "a.zarr", pixels[:7].astype("f4"), VOXEL, overwrite=True)
    np.testing.assert_array_equal(whole(second), pixels[:7])
    third = write_volume(tmp_path / "a.zarr", pixels[:7].astype("f4") + 1, VOXEL, overwrite=True)
    np.testing.assert_array_equal(whole(third), pixels[:7] + 1)
