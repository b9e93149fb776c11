"""Simulated crowds with known truth: F1, abilities, spammers, calibration; best, study, STAPLE, majority.

    python benchmarks/gt_simulated.py [--images N]

STAPLE is our EM with its prior held at the share of clicks (equal to SimpleITK's, tests/gt/test_ability.py), on
the study's candidates; majority accepts a study candidate more than half of the image's workers clicked.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import numpy as np

from brainmap.gt.ability import fit_votes
from brainmap.gt.aggregate import aggregate_clicks
from brainmap.gt.candidates import study_candidates
from brainmap.gt.compare import calibration_error
from brainmap.gt.settings import GtSettings
from brainmap.gt.simulate import Simulation, simulate
from brainmap.gt.study import _votes
from brainmap.points.matching import match_points, score

BASE = Simulation(n_images=6)
CROWDS = {
    "study_like": BASE,
    "jittery_dense": replace(BASE, jitter=2.5, n_cells=120, n_sites=40, specificity=0.93),
    "few_workers": replace(BASE, n_workers=6, spammers=1, shifted=0, strays=8.0),
    "no_sites": replace(BASE, n_sites=0, strays=10.0),
    "hard": replace(BASE, difficulty=2.0, sensitivity=0.45),
}


def f1(sets, truth):
    counts = sum(
        np.array([len(match_points(a, t, 3.0)), len(a), len(t)]) for a, t in zip(sets, truth, strict=True)
    )
    return score(*counts.tolist()).f1


def baselines(crowd):
    clicks = crowd.clicks
    rows = [np.arange(*clicks.rows_of(i).indices(len(clicks))) for i in range(len(clicks.image_ids))]
    found = [study_candidates(clicks.xy[r], clicks.worker[r], GtSettings()) for r in rows]
    votes = _votes(clicks, rows, found, np.ones(len(clicks.worker_ids), bool))
    seen = np.bincount(votes.seen_group, minlength=votes.n_groups)[votes.group]
    share = np.bincount(votes.item, minlength=votes.n_items) / np.maximum(seen, 1)
    prior = len(votes.item) / seen.sum()
    posterior = fit_votes(votes, prior=float(prior), start=0.99999).posterior
    result = {}
    for name, use in (("staple", posterior >= 0.5), ("majority", share > 0.5)):
        sets = [c[use[votes.group == i]] for i, (c, _) in enumerate(found)]
        result[name] = f1(sets, crowd.truth)
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=6)
    images = parser.parse_args().images
    for seed, (name, parameters) in enumerate(CROWDS.items()):
        crowd = simulate(replace(parameters, n_images=images), seed)
        row = {"crowd": name, **baselines(crowd)}
        for method in ("best", "study"):
            consensus = aggregate_clicks(crowd.clicks, GtSettings(method=method))
            row[method] = f1([i.xy[i.posterior >= 0.5] for i in consensus.images], crowd.truth)
            if method == "best":
                table, honest = consensus.workers, ~crowd.spammer
                row["sensitivity_mae"] = np.abs(table.sensitivity - crowd.sensitivity)[honest].mean()
                if parameters.n_sites:
                    row["specificity_mae"] = np.abs(table.specificity - crowd.specificity)[honest].mean()
                row["spammer_weight"] = table.weight_click[crowd.spammer].max(initial=0.0)
                row["honest_weight"] = np.median(table.weight_click[honest])
                hits = [np.zeros(len(i.xy)) for i in consensus.images]
                for hit, image, true in zip(hits, consensus.images, crowd.truth, strict=True):
                    hit[match_points(image.xy, true, 3.0).index_a] = 1
                posterior = np.concatenate([i.posterior for i in consensus.images])
                row["ece"] = calibration_error(posterior, np.concatenate(hits))
        print(
            json.dumps({k: v if isinstance(v, str) else round(float(v), 4) for k, v in row.items()}),
            flush=True,
        )


if __name__ == "__main__":
    main()
