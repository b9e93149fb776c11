"""The old and the new detector, judged on the same held-out tiles and the same simulated tissue."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from brainmap.progress import task
from brainmap.train.judge.evaluate import EvaluationSettings, evaluate_points
from brainmap.train.judge.evaluate_report import write_evaluation
from brainmap.train.judge.predict import TilePoints
from brainmap.train.judge.scores import reliability
from brainmap.train.judge.switch import Counts, Difference, Units, compare, count
from brainmap.train.retrain.bench import judge_simulated
from brainmap.train.retrain.request import RetrainRequest
from brainmap.train.retrain.split import TruthTiles
from brainmap.train.retrain.steps import Candidate, Crossed

__all__ = ["Judgement", "judge_both", "judge_crossed", "judge_unseen_missing", "write_full_evaluation"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judgement:
    """The old and the new detector on the same unseen tiles; what differs is a dict with `old` and `new`.

    Parameters
    ----------
    data : TruthTiles
        The tiles that judge; none where no tile is unseen, and then nothing but `simulated` is known.
    threshold : dict of float
    simulated : list of dict
        As `judge_simulated` gives it.
    units : Units or None
        What was resampled.
    found : dict of TilePoints
    counts, tile_counts : dict of Counts
        By unit, and by tile.
    difference : dict of Difference
        `f1` and `auprc`.
    """

    data: TruthTiles
    threshold: dict[str, float]
    simulated: list[dict[str, Any]]
    units: Units | None = None
    found: dict[str, TilePoints] = field(default_factory=dict)
    counts: dict[str, Counts] = field(default_factory=dict)
    tile_counts: dict[str, Counts] = field(default_factory=dict)
    difference: dict[str, Difference] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """The numbers, as plain values; no `held_out` where nothing was unseen."""
        if self.units is None:
            return {"held_out": None, "per_tile": [], "simulated": self.simulated}
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
            score, correct = self.found[which].score, self.data.correct(self.found[which])
            shown = score >= self.threshold[which]
            held_out[f"ece_{which}"] = reliability(score[shown], correct[shown]).ece if shown.any() else None
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
    found = {name: c.find(data.tiles, cell_diameter_um) for name, c in (("old", old), ("new", new))}
    return _judge(request, data, {"old": old, "new": new}, found)


def judge_crossed(
    request: RetrainRequest, data: TruthTiles, old: Candidate, new: Candidate, crossed: dict[str, Crossed]
) -> Judgement:
    """The same where all new tiles had to teach: by detections each of which a network made that knew nothing of it.

    Parameters
    ----------
    data : TruthTiles
        The calibrating tiles.
    old, new : Candidate
    crossed : dict of Crossed
        `old` and `new`, on `data`.
    """
    found = {name: part.found for name, part in crossed.items()}
    return _judge(request, data, {"old": old, "new": new}, found)


def judge_unseen_missing(
    request: RetrainRequest, data: TruthTiles, old: Candidate, new: Candidate
) -> Judgement:
    """Only the simulated tissue: no tile is unseen."""
    none = data.take(np.zeros(len(data.tiles), bool))
    threshold = {"old": old.threshold, "new": new.threshold}
    return Judgement(none, threshold, _simulated(request, {"old": old, "new": new}))


def _judge(
    request: RetrainRequest, data: TruthTiles, candidates: dict[str, Candidate], found: dict[str, TilePoints]
) -> Judgement:
    tiles, (index, xy) = data.tiles, data.cells
    units = Units.of(tiles.slice_key, tiles.columns["width"], tiles.columns["height"])
    each = replace(units, kind="tiles", row=np.arange(len(tiles)), count=len(tiles))
    threshold = {name: candidate.threshold for name, candidate in candidates.items()}
    counts, tile_counts = (
        {name: count(found[name], index, xy, by, threshold[name], data.tolerance_px) for name in candidates}
        for by in (units, each)
    )
    difference = compare(counts["old"], counts["new"], request.settings.seed)
    simulated = _simulated(request, candidates)
    return Judgement(data, threshold, simulated, units, found, counts, tile_counts, difference)


def _simulated(request: RetrainRequest, candidates: dict[str, Candidate]) -> list[dict[str, Any]]:
    with task("judging both on simulated tissue"):
        return judge_simulated(candidates, request.settings, request.start_face)


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
