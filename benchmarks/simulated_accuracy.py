"""Accuracy of a detector on simulated tissue it was never trained on, through the whole engine.

    python benchmarks/simulated_accuracy.py [--detector NAME|DIR] [--seeds 3] [--json]

For every kind of tissue in `brainmap.train.tissue.tissue.KINDS` and every seed: write the volume as OME-Zarr, run
`brainmap detect` on it at the default threshold, score at 10 and 5 um. Beside it a difference of Gaussians
whose threshold is chosen with the truth in hand: what a well-tuned classical detector could reach.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy import ndimage

from brainmap.image.volume import write_volume
from brainmap.points.matching import match_points
from brainmap.points.table import Points
from brainmap.run.detect import detect_brain
from brainmap.run.request import DetectRequest
from brainmap.train.tissue.tissue import KINDS, Tissue, simulate, variant

FIRST_SEED = 70_000


def f1(found: np.ndarray, truth: np.ndarray, tolerance: float) -> tuple[float, float, float]:
    """F1, precision and recall of centres in um."""
    hits = len(match_points(found, truth, tolerance).index_a)
    return (
        2 * hits / max(1, len(found) + len(truth)),
        hits / max(1, len(found)),
        hits / max(1, len(truth)),
    )


def difference_of_gaussians(tissue: Tissue, diameter_um: float, tolerance: float) -> float:
    """Best F1 over all thresholds of a band-pass filter's local maxima."""
    voxel = np.asarray(tissue.voxel_um)
    image = tissue.image.astype(np.float32)
    sigma = diameter_um / 2 / np.sqrt(3)
    band = ndimage.gaussian_filter(image, sigma / voxel) - ndimage.gaussian_filter(image, 1.6 * sigma / voxel)
    size = [2 * round(0.35 * diameter_um / v) + 1 for v in voxel]
    places = np.argwhere((band == ndimage.maximum_filter(band, size)) & (band > 0))
    strength = band[tuple(places.T)]
    order = np.argsort(-strength)[: 6 * len(tissue.centres_vox)]
    places, truth = places[order] * voxel, tissue.centres_vox * voxel
    counts = np.unique(np.linspace(0.3, 3, 28) * len(truth)).astype(int)
    return max(f1(places[:n], truth, tolerance)[0] for n in counts if n <= len(places))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--detector", default="default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    for kind in KINDS:
        scores = []
        for seed in range(FIRST_SEED, FIRST_SEED + options.seeds):
            config = variant(kind)
            tissue = simulate(config, seed)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "tissue.ome.zarr"
                write_volume(path, tissue.image, tissue.voxel_um)
                run = Path(folder) / "run"
                detect_brain(
                    DetectRequest(str(path), run, atlas=None, detector=options.detector, progress=False)
                )
                points = Points.read(run / "points.parquet")
            found, truth = points.zyx_um, tissue.centres_vox * tissue.voxel_um
            ten, five = f1(found, truth, 10.0), f1(found, truth, 5.0)
            scores.append(
                [*ten, five[0], difference_of_gaussians(tissue, config.diameter_um, 10.0), len(truth)]
            )
        names = ("f1_10um", "precision", "recall", "f1_5um", "dog_best_f1_10um", "cells")
        rows.append({"kind": kind} | dict(zip(names, np.mean(scores, axis=0).round(4).tolist(), strict=True)))
    for key in ("f1_10um", "f1_5um", "dog_best_f1_10um"):
        print(f"mean {key}: {np.mean([row[key] for row in rows]):.3f}", file=sys.stderr)
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        print(
            "| tissue | F1 10 um | precision | recall | F1 5 um | tuned DoG | cells |\n|---|---|---|---|---|---|---|"
        )
        for row in rows:
            print("| " + " | ".join(v if isinstance(v, str) else f"{v:.3g}" for v in row.values()) + " |")


if __name__ == "__main__":
    main()
