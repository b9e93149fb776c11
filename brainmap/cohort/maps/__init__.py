"""Maps of a cohort: densities in atlas space, and where they differ, voxel by voxel."""
