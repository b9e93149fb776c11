"""How files are written and read: complete or not at all, JSON, and fingerprints of what they hold.

Every file brainmap writes goes through `atomic_path`, so that a file appears under its final name only when it is
complete.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from brainmap.errors import DataError, NotFoundError

__all__ = [
    "atomic_path", "cell_text", "fingerprint", "now", "plain_text", "read_json", "to_jsonable", "write_json",
]  # fmt: skip

# What a spreadsheet takes for the start of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def cell_text(text: str) -> str:
    """A name for a cell of a table that people open in a spreadsheet, which would run it if it looked like a formula.

    Spreadsheets hide a leading apostrophe and take the rest as text; `plain_text` takes it away again.
    """
    return f"'{text}" if text.startswith((*_FORMULA, "'")) else text


def plain_text(cell: str) -> str:
    """The name that `cell_text` made a cell from; others stay as they are."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith((*_FORMULA, "'")) else cell


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` that takes its place when the block ends without error.

    Works for files and for folders (create the folder at the yielded path). The temporary name keeps
    the suffix, as many writers choose the format by it. Parents are created. On an error nothing is
    left and an existing `path` stays as it was.

    Raises
    ------
    DataError
        If the block ends without having written anything.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{secrets.token_hex(4)}-{path.name}")
    try:
        yield temporary
        if not temporary.exists():
            raise DataError(f"nothing was written for {path}")
        if temporary.is_dir() and path.is_dir():
            # os.replace does not replace a folder that has content: move the old one out of the way.
            old = path.with_name(f".old-{secrets.token_hex(4)}-{path.name}")
            os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink(missing_ok=True)
        raise


def to_jsonable(obj: Any) -> Any:
    """Plain JSON types of `obj`: numpy values, paths, tuples, sets and dataclasses included.

    NaN and infinities, which JSON has no word for, become None.
    """
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {f.name: to_jsonable(getattr(obj, f.name)) for f in dataclasses.fields(obj)}
    if isinstance(obj, Mapping):
        return {str(key): to_jsonable(value) for key, value in obj.items()}
    if isinstance(obj, (set, frozenset)):
        return sorted(to_jsonable(value) for value in obj)
    if isinstance(obj, (list, tuple)):
        return [to_jsonable(value) for value in obj]
    if isinstance(obj, np.ndarray):
        return to_jsonable(obj.tolist())
    if isinstance(obj, np.generic):
        return to_jsonable(obj.item())
    if isinstance(obj, float):
        return obj if math.isfinite(obj) else None
    if obj is None or isinstance(obj, (str, int, bool)):
        return obj
    if isinstance(obj, (Path, np.dtype, datetime)):
        return str(obj)
    raise TypeError(f"cannot write {type(obj).__name__} as JSON")


def fingerprint(obj: Any) -> str:
    """SHA-256 (hex) of bytes, or of the canonical JSON of anything `to_jsonable` knows.

    Equal values give equal fingerprints whatever the order of their keys, on any machine.
    """
    if isinstance(obj, (bytes, bytearray, memoryview)):
        data = bytes(obj)
    else:
        data = json.dumps(to_jsonable(obj), sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(data).hexdigest()


def write_json(path: str | Path, obj: Any) -> None:
    """Write `obj` as indented JSON with sorted keys, atomically."""
    text = json.dumps(to_jsonable(obj), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises
    ------
    NotFoundError
        If there is no such file.
    DataError
        If it is not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"there is no file {path}") from None
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error


def now() -> str:
    """The present moment as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
