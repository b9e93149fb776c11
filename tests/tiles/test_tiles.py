"""Tile folders: round trip, what is refused, import of plain pictures, holding out whole slices."""

from __future__ import annotations

import logging
from pathlib import Path

import imagecodecs
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import tifffile
from numpy.typing import NDArray

from brainmap.errors import DataError, NotFoundError, UsageError
from brainmap.image.intensity import BACKGROUND_VALUE, Intensity
from brainmap.tiles.tiles import QualityRule, Tiles, hold_out, import_tiles, quality_filter, write_tiles
from brainmap.train.learn.samples import ArraySource

VOXEL = (5.0, 1.0, 1.0)


def columns(n: int, brains: list[str] | None = None) -> dict[str, object]:
    return {
        "image_id": [f"{i:04d}" for i in range(n)],
        "brain": brains or ["mouse"] * n,
        "z": list(range(n)),
        "voxel_um": [VOXEL] * n,
    }


def images(n: int) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (20, 30 + i)).astype(np.float32) / 255 for i in range(n)]


def section(shape: tuple[int, int] = (160, 200), seed: int = 0) -> NDArray[np.uint16]:
    rng = np.random.default_rng(seed)
    grey = rng.normal(1000, 30, shape) + np.linspace(0, 300, shape[1])
    grey[40:50, 60:70] += 900
    return grey.astype(np.uint16)


def test_round_trip(tmp_path: Path) -> None:
    given = {
        **columns(3),
        "region_id": [315, 2**40, 0],
        "is_qc": [True, False, False],
        "note": ["a", "b", "c"],
    }
    written = write_tiles(tmp_path / "t", given, images(3))
    tiles = Tiles.open(tmp_path / "t")
    assert len(tiles) == 3 and list(tiles.ids) == ["0000", "0001", "0002"]
    for index, image in enumerate(images(3)):
        np.testing.assert_array_equal(tiles.image(index), image)
        assert tiles.image(index).dtype == np.float32
    for name, values in written.columns.items():
        np.testing.assert_array_equal(tiles.columns[name], values)
    assert tiles.columns["region_id"].dtype == np.int64 and tiles.columns["region_id"][1] == 2**40
    assert tiles.columns["voxel_um"].shape == (3, 3)
    np.testing.assert_array_equal(tiles.shapes, [[20, 30], [20, 31], [20, 32]])
    assert list(tiles.columns["split"]) == [""] * 3 and not tiles.columns["is_qc"][1]


def test_image_is_eight_bit_grey(tmp_path: Path) -> None:
    write_tiles(tmp_path / "t", columns(1), [np.full((4, 5), 0.5, np.float32)])
    grey = imagecodecs.png_decode((tmp_path / "t/images/0000.png").read_bytes())
    assert grey.dtype == np.uint8 and (grey == 128).all()


def test_ids_with_a_slash_become_folders(tmp_path: Path) -> None:
    write_tiles(tmp_path / "t", {**columns(1), "image_id": ["a/b"]}, images(1))
    assert (tmp_path / "t/images/a/b.png").is_file()
    assert Tiles.open(tmp_path / "t").image(0).shape == (20, 30)


def test_take_keeps_order_and_files(tmp_path: Path) -> None:
    tiles = write_tiles(tmp_path / "t", columns(3), images(3))
    two = tiles.take(np.array([2, 0]))
    assert list(two.ids) == ["0002", "0000"] and two.image(0).shape == (20, 32)
    assert len(tiles.take(np.array([False, True, False]))) == 1


def test_replaces_only_tile_folders(tmp_path: Path) -> None:
    write_tiles(tmp_path / "t", columns(2), images(2))
    assert len(write_tiles(tmp_path / "t", columns(1), images(1))) == 1
    assert len(Tiles.open(tmp_path / "t")) == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other/work.txt").write_text("mine")
    with pytest.raises(UsageError, match="no tile folder"):
        write_tiles(tmp_path / "other", columns(1), images(1))
    assert (tmp_path / "other/work.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": ["a", "a"]}, "more than one tile"),
        ({"image_id": ["..", "b"]}, "file name"),
        ({"image_id": []}, "no tiles"),
        ({"voxel_um": [(1, 1), (1, 1)]}, "voxel_um"),
        ({"voxel_um": [(1, 0, 1), (1, 1, 1)]}, "voxel_um"),
        ({"z": ["deep", "deeper"]}, "column z"),
        ({"brain": ["one"]}, "brain has 1 values for 2"),
    ],
)
def test_bad_columns(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        write_tiles(tmp_path / "t", {**columns(2), **change}, images(2))
    assert not (tmp_path / "t").exists() and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "bad", [np.full((3, 3), 1.5), np.full((3, 3), np.nan), np.zeros((3, 3, 3)), np.zeros((0, 3))]
)
def test_bad_images_leave_nothing(tmp_path: Path, bad: NDArray[np.float64]) -> None:
    with pytest.raises(DataError, match="0000"):
        write_tiles(tmp_path / "t", columns(1), [bad.astype(np.float32)])
    assert not list(tmp_path.iterdir())


def test_open_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no tiles\.parquet"):
        Tiles.open(tmp_path)
    write_tiles(tmp_path / "t", columns(2), images(2))
    (tmp_path / "t/images/0001.png").unlink()
    with pytest.raises(NotFoundError, match=r"1 of 2 images are missing.*0001"):
        Tiles.open(tmp_path / "t")
    pa.parquet.write_table(pa.table({"image_id": ["a"]}), tmp_path / "t/tiles.parquet")
    with pytest.raises(DataError, match="no column 'brain'"):
        Tiles.open(tmp_path / "t")
    (tmp_path / "t/tiles.parquet").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="cannot be read"):
        Tiles.open(tmp_path / "t")


def test_an_image_of_another_size_is_refused(tmp_path: Path) -> None:
    tiles = write_tiles(tmp_path / "t", columns(1), images(1))
    tiles.image_path("0000").write_bytes(imagecodecs.png_encode(np.zeros((5, 5), np.uint8)))
    with pytest.raises(DataError, match=r"\(5, 5\).*\(20, 30\)"):
        tiles.image(0)
    tiles.image_path("0000").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="cannot be read"):
        tiles.image(0)


def test_hold_out_keeps_slices_together(tmp_path: Path) -> None:
    brains = [f"b{i // 4}" for i in range(40)]
    tiles = write_tiles(
        tmp_path / "t", {**columns(40, brains), "z": [i // 2 % 2 for i in range(40)]}, images(40)
    )
    for share in (0.01, 0.3, 0.5, 0.99):
        held = hold_out(tiles, share, seed=3)
        assert not set(tiles.slice_key[held]) & set(tiles.slice_key[~held])
        assert held.any() and not held.all()
        assert abs(held.mean() - share) <= 0.05
    np.testing.assert_array_equal(hold_out(tiles, 0.3, 3), hold_out(tiles, 0.3, 3))
    assert (hold_out(tiles, 0.3, 3) != hold_out(tiles, 0.3, 4)).any()


def test_hold_out_refuses(tmp_path: Path) -> None:
    tiles = write_tiles(tmp_path / "t", {**columns(2), "z": [7, 7]}, images(2))
    with pytest.raises(DataError, match="one slice"):
        hold_out(tiles, 0.5, 0)
    with pytest.raises(UsageError, match="share"):
        hold_out(tiles, 1.0, 0)


def test_import_normalises_as_detection_does(tmp_path: Path) -> None:
    grey = section()
    tifffile.imwrite(tmp_path / "s1.tif", grey)
    tiles = import_tiles([tmp_path / "s1.tif"], tmp_path / "t", voxel_um=VOXEL, cell_diameter_um=10)
    intensity = Intensity.fit(ArraySource(grey[None], VOXEL), 10)
    expected = intensity.normalise(grey[None], np.zeros(1), np.arange(160.0), np.arange(200.0))[0]
    assert np.abs(tiles.image(0) - expected).max() <= 0.5 / 255 + 1e-6
    assert abs(np.median(tiles.image(0)) - BACKGROUND_VALUE) < 0.05
    assert tiles.image(0)[42:48, 62:68].min() > BACKGROUND_VALUE + 0.2
    assert list(tiles.slice_key) == ["s1/0"]


def test_import_cuts_tiles(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", section())
    tifffile.imwrite(tmp_path / "b.tif", section(seed=1))
    files = [tmp_path / "a.tif", tmp_path / "b.tif"]
    whole = import_tiles(files, tmp_path / "whole", voxel_um=VOXEL)
    tiles = import_tiles(files, tmp_path / "cut", voxel_um=VOXEL, tile_px=64)
    assert len(tiles) == 2 * 2 * 3
    for index in range(len(tiles)):
        y, x = tiles.columns["y0"][index], tiles.columns["x0"][index]
        source = whole.image(int(tiles.columns["brain"][index] == "b"))
        np.testing.assert_array_equal(tiles.image(index), source[y : y + 64, x : x + 64])
    held = hold_out(tiles, 0.5, 0)
    assert held.sum() == 6 and len(set(tiles.columns["brain"][held])) == 1


def test_import_of_kinds_of_pictures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    grey = (section() / 10).astype(np.uint8)
    (tmp_path / "grey.png").write_bytes(imagecodecs.png_encode(grey))
    (tmp_path / "deep.png").write_bytes(imagecodecs.png_encode(section()))
    (tmp_path / "photo.jpg").write_bytes(imagecodecs.jpeg_encode(grey))
    colour = np.stack([np.full_like(grey, 255), np.zeros_like(grey), grey], axis=2)
    (tmp_path / "colour.png").write_bytes(imagecodecs.png_encode(colour))
    files = [tmp_path / name for name in ("grey.png", "deep.png", "photo.jpg", "colour.png")]
    with caplog.at_level(logging.WARNING, "brainmap"):
        tiles = import_tiles(files, tmp_path / "t", voxel_um=VOXEL, normalise=False)
    assert "colour.png is a colour image" in caplog.text
    np.testing.assert_array_equal(tiles.image(0), grey.astype(np.float32) / 255)
    assert np.abs(tiles.image(1) - section() / 65535).max() <= 0.5 / 255 + 1e-6
    assert np.abs(tiles.image(3) - (0.299 + 0.114 * grey / 255)).max() <= 0.5 / 255 + 1e-6


def test_import_refuses(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", section())
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((9, 20, 20), np.uint8))
    tifffile.imwrite(tmp_path / "float.tif", np.full((20, 20), 7, np.float32))
    tifffile.imwrite(tmp_path / "flat.tif", np.full((50, 50), 7, np.uint8))
    (tmp_path / "broken.png").write_bytes(b"nonsense")
    (tmp_path / "twin").mkdir()
    tifffile.imwrite(tmp_path / "twin/a.tif", section())

    def attempt(*names: str, error: type[Exception], match: str, **options: object) -> None:
        settings = {"voxel_um": VOXEL, **options}
        with pytest.raises(error, match=match):
            import_tiles([tmp_path / n for n in names], tmp_path / "t", **settings)  # type: ignore[arg-type]
        assert not (tmp_path / "t").exists()

    attempt("missing.tif", error=NotFoundError, match="no file")
    attempt("broken.png", error=DataError, match="cannot be read as an image")
    attempt("stack.tif", error=DataError, match=r"shape \(9, 20, 20\)")
    attempt("float.tif", error=DataError, match="outside 0..1", normalise=False)
    attempt("flat.tif", error=DataError, match=r"flat\.tif.*one grey level")
    attempt("a.tif", "twin/a.tif", error=DataError, match="more than one tile")
    attempt("a.tif", error=DataError, match="smaller than a tile", tile_px=170)
    attempt("a.tif", error=UsageError, match="voxel size", voxel_um=(1, 0, 1))
    attempt("a.tif", error=UsageError, match="tile size", tile_px=0)
    attempt(error=UsageError, match="no images")
    attempt("a.tif", error=DataError, match="quality", quality=QualityRule(least_deviation=0.9))


def test_quality_filter() -> None:
    rng = np.random.default_rng(0)
    good = rng.uniform(0, 1, (50, 50)).astype(np.float32)
    assert quality_filter(good) == ()
    dark = good.copy()
    dark[:30] = 0.05
    assert quality_filter(dark) == ("background",)
    assert quality_filter(np.full((50, 50), 0.5, np.float32)) == ("flat", "dim")
    assert quality_filter(good * 0.8) == ("dim",)
    # The limits themselves (methods 2): half the pixels in bins 0..13 is too much, bin 53 is bright.
    half = np.tile(np.array([13.5 / 64, 53.01 / 64], np.float32), (10, 5))
    assert quality_filter(half) == ("background",)
    assert quality_filter(np.where(half < 0.5, 14.01 / 64, half)) == ()


def test_import_leaves_out_rejected_tiles(tmp_path: Path) -> None:
    grey = section((128, 128))
    grey[:64, :64] = np.random.default_rng(1).integers(0, 60000, (64, 64))
    tifffile.imwrite(tmp_path / "a.tif", grey)
    tiles = import_tiles(
        [tmp_path / "a.tif"],
        tmp_path / "t",
        voxel_um=VOXEL,
        tile_px=64,
        normalise=False,
        quality=QualityRule(),
    )
    assert list(tiles.ids) == ["a_y00000_x00000"]


def test_real_sections(brainmap_data: Path, tmp_path: Path) -> None:
    files = sorted((brainmap_data / "sections/cfos/images").glob("*.png"))[:2]
    tiles = import_tiles(files, tmp_path / "t", voxel_um=(30, 0.67, 0.67), tile_px=512)
    assert len(tiles) == 8
    middle = [np.median(tiles.image(i)) for i in range(8)]
    assert max(abs(m - BACKGROUND_VALUE) for m in middle) < 0.05
