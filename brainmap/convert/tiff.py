"""What OME and ImageJ metadata of a TIFF file tell: voxel size and channel names."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import tifffile

from brainmap.image.units import um_per_unit

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
        factor = um_per_unit(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        return _length(pixels.get(f"PhysicalSize{axis}"), factor)

    return size("Z"), size("Y"), size("X")


def _imagej_voxel_um(tiff: tifffile.TiffFile) -> PartialVoxel:
    """From resolution tags and spacing; y and z may have units of their own, and a depth may be counted downwards."""
    metadata = tiff.imagej_metadata or {}

    def factor(axis: str) -> float | None:
        unit = metadata.get(f"{axis}unit") or metadata.get("unit", "")
        return um_per_unit(str(unit))

    tags = tiff.pages.first.tags

    def pitch(name: str, axis: str) -> float | None:
        try:
            numerator, denominator = tags[name].value
            return _length(denominator / numerator, factor(axis))
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            return None

    spacing = _length(metadata.get("spacing"), factor("z"))
    return spacing, pitch("YResolution", "y"), pitch("XResolution", "x")


def _length(value: object, factor: float | None) -> float | None:
    """A length in um, without its sign; None where it is no number, or zero."""
    try:
        um = abs(float(value)) * factor  # type: ignore[arg-type, operator]
    except (TypeError, ValueError, OverflowError):
        return None
    return um if math.isfinite(um) and um > 0 else None


def tiff_channel_names(tiff: tifffile.TiffFile, count: int) -> tuple[str, ...]:
    """Names from OME metadata, "channel i" where there are none."""
    pixels = _ome_pixels(tiff.ome_metadata) if tiff.is_ome and tiff.ome_metadata else None
    found = [e for e in (pixels if pixels is not None else ()) if e.tag.rsplit("}", 1)[-1] == "Channel"]
    names = [e.get("Name") for e in found] if len(found) == count else [None] * count
    return tuple(name or f"channel {i}" for i, name in enumerate(names))
