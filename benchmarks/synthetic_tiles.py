"""Synthetic against held-out real tiles on the real c-Fos sections, end to end.

    python benchmarks/synthetic_tiles.py DATA [--generator CHECKPOINT] [--set both] [--json] [--report DIR]

DATA holds sections/cfos and sections/quanty. Half of the sections teach (placement, look of cells, texture); the
other half is compared with as many synthetic tiles. Rows:

    real      the teaching half itself: the floor, as near as real tiles come to other real ones
    study     the founding study's rules and white cells, background by the generator
    learnt    placement and soft cells learnt from annotations, background by the generator
    matched   the same, and the background given the statistics of real tiles
    noise     the same with white noise in place of the generator
    white     the same as noise, with the study's white cells in place of soft ones

A generator trained on the same sections has seen the held-out half. The quanty crops have no annotation: what
is bright is taken for a cell there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

from brainmap.tiles.tiles import Tiles, hold_out, import_tiles, quality_filter, write_tiles
from brainmap.train.synthesis.cell_images import CellLook, measure_cells
from brainmap.train.synthesis.placement import Placement
from brainmap.train.synthesis.similarity import compare_tiles, disc_signal, synthetic_signal
from brainmap.train.synthesis.similarity_report import write_similarity
from brainmap.train.synthesis.synthesis import SynthesisSettings, synthesize
from brainmap.train.synthesis.texture import Texture, bright_spots

PIXEL_UM = 0.667
QUANTY_UM = 0.45
RADIUS_PX = 7.5


def sections(data: Path, work: Path) -> tuple[Tiles, dict[str, np.ndarray]]:
    """Whole sections at one pixel size, and the cells on them."""
    cfos = import_tiles(
        sorted((data / "cfos/images").glob("*.png")),
        work / "cfos",
        voxel_um=(30, PIXEL_UM, PIXEL_UM),
        overwrite=True,
    )
    files = [p for p in sorted((data / "quanty/samples").rglob("*.tif")) if "PM_mRNA" not in p.parts]
    quanty = import_tiles(files, work / "quanty", voxel_um=(30, QUANTY_UM, QUANTY_UM), overwrite=True)
    images = [cfos.image(i) for i in range(len(cfos))]
    table = pd.read_csv(data / "cfos/consensus.csv", dtype={"image_id": str})
    points = {k: g[["x", "y"]].to_numpy(float) for k, g in table.groupby("image_id")}
    for index, name in enumerate(quanty.ids):
        zoom = QUANTY_UM / PIXEL_UM
        image = ndimage.zoom(quanty.image(index), zoom, order=1, grid_mode=True, mode="nearest").clip(0, 1)
        label, count = ndimage.label(bright_spots(image, RADIUS_PX))
        middles = ndimage.center_of_mass(image, label, range(1, count + 1))
        points[name] = np.array(middles).reshape(-1, 2)[:, ::-1]
        images.append(image)
    ids = [*cfos.ids, *quanty.ids]
    columns = {
        "image_id": ids,
        "brain": ids,
        "z": [0] * len(ids),
        "dataset": ["cfos"] * len(cfos) + ["quanty"] * len(quanty),
        "voxel_um": [(30, PIXEL_UM, PIXEL_UM)] * len(ids),
    }
    return write_tiles(work / "sections", columns, images), points


def cut(whole: Tiles, points: dict[str, np.ndarray], size: int, folder: Path):
    """Tiles of `size` that hold tissue (methods 2), and the cells on each."""
    rows, images, cells = [], [], {}
    for index, name in enumerate(whole.ids):
        image = whole.image(index)
        for y in range(0, image.shape[0] - size + 1, size):
            for x in range(0, image.shape[1] - size + 1, size):
                part = image[y : y + size, x : x + size]
                if "background" in quality_filter(part):
                    continue
                tile = f"{name}_y{y:04d}_x{x:04d}"
                rows.append((tile, name, y, x, whole.columns["dataset"][index]))
                images.append(part)
                xy = points.get(name, np.zeros((0, 2))) - (x, y)
                cells[tile] = xy[((xy >= -0.5) & (xy < size - 0.5)).all(axis=1)]
    ids, brain, y0, x0, dataset = zip(*rows, strict=True)
    columns = {"image_id": ids, "brain": brain, "z": [0] * len(ids), "y0": y0, "x0": x0, "dataset": dataset,
               "voxel_um": [(30, PIXEL_UM, PIXEL_UM)] * len(ids)}  # fmt: skip
    return write_tiles(folder, columns, images), cells


def learn(teaching: Tiles, cells: dict[str, np.ndarray]):
    """Placement, look of cells and texture of the teaching tiles."""
    images = [teaching.image(i) for i in range(len(teaching))]
    points = [cells[name] for name in teaching.ids]
    measured = measure_cells(images, points, RADIUS_PX)
    shapes = [image.shape for image in images]
    placement = Placement.fit(points, shapes, radii=measured[:, 0])
    return placement, CellLook().fitted(measured), Texture.fit(images, RADIUS_PX)


def compare(name, tiles, cells, size, limit, generator, work, seed, report):
    """All rows of one set of tiles."""
    chosen = tiles if name == "both" else tiles.take(tiles.columns["dataset"] == name)
    held = hold_out(chosen, 0.5, seed)
    rng = np.random.default_rng(seed)
    real, teaching = (chosen.take(rng.permutation(np.flatnonzero(side))[:limit]) for side in (held, ~held))
    placement, look, texture = learn(chosen.take(~held), cells)
    basic = SynthesisSettings(height=size, width=size, cells=CellLook(look="study"))
    learnt = SynthesisSettings(height=size, width=size, placement=placement, cells=look)
    white = SynthesisSettings(height=size, width=size, placement=placement, cells=CellLook(look="study"))
    variants = {"noise": (learnt, None, texture), "white": (white, None, texture)}
    if generator is not None:
        variants |= {
            "study": (basic, generator, None),
            "learnt": (learnt, generator, None),
            "matched": (learnt, generator, texture),
        }
    signal = disc_signal(tiles, cells, float(placement.rules.radius_px[0]))
    rows = {"real": compare_tiles(real, teaching, signal, signal).to_dict()}
    for variant, (settings, source, statistics) in variants.items():
        made = synthesize(settings, source, work / f"{name}-{variant}", len(real), seed, statistics, True)
        similarity = compare_tiles(real, made, signal, synthetic_signal(made))
        rows[variant] = similarity.to_dict()
        if report is not None:
            write_similarity(report / f"{name}-{variant}", similarity, real, made)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder that holds sections/")
    parser.add_argument("--generator", type=Path, help="checkpoint of `brainmap train generator`")
    parser.add_argument("--set", default="both", choices=["cfos", "quanty", "both"])
    parser.add_argument("--size", type=int, default=256, help="width of a tile, px")
    parser.add_argument("--limit", type=int, default=100, help="most tiles on a side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--report", type=Path, help="folder for pages with figures")
    given = parser.parse_args()
    generator = None
    if given.generator is not None:
        from brainmap.train.synthesis.generator import load_generator

        generator = load_generator(given.generator)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        whole, points = sections(given.data / "sections", work)
        tiles, cells = cut(whole, points, given.size, work / "tiles")
        rows = compare(
            given.set, tiles, cells, given.size, given.limit, generator, work, given.seed, given.report
        )
    if given.json:
        print(json.dumps(rows))
        return
    print(f"{'':10}{'JSD':>9}{'background':>12}{'ln power':>10}{'nearest':>9}   (study 0.097, 0.101, 0.841)")
    for name, row in rows.items():
        print(
            f"{name:10}{row['jsd']:9.4f}{row['jsd_background']:12.4f}{row['log_power']:10.3f}"
            f"{row['nearest_real_median']:9.2f}"
        )


if __name__ == "__main__":
    main()
