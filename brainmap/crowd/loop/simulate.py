"""A crowd that clicks on the tiles of a phantom, whose cells are known: for the demo, the study and the tests.

As in `brainmap.gt.simulate` workers differ in sensitivity, in false clicks, in jitter and bias; here the cells are
those that show in a tile, and what is hard is the same for all: cells that the section only grazes.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from brainmap.errors import DataError
from brainmap.files import atomic_path
from brainmap.gt.truth import GroundTruth
from brainmap.points.table import read_locations
from brainmap.tiles.tiles import Tiles

__all__ = ["CrowdModel", "ShownCells", "cells_of_tiles", "truth_of", "write_crowd"]

Floats = NDArray[np.float64]

# Share of a cell's diameter that its centre may lie from a section that shows it.
_GRAZED = 0.45


@dataclass(frozen=True)
class ShownCells:
    """Cells that show in one tile: `xy` (n, 2) tile px, `depth` (n,) 0 in the middle of the cell to 1 at its rim."""

    xy: Floats
    depth: Floats


@dataclass(frozen=True)
class CrowdModel:
    """Who clicks; the defaults are a crowd of students, better than the study's, with one who clicks anywhere.

    Parameters
    ----------
    workers : int
    per_tile : int
        Workers who see each tile; QC tiles are seen by all.
    sensitivity, spread : float
        Mean chance to click a clear cell, and its spread over workers in logits.
    grazed : float
        How much harder a cell at its rim is, in logits.
    strays : float
        Clicks of a worker on a tile that hit nothing.
    jitter, bias : float
        px.
    repeats : float
        Share of the clicks made twice.
    spammers : int
        Workers who click anywhere.
    seed : int
    """

    workers: int = 12
    per_tile: int = 6
    sensitivity: float = 0.88
    spread: float = 0.7
    grazed: float = 1.5
    strays: float = 0.4
    jitter: float = 0.8
    bias: float = 0.3
    repeats: float = 0.02
    spammers: int = 1
    seed: int = 0


def cells_of_tiles(tiles: Tiles, truths: Mapping[str, Path]) -> dict[str, ShownCells]:
    """The known cells that show in each tile.

    Parameters
    ----------
    tiles : Tiles
    truths : mapping of str to Path
        For each brain of the tiles the table of its cells: `z y x` (level-0 voxels) and, where there is one,
        `diameter_um`.

    Raises
    ------
    DataError
        A tile of a brain without a table.
    """
    shown: dict[str, ShownCells] = {}
    tables = {name: read_locations(path) for name, path in truths.items()}
    columns = tiles.columns
    for i, name in enumerate(tiles.ids):
        table = tables.get(str(columns["brain"][i]))
        if table is None:
            raise DataError(
                f"there is no table of the cells of {columns['brain'][i]}, from which tile {name} was cut"
            )
        zyx = table.zyx_vox
        diameter = (
            np.asarray(table["diameter_um"], np.float64)
            if "diameter_um" in table
            else np.full(len(zyx), 10.0)
        )
        depth = np.abs(zyx[:, 0] - columns["z"][i]) * columns["voxel_um"][i][0] / (_GRAZED * diameter)
        xy = zyx[:, [2, 1]] - [columns["x0"][i], columns["y0"][i]]
        inside = (xy >= 0).all(axis=1) & (xy <= [columns["width"][i] - 1, columns["height"][i] - 1]).all(
            axis=1
        )
        use = inside & (depth <= 1)
        shown[str(name)] = ShownCells(xy[use], depth[use])
    return shown


def truth_of(tiles: Tiles, shown: Mapping[str, ShownCells]) -> GroundTruth:
    """The cells that show, as a ground truth."""
    names = [str(name) for name in tiles.ids]
    image = np.repeat(np.array(names, dtype=object), [len(shown[name].xy) for name in names])
    xy = np.concatenate([shown[name].xy for name in names])
    sizes = {name: (int(h), int(w)) for name, (h, w) in zip(names, tiles.shapes, strict=True)}
    return GroundTruth.from_points(image, xy, sizes)


def write_crowd(
    folder: Path, tiles: Tiles, shown: Mapping[str, ShownCells], model: CrowdModel = CrowdModel()
) -> int:
    """Write `clicks.csv`, `assignments.csv` and `workers.csv` of a simulated crowd, as a site exports them.

    Parameters
    ----------
    folder : Path
        Made if needed.
    tiles : Tiles
    shown : mapping of str to ShownCells
        As `cells_of_tiles` finds them.
    model : CrowdModel

    Returns
    -------
    int
        Number of clicks. Equal models and tiles give equal clicks.
    """
    rng = np.random.default_rng(model.seed)
    n = model.workers
    ability = logit(model.sensitivity) + rng.normal(0, model.spread, n)
    jitter = model.jitter * np.exp(rng.normal(0, 0.25, n))
    bias = rng.normal(0, model.bias, (n, 2))
    names = [f"sim{w + 1:02d}" for w in range(n)]
    load = np.zeros(n)
    clicks: list[tuple[str, str, str, str]] = []
    assigned: list[tuple[str, str, str]] = []
    for i, name in enumerate(str(name) for name in tiles.ids):
        who = _who(rng, load, n if tiles.columns["is_qc"][i] else min(n, model.per_tile))
        load[who] += 1
        size = np.array([tiles.columns["width"][i], tiles.columns["height"][i]], np.float64)
        for w in who:
            assigned.append((name, names[w], "true"))
            if w < model.spammers:
                at = rng.uniform(0, size - 1, (max(3, len(shown[name].xy)), 2))
            else:
                at = _marks(rng, shown[name], ability[w], model, size) + bias[w]
                at = at + rng.normal(0, jitter[w], at.shape)
            at = np.clip(at, 0, size - 1)
            clicks += [(name, names[w], f"{x:.2f}", f"{y:.2f}") for x, y in at]
    _write(folder / "clicks.csv", ("image_id", "worker_id", "x", "y"), clicks)
    _write(folder / "assignments.csv", ("image_id", "worker_id", "completed"), assigned)
    _write(folder / "workers.csv", ("worker_id",), [(name,) for name in names])
    return len(clicks)


def _who(rng: np.random.Generator, load: Floats, wanted: int) -> NDArray[np.int64]:
    """Workers of a tile: those with the fewest tiles so far, by chance among equals."""
    return np.sort(np.lexsort((rng.random(len(load)), load))[:wanted])


def _marks(
    rng: np.random.Generator, cells: ShownCells, ability: float, model: CrowdModel, size: Floats
) -> Floats:
    seen = rng.random(len(cells.xy)) < expit(ability - model.grazed * cells.depth**2)
    at = cells.xy[seen]
    at = np.concatenate([at, at[rng.random(len(at)) < model.repeats]])
    return np.concatenate([at, rng.uniform(0, size - 1, (rng.poisson(model.strays), 2))])


def _write(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with atomic_path(path) as part, part.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
