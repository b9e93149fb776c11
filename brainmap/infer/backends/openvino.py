"""The network on a CPU, by OpenVINO: the default backend."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from brainmap.errors import DataError, MissingExtraError
from brainmap.infer.block.folding import Folds, folded, unfolded
from brainmap.infer.detector import Detector

__all__ = ["OpenVinoBackend", "load"]

T = TypeVar("T")

_first_call = threading.Lock()


class OpenVinoBackend:
    """One compiled network, one stream per calling thread, infer requests of each thread's own.

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
            found.append(self.begin(planes, self._whole)())
        logit, offset = (np.stack(parts) for parts in zip(*found, strict=True))
        return logit, offset

    def begin(
        self,
        planes: NDArray[np.float32],
        use: Callable[[NDArray[np.float32], NDArray[np.float32]], T],
    ) -> Callable[[], T]:
        """See `brainmap.infer.block.on_host.HostBackend.begin`."""
        if not hasattr(self._local, "idle"):
            self._local.idle = []
        idle = self._local.idle
        request = idle.pop() if idle else self._compiled.create_infer_request()
        # Both ways without a copy; the request keeps the planes until it is given others.
        request.start_async({0: planes[None]}, share_inputs=True)

        def finish() -> T:
            request.wait()
            found = use(request.get_tensor("logit").data[0], request.get_tensor("offset").data[0])
            idle.append(request)
            return found

        return finish

    def _whole(
        self, logit: NDArray[np.float32], offset: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return unfolded(logit, self.folds.heat), unfolded(offset, self.folds.heat)


def load(
    detector: Detector, device: str, tile: tuple[int, int], threads: int, precision: str
) -> OpenVinoBackend:
    """Compile a detector's network for inputs of one size; see `load_backend`."""
    try:
        import openvino as ov
    except ImportError as error:
        raise MissingExtraError("openvino", "all", "run a detector on the CPU") from error
    from brainmap.infer.backends.openvino_graph import rearranged

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
