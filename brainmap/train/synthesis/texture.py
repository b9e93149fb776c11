"""The look of real tissue between its cells, as statistics that a background can be given.

Of each real tile the cells are left out and two things are kept: the radial power spectrum and the grey-level
distribution. A background, from a generator or plain noise, is filtered to the spectrum and mapped to the
distribution of one of them, so that tiles differ from each other as real ones do. This is
the study's "optional texture" (methods 5) made to match statistics (methods 10 ii).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from brainmap.errors import DataError, NotFoundError
from brainmap.files import atomic_path
from brainmap.image.intensity import BACKGROUND_VALUE

__all__ = ["Texture", "bright_spots", "plain_background", "radial_power"]

Images = Iterable[NDArray[np.float32]]

_BINS = 96
_LEVELS = 257
# Sections stored with 8 bits hold few grey levels, and other ones in every section: quantiles are smoothed
# so that a synthetic tile does not repeat one section's steps.
_SMOOTH = 4.0
# Rounds of spectrum and grey levels in turn: each disturbs the other a little.
_ROUNDS = 3
_STRONGEST = 300.0


def radial_power(image: NDArray[np.floating], bins: int = _BINS) -> NDArray[np.float64]:
    """Mean power on rings of spatial frequency.

    The mean is taken off and a Hann window damps the borders; power is per pixel, so that white noise of
    variance s^2 gives s^2 at all frequencies and images of any size can be compared.

    Parameters
    ----------
    image : ndarray, (height, width)
    bins : int
        Rings of equal width between 0 and 0.5 cycles per pixel.

    Returns
    -------
    ndarray, (bins,)
        NaN where a small image has no frequency of that ring.
    """
    window = np.hanning(image.shape[0] + 2)[1:-1, None] * np.hanning(image.shape[1] + 2)[1:-1]
    power = np.abs(np.fft.rfft2((image - image.mean()) * window)) ** 2 / np.sum(window**2)
    ring = _rings(image.shape, bins)
    # rfft2 leaves out the mirror half: its columns count twice but for the first and the Nyquist one.
    twice = np.full(power.shape, 2.0)
    twice[:, 0] = 1
    if image.shape[1] % 2 == 0:
        twice[:, -1] = 1
    count = np.bincount(ring.ravel(), twice.ravel(), bins + 1)[:bins]
    total = np.bincount(ring.ravel(), (power * twice).ravel(), bins + 1)[:bins]
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _rings(shape: tuple[int, ...], bins: int) -> NDArray[np.intp]:
    """Ring of each frequency of `rfft2`; `bins` for frequency 0 and the corners beyond 0.5."""
    frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1]))
    ring = np.minimum((frequency * 2 * bins).astype(np.intp), bins)
    ring[frequency == 0.5] = bins - 1
    ring[0, 0] = bins
    return ring


def bright_spots(image: NDArray[np.float32], radius_px: float) -> NDArray[np.bool_]:
    """Where cells and other bright things lie, with a rim; needs no annotation.

    Parameters
    ----------
    image : ndarray, (height, width) in 0..1
        Normalised intensity, so that the background lies at one level all over the tile.
    radius_px : float
        Radius of a typical cell.
    """
    smooth = ndimage.gaussian_filter(image, radius_px / 3, mode="reflect")
    middle = np.median(smooth)
    deviation = 1.4826 * np.median(np.abs(smooth - middle)) + 1e-6
    spots = smooth > middle + 3.0 * deviation
    spots = ndimage.binary_opening(spots, iterations=max(1, round(radius_px / 4)))
    return ndimage.binary_dilation(spots, iterations=max(1, round(radius_px / 2)))


@dataclass(frozen=True)
class Texture:
    """Statistics of the backgrounds of n real tiles.

    Parameters
    ----------
    power : ndarray, (n, bins)
        Radial power of each, see `radial_power`.
    levels : ndarray, (n, 257)
        Quantiles 0, 1/256, ... 1 of each one's grey levels, smoothed.
    """

    power: NDArray[np.float64]
    levels: NDArray[np.float64]

    @classmethod
    def fit(cls, images: Images, radius_px: float) -> Texture:
        """Measure the backgrounds of real tiles.

        Parameters
        ----------
        images : iterable of ndarray, (height, width) in 0..1
            Those that bright spots cover by more than 70 % are left out.
        radius_px : float
            Radius of a typical cell.

        Raises
        ------
        DataError
            No tile with enough background.
        """
        power, levels = [], []
        for image in images:
            spots = bright_spots(image, radius_px)
            if spots.mean() > 0.7:
                continue
            power.append(radial_power(_without(image, spots)))
            steps = np.quantile(image[~spots], np.linspace(0, 1, _LEVELS))
            levels.append(ndimage.gaussian_filter1d(steps, _SMOOTH, mode="nearest"))
        if not power:
            raise DataError("no tile has enough background between its cells to learn a texture from")
        return cls(_known(np.array(power)), np.array(levels))

    def __len__(self) -> int:
        return len(self.power)

    def apply(
        self, background: NDArray[np.float32], chosen: int, rng: np.random.Generator
    ) -> NDArray[np.float32]:
        """Give a background the spectrum and grey levels of one of the real tiles.

        Parameters
        ----------
        background : ndarray, (height, width) in 0..1
        chosen : int
            Which tile.
        rng : Generator
        """
        wanted, levels = self.power[chosen], self.levels[chosen]
        result = background.astype(np.float64)
        # A trace of noise: levels that are equal have no order, and frequencies that are empty no gain.
        result += rng.normal(0, 1e-3, result.shape)
        for _ in range(_ROUNDS):
            result = _to_levels(_to_power(result, wanted), levels)
        return result.astype(np.float32)

    def save(self, path: str | Path) -> None:
        """Write to one `.npz` file, atomically."""
        with atomic_path(path) as part, part.open("wb") as file:
            np.savez_compressed(file, power=self.power, levels=self.levels)

    @classmethod
    def load(cls, path: str | Path) -> Texture:
        """Read what `save` wrote.

        Raises
        ------
        NotFoundError, DataError
            No such file; one that holds no texture.
        """
        try:
            with np.load(path) as record:
                return cls(record["power"], record["levels"])
        except FileNotFoundError:
            raise NotFoundError(f"there is no file {path}") from None
        except (ValueError, KeyError, OSError) as error:
            raise DataError(f"{path} holds no texture: {error}") from error


def plain_background(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
    """White noise around the background's level, as strong as the noise that normalisation expects."""
    noise = rng.normal(BACKGROUND_VALUE, 0.046, shape)
    return np.clip(noise, 0, 1).astype(np.float32)


def _without(image: NDArray[np.float32], spots: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The image with its spots filled by background from elsewhere in it, grain included."""
    filled, empty = image.copy(), spots.copy()
    rng = np.random.default_rng(0)
    for _ in range(200):
        if not empty.any():
            return filled
        shift = tuple(int(rng.integers(n)) for n in image.shape)
        other, known = np.roll(image, shift, (0, 1)), ~np.roll(spots, shift, (0, 1))
        take = empty & known
        filled[take] = other[take]
        empty &= ~take
    filled[empty] = np.median(image[~spots])
    return filled


def _known(power: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rings without a frequency take the next higher one's power."""
    for column in range(power.shape[1] - 2, -1, -1):
        missing = np.isnan(power[:, column])
        power[missing, column] = power[missing, column + 1]
    return power


def _to_power(image: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    gain = np.sqrt(wanted / np.maximum(_known(radial_power(image)[None])[0], 1e-12))
    gain = np.clip(gain, 1 / _STRONGEST, _STRONGEST)
    # Cosine transform: in a Fourier transform the step from one border to the other spreads over all
    # frequencies, and would be amplified with them.
    frequency = np.hypot(*np.ix_(*(np.arange(n) / (2 * n) for n in image.shape)))
    smooth = np.interp(frequency, (np.arange(len(wanted)) + 0.5) / (2 * len(wanted)), gain)
    smooth[0, 0] = 1
    return np.asarray(fft.idctn(fft.dctn(image) * smooth))


def _to_levels(image: NDArray[np.float64], levels: NDArray[np.float64]) -> NDArray[np.float64]:
    rank = np.empty(image.size)
    rank[np.argsort(image, axis=None, kind="stable")] = (np.arange(image.size) + 0.5) / image.size
    return np.interp(rank, np.linspace(0, 1, len(levels)), levels).reshape(image.shape)
