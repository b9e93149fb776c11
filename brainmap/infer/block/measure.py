"""What is measured at a cell: grey level, diameter and prominence, for all cells of a slice at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from brainmap.image.intensity import BAND_CELLS

__all__ = ["band_weights", "mean_around", "profile_diameters", "ring_places", "shapes"]

_ANGLES = 12
# Radii are sampled this finely, in cell diameters, out to this far.
_STEP, _REACH = 0.08, 1.4
# The brightest ring is looked for within this radius: stained nuclei can be dark inside.
_CORE = 0.35


def mean_around(
    image: NDArray[np.float32], row: NDArray[np.floating], column: NDArray[np.floating]
) -> NDArray[np.float32]:
    """Mean of the 3 x 3 pixels around each place.

    Parameters
    ----------
    image : ndarray of float32, shape (rows, columns)
        A slice of the net grid.
    row, column : ndarray of float, shape (n,)
        Places; 0 is the centre of the first pixel. Pixels beyond the image, or without a finite value, are left out.
    """
    r = np.rint(row).astype(np.int64)[:, None] + np.repeat([-1, 0, 1], 3)
    c = np.rint(column).astype(np.int64)[:, None] + np.tile([-1, 0, 1], 3)
    inside = (r >= 0) & (r < image.shape[0]) & (c >= 0) & (c < image.shape[1])
    values = image[np.clip(r, 0, image.shape[0] - 1), np.clip(c, 0, image.shape[1] - 1)]
    inside &= np.isfinite(values)
    total = np.where(inside, values, 0).sum(axis=1, dtype=np.float64)
    return (total / np.maximum(inside.sum(axis=1), 1)).astype(np.float32)


def shapes(
    image: NDArray[np.float32],
    row: NDArray[np.floating],
    column: NDArray[np.floating],
    pixel_um: float,
    cell_diameter_um: float,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """In-plane full width at half maximum of each cell, um, and how far it stands out at a cell's scale.

    The profile over the radius is the median over directions, which a neighbour on one side does not
    move; half is halfway between its maximum near the centre and its minimum outside.

    Parameters
    ----------
    image : ndarray of float32, shape (rows, columns)
        A slice of the net grid.
    row, column : ndarray of float, shape (n,)
        Cell centres; 0 is the centre of the first pixel.
    pixel_um : float
        Pixel of the image.
    cell_diameter_um : float
        Expected diameter: sets how far the profile reaches.

    Returns
    -------
    diameter : ndarray of float32, shape (n,)
        NaN where there is no profile to measure: a flat one, or one that rises outwards.
    band : ndarray of float32, shape (n,)
        Difference of Gaussians at the centre, in the image's unit; see `band_weights`.
    """
    if len(row) == 0:
        return np.zeros(0, np.float32), np.zeros(0, np.float32)
    dy, dx = ring_places(pixel_um, cell_diameter_um)
    where = np.stack(
        [np.asarray(row)[:, None, None] + dy, np.asarray(column)[:, None, None] + dx]
    )  # (2, n, radii, angles)
    values = ndimage.map_coordinates(image, where, order=1, mode="nearest")
    band = values.mean(axis=2) @ band_weights()
    return profile_diameters(np.median(values, axis=2), cell_diameter_um), band


def band_weights() -> NDArray[np.float32]:
    """Weights of the rings' means that make a difference of Gaussians at their centre; they add up to nothing.

    Its widths are `brainmap.image.intensity.BAND_CELLS`; the wide one is cut at 2.3 standard deviations.
    """
    radius = _radii(1.0)
    # A ring's area; the innermost is a disc of half a step.
    area = np.where(radius > 0, 2 * radius, _STEP / 4)
    narrow, wide = (area * np.exp(-((radius / width) ** 2) / 2) for width in BAND_CELLS)
    return (narrow / narrow.sum() - wide / wide.sum()).astype(np.float32)


def _radii(cell_diameter_um: float) -> NDArray[np.floating]:
    return np.arange(0, _REACH + _STEP / 2, _STEP) * cell_diameter_um


def ring_places(
    pixel_um: float, cell_diameter_um: float
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Where a cell's profile is sampled: y and x relative to its centre, pixels, each (radii, angles)."""
    radius = _radii(cell_diameter_um)[:, None] / pixel_um
    angle = np.arange(_ANGLES, dtype=np.float64) * (2 * np.pi / _ANGLES)
    return radius * np.sin(angle), radius * np.cos(angle)


def profile_diameters(profile: NDArray[np.floating], cell_diameter_um: float) -> NDArray[np.float32]:
    """Diameters from profiles over the radius; see `shapes`.

    Parameters
    ----------
    profile : ndarray of float, shape (n, radii)
        Median over the angles at the places of `ring_places`.
    cell_diameter_um : float
        As for `ring_places`.
    """
    radius = _radii(cell_diameter_um)
    core = radius <= _CORE * cell_diameter_um
    top = profile[:, core].argmax(axis=1)
    cells = np.arange(len(profile))
    high = profile[cells, top]
    # The lowest ring from the brightest outwards; further out may lie a neighbour.
    outside = np.where(np.arange(len(radius)) >= top[:, None], profile, np.inf)
    half = (high + outside.min(axis=1)) / 2
    below = (outside <= half[:, None]) & (np.arange(len(radius)) > top[:, None])
    first = below.argmax(axis=1)
    found = below.any(axis=1) & (high > half)
    before = np.maximum(first - 1, 0)
    # Values that are not finite give no profile, and NaN.
    with np.errstate(invalid="ignore"):
        drop = profile[cells, before] - profile[cells, first]
        share = (profile[cells, before] - half) / np.where(drop > 0, drop, 1)
    crossing = radius[before] + np.clip(share, 0, 1) * (radius[1] - radius[0])
    return np.where(found, 2 * crossing, np.nan).astype(np.float32)
