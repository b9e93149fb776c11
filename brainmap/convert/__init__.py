"""Other images to OME-Zarr: TIFF files and folders, NumPy files, microscope formats."""
