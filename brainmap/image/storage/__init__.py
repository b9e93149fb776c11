"""Regions of Zarr arrays, read and written chunk by chunk."""
