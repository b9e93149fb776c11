"""How files are written and read: complete or not at all, JSON, and fingerprints of what they hold.

Every file brainmap writes goes through `atomic_path`, so that a file appears under its final name only when it is
complete.
"""

from __future__ import annotations

import dataclasses
import glob
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
    "atomic_path", "cell_text", "clone_tree", "fingerprint", "now", "plain_text", "read_json", "replace_path",
    "sweep_beside", "sweep_inside", "to_jsonable", "write_json",
]  # fmt: skip

# How names of files on their way in and out begin; only a killed process leaves one behind.
_COMING, _GOING = ".tmp-", ".old-"

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
    temporary = path.with_name(f"{_COMING}{secrets.token_hex(4)}-{path.name}")
    try:
        yield temporary
        if not temporary.exists():
            raise DataError(f"nothing was written for {path}")
        replace_path(temporary, path)
    except BaseException:
        with suppress(OSError):
            _remove(temporary)
        raise


def replace_path(new: Path, path: Path) -> None:
    """Give a complete file or folder its name; a file or folder of that name goes.

    A process killed at the worst moment leaves the old one under another name: see `sweep_beside`.
    """
    if not path.is_dir():
        os.replace(new, path)
        return
    # os.replace does not replace a folder that has content: the old one goes out of the way.
    old = path.with_name(f"{_GOING}{secrets.token_hex(4)}-{path.name}")
    os.replace(path, old)
    try:
        os.replace(new, path)
    except BaseException:
        os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def sweep_beside(path: Path) -> None:
    """Clear away what killed processes left on their way to or from a path; nobody else may be writing it.

    What was moved out of the way and never replaced comes back.
    """
    for left in sorted(path.parent.glob(f"{_GOING}????????-{_literal(path.name)}")):
        if path.exists():
            _remove(left)
        else:
            os.replace(left, path)
    for left in path.parent.glob(f"{_COMING}????????-{_literal(path.name)}"):
        _remove(left)


def sweep_inside(folder: Path) -> None:
    """`sweep_beside` for everything that lies directly in a folder."""
    names = {path.name[14:] for prefix in (_COMING, _GOING) for path in folder.glob(f"{prefix}????????-?*")}
    for name in names:
        sweep_beside(folder / name)


def _literal(name: str) -> str:
    return glob.escape(name)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def clone_tree(source: Path, target: Path) -> None:
    """Copy a folder of finished files; where the disk can, both share them, as no file of ours is changed in place."""
    shutil.copytree(source, target, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


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
