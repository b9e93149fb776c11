"""What is on disk about a run's blocks: one Parquet file per batch, named after the blocks it finishes.

`RUN/blocks/000000012-000000019.parquet` holds the cells of blocks 12 to 19. The name alone says which
blocks are done, and a file appears only when it is complete: that is what makes a run resumable.
`RUN/blocks/plan.json` says what the numbers mean.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.errors import DataError, NotFoundError, UsageError
from brainmap.infer.blocks import Span
from brainmap.points import Points
from brainmap.provenance import read_json, to_jsonable, write_json

__all__ = ["clear", "finished", "iter_results", "open_plan", "ranges", "write_batch"]

BLOCKS_DIR, PLAN_FILE = "blocks", "plan.json"
_NAME = re.compile(r"(\d+)-(\d+)\.parquet")
_ROWS = 1_000_000


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
    if not path.is_file():
        if finished(run_dir):
            raise UsageError(
                f"{run_dir} holds blocks without {BLOCKS_DIR}/{PLAN_FILE}; use --overwrite or another --out"
            )
        write_json(path, plan)
        return False
    old = read_json(path)
    changed = sorted(k for k in {*old, *plan} if old.get(k) != plan.get(k))
    if changed:
        what = "; ".join(f"{k} was {_short(old.get(k))}, is now {_short(plan.get(k))}" for k in changed)
        raise UsageError(
            f"{run_dir} holds a run with other parameters ({what}); use --overwrite to replace it, "
            "or another --out"
        )
    return True


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def clear(run_dir: Path) -> None:
    """Remove the blocks of a run."""
    shutil.rmtree(run_dir / BLOCKS_DIR, ignore_errors=True)


def write_batch(run_dir: Path, span: Span, columns: dict[str, NDArray[Any]]) -> Path:
    """Write the cells of the blocks start..stop-1, in z order; replaces an equal file of a retry."""
    path = run_dir / BLOCKS_DIR / f"{span[0]:09d}-{span[1] - 1:09d}.parquet"
    Points(columns).write(path)
    return path


def finished(run_dir: Path) -> list[tuple[Span, Path]]:
    """Finished spans of blocks (start, stop) and their files, in order, none twice.

    A retry after a lost worker can leave two files about the same blocks; the wider one counts.
    """
    found = [
        ((int(match[1]), int(match[2]) + 1), path)
        for path in (run_dir / BLOCKS_DIR).glob("*.parquet")
        if (match := _NAME.fullmatch(path.name))
    ]
    found.sort(key=lambda item: (item[0][0], -item[0][1]))
    kept: list[tuple[Span, Path]] = []
    for span, path in found:
        if not kept or span[0] >= kept[-1][0][1]:
            kept.append((span, path))
    return kept


def ranges(indices: Iterable[int]) -> list[Span]:
    """Sorted whole numbers as half-open ranges."""
    found: list[Span] = []
    for i in indices:
        if found and found[-1][1] == i:
            found[-1] = (found[-1][0], i + 1)
        else:
            found.append((i, i + 1))
    return found


def iter_results(run_dir: str | Path) -> Iterator[Points]:
    """All cells of a run in exact z, y, x order, in tables of at most a million rows.

    Memory is bounded by the cells of one layer of blocks: a cell can be handed out once no later block
    can hold a smaller z.

    Raises
    ------
    NotFoundError
        If the folder has no blocks.
    """
    run_dir = Path(run_dir)
    path = run_dir / BLOCKS_DIR / PLAN_FILE
    if not path.is_file():
        raise NotFoundError(f"{run_dir} holds no detection: {path} does not exist")
    plan = read_json(path)
    try:
        layer, depth, group = plan["block_count"], plan["block_size"][0], plan["group"]
        first = plan["block_first"][0]
    except (KeyError, TypeError, IndexError):
        raise DataError(f"{path} is damaged; run detect again with --overwrite") from None
    per_layer = layer[1] * layer[2]
    files = finished(run_dir)
    parts: list[Points] = []
    for i, (_, file) in enumerate(files):
        parts.append(Points.read(file))
        layers = [files[j][0][0] // per_layer for j in (i, i + 1) if j < len(files)]
        if layers[0] == layers[-1] and len(layers) == 2:
            continue
        held = Points.concat(parts)
        # Refinement moves a centre by half a group at most, from the first slice of its block.
        limit = ((first + layers[1]) * depth - 1) * group if len(layers) == 2 else np.inf
        ready = held["z"] < limit
        parts = [held.take(~ready)]
        if ready.any():
            yield from _sorted_tables(held.take(ready))


def _sorted_tables(points: Points) -> Iterator[Points]:
    order = np.lexsort((points["x"], points["y"], points["z"]))
    for start in range(0, len(order), _ROWS):
        yield points.take(order[start : start + _ROWS])
