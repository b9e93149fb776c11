"""Sub-tiles: the overlapping windows of a tile that are shown one after another (methods 2)."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["OVERLAP_PX", "SIDE_PX", "Window", "subtiles", "window_of"]

SIDE_PX = 80
OVERLAP_PX = 10


class Window(NamedTuple):
    """Pixels x .. x + width - 1, y .. y + height - 1 of a tile."""

    x: int
    y: int
    width: int
    height: int


def subtiles(height: int, width: int) -> list[Window]:
    """The windows of a tile, row by row; together they cover it, the last of a row ends at its edge."""
    return [
        Window(x, y, min(SIDE_PX, width), min(SIDE_PX, height))
        for y in _starts(height)
        for x in _starts(width)
    ]


def window_of(x: float, y: float, windows: list[Window]) -> int:
    """Index of the window in whose middle a point lies best."""
    away = [max(abs(x - w.x - w.width / 2), abs(y - w.y - w.height / 2)) for w in windows]
    return away.index(min(away))


def _starts(length: int) -> list[int]:
    last = max(0, length - SIDE_PX)
    step = SIDE_PX - OVERLAP_PX
    return sorted({min(start, last) for start in range(0, last + step, step)})
