"""Known answers of SimpleITK STAPLE and crowd-kit Dawid-Skene, for tests/gt/known_answers.json.

Run in an environment of its own: pip install SimpleITK crowd-kit; python gt_known_answers.py OUT.json
"""

import json
import sys

import numpy as np


def matrix(seed: int, items: int, workers: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    truth = rng.random(items) < 0.4
    p, q = rng.uniform(0.55, 0.95, workers), rng.uniform(0.7, 0.97, workers)
    chance = np.where(truth[:, None], p, 1 - q)
    return (rng.random((items, workers)) < chance).astype(int)


def staple(d: np.ndarray) -> dict:
    import SimpleITK

    run = SimpleITK.STAPLEImageFilter()
    run.SetForegroundValue(1)
    run.SetMaximumIterations(10000)
    images = [SimpleITK.GetImageFromArray(column.astype(np.uint8)[None]) for column in d.T]
    posterior = SimpleITK.GetArrayFromImage(run.Execute(images))[0]
    return {
        "sensitivity": list(run.GetSensitivity()),
        "specificity": list(run.GetSpecificity()),
        "posterior": posterior.tolist(),
    }


def dawid_skene(d: np.ndarray) -> dict:
    import pandas as pd
    from crowdkit.aggregation import DawidSkene

    item, worker = np.nonzero(np.ones_like(d))
    table = pd.DataFrame({"task": item, "worker": worker, "label": d[item, worker]})
    # A negative tolerance: crowd-kit otherwise stops at the first step that gains nothing it can measure.
    model = DawidSkene(n_iter=400, tol=-1.0).fit(table)
    return {"posterior": model.probas_.sort_index()[1].tolist(), "prior": float(model.priors_[1])}


def main(path: str) -> None:
    cases = []
    for seed, items, workers in ((0, 60, 5), (1, 200, 12), (2, 25, 3), (3, 150, 36)):
        d = matrix(seed, items, workers)
        cases.append({"d": d.tolist(), "staple": staple(d), "dawid_skene": dawid_skene(d)})
    with open(path, "w") as stream:
        json.dump({"cases": cases}, stream)


if __name__ == "__main__":
    main(sys.argv[1])
