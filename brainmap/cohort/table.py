"""The regions of many runs side by side: counts and volumes, animal by animal."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.cohort.groups import Groups
from brainmap.errors import DataError, NotFoundError
from brainmap.files import fingerprint
from brainmap.report.region_rows import RegionTree, read_regions
from brainmap.run_folder import REGIONS_CSV, RunRecord

__all__ = ["SIDES", "CohortTable", "read_cohort"]

log = logging.getLogger(__name__)

SIDES = ("left", "right", "both")

# Settings that change how many cells are found: one value for the whole study.
_SETTINGS = {"threshold": "threshold", "cell_diameter_um": "cell diameter", "channel": "channel"}


@dataclass(frozen=True)
class CohortTable:
    """Counts and volumes of all structures of an atlas in all animals.

    Attributes
    ----------
    groups : Groups
    id, parent_id : int64 arrays (structures,)
    acronym, name : tuples of str
    depth : int64 array (structures,)
    count, count_direct : int64 arrays (animals, structures, sides)
        Sides as `SIDES`; the first includes all descendants.
    volume_mm3 : float64 array (animals, structures, sides)
        NaN where a run knows no volumes.
    fingerprints : tuple of str
        Of each animal's table.
    warnings : tuple of str
        What makes animals hard to compare.
    verdicts : tuple of str
        On the registration of each animal: good, doubtful, bad, or empty where it is not known.
    atlases : tuple of str
        Name or folder of the atlas of each run, as it was given; empty where it is not known.
    """

    groups: Groups
    id: NDArray[np.int64]
    acronym: tuple[str, ...]
    name: tuple[str, ...]
    parent_id: NDArray[np.int64]
    depth: NDArray[np.int64]
    count: NDArray[np.int64]
    count_direct: NDArray[np.int64]
    volume_mm3: NDArray[np.float64]
    fingerprints: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    verdicts: tuple[str, ...] = ()
    atlases: tuple[str, ...] = ()

    @property
    def present(self) -> NDArray[np.bool_]:
        """Structures with volume or cells in any animal: an ontology names many that its annotation lacks."""
        there = (np.nan_to_num(self.volume_mm3) > 0) | (self.count > 0)
        return np.asarray(there.any(axis=(0, 2)))


def read_cohort(groups: Groups) -> CohortTable:
    """Read the run folders of a study.

    Raises
    ------
    NotFoundError
        If a folder is not a run folder.
    DataError
        If a run is not complete or has no table of regions, runs used different atlases, or two animals have the same
        table.
    """
    records = [_record(run, animal) for run, animal in zip(groups.run, groups.labels, strict=True)]
    _require_one_atlas(groups, records)
    trees = [_tree(run, animal) for run, animal in zip(groups.run, groups.labels, strict=True)]
    first = trees[0].regions
    if not first:
        raise DataError(f"{groups.run[0] / REGIONS_CSV} holds no structures")
    hierarchy = [(region.id, region.parent_id) for region in first]
    for animal, tree in zip(groups.labels, trees, strict=True):
        if [(region.id, region.parent_id) for region in tree.regions] != hierarchy:
            raise DataError(
                f"the runs of {groups.labels[0]} and {animal} list different structures: they were counted with "
                "different atlases; count all animals with one"
            )
    fingerprints = tuple(fingerprint((run / REGIONS_CSV).read_bytes()) for run in groups.run)
    _require_different(groups, fingerprints, trees)
    warnings = (*_differing_settings(groups, records), *_run_warnings(groups, records))
    for warning in warnings:
        log.warning("%s", warning)
    return CohortTable(
        groups=groups,
        id=np.array([region.id for region in first], dtype=np.int64),
        acronym=tuple(region.acronym for region in first),
        name=tuple(region.name for region in first),
        parent_id=np.array([region.parent_id for region in first], dtype=np.int64),
        depth=np.array([region.depth for region in first], dtype=np.int64),
        count=_stack(trees, "count").astype(np.int64),
        count_direct=_stack(trees, "count_direct").astype(np.int64),
        volume_mm3=_stack(trees, "volume_mm3").astype(np.float64),
        fingerprints=fingerprints,
        warnings=warnings,
        atlases=tuple(str(record.parameters.get("atlas") or "") for record in records),
        verdicts=tuple(str(record.results.get("registration_verdict") or "") for record in records),
    )


def _require_different(groups: Groups, fingerprints: tuple[str, ...], trees: list[RegionTree]) -> None:
    first: dict[str, str] = {}
    for label, found, tree in zip(groups.labels, fingerprints, trees, strict=True):
        cells = any(region.count["both"] for region in tree.regions)
        if cells and found in first:
            raise DataError(
                f"{first[found]} and {label} have the same table of regions, to the last cell: it is one run under two "
                "names; every animal needs its own"
            )
        first[found] = label


def _stack(trees: list[RegionTree], name: str) -> NDArray[Any]:
    return np.array([[[getattr(r, name)[side] for side in SIDES] for r in tree.regions] for tree in trees])


def _record(run: Path, animal: str) -> RunRecord:
    record = RunRecord.load(run)
    if record.status != "complete":
        failed = len(record.blocks.get("failed") or ())
        why = f"{failed} blocks failed" if failed else f"its status is {record.status}"
        raise DataError(
            f"the run of {animal} ({run}) is not complete ({why}), so its counts are too low: finish it with the "
            "same detect command, or leave the animal out"
        )
    return record


def _tree(run: Path, animal: str) -> RegionTree:
    try:
        return read_regions(run / REGIONS_CSV)
    except NotFoundError:
        raise DataError(
            f"the run of {animal} ({run}) has no {REGIONS_CSV}: it was made without an atlas; detect again with "
            "--atlas, or count with brainmap regions"
        ) from None


def _require_one_atlas(groups: Groups, records: list[RunRecord]) -> None:
    known = {
        animal: record.fingerprints["atlas"]
        for animal, record in zip(groups.labels, records, strict=True)
        if record.fingerprints.get("atlas")
    }
    if len(set(known.values())) > 1:
        usual = Counter(known.values()).most_common(1)[0][0]
        named = {
            animal: record.parameters.get("atlas")
            for animal, record in zip(groups.labels, records, strict=True)
        }
        other = next(animal for animal, atlas in known.items() if atlas != usual)
        same = next(animal for animal, atlas in known.items() if atlas == usual)
        raise DataError(
            f"the runs of {same} (atlas {named[same]}) and {other} (atlas {named[other]}) were counted with different "
            "atlases, or versions or resolutions of one; count all animals with the same"
        )


def _differing_settings(groups: Groups, records: list[RunRecord]) -> list[str]:
    found = []
    values: dict[str, list[Any]] = {"detector": [record.fingerprints.get("detector") for record in records]}
    for key, name in _SETTINGS.items():
        values[name] = [record.results.get(key, record.parameters.get(key)) for record in records]
    for name, of_animals in values.items():
        usual = Counter(of_animals).most_common(1)[0][0]
        others = [animal for animal, value in zip(groups.labels, of_animals, strict=True) if value != usual]
        if others:
            found.append(
                f"not all cells were detected with the same {name} (different: {', '.join(others)}): their counts "
                "differ for this reason alone"
            )
    return found


def _run_warnings(groups: Groups, records: list[RunRecord]) -> list[str]:
    return [
        f"{animal}: {warning}"
        for animal, record in zip(groups.labels, records, strict=True)
        for warning in record.warnings
    ]
