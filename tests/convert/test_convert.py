"""Conversion of TIFF stacks and others to OME-Zarr: every kind, equal pixels; bad input in one sentence."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray

from brainmap.convert.convert import convert
from brainmap.convert.stacks import open_stack
from brainmap.errors import DataError, MissingExtraError, NotFoundError, UsageError
from brainmap.image.storage import shards
from brainmap.image.storage.shards import ShardWriter
from brainmap.image.volume import Volume, write_volume

ALL = slice(None)
VOXEL = (5.0, 2.0, 1.5)
OME = {
    "PhysicalSizeX": 1500,
    "PhysicalSizeXUnit": "nm",
    "PhysicalSizeY": 2,
    "PhysicalSizeYUnit": "µm",
    "PhysicalSizeZ": 0.005,
    "PhysicalSizeZUnit": "mm",
}


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint16]:
    return np.random.default_rng(5).integers(0, 60000, (11, 30, 41)).astype(np.uint16)


def whole(volume: Volume) -> NDArray[Any]:
    return volume.read(ALL, ALL, ALL)


def series(path: Path, data: NDArray[Any]) -> Path:
    """Sections named without leading zeros, so that plain sorting would shuffle them."""
    path.mkdir()
    for z, plane in enumerate(data):
        tifffile.imwrite(path / f"brain_{z}.tif", plane)
    (path / "notes.txt").write_text("not an image")
    return path


def plain(path: Path, data: NDArray[Any], **options: Any) -> Path:
    tifffile.imwrite(path, data, **options)
    return path


def pages(path: Path, data: NDArray[Any], **options: Any) -> Path:
    """A file without any metadata, page after page."""
    with tifffile.TiffWriter(path, **options) as writer:
        for plane in data:
            writer.write(plane, metadata=None, contiguous=False)
    return path


def numpy_file(path: Path, data: NDArray[Any]) -> Path:
    np.save(path, data)
    return path


SOURCES: dict[str, Callable[[Path, NDArray[Any]], Path]] = {
    "series": lambda d, a: series(d / "sections", a),
    "deflate": lambda d, a: plain(d / "a.tif", a, compression="deflate"),
    "lzw tiles": lambda d, a: plain(d / "a.tif", a, compression="lzw", tile=(16, 16)),
    "contiguous": lambda d, a: plain(d / "a.tiff", a),
    "big endian": lambda d, a: plain(d / "a.tif", a, byteorder=">"),
    "big endian deflate": lambda d, a: plain(d / "a.tif", a, byteorder=">", compression="deflate"),
    "bigtiff": lambda d, a: plain(d / "a.btf", a, bigtiff=True, compression="zstd"),
    "pages": lambda d, a: pages(d / "a.tif", a),
    "npy": lambda d, a: numpy_file(d / "a.npy", a),
    "zarr": lambda d, a: Path(str(zarr.create_array(d / "bare.zarr", data=a, chunks=(4, 16, 16)).store.root)),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_of_source(kind: str, pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    source = SOURCES[kind](tmp_path, pixels)
    volume = convert(source, tmp_path / "brain.ome.zarr", VOXEL, orientation="asr")
    np.testing.assert_array_equal(whole(volume), pixels)
    assert volume.voxel_um == VOXEL
    assert volume.orientation == "asr"
    assert volume.zarr_format == 3
    assert volume.shards is not None
    assert volume.n_channels == 1


@pytest.mark.parametrize("dtype", ["u1", "i2", "f4"])
def test_types(dtype: str, pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    data = (pixels % 120).astype(dtype)
    volume = convert(plain(tmp_path / "a.tif", data), tmp_path / "a.zarr", VOXEL)
    assert volume.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(whole(volume), data)


def test_the_real_brain(brainmap_data: Path, tmp_path: Path) -> None:
    source = brainmap_data / "brains" / "stpt_psl_50x40x40um.tif"
    volume = convert(source, tmp_path / "brain.zarr", (50, 40, 40), orientation="psl")
    np.testing.assert_array_equal(whole(volume), tifffile.imread(source))
    assert [level.voxel_um for level in volume.levels] == [(50, 40, 40), (100, 80, 80)]
    assert volume.levels[1].origin_um == (25, 20, 20)


def test_many_small_slabs(pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    volume = convert(
        plain(tmp_path / "a.tif", pixels, compression="deflate"),
        tmp_path / "a.zarr",
        VOXEL,
        chunks=(2, 16, 16),
        shards=(4, 16, 32),
        workers=3,
        on_progress=lambda planes, total: done.append((planes, total)),
    )
    np.testing.assert_array_equal(whole(volume), pixels)
    assert done == [(4, 11), (8, 11), (11, 11)]


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most two slabs of planes exist at a time."""
    from brainmap.convert.stacks import Stack

    alive, most, lock = 0, 0, threading.Lock()
    original = Stack.read

    def counted(stack: Stack, start: int, stop: int, pool: Any) -> NDArray[Any]:
        nonlocal alive, most
        with lock:
            alive += stop - start
            most = max(most, alive)
        return original(stack, start, stop, pool)

    def released(planes: int, total: int) -> None:
        nonlocal alive
        with lock:
            alive -= 4

    monkeypatch.setattr(Stack, "read", counted)
    source = plain(tmp_path / "a.tif", np.zeros((40, 8, 8), "u2"))
    convert(source, tmp_path / "a.zarr", VOXEL, chunks=(4, 8, 8), shards=(4, 8, 8), on_progress=released)
    assert most <= 8


# ---- metadata -----------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", ["CZYX", "ZCYX"])
@pytest.mark.parametrize("compression", [None, "deflate"])
def test_ome_tiff(axes: str, compression: str | None, pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    both = np.stack([pixels, 60000 - pixels], axis=axes.index("C"))
    source = plain(
        tmp_path / "a.ome.tif",
        both,
        compression=compression,
        photometric="minisblack",
        metadata={"axes": axes, **OME, "Channel": {"Name": ["auto", "cfos"]}},
    )
    first = convert(source, tmp_path / "a.zarr")
    assert first.voxel_um == pytest.approx(VOXEL)
    assert first.channel_names == ("auto", "cfos")
    assert (first.n_channels, first.channel) == (2, 0)
    np.testing.assert_array_equal(whole(first), pixels)
    np.testing.assert_array_equal(whole(Volume.open(tmp_path / "a.zarr", channel=1)), 60000 - pixels)


def test_imagej_stack(pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    source = plain(
        tmp_path / "a.tif",
        pixels,
        imagej=True,
        resolution=(1 / 1.5, 1 / 2),
        metadata={"axes": "ZYX", "spacing": 5, "unit": "um"},
    )
    volume = convert(source, tmp_path / "a.zarr")
    np.testing.assert_allclose(volume.voxel_um, VOXEL, rtol=1e-6)
    np.testing.assert_array_equal(whole(volume), pixels)


def test_imagej_channels_and_unknown_unit(pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    both = np.stack([pixels, pixels // 2], axis=1)
    source = plain(tmp_path / "a.tif", both, imagej=True, metadata={"axes": "ZCYX"})
    with pytest.raises(UsageError, match="--voxel-size"):
        convert(source, tmp_path / "a.zarr")
    volume = convert(source, tmp_path / "a.zarr", VOXEL, ["one", "two"])
    assert volume.channel_names == ("one", "two")
    np.testing.assert_array_equal(whole(volume.with_channel(1)), pixels // 2)


def test_a_given_voxel_size_overrides(pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    source = plain(tmp_path / "a.ome.tif", pixels, metadata={"axes": "ZYX", **OME})
    with open_stack(source) as stack:
        assert stack.voxel_um == pytest.approx(VOXEL)
    assert convert(source, tmp_path / "a.zarr", (9, 9, 9)).voxel_um == (9, 9, 9)


def test_a_single_section(pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    source = plain(
        tmp_path / "a.ome.tif", pixels[0], metadata={"axes": "YX", "PhysicalSizeX": 2, "PhysicalSizeY": 2}
    )
    volume = convert(source, tmp_path / "a.zarr")
    assert volume.shape == (1, 30, 41)
    assert volume.voxel_um == (2, 2, 2)
    np.testing.assert_array_equal(whole(volume)[0], pixels[0])


def test_ome_tiff_images_side_by_side(pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    """Two images of their own are not one set; one of them can be chosen."""
    folder = tmp_path / "images"
    folder.mkdir()
    tifffile.imwrite(folder / "a.ome.tif", pixels, metadata={"axes": "ZYX", **OME})
    (folder / "b.ome.tif").write_bytes((folder / "a.ome.tif").read_bytes())
    refused(DataError, "b.ome.tif does not belong to", folder, tmp_path / "a.zarr")
    volume = convert(folder, tmp_path / "a.zarr", planes="a*")
    np.testing.assert_array_equal(whole(volume), pixels)


def test_an_ome_zarr_is_rewritten(pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    both = np.stack([pixels, pixels // 2])
    write_volume(tmp_path / "old.zarr", both, VOXEL, zarr_format=2, channel_names=["a", "b"])
    new = convert(tmp_path / "old.zarr", tmp_path / "new.zarr")
    assert (new.zarr_format, new.voxel_um, new.channel_names) == (3, VOXEL, ("a", "b"))
    np.testing.assert_array_equal(whole(new.with_channel(1)), pixels // 2)


# ---- bad input ----------------------------------------------------------------------------------


def refused(error: type[Exception], text: str, source: Path, dest: Path, voxel: Any = VOXEL) -> None:
    """The conversion fails with one sentence; `dest` stays as it was, and only a finished part may stay."""
    before = sorted(dest.parent.iterdir())
    with pytest.raises(error) as caught:
        convert(source, dest, voxel, chunks=(2, 16, 16), shards=(2, 16, 16))
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    part = dest.with_name(f".converting-{dest.name}")
    assert [path for path in sorted(dest.parent.iterdir()) if path != part] == before
    assert not part.exists() or len((part / "journal.jsonl").read_text().splitlines()) > 1


def test_missing_and_foreign_sources(tmp_path: Path) -> None:
    dest = tmp_path / "a.zarr"
    refused(NotFoundError, "does not exist", tmp_path / "nothing.tif", dest)
    (tmp_path / "empty").mkdir()
    refused(DataError, "holds no images", tmp_path / "empty", dest)
    (tmp_path / "text.tif").write_text("this is not a TIFF")
    refused(DataError, "is not a readable TIFF", tmp_path / "text.tif", dest)
    (tmp_path / "nothing.tif").write_bytes(b"")
    refused(DataError, "is not a readable TIFF", tmp_path / "nothing.tif", dest)
    (tmp_path / "a.npy").write_bytes(b"not numpy")
    refused(DataError, "NumPy array", tmp_path / "a.npy", dest)
    np.save(tmp_path / "b.npy", np.zeros((1, 2, 3, 4)))
    refused(DataError, "has 4 axes", tmp_path / "b.npy", dest)
    np.save(tmp_path / "c.npy", np.zeros((2, 3, 4), bool))
    refused(DataError, "type bool", tmp_path / "c.npy", dest)


def test_existing_destination_is_kept(pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    source = plain(tmp_path / "a.tif", pixels)
    convert(source, tmp_path / "a.zarr", VOXEL)
    refused(UsageError, "exists already", source, tmp_path / "a.zarr")
    changed = convert(plain(tmp_path / "b.tif", pixels + 1), tmp_path / "a.zarr", VOXEL, overwrite=True)
    np.testing.assert_array_equal(whole(changed), pixels + 1)


def test_voxel_size_must_be_known(pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    source = plain(tmp_path / "a.tif", pixels)
    refused(UsageError, "--voxel-size", source, tmp_path / "a.zarr", None)
    refused(UsageError, "three positive numbers", source, tmp_path / "a.zarr", (1, 2))
    refused(UsageError, "three positive numbers", source, tmp_path / "a.zarr", (1, 2, -3))


def test_sections_of_different_size_or_type(pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    for name, odd in (("size", pixels[7, :-1]), ("type", pixels[7].astype("f4"))):
        folder = series(tmp_path / name, pixels)
        tifffile.imwrite(folder / "brain_7.tif", odd)
        refused(DataError, "plane 7 is", folder, tmp_path / "a.zarr")
    mixed = pages(tmp_path / "mixed.tif", [*pixels[:3], pixels[3, :-2]])  # type: ignore[arg-type]
    refused(DataError, "pages of different kinds", mixed, tmp_path / "a.zarr")


def test_unreadable_sections(pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    folder = series(tmp_path / "sections", pixels)
    (folder / "brain_9.tif").write_bytes(b"damaged")
    refused(DataError, "brain_9.tif cannot be read", folder, tmp_path / "a.zarr")
    tifffile.imwrite(folder / "brain_9.tif", pixels[:2])
    refused(DataError, "brain_9.tif holds 2 pages", folder, tmp_path / "a.zarr")
    tifffile.imwrite(folder / "brain_9.tif", pixels[9])
    (folder / "brain_6.tif").write_bytes((folder / "brain_6.tif").read_bytes()[:-200])
    refused(DataError, "brain_6.tif is truncated", folder, tmp_path / "a.zarr")
    assert not (tmp_path / ".converting-a.zarr").exists(), "found before anything was written"
    stack = tmp_path / "stacks"
    stack.mkdir()
    tifffile.imwrite(stack / "a.tif", pixels)
    tifffile.imwrite(stack / "b.tif", pixels)
    refused(DataError, "every file must be one plane", stack, tmp_path / "a.zarr")


@pytest.mark.parametrize("compression", [None, "deflate", "lzw"])
@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_truncated_tiff(
    compression: str | None, keep: float, pixels: NDArray[np.uint16], tmp_path: Path
) -> None:
    source = plain(tmp_path / "a.tif", pixels, compression=compression)
    source.write_bytes(source.read_bytes()[: int(source.stat().st_size * keep)])
    refused(DataError, str(source), source, tmp_path / "a.zarr")


def test_damaged_page(pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    source = plain(tmp_path / "a.tif", pixels, compression="deflate")
    with tifffile.TiffFile(source) as tiff:
        offset = tiff.pages[4].dataoffsets[0]  # type: ignore[union-attr]
    with source.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 40)
    refused(DataError, "page 4 cannot be read", source, tmp_path / "a.zarr")


def test_unfit_images(pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    dest = tmp_path / "a.zarr"
    colour = plain(tmp_path / "rgb.tif", np.zeros((20, 30, 3), "u1"), photometric="rgb")
    refused(DataError, "colour image", colour, dest)
    movie = plain(tmp_path / "t.tif", pixels, imagej=True, metadata={"axes": "TYX"})
    refused(UsageError, "holds 11 timepoints: choose one of 0 to 10 with --timepoint", movie, dest)
    odd = plain(tmp_path / "q.tif", pixels.reshape(1, 11, 2, 15, 41))
    refused(DataError, "has axes", odd, dest)
    source = plain(tmp_path / "ok.tif", pixels)
    with pytest.raises(UsageError, match="2 channel names"):
        convert(source, dest, VOXEL, ["a", "b"])


@pytest.mark.parametrize(
    "harm", [lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:-9] + b"damage!!!")]
)
def test_what_was_written_is_compared(
    harm: Callable[[Path], Any], pixels: NDArray[np.uint16], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that loses or damages a file is noticed."""
    original = ShardWriter._encode

    def unsound(writer: ShardWriter, values: NDArray[Any], path: Path) -> int | None:
        value = original(writer, values, path)
        if path.name == "1":
            harm(path)
        return value

    monkeypatch.setattr(ShardWriter, "_encode", unsound)
    refused(
        DataError, "differs from what was written", plain(tmp_path / "a.tif", pixels), tmp_path / "a.zarr"
    )


def test_full_disk(pixels: NDArray[np.uint16], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said in one sentence; with room again the same command goes on."""
    original, room = shards._write_all, [20]

    def filling(file: Any, data: bytes) -> None:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(28, "No space left on device")
        original(file, data)

    source, dest = plain(tmp_path / "a.tif", pixels), tmp_path / "a.zarr"
    monkeypatch.setattr(shards, "_write_all", filling)
    with pytest.raises(DataError, match=r"a\.zarr cannot be written: No space left .* goes on from there"):
        convert(source, dest, VOXEL, chunks=(2, 16, 16), shards=(2, 16, 16))
    assert not dest.exists()
    room[0] = 10**6
    volume = convert(source, dest, VOXEL, chunks=(2, 16, 16), shards=(2, 16, 16))
    np.testing.assert_array_equal(whole(volume), pixels)


# ---- other formats ------------------------------------------------------------------------------


def test_other_formats_need_bioio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "brain.czi").write_text("this is not a TIFF")
    monkeypatch.setitem(sys.modules, "bioio", None)
    refused(MissingExtraError, "pip install", tmp_path / "brain.czi", tmp_path / "a.zarr")


def test_other_formats_through_bioio(
    pixels: NDArray[np.uint16], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = np.stack([pixels, pixels // 2])

    class Lazy:
        def __init__(self, plane: NDArray[Any]) -> None:
            self.plane = plane

        def compute(self, scheduler: str) -> NDArray[Any]:
            return self.plane

    class BioImage:
        def __init__(self, path: Path) -> None:
            if path.name == "damaged.czi":
                raise RuntimeError("no plug-in reads this")
            self.dims = SimpleNamespace(T=1, C=2, Z=11, Y=30, X=41)
            self.dtype, self.channel_names = pixels.dtype, ["auto", "cfos"]
            self.physical_pixel_sizes = SimpleNamespace(Z=5.0, Y=2.0, X=1.5)

        def get_image_dask_data(self, order: str, T: int, C: int, Z: int) -> Lazy:
            return Lazy(both[C, Z])

    monkeypatch.setitem(sys.modules, "bioio", SimpleNamespace(BioImage=BioImage))
    for name in ("brain.czi", "damaged.czi"):
        (tmp_path / name).write_text("this is not a TIFF")
    volume = convert(tmp_path / "brain.czi", tmp_path / "a.zarr")
    assert (volume.voxel_um, volume.channel_names) == (VOXEL, ("auto", "cfos"))
    np.testing.assert_array_equal(whole(volume.with_channel(1)), both[1])
    refused(DataError, "no plug-in reads this", tmp_path / "damaged.czi", tmp_path / "b.zarr")
