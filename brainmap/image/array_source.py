"""An image in memory, read as a volume is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

__all__ = ["ArraySource"]


@dataclass(frozen=True)
class _ArrayLevel:
    shape: tuple[int, int, int]
    chunks: tuple[int, int, int]
    voxel_um: tuple[float, float, float]


@dataclass(frozen=True)
class ArraySource:
    """An array in memory, in the shape `Intensity.fit` reads volumes in."""

    data: NDArray[Any]
    voxel_um: tuple[float, float, float]

    @property
    def levels(self) -> tuple[_ArrayLevel, ...]:
        shape: tuple[int, int, int] = self.data.shape  # type: ignore[assignment]
        return (_ArrayLevel(shape, shape, self.voxel_um),)

    def read(self, z: slice, y: slice, x: slice, level: int = 0) -> NDArray[Any]:
        return self.data[z, y, x]
