"""What a viewer shows of a run: its image, cells, atlas and thresholds, opened once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.atlas.atlas import Atlas
from brainmap.errors import BrainmapError, NotFoundError
from brainmap.image.brain_of_run import brain_of_run
from brainmap.image.mask import Mask
from brainmap.image.volume import Volume
from brainmap.infer.engine.results import iter_candidates, stored_from
from brainmap.infer.peaks import reaches
from brainmap.points.table import Points, iter_points, points_path
from brainmap.registration.registered import Registration
from brainmap.run.cells import ImageFrame, located, mask_of
from brainmap.run_folder import REGISTRATION_DIR, RunRecord

__all__ = ["ViewedRun"]

_COLUMNS = ("z_um", "y_um", "x_um", "score")


@dataclass(frozen=True)
class ViewedRun:
    """A finished run, opened for looking.

    Attributes
    ----------
    folder : Path
        Absolute.
    record : RunRecord
    meta : dict
        Of the table of cells.
    volume : Volume
        The image in which the cells were found.
    registration : Registration or None
    """

    folder: Path
    record: RunRecord
    meta: dict[str, Any]
    volume: Volume
    registration: Registration | None

    @classmethod
    def open(cls, run: str | Path, brain: str | Path | None = None) -> ViewedRun:
        """Open a run folder.

        Parameters
        ----------
        run : path
        brain : path or URL, optional
            Where its image lies now, if that was moved without the run.

        Raises
        ------
        NotFoundError
            If there is no run, it has no cells yet, or its image is gone.
        DataError
        """
        folder = Path(run).absolute()
        record = RunRecord.load(folder)
        table = points_path(folder)
        if not table.is_file():
            raise NotFoundError(f"{run} has no table of points yet (status: {record.status})")
        meta = Points.read(table, ["z"]).meta
        volume = brain_of_run(folder, brain)
        own = Path(record.parameters.get("registration") or folder / REGISTRATION_DIR)
        own = own if own.is_dir() else folder / REGISTRATION_DIR
        registration = Registration.load(own) if meta.get("registration") and own.is_dir() else None
        return cls(folder, record, meta, volume, registration)

    @property
    def name(self) -> str:
        """What the run is called."""
        return self.folder.name

    @cached_property
    def frame(self) -> ImageFrame:
        """Where its image lies."""
        return ImageFrame.of(self.volume)

    @cached_property
    def mask(self) -> Mask | None:
        """The mask it was made with."""
        return mask_of(self.record)

    @cached_property
    def atlas(self) -> Atlas | None:
        """The atlas of its registration; None where there is none, or it is gone."""
        if self.registration is None:
            return None
        try:
            return Atlas.open(self.registration.atlas_folder)
        except NotFoundError:
            return None

    @property
    def threshold(self) -> float:
        """The least score of a cell of the run."""
        return float(self.record.results.get("threshold", 0.0))

    @property
    def diameter_um(self) -> float:
        """Typical diameter of a cell."""
        return float(self.record.results.get("cell_diameter_um") or 10.0)

    @cached_property
    def lowest(self) -> float:
        """The score from which on there are candidates; the threshold where the blocks are gone."""
        try:
            return min(stored_from(self.folder), self.threshold)
        except BrainmapError:
            return self.threshold

    def cells(self) -> Iterator[Points]:
        """All cells with place, score, region and hemisphere, and behind them the weaker candidates."""
        path = points_path(self.folder)
        have = set(_names(path))
        optional = [name for name in ("region_id", "hemisphere") if name in have]
        for piece in iter_points(path, 250_000, [*_COLUMNS, *optional]):
            yield _complete(piece)
        if self.lowest < self.threshold:
            yield from self._weaker()

    def _weaker(self) -> Iterator[Points]:
        for piece in located(iter_candidates(self.folder), self.frame, self.mask):
            weak = piece.take(~reaches(piece["score"], self.threshold))
            if len(weak) and self.registration is not None and self.atlas is not None:
                region, side = self.atlas.lookup(self.registration.to_atlas_um(weak.zyx_um))
                weak = weak.with_columns(region_id=region, hemisphere=side)
            yield _complete(weak)

    def place_of(self, zyx_um: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
        """Region and hemisphere of places (n, 3); zeros without an atlas."""
        if self.registration is None or self.atlas is None:
            return np.zeros(len(zyx_um), np.int64), np.zeros(len(zyx_um), np.int8)
        return self.atlas.lookup(self.registration.to_atlas_um(zyx_um))


def _names(path: Path) -> list[str]:
    import pyarrow.parquet as pq

    return list(pq.read_schema(path).names)


def _complete(piece: Points) -> Points:
    columns = {name: piece[name] for name in _COLUMNS}
    for name, kind in (("region_id", np.int64), ("hemisphere", np.int8)):
        columns[name] = piece[name] if name in piece else np.zeros(len(piece), kind)
    return Points(columns)
