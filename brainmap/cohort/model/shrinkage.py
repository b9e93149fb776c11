"""Effects of all regions pooled: what is likely of each, given those of its division and of all others.

A region changes or it does not; the share that changes, and the share of these that goes up, are those of its division.
Changes come from a mixture of half-normal distributions whose weights are estimated from all regions (adaptive
shrinkage, Stephens 2017, Biostatistics 18: 275). The measured ratios share errors: one of all regions, since animals
differ in their level, and one of each division. The local false sign rate is the chance that a region does not
change, or changes in the other direction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import ndtr

from brainmap.cohort.model.negative_binomial import Floats

__all__ = ["Shrunk", "shared_in_divisions", "shrink"]

_ROUNDS = 40
_LEAST_REGIONS = 10
_WIDTHS = 10
#: Errors are estimates too: so much wider, claimed rates hold in `benchmarks/cohort_power.py` (without, they do not).
_WIDER = 1.15
_SHARED_NODES, _DIVISION_NODES = 7, 7  # values of the shared errors
#: Shares of regions that change, and of these that go up.
_CHANGED = (0.0, 0.03, 0.1, 0.2, 0.33, 0.5, 0.75, 0.95)
_UP = (0.05, 0.5, 0.95)


@dataclass(frozen=True)
class Shrunk:
    """Pooled effects, (regions,) each; NaN where not known.

    Attributes
    ----------
    log2_ratio : float64 array
        Posterior mean.
    lfsr : float64 array
        Local false sign rate.
    """

    log2_ratio: Floats
    lfsr: Floats


def shrink(
    ratio: Floats,
    error: Floats,
    freedom: Floats,
    division: NDArray[np.intp],
    shared: float = 0.0,
    shared_in_division: float = 0.0,
) -> Shrunk:
    """Pool the effects of all regions.

    Parameters
    ----------
    ratio, error, freedom : float64 arrays (regions,)
        Log ratios, standard errors, degrees of freedom; NaN: left out.
    division : int array (regions,)
        -1: none; such regions are one more division.
    shared, shared_in_division : float
        Standard deviations of the errors that all ratios share, and those of a division; parts of `error`.
    """
    known = np.isfinite(ratio) & np.isfinite(error) & (error > 0)
    result = Shrunk(np.full(len(ratio), np.nan), np.full(len(ratio), np.nan))
    if known.sum() < _LEAST_REGIONS:
        return result
    b, s = ratio[known], _normal_error(ratio[known], error[known], freedom[known])
    s = np.sqrt(np.maximum(s**2 - shared**2 - shared_in_division**2, 0.5 * s**2))
    model = _Model(b, s, division[known], _widths(b, s), shared, shared_in_division)
    model.fit()
    result.log2_ratio[known], result.lfsr[known] = model.posterior()
    return result


def shared_in_divisions(residual: Floats, design: Floats, division: NDArray[np.intp]) -> float:
    """Variance that the regions of a division share in an animal, beyond what all regions share.

    Parameters
    ----------
    residual : float64 array (animals, regions)
        Of log densities from the design; NaN where an animal lacks a region.
    design : float64 array (animals, coefficients)
    division : int array (regions,)
        -1: none.
    """
    known = np.isfinite(residual)
    residual, design = residual[known.any(axis=1)], design[known.any(axis=1)]
    if len(residual) <= np.linalg.matrix_rank(design):
        return 0.0
    centred = residual - np.nanmean(residual, axis=1, keepdims=True)
    spare = len(design) - np.linalg.matrix_rank(design)
    excess, weight = 0.0, 0.0
    for key in np.unique(division[division >= 0]):
        own = centred[:, division == key]
        own = own[:, np.isfinite(own).all(axis=0)]
        n = own.shape[1]
        if n < 2:
            continue
        mean = own.mean(axis=1)
        chance = ((own - mean[:, None]) ** 2).sum() / spare / (n - 1) / n
        excess += n * (mean @ mean / spare - chance)
        weight += n
    return max(excess / weight, 0.0) if weight else 0.0


def _normal_error(ratio: Floats, error: Floats, freedom: Floats) -> Floats:
    """Errors with which a normal distribution gives the p-value of Student's, somewhat widened."""
    t = np.abs(ratio / error)
    endless = ~np.isfinite(freedom)
    tail = np.maximum(stats.t.sf(t, np.where(endless, 1.0, freedom)), 1e-300)
    z = np.where(endless, t, stats.norm.isf(tail))
    return _WIDER * np.where(z > 1e-3, np.abs(ratio) / np.maximum(z, 1e-3), error)


def _widths(b: Floats, s: Floats) -> Floats:
    low = float(np.median(s)) / 3
    high = 2.0 * float(np.sqrt(max(np.max(b**2 - s**2), low**2)))
    return np.geomspace(low, max(high, 3 * low), _WIDTHS)


def _nodes(sd: float, count: int) -> tuple[Floats, Floats]:
    """Values and weights of a normal error (Gauss-Hermite)."""
    if sd <= 0:
        return np.zeros(1), np.ones(1)
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return nodes * sd, weights / weights.sum()


class _Model:
    """The mixture, fitted by expectation and maximisation.

    Arrays are over regions r or divisions d, shared errors e, divisions' errors f, their kinds j (share that changes,
    share that goes up) and widths k of changes.
    """

    def __init__(
        self,
        b: Floats,
        s: Floats,
        division: NDArray[np.intp],
        widths: Floats,
        shared: float,
        in_division: float,
    ) -> None:
        _, self.of = np.unique(division, return_inverse=True)
        shared_error, self.shared_weight = _nodes(shared, _SHARED_NODES)
        own_error, own_weight = _nodes(in_division, _DIVISION_NODES)
        self.log_own_weight = np.log(own_weight)
        kinds = [(changed, up) for changed in _CHANGED for up in (_UP if changed else (0.5,))]
        self.changed, self.up = np.array(kinds).T
        self.kind_weight = np.full(len(kinds), 1.0 / len(kinds))
        self.width_weight = np.full(len(widths), 1.0 / len(widths))
        # What is measured, less the errors that are shared: (r, e, f).
        x = b[:, None, None] - shared_error[None, :, None] - own_error[None, None, :]
        s = s[:, None, None]
        self.none = np.exp(-0.5 * (x / s) ** 2) / s
        total = np.sqrt(s[..., None] ** 2 + widths**2)
        both = 2.0 * np.exp(-0.5 * (x[..., None] / total) ** 2) / total
        place = x[..., None] * widths / (total * s[..., None])
        self.upward, self.downward = both * ndtr(place), both * ndtr(-place)
        # Means of changes that go up or down: truncated normal distributions.
        factor = widths**2 / total**2
        middle, deviation = x[..., None] * factor, np.sqrt(factor) * s[..., None]
        height = np.exp(-0.5 * place**2) / np.sqrt(2 * np.pi)
        self.mean_up = middle + deviation * height / np.maximum(ndtr(place), 1e-300)
        self.mean_down = middle - deviation * height / np.maximum(ndtr(-place), 1e-300)

    def _responsibilities(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Chances (r, e, f, j) and densities: up (r, e, f), down (r, e, f), together (r, e, f, j)."""
        up, down = self.upward @ self.width_weight, self.downward @ self.width_weight
        together = np.maximum(
            (1 - self.changed) * self.none[..., None]
            + self.changed * (self.up * up[..., None] + (1 - self.up) * down[..., None]),
            1e-300,
        )
        log = np.zeros((int(self.of.max()) + 1, *together.shape[1:]))
        np.add.at(log, self.of, np.log(together))
        log += self.log_own_weight[:, None] + np.log(self.kind_weight)
        top = log.max(axis=(2, 3), keepdims=True)
        chance = np.exp(log - top)
        total = chance.sum(axis=(2, 3))
        log_e = np.log(self.shared_weight) + (np.log(total) + top[..., 0, 0]).sum(axis=0)
        e = np.exp(log_e - log_e.max())
        chance *= (e / e.sum())[None, :, None, None] / total[..., None, None]
        return chance, up, down, together

    def fit(self) -> None:
        """Estimate the weights; one on no change keeps noise from being taken for changes (as ashr's penalty)."""
        for _ in range(_ROUNDS):
            chance, _, _, together = self._responsibilities()
            share = chance[self.of] / together * self.changed
            weight_up, weight_down = share @ self.up, share @ (1 - self.up)
            width = np.einsum("ref,refk->k", weight_up, self.upward) + np.einsum(
                "ref,refk->k", weight_down, self.downward
            )
            width = width * self.width_weight + 0.1
            before = self.width_weight
            self.width_weight = width / width.sum()
            kind = chance.sum(axis=(0, 1, 2)) + 0.1
            kind[0] += 1.0
            self.kind_weight = kind / kind.sum()
            if np.abs(self.width_weight - before).max() < 1e-3:
                break

    def posterior(self) -> tuple[Floats, Floats]:
        """Mean and local false sign rate of every region."""
        chance, _, _, together = self._responsibilities()
        share = chance[self.of] / together
        nothing = ((share @ (1 - self.changed)) * self.none).sum(axis=(1, 2))
        weight_up = (share @ (self.changed * self.up))[..., None] * self.upward * self.width_weight
        weight_down = (share @ (self.changed * (1 - self.up)))[..., None] * self.downward * self.width_weight
        mean = (weight_up * self.mean_up + weight_down * self.mean_down).sum(axis=(1, 2, 3))
        up, down = weight_up.sum(axis=(1, 2, 3)), weight_down.sum(axis=(1, 2, 3))
        return mean, np.clip(nothing + np.minimum(up, down), 0.0, 1.0)
