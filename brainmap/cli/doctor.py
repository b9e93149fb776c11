"""What this machine can do, what is missing, and the command that installs it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brainmap.errors import BrainmapError
from brainmap.machine import machine, versions
from brainmap.run.request import DEFAULT_ATLAS

__all__ = ["Check", "Report", "examine"]

# Extra -> (the packages that tell whether it is installed, what it is for).
EXTRAS: dict[str, tuple[tuple[str, ...], str]] = {
    "train": (("torch", "onnx", "onnxscript"), "training and the torch backend"),
    "tensorrt": (("tensorrt", "torch"), "inference on NVIDIA GPUs"),
    "view": (("neuroglancer", "starlette", "uvicorn"), "brainmap view, review"),
    "napari": (("napari",), "brainmap view --napari"),
    "slurm": (("dask_jobqueue",), "--scheduler slurm:FILE"),
}
GIB = 1 << 30
MIN_MEMORY, MIN_DISK = 4 * GIB, 5 * GIB


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    Attributes
    ----------
    name : str
    status : str
        "ok"; "optional" (missing, and detection works without); "problem".
    text : str
        What was found.
    fix : str
        The command or step that mends it, if there is one.
    """

    name: str
    status: str
    text: str
    fix: str = ""


@dataclass(frozen=True)
class Report:
    """All checks, with the machine and the versions they were made on."""

    checks: tuple[Check, ...]
    machine: dict[str, Any]
    versions: dict[str, str]

    @property
    def ok(self) -> bool:
        """Whether detection can work here."""
        return not any(check.status == "problem" for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return {"ok": self.ok, "checks": self.checks, "machine": self.machine, "versions": self.versions}

    def text(self) -> str:
        """The report for people."""
        marks = {"ok": "ok", "optional": "--", "problem": "!!"}
        width = max(len(check.name) for check in self.checks)
        lines = []
        for check in self.checks:
            lines.append(f"{marks[check.status]}  {check.name:<{width}}  {check.text}")
            if check.fix:
                lines.append(f"    {'':<{width}}  -> {check.fix}")
        lines.append(
            "This machine can detect cells."
            if self.ok
            else "Something detection needs is missing: see the lines marked !!"
        )
        return "\n".join(lines)


def examine(folder: str | Path = ".") -> Report:
    """Look at the machine and the installation; `folder` is where results would be written."""
    host, found = machine(), versions()
    steps: list[Callable[[], Check]] = [
        lambda: Check("brainmap", "ok", f"{found['brainmap']} on Python {found['python']}"),
        lambda: _cpu(host),
        lambda: _memory(host),
        lambda: _gpu(host),
        _openvino,
        _detector,
        _ants,
        _atlases,
        *(_extra_step(name) for name in EXTRAS),
        lambda: _disk(Path(folder)),
    ]
    return Report(tuple(step() for step in steps), host, found)


def _cpu(host: dict[str, Any]) -> Check:
    features = host["cpu_features"]
    fast = "amx_bf16" in features or "avx512_bf16" in features
    precision = "bf16 in hardware" if fast else "no bf16: inference in float32"
    return Check("CPU", "ok", f"{host['cpu']}, {host['cores']} cores, {precision}")


def _memory(host: dict[str, Any]) -> Check:
    import psutil

    total, free = host["memory_bytes"], psutil.virtual_memory().available
    text = f"{total / GIB:.1f} GiB, {free / GIB:.1f} GiB free"
    if total < MIN_MEMORY:
        return Check(
            "memory", "problem", text, "use one worker and small blocks: --workers 1 --block 32,512,512"
        )
    return Check("memory", "ok", text)


def _gpu(host: dict[str, Any]) -> Check:
    if not host["gpus"]:
        return Check("GPU", "optional", "none found: the CPU is used")
    return Check("GPU", "ok", "; ".join(host["gpus"]))


def _openvino() -> Check:
    try:
        import openvino
    except ImportError:
        return Check("OpenVINO", "problem", "not installed", "pip install openvino")
    try:
        devices = openvino.Core().available_devices
    except RuntimeError as error:
        return Check(
            "OpenVINO", "problem", f"does not start: {error}", "pip install --force-reinstall openvino"
        )
    version = openvino.__version__.split("-")[0]
    return Check(
        "OpenVINO", "ok" if devices else "problem", f"{version}, devices {', '.join(devices) or 'none'}"
    )


def _detector() -> Check:
    from brainmap.infer.detector import Detector

    try:
        detector = Detector.open("default")
    except BrainmapError as error:
        return Check("detector", "problem", str(error), "reinstall brainmap: its default detector is missing")
    return Check("detector", "ok", f"default, for cells of about {detector.spec.cell_diameter_um:g} um")


def _ants() -> Check:
    if importlib.util.find_spec("ants") is None:
        return Check("ANTs", "problem", "not installed: no registration", "pip install antspyx==0.6.3")
    return Check("ANTs", "ok", "registration works")


def _atlases() -> Check:
    from brainmap.atlas.find import atlas_roots, list_atlases

    found = list_atlases()
    if not found:
        return Check(
            "atlases", "optional", f"none in {', '.join(str(root) for root in atlas_roots())}",
            f"pip install brainglobe-atlasapi && brainglobe install -a {DEFAULT_ATLAS}, or use --no-atlas",
        )  # fmt: skip
    return Check("atlases", "ok", ", ".join(f"{name} ({folder.parent})" for name, folder in found.items()))


def _extra_step(extra: str) -> Callable[[], Check]:
    packages, purpose = EXTRAS[extra]

    def check() -> Check:
        missing = [name for name in packages if importlib.util.find_spec(name) is None]
        if not missing:
            return Check(f"[{extra}]", "ok", f"installed: {purpose}")
        text = f"{', '.join(missing)} not installed: needed for {purpose}"
        return Check(f"[{extra}]", "optional", text, f"pip install 'brainmap[{extra}]'")

    return check


def _disk(folder: Path) -> Check:
    where = folder.resolve()
    free = shutil.disk_usage(where).free
    text = f"{free / GIB:.0f} GiB free in {where}"
    try:
        # Asking is not enough: file systems mounted read-only say yes to root.
        with tempfile.TemporaryFile(dir=where):
            pass
    except OSError as error:
        reason = error.strerror or os.strerror(error.errno or 0)
        return Check("disk", "problem", f"cannot write in {where}: {reason}", "write elsewhere with --out")
    if free < MIN_DISK:
        return Check("disk", "problem", text, "free some space, or write elsewhere with --out")
    return Check("disk", "ok", text)
