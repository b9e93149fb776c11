"""Permutation tests of maps: a regression in every voxel, family-wise error by the largest enhanced value.

Rows of what the nuisance columns leave are exchanged (Freedman and Lane 1983, Journal of Business and Economic
Statistics 1: 292; Winkler et al. 2014, NeuroImage 92: 381), within blocks where animals are paired. Where there are few
ways to exchange them, all are tried and p is exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from brainmap.cohort.maps.tfce import tfce
from brainmap.errors import DataError

__all__ = ["MapTest", "permutation_test", "permutations"]

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]


@dataclass(frozen=True)
class MapTest:
    """Result of `permutation_test`; arrays (z, y, x), NaN outside the mask.

    Attributes
    ----------
    effect : float64 array
        The contrast of the coefficients.
    t : float64 array
        Its t; with smoothed variance if that was asked for.
    enhanced : float64 array
        By threshold-free cluster enhancement.
    p : float64 array
        Family-wise, two-sided.
    permutations : int
        That were tried, the data as they are among them.
    exact : bool
        These are all there are.
    """

    effect: Floats
    t: Floats
    enhanced: Floats
    p: Floats
    permutations: int
    exact: bool


def permutation_test(
    values: Floats,
    mask: NDArray[np.bool_],
    design: Floats,
    vector: Floats,
    *,
    blocks: Rows | None = None,
    repeats: int = 1000,
    smooth_vox: float = 0.0,
    seed: int = 0,
) -> MapTest:
    """Test a contrast in every voxel.

    Parameters
    ----------
    values : float64 array (animals, z, y, x)
    mask : bool array (z, y, x)
    design : float64 array (animals, coefficients)
    vector : float64 array (coefficients,)
        The contrast.
    blocks : int array (animals,), optional
        Only animals of a block are exchanged.
    repeats : int
        Most permutations; if there are no more, all are tried.
    smooth_vox : float
        Standard deviation, in voxels, of a Gaussian that smooths the variance: steadier with few animals.
    seed : int

    Raises
    ------
    DataError
        If no permutation but the data themselves can be made, or no degree of freedom is left.
    """
    y = values[:, mask]
    spare = len(design) - np.linalg.matrix_rank(design)
    if spare < 1:
        raise DataError("the design leaves no degree of freedom: there are as many coefficients as animals")
    # The design as what is tested and what is not: the coefficient of the first is the contrast.
    basis = np.linalg.svd(vector[None, :])[2][1:].T
    nuisance = design @ basis
    tested = design @ (vector / (vector @ vector))
    null = nuisance @ np.linalg.pinv(nuisance) if nuisance.shape[1] else np.zeros((len(y), len(y)))
    kept = y - null @ y
    full = np.column_stack([tested, nuisance])
    inverse = np.linalg.pinv(full)
    hat = full @ inverse
    spread = float(np.linalg.pinv(full.T @ full)[0, 0])
    orders, exact = permutations(tested, nuisance, blocks, repeats, seed)
    if len(orders) < 2:
        raise DataError(
            "animals of one kind alone can be exchanged: there is nothing to compare the data with"
        )
    mask_smoothed = _smoothed(mask.astype(float), smooth_vox)[mask]
    effect = np.empty(0)
    statistic, enhanced, above = np.empty(0), np.empty(0), np.zeros(y.shape[1])
    for i, order in enumerate(orders):
        # Freedman and Lane: what is left is exchanged; what the nuisance explains would be fitted again anyway.
        z = kept[order]
        coefficient = inverse[0] @ z
        left = z - hat @ z
        variance = np.einsum("ij,ij->j", left, left) / spare * spread
        if smooth_vox > 0:
            volume = np.zeros(mask.shape)
            volume[mask] = variance
            variance = _smoothed(volume, smooth_vox)[mask] / mask_smoothed
        t = np.divide(coefficient, np.sqrt(variance), out=np.zeros_like(coefficient), where=variance > 0)
        volume = np.zeros(mask.shape)
        volume[mask] = t
        found = tfce(volume, mask)[mask]
        if i == 0:
            effect, statistic, enhanced = coefficient, t, np.abs(found)
            signed = found
        above += np.abs(found).max(initial=0.0) >= enhanced * (1 - 1e-9)

    def whole(part: Floats) -> Floats:
        result = np.full(mask.shape, np.nan)
        result[mask] = part
        return result

    return MapTest(
        whole(effect), whole(statistic), whole(signed), whole(above / len(orders)), len(orders), exact
    )


def _smoothed(volume: Floats, sigma: float) -> Floats:
    return np.asarray(ndimage.gaussian_filter(volume, sigma)) if sigma > 0 else volume


def permutations(
    tested: Floats, nuisance: Floats, blocks: Rows | None, repeats: int, seed: int
) -> tuple[list[Rows], bool]:
    """Orders of the animals, the data as they are first, and whether they are all that differ.

    Animals that are alike in everything are not exchanged: that changes nothing. Where there is nothing but a mean
    beside two kinds of animals, all relabellings are counted; else all orders.
    """
    n = len(tested)
    blocks = np.zeros(n, dtype=np.intp) if blocks is None else np.unique(blocks, return_inverse=True)[1]
    identity = np.arange(n)
    plain = _only_blocks(nuisance, blocks)
    count = 1
    for key in np.unique(blocks):
        own = tested[blocks == key]
        ways = math.factorial(len(own))
        if plain:
            for value in np.unique(np.round(own, 9)):
                ways //= math.factorial(int((np.round(own, 9) == value).sum()))
        count *= ways
    if count <= repeats and plain and len(np.unique(np.round(tested, 9))) == 2:
        orders = list(_relabellings(tested, blocks))
        orders.sort(key=lambda order: not np.array_equal(tested[np.argsort(order)], tested))
        return [identity, *orders[1:]], True
    rng = np.random.default_rng(seed)
    orders = [identity]
    while len(orders) < repeats:
        order = identity.copy()
        for key in np.unique(blocks):
            here = np.flatnonzero(blocks == key)
            order[here] = rng.permutation(here)
        orders.append(order)
    return (orders, False) if count > 1 else ([identity], True)


def _only_blocks(nuisance: Floats, blocks: Rows) -> bool:
    """Whether the nuisance is constant within blocks: exchanging animals within them leaves it as it is."""
    return all(np.ptp(nuisance[blocks == key], axis=0).max(initial=0.0) < 1e-9 for key in np.unique(blocks))


def _relabellings(tested: Floats, blocks: Rows) -> Iterator[Rows]:
    """One order for every way to deal two kinds of animals within blocks."""
    high = np.isclose(tested, tested.max())
    keys = np.unique(blocks)

    def deal(at: int, order: Rows) -> Iterator[Rows]:
        if at == len(keys):
            yield order
            return
        here = np.flatnonzero(blocks == keys[at])
        places = here[high[here]]
        others = here[~high[here]]
        for chosen in combinations(here, len(places)):
            mine = np.array(chosen, dtype=np.intp)
            dealt = order.copy()
            dealt[places], dealt[others] = mine, np.setdiff1d(here, mine)
            yield from deal(at + 1, dealt)

    yield from deal(0, np.arange(len(tested)))
