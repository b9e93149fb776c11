"""Atlases and their regions: points of a brain -> counts per structure."""

from brainmap.atlas.atlas import LEFT, RIGHT, Atlas
from brainmap.atlas.find import list_atlases
from brainmap.atlas.regions import RegionCounter, assign_regions, count_regions
from brainmap.atlas.structures import Structures

__all__ = [
    "LEFT",
    "RIGHT",
    "Atlas",
    "RegionCounter",
    "Structures",
    "assign_regions",
    "count_regions",
    "list_atlases",
]
