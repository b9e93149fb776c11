"""What a comparison of groups is asked for and what it finds, as records."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brainmap.atlas.region_sets import Selection
from brainmap.cohort.groups import Groups
from brainmap.cohort.missing import Missing
from brainmap.cohort.model.design import Contrast, Design
from brainmap.cohort.model.levels import Levels
from brainmap.cohort.model.shrinkage import Shrunk
from brainmap.cohort.model.statistics import RegionTest
from brainmap.cohort.model.tree import Divisions
from brainmap.cohort.table import CohortTable
from brainmap.errors import UsageError

__all__ = ["COUNT", "DENSITY", "MEASURES", "CompareSettings", "Comparison", "Study", "overall_words"]

Floats = NDArray[np.float64]

COUNT, DENSITY = "count", "density_per_mm3"
HEMISPHERES = ("left", "right", "both", "each")
#: What is compared: a column of table.csv each.
MEASURES = {"count": (COUNT,), "density": (DENSITY,), "both": (COUNT, DENSITY)}
FAMILIES = ("tree", "flat")


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
        count (negative binomial regression), density (t-tests of log densities), or both.
    alpha : float
        Rate of false discoveries among the regions called different.
    covariates, formula, contrasts, paired
        See `build_design`.
    unit : str, optional
        Column whose levels (litters, cages) are compared instead of animals: those of one are added up.
    relative : bool, optional
        Divide out each animal's level over the whole brain; by default where animals of one group differ by it.
    control : tuple of str
        Instead: its level in these structures.
    family : str
        tree (divisions first, regions of those that differ next) or flat (all regions at once).
    exclude : path, optional
        CSV ``animal,structure``: what is damaged.
    coverage : float
        Least share of a region's usual volume.
    keep_outliers : bool
        Leave single regions of single animals in that stand out.
    """

    level: str = "summary"
    within: str | None = None
    hemisphere: str = "both"
    measure: str = "both"
    alpha: float = 0.05
    covariates: tuple[str, ...] = ()
    formula: str | None = None
    contrasts: tuple[str, ...] = ()
    paired: str | None = None
    unit: str | None = None
    relative: bool | None = None
    control: tuple[str, ...] = ()
    family: str = "tree"
    exclude: Path | None = None
    coverage: float = 0.5
    keep_outliers: bool = False

    def __post_init__(self) -> None:
        for option, allowed in (
            ("hemisphere", HEMISPHERES),
            ("measure", tuple(MEASURES)),
            ("family", FAMILIES),
        ):
            value = getattr(self, option)
            if value not in allowed:
                raise UsageError(f"--{option} must be one of {', '.join(allowed)}, not {value!r}")
        if not 0 < self.alpha < 1:
            raise UsageError(f"--alpha must lie between 0 and 1, not {self.alpha}")
        if not 0 <= self.coverage <= 1:
            raise UsageError(f"--coverage must lie between 0 and 1, not {self.coverage}")
        if self.relative and self.control:
            raise UsageError("--relative and --control both divide out the animals' level: give one")
        if self.paired and self.unit:
            raise UsageError(
                "--paired compares within litters, --unit compares litters: one column can do one of them"
            )

    @property
    def sides(self) -> tuple[str, ...]:
        """Hemispheres compared, one family of tests each."""
        return ("left", "right") if self.hemisphere == "each" else (self.hemisphere,)


@dataclass(frozen=True)
class Comparison:
    """One family of tests: a contrast of one measure in one hemisphere; arrays are (regions,).

    Attributes
    ----------
    measure, hemisphere : str
    contrast : Contrast
    result : RegionTest
    n, n_a, n_b : int arrays
        Animals that take part in all, in a and in b.
    cells_a, cells_b : float64 arrays
        Mean counts of these, as they are in the runs; NaN where a contrast is no difference.
    q, q_tree : float64 arrays
        Benjamini-Hochberg over all regions at once; down the tree, NaN without one.
    called : bool array
        Different at the settings' rate, by the settings' family.
    tested : int
        Regions in the family: those with enough cells.
    shrunk : Shrunk or None
        Effects pooled over regions; of counts.
    divisions : RegionTest or None
        The same test of whole divisions.
    q_division : float64 array (divisions,) or None
    """

    measure: str
    hemisphere: str
    contrast: Contrast
    result: RegionTest
    n: NDArray[np.int64]
    n_a: NDArray[np.int64]
    n_b: NDArray[np.int64]
    cells_a: Floats
    cells_b: Floats
    q: Floats
    q_tree: Floats
    called: NDArray[np.bool_]
    tested: int
    shrunk: Shrunk | None = None
    divisions: RegionTest | None = None
    q_division: Floats | None = None

    @property
    def name(self) -> str:
        """Of the contrast, for people."""
        c = self.contrast
        return f"{c.group_b} against {c.group_a}" if c.group_a else c.name

    @property
    def is_ratio(self) -> bool:
        """Whether there is a ratio: not where several coefficients are tested together."""
        return self.contrast.matrix.shape[1] == 1

    @property
    def effect(self) -> Floats:
        """Log ratio in standard deviations between animals."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.result.sd > 0, self.result.log2_ratio / self.result.sd, np.nan)

    @property
    def ranked(self) -> NDArray[np.intp]:
        """Tested regions, smallest p first; among equal p the largest effect."""
        p = self.result.p
        order = np.lexsort((-np.nan_to_num(np.abs(self.effect)), np.nan_to_num(p, nan=2.0)))
        return order[np.isfinite(p[order])]

    @property
    def found(self) -> NDArray[np.intp]:
        """Regions called different, the clearest first."""
        return self.ranked[self.called[self.ranked]]


@dataclass(frozen=True)
class Study:
    """A cohort at the chosen regions, and all its comparisons.

    Attributes
    ----------
    settings : CompareSettings
    table : CohortTable
        As read from the runs.
    groups : Groups
        What is compared: the animals, or the units they are added up to.
    design : Design
    selection : Selection
    divisions : Divisions or None
    count : int64 array (animals, regions, sides)
    volume_mm3 : float64 array (animals, regions, sides)
        NaN where the animal lacks the region; of the runs, no level divided out.
    missing : Missing
    levels : Levels or None
        Of the animals over the brain; None where too few regions have cells.
    level : float64 array (animals,)
        What was divided out; ones if nothing was.
    level_sd : float
        How much animals of one group differ in level, of its natural logarithm; NaN where it is not known.
    overall : tuple of RegionTest
        Of the level itself, the whole brain as one region, one for each contrast; empty where it is not known.
    comparisons : tuple of Comparison
    warnings, notes : tuples of str
        What may be wrong; what one should know.
    """

    settings: CompareSettings
    table: CohortTable
    groups: Groups
    design: Design
    selection: Selection
    divisions: Divisions | None
    count: NDArray[np.int64]
    volume_mm3: Floats
    missing: Missing
    levels: Levels | None
    level: Floats
    level_sd: float
    overall: tuple[RegionTest, ...]
    comparisons: tuple[Comparison, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def lines(self) -> list[tuple[str, str]]:
        """Names and values for people."""
        what = "animals" if self.settings.unit is None else f"units ({self.settings.unit})"
        sizes = ", ".join(f"{self.groups.group.count(name)} {name}" for name in self.groups.names)
        rows = [(what, sizes), ("design", self.design.formula)]
        rows += [
            (f"  {coding.name}", coding.words(self.groups.values(coding.name)))
            for coding in self.design.codings
        ]
        rows.append(("regions", f"{len(self.selection)} ({self.selection.level})"))
        rows.append(("level of each animal", self.level_words()))
        rows += [
            (f"whole brain, {contrast.name}", overall_words(test))
            for contrast, test in zip(self.design.contrasts, self.overall, strict=False)
        ]
        for one in self.comparisons:
            found = one.found
            name = f"{one.name}, {one.measure}, {one.hemisphere}"
            best = ", ".join(self._short(one, int(i)) for i in found[:5])
            rest = f": {best}{', ...' if len(found) > 5 else ''}" if len(found) else ""
            rows.append(
                (name, f"{len(found)} of {one.tested} regions differ at q <= {self.settings.alpha:g}{rest}")
            )
        rows += [("note", note) for note in self.notes]
        return rows + [("warning", warning) for warning in self.warnings]

    @property
    def levels_divided_out(self) -> bool:
        """Whether densities are relative to the animal's level."""
        return (
            bool((self.level != 1.0).any()) or self.settings.relative is True or bool(self.settings.control)
        )

    def level_words(self) -> str:
        """What was done with the animals' levels, and why."""
        scatter = (
            f"animals of one group differ by {self.level_sd:.0%}"
            if np.isfinite(self.level_sd)
            else "not known"
        )
        if self.levels is None:
            return "kept (too few regions with cells to know it)"
        what = f"divided out ({self.levels.source})" if self.levels_divided_out else "kept"
        return f"{what}; {scatter}"

    def _short(self, one: Comparison, region: int) -> str:
        acronym = self.selection.acronym[region]
        return f"{acronym} x{2 ** one.result.log2_ratio[region]:.2f}" if one.is_ratio else acronym


def overall_words(test: RegionTest) -> str:
    """The ratio of the whole brain for people."""
    ratio, low, high = (2.0 ** float(values[0]) for values in (test.log2_ratio, test.low, test.high))
    if not np.isfinite(ratio):
        return f"p = {test.p[0]:.2g}"
    return f"x{ratio:.2f} ({low:.2f} to {high:.2f}), p = {test.p[0]:.2g}"
