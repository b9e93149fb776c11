"""Tests down the ontology: large divisions first, the regions inside those that differ next.

Every inner node is a family: its children are tested together, by Benjamini and Hochberg's procedure, and only if the
node itself was called (Yekutieli 2008, Journal of the American Statistical Association 103: 309; as `hFDR.adjust` of
the R package structSSI, Sankaran and Holmes 2014, Journal of Statistical Software 59: 13). The rate is that among all
that is called, divisions and regions together. Yekutieli's bound on it is about twice the rate of the families;
`benchmarks/cohort_power.py` measures it at or below that rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from brainmap.atlas.region_sets import DIVISIONS, Hierarchy, Selection
from brainmap.cohort.model.negative_binomial import Floats

__all__ = ["Divisions", "adjust_tree", "find_divisions", "hierarchical", "simes"]

_FEWEST, _MOST = 3, 40
_LEAST_INSIDE = 2


def hierarchical(p: Floats, parent: NDArray[np.intp]) -> Floats:
    """Adjusted p-values down a tree: the lowest level at which a node and all above it are called.

    Parameters
    ----------
    p : float64 array (nodes,)
        NaN: not tested, and neither is what lies below.
    parent : int array (nodes,)
        -1 for the first family; a parent stands anywhere.

    Returns
    -------
    float64 array (nodes,)
        As `hFDR.adjust`: the Benjamini-Hochberg p-value within the family, or that of a node above if larger.
    """
    own = np.full(len(p), np.nan)
    for key in np.unique(parent):
        family = np.flatnonzero((parent == key) & np.isfinite(p))
        if len(family):
            own[family] = stats.false_discovery_control(p[family])
    result = own.copy()
    above = parent.copy()
    while (above >= 0).any():
        up = above >= 0
        result[up] = np.maximum(result[up], own[above[up]])
        above = np.where(up, parent[above], -1)
    return result


def simes(p: Floats) -> float:
    """Simes' p-value: that any of these differ; NaN without any."""
    known = np.sort(p[np.isfinite(p)])
    return float(np.min(known * len(known) / np.arange(1, len(known) + 1))) if len(known) else float("nan")


@dataclass(frozen=True)
class Divisions:
    """The divisions above the regions of a comparison.

    Attributes
    ----------
    row : int array (divisions,)
        In the hierarchy.
    acronym, name : tuples of str
    of : int array (regions,)
        The division of each region; -1 where it lies in none.
    """

    row: NDArray[np.intp]
    acronym: tuple[str, ...]
    name: tuple[str, ...]
    of: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.row)


def find_divisions(hierarchy: Hierarchy, selection: Selection) -> Divisions | None:
    """Divisions that hold the regions: those of the Allen atlas, or the highest depth with several of them.

    None where regions are nested, are sets of one's own, or no depth parts them into families.
    """
    if selection.nested or (selection.id < 0).any():
        return None
    rows = np.array([members[0] for members in selection.members], dtype=np.intp)
    candidates: list[Sequence[int]] = []
    if all(name in hierarchy.acronym for name in DIVISIONS):
        candidates.append([hierarchy.acronym.index(name) for name in DIVISIONS])
    else:
        candidates += [
            np.flatnonzero(hierarchy.depth == d).tolist()
            for d in range(1, int(hierarchy.depth.max(initial=0)) + 1)
        ]
    for chosen in candidates:
        of = _containing(hierarchy, rows, np.array(chosen, dtype=np.intp))
        held = [i for i in range(len(chosen)) if (of == i).any()]
        sizes = [int((of == i).sum()) for i in held]
        if (
            _FEWEST <= len(held) <= _MOST
            and sum(size >= _LEAST_INSIDE for size in sizes) >= 2
            and max(sizes) > 2
        ):
            kept = np.array([chosen[i] for i in held], dtype=np.intp)
            renumbered = np.full(len(chosen) + 1, -1)
            renumbered[held] = np.arange(len(held))
            return Divisions(
                kept,
                tuple(hierarchy.acronym[i] for i in kept),
                tuple(hierarchy.name[i] for i in kept),
                renumbered[of],
            )
    return None


def _containing(hierarchy: Hierarchy, rows: NDArray[np.intp], chosen: NDArray[np.intp]) -> NDArray[np.intp]:
    place = {int(row): i for i, row in enumerate(chosen)}
    found = np.full(len(rows), -1, dtype=np.intp)
    for i, row in enumerate(rows):
        at = int(row)
        while at >= 0 and at not in place:
            at = int(hierarchy.parent[at])
        found[i] = place.get(at, -1)
    return found


def adjust_tree(
    p: Floats, family: NDArray[np.bool_], divisions: Divisions, p_division: Floats
) -> tuple[Floats, Floats]:
    """q-values of regions and divisions, tested from the divisions down.

    A division's p-value is twice the smaller of that of its cells added up and Simes' of its regions: the first sees
    what its regions share, the second a few regions. A region outside all divisions is one of the first family.

    Parameters
    ----------
    p : float64 array (regions,)
    family : bool array (regions,)
        Regions that are tested; the others have q = 1.
    divisions : Divisions
    p_division : float64 array (divisions,)
        Of the divisions' own cells; NaN where not tested.

    Returns
    -------
    q : float64 array (regions,)
    q_division : float64 array (divisions,)
    """
    tested = np.where(family, p, np.nan)
    together = np.array([simes(tested[divisions.of == i]) for i in range(len(divisions))])
    top = np.fmin(1.0, 2.0 * np.fmin(p_division, together))
    top = np.where(np.isfinite(together), top, np.nan)
    nodes = np.concatenate([top, tested])
    parent = np.concatenate([np.full(len(divisions), -1, dtype=np.intp), divisions.of])
    q = hierarchical(nodes, parent)
    regions = np.where(family, q[len(divisions) :], np.where(np.isfinite(p), 1.0, np.nan))
    return regions, q[: len(divisions)]
