"""One block: from stored voxels to the cells in it."""
