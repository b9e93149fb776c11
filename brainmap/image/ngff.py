"""OME-NGFF image metadata as records: read leniently, written strictly.

Reads the `multiscales` metadata of versions 0.1 to 0.6 (with a warning where the version leaves
something out) and writes 0.4 (Zarr v2) and 0.5 (Zarr v3). Specification: https://ngff.openmicroscopy.org.

Everything numeric that leaves this module is micrometres in z, y, x order; a position is always
``index * scale_um + translation_um`` with every transformation of the file composed into these two.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from brainmap.coords import ORIENTATIONS, Triple
from brainmap.errors import BrainmapError, DataError, UsageError
from brainmap.image.axes import check_axes
from brainmap.image.units import UM_PER_UNIT, um_per_unit

__all__ = [
    "Dataset",
    "Multiscale",
    "Triple",
    "dataset_from_shape",
    "image_attributes",
    "is_collection",
    "parse_multiscale",
]

log = logging.getLogger(__name__)


# More than any pyramid: halving 2**63 voxels gives 63.
_MOST_LEVELS = 64

# First word of an anatomical axis orientation of NGFF RFC-4 -> letter of the side where the axis starts.
_ORIGIN_LETTERS = {
    "anterior": "a",
    "rostral": "a",
    "cranial": "a",
    "posterior": "p",
    "caudal": "p",
    "superior": "s",
    "dorsal": "s",
    "inferior": "i",
    "ventral": "i",
    "right": "r",
    "left": "l",
}


@dataclass(frozen=True)
class Dataset:
    """One resolution level as the metadata describes it.

    Attributes
    ----------
    path : str
        Path of the array inside the group.
    scale_um, translation_um : tuple of float, or None
        z, y, x micrometres; ``um = index * scale_um + translation_um``. None if the file gives no scale.
    """

    path: str
    scale_um: Triple | None
    translation_um: Triple | None


@dataclass(frozen=True)
class Multiscale:
    """One image: its axes, levels and what else the metadata tells.

    Attributes
    ----------
    version : str
        NGFF version as written, "" if missing.
    name : str
    axes : tuple of str
        One role per array axis, each of "t", "c", "z", "y", "x", or "?" for another axis.
    datasets : tuple of Dataset
        Finest first.
    channel_names : tuple of str
        From the omero metadata; empty if there are none.
    orientation : str or None
        BrainGlobe letters (origin sides of z, y, x), if the file has them.
    """

    version: str
    name: str
    axes: tuple[str, ...]
    datasets: tuple[Dataset, ...]
    channel_names: tuple[str, ...]
    orientation: str | None


def parse_multiscale(
    attributes: Mapping[str, Any],
    where: str,
    need_scale: bool = True,
    axes: tuple[str, ...] | None = None,
    any_order: bool = False,
) -> Multiscale:
    """Parse a group's attributes.

    Parameters
    ----------
    attributes : mapping
        The group's attributes (`.zattrs`, or `attributes` of `zarr.json`).
    where : str
        Name of the image for messages.
    need_scale : bool
        False if the caller knows the voxel size: then units do not matter and scales may be missing or damaged.
    axes : tuple of str, optional
        Roles of the stored axes, as `brainmap.image.axes.parse_axes` gives them, instead of the file's.
    any_order : bool
        Take x, y, z in any order; given `axes` may be in any order anyway.

    Raises
    ------
    DataError
        If there is no usable image metadata; the sentence says what is missing.
    UsageError
        If `axes` does not fit the image.
    """
    try:
        return _parse_multiscale(attributes, where, need_scale, axes, any_order)
    except BrainmapError:
        raise
    # Damage has no bounds: lists for numbers, text for lists, transformations nested without end.
    except (
        TypeError,
        ValueError,
        KeyError,
        IndexError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise DataError(
            f"{where}: the image metadata (multiscales) is damaged: {type(error).__name__}"
        ) from error


def _parse_multiscale(
    attributes: Mapping[str, Any],
    where: str,
    need_scale: bool,
    given_axes: tuple[str, ...] | None,
    any_order: bool,
) -> Multiscale:
    ome = _ome(attributes)
    images = ome.get("multiscales")
    if not _is_list(images) or not images or not isinstance(images[0], Mapping):
        raise DataError(_no_image_sentence(ome, where))
    if len(images) > 1:
        log.warning("%s holds %d images; the first one is used", where, len(images))
    image = images[0]
    version = str(ome.get("version") or image.get("version") or "")
    if version not in ("0.4", "0.5"):
        log.warning("%s: NGFF version %r is neither 0.4 nor 0.5; reading on", where, version)
    datasets = image.get("datasets")
    if not _is_list(datasets) or not datasets:
        raise DataError(f"{where}: the multiscales metadata lists no datasets, so there is no image to read")
    if len(datasets) > _MOST_LEVELS:
        raise DataError(f"{where}: the multiscales metadata lists {len(datasets)} levels, which no image has")
    axes = _axis_records(image, where)
    if given_axes is None:
        roles = _roles(axes, where, any_order)
    else:
        roles = check_axes(given_axes, tuple(str(axis["name"]) for axis in axes), where)
        need_scale = need_scale and _scales_stay(axes, roles, where)
    units = _units_um(axes, roles, where, need_scale)
    # From 0.6 on, transformations of the whole multiscale lead to further coordinate systems.
    outer = () if image.get("coordinateSystems") else image.get("coordinateTransformations") or ()
    levels = tuple(_dataset(d, outer, roles, units, where, need_scale) for d in datasets)
    if any(level.scale_um is None for level in levels):
        levels = tuple(Dataset(level.path, None, None) for level in levels)
    return Multiscale(
        version=version,
        name=str(image.get("name") or ""),
        axes=roles,
        datasets=_finest_first(levels, where),
        channel_names=_channel_names(ome),
        orientation=_orientation(attributes, axes, roles, where),
    )


def is_collection(attributes: Mapping[str, Any]) -> bool:
    """Tell a bioformats2raw collection, whose images are the groups 0, 1, ..., from an image."""
    ome = _ome(attributes)
    return "bioformats2raw.layout" in ome and "multiscales" not in ome


def _ome(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where the metadata lies: under `ome` since 0.5, at the top before."""
    ome = attributes.get("ome")
    return ome if isinstance(ome, Mapping) else attributes


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _scales_stay(axes: list[dict[str, Any]], roles: tuple[str, ...], where: str) -> bool:
    """Whether the scales of z, y, x are lengths: what was a channel or a time has none."""
    for axis, role in zip(axes, roles, strict=True):
        if role in "zyx" and axis.get("type") in ("channel", "time"):
            raise UsageError(
                f"{where}: axis {axis['name']} is to be {role}, but the metadata has no length for it; "
                "give the voxel size in um with --voxel-size Z,Y,X"
            )
    return True


def _no_image_sentence(ome: Mapping[str, Any], where: str) -> str:
    if "plate" in ome or "well" in ome:
        return f"{where} is a plate of many images, not one image; give the path of an image inside it"
    return f"{where} has no OME-NGFF image metadata (multiscales), so it is not an OME-Zarr image"


def _axis_records(image: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    systems = image.get("coordinateSystems")
    axes = systems[0].get("axes") if systems and isinstance(systems[0], Mapping) else image.get("axes")
    if axes is None:
        log.warning("%s: no axes in the metadata; t, c, z, y, x assumed", where)
        axes = ["t", "c", "z", "y", "x"]
    if not isinstance(axes, Sequence) or isinstance(axes, str) or not axes:
        raise DataError(f"{where}: the axes in the metadata are damaged: {axes!r}")
    records = [{"name": a} if isinstance(a, str) else a for a in axes]
    if not all(isinstance(a, Mapping) and isinstance(a.get("name"), str) for a in records):
        raise DataError(f"{where}: the axes in the metadata are damaged: {axes!r}")
    return [dict(a) for a in records]


def _roles(axes: list[dict[str, Any]], where: str, any_order: bool) -> tuple[str, ...]:
    """Role of each axis: space axes by name, time and channel by type or name."""
    roles = []
    for axis in axes:
        name, kind = axis["name"].lower(), axis.get("type")
        if name in ("z", "y", "x") and kind in (None, "space"):
            roles.append(name)
        elif kind == "time" or (kind is None and name == "t"):
            roles.append("t")
        elif kind == "channel" or (kind is None and name == "c"):
            roles.append("c")
        else:
            roles.append("?")
    space = [r for r in roles if r in "zyx"]
    names = ", ".join(a["name"] for a in axes)
    once = all(roles.count(role) <= 1 for role in "tczyx")
    if once and {"y", "x"} <= set(space) and (any_order or space == [r for r in "zyx" if r in space]):
        return tuple(roles)
    if once and {"y", "x"} <= set(space):
        told = "".join("." if role == "?" else role for role in roles)
        raise DataError(
            f"{where}: its axes are {names}; brainmap reads z, y, x in this order: write it in order with "
            f"brainmap convert SOURCE DEST.zarr, or read it as it is (slowly) with --axes {told}"
        )
    raise DataError(
        f"{where}: its axes are {names}; brainmap reads z, y, x or y, x in this order, with optional t, c: say "
        "what each of them is with --axes, one letter of t c z y x an axis, a dot for another one (such as tczyx)"
    )


def _units_um(
    axes: list[dict[str, Any]], roles: tuple[str, ...], where: str, need_scale: bool
) -> tuple[float, ...]:
    """Micrometres per unit of every axis (1 for axes that are not space)."""
    factors = []
    for axis, role in zip(axes, roles, strict=True):
        unit = axis.get("unit") if str(axis.get("unit") or "").strip() else None
        if role not in "zyx" or not need_scale:
            factors.append(1.0)
        elif unit is None:
            log.warning("%s: axis %s has no unit; micrometer assumed", where, role)
            factors.append(1.0)
        else:
            factor = um_per_unit(str(unit))
            if factor is None:
                raise DataError(
                    f"{where}: unit {unit!r} of axis {role} is not a length brainmap knows; "
                    "give the voxel size in um with --voxel-size Z,Y,X"
                )
            if unit not in UM_PER_UNIT:
                log.warning("%s: unit %r of axis %s is read as %g um", where, unit, role, factor)
            factors.append(factor)
    return tuple(factors)


def _dataset(
    record: Any, outer: Any, roles: tuple[str, ...], units: tuple[float, ...], where: str, need_scale: bool
) -> Dataset:
    if not isinstance(record, Mapping) or not isinstance(record.get("path"), str):
        raise DataError(f"{where}: a dataset in the multiscales metadata has no path")
    path = record["path"].strip("/")
    own = record.get("coordinateTransformations") or ()
    steps = [*(own if _is_list(own) else ()), *(outer if _is_list(outer) else ())]
    try:
        composed = _compose(steps, roles, f"{where}, level {path!r}")
        if composed is None:
            raise DataError(
                f"{where}, level {path!r}: the metadata gives no scale, so the voxel size is unknown"
            )
    except DataError as error:
        if need_scale:
            raise DataError(f"{error}; give the voxel size in um with --voxel-size Z,Y,X") from error
        log.info("%s; not needed, as the voxel size is given", error)
        return Dataset(path, None, None)
    scale, translation = (
        {role: v * u for role, v, u in zip(roles, values, units, strict=True)} for values in composed
    )
    # A single section has no z axis: a cubic voxel stands for its unknown thickness.
    scale.setdefault("z", scale["y"])
    translation.setdefault("z", 0.0)
    return Dataset(path, _zyx(scale), _zyx(translation))


def _zyx(values: Mapping[str, float]) -> Triple:
    return values["z"], values["y"], values["x"]


def _compose(
    steps: Sequence[Any], roles: tuple[str, ...], where: str
) -> tuple[list[float], list[float]] | None:
    """Compose transformations, in the order they are applied, into one scale and one translation.

    Numbers of axes that are not space are not looked at. Returns None if there is no scale among them.
    """
    n_axes = len(roles)
    scale, translation, scaled = [1.0] * n_axes, [0.0] * n_axes, False
    for step in steps:
        kind = step.get("type") if isinstance(step, Mapping) else None
        if kind == "sequence":
            inner = _compose(step.get("transformations") or (), roles, where)
            if inner is None:
                continue
            factors, shift = inner
        elif kind == "identity":
            continue
        elif kind == "scale":
            factors, shift = _numbers(step, kind, roles, where), [0.0] * n_axes
            if not all(f > 0 for f in factors):
                raise DataError(f"{where}: the scale {factors} in the metadata is not positive")
        elif kind == "translation":
            shift = _numbers(step, kind, roles, where)
            translation = [t + s for t, s in zip(translation, shift, strict=True)]
            continue
        else:
            raise DataError(f"{where}: coordinate transformation {step!r} is not a scale or a translation")
        scaled = True
        scale = [s * f for s, f in zip(scale, factors, strict=True)]
        translation = [t * f + s for t, f, s in zip(translation, factors, shift, strict=True)]
    return (scale, translation) if scaled else None


def _numbers(step: Mapping[str, Any], kind: str, roles: tuple[str, ...], where: str) -> list[float]:
    """A number for each axis; 1 (scale) or 0 (translation) for those that are not space."""
    values = step.get(kind)
    unused = 1.0 if kind == "scale" else 0.0
    if not _is_list(values) or len(cast(Sequence[Any], values)) != len(roles):
        raise DataError(
            f"{where}: the {kind} {_short(values)} in the metadata is not one number for each axis"
        )
    try:
        numbers = [
            float(v) if role in "zyx" else unused
            for v, role in zip(cast(Sequence[Any], values), roles, strict=True)
        ]
    except (TypeError, ValueError, OverflowError):
        numbers = [math.nan]
    if not all(math.isfinite(v) for v in numbers):
        raise DataError(
            f"{where}: the {kind} {_short(values)} in the metadata is not one number for each axis"
        )
    return numbers


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _finest_first(levels: tuple[Dataset, ...], where: str) -> tuple[Dataset, ...]:
    def voxel_volume(level: Dataset) -> float:
        return math.prod(level.scale_um or (0.0,))

    ordered = tuple(sorted(levels, key=voxel_volume))
    if ordered != levels:
        log.warning("%s: its levels are not listed finest first; reordered by voxel size", where)
    return ordered


def _channel_names(ome: Mapping[str, Any]) -> tuple[str, ...]:
    omero = ome.get("omero")
    channels = omero.get("channels") if isinstance(omero, Mapping) else None
    if not isinstance(channels, Sequence):
        return ()
    return tuple(str(c.get("label") or "") if isinstance(c, Mapping) else "" for c in channels)


def _orientation(
    attributes: Mapping[str, Any], axes: list[dict[str, Any]], roles: tuple[str, ...], where: str
) -> str | None:
    """Orientation letters from brainmap's own attribute or from RFC-4 anatomical axes."""
    own = attributes.get("brainmap")
    letters = own.get("orientation") if isinstance(own, Mapping) else None
    if letters is None:
        found = []
        for axis, role in zip(axes, roles, strict=True):
            anatomical = axis.get("orientation")
            value = anatomical.get("value") if isinstance(anatomical, Mapping) else anatomical
            if role in "zyx" and value is not None:
                found.append(_ORIGIN_LETTERS.get(str(value).split("-")[0].lower(), "?"))
        letters = "".join(found) or None
    if letters is not None and letters not in ORIENTATIONS:
        log.warning("%s: the orientation %r in the metadata is not usable and is ignored", where, letters)
        return None
    return letters


def dataset_from_shape(path: str, voxel_um: Triple, shape0: Sequence[int], shape: Sequence[int]) -> Dataset:
    """Level of a pyramid without scales, from the voxel size of level 0 and the shapes.

    The factor of each axis is the nearest whole ratio of the shapes; the level is taken as a mean
    over that many voxels, whose centres lie ``(factor - 1) / 2`` voxels further in.
    """
    factors = [max(1, round(full / max(1, n))) for full, n in zip(shape0, shape, strict=True)]
    scale = [v * f for v, f in zip(voxel_um, factors, strict=True)]
    shift = [v * (f - 1) / 2 for v, f in zip(voxel_um, factors, strict=True)]
    return Dataset(path, (scale[0], scale[1], scale[2]), (shift[0], shift[1], shift[2]))


def image_attributes(
    zarr_format: int,
    name: str,
    datasets: Sequence[Dataset],
    channel_names: Sequence[str] | None = None,
    orientation: str | None = None,
    method: str = "mean",
    display_range: tuple[float, float] = (0.0, 65535.0),
) -> dict[str, Any]:
    """Group attributes of an image, strictly as NGFF 0.5 (`zarr_format` 3) or 0.4 (2) wants them.

    Parameters
    ----------
    datasets : sequence of Dataset
        Finest first, each with scale and translation.
    channel_names : sequence of str, optional
        Given: the arrays have a leading channel axis.
    orientation : str, optional
        Written as brainmap's own attribute beside the standard ones.
    method : str
        How coarser levels were made ("mean" or "nearest").
    display_range : (float, float)
        Smallest and largest value viewers offer per channel (used with `channel_names`).
    """
    axes: list[dict[str, str]] = [{"name": "c", "type": "channel"}] if channel_names is not None else []
    axes += [{"name": n, "type": "space", "unit": "micrometer"} for n in ("z", "y", "x")]
    extra = len(axes) - 3
    multiscale: dict[str, Any] = {
        "name": name,
        "axes": axes,
        "datasets": [{"path": d.path, "coordinateTransformations": _steps(d, extra)} for d in datasets],
        "type": method,
    }
    ome: dict[str, Any] = {"multiscales": [multiscale]}
    if channel_names is not None:
        low, high = display_range
        window = {"min": low, "max": high, "start": low, "end": high}
        shown = {"color": "FFFFFF", "active": True, "window": window}
        ome["omero"] = {"channels": [{"label": name, **shown} for name in channel_names]}
    if zarr_format == 2:
        multiscale["version"] = "0.4"
        attributes = ome
    else:
        ome["version"] = "0.5"
        attributes = {"ome": ome}
    if orientation is not None:
        attributes["brainmap"] = {"orientation": orientation}
    return attributes


def _steps(dataset: Dataset, extra: int) -> list[dict[str, Any]]:
    """Scale and translation of a level with `extra` axes before z, y, x."""
    scale = [1.0] * extra + [float(v) for v in dataset.scale_um or ()]
    translation = [0.0] * extra + [float(v) for v in dataset.translation_um or ()]
    return [{"type": "scale", "scale": scale}, {"type": "translation", "translation": translation}]
