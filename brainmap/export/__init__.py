"""A run's cells in the formats of other tools."""

__all__ = ["EXPORT_KINDS", "EXPORT_NAMES"]

# Where an export goes inside the run folder when no other place is named.
EXPORT_NAMES = {
    "brainglobe-xml": "cells.xml",
    "brainglobe-csv": "cells.csv",
    "brainglobe-yaml": "cells.yml",
    "brainmapper": "brainmapper",
    "napari": "napari.csv",
    "neuroglancer": "neuroglancer",
    "brainrender": "brainrender.npy",
    "quint": "quint.csv",
    "density": "density.ome.zarr",
}
EXPORT_KINDS = tuple(EXPORT_NAMES)
