"""The network on an NVIDIA GPU, by TensorRT 10 or 11, or TensorRT for RTX: the same Python interface.

Engines are built from the ONNX file on the machine that runs them, and cached: they are tied to the
GPU's architecture and to TensorRT's version. Precision is that of the graph's types (TensorRT 11 knows
no other way), so half precision means a half-precision graph.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from brainmap.errors import DataError, MissingExtraError, UsageError
from brainmap.files import atomic_path, fingerprint
from brainmap.infer.detector import ALIGN, TENSORRT_MODULES, Detector
from brainmap.infer.plan.layout import MAX_TILE

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TensorRtBackend", "build_engine", "engine_path", "load", "timing_path"]

log = logging.getLogger(__name__)

MAX_BATCH = 4
# The size of images that kernels are chosen for.
_USUAL_TILE = 1024
_WORKSPACE_BYTES = 2 << 30


class TensorRtBackend:
    """One engine on one GPU; torch holds the memory and the streams.

    Parameters
    ----------
    engine : ICudaEngine
        From `build_engine`.
    stride : int
        Input pixels per output cell.
    precision : str
        "f16" or "f32".
    device : str
        torch device that holds the tensors.
    """

    name = "tensorrt"

    def __init__(self, engine: Any, stride: int, precision: str, device: str = "cuda") -> None:
        self._engine, self._stride = engine, stride
        self._context = engine.create_execution_context()
        if self._context is None:
            raise DataError("TensorRT cannot create an execution context; is the GPU's memory full?")
        # A context may be told what to do by one thread at a time; the work itself queues up on the stream.
        self._lock = threading.Lock()
        self.precision, self.device = precision, device

    def infer(self, batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `Backend.infer`."""
        import torch

        from brainmap.infer.block.on_device import compute_stream

        with compute_stream(self.device):
            logit, offset = self.heat(torch.from_numpy(batch).to(self.device))
            return logit.cpu().numpy(), offset.cpu().numpy()

    def heat(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See `brainmap.infer.block.on_device.DeviceBackend.heat`."""
        import torch

        with self._lock:
            parts = [self._run(part.contiguous()) for part in images.split(MAX_BATCH)]
        logit, offset = (part[0] if len(part) == 1 else torch.cat(part) for part in zip(*parts, strict=True))
        return logit, offset

    def _run(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Put one batch on the stream; its tensors live on, as torch frees memory in the stream's order."""
        context, cells = self._context, [n // self._stride for n in images.shape[2:]]
        # Tensors of their own: TensorRT wants addresses that are multiples of 256 bytes.
        logit, offset = (images.new_empty((len(images), depth, *cells)) for depth in (1, 2))
        context.set_input_shape("image", tuple(images.shape))
        if missing := context.infer_shapes():
            raise DataError(f"TensorRT lacks the shapes of {missing}")
        for name, tensor in (("image", images), ("logit", logit), ("offset", offset)):
            if not context.set_tensor_address(name, tensor.data_ptr()):
                raise DataError(f"the TensorRT engine has no tensor {name!r}")
        if not context.execute_async_v3(_stream_handle(images)):
            raise DataError("TensorRT could not run the network")
        return logit, offset


def _stream_handle(tensor: Tensor) -> int:
    """CUDA's handle of the current stream; 0 where there is none."""
    import torch

    return int(torch.cuda.current_stream(tensor.device).cuda_stream) if tensor.is_cuda else 0


def _import_tensorrt() -> Any:
    for name in TENSORRT_MODULES:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise MissingExtraError("tensorrt", "tensorrt", "run a detector on an NVIDIA GPU with TensorRT")


@functools.cache
def _logger(trt: Any) -> Any:
    """The one logger of this process: TensorRT complains about a second one, and ignores it."""
    return trt.Logger(trt.Logger.WARNING)


def build_engine(
    trt: Any,
    model: bytes,
    channels: int,
    capability: tuple[int, int] | None = None,
    timings: Path | None = None,
) -> bytes:
    """Build an engine for images of any size up to `MAX_TILE`; needs no GPU with TensorRT for RTX.

    Parameters
    ----------
    trt : module
        tensorrt or tensorrt_rtx.
    model : bytes
        ONNX with a dynamic batch.
    channels : int
        Of the input.
    capability : tuple of int, optional
        Compute capability of the GPU. TensorRT always builds for the GPU in the machine; TensorRT for
        RTX builds for this one, by default for all from Ampere on.
    timings : Path, optional
        File of kernel timings, used if it fits and written anew. TensorRT for RTX measures nothing when it
        builds, and has none.

    Raises
    ------
    DataError
        If TensorRT cannot parse or build the network, or not for such a GPU.
    """
    logger = _logger(trt)
    builder = trt.Builder(logger)
    # Required by TensorRT 10; the only way there is in 11, which ignores the flag.
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        reasons = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise DataError(f"TensorRT cannot parse the network: {reasons}")
    network.get_input(0).shape = (-1, channels, -1, -1)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _WORKSPACE_BYTES)
    if capability is not None and "rtx" in trt.__name__:
        _aim(trt, config, capability)
    profile = builder.create_optimization_profile()
    sizes = ((1, ALIGN), (MAX_BATCH, _USUAL_TILE), (MAX_BATCH, MAX_TILE))
    profile.set_shape("image", *((batch, channels, side, side) for batch, side in sizes))
    config.add_optimization_profile(profile)
    kept = None
    if timings is not None and "rtx" not in trt.__name__:
        kept = _timing_cache(config, timings)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise DataError("TensorRT could not build an engine from the network; its log says why")
    if kept is not None and timings is not None:
        with atomic_path(timings) as part:
            part.write_bytes(bytes(kept.serialize()))
    return bytes(serialized)


def _timing_cache(config: Any, path: Path) -> Any:
    """Give a build the timings of earlier ones, or none where they do not fit."""
    for content in ([path.read_bytes()] if path.is_file() else []) + [b""]:
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return cache
        log.warning("the kernel timings in %s do not fit this machine; they are measured again", path)
    return None


def _aim(trt: Any, config: Any, capability: tuple[int, int]) -> None:
    """Build for one kind of GPU, whatever is in the machine."""
    major, minor = capability
    kind = trt.ComputeCapability.__members__.get(f"SM{major}{minor}")
    if kind is None:
        raise DataError(
            f"TensorRT for RTX does not know GPUs of compute capability {major}.{minor}; use tensorrt"
        )
    config.num_compute_capabilities = 1
    config.set_compute_capability(kind, 0)


def engine_path(trt: Any, model: bytes, capability: tuple[int, int]) -> Path:
    """Where the engine of a network for a GPU is cached."""
    key = fingerprint({"model": fingerprint(model), "batch": MAX_BATCH, "tile": MAX_TILE})[:20]
    return _cache(trt, capability, f"{key}.engine")


def timing_path(trt: Any, capability: tuple[int, int], gpu: str) -> Path:
    """Where the timings of kernels are kept, by which engines for one model of GPU are built quicker."""
    return _cache(trt, capability, f"{fingerprint(gpu)[:8]}.timing")


def _cache(trt: Any, capability: tuple[int, int], name: str) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    prefix = f"{trt.__name__}-{trt.__version__}-sm{capability[0]}{capability[1]}"
    return Path(base) / "brainmap" / "engines" / f"{prefix}-{name}"


def _cached_engine(trt: Any, model: bytes, channels: int, capability: tuple[int, int], gpu: str) -> Any:
    """The engine, from the cache where it fits, else built and cached."""
    path = engine_path(trt, model, capability)
    runtime = trt.Runtime(_logger(trt))
    if path.is_file():
        engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is not None:
            return engine
        log.warning("the cached engine %s does not fit this machine; it is built again", path)
    log.info("building a TensorRT engine, once for this GPU")
    serialized = build_engine(trt, model, channels, capability, timing_path(trt, capability, gpu))
    with atomic_path(path) as part:
        part.write_bytes(serialized)
    engine = runtime.deserialize_cuda_engine(serialized)
    if engine is None:
        raise DataError("TensorRT cannot load the engine it has just built; its log says why")
    return engine


def load(
    detector: Detector, device: str, tile: tuple[int, int], threads: int, precision: str
) -> TensorRtBackend:
    """Build or load the engine; see `load_backend`. It takes images of any size."""
    trt = _import_tensorrt()
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("torch", "tensorrt", "run a detector on an NVIDIA GPU") from error
    if not torch.cuda.is_available():
        raise UsageError(
            "--device cuda is not available here: torch sees no NVIDIA GPU, or is a build without CUDA"
        )
    half = precision == "auto"
    model = detector.model_path.read_bytes()
    if half:
        import onnx

        from brainmap.infer.backends.half import to_half

        model = to_half(onnx.load_from_string(model)).SerializeToString()
    spec = detector.spec
    gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
    engine = _cached_engine(trt, model, spec.channels, (gpu.major, gpu.minor), gpu.name)
    for name in ("image", "logit", "offset"):
        if engine.get_tensor_dtype(name) != trt.DataType.FLOAT:
            raise DataError(f"the TensorRT engine's {name!r} is not float32; export the detector again")
    return TensorRtBackend(engine, spec.stride, "f16" if half else "f32")
