"""The network on an NVIDIA GPU, by TensorRT 10 or 11, or TensorRT for RTX: the same Python interface.

Engines are built from the ONNX file on the machine that runs them, and cached: they are tied to the
GPU's architecture and to TensorRT's version. Precision is that of the graph's types (TensorRT 11 knows
no other way), so half precision means a half-precision graph.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import logging
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.errors import DataError, MissingExtraError, UsageError
from brainmap.infer.detector import TENSORRT_MODULES, Detector
from brainmap.provenance import atomic_path, fingerprint

__all__ = ["TensorRtBackend", "build_engine", "engine_path", "load"]

log = logging.getLogger(__name__)

MAX_BATCH = 4
_WORKSPACE_BYTES = 2 << 30


class TensorRtBackend:
    """One engine; a context, a stream and buffers per calling thread."""

    name = "tensorrt"
    device = "cuda"

    def __init__(self, engine: Any, cuda: Any, shapes: dict[str, tuple[int, ...]], precision: str) -> None:
        self._engine, self._cuda, self._shapes = engine, cuda, shapes
        self._local = threading.local()
        self.precision = precision

    def infer(self, batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `Backend.infer`."""
        lane = getattr(self._local, "lane", None)
        if lane is None:
            lane = self._local.lane = _Lane(self._engine, self._cuda, self._shapes)
        parts = [lane.run(batch[i : i + MAX_BATCH]) for i in range(0, len(batch), MAX_BATCH)]
        return np.concatenate([p["logit"] for p in parts]), np.concatenate([p["offset"] for p in parts])


class _Lane:
    """Context, stream, device memory and pinned host memory of one thread.

    Parameters
    ----------
    engine : ICudaEngine
        Contexts of one engine share its weights.
    cuda : module
        cuda.bindings.runtime.
    shapes : dict
        Name -> shape without batch, of the input and the outputs.
    """

    def __init__(self, engine: Any, cuda: Any, shapes: dict[str, tuple[int, ...]]) -> None:
        self.cuda, self.shapes = cuda, shapes
        self.context = engine.create_execution_context()
        if self.context is None:
            raise DataError("TensorRT cannot create an execution context; is the GPU's memory full?")
        # A stream of its own: the default stream would wait for all others.
        self.stream = _check(cuda, cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking))
        self.context.set_optimization_profile_async(0, int(self.stream))
        self.on_device: dict[str, int] = {}
        self.on_host: dict[str, NDArray[np.float32]] = {}
        for name, shape in shapes.items():
            count = MAX_BATCH * int(np.prod(shape))
            self.on_device[name] = int(_check(cuda, cuda.cudaMalloc(4 * count)))
            pinned = int(_check(cuda, cuda.cudaHostAlloc(4 * count, cuda.cudaHostAllocDefault)))
            memory = (ctypes.c_float * count).from_address(pinned)
            self.on_host[name] = np.ctypeslib.as_array(memory).reshape(MAX_BATCH, *shape)
            if not self.context.set_tensor_address(name, self.on_device[name]):
                raise DataError(f"the TensorRT engine has no tensor {name!r}")

    def run(self, batch: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Copy in, compute, copy out; at most MAX_BATCH images."""
        cuda, n = self.cuda, len(batch)
        self.context.set_input_shape("image", (n, *self.shapes["image"]))
        if missing := self.context.infer_shapes():
            raise DataError(f"TensorRT lacks the shapes of {missing}")
        self.on_host["image"][:n] = batch
        self._copy("image", n, cuda.cudaMemcpyKind.cudaMemcpyHostToDevice)
        if not self.context.execute_async_v3(int(self.stream)):
            raise DataError("TensorRT could not run the network")
        outputs = [name for name in self.shapes if name != "image"]
        for name in outputs:
            self._copy(name, n, cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost)
        _check(cuda, cuda.cudaStreamSynchronize(self.stream))
        return {name: self.on_host[name][:n].copy() for name in outputs}

    def _copy(self, name: str, n: int, kind: Any) -> None:
        host, device = self.on_host[name].ctypes.data, self.on_device[name]
        target, source = (device, host) if name == "image" else (host, device)
        count = 4 * n * int(np.prod(self.shapes[name]))
        _check(self.cuda, self.cuda.cudaMemcpyAsync(target, source, count, kind, self.stream))


def _check(cuda: Any, result: tuple[Any, ...]) -> Any:
    """The value of a CUDA call, or an error in words."""
    code, *values = result
    if code != cuda.cudaError_t.cudaSuccess:
        text = cuda.cudaGetErrorString(code)[1]
        raise DataError(f"CUDA: {text.decode() if isinstance(text, bytes) else text}")
    return values[0] if values else None


def _import_tensorrt() -> Any:
    for name in TENSORRT_MODULES:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise MissingExtraError("tensorrt", "tensorrt", "run a detector on an NVIDIA GPU with TensorRT")


def _import_cuda() -> Any:
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise MissingExtraError("cuda-python", "tensorrt", "run a detector on an NVIDIA GPU") from error
    code, count = runtime.cudaGetDeviceCount()
    if code != runtime.cudaError_t.cudaSuccess or count == 0:
        raise UsageError("--device cuda is not available here: there is no NVIDIA GPU or no driver for it")
    return runtime


@functools.cache
def _logger(trt: Any) -> Any:
    """The one logger of this process: TensorRT complains about a second one, and ignores it."""
    return trt.Logger(trt.Logger.WARNING)


def build_engine(
    trt: Any, model: bytes, shape: tuple[int, int, int], capability: tuple[int, int] | None = None
) -> bytes:
    """Build an engine; needs no GPU with TensorRT for RTX.

    Parameters
    ----------
    trt : module
        tensorrt or tensorrt_rtx.
    model : bytes
        ONNX with a dynamic batch.
    shape : tuple of int
        Channels, height, width of the input.
    capability : tuple of int, optional
        Compute capability of the GPU. TensorRT always builds for the GPU in the machine; TensorRT for
        RTX builds for this one, by default for all from Ampere on.

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
    network.get_input(0).shape = (-1, *shape)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _WORKSPACE_BYTES)
    if capability is not None and "rtx" in trt.__name__:
        _aim(trt, config, capability)
    profile = builder.create_optimization_profile()
    profile.set_shape("image", (1, *shape), (MAX_BATCH, *shape), (MAX_BATCH, *shape))
    config.add_optimization_profile(profile)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise DataError("TensorRT could not build an engine from the network; its log says why")
    return bytes(serialized)


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


def engine_path(trt: Any, model: bytes, shape: tuple[int, int, int], capability: tuple[int, int]) -> Path:
    """Where the engine of a network for a GPU is cached."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    key = fingerprint({"model": fingerprint(model), "shape": shape, "batch": MAX_BATCH})[:20]
    name = f"{trt.__name__}-{trt.__version__}-sm{capability[0]}{capability[1]}-{key}.engine"
    return Path(base) / "brainmap" / "engines" / name


def _capability(cuda: Any) -> tuple[int, int]:
    device = _check(cuda, cuda.cudaGetDevice())
    kinds = cuda.cudaDeviceAttr
    return (
        int(_check(cuda, cuda.cudaDeviceGetAttribute(kinds.cudaDevAttrComputeCapabilityMajor, device))),
        int(_check(cuda, cuda.cudaDeviceGetAttribute(kinds.cudaDevAttrComputeCapabilityMinor, device))),
    )


def _cached_engine(trt: Any, cuda: Any, model: bytes, shape: tuple[int, int, int]) -> Any:
    """The engine, from the cache where it fits, else built and cached."""
    capability = _capability(cuda)
    path = engine_path(trt, model, shape, capability)
    runtime = trt.Runtime(_logger(trt))
    if path.is_file():
        engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is not None:
            return engine
        log.warning("the cached engine %s does not fit this machine; it is built again", path)
    log.info("building a TensorRT engine; this takes a minute or so, once for this GPU")
    serialized = build_engine(trt, model, shape, capability)
    with atomic_path(path) as part:
        part.write_bytes(serialized)
    engine = runtime.deserialize_cuda_engine(serialized)
    if engine is None:
        raise DataError("TensorRT cannot load the engine it has just built; its log says why")
    return engine


def load(
    detector: Detector, device: str, tile: tuple[int, int], threads: int, precision: str
) -> TensorRtBackend:
    """Build or load the engine for inputs of one size; see `load_backend`."""
    trt, cuda = _import_tensorrt(), _import_cuda()
    half = precision == "auto"
    model = detector.model_path.read_bytes()
    if half:
        import onnx

        from brainmap.infer.half import to_half

        model = to_half(onnx.load_from_string(model)).SerializeToString()
    spec = detector.spec
    shape = (spec.channels, *tile)
    cells = (tile[0] // spec.stride, tile[1] // spec.stride)
    engine = _cached_engine(trt, cuda, model, shape)
    for name in ("image", "logit", "offset"):
        if engine.get_tensor_dtype(name) != trt.DataType.FLOAT:
            raise DataError(f"the TensorRT engine's {name!r} is not float32; export the detector again")
    shapes: dict[str, tuple[int, ...]] = {
        "image": shape, "logit": (1, *cells), "offset": (2, *cells)
    }  # fmt: skip
    return TensorRtBackend(engine, cuda, shapes, "f16" if half else "f32")
