"""What blocks were read from: files that changed since, and chunks that are not stored at all.

Kept with the results of every batch, so that a run that goes on weeks later notices what happened meanwhile.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.files import fingerprint
from brainmap.image.intensity import Intensity
from brainmap.image.overview import overview_level
from brainmap.image.volume import Volume
from brainmap.infer.block.process import Job
from brainmap.infer.engine import results

__all__ = ["Stamps", "drop_stale", "note_of", "stamps_of", "unstored_share"]

log = logging.getLogger(__name__)

# Files of the image that a block reads -> bytes and time of change; None for an image by URL, which has neither.
Stamps = dict[str, tuple[int, int] | None]

# Resampling may reach so many voxels beyond a block's window.
_REACH = 2


def stamps_of(job: Job, index: int) -> Stamps | None:
    """The files that a block reads, as they are now."""
    grid, window = job.blocks.grid, job.layout.window(job.blocks.grid, job.blocks[index])
    return job.volume.stamps(*_box(grid, (window.read_k, window.read_y, window.read_x), _REACH))


def _box(grid: Any, spans: Iterable[tuple[int, int]], reach: int) -> tuple[slice, slice, slice]:
    z, y, x = (
        slice(max(0, start - reach), min(size, stop + reach))
        for (start, stop), size in zip(
            (grid.voxel_span(span, axis) for axis, span in enumerate(spans)), grid.shape, strict=True
        )
    )
    return z, y, x


def note_of(job: Job, indices: Iterable[int], stamps: dict[int, Stamps | None]) -> dict[str, Any]:
    """What to keep about blocks: marks of the files they were read from, and the chunks that were not stored."""
    indices = list(indices)
    unstored = {
        place
        for index in indices
        for place in job.volume.unstored(*_box(job.blocks.grid, _own(job, index), 0))
    }
    return _marks(job, [stamps[index] for index in indices]) | {"unstored": sorted(unstored)}


def _own(job: Job, index: int) -> tuple[tuple[int, int], ...]:
    block = job.blocks[index]
    return block.k, block.y, block.x


def _marks(job: Job, stamps: list[Stamps | None]) -> dict[str, Any]:
    files: Stamps = {}
    for found in stamps:
        if found is None:
            return {}
        files |= found
    sizes = {name: None if stamp is None else stamp[0] for name, stamp in files.items()}
    return {"at": job.volume.url, "files": fingerprint(files), "sizes": fingerprint(sizes)}


def drop_stale(job: Job) -> None:
    """Forget finished blocks whose results are damaged, or whose part of the image has changed since; say so.

    Of an image that was moved or copied only the sizes of files are compared, as a copy has times of its own; of one
    by URL nothing is.
    """
    run_dir = Path(job.run_dir)
    moved = False

    def is_stale(span: tuple[int, int], note: dict[str, Any]) -> bool:
        nonlocal moved
        if "files" not in note:
            return False
        now = _marks(job, [stamps_of(job, index) for index in range(*span)])
        if note["at"] != now.get("at"):
            moved = True
            return bool(note["sizes"] != now.get("sizes"))
        return bool(note["files"] != now["files"])

    damaged, changed = results.sift(run_dir, is_stale)
    if damaged:
        log.warning("%d files of finished blocks are damaged: their blocks are detected anew", len(damaged))
    if changed:
        blocks = sum(stop - start for start, stop in changed)
        log.warning(
            "the image has changed since where %d finished blocks were read (the first is block %d): they are "
            "detected anew; registration and overview stay",
            blocks, changed[0][0],
        )  # fmt: skip
    if moved:
        log.info(
            "the image lies elsewhere now: of the files behind finished blocks only the sizes are compared"
        )


def unstored_share(run_dir: Path, volume: Volume, intensity: Intensity, cell_diameter_um: float) -> float:
    """Share of the tissue in chunks that finished blocks found not stored: they were read as the fill value.

    Tissue is what the overview says, if that was seen on a coarser level. On level 0 itself missing chunks look like
    surroundings: there tissue is also what lies between tissue along any axis.

    Parameters
    ----------
    run_dir : Path
        The run folder.
    volume, intensity, cell_diameter_um
        What was detected in, and its overview.
    """
    places = {tuple(place) for _, note in results.notes(run_dir) for place in note.get("unstored", ())}
    if not places:
        return 0.0
    inside = intensity
    if overview_level(volume.levels, cell_diameter_um) == 0:
        inside = dataclasses.replace(intensity, tissue=_between(intensity.tissue))
    whole = float(np.prod(volume.shape)) * float(inside.tissue.mean())
    missing = 0.0
    for place in places:
        spans = [
            (max(0, i * c - o), min(n, (i + 1) * c - o))
            for i, c, o, n in zip(place, volume.chunks, volume.offset, volume.shape, strict=True)
        ]
        if all(start < stop for start, stop in spans):
            z, y, x = (slice(*span) for span in spans)
            missing += float(np.prod([b - a for a, b in spans])) * inside.tissue_fraction(z, y, x)
    return min(1.0, missing / whole) if whole else 0.0


def _between(tissue: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Tissue, and what has tissue on both sides along an axis."""
    inside = tissue.copy()
    for axis in range(3):
        before = np.maximum.accumulate(tissue, axis)
        after = np.flip(np.maximum.accumulate(np.flip(tissue, axis), axis), axis)
        inside |= before & after
    return inside
