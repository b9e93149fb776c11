"""Options of the commands: parsed from text or TOML at the edge, then records that are trusted.

Every parser takes what a person writes (`"5,2,2"`) or what TOML holds (`[5, 2, 2]`) and raises
`UsageError` with one sentence that names the option.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from brainmap.coords import parse_known_letters
from brainmap.errors import NotFoundError, UsageError, did_you_mean
from brainmap.export import EXPORT_KINDS
from brainmap.image.axes import parse_axes
from brainmap.image.plausible import check_cell_diameter
from brainmap.settings import read_settings

__all__ = [
    "BACKENDS",
    "DEFAULT_ATLAS",
    "DETECT_SETTINGS",
    "DEVICES",
    "DetectRequest",
    "Roi",
    "default_out",
    "detect_request",
    "detect_requests",
    "find_brains",
    "parse_block",
    "parse_voxel_size",
]

DEFAULT_ATLAS = "allen_mouse_50um"
BACKENDS = ("auto", "openvino", "tensorrt", "torch")
DEVICES = ("cpu", "cuda", "mps")
RUN_SUFFIX = ".brainmap"

# Options that say how a run is computed, not what it computes: they may differ when it resumes.
EXECUTION = ("out", "workers", "scheduler", "overwrite", "dry_run", "exports", "level", "progress")


# Options that name a file or folder, or may.
PATHS = ("brain", "atlas", "registration", "detector", "registration_image", "mask")


@dataclass(frozen=True)
class Roi:
    """A box of level-0 voxels: a half-open range on each of z, y, x; a stop of None is the end."""

    z: tuple[int, int | None]
    y: tuple[int, int | None]
    x: tuple[int, int | None]

    def __post_init__(self) -> None:
        for axis, (start, stop) in zip("zyx", (self.z, self.y, self.x), strict=True):
            if start < 0 or (stop is not None and stop <= start):
                raise UsageError(
                    f"--roi: the range {start}:{'' if stop is None else stop} of {axis} is empty"
                )

    @classmethod
    def parse(cls, text: str) -> Roi:
        """Read `z0:z1,y0:y1,x0:x1`; a missing bound is the volume's."""
        parts = text.split(",")
        try:
            ranges = [_parse_range(part) for part in parts]
        except ValueError:
            ranges = []
        if len(ranges) != 3:
            raise UsageError(f"--roi must be z0:z1,y0:y1,x0:x1 in voxels, not {text!r}")
        return cls(*ranges)

    def slices(self, shape: tuple[int, int, int]) -> tuple[slice, slice, slice]:
        """The box within a volume of `shape`.

        Raises
        ------
        UsageError
            If it reaches beyond the volume.
        """
        found = []
        for axis, (start, stop), size in zip("zyx", (self.z, self.y, self.x), shape, strict=True):
            end = size if stop is None else stop
            if end > size or start >= size:
                raise UsageError(
                    f"--roi: {axis} range {start}:{end} reaches beyond the volume's {size} voxels"
                )
            found.append(slice(start, end))
        return found[0], found[1], found[2]

    def __str__(self) -> str:
        return ",".join(f"{a}:{'' if b is None else b}" for a, b in (self.z, self.y, self.x))


def _parse_range(text: str) -> tuple[int, int | None]:
    start, separator, stop = text.strip().partition(":")
    if not separator:
        raise ValueError(text)
    return int(start or 0), int(stop) if stop.strip() else None


def parse_voxel_size(value: str | Iterable[float]) -> tuple[float, float, float]:
    """Voxel size `Z,Y,X` in micrometres."""
    numbers = _numbers(value, "--voxel-size", "Z,Y,X in micrometres, e.g. 5,2,2")
    if not all(math.isfinite(number) and number > 0 for number in numbers):
        raise UsageError(f"--voxel-size must be three positive numbers, not {_show(value)}")
    return numbers


def parse_block(value: str | Iterable[float]) -> tuple[int, int, int]:
    """Block size `Z,Y,X` in level-0 voxels."""
    numbers = _numbers(value, "--block", "Z,Y,X in voxels, e.g. 64,1024,1024")
    if not all(number >= 1 and number == int(number) for number in numbers):
        raise UsageError(f"--block must be three whole numbers of at least 1, not {_show(value)}")
    return int(numbers[0]), int(numbers[1]), int(numbers[2])


def _numbers(value: str | Iterable[float], option: str, meaning: str) -> tuple[float, float, float]:
    parts: list[Any] = value.split(",") if isinstance(value, str) else _as_list(value)
    try:
        numbers = [float(part) for part in parts]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != 3:
        raise UsageError(f"{option} must be {meaning}, not {_show(value)}")
    return numbers[0], numbers[1], numbers[2]


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _show(value: Any) -> str:
    return repr(value) if isinstance(value, str) else str(value)


@dataclass(frozen=True)
class DetectRequest:
    """Everything `brainmap detect` needs to know about one brain, validated at construction.

    Attributes
    ----------
    brain : str
        Path or URL of the volume.
    out : Path
        Run folder.
    channel, registration_channel : int or None
        Channel to detect in; channel to register (None: the same).
    timepoint : int or None
        Needed if the image has several.
    axes : str or None
        What each stored axis is, such as "xyz"; overrides the metadata.
    orientation : str or None
        Three letters naming where each axis starts, a dot for each that is to be found; "auto" finds all;
        None is the image's own.
    voxel_um : (z, y, x) or None
        Overrides the image's voxel size.
    atlas : str or None
        Name or folder; None counts no regions.
    registration : Path or None
        A finished registration to use instead of registering.
    detector : str
        Name or folder.
    threshold : float or None
        Calibrated score; None is the detector's own.
    cell_diameter_um : float, "auto" or None
        "auto" measures it on sample patches, see `brainmap.image.cell_size`; None is the detector's own.
    roi : Roi or None
        Part of the volume, in level-0 voxels.
    block : (z, y, x) or None
        Size of a block in level-0 voxels; None lets the engine choose.
    backend, device : str
        One of `BACKENDS`; one of `DEVICES` or None (the backend's choice).
    registration_image, mask : Path or None
        An image to register instead of the brain's own; tissue to analyse.
    workers, scheduler
        Number of workers; address of a dask scheduler, or `slurm:FILE`.
    overwrite, dry_run : bool
    exports : tuple of str
        Of `EXPORT_KINDS`.
    level : str
        Regions of the summary, see `brainmap.atlas.region_sets`.
    progress : bool or None
        Whether to draw a progress bar; None does so on a terminal.
    """

    brain: str
    out: Path
    channel: int | None = None
    registration_channel: int | None = None
    timepoint: int | None = None
    axes: str | None = None
    orientation: str | None = None
    voxel_um: tuple[float, float, float] | None = None
    atlas: str | None = DEFAULT_ATLAS
    registration: Path | None = None
    detector: str = "default"
    threshold: float | None = None
    cell_diameter_um: float | Literal["auto"] | None = None
    roi: Roi | None = None
    block: tuple[int, int, int] | None = None
    backend: str = "auto"
    device: str | None = None
    registration_image: Path | None = None
    mask: Path | None = None
    workers: int | None = None
    scheduler: str | None = None
    overwrite: bool = False
    dry_run: bool = False
    exports: tuple[str, ...] = ()
    level: str = "summary"
    progress: bool | None = None

    def __post_init__(self) -> None:
        for option, channel in (
            ("channel", self.channel),
            ("registration-channel", self.registration_channel),
            ("timepoint", self.timepoint),
        ):
            if channel is not None and channel < 0:
                raise UsageError(f"--{option} counts from 0, it cannot be {channel}")
        if self.axes is not None:
            parse_axes(self.axes)
        if self.orientation is not None:
            known = parse_known_letters(self.orientation)
            object.__setattr__(self, "orientation", "auto" if known == "..." else known)
        if self.finds_orientation and not self.wants_regions:
            raise UsageError(f"--orientation {self.orientation} needs an atlas: leave --no-atlas out")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UsageError(f"--threshold must lie between 0 and 1, not {self.threshold}")
        diameter = self.cell_diameter_um
        if diameter is not None and diameter != "auto":
            if not (math.isfinite(diameter) and diameter > 0):
                raise UsageError(f"--cell-diameter must be positive micrometres or auto, not {diameter}")
            check_cell_diameter(diameter)
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"--workers must be at least 1, not {self.workers}")
        if self.level.lower().endswith(".csv"):
            object.__setattr__(self, "level", str(Path(self.level).absolute()))
        _choice("--backend", self.backend, BACKENDS)
        if self.device is not None:
            _choice("--device", self.device, DEVICES)
        for kind in self.exports:
            _choice("--export", kind, EXPORT_KINDS)
        if self.scheduler is not None and self.scheduler in ("", "slurm:"):
            raise UsageError("--scheduler must be the address of a dask scheduler or slurm:FILE")
        if self.registration is not None and self.registration_image is not None:
            raise UsageError(
                "--registration and --registration-image exclude each other: one is already registered"
            )

    @property
    def wants_regions(self) -> bool:
        """Whether cells are to be mapped to an atlas."""
        return self.atlas is not None or self.registration is not None

    @property
    def finds_orientation(self) -> bool:
        """Whether letters of the orientation are to be found by registration."""
        return self.orientation is not None and (self.orientation == "auto" or "." in self.orientation)

    def parameters(self) -> dict[str, Any]:
        """The options that decide the result: equal ones may resume a run.

        Paths are absolute, so that the same command means the same from any folder.
        """
        values = {
            item.name: getattr(self, item.name)
            for item in dataclasses.fields(self)
            if item.name not in EXECUTION
        }
        return values | {name: _absolute(values[name]) for name in PATHS}

    def execution(self) -> dict[str, Any]:
        """The options that may differ between the commands of one run."""
        return {name: getattr(self, name) for name in ("workers", "scheduler", "exports", "level")}


def _absolute(value: str | Path | None) -> str | None:
    """An absolute path where there is one; URLs and names of atlases and detectors stay as they are."""
    if value is None or "://" in str(value) or not (isinstance(value, Path) or Path(value).exists()):
        return None if value is None else str(value)
    return str(Path(value).absolute())


def _choice(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        near = did_you_mean(value, allowed)
        raise UsageError(f"{option} must be one of {', '.join(allowed)}, not {value!r}{near}")


def _parse_cell_diameter(value: Any) -> float | Literal["auto"]:
    """A diameter in micrometres, or `auto`."""
    if isinstance(value, str) and value.strip().lower() == "auto":
        return "auto"
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UsageError(f"--cell-diameter must be micrometres or auto, not {value!r}") from None


# Options of `brainmap detect` by their name on the command line and in TOML -> (field, parser).
_DETECT_OPTIONS: dict[str, tuple[str, Any]] = {
    "channel": ("channel", int),
    "registration-channel": ("registration_channel", int),
    "timepoint": ("timepoint", int),
    "axes": ("axes", str),
    "orientation": ("orientation", str),
    "voxel-size": ("voxel_um", parse_voxel_size),
    "atlas": ("atlas", str),
    "registration": ("registration", Path),
    "detector": ("detector", str),
    "threshold": ("threshold", float),
    "cell-diameter": ("cell_diameter_um", _parse_cell_diameter),
    "roi": ("roi", Roi.parse),
    "block": ("block", parse_block),
    "backend": ("backend", str),
    "device": ("device", str),
    "registration-image": ("registration_image", Path),
    "mask": ("mask", Path),
    "workers": ("workers", int),
    "scheduler": ("scheduler", str),
    "overwrite": ("overwrite", bool),
    "dry-run": ("dry_run", bool),
    "level": ("level", str),
    "export": ("exports", lambda value: tuple(_as_list(value))),
}
DETECT_SETTINGS = frozenset(_DETECT_OPTIONS) | {"no-atlas", "out"}


def detect_request(
    brain: str, settings: Mapping[str, Any], options: Mapping[str, Any], out: Path | None = None
) -> DetectRequest:
    """Build the request for one brain from a settings file and the command line, which wins.

    Parameters
    ----------
    brain : str
        Path or URL.
    settings, options : mapping
        Option name -> text, number, list or None (not given); `options` overrides `settings`.
    out : Path, optional
        Run folder; without it the settings' or `default_out`.

    Raises
    ------
    UsageError
        For a value that cannot be read, or options that contradict each other.
    """
    given = {name: value for name, value in options.items() if value is not None and value != ()}
    if given.get("atlas") and given.get("no-atlas"):
        raise UsageError("--atlas and --no-atlas contradict each other")
    merged = {**settings, **given}
    # What the command line says about the atlas replaces what the file says about it.
    if given.get("no-atlas"):
        merged.pop("atlas", None)
        if "registration" not in given:
            merged.pop("registration", None)
    elif "atlas" in given or "registration" in given:
        merged.pop("no-atlas", None)
    no_atlas, folder = merged.pop("no-atlas", False), merged.pop("out", None)
    if no_atlas and ("atlas" in merged or "registration" in merged):
        raise UsageError("no-atlas contradicts atlas and registration")
    fields: dict[str, Any] = {}
    for name, value in merged.items():
        field, parser = _DETECT_OPTIONS[name]
        fields[field] = _parse_option(name, value, parser)
    if no_atlas:
        fields["atlas"] = None
    folder = out or (Path(folder) if folder else default_out(brain))
    return DetectRequest(brain=brain, out=folder, **fields)


def detect_requests(
    brains: Iterable[str], config: str | Path | None, options: Mapping[str, Any], out: Path | None = None
) -> list[DetectRequest]:
    """Build the requests of one `brainmap detect` command: one for each brain.

    With several brains `out` is the folder that holds a run folder for each.

    Raises
    ------
    NotFoundError, UsageError
        As `find_brains`, `read_settings` and `detect_request`; two brains of one name cannot share
        a folder.
    """
    settings = read_settings(config, DETECT_SETTINGS) if config is not None else {}
    found = find_brains(brains)
    parent = out or (Path(settings["out"]) if "out" in settings else None)
    if len(found) == 1:
        return [detect_request(found[0], settings, options, parent)]
    requests = []
    for brain in found:
        folder = default_out(brain)
        requests.append(detect_request(brain, settings, options, parent / folder.name if parent else folder))
    if len({request.out for request in requests}) < len(requests):
        raise UsageError("two of the brains would be written to the same run folder; run them one by one")
    return requests


def _parse_option(name: str, value: Any, parser: Any) -> Any:
    wrong = UsageError(f"--{name}: cannot use the value {_show(value)}")
    if parser in (int, float) and isinstance(value, (bool, str)):
        raise wrong
    if parser is bool and not isinstance(value, bool):
        raise wrong
    if parser in (str, Path) and not isinstance(value, (str, Path)):
        raise wrong
    try:
        parsed = parser(value)
    except UsageError:
        raise
    except (TypeError, ValueError, AttributeError):
        raise wrong from None
    if parser is int and parsed != value:
        raise wrong
    return parsed


def default_out(brain: str) -> Path:
    """Run folder beside the brain: `BRAIN.brainmap`; for a URL in the present folder."""
    if "://" in brain:
        return Path(brain.rstrip("/").rsplit("/", 1)[-1] + RUN_SUFFIX)
    path = Path(brain)
    return path.with_name(path.name + RUN_SUFFIX)


def find_brains(sources: Iterable[str]) -> list[str]:
    """The brains named on the command line; a folder of volumes stands for all of them, sorted.

    Raises
    ------
    NotFoundError
        If a path does not exist.
    """
    found: list[str] = []
    for source in sources:
        path = Path(source)
        if "://" in source or _is_volume(path):
            found.append(source)
        elif not path.exists():
            raise NotFoundError(f"there is no volume {source}")
        else:
            inside = [child for child in sorted(path.iterdir()) if _is_volume(child)] if path.is_dir() else []
            # What is no folder of volumes is left to the volume's own, better informed error.
            found.extend([str(child) for child in inside] or [source])
    return found


def _is_volume(path: Path) -> bool:
    return any((path / name).is_file() for name in ("zarr.json", ".zattrs", ".zgroup", ".zarray"))
