"""What the pages ask of a run, and what they change: one opened run, its cells, its marks."""

from __future__ import annotations

import dataclasses
import math
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.atlas.region_sets import DIVISIONS
from brainmap.atlas.structures import Structures
from brainmap.coords import um_to_vox, vox_to_um
from brainmap.errors import BrainmapError, NotFoundError, UsageError
from brainmap.image.volume import Volume
from brainmap.points.recalibration import Recalibration
from brainmap.report.thresholds import ThresholdCounts
from brainmap.run.recount import recount
from brainmap.run.tune import FEWEST, tune_run, weigh_marks
from brainmap.run_folder import THRESHOLDS_CSV
from brainmap.view.cells import CellIndex, open_cells
from brainmap.view.crops import Crops
from brainmap.view.deck import Deck
from brainmap.view.marks import MarkKeeper
from brainmap.view.run_data import ViewedRun
from brainmap.view.served_image import ServedImage
from brainmap.view.status import run_status

__all__ = ["Desk"]

# A click means the nearest cell within so many diameters.
_REACH = 1.0
# A field around a place: sides in diameters, z y x.
_FIELD = (3.0, 8.0, 8.0)
Place = tuple[float, float, float]


@dataclass
class Desk:
    """An opened run and what is kept beside it.

    Attributes
    ----------
    run : ViewedRun
    cells : CellIndex
    keeper : MarkKeeper
    """

    run: ViewedRun
    cells: CellIndex
    keeper: MarkKeeper
    _busy: threading.Lock = field(default_factory=threading.Lock)
    _deck: Deck | None = None
    _deck_lock: threading.Lock = field(default_factory=threading.Lock)
    # What the marks say, and the state of the marks that it is of.
    _weighed: tuple[tuple[Any, ...], Recalibration | None] | None = None

    @classmethod
    def open(cls, run: str | Path, brain: str | Path | None = None) -> Desk:
        """Open a run, and index its cells where they are not indexed yet.

        Raises
        ------
        NotFoundError, DataError
        """
        opened = ViewedRun.open(run, brain)
        return cls(opened, open_cells(opened), MarkKeeper(opened.folder, opened.frame.shape))

    # ---- looking ----------------------------------------------------------------------------------------------

    def image(self, channel: int) -> ServedImage:
        """A channel of the image."""
        if not 0 <= channel < self.run.volume.n_channels:
            raise NotFoundError(f"the image has no channel {channel}")
        return ServedImage(self.run.volume.with_channel(channel))

    def atlas_image(self) -> ServedImage:
        """The annotation warped to the image."""
        if self.run.registration is None:
            raise NotFoundError("this run has no registration")
        return self._atlas_image

    @cached_property
    def _atlas_image(self) -> ServedImage:
        assert self.run.registration is not None
        return ServedImage(Volume.open(self.run.registration.folder / "annotation.ome.zarr"))

    @cached_property
    def crops(self) -> Crops:
        """Pictures of the channel in which cells were found."""
        return Crops(self.run.volume)

    def facts(self) -> dict[str, Any]:
        """What the page must know at first."""
        run = self.run
        return {
            "name": run.name,
            "status": run.record.status,
            "cells": run.record.results.get("cells"),
            "threshold": run.threshold,
            "lowest": run.lowest,
            "diameter_um": run.diameter_um,
            "voxel_um": run.volume.voxel_um,
            "origin_um": run.volume.origin_um,
            "shape": run.volume.shape,
            "atlas": None if run.registration is None else run.registration.atlas_name,
            "fewest_marks": FEWEST,
            "thresholds": (run.folder / THRESHOLDS_CSV).is_file(),
        }

    def regions(self) -> list[dict[str, Any]]:
        """The structures of the atlas that the image shows, with the middle of each, in um."""
        atlas, registration = self.run.atlas, self.run.registration
        if atlas is None or registration is None:
            return []
        return self._regions

    @cached_property
    def _regions(self) -> list[dict[str, Any]]:
        assert self.run.atlas is not None
        structures = self.run.atlas.structures
        volume = self._atlas_image.volume
        number, total, inner = _middles(volume, structures)
        number, total = structures.roll_up(number), structures.roll_up(total)
        found = []
        for row in np.flatnonzero(number).tolist():
            centre = total[row] / number[row]
            at = inner.get(row, centre)
            um = vox_to_um(np.array([at]), volume.voxel_um, volume.origin_um)[0]
            found.append(
                {
                    "id": int(structures.id[row]), "acronym": structures.acronym[row], "name": structures.name[row],
                    "parent_id": int(structures.parent_id[row]), "depth": int(structures.depth[row]), "zyx_um": um,
                    "color": structures.rgb[row],
                }
            )  # fmt: skip
        return found

    def cell_at(self, zyx_um: Place, radius_um: float | None = None) -> dict[str, Any] | None:
        """The nearest cell or weaker candidate of a place, described; None where none is near."""
        reach = min(radius_um or _REACH * self.run.diameter_um, 10 * self.run.diameter_um)
        found = self.cells.nearest(np.array(zyx_um), reach, 0.0)
        if found is None:
            return None
        found["shown"] = bool(np.float32(found["score"]) >= np.float32(self.run.threshold))
        return found | self._region_facts(found["region_id"])

    def _region_facts(self, region_id: int) -> dict[str, str]:
        atlas = self.run.atlas
        row = -1 if atlas is None else int(atlas.structures.rows_of(np.int64(region_id)))
        if atlas is None or row < 0:
            return {"acronym": "", "region": "outside the atlas" if atlas is not None else "no atlas"}
        return {"acronym": atlas.structures.acronym[row], "region": atlas.structures.name[row]}

    def crop(self, query: Mapping[str, str]) -> bytes:
        """A picture of a place."""
        place, side = _numbers(query, ("z", "y", "x")), _numbers(query, ("side",))[0]
        return self.crops.cell(place, float(np.clip(side, 2 * self.run.volume.voxel_um[2], 2000)))

    def field_picture(self, query: Mapping[str, str]) -> bytes:
        """A picture of a box."""
        low, high = _numbers(query, ("z0", "y0", "x0")), _numbers(query, ("z1", "y1", "x1"))
        if not ((high - low) >= 0).all() or (high - low).max() > 3000 or (high - low)[1:].min() <= 0:
            raise UsageError("this is no box of at most 3 mm")
        return self.crops.plane(low, high, 640)

    # ---- marking ----------------------------------------------------------------------------------------------

    def mark(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Mark the cell nearest to a place; a missed one where it is."""
        word, place = str(asked.get("mark")), self._place(asked)
        cell = None
        if word != "missed":
            threshold = float(asked.get("threshold", self.run.threshold))
            cell = self.cells.nearest(place, self._reach(asked), threshold)
            if cell is None:
                raise NotFoundError("no cell is shown near this place")
            place = np.array(cell["zyx_um"])
            cell |= self._region_facts(cell["region_id"])
        vox = um_to_vox(place[None], self.run.frame.voxel_um, self.run.frame.origin_um)[0]
        row = self.keeper.mark(vox, word, str(asked.get("who", "")), str(asked.get("sample", "free")))
        return {"row": row, "cell": cell, "zyx_um": self._um_of(row), "marks": self.mark_numbers()}

    def _reach(self, asked: dict[str, Any]) -> float:
        """As near as a person can point: at least the cell, at most what some pixels of his screen span."""
        radius = asked.get("radius_um")
        least = _REACH * self.run.diameter_um
        return least if radius is None else float(np.clip(float(radius), least, 20 * least))

    def field(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Say that nothing missed is left unmarked around a place."""
        half = np.array(_FIELD) * self.run.diameter_um / 2
        place = self._place(asked)
        frame = self.run.frame
        ends = um_to_vox(np.array([place - half, place + half]), frame.voxel_um, frame.origin_um)
        low, high = (np.clip(end, -0.5, np.array(frame.shape) - 0.5) for end in ends)
        row = self.keeper.field(low, high, str(asked.get("who", "")), str(asked.get("sample", "free")))
        corners = vox_to_um(np.array([low, high]), frame.voxel_um, frame.origin_um)
        return {"row": row, "low_um": corners[0], "high_um": corners[1], "marks": self.mark_numbers()}

    def _place(self, asked: dict[str, Any]) -> NDArray[np.float64]:
        try:
            place = np.array([float(value) for value in asked["zyx_um"]])
        except (KeyError, TypeError, ValueError):
            raise UsageError("zyx_um must be three numbers") from None
        if place.shape != (3,) or not np.isfinite(place).all():
            raise UsageError("zyx_um must be three numbers")
        return place

    def _um_of(self, row: Mapping[str, str]) -> list[float]:
        vox = np.array([[float(row[axis]) for axis in "zyx"]])
        return [float(v) for v in vox_to_um(vox, self.run.frame.voxel_um, self.run.frame.origin_um)[0]]

    def all_marks(self) -> list[dict[str, Any]]:
        """The last mark of each place, with its place in um."""
        last = {(row["z"], row["y"], row["x"]): row for row in self.keeper.marks.rows()}
        return [{"zyx_um": self._um_of(row), "mark": row["mark"], "sample": row.get("sample", "")}
                for row in last.values()]  # fmt: skip

    def mark_numbers(self) -> dict[str, int]:
        """How many places bear each mark, and how many fields are complete."""
        words = [mark["mark"] for mark in self.all_marks()]
        found = {word: words.count(word) for word in ("yes", "no", "unsure", "missed")}
        return found | {"fields": len(self.keeper.fields.rows())}

    # ---- counting ---------------------------------------------------------------------------------------------

    def counts(self, threshold: float) -> dict[str, Any]:
        """Cells of the whole image and of its divisions at a threshold, and what marks say of them."""
        path = self.run.folder / THRESHOLDS_CSV
        if not path.is_file():
            return {"rows": [], "quality": None, "marks": self.mark_numbers()}
        table = ThresholdCounts.read(path)
        rows = [0, *table.rows_of(self._divisions(table))]
        at = max(threshold, self.run.lowest)
        return {
            "rows": [
                {"acronym": table.acronym[row], "name": table.name[row],
                 "count": round(float(np.interp(at, table.thresholds, table.counts[row]))),
                 "now": round(float(np.interp(self.run.threshold, table.thresholds, table.counts[row])))}
                for row in rows
            ],
            "quality": self._quality(threshold),
            "marks": self.mark_numbers(),
        }  # fmt: skip

    @staticmethod
    def _divisions(table: ThresholdCounts) -> list[str]:
        have = [name for name in DIVISIONS if name in table.acronym]
        # Other atlases: the structures below the root.
        return have or list(table.acronym[2:12])

    def _quality(self, threshold: float) -> dict[str, Any] | None:
        """Precision and recall by the random and free marks, where they are enough."""
        path, complete = self.keeper.marks.path, bool(self.keeper.fields.rows())
        if not path.is_file():
            return None
        stat = path.stat()
        state = (stat.st_size, stat.st_mtime_ns, complete, self.run.threshold)
        if self._weighed is None or self._weighed[0] != state:
            try:
                self._weighed = state, weigh_marks(self.run.folder, complete=complete)
            except BrainmapError:
                # Too few, or all of one kind.
                self._weighed = state, None
        weighed = self._weighed[1]
        return None if weighed is None else dataclasses.asdict(weighed.estimate(threshold))

    def apply_threshold(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Count the run at another threshold: what `brainmap regions --threshold` does."""
        threshold = float(asked.get("threshold", math.nan))
        if not 0 <= threshold <= 1:
            raise UsageError("threshold must lie between 0 and 1")
        if asked.get("confirmed") is not True:
            raise UsageError("the tables of the run are written anew: that wants to be confirmed")
        with self._busy:
            brain = self.run.volume.url
            found = recount(self.run.folder, threshold=threshold, brain=brain)
            self.run = ViewedRun.open(self.run.folder, brain)
        return {"cells": found.cells, "threshold": threshold}

    def tune(self, asked: dict[str, Any]) -> dict[str, Any]:
        """What `brainmap tune` finds; a detector is written only where that is confirmed."""
        complete = bool(self.keeper.fields.rows())
        with self._busy:
            if asked.get("confirmed") is True:
                result = tune_run(self.run.folder, complete=complete, overwrite=True)
                return {"lines": result.lines(), "written": result.detector is not None}
            with tempfile.TemporaryDirectory() as folder:
                result = tune_run(self.run.folder, out=Path(folder) / "detector", complete=complete)
        changes = result.detector is not None
        shown = dataclasses.replace(result, detector=None, reason=result.reason or "").lines()
        return {"lines": [line for line in shown if line[1]], "changes": changes, "written": False,
                "threshold": result.new.threshold if changes and result.new else None}  # fmt: skip

    def status(self) -> dict[str, Any]:
        """How far the run is."""
        return run_status(self.run.folder).as_dict()

    # ---- review -----------------------------------------------------------------------------------------------

    @property
    def deck(self) -> Deck:
        """The review deck of this run as it is now: another threshold asks other cells."""
        with self._deck_lock:
            if self._deck is None or self._deck.run is not self.run:
                self._deck = Deck.open(self.run, self.cells, self.keeper)
            return self._deck

    def review_next(self, sample: str) -> dict[str, Any] | None:
        """The next card."""
        return dict(self.deck.next(sample)) or None

    def review_answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        """An answer to a card."""
        return dict(self.deck.answer(asked))

    def review_result(self) -> dict[str, Any]:
        """What the answers say."""
        return dict(self.deck.result())


def _numbers(query: Mapping[str, str], names: tuple[str, ...]) -> NDArray[np.float64]:
    try:
        values = np.array([float(query[name]) for name in names])
    except (KeyError, ValueError):
        raise UsageError(f"{', '.join(names)} must be numbers") from None
    if not np.isfinite(values).all() or np.abs(values).max() > 1e9:
        raise UsageError(f"{', '.join(names)} must be numbers")
    return values


def _middles(
    volume: Volume, structures: Structures
) -> tuple[NDArray[Any], NDArray[Any], dict[int, NDArray[Any]]]:
    """Voxels (n,) and sums of their places (n, 3) by structure without its descendants, and a voxel inside each.

    A structure's middle may lie outside it: all have two sides. The voxel is near the middle of one side of the plane
    where the structure is largest.
    """
    number, total = np.zeros(len(structures), np.int64), np.zeros((len(structures), 3))
    best: dict[int, tuple[int, NDArray[Any]]] = {}
    for z in range(volume.shape[0]):
        plane = volume.read(slice(z, z + 1), slice(None), slice(None))[0]
        rows = structures.rows_of(plane)
        y, x = np.nonzero(rows >= 0)
        order = np.argsort(rows[y, x], kind="stable")
        y, x, row = y[order], x[order], rows[y, x][order]
        for part in np.split(np.arange(len(row)), np.flatnonzero(np.diff(row)) + 1) if len(row) else []:
            key, places = int(row[part[0]]), np.stack([np.full(len(part), z), y[part], x[part]], axis=1)
            number[key] += len(part)
            total[key] += places.sum(axis=0)
            if len(part) > best.get(key, (0, None))[0]:
                half = places[places[:, 2] >= np.median(places[:, 2])]
                best[key] = len(part), half[np.argmin(((half - half.mean(axis=0)) ** 2).sum(axis=1))]
    return number, total, {key: place for key, (_, place) in best.items()}
