"""Synthetic tiles with known cells: placed, drawn, composed with a background, written with their truth.

Source: the founding study, methods 5. The folder is a tile folder with more in it:

    tiles.parquet, images/     as any tile folder
    masks/<image_id>.png       255 within the outline of a cell, else 0
    points.csv                 image_id, x, y, radius (px)
    heatmaps/<image_id>.npy    float32, height / stride x width / stride: what a network of that stride should say
    synthesis.json             settings, seed, versions
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from brainmap.errors import UsageError
from brainmap.files import atomic_path, write_json
from brainmap.lock import held_beside
from brainmap.machine import versions
from brainmap.progress import tracked
from brainmap.settings import read_table
from brainmap.tiles.tiles import Tiles, check_target, write_tiles
from brainmap.train.learn.samples import render_targets
from brainmap.train.synthesis.cell_images import CellLook, draw_cells
from brainmap.train.synthesis.placement import Floats, Placement, from_table
from brainmap.train.synthesis.texture import Texture, plain_background

__all__ = [
    "HEATMAPS",
    "MASKS",
    "POINTS",
    "Background",
    "SynthesisSettings",
    "SyntheticTile",
    "heat_map",
    "make_tile",
    "read_synthesis_settings",
    "synthesize",
]

log = logging.getLogger(__name__)

MASKS, POINTS, HEATMAPS = "masks", "points.csv", "heatmaps"


class Background(Protocol):
    """What makes backgrounds, as `brainmap.train.synthesis.generator.Generator`. `look`: of the cells it learnt."""

    @property
    def look(self) -> str: ...

    def background(
        self, mask: NDArray[np.floating], cells: NDArray[np.floating], seed: int
    ) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class SynthesisSettings:
    """What synthetic tiles are like.

    Parameters
    ----------
    height, width : int
        Of a tile, px (study: 512).
    voxel_um : tuple of float
        Pixel size that the tiles stand for; z, y, x.
    stride : int
        Pixels per cell of the heat maps: 1, 2 or 4 (methods 6).
    brightness : tuple of float
        Least and greatest factor s on the background, uniform; the study gives no range.
    texture : bool
        Whether backgrounds get the spectrum and grey levels of the real tiles that are given (`--like`).
    placement : Placement
    cells : CellLook
    """

    height: int = 512
    width: int = 512
    voxel_um: tuple[float, float, float] = (5.0, 0.7, 0.7)
    stride: int = 1
    brightness: tuple[float, float] = (0.9, 1.1)
    texture: bool = True
    placement: Placement = field(default_factory=Placement.study)
    cells: CellLook = field(default_factory=CellLook)

    def __post_init__(self) -> None:
        if self.stride not in (1, 2, 4):
            raise UsageError(f"stride is {self.stride}; give 1, 2 or 4")
        if min(self.height, self.width) < 1 or self.height % self.stride or self.width % self.stride:
            raise UsageError(
                f"a tile of {self.height} x {self.width} px is no multiple of the stride {self.stride}"
            )
        if not 0 < self.brightness[0] <= self.brightness[1]:
            raise UsageError("brightness needs a positive range, least first")
        if not all(v > 0 for v in self.voxel_um):
            raise UsageError(f"voxel_um is {self.voxel_um}; give three positive numbers: z, y, x")

    def to_dict(self) -> dict[str, Any]:
        """As TOML and JSON hold it."""
        own = {k: v for k, v in vars(self).items() if k not in ("placement", "cells")}
        return {**own, "placement": self.placement.to_dict(), "cells": asdict(self.cells)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> SynthesisSettings:
        """From what `to_dict` gives; an unknown key is an error."""
        values = dict(record)
        placement = Placement.from_dict(values.pop("placement", {}))
        cells = from_table(CellLook, values.pop("cells", {}), "cells")
        settings: SynthesisSettings = from_table(
            cls, {**values, "placement": placement, "cells": cells}, "synthesis"
        )
        return settings


def read_synthesis_settings(path: str | Path | None, **overrides: Any) -> SynthesisSettings:
    """Settings of a TOML file with a `[synthesis]` table and tables `placement`, `cells` in it.

    Raises
    ------
    NotFoundError, UsageError
        No such file; not TOML, an unknown key, or a value out of its range.
    """
    values = read_table(path, "synthesis")
    return SynthesisSettings.from_dict({**values, **{k: v for k, v in overrides.items() if v is not None}})


@dataclass(frozen=True)
class SyntheticTile:
    """One tile and its truth.

    Parameters
    ----------
    image : ndarray of float32, (height, width) in 0..1
    mask : ndarray of bool, (height, width)
        True within the outline of a cell.
    centres, radii : ndarray, (n, 2) and (n,)
        x, y and radius, px.
    """

    image: NDArray[np.float32]
    mask: NDArray[np.bool_]
    centres: Floats
    radii: Floats


def heat_map(centres: Floats, radii: Floats, shape: tuple[int, int], stride: int) -> NDArray[np.float32]:
    """H(p) = max over cells of exp(-|p - c|^2 / (2 sigma^2)), 1 exactly at each cell's own place (methods 5).

    Parameters
    ----------
    centres, radii : ndarray, (n, 2) and (n,)
        x, y and radius, px.
    shape : (height, width)
        Of the tile, px.
    stride : int
        Pixels per cell of the map.

    Returns
    -------
    ndarray of float32, (height / stride, width / stride)
    """
    n = len(radii)
    # Slice, y, x, radius and a contrast nobody would doubt: one slice, on which all cells lie.
    cells = np.column_stack([np.zeros(n), centres[:, ::-1], radii, np.full(n, 100.0)]).astype(np.float32)
    return render_targets(cells, 0, (shape[0] // stride, shape[1] // stride), 1.0, stride).heat


def make_tile(
    settings: SynthesisSettings,
    generator: Background | None,
    rng: np.random.Generator,
    texture: Texture | None = None,
    chosen: int = 0,
) -> SyntheticTile:
    """Make one tile: I = C M + clip(s B, 0, 1) (1 - M).

    Parameters
    ----------
    settings : SynthesisSettings
    generator : Background, optional
        Makes B from M and C; without one B is white noise.
    rng : Generator
    texture : Texture, optional
        Statistics that B is given after its brightness; `chosen` says of which real tile.
    """
    shape = (settings.height, settings.width)
    centres, radii = settings.placement.sample(shape, rng)
    drawn = draw_cells(centres, radii, shape, settings.cells, rng)
    if generator is None:
        background = plain_background(shape, rng)
    else:
        background = generator.background(drawn.opacity, drawn.cells, int(rng.integers(2**31)))
    background = np.clip(background * np.float32(rng.uniform(*settings.brightness)), 0, 1)
    if texture is not None:
        background = texture.apply(background, chosen, rng)
    return SyntheticTile(drawn.compose(background).clip(0, 1), drawn.inside, centres, radii)


def synthesize(
    settings: SynthesisSettings,
    generator: Background | None,
    folder: str | Path,
    count: int,
    seed: int,
    texture: Texture | None = None,
    overwrite: bool = False,
) -> Tiles:
    """Make tiles and write them with their truth; the folder appears when it is complete.

    Tile k depends on the seed and on k alone, so that a larger set begins with the smaller one.

    Parameters
    ----------
    settings : SynthesisSettings
    generator : Background, optional
        A trained generator, best of the look that the settings name: another one is used, with a warning.
    folder : path
        A new folder, or a tile folder to replace.
    count : int
        Number of tiles.
    seed : int
    texture : Texture, optional
    overwrite : bool
        Replace the tiles that are there.

    Raises
    ------
    UsageError
        No tiles asked for, a folder that holds something else, or tiles that are not to be replaced.
    """
    if count < 1:
        raise UsageError(f"the number of tiles is {count}; give 1 or more")
    folder = Path(folder)
    check_target(folder, overwrite)
    if generator is not None and generator.look != settings.cells.look:
        log.warning(
            "the generator has learnt backgrounds of cells of the look %r, and these are drawn %r: set the look in "
            "[synthesis.cells], or train a generator with that look",
            generator.look, settings.cells.look,
        )  # fmt: skip
    ids = [f"synthetic_{index:05d}" for index in range(count)]
    columns = {
        "image_id": ids,
        # Every tile is a slice of its own: any of them may be held out.
        "brain": [f"synthetic_{seed}_{index}" for index in range(count)],
        "z": [0] * count,
        "dataset": ["synthetic"] * count,
        "voxel_um": [settings.voxel_um] * count,
    }
    # In turn rather than at random: even a small set holds every kind of tile in its share.
    order = np.random.default_rng(seed).permutation(len(texture) if texture is not None else 1)
    truth: list[_Truth] = []

    def images() -> Iterator[NDArray[np.float32]]:
        for index, name in enumerate(tracked(ids, "making tiles", unit="tiles")):
            chosen = int(order[index % len(order)])
            tile = make_tile(settings, generator, np.random.default_rng([seed, index]), texture, chosen)
            # Encoded, the masks of thousands of tiles can wait until the images are written.
            mask = bytes(imagecodecs.png_encode(tile.mask.astype(np.uint8) * 255))
            truth.append(_Truth(name, mask, tile.centres, tile.radii))
            yield tile.image

    with held_beside(folder), atomic_path(folder) as part:
        tiles = write_tiles(part, columns, images())
        _write_truth(part, truth, settings)
        record = {"settings": settings.to_dict(), "seed": seed, "count": count, "texture": texture is not None,
                  "generator": generator is not None, "versions": versions()}  # fmt: skip
        write_json(part / "synthesis.json", record)
    return Tiles(folder, tiles.columns)


@dataclass(frozen=True)
class _Truth:
    """What is known of a tile once its image is written; `mask` is a PNG."""

    image_id: str
    mask: bytes
    centres: Floats
    radii: Floats


def _write_truth(folder: Path, truth: list[_Truth], settings: SynthesisSettings) -> None:
    shape = (settings.height, settings.width)
    for name in (MASKS, HEATMAPS):
        (folder / name).mkdir()
    with (folder / POINTS).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image_id", "x", "y", "radius"])
        for one in truth:
            (folder / MASKS / f"{one.image_id}.png").write_bytes(one.mask)
            heat = heat_map(one.centres, one.radii, shape, settings.stride)
            np.save(folder / HEATMAPS / f"{one.image_id}.npy", heat)
            table.writerows(
                [one.image_id, f"{x:.3f}", f"{y:.3f}", f"{radius:.3f}"]
                for (x, y), radius in zip(one.centres, one.radii, strict=True)
            )
