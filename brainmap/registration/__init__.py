"""A brain laid onto its atlas, and points and images brought from one to the other."""
