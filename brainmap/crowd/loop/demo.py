"""`brainmap demo --crowd`: the loop on a phantom with a simulated crowd.

Phantom -> run -> tiles of its regions -> clicks of simulated workers -> ground truth, held against the known cells
-> a retrained detector -> the verdict. With `serve` the tiles also go into a site, for clicking oneself.
"""

from __future__ import annotations

import logging
import shutil
import threading
import webbrowser
from pathlib import Path

import numpy as np

from brainmap.crowd.loop.round import RoundRequest, RoundResult, run_round
from brainmap.crowd.loop.simulate import ShownCells, cells_of_tiles, write_crowd
from brainmap.crowd.sampling import SampleRequest, sample_tiles
from brainmap.errors import MissingExtraError
from brainmap.gt.truth import GroundTruth
from brainmap.points.matching import Scores, match_points, score
from brainmap.run_folder import RunRecord
from brainmap.tiles.tiles import TILES_PARQUET, Tiles

__all__ = ["crowd_against_truth", "run_crowd_demo", "serve_demo"]

log = logging.getLogger(__name__)

REGIONS = ("ISO", "OLF", "HPF", "STR")
# Tiles by size of the phantom, px: small enough for its regions.
TILE_PX = {"demo": 96, "tiny": 48}
BUDGET = 36
TOLERANCE_PX = 3.0
PROJECT = "demo"


def run_crowd_demo(out: str | Path, size: str = "demo", steps: int = 40) -> str:
    """Run the loop once.

    Parameters
    ----------
    out : path
        Folder to write; what is there of an interrupted demo is used.
    size : str
        Of the phantom.
    steps : int
        Of each training; three are done.

    Returns
    -------
    str
        What was sampled, how good the crowd is, the verdict, and the reports to open.
    """
    folder = Path(out)
    run, truth = _run(folder, size)
    tiles = _tiles(folder, run, TILE_PX[size])
    shown = cells_of_tiles(tiles, dict.fromkeys(set(tiles.columns["brain"]), truth))

    def simulated_site(site: Path, project: str, part: Path) -> None:
        write_crowd(part, tiles, shown)
        shutil.copytree(tiles.folder, part / "tiles")

    log.info("a round: simulated clicks, ground truth, retraining")
    request = RoundRequest(folder / "site", PROJECT, folder / "round", "default", _settings(steps))
    result = run_round(request, simulated_site)
    agreed = crowd_against_truth(tiles, shown, GroundTruth.open(folder / "round" / "gt"))
    return _text(tiles, agreed, result)


def crowd_against_truth(tiles: Tiles, shown: dict[str, ShownCells], truth: GroundTruth) -> Scores:
    """Accepted cells of a crowd against those that show, over all tiles, within 3 px."""
    total = Scores(0, 0, 0)
    for name in (str(name) for name in tiles.ids):
        found = truth.accepted(name)[0]
        matched = len(match_points(found, shown[name].xy, TOLERANCE_PX).index_a)
        total = total + score(matched, len(found), len(shown[name].xy))
    return total


def serve_demo(out: str | Path, port: int = 8000) -> None:
    """Put the demo's tiles into a site, open it in the browser, and serve until interrupted.

    Raises
    ------
    MissingExtraError
        The packages of the site are not installed.
    """
    try:
        from brainmap.crowd.store.site import init_site
        from brainmap.crowd.web.serve import serve
        from brainmap.crowd.work.projects import ProjectSpec, add_project
    except ImportError as error:
        raise MissingExtraError(error.name or "starlette", "crowd", "serve the demo's tiles") from error
    site = Path(out) / "site"
    if not (site / "crowd.toml").is_file():
        opened = init_site(site)
        add_project(opened, ProjectSpec(PROJECT, Path(out) / "tiles", redundancy=3))
        opened.close()
    timer = threading.Timer(2.0, webbrowser.open, [f"http://127.0.0.1:{port}/"])
    timer.daemon = True
    timer.start()
    serve(site, "127.0.0.1", port)


def _run(folder: Path, size: str) -> tuple[Path, Path]:
    """The phantom's finished run, and the table of its cells."""
    from brainmap.phantom import Phantom, write_phantom
    from brainmap.run.detect import detect_brain
    from brainmap.run.request import DetectRequest

    run, home = folder / "run", folder / "phantom"
    if (run / "run.json").is_file() and RunRecord.load(run).status == "complete":
        return run, Phantom.load(home).truth
    log.info("making a phantom brain in %s and detecting its cells", folder)
    phantom = write_phantom(home, size=size)
    detect_brain(DetectRequest(
        brain=str(phantom.brain), out=run, channel=phantom.signal_channel,
        registration_channel=phantom.registration_channel, atlas=str(phantom.atlas), overwrite=True,
    ))  # fmt: skip
    return run, phantom.truth


def _tiles(folder: Path, run: Path, tile_px: int) -> Tiles:
    out = folder / "tiles"
    if (out / TILES_PARQUET).is_file():
        return Tiles.open(out)
    request = SampleRequest(
        (run,), out, regions=REGIONS, tile_px=tile_px, budget=BUDGET, datasets=2, sections=40
    )
    return sample_tiles(request).tiles


def _settings(steps: int):  # type: ignore[no-untyped-def]
    """Short trainings: the loop is to be seen, not the best detector."""
    from dataclasses import replace

    from brainmap.train.retrain.request import RetrainSettings

    settings = RetrainSettings(folds=2, rehearsal=4, check_volumes=0)
    return replace(settings, finetune=replace(settings.finetune, steps=steps, warm_up=5, batch=4))


def _text(tiles: Tiles, agreed: Scores, result: RoundResult) -> str:
    regions, count = np.unique(tiles.columns["region"], return_counts=True)
    lines = [
        f"{len(tiles)} tiles: " + ", ".join(f"{n} {r}" for r, n in zip(regions, count, strict=True)),
        f"crowd against the known cells: recall {agreed.recall:.3f}  precision {agreed.precision:.3f}  "
        f"F1 {agreed.f1:.3f}",
    ]
    width = max(len(name) for name, _ in result.lines())
    lines += [f"{name:<{width}}  {value}" for name, value in result.lines()]
    return "\n".join([*lines, f"tiles   {tiles.folder / 'report.html'}"])
