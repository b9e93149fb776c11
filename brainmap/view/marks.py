"""What people mark in a run, on disk before anybody is told that it is marked.

`marks.csv` holds cells (its format is `brainmap.run.marks`'s), `fields.csv` the boxes in which every missed cell is
marked. Both grow by single lines, each written through to the disk; the last one can be taken back.
"""

from __future__ import annotations

import csv
import io
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brainmap.errors import DataError, UsageError
from brainmap.files import atomic_path, cell_text, now, plain_text
from brainmap.run.marks import MARK_COLUMNS, MARKS_CSV, SAMPLES, WORDS

__all__ = ["FIELDS_CSV", "FIELD_COLUMNS", "MarkKeeper", "TableLog", "number_text"]

FIELDS_CSV = "fields.csv"
#: The corners of a box, in level-0 voxels, both inside.
FIELD_COLUMNS = ("z0", "y0", "x0", "z1", "y1", "x1", "at", "who", "sample")
Triple = Sequence[float]


class TableLog:
    """A CSV table that grows by single lines; each is on the disk when `append` returns.

    Parameters
    ----------
    path : Path
        Made with its header when the first line comes. A table with other columns, such as one written by hand, keeps
        them.
    columns : sequence of str
        Those that lines have.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, tuple(columns)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write a line, and wait until the disk has it.

        Raises
        ------
        DataError
            If the table there cannot be read.
        """
        header = self._prepare()
        text = io.StringIO()
        csv.DictWriter(text, header, lineterminator="\n", extrasaction="ignore").writerow(row)
        # One write at the end of the file: others may append too.
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0))
        try:
            os.write(handle, text.getvalue().encode())
            os.fsync(handle)
        finally:
            os.close(handle)

    def rows(self) -> list[dict[str, str]]:
        """All lines, oldest first."""
        if not self.path.is_file():
            return []
        with self.path.open(newline="", encoding="utf-8-sig") as file:
            return [{key: value or "" for key, value in row.items() if key} for row in csv.DictReader(file)]

    def take_back(self) -> dict[str, str] | None:
        """Remove the last line and return it; None where there is none."""
        rows = self.rows()
        if not rows:
            return None
        content = self.path.read_bytes()
        cut = content.rstrip(b"\r\n").rfind(b"\n") + 1
        with self.path.open("r+b") as file:
            file.truncate(cut)
            os.fsync(file.fileno())
        return rows[-1]

    def _prepare(self) -> list[str]:
        """The columns of the table, made where there is none, widened where some are missing."""
        if not self.path.is_file() or not self.path.stat().st_size:
            self._rewrite(list(self.columns), [])
            return list(self.columns)
        with self.path.open(newline="", encoding="utf-8-sig") as file:
            header = next(csv.reader(file), [])
        if not set(header) & set(self.columns):
            raise DataError(
                f"{self.path} is no table with commas between {', '.join(self.columns)}; move it away"
            )
        if missing := [name for name in self.columns if name not in header]:
            rows = self.rows()
            header += missing
            self._rewrite(header, rows)
        elif not self.path.read_bytes().endswith(b"\n"):
            # A line that was cut off, by a full disk or by hand: what follows must not run into it.
            with self.path.open("ab") as file:
                file.write(b"\n")
        return header

    def _rewrite(self, header: list[str], rows: list[dict[str, str]]) -> None:
        with atomic_path(self.path) as temporary:
            with temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, header, restval="", lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
                file.flush()
                os.fsync(file.fileno())


class MarkKeeper:
    """The marks of one run.

    Parameters
    ----------
    folder : Path
        Run folder.
    shape : (z, y, x)
        Level-0 voxels of the image.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int]) -> None:
        self.shape = shape
        self.marks = TableLog(folder / MARKS_CSV, MARK_COLUMNS)
        self.fields = TableLog(folder / FIELDS_CSV, FIELD_COLUMNS)
        self._order: list[TableLog] = []
        self._lock = threading.Lock()

    def mark(self, zyx_vox: Triple, word: str, who: str = "", sample: str = "free") -> dict[str, str]:
        """Mark a place.

        Raises
        ------
        UsageError
            If the word or sample is unknown, or the place outside the image.
        """
        if word not in WORDS:
            raise UsageError(f"a mark is one of {', '.join(WORDS)}, not {word!r}")
        self._check(zyx_vox, sample)
        row = dict(zip("zyx", map(number_text, zyx_vox), strict=True))
        return self._append(self.marks, row | {"mark": word}, who, sample)

    def field(self, low_vox: Triple, high_vox: Triple, who: str = "", sample: str = "free") -> dict[str, str]:
        """Say that every cell missed in a box is marked.

        Raises
        ------
        UsageError
            If the box is empty or outside the image.
        """
        self._check(low_vox, sample)
        self._check(high_vox, sample)
        if any(a > b for a, b in zip(low_vox, high_vox, strict=True)):
            raise UsageError("a field ends before it starts")
        row = dict(zip(FIELD_COLUMNS, map(number_text, (*low_vox, *high_vox)), strict=False))
        return self._append(self.fields, row, who, sample)

    def undo(self) -> dict[str, str] | None:
        """Take back what was said last; None where nothing was."""
        with self._lock:
            while self._order:
                if (row := self._order.pop().take_back()) is not None:
                    return row
            # After a restart: the younger of both tables' ends.
            ends = [(log.rows() or [{}])[-1].get("at", "") for log in (self.fields, self.marks)]
            return (self.fields if ends[0] > ends[1] else self.marks).take_back()

    def _append(self, log: TableLog, row: dict[str, str], who: str, sample: str) -> dict[str, str]:
        row |= {"at": now(), "who": cell_text(" ".join(who.split())[:80]), "sample": sample}
        with self._lock:
            log.append(row)
            self._order.append(log)
        return row | {"who": plain_text(row["who"])}

    def _check(self, zyx_vox: Triple, sample: str) -> None:
        if sample not in SAMPLES:
            raise UsageError(f"a sample is one of {', '.join(filter(None, SAMPLES))}, not {sample!r}")
        if not all(-0.5 <= at <= size - 0.5 for at, size in zip(zyx_vox, self.shape, strict=True)):
            raise UsageError("this place lies outside the image")


def number_text(value: float) -> str:
    """A voxel index as it stands in the tables; equal places are equal texts."""
    return f"{float(value):.3f}"
