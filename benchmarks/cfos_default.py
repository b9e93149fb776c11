"""A detector at its default threshold on the 13 real c-Fos sections, beside people and a tuned classical filter.

    python benchmarks/cfos_default.py DATA [--detector NAME|DIR] [--json FILE]

DATA holds sections/cfos (`images/`, `expert_clicks.csv`, `consensus.csv`). Every section is written as an
OME-Zarr of one slice and goes through `brainmap detect` with `--cell-diameter 15` (cells are about 15 px across, a
pixel is called 1 um). Truth is the experts' consensus; scores are micro-averaged over sections. Beside it:

- Laplacian of Gaussian: local maxima, with scale, threshold and kind of image (raw, or normalised as detection
  does) chosen with the truth in hand;
- every expert against the consensus that brainmap makes of the four others.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from scipy import ndimage

from brainmap.gt.aggregate import ACCEPT, aggregate_clicks
from brainmap.gt.clicks import Clicks, read_clicks, read_point_table
from brainmap.gt.settings import GtSettings
from brainmap.image.intensity import Intensity
from brainmap.image.volume import write_volume
from brainmap.infer.detector import Detector
from brainmap.points.matching import Scores, match_points, score
from brainmap.points.table import Points
from brainmap.run.detect import detect_brain
from brainmap.run.request import DetectRequest
from brainmap.tiles.pictures import read_grey
from brainmap.train.judge import scores
from brainmap.train.judge.scores import TruePoints
from brainmap.train.learn.samples import ArraySource

TOLERANCES_PX = (3.0, 5.0, 7.0, 10.0)
MAIN_PX = 7.0
LOWEST_SCORE = 0.02
CELL_PX = 15.0
SIGMAS_PX = (4.0, CELL_PX / 2 / np.sqrt(2), 6.0, 7.0, 8.0)

Sections = dict[str, np.ndarray]


def read_sections(folder: Path) -> Sections:
    """Grey values of every section, by its id."""
    return {path.stem: np.asarray(read_grey(path)) for path in sorted((folder / "images").glob("*.png"))}


def read_points(path: Path, sections: Sections) -> dict[str, dict[str, np.ndarray]]:
    """Points x, y by expert ("expert" where the table names none) and section."""
    image, name, xy = (np.array(column) for column in read_point_table(path))
    return {
        who: {s: xy[(image == s) & (name == who)] for s in sections} for who in sorted(set(name.tolist()))
    }


def detect(sections: Sections, detector: str, threshold: float) -> dict[str, np.ndarray]:
    """x, y, score of the cells `brainmap detect` finds in every section.

    A lower threshold adds cells and takes none away (suppression looks at stronger ones only).
    """
    found = {}
    for name, image in sections.items():
        with tempfile.TemporaryDirectory() as folder:
            brain, run = Path(folder) / "section.ome.zarr", Path(folder) / "run"
            write_volume(brain, image[None], (1.0, 1.0, 1.0))
            request = DetectRequest(
                str(brain), run, atlas=None, detector=detector, cell_diameter_um=CELL_PX,
                threshold=threshold, progress=False,
            )  # fmt: skip
            detect_brain(request)
            points = Points.read(run / "points.parquet")
            found[name] = np.column_stack([points["x"], points["y"], points["score"]])
    return found


def normalised(sections: Sections) -> Sections:
    """The intensity that detection sees, at the section's own resolution."""
    found = {}
    for name, image in sections.items():
        axes = [np.arange(float(n)) for n in (1, *image.shape)]
        intensity = Intensity.fit(ArraySource(image[None], (1.0, 1.0, 1.0)), CELL_PX)
        found[name] = intensity.normalise(image[None], *axes)[0]
    return found


def count(found: dict[str, np.ndarray], truth: dict[str, np.ndarray], tolerance: float) -> Scores:
    """Scores summed over the sections."""
    total = Scores(0, 0, 0)
    for name, xy in truth.items():
        pairs = match_points(found[name][:, :2], xy, tolerance)
        total += score(len(pairs), len(found[name]), len(xy))
    return total


def laplacian(sections: Sections, sigma: float) -> dict[str, np.ndarray]:
    """x, y and height of the local maxima of minus the Laplacian of Gaussian."""
    found = {}
    for name, image in sections.items():
        response = -(sigma**2) * ndimage.gaussian_laplace(image.astype(np.float32), sigma)
        peak = (response == ndimage.maximum_filter(response, 2 * round(0.3 * CELL_PX) + 1)) & (response > 0)
        y, x = np.nonzero(peak)
        found[name] = np.column_stack([x, y, response[peak]])
    return found


def consensus_of_others(clicks: Clicks, sections: Sections) -> dict[str, dict[str, np.ndarray]]:
    """For every expert, the cells by section that the other experts' clicks make."""
    found = {}
    for who in clicks.worker_ids:
        others = clicks.without_workers({who})
        made = aggregate_clicks(others, GtSettings(ability="all"))
        images = dict(zip(others.image_ids, made.images, strict=True))
        found[who] = {s: images[s].xy[images[s].posterior >= ACCEPT] for s in sections}
    return found


def sweep(found: dict[str, np.ndarray], truth: dict[str, np.ndarray], tolerance: float) -> dict:
    """Best F1 over all thresholds, the threshold chosen with the truth in hand, and average precision."""
    table = np.concatenate(list(found.values()))
    section = np.repeat(np.arange(len(found)), [len(v) for v in found.values()])
    true = [truth[name] for name in found]
    points = TruePoints(
        np.arange(len(true)), np.repeat(np.arange(len(true)), [len(v) for v in true]), np.concatenate(true),
        np.ones(sum(len(v) for v in true)),
    )  # fmt: skip
    curve = scores.sweep(scores.Scored(section, table[:, :2], table[:, 2]), [points], tolerance)
    f1 = curve.f1
    best = int(np.argmax(f1))
    return {
        "f1": float(f1[best]),
        "threshold": float(curve.threshold[best]),
        "average_precision": curve.average_precision,
    }


def evaluate(data: Path, detector: str) -> dict:
    folder = data / "sections" / "cfos"
    sections = read_sections(folder)
    truth = read_points(folder / "consensus.csv", sections)["expert"]
    experts = read_points(folder / "expert_clicks.csv", sections)
    everything = detect(sections, detector, LOWEST_SCORE)
    threshold = Detector.open(detector).spec.threshold
    found = {name: table[table[:, 2] >= threshold] for name, table in everything.items()}
    kinds = {"raw": sections, "normalised": normalised(sections)}
    filters = {(kind, s): laplacian(images, s) for kind, images in kinds.items() for s in SIGMAS_PX}
    kind, sigma = max(filters, key=lambda which: sweep(filters[which], truth, MAIN_PX)["f1"])
    others = consensus_of_others(read_clicks(folder / "expert_clicks.csv"), sections)
    result: dict = {"threshold": threshold, "detector": {}, "laplacian": {}, "experts": {}, "sections": {}}
    for tolerance in TOLERANCES_PX:
        at = count(found, truth, tolerance)
        key = f"{tolerance:g}"
        result["detector"][key] = {
            "f1": at.f1, "precision": at.precision, "recall": at.recall,
            "best": sweep(everything, truth, tolerance),
            "against_experts": {who: count(found, own, tolerance).f1 for who, own in experts.items()},
        }  # fmt: skip
        result["laplacian"][key] = {"kind": kind, "sigma": sigma} | sweep(
            filters[kind, sigma], truth, tolerance
        )
        against = {who: count(own, others[who], tolerance).f1 for who, own in experts.items()}
        result["experts"][key] = {
            "against_consensus_of_others": against,
            "median": float(np.median(list(against.values()))),
            "against_consensus_of_all": {
                who: count(own, truth, tolerance).f1 for who, own in experts.items()
            },
        }
    for name in sections:
        at = count({name: found[name]}, {name: truth[name]}, MAIN_PX)
        result["sections"][name] = {"cells": len(truth[name]), "found": len(found[name]), "f1": at.f1,
                                    "precision": at.precision, "recall": at.recall}  # fmt: skip
    return result


def show(result: dict) -> None:
    print("| tolerance px | detector F1 | precision | recall | best F1 (threshold) | AP | tuned LoG F1 (image, sigma) "
          "| median expert vs consensus of others |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
    for key, own in result["detector"].items():
        best, log, people = own["best"], result["laplacian"][key], result["experts"][key]
        print(
            f"| {key} | {own['f1']:.3f} | {own['precision']:.3f} | {own['recall']:.3f} | {best['f1']:.3f} "
            f"({best['threshold']:.2f}) | {best['average_precision']:.3f} | {log['f1']:.3f} "
            f"({log['kind']}, {log['sigma']:.1f}) | {people['median']:.3f} |"
        )
    main = f"{MAIN_PX:g}"
    people = result["experts"][main]
    print(f"\n| at {main} px | F1 with consensus of the other experts | with consensus of all "
          "| of the detector with this expert |\n|---|---|---|---|")  # fmt: skip
    for who, f1 in people["against_consensus_of_others"].items():
        print(f"| {who} | {f1:.3f} | {people['against_consensus_of_all'][who]:.3f} "
              f"| {result['detector'][main]['against_experts'][who]:.3f} |")  # fmt: skip
    print(f"\n| section, {main} px | cells | found | F1 | precision | recall |\n|---|---|---|---|---|---|")
    for name, row in result["sections"].items():
        print(f"| {name} | {row['cells']} | {row['found']} | {row['f1']:.3f} | {row['precision']:.3f} "
              f"| {row['recall']:.3f} |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--detector", default="default")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = evaluate(options.data, options.detector)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    show(result)


if __name__ == "__main__":
    main()
