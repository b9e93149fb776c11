"""The table of regions as a report needs it: one row per structure, left and right beside each other."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brainmap.errors import DataError, NotFoundError
from brainmap.files import plain_text

__all__ = ["Region", "RegionTree", "read_regions", "read_summary"]

_SIDES = ("left", "right", "both")


@dataclass(frozen=True)
class Region:
    """One structure; dicts have the keys left, right, both; unknown volumes and densities are NaN."""

    id: int
    acronym: str
    name: str
    parent_id: int
    depth: int
    count: dict[str, int]
    count_direct: dict[str, int]
    volume_mm3: dict[str, float]

    def density(self, side: str = "both") -> float:
        """Cells per mm3; NaN without volume."""
        volume = self.volume_mm3[side]
        return self.count[side] / volume if volume > 0 else float("nan")


@dataclass(frozen=True)
class RegionTree:
    """All structures of a ``regions.csv`` in file order, and the count outside of all of them."""

    regions: tuple[Region, ...]
    outside: int

    def summary(self, size: int = 20) -> list[Region]:
        """Structures that share no cell and together hold nearly all, by falling count.

        Starting from the root, the structure with most cells is replaced by its children until there are
        `size` of them; one that keeps more than a twentieth of its cells to itself is not split.
        """
        children: dict[int, list[Region]] = {}
        for region in self.regions:
            children.setdefault(region.parent_id, []).append(region)
        known = {region.id for region in self.regions}
        front = [region for region in self.regions if region.parent_id not in known and region.count["both"]]
        done: list[Region] = []
        while front and len(front) + len(done) < size:
            front.sort(key=lambda region: region.count["both"])
            region = front.pop()
            parts = [child for child in children.get(region.id, []) if child.count["both"]]
            direct = region.count_direct["both"]
            if (
                not parts
                or direct > 0.05 * region.count["both"]
                or len(front) + len(done) + len(parts) > size
            ):
                done.append(region)
            else:
                front.extend(parts)
        return sorted([*front, *done], key=lambda region: -region.count["both"])[:size]

    def densest(self, size: int = 20) -> list[Region]:
        """Structures without children that have most cells per mm3; the tiniest volumes are left out."""
        parents = {region.parent_id for region in self.regions}
        leaves = [region for region in self.regions if region.id not in parents and region.density() > 0]
        if not leaves:
            return []
        floor = 0.1 * float(np.median([region.volume_mm3["both"] for region in leaves]))
        large = [region for region in leaves if region.volume_mm3["both"] >= floor]
        return sorted(large, key=lambda region: -region.density())[:size]


@contextmanager
def _readable(path: Path) -> Iterator[csv.DictReader[str]]:
    """Rows of a table, with an error of ours where it is no text or no table."""
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            yield csv.DictReader(handle)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a readable table: {error}") from error


def read_regions(path: str | Path) -> RegionTree:
    """Read a ``regions.csv``.

    Raises
    ------
    NotFoundError, DataError
        If it is not there or lacks a column.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"there is no table of regions {path}")
    regions: dict[int, Region] = {}
    outside = 0
    with _readable(path) as rows:
        for number, row in enumerate(rows, start=2):
            try:
                key, side = int(row["region_id"]), row["hemisphere"]
                if key == 0:
                    outside = int(row["count"])
                    continue
                if key not in regions:
                    regions[key] = Region(
                        key, plain_text(row["acronym"]), plain_text(row["name"]),
                        int(row["parent_id"]), int(row["depth"]),
                        dict.fromkeys(_SIDES, 0), dict.fromkeys(_SIDES, 0), dict.fromkeys(_SIDES, float("nan")),
                    )  # fmt: skip
                region = regions[key]
                region.count[side] = int(row["count"])
                region.count_direct[side] = int(row["count_direct"] or 0)
                region.volume_mm3[side] = float(row["volume_mm3"] or "nan")
            except (KeyError, ValueError, TypeError) as error:
                raise DataError(
                    f"{path}, line {number}: not a row of a table of regions ({error})"
                ) from error
    return RegionTree(tuple(regions.values()), outside)


def read_summary(path: str | Path) -> list[list[str | float]]:
    """Read a ``regions_summary.csv``, left and right beside each other.

    Returns
    -------
    list of rows
        Acronym, name, cells left, right and in both, volume in mm3, cells per mm3, by the sample and by the atlas.
        What is not known is NaN.

    Raises
    ------
    NotFoundError, DataError
        If it is not there or lacks a column.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"there is no summary of regions {path}")
    sides: dict[str, dict[str, dict[str, str]]] = {}
    with _readable(path) as rows:
        for row in rows:
            sides.setdefault(plain_text(row.get("acronym") or ""), {})[row.get("hemisphere", "")] = row
    numbers = ("count", "volume_mm3", "density_per_mm3", "density_per_atlas_mm3")
    try:
        return [
            [acronym, plain_text(of["both"]["name"]),
             *(float(of[side]["count"]) if side in of else float("nan") for side in ("left", "right")),
             *(float(of["both"][number] or "nan") for number in numbers)]
            for acronym, of in sides.items()
        ]  # fmt: skip
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path} is not a summary of regions ({error!r})") from error
