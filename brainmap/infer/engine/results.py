"""What is on disk about a run's blocks: one Parquet file per batch, named after the blocks it finishes.

`RUN/blocks/000000012-000000019-321.parquet` holds the candidates of blocks 12 to 19, each with its block: 321 cells
at or above the run's threshold, and weaker ones down to the candidate score, from which other thresholds are served.
A file appears only when it is complete, and the names alone say which blocks are done: a run with a
million blocks is resumed from the listing of one folder. `RUN/blocks/plan.json` says what the numbers mean.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.errors import DataError, NotFoundError, UsageError
from brainmap.files import read_json, sweep_inside, to_jsonable, write_json
from brainmap.infer.engine.ordered import SCRATCH, Sorter
from brainmap.infer.peaks import reaches
from brainmap.infer.plan.blocks import Span
from brainmap.points.table import Points
from brainmap.run_folder import BLOCKS_DIR, PLAN_FILE, changes, other_parameters

__all__ = [
    "cells_in", "clear", "finished", "iter_candidates", "iter_results", "notes", "open_plan",
    "planned_threshold", "ranges", "require_stored", "sift", "stored_from", "write_batch",
]  # fmt: skip

BLOCK_COLUMN = "block"
_NAME = re.compile(r"(\d+)-(\d+)-(\d+)\.parquet")


def planned_block(run_dir: Path) -> tuple[int, int, int] | None:
    """The size of block of the run in a folder, groups and net pixels; None where there is no run."""
    path = run_dir / BLOCKS_DIR / PLAN_FILE
    if not path.is_file():
        return None
    # A plan that says nothing of it is refused by `open_plan`.
    size = _read_plan(path).get("block_size")
    if size is None:
        return None
    if not (
        isinstance(size, list) and len(size) == 3 and all(type(n) is int and 0 < n < 2**31 for n in size)
    ):
        raise _damaged_plan(path)
    return size[0], size[1], size[2]


def _damaged_plan(path: Path) -> DataError:
    """The refusal of a record of blocks that cannot be understood."""
    return DataError(f"{path} is damaged; use --overwrite to detect again, or another --out")


def _read_plan(path: Path) -> dict[str, Any]:
    try:
        plan = read_json(path)
    except DataError as error:
        raise _damaged_plan(path) from error
    if not isinstance(plan, dict):
        raise _damaged_plan(path)
    return plan


def planned_threshold(run_dir: str | Path) -> float:
    """The threshold that a run was started with.

    Raises
    ------
    NotFoundError
        If the folder has no blocks.
    """
    return float(_plan_of(run_dir).get("threshold", 0.0))


def stored_from(run_dir: str | Path) -> float:
    """The score from which on a run's folder holds every candidate; its threshold for runs that kept only cells.

    Raises
    ------
    NotFoundError
        If the folder has no blocks.
    """
    return float(_plan_of(run_dir).get("candidate_score", planned_threshold(run_dir)))


def _plan_of(run_dir: str | Path) -> dict[str, Any]:
    path = Path(run_dir) / BLOCKS_DIR / PLAN_FILE
    if not path.is_file():
        raise NotFoundError(f"{run_dir} holds no detection: {path} does not exist")
    return _read_plan(path)


def open_plan(run_dir: Path, plan: dict[str, Any]) -> bool:
    """Start or resume the blocks of a run.

    Parameters
    ----------
    run_dir : Path
        The run folder.
    plan : dict
        All that decides the result of every block.

    Returns
    -------
    bool
        Whether there was the same plan already: its finished blocks count.

    Raises
    ------
    UsageError
        If the folder holds blocks of another plan.
    """
    path = run_dir / BLOCKS_DIR / PLAN_FILE
    plan = to_jsonable(plan)
    sweep_inside(path.parent)
    for left in path.parent.glob(f"{SCRATCH}*"):
        shutil.rmtree(left, ignore_errors=True)
    if not path.is_file():
        if finished(run_dir):
            raise UsageError(
                f"{run_dir} holds blocks without {BLOCKS_DIR}/{PLAN_FILE}; use --overwrite or another --out"
            )
        write_json(path, plan)
        return False
    if found := changes(_read_plan(path), plan):
        raise other_parameters(run_dir, found)
    return True


def clear(run_dir: Path) -> None:
    """Remove the blocks of a run."""
    shutil.rmtree(run_dir / BLOCKS_DIR, ignore_errors=True)


def write_batch(
    run_dir: Path,
    span: Span,
    columns: dict[str, NDArray[Any]],
    cells: int | None = None,
    note: dict[str, Any] | None = None,
) -> Path:
    """Write the candidates of the blocks start..stop-1; replaces an equal file of a retry.

    Parameters
    ----------
    run_dir : Path
        The run folder.
    span : (start, stop)
        Blocks.
    columns : dict of ndarray
        As `process.COLUMNS`, and `block`: the number of each candidate's block, rising.
    cells : int, optional
        How many of them reach the run's threshold; all by default.
    note : dict, optional
        What else to keep about the blocks, see `notes`; JSON-able.
    """
    rows = len(columns[BLOCK_COLUMN]) if cells is None else cells
    path = run_dir / BLOCKS_DIR / f"{span[0]:09d}-{span[1] - 1:09d}-{rows}.parquet"
    Points(columns, note or {}).write(path)
    return path


def notes(run_dir: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """What was kept about the blocks of each file, as `write_batch` was given it."""
    for _, path in finished(run_dir):
        yield path, Points.read(path, [BLOCK_COLUMN]).meta


def _span_of(path: Path) -> Span:
    """The blocks that a file holds, by its name."""
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1]), int(match[2]) + 1


def sift(run_dir: Path, is_stale: Callable[[Span, dict[str, Any]], bool]) -> tuple[list[str], list[Span]]:
    """Remove the files of finished blocks that cannot be read, or that are stale: their blocks are done anew.

    Parameters
    ----------
    run_dir : Path
        The run folder.
    is_stale : callable
        From the blocks of a file and what was kept about them.

    Returns
    -------
    damaged : list of str
        Names of the files that could not be read.
    stale : list of (start, stop)
        Blocks of the stale ones.
    """
    damaged, stale = [], []
    for _, path in finished(run_dir):
        span = _span_of(path)
        try:
            points = Points.read(path)
            _ = points[BLOCK_COLUMN], points["score"], points.zyx_vox
        except (DataError, NotFoundError, KeyError):
            damaged.append(path.name)
        else:
            if not is_stale(span, points.meta):
                continue
            stale.append(span)
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return damaged, stale


def finished(run_dir: Path) -> list[tuple[Span, Path]]:
    """Spans of finished blocks (start, stop) and the files that hold them, in order, none twice.

    A worker that was taken for dead, or one of an earlier command, can leave further files about the same
    blocks, cut otherwise: every block is taken from one file only, and a span may be shorter than its file's.
    """
    found = []
    with suppress(FileNotFoundError):
        with os.scandir(run_dir / BLOCKS_DIR) as entries:
            matches = [match for entry in entries if (match := _NAME.fullmatch(entry.name))]
        found = sorted((int(match[1]), -int(match[2]) - 1, match[0]) for match in matches)
    kept: list[tuple[Span, Path]] = []
    end = 0
    for start, stop, name in found:
        if -stop > end:
            kept.append(((max(start, end), -stop), run_dir / BLOCKS_DIR / name))
            end = -stop
    return kept


def cells_in(span: Span, path: Path) -> int:
    """Number of cells at the run's threshold in a span as `finished` gives it; mostly from the name alone."""
    match = _NAME.fullmatch(path.name)
    if match is not None and span == (int(match[1]), int(match[2]) + 1):
        return int(match[3])
    return len(_read(span, path, planned_threshold(path.parent.parent)))


def _read(span: Span, path: Path, threshold: float, names: Sequence[str] | None = None) -> Points:
    """The candidates of a span at or above a threshold, without the column of blocks."""
    points = Points.read(path, None if names is None else [*names, BLOCK_COLUMN])
    block = points[BLOCK_COLUMN]
    columns = {name: values for name, values in points.columns.items() if name != BLOCK_COLUMN}
    first, last = np.searchsorted(block, span)
    own = Points(columns).take(slice(int(first), int(last)))
    return own.take(reaches(own["score"], threshold))


def ranges(indices: Iterable[int]) -> list[Span]:
    """Sorted whole numbers as half-open ranges."""
    found: list[Span] = []
    for i in indices:
        if found and found[-1][1] == i:
            found[-1] = (found[-1][0], i + 1)
        else:
            found.append((i, i + 1))
    return found


def iter_results(run_dir: str | Path, threshold: float | None = None) -> Iterator[Points]:
    """All cells of a run in exact z, y, x order, in tables of at most a million rows.

    Memory is bounded, whatever the number of cells: what is too much to sort at once is sorted in parts that
    wait on disk, beside the blocks.

    Parameters
    ----------
    run_dir : path
        The run folder.
    threshold : float, optional
        Lowest score, at least `stored_from`; by default what the run was started with.

    Raises
    ------
    NotFoundError
        If the folder has no blocks.
    UsageError
        If candidates as weak as the threshold were not kept.
    """
    run_dir = Path(run_dir)
    threshold = planned_threshold(run_dir) if threshold is None else threshold
    require_stored(run_dir, threshold)
    with Sorter(run_dir / BLOCKS_DIR) as sorter:
        for span, file in finished(run_dir):
            sorter.add(_read(span, file, threshold))
        yield from sorter.tables()


def iter_candidates(
    run_dir: str | Path, columns: Sequence[str] = ("z", "y", "x", "score")
) -> Iterator[Points]:
    """Every candidate of a run, batch by batch in the order of its blocks.

    Parameters
    ----------
    run_dir : path
        The run folder.
    columns : sequence of str
        Of `process.COLUMNS`; `score` among them.

    Raises
    ------
    NotFoundError
        If the folder has no blocks.
    """
    lowest = stored_from(run_dir)
    for span, file in finished(Path(run_dir)):
        yield _read(span, file, lowest, columns)


def require_stored(run_dir: str | Path, threshold: float) -> None:
    """Refuse a threshold below what a run's folder holds.

    Raises
    ------
    UsageError
        Naming the lowest one that can be had.
    """
    lowest = stored_from(run_dir)
    if np.float32(threshold) < np.float32(lowest):
        raise UsageError(
            f"{run_dir} holds candidates from a score of {lowest:g} on, --threshold {threshold:g} is "
            "below that: detect again with it into another --out"
        )
