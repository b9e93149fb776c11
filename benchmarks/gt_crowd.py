"""Accuracy of the ground truth on the real crowd set, against majority voting and the best vote threshold.

    python benchmarks/gt_crowd.py DATA     (DATA holds crowd/clicks.csv, crowd/truth.csv)

Reference methods work on DBSCAN clusters (eps 2, min_samples 1, mean of the clicks): a cluster is a cell if more
than half of the image's workers clicked in it, or if at least k did, with the k that is best on the truth.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.cluster import DBSCAN

from brainmap.gt.aggregate import aggregate_clicks
from brainmap.gt.clicks import read_clicks
from brainmap.gt.compare import calibration_error
from brainmap.gt.settings import GtSettings
from brainmap.points.matching import match_points, score

TOLERANCE = 3.0


def reference(clicks, truth):
    """F1 of majority voting and of the best vote threshold."""
    counts, majority = defaultdict(lambda: np.zeros(3, int)), np.zeros(3, int)
    for image, name in enumerate(clicks.image_ids):
        rows = clicks.rows_of(image)
        xy, worker = clicks.xy[rows], clicks.worker[rows]
        label = DBSCAN(eps=2, min_samples=1).fit_predict(xy)
        centres = np.stack([np.bincount(label, xy[:, a]) / np.bincount(label) for a in (0, 1)], axis=1)
        votes = np.bincount(np.unique(np.stack([label, worker], 1), axis=0)[:, 0])
        n = len(np.unique(worker))
        for k in range(1, n + 1):
            counts[k] += count(centres[votes >= k], truth[name])
        majority += count(centres[votes > n / 2], truth[name])
    return f1(majority), max((f1(c), k) for k, c in counts.items())


def count(found, true):
    return np.array([len(match_points(found, true, TOLERANCE)), len(found), len(true)])


def f1(counts):
    return score(*counts.tolist()).f1


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    data = parser.parse_args().data / "crowd"
    frame = pd.read_csv(data / "truth.csv", dtype={"image_id": str})
    truth = {k: g[["x", "y"]].to_numpy(float) for k, g in frame.groupby("image_id")}
    every = pd.read_csv(data / "clicks.csv", dtype={"image_id": str, "worker_id": str})
    for prefix in ("synth_cells", "snr"):
        part = Path(f"{prefix}.tmp.csv")
        every[every.image_id.str.startswith(prefix)].to_csv(part, index=False)
        clicks = read_clicks(part)
        part.unlink()
        majority, (oracle, k) = reference(clicks, truth)
        row = {"set": prefix, "majority": majority, "oracle_vote": oracle, "oracle_k": k}
        for method in ("best", "study"):
            consensus = aggregate_clicks(clicks, GtSettings(method=method))
            counts, probability, right = np.zeros(3, int), [], []
            for name, image in zip(clicks.image_ids, consensus.images, strict=True):
                counts += count(image.xy[image.posterior >= 0.5], truth[name])
                hit = np.zeros(len(image.xy))
                hit[match_points(image.xy, truth[name], TOLERANCE).index_a] = 1
                probability.append(image.posterior)
                right.append(hit)
            row[f"{method}_f1"] = f1(counts)
            row[f"{method}_ece"] = calibration_error(np.concatenate(probability), np.concatenate(right))
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}), flush=True)


if __name__ == "__main__":
    main()
