"""Resolution levels of a volume: what the metadata says, checked against the arrays that are there."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from brainmap.coords import Shape, Triple
from brainmap.errors import DataError, UsageError
from brainmap.image.axes import check_axes
from brainmap.image.ngff import Dataset, Multiscale, dataset_from_shape, parse_multiscale
from brainmap.image.storage.arrays import ArrayInfo, Node, open_reader

__all__ = ["Level", "Shape", "check_arrays", "image_of", "levels_of", "parse_voxel_um", "spatial"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Level:
    """One resolution level; all tuples are z, y, x.

    Attributes
    ----------
    path : str
        Path of the array in the volume ("" for a bare array).
    shape, chunks : tuple of int
        Voxels.
    shards : tuple of int or None
        Voxels of one stored file if chunks are packed into shards.
    voxel_um : tuple of float
        Voxel size, um.
    origin_um : tuple of float
        um of the centre of voxel 0: ``um = index * voxel_um + origin_um``.
    digest : str
        Changes when the array's metadata changes.
    offset : tuple of int
        Stored voxel that is voxel 0 here; not 0 in a part of an image.
    """

    path: str
    shape: Shape
    chunks: Shape
    shards: Shape | None
    voxel_um: Triple
    origin_um: Triple
    digest: str = ""
    offset: Shape = (0, 0, 0)

    def cropped(self, start: Shape, stop: Shape) -> Level:
        """The part between two corners, voxels of this level."""
        return replace(
            self,
            shape=(stop[0] - start[0], stop[1] - start[1], stop[2] - start[2]),
            offset=tuple(o + s for o, s in zip(self.offset, start, strict=True)),  # type: ignore[arg-type]
            origin_um=tuple(o + s * v for o, s, v in zip(self.origin_um, start, self.voxel_um, strict=True)),  # type: ignore[arg-type]
        )


def image_of(
    node: Node,
    url: str,
    voxel_um: Triple | None,
    axes: tuple[str, ...] | None = None,
    any_order: bool = False,
) -> Multiscale:
    """Image metadata of a group, or what stands for it at a bare array whose voxel size is given."""
    if node.kind == "group":
        return parse_multiscale(node.attributes, url, voxel_um is None, axes, any_order)
    if voxel_um is None:
        raise UsageError(
            f"{url} is a bare Zarr array without a voxel size; give it in um with --voxel-size Z,Y,X"
        )
    rank = len(open_reader(url, "", node.zarr_format).info.shape)
    if axes is not None:
        roles = check_axes(axes, [f"axis {i}" for i in range(rank)], url)
    elif rank in (2, 3):
        roles = ("z", "y", "x")[3 - rank :]
    else:
        raise DataError(
            f"{url} is an array with {rank} axes; a bare array has 3 (z, y, x) or 2 (y, x), unless --axes says "
            "what they are"
        )
    return Multiscale("", "", roles, (Dataset("", None, None),), (), None)


def check_arrays(image: Multiscale, infos: list[ArrayInfo], url: str) -> None:
    """Refuse arrays that do not fit the metadata or cannot be read as an image."""
    first = infos[0]
    if first.dtype.kind not in "iuf":
        raise DataError(f"{url} holds values of type {first.dtype}; brainmap reads integer and float images")
    for dataset, info in zip(image.datasets, infos, strict=True):
        where = f"{url}, level {dataset.path!r}"
        if len(info.shape) != len(image.axes):
            raise DataError(
                f"{where}: the array has {len(info.shape)} axes, the metadata {len(image.axes)} "
                f"({', '.join(image.axes)})"
            )
        sizes = dict(zip(image.axes, info.shape, strict=True))
        if 0 in info.shape:
            raise DataError(f"{where}: the array is empty (shape {info.shape})")
        odd = [n for role, n in zip(image.axes, info.shape, strict=True) if role == "?" and n != 1]
        if odd:
            raise DataError(
                f"{where}: an axis other than t, c, z, y, x has {odd[0]} entries, not one; say what it is with --axes"
            )
        for role in "tc":
            if sizes.get(role) != dict(zip(image.axes, first.shape, strict=True)).get(role):
                raise DataError(f"{where}: axis {role} has {sizes[role]} entries, unlike in level 0")
        if info.dtype != first.dtype:
            log.warning("%s: values are %s, but %s in level 0", where, info.dtype, first.dtype)
        _check_dimension_names(image, info, where)


def _check_dimension_names(image: Multiscale, info: ArrayInfo, where: str) -> None:
    if info.dimension_names is None:
        if image.version == "0.5":
            log.warning("%s: the array does not name its dimensions", where)
        return
    expected = [role for role in image.axes if role != "?"]
    if [name.lower() for name in info.dimension_names if name.lower() in list("tczyx")] != expected:
        log.warning("%s: the dimension names %s differ from the axes", where, info.dimension_names)


def levels_of(image: Multiscale, infos: list[ArrayInfo], voxel_um: Triple | None) -> tuple[Level, ...]:
    """Join metadata and arrays; a given voxel size of level 0 overrides the metadata's."""
    shapes = [spatial(image.axes, info.shape) for info in infos]
    first = image.datasets[0]
    levels: list[Level] = []
    for declared, info, shape in zip(image.datasets, infos, shapes, strict=True):
        dataset = declared if voxel_um is None else _rescaled(declared, first, voxel_um, shapes[0], shape)
        dataset = _plausible(dataset, levels[0], shape) if levels else dataset
        assert dataset.scale_um is not None, "parse_multiscale refuses levels without a scale"
        assert dataset.translation_um is not None
        levels.append(
            Level(
                path=dataset.path,
                shape=shape,
                chunks=spatial(image.axes, info.chunks),
                shards=None if info.shards is None else spatial(image.axes, info.shards),
                voxel_um=dataset.scale_um,
                origin_um=dataset.translation_um,
                digest=info.digest,
            )
        )
    return tuple(levels)


def _plausible(dataset: Dataset, level0: Level, shape: Shape) -> Dataset:
    """The level as declared, unless its scale contradicts its shape.

    A frequent mistake is the same scale for all levels. Believed, it would put the tissue of a coarse
    level into one corner of the brain.
    """
    assert dataset.scale_um is not None, "parse_multiscale refuses levels without a scale"
    for n, voxel, n0, voxel0 in zip(shape, dataset.scale_um, level0.shape, level0.voxel_um, strict=True):
        if abs(n * voxel - n0 * voxel0) > 2 * max(voxel, voxel0):
            derived = dataset_from_shape(dataset.path, level0.voxel_um, level0.shape, shape)
            log.warning(
                "level %r: its scale %s does not fit its shape %s; %s um taken instead",
                dataset.path, dataset.scale_um, shape, derived.scale_um,
            )  # fmt: skip
            assert derived.translation_um is not None
            moved = [t + o for t, o in zip(derived.translation_um, level0.origin_um, strict=True)]
            return Dataset(dataset.path, derived.scale_um, (moved[0], moved[1], moved[2]))
    return dataset


def _rescaled(dataset: Dataset, first: Dataset, voxel_um: Triple, shape0: Shape, shape: Shape) -> Dataset:
    """Level with the given voxel size of level 0, its own factor and shift kept where the file has them."""
    if dataset.scale_um is None or dataset.translation_um is None or first.scale_um is None:
        return dataset_from_shape(dataset.path, voxel_um, shape0, shape)
    ratio = [new / old for new, old in zip(voxel_um, first.scale_um, strict=True)]
    scale = [s * r for s, r in zip(dataset.scale_um, ratio, strict=True)]
    shift = [t * r for t, r in zip(dataset.translation_um, ratio, strict=True)]
    return Dataset(dataset.path, (scale[0], scale[1], scale[2]), (shift[0], shift[1], shift[2]))


def spatial(axes: tuple[str, ...], values: tuple[int, ...]) -> Shape:
    """Values along z, y, x of one for each axis; 1 along a z that is not there."""
    by_role = dict(zip(axes, values, strict=True))
    return by_role.get("z", 1), by_role["y"], by_role["x"]


def parse_voxel_um(voxel_um: Sequence[float]) -> Triple:
    """Check a voxel size z, y, x in um.

    Raises
    ------
    UsageError
        If it is not three positive numbers.
    """
    values = tuple(float(v) for v in voxel_um)
    if len(values) != 3 or not all(math.isfinite(v) and v > 0 for v in values):
        raise UsageError(f"the voxel size must be three positive numbers z,y,x in um, not {list(voxel_um)}")
    return values[0], values[1], values[2]
