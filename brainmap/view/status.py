"""How far a run is: blocks, rate, time left, what failed and why, what computes, and what it has cost."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from brainmap.errors import BrainmapError
from brainmap.files import read_json
from brainmap.infer.engine.results import cells_in, finished
from brainmap.lock import LOCK_FILE
from brainmap.run_folder import BLOCKS_DIR, PLAN_FILE, RunRecord, is_run
from brainmap.swap import REPLACEMENT_DIR

__all__ = ["RunStatus", "run_status"]

# The rate is that of the last so many batches: disks and neighbours change it.
_RECENT = 200
# A running run that has finished nothing for so many times its usual pace is asked after.
_QUIET = 20
_QUIET_S = 300.0


@dataclass(frozen=True)
class RunStatus:
    """How far a run is.

    Attributes
    ----------
    run, status : str
        `running`, `complete` or `incomplete`, as the run says; `quiet` where it says `running` but nothing is heard.
    stage : str
        What is done now.
    total, done, empty : int or None
        Blocks; None where the run has not counted them yet.
    failed : dict
        Block -> reason.
    cells : int
        So far.
    blocks_per_minute : float or None
        Of late; overall once finished.
    seconds_left, seconds_since_news : float or None
    elapsed_s : float
    devices : list of str
    cost : float or None
        Hours times price.
    """

    run: str
    status: str
    stage: str
    total: int | None
    done: int
    empty: int | None
    failed: dict[str, str]
    cells: int
    blocks_per_minute: float | None
    seconds_left: float | None
    seconds_since_news: float | None
    elapsed_s: float
    devices: list[str] = field(default_factory=list)
    cost: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def lines(self) -> list[tuple[str, str]]:
        """What the command line prints."""
        found = [("run", self.run), ("status", f"{self.status}, {self.stage}" if self.stage else self.status)]
        if self.total is not None:
            left = self.total - self.done - (self.empty or 0) - len(self.failed)
            parts = [
                f"{self.done} done",
                f"{self.empty or 0} empty",
                f"{len(self.failed)} failed",
                f"{left} left",
            ]
            found.append(("blocks", f"{', '.join(parts)}, of {self.total}"))
        found += [("failed", f"block {block}: {reason}") for block, reason in list(self.failed.items())[:10]]
        if len(self.failed) > 10:
            found.append(("", f"and {len(self.failed) - 10} more"))
        found.append(("cells", f"{self.cells:,}"))
        if self.blocks_per_minute is not None:
            found.append(("rate", f"{self.blocks_per_minute:.1f} blocks a minute"))
        if self.seconds_left is not None:
            found.append(("left", _duration(self.seconds_left)))
        found.append(("elapsed", _duration(self.elapsed_s)))
        if self.seconds_since_news is not None and self.status in ("running", "quiet"):
            found.append(("last news", f"{_duration(self.seconds_since_news)} ago"))
        if self.devices:
            found.append(("at work" if self.status == "running" else "by", ", ".join(self.devices)))
        if self.cost is not None:
            found.append(("cost", f"{self.cost:.2f}"))
        return found


def run_status(run: str | Path, price_per_hour: float | None = None, at: datetime | None = None) -> RunStatus:
    """How far a run is, from its folder alone; works while it runs, here or elsewhere.

    Parameters
    ----------
    run : path
        Run folder.
    price_per_hour : float, optional
        Of all machines together.
    at : datetime, optional
        The present moment, for tests.

    Raises
    ------
    NotFoundError, DataError
        If there is no run.
    """
    folder = Path(run)
    replacement = folder / REPLACEMENT_DIR
    if is_run(replacement) and (folder / LOCK_FILE).is_file():
        # What is at work is the run that will take this one's place.
        folder = replacement
    record = RunRecord.load(folder)
    moment = at or datetime.now(UTC)
    started = datetime.fromisoformat(record.started)
    ended = (
        datetime.fromisoformat(record.finished) if record.finished and record.status != "running" else moment
    )
    elapsed = max(0.0, (ended - started).total_seconds())
    batches = finished(folder)
    done = sum(stop - start for (start, stop), _ in batches)
    blocks = record.blocks
    total, empty = blocks.get("total"), blocks.get("empty")
    plan = _plan(folder)
    if total is None and plan:
        total = math.prod(plan.get("block_count", ())) or None
    failed = {str(key): str(reason) for key, reason in (blocks.get("failed") or {}).items()}
    times = sorted((path.stat().st_mtime, stop - start) for (start, stop), path in batches)
    news = max([started.timestamp(), *(at for at, _ in times)])
    since = max(0.0, moment.timestamp() - news)
    status, rate = record.status, _rate(record, times, started.timestamp(), done)
    left = None
    if status == "running":
        if times and since > max(_QUIET_S, _QUIET * 60 / max(rate or 1e-9, 1e-9)):
            status = "quiet"
        elif rate and total is not None:
            left = max(0.0, (total - done - (empty or 0) - len(failed)) * 60 / rate)
    cells = record.results.get("cells")
    return RunStatus(
        run=str(folder), status=status, stage=_stage(record, plan, total, done, empty, failed), total=total, done=done,
        empty=empty, failed=failed,
        cells=int(cells) if cells is not None else sum(cells_in(span, path) for span, path in batches),
        blocks_per_minute=rate, seconds_left=left,
        seconds_since_news=since if record.status == "running" else None, elapsed_s=elapsed,
        devices=_devices(record, plan),
        cost=None if price_per_hour is None else price_per_hour * elapsed / 3600,
    )  # fmt: skip


def _plan(folder: Path) -> dict[str, Any]:
    try:
        return dict(read_json(folder / BLOCKS_DIR / PLAN_FILE))
    except (BrainmapError, TypeError, ValueError):
        return {}


def _rate(record: RunRecord, times: list[tuple[float, int]], started: float, done: int) -> float | None:
    """Blocks a minute: of late while it runs, of the detection as a whole once it is finished."""
    if record.status != "running":
        seconds = record.timings_s.get("detection")
        return 60 * done / seconds if seconds and done else None
    if not times:
        return None
    recent = times[-_RECENT:]
    first = recent[0][0] if len(recent) > 1 else started
    number = sum(n for _, n in recent[1:]) if len(recent) > 1 else recent[0][1]
    return 60 * number / (recent[-1][0] - first) if recent[-1][0] > first else None


def _stage(
    record: RunRecord,
    plan: dict[str, Any],
    total: int | None,
    done: int,
    empty: int | None,
    failed: dict[str, str],
) -> str:
    if record.status != "running":
        return ""
    if not plan:
        return "before the detection: image, registration"
    if total is not None and done + (empty or 0) + len(failed) >= total:
        return "after the detection: counting, report"
    return "detecting"


def _devices(record: RunRecord, plan: dict[str, Any]) -> list[str]:
    machine, execution = record.machine, record.execution
    device = str(plan.get("device") or execution.get("device") or "cpu")
    if device == "cpu":
        name = f"{machine.get('cpu', 'CPU')}, {machine.get('cores', '?')} cores"
    else:
        gpus = [
            gpu.get("name", str(gpu)) if isinstance(gpu, dict) else str(gpu)
            for gpu in machine.get("gpus") or ()
        ]
        name = " + ".join(gpus) or device
    found = [f"{name} ({plan.get('backend') or execution.get('backend') or 'auto'})"]
    if execution.get("workers"):
        found.append(f"{execution['workers']} workers")
    if execution.get("scheduler"):
        found.append(f"by {execution['scheduler']}")
    return found


def _duration(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours} h {minute} min" if hours else f"{minute} min {second} s" if minute else f"{second} s"
