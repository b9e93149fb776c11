"""What OME and ImageJ metadata of a TIFF file tell: voxel size and channel names."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import tifffile

from brainmap.image.ngff import um_per_unit

__all__ = ["UNKNOWN", "PartialVoxel", "tiff_channel_names", "tiff_voxel_um"]

PartialVoxel = tuple[float | None, float | None, float | None]

UNKNOWN: PartialVoxel = (None, None, None)


def tiff_voxel_um(tiff: tifffile.TiffFile) -> PartialVoxel:
    """Voxel size z, y, x in um from OME or ImageJ metadata; None where it is not told."""
    if tiff.is_ome and tiff.ome_metadata:
        return _ome_voxel_um(tiff.ome_metadata)
    if tiff.is_imagej and tiff.imagej_metadata:
        return _imagej_voxel_um(tiff)
    return UNKNOWN


def _ome_pixels(xml: str) -> ElementTree.Element | None:
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return None
    return next((e for e in root.iter() if e.tag.rsplit("}", 1)[-1] == "Pixels"), None)


def _ome_voxel_um(xml: str) -> PartialVoxel:
    pixels = _ome_pixels(xml)
    if pixels is None:
        return UNKNOWN

    def size(axis: str) -> float | None:
        value = pixels.get(f"PhysicalSize{axis}")
        factor = um_per_unit(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        return float(value) * factor if value and factor and float(value) > 0 else None

    return size("Z"), size("Y"), size("X")


def _imagej_voxel_um(tiff: tifffile.TiffFile) -> PartialVoxel:
    metadata = tiff.imagej_metadata or {}
    unit = str(metadata.get("unit", "")).replace("\\u00B5", "µ")
    factor = um_per_unit(unit)
    if factor is None:
        return UNKNOWN
    tags = tiff.pages.first.tags

    def pitch(name: str) -> float | None:
        numerator, denominator = tags[name].value if name in tags else (0, 1)
        return denominator / numerator * factor if numerator else None

    spacing = float(metadata.get("spacing", 0)) * factor
    return spacing or None, pitch("YResolution"), pitch("XResolution")


def tiff_channel_names(tiff: tifffile.TiffFile, count: int) -> tuple[str, ...]:
    """Names from OME metadata, "channel i" where there are none."""
    pixels = _ome_pixels(tiff.ome_metadata) if tiff.is_ome and tiff.ome_metadata else None
    found = [e for e in (pixels if pixels is not None else ()) if e.tag.rsplit("}", 1)[-1] == "Channel"]
    names = [e.get("Name") for e in found] if len(found) == count else [None] * count
    return tuple(name or f"channel {i}" for i, name in enumerate(names))
