"""`brainmap tune`: a detector that fits a laboratory's tissue, from the marks people made in one run."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brainmap.errors import DataError, NotFoundError, UsageError
from brainmap.files import atomic_path, fingerprint, now
from brainmap.image.mask import Mask
from brainmap.infer.detector import CARD_FILE, MODEL_FILE, SPEC_FILE, Detector, DetectorSpec, write_detector
from brainmap.infer.engine.results import iter_candidates, stored_from
from brainmap.lock import held
from brainmap.points.recalibration import (
    Estimate,
    Interval,
    Marked,
    Recalibration,
    Spread,
    thresholds_between,
)
from brainmap.points.table import Points
from brainmap.run.cells import ImageFrame, located, mask_of
from brainmap.run.marks import MARKS_CSV, MISSED, NO, YES, Marks, inside_analysed, match_marks, read_marks
from brainmap.run.recount import roi_of
from brainmap.run_folder import POINTS_PARQUET, RunRecord
from brainmap.swap import finish_swap

__all__ = ["FEWEST", "TuneResult", "supported", "tune_run", "weigh_marks"]

TUNED_DIR = "tuned_detector"
# Of fewer marks nothing is concluded; nor of fewer of either kind.
FEWEST, FEWEST_OF_A_KIND = 30, 5
# A mark means the nearest candidate within so many cell diameters.
_REACH_CELLS = 0.5
# A change is made where the F1 is higher with this probability, and by so much that it is worth a new detector.
_CHANCE, _WORTH = 0.8, 0.005
# Knots between two of the detector's own: the new curve is not straight there.
_BETWEEN = 4


@dataclass(frozen=True)
class TuneResult:
    """What the marks of a run say.

    Attributes
    ----------
    marks : dict of int
        How many of each kind were used, matched, and left out.
    present, new : Estimate or None
        Precision, recall and F1 at the threshold in force and at the best one; None where marks are too few.
    gain : Interval or None
        How much higher the F1 is.
    shift, slope : float
        Of the log odds of the score.
    reason : str
        Why there is no new detector; empty where there is one.
    detector : Path or None
        The new detector.
    detector_threshold : float or None
        Its threshold, on its own score.
    """

    marks: dict[str, int]
    present: Estimate | None
    new: Estimate | None
    gain: Interval | None
    shift: float
    slope: float
    reason: str
    recall_of: str
    detector: Path | None = None
    detector_threshold: float | None = None

    def lines(self) -> list[tuple[str, str]]:
        """What the command line prints."""
        found = [("marks", ", ".join(f"{number} {name}" for name, number in self.marks.items() if number))]
        for name, estimate in (("now", self.present), ("best", self.new)):
            if estimate is not None:
                found += [
                    (f"{name}: threshold", f"{estimate.threshold:.3f}"),
                    (f"{name}: precision", str(estimate.precision)),
                    (f"{name}: recall", f"{estimate.recall} of {self.recall_of}"),
                    (f"{name}: F1", str(estimate.f1)),
                ]
        if self.gain is not None:
            found.append(("gain in F1", str(self.gain)))
        if self.detector is None:
            return [*found, ("no change", self.reason)]
        return [
            *found,
            ("detector", f"{self.detector}, threshold {self.detector_threshold:.3f} on its own score"),
        ]


def tune_run(
    run: str | Path,
    marks: str | Path | None = None,
    out: str | Path | None = None,
    *,
    complete: bool = False,
    overwrite: bool = False,
) -> TuneResult:
    """Recalibrate a run's detector and its threshold by marks made in the run.

    Parameters
    ----------
    run : path
        A finished run folder, with its candidates.
    marks : path, optional
        CSV with the columns `z y x mark`; by default `marks.csv` of the run.
    out : path, optional
        Detector folder to write; by default `RUN/tuned_detector`. Nothing is written where the marks do not support
        a change.
    complete : bool
        Missed cells were looked for around the marks, also if none is marked.
    overwrite : bool
        Replace a detector there.

    Raises
    ------
    NotFoundError, DataError, UsageError
        If there is no run, no marks, or they cannot be of this run.
    """
    folder = Path(run)
    RunRecord.load(folder)
    with held(folder, "nothing was changed"):
        return _tune(folder, marks, out, complete, overwrite)


def _tune(
    folder: Path, marks: str | Path | None, out: str | Path | None, complete: bool, overwrite: bool
) -> TuneResult:
    finish_swap(folder)
    record = RunRecord.load(folder)
    target = _target(folder, out, overwrite)
    table = folder / POINTS_PARQUET
    if record.status == "running" or not table.is_file():
        raise UsageError(
            f"{folder} holds a run that has not finished: give the same brainmap detect again first"
        )
    detector = _detector_of(folder, record)
    path = folder / MARKS_CSV if marks is None else Path(marks)
    heard = _hear(folder, record, detector, path, complete)
    given, marked, lost, present = heard.given, heard.marked, heard.lost, heard.present
    counts = _counts(given, marked, lost)
    recall_of = (
        "all cells"
        if marked.looked_for_missed
        else "the cells among the candidates: no missed cell is marked"
    )
    if reason := _too_few(marked):
        return TuneResult(counts, None, None, None, 0.0, 1.0, reason, recall_of)
    result = heard.weigh(folder)
    chosen = result.best
    found = TuneResult(
        counts, result.estimate(present), result.estimate(chosen), result.gain(chosen), *result.shift_and_slope,
        reason=_no_change(result, chosen), recall_of=recall_of,
    )  # fmt: skip
    if found.reason:
        return found
    training = _training(found, folder, path)
    spec = tuned_spec(detector.spec, result, chosen, training)
    _write(target, detector, spec, found)
    return dataclasses.replace(found, detector=target, detector_threshold=spec.threshold)


@dataclass(frozen=True)
class _Heard:
    """The marks of a run, held against its candidates; `lost` of them lie at none."""

    given: Marks
    marked: Marked
    lost: int
    present: float
    frame: ImageFrame
    mask: Mask | None

    def weigh(self, folder: Path) -> Recalibration:
        """What follows from them for every threshold."""
        return Recalibration(_spread(folder, self.frame, self.mask, self.present), self.marked, self.present)


def _hear(folder: Path, record: RunRecord, detector: Detector, path: Path, complete: bool) -> _Heard:
    """Read marks and match them to candidates."""
    table = folder / POINTS_PARQUET
    frame, mask = ImageFrame.from_meta(Points.read(table, ["z"]).meta, table), mask_of(record)
    if not path.is_file():
        raise NotFoundError(f"there are no marks {path}: mark cells with brainmap view, or give --marks CSV")
    given = inside_analysed(read_marks(path, frame), frame, roi_of(record), mask)
    present = float(record.results.get("threshold", detector.spec.threshold))
    diameter = float(record.results.get("cell_diameter_um") or detector.spec.cell_diameter_um)
    marked, lost = match_marks(folder, given, frame, mask, _REACH_CELLS * diameter, present)
    marked = dataclasses.replace(marked, complete=complete)
    _check_sense(path, given, marked, lost)
    return _Heard(given, marked, lost, present, frame, mask)


def weigh_marks(run: str | Path, *, complete: bool = False) -> Recalibration:
    """What the marks of a run say of its precision and recall at every threshold; nothing is written.

    Parameters
    ----------
    run : path
        A finished run folder with `marks.csv`.
    complete : bool
        Missed cells were looked for around the marks, also if none is marked.

    Raises
    ------
    NotFoundError, DataError, UsageError
        If there are no marks, too few, or they cannot be of this run.
    """
    folder = Path(run)
    record = RunRecord.load(folder)
    heard = _hear(folder, record, _detector_of(folder, record), folder / MARKS_CSV, complete)
    if reason := _too_few(heard.marked):
        raise DataError(reason)
    return heard.weigh(folder)


def supported(result: Recalibration, chosen: float) -> bool:
    """Whether the marks support moving the threshold."""
    if chosen == result.present:
        return False
    return result.chance_of_gain(chosen) >= _CHANCE and result.gain(chosen).value >= _WORTH


def tuned_spec(
    spec: DetectorSpec, result: Recalibration, chosen: float, training: dict[str, Any]
) -> DetectorSpec:
    """A detector's record with the recalibrated score, and the threshold on it that means the chosen one.

    Parameters
    ----------
    spec : DetectorSpec
        Of the run's detector.
    result : Recalibration
        On its scores.
    chosen : float
        Threshold on its scores.
    training : dict
        What to record of the marks.
    """
    knots = np.asarray(spec.calibration, np.float64)
    steps = np.arange(len(knots) * _BETWEEN - _BETWEEN + 1) / _BETWEEN
    logits = np.interp(steps, np.arange(len(knots)), knots[:, 0])
    scores = np.maximum.accumulate(np.round(result.probability(spec.score(logits)), 6))
    calibration = tuple(zip(logits.tolist(), np.clip(scores, 0, 1).tolist(), strict=True))
    tuned = dataclasses.replace(spec, calibration=calibration)
    # The same peaks as the chosen threshold on the old score.
    at = float(np.clip(spec.logit_at(chosen), knots[0, 0], knots[-1, 0]))
    threshold = float(np.floor(float(tuned.score(np.array(at))) * 1e6) / 1e6)
    earlier = list(spec.training.get("tune", ()))
    return dataclasses.replace(
        tuned,
        version=spec.version if spec.version.endswith("-tuned") else f"{spec.version}-tuned",
        threshold=threshold,
        training=spec.training | {"tune": [*earlier, training]},
    )


def _target(folder: Path, out: str | Path | None, overwrite: bool) -> Path:
    target = folder / TUNED_DIR if out is None else Path(out)
    if target.exists() and not (overwrite and (target / SPEC_FILE).is_file()):
        raise UsageError(f"{target} exists; use --overwrite to replace a detector there, or another --out")
    return target


def _detector_of(folder: Path, record: RunRecord) -> Detector:
    detector = Detector.open(str(record.parameters.get("detector", "default")))
    known = record.fingerprints.get("detector")
    if known is not None and detector.fingerprint != known:
        raise UsageError(
            f"the detector {detector.folder} is not the one that {folder} was made with any more: detect again with "
            "--overwrite, then mark"
        )
    return detector


def _spread(folder: Path, frame: ImageFrame, mask: Mask | None, present: float) -> Spread:
    """The scores of all candidates."""
    spread = Spread.over(thresholds_between(stored_from(folder), present))
    for piece in located(iter_candidates(folder), frame, mask):
        spread.add(piece["score"])
    return spread


def _check_sense(path: Path, given: Marks, marked: Marked, lost: int) -> None:
    if given.number(NO) == 0:
        raise DataError(
            f"{path} holds no mark 'no': without false cells there is nothing to tell cells from; mark every cell of "
            "some places, the wrong ones too"
        )
    if given.number(YES) == 0:
        raise DataError(f"{path} holds no mark 'yes': without right cells there is nothing to learn")
    # Marks yes and no are made on cells that are shown.
    astray = lost + marked.never_found - min(marked.never_found, given.number(MISSED))
    if 2 * astray > given.number(YES) + given.number(NO):
        raise DataError(
            f"{path}: {astray} of {given.number(YES) + given.number(NO)} marks yes and no lie at no candidate of this "
            "run; are they of another run, or not in level-0 voxels?"
        )


def _counts(given: Marks, marked: Marked, lost: int) -> dict[str, int]:
    return {
        "yes": given.number(YES), "no": given.number(NO), "missed": given.number(MISSED),
        "without any candidate": marked.never_found, "'no' at no candidate, left out": lost,
        "unsure, left out": given.unsure, "of the hard sample, left out": given.hard,
        "outside what was analysed, left out": given.outside,
    }  # fmt: skip


def _too_few(marked: Marked) -> str:
    right = int(marked.is_cell.sum()) + len(marked.missed_score)
    wrong = int((~marked.is_cell).sum())
    if len(marked) < FEWEST:
        return f"{len(marked)} marks are too few, {FEWEST} are the least"
    if min(right, wrong) < FEWEST_OF_A_KIND:
        return f"{right} cells and {wrong} false ones are marked: {FEWEST_OF_A_KIND} of each are the least"
    return ""


def _no_change(result: Recalibration, chosen: float) -> str:
    """Why the threshold stays; empty where it moves."""
    if chosen == result.present:
        return "the threshold in force is the best by these marks"
    if supported(result, chosen):
        return ""
    return (
        f"the marks do not support a change: a threshold of {chosen:g} is better than {result.present:g} with "
        f"probability {result.chance_of_gain(chosen):.2f}, F1 by {result.gain(chosen)}"
    )


def _training(found: TuneResult, folder: Path, path: Path) -> dict[str, Any]:
    """What the detector's record says of the marks."""
    return {
        "run": folder.absolute().name,
        "marks": found.marks,
        "marks_sha256": fingerprint(path.read_bytes()),
        "shift": round(found.shift, 4),
        "slope": round(found.slope, 4),
        "before": found.present,
        "after": found.new,
        "recall_of": found.recall_of,
        "at": now(),
    }


def _write(target: Path, detector: Detector, spec: DetectorSpec, found: TuneResult) -> None:
    """The detector folder: a copy with the new record; complete or not at all."""
    rows = "\n".join(f"| {name} | {value} |" for name, value in found.lines()[:-1])
    old = detector.folder / CARD_FILE
    card = old.read_text(encoding="utf-8").rstrip() if old.is_file() else f"# Detector `{spec.name}`"
    card += f"\n\n**Tuned** by `brainmap tune` on marks in one run; threshold {spec.threshold:.3f}."
    card += f"\n\n| | |\n|---|---|\n{rows}\n"
    with atomic_path(target) as new:
        new.mkdir()
        for path in detector.folder.iterdir():
            if path.is_file() and path.name not in (MODEL_FILE, SPEC_FILE, CARD_FILE):
                shutil.copyfile(path, new / path.name)
        write_detector(new, detector.model_path.read_bytes(), spec, card)
