"""What other systems lack: every module can be imported without it. Run on Linux, as if it were Windows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# brainmap's modules see an `os` without the functions that Windows or macOS lack, and none of the modules that Windows
# lacks; other packages see what there is, as their own releases for these systems do otherwise.
SCRIPT = """
import builtins, importlib, os, pkgutil, sys, types

LACKING = ("register_at_fork", "sched_getaffinity", "sched_setaffinity", "fork", "getuid", "posix_fadvise", "setsid")
bare = types.ModuleType("os")
bare.__dict__.update({name: value for name, value in vars(os).items() if name not in LACKING})
real_import = builtins.__import__

def bare_import(name, globals=None, locals=None, fromlist=(), level=0):
    if str((globals or {}).get("__name__", "")).startswith("brainmap"):
        if name in ("fcntl", "resource", "pwd", "grp", "termios"):
            raise ImportError(name)
        if name == "os":
            return bare
    return real_import(name, globals, locals, fromlist, level)

builtins.__import__ = bare_import
import brainmap

count = 0
for module in pkgutil.walk_packages(brainmap.__path__, "brainmap."):
    if module.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("brainmap"):
            raise
    count += 1

from brainmap.machine import machine, usable_cores
from brainmap.infer.engine.batch import peak_memory

assert usable_cores() >= 1 and machine()["cores"] >= 1 and peak_memory() > 0
print(count)
"""


def test_every_module_can_be_imported_where_functions_are_missing(repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 200
