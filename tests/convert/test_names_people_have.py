"""Names of planes as microscopes, stitchers and people write them, with the right answer to each."""

from __future__ import annotations

from pathlib import Path

import pytest

from brainmap.convert.plane_names import matching, planes_of
from brainmap.errors import DataError

Z = range(12)

ONE_SERIES = {
    "UltraMicroscope": [f"10-30-26_Brain 1_UltraII[00 x 00]_C00_xyz-Table Z{z:04d}.ome.tif" for z in Z],
    "ClearMap": [f"Z{z:04d}.tif" for z in range(1, 13)],
    "TeraStitcher, tenths of um": [f"000000_000000_{z * 50:06d}.tif" for z in Z],
    "TeraStitcher, with an offset": [f"-012340_044210_{z * 40 - 120:+07d}.tif" for z in Z],
    "SmartSPIM, tenths of um": [f"{z * 20:06d}.tif" for z in Z],
    "SmartSPIM, below zero": [f"{'-' if z < 3 else ''}{abs(z - 3) * 20:06d}.tif" for z in Z],
    "zeros lost halfway": [f"img{z:03d}.tif" if z % 2 else f"img{z}.tif" for z in Z],
    "of how many": [f"section {z + 1} of 12.tif" for z in Z],
    "a clock that passes the minute": [
        f"2026-11-05 14.{30 + (z * 7 + 40) // 60}.{(z * 7 + 40) % 60:02d}_z{z:04d}.tif" for z in Z
    ],
    "a clock without points": [
        f"20261105_14{30 + (z * 7 + 40) // 60}{(z * 7 + 40) % 60:02d}_{z:04d}.tif" for z in Z
    ],
    "a clock of nanoseconds": [f"{1700000000123456789 + 33 * z}.tif" for z in Z],
    "a run number before the point": [f"scan.2.{z:04d}.tif" for z in Z],
    "a version and a magnification": [f"brain_v2_3.6x_z{z:03d}.tif" for z in Z],
    "micrometres with a sign and a letter": [f"stack_Z{z * 2.5 - 10:+.1f}µm.tif" for z in Z],
    "micrometres, minus only": [f"z{z * 2.5 - 10:.1f}.tif" for z in Z],
    "thirds of a micrometre": [f"z_{z / 3:.2f}.tif" for z in Z],
    "from a number on": [f"B7_{z:05d}.TIF" for z in range(997, 1009)],
    "one channel of several": [f"brain_T0_C1_Z{z:03d}.tif" for z in Z],
    "two planes": ["a1.tif", "a2.tif"],
}

CHANNELS = {
    "UltraMicroscope": ("12-01_UltraII[00 x 00]_{c}_xyz-Table Z{z:04d}.ome.tif", ("C00", "C01")),
    "Imaris": ("brain_T0_{c}_Z{z:03d}.tif", ("C0", "C1")),
    "Leica": ("Project_Series001_z{z:02d}_{c}.tif", ("ch00", "ch01")),
    "Zeiss": ("Subset-01_z{z:03d}{c}_ORG.tif", ("c1", "c2")),
    "Olympus": ("s_{c}Z{z:03d}.tif", ("C001", "C002")),
    "Micro-Manager": (
        "img_{c}_position000_time000000000_z{z:03d}.tif",
        ("channel000", "channel001"),
    ),
    "Micro-Manager of old": ("img_000000000_{c}_{z:03d}.tif", ("Cy5", "DAPI")),
    "MetaMorph": ("exp_{c}_z{z}.TIF", ("w1GFP", "w2mCherry")),
    "BigStitcher": ("fused_tp_0_{c}_z_{z}.tif", ("ch_0", "ch_1")),
    "two numbers a channel": ("{c}_{z:06d}.tif", ("Ex_488_Em_525", "Ex_561_Em_600")),
    "markers with digits": ("{z:03d}_{c}.tif", ("ch1-NeuN", "ch2-cFos")),
}

REFUSED = {
    "tiles": ([f"UltraII[00 x {t:02d}]_C00_Z{z:04d}.tif" for t in (0, 1) for z in Z], "2 numbers vary"),
    "Windows' copy": ([*(f"z{z}.tif" for z in Z), "z3 - Copy.tif"], r"z3 - Copy\.tif"),
    "a browser's copy": ([*(f"z{z}.tif" for z in Z), "z3(1).tif"], r"z3\(1\)\.tif"),
    "a Mac's copy": ([*(f"z{z:03d}.tif" for z in Z), "z003 2.tif"], r"z003 2\.tif"),
    "all copied": ([f"z{z}{copy}.tif" for z in Z for copy in ("", " copy")], "z0 copy"),
    "all twice, by ending": ([f"z{z}.{ending}" for z in Z for ending in ("tif", "tiff")], "same number"),
    "a projection": ([*(f"z{z:03d}.tif" for z in Z), "AVG_z000-011.tif"], r"AVG_z000-011\.tif"),
    "a thumbnail": ([*(f"brain_{z:03d}.tif" for z in Z), "brain_thumb.tif"], r"brain_thumb\.tif"),
    "a second scan": ([f"scan{s}_{z:04d}.tif" for s in (1, 2) for z in Z], "2 numbers vary.*--planes"),
    "a gap among thirds": ([f"z_{z / 3:.2f}.tif" for z in Z if z != 5], r"1\.6[67].*missing.*--allow-gaps"),
    "a gap among tens": ([f"{z * 20:06d}.tif" for z in Z if z not in (4, 5)], r"80, 100.*missing"),
    "a channel every other plane": (
        [f"z{z}_{c}.tif" for z in Z for c in ("GFP", "DAPI") if c == "GFP" or z % 2 == 0],
        "GFP|DAPI",
    ),
    "times": ([f"brain_t{t}_z{z:02d}.tif" for t in (0, 1, 2) for z in Z], "2 numbers vary"),
}


@pytest.mark.parametrize("kind", ONE_SERIES)
def test_one_series(kind: str) -> None:
    names = ONE_SERIES[kind]
    planes = planes_of([Path(name) for name in sorted(names, key=lambda n: n[::-1])], "folder")
    assert planes.channel_names is None
    assert [file and file.name for file in planes.files[0]] == names


@pytest.mark.parametrize("kind", CHANNELS)
def test_channels(kind: str) -> None:
    name, words = CHANNELS[kind]
    planes = planes_of([Path(name.format(c=c, z=z)) for z in Z for c in words], "folder")
    assert planes.channel_names is not None and len(planes.channel_names) == 2
    for word, channel, found in zip(words, planes.channel_names, planes.files, strict=True):
        assert [file and file.name for file in found] == [name.format(c=word, z=z) for z in Z]
        told, plain = channel.lower().replace("_", ""), word.lower().replace("_", "")
        assert told in plain or plain in told


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_in_a_sentence(kind: str) -> None:
    names, sentence = REFUSED[kind]
    with pytest.raises(DataError, match=sentence):
        planes_of([Path(name) for name in names], "folder")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("z#_*.tif", [f"z{z:04d}_{hash(z * 7919) % 4096:03x}.tif" for z in Z]),
        ("*_#.tif", [f"{'qwertyuiopas'[z]}{9 - z % 4}_{z}.tif" for z in Z]),
        ("z#*.tif", [*(f"z{z}.tif" for z in range(5)), *(f"z{z}_rescanned.tif" for z in range(5, 12))]),
    ],
)
def test_a_pattern_with_one_number_tells_which_counts(pattern: str, names: list[str]) -> None:
    """Where the rest of the names is of no use, the owner says where the plane's number is."""
    files = matching([Path(name) for name in names], pattern, "folder")
    (found,) = planes_of(files, "folder", pattern=pattern).files
    assert [file and file.name for file in found] == names
    with pytest.raises(DataError, match="missing"):
        planes_of(files[:4] + files[6:], "folder", pattern=pattern)
    with pytest.raises(DataError, match=r"same number|different names"):
        planes_of([*files, Path(names[0].replace(".tif", "x.tif"))], "folder", pattern=pattern[:-4] + "*.tif")
