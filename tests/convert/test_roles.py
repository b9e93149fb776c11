"""What axes and lengths are, where files do not say it or say it wrongly."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray

from brainmap.convert.convert import convert
from brainmap.errors import BrainmapError, DataError, UsageError
from brainmap.image.volume import Volume

VOXEL = (5.0, 2.0, 2.0)
ALL = slice(None)


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint16]:
    return np.random.default_rng(5).integers(1, 60000, (12, 20, 31)).astype(np.uint16)


def whole(volume: Volume) -> NDArray[Any]:
    return volume.read(ALL, ALL, ALL)


def imagej(path: Path, data: NDArray[Any], axes: str, **metadata: Any) -> Path:
    tifffile.imwrite(path, data, imagej=True, resolution=(0.5, 0.5), metadata={"axes": axes, **metadata})
    return path


@pytest.mark.parametrize("axes", ["ZYX", "zyx", "z,y,x"])
@pytest.mark.parametrize("saved_as", ["CYX", "TYX"])
def test_planes_saved_as_something_else(
    saved_as: str, axes: str, pixels: NDArray[np.uint16], tmp_path: Path
) -> None:
    source = imagej(tmp_path / "a.tif", pixels, saved_as, spacing=5.0, unit="um")
    volume = convert(source, tmp_path / "a.zarr", axes=axes)
    assert (volume.n_channels, volume.voxel_um) == (1, VOXEL)
    np.testing.assert_array_equal(whole(volume), pixels)


def test_many_channels_of_one_plane_are_worth_a_warning(
    pixels: NDArray[np.uint16], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = imagej(tmp_path / "a.tif", pixels, "CYX", spacing=5.0, unit="um")
    with caplog.at_level(logging.WARNING):
        assert convert(source, tmp_path / "a.zarr").n_channels == 12
    assert "12 channels of one plane each" in caplog.text and "--axes" in caplog.text


def test_a_timepoint_is_chosen(pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    film = np.stack([pixels, pixels[::-1]])
    source = imagej(tmp_path / "a.tif", film, "TZYX", spacing=5.0, unit="um")
    with pytest.raises(UsageError, match="choose one of 0 to 1 with --timepoint"):
        convert(source, tmp_path / "a.zarr")
    np.testing.assert_array_equal(whole(convert(source, tmp_path / "a.zarr", timepoint=1)), pixels[::-1])
    with pytest.raises(UsageError, match="--timepoint 2 is not there"):
        convert(source, tmp_path / "b.zarr", timepoint=2)
    channels = convert(source, tmp_path / "c.zarr", axes="czyx")
    np.testing.assert_array_equal(whole(channels.with_channel(1)), pixels[::-1])


@pytest.mark.parametrize(
    ("axes", "error"),
    [("zy", UsageError), ("zzyx", UsageError), ("qyx", UsageError), ("czyx", UsageError), ("xzy", DataError)],
)
def test_axes_that_do_not_fit(
    axes: str, error: type[BrainmapError], pixels: NDArray[np.uint16], tmp_path: Path
) -> None:
    source = imagej(tmp_path / "a.tif", pixels, "ZYX", spacing=5.0, unit="um")
    with pytest.raises(error, match="axes"):
        convert(source, tmp_path / "a.zarr", axes=axes)


@pytest.mark.parametrize(
    ("axes", "arrange"),
    [
        ("xyz", lambda a: a.transpose(2, 1, 0)),
        ("yxz", lambda a: a.transpose(1, 2, 0)),
        ("zxy", lambda a: a.transpose(0, 2, 1)),
        ("zyx.", lambda a: a[..., None]),
        ("tzyx", lambda a: np.stack([a, a[::-1]])),
        ("zcyx", lambda a: np.stack([a[::-1], a], axis=1)),
    ],
)
def test_numpy_files_in_any_order(
    axes: str, arrange: Callable[[NDArray[Any]], NDArray[Any]], pixels: NDArray[np.uint16], tmp_path: Path
) -> None:
    np.save(tmp_path / "a.npy", arrange(pixels))
    timepoint = 0 if "t" in axes else None
    volume = convert(tmp_path / "a.npy", tmp_path / "a.zarr", VOXEL, axes=axes, timepoint=timepoint)
    np.testing.assert_array_equal(whole(volume.with_channel(1) if "c" in axes else volume), pixels)


def ngff(path: Path, data: NDArray[Any], axes: str, scale: list[Any], **extra: Any) -> Path:
    kinds = {"t": "time", "c": "channel"}
    group = zarr.open_group(path, mode="w", zarr_format=2)
    group.create_array("0", data=data, chunks=tuple(min(16, n) for n in data.shape))
    group.attrs["multiscales"] = [
        {
            "version": "0.4",
            "axes": [
                {"name": a, "type": kinds.get(a, "space"), **({} if a in kinds else {"unit": "micrometer"})}
                for a in axes
            ],
            "datasets": [
                {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}], **extra}
            ],
        }
    ]
    return path


@pytest.mark.parametrize("axes", ["xyz", "yxz", "zxy"])
def test_zarr_in_another_order(axes: str, pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    order = ["zyx".index(a) for a in axes]
    source = ngff(tmp_path / "a.zarr", pixels.transpose(order), axes, [VOXEL[i] for i in order])
    with pytest.raises(DataError, match=rf"brainmap convert.*--axes {axes}"):
        Volume.open(source)
    read = Volume.open(source, axes=axes)
    assert (read.shape, read.voxel_um) == (pixels.shape, VOXEL)
    np.testing.assert_array_equal(read.read(slice(2, 7), slice(3, 11), slice(5, 30)), pixels[2:7, 3:11, 5:30])
    room = np.empty((5, 8, 25), np.uint16)
    assert read.read(slice(2, 7), slice(3, 11), slice(5, 30), out=room) is room
    np.testing.assert_array_equal(room, pixels[2:7, 3:11, 5:30])
    written = convert(source, tmp_path / "b.zarr")
    assert (written.axes, written.voxel_um) == (("z", "y", "x"), VOXEL)
    np.testing.assert_array_equal(whole(written), pixels)


@pytest.mark.parametrize(
    ("axes", "data", "scale"),
    [
        ("tzyx", lambda a: a[None], [0.0, *VOXEL]),
        ("tczyx", lambda a: a[None, None], [-1.0, 0.0, *VOXEL]),
        ("czyx", lambda a: a[None], [None, *VOXEL]),
        ("czyx", lambda a: a[None], ["", *VOXEL]),
    ],
)
def test_numbers_of_axes_that_are_not_used_do_not_matter(
    axes: str,
    data: Callable[[NDArray[Any]], NDArray[Any]],
    scale: list[Any],
    pixels: NDArray[np.uint16],
    tmp_path: Path,
) -> None:
    volume = Volume.open(ngff(tmp_path / "a.zarr", data(pixels), axes, scale))
    assert volume.voxel_um == VOXEL
    np.testing.assert_array_equal(whole(volume), pixels)


@pytest.mark.parametrize(
    "scale", [list(VOXEL), [1.0, 0.0, 2.0, 2.0], [1.0, -5.0, 2.0, 2.0], [1, "five", 2, 2], "none", [[1]]]
)
def test_what_a_given_voxel_size_replaces_does_not_matter(
    scale: Any, pixels: NDArray[np.uint16], tmp_path: Path
) -> None:
    source = ngff(tmp_path / "a.zarr", pixels[None], "czyx", scale)
    with pytest.raises(DataError, match="--voxel-size"):
        Volume.open(source)
    assert Volume.open(source, voxel_um=VOXEL).voxel_um == VOXEL
    assert convert(source, tmp_path / "b.zarr", VOXEL).voxel_um == VOXEL


def test_channels_on_the_time_axis(pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    both = np.stack([pixels[None], pixels[None, ::-1]])
    source = ngff(tmp_path / "a.zarr", both, "tczyx", [1.0, 1.0, *VOXEL])
    with pytest.raises(UsageError, match=r"--timepoint.*--axes"):
        Volume.open(source)
    np.testing.assert_array_equal(whole(Volume.open(source, timepoint=1)), pixels[::-1])
    np.testing.assert_array_equal(whole(Volume.open(source, axes="c.zyx", channel=1)), pixels[::-1])


def test_planes_on_the_channel_axis_need_a_length(pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    source = ngff(tmp_path / "a.zarr", pixels, "cyx", [1.0, 2.0, 2.0])
    with pytest.raises(UsageError, match="--voxel-size"):
        Volume.open(source, axes="zyx")
    volume = Volume.open(source, axes="zyx", voxel_um=VOXEL)
    np.testing.assert_array_equal(whole(volume), pixels)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"spacing": -5.0, "unit": "um"}, VOXEL),
        ({"spacing": 0.005, "unit": "um", "zunit": "mm"}, VOXEL),
        ({"spacing": 5000.0, "unit": "um", "zunit": "nm"}, VOXEL),
        ({"spacing": 5.0, "unit": "\\u00B5m"}, VOXEL),
        ({"spacing": 5.0, "unit": "micron"}, VOXEL),
        ({"spacing": 0.0, "unit": "um"}, None),
        ({"spacing": float("nan"), "unit": "um"}, None),
        ({"spacing": 5.0, "unit": "um", "zunit": "pixel"}, None),
        ({"unit": "um"}, None),
        ({"spacing": 5.0}, None),
    ],
)
def test_lengths_of_imagej(
    metadata: dict[str, Any], expected: Any, pixels: NDArray[np.uint16], tmp_path: Path
) -> None:
    source = imagej(tmp_path / "a.tif", pixels, "ZYX", **metadata)
    if expected is None:
        with pytest.raises(UsageError, match="--voxel-size"):
            convert(source, tmp_path / "a.zarr")
        assert [p.name for p in tmp_path.iterdir()] == ["a.tif"], "asked before anything is written"
    else:
        assert convert(source, tmp_path / "a.zarr").voxel_um == pytest.approx(expected)


@pytest.mark.parametrize(
    ("voxel", "likely"),
    [
        ((0.005, 0.002, 0.002), "millimetres, give --voxel-size 5,2,2"),
        ((5000.0, 2000.0, 2000.0), "nanometres, give --voxel-size 5,2,2"),
        ((5e-6, 2e-6, 2e-6), "metres, give --voxel-size 5,2,2"),
        ((1800.0, 1800.0, 1800.0), "nanometres, give --voxel-size 1.8,1.8,1.8"),
        ((5.0, 2.0, 500.0), "give the true one in um"),
    ],
)
def test_voxel_sizes_that_no_image_has_are_asked_about(
    voxel: Any, likely: str, pixels: NDArray[np.uint16], tmp_path: Path
) -> None:
    np.save(tmp_path / "a.npy", pixels)
    with pytest.raises(UsageError, match=likely):
        convert(tmp_path / "a.npy", tmp_path / "a.zarr", voxel)
    assert [p.name for p in tmp_path.iterdir()] == ["a.npy"]


def ome_set(folder: Path, data: NDArray[Any], per_file: int) -> list[Path]:
    """An OME-TIFF set: every file holds several planes, and each carries the whole description."""
    folder.mkdir()
    names = [f"scan_{i}.ome.tif" for i in range(len(data) // per_file)]
    uuids = [f"urn:uuid:a0000000-0000-0000-0000-00000000000{i}" for i in range(len(names))]
    blocks = "".join(
        f'<TiffData IFD="{z % per_file}" FirstZ="{z}" FirstC="0" FirstT="0" PlaneCount="1">'
        f'<UUID FileName="{names[z // per_file]}">{uuids[z // per_file]}</UUID></TiffData>'
        for z in range(len(data))
    )
    for i, name in enumerate(names):
        xml = (
            '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="{uuids[i]}"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" '
            f'SizeX="{data.shape[2]}" SizeY="{data.shape[1]}" SizeZ="{len(data)}" SizeC="1" SizeT="1" '
            'PhysicalSizeX="2" PhysicalSizeY="2" PhysicalSizeZ="5"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>'
            f"{blocks}</Pixels></Image></OME>"
        )
        with tifffile.TiffWriter(folder / name) as writer:
            for j, plane in enumerate(data[i * per_file : (i + 1) * per_file]):
                writer.write(plane, description=xml if j == 0 else None, metadata=None, contiguous=False)
    return [folder / name for name in names]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("per_file", [1, 2, 6])
def test_ome_tiff_sets(per_file: int, pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    files = ome_set(tmp_path / "set", pixels, per_file)
    for number, source in enumerate((tmp_path / "set", files[0], files[-1])):
        volume = convert(source, tmp_path / f"{number}.zarr", workers=4)
        assert volume.voxel_um == VOXEL
        np.testing.assert_array_equal(whole(volume), pixels)


def test_an_ome_tiff_set_without_one_of_its_files(pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    files = ome_set(tmp_path / "set", pixels, 6)
    files[1].unlink()
    with pytest.raises(DataError):
        convert(tmp_path / "set", tmp_path / "a.zarr")


def test_the_cases(cases: Path, tmp_path: Path) -> None:
    def converted(name: str, **options: Any) -> Volume:
        return convert(cases / name, tmp_path / f"{name.replace('/', '_')}.zarr", **options)

    assert Volume.open(cases / "time_scale_zero.zarr").voxel_um == VOXEL
    assert Volume.open(cases / "three_numbers_for_four_axes.zarr", voxel_um=VOXEL).levels[1].voxel_um == (
        5,
        4,
        4,
    )
    with pytest.raises(DataError, match="--voxel-size"):
        Volume.open(cases / "three_numbers_for_four_axes.zarr")
    assert converted("axes_xyz.zarr").shape == (24, 256, 256)
    assert Volume.open(cases / "channels_on_time_axis.zarr", timepoint=1).shape == (24, 256, 256)
    planes = tifffile.imread(cases / "z_called_c_or_t" / "as_z.tif")
    for name in ("as_c.tif", "as_t.tif", "as_t.ome.tif"):
        volume = converted(f"z_called_c_or_t/{name}", axes="ZYX", voxel_um=VOXEL)
        np.testing.assert_array_equal(whole(volume), planes)
    assert converted("ome_tiff_two_files").shape == (12, 128, 128)
    assert converted("imagej_units/negative.tif").voxel_um == VOXEL
    assert converted("imagej_units/zunit.tif").voxel_um == VOXEL


def test_a_set_is_found_through_a_link(pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    real = tmp_path / "real"
    ome_set(real, pixels, 2)
    (tmp_path / "link").symlink_to(real)
    made = convert(tmp_path / "link", tmp_path / "brain.zarr", voxel_um=VOXEL)
    np.testing.assert_array_equal(whole(made), pixels)
