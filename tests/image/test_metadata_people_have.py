"""Metadata as writers and people leave it, with the right answer to each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from brainmap.convert.convert import convert
from brainmap.errors import DataError, UsageError
from brainmap.image.units import um_per_unit
from brainmap.image.volume import Volume

VOXEL = (5.0, 2.0, 2.0)
ALL = slice(None)
PIXELS = np.random.default_rng(5).integers(1, 60000, (12, 20, 32)).astype(np.uint16)


@pytest.mark.parametrize(
    ("unit", "um"),
    [
        *((u, 1.0) for u in ("um", "µm", "μm", "micron", "Microns", "MICROMETER", "micrometers", "micrometres")),
        *((u, 1.0) for u in (" um ", "um.", "\\u00B5m", "Âµm", "u", "mic", "micro-meter", "µ", "UM", "micro meter")),
        *((u, 1e-3) for u in ("nm", "nanometers", "nanometres", "Nanometer")),
        *((u, 1e3) for u in ("mm", "millimeters", "millimetres", "Millimeter")),
        *((u, 1e4) for u in ("cm", "centimeters", "centimetre")),
        *((u, 1e6) for u in ("m", "meter", "metre", "meters")),
        *((u, 1e-4) for u in ("Å", "angstrom", "angstroms", "Ångström")),
        *((u, 25400.0) for u in ("in", "inch", "inches")),
        *((u, None) for u in ("pixel", "pixels", "px", "second", "s", "voxel", "null", "none", "", "?", "arbitrary")),
    ],
)  # fmt: skip
def test_units(unit: str, um: float | None) -> None:
    found = um_per_unit(unit)
    assert found == (um if um is None else pytest.approx(um))


def imagej(path: Path, resolution: Any = (0.5, 0.5), **metadata: Any) -> Path:
    tifffile.imwrite(path, PIXELS, imagej=True, resolution=resolution, metadata={"axes": "ZYX", **metadata})
    return path


IMAGEJ: dict[str, tuple[dict[str, Any], Any]] = {
    "micrometers": ({"spacing": 5.0, "unit": "micrometers"}, VOXEL),
    "in words, capitals": ({"spacing": 5.0, "unit": "Microns"}, VOXEL),
    "nanometres": ({"spacing": 5000.0, "unit": "nm", "resolution": (0.0005, 0.0005)}, VOXEL),
    "millimetres": ({"spacing": -0.005, "unit": "mm", "resolution": (500, 500)}, VOXEL),
    "coding gone wrong": ({"spacing": 5.0, "unit": "\\u00C2\\u00B5m"}, VOXEL),
    "y of its own": ({"spacing": 5.0, "unit": "um", "yunit": "nm", "resolution": (0.5, 0.0005)}, VOXEL),
    "all three of their own": (
        {"spacing": 0.005, "unit": "um", "yunit": "um", "zunit": "mm"},
        VOXEL,
    ),
    "not square": ({"spacing": 5.0, "unit": "um", "resolution": (0.5, 0.25)}, (5.0, 4.0, 2.0)),
    "pixels": ({"spacing": 5.0, "unit": "pixel"}, None),
    "a screen's dots an inch": ({"spacing": 1.0, "unit": "inch", "resolution": (72, 72)}, None),
    "a printer's dots an inch": ({"spacing": 1.0, "unit": "inch", "resolution": (300, 300)}, None),
    "no resolution": ({"spacing": 5.0, "unit": "um", "resolution": (0, 0)}, None),
    "depth in words": ({"spacing": "five", "unit": "um"}, None),
}


@pytest.mark.parametrize("kind", IMAGEJ)
def test_imagej(kind: str, tmp_path: Path) -> None:
    metadata, expected = IMAGEJ[kind]
    source = imagej(tmp_path / "a.tif", **metadata)
    if expected is None:
        with pytest.raises(UsageError, match="--voxel-size"):
            convert(source, tmp_path / "a.zarr")
        assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]
    else:
        assert convert(source, tmp_path / "a.zarr").voxel_um == pytest.approx(expected)


def axes_of(letters: str, unit: Any = "micrometer", **names: str) -> list[dict[str, Any]]:
    kinds = {"t": "time", "c": "channel"}
    return [
        {"name": names.get(a, a), "type": kinds.get(a, "space"), **({} if a in kinds else {"unit": unit})}
        for a in letters
    ]


def ngff(
    path: Path,
    data: Any,
    axes: Any,
    scale: Any = VOXEL,
    version: str = "0.4",
    levels: tuple[str, ...] = ("0",),
    **more: Any,
) -> Path:
    """An image whose metadata are as given; levels are every second voxel of y and x."""
    group = zarr.open_group(path, mode="w", zarr_format=2 if version < "0.5" else 3)
    datasets = []
    for number, name in enumerate(levels):
        part = np.ascontiguousarray(data[..., :: 2**number, :: 2**number])
        group.create_array(name, data=part, chunks=tuple(min(16, n) for n in part.shape))
        step = (
            [float(s) * (2**number if i >= len(scale) - 2 else 1) for i, s in enumerate(scale)]
            if scale
            else None
        )
        datasets.append(
            {"path": name, **({"coordinateTransformations": [{"type": "scale", "scale": step}]} if step else {})}
        )  # fmt: skip
    image = {"datasets": datasets, "version": version, **({"axes": axes} if axes else {}), **more}
    if version < "0.5":
        group.attrs["multiscales"] = [image]
    else:
        group.attrs["ome"] = {"version": version, "multiscales": [image]}
    return path


READ: dict[str, tuple[Any, ...]] = {
    "ngff-zarr": (PIXELS, axes_of("zyx"), VOXEL, "0.4", ("scale0/image", "scale1/image")),
    "capitals": (PIXELS, axes_of("zyx", z="Z", y="Y", x="X"), VOXEL),
    "one time, one channel": (PIXELS[None, None], axes_of("tczyx"), (0, 0, *VOXEL)),
    "channel after z": (PIXELS[:, None], axes_of("zcyx"), (VOXEL[0], 1, *VOXEL[1:])),
    "names alone": (PIXELS[None], ["c", "z", "y", "x"], (1, *VOXEL), "0.3"),
    "no types": (PIXELS, [{"name": a, "unit": "micrometer"} for a in "zyx"], VOXEL),
    "plural": (PIXELS, axes_of("zyx", "micrometers"), VOXEL),
    "millimetres": (PIXELS, axes_of("zyx", "millimeter"), (0.005, 0.002, 0.002)),
    "numbers as text": (PIXELS, axes_of("zyx"), ("5.0", "2.0", "2.0")),
    "zarr 3": (PIXELS[None], axes_of("czyx"), (1, *VOXEL), "0.5", ("s0", "s1")),
}


@pytest.mark.parametrize("kind", READ)
def test_images_that_are_read(kind: str, tmp_path: Path) -> None:
    volume = Volume.open(ngff(tmp_path / "a.zarr", *READ[kind]))
    assert (volume.shape, volume.voxel_um) == (PIXELS.shape, pytest.approx(VOXEL))
    np.testing.assert_array_equal(volume.read(ALL, ALL, ALL), PIXELS)


XYZ = PIXELS.transpose(2, 1, 0)
TOLD: dict[str, tuple[tuple[Any, ...], str, dict[str, Any]]] = {
    "webknossos": ((XYZ[None], axes_of("cxyz"), (1, 2, 2, 5)), "brainmap convert.*--axes cxyz", {"axes": "cxyz"}),
    "height and width": (
        (PIXELS, axes_of("zyx", z="depth", y="height", x="width")), "--axes", {"axes": "zyx", "voxel_um": VOXEL},
    ),
    "a channel called space": (
        (np.stack([PIXELS, PIXELS]), [{"name": "c", "type": "space"}, *axes_of("zyx")], (1, *VOXEL)),
        "--axes", {"axes": "czyx"},
    ),
    "pixels": ((PIXELS, axes_of("zyx", "pixel")), "--voxel-size", {"voxel_um": VOXEL}),
    "no scale": ((PIXELS, axes_of("zyx"), None), "--voxel-size", {"voxel_um": VOXEL}),
    "below zero": ((PIXELS, axes_of("zyx"), (5.0, -2.0, 2.0)), "--voxel-size", {"voxel_um": VOXEL}),
    "five numbers for three": ((PIXELS, axes_of("zyx"), (1, 1, *VOXEL)), "--voxel-size", {"voxel_um": VOXEL}),
    "millimetres called micrometres": (
        (PIXELS, axes_of("zyx"), (0.005, 0.002, 0.002)), "--voxel-size 5,2,2", {"voxel_um": VOXEL}
    ),
    "two times": ((np.stack([PIXELS, PIXELS]), axes_of("tzyx"), (1, *VOXEL)), "--timepoint", {"timepoint": 1}),
    "planes on t": ((PIXELS, axes_of("tyx"), VOXEL), "--timepoint|--axes", {"axes": "zyx", "voxel_um": VOXEL}),
}  # fmt: skip


@pytest.mark.parametrize("kind", TOLD)
def test_images_whose_owner_must_say_more(kind: str, tmp_path: Path) -> None:
    given, sentence, remedy = TOLD[kind]
    path = ngff(tmp_path / "a.zarr", *given)
    with pytest.raises((DataError, UsageError), match=sentence):
        convert(path, tmp_path / "b.zarr") if "convert" not in sentence else Volume.open(path)
    volume = convert(path, tmp_path / "c.zarr", **remedy)
    assert (volume.shape, volume.voxel_um) == (PIXELS.shape, pytest.approx(VOXEL))
    np.testing.assert_array_equal(volume.read(ALL, ALL, ALL), PIXELS)


@pytest.mark.parametrize("chunks", [[0, 20, 20], [False, 6, 20], [-1, 6, 20]])
def test_chunks_without_a_voxel(chunks: list[Any], tmp_path: Path) -> None:
    path = ngff(tmp_path / "a.zarr", PIXELS, axes_of("zyx"))
    document = json.loads((path / "0" / ".zarray").read_text())
    (path / "0" / ".zarray").write_text(json.dumps(document | {"chunks": chunks}))
    with pytest.raises(DataError, match="array metadata damaged"):
        Volume.open(path).read(ALL, ALL, ALL)


def test_bioformats2raw(tmp_path: Path) -> None:
    root = tmp_path / "raw.zarr"
    group = zarr.open_group(root, mode="w", zarr_format=2)
    group.attrs["bioformats2raw.layout"] = 3
    ngff(root / "0", PIXELS[None, None], axes_of("tczyx"), (1, 1, *VOXEL), "0.4", ("0", "1"))
    (root / "OME").mkdir()
    (root / "OME" / "METADATA.ome.xml").write_text("<OME/>")
    assert convert(root, tmp_path / "a.zarr").voxel_um == VOXEL
    assert Volume.open(root).shape == PIXELS.shape


def coarse(how: str, factors: tuple[int, int, int], data: Any) -> Any:
    from scipy import ndimage

    fz, fy, fx = factors
    parts = data.astype(float)
    if how == "samples":
        return data[::fz, ::fy, ::fx]
    if how == "gaussian samples":
        return ndimage.gaussian_filter(parts, [f / 3 for f in factors])[::fz, ::fy, ::fx].astype(data.dtype)
    blocks = parts.reshape(parts.shape[0] // fz, fz, parts.shape[1] // fy, fy, parts.shape[2] // fx, fx)
    reduced = {"mean": np.mean, "median": np.median, "max": np.max}[how](blocks, axis=(1, 3, 5))
    return np.round(reduced).astype(data.dtype)


@pytest.mark.parametrize("factors", [(1, 2, 2), (2, 2, 2), (1, 4, 4)])
@pytest.mark.parametrize(
    ("how", "moved"),
    [("mean", True), ("median", True), ("max", True), ("samples", False), ("gaussian samples", False)],
)
def test_coarse_levels_lie_where_the_image_says(
    how: str, moved: bool, factors: tuple[int, int, int], tmp_path: Path
) -> None:
    """Smooth tissue with cells in noise: how the pyramid was made decides where its voxels lie."""
    from scipy import ndimage

    from brainmap.image.level_evidence import placed_by_evidence

    rng = np.random.default_rng(3)
    tissue = ndimage.gaussian_filter(rng.normal(0, 1, (32, 96, 96)), 1.5)
    data = (800 + 4000 * tissue + rng.normal(0, 15, tissue.shape)).clip(1).astype(np.uint16)
    level = coarse(how, factors, data)
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    datasets = []
    for name, array, f in (("0", data, (1, 1, 1)), ("1", level, factors)):
        group.create_array(name, data=array, chunks=(16, 32, 32))
        scale = [v * k for v, k in zip(VOXEL, f, strict=True)]
        datasets.append({"path": name, "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes_of("zyx"), "datasets": datasets}]
    volume = placed_by_evidence(Volume.open(tmp_path / "a.zarr"))
    shift = tuple((f - 1) / 2 * v if moved else 0.0 for f, v in zip(factors, VOXEL, strict=True))
    assert volume.levels[1].origin_um == pytest.approx(shift)
