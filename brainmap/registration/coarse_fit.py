"""Laying one brain image onto another roughly and quickly, from any turn: a few seconds for all 24.

Gauss-Newton on the correlation of images of each brain (Evangelidis & Psarakis 2008, the "enhanced
correlation coefficient"): first shift, rotation and one scale, then all of an affine. Registration proper
is `brainmap.registration.alignment`; this only tells how the axes of a brain lie.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from brainmap.errors import DataError
from brainmap.registration.prepare import Prepared, block_mean

__all__ = ["CoarseImage", "Placement", "fit", "likeness", "nearest_turn", "place"]

Floats = NDArray[np.float64]

#: Sizes of the sample that are tried before the fit, against its size in um: brains shrink and swell.
_SIZES = (0.85, 1.0, 1.18)
_SIZE_LIMITS = (0.6, 1.6)
#: A step of the fit goes no further than this: change of the matrix, shift in voxels.
_LARGEST_STEP = (0.15, 2.5)
_CONVERGED = (0.004, 0.03)
#: Voxels around the tissue that are compared too: there the outline shows.
_RIM_VOXELS = 2
#: Room made on all sides, voxels of the prepared image: an image may end at the very surface of the brain.
_ROOM = 6
#: Channels that are fitted, by polarity: what shows the surface bright cannot be turned over.
_USED = {1: (0, 1, 2), -1: (0, 3)}
#: Sigma of the surroundings that inner contrast is measured against, voxels of the prepared image.
_LOCAL_VOXELS = 2.5
_FEWEST_VOXELS = 64


@dataclass(frozen=True)
class CoarseImage:
    """A brain on a coarse cubic grid.

    Attributes
    ----------
    channels : float32 array (4, z, y, x)
        Tissue (0 or 1, smoothed), brightness, local contrast and inner contrast (-1 to 1); 0 outside the tissue.
        Local contrast shows the surface bright whatever the stain, inner contrast shows nothing of the surface.
    tissue : bool array (z, y, x)
    voxel_um : float
    """

    channels: NDArray[np.float32]
    tissue: NDArray[np.bool_]
    voxel_um: float

    @classmethod
    def of(cls, prepared: Prepared, voxel_um: float, factor: int) -> CoarseImage:
        """Merge `factor` voxels along each axis of a prepared image of cubic voxels.

        Raises
        ------
        DataError
            If hardly any tissue is left.
        """
        tissue, *inside = (
            block_mean(np.pad(image, _ROOM), factor)
            for image in (
                prepared.mask.astype(np.float32),
                prepared.global_,
                (prepared.local - 0.5) * 2 * prepared.mask,
                _inner_contrast(prepared),
            )
        )
        if np.count_nonzero(tissue > 0.5) < _FEWEST_VOXELS:
            raise DataError("the image shows too little tissue to tell how the brain lies in it")
        smooth = [ndimage.gaussian_filter(tissue, 0.7)]
        smooth += [ndimage.gaussian_filter(image, 0.5) for image in inside]
        return cls(np.stack(smooth), tissue > 0.5, voxel_um * factor)

    @cached_property
    def centre_um(self) -> Floats:
        """Centre of the tissue, um from the outer corner."""
        return (np.array(ndimage.center_of_mass(self.tissue)) + 0.5) * self.voxel_um

    @cached_property
    def compared(self) -> NDArray[np.intp]:
        """Voxels of the tissue and a rim around it, (n, 3)."""
        return np.argwhere(ndimage.binary_dilation(self.tissue, iterations=_RIM_VOXELS))

    @cached_property
    def compared_um(self) -> Floats:
        """`compared` in um from the centre of the tissue."""
        return (self.compared + 0.5) * self.voxel_um - self.centre_um

    @cached_property
    def compared_values(self) -> NDArray[np.float32]:
        """Channels at `compared`, (n, 4)."""
        return self.channels[:, *self.compared.T].T

    @cached_property
    def _table(self) -> NDArray[np.float32]:
        """Values and gradients (per um) of all channels, (z, y, x, 4 x 4), in a border of zeros."""
        slopes = [np.stack([c, *(g / self.voxel_um for g in np.gradient(c))], axis=-1) for c in self.channels]
        return np.pad(np.concatenate(slopes, axis=-1), [(1, 1)] * 3 + [(0, 0)]).astype(np.float32)

    def at(self, points_um: Floats) -> NDArray[np.float32]:
        """Values and gradients of the channels at points (linear interpolation), (n, 4, 4); 0 outside."""
        table = self._table
        index = np.clip(points_um / self.voxel_um + 0.5, 0, np.array(table.shape[:3]) - 1.001)
        low = index.astype(np.intp)
        share = (index - low).astype(np.float32)
        steps = np.array([table.shape[1] * table.shape[2], table.shape[2], 1])
        flat, first = table.reshape(-1, table.shape[3]), low @ steps
        total = np.zeros((len(low), table.shape[3]), np.float32)
        for corner in np.ndindex(2, 2, 2):
            weight = np.prod(np.where(corner, share, 1 - share), axis=1)
            total += weight[:, None] * flat[first + int(np.dot(corner, steps))]
        return total.reshape(len(low), 4, 4)


def _inner_contrast(prepared: Prepared) -> NDArray[np.float32]:
    """Brightness against that of the tissue around, in units of its spread, -1 to 1."""
    weight = prepared.mask.astype(np.float32)
    share = np.maximum(ndimage.gaussian_filter(weight, _LOCAL_VOXELS), 1e-3)
    excess = prepared.global_ - ndimage.gaussian_filter(prepared.global_ * weight, _LOCAL_VOXELS) / share
    spread = np.sqrt(ndimage.gaussian_filter(excess**2 * weight, _LOCAL_VOXELS) / share)
    floor = 0.3 * float(np.median(spread[prepared.mask])) + 1e-6
    contrast: NDArray[np.float32] = np.clip(excess / (spread + floor) / 2.5, -1.0, 1.0) * weight
    return contrast


@dataclass(frozen=True)
class Placement:
    """Where a sample lies: ``matrix @ (sample um - its centre) + shift_um`` from the template's centre.

    `polarity` is -1 where the stain is taken to be bright in what is dark in the template.
    """

    matrix: Floats
    shift_um: Floats
    polarity: int = 1

    def refined(
        self, coarse: tuple[CoarseImage, CoarseImage], fine: tuple[CoarseImage, CoarseImage]
    ) -> Placement:
        """Return the same placement for finer images (sample, template), whose centres lie a little elsewhere."""
        moved, expected = (
            after.centre_um - before.centre_um for before, after in zip(coarse, fine, strict=True)
        )
        return replace(self, shift_um=self.shift_um + self.matrix @ moved - expected)


def place(sample: CoarseImage, template: CoarseImage, turns: Iterable[Floats]) -> list[Placement]:
    """Return the best shift and size for each turn (signed permutation of axes), by correlation in Fourier space.

    Centres of mass would do for a whole brain; this also finds the place of a part. The two images must
    have voxels of one size.
    """
    longest = max(template.tissue.shape) + int(max(sample.tissue.shape) * max(_SIZES)) + 2
    shape = [fft.next_fast_len(longest, real=True)] * 3
    spectra = [np.conj(fft.rfftn(c / np.linalg.norm(c), shape)) for c in template.channels[:3]]
    sized = [(size, [_resized(c, size) for c in sample.channels[:3]]) for size in _SIZES]
    return [max((_shifted(s, c, turn, sample, template, spectra, shape) for s, c in sized), key=lambda p: p[0])[1]
            for turn in turns]  # fmt: skip


def _resized(channel: NDArray[np.float32], size: float) -> NDArray[np.float32]:
    resized = ndimage.zoom(channel, size, order=1, mode="nearest", grid_mode=True)
    return resized / np.linalg.norm(resized)


def _shifted(
    size: float,
    channels: list[NDArray[np.float32]],
    turn: Floats,
    sample: CoarseImage,
    template: CoarseImage,
    spectra: list[NDArray[np.complex64]],
    shape: list[int],
) -> tuple[float, Placement]:
    """Correlation at the best shift of a sample of one size and turn, and that placement."""
    order = np.abs(turn).argmax(axis=1)
    flips = tuple(slice(None, None, -1 if turn[i, order[i]] < 0 else 1) for i in range(3))
    turned = [c.transpose(order)[flips] for c in channels]
    product = sum(fft.rfftn(c, shape) * s for c, s in zip(turned, spectra, strict=True))
    correlation = fft.irfftn(product, shape)
    best = np.array(np.unravel_index(correlation.argmax(), correlation.shape))
    offset = np.where(best > np.array(shape) // 2, best - np.array(shape), best)
    # The centre of the turned, resized array, then the centre of the tissue in it.
    middle = np.array(turned[0].shape) / 2 * template.voxel_um
    extent = np.array(sample.tissue.shape) * sample.voxel_um
    centre = middle + size * turn @ (sample.centre_um - extent / 2)
    shift = centre - offset * template.voxel_um - template.centre_um
    return float(correlation.max()), Placement(turn * size, shift)


def fit(
    sample: CoarseImage, template: CoarseImage, start: Placement, steps: int, *, affine: bool
) -> Placement:
    """Improve a placement.

    Parameters
    ----------
    sample, template : CoarseImage
    start : Placement
    steps : int
        At most.
    affine : bool
        Free the whole matrix, not only rotation and size.
    """
    wanted = _normalised(sample.compared_values)[0] * np.array([1, 1, 1, start.polarity], np.float32)
    used = _USED[start.polarity]
    arm = 0.5 * float(np.abs(sample.compared_um).max())
    basis = np.eye(12) if affine else _SIMILARITY
    matrix, shift = start.matrix, start.shift_um
    for _ in range(steps):
        turned = sample.compared_um @ matrix.T
        found = template.at(turned + template.centre_um + shift)
        lever = np.concatenate([turned / arm, np.ones((len(turned), 1))], axis=1).astype(np.float32)
        normal, right = np.zeros((12, 12)), np.zeros(12)
        values, norms = _normalised(found[:, :, 0])
        for c in used:
            slope = (found[:, c, 1:, None] * lever[:, None, :]).reshape(len(turned), 12) / norms[c]
            slope -= slope.mean(axis=0)
            normal += slope.T @ slope
            right += slope.T @ (wanted[:, c] - values[:, c])
        reduced = basis.T @ normal @ basis
        damping = 1e-3 * np.trace(reduced) / len(reduced) + 1e-12
        change = (basis @ np.linalg.solve(reduced + damping * np.eye(len(reduced)), basis.T @ right)).reshape(
            3, 4
        )
        turn, move = change[:, :3] / arm, change[:, 3]
        sizes = np.abs(turn).max(), np.abs(move).max() / template.voxel_um
        too_far = max(1.0, sizes[0] / _LARGEST_STEP[0], sizes[1] / _LARGEST_STEP[1])
        matrix, shift = (np.eye(3) + turn / too_far) @ matrix, shift + move / too_far
        if not affine:
            matrix = _similar(matrix)
        if sizes[0] < _CONVERGED[0] and sizes[1] < _CONVERGED[1]:
            break
    return Placement(matrix, shift, start.polarity)


def _normalised(values: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Columns with mean 0 and length 1, and the lengths they had."""
    centred = values - values.mean(axis=0)
    lengths = np.linalg.norm(centred, axis=0) + 1e-6
    return centred / lengths, lengths


def _generators() -> Floats:
    """Rotations, size and shifts as changes of (matrix, shift), (12, 7)."""
    made = np.zeros((7, 3, 4))
    for row, (i, j) in zip(made, ((0, 1), (0, 2), (1, 2)), strict=False):
        row[i, j], row[j, i] = -1, 1
    made[3, :, :3] = np.eye(3)
    for axis in range(3):
        made[4 + axis, axis, 3] = 1
    return made.reshape(7, 12).T


_SIMILARITY = _generators()


def _similar(matrix: Floats) -> Floats:
    """The nearest rotation times one size within bounds."""
    u, stretch, v = np.linalg.svd(matrix)
    size: Floats = u @ v * np.clip(stretch.prod() ** (1 / 3), *_SIZE_LIMITS)
    return size


def likeness(sample: CoarseImage, template: CoarseImage, placement: Placement) -> float:
    """How alike two images are: a third the correlation of the outlines, two thirds of the contrasts."""
    points = sample.compared_um @ placement.matrix.T + template.centre_um + placement.shift_um
    found = _normalised(template.at(points)[:, :, 0])[0]
    outline, _, local, inner = (found * _normalised(sample.compared_values)[0]).sum(axis=0)
    contrast = local if placement.polarity > 0 else -inner
    return float(outline + 2 * contrast) / 3


def nearest_turn(matrix: Floats, turns: dict[str, Floats]) -> str:
    """Name of the signed permutation nearest to a matrix, among those of its handedness."""
    handed = {name: t for name, t in turns.items() if np.linalg.det(t) * np.linalg.det(matrix) > 0}
    return max(handed, key=lambda name: float((handed[name] * matrix).sum()))
