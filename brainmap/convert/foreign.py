"""Formats that brainmap does not read itself: which plug-in of bioio does, or what else to do."""

from __future__ import annotations

from pathlib import Path

from brainmap.errors import DataError

__all__ = ["BIOIO_SUFFIXES", "refuse_unreadable"]

#: Endings that plug-ins of bioio read, with the package to install.
BIOIO_SUFFIXES = {
    ".czi": "bioio-czi",
    ".lif": "bioio-lif",
    ".nd2": "bioio-nd2",
    ".dv": "bioio-dv",
    ".sldy": "bioio-sldy",
    ".vsi": "bioio-bioformats",
    ".oib": "bioio-bioformats",
    ".oif": "bioio-bioformats",
    ".oir": "bioio-bioformats",
    ".lsm": "bioio-bioformats",
    ".ims": "bioio-bioformats",
    ".svs": "bioio-bioformats",
    ".ndpi": "bioio-bioformats",
    ".scn": "bioio-bioformats",
    ".mrxs": "bioio-bioformats",
}

_ADVICE = {
    ".h5": "an HDF5 file may hold anything: export the image to TIFF (in Fiji: File, Save As) or to OME-Zarr",
    ".hdf5": "an HDF5 file may hold anything: export the image to TIFF (in Fiji: File, Save As) or to OME-Zarr",
    ".n5": "export it from Fiji (N5 plug-in) to OME-Zarr or TIFF",
    ".xml": "an XML file only describes an image: give the image itself (BigStitcher exports to OME-Zarr and TIFF)",
    ".nii": "save it as TIFF or NumPy first, with nibabel: numpy.save('brain.npy', nibabel.load(FILE).get_fdata()), "
    "and give --axes xyz --voxel-size Z,Y,X",
    ".nrrd": "save it as TIFF first (Fiji opens and saves it), or as NumPy with pynrrd",
    ".mhd": "save it as TIFF first (Fiji opens and saves it), or as NumPy with SimpleITK",
    ".mha": "save it as TIFF first (Fiji opens and saves it), or as NumPy with SimpleITK",
    ".npz": "save the one array that is the image as .npy",
    ".mat": "save the image as TIFF from MATLAB, one page a plane",
    ".zip": "unpack it first",
    ".tar": "unpack it first",
    ".gz": "unpack it first",
    ".7z": "unpack it first",
    ".csv": "it is a table and not an image",
    ".parquet": "it is a table and not an image",
    ".pdf": "it is a document and not an image",
    ".mp4": "it is a film: export its planes as TIFF files",
    ".avi": "it is a film: export its planes as TIFF files",
    ".png": "give the folder that holds its planes",
    ".jpg": "give the folder that holds its planes",
    ".jpeg": "give the folder that holds its planes",
    ".bmp": "give the folder that holds its planes",
}


def refuse_unreadable(path: Path) -> None:
    """Refuse a file that no plug-in of bioio reads, with what to do instead.

    Raises
    ------
    DataError
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-2:] == [".nii", ".gz"]:
        suffixes.pop()
    suffix = suffixes[-1] if suffixes else ""
    if suffix in BIOIO_SUFFIXES:
        return
    if advice := _ADVICE.get(suffix):
        raise DataError(f"{path} is not read by brainmap: {advice}")
    known = ", ".join(sorted(BIOIO_SUFFIXES))
    raise DataError(
        f"{path} is not an image that brainmap knows: give a TIFF file, a folder of TIFF, PNG or JPEG planes, a .txt "
        f"list of planes, a .npy file or a Zarr image; with bioio also {known}"
    )
