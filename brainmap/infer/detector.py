"""A detector: a folder with a network as ONNX, and the record that says how to use it.

`Backend` is the small protocol by which the engine runs the network; `load_backend` chooses one.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from brainmap.errors import DataError, NotFoundError, UsageError, what_it_is
from brainmap.files import atomic_path, fingerprint, read_json, write_json
from brainmap.infer.peaks import PLAIN_FACE, FaceWeights

__all__ = [
    "BACKENDS",
    "PLAIN_PROMINENCE",
    "Backend",
    "Detector",
    "DetectorSpec",
    "ProminenceWeights",
    "load_backend",
    "lowered",
    "write_detector",
]

# TensorRT, TensorRT for RTX, and the latter installed as its bare bindings.
TENSORRT_MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
BACKENDS = ("auto", "openvino", "tensorrt", "torch")
MODEL_FILE, SPEC_FILE, CARD_FILE = "model.onnx", "detector.json", "card.md"
SHIPPED = Path(__file__).resolve().parent.parent / "detectors"
# Networks halve the image up to four times: windows start and end at multiples of this.
ALIGN = 16


_MOST_PIXELS, _MOST_CHANNELS, _LARGEST_TILE = 50, 99, 8192

# Of the values that JSON holds as they are.
_TEXTS = ("name", "version", "normalisation", "onnx_sha256", "subpixel")
_NUMBERS = ("pixel_um", "z_target_um", "offset", "fill", "cell_diameter_um", "threshold", "min_separation")
_COUNTS = ("channels", "stride", "halo_px")
_TYPES: dict[str, type | tuple[type, ...]] = {"training": dict}
_TYPES.update(dict.fromkeys(_TEXTS, str))
_TYPES.update(dict.fromkeys(_NUMBERS, (int, float)))
_TYPES.update(dict.fromkeys(_COUNTS, int))


# Weight of a peak's prominence, and how much of it is enough: see `DetectorSpec.weighed`.
ProminenceWeights = tuple[float, float]
PLAIN_PROMINENCE: ProminenceWeights = (0.0, 1.0)


def lowered(logit: NDArray[Any], prominence: NDArray[Any], weights: ProminenceWeights) -> NDArray[np.float32]:
    """Logits by `DetectorSpec.weighed`."""
    weight, enough = weights
    if not weight:
        return np.asarray(logit, np.float32)
    found = np.clip(np.nan_to_num(prominence, nan=enough), 0.0, enough)
    return np.asarray(logit + weight * (np.arcsinh(found) - math.asinh(enough)), np.float32)


@dataclass(frozen=True)
class DetectorSpec:
    """What a detector expects and what its output means: the content of `detector.json`.

    Parameters
    ----------
    name, version : str
        Of the detector.
    pixel_um, z_target_um : float
        In-plane pixel of the network's grid, and the thickness that slices are averaged to.
    channels : int
        Consecutive slice groups seen at once, odd.
    tile : tuple of int
        Height and width of the network's input in pixels, multiples of 16; larger is faster.
    stride : int
        Input pixels per cell of the heat map: 1, 2 or 4.
    halo_px : int
        Receptive radius: input pixels around an output cell that can change it.
    offset, fill : float
        Input = normalised intensity - offset; `fill` stands where there is no image.
    cell_diameter_um : float
        Diameter of the cells it was trained on.
    threshold : float
        Default threshold on the calibrated score.
    calibration : tuple of (float, float)
        Knots (logit, probability) of the monotone, piecewise linear score.
    min_separation : float
        Two detections nearer than this many cell diameters are one cell.
    normalisation : str
        Name of the intensity normalisation.
    onnx_sha256 : str
        Of `model.onnx`.
    subpixel : str
        In-plane refinement: "offset" trusts the network's offset head, "parabola" the heat map.
    face : tuple of float
        How a peak in the volume's first or last slice is judged: see `brainmap.infer.peaks.weigh_face`. By
        default like any other.
    prominence : tuple of float
        Weight and sufficient value of a peak's prominence: what stands out of the tissue's texture less than that
        is judged by so much lower a logit; see `weighed`. A weight of 0, the default, looks at the logit alone.
    training : dict
        How it was made.
    """

    name: str
    version: str
    pixel_um: float
    z_target_um: float
    channels: int
    tile: tuple[int, int]
    stride: int
    halo_px: int
    offset: float
    fill: float
    cell_diameter_um: float
    threshold: float
    calibration: tuple[tuple[float, float], ...]
    onnx_sha256: str
    min_separation: float = 0.6
    normalisation: str = "contrast-asinh"
    subpixel: str = "offset"
    face: FaceWeights = PLAIN_FACE
    prominence: ProminenceWeights = PLAIN_PROMINENCE
    training: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("pixel_um", "z_target_um", "cell_diameter_um", "min_separation"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise DataError(f"detector {self.name}: {name} is {value}; it must be a positive number")
        # Beyond these a grid over a brain would fill the memory.
        size = self.cell_diameter_um / self.pixel_um
        if not 1 <= size <= _MOST_PIXELS or self.z_target_um * _MOST_PIXELS < self.cell_diameter_um:
            raise DataError(
                f"detector {self.name}: cells of {self.cell_diameter_um:g} um in pixels of {self.pixel_um:g} um and "
                f"slices of {self.z_target_um:g} um; a cell must be 1 to {_MOST_PIXELS} pixels wide"
            )
        if not 1 <= self.channels <= _MOST_CHANNELS or self.channels % 2 == 0:
            raise DataError(
                f"detector {self.name}: channels is {self.channels}; it must be odd and at most {_MOST_CHANNELS}"
            )
        if not (math.isfinite(self.offset) and math.isfinite(self.fill)):
            raise DataError(
                f"detector {self.name}: offset {self.offset} and fill {self.fill} must be numbers"
            )
        if self.stride not in (1, 2, 4):
            raise DataError(f"detector {self.name}: stride is {self.stride}; it must be 1, 2 or 4")
        if len(self.tile) != 2 or any(not 0 < n <= _LARGEST_TILE or n % ALIGN for n in self.tile):
            raise DataError(
                f"detector {self.name}: tile is {self.tile}; give two multiples of {ALIGN} up to {_LARGEST_TILE}"
            )
        if self.halo_px < 0 or min(self.tile) < 2 * self.halo_px + 3 * ALIGN:
            raise DataError(
                f"detector {self.name}: a tile of {self.tile} leaves no room for a halo of {self.halo_px} px"
            )
        if not 0 <= self.threshold <= 1:
            raise DataError(f"detector {self.name}: threshold is {self.threshold}; it must be in 0..1")
        if self.subpixel not in ("offset", "parabola"):
            raise DataError(f"detector {self.name}: subpixel is {self.subpixel!r}; offset or parabola")
        if len(self.face) != 4 or not np.isfinite(self.face).all() or self.face[1] <= 0 or self.face[2] < 0:
            raise DataError(
                f"detector {self.name}: face is {self.face}; give a constant, a positive weight of the peak, "
                "one of the slice inside that is not negative, and one of the slices' distance"
            )
        weight, enough = self.prominence if len(self.prominence) == 2 else (-1.0, 0.0)
        if not (math.isfinite(weight) and weight >= 0 and math.isfinite(enough) and enough > 0):
            raise DataError(
                f"detector {self.name}: prominence is {self.prominence}; give a weight that is not negative and a "
                "positive value that is enough"
            )
        logits, scores = np.asarray(self.calibration, np.float64).reshape(-1, 2).T
        rising = len(logits) > 1 and (np.diff(logits) > 0).all() and (np.diff(scores) >= 0).all()
        if not rising or scores.min() < 0 or scores.max() > 1:
            raise DataError(
                f"detector {self.name}: calibration needs at least two knots [logit, probability], "
                "logits rising, probabilities not falling and within 0..1"
            )

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> DetectorSpec:
        """Parse the content of `detector.json`; an unknown or missing key is an error."""
        known = {f.name for f in dataclasses.fields(cls)}
        needed = {
            f.name
            for f in dataclasses.fields(cls)
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        }
        if unknown := sorted(set(content) - known):
            raise DataError(f"{SPEC_FILE} has unknown keys: {', '.join(unknown)}")
        if missing := sorted(needed - set(content)):
            raise DataError(f"{SPEC_FILE} lacks: {', '.join(missing)}")
        values = dict(content)
        for name, kinds in _TYPES.items():
            if name in values and (not isinstance(values[name], kinds) or isinstance(values[name], bool)):
                raise DataError(f"{SPEC_FILE}: {name} is {values[name]!r}, which is of the wrong type")
        try:
            values["tile"] = tuple(int(n) for n in values["tile"])
            values["calibration"] = tuple((float(a), float(b)) for a, b in values["calibration"])
            if "face" in values:
                values["face"] = tuple(float(v) for v in values["face"])
            if "prominence" in values:
                values["prominence"] = tuple(float(v) for v in values["prominence"])
            return cls(**values)
        except DataError:
            raise
        except (TypeError, ValueError, OverflowError, AttributeError) as error:
            raise DataError(f"{SPEC_FILE} holds a value of the wrong type: {error}") from error

    def score(self, logit: NDArray[Any]) -> NDArray[np.float64]:
        """Calibrated probability of a cell, 0..1; constant beyond the outermost knots."""
        knots = np.asarray(self.calibration, np.float64)
        return np.interp(np.asarray(logit, np.float64), knots[:, 0], knots[:, 1])

    def weighed(self, logit: NDArray[Any], prominence: NDArray[Any]) -> NDArray[np.float32]:
        """Logits, lowered where a peak stands out of the tissue's texture too little; never raised.

        What people call a cell stands out of the texture of the tissue at the cell's own scale. A network sees
        contrast in units of noise, and in a clean image any faint blob of texture lies many of those above the
        background.

        Parameters
        ----------
        logit : ndarray, shape (n,)
        prominence : ndarray, shape (n,)
            Difference of Gaussians at the peak, in robust standard deviations of what it is in the tissue at large.
        """
        return lowered(logit, prominence, self.prominence)

    def logit_at(self, score: float) -> float:
        """Lowest logit whose score reaches `score`; -inf or inf beyond the calibration's ends."""
        logits, scores = np.asarray(self.calibration, np.float64).T
        if score <= scores[0]:
            return -math.inf
        if score > scores[-1]:
            return math.inf
        upper = int(np.argmax(scores >= score))
        share = (score - scores[upper - 1]) / (scores[upper] - scores[upper - 1])
        return float(logits[upper - 1] + share * (logits[upper] - logits[upper - 1]))

    def scaled(self, cell_diameter_um: float | None) -> DetectorSpec:
        """The spec for cells of another size: the network's grid grows with the cells."""
        if cell_diameter_um is None or cell_diameter_um == self.cell_diameter_um:
            return self
        if not (math.isfinite(cell_diameter_um) and cell_diameter_um > 0):
            raise UsageError(f"--cell-diameter is {cell_diameter_um}; give a positive number of um")
        factor = cell_diameter_um / self.cell_diameter_um
        return dataclasses.replace(
            self,
            pixel_um=self.pixel_um * factor,
            z_target_um=self.z_target_um * factor,
            cell_diameter_um=cell_diameter_um,
        )


@dataclass(frozen=True)
class Detector:
    """A detector folder that was opened and checked."""

    folder: Path
    spec: DetectorSpec

    @property
    def model_path(self) -> Path:
        """The network, ONNX."""
        return self.folder / MODEL_FILE

    @property
    def fingerprint(self) -> str:
        """SHA-256 over network and record: equal detectors detect equally."""
        content = dataclasses.asdict(self.spec)
        content.pop("training")
        return fingerprint(content)

    @classmethod
    def open(cls, name: str | Path = "default") -> Detector:
        """Open a detector by the name of a shipped one, or by its folder.

        Raises
        ------
        NotFoundError
            If there is no such detector.
        DataError
            If the folder is not a valid detector, or the network is not the one its record describes.
        """
        shipped = SHIPPED / str(name)
        folder = Path(name)
        if (shipped / SPEC_FILE).is_file() and not (folder / SPEC_FILE).is_file():
            folder = shipped
        for file in (SPEC_FILE, MODEL_FILE):
            if not (folder / file).is_file():
                have = sorted(p.parent.name for p in SHIPPED.glob(f"*/{SPEC_FILE}"))
                raise NotFoundError(
                    f"{name} is not a detector: {folder / file} does not exist; give a folder with "
                    f"{MODEL_FILE} and {SPEC_FILE}, or one of: {', '.join(have) or 'none is shipped'}"
                    f"{what_it_is(name)}"
                )
        content = read_json(folder / SPEC_FILE)
        if not isinstance(content, dict):
            raise DataError(f"{folder / SPEC_FILE} is not a JSON object")
        try:
            spec = DetectorSpec.from_dict(content)
        except DataError as error:
            raise DataError(f"{folder}: {error}") from error
        if fingerprint((folder / MODEL_FILE).read_bytes()) != spec.onnx_sha256:
            raise DataError(
                f"{folder / MODEL_FILE} is not the network that {SPEC_FILE} describes (its SHA-256 "
                "differs); export the detector again"
            )
        return cls(folder.resolve(), spec)


def write_detector(folder: str | Path, model: bytes, spec: DetectorSpec, card: str) -> Detector:
    """Write a detector folder; the hash in `spec` is replaced by that of `model`."""
    folder = Path(folder)
    spec = dataclasses.replace(spec, onnx_sha256=fingerprint(model))
    with atomic_path(folder / MODEL_FILE) as part:
        part.write_bytes(model)
    with atomic_path(folder / CARD_FILE) as part:
        part.write_text(card, encoding="utf-8")
    write_json(folder / SPEC_FILE, spec)
    return Detector.open(folder)


class Backend(Protocol):
    """Runs a network on a device. `infer` may be called by several threads at once."""

    name: str
    device: str
    precision: str

    def infer(self, batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Heat map and offsets of a batch.

        Parameters
        ----------
        batch : ndarray of float32, shape (n, channels, H, W)
            C-contiguous network input; H, W as given to `load_backend`.

        Returns
        -------
        logit : ndarray of float32, shape (n, 1, H / stride, W / stride)
        offset : ndarray of float32, shape (n, 2, H / stride, W / stride)
            Order y, x; in output cells. Both are the caller's own.
        """
        ...


def load_backend(
    detector: Detector,
    backend: str = "auto",
    device: str | None = None,
    tile: tuple[int, int] | None = None,
    threads: int = 1,
    precision: str = "auto",
) -> Backend:
    """Load a detector's network.

    Parameters
    ----------
    detector : Detector
        The detector.
    backend : str
        "openvino" (CPU), "torch" (CPU, CUDA, MPS), "tensorrt" (CUDA), or "auto": TensorRT or torch
        where the device is a GPU, else OpenVINO.
    device : str, optional
        "cpu", "cuda" or "mps"; by default a GPU that TensorRT or torch can use, else the CPU.
    tile : tuple of int, optional
        Height and width of the inputs that will come; by default the detector's own.
    threads : int
        Threads that will call `infer` at the same time.
    precision : str
        "auto" computes in half precision where the device is made for it, "f32" never does.

    Raises
    ------
    UsageError
        For an unknown backend, device or precision, or a pair that does not exist.
    MissingExtraError
        If the backend's package is not installed.
    """
    if precision not in ("auto", "f32"):
        raise UsageError(f"precision is {precision!r}; choose auto or f32")
    name, device = choose_backend(backend, device)
    module = importlib.import_module(f"brainmap.infer.backends.{name}")
    loaded: Backend = module.load(detector, device, tile or detector.spec.tile, threads, precision)
    return loaded


def _torch_has_cuda() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())


def choose_backend(backend: str, device: str | None) -> tuple[str, str]:
    """The backend and device that a pair of options means; UsageError where it means none."""
    if backend not in BACKENDS:
        raise UsageError(f"--backend is {backend!r}; choose one of {', '.join(BACKENDS)}")
    if device not in (None, "cpu", "cuda", "mps"):
        raise UsageError(f"--device is {device!r}; choose cpu, cuda or mps")
    devices = {"openvino": ("cpu",), "tensorrt": ("cuda",), "torch": ("cpu", "cuda", "mps")}
    if backend != "auto":
        device = device or devices[backend][0]
        if device not in devices[backend]:
            raise UsageError(f"--backend {backend} does not run on --device {device}")
        return backend, device
    has_tensorrt = any(importlib.util.find_spec(name) for name in TENSORRT_MODULES)
    if device is None:
        device = "cuda" if shutil.which("nvidia-smi") and (has_tensorrt or _torch_has_cuda()) else "cpu"
    if device == "cpu":
        return ("openvino" if importlib.util.find_spec("openvino") else "torch"), device
    return ("tensorrt" if device == "cuda" and has_tensorrt else "torch"), device
