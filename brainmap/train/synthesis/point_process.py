"""How cells lie beside each other: statistics of point patterns, and a process that reproduces them.

The process is a Cox process: a random local density, and cells drawn from it. The density is the product of
clusters (a sum of Gaussians around random parents: Thomas 1949) and of a smooth gradient, exp(Z) with a
Gaussian random field Z (Møller, Syversveen & Waagepetersen 1998). The pair correlation of such a process is
known in closed form, which is what is fitted. Cells keep a distance: a close pair is accepted with a
probability that rises from 0 at the least distance to 1. The number of cells in a tile is negative binomial.

Points are (n, 2) float64, x and y in pixels, 0 = centre of the first pixel; a tile of (height, width) reaches
from -0.5 to width - 0.5 and height - 0.5.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, optimize
from scipy.spatial import KDTree
from scipy.special import gammaln

from brainmap.errors import DataError

__all__ = ["CoxProcess", "Pairs", "count_pairs", "nearest_distances"]

Floats = NDArray[np.float64]
Shape = tuple[int, int]

# Pair distances are looked at up to this share of the shorter side: far ones show gradients.
_REACH = 0.8
_BINS = 32
# Nodes of the random field on the longer side of a tile; a node is at least a pixel wide.
_NODES = 128
# Rounds of placing cells before those that do not fit are given up.
_PATIENCE = 60
# Densities drawn for a tile, of which one that suits its number of cells is taken.
_FIELDS = 4


@dataclass(frozen=True)
class Pairs:
    """Pairs of points by distance, pooled over tiles.

    Parameters
    ----------
    edges : ndarray, (b + 1,)
        Edges of the distance bins, px.
    found : ndarray, (b,)
        Pairs in each bin.
    expected : ndarray, (b,)
        Pairs in each bin if cells of the same mean density lay anywhere in any tile.
    """

    edges: Floats
    found: Floats
    expected: Floats

    @property
    def distance(self) -> Floats:
        """Middle of each bin, px; (b,)."""
        return (self.edges[1:] + self.edges[:-1]) / 2

    @property
    def correlation(self) -> Floats:
        """Pair correlation g: 1 = no relation, above it clustering, below it distance kept; (b,)."""
        return self.found / np.maximum(self.expected, 1e-12)


def count_pairs(points: Sequence[Floats], shapes: Sequence[Shape], edges: Floats | None = None) -> Pairs:
    """Count pairs by distance within tiles.

    What is expected follows from the tiles' own shapes, so that no pair near a border is thrown away. All
    tiles are compared with one density: tiles that differ in density show as correlation at every distance.

    Parameters
    ----------
    points : sequence of ndarray, (n, 2)
    shapes : sequence of (height, width)
    edges : ndarray, optional
        Edges of the distance bins, px; by default from 0 to 0.8 of the shortest side, widening outwards.
    """
    if edges is None:
        edges = _REACH * min(min(s) for s in shapes) * np.linspace(0, 1, _BINS + 1) ** 1.5
    found = np.zeros(len(edges) - 1)
    for xy in points:
        if len(xy) > 1:
            tree = KDTree(xy)
            found += np.diff(tree.count_neighbors(tree, edges) - len(xy)) / 2
    density = sum(len(xy) for xy in points) / sum(h * w for h, w in shapes)
    tiles = Counter(shapes)
    expected = np.zeros(len(edges) - 1)
    for shape, n in tiles.items():
        expected += n * _share_of_pairs(shape, edges) * (density * shape[0] * shape[1]) ** 2 / 2
    return Pairs(edges, found, expected)


def _share_of_pairs(shape: Shape, edges: Floats) -> Floats:
    """Probability that two points anywhere in a rectangle are as far apart as each bin says."""
    height, width = shape
    angle = (np.arange(64) + 0.5) / 64 * np.pi / 2
    fine = np.linspace(edges[:-1], edges[1:], 17, axis=1)
    middle = (fine[:, 1:] + fine[:, :-1]) / 2
    dx, dy = middle[..., None] * np.cos(angle), middle[..., None] * np.sin(angle)
    covariance = np.clip(width - dx, 0, None) * np.clip(height - dy, 0, None)
    ring = 2 * np.pi * middle * covariance.mean(axis=2) * np.diff(fine, axis=1)
    return ring.sum(axis=1) / (height * width) ** 2


def nearest_distances(points: Sequence[Floats]) -> Floats:
    """Distance of every point from its nearest neighbour in its tile, px; tiles of one point give none."""
    found = [KDTree(xy).query(xy, 2)[0][:, 1] for xy in points if len(xy) > 1]
    return np.concatenate(found) if found else np.zeros(0)


@dataclass(frozen=True)
class CoxProcess:
    """A point process fitted to annotated tiles.

    Parameters
    ----------
    density : float
        Mean number of cells per px.
    excess : float
        Spread of the number of cells in a tile: variance = mean + excess x mean^2. 0 is chance alone.
    clustering, gradient : float
        Pair correlation of clusters at distance 0, less 1; variance of the log of the smooth gradient.
    range_px : tuple of float
        Ranges of clusters and gradient, px. At a distance r the pair correlation is, but for a factor that the
        counts decide,
        (1 + clustering x bell(r / first)) x exp(gradient x bell(r / second)), bell(t) = exp(-t^2 / 2).
    least_px, free_px : float
        No two cells are closer than the first; from the second on they do not hinder each other.
    tile_px : tuple of int
        Height and width of the tiles the process was fitted to (medians). Smaller tiles are cut out of such.
    """

    density: float
    excess: float
    clustering: float
    gradient: float
    range_px: tuple[float, float]
    least_px: float
    free_px: float
    tile_px: tuple[int, int]

    @classmethod
    def fit(cls, points: Sequence[Floats], shapes: Sequence[Shape]) -> CoxProcess:
        """Fit the pair correlation by minimum contrast and the counts by maximum likelihood.

        Parameters
        ----------
        points : sequence of ndarray, (n, 2)
            Cells of each tile; tiles without cells belong to it.
        shapes : sequence of (height, width)

        Raises
        ------
        DataError
            Fewer than ten points in all, or no tile with two points.
        """
        counts = np.array([len(xy) for xy in points])
        if counts.sum() < 10 or counts.max() < 2:
            raise DataError(
                f"the placement of cells cannot be learnt from {counts.sum()} points; give at least 10"
            )
        # The very smallest distance is often one cell marked twice: a few are let go.
        least = float(np.quantile(nearest_distances(points), 0.005, method="lower"))
        height, width = (round(n) for n in np.median(np.array(shapes), axis=0))
        area = np.array([h * w for h, w in shapes], np.float64)
        density = float(counts.sum() / area.sum())
        excess = _fit_excess(counts, density * area)
        found = _fit_pairs(count_pairs(points, shapes), (height, width), least, excess)
        return cls(
            density=density,
            excess=excess,
            clustering=found[0],
            gradient=found[1],
            range_px=(found[2], found[3]),
            least_px=least,
            free_px=found[4],
            tile_px=(height, width),
        )

    def sample(self, shape: Shape, rng: np.random.Generator) -> Floats:
        """Centres of one tile of (height, width); (n, 2) x, y, all inside the tile."""
        full = (max(shape[0], self.tile_px[0]), max(shape[1], self.tile_px[1]))
        mean = self.density * full[0] * full[1]
        if self.excess > 0:
            mean *= rng.gamma(1 / self.excess, self.excess)
        count = int(rng.poisson(mean))
        step = max(1.0, max(full) / _NODES)
        density = self._density(count, full, step, rng)
        centres = self._place(count, density, step, full, rng)
        corner = np.array([rng.integers(full[1] - shape[1] + 1), rng.integers(full[0] - shape[0] + 1)])
        centres -= corner
        inside = (centres >= -0.5) & (centres < np.array(shape[::-1]) - 0.5)
        return centres[inside.all(axis=1)]

    def _density(self, count: int, shape: Shape, step: float, rng: np.random.Generator) -> Floats:
        """Expected cells at nodes `step` px apart, one of several draws: the likelier with this count."""
        draws = [self._draw_density(shape, step, rng) for _ in range(_FIELDS)]
        expected = np.maximum([draw.sum() for draw in draws], 1e-9)
        fit = count * np.log(expected) - expected
        chance = np.exp(fit - fit.max())
        return draws[int(rng.choice(_FIELDS, p=chance / chance.sum()))]

    def _draw_density(self, shape: Shape, step: float, rng: np.random.Generator) -> Floats:
        # Random numbers on a torus twice as wide as the tile: its seam stays outside.
        size = (2 * int(np.ceil(shape[0] / step)), 2 * int(np.ceil(shape[1] / step)))
        noise = np.fft.rfft2(rng.standard_normal(size)) * _root_spectrum(self, size, step)
        density = np.exp(np.fft.irfft2(noise, s=size) - self.gradient / 2)
        if self.clustering > 1e-3:
            deviation = self.range_px[0] / np.sqrt(2) / step
            parents = 1 / (4 * np.pi * deviation**2 * self.clustering)
            born = rng.poisson(parents, size).astype(np.float64)
            density *= ndimage.gaussian_filter(born, deviation, mode="wrap") / parents
        density = density[: size[0] // 2, : size[1] // 2] * self.density * step**2
        for axis, length in enumerate(shape):
            # The last node may reach beyond the tile.
            density[(slice(None),) * axis + (-1,)] *= length / step - density.shape[axis] + 1
        return density

    def _place(
        self, count: int, density: Floats, step: float, shape: Shape, rng: np.random.Generator
    ) -> Floats:
        """Put cells down one by one where they keep their distance; as many as fit."""
        cumulative = np.cumsum(density.ravel())
        kept = np.empty((count, 2))
        n = 0
        for _ in range(_PATIENCE if cumulative[-1] > 0 else 0):
            draw = rng.random((count, 4))
            node = np.searchsorted(cumulative, draw[:, 0] * cumulative[-1], side="right")
            row, column = np.divmod(np.minimum(node, density.size - 1), density.shape[1])
            size = np.minimum(step, np.stack([shape[1] - column * step, shape[0] - row * step], axis=1))
            place = np.stack([column, row], axis=1) * step + draw[:, 1:3] * size - 0.5
            for xy, chance in zip(place, draw[:, 3], strict=True):
                if n == count:
                    return kept
                away = np.hypot(kept[:n, 0] - xy[0], kept[:n, 1] - xy[1])
                if chance < np.prod(_ramp(away[away < self.free_px], self.least_px, self.free_px)):
                    kept[n] = xy
                    n += 1
        return kept[:n]


@lru_cache(maxsize=8)
def _root_spectrum(process: CoxProcess, size: tuple[int, int], step: float) -> Floats:
    """Root of the power spectrum of the gradient's random field, as `rfft2` lays it out."""
    axes = [np.minimum(np.arange(n), n - np.arange(n)) * step for n in size]
    covariance = process.gradient * _bell(np.hypot(axes[0][:, None], axes[1][None]), process.range_px[1])
    # Cut off at the torus's half width, a covariance is not positive everywhere; by a little.
    return np.sqrt(np.clip(np.fft.rfft2(covariance).real, 0, None))


def _bell(distance: Floats, reach: float) -> Floats:
    return np.exp(-((distance / reach) ** 2) / 2)


def _ramp(distance: Floats, least: float, free: float) -> Floats:
    return np.clip((distance - least) / max(free - least, 1e-9), 0, 1)


def _fit_excess(counts: NDArray[Any], mean: Floats) -> float:
    """Maximum likelihood of the negative binomial's excess variance, for known means."""

    def loss(log_excess: float) -> float:
        k = np.exp(-log_excess)
        chance = gammaln(counts + k) - gammaln(k) + k * np.log(k / (k + mean))
        return -float(np.sum(chance + counts * np.log(mean / (k + mean))))

    found = optimize.minimize_scalar(loss, bounds=(np.log(1e-4), np.log(20)), method="bounded")
    excess = float(np.exp(found.x))
    return excess if excess > 2e-4 else 0.0


def _fit_pairs(pairs: Pairs, shape: Shape, least: float, excess: float) -> list[float]:
    """Clustering, gradient, their ranges, and the distance from which on cells do not hinder each other."""
    distance, side = pairs.distance, float(np.sqrt(shape[0] * shape[1]))
    low = np.array([0, 0, 2 * side / _NODES, side / 6, least + 1e-3])
    high = np.array([60, 6, side / 6, side, max(4 * least, 0.05 * side) + 2e-3])
    edges = np.linspace(0, float(np.hypot(*shape)), 120)
    share, middle = _share_of_pairs(shape, edges), (edges[1:] + edges[:-1]) / 2

    def clustered(r: Floats, p: Floats) -> Floats:
        return (1 + p[0] * _bell(r, p[2])) * np.exp(p[1] * _bell(r, p[3]))

    def residual(p: Floats) -> Floats:
        # The counts say how many pairs a tile has in all; the density says how far apart they are.
        level = (1 + excess) * share.sum() / np.sum(share * clustered(middle, p))
        model = level * clustered(distance, p) * _ramp(distance, least, p[4])
        # Roots of counts have equal noise; without the prior a few odd pairs make wild clusters.
        return np.append(2 * (np.sqrt(pairs.found) - np.sqrt(pairs.expected * model)), p[:2])

    fits = []
    for narrow, reach, wide in itertools.product((0.3, 1.5), (0.03, 0.1), (0.1, 0.6)):
        start = np.array([narrow, wide, reach * side, side / 3, (low[4] + high[4]) / 2])
        start = np.clip(start, low + 1e-6, high - 1e-6)
        fits.append(optimize.least_squares(residual, start, bounds=(low, high)))
    return [float(v) for v in min(fits, key=lambda fit: fit.cost).x]
