"""How far a detection is: voxels of finished blocks, and what is done of those at work."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from types import TracebackType

from brainmap import progress

__all__ = ["Progress"]


class Progress:
    """Reports voxels, cells, rate and time left; within blocks too, as their slices are done.

    Parameters
    ----------
    total : int
        Voxels to do.
    shown : bool, optional
        False reports nothing; True shows a bar whether or not somebody has put up a display.
    """

    def __init__(self, total: int, shown: bool | None = None) -> None:
        self._total, self._shown = total, shown
        self._task: progress.Task | None = None
        self._open = ExitStack()
        self._finished = 0
        self._partly: dict[int, float] = {}

    def __enter__(self) -> Progress:
        if self._shown is False:
            return self
        if self._shown:
            display = progress.TerminalDisplay() if sys.stderr.isatty() else None
            self._open.enter_context(progress.shown(display))
        self._task = self._open.enter_context(progress.task("detecting", self._total))
        return self

    def update(self, voxels: int, cells: int, failed: int, seconds: float) -> None:
        """Show the state: voxels done, cells found, blocks failed, seconds since the start."""
        self._finished = voxels
        if self._task is None:
            return
        note = f"{voxels / max(seconds, 1e-9) / 1e6:.1f} Mvox/s, {cells:,} cells"
        note += f", {failed} blocks failed" if failed else ""
        self._task.update(self._done(), note)

    def within(self, batch: int, voxels: float) -> None:
        """Take what is done of a batch at work; 0 with its end, when `update` counts it."""
        if voxels:
            self._partly[batch] = voxels
        else:
            self._partly.pop(batch, None)
        if self._task is not None:
            self._task.update(self._done())

    def _done(self) -> float:
        # Reports of batches come late and are estimates: never more than there is, never back.
        done = min(float(self._total), self._finished + sum(list(self._partly.values())))
        return done if self._task is None else max(done, self._task.done)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()
