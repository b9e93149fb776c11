"""One round of the loop: the site's clicks -> ground truth -> a better detector, or the reason why not.

Export, aggregation, retraining and verdict each leave their result in the folder of the round with a fingerprint of
what they wrote. The same command goes on where it was interrupted: a stage whose files are as its record says is
kept, another one is done anew, and all after it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brainmap.errors import DataError, MissingExtraError, NotFoundError, UsageError
from brainmap.files import atomic_path, fingerprint, now, read_json, to_jsonable, write_json
from brainmap.gt.aggregate import aggregate
from brainmap.lock import held
from brainmap.swap import REPLACEMENT_DIR, finish_swap, put_in_place
from brainmap.tiles.tiles import Tiles

if TYPE_CHECKING:
    from brainmap.train.retrain.request import RetrainSettings

__all__ = ["Export", "RoundRequest", "RoundResult", "export_site", "run_round"]

log = logging.getLogger(__name__)

RECORD, REPORT, HARD, VERDICT = "round.json", "report.html", "hard.csv", "verdict.json"
STAGES = ("export", "gt", "retrain", "verdict")

# Writes clicks.csv, assignments.csv, workers.csv and tiles/ of a site's project into a new folder.
Export = Callable[[Path, str, Path], None]


@dataclass(frozen=True)
class RoundRequest:
    """One round.

    Parameters
    ----------
    site : Path
        The site's folder.
    project : str
    out : Path
        Folder of the round.
    start : str
        Detector to improve.
    settings : RetrainSettings
        Of aggregation and retraining.
    cell_diameter_um : float or None
        Typical cell in the tiles; None: the start's.
    device : str
        "cpu", "cuda" or "mps".
    accept_worse : bool
        Write the detector although it is not better.
    overwrite : bool
        Begin again where the folder holds a round with other parameters.
    """

    site: Path
    project: str
    out: Path
    start: str
    settings: RetrainSettings
    cell_diameter_um: float | None = None
    device: str = "cpu"
    accept_worse: bool = False
    overwrite: bool = False

    def parameters(self) -> dict[str, Any]:
        """The options that decide the result."""
        from brainmap.train.commands import network_path

        start = network_path(self.start)
        return to_jsonable({
            "site": self.site.resolve(),
            "project": self.project,
            "start": tree_fingerprint(start) if start.is_dir() else fingerprint(start.read_bytes()),
            "settings": dataclasses.asdict(self.settings),
            "cell_diameter_um": self.cell_diameter_um,
            "accept_worse": self.accept_worse,
        })  # fmt: skip


@dataclass(frozen=True)
class RoundResult:
    """What came out.

    Parameters
    ----------
    out : Path
    verdict : dict
        `switch`, `reason`, `f1` and `auprc` (old, new, low, high), counts of workers, clicks, tiles and cells, and
        the number of candidates in doubt.
    kept : tuple of str
        Stages that were there already.
    """

    out: Path
    verdict: dict[str, Any]
    kept: tuple[str, ...] = ()

    @property
    def detector(self) -> Path | None:
        """The new detector; None if it was not written."""
        folder = self.out / "detector"
        return folder if folder.is_dir() else None

    def lines(self) -> list[tuple[str, str]]:
        """The result as names and values, for people."""
        v = self.verdict
        lines = [
            ("crowd", f"{v['workers']} workers, {v['clicks']} clicks on {v['tiles']} tiles"),
            ("cells", f"{v['cells']} agreed on, {v['undecided']} candidates in doubt"),
        ]
        for name, title in (("f1", "F1"), ("auprc", "AUPRC")):
            d = v[name]
            span = f"difference {d['new'] - d['old']:+.3f} ({d['low']:+.3f} to {d['high']:+.3f})"
            lines.append((title, f"{d['old']:.3f} before, {d['new']:.3f} now, {span}"))
        return [
            *lines,
            ("switch", f"{'yes' if v['switch'] else 'no'}: {v['reason']}"),
            ("detector", str(self.detector or "not written")),
            ("report", str(self.out / REPORT)),
        ]


def export_site(site: Path, project: str, out: Path) -> None:
    """Export a project of a site; what `run_round` uses unless it is given something else.

    Raises
    ------
    MissingExtraError
        The packages of the site are not installed.
    """
    try:
        from brainmap.crowd.store.site import Site  # type: ignore[import-not-found,unused-ignore]
        from brainmap.crowd.work.export import export_project  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise MissingExtraError(error.name or "sqlalchemy", "crowd", "export the clicks of a site") from error
    opened = Site.open(site)
    try:
        export_project(opened, project, out)
    finally:
        opened.close()


def run_round(request: RoundRequest, export: Export = export_site) -> RoundResult:
    """Go from a site's clicks to a detector and a verdict.

    Parameters
    ----------
    request : RoundRequest
    export : callable
        See `Export`.

    Raises
    ------
    UsageError
        The folder holds something else, or a round with other parameters.
    DataError
        The export lacks a file; too little was clicked to learn from. What was done so far is kept, and the report
        says what is missing.
    """
    _require_free(request.out)
    kept = f"finished stages are kept in {request.out}, and the same command goes on from them"
    with held(request.out, kept):
        home = request.out
        journal = _Journal.open(request)
        result = _run_stages(journal, export)
        if journal.request.out == home:
            return result
        own = [path.name for path in home.iterdir() if not path.name.startswith(".")]
        put_in_place(home, journal.request.out, RECORD, own=own)
        return dataclasses.replace(result, out=home)


def _require_free(out: Path) -> None:
    """Refuse a folder with anything but a round, or what a killed first moment of one leaves."""
    if (out / RECORD).is_file():
        return
    if out.exists() and (not out.is_dir() or any(not path.name.startswith(".") for path in out.iterdir())):
        raise UsageError(f"{out} exists and holds no round; give another --out")


def _run_stages(journal: _Journal, export: Export) -> RoundResult:
    request = journal.request
    journal.stage("export", lambda: _export(request, export))
    journal.stage("gt", lambda: _aggregate(request))
    try:
        journal.stage("retrain", lambda: _retrain(request))
    except DataError as error:
        from brainmap.crowd.loop.round_report import write_failed_round

        write_failed_round(request.out / REPORT, request.project, request.out, str(error))
        raise
    journal.stage("verdict", lambda: _conclude(request))
    return RoundResult(request.out, read_json(request.out / VERDICT), tuple(journal.kept))


@dataclass
class _Journal:
    """`round.json`: which stages are done, and what they wrote."""

    request: RoundRequest
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, request: RoundRequest) -> _Journal:
        """Go on with the round in the folder, or begin one: beside another, until that can be replaced."""
        out, parameters = request.out, request.parameters()
        finish_swap(out)
        path = out / RECORD
        if not path.is_file():
            journal = cls(request)
            journal.save()
            return journal
        record = read_json(path)
        if record.get("parameters") == parameters:
            return cls(request, dict(record.get("stages", {})))
        if not request.overwrite:
            old = record.get("parameters") or {}
            changed = sorted(k for k in parameters if old.get(k) != parameters[k])
            raise UsageError(
                f"{out} holds a round with other parameters ({', '.join(changed)}); give another --out, or --overwrite"
            )
        request = dataclasses.replace(request, out=out / REPLACEMENT_DIR)
        with suppress(NotFoundError, DataError):
            record = read_json(request.out / RECORD)
            if record.get("parameters") == parameters:
                return cls(request, dict(record.get("stages", {})))
        shutil.rmtree(request.out, ignore_errors=True)
        journal = cls(request)
        journal.save()
        return journal

    def save(self) -> None:
        write_json(
            self.request.out / RECORD, {"parameters": self.request.parameters(), "stages": self.stages}
        )

    def stage(self, name: str, work: Callable[[], list[Path]]) -> None:
        """Do a stage, or keep it; `work` returns the files and folders that it wrote."""
        done = self.stages.get(name)
        if done and all(_print_of(self.request.out / p) == mark for p, mark in done["files"].items()):
            self.kept.append(name)
            log.info("%s: kept", name)
            return
        # What follows was made from something else.
        for later in STAGES[STAGES.index(name) :]:
            self.stages.pop(later, None)
        self.save()
        log.info("%s", name)
        began = time.perf_counter()
        files = {path.relative_to(self.request.out).as_posix(): _print_of(path) for path in work()}
        self.stages[name] = {
            "files": files,
            "seconds": round(time.perf_counter() - began, 3),
            "finished": now(),
        }
        self.save()


def tree_fingerprint(folder: Path) -> str:
    """SHA-256 of all files of a folder, names and contents."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _print_of(path: Path) -> str | None:
    """Fingerprint of a file or folder; None where there is none."""
    if path.is_dir():
        return tree_fingerprint(path)
    return fingerprint(path.read_bytes()) if path.is_file() else None


def _export(request: RoundRequest, export: Export) -> list[Path]:
    folder = request.out / "export"
    with atomic_path(folder) as part:
        export(request.site, request.project, part)
        missing = [
            name for name in ("clicks.csv", "assignments.csv", "tiles/tiles.parquet")
            if not (part / name).is_file()
        ]  # fmt: skip
        if missing:
            raise DataError(f"the export of {request.project} from {request.site} lacks {missing[0]}")
    return [folder]


def _qc(request: RoundRequest) -> tuple[str, ...]:
    """QC tiles that somebody was given: only those can say how able workers are."""
    from brainmap.gt.clicks import read_clicks

    folder = request.out / "export"
    tiles = Tiles.open(folder / "tiles")
    seen = read_clicks(folder / "clicks.csv", tiles=folder / "tiles", assignments=folder / "assignments.csv")
    checked = tiles.ids[tiles.columns["is_qc"]]
    return tuple(sorted(str(name) for name in checked if str(name) in set(seen.image_ids)))


def _aggregate(request: RoundRequest) -> list[Path]:
    source, folder = request.out / "export", request.out / "gt"
    with atomic_path(folder) as part:
        aggregate(
            source / "clicks.csv", part, tiles=source / "tiles", assignments=source / "assignments.csv",
            qc=_qc(request), settings=request.settings.gt,
        )  # fmt: skip
    return [folder]


def _retrain(request: RoundRequest) -> list[Path]:
    from brainmap.train.retrain.request import RetrainRequest
    from brainmap.train.retrain.retrain import retrain

    source, out = request.out / "export", request.out
    result = retrain(
        RetrainRequest(
            clicks=source / "clicks.csv", tiles=source / "tiles", out=out / "detector", start=request.start,
            assignments=source / "assignments.csv", qc=_qc(request), cell_diameter_um=request.cell_diameter_um,
            work=out / "retrain", settings=request.settings, device=request.device,
            accept_worse=request.accept_worse, overwrite=True,
        )
    )  # fmt: skip
    files = [out / "retrain" / "outcome.json"]
    return files if result.detector is None else [*files, result.detector]


def _conclude(request: RoundRequest) -> list[Path]:
    from brainmap.crowd.loop.round_report import write_round_report

    out = request.out
    outcome = read_json(out / "retrain" / "outcome.json")
    hard = _hard_tiles(request)
    with atomic_path(out / HARD) as part:
        rows = [f"{name},{workers},{cells},{doubt}" for name, workers, cells, doubt in hard]
        part.write_text("\n".join(["image_id,n_workers,n_cells,n_undecided", *rows]) + "\n", encoding="utf-8")
    verdict = {
        "switch": outcome["switch"],
        "reason": outcome["reason"],
        "f1": outcome["held_out"]["f1"],
        "auprc": outcome["held_out"]["auprc"],
        "held_out_tiles": outcome["held_out"]["tiles"],
        "held_out_cells": outcome["held_out"]["cells"],
        "workers": outcome["crowd"]["n_workers"],
        "clicks": outcome["crowd"]["n_clicks"],
        "tiles": outcome["crowd"]["n_images"],
        "cells": outcome["crowd"]["n_accepted"],
        "undecided": int(sum(row[3] for row in hard)),
    }
    write_json(out / VERDICT, verdict)
    write_round_report(out / REPORT, request.project, request.start, out, verdict, hard)
    return [out / HARD, out / VERDICT, out / REPORT]


def _hard_tiles(request: RoundRequest) -> list[tuple[str, int, int, int]]:
    """image_id, workers, cells and candidates in doubt of each tile, the hardest first."""
    from brainmap.crowd.work.certainty import HIGH, LOW
    from brainmap.gt.clicks import read_clicks
    from brainmap.gt.truth import GroundTruth

    folder = request.out / "export"
    clicks = read_clicks(
        folder / "clicks.csv", tiles=folder / "tiles", assignments=folder / "assignments.csv"
    )
    completed = np.bincount(clicks.seen_image[clicks.seen_complete], minlength=len(clicks.image_ids))
    truth = GroundTruth.open(request.out / "gt")
    rows = []
    for name, workers in zip(clicks.image_ids, completed, strict=True):
        posterior = truth.points(name)[2]
        doubtful = int(((posterior > LOW) & (posterior < HIGH)).sum())
        rows.append((name, int(workers), int((posterior >= 0.5).sum()), doubtful))
    return sorted(rows, key=lambda row: (-row[3], row[0]))
