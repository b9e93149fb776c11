"""`evaluation.json` and `report.html`: one detector judged on tiles, or several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from brainmap.errors import UsageError
from brainmap.files import write_json
from brainmap.lock import held
from brainmap.machine import versions
from brainmap.report.html import Page
from brainmap.swap import staged
from brainmap.train.judge.evaluate import NOTES, Evaluation
from brainmap.train.judge.evaluate_figures import (
    confidence_figure,
    curves_figure,
    grid_figure,
    maps_figure,
    maxima_figure,
    tolerance_figure,
)

__all__ = ["EVALUATION_JSON", "write_evaluation"]

EVALUATION_JSON, REPORT_HTML = "evaluation.json", "report.html"
_MAPS = 3


def write_evaluation(folder: str | Path, evaluations: Evaluation | Sequence[Evaluation]) -> Path:
    """Write `evaluation.json` and `report.html` into a folder.

    Parameters
    ----------
    folder : path
    evaluations : Evaluation or sequence of Evaluation
        Of the same tiles; up to four.

    Returns
    -------
    Path
        The report.

    Raises
    ------
    UsageError
        If the evaluations are not of the same tiles, or are none or too many.
    """
    several = [evaluations] if isinstance(evaluations, Evaluation) else list(evaluations)
    if not 1 <= len(several) <= 4:
        raise UsageError(f"a report shows one to four evaluations, not {len(several)}")
    if any(e.tiles.ids.tolist() != several[0].tiles.ids.tolist() for e in several):
        raise UsageError("evaluations side by side must be of the same tiles")
    folder = Path(folder)
    with held(folder, "what was there before stays"), staged(folder, REPORT_HTML) as new:
        write_json(new / EVALUATION_JSON, {"detectors": [e.record for e in several], "versions": versions()})
        _page(several).write(new / REPORT_HTML)
    return folder / REPORT_HTML


def _page(several: Sequence[Evaluation]) -> Page:
    first = several[0].record
    page = Page("Evaluation", subtitle=", ".join(e.name for e in several))
    main = several[0].settings.main_px
    for one in several:
        before = f"{one.name}: " if len(several) > 1 else ""
        page.add_numbers([
            (f"{before}AUPRC within {main:g} px", round(one.auprc(), 3)),
            ("best F1", round(one.best()["f1"], 3)),
            ("ECE of the score", _rounded(one.record["calibration"][0]["ece"])),
            ("Spearman with ground truth", _rounded(one.record["confidence"]["spearman"])),
        ])  # fmt: skip
    experts = first["experts"]
    page.add_facts([
        ("Tiles", f"{first['tiles']} of {first['slices']} slices"),
        ("True points", first["true_points"]),
        ("Judged against", "the ground truth" if len(experts) == 1 else f"{len(experts)} experts, tile by tile"),
        ("Rule", {"inside": "the tolerance acts inside the assignment",
                  "after": "pairs beyond the tolerance are dropped after the assignment"}[several[0].settings.rule]),
    ])  # fmt: skip
    _accuracy(page, several)
    _confidence(page, several)
    _tiles(page, several)
    page.add_section("How to read this")
    for note in NOTES:
        page.add_text(note)
    return page


def _rounded(value: Any, digits: int = 3) -> float | None:
    return None if value is None or not np.isfinite(value) else round(float(value), digits)


def _accuracy(page: Page, several: Sequence[Evaluation]) -> None:
    page.add_section("Detection", "Detections and true points are matched one to one, within the tolerance.")
    page.add_figure(
        curves_figure(several),
        "Precision against recall (grey: equal F1) and recall against false positives per tile. Dot: the score with "
        "the best F1; ring: the detector's own threshold.",
        format="svg",
    )
    columns = ["detector", "within px", "AUPRC", "best F1", "at score", "precision", "recall", "false/tile",
               "F1, own score", "median px", "95 % px"]  # fmt: skip
    rows = []
    for one in several:
        for key, record in one.record["tolerances"].items():
            best, own, place = record["best"], record["at_threshold"], record["localisation"]
            rows.append([
                one.name, float(key), *(_rounded(v) for v in (record["auprc"], best["f1"], best["threshold"],
                best["precision"], best["recall"])), _rounded(best["false_positives_per_tile"], 1),
                None if own is None else _rounded(own["f1"]), _rounded(place["median_px"], 2),
                _rounded(place["p95_px"], 2),
            ])  # fmt: skip
    page.add_table(
        columns,
        rows,
        "Every tolerance: area, scores at the best F1, F1 at the detector's own threshold, distance of matched pairs",
    )
    page.add_figure(
        tolerance_figure(several),
        "The tolerance's influence, F1 over the score from which detections count (dashed: own threshold), and the "
        "distance of matched pairs.",
        format="svg",
    )
    settings = several[0].settings
    rows = []
    for one in several:
        for key, record in one.record["tolerances"].items():
            froc = record["froc"]
            rows.append([one.name, float(key), *(_rounded(v) for v in froc["recall_at_false_positives"])])
    page.add_table(
        ["detector", "within px", *(f"{rate:g}" for rate in settings.false_positives)],
        rows,
        "Recall at so many false positives per tile",
    )
    rows = []
    for one in several:
        for key, record in one.record["tolerances"].items():
            fewest = record["froc"]["false_positives_at_recall"]
            rows.append([one.name, float(key), *(_rounded(v, 1) for v in fewest)])
    page.add_table(
        ["detector", "within px", *(f"{recall:g}" for recall in settings.recalls)],
        rows,
        "False positives per tile at this recall (a dash: never reached)",
    )


def _confidence(page: Page, several: Sequence[Evaluation]) -> None:
    settings = several[0].settings
    page.add_section(
        "Scores and confidence",
        f"Is the score a probability, and does it follow the ground truth's confidence? Pairs within "
        f"{settings.main_px:g} px.",
    )
    page.add_figure(
        confidence_figure(several),
        "Left: of the detections of a given score, the share that is right. Middle: on matched pairs with a score of "
        f"at least {settings.confidence_from:g}, the ground truth's confidence. Right: share of true points that are "
        "found at the detector's threshold (best F1 without one). Below: how many there are.",
        format="svg",
    )
    rows: list[list[object]] = []
    for one in several:
        for record in one.record["calibration"]:
            cut = record["lowest_score"]
            what = "all detections" if cut == 0 else f"detections from {cut:g}"
            rows.append([one.name, f"{what}: right or false", record["n"], _rounded(record["ece"], 4),
                         _rounded(record["brier"], 4), None])  # fmt: skip
        pairs = one.record["confidence"]
        rows.append([one.name, "matched pairs: ground-truth confidence", pairs["n"], _rounded(pairs["ece"], 4),
                     _rounded(pairs["brier"], 4), _rounded(pairs["spearman"])])  # fmt: skip
    page.add_table(["detector", "score against", "n", "ECE", "Brier", "Spearman"], rows, "Calibration")
    page.add_figure(
        grid_figure(several),
        "F1 over the thresholds of detector and ground truth; white line: the best score for each threshold of the "
        "ground truth.",
        format="svg",
    )
    page.add_figure(maxima_figure(several), "Highest score on every tile", format="svg")


def _tiles(page: Page, several: Sequence[Evaluation]) -> None:
    page.add_section(
        "Tiles",
        "The best, the middle and the worst tile by F1, where most true points lie together. Ground truth in colours "
        "of its confidence; green: right, red: false, orange cross: missed. Numbers are of the whole tile.",
    )
    rows = several[-1].record["per_tile"]
    order = sorted((i for i, row in enumerate(rows) if row["true_points"]), key=lambda i: -rows[i]["f1"])
    for index in dict.fromkeys(order[k] for k in np.linspace(0, len(order) - 1, _MAPS).astype(int) if order):
        row = rows[index]
        caption = f"{row['image_id']}: F1 {row['f1']:.3f}"
        page.add_figure(maps_figure(several, index), caption, format="webp", dpi=120, width="wide")
    for one in several:
        page.add_table(
            ["tile", "true points", "right", "false", "missed", "F1"],
            [[r["image_id"], r["true_points"], r["tp"], r["fp"], r["fn"], _rounded(r["f1"])]
             for r in one.record["per_tile"]],
            f"Every tile, {one.name}", max_rows=500, collapsed=len(one.tiles) > 20,
        )  # fmt: skip
