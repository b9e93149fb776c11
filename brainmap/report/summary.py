"""A run's points as the few numbers a report shows, read in batches: memory does not grow with the cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from brainmap.points.table import Points, iter_points

__all__ = ["PointSummary", "points_near", "summarise_points"]

SCORE_BINS = 40
_SAMPLE = 200_000
_MEASURED = ("score", "snr", "diameter_um", "intensity")


@dataclass(frozen=True)
class PointSummary:
    """What is shown of all cells of a run.

    Attributes
    ----------
    n : int
        Cells.
    outside : int or None
        Cells with region 0; None if the table has no regions.
    per_slice : int64 array (depth,)
        Cells whose z rounds to each level-0 slice.
    score_counts : int64 array (SCORE_BINS,)
        Histogram of the score over 0..1.
    sample : dict of arrays
        Measured columns of at most 200,000 rows taken evenly from the whole table.
    columns : frozenset of str
        Names of all columns of the table.
    """

    n: int
    outside: int | None
    per_slice: NDArray[np.int64]
    score_counts: NDArray[np.int64]
    sample: dict[str, NDArray[np.float64]]
    columns: frozenset[str] = frozenset()

    def depth_quantile(self, share: float) -> int:
        """Level-0 slice below which a share of the cells lies."""
        total = np.cumsum(self.per_slice)
        return int(np.searchsorted(total, share * total[-1])) if self.n else 0


def summarise_points(path: str | Path, depth: int = 0) -> PointSummary:
    """Read ``points.parquet`` once, by columns.

    Parameters
    ----------
    path : str or Path
    depth : int
        Slices of the volume; `per_slice` is at least this long.

    Raises
    ------
    NotFoundError, DataError
        If the table is not there or not readable.
    """
    rows, names = _header(path)
    columns = [name for name in ("z", *_MEASURED, "region_id") if name in names]
    stride = max(1, -(-rows // _SAMPLE))
    per_slice, scores = np.zeros(max(depth, 1), np.int64), np.zeros(SCORE_BINS, np.int64)
    sample: dict[str, list[NDArray[np.float64]]] = {name: [] for name in _MEASURED if name in names}
    n = outside = 0
    for batch in iter_points(path, columns=columns):
        counts = np.bincount(np.maximum(np.rint(batch["z"]), 0).astype(np.int64), minlength=len(per_slice))
        per_slice = np.pad(per_slice, (0, len(counts) - len(per_slice))) + counts
        if "score" in batch:
            scores += np.histogram(batch["score"], SCORE_BINS, (0.0, 1.0))[0]
        if "region_id" in batch:
            outside += int(np.count_nonzero(batch["region_id"] == 0))
        for name, kept in sample.items():
            kept.append(np.asarray(batch[name][-n % stride :: stride], float))
        n += len(batch)
    joined = {name: np.concatenate(kept or [np.zeros(0)]) for name, kept in sample.items()}
    return PointSummary(
        n, outside if "region_id" in names else None, per_slice, scores, joined, frozenset(names)
    )


def points_near(path: str | Path, slices: Sequence[int], reach: float, limit: int = 100_000) -> list[Points]:
    """Points within `reach` level-0 slices of each given slice, at most `limit` of each (evenly thinned).

    Returns
    -------
    list of Points
        One table (z, y, x, score, region_id, as far as they are there) per slice.
    """
    names = _header(path)[1]
    columns = [name for name in ("z", "y", "x", "score", "region_id") if name in names]
    found: list[list[Points]] = [[Points.empty(columns)] for _ in slices]
    for batch in iter_points(path, columns=columns):
        for kept, k in zip(found, slices, strict=True):
            near = np.flatnonzero(np.abs(batch["z"] - k) <= reach)
            if len(near):
                kept.append(batch.take(near))
                if sum(map(len, kept)) > 2 * limit:
                    kept[:] = [_thinned(Points.concat(kept), limit)]
    return [_thinned(Points.concat(kept), limit) for kept in found]


def _thinned(points: Points, limit: int) -> Points:
    if len(points) <= limit:
        return points
    return points.take(np.linspace(0, len(points) - 1, limit).astype(np.int64))


def _header(path: str | Path) -> tuple[int, set[str]]:
    # Through iter_points first: it reports a missing or damaged file in one sentence.
    next(iter(iter_points(path, batch_rows=1)), None)
    with pq.ParquetFile(path) as file:
        return file.metadata.num_rows, set(file.schema_arrow.names)
