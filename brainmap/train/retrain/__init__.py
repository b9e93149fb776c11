"""A better detector from clicks: the work of `brainmap retrain`."""
