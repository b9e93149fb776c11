"""One ANTs registration stage in a process of its own: `python -m brainmap.registration.ants_process JOB.json`.

Why a process: ITK reads its number of threads once, before its first use, and stages need different
numbers. A linear Mattes stage sums its samples in the order in which threads finish, so equal inputs give
equal outputs on one thread only; a SyN stage is repeatable on any fixed number (both measured with
antspyx 0.6.3). The process also keeps ANTs's memory and its crashes away from the caller.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brainmap.children import end_with_starter
from brainmap.errors import DataError
from brainmap.progress import Task, task

__all__ = ["Metric", "Stage", "StageImages", "run_stage"]

log = logging.getLogger(__name__)

# A level begins with the first form; each of its iterations prints the second.
_ITERATION = re.compile(r"\s*\w*DIAGNOSTIC,\s*(Iteration|\d+),")
_THREADS = "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"


@dataclass(frozen=True)
class Metric:
    """How two images are compared.

    Attributes
    ----------
    name : str
        ``Mattes`` or ``CC``.
    pair : str
        Which pair of images (`StageImages.fixed` / `moving`) it compares.
    parameter : int
        Bins (Mattes) or radius (CC).
    sampling : float
        Share of the voxels on a regular grid; 1 = all.
    weight : float
    """

    name: str
    pair: str
    parameter: int
    sampling: float = 1.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in ("Mattes", "CC"):
            raise ValueError(f"unknown metric {self.name}")


@dataclass(frozen=True)
class Stage:
    """One transform and its schedule, coarse to fine (three tuples of equal length).

    Attributes
    ----------
    transform : str
        As antsRegistration spells it, e.g. ``Affine[0.1]`` or ``SyN[0.2,3,0]``.
    metrics : tuple of Metric
    iterations, shrink, smooth_vox : tuples
        Per level: most iterations, shrink factor, smoothing sigma in voxels.
    tolerance : float
        Convergence threshold.
    """

    transform: str
    metrics: tuple[Metric, ...]
    iterations: tuple[int, ...]
    shrink: tuple[int, ...]
    smooth_vox: tuple[float, ...]
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        if not len(self.iterations) == len(self.shrink) == len(self.smooth_vox):
            raise ValueError("iterations, shrink and smooth_vox must have one value per level")

    def without_coarser(self, shrink: int) -> Stage:
        """Return the stage with shrink factors limited to `shrink`; levels that become equal are merged."""
        limited = [min(s, shrink) for s in self.shrink]
        keep = [i for i, s in enumerate(limited) if i == len(limited) - 1 or limited[i + 1] != s]
        return replace(
            self,
            iterations=tuple(
                max(n for n, s in zip(self.iterations, limited, strict=True) if s == limited[i]) for i in keep
            ),
            shrink=tuple(limited[i] for i in keep),
            smooth_vox=tuple(min(self.smooth_vox[i], limited[i] / 2) for i in keep),
        )


@dataclass(frozen=True)
class StageImages:
    """Images of a stage, in asr; by name of the pair, float32 (z, y, x).

    Attributes
    ----------
    fixed, moving : dict of arrays
    fixed_origin_mm, fixed_spacing_mm, moving_origin_mm, moving_spacing_mm : tuple of float
    fixed_mask, moving_mask : bool arrays, optional
        Where the metric looks.
    """

    fixed: Mapping[str, NDArray[np.float32]]
    moving: Mapping[str, NDArray[np.float32]]
    fixed_origin_mm: tuple[float, float, float]
    fixed_spacing_mm: tuple[float, float, float]
    moving_origin_mm: tuple[float, float, float]
    moving_spacing_mm: tuple[float, float, float]
    fixed_mask: NDArray[np.bool_] | None = None
    moving_mask: NDArray[np.bool_] | None = None


def run_stage(
    stages: tuple[Stage, ...],
    images: StageImages,
    initial: str | None,
    prefix: Path,
    threads: int,
    seed: int,
    what: str = "registering",
) -> list[Path]:
    """Run antsRegistration on a list of stages and return the files it wrote.

    Parameters
    ----------
    stages : tuple of Stage
    images : StageImages
    initial : str or None
        File of the transform to start from; None aligns the centres of mass.
    prefix : Path
        Where the transforms go: ``<prefix>0GenericAffine.mat``, ``<prefix>1Warp.nii.gz``, ...
    threads, seed : int
    what : str
        Name under which its progress is reported.

    Raises
    ------
    DataError
        If ANTs fails; the message carries its last words.
    """
    work = prefix.with_name(prefix.name + "work")
    work.mkdir()
    arrays = {f"fixed_{k}": v for k, v in images.fixed.items()} | {
        f"moving_{k}": v for k, v in images.moving.items()
    }
    for side in ("fixed", "moving"):
        mask = getattr(images, f"{side}_mask")
        if mask is not None:
            arrays[f"{side}_mask"] = mask.astype(np.float32)
    for name, array in arrays.items():
        np.save(work / f"{name}.npy", np.ascontiguousarray(array, dtype=np.float32))
    job = {
        "stages": [asdict(stage) for stage in stages],
        "arrays": {name: str(work / f"{name}.npy") for name in arrays},
        "geometry": {
            "fixed": [images.fixed_origin_mm, images.fixed_spacing_mm],
            "moving": [images.moving_origin_mm, images.moving_spacing_mm],
        },
        "initial": initial,
        "prefix": str(prefix),
        "seed": seed,
        "starter": os.getpid(),
    }
    (work / "job.json").write_text(json.dumps(job))
    package_parent = str(Path(__file__).resolve().parents[2])  # also when brainmap runs from a checkout
    search = os.pathsep.join([package_parent, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {_THREADS: str(threads), "OMP_NUM_THREADS": "1", "PYTHONPATH": search}
    command = [sys.executable, "-m", "brainmap.registration.ants_process", str(work / "job.json")]
    said: deque[str] = deque(maxlen=50)
    with task(what, _Iterations.work_of(stages)) as work_done:
        status = _run(command, environment, _Iterations(stages, work_done), said)
    for path in work.iterdir():
        path.unlink()
    work.rmdir()
    if status != 0:
        words = [line.strip() for line in said if line.strip()]
        ended = f"exit status {status}"
        if status < 0:
            ended = f"stopped by signal {-status}, most often because memory ran out"
        raise DataError(f"the registration failed in ANTs ({ended}): {' / '.join(words[-3:]) or 'no output'}")
    return sorted(path for path in prefix.parent.iterdir() if path.name.startswith(prefix.name))


def _run(command: list[str], environment: dict[str, str], iterations: _Iterations, said: deque[str]) -> int:
    """Run a process and follow what it says to its end; returns its exit status.

    The thread that starts it stays until it has ended: on Linux the process ends with that thread.
    """
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if not iterations.read(line):
                    said.append(line)
        except BaseException:
            process.kill()
            raise
    return process.returncode


class _Iterations:
    """Tells from what antsRegistration prints how far it is: the work of a level is its iterations times voxels."""

    def __init__(self, stages: tuple[Stage, ...], work: Task) -> None:
        self.levels = [
            (n, _voxels(stage, level)) for stage in stages for level, n in enumerate(stage.iterations)
        ]
        self.work, self.level = work, -1

    @staticmethod
    def work_of(stages: tuple[Stage, ...]) -> float:
        """The work of all levels, if none converges early."""
        return sum(n * _voxels(stage, level) for stage in stages for level, n in enumerate(stage.iterations))

    def read(self, line: str) -> bool:
        """Take a line; returns whether it was about iterations."""
        found = _ITERATION.match(line)
        if found is None:
            return False
        if found[1] == "Iteration":
            self.level += 1
        before = sum(n * voxels for n, voxels in self.levels[: max(self.level, 0)])
        if found[1] != "Iteration" and 0 <= self.level < len(self.levels):
            most, voxels = self.levels[self.level]
            before += min(int(found[1]), most) * voxels
        self.work.update(before)
        return True


def _voxels(stage: Stage, level: int) -> float:
    """Voxels looked at in an iteration, as a share of the image's."""
    return max(metric.sampling for metric in stage.metrics) / stage.shrink[level] ** 3


def _main(job_file: str) -> None:
    job = json.loads(Path(job_file).read_text())
    end_with_starter(job["starter"])
    import ants
    from ants.internal import get_pointer_string

    pointers, alive = {}, []
    for name, path in job["arrays"].items():
        origin, spacing = job["geometry"][name.split("_")[0]]
        image = ants.from_numpy(np.load(path), origin=tuple(origin), spacing=tuple(spacing))
        if name.endswith("_mask"):
            image = image != 0  # as antspyx hands masks over
        alive.append(image)  # ANTs holds bare pointers: the images must outlive the call
        pointers[name] = get_pointer_string(image)
    ants.registration(fixed=_arguments(job, pointers), moving=None)
    del alive


def _arguments(job: dict, pointers: dict[str, str]) -> list[str]:
    """Return the antsRegistration command line; everything that matters is spelled out."""
    first = job["stages"][0]["metrics"][0]["pair"]
    start = job["initial"] or f"[{pointers[f'fixed_{first}']},{pointers[f'moving_{first}']},1]"
    arguments = ["--verbose", "1", "--dimensionality", "3", "--float", "1", "--random-seed", str(job["seed"])]
    arguments += ["--output", job["prefix"], "--collapse-output-transforms", "1"]
    arguments += ["--use-histogram-matching", "0", "--initial-moving-transform", start]
    masks = ",".join(pointers.get(f"{side}_mask", "NA") for side in ("fixed", "moving"))
    for stage in job["stages"]:
        arguments += ["--transform", stage["transform"]]
        for metric in stage["metrics"]:
            pair = f"{pointers['fixed_' + metric['pair']]},{pointers['moving_' + metric['pair']]}"
            sampling = f",Regular,{metric['sampling']}" if metric["sampling"] < 1 else ""
            arguments += [
                "--metric",
                f"{metric['name']}[{pair},{metric['weight']},{metric['parameter']}{sampling}]",
            ]
        arguments += ["--convergence", f"[{_by_x(stage['iterations'])},{stage['tolerance']},10]"]
        arguments += ["--shrink-factors", _by_x(stage["shrink"])]
        arguments += ["--smoothing-sigmas", f"{_by_x(stage['smooth_vox'])}vox"]
        if masks != "NA,NA":
            arguments += ["--masks", f"[{masks}]"]
    return arguments


def _by_x(values: list[float]) -> str:
    return "x".join(f"{value:g}" for value in values)


if __name__ == "__main__":
    _main(sys.argv[1])
