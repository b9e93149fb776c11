"""The old and the new detector, judged on the same held-out tiles and the same simulated tissue."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from brainmap.infer.peaks import PLAIN_FACE, FaceWeights
from brainmap.train.commands import grid_for
from brainmap.train.judge.calibrate import Judged, judge
from brainmap.train.judge.evaluate import EvaluationSettings, evaluate_points
from brainmap.train.judge.evaluate_report import write_evaluation
from brainmap.train.judge.predict import TilePoints, calibrated
from brainmap.train.judge.switch import Counts, Difference, Units, compare, count
from brainmap.train.learn.samples import net_volume
from brainmap.train.retrain.request import RetrainRequest
from brainmap.train.retrain.steps import SIMULATED_UM, Candidate, TruthTiles
from brainmap.train.tissue import tissue

__all__ = ["Judgement", "judge_both", "judge_simulated", "simulated_means", "write_full_evaluation"]

log = logging.getLogger(__name__)

# Seed of the simulated tissue that guards against forgetting; training and calibration use others.
_CHECK_SEED = 700_000


def judge_simulated(
    candidates: dict[str, Candidate], volumes: int, face: FaceWeights = PLAIN_FACE
) -> list[dict[str, Any]]:
    """All candidates on the same simulated tissue of every kind.

    Parameters
    ----------
    candidates : dict of Candidate
        Of one grid.
    volumes : int
        Volumes of each kind; 0 gives no kinds.
    face : tuple of float
        Of the detectors that the candidates are or become.

    Returns
    -------
    list of dict
        For each kind `kind`, and for each candidate its `auprc` and, under `f1`, its F1 at its own threshold.
        The first says whether the network still tells cells from the rest; the second also depends on a
        threshold that was chosen for other tissue.
    """
    grid = grid_for(next(iter(candidates.values())).grid, SIMULATED_UM)
    rows: list[dict[str, Any]] = []
    for kind in tissue.KINDS if volumes else ():
        found: dict[str, list[Judged]] = {name: [] for name in candidates}
        for seed in range(_CHECK_SEED, _CHECK_SEED + volumes):
            volume = net_volume(tissue.simulate(tissue.variant(kind), seed), grid)
            for name, candidate in candidates.items():
                found[name].append(judge(candidate.network, volume, grid, face=face))
        rows.append({
            "kind": kind,
            "auprc": {name: float(np.mean([_auprc(j) for j in found[name]])) for name in found},
            "f1": {
                name: float(np.mean([_own_f1(candidates[name], j) for j in found[name]])) for name in found
            },
        })  # fmt: skip
    return rows


def simulated_means(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Mean AUPRC over the kinds, old and new; zeros where nothing was simulated."""
    old, new = (sum(row["auprc"][which] for row in rows) / max(1, len(rows)) for which in ("old", "new"))
    return old, new


def _auprc(judged: Judged) -> float:
    """Area under the precision-recall curve: the mean over all true cells of the precision at which each is found."""
    correct = judged.correct[np.argsort(-judged.logit, kind="stable")]
    precision = np.cumsum(correct) / np.arange(1, len(correct) + 1)
    return float(precision[correct].sum() / max(1, judged.n_true))


def _own_f1(candidate: Candidate, judged: Judged) -> float:
    chosen = calibrated(judged.logit, candidate.knots) >= candidate.threshold
    return 2 * int(judged.correct[chosen].sum()) / max(1, int(chosen.sum()) + judged.n_true)


@dataclass(frozen=True)
class Judgement:
    """The old and the new detector on the same held-out tiles; what differs is a dict with `old` and `new`.

    Parameters
    ----------
    data : TruthTiles
        The held-out tiles.
    units : Units
        What was resampled.
    found : dict of TilePoints
    counts, tile_counts : dict of Counts
        By unit, and by tile.
    threshold : dict of float
    simulated : list of dict
        As `judge_simulated` gives it.
    difference : dict of Difference
        `f1` and `auprc`.
    """

    data: TruthTiles
    units: Units
    found: dict[str, TilePoints]
    counts: dict[str, Counts]
    tile_counts: dict[str, Counts]
    threshold: dict[str, float]
    simulated: list[dict[str, Any]]
    difference: dict[str, Difference]

    def record(self) -> dict[str, Any]:
        """The numbers, as plain values."""
        tiles, by_tile = self.data.tiles, self.tile_counts
        held_out: dict[str, Any] = {
            **self.data.extent,
            "resampled": f"{self.units.count} {self.units.kind}",
            **{name: asdict(difference) for name, difference in self.difference.items()},
        }
        for which, counts in self.counts.items():
            hits, marked = int(counts.found[0].sum()), int(counts.marked[0].sum())
            held_out[f"precision_{which}"] = hits / max(1, marked)
            held_out[f"recall_{which}"] = hits / max(1, int(counts.true.sum()))
        rows = []
        for index, name in enumerate(tiles.ids):
            row: dict[str, Any] = {"image_id": str(name), "cells": int(by_tile["old"].true[index])}
            for which, counts in by_tile.items():
                hits, marked = int(counts.found[0, index]), int(counts.marked[0, index])
                row |= {f"found_{which}": hits, f"false_{which}": marked - hits}
                row[f"f1_{which}"] = 2 * hits / max(1, marked + row["cells"])
            rows.append(row)
        return {"held_out": held_out, "per_tile": rows, "simulated": self.simulated}


def judge_both(
    request: RetrainRequest, data: TruthTiles, old: Candidate, new: Candidate, cell_diameter_um: float
) -> Judgement:
    """Both detectors on the same held-out tiles and the same simulated tissue."""
    tiles, (index, xy) = data.tiles, data.cells
    units = Units.of(tiles.slice_key, tiles.columns["width"], tiles.columns["height"])
    each = replace(units, kind="tiles", row=np.arange(len(tiles)), count=len(tiles))
    found, counts, tile_counts = {}, {}, {}
    candidates = {"old": old, "new": new}
    for name, candidate in candidates.items():
        found[name] = candidate.find(tiles, cell_diameter_um)
        by = (found[name], index, xy)
        counts[name] = count(*by, units, candidate.threshold, data.tolerance_px)
        tile_counts[name] = count(*by, each, candidate.threshold, data.tolerance_px)
    log.info("judging both on simulated tissue")
    simulated = judge_simulated(candidates, request.settings.check_volumes, request.start_face)
    difference = compare(counts["old"], counts["new"], request.settings.seed)
    threshold = {"old": old.threshold, "new": new.threshold}
    return Judgement(data, units, found, counts, tile_counts, threshold, simulated, difference)


def write_full_evaluation(folder: Path, judgement: Judgement, cell_diameter_px: float) -> None:
    """Everything methods 7 asks of the old and the new detector, side by side.

    Parameters
    ----------
    folder : Path
    judgement : Judgement
    cell_diameter_px : float
        Tolerances are 1/5, 1/3 and 7/15 of it: the study's 3, 5 and 7 px for its cells of 15 px.
    """
    settings = EvaluationSettings(
        tolerances_px=tuple(round(cell_diameter_px * part / 15, 2) for part in (3, 5, 7)),
        main_px=round(cell_diameter_px / 3, 2),
        truth_points="accepted",
    )
    write_evaluation(
        folder,
        [
            evaluate_points(
                found, judgement.data.tiles, judgement.data.truth,
                settings=settings, threshold=judgement.threshold[which], name=which,
            )
            for which, found in judgement.found.items()
        ],
    )  # fmt: skip
