"""The progress bar of a run: on stderr, and only where somebody can see it."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

__all__ = ["Progress"]


class Progress:
    """A bar over voxels with blocks, rate and time left; does nothing where it is not shown.

    Parameters
    ----------
    total : int
        Voxels to do.
    shown : bool, optional
        By default whether stderr is a terminal.
    """

    def __init__(self, total: int, shown: bool | None = None) -> None:
        self._total = total
        self._shown = sys.stderr.isatty() if shown is None else shown
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if self._shown:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("detecting"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %"),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
                # A block can take a minute: judge the speed by more than the last few.
                speed_estimate_period=600,
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=self._total, note="")
        return self

    def update(self, voxels: int, cells: int, failed: int, seconds: float) -> None:
        """Show the state: voxels done, cells found, blocks failed, seconds since the start."""
        if self._bar is not None:
            note = f"{voxels / max(seconds, 1e-9) / 1e6:.1f} Mvox/s, {cells:,} cells"
            note += f", {failed} blocks failed" if failed else ""
            self._bar.update(self._task, completed=voxels, note=note)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
