"""How like real tiles synthetic ones are, in numbers (methods 7, "Synthetic against real tiles").

What is compared: grey-level histograms (Jensen-Shannon divergence), radial power spectra, and per tile mean
brightness, contrast, sharpness, gradient strength, entropy and signal over background; then the nearest real
tile of every synthetic one in the space of these features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree
from scipy.stats import ks_2samp

from brainmap.errors import DataError
from brainmap.gt.truth import GroundTruth
from brainmap.tiles.tiles import Tiles
from brainmap.train.synthesis.synthesis import MASKS
from brainmap.train.synthesis.texture import radial_power

__all__ = [
    "FEATURES",
    "STUDY",
    "Side",
    "Signal",
    "Similarity",
    "compare_tiles",
    "disc_signal",
    "jensen_shannon",
    "synthetic_signal",
    "truth_signal",
]

# Image id -> True where cells are, (height, width).
Signal = Callable[[str], NDArray[np.bool_]]
Floats = NDArray[np.float64]

FEATURES = ("brightness", "contrast", "laplacian_variance", "gradient", "entropy", "signal_minus_background")
# What the founding study measured (methods 9), 170 against 170 tiles; its binning is not given.
STUDY = {"jsd": 0.097, "jsd_background": 0.101, "log_power": 0.841}

_GREYS = 256
_BINS = 96


@dataclass(frozen=True)
class Side:
    """What is measured on one set of tiles.

    Parameters
    ----------
    features : ndarray, (n, 6)
        Columns as `FEATURES`; the last is NaN without a signal.
    histogram, background : ndarray, (256,)
        Share of the pixels at each grey level: all pixels, and those away from cells (NaN without a signal).
    power : ndarray, (n, 96)
        Radial power of each tile on rings between 0 and 0.5 cycles per pixel.
    """

    features: Floats
    histogram: Floats
    background: Floats
    power: Floats

    @property
    def log_power(self) -> Floats:
        """ln of the mean power of each ring; (96,)."""
        known = ~np.isnan(self.power)
        total = np.where(known, self.power, 0).sum(axis=0)
        mean = total / np.maximum(known.sum(axis=0), 1)
        return np.log(np.where(known.any(axis=0), mean, np.nan) + 1e-12)


@dataclass(frozen=True)
class Similarity:
    """Real and synthetic tiles side by side.

    Parameters
    ----------
    real, synthetic : Side
    jsd, jsd_background : float
        Jensen-Shannon divergence of the histograms, base 2, 0..1; NaN where a signal is missing.
    log_power : float
        Mean over rings of the absolute difference of ln power.
    means : dict
        Feature -> (mean on real, mean on synthetic tiles, Kolmogorov-Smirnov distance).
    nearest : ndarray of int, (m,)
        Nearest real tile of each synthetic one; features z-scored by the real tiles.
    distance, real_distance : ndarray, (m,) and (n,)
        Distance to it; and of each real tile to the nearest other real one.
    """

    real: Side
    synthetic: Side
    jsd: float
    jsd_background: float
    log_power: float
    means: dict[str, tuple[float, float, float]]
    nearest: NDArray[np.int64]
    distance: Floats
    real_distance: Floats

    def to_dict(self) -> dict[str, object]:
        """The numbers, as JSON holds them; beside those of the study."""
        return {
            "real_tiles": len(self.real.features),
            "synthetic_tiles": len(self.synthetic.features),
            "jsd": self.jsd,
            "jsd_background": self.jsd_background,
            "log_power": self.log_power,
            "features": {
                name: dict(zip(("real", "synthetic", "ks"), values, strict=True))
                for name, values in self.means.items()
            },
            "nearest_real_median": float(np.median(self.distance)),
            "real_to_real_median": float(np.median(self.real_distance)),
            "study": STUDY,
        }


def compare_tiles(
    real: Tiles,
    synthetic: Tiles,
    real_signal: Signal | None = None,
    synthetic_signal: Signal | None = None,
    margin_px: float = 8.0,
) -> Similarity:
    """Compare two sets of tiles.

    Parameters
    ----------
    real, synthetic : Tiles
    real_signal, synthetic_signal : callable, optional
        Image id -> bool (height, width), True on cells: ground truth > 0.5 on real, discs on synthetic tiles
        (`synthetic_signal`). Without both, what needs them is NaN.
    margin_px : float
        Background is what is farther than this from any cell.

    Raises
    ------
    DataError
        Fewer than two tiles on a side: there is nothing to compare.
    """
    for tiles in (real, synthetic):
        if len(tiles) < 2:
            raise DataError(f"{tiles.folder} gives {len(tiles)} tiles; a comparison needs two or more")
    both = real_signal is not None and synthetic_signal is not None
    mine = _measure(real, real_signal if both else None, margin_px)
    theirs = _measure(synthetic, synthetic_signal if both else None, margin_px)
    nearest, distance, real_distance = _nearest(mine.features, theirs.features)
    return Similarity(
        real=mine,
        synthetic=theirs,
        jsd=jensen_shannon(mine.histogram, theirs.histogram),
        jsd_background=jensen_shannon(mine.background, theirs.background),
        log_power=float(np.nanmean(np.abs(mine.log_power - theirs.log_power))),
        means=_means(mine.features, theirs.features),
        nearest=nearest,
        distance=distance,
        real_distance=real_distance,
    )


def jensen_shannon(p: Floats, q: Floats) -> float:
    """Jensen-Shannon divergence of two distributions, base 2: 0 equal, 1 without overlap; NaN stays NaN.

    Parameters
    ----------
    p, q : ndarray, (k,)
        Counts or shares.
    """
    p, q = p / p.sum(), q / q.sum()
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = [np.where(a > 0, a * np.log2(a / middle), 0) for a in (p, q)]
    missing = np.isnan(p).any() or np.isnan(q).any()
    return float("nan") if missing else float(sum(part.sum() for part in parts) / 2)


def synthetic_signal(tiles: Tiles) -> Signal:
    """The discs of a folder that `synthesize` wrote."""

    def signal(image_id: str) -> NDArray[np.bool_]:
        path = tiles.folder / MASKS / f"{image_id}.png"
        try:
            return np.asarray(imagecodecs.png_decode(path.read_bytes())) > 0
        except (ValueError, OSError) as error:
            raise DataError(f"{path} cannot be read as a mask: {error}") from error

    return signal


def truth_signal(truth: GroundTruth) -> Signal:
    """Where the ground truth map is above 0.5 (methods 7)."""
    return lambda image_id: truth.heatmap(image_id) > 0.5


def disc_signal(tiles: Tiles, points: Mapping[str, Floats], radius_px: float) -> Signal:
    """Discs of one radius around annotated cells, where no ground truth map is at hand.

    Parameters
    ----------
    tiles : Tiles
    points : mapping
        Image id -> (n, 2) x, y, px; an image that is not named has no cells.
    radius_px : float
    """
    shapes = dict(zip(tiles.ids, tiles.shapes, strict=True))

    def signal(image_id: str) -> NDArray[np.bool_]:
        height, width = shapes[image_id]
        xy = np.floor(points.get(image_id, np.zeros((0, 2))) + 0.5).astype(int)
        inside = (xy >= 0).all(axis=1) & (xy < (width, height)).all(axis=1)
        apart = np.ones((height, width), bool)
        apart[xy[inside, 1], xy[inside, 0]] = False
        return np.asarray(ndimage.distance_transform_edt(apart) <= radius_px) if inside.any() else ~apart

    return signal


def _measure(tiles: Tiles, signal: Signal | None, margin_px: float) -> Side:
    histogram, background = np.zeros(_GREYS), np.zeros(_GREYS)
    features, power = [], []
    for index in range(len(tiles)):
        image = tiles.image(index)
        grey = np.rint(image * 255).astype(np.uint8)
        away = cells = None
        if signal is not None:
            cells = signal(tiles.ids[index])
            away = ndimage.distance_transform_edt(~cells) > margin_px if cells.any() else ~cells
            background += np.bincount(grey[away], minlength=_GREYS)
        histogram += np.bincount(grey.ravel(), minlength=_GREYS)
        features.append(_features(image, grey, cells, away))
        power.append(radial_power(image, _BINS))
    if signal is None:
        background[:] = np.nan
    return Side(
        np.array(features), histogram / histogram.sum(), background / background.sum(), np.array(power)
    )


def _features(
    image: NDArray[np.float32],
    grey: NDArray[np.uint8],
    cells: NDArray[np.bool_] | None,
    away: NDArray[np.bool_] | None,
) -> list[float]:
    share = np.bincount(grey.ravel(), minlength=_GREYS) / grey.size
    used = share[share > 0]
    signal = np.nan
    if cells is not None and away is not None and cells.any() and away.any():
        signal = float(image[cells].mean() - image[away].mean())
    return [
        float(image.mean()),
        float(image.std()),
        float(ndimage.laplace(image, mode="nearest").var()),
        float(np.hypot(*np.gradient(image)).mean()),
        float(-(used * np.log2(used)).sum()),
        signal,
    ]


def _means(real: Floats, synthetic: Floats) -> dict[str, tuple[float, float, float]]:
    result = {}
    for column, name in enumerate(FEATURES):
        a, b = (side[:, column][~np.isnan(side[:, column])] for side in (real, synthetic))
        known = len(a) > 0 and len(b) > 0
        values = (a.mean(), b.mean(), ks_2samp(a, b).statistic) if known else (np.nan,) * 3
        result[name] = (float(values[0]), float(values[1]), float(values[2]))
    return result


def _nearest(real: Floats, synthetic: Floats) -> tuple[NDArray[np.int64], Floats, Floats]:
    # A tile without cells has no signal: the feature counts only where every tile has it.
    used = ~(np.isnan(real).any(axis=0) | np.isnan(synthetic).any(axis=0))
    middle, deviation = real[:, used].mean(axis=0), real[:, used].std(axis=0) + 1e-9
    mine, theirs = ((side[:, used] - middle) / deviation for side in (real, synthetic))
    tree = KDTree(mine)
    distance, nearest = tree.query(theirs)
    return nearest.astype(np.int64), distance, tree.query(mine, 2)[0][:, 1]
