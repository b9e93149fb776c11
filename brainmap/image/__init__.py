"""Brain images: volumes in OME-Zarr, what their grey values mean, how they are written."""
