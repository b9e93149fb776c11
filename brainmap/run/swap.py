"""Many files of a run folder replaced together: made beside, then put in place at the end."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from brainmap.run_folder import RUN_JSON

__all__ = ["finish_swap", "staged"]

# A folder of files being made; the same when all are there and only have to be moved.
_NEW, _READY = ".new-", ".swap"
# Folders whose content is replaced one by one: what is not made anew stays.
_SHARED = ("exports",)


@contextmanager
def staged(run: Path) -> Iterator[Path]:
    """A folder inside a run folder whose files take their places when the block ends without error.

    After an error, or when the process is killed inside the block, the run is as it was. When it is killed while
    the files are moved, `finish_swap` moves the rest.
    """
    finish_swap(run)
    for left in run.glob(f"{_NEW}*"):
        shutil.rmtree(left, ignore_errors=True)
    new = run / f"{_NEW}{secrets.token_hex(4)}"
    new.mkdir()
    try:
        yield new
        os.replace(new, run / _READY)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    finish_swap(run)


def finish_swap(run: Path) -> None:
    """Move what an interrupted command had made ready; nothing to do otherwise."""
    ready = run / _READY
    if not ready.is_dir():
        return
    found = [path for path in sorted(ready.iterdir()) if path.name not in _SHARED]
    for name in _SHARED:
        if (ready / name).is_dir():
            found += sorted((ready / name).iterdir())
    # The record says what the other files are: it comes last.
    for path in sorted(found, key=lambda path: path.name == RUN_JSON):
        target = run / path.relative_to(ready)
        target.parent.mkdir(exist_ok=True)
        if target.is_dir():
            # A folder that has content is not replaced: the old one goes out of the way.
            old = target.with_name(f".old-{secrets.token_hex(4)}")
            os.replace(target, old)
            os.replace(path, target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(path, target)
    shutil.rmtree(ready)
