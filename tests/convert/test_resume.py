"""A conversion that is stopped goes on where it was, to the same bytes; anything else is refused."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray

from brainmap.convert.convert import convert
from brainmap.convert.stacks import Stack
from brainmap.errors import DataError, UsageError
from brainmap.image.journal import ConversionJournal
from brainmap.image.pyramid import downsample
from brainmap.image.volume import Volume

ALL = slice(None)
VOXEL = (5.0, 2.0, 2.0)
LAYOUT: dict[str, Any] = {"chunks": (3, 32, 32), "shards": (3, 64, 64)}
SHAPE = (31, 290, 301)

# Waits after every slab, so that it can be killed between any two.
CHILD = """
import sys, time
from brainmap.convert.convert import convert
def slow(done, total):
    print(done, flush=True)
    time.sleep(0.05)
convert(sys.argv[1], sys.argv[2], (5, 2, 2), chunks=(3, 32, 32), shards=(3, 64, 64), on_progress=slow)
"""


class Stopped(Exception):
    """In place of a power failure."""


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint16]:
    values = np.random.default_rng(8).integers(0, 60000, SHAPE).astype(np.uint16)
    values[:7, :70] = 0
    return values


@pytest.fixture(scope="module")
def sections(pixels: NDArray[np.uint16], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "sections"
    folder.mkdir()
    for z, plane in enumerate(pixels):
        tifffile.imwrite(folder / f"z{z}.tif", plane)
    return folder


@pytest.fixture(scope="module")
def whole_digest(sections: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Every file of the uninterrupted conversion."""
    dest = tmp_path_factory.mktemp("whole") / "brain.zarr"
    convert(sections, dest, VOXEL, **LAYOUT)
    return digest(dest)


def digest(folder: Path) -> dict[str, str]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def part_of(dest: Path) -> Path:
    return dest.with_name(f".converting-{dest.name}")


def stop_after(planes: int, source: Path, dest: Path, **options: Any) -> None:
    def stop(done: int, total: int) -> None:
        if done >= planes:
            raise Stopped

    with pytest.raises(Stopped):
        convert(source, dest, VOXEL, on_progress=stop, **{**LAYOUT, **options})
    assert not dest.exists()
    assert part_of(dest).exists()


def test_the_pyramid_is_the_mean_of_the_whole(
    pixels: NDArray[np.uint16], sections: Path, tmp_path: Path
) -> None:
    """Slab by slab equals the plain mean of the whole array, level after level."""
    volume = convert(sections, tmp_path / "brain.zarr", VOXEL, **LAYOUT)
    assert len(volume.levels) == 2
    wide = np.pad(pixels.astype(np.int64), ((0, 0), (0, 0), (0, 1)), mode="edge")
    mean = (wide.reshape(31, 145, 2, 151, 2).sum(axis=(2, 4)) + 2) // 4
    np.testing.assert_array_equal(volume.read(ALL, ALL, ALL, 0), pixels)
    np.testing.assert_array_equal(volume.read(ALL, ALL, ALL, 1), mean)
    for level, values in enumerate((pixels, mean)):
        by_zarr = zarr.open_array(tmp_path / "brain.zarr" / str(level), mode="r")
        np.testing.assert_array_equal(by_zarr[:], values)


@pytest.mark.parametrize("planes", [3, 6, 15, 30])
def test_stopped_and_resumed_gives_the_same_bytes(
    planes: int,
    sections: Path,
    whole_digest: dict[str, str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    dest = tmp_path / "brain.zarr"
    stop_after(planes, sections, dest)
    with caplog.at_level(logging.INFO):
        convert(sections, dest, VOXEL, **LAYOUT)
    assert f"going on after {planes} of 31 planes" in caplog.text
    assert digest(dest) == whole_digest
    assert [p.name for p in tmp_path.iterdir()] == ["brain.zarr"]


def test_coarser_levels_that_wait_are_made_again(
    pixels: NDArray[np.uint16], sections: Path, tmp_path: Path
) -> None:
    """Levels that halve z too, stopped where one, two and three of them wait for planes."""
    cubic: dict[str, Any] = {"chunks": (1, 64, 64), "shards": (1, 128, 128)}
    volume = convert(sections, tmp_path / "whole.zarr", (1, 1, 1), **cubic)
    np.testing.assert_array_equal(volume.read(ALL, ALL, ALL, 1), downsample(pixels, (2, 2, 2)))
    for planes in (6, 14, 30):
        dest = tmp_path / f"{planes}.zarr"

        def stop(done: int, total: int, planes: int = planes) -> None:
            if done == planes:
                raise Stopped

        with pytest.raises(Stopped):
            convert(sections, dest, (1, 1, 1), on_progress=stop, **cubic)
        convert(sections, dest, (1, 1, 1), **cubic)
        mine, theirs = digest(dest), digest(tmp_path / "whole.zarr")
        # The group tells the name of the image.
        del mine["zarr.json"], theirs["zarr.json"]
        assert mine == theirs


def test_stopped_between_levels(
    sections: Path, whole_digest: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Level 0 is written and noted, the coarser planes made of it are not; and again on the way back."""
    dest = tmp_path / "brain.zarr"
    original, calls = ConversionJournal.record, [0]

    def record(journal: ConversionJournal, level: int, *rest: Any) -> None:
        calls[0] += 1
        if level == 1 and calls[0] in (6, 9):
            raise Stopped
        original(journal, level, *rest)

    monkeypatch.setattr(ConversionJournal, "record", record)
    for _ in range(2):
        with pytest.raises(Stopped):
            convert(sections, dest, VOXEL, **LAYOUT)
    convert(sections, dest, VOXEL, **LAYOUT)
    assert digest(dest) == whole_digest


def test_killed_and_run_again(sections: Path, whole_digest: dict[str, str], tmp_path: Path) -> None:
    """kill -9, three times, at moments of its own choice."""
    dest = tmp_path / "brain.zarr"
    for lines in (1, 2, 3):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(sections), str(dest)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        for _ in range(lines):
            child.stdout.readline()
        time.sleep(0.01 * lines)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        assert not dest.exists()
    seen: list[int] = []
    convert(sections, dest, VOXEL, on_progress=lambda done, total: seen.append(done), **LAYOUT)
    assert seen[0] > 6, "what the killed processes had finished was not done again"
    assert digest(dest) == whole_digest
    assert [p.name for p in tmp_path.iterdir()] == ["brain.zarr"]


def test_finished_planes_are_not_read_again(
    sections: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dest = tmp_path / "brain.zarr"
    stop_after(15, sections, dest)
    original, read = Stack.read, []

    def noted(stack: Stack, start: int, stop: int, pool: Any) -> NDArray[Any]:
        read.append(start)
        return original(stack, start, stop, pool)

    monkeypatch.setattr(Stack, "read", noted)
    convert(sections, dest, VOXEL, **LAYOUT)
    assert min(read) == 15


@pytest.mark.parametrize(
    "options",
    [{"voxel_um": (5, 2, 3)}, {"chunks": (3, 64, 64)}, {"orientation": "asr"}, {"channel_names": ["a"]}],
)
def test_other_settings_are_refused(options: dict[str, Any], sections: Path, tmp_path: Path) -> None:
    dest = tmp_path / "brain.zarr"
    stop_after(6, sections, dest)
    given = {"voxel_um": VOXEL, **LAYOUT, **options}
    with pytest.raises(UsageError, match=f"{next(iter(options))} was .*, is now .*--overwrite"):
        convert(sections, dest, **given)
    assert part_of(dest).exists()
    volume = convert(sections, dest, overwrite=True, **given)
    assert volume.voxel_um == given["voxel_um"]
    assert [p.name for p in tmp_path.iterdir()] == ["brain.zarr"]


def test_another_source_is_refused(pixels: NDArray[np.uint16], tmp_path: Path) -> None:
    sources = [tmp_path / name for name in ("a.tif", "b.tif")]
    for i, source in enumerate(sources):
        tifffile.imwrite(source, pixels + i)
    dest = tmp_path / "brain.zarr"
    stop_after(6, sources[0], dest)
    with pytest.raises(UsageError, match="another source"):
        convert(sources[1], dest, VOXEL, **LAYOUT)
    tifffile.imwrite(sources[0], pixels + 2)
    with pytest.raises(UsageError, match="files of planes 0:3 have changed"):
        convert(sources[0], dest, VOXEL, **LAYOUT)
    volume = convert(sources[0], dest, VOXEL, overwrite=True, **LAYOUT)
    np.testing.assert_array_equal(volume.read(ALL, ALL, ALL), pixels + 2)


def test_a_section_mended_later_does_not_cost_the_finished_part(
    pixels: NDArray[np.uint16], tmp_path: Path
) -> None:
    folder, dest = tmp_path / "sections", tmp_path / "brain.zarr"
    folder.mkdir()
    for z, plane in enumerate(pixels):
        tifffile.imwrite(folder / f"z{z}.tif", plane, compression="deflate")
    sound = (folder / "z20.tif").read_bytes()
    with tifffile.TiffFile(folder / "z20.tif") as tiff:
        offset = tiff.pages.first.dataoffsets[0]
    (folder / "z20.tif").write_bytes(sound[:offset] + b"\xff" * 40 + sound[offset + 40 :])
    with pytest.raises(DataError, match=r"z20\.tif cannot be read"):
        convert(folder, dest, VOXEL, **LAYOUT)
    (folder / "z20.tif").write_bytes(sound)
    seen: list[int] = []
    volume = convert(folder, dest, VOXEL, on_progress=lambda done, total: seen.append(done), **LAYOUT)
    assert seen[0] > 15
    np.testing.assert_array_equal(volume.read(ALL, ALL, ALL), pixels)


def test_a_torn_journal_line_is_ignored(sections: Path, whole_digest: dict[str, str], tmp_path: Path) -> None:
    dest = tmp_path / "brain.zarr"
    stop_after(9, sections, dest)
    journal = part_of(dest) / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:25])
    convert(sections, dest, VOXEL, **LAYOUT)
    assert digest(dest) == whole_digest


def test_a_finished_file_that_changed_is_noticed(sections: Path, tmp_path: Path) -> None:
    dest = tmp_path / "brain.zarr"
    stop_after(9, sections, dest)
    record = json.loads((part_of(dest) / "journal.jsonl").read_text().splitlines()[1])
    name = next(name for name, value in record["files"].items() if value is not None)
    path = part_of(dest) / "image.zarr" / "0" / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="was changed since the conversion stopped"):
        convert(sections, dest, VOXEL, **LAYOUT)


def test_two_processes_do_not_write_one_image(sections: Path, tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    dest = tmp_path / "brain.zarr"

    def meanwhile(done: int, total: int) -> None:
        with pytest.raises(UsageError, match=r"brain.zarr is in use by .*process"):
            convert(sections, dest, VOXEL, **LAYOUT)

    convert(sections, dest, VOXEL, on_progress=meanwhile, **LAYOUT)
    assert Volume.open(dest).shape == SHAPE


def test_the_old_image_stays_until_the_new_one_is_complete(
    pixels: NDArray[np.uint16], sections: Path, tmp_path: Path
) -> None:
    dest = tmp_path / "brain.zarr"
    convert(sections, dest, VOXEL, **LAYOUT)
    before = digest(dest)
    other = tmp_path / "other.tif"
    tifffile.imwrite(other, pixels // 2)

    def stop(done: int, total: int) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        convert(other, dest, VOXEL, overwrite=True, on_progress=stop, **LAYOUT)
    assert digest(dest) == before
    seen: list[int] = []
    options = {**LAYOUT, "overwrite": True}
    volume = convert(other, dest, VOXEL, on_progress=lambda done, total: seen.append(done), **options)
    assert seen[0] == 6, "with --overwrite too the same command goes on"
    np.testing.assert_array_equal(volume.read(ALL, ALL, ALL), pixels // 2)
