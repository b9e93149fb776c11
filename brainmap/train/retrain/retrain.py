"""Clicks and tiles in, a better detector out: the work of `brainmap retrain`.

Aggregate the clicks; hold whole slices out; fine-tune and calibrate on the others; judge the old and the new
detector on the held-out tiles and on simulated tissue; export the new one if it is better. Every stage leaves
its result in the work folder, and an interrupted command goes on from there.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brainmap.errors import UsageError
from brainmap.files import atomic_path, now, read_json, write_json
from brainmap.infer.detector import Detector
from brainmap.run_folder import RunRecord
from brainmap.train.commands import grid_for
from brainmap.train.judge.switch import Difference
from brainmap.train.learn.export import export_detector
from brainmap.train.learn.loop import load_network
from brainmap.train.retrain.judge import Judgement, judge_both, simulated_means, write_full_evaluation
from brainmap.train.retrain.report import write_retrain_report
from brainmap.train.retrain.request import RetrainRequest
from brainmap.train.retrain.steps import (
    HELD_OUT,
    old_candidate,
    split_tiles,
    train_candidate,
)

__all__ = ["RetrainResult", "retrain"]

log = logging.getLogger(__name__)

OUTCOME, REPORT = "outcome.json", "report.html"

CARD = """# Detector `{name}`

Made by `brainmap retrain` from `{start}`, for cells about {diameter:g} um across (other sizes by
`--cell-diameter`).

**Learnt from** {cells} cells on {tiles} tiles of {slices} slices, agreed on by {workers} workers ({clicks} clicks),
beside simulated tissue. The score was calibrated by cross-fitting on the same tiles: no score was calibrated on a
tile that its network had learnt.

**Judged on** {held_cells} cells of {held_tiles} tiles from {held_slices} other slices, at a tolerance of
{tolerance:.1f} px and a threshold of {threshold:.2f}:

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
        for name, title in (("f1", "F1"), ("auprc", "AUPRC")):
            lines.append((title, str(Difference(**held_out[name]))))
        lines.append(("judged on", f"{held_out['tiles']} held-out tiles with {held_out['cells']} cells"))
        lines.append(("switch", f"{'yes' if self.outcome['switch'] else 'no'}: {self.outcome['reason']}"))
        lines.append(("detector", str(self.detector or "not written")))
        return [*lines, ("report", str(self.report))]


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
    work, record = request.work_folder, _begin(request)
    if not (work / OUTCOME).is_file():
        _make(request)
    outcome = read_json(work / OUTCOME)
    record.updated(status="complete", finished=now(), results={"switch": outcome["switch"]}).save(work)
    if not outcome["switch"] and not request.accept_worse:
        return RetrainResult(None, work / REPORT, outcome)
    _export(request, outcome)
    return RetrainResult(request.out, request.out / REPORT, outcome)


def _begin(request: RetrainRequest) -> RunRecord:
    """The work folder's record: a new one, or that of the same retraining, which then goes on."""
    work = request.work_folder
    parameters, fingerprints = request.parameters(), request.fingerprints
    if (work / "run.json").is_file():
        record = RunRecord.load(work)
        if "clicks" not in record.fingerprints:
            raise UsageError(f"{work} holds another kind of run; give another --work")
        if not (request.overwrite and record.differences(parameters, fingerprints)):
            record.require_same(work, parameters, fingerprints)
            return record
        shutil.rmtree(work)
    elif work.exists() and any(work.iterdir()):
        raise UsageError(f"{work} is not empty and holds no retraining; give another --work")
    record = RunRecord(parameters=parameters, fingerprints=fingerprints)
    record.save(work)
    return record


def _make(request: RetrainRequest) -> None:
    """Train, calibrate and judge; leaves `outcome.json` and the report in the work folder."""
    _, grid = load_network(request.start_path)
    diameter = request.cell_diameter_um or grid.cell_diameter_um
    data = split_tiles(request, diameter)
    old = old_candidate(request, data, diameter)
    new = train_candidate(request, data, diameter)
    judgement = judge_both(request, data.take(data.fold == HELD_OUT), old, new, diameter)
    switch, reason = decide(judgement, request.settings.check_loss)
    outcome = {
        "switch": switch,
        "reason": reason,
        "start": request.start,
        "cell_diameter_um": diameter,
        "tolerance_px": data.tolerance_px,
        "threshold": {"old": old.threshold, "new": new.threshold},
        "calibration": new.knots,
        "training": data.take(data.fold != HELD_OUT).extent,
        "left_out": data.left_out,
        "crowd": read_json(request.work_folder / "gt" / "gt.json"),
        **judgement.record(),
    }
    write_full_evaluation(
        request.work_folder / "evaluation", judgement, data.tolerance_px / request.settings.tolerance_cells
    )
    write_retrain_report(request.work_folder / REPORT, outcome, judgement)
    write_json(request.work_folder / OUTCOME, outcome)


def decide(judgement: Judgement, check_loss: float) -> tuple[bool, str]:
    """Whether to switch, and why, as the end of a sentence.

    One of F1 and AUPRC must be better beyond chance (its 90 % interval lies above 0) and the other not worse;
    on simulated volumes the mean AUPRC may fall by `check_loss` at most.
    """
    f1, auprc = judgement.difference["f1"], judgement.difference["auprc"]
    before, after = simulated_means(judgement.simulated)
    if before - after > check_loss:
        return False, (
            f"on simulated volumes AUPRC falls from {before:.3f} to {after:.3f}: the new detector has forgotten "
            "what the tiles do not show; give it more --rehearsal"
        )
    if f1.gain < 0 or auprc.gain < 0:
        name, worse = ("F1", f1) if f1.gain < 0 else ("AUPRC", auprc)
        return False, f"{name} on the held-out tiles is not better: {worse}"
    if f1.low > 0 or auprc.low > 0:
        name, better = ("F1", f1) if f1.low > 0 else ("AUPRC", auprc)
        return True, f"{name} on the held-out tiles is better beyond chance: {better}"
    return False, (
        f"the gain on the held-out tiles is within chance, F1 {f1}; annotate more slices, or hold out more"
    )


def _export(request: RetrainRequest, outcome: dict[str, Any]) -> None:
    """The detector folder, with its card, the report and the numbers; it appears when it is complete."""
    network, grid = load_network(request.work_folder / "final")
    # The network's pixel follows the cells it was given, so that the new detector needs no --cell-diameter.
    scaled = grid_for(grid, outcome["cell_diameter_um"])
    training = {
        "recipe": "brainmap retrain",
        "retrain": request.fingerprint,
        "start": request.start,
        "switch": outcome["switch"],
        "settings": request.parameters()["settings"],
        **{name: outcome[name] for name in ("reason", "training", "held_out", "simulated")},
    }
    with atomic_path(request.out) as part:
        export_detector(
            network, scaled, part, request.out.name, "1", outcome["threshold"]["new"],
            tuple((float(a), float(b)) for a, b in outcome["calibration"]), training, _card(request, outcome),
            request.start_face,
        )  # fmt: skip
        for name in (OUTCOME, REPORT):
            shutil.copyfile(request.work_folder / name, part / name)
        shutil.copytree(request.work_folder / "evaluation", part / "evaluation")
    Detector.open(request.out)


def _card(request: RetrainRequest, outcome: dict[str, Any]) -> str:
    held_out, training, crowd = outcome["held_out"], outcome["training"], outcome["crowd"]
    rows = []
    for name, title in (("f1", "F1"), ("auprc", "AUPRC")):
        d = Difference(**held_out[name])
        rows.append(
            f"| {title} | {d.old:.3f} | {d.new:.3f} | {d.gain:+.3f} ({d.low:+.3f} to {d.high:+.3f}) |"
        )
    if outcome["simulated"]:
        before, after = simulated_means(outcome["simulated"])
        rows.append(f"| AUPRC, simulated volumes | {before:.3f} | {after:.3f} | {after - before:+.3f} |")
    return CARD.format(
        name=request.out.name, start=outcome["start"], diameter=outcome["cell_diameter_um"], **training,
        workers=crowd["n_workers"], clicks=crowd["n_clicks"], held_cells=held_out["cells"],
        held_tiles=held_out["tiles"], held_slices=held_out["slices"], tolerance=outcome["tolerance_px"],
        threshold=outcome["threshold"]["new"], rows="\n".join(rows),
        verdict="Yes" if outcome["switch"] else "No", reason=outcome["reason"],
    )  # fmt: skip
