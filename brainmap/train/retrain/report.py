"""The page of a retraining: whether to switch, and what that rests on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from brainmap.points.matching import match_points
from brainmap.report.html import Page
from brainmap.report.style import (
    BLUE,
    GREEN,
    LINE,
    ORANGE,
    RED,
    TISSUE_MAP,
    YELLOW,
    clean,
    literal_figure,
    new_figure,
    picture_axes,
)
from brainmap.train.judge.switch import Difference
from brainmap.train.retrain.judge import Judgement

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_retrain_report"]

TITLES = {"old": "before", "new": "now"}
COLOURS = {"old": ORANGE, "new": BLUE}
_PICTURES = 3


def write_retrain_report(path: Path, outcome: dict[str, Any], judgement: Judgement) -> None:
    """Write the page.

    Parameters
    ----------
    path : Path
    outcome : dict
        As in `outcome.json`.
    judgement : Judgement
        What the figures are drawn from.
    """
    held_out, training, crowd = outcome["held_out"], outcome["training"], outcome["crowd"]
    page = Page("Retraining", subtitle=f"from {outcome['start']}")
    say = page.add_note if outcome["switch"] and "; but " not in outcome["reason"] else page.add_warning
    say(f"{'Switch' if outcome['switch'] else 'Do not switch'}: {outcome['reason']}.")
    _warn(page, outcome)
    if held_out:
        page.add_numbers([
            (f"F1 {TITLES[which]}", f"{held_out['f1'][which]:.3f}") for which in ("old", "new")
        ] + [(f"AUPRC {TITLES[which]}", f"{held_out['auprc'][which]:.3f}") for which in ("old", "new")])  # fmt: skip
    page.add_steps("What to do next", _next(outcome))
    left_out = ", ".join(f"{number} {what}" for what, number in outcome["left_out"].items() if number)
    page.add_facts([
        ("Learnt from", f"{_extent(training)}; {crowd['n_workers']} workers, {crowd['n_clicks']} clicks"),
        ("Judged on", _judged_on(outcome)),
        ("Kept", _kept(outcome["choice"])),
        ("More clicks", outcome["curve"]["sentence"] if outcome["curve"] else "too few new slices to say"),
        ("A detection is right", f"within {outcome['tolerance_px']:.1f} px of a cell the workers agree on"),
        ("Cell diameter", f"{outcome['cell_diameter_um']:g} um"),
        ("Threshold", ", ".join(f"{TITLES[w]} {v:.3f}" for w, v in outcome["threshold"].items())),
        ("Left out", left_out or "nothing"),
    ])  # fmt: skip
    if held_out:
        _comparison(page, outcome, judgement)
        _pictures(page, outcome, judgement)
    _simulated(page, outcome["simulated"])
    if outcome["curve"]:
        _learning(page, outcome["curve"])
    if held_out:
        page.add_section(
            "How to read this",
            "F1 is at each detector's own threshold, what a run uses if nothing is given; AUPRC is over all "
            "thresholds. The interval holds the middle 90 % of the differences when "
            f"{held_out['resampled']} are drawn anew with replacement. Switching is advised if one of the two is "
            "better beyond chance, the other is not worse, and cells in simulated volumes are found as well as before. "
            "evaluation/report.html has every further curve and number of both.",
        )
    page.write(path)


def _next(outcome: dict[str, Any]) -> list[tuple[str, str]]:
    """What follows from the judgement: a sentence and a command."""
    steps = (
        [("Look at the tiles below: green found, red false, yellow missed.", "")]
        if outcome["held_out"]
        else []
    )
    if outcome["switch"]:
        steps.append(("Detect with the new detector; other animals of the study with the same one.",
                      "brainmap detect BRAIN --detector DETECTOR --out RUN"))  # fmt: skip
    else:
        steps.append(("Keep the old detector, or annotate more slices and retrain.",
                      "brainmap crowd sample RUN --out TILES"))  # fmt: skip
    return steps


def _warn(page: Page, outcome: dict[str, Any]) -> None:
    """What makes the figures say less than they seem to."""
    split = outcome["split"]
    if split["judged_by"] == "cross-fitting":
        page.add_warning(
            "All new slices had to teach, so none is held out: old and new are judged by cross-fitting, every slice by "
            "networks that never learnt it. Annotate more slices for a judgement of the detector itself."
        )
    if split["calibrated_on_seen"]:
        page.add_warning(
            "Scores and threshold rest on slices that the detector to start from had learnt, for want of new ones: "
            "expect scores that are too sure."
        )
    if not split["lineage_complete"]:
        page.add_warning(
            "What else trained the detector to start from is not on record. If it has learnt these slices, both "
            "figures are too good."
        )


def _judged_on(outcome: dict[str, Any]) -> str:
    if outcome["held_out"] is None:
        return "simulated tissue alone: no tile is unseen, so there is no score"
    if outcome["split"]["judged_by"] == "cross-fitting":
        return f"{_extent(outcome['held_out'])}, by cross-fitting"
    return f"{_extent(outcome['held_out'])}, none of which trained or calibrated this detector or an ancestor"


def _kept(choice: dict[str, Any]) -> str:
    """Which change was made, and the figures by which it was chosen."""
    figures = ", ".join(f"{name} {f1:.3f}" for name, f1 in choice["f1"].items())
    meaning = {
        "recalibrated": "the network as it was, with new scores and threshold",
        "fine-tuned": "the network that learnt from the tiles",
    }[choice["chosen"]]
    return (
        f"{meaning}: the simplest that is not worse than the best by more than a standard error "
        f"(F1 by cross-fitting: {figures})"
    )


def _learning(page: Page, curve: dict[str, Any]) -> None:
    page.add_section(
        "Would more clicks help?",
        "F1 on slices left out, after learning from so many others, by the last layer of the start alone, which is "
        "quick enough to repeat it over random splits. A network that learns whole does better, but where this curve "
        f"is flat, so is its own. {curve['sentence'][0].upper()}{curve['sentence'][1:]}.",
    )
    figure = new_figure(5.5, 3.2)
    axes = figure.subplots()
    axes.fill_between(curve["slices"], curve["low"], curve["high"], color=LINE, alpha=0.5)
    axes.plot(curve["slices"], curve["f1"], "o-", color=BLUE)
    axes.set(ylim=(max(0.0, min(curve["low"]) - 0.05), min(1.0, max(curve["high"]) + 0.05)))
    clean(axes, x="annotated slices", y="F1", grid="both")
    page.add_figure(figure, "Mean over random splits, and the middle 90 % of them", format="svg")


def _extent(part: dict[str, Any]) -> str:
    return f"{part['cells']} cells on {part['tiles']} tiles of {part['slices']} slices"


def _comparison(page: Page, outcome: dict[str, Any], judgement: Judgement) -> None:
    held_out = outcome["held_out"]
    page.add_section("Unseen tiles", "Both detectors on tiles of slices that neither has learnt.")
    rows: list[list[object]] = []
    for name, title in (("f1", "F1"), ("auprc", "AUPRC")):
        d = Difference(**held_out[name])
        rows.append([title, d.old, d.new, f"{d.gain:+.3f}", f"{d.low:+.3f} to {d.high:+.3f}"])
    for name in ("precision", "recall"):
        before, after = held_out[f"{name}_old"], held_out[f"{name}_new"]
        rows.append([name, before, after, f"{after - before:+.3f}", ""])
    before, after = held_out["ece_old"], held_out["ece_new"]
    if before is not None and after is not None:
        rows.append(["ECE of what is shown", before, after, f"{after - before:+.3f}", ""])
    rows = [[r[0], *(f"{v:.3f}" for v in r[1:3]), *r[3:]] for r in rows]
    page.add_table(["", "before", "now", "difference", "90 % interval"], rows, sortable=False)
    page.add_figure(
        _curves(judgement), "Precision and recall over all thresholds (dot: the detector's own), F1 of every "
        "tile, and how often detections of a given score are right", format="svg",
    )  # fmt: skip
    columns = [
        "tile",
        "cells",
        "found before",
        "found now",
        "false before",
        "false now",
        "F1 before",
        "F1 now",
    ]
    keys = ["cells", "found_old", "found_new", "false_old", "false_new", "f1_old", "f1_new"]
    page.add_table(
        columns,
        [[row["image_id"], *(round(row[key], 3) for key in keys)] for row in outcome["per_tile"]],
        "Every unseen tile",
        max_rows=200,
        search=True,
        download="tiles_shown.csv",
    )


def _curves(judgement: Judgement) -> Figure:
    figure = new_figure(11.0, 3.6)
    curve, tiles, reliability = figure.subplots(1, 3)
    for which, counts in judgement.counts.items():
        found, marked = counts.found.sum(axis=1), counts.marked.sum(axis=1)
        recall, precision = found / max(1, counts.true.sum()), found / np.maximum(1, marked)
        curve.plot(recall[1:], precision[1:], color=COLOURS[which], label=TITLES[which])
        curve.plot(recall[0], precision[0], "o", color=COLOURS[which])
    curve.set(xlim=(0, 1.02), ylim=(0, 1.02))
    curve.legend(frameon=False, loc="lower left")
    clean(curve, x="recall", y="precision", grid="both")
    f1 = {which: _tile_f1(judgement, which) for which in ("old", "new")}
    tiles.plot([0, 1], [0, 1], color=LINE)
    tiles.plot(f1["old"], f1["new"], "o", color=BLUE, alpha=0.7)
    tiles.set(xlim=(0, 1.02), ylim=(0, 1.02))
    clean(tiles, x="F1 of a tile before", y="F1 now", grid="both")
    reliability.plot([0, 1], [0, 1], color=LINE)
    for which, found in judgement.found.items():
        mean, share = _reliability(found.score, judgement.data.correct(found))
        reliability.plot(mean, share, "o-", color=COLOURS[which], label=TITLES[which])
    reliability.set(xlim=(0, 1.02), ylim=(0, 1.02))
    clean(reliability, x="score", y="share that is right", grid="both")
    return figure


def _tile_f1(judgement: Judgement, which: str) -> NDArray[np.float64]:
    counts = judgement.tile_counts[which]
    return np.asarray(2 * counts.found[0] / np.maximum(1, counts.marked[0] + counts.true))


def _reliability(
    score: NDArray[np.float64], correct: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean score and share of correct detections in bins of 0.1 that hold at least five."""
    bins = np.minimum((score * 10).astype(np.int64), 9)
    number = np.bincount(bins, minlength=10)
    use = number >= 5
    sums = (np.bincount(bins, weights=v, minlength=10)[use] for v in (score, correct.astype(np.float64)))
    mean, share = (total / number[use] for total in sums)
    return mean, share


def _pictures(page: Page, outcome: dict[str, Any], judgement: Judgement) -> None:
    page.add_section(
        "Tiles",
        "Unseen tiles before and now: the most gained, the most lost, and the one in the middle. Green: found, "
        "red: false, yellow: missed.",
    )
    rows = outcome["per_tile"]
    order = sorted(range(len(rows)), key=lambda i: rows[i]["f1_new"] - rows[i]["f1_old"])
    for index in dict.fromkeys([order[-1], order[0], order[len(order) // 2]][:_PICTURES]):
        row = rows[index]
        caption = f"{row['image_id']}: F1 {row['f1_old']:.3f} before, {row['f1_new']:.3f} now"
        page.add_gallery(_pictures_of(judgement, index), caption, dpi=110)


def _pictures_of(judgement: Judgement, index: int) -> list[tuple[Figure, str]]:
    """A tile before and now, with what was found, false and missed."""
    data = judgement.data
    image = data.tiles.image(index)
    tile, places = data.cells
    true = places[tile == index]
    height, width = image.shape
    drawn = []
    for which, found in judgement.found.items():
        figure = literal_figure(5.5, float(np.clip(5.5 * height / width, 1.5, 9.0)), "black")
        axes = picture_axes(figure.subplots())
        axes.imshow(image, cmap=TISSUE_MAP, vmin=0.1, vmax=0.9)
        use = (found.image == index) & (found.score >= judgement.threshold[which])
        marks = found.xy[use]
        match = match_points(marks, true, data.tolerance_px)
        false, missed = np.ones(len(marks), bool), np.ones(len(true), bool)
        false[match.index_a], missed[match.index_b] = False, False
        for xy, colour in ((marks[~false], GREEN), (marks[false], RED), (true[missed], YELLOW)):
            axes.scatter(xy[:, 0], xy[:, 1], s=40, facecolors="none", edgecolors=colour, linewidths=1.2)
        drawn.append((figure, TITLES[which]))
    return drawn


def _simulated(page: Page, rows: list[dict[str, Any]]) -> None:
    page.add_section(
        "Simulated volumes",
        "Whole volumes, which the tiles say nothing about: what the detector knew before must not be "
        "forgotten. F1 is at the detector's own threshold, which was chosen for your tiles.",
    )
    if not rows:
        page.add_text("Not checked (check_volumes is 0).")
        return
    columns = [(name, which) for name in ("auprc", "f1") for which in ("old", "new")]
    values = [[row[name][which] for name, which in columns] for row in rows]
    kinds = [*(row["kind"] for row in rows), "mean"]
    page.add_table(
        ["tissue", "AUPRC before", "AUPRC now", "F1 before", "F1 now"],
        [
            [kind, *(f"{v:.3f}" for v in line)]
            for kind, line in zip(kinds, [*values, np.mean(values, axis=0)], strict=True)
        ],
        sortable=False,
    )
