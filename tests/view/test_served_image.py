"""What is served is an OME-Zarr that zarr itself and our own reader read back as the image."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import zarr

from brainmap.errors import NotFoundError
from brainmap.image.volume import Volume, write_volume
from brainmap.view.crops import Crops, brightness_window
from brainmap.view.served_image import ServedImage

from .conftest import ORIGIN_UM, SHAPE, VOXEL_UM


def save(image: ServedImage, folder: Path) -> None:
    """Every file that a browser could ask for, as files."""
    names = ["zarr.json"]
    for level, record in enumerate(image.volume.levels):
        names.append(f"{level}/zarr.json")
        grid = [-(-n // side) for n, side in zip(record.shape, image.chunk_shape(level), strict=True)]
        names += [f"{level}/c/{'/'.join(map(str, index))}" for index in np.ndindex(*grid)]
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image.file(name)[0])


@pytest.mark.parametrize("channel", [0, 1])
def test_a_channel_of_a_sharded_image_is_read_back(
    made: SimpleNamespace, tmp_path: Path, channel: int
) -> None:
    save(ServedImage(Volume.open(made.brain, channel=channel)), tmp_path / "served.zarr")
    np.testing.assert_array_equal(
        zarr.open_array(tmp_path / "served.zarr" / "0", mode="r")[...], made.image[channel]
    )
    again = Volume.open(tmp_path / "served.zarr")
    assert (again.shape, again.voxel_um, again.origin_um) == (SHAPE, VOXEL_UM, ORIGIN_UM)
    assert again.levels[1].voxel_um == (5.0, 4.0, 4.0)
    np.testing.assert_array_equal(
        again.read(slice(None), slice(None), slice(None), level=1), made.image[channel][:, ::2, ::2]
    )


@pytest.mark.parametrize(
    ("stored", "served"),
    [("float64", "float32"), ("uint8", "uint8"), ("int64", "float32"), (">u2", "uint16")],
)
def test_types_that_browsers_lack_are_converted(tmp_path: Path, stored: str, served: str) -> None:
    data = np.arange(3 * 5 * 7).reshape(3, 5, 7).astype(stored)
    zarr.create_array(tmp_path / "a.zarr", data=data, zarr_format=2)
    image = ServedImage(Volume.open(tmp_path / "a.zarr", voxel_um=(1, 1, 1)))
    assert image.dtype.name == served
    save(image, tmp_path / "s.zarr")
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "s.zarr" / "0", mode="r")[...], data)


def test_chunks_are_neither_tiny_nor_huge(tmp_path: Path) -> None:
    for name, chunks in (("small", (1, 8, 8)), ("large", (200, 200, 200))):
        zarr.create_array(tmp_path / name, shape=(200, 200, 200), chunks=chunks, dtype="uint8")
        image = ServedImage(Volume.open(tmp_path / name, voxel_um=(1, 1, 1)))
        assert min(image.chunk_shape(0)) >= 64
        assert np.prod(image.chunk_shape(0)) <= 2**21


@pytest.mark.parametrize(
    "path",
    [
        "",
        "zarr.json/",
        "2/zarr.json",
        "0/c/0/0",
        "0/c/9/0/0",
        "0/c/-1/0/0",
        "../zarr.json",
        "0/c/0/0/0/0",
        "x/c/0/0/0",
    ],
)
def test_other_files_are_not_there(made: SimpleNamespace, path: str) -> None:
    with pytest.raises(NotFoundError):
        ServedImage(Volume.open(made.brain, channel=0)).file(path)


def test_the_window_ends_near_the_brightest(made: SimpleNamespace) -> None:
    low, high = brightness_window(Volume.open(made.brain, channel=0))
    assert 170 < low < 200
    assert 1000 < high <= made.image[0].max()


def test_a_crop_shows_the_cell_in_its_middle(made: SimpleNamespace) -> None:
    import io

    from PIL import Image

    crops = Crops(Volume.open(made.brain, channel=0))
    at = np.array([12, 50, 90]) * VOXEL_UM + ORIGIN_UM
    picture = np.asarray(Image.open(io.BytesIO(crops.cell(at, 60.0)))).astype(float)
    top, side = picture[:192], picture[194:]
    for part in (top, side):
        y, x = np.unravel_index(part.argmax(), part.shape)
        assert abs(x - 96) <= 8
        assert abs(y - part.shape[0] / 2) <= 10
    assert top[96, 96] > 3 * np.median(top)
    # Over the edge of the image nothing breaks.
    assert crops.cell(np.array(ORIGIN_UM), 60.0)[:4] == b"\x89PNG"
    assert crops.brightest(at + [12, 0, 0], at[0] - 15, at[0] + 15, 4.0) == pytest.approx(at[0], abs=5)


def test_an_image_without_levels_of_its_own_is_served(tmp_path: Path) -> None:
    write_volume(tmp_path / "v.zarr", np.zeros((2, 3, 4), np.uint16), (1, 1, 1), levels=1)
    image = ServedImage(Volume.open(tmp_path / "v.zarr"))
    assert image.group()["attributes"]["ome"]["version"] == "0.5"
    assert brightness_window(image.volume) == (0.0, 1.0)
