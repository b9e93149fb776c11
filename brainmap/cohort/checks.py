"""What makes a comparison doubtful, in words: unlike animals, few animals, unlike scatter, regions that are missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from brainmap.atlas.region_sets import Selection
from brainmap.cohort.groups import Groups
from brainmap.cohort.missing import BAD, LEFT_OUT, NOT_THERE, ODD, OUTLIER, Missing
from brainmap.cohort.model.design import Design
from brainmap.cohort.model.dispersion import Scatter
from brainmap.cohort.model.statistics import RegionTest
from brainmap.cohort.study import CompareSettings
from brainmap.cohort.table import SIDES, CohortTable

__all__ = ["notes", "of_animals", "of_design", "of_levels", "of_missing", "of_selection"]

# Cells outside all regions compared that deserve a word.
_MUCH_OUTSIDE = 0.2
# An animal with fewer cells than this share of what its group has, or more than its inverse.
_UNUSUAL = 1 / 3
# An animal that stands out in more than this share of its regions is doubtful as a whole.
_MANY_OUTLIERS = 0.1
_NAMED = 6
_NOTABLE_P = 0.05


def of_animals(table: CohortTable) -> Iterator[str]:
    """Animals with far fewer or more cells than the others; doubtful registrations."""
    groups = table.groups
    density = overall_density(table)
    for i, label in enumerate(groups.labels):
        others = np.delete(groups.rows(groups.group[i]), np.searchsorted(groups.rows(groups.group[i]), i))
        if len(others) < 2:
            others = np.delete(np.arange(len(groups)), i)
        usual = float(np.median(density[others]))
        if usual > 0 and not _UNUSUAL <= density[i] / usual <= 1 / _UNUSUAL:
            yield (
                f"{label} has {density[i] / usual:.0%} of the usual cells per volume in the whole brain: look at its "
                "run (channel, threshold, staining) before trusting any result with it"
            )
    if table.verdicts.count("doubtful"):
        doubtful = ", ".join(
            label for label, v in zip(groups.labels, table.verdicts, strict=True) if v == "doubtful"
        )
        yield f"the registration of {doubtful} is doubtful: its regions may lie elsewhere"


def of_levels(design: Design, overall: Sequence[RegionTest], divided_out: bool) -> Iterator[str]:
    """Levels that differ between the groups themselves."""
    for contrast, test in zip(design.contrasts, overall, strict=False):
        if test.p[0] < _NOTABLE_P and divided_out:
            yield (
                f"the animals' levels, which are divided out, differ by {contrast.name} (p = {test.p[0]:.2g}): a "
                "change of the whole brain looks like this, and is not seen in any region (--absolute keeps the levels)"
            )


def overall_density(table: CohortTable) -> NDArray[np.float64]:
    """Cells per mm3 of each animal over all that has a volume."""
    both = SIDES.index("both")
    roots = ~np.isin(table.parent_id, table.id)
    cells = table.count[:, roots, both].sum(axis=1)
    volume = np.nansum(table.volume_mm3[:, roots, both], axis=1)
    return np.divide(cells, volume, out=np.zeros(len(cells)), where=volume > 0)


def of_selection(table: CohortTable, selection: Selection, count: NDArray[np.int64]) -> Iterator[str]:
    """Regions inside each other; cells in none of them."""
    both = SIDES.index("both")
    if selection.nested:
        yield (
            "some regions contain others: one difference appears in all regions that contain it, so do not count "
            "the regions as separate findings"
        )
    elif selection.level in ("summary", "leaf"):
        inside = int(table.count_direct[:, :, both].sum())
        outside = 1 - count[:, :, both].sum() / max(inside, 1)
        if outside > _MUCH_OUTSIDE:
            yield (
                f"{outside:.0%} of the cells lie in structures that are divided further, but in none of their "
                "parts, and are in no region compared"
            )


def of_design(groups: Groups, design: Design, scatters: Sequence[Scatter | None]) -> Iterator[str]:
    """Few animals, few degrees of freedom, groups that scatter unlike."""
    if not groups.free:
        for name in groups.names:
            if groups.group.count(name) == 2:
                yield (
                    f"group {name} has two animals: only enormous differences can be seen, and one odd animal decides; "
                    "brainmap power says how many are needed"
                )
    if design.spare < 3:
        yield (
            f"the design leaves {design.spare} degree{'s' if design.spare > 1 else ''} of freedom to see the scatter "
            "by: tests rest on what regions have in common"
        )
    for scatter in scatters:
        if scatter is not None and scatter.variance.max() > scatter.variance.min():
            yield (
                "the groups scatter unlike: variances differ by a factor of "
                f"{scatter.variance.max() / scatter.variance.min():.1f} over all regions. Counts are weighted by it, "
                "and called different only where densities differ too (the larger p of both)"
            )


def of_missing(missing: Missing, groups: Groups, selection: Selection, sides: Sequence[str]) -> Iterator[str]:
    """Who lacks what, and why."""
    chosen = [SIDES.index(side) for side in sides]
    for i, label in enumerate(groups.labels):
        code = missing.code[i][:, chosen]
        if (code == BAD).any():
            yield f"the registration of {label} is bad: it takes no part in any test (detect or register it again)"
            continue
        for reason, words in (
            (LEFT_OUT, "are left out"),
            (NOT_THERE, "are not in its image or mask"),
            (ODD, "have a volume out of proportion (badly registered there?)"),
            (OUTLIER, "stand out from what the other animals predict (damage, artefacts?)"),
        ):
            rows = np.flatnonzero((code == reason).any(axis=1))
            if len(rows):
                named = ", ".join(selection.acronym[j] for j in rows[:_NAMED])
                more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
                yield f"{label}: {len(rows)} regions {words} and are missing there, not zero: {named}{more}"
        if (code == OUTLIER).any(axis=1).mean() > _MANY_OUTLIERS:
            yield f"{label} stands out in so many regions that the whole animal is doubtful: consider leaving it out"


def notes(groups: Groups, design: Design, settings: CompareSettings) -> Iterator[str]:
    """Columns that are not used; how groups are tested together."""
    used = {coding.name for coding in design.codings} | {settings.unit}
    unused = [name for name in groups.columns if name not in used]
    if unused:
        yield f"columns not used: {', '.join(unused)} (--covariate adjusts for one)"
    if len(groups.names) > 2 and not groups.free:
        yield "all groups together say how much animals scatter: one more or less changes the others' p-values a little"
