"""`brainmap demo`: a phantom brain through the whole pipeline, scored against the known truth."""

from __future__ import annotations

import logging
from pathlib import Path

from brainmap.progress import task
from brainmap.run.detect import detect_brain
from brainmap.run.request import DetectRequest
from brainmap.run_folder import REGIONS_CSV

__all__ = ["run_demo"]

log = logging.getLogger(__name__)


def run_demo(out: str | Path) -> str:
    """Make a phantom brain, run the whole pipeline on it and score it against the known truth.

    Parameters
    ----------
    out : path
        Folder to write; a demo that is already there is used again.

    Returns
    -------
    str
        Recall, precision, counts per region beside the truth, and the report to open.
    """
    from brainmap.phantom import write_phantom
    from brainmap.points.evaluation import evaluate_files
    from brainmap.report.region_rows import read_regions
    from brainmap.report.run_report import write_run_report

    folder = Path(out)
    log.info("making a phantom brain in %s", folder)
    with task("making a phantom brain"):
        phantom = write_phantom(folder / "phantom")
    request = DetectRequest(
        brain=str(phantom.brain),
        out=folder / "run",
        channel=phantom.signal_channel,
        registration_channel=phantom.registration_channel,
        atlas=str(phantom.atlas),
        overwrite=True,
    )
    summary = detect_brain(request)
    report = write_run_report(summary.run, truth=phantom.truth, truth_regions=phantom.truth_regions)
    scores = evaluate_files(summary.run, phantom.truth).scores
    found, true = read_regions(summary.run / REGIONS_CSV), read_regions(phantom.truth_regions)
    truth = {region.id: region for region in true.regions}
    lines = [
        f"{summary.cells} cells found, {phantom.n_cells} are there",
        f"recall {scores.recall:.3f}  precision {scores.precision:.3f}  F1 {scores.f1:.3f}",
        "",
        f"{'region':<28}{'left':>7}{'true':>7}{'right':>8}{'true':>7}",
    ]
    for region in found.regions:
        row = f"{'  ' * region.depth + region.name:<28.28}"
        for side in ("left", "right"):
            row += f"{region.count[side]:>{7 if side == 'left' else 8}}{truth[region.id].count[side]:>7}"
        lines.append(row)
    return "\n".join([*lines, "", f"open {report}"])
