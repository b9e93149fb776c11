"""The general bench: what the detector knew before must not be forgotten for one laboratory's tiles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from brainmap.infer.peaks import PLAIN_FACE, FaceWeights
from brainmap.train.commands import grid_for
from brainmap.train.judge.calibrate import Judged, judge
from brainmap.train.judge.predict import calibrated
from brainmap.train.learn.samples import net_volume
from brainmap.train.retrain.request import RetrainSettings
from brainmap.train.retrain.steps import SIMULATED_UM, Candidate
from brainmap.train.tissue import tissue
from brainmap.train.tissue.inserted import Background, insert_cells

__all__ = ["SECTIONS", "bench_means", "judge_simulated"]

# Seed of the simulated tissue that guards against forgetting; training and calibration use others.
_CHECK_SEED = 700_000
SECTIONS, INSERTED = "sections", "cells in real tissue"
# Sections and parts of real tissue are quickly made and hold few cells: so many for every volume.
_SMALL = 4


def judge_simulated(
    candidates: dict[str, Candidate], settings: RetrainSettings, face: FaceWeights = PLAIN_FACE
) -> list[dict[str, Any]]:
    """All candidates on the same simulated tissue of every kind, on simulated sections, and on inserted cells.

    Parameters
    ----------
    candidates : dict of Candidate
        Of one grid.
    settings : RetrainSettings
        `check_volumes` volumes of each kind, 0 gives no kinds; cells are inserted where there are `backgrounds`.
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
    for kind, volumes in _kinds(settings):
        found: dict[str, list[Judged]] = {name: [] for name in candidates}
        for made in volumes:
            volume = net_volume(made, grid)
            for name, candidate in candidates.items():
                judged = judge(candidate.network, volume, grid, face=face)
                found[name].append(judged.lowered(candidate.prominence))
        rows.append({
            "kind": kind,
            "auprc": {name: float(np.mean([_auprc(j) for j in found[name]])) for name in found},
            "f1": {
                name: float(np.mean([_own_f1(candidates[name], j) for j in found[name]])) for name in found
            },
        })  # fmt: skip
    return rows


def _kinds(settings: RetrainSettings) -> Iterator[tuple[str, Iterator[tissue.Tissue]]]:
    """Name and tissue of every kind; made when asked for, for a volume is large."""
    number = settings.check_volumes
    if not number:
        return
    seeds = range(_CHECK_SEED, _CHECK_SEED + number)
    small = range(_CHECK_SEED, _CHECK_SEED + _SMALL * number)
    for kind in tissue.KINDS:
        yield kind, (tissue.simulate(tissue.variant(kind), seed) for seed in seeds)
    looks = ((seed, tissue.TissueConfig.section(np.random.default_rng(seed))) for seed in small)
    yield SECTIONS, (tissue.simulate_section(look, seed) for seed, look in looks)
    if settings.backgrounds:
        opened = [
            Background.open(Path(path), voxel_um)
            for path, voxel_um in zip(settings.backgrounds, settings.background_voxel_um, strict=True)
        ]
        yield INSERTED, (insert_cells(opened[seed % len(opened)], seed) for seed in small)


def bench_means(rows: list[dict[str, Any]], measure: str) -> tuple[float, float]:
    """Mean of "auprc" or "f1" over the kinds, old and new; zeros where nothing was simulated."""
    old, new = (sum(row[measure][which] for row in rows) / max(1, len(rows)) for which in ("old", "new"))
    return old, new


def _auprc(judged: Judged) -> float:
    """Area under the precision-recall curve: the mean over all true cells of the precision at which each is found."""
    correct = judged.correct[np.argsort(-judged.logit, kind="stable")]
    precision = np.cumsum(correct) / np.arange(1, len(correct) + 1)
    return float(precision[correct].sum() / max(1, judged.n_true))


def _own_f1(candidate: Candidate, judged: Judged) -> float:
    chosen = calibrated(judged.logit, candidate.knots) >= candidate.threshold
    return 2 * int(judged.correct[chosen].sum()) / max(1, int(chosen.sum()) + judged.n_true)
