"""Clicks and tiles in, a better detector out: the work of `brainmap retrain`.

Aggregate the clicks; hold whole slices out that no ancestor has learnt; recalibrate the start and fine-tune it on
the others, and choose between the two; judge the old and the new detector on the held-out tiles and on simulated
tissue; export the new one if it is better. Every stage leaves
its result in the work folder, and an interrupted command goes on from there.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brainmap.errors import DataError, NotFoundError, UsageError
from brainmap.files import atomic_path, now, read_json, write_json
from brainmap.infer.detector import Detector
from brainmap.lock import held
from brainmap.run_folder import RUN_JSON, RunRecord
from brainmap.swap import REPLACEMENT_DIR, finish_swap, put_in_place
from brainmap.train.commands import grid_for
from brainmap.train.judge.switch import Difference
from brainmap.train.learn.export import export_detector
from brainmap.train.learn.loop import load_network
from brainmap.train.retrain.bench import bench_means
from brainmap.train.retrain.curve import learning_curve
from brainmap.train.retrain.judge import (
    Judgement,
    judge_both,
    judge_crossed,
    judge_unseen_missing,
    write_full_evaluation,
)
from brainmap.train.retrain.lineage import LINEAGE
from brainmap.train.retrain.report import write_retrain_report
from brainmap.train.retrain.request import RetrainRequest
from brainmap.train.retrain.split import Split, split_tiles
from brainmap.train.retrain.steps import (
    FINETUNED,
    RECALIBRATED,
    START,
    Candidate,
    Choice,
    Crossed,
    choose,
    start_candidate,
    train_candidates,
)

__all__ = ["RetrainResult", "retrain"]

log = logging.getLogger(__name__)

OUTCOME, REPORT = "outcome.json", "report.html"

CARD = """# Detector `{name}`

Made by `brainmap retrain` from `{start}`, for cells about {diameter:g} um across (other sizes by
`--cell-diameter`).

**Learnt from** {cells} cells on {tiles} tiles of {slices} slices, agreed on by {workers} workers ({clicks} clicks),
beside simulated tissue ({kind}). The score was calibrated {calibrated}.

{judged}

| | `{start}` | this detector | difference (90 % interval) |
|---|---|---|---|
{rows}

**Switch?** {verdict}: {reason}.

Calibration and accuracy hold for tissue like the tiles above. Not a medical device.
"""


@dataclass(frozen=True)
class RetrainResult:
    """What came out.

    Attributes
    ----------
    detector : Path or None
        The new detector folder; None if it was not written.
    report : Path
    outcome : dict
        The content of `outcome.json`: `switch`, `reason`, and every number of the report.
    """

    detector: Path | None
    report: Path
    outcome: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return {"detector": self.detector, "report": self.report, **self.outcome}

    def lines(self) -> list[tuple[str, str]]:
        """The result as names and values, for people."""
        held_out, lines = self.outcome["held_out"], []
        for name, title in (("f1", "F1"), ("auprc", "AUPRC")) if held_out else ():
            lines.append((title, str(Difference(**held_out[name]))))
        lines.append(("judged on", _judged_on(self.outcome)))
        for name, title in (("auprc", "AUPRC"), ("f1", "F1")) if self.outcome["simulated"] else ():
            before, after = bench_means(self.outcome["simulated"], name)
            lines.append((f"simulated {title}", f"{before:.3f} before, {after:.3f} now"))
        if self.outcome["curve"] is not None:
            lines.append(("more clicks", self.outcome["curve"]["sentence"]))
        lines.append(("kept", self.outcome["choice"]["chosen"]))
        lines.append(("switch", f"{'yes' if self.outcome['switch'] else 'no'}: {self.outcome['reason']}"))
        lines.append(("detector", str(self.detector or "not written")))
        return [*lines, ("report", str(self.report))]


def _judged_on(outcome: dict[str, Any]) -> str:
    held_out = outcome["held_out"]
    if held_out is None:
        return "simulated tissue alone: no tile is unseen"
    kind = "held-out tiles" if outcome["split"]["judged_by"] == "held-out" else "tiles, by cross-fitting,"
    known = "" if outcome["split"]["lineage_complete"] else "; what else trained the start is not on record"
    return f"{held_out['tiles']} {kind} with {held_out['cells']} cells{known}"


def retrain(request: RetrainRequest) -> RetrainResult:
    """Make a better detector of clicks and tiles, or say that it is not better.

    Returns
    -------
    RetrainResult
        Its `detector` is None if the new detector is not better and `accept_worse` was not asked for.

    Raises
    ------
    UsageError
        The detector folder exists, or the work folder holds another retraining.
    NotFoundError, DataError
        Missing or unusable input: too few slices, no accepted cells, clicks that belong to no tile.
    """
    request.check_out()
    if request.is_done():
        return RetrainResult(request.out, request.out / REPORT, read_json(request.out / OUTCOME))
    kept = f"finished stages are kept in {request.work_folder}, and the same command goes on from them"
    _require_free(request.work_folder)
    with held(request.work_folder, kept):
        return _retrain(request)


def _retrain(request: RetrainRequest) -> RetrainResult:
    home, work = request.work_folder, _begin(request)
    made = dataclasses.replace(request, work=work)
    if not (work / OUTCOME).is_file():
        _make(made)
    outcome = read_json(work / OUTCOME)
    record = RunRecord.load(work)
    record.updated(status="complete", finished=now(), results={"switch": outcome["switch"]}).save(work)
    if work != home:
        put_in_place(home, work, RUN_JSON, own=[p.name for p in home.iterdir() if not p.name.startswith(".")])
        work = home
    if not outcome["switch"] and not request.accept_worse:
        return RetrainResult(None, work / REPORT, outcome)
    _export(request, outcome)
    return RetrainResult(request.out, request.out / REPORT, outcome)


def _require_free(work: Path) -> None:
    """Refuse a work folder with anything but a retraining, or what a killed first moment of one leaves."""
    if (work / RUN_JSON).is_file():
        return
    if work.exists() and (not work.is_dir() or any(not p.name.startswith(".") for p in work.iterdir())):
        raise UsageError(f"{work} is not empty and holds no retraining; give another --work")


def _begin(request: RetrainRequest) -> Path:
    """The folder to work in, with its record: that of the same retraining, which then goes on, or a new one.

    Another retraining that is to be replaced stays until the new one is complete.
    """
    work = request.work_folder
    finish_swap(work)
    parameters, fingerprints = request.parameters(), request.fingerprints
    if (work / RUN_JSON).is_file():
        record = RunRecord.load(work)
        if "clicks" not in record.fingerprints:
            raise UsageError(f"{work} holds another kind of run; give another --work")
        if not (request.overwrite and record.differences(parameters, fingerprints)):
            record.require_same(work, parameters, fingerprints)
            return work
        work /= REPLACEMENT_DIR
        with suppress(NotFoundError, DataError):
            if not RunRecord.load(work).differences(parameters, fingerprints):
                return work
        shutil.rmtree(work, ignore_errors=True)
    RunRecord(parameters=parameters, fingerprints=fingerprints).save(work)
    return work


def _make(request: RetrainRequest) -> None:
    """Train, calibrate, choose and judge; leaves `outcome.json` and the report in the work folder."""
    network, grid = load_network(request.start_path)
    diameter = request.cell_diameter_um or grid.cell_diameter_um
    split = split_tiles(request, diameter, request.lineage)
    data, calibrating = split.data, split.data.calibrating
    old, candidates, crossed = start_candidate(request, calibrating, diameter)
    candidates[FINETUNED], crossed[FINETUNED] = train_candidates(request, data.training, diameter)
    choice = choose(crossed, calibrating, request.settings.seed)
    new = candidates[choice.chosen]
    judgement = _judgement(request, split, old, new, crossed, choice, diameter)
    curve = None
    if not split.calibrated_on_seen:
        curve = learning_curve(
            network, grid, calibrating, diameter, request.settings.curve, request.settings.seed
        )
    switch, reason = decide(judgement, request.settings.check_loss, request.settings.check_f1_loss)
    outcome = {
        "switch": switch,
        "reason": reason,
        "start": request.start,
        "cell_diameter_um": diameter,
        "tolerance_px": data.tolerance_px,
        "choice": choice.record(),
        "threshold": {"old": old.threshold, "new": new.threshold},
        "calibration": new.knots,
        "training": data.training.extent,
        "split": split.record(),
        "curve": None if curve is None else curve.record(),
        "left_out": split.left_out,
        "crowd": read_json(request.work_folder / "gt" / "gt.json"),
        **judgement.record(),
    }
    lineage = split.after(request.out.name)
    lineage.save(request.work_folder)
    lineage.save(request.work_folder / "final")
    if judgement.units is not None:
        write_full_evaluation(
            request.work_folder / "evaluation",
            judgement,
            data.tolerance_px / request.settings.tolerance_cells,
        )
    write_retrain_report(request.work_folder / REPORT, outcome, judgement)
    write_json(request.work_folder / OUTCOME, outcome)


def _judgement(
    request: RetrainRequest,
    split: Split,
    old: Candidate,
    new: Candidate,
    crossed: dict[str, Crossed],
    choice: Choice,
    diameter: float,
) -> Judgement:
    """On the held-out tiles; where there are none, by cross-fitting; where nothing is unseen, on simulated tissue."""
    data = split.data
    if split.judged_by == "held-out":
        return judge_both(request, data.held_out, old, new, diameter)
    if split.judged_by == "cross-fitting":
        before = crossed.get(START, crossed[RECALIBRATED])
        pair = {"old": before, "new": crossed[choice.chosen]}
        return judge_crossed(request, data.calibrating, old, new, pair)
    return judge_unseen_missing(request, data, old, new)


def decide(judgement: Judgement, check_loss: float, check_f1_loss: float) -> tuple[bool, str]:
    """Whether to switch, and why, as the end of a sentence.

    One of F1 and AUPRC must be better beyond chance (its 90 % interval lies above 0) and the other not worse;
    on simulated volumes the mean AUPRC may fall by `check_loss` at most. If F1 falls there by more than
    `check_f1_loss` the sentence says that the detector is for tissue like the tiles alone.
    """
    before, after = bench_means(judgement.simulated, "auprc")
    if before - after > check_loss:
        return False, (
            f"on simulated volumes AUPRC falls from {before:.3f} to {after:.3f}: the new detector has forgotten "
            "what the tiles do not show; give it more --rehearsal"
        )
    if not judgement.difference:
        return False, (
            "no tile is unseen: every clicked slice has taught the detector to start from, or an ancestor of it, so "
            "that a score on them would mean nothing; annotate new slices to judge by"
        )
    f1, auprc = judgement.difference["f1"], judgement.difference["auprc"]
    if f1.gain < 0 or auprc.gain < 0:
        name, worse = ("F1", f1) if f1.gain < 0 else ("AUPRC", auprc)
        return False, f"{name} on the held-out tiles is not better: {worse}"
    if f1.low > 0 or auprc.low > 0:
        name, better = ("F1", f1) if f1.low > 0 else ("AUPRC", auprc)
        return True, (
            f"{name} on the held-out tiles is better beyond chance: {better}"
            f"{_elsewhere(judgement, check_f1_loss)}"
        )
    return False, (
        f"the gain on the held-out tiles is within chance, F1 {f1}; annotate more slices, or hold out more"
    )


def _elsewhere(judgement: Judgement, check_f1_loss: float) -> str:
    """What a better verdict must not keep to itself."""
    before, after = bench_means(judgement.simulated, "f1")
    if before - after <= check_f1_loss:
        return ""
    return (
        f"; but elsewhere it is worse: on simulated volumes F1 falls from {before:.3f} to {after:.3f} at its own "
        "threshold, so use it for tissue like the tiles alone"
    )


def _export(request: RetrainRequest, outcome: dict[str, Any]) -> None:
    """The detector folder, with its card, the report and the numbers; it appears when it is complete."""
    chosen = outcome["choice"]["chosen"]
    network, grid = load_network(request.work_folder / "final" if chosen == FINETUNED else request.start_path)
    # The network's pixel follows the cells it was given, so that the new detector needs no --cell-diameter.
    scaled = grid_for(grid, outcome["cell_diameter_um"])
    training = {
        "recipe": "brainmap retrain",
        "retrain": request.fingerprint,
        "start": request.start,
        "switch": outcome["switch"],
        "settings": request.parameters()["settings"],
        **{
            name: outcome[name]
            for name in ("reason", "choice", "training", "split", "held_out", "simulated", "curve")
        },
        "lineage": read_json(request.work_folder / LINEAGE),
    }
    with atomic_path(request.out) as part:
        export_detector(
            network, scaled, part, request.out.name, "1", outcome["threshold"]["new"],
            tuple((float(a), float(b)) for a, b in outcome["calibration"]), training, _card(request, outcome),
            request.start_face, request.start_prominence,
        )  # fmt: skip
        for name in (OUTCOME, REPORT):
            shutil.copyfile(request.work_folder / name, part / name)
        if outcome["held_out"] is not None:
            shutil.copytree(request.work_folder / "evaluation", part / "evaluation")
    Detector.open(request.out)


def _card(request: RetrainRequest, outcome: dict[str, Any]) -> str:
    held_out, training, crowd = outcome["held_out"], outcome["training"], outcome["crowd"]
    rows = []
    for name, title in (("f1", "F1"), ("auprc", "AUPRC")) if held_out else ():
        d = Difference(**held_out[name])
        rows.append(
            f"| {title} | {d.old:.3f} | {d.new:.3f} | {d.gain:+.3f} ({d.low:+.3f} to {d.high:+.3f}) |"
        )
    for name, title in (("auprc", "AUPRC"), ("f1", "F1")) if outcome["simulated"] else ():
        before, after = bench_means(outcome["simulated"], name)
        rows.append(f"| {title}, simulated volumes | {before:.3f} | {after:.3f} | {after - before:+.3f} |")
    judged = "**Judged on** simulated tissue alone: no tile was unseen."
    if held_out:
        others = "other slices" if outcome["split"]["judged_by"] == "held-out" else "slices, by cross-fitting"
        judged = (
            f"**Judged on** {held_out['cells']} cells of {held_out['tiles']} tiles from {held_out['slices']} {others}, "
            f"at a tolerance of\n{outcome['tolerance_px']:.1f} px and a threshold of {outcome['threshold']['new']:.2f}:"
        )
    return CARD.format(
        name=request.out.name, start=outcome["start"], diameter=outcome["cell_diameter_um"], **training,
        workers=crowd["n_workers"], clicks=crowd["n_clicks"], judged=judged, rows="\n".join(rows),
        kind=outcome["choice"]["chosen"], calibrated=_calibrated_on(outcome["split"]),
        verdict="Yes" if outcome["switch"] else "No", reason=outcome["reason"],
    )  # fmt: skip


def _calibrated_on(split: dict[str, Any]) -> str:
    if split["calibrated_on_seen"]:
        return "on tiles that the start had learnt, for want of others: expect scores that are too sure"
    return "by cross-fitting: no score was calibrated on a\ntile that its network had learnt"
