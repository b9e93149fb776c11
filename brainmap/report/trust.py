"""Whether the numbers of a run can be trusted, and what to do next, in sentences for people."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from brainmap.points.table import iter_points
from brainmap.report.run_facts import Run, lookup
from brainmap.run_folder import MUCH_UNSTORED

__all__ = [
    "Check", "Precision", "checks", "expected_precision", "key_numbers", "marked_precision", "next_steps",
]  # fmt: skip

GOOD, LOOK, BAD, UNKNOWN = "good", "look", "bad", "unknown"
_MARKS_CSV = "marks.csv"
#: Fewer marks say nothing.
_FEWEST_MARKS = 10
#: A mark and the cell it was set on lie this close, um.
_SAME_UM = 3.0
#: Shares of cells expected to be real: below, a look is due; and of cells with the same region by either way.
_PRECISE, _AGREEING = 0.8, 0.8
_OUTSIDE = 0.1
# 95 %, for the interval of a share (Wilson 1927, J Am Stat Assoc 22:209).
_Z = 1.96


@dataclass(frozen=True)
class Check:
    """One answer to "can it be trusted?": what is asked, a verdict of four, a sentence."""

    name: str
    verdict: str
    sentence: str


@dataclass(frozen=True)
class Precision:
    """Share of the cells that people call cells.

    Attributes
    ----------
    share, low, high : float
        With its 95 % interval (Wilson).
    n : int
        Marks it rests on.
    """

    share: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, right: int, n: int) -> Precision:
        """The share of `right` among `n`."""
        p, z2 = right / n, _Z**2
        middle = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = _Z / (1 + z2 / n) * np.sqrt(p * (1 - p) / n + z2 / (4 * n**2))
        return cls(p, float(max(0.0, middle - half)), float(min(1.0, middle + half)), n)


def marked_precision(run: Run) -> Precision | None:
    """Precision by the marks of a run that were set on cells drawn at random; None with too few of them."""
    path = run.registration.parent / _MARKS_CSV
    if not path.is_file() or run.points is None or run.volume is None:
        return None
    places, yes = _random_marks(path)
    if len(yes) < _FEWEST_MARKS:
        return None
    voxel = np.array(run.volume.voxel_um)
    tree, near = cKDTree(places * voxel), np.zeros(len(yes), bool)
    for batch in iter_points(run.points, columns=["z", "y", "x"]):
        found = tree.query_ball_point(batch.zyx_vox * voxel, _SAME_UM)
        near[[i for rows in found for i in rows]] = True
    # Candidates that are no cells of this run at its threshold say nothing about its cells.
    n = int(near.sum())
    return Precision.of(int(yes[near].sum()), n) if n >= _FEWEST_MARKS else None


def _random_marks(path: Path) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Places and answers of the cells drawn at random; of several marks at one place the last counts."""
    marks: dict[tuple[float, float, float], bool | None] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                place = (float(row["z"]), float(row["y"]), float(row["x"]))
                word = {"yes": True, "no": False}.get(row["mark"].strip().lower())
                marks[place] = word if (row.get("sample") or "").strip() == "random" else None
    except (OSError, KeyError, ValueError, TypeError, AttributeError, csv.Error):
        # `brainmap tune` says what is wrong with a table of marks; a report does without.
        return np.zeros((0, 3)), np.zeros(0, bool)
    known = [(place, word) for place, word in marks.items() if word is not None]
    return np.array([p for p, _ in known]).reshape(-1, 3), np.array([w for _, w in known], bool)


def checks(run: Run, registration: Mapping[str, Any], precision: Precision | None) -> list[Check]:
    """What is known about detection, registration and regions.

    Parameters
    ----------
    run : Run
    registration : mapping
        The record of the registration; empty without one.
    precision : Precision or None
        From marks, see `marked_precision`.
    """
    found = [_detection(run, precision)]
    found += [_completeness(run)]
    if run.regions is not None or registration:
        found += [_registration(registration), *_regions(run)]
    return found


def key_numbers(
    run: Run, registration: Mapping[str, Any], precision: Precision | None, expected: float | None
) -> list[tuple[str, object]]:
    """The handful of numbers a reader wants first.

    Parameters
    ----------
    run : Run
    registration : mapping
        The record of the registration; empty without one.
    precision : Precision or None
        Share of the cells that are cells, by marks.
    expected : float or None
        The same by the scores alone.
    """
    results = run.record.results
    values: list[tuple[str, object]] = [("cells", run.summary.n if run.summary else results.get("cells"))]
    if run.regions:
        values.append(
            ("structures with cells", sum(region.count_direct["both"] > 0 for region in run.regions.regions))
        )
    if precision is not None:
        values.append((f"of them cells, by {precision.n} marks", f"{100 * precision.share:.0f} %"))
    elif expected is not None:
        values.append(("of them expected to be cells, by score", f"{100 * expected:.0f} %"))
    if verdict := registration.get("verdict"):
        values.append(("registration", "BAD" if verdict == "bad" else verdict))
    if run.regions:
        share = 100 * run.regions.outside / max(run.summary.n if run.summary else 0, 1)
        values.append(("outside the atlas", f"{share:.1f} %"))
    if run.record.status != "complete":
        values.append(("status", run.record.status))
    return values


def _detection(run: Run, precision: Precision | None) -> Check:
    name = "Are these cells?"
    if run.summary is None or run.summary.n == 0:
        return Check(name, LOOK, "No cell was found: compare the pictures below with what you expect.")
    if precision is not None:
        sentence = (
            f"{100 * precision.share:.0f} % of the cells drawn at random were marked as cells by people (95 % sure: "
            f"{100 * precision.low:.0f} to {100 * precision.high:.0f} %; {precision.n} marks)."
        )
        return Check(name, GOOD if precision.low >= _PRECISE else LOOK, sentence)
    expected = expected_precision(run)
    if expected is None:
        return Check(name, UNKNOWN, "The table of cells has no scores.")
    sentence = (
        f"About {100 * expected:.0f} % are expected to be cells, judging by their scores alone. Scores were learnt on "
        "other tissue; fifty marks of your own check them."
    )
    return Check(name, GOOD if expected >= _PRECISE else LOOK, sentence)


def expected_precision(run: Run) -> float | None:
    """Mean score of the cells: the share expected to be real, as scores are probabilities."""
    scores = run.summary.sample.get("score") if run.summary else None
    return float(np.nanmean(scores)) if scores is not None and len(scores) else None


def _completeness(run: Run) -> Check:
    blocks = run.record.blocks
    failed = len(blocks.get("failed") or ())
    name = "Is the whole image in it?"
    if run.record.status == "running":
        return Check(name, BAD, "No: the run has not finished.")
    if failed:
        return Check(name, BAD, f"No: {failed} of {blocks.get('total')} parts of the image are missing.")
    if run.record.parameters.get("roi"):
        return Check(name, LOOK, "The part that was asked for; the rest was not looked at.")
    unstored = run.record.results.get("unstored_tissue")
    share = float(unstored) if isinstance(unstored, (int, float)) else 0.0
    if share > MUCH_UNSTORED:
        return Check(
            name, BAD,
            f"No: {100 * share:.0f} % of the tissue is in parts of the image that are not stored and was read as "
            "empty. Is the copy of the image complete?",
        )  # fmt: skip
    left = f"; {100 * share:.2g} % of the tissue is not stored in the image" if share else ""
    return Check(name, GOOD, f"Yes: every part with tissue was searched{left}.")


def _registration(record: Mapping[str, Any]) -> Check:
    name = "Does the atlas fit?"
    verdict = record.get("verdict")
    reasons = [str(reason) for reason in record.get("reasons") or ()]
    if verdict == "good":
        return Check(
            name, GOOD, "Yes, by its numbers. Outlines that follow the layers in the pictures below prove it."
        )
    if verdict == "bad":
        return Check(name, BAD, f"No: {'; '.join(reasons)}. Counts per region are not to be used.")
    if verdict:
        return Check(name, LOOK, f"In doubt: {'; '.join(reasons)}.")
    return Check(name, UNKNOWN, "There is no record of the registration.")


def _regions(run: Run) -> list[Check]:
    agree, name = run.record.results.get("regions_agree"), "Is a cell in the right region?"
    if run.regions is None or run.summary is None or not run.summary.n:
        return []
    outside = run.regions.outside / run.summary.n
    parts, verdict = [], GOOD
    if isinstance(agree, (int, float)):
        parts.append(
            f"{100 * agree:.0f} % of the cells get the same region whichever way they are mapped; the others lie at a "
            "border"
        )
        verdict = GOOD if agree >= _AGREEING else LOOK
    if outside > _OUTSIDE:
        parts.append(f"{100 * outside:.0f} % lie outside the atlas, which is much")
        verdict = LOOK
    elif outside:
        parts.append(f"{100 * outside:.1f} % lie outside the atlas")
    text = ". ".join(part[0].upper() + part[1:] for part in parts)
    return [Check(name, verdict, f"{text}.")] if text else []


def next_steps(run: Run, verdicts: list[Check], precision: Precision | None) -> list[tuple[str, str]]:
    """What to do with this run, most needed first: a sentence, and a command or an empty text.

    Commands say RUN and BRAIN, not where they lie: folders are moved, and reports sent.
    """
    record = run.record
    steps: list[tuple[str, str]] = []
    by_name = {check.name: check.verdict for check in verdicts}
    if record.status == "running" or record.blocks.get("failed"):
        steps.append(
            (
                "Finish the run: the same command goes on where it stopped.",
                "brainmap detect BRAIN --out RUN ...",
            )
        )
    elif by_name.get("Is the whole image in it?") == BAD:
        steps.append((
            "Copy the image again: parts of it are missing. Then detect anew.",
            "brainmap detect BRAIN --out RUN --overwrite ...",
        ))  # fmt: skip
    if by_name.get("Does the atlas fit?") in (BAD, LOOK):
        steps.append((
            "Look at the outlines under Registration. If they are off: check orientation and voxel size, or give pairs "
            "of points that belong together.",
            "brainmap register BRAIN --out RUN/registration --landmarks landmarks.csv --overwrite",
        ))  # fmt: skip
    if run.summary is not None and run.summary.n and precision is None:
        steps.append(
            (
                "Look at the cells in the image.",
                "brainmap view RUN",
            )
        )
        steps.append((
            "Judge some fifty of them in a few minutes: it tells how good the counts are. The marks also fit score and "
            "threshold to your tissue (brainmap tune RUN).",
            "brainmap review RUN",
        ))  # fmt: skip
    threshold = lookup(record, "threshold")
    if run.summary is not None and isinstance(threshold, (int, float)):
        other = min(0.95, round(float(threshold) + 0.2, 1))
        steps.append((
            "Too many false cells, or too few cells? Count anew at another threshold, in moments.",
            f"brainmap regions RUN --threshold {other:g}",
        ))  # fmt: skip
    if run.regions is not None:
        steps.append(("With several animals: compare groups, region by region.",
                      "brainmap compare groups.csv --out comparison"))  # fmt: skip
    elif run.summary is not None:
        steps.append(("Count per region: detect with an atlas.",
                      "brainmap detect BRAIN --orientation LETTERS --out RUN --overwrite"))  # fmt: skip
    return steps
