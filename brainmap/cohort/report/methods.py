"""The methods paragraph of a comparison, with its own numbers, and what to cite."""

from __future__ import annotations

import math

import numpy as np

from brainmap import __version__
from brainmap.cohort.missing import OUTLIER
from brainmap.cohort.model.statistics import CONFIDENCE, LEAST_CELLS
from brainmap.cohort.study import COUNT, Study

__all__ = ["CITATIONS", "methods_text"]

CITATIONS = (
    "Counts: quasi-likelihood negative binomial models, Chen Y. et al. 2025, edgeR v4, Nucleic Acids "
    "Research 53, gkaf018.",
    "Robust moderation: Phipson B. et al. 2016, Annals of Applied Statistics 10, 946-963.",
    "False discoveries: Benjamini Y., Hochberg Y. 1995, Journal of the Royal Statistical Society B 57, 289-300.",
    "Down a tree: Yekutieli D. 2008, Journal of the American Statistical Association 103, 309-316.",
    "Pooled ratios and local false sign rates: Stephens M. 2017, Biostatistics 18, 275-294.",
    "Levels by the median of ratios: Anders S., Huber W. 2010, Genome Biology 11, R106.",
    "Marginal means: Searle S. R. et al. 1980, The American Statistician 34, 216-221.",
)


def methods_text(study: Study) -> str:
    """Paragraphs that say what was done."""
    settings, groups = study.settings, study.groups
    sizes = ", ".join(f"{groups.group.count(name)} {name}" for name in groups.names)
    unit = f"units ({settings.unit})" if settings.unit else "animals"
    atlas = next((a for a in _atlases(study)), "the atlas of the runs")
    parts = [
        f"Cells were counted in {len(study.selection)} regions ({settings.level}) of {atlas} in "
        f"{len(groups)} {unit} ({sizes}) "
        f"and compared with brainmap {__version__} by the design {study.design.formula} "
        f"({study.design.matrix.shape[1]} coefficients, {study.design.spare} residual degrees of freedom)."
    ]
    if study.levels is not None:
        what = f"divided out (by {study.levels.source})" if study.levels_divided_out else "kept"
        parts.append(
            f"Each animal's level over the brain was {what}; within groups it scattered by {study.level_sd:.0%}."
        )
    counts = next((one for one in study.comparisons if one.measure == COUNT and one.result.scatter), None)
    if counts is not None and counts.result.scatter is not None:
        scatter = counts.result.scatter
        borrowed = (
            f"{scatter.prior_freedom:.1f}" if math.isfinite(scatter.prior_freedom) else "infinitely many"
        )
        parts.append(
            "Counts were modelled by negative binomial regressions with the logarithm of the region's volume "
            "as offset and "
            "tested by quasi-likelihood score tests. The common dispersion was "
            f"{scatter.dispersion:.3g}, the level that an animal shares over its regions scattered by "
            f"{math.sqrt(scatter.shared):.0%}, and region-wise dispersions were moderated robustly towards "
            "their trend with "
            f"{borrowed} prior degrees of freedom."
        )
    tests = {one.result.test for one in study.comparisons if one.measure != COUNT}
    if tests:
        kind = "Welch's t-tests" if "welch-t-log" in tests else "t-tests with one variance"
        parts.append(f"Densities were compared by {kind} of their logarithms, region by region.")
    outliers = int((study.missing.code == OUTLIER).any(axis=2).sum())
    others = int(((study.missing.code > 0) & (study.missing.code != OUTLIER)).any(axis=2).sum())
    if outliers or others:
        parts.append(
            f"{outliers} values of single regions of single {unit} that stood out from the others' "
            "prediction (false discovery "
            f"rate 1 %, factor 2 or more) and {others} regions that were damaged, outside the image or badly "
            "registered were "
            "treated as missing."
        )
    if study.divisions is not None and settings.family == "tree":
        parts.append(
            f"Regions were tested within {len(study.divisions)} divisions, and only in divisions that "
            "differed, at a rate of "
            f"false discoveries of {settings.alpha:g} over the tree (Yekutieli's procedure at half that rate "
            "in each family)."
        )
    else:
        parts.append(
            "p-values were adjusted by Benjamini and Hochberg's procedure over the regions with "
            f"{LEAST_CELLS} cells or more "
            f"(rate {settings.alpha:g})."
        )
    found = "; ".join(
        f"{one.name} ({'counts' if one.measure == COUNT else 'densities'}, {one.hemisphere}): "
        f"{len(one.found)} of {one.tested}"
        for one in study.comparisons
    )
    parts.append(f"Regions called different: {found}. Intervals are at {CONFIDENCE:.0%}.")
    return " ".join(parts)


def _atlases(study: Study) -> list[str]:
    return list(np.unique([name for name in study.table.atlases if name]))
