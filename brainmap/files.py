"""What was computed, from what, by which software on which machine; and how files are written.

Every file brainmap writes goes through `atomic_path`, so that a file appears under its final name
only when it is complete, and every run leaves a `run.json` (`RunRecord`) from which a later command
can tell whether it may resume.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from brainmap import __version__
from brainmap.errors import DataError, NotFoundError, UsageError

__all__ = [
    "RunRecord",
    "atomic_path",
    "fingerprint",
    "machine",
    "now",
    "read_json",
    "to_jsonable",
    "versions",
    "write_json",
]

RUN_JSON = "run.json"
STATUSES = ("running", "complete", "incomplete")

# The packages whose version can change a result.
KEY_PACKAGES = (
    "numpy", "scipy", "zarr", "numcodecs", "dask", "distributed", "openvino", "antspyx", "pyarrow",
    "tifffile", "imagecodecs", "scikit-learn", "hdbscan", "torch", "tensorrt", "tensorstore",
)  # fmt: skip

# Instruction sets that decide how fast, and in which precision, the CPU infers.
CPU_FEATURES = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx512f", "avx2", "fma")


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


def versions() -> dict[str, str]:
    """Versions of brainmap, Python and the installed packages that can change a result."""
    found = {"brainmap": __version__, "python": platform.python_version()}
    for package in KEY_PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def machine() -> dict[str, Any]:
    """CPU model, its relevant features, cores, memory in bytes, GPUs and operating system."""
    import psutil

    model, features = _cpu()
    return {
        "cpu": model,
        "cpu_features": features,
        "cores": _usable_cores(),
        "memory_bytes": int(psutil.virtual_memory().total),
        "gpus": _gpus(),
        "system": platform.platform(),
    }


def _usable_cores() -> int:
    # The cores this process may use, which on a shared machine are fewer than there are.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu() -> tuple[str, list[str]]:
    model, flags = platform.processor() or platform.machine(), set()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() == "flags":
                flags = set(value.split())
                break
    return model, [name for name in CPU_FEATURES if name in flags]


def _gpus() -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        found = subprocess.run(
            [program, "--query-gpu=name,memory.total", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in found.stdout.splitlines() if line.strip()]


@dataclass(frozen=True)
class RunRecord:
    """The content of a run folder's `run.json`.

    `parameters` and `fingerprints` together decide the result: a command may resume a folder only if
    both are equal to its own. What may differ between the commands of one run (workers, scheduler,
    exports) belongs into `execution`.

    Attributes
    ----------
    status : str
        `running`, `complete`, or `incomplete` (finished with missing blocks).
    parameters, fingerprints : dict
        The options that decide the result; SHA-256 of the input, detector, atlas.
    execution : dict
        Device, backend, workers, scheduler: how it was computed.
    timings_s : dict
        Seconds per stage.
    blocks : dict
        `total`, `done`, `empty`, `finished` (names), `failed` (block -> reason).
    results : dict
        Numbers worth keeping: cells, voxels, voxels_per_second, peak_memory_bytes, ...
    """

    status: str = "running"
    parameters: dict[str, Any] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    execution: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=versions)
    machine: dict[str, Any] = field(default_factory=machine)
    started: str = field(default_factory=now)
    finished: str | None = None
    timings_s: dict[str, float] = field(default_factory=dict)
    blocks: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}, not {self.status!r}")

    @classmethod
    def load(cls, run: str | Path) -> RunRecord:
        """Read `run.json` of a run folder.

        Raises
        ------
        NotFoundError, DataError
            If the folder has none, or one that is damaged.
        """
        path = Path(run) / RUN_JSON
        if not path.is_file():
            raise NotFoundError(f"{run} is not a run folder: it has no {RUN_JSON}")
        content = read_json(path)
        known = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(content, dict) or content.get("status") not in STATUSES:
            raise DataError(f"{path} is not a run record: it has no valid status")
        # Keys of a newer brainmap are left alone rather than refused.
        values = {key: value for key, value in content.items() if key in known}
        return cls(**values | {"warnings": tuple(values.get("warnings", ()))})

    def save(self, run: str | Path) -> None:
        """Write `run.json` into the run folder, atomically."""
        write_json(Path(run) / RUN_JSON, self)

    def updated(self, **changes: Any) -> RunRecord:
        """A copy with some fields replaced."""
        return dataclasses.replace(self, **changes)

    def differences(self, parameters: Mapping[str, Any], fingerprints: Mapping[str, str]) -> list[str]:
        """What differs from the run that another command asks for, as short phrases."""
        found: list[str] = []
        for mine, theirs in ((self.parameters, parameters), (self.fingerprints, fingerprints)):
            mine, theirs = to_jsonable(mine), to_jsonable(theirs)
            found.extend(
                f"{key} was {_short(mine.get(key))}, is now {_short(theirs.get(key))}"
                for key in sorted({*mine, *theirs})
                if mine.get(key) != theirs.get(key)
            )
        return found

    def require_same(
        self, run: str | Path, parameters: Mapping[str, Any], fingerprints: Mapping[str, str]
    ) -> None:
        """Refuse to resume a run made with other parameters or from other data.

        Raises
        ------
        UsageError
            Naming every difference.
        """
        found = self.differences(parameters, fingerprints)
        if found:
            raise UsageError(
                f"{run} holds a run with other parameters ({'; '.join(found)}); "
                "use --overwrite to replace it, or another --out"
            )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
