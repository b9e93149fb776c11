"""The errors brainmap raises on purpose: each says what is wrong, where, and what to do.

Every one is also the standard-library error a caller would expect, and carries the exit code
the command line ends with.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

__all__ = [
    "BrainmapError",
    "DataError",
    "IncompleteRunError",
    "MissingExtraError",
    "NotFoundError",
    "UsageError",
    "did_you_mean",
    "what_it_is",
]


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


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about a name that does not exist: "; did you mean A or B?", empty where none is near."""
    # Takes a while to load, and only errors need it.
    from difflib import SequenceMatcher

    likeness = {name: SequenceMatcher(None, word.lower(), name.lower()).ratio() for name in known}
    best = sorted(likeness, key=lambda name: -likeness[name])[:2]
    # A second name only where it is about as near as the first.
    near = [name for name in best if likeness[name] >= max(0.6, likeness[best[0]] - 0.1)]
    return f"; did you mean {' or '.join(near)}?" if near else ""


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


class BrainmapError(Exception):
    """Base of all errors brainmap raises on purpose; `exit_code` is the process's exit status."""

    exit_code = 1


class DataError(BrainmapError, ValueError):
    """Data that cannot be used as it is: a damaged chunk, a table without a needed column."""


class NotFoundError(BrainmapError, FileNotFoundError):
    """A file, folder, URL, atlas or detector that does not exist."""

    # FileNotFoundError formats (errno, strerror) pairs; ours are plain sentences.
    __str__ = Exception.__str__


class UsageError(BrainmapError, ValueError):
    """A wrong option or value, or options that contradict each other."""

    exit_code = 2


class MissingExtraError(BrainmapError, ImportError):
    """An optional package is needed and not installed.

    Parameters
    ----------
    package : str
        Name of the missing package.
    extra : str
        The brainmap extra that installs it.
    purpose : str
        What it is needed for, as the end of the sentence "... is needed to ...".
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{package} is needed to {purpose} and is not installed; "
            f"install it with: pip install 'brainmap[{extra}]'"
        )
        self.package, self.extra, self.purpose = package, extra, purpose

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str, str]]:
        # Exceptions are pickled by their message; this one is built from its parts on a worker too.
        return type(self), (self.package, self.extra, self.purpose)


class IncompleteRunError(BrainmapError, RuntimeError):
    """A run finished, but some blocks could not be processed."""

    exit_code = 3
