"""The box that holds data, and a part of an image as a volume of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from brainmap.image.data_box import data_box
from brainmap.image.volume import Volume, write_volume

SHAPE = (20, 70, 90)
BOXES = [
    ((0, 20), (0, 70), (0, 90)),
    ((3, 17), (0, 70), (0, 90)),
    ((0, 20), (31, 40), (64, 90)),
    ((7, 8), (69, 70), (0, 1)),
    ((1, 20), (16, 64), (15, 65)),
]


def padded(box: tuple[tuple[int, int], ...], outside: float = 0, dtype: str = "f4") -> np.ndarray:
    values = np.full(SHAPE, outside, dtype)
    inner = tuple(slice(*span) for span in box)
    values[inner] = np.random.default_rng(2).integers(0, 3, SHAPE)[inner]
    for axis, span in enumerate(box):
        # Every outermost plane of the box holds something.
        for edge in (span[0], span[1] - 1):
            place = [s[0] for s in box]
            place[axis] = edge
            values[tuple(place)] = 5
    return values


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize(
    ("outside", "dtype"), [(0, "u2"), (0, "f4"), (np.nan, "f4"), (np.inf, "f4"), (0, "i2")]
)
def test_box(box: tuple[tuple[int, int], ...], outside: float, dtype: str, tmp_path: Path) -> None:
    volume = write_volume(
        tmp_path / "a.zarr", padded(box, outside, dtype), (5, 2, 2), chunks=(4, 16, 16), shards=None
    )
    assert data_box(volume) == box


def test_nothing_at_all_is_the_whole(tmp_path: Path) -> None:
    volume = write_volume(tmp_path / "a.zarr", np.zeros(SHAPE, "u2"), (5, 2, 2), chunks=(4, 16, 16))
    assert data_box(volume) == tuple((0, n) for n in SHAPE)


def test_what_cannot_be_read_counts_as_data(tmp_path: Path) -> None:
    volume = write_volume(
        tmp_path / "a.zarr", padded(BOXES[4]), (5, 2, 2), chunks=(4, 16, 16), levels=1, zarr_format=2
    )
    chunk = next(
        path for path in (tmp_path / "a.zarr" / "0").rglob("*") if path.is_file() and path.name == "1"
    )
    chunk.write_bytes(b"damaged")
    (start, stop), *_ = data_box(volume)
    assert 0 <= start < stop <= 20


@pytest.mark.parametrize("box", BOXES)
def test_a_part_reads_as_the_whole_does(box: tuple[tuple[int, int], ...], tmp_path: Path) -> None:
    values = padded(BOXES[0])
    volume = write_volume(tmp_path / "a.zarr", values, (5, 2, 2), chunks=(4, 16, 16), levels=3)
    part = volume.cropped(box)
    assert part.shape == tuple(b - a for a, b in box)
    assert part.offset == tuple(a for a, _ in box)
    assert part.origin_um == tuple(a * v for (a, _), v in zip(box, volume.voxel_um, strict=True))
    everything = slice(None)
    np.testing.assert_array_equal(
        part.read(everything, everything, everything), values[tuple(slice(*s) for s in box)]
    )
    for number, level in enumerate(part.levels[1:], start=1):
        inner = part.read(everything, everything, everything, level=number)
        # The same place in um holds the same value.
        whole = volume.levels[number]
        first = [
            round((o - w) / v)
            for o, w, v in zip(level.origin_um, whole.origin_um, whole.voxel_um, strict=True)
        ]
        there = volume.read(*(slice(f, f + n) for f, n in zip(first, inner.shape, strict=True)), level=number)
        np.testing.assert_array_equal(inner, there)
    assert part.fingerprint() != volume.fingerprint() or box == BOXES[0]
    again = part.cropped(((0, 1), (0, 1), (0, 1)))
    assert again.offset == part.offset


def test_the_cases(cases: Path) -> None:
    assert data_box(Volume.open(cases / "tissue_in_zeros.zarr")) == ((0, 16), (70, 290), (70, 290))
    assert data_box(Volume.open(cases / "blank_end_slices.zarr")) == ((3, 29), (0, 320), (0, 320))
