"""A detector on every annotated set of real tissue at hand, beside a difference of Gaussians that knows the truth.

    python benchmarks/real_tissue.py DATA [--detector NAME|DIR] [--left-out SET=DIR ...] [--json FILE] [--pictures DIR]

DATA is the folder of real data. Every image is written as an OME-Zarr and goes through `brainmap detect` with its
default options, only `--cell-diameter` is given where a set's cells are not about 10 um across. `--left-out
lightsheet/1008=DIR` or `--left-out lightsheet=DIR` judges a set by another detector, one that was trained without it.

Sets:

lightsheet
    Four volumes of light-sheet c-Fos; cells of the annotated boxes. Labels there are incomplete: faint cells are
    marked unevenly, so precision is a lower bound. The column "bound" sets aside unlabelled detections that stand
    out at least as much as the median labelled cell of the volume does (by the difference of Gaussians): neither
    right nor wrong. The truth lies between.
sections
    13 c-Fos sections; truth is the consensus of five experts, who are held against the consensus of the others.
inserted
    Simulated cells in the autofluorescence of two real cleared brains: real texture, known truth. Only cells
    that anybody could see (contrast of at least `VISIBLE`) have to be found.
negatives
    Tissue without marked cells: what is found there, for every cubic millimetre, is false (or nearly all of it).

Every set is scored at the detector's threshold and at its own best one. ECE is over detections at or above the
threshold (those a user is shown), in ten bins. The difference of Gaussians (sigma diameter / 3 and 1.8 times that,
three diameters tried) has its scale and its threshold chosen with the truth in hand, which no user can do.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from scipy import ndimage

from brainmap.gt.aggregate import ACCEPT, aggregate_clicks
from brainmap.gt.clicks import read_clicks, read_point_table
from brainmap.gt.settings import GtSettings
from brainmap.image.volume import write_volume
from brainmap.infer.detector import Detector
from brainmap.points.matching import match_points
from brainmap.points.table import Points
from brainmap.run.detect import detect_brain
from brainmap.run.request import DetectRequest
from brainmap.tiles.pictures import read_grey
from brainmap.train.judge.scores import reliability
from brainmap.train.learn.samples import VISIBLE, GridSettings, net_volume
from brainmap.train.tissue.inserted import Background, insert_cells

LOWEST_SCORE = 0.02
LIGHTSHEET_UM = (6.0, 1.62, 1.62)
INSERTED_SEEDS = range(60_000, 60_008)
DOG_RATIO = 1.8
DOG_SCALES = (0.75, 1.0, 1.3)

Array = np.ndarray
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class RealSet:
    """One annotated image.

    Attributes
    ----------
    name : str
        Set and image, such as "lightsheet/1008".
    image : ndarray, shape (z, y, x)
    voxel_um : tuple of float
    truth : ndarray of float64, shape (n, 3)
        Cells to be found, voxel index.
    tolerance_um : float
        Largest distance of a detection from its cell.
    boxes : list of tuple of slice
        What was annotated; all of the image where empty.
    excused : ndarray of float64, shape (m, 3)
        Cells that need not be found and may be, voxel index.
    cell_diameter_um : float, optional
        Given to the detector; None: its default.
    """

    name: str
    image: Array
    voxel_um: tuple[float, float, float]
    truth: Array
    tolerance_um: float = 10.0
    boxes: list[Box] = field(default_factory=list)
    excused: Array = field(default_factory=lambda: np.zeros((0, 3)))
    cell_diameter_um: float | None = None

    @property
    def group(self) -> str:
        return self.name.split("/")[0]

    def annotated(self, vox: Array) -> Array:
        """Which places were looked at by a person."""
        if not self.boxes:
            return np.ones(len(vox), bool)
        inside = np.zeros(len(vox), bool)
        for box in self.boxes:
            low, high = np.array([s.start for s in box]), np.array([s.stop for s in box])
            inside |= np.all((vox >= low - 0.5) & (vox < high - 0.5), axis=1)
        return inside


@dataclass(frozen=True)
class Candidates:
    """Detections on a set: voxel index (n, 3) and strength (n,), those that count only."""

    vox: Array
    strength: Array

    def at_least(self, threshold: float) -> Candidates:
        chosen = self.strength >= threshold
        return Candidates(self.vox[chosen], self.strength[chosen])


def lightsheet(data: Path) -> list[RealSet]:
    folder = data / "lightsheet" / "cfos"
    with (folder / "points.csv").open() as file:
        points = list(csv.DictReader(file))
    with (folder / "annotated_boxes.csv").open() as file:
        boxes = list(csv.DictReader(file))
    sets = []
    for path in sorted(folder.glob("*.tif")):
        own = [p for p in points if p["image_id"] == path.stem]
        truth = np.array([[float(p[a]) for a in "zyx"] for p in own])
        seen: list[Box] = [
            tuple(slice(int(b[a + "0"]), int(b[a + "1"])) for a in "zyx")  # type: ignore[misc]
            for b in boxes
            if b["image_id"] == path.stem
        ]
        sets.append(
            RealSet(f"lightsheet/{path.stem}", tifffile.imread(path), LIGHTSHEET_UM, truth, boxes=seen)
        )
    return sets


def sections(data: Path) -> list[RealSet]:
    folder = data / "sections" / "cfos"
    image_id, _, xy = (np.array(column) for column in read_point_table(folder / "consensus.csv"))
    sets = []
    for path in sorted((folder / "images").glob("*.png")):
        own = xy[image_id == path.stem]
        truth = np.column_stack([np.zeros(len(own)), own[:, 1], own[:, 0]])
        image = np.asarray(read_grey(path))[None]
        sets.append(
            RealSet(f"sections/{path.stem}", image, (1.0, 1.0, 1.0), truth, 10.0, cell_diameter_um=15.0)
        )
    return sets


def inserted(data: Path) -> list[RealSet]:
    backgrounds = [
        Background.open(data / "cells" / f"{name}_background.tif", voxel)
        for name, voxel in (("cortex", (5.0, 2.0, 2.0)), ("split", (5.0, 2.31, 2.31)))
    ]
    sets = []
    for seed in INSERTED_SEEDS:
        tissue = insert_cells(backgrounds[seed % len(backgrounds)], seed)
        seen = net_volume(tissue, GridSettings()).cells[:, 4] >= VISIBLE
        cells = tissue.centres_vox
        sets.append(
            RealSet(f"inserted/{seed}", tissue.image, tissue.voxel_um, cells[seen], excused=cells[~seen])
        )
    return sets


def negatives(data: Path) -> list[RealSet]:
    none = np.zeros((0, 3))
    found = [
        ("axons", data / "lightsheet" / "axons_no_cells" / "train_block.tif", (3.0, 1.63, 1.63)),
        ("cortex background", data / "cells" / "cortex_background.tif", (5.0, 2.0, 2.0)),
        ("split background", data / "cells" / "split_background.tif", (5.0, 2.31, 2.31)),
    ]
    return [RealSet(f"negatives/{n}", tifffile.imread(path), voxel, none) for n, path, voxel in found]


def detect(real: RealSet, detector: str) -> Candidates:
    """All that `brainmap detect` finds down to a low score; a lower threshold adds cells and takes none away."""
    with tempfile.TemporaryDirectory() as folder:
        brain, run = Path(folder) / "brain.ome.zarr", Path(folder) / "run"
        write_volume(brain, real.image, real.voxel_um)
        detect_brain(
            DetectRequest(
                str(brain), run, atlas=None, detector=detector, threshold=LOWEST_SCORE, progress=False,
                cell_diameter_um=real.cell_diameter_um,
            )
        )  # fmt: skip
        points = Points.read(run / "points.parquet")
    vox, score = points.zyx_vox, np.asarray(points["score"], np.float64)
    keep = real.annotated(vox)
    return Candidates(vox[keep], score[keep])


def difference_of_gaussians(real: RealSet, scale: float) -> tuple[Candidates, Array]:
    """Local maxima of a band-pass filter where people looked, and the filter's response everywhere."""
    voxel = np.asarray(real.voxel_um)
    diameter = scale * (real.cell_diameter_um or 10.0)
    sigma = diameter / 3 / voxel * (np.array(real.image.shape) > 1)
    image = real.image.astype(np.float32)
    band = ndimage.gaussian_filter(image, sigma) - ndimage.gaussian_filter(image, DOG_RATIO * sigma)
    size = [
        2 * max(1, round(0.3 * diameter / v)) + 1 if n > 1 else 1
        for v, n in zip(voxel, image.shape, strict=True)
    ]
    places = np.argwhere((band == ndimage.maximum_filter(band, size)) & (band > 0)).astype(float)
    keep = real.annotated(places)
    places = places[keep]
    strength = band[tuple(places.astype(int).T)]
    # More than this many are never the best choice, and matching them takes long.
    most = np.argsort(-strength)[: 5 * len(real.truth) + 50]
    return Candidates(places[most], strength[most]), band


def hits(real: RealSet, found: Candidates) -> tuple[Array, Array]:
    """Which detections are right, and which are excused."""
    um = np.asarray(real.voxel_um)
    right, excused = np.zeros(len(found.vox), bool), np.zeros(len(found.vox), bool)
    right[match_points(found.vox * um, real.truth * um, real.tolerance_um).index_a] = True
    rest = np.flatnonzero(~right)
    if len(real.excused) and len(rest):
        match = match_points(found.vox[rest] * um, real.excused * um, real.tolerance_um)
        excused[rest[match.index_a]] = True
    return right, excused


@dataclass(frozen=True)
class Count:
    """Right, false and all true cells; adds up over images."""

    right: int = 0
    false: int = 0
    true: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.right + other.right, self.false + other.false, self.true + other.true)

    @property
    def precision(self) -> float:
        return self.right / max(1, self.right + self.false)

    @property
    def recall(self) -> float:
        return self.right / max(1, self.true)

    @property
    def f1(self) -> float:
        return 2 * self.right / max(1, self.right + self.false + self.true)


def count(real: RealSet, found: Candidates, threshold: float) -> Count:
    right, excused = hits(real, found.at_least(threshold))
    return Count(int(right.sum()), int((~right & ~excused).sum()), len(real.truth))


def best(reals: list[RealSet], found: list[Candidates], steps: int = 24) -> tuple[float, float]:
    """Best F1 over one threshold for all images, and the threshold."""
    pooled = np.sort(np.concatenate([f.strength for f in found]))[::-1]
    true = sum(len(r.truth) for r in reals)
    numbers = np.unique(np.geomspace(max(2, 0.15 * true), min(len(pooled), 4 * true + 20), steps).astype(int))
    scored = []
    for number in numbers[numbers <= len(pooled)]:
        threshold = float(pooled[number - 1])
        total = sum((count(r, f, threshold) for r, f in zip(reals, found, strict=True)), Count())
        scored.append((total.f1, threshold))
    return max(scored, default=(0.0, 0.0))


def bounded(real: RealSet, found: Candidates, threshold: float) -> Count:
    """The count that sets aside unlabelled detections as clear as the median labelled cell."""
    _, band = difference_of_gaussians(real, 0.75)
    high = ndimage.maximum_filter(band, (3, 5, 5))

    def clear(vox: Array) -> Array:
        index = np.clip(np.rint(vox).astype(int), 0, np.array(band.shape) - 1)
        return high[tuple(index.T)]

    limit = float(np.median(clear(real.truth)))
    shown = found.at_least(threshold)
    right, excused = hits(real, shown)
    excused |= clear(shown.vox) >= limit
    return Count(int(right.sum()), int((~right & ~excused).sum()), len(real.truth))


def experts(data: Path, reals: list[RealSet]) -> dict[str, float]:
    """F1 of every expert against the consensus that brainmap makes of the four others."""
    clicks = read_clicks(data / "sections" / "cfos" / "expert_clicks.csv")
    image, name, xy = (
        np.array(column) for column in read_point_table(data / "sections" / "cfos" / "expert_clicks.csv")
    )
    result = {}
    for who in clicks.worker_ids:
        others = clicks.without_workers({who})
        images = dict(
            zip(others.image_ids, aggregate_clicks(others, GtSettings(ability="all")).images, strict=True)
        )
        total = Count()
        for real in reals:
            stem = real.name.split("/")[1]
            own, cells = xy[(image == stem) & (name == who)], images[stem]
            truth = cells.xy[cells.posterior >= ACCEPT]
            right = len(match_points(own, truth, real.tolerance_um).index_a)
            total += Count(right, len(own) - right, len(truth))
        result[str(who)] = total.f1
    return result


def judge(label: str, reals: list[RealSet], detector: str, pictures: Path | None) -> dict[str, Any]:
    """One row of the table: some images that share a detector, their counts added up."""
    threshold = Detector.open(detector).spec.threshold
    found = [detect(real, detector) for real in reals]
    total = sum((count(r, f, threshold) for r, f in zip(reals, found, strict=True)), Count())
    row: dict[str, Any] = {"set": label, "cells": total.true, "threshold": threshold}
    if not total.true:
        volume = sum(float(np.prod(r.image.shape) * np.prod(r.voxel_um)) for r in reals) / 1e9
        return row | {"false_per_mm3": total.false / volume}
    row |= {"precision": total.precision, "recall": total.recall, "f1": total.f1}
    row["best_f1"], row["best_threshold"] = best(reals, found)
    shown = [f.at_least(threshold) for f in found]
    right, excused = (
        np.concatenate(c) for c in zip(*(hits(r, s) for r, s in zip(reals, shown, strict=True)), strict=True)
    )
    score = np.concatenate([s.strength for s in shown])
    row["ece_shown"] = reliability(score[~excused], right[~excused]).ece if len(score) else None
    dog = {s: [difference_of_gaussians(r, s)[0] for r in reals] for s in DOG_SCALES}
    row["dog_best_f1"] = max(best(reals, made)[0] for made in dog.values())
    if any(r.boxes for r in reals):
        limit = sum((bounded(r, f, threshold) for r, f in zip(reals, found, strict=True)), Count())
        row["bound_precision"], row["bound_f1"] = limit.precision, limit.f1
    if pictures is not None:
        for real, part in zip(reals, shown, strict=True):
            draw(real, part, pictures / f"{real.name.replace('/', '_')}.png")
    return row


def draw(real: RealSet, found: Candidates, path: Path) -> None:
    """The slab with most labelled cells: green right, red false or unlabelled, yellow missed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    right, _ = hits(real, found)
    um = np.asarray(real.voxel_um)
    missed = np.ones(len(real.truth), bool)
    missed[match_points(found.vox * um, real.truth * um, real.tolerance_um).index_b] = False
    half = 0 if len(real.image) == 1 else max(1, round(8 / real.voxel_um[0]))
    z = 0 if len(real.image) == 1 else int(np.median(real.truth[:, 0]))
    low, high = max(0, z - half), min(len(real.image), z + half + 1)
    picture = real.image[low:high].max(axis=0).astype(float)
    figure, axes = pyplot.subplots(1, 2, figsize=(16, 8), layout="constrained")
    for panel in axes:
        panel.imshow(picture, cmap="gray", vmin=np.quantile(picture, 0.01), vmax=np.quantile(picture, 0.997))
        panel.set_axis_off()
    for vox, colour in (
        (found.vox[right], "lime"),
        (found.vox[~right], "red"),
        (real.truth[missed], "yellow"),
    ):
        near = (vox[:, 0] >= low - 0.5) & (vox[:, 0] < high - 0.5)
        axes[1].plot(vox[near, 2], vox[near, 1], "o", mfc="none", mec=colour, ms=9, mew=1.1)
    axes[1].set_title(f"{real.name}: green right, red unlabelled, yellow missed")
    figure.savefig(path, dpi=70)
    pyplot.close(figure)


COLUMNS = (
    "set", "cells", "precision", "recall", "f1", "best_f1", "ece_shown", "dog_best_f1", "bound_precision", "bound_f1",
    "false_per_mm3",
)  # fmt: skip


def show(rows: list[dict[str, Any]], people: dict[str, float]) -> None:
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for row in rows:
        cells = (row.get(name) for name in COLUMNS)
        print(
            "| "
            + " | ".join("" if c is None else f"{c:.3f}" if isinstance(c, float) else str(c) for c in cells)
            + " |"
        )
    scored = [r for r in rows if "f1" in r]
    f1, dog, ece = (np.mean([r[name] for r in scored]) for name in ("f1", "dog_best_f1", "ece_shown"))
    print(f"\nmean F1 {f1:.3f}, difference of Gaussians with the truth in hand {dog:.3f}, mean ECE {ece:.3f}")
    if people:
        print(
            "experts against the consensus of the others: " + ", ".join(f"{f:.3f}" for f in people.values())
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--detector", default="default")
    parser.add_argument("--left-out", action="append", default=[], metavar="SET=DIR")
    parser.add_argument("--only", help="sets whose names begin so")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args()
    other = dict(pair.split("=", 1) for pair in options.left_out)
    loaders = {"lightsheet": lightsheet, "sections": sections, "inserted": inserted, "negatives": negatives}
    rows, people = [], {}
    for group, load in loaders.items():
        if options.only and not options.only.startswith(group):
            continue
        reals = [r for r in load(options.data) if r.name.startswith(options.only or "")]
        together = group in ("sections", "inserted")
        for label, part in [(group, reals)] if together else [(r.name, [r]) for r in reals]:
            detector = other.get(label, other.get(group, options.detector))
            rows.append(judge(label, part, detector, options.pictures))
        if group == "sections":
            people = experts(options.data, reals)
    show(rows, people)
    if options.json:
        options.json.write_text(
            json.dumps({"rows": rows, "experts": people}, indent=2) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
