"""The network on a CPU, by OpenVINO: the default backend."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.errors import DataError, MissingExtraError
from brainmap.infer.detector import Detector
from brainmap.infer.folding import Folds, folded, unfolded

__all__ = ["OpenVinoBackend", "load"]

_first_call = threading.Lock()


class OpenVinoBackend:
    """One compiled network, one stream per calling thread, one infer request per thread.

    Throughput streams of one thread each beat one stream over all threads: layers of this size do
    not scale, and a stream that waits for its caller does not stall the others.
    """

    name = "openvino"
    device = "cpu"

    def __init__(self, compiled: Any, precision: str, folds: Folds) -> None:
        self._compiled = compiled
        self._local = threading.local()
        self.precision = precision
        self.folds = folds

    def infer(self, batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `Backend.infer`."""
        found = []
        for image in batch:
            planes = folded(image, self.folds.image)
            found.append([unfolded(part, self.folds.heat) for part in self.infer_folded(planes)])
        logit, offset = (np.stack(parts) for parts in zip(*found, strict=True))
        return logit, offset

    def infer_folded(self, planes: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `HostBackend.infer_folded`."""
        request = getattr(self._local, "request", None)
        if request is None:
            request = self._local.request = self._compiled.create_infer_request()
        # Both ways without a copy.
        out = request.infer({0: planes[None]}, share_inputs=True, share_outputs=True)
        return out["logit"][0], out["offset"][0]


def load(
    detector: Detector, device: str, tile: tuple[int, int], threads: int, precision: str
) -> OpenVinoBackend:
    """Compile a detector's network for inputs of one size; see `load_backend`."""
    try:
        import openvino as ov
    except ImportError as error:
        raise MissingExtraError("openvino", "all", "run a detector on the CPU") from error
    from brainmap.infer.openvino_graph import rearranged

    core = ov.Core()
    try:
        model = core.read_model(str(detector.model_path))
        model.reshape([1, detector.spec.channels, *tile])
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise DataError(f"{detector.model_path} is not a network OpenVINO can read: {reason}") from error
    model, folds = rearranged(model)
    # "BF16" is listed only where the processor computes in it (AMX or AVX512_BF16).
    fast = precision == "auto" and "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    settings = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "NUM_STREAMS": str(threads),
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "bf16" if fast else "f32",
        # Several worker processes would all pin their streams to the same first cores.
        "ENABLE_CPU_PINNING": False,
    }
    compiled = core.compile_model(model, "CPU", settings)
    backend = OpenVinoBackend(compiled, "bf16" if fast else "f32", folds)
    # The binding sets itself up in a process's first call and gives up the GIL meanwhile; a second thread
    # that then makes its own first call waits for that set-up without giving up the GIL: both stop for ever.
    with _first_call:
        backend.infer(np.zeros((1, detector.spec.channels, *tile), np.float32))
    return backend
