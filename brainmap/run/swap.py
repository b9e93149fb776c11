"""Many files of a run folder replaced together: made beside, then put in place at the end."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from brainmap.files import replace_path
from brainmap.run_folder import EXPORTS_DIR, RUN_FILES, RUN_JSON

__all__ = ["finish_swap", "put_in_place", "staged"]

# A folder of files being made; the same when all are there and only have to be moved.
_NEW, _READY = ".new-", ".swap"
# In the latter, a list of what the run has no more: names, one a line.
_GONE = ".gone"
# Folders whose content is replaced one by one: what is not made anew stays.
_SHARED = (EXPORTS_DIR,)


@contextmanager
def staged(run: Path) -> Iterator[Path]:
    """A folder inside a run folder whose files take their places when the block ends without error.

    After an error, or when the process is killed inside the block, the run is as it was. When it is killed while
    the files are moved, `finish_swap` moves the rest. Nobody else may be writing the run: see `brainmap.lock`.
    """
    finish_swap(run)
    new = run / f"{_NEW}{secrets.token_hex(4)}"
    new.mkdir()
    try:
        yield new
        os.replace(new, run / _READY)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    finish_swap(run)


def put_in_place(run: Path, made: Path) -> None:
    """Replace all files of a run by those of another that was made in a folder inside it; foreign files stay.

    Killed in the middle, `finish_swap` does the rest.
    """
    (made / _GONE).write_text("\n".join(name for name in RUN_FILES if not (made / name).exists()))
    os.replace(made, run / _READY)
    finish_swap(run)


def finish_swap(run: Path) -> None:
    """Move what an interrupted command had made ready, and forget what it had not."""
    for left in run.glob(f"{_NEW}*"):
        shutil.rmtree(left, ignore_errors=True)
    ready = run / _READY
    if not ready.is_dir():
        return
    if (ready / _GONE).is_file():
        for name in (ready / _GONE).read_text().splitlines():
            _remove(run / name)
    found = [path for path in sorted(ready.iterdir()) if path.name not in (*_SHARED, _GONE)]
    for name in _SHARED:
        if (ready / name).is_dir():
            found += sorted((ready / name).iterdir())
    # The record says what the other files are: it comes last.
    for path in sorted(found, key=lambda path: path.name == RUN_JSON):
        target = run / path.relative_to(ready)
        if target.parent.is_file():
            target.parent.unlink()
        target.parent.mkdir(exist_ok=True)
        replace_path(path, target)
    shutil.rmtree(ready)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
