"""What a comparison of groups is asked for and what it finds, as records."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from brainmap.cohort.dispersion import Scatter
from brainmap.cohort.groups import Groups
from brainmap.cohort.selection import Selection
from brainmap.cohort.statistics import GroupMeans, hedges_interval
from brainmap.cohort.table import CohortTable
from brainmap.errors import UsageError

__all__ = ["HEMISPHERES", "MEASURES", "CompareSettings", "Comparison", "Study"]

Floats = NDArray[np.float64]

HEMISPHERES = ("left", "right", "both", "each")
#: What is compared: a column of table.csv each.
MEASURES = {"count": ("count",), "density": ("density_per_mm3",), "both": ("count", "density_per_mm3")}


@dataclass(frozen=True)
class CompareSettings:
    """What is compared, and how.

    Attributes
    ----------
    level, within : str
        See `select_regions`.
    hemisphere : str
        left, right, both (added up), or each (left and right, apart).
    measure : str
        count (negative binomial regression), density (Welch's t), or both.
    alpha : float
        Rate of false discoveries among the regions called different.
    covariates : tuple of str, optional
        Columns of the groups' table; all further ones by default.
    relative : bool
        Divide out each animal's level over the whole brain.
    """

    level: str = "summary"
    within: str | None = None
    hemisphere: str = "both"
    measure: str = "both"
    alpha: float = 0.05
    covariates: tuple[str, ...] | None = None
    relative: bool = False

    def __post_init__(self) -> None:
        if self.hemisphere not in HEMISPHERES:
            raise UsageError(f"--hemisphere must be one of {', '.join(HEMISPHERES)}, not {self.hemisphere!r}")
        if self.measure not in MEASURES:
            raise UsageError(f"--measure must be one of {', '.join(MEASURES)}, not {self.measure!r}")
        if not 0 < self.alpha < 1:
            raise UsageError(f"--alpha must lie between 0 and 1, not {self.alpha}")

    @property
    def sides(self) -> tuple[str, ...]:
        """Hemispheres compared, one family of tests each."""
        return ("left", "right") if self.hemisphere == "each" else (self.hemisphere,)


@dataclass(frozen=True)
class Comparison:
    """One family of tests: two groups, one measure, one hemisphere; arrays are (regions,).

    Attributes
    ----------
    measure, hemisphere, group_a, group_b, test : str
    means : GroupMeans
        Of the measure.
    log2_ratio, low, high : float64 arrays
        log2 of b over a, with a confidence interval (NaN where the test gives none).
    p, q : float64 arrays
    tested : int
        Regions in the family of the q-values: those with enough cells.
    scatter : Scatter or None
        What the counts were measured against.
    """

    measure: str
    hemisphere: str
    group_a: str
    group_b: str
    test: str
    means: GroupMeans
    log2_ratio: Floats
    low: Floats
    high: Floats
    p: Floats
    q: Floats
    tested: int
    scatter: Scatter | None = None

    @property
    def effect(self) -> Floats:
        """Hedges' g of the measure."""
        return self.means.hedges_g

    @property
    def effect_interval(self) -> tuple[Floats, Floats]:
        """Confidence interval of the effect."""
        return hedges_interval(self.means)

    def found(self, alpha: float) -> NDArray[np.intp]:
        """Regions called different, the clearest first."""
        order = np.argsort(self.p, kind="stable")
        return order[np.nan_to_num(self.q[order], nan=1.0) <= alpha]


@dataclass(frozen=True)
class Study:
    """A cohort at the chosen regions, and all its comparisons.

    Attributes
    ----------
    settings : CompareSettings
    table : CohortTable
    selection : Selection
    count : int64 array (animals, regions, sides)
    volume_mm3 : float64 array (animals, regions, sides)
    level : float64 array (animals,)
        Level over the brain that was divided out; ones if not `settings.relative`.
    comparisons : tuple of Comparison
    warnings : tuple of str
    """

    settings: CompareSettings
    table: CohortTable
    selection: Selection
    count: NDArray[np.int64]
    volume_mm3: Floats
    level: Floats
    comparisons: tuple[Comparison, ...]
    warnings: tuple[str, ...]

    @property
    def groups(self) -> Groups:
        """The animals."""
        return self.table.groups

    def lines(self) -> list[tuple[str, str]]:
        """Names and values for people."""
        sizes = ", ".join(f"{self.groups.group.count(name)} {name}" for name in self.groups.names)
        rows = [("animals", sizes), ("regions", f"{len(self.selection)} ({self.selection.level})")]
        for one in self.comparisons:
            found = one.found(self.settings.alpha)
            name = f"{one.group_b} against {one.group_a}, {one.measure}, {one.hemisphere}"
            best = ", ".join(f"{self.selection.acronym[i]} x{2 ** one.log2_ratio[i]:.2f}" for i in found[:5])
            rest = f": {best}{', ...' if len(found) > 5 else ''}" if len(found) else ""
            rows.append(
                (name, f"{len(found)} of {one.tested} regions differ at q <= {self.settings.alpha:g}{rest}")
            )
        return rows + [("warning", warning) for warning in self.warnings]
