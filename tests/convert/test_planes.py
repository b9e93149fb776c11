"""Which files of a folder are one series of planes, and in which order."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from brainmap.convert.convert import convert
from brainmap.convert.plane_names import matching, planes_of
from brainmap.errors import DataError, NotFoundError, UsageError
from brainmap.image.volume import Volume

VOXEL = (5.0, 2.0, 2.0)
ALL = slice(None)


def ordered(names: list[str]) -> list[str]:
    (files,) = planes_of([Path(name) for name in names], "folder").files
    return [file.name for file in files if file is not None]


@pytest.mark.parametrize(
    "names",
    [
        [f"z_{i:+05d}um.tif" for i in range(-30, 31, 10)],
        [f"z{i}.tif" for i in (-30, -20, -10, 0, 10)],
        [f"slice-{i:03d}.tif" for i in range(1, 12)],
        [f"2024-05-11_brain-{i}.tif" for i in range(1, 12)],
        [f"z_{i / 2:.1f}um.tif" for i in range(25)],
        [f"z_{i / 2:g}um.tif" for i in range(25)],
        [f"scan1.{i}.tif" for i in range(1, 14)],
        [f"z{i}.tif" for i in range(0, 120, 5)],
        [f"section_{i}.tif" for i in (3, 17, 22, 90, 91)],
        [f"img_{i:04d}_{100000 + 17 * i}.tif" for i in range(9)],
        [f"img_{i:04d}_{i // 3:02d}.tif" for i in range(9)],
        [f"Brain (left) {i}.TIF" for i in range(9)],
        [f"z{i}.TIFF" if i % 2 else f"z{i}.tiff" for i in range(12)],
    ],
)
def test_one_series_in_the_order_of_its_numbers(names: list[str]) -> None:
    assert ordered(list(reversed(names))) == names


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("brain_Ch{c}_{z:04d}.tif", ("Ch1", "Ch2")),
        ("z{z}_C{c}.tif", ("C1", "C2")),
        ("z{z:03d}_w{c}.tif", ("w1", "w2")),
        ("brain_z{z}_ch0{c}.tif", ("ch01", "ch02")),
        ("{c}56nm_{z}.tif", ("156", "256")),
    ],
)
def test_two_numbers_are_planes_and_channels(name: str, channels: tuple[str, ...]) -> None:
    if "nm" in name:
        name, channels = name.replace("{c}56", "{c}88"), ("488", "588")
        numbers = (4, 5)
    else:
        numbers = (1, 2)
    files = [Path(name.format(c=c, z=z)) for z in range(12) for c in numbers]
    planes = planes_of(files, "folder")
    assert planes.channel_names == channels
    for c, found in zip(numbers, planes.files, strict=True):
        assert [file.name for file in found if file] == [name.format(c=c, z=z) for z in range(12)]


def test_words_are_channels() -> None:
    planes = planes_of([Path(f"brain_{w}_{z}.tif") for w in ("red", "green") for z in range(5)], "folder")
    assert planes.channel_names == ("green", "red")
    assert [file.name for file in planes.files[1] if file] == [f"brain_red_{z}.tif" for z in range(5)]


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ([f"z{i:04d}.tif" for i in (0, 1, 2, 3, 6, 7)], r"2 planes \(4, 5\) are missing.*--allow-gaps"),
        (["z1.tif", "z2.tif", "z2 (copy).tif", "z3.tif"], r"z2 \(copy\).tif.*--planes 'z#.tif'"),
        (["z1.tif", "z2.tif", "z3.tif", "MAX_projection.tif"], r"MAX_projection.tif.*--planes 'z#.tif'"),
        (["z1.tif", "z2.tif", "z3.tif", "z01.tif"], "z01.tif.*same number|z1.tif.*same number"),
        (
            [f"img_t{t}_z{z}.tif" for t in range(3) for z in range(4)],
            "2 numbers vary.*--planes 'img_t0_z#.tif'",
        ),
        (
            [f"x{x}_y{y}_z{z}.tif" for x in (0, 1) for y in (0, 1) for z in range(5)],
            "3 numbers vary.*--planes",
        ),
        (
            [f"brain_Ch{c}_{z}.tif" for c in (1, 2) for z in range(4) if (c, z) != (2, 3)],
            "channel Ch2 lacks 1 of the 4 planes",
        ),
        (["left.tif", "right.tif"], "not one series"),
        (["z1.tif", "z2.tif", "y1.tif"], "y1.tif"),
    ],
)
def test_what_is_not_one_series_is_said(names: list[str], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        planes_of([Path(name) for name in names], "folder")


def test_patterns() -> None:
    files = [Path(n) for n in ("z1.tif", "z2.tif", "z2 (copy).tif", "MAX_1.tif", "z-0.5.tif")]
    assert [p.name for p in matching(files, "z#.tif", "f")] == ["z1.tif", "z2.tif", "z-0.5.tif"]
    assert [p.name for p in matching(files, "max*", "f")] == ["MAX_1.tif"]
    with pytest.raises(UsageError, match="--planes q"):
        matching(files, "q*", "f")


def write(folder: Path, names: list[str], data: np.ndarray | None = None) -> np.ndarray:
    folder.mkdir()
    values = np.random.default_rng(1).integers(1, 200, (len(names), 12, 16)).astype(np.uint16)
    for name, plane in zip(names, values if data is None else data, strict=True):
        tifffile.imwrite(folder / name, plane)
    return values


def test_gaps_stay_empty_where_they_are_allowed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = write(tmp_path / "gap", [f"z{i}.tif" for i in (0, 1, 2, 5, 6)])
    with caplog.at_level(logging.WARNING):
        volume = convert(tmp_path / "gap", tmp_path / "a.zarr", VOXEL, allow_gaps=True)
    assert "2 planes (3, 4) are missing" in caplog.text
    found = volume.read(ALL, ALL, ALL)
    np.testing.assert_array_equal(found[[0, 1, 2, 5, 6]], values)
    assert not found[3:5].any()


def test_channels_of_a_folder_are_channels(tmp_path: Path) -> None:
    values = write(tmp_path / "two", [f"b_Ch{c}_{z:02d}.tif" for c in (1, 2) for z in range(5)])
    volume = convert(tmp_path / "two", tmp_path / "a.zarr", VOXEL)
    assert (volume.n_channels, volume.channel_names) == (2, ("Ch1", "Ch2"))
    np.testing.assert_array_equal(volume.with_channel(1).read(ALL, ALL, ALL), values[5:])
    one = convert(tmp_path / "two", tmp_path / "b.zarr", VOXEL, planes="*Ch2*")
    np.testing.assert_array_equal(one.read(ALL, ALL, ALL), values[5:])


def test_a_list_of_planes(tmp_path: Path) -> None:
    values = write(tmp_path / "planes", ["b.tif", "a.tif", "c 7.tif"])
    listing = tmp_path / "planes.txt"
    listing.write_text("# in the order of the brain\nplanes/b.tif\nplanes/a.tif\n\nplanes/c 7.tif\n")
    np.testing.assert_array_equal(convert(listing, tmp_path / "a.zarr", VOXEL).read(ALL, ALL, ALL), values)
    for text, error, sentence in (
        ("", DataError, "lists no planes"),
        ("planes/b.tif\nplanes/d.tif", NotFoundError, "d.tif, which does not exist"),
        ("planes/b.tif\nplanes/b.tif", DataError, "b.tif 2 times"),
        ("planes.txt", DataError, "lists planes.txt"),
    ):
        listing.write_text(text)
        with pytest.raises(error, match=sentence):
            convert(listing, tmp_path / "b.zarr", VOXEL)
    listing.write_bytes(b"\xff\xfe\x00brain")
    with pytest.raises(DataError, match="not a text file"):
        convert(listing, tmp_path / "b.zarr", VOXEL)


@pytest.mark.parametrize(
    ("suffix", "mode"), [("png", "L"), ("png", "I;16"), ("png", "RGB"), ("bmp", "L"), ("jpg", "L")]
)
def test_pictures_as_planes(suffix: str, mode: str, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    flat = np.repeat(np.arange(4) * 50 + 20, 8 * 8).reshape(4, 8, 8)
    values = (flat * (200 if mode == "I;16" else 1)).astype(np.uint16 if mode == "I;16" else np.uint8)
    for z, plane in enumerate(values):
        picture = Image.fromarray(plane)
        (picture.convert("RGB") if mode == "RGB" else picture).save(folder / f"p{z}.{suffix}")
    found = convert(folder, tmp_path / "a.zarr", VOXEL).read(ALL, ALL, ALL)
    assert found.dtype == values.dtype
    np.testing.assert_allclose(found, values, atol=2 if suffix == "jpg" else 0)


def test_coloured_pictures_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    for z in range(3):
        Image.fromarray(np.eye(8, dtype=np.uint8)[..., None] * np.array([90, 20, z], np.uint8)).save(
            tmp_path / "p" / f"{z}.png"
        )
    with pytest.raises(DataError, match="colour image"):
        convert(tmp_path / "p", tmp_path / "a.zarr", VOXEL)


def test_the_cases(cases: Path, tmp_path: Path) -> None:
    two = convert(cases / "two_channels_one_folder", tmp_path / "two.zarr", VOXEL)
    assert (two.n_channels, two.shape[0]) == (2, 12)
    signed = convert(cases / "plane_names" / "signed", tmp_path / "signed.zarr", VOXEL)
    names = [f"z_{z:+05d}um.tif" for z in range(-30, 31, 10)]
    expected = [tifffile.imread(cases / "plane_names" / "signed" / name) for name in names]
    np.testing.assert_array_equal(signed.read(ALL, ALL, ALL), expected)
    with pytest.raises(DataError, match="--allow-gaps"):
        convert(cases / "plane_names" / "gap", tmp_path / "gap.zarr", VOXEL)
    assert isinstance(
        convert(cases / "plane_names" / "gap", tmp_path / "gap.zarr", VOXEL, allow_gaps=True), Volume
    )
