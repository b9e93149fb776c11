"""What lies at a path, and which command takes it: the end of the sentence that refuses it elsewhere."""

from __future__ import annotations

from pathlib import Path

__all__ = ["what_it_is"]

_PLANES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp")
_IMAGES = (
    ".tif",
    ".tiff",
    ".btf",
    ".npy",
    ".czi",
    ".lif",
    ".nd2",
    ".ims",
    ".oib",
    ".oif",
    ".oir",
    ".vsi",
    ".lsm",
)
_FOREIGN = (".h5", ".hdf5", ".nii", ".nii.gz", ".nrrd", ".mhd", ".mha", ".mat", ".npz")

# Files that folders of ours are known by, with what the folder is and what takes it.
_FOLDERS = (
    ("run.json", "the folder of a run, which brainmap regions, view, review, tune and status take"),
    (
        "tiles.parquet",
        "a folder of tiles, which brainmap crowd project, gt aggregate --tiles and retrain --tiles take",
    ),
    ("gt.json", "a ground truth, which --gt of brainmap train and brainmap gt compare take"),
    ("detector.json", "a detector, which brainmap detect --detector takes"),
    ("registration.json", "a registration, which brainmap detect --registration takes"),
    ("checkpoint.pt", "a network in training, which brainmap train takes"),
    ("structures.json", "an atlas, which --atlas takes"),
    ("structures.csv", "an atlas, which --atlas takes"),
    ("atlas.json", "an atlas, which --atlas takes"),
    ("zarr.json", "an image, which brainmap detect takes"),
    (".zattrs", "an image, which brainmap detect takes"),
    (".zarray", "an image, which brainmap detect takes"),
)
# The same for tables, by columns that others lack.
_TABLES = (
    ({"image_id", "worker_id"}, "a table of clicks, which brainmap gt aggregate and retrain --clicks take"),
    ({"run", "animal", "group"}, "a table of groups, which brainmap compare, maps and power take"),
    ({"brain", "animal", "group"}, "a table of a study, which brainmap study takes"),
    ({"image_id", "x", "y"}, "a table of points on tiles, which brainmap gt compare takes"),
    ({"z", "y", "x"}, "a table of points, which brainmap evaluate RUN takes"),
)  # fmt: skip


def what_it_is(path: str | Path) -> str:
    """The end of a sentence about a path that was given where something else is wanted.

    Returns
    -------
    str
        Such as "; it is a table of clicks, which brainmap gt aggregate takes"; empty for what is not known.
    """
    path = Path(path)
    try:
        if not path.exists():
            return _missing(path)
        known = _folder(path) if path.is_dir() else _file(path)
    except OSError:
        return ""
    return f"; it is {known}" if known else ""


def _missing(path: Path) -> str:
    from brainmap.errors import did_you_mean

    if "://" in str(path) or not path.parent.is_dir():
        return ""
    beside = [
        str(path.parent / other.name) for other in path.parent.iterdir() if not other.name.startswith(".")
    ]
    return f"; {path} does not exist{did_you_mean(str(path), beside)}"


def _folder(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    for file, kind in _FOLDERS:
        if file in names:
            return kind
    planes = [name for name in names if name.lower().endswith(_PLANES)]
    if planes:
        return f"a folder of planes: make an image of it with brainmap convert {folder} DEST.zarr --voxel-size Z,Y,X"
    images = [name for name in names if name.lower().endswith(".zarr")]
    if images:
        return f"a folder that holds {', '.join(images[:3])}"
    inside = [name for name in names if (folder / name / "run.json").is_file()]
    if inside:
        return f"a folder of runs, such as {folder / inside[0]}"
    return "an empty folder" if not names else ""


def _file(file: Path) -> str:
    name = file.name.lower()
    if name.endswith(_PLANES[2:]):
        return "a picture: brainmap convert takes the folder that holds all planes, train import-tiles single sections"
    if name.endswith(_IMAGES):
        return f"an image file: make a Zarr image of it with brainmap convert {file} DEST.zarr"
    if name.endswith(_FOREIGN):
        return f"a file of a format that must be saved as another one first: brainmap convert {file} DEST.zarr says how"
    if name.endswith((".csv", ".tsv", ".txt")):
        with file.open("rb") as stream:
            header = stream.readline(4096).decode("utf-8-sig", "replace").lower()
        columns = {word.strip(' "\r\n') for word in header.replace(";", ",").replace("\t", ",").split(",")}
        return next((kind for needed, kind in _TABLES if needed <= columns), "a table of another kind")
    return ""
