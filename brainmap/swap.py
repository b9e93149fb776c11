"""Many files of a folder replaced together: made beside, then put in place at the end.

Other people's files in the folder stay. Nobody else may be writing to it meanwhile: see `brainmap.lock`.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from brainmap.files import read_json, replace_path, sweep_inside, write_json

__all__ = ["REPLACEMENT_DIR", "finish_swap", "put_in_place", "staged"]

# Where a result is made over hours that will take the place of another.
REPLACEMENT_DIR = ".replacement"
# A folder of files being made; the same when all are there and only have to be moved.
_NEW, _READY = ".new-", ".swap"
# In the latter: which file comes last, which folders are shared with what stays, and which names are no more.
_ORDER = ".order.json"


@contextmanager
def staged(folder: Path, last: str, shared: Iterable[str] = ()) -> Iterator[Path]:
    """A folder inside another whose files take their places when the block ends without error.

    After an error, or when the process is killed inside the block, all is as it was. When it is killed while the
    files are moved, `finish_swap` moves the rest.

    Parameters
    ----------
    folder : Path
    last : str
        The file that says what the others are: it is moved last.
    shared : iterable of str
        Folders whose content is replaced one by one: what is not made anew stays.
    """
    finish_swap(folder)
    new = folder / f"{_NEW}{secrets.token_hex(4)}"
    new.mkdir()
    try:
        yield new
        put_in_place(folder, new, last, shared)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def put_in_place(
    folder: Path, made: Path, last: str, shared: Iterable[str] = (), own: Iterable[str] = ()
) -> None:
    """Move files that were made in a folder inside another to their places; if killed, `finish_swap` goes on.

    Parameters
    ----------
    folder, made : Path
    last, shared
        As for `staged`.
    own : iterable of str
        Names that belong to what is replaced: those that were not made anew are removed.
    """
    gone = [name for name in own if not (made / name).exists()]
    write_json(made / _ORDER, {"last": last, "shared": list(shared), "gone": gone})
    os.replace(made, folder / _READY)
    finish_swap(folder)


def finish_swap(folder: Path) -> None:
    """Move what an interrupted command had made ready, and forget what it had not."""
    for left in folder.glob(f"{_NEW}*"):
        shutil.rmtree(left, ignore_errors=True)
    ready = folder / _READY
    if not (ready / _ORDER).is_file():
        # All of it has been moved.
        shutil.rmtree(ready, ignore_errors=True)
        return
    order = read_json(ready / _ORDER)
    sweep_inside(folder)
    for name in order["gone"]:
        _remove(folder / name)
    found = [path for path in sorted(ready.iterdir()) if path.name not in (*order["shared"], _ORDER)]
    for name in order["shared"]:
        if (ready / name).is_dir():
            if not (folder / name).is_dir():
                _remove(folder / name)
            (folder / name).mkdir(exist_ok=True)
            found += sorted((ready / name).iterdir())
    for path in sorted(found, key=lambda path: path.name == order["last"]):
        replace_path(path, folder / path.relative_to(ready))
    (ready / _ORDER).unlink()
    shutil.rmtree(ready)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
