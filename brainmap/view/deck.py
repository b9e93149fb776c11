"""The review deck of a run: its cards, the answers, and what they say.

What is asked is drawn once and kept in `RUN/view_review.json`; answers are marks and fields of the samples `random` and
`hard`, so that everything else that reads marks reads them too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.atlas.region_sets import DIVISIONS
from brainmap.coords import um_to_vox
from brainmap.errors import BrainmapError, UsageError
from brainmap.export.neuroglancer import row_priority
from brainmap.files import fingerprint, read_json, write_json
from brainmap.view.cells import CellIndex
from brainmap.view.crops import Crops
from brainmap.view.estimate import Fields, Strata, precision, recall
from brainmap.view.marks import FIELD_COLUMNS, MarkKeeper, number_text
from brainmap.view.run_data import ViewedRun
from brainmap.view.samples import SCORE_BINS, draw_fields, field_sizes, hard_cells, order_cells, strata_of

__all__ = ["REVIEW_JSON", "Deck"]

REVIEW_JSON = "view_review.json"
FORMAT = 1
# As many cards are drawn; nobody does more.
_CELLS, _FIELDS, _HARD = 3000, 600, 500
# A field after so many cells: about 85 and 15 of a hundred.
_CELLS_A_FIELD = 6
# Sides of a field in cell diameters, z y x: thin enough that one picture shows all, wide enough for a few cells.
_FIELD = (2.5, 9.0, 9.0)
# Of the field's picture, this share around it shows what borders on it.
_MARGIN = 0.2
# Cells looked at for drawing; of more, an even share.
_POOL = 300_000
_MOST_FIELDS = 20_000_000
# From so many answers on it is said how good the counts are.
_ENOUGH = 100
_FEW_FIELDS = 5


@dataclass
class Deck:
    """Cards about one run.

    Attributes
    ----------
    run : ViewedRun
    cells : CellIndex
    keeper : MarkKeeper
    plan : dict
        What is asked: `divisions`, `sizes` of the strata, `cells`, `fields`, `hard`.
    """

    run: ViewedRun
    cells: CellIndex
    keeper: MarkKeeper
    plan: dict[str, Any]

    @classmethod
    def open(cls, run: ViewedRun, cells: CellIndex, keeper: MarkKeeper, seed: int = 0) -> Deck:
        """Open the deck of a run, drawn anew where the run's cells are others than it was drawn from."""
        state = fingerprint(
            [FORMAT, run.meta, run.threshold, cells.order.n, run.record.results.get("cells"), seed]
        )
        path = run.folder / REVIEW_JSON
        try:
            plan = read_json(path)
            if plan["state"] == state:
                return cls(run, cells, keeper, plan)
        except (BrainmapError, KeyError, TypeError):
            pass
        plan = {"state": state, **_drawn(run, cells, np.random.default_rng(seed))}
        write_json(path, plan)
        return cls(run, cells, keeper, read_json(path))

    @cached_property
    def crops(self) -> Crops:
        """Pictures of the channel in which cells were found."""
        return Crops(self.run.volume)

    # ---- cards ------------------------------------------------------------------------------------------------

    def next(self, sample: str) -> dict[str, Any]:
        """The next card that nobody has answered; empty where none is left.

        Raises
        ------
        UsageError
            If there is no such sample.
        """
        if sample not in ("random", "hard"):
            raise UsageError(f"a sample to review is random or hard, not {sample!r}")
        answers = self._answers()
        kind = "cells" if sample == "random" else "hard"
        left = [i for i, cell in enumerate(self.plan[kind]) if self._key(cell["zyx_um"]) not in answers]
        answered = len(self.plan[kind]) - len(left)
        done: dict[str, Any] = {"answered": answered, "sample": sample}
        if sample == "random":
            fields = self._field_answers()
            open_fields = [
                i for i, one in enumerate(self.plan["fields"]) if self._field_key(one) not in fields
            ]
            done["answered"] += len(fields)
            if open_fields and (
                not left or (len(fields) + 1) * _CELLS_A_FIELD <= len(self.plan[kind]) - len(left)
            ):
                return self._field_card(open_fields[0]) | done
        return self._cell_card(kind, left[0]) | done if left else {}

    def _cell_card(self, kind: str, index: int) -> dict[str, Any]:
        z, y, x = self.plan[kind][index]["zyx_um"]
        side = 6 * self.run.diameter_um
        return {"kind": "cell", "key": index, "zyx_um": [z, y, x],
                "image": f"/crop.png?z={z:.3f}&y={y:.3f}&x={x:.3f}&side={side:g}"}  # fmt: skip

    def _field_card(self, index: int) -> dict[str, Any]:
        field = self.plan["fields"][index]
        low, high = np.array(field["low_um"]), np.array(field["high_um"])
        margin = np.array([0, 1, 1]) * (high - low) * _MARGIN
        seen = [low - margin, high + margin]
        around = np.array([0.5, 0, 0]) * self.run.diameter_um
        found = self.cells.order.within(seen[0] - around, seen[1] + around)
        found = found[found["p_score"] >= np.float32(self.run.threshold)]
        query = "&".join(
            f"{axis}{end}={value:.3f}"
            for end, corner in enumerate(seen)
            for axis, value in zip("zyx", corner, strict=True)
        )
        return {
            "kind": "field", "key": index, "low_um": low, "high_um": high,
            "seen_low_um": seen[0], "seen_high_um": seen[1],
            "shown": np.stack([found["y"], found["x"]], axis=-1), "radius_um": self.run.diameter_um / 2 * 1.4,
            "image": f"/field.png?{query}",
        }  # fmt: skip

    # ---- answers ----------------------------------------------------------------------------------------------

    def answer(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Write down an answer: of a cell `mark`, of a field the places `missed`, each y, x in um.

        Raises
        ------
        UsageError
            If there is no such card, or the answer is none.
        """
        who, sample = str(asked.get("who", "")), str(asked.get("sample", "random"))
        kind = "fields" if asked.get("kind") == "field" else "hard" if sample == "hard" else "cells"
        try:
            card = self.plan[kind][int(asked["key"])]
        except (KeyError, IndexError, TypeError, ValueError):
            raise UsageError("there is no such card") from None
        if kind != "fields":
            word = str(asked.get("mark"))
            if word not in ("yes", "no", "unsure"):
                raise UsageError("a cell is right, wrong or unsure: yes, no, unsure")
            self.keeper.mark(self._vox(card["zyx_um"]), word, who, "hard" if kind == "hard" else "random")
            return {"written": 1}
        return self._answer_field(card, asked.get("missed", []), who)

    def _answer_field(self, card: Mapping[str, Any], missed: Any, who: str) -> dict[str, Any]:
        low, high = np.array(card["low_um"]), np.array(card["high_um"])
        try:
            places = np.array(missed, np.float64).reshape(-1, 2)
        except (TypeError, ValueError):
            raise UsageError("missed must be places y, x in um") from None
        if len(places) > 500 or not np.isfinite(places).all():
            raise UsageError("missed must be at most 500 places y, x in um")
        written = ignored = 0
        for y, x in places.tolist():
            if not (low[1] <= y <= high[1] and low[2] <= x <= high[2]):
                ignored += 1
                continue
            at = np.array([(low[0] + high[0]) / 2, y, x])
            at[0] = self.crops.brightest(at, low[0], high[0], self.run.diameter_um / 2)
            # What is found already is not missed, whatever a finger says.
            if self.cells.nearest(at, 0.6 * self.run.diameter_um, self.run.threshold) is not None:
                ignored += 1
                continue
            self.keeper.mark(self._vox(at), "missed", who, "random")
            written += 1
        # Last of all: a field counts only when all of it is on the disk.
        self.keeper.field(*self._corners(card), who, "random")
        return {"written": written, "ignored": ignored}

    def undo(self) -> dict[str, Any]:
        """Take back the last answer; of a field with what was marked in it."""
        row = self.keeper.undo()
        if row is not None and "z0" in row:
            low, high = (np.array([float(row[f"{axis}{end}"]) for axis in "zyx"]) for end in "01")
            while (rows := self._missed()) and rows[-1] == self.keeper.marks.rows()[-1]:
                at = np.array([float(rows[-1][axis]) for axis in "zyx"])
                if not ((at >= low - 1e-3) & (at <= high + 1e-3)).all():
                    break
                self.keeper.undo()
        return {"undone": row}

    def _answers(self) -> dict[tuple[str, ...], str]:
        """Cells that were asked about, of either sample, by place -> the last word on them, wherever it was said."""
        asked, words = set(), {}
        for row in self.keeper.marks.rows():
            place = (row["z"], row["y"], row["x"])
            if row["mark"] != "missed":
                words[place] = row["mark"]
                if row.get("sample") in ("random", "hard"):
                    asked.add(place)
        return {place: words[place] for place in asked}

    def _missed(self) -> list[dict[str, str]]:
        """What was marked as missed in fields."""
        return [
            row
            for row in self.keeper.marks.rows()
            if row["mark"] == "missed" and row.get("sample") == "random"
        ]

    def _field_answers(self) -> set[tuple[str, ...]]:
        return {tuple(row[name] for name in FIELD_COLUMNS[:6]) for row in self.keeper.fields.rows()
                if row.get("sample") == "random"}  # fmt: skip

    def _vox(self, zyx_um: Any) -> list[float]:
        frame = self.run.frame
        return [
            float(v) for v in um_to_vox(np.array([zyx_um], np.float64), frame.voxel_um, frame.origin_um)[0]
        ]

    def _key(self, zyx_um: Any) -> tuple[str, ...]:
        return tuple(map(number_text, self._vox(zyx_um)))

    def _corners(self, card: Mapping[str, Any]) -> tuple[list[float], list[float]]:
        limit = np.array(self.run.frame.shape) - 0.5
        low, high = (np.clip(self._vox(card[name]), -0.5, limit) for name in ("low_um", "high_um"))
        return low.tolist(), high.tolist()

    def _field_key(self, card: Mapping[str, Any]) -> tuple[str, ...]:
        low, high = self._corners(card)
        return tuple(map(number_text, (*low, *high)))

    # ---- what they say ----------------------------------------------------------------------------------------

    def result(self) -> dict[str, Any]:
        """Precision and recall of the whole image and of its divisions, with 95 % intervals."""
        answers, cells = self._answers(), self.plan["cells"]
        words = (answers.get(self._key(cell["zyx_um"])) for cell in cells)
        # The beginning of the order is the sample: a cell further on that was asked about as a hard one is not of it.
        said = np.array(list(itertools.takewhile(lambda word: word is not None, words)), dtype=str)
        stratum = np.array([cell["stratum"] for cell in cells[: len(said)]], np.int64)
        sizes = np.array(self.plan["sizes"], np.int64)
        judged = np.bincount(stratum[np.isin(said, ("yes", "no"))], minlength=len(sizes))
        right = np.bincount(stratum[said == "yes"], minlength=len(sizes))
        whole = Strata(sizes, judged, right)
        share, missed, centre = self._fields_judged()
        rows = []
        for number, name in enumerate(self.plan["divisions"]):
            part = slice(number * SCORE_BINS, (number + 1) * SCORE_BINS)
            own = Strata(sizes[part], judged[part], right[part])
            # What is missed in a division is counted in all fields, since a field may reach over its border.
            fields = Fields(share, missed[:, number])
            enough = int((centre == number).sum()) >= _FEW_FIELDS
            rows.append({"division": name, "cells": own.total, "judged": int(own.judged.sum()),
                         "precision": precision(own) if own.judged.sum() >= 3 else None,
                         "recall": recall(own, fields) if enough else None})  # fmt: skip
        number = int(judged.sum()) + len(share)
        return {
            "judged": int(judged.sum()), "unsure": int((said == "unsure").sum()), "fields": len(share),
            "missed": int(missed.sum()), "enough": number >= _ENOUGH, "more": max(0, _ENOUGH - number),
            "precision": precision(whole), "recall": recall(whole, Fields(share, missed.sum(axis=1))),
            "divisions": [row for row in rows if row["cells"]],
        }  # fmt: skip

    def _fields_judged(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Of the draws up to the last answered field: share (n,), missed by division (n, D), division of the middle."""
        done, divisions = self._field_answers(), len(self.plan["divisions"])
        rows = [
            row
            for row in self.keeper.marks.rows()
            if row["mark"] == "missed" and row.get("sample") == "random"
        ]
        at = np.array([[float(row[axis]) for axis in "zyx"] for row in rows]).reshape(-1, 3)
        frame = self.run.frame
        of = np.zeros(0, np.int64)
        if len(at):
            region, _ = self.run.place_of(at * frame.voxel_um + np.array(frame.origin_um))
            of = _Divisions(self.run).of(region)
        share, missed, centre = [], [], []
        for card in self.plan["fields"]:
            # They are asked in order: what comes after an open one was drawn twice, or is of another time.
            if self._field_key(card) not in done:
                break
            low, high = (np.array(corner) for corner in self._corners(card))
            inside = ((at >= low - 1e-3) & (at <= high + 1e-3)).all(axis=1)
            share.append(card["share"])
            missed.append(np.bincount(of[inside], minlength=divisions))
            centre.append(card["division"])
        return np.array(share), np.array(missed, np.int64).reshape(-1, divisions), np.array(centre, np.int64)


class _Divisions:
    """The large parts that counts are judged by; the last is what lies in none of them."""

    def __init__(self, run: ViewedRun) -> None:
        structures = None if run.atlas is None else run.atlas.structures
        self.names, self.structures = ["whole image"], structures
        if structures is None:
            return
        have = [name for name in DIVISIONS if name in structures.acronym]
        # Other atlases: what lies directly below the root.
        have = have or [structures.acronym[row] for row in np.flatnonzero(structures.depth == 1).tolist()]
        self.names = [*have, "other"]
        self._of_row = np.full(len(structures) + 1, len(have), np.int64)
        for number, name in enumerate(have):
            self._of_row[structures.rows_of(structures.descendants(name))] = number

    def of(self, region_id: NDArray[np.integer]) -> NDArray[np.int64]:
        """The division (n,) of regions."""
        if self.structures is None:
            return np.zeros(len(region_id), np.int64)
        # Row -1, no region, is the last entry.
        return self._of_row[self.structures.rows_of(region_id.astype(np.int64))]


def _drawn(run: ViewedRun, cells: CellIndex, rng: np.random.Generator) -> dict[str, Any]:
    """What is asked of a run."""
    divisions, records = _Divisions(run), cells.order.records
    total = int(run.record.results.get("cells") or 0)
    share = min(1.0, _POOL / max(cells.order.n, 1))
    pool = np.array(records[row_priority(records["row"]) < share] if share < 1 else records)
    shown = pool["p_score"] >= np.float32(run.threshold)
    found = pool[shown]
    plan: dict[str, Any] = {"divisions": divisions.names, "cells": [], "hard": []}
    sizes = np.zeros(len(divisions.names) * SCORE_BINS, np.int64)
    if len(found):
        stratum, number = strata_of(divisions.of(found["p_region"]), found["p_score"].astype(np.float64))
        # An even share of the cells stands for all of them.
        sizes[: len(number)] = np.round(number * (total or len(found)) / len(found))
        plan["cells"] = [
            {"zyx_um": _um(found[i]), "stratum": int(stratum[i])}
            for i in order_cells(stratum, rng)[:_CELLS].tolist()
        ]
        side = np.floor(np.stack([pool[axis] for axis in "zyx"], axis=-1) / 500).astype(np.int64)
        _, place = np.unique(side, axis=0, return_inverse=True)
        asked = {tuple(cell["zyx_um"]) for cell in plan["cells"][:300]}
        hard = hard_cells(pool["p_score"].astype(np.float64), run.threshold, place.ravel(), 2 * _HARD, rng)
        # Not what is asked at random first.
        plan["hard"] = [{"zyx_um": um} for i in hard.tolist() if tuple(um := _um(pool[i])) not in asked][
            :_HARD
        ]
    return plan | {"sizes": sizes, "fields": _drawn_fields(run, cells, divisions, rng)}


def _um(record: Any) -> list[float]:
    return [float(record[axis]) for axis in "zyx"]


def _drawn_fields(
    run: ViewedRun, cells: CellIndex, divisions: _Divisions, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Fields of a grid over the whole image, drawn by how many candidates lie in each."""
    voxel, shape = np.array(run.frame.voxel_um), np.array(run.frame.shape)
    corner, extent = np.array(run.frame.origin_um) - voxel / 2, voxel * shape
    side = np.maximum(np.array(_FIELD) * run.diameter_um, voxel)
    grid = np.maximum(np.floor(extent / side), 1).astype(np.int64)
    # The last field of an axis is never a sliver: fields share the image evenly.
    side = extent / grid
    if (number := math.prod(grid.tolist())) > _MOST_FIELDS:
        grid = np.maximum(grid // int(np.ceil((number / _MOST_FIELDS) ** (1 / 3))), 1)
    records, step = cells.order.records, 1 << 20
    counts = np.zeros(math.prod(grid.tolist()), np.int64)
    cell = extent / grid
    for start in range(0, len(records), step):
        places = np.stack([records[axis][start : start + step] for axis in "zyx"], axis=-1)
        index = np.clip(((places - corner) / cell).astype(np.int64), 0, grid - 1)
        counts += np.bincount(np.ravel_multi_index(tuple(index.T), tuple(grid)), minlength=len(counts))
    size = field_sizes(counts)
    chosen = draw_fields(size, _FIELDS, rng)
    index = np.stack(np.unravel_index(chosen, tuple(grid)), axis=-1)
    # Of a coarser grid a field is one place of its box, any of which is as likely.
    parts = np.maximum(np.round(cell / side), 1)
    low = corner + index * cell + np.floor(rng.uniform(size=index.shape) * parts) * (cell / parts)
    high = low + cell / parts
    region, _ = run.place_of((low + high) / 2)
    share = size[chosen] / size.sum() / math.prod(parts.tolist())
    inside = voxel * 1e-3
    return [
        {"low_um": a + inside, "high_um": b - inside, "share": float(p), "division": int(d)}
        for a, b, p, d in zip(low, high, share, divisions.of(region), strict=True)
    ]
