"""What computing one block needs and gives, wherever it is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.image.intensity import Intensity
from brainmap.image.volume import Volume
from brainmap.infer.block.net_slices import Stages
from brainmap.infer.detector import Backend, DetectorSpec
from brainmap.infer.peaks import FaceWeights, Peaks, face_at, lowest_on_face
from brainmap.infer.plan.blocks import Grid
from brainmap.infer.plan.layout import Layout, Window

__all__ = ["BlockTask", "SliceCells", "net_places"]


@dataclass(frozen=True)
class BlockTask:
    """One block at work.

    Attributes
    ----------
    volume, grid, window, spec, layout
        Image, net grid, windows of the block, the detector's record, tile and margins.
    intensity : Intensity
        Of the brain.
    backend : Backend
        The network.
    lowest_logit : float
        Weaker peaks are no detections.
    stages : Stages
        Takes times and counts.
    streams : int
        As for `Job`.
    """

    volume: Volume
    grid: Grid
    window: Window
    spec: DetectorSpec
    layout: Layout
    intensity: Intensity
    backend: Backend
    lowest_logit: float
    stages: Stages
    streams: int = 1

    @property
    def searched(self) -> range:
        """Slices whose peaks are looked for.

        The outermost of a window are only neighbours, unless the volume ends there.
        """
        first, stop = self.window.k
        groups = self.grid.net_shape[0]
        return range(first if first == 0 else first + 1, stop if stop == groups else stop - 1)

    @property
    def face(self) -> FaceWeights:
        """How peaks in the volume's first and last slice are judged."""
        return face_at(self.spec.face, self.grid.group_um, self.spec.cell_diameter_um)

    def lowest_in(self, k: int) -> float:
        """Lowest raw logit of a peak of slice `k` that can become a detection."""
        on_face = k in (0, self.grid.net_shape[0] - 1)
        return lowest_on_face(self.lowest_logit, self.face) if on_face else self.lowest_logit

    def seen_in(self, k: int) -> range:
        """Slices that the network sees for slice `k`; some may lie outside the volume."""
        return range(k - self.layout.context, k + self.layout.context + 1)


@dataclass(frozen=True)
class SliceCells:
    """Detections of one slice.

    Attributes
    ----------
    k : int
        Group of the net grid.
    peaks : dict of ndarray
        From `brainmap.infer.peaks`; rows and columns are heat cells of the window's need, logits those
        after `weigh_face`.
    intensity, diameter_um, band : ndarray of float32, shape (n,)
        As `brainmap.infer.block.measure` gives them; `intensity` and `band` in grey levels.
    """

    k: int
    peaks: Peaks
    intensity: NDArray[np.float32]
    diameter_um: NDArray[np.float32]
    band: NDArray[np.float32]


def net_places(
    peaks: dict[str, NDArray[Any]], window: Window, stride: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Refined centres of peaks, y and x in pixels of the net grid."""
    row, column = peaks["row"] + window.y[0] // stride, peaks["column"] + window.x[0] // stride
    return (row + 0.5 + peaks["dy"]) * stride - 0.5, (column + 0.5 + peaks["dx"]) * stride - 0.5
