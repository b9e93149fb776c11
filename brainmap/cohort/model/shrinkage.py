"""Effects of all regions pooled: what is likely of each, given those of its division and of all others.

An effect is that of its division plus its own. Own effects come from a mixture of normal distributions around zero
whose shares are estimated (adaptive shrinkage, Stephens 2017, Biostatistics 18: 275); the division's effect from
another such mixture; and the measured ratios of all regions share an error, since animals differ in their level.
The local false sign rate is the chance that an effect is zero or has the other sign.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import ndtr

from brainmap.cohort.model.negative_binomial import Floats

__all__ = ["Shrunk", "shrink"]

_ROUNDS = 60
_LEAST_REGIONS = 10
_GRID = 33  # values of a division's effect
_SHARED = 9  # values of the shared error


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
    ratio: Floats, error: Floats, freedom: Floats, division: NDArray[np.intp], shared: float = 0.0
) -> Shrunk:
    """Pool the effects of all regions.

    Parameters
    ----------
    ratio, error, freedom : float64 arrays (regions,)
        Log ratios, standard errors, degrees of freedom; NaN: left out.
    division : int array (regions,)
        -1: none, the region by itself.
    shared : float
        Standard deviation of the error that all ratios share; part of `error`.
    """
    known = np.isfinite(ratio) & np.isfinite(error) & (error > 0)
    result = Shrunk(np.full(len(ratio), np.nan), np.full(len(ratio), np.nan))
    if known.sum() < _LEAST_REGIONS:
        return result
    b, s = ratio[known], _normal_error(ratio[known], error[known], freedom[known])
    s = np.sqrt(np.maximum(s**2 - shared**2, 0.05 * s**2))
    model = _Model(b, s, division[known], _widths(b, s), _shared_nodes(shared))
    model.fit()
    result.log2_ratio[known], result.lfsr[known] = model.posterior()
    return result


def _normal_error(ratio: Floats, error: Floats, freedom: Floats) -> Floats:
    """Errors with which a normal distribution gives the p-value of Student's."""
    t = np.abs(ratio / error)
    z = np.where(
        np.isfinite(freedom),
        stats.norm.isf(np.maximum(stats.t.sf(t, np.where(np.isfinite(freedom), freedom, 1.0)), 1e-300)),
        t,
    )
    return np.where(z > 1e-3, np.abs(ratio) / np.maximum(z, 1e-3), error)


def _widths(b: Floats, s: Floats) -> Floats:
    low = float(s.min()) / 10
    high = 2.0 * float(np.sqrt(max(np.max(b**2 - s**2), low**2)))
    return np.concatenate([[0.0], np.geomspace(low, max(high, 2 * low), 12)])


def _shared_nodes(shared: float) -> tuple[Floats, Floats]:
    """Values and weights of the shared error (Gauss-Hermite)."""
    if shared <= 0:
        return np.zeros(1), np.ones(1)
    nodes, weights = np.polynomial.hermite_e.hermegauss(_SHARED)
    return nodes * shared, weights / weights.sum()


class _Model:
    """The mixture, fitted by expectation and maximisation over own effects, divisions' effects and shared error.

    Arrays are over regions r, shared errors e, division's effects m and widths of own effects k.
    """

    def __init__(
        self, b: Floats, s: Floats, division: NDArray[np.intp], widths: Floats, shared: tuple[Floats, Floats]
    ) -> None:
        self.b, self.s, self.widths = b, s, widths
        self.shared, self.shared_weight = shared
        # A region without a division is one of its own; without any division there is nothing to share.
        alone = division < 0
        division = np.where(alone, division.max(initial=-1) + 1 + np.cumsum(alone), division)
        _, self.of = np.unique(division, return_inverse=True)
        half = np.empty(0)
        if not alone.all():
            reach = max(float(np.quantile(np.abs(b), 0.95)), 1e-3)
            half = np.geomspace(reach / 30, reach, _GRID // 2)
        self.mu = np.concatenate([-half[::-1], [0.0], half])
        self.mu_weight = np.full(len(self.mu), 0.2 / max(len(self.mu) - 1, 1))
        self.mu_weight[len(half)] = 0.8
        self.own_weight = np.full(len(widths), 0.5 / (len(widths) - 1))
        self.own_weight[0] = 0.5
        centre = b[:, None, None] - self.shared[None, :, None] - self.mu[None, None, :]
        spread = np.sqrt(s[:, None] ** 2 + widths[None, :] ** 2)[:, None, None, :]
        self.density = np.exp(-0.5 * (centre[..., None] / spread) ** 2) / spread

    def _responsibilities(self) -> tuple[Floats, Floats]:
        """Chances of shared error and division's effect for every region (r, e, m), and its density there."""
        region = np.maximum(self.density @ self.own_weight, 1e-300)
        log_group = np.zeros((int(self.of.max()) + 1, *region.shape[1:]))
        np.add.at(log_group, self.of, np.log(region))
        log_group += np.log(self.mu_weight)
        top = log_group.max(axis=2, keepdims=True)
        group = np.exp(log_group - top)
        total = group.sum(axis=2)
        log_e = np.log(self.shared_weight) + (np.log(total) + top[..., 0]).sum(axis=0)
        e = np.exp(log_e - log_e.max())
        chance = (e / e.sum())[None, :, None] * group / total[..., None]
        return chance[self.of], region

    def fit(self) -> None:
        """Estimate the shares; a weight on zero keeps noise from being taken for effects (as ashr's penalty)."""
        zero = len(self.mu) // 2
        _, first = np.unique(self.of, return_index=True)
        flat = self.density.reshape(-1, len(self.widths))
        for _ in range(_ROUNDS):
            chance, region = self._responsibilities()
            own = (chance / region).ravel() @ flat * self.own_weight
            own[0] += 10.0
            before = self.own_weight
            self.own_weight = np.maximum(own / own.sum(), 1e-12)
            # Effects of divisions are as likely up as down.
            mu = chance[first].sum(axis=(0, 1))
            mu = 0.5 * (mu + mu[::-1])
            mu[zero] += 2.0
            self.mu_weight = np.maximum(mu / mu.sum(), 1e-9)
            if np.abs(self.own_weight - before).max() < 1e-3:
                break

    def posterior(self) -> tuple[Floats, Floats]:
        """Mean and local false sign rate of every region."""
        chance, region = self._responsibilities()
        weight = (chance / region)[..., None] * self.density * self.own_weight
        wide = self.widths > 0
        factor = self.widths**2 / (self.s[:, None] ** 2 + self.widths**2)
        centre = self.b[:, None, None] - self.shared[None, :, None] - self.mu[None, None, :]
        effect = self.mu[None, None, :, None] + centre[..., None] * factor[:, None, None, :]
        deviation = np.where(wide, np.sqrt(factor) * self.s[:, None], 1.0)[:, None, None, :]
        below = np.where(wide, ndtr(-effect / deviation), effect < 0)
        mean = (weight * effect).sum(axis=(1, 2, 3))
        down = (weight * below).sum(axis=(1, 2, 3))
        nothing = (weight * (~wide & (effect == 0))).sum(axis=(1, 2, 3))
        return mean, np.clip(nothing + np.minimum(down, 1.0 - nothing - down), 0.0, 1.0)
