"""What a conversion has finished, so that the same command can go on where it was stopped.

Beside the image to come lies a hidden folder that holds the image so far and a journal, one JSON record a
line: first what decides the result, then every slab of planes that has been written and read back, with the
checksums of its files. A slab without a line is written again. Nothing is taken as finished because a file
exists: every file of the journal is read again before a conversion goes on.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import IO, Any

from brainmap.errors import DataError, UsageError
from brainmap.files import replace_path, to_jsonable
from brainmap.image.storage.shards import checksum
from brainmap.run_folder import changes

__all__ = ["ConversionJournal"]

log = logging.getLogger(__name__)

_JOURNAL = "journal.jsonl"


class ConversionJournal:
    """The unfinished image of one destination (context manager; what was finished stays on an error).

    Nobody else may be writing it: see `brainmap.lock`.

    Parameters
    ----------
    dest : Path
        The image to come.
    settings : mapping
        All that decides the bytes of the result, JSON-able; its values are compared.
    source_of : callable (first, end) -> str
        Fingerprint of the source of these planes.
    overwrite : bool
        Discard an unfinished image that cannot be continued, instead of refusing.

    Raises
    ------
    UsageError
        If an unfinished image of another source or with other settings is there.
    """

    def __init__(
        self,
        dest: Path,
        settings: Mapping[str, Any],
        source_of: Callable[[int, int], str],
        overwrite: bool = False,
    ) -> None:
        self.dest = dest
        self.folder = dest.with_name(f".converting-{dest.name}")
        self.image = self.folder / "image.zarr"
        self._settings = to_jsonable(dict(settings))
        self._source_of, self._overwrite = source_of, overwrite
        self._slabs: list[dict[str, Any]] = []
        self._file: IO[bytes] | None = None

    def __enter__(self) -> ConversionJournal:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = (self.folder / _JOURNAL).open("a+b", buffering=0)
        try:
            self._file.seek(0)
            records, intact = _records(self._file.read())
            found = self._differences(records)
            if found and not self._overwrite:
                raise UsageError(
                    f"{self.folder} holds an unfinished conversion of another source or with other settings "
                    f"({'; '.join(found)}); use --overwrite to start anew"
                )
            if found or not records or not self.image.exists():
                self._start()
            else:
                # A line torn by the end of the process before is cut off.
                self._file.truncate(intact)
                self._slabs = records[1:]
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        if not self._slabs:
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _opened(self) -> IO[bytes]:
        assert self._file is not None
        return self._file

    def _differences(self, records: list[dict[str, Any]]) -> list[str]:
        """What is other than at the time of the records, as short phrases."""
        if not records:
            return []
        before, now = records[0].get("settings", {}), self._settings
        if found := changes(before, now):
            return found
        planes = [(r["first"], r["end"], r["source"]) for r in records[1:] if r["level"] == 0]
        changed = next((f"{a}:{b}" for a, b, source in planes if self._source_of(a, b) != source), None)
        return [] if changed is None else [f"the files of planes {changed} have changed"]

    def _start(self) -> None:
        self._opened.truncate(0)
        if self.image.exists():
            shutil.rmtree(self.image)
        self._slabs = []
        self._append({"settings": self._settings})

    def _append(self, record: dict[str, Any]) -> None:
        line = json.dumps(record, sort_keys=True, separators=(",", ":")).encode() + b"\n"
        if self._opened.write(line) != len(line):
            raise OSError(28, os.strerror(28))

    def finished(self, pool: Executor) -> dict[int, int]:
        """Planes finished of each level, after every file of them has been checked.

        Raises
        ------
        DataError
            If a file is not as it was written.
        """
        files = [
            (self.image / str(record["level"]) / name, value)
            for record in self._slabs
            for name, value in record["files"].items()
        ]
        for (path, value), found in zip(files, pool.map(checksum, [p for p, _ in files]), strict=True):
            if value != found:
                raise DataError(
                    f"{path} was changed since the conversion stopped; remove {self.folder} to start anew"
                )
        return {record["level"]: record["end"] for record in self._slabs}

    def record(self, level: int, first: int, end: int, files: Mapping[str, int | None]) -> None:
        """Note that planes first:end of a level are written and compared."""
        source = self._source_of(first, end) if level == 0 else None
        record = {"level": level, "first": first, "end": end, "source": source, "files": dict(files)}
        self._append(record)
        self._slabs.append(record)

    def publish(self) -> None:
        """Give the finished image its name; what was there is replaced."""
        replace_path(self.image, self.dest)
        self._slabs = []


def _records(content: bytes) -> tuple[list[dict[str, Any]], int]:
    """Whole lines of a journal, and how many bytes they are."""
    records, intact = [], 0
    for line in content.splitlines(keepends=True):
        try:
            record = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            record = None
        if not isinstance(record, dict):
            break
        records.append(record)
        intact += len(line)
    return records, intact
