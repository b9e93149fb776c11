"""The machine and the software that compute: what a result may depend on, and how memory is held."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from brainmap import __version__

__all__ = ["has_bf16", "keep_freed_memory", "machine", "usable_cores", "versions"]

# The packages whose version can change a result.
KEY_PACKAGES = (
    "numpy", "scipy", "zarr", "numcodecs", "dask", "distributed", "openvino", "antspyx", "pyarrow",
    "tifffile", "imagecodecs", "scikit-learn", "hdbscan", "torch", "tensorrt",
)  # fmt: skip

# Instruction sets that decide how fast, and in which precision, the CPU infers.
CPU_FEATURES = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx512f", "avx2", "fma", "bf16")
# Those with which it computes in bfloat16; the last is ARM's.
_BF16 = ("amx_bf16", "avx512_bf16", "bf16")

# Parameters of glibc's mallopt, and the largest block that its heap may serve (larger ones are mapped one by one).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_ON_HEAP = 32 << 20
_KEPT_BYTES = 128 << 20


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
        "cores": usable_cores(),
        "memory_bytes": int(psutil.virtual_memory().total),
        "gpus": _gpus(),
        "system": platform.platform(),
    }


def usable_cores() -> int:
    """Cores this process may use, which on a shared machine are fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def has_bf16() -> bool:
    """Whether the processor computes in bfloat16; one that does not emulates it, many times slower than float32."""
    return any(name in _cpu()[1] for name in _BF16)


def _cpu() -> tuple[str, list[str]]:
    model, flags = platform.processor() or platform.machine(), set()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() in ("flags", "Features"):
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


@cache
def keep_freed_memory() -> None:
    """Let the C library keep up to 128 MiB of what numpy frees, for the next slice.

    Every slice of a block takes and frees the same few megabytes; given back to the system each time, they
    come again page by page. dask's nannies ask for exactly that (MALLOC_TRIM_THRESHOLD_=65536), which
    costs their workers a tenth of the time. Nothing happens where the C library is not glibc.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_ON_HEAP)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
