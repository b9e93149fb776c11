"""`brainmap crowd study` on what is labelled: real c-Fos sections, and phantom brains whose staining differs.

Sections: 13 images (Segebarth et al. 2020) cut into tiles of 256 px, the experts' consensus as truth; every image
stands for an animal and has one slice. Phantoms: small brains cut into tiles of 64 px over many slices, the known
cells as truth; from brain to brain the contrast of the cells and the noise of the camera differ.

    python benchmarks/crowd_study.py WORK [--data DIR] [--animals 8] [--only sections|phantoms]
"""

from __future__ import annotations

import argparse
import csv
import os
from pathlib import Path

import numpy as np

from brainmap.crowd.loop.simulate import cells_of_tiles
from brainmap.crowd.loop.study import run_study
from brainmap.crowd.loop.study_record import StudyRequest
from brainmap.gt.clicks import read_point_table
from brainmap.image.array_source import ArraySource
from brainmap.image.intensity import Intensity
from brainmap.image.volume import Volume
from brainmap.phantom import Phantom, write_phantom
from brainmap.tiles.tiles import TILES_PARQUET, Tiles, import_tiles, write_tiles

SECTION_UM = (20.0, 0.67, 0.67)
SIDE = {"sections": 256, "phantoms": 64}
# Every so many sections one is cut into tiles; a phantom gives so many tiles at most.
EVERY, MOST = 10, 30


def sections(data: Path, work: Path) -> tuple[Path, Path]:
    """Tiles of the real sections, and their points."""
    side, folder = SIDE["sections"], work / "sections"
    images = sorted((data / "sections" / "cfos" / "images").glob("*.png"))
    # The tolerance and the detector's scale follow the cells, about 15 px across.
    tiles = import_tiles(images, folder / "tiles", voxel_um=SECTION_UM, tile_px=side, overwrite=True)
    names, _, xy = read_point_table(data / "sections" / "cfos" / "consensus.csv")
    columns, rows = tiles.columns, []
    for i, name in enumerate(tiles.ids):
        corner = np.array([columns["x0"][i], columns["y0"][i]])
        own = xy[np.array(names) == columns["brain"][i]] - corner
        inside = ((own >= -0.5) & (own < side - 0.5)).all(axis=1)
        rows += [(name, f"{x:.2f}", f"{y:.2f}") for x, y in np.clip(own[inside], 0, side - 1)]
    return folder / "tiles", written(folder / "truth.csv", rows)


def phantoms(animals: int, work: Path) -> tuple[Path, Path]:
    """Tiles of phantom brains, and their points."""
    folder, columns, images, truths = work / "phantoms", [], [], {}
    for seed in range(animals):
        home = folder / f"brain{seed}"
        made = (home / "phantom.json").is_file()
        phantom = Phantom.load(home) if made else write_phantom(home, seed, "tiny")
        truths[f"brain{seed}"] = phantom.truth
        for z, y0, x0, image in cut(phantom, seed):
            columns.append((f"brain{seed}_z{z:03d}_y{y0:03d}_x{x0:03d}", f"brain{seed}", z, y0, x0))
            images.append(image)
    ids, brains, z, y0, x0 = zip(*columns, strict=True)
    voxel = [phantom.voxel_um] * len(ids)
    table = {"image_id": ids, "brain": brains, "z": z, "y0": y0, "x0": x0, "voxel_um": voxel}
    tiles = write_tiles(folder / "tiles", table, images)
    shown = cells_of_tiles(tiles, truths)
    rows = [(name, f"{x:.2f}", f"{y:.2f}") for name, cells in shown.items() for x, y in cells.xy]
    return folder / "tiles", written(folder / "truth.csv", rows)


def cut(phantom: Phantom, seed: int) -> list[tuple[int, int, int, np.ndarray]]:
    """Tiles of one phantom that lie in tissue, its staining changed."""
    side = SIDE["phantoms"]
    volume = Volume.open(phantom.brain, channel=phantom.signal_channel)
    image = volume.read(*(slice(0, n) for n in volume.shape)).astype(np.float32)
    rng = np.random.default_rng([7, seed])
    smooth = np.median(image[::4, ::4, ::4])
    contrast, noise = float(np.exp(rng.normal(0, 0.5))), float(rng.uniform(0.0, 0.06)) * smooth
    image = np.clip(smooth + (image - smooth) * contrast + rng.normal(0, noise, image.shape), 0, 65535)
    source = ArraySource(image.astype(np.uint16), volume.voxel_um)
    intensity = Intensity.fit(source)
    found = []
    for z in range(EVERY // 2, volume.shape[0], EVERY):
        for y0 in range(0, volume.shape[1] - side + 1, side):
            for x0 in range(0, volume.shape[2] - side + 1, side):
                box = (slice(z, z + 1), slice(y0, y0 + side), slice(x0, x0 + side))
                if intensity.tissue_fraction(*box) > 0.7:
                    axes = [np.arange(b.start, b.stop, dtype=float) for b in box]
                    found.append((z, y0, x0, intensity.normalise(source.data[box], *axes)[0]))
    keep = np.sort(rng.permutation(len(found))[:MOST])
    return [found[k] for k in keep]


def written(path: Path, rows: list[tuple[str, str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("image_id", "x", "y"))
        writer.writerows(rows)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--data", default=os.environ.get("BRAINMAP_DATA", "../shared/data"))
    parser.add_argument("--animals", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--budget", type=int, default=8)
    parser.add_argument("--only", default="sections,phantoms")
    options = parser.parse_args()
    for name in options.only.split(","):
        made = options.work / name
        if (made / "tiles" / TILES_PARQUET).is_file():
            tiles, truth = made / "tiles", made / "truth.csv"
        elif name == "sections":
            tiles, truth = sections(Path(options.data), options.work)
        else:
            tiles, truth = phantoms(options.animals, options.work)
        print(f"\n## {name}: {len(Tiles.open(tiles))} tiles\n", flush=True)
        request = StudyRequest(
            tiles, truth, made / "study", budget=options.budget, repeats=options.repeats, draws=options.draws
        )
        study = run_study(request)
        for title, value in study.lines():
            print(f"{title:<14}{value}")
        for k, design in enumerate(study.designs):
            scores = f"F1 {np.nanmean(study.f1[:, k]):.3f}  AUPRC {np.nanmean(study.auprc[:, k]):.3f}"
            print(f"{design.animals:>3} animals  {design.slices:<5}{design.strategy:<10}{scores}")


if __name__ == "__main__":
    main()
