"""What a synthetic cell looks like: the founding study's white polygon, or soft as real cells are.

Sources: polygon outlines, methods 5; soft cells are brainmap's (methods 10 ii). A tile is composed as
C M + B (1 - M) with opacity M, cell image C and background B. Positions are x, y in pixels, 0 = centre of
the first pixel; intensities are normalised, 0..1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from brainmap.errors import DataError, UsageError
from brainmap.train.synthesis.placement import truncated_normal

__all__ = ["LEAST_CELLS", "CellImages", "CellLook", "draw_cells", "measure_cells"]

Floats = NDArray[np.float64]

LOOKS = ("study", "soft")
# Fewer cells do not say what cells look like.
LEAST_CELLS = 10
# Beyond so many edge widths a soft cell adds less than one grey level.
_EDGE_REACH = 5.0


@dataclass(frozen=True)
class CellLook:
    """How cells are drawn. The study gives no values; those of soft cells are measured on c-Fos sections.

    Soft cells are the default because tiles come closer to real ones in grey levels and spectrum
    (benchmarks/synthetic_tiles.py, rows "noise" and "white").

    Parameters
    ----------
    look : str
        `study`: C and M are 1 inside the outline. `soft`: M falls off at the edge, every cell has its own
        opacity, and C is white, so that the background's grain shows through.
    vertices : tuple of int
        Least and greatest number of vertices of the outline.
    irregularity : float
        A vertex lies at radius x (1 + delta), delta uniform within +- this.
    opacity : tuple of float
        Mean, standard deviation, least and greatest opacity of soft cells, truncated normal.
    edge : tuple of float
        Mean, standard deviation, least and greatest width of a soft edge as a share of the radius: opacity
        at distance d from the middle is 1 / (1 + exp((d / radius - 1) / edge)) of the whole.
    """

    look: str = "soft"
    vertices: tuple[int, int] = (8, 16)
    irregularity: float = 0.15
    opacity: tuple[float, float, float, float] = (0.28, 0.20, 0.08, 0.66)
    edge: tuple[float, float, float, float] = (0.20, 0.21, 0.07, 0.68)

    def __post_init__(self) -> None:
        if self.look not in LOOKS:
            raise UsageError(f"the look of cells is {self.look!r}; give one of {', '.join(LOOKS)}")
        if not 3 <= self.vertices[0] <= self.vertices[1]:
            raise UsageError("vertices needs a range of at least 3, least first")
        if not 0 <= self.irregularity < 1:
            raise UsageError(f"irregularity is {self.irregularity:g}; give a number from 0 to below 1")
        for name in ("opacity", "edge"):
            _mean, deviation, low, high = getattr(self, name)
            if not (deviation > 0 and 0 < low < high <= 1):
                raise UsageError(f"{name} needs mean, standard deviation, least and greatest within 0..1")

    def fitted(self, measured: Floats) -> CellLook:
        """Soft cells with the opacities and edges of real ones, rows of `measure_cells`.

        Raises
        ------
        DataError
            Fewer than ten cells.
        """
        if len(measured) < LEAST_CELLS:
            raise DataError(
                f"the look of cells cannot be learnt from {len(measured)} cells; give at least {LEAST_CELLS}"
            )
        opacity, edge = (_spread(measured[:, column], 0.01) for column in (1, 2))
        return replace(self, look="soft", opacity=opacity, edge=edge)


@dataclass(frozen=True)
class CellImages:
    """The cells of one tile as images, each (height, width).

    `opacity` M and `cells` C are float32 in 0..1; `inside` is bool, True within an outline.
    """

    opacity: NDArray[np.float32]
    cells: NDArray[np.float32]
    inside: NDArray[np.bool_]

    def compose(self, background: NDArray[np.float32]) -> NDArray[np.float32]:
        """I = C M + B (1 - M)."""
        return self.cells * self.opacity + background * (1 - self.opacity)


def draw_cells(
    centres: Floats, radii: Floats, shape: tuple[int, int], look: CellLook, rng: np.random.Generator
) -> CellImages:
    """Draw the cells of one tile.

    Parameters
    ----------
    centres, radii : ndarray, (n, 2) and (n,)
        x, y and radius, px.
    shape : (height, width)
    look : CellLook
    rng : Generator
        Outlines, opacities and edges.
    """
    opacity = np.zeros(shape, np.float32)
    inside = np.zeros(shape, bool)
    soft = look.look == "soft"
    peaks = truncated_normal(look.opacity, len(radii), rng) if soft else np.ones(len(radii))
    edges = truncated_normal(look.edge, len(radii), rng) if soft else np.zeros(len(radii))
    for centre, radius, peak, edge in zip(centres, radii, peaks, edges, strict=True):
        count = int(rng.integers(look.vertices[0], look.vertices[1] + 1))
        outline = radius * (1 + rng.uniform(-look.irregularity, look.irregularity, count))
        phase = rng.uniform(0, 2 * np.pi)
        window, share = _share_of_radius(centre, outline, phase, 1 + _EDGE_REACH * edge, shape)
        disc = peak / (1 + np.exp((share - 1) / edge)) if soft else share <= 1
        np.maximum(opacity[window], disc, out=opacity[window], casting="unsafe")
        inside[window] |= share <= 1
    cells = np.ones(shape, np.float32) if soft else opacity.copy()
    return CellImages(opacity, cells, inside)


def _share_of_radius(
    centre: Floats, outline: Floats, phase: float, reach: float, shape: tuple[int, int]
) -> tuple[tuple[slice, slice], Floats]:
    """Distance from the centre as a share of the polygon's radius in that direction, on a window."""
    far = outline.max() * reach
    rows, columns = (slice(max(0, int(np.floor(c - far))), max(0, min(n, int(np.ceil(c + far)) + 1)))
                     for c, n in zip(centre[::-1], shape, strict=True))  # fmt: skip
    y = np.arange(rows.start, rows.stop)[:, None] - centre[1]
    x = np.arange(columns.start, columns.stop)[None] - centre[0]
    step = 2 * np.pi / len(outline)
    turn = ((np.arctan2(y, x) - phase) / step) % len(outline)
    first = np.minimum(turn.astype(int), len(outline) - 1)
    angle = (turn - first) * step
    a, b = outline[first], outline[(first + 1) % len(outline)]
    # The straight edge between two vertices, in polar coordinates.
    radius = a * b * np.sin(step) / (a * np.sin(angle) + b * np.sin(step - angle))
    return (rows, columns), np.hypot(x, y) / radius


def measure_cells(
    images: Iterable[NDArray[np.float32]], points: Iterable[Floats], radius_px: float
) -> Floats:
    """Radius, opacity and edge of annotated cells, from their mean profile around the centre.

    Parameters
    ----------
    images : iterable of ndarray, (height, width) in 0..1
    points : iterable of ndarray, (n, 2)
        Cells of each image, x and y.
    radius_px : float
        Typical radius; cells of a third to twice that are measured.

    Returns
    -------
    ndarray, (m, 3)
        Radius (where half of the peak is left; px), opacity over a white cell image, edge as a share of the
        radius. Cells at the border, without a peak or merged with others are left out: m <= n.
    """
    rows = [
        _measure(image, xy, radius_px)
        for image, many in zip(images, points, strict=True)
        for xy in many
    ]  # fmt: skip
    return np.array([row for row in rows if row is not None]).reshape(-1, 3)


def _measure(image: NDArray[np.float32], xy: Floats, radius_px: float) -> tuple[float, float, float] | None:
    reach = int(np.ceil(3 * radius_px))
    x, y = np.floor(xy + 0.5).astype(int)
    if not (reach <= x < image.shape[1] - reach and reach <= y < image.shape[0] - reach):
        return None
    window = image[y - reach : y + reach + 1, x - reach : x + reach + 1]
    # People click beside the middle: the profile is taken around the cell's own centre of mass.
    smooth = ndimage.gaussian_filter(window, radius_px / 3)
    grid = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float64)
    ground = float(np.median(window[np.hypot(*grid) > 2 * radius_px]))
    weight = np.clip(smooth - ground, 0, None) ** 2 * (np.hypot(*grid) <= 1.2 * radius_px)
    if weight.sum() == 0:
        return None
    middle = (grid * weight).sum(axis=(1, 2)) / weight.sum()
    distance = np.hypot(grid[0] - middle[0], grid[1] - middle[1])
    ring = distance.astype(int)
    profile = np.bincount(ring.ravel(), window.ravel()) / np.maximum(np.bincount(ring.ravel()), 1)
    level = np.minimum.accumulate(profile[: reach + 1] - ground)
    if not 0.02 < level[0] < 1 - ground:
        return None
    crossings = [_crossing(level / level[0], share) for share in (0.75, 0.5, 0.25)]
    if None in crossings:
        return None
    high, half, low = (float(c) for c in crossings if c is not None)
    if not radius_px / 3 <= half <= 2 * radius_px:
        return None
    # A logistic edge falls from 3/4 to 1/4 within 2 ln 3 widths.
    edge = max((low - high) / (2 * np.log(3)) / half, 0.02)
    return half, float(level[0] / (1 - ground)), min(edge, 1.0)


def _crossing(level: Floats, share: float) -> float | None:
    """Distance at which a falling profile of one-pixel rings passes a level."""
    below = np.flatnonzero(level < share)
    if len(below) == 0 or below[0] == 0:
        return None
    k = int(below[0])
    # Ring k holds distances from k to k + 1.
    return k - 0.5 + (level[k - 1] - share) / (level[k - 1] - level[k])


def _spread(values: Floats, least: float) -> tuple[float, float, float, float]:
    """Middle, deviation, least and greatest of measured values, unmoved by a few cells measured badly."""
    low, lower, middle, upper, high = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
    low = max(float(low), least)
    deviation = max(float(upper - lower) / 1.35, 1e-3)
    return float(middle), deviation, low, float(np.clip(high, low + 1e-3, 1))
