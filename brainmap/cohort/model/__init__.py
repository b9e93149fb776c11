"""The statistics of a comparison: designs, regressions of all regions at once, trees, pooled effects."""
