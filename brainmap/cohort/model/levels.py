"""The level of each animal over its regions (staining, clearing, its state on the day), to be divided out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from brainmap.cohort.model.densities import log_density
from brainmap.cohort.model.negative_binomial import Floats
from brainmap.errors import DataError

__all__ = ["Levels", "control_levels", "median_levels"]

_LEAST_REGIONS = 10
_LEAST_CELLS = 10


@dataclass(frozen=True)
class Levels:
    """Levels of animals.

    Attributes
    ----------
    factor : float64 array (animals,)
        Geometric mean 1; what densities are divided by.
    error : float64 array (animals,)
        Standard error of its logarithm (natural), by the scatter of the regions it is from.
    regions : int
        How many it is from.
    source : str
    """

    factor: Floats
    error: Floats
    regions: int
    source: str


def median_levels(counts: Floats, volume_mm3: Floats) -> Levels | None:
    """Level of each animal over all regions: the median ratio of its densities to the animals' geometric means.

    As the size factors of DESeq (Anders and Huber 2010, Genome Biology 11: R106): a difference in fewer than half of
    the regions hardly moves it. None if fewer than ten regions have cells in the animals that have them.

    Parameters
    ----------
    counts, volume_mm3 : float64 arrays (animals, regions)
        The finest structures of the whole brain; volume NaN or 0 where an animal lacks a region.
    """
    there = np.nan_to_num(volume_mm3) > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        density = np.where(there, np.log(counts / np.where(there, volume_mm3, 1.0)), np.nan)
    used = there.any(axis=0) & ~np.isneginf(np.where(there, density, 0.0)).any(axis=0)
    used &= there.sum(axis=0) >= max(2, (len(there) + 1) // 2)
    if used.sum() < _LEAST_REGIONS:
        return None
    ratio = density[:, used] - np.nanmean(density[:, used], axis=0)
    known = np.isfinite(ratio).sum(axis=1)
    if known.min() < _LEAST_REGIONS:
        return None
    # Regions that some animals lack shift by who has them: what is left is centred.
    level = np.nanmedian(ratio, axis=1)
    deviation = np.nanmedian(np.abs(ratio - level[:, None]), axis=1) * 1.4826
    return Levels(
        np.exp(level - level.mean()), 1.253 * deviation / np.sqrt(known), int(used.sum()), "median of ratios"
    )


def control_levels(counts: Floats, volume_mm3: Floats, names: tuple[str, ...]) -> Levels:
    """Level of each animal by its density in control regions, of which one knows that nothing changes there.

    Parameters
    ----------
    counts, volume_mm3 : float64 arrays (animals, control regions)
    names : tuple of str

    Raises
    ------
    DataError
        If an animal has no cell there.
    """
    there = np.nan_to_num(volume_mm3) > 0
    total = np.where(there, counts, 0.0).sum(axis=1)
    if (total == 0).any():
        raise DataError(
            f"--control: animal number {int(np.argmin(total)) + 1} has no cell in {', '.join(names)}: its level is "
            "unknown"
        )
    ratio = np.where(there, log_density(counts, volume_mm3) * np.log(2.0), np.nan)
    ratio = ratio - np.nanmean(ratio, axis=0)
    level = np.nanmean(ratio, axis=1)
    n = there.sum(axis=1)
    scatter = np.nanstd(ratio - level[:, None]) if ratio.shape[1] > 1 else np.nan
    error = np.sqrt(np.nan_to_num(scatter) ** 2 / n + 1.0 / total)
    return Levels(np.exp(level - level.mean()), error, len(names), f"control regions {', '.join(names)}")
