"""The network by torch: CPU, CUDA or MPS. The ONNX graph is run node by node.

Detectors are plain convolutional networks, so a small set of operators is enough; anything else is
refused by name rather than approximated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from brainmap.errors import DataError, MissingExtraError, UsageError
from brainmap.infer.block.folding import Folds
from brainmap.infer.detector import Detector

try:
    import onnx
    import torch
    from onnx import numpy_helper
    from torch.nn import functional
except ImportError as _error:
    raise MissingExtraError(_error.name or "torch", "train", "run a detector by torch") from _error

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["OPERATORS", "TorchBackend", "load"]

Attributes = dict[str, Any]
T = TypeVar("T")


class TorchBackend:
    """An ONNX graph on a torch device; results are copied back to the host."""

    name = "torch"
    folds = Folds()

    def __init__(self, graph: Graph, device: str, precision: str) -> None:
        self._graph = graph
        self.device = device
        self.precision = precision

    def infer(self, batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `Backend.infer`."""
        with torch.inference_mode():
            logit, offset = (
                part.cpu().numpy() for part in self.heat(torch.from_numpy(batch).to(self.device))
            )
        return np.ascontiguousarray(logit), np.ascontiguousarray(offset)

    def begin(
        self,
        planes: NDArray[np.float32],
        use: Callable[[NDArray[np.float32], NDArray[np.float32]], T],
    ) -> Callable[[], T]:
        """See `brainmap.infer.block.on_host.HostBackend.begin`; it computes at once."""
        logit, offset = self.infer(planes[None])
        return lambda: use(logit[0], offset[0])

    def heat(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See `brainmap.infer.block.on_device.DeviceBackend.heat`."""
        # On a GPU, convolutions in half precision are made for channels as the last axis.
        layout = torch.channels_last if self.device == "cuda" else torch.contiguous_format
        found = self._graph.run(images.to(self._graph.dtype, memory_format=layout))
        return found["logit"].float(), found["offset"].float()


class Graph:
    """The nodes of an ONNX graph with their weights on a device.

    Parameters
    ----------
    model : onnx.ModelProto
        Operators out of `OPERATORS`.
    device : str
        torch device.
    dtype : torch.dtype
        Of weights and arithmetic.

    Raises
    ------
    DataError
        If the graph uses another operator.
    """

    def __init__(self, model: Any, device: str, dtype: torch.dtype) -> None:
        self.dtype = dtype
        graph = model.graph
        unknown = sorted({node.op_type for node in graph.node} - set(OPERATORS))
        if unknown:
            names = ", ".join(unknown)
            raise DataError(f"the network uses ONNX operators that the torch backend lacks: {names}")
        self.constants: dict[str, Any] = {"": None}
        for item in graph.initializer:
            self._add(item.name, numpy_helper.to_array(item), device)
        self.nodes: list[tuple[Callable[..., Any], Attributes, list[str], list[str]]] = []
        for node in graph.node:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type == "Constant":
                value = next(iter(attributes.values()))
                tensor = isinstance(value, onnx.TensorProto)
                array = numpy_helper.to_array(value) if tensor else np.array(value)
                self._add(node.output[0], array, device)
            else:
                self.nodes.append((OPERATORS[node.op_type], attributes, list(node.input), list(node.output)))
        self.input = graph.input[0].name
        # After each node the values that nothing later needs, which are the most of a network's memory.
        last = {name: i for i, node in enumerate(self.nodes) for name in (*node[2], *node[3])}
        kept = {output.name for output in graph.output} | set(self.constants)
        self.spent = [
            [n for n in {*node[2], *node[3]} - kept if last[n] == i] for i, node in enumerate(self.nodes)
        ]

    def _add(self, name: str, array: NDArray[Any], device: str) -> None:
        tensor = torch.from_numpy(np.array(array))
        # Integers are shapes and axes, read on the host.
        self.constants[name] = tensor.to(device, self.dtype) if tensor.is_floating_point() else tensor

    def run(self, image: Tensor) -> dict[str, Tensor]:
        """The outputs by name."""
        values = self.constants | {self.input: image}
        for (function, attributes, inputs, outputs), spent in zip(self.nodes, self.spent, strict=True):
            # Operators with several outputs (Split) are not needed: one result each.
            values[outputs[0]] = function(attributes, *(values[name] for name in inputs))
            for name in spent:
                del values[name]
        return values


def _ints(values: Any) -> list[int]:
    return [int(v) for v in values]


def _padded(a: Attributes, x: Tensor, fill: float = 0.0) -> Tensor:
    """Apply ONNX pads (top, left, bottom, right)."""
    if a.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise DataError("the network uses auto_pad; export it with explicit pads")
    top, left, bottom, right = _ints(a.get("pads", (0, 0, 0, 0)))
    return functional.pad(x, (left, right, top, bottom), value=fill) if any((top, left, bottom, right)) else x


def _conv(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    strides, dilations = _ints(a.get("strides", (1, 1))), _ints(a.get("dilations", (1, 1)))
    pads = _ints(a.get("pads", (0, 0, 0, 0)))
    group = int(a.get("group", 1))
    if pads[:2] == pads[2:] and a.get("auto_pad", b"NOTSET") == b"NOTSET":
        return functional.conv2d(x, weight, bias, strides, pads[:2], dilations, group)
    return functional.conv2d(_padded(a, x), weight, bias, strides, 0, dilations, group)


def _conv_transpose(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    pads = _ints(a.get("pads", (0, 0, 0, 0)))
    if pads[:2] != pads[2:]:
        raise DataError("the network uses ConvTranspose with uneven pads, which the torch backend lacks")
    return functional.conv_transpose2d(
        x, weight, bias, _ints(a.get("strides", (1, 1))), pads[:2],
        _ints(a.get("output_padding", (0, 0))), int(a.get("group", 1)), _ints(a.get("dilations", (1, 1))),
    )  # fmt: skip


def _max_pool(a: Attributes, x: Tensor) -> Tensor:
    kernel = _ints(a["kernel_shape"])
    return functional.max_pool2d(
        _padded(a, x, -np.inf), kernel, _ints(a.get("strides", (1, 1))), 0,
        _ints(a.get("dilations", (1, 1))), bool(a.get("ceil_mode", 0)),
    )  # fmt: skip


def _average_pool(a: Attributes, x: Tensor) -> Tensor:
    if any(a.get("pads", ())):
        raise DataError("the network uses AveragePool with pads, which the torch backend lacks")
    return functional.avg_pool2d(x, _ints(a["kernel_shape"]), _ints(a.get("strides", (1, 1))))


def _resize(a: Attributes, x: Tensor, roi: Any = None, scales: Any = None, sizes: Any = None) -> Tensor:
    mode = a.get("mode", b"nearest").decode()
    place = a.get("coordinate_transformation_mode", b"half_pixel").decode()
    if sizes is not None and sizes.numel():
        size = _ints(sizes)[2:]
    else:
        size = [round(n * float(s)) for n, s in zip(x.shape[2:], scales[2:], strict=True)]
    whole = all(b % n == 0 for n, b in zip(x.shape[2:], size, strict=True))
    # Nearest by a whole factor is the same under all the coordinate modes an exporter writes.
    if mode == "nearest" and whole and place in ("asymmetric", "half_pixel", "pytorch_half_pixel"):
        return functional.interpolate(x, size=size, mode="nearest")
    if mode == "linear" and place in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        return functional.interpolate(x, size=size, mode="bilinear", align_corners=place == "align_corners")
    raise DataError(f"the network uses Resize {mode} {place}, which the torch backend lacks")


def _depth_to_space(a: Attributes, x: Tensor) -> Tensor:
    block = int(a["blocksize"])
    if a.get("mode", b"DCR") == b"CRD":
        return functional.pixel_shuffle(x, block)
    n, c, h, w = x.shape
    x = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, c // block**2, h * block, w * block)


def _space_to_depth(a: Attributes, x: Tensor) -> Tensor:
    block = int(a["blocksize"])
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * block**2, h // block, w // block)


def _batch_norm(a: Attributes, x: Tensor, *statistics: Tensor) -> Tensor:
    scale, bias, mean, variance = statistics
    return functional.batch_norm(x, mean, variance, scale, bias, eps=float(a.get("epsilon", 1e-5)))


def _clip(a: Attributes, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return torch.clamp(x, low, high)


def _reshape(a: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    if a.get("allowzero", 0):
        return x.reshape(_ints(shape))
    return x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(_ints(shape))])


OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": lambda a, x, y: x + y,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Concat": lambda a, *parts: torch.cat(parts, dim=int(a["axis"])),
    "Constant": lambda a: None,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DepthToSpace": _depth_to_space,
    "Identity": lambda a, x: x,
    "LeakyRelu": lambda a, x: functional.leaky_relu(x, float(a.get("alpha", 0.01))),
    "MaxPool": _max_pool,
    "Mul": lambda a, x, y: x * y,
    "Relu": lambda a, x: torch.relu(x),
    "Reshape": _reshape,
    "Resize": _resize,
    "Sigmoid": lambda a, x: torch.sigmoid(x),
    "SpaceToDepth": _space_to_depth,
    "Sub": lambda a, x, y: x - y,
    "Transpose": lambda a, x: x.permute(_ints(a["perm"])),
}


def load(
    detector: Detector, device: str, tile: tuple[int, int], threads: int, precision: str
) -> TorchBackend:
    """Load a detector's network; see `load_backend`."""
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available[device]:
        raise UsageError(f"--device {device} is not available here: torch does not see one")
    # Half precision where the device is made for it; torch's own bf16 on a CPU gains nothing here.
    half = precision == "auto" and device == "cuda"
    if device == "cpu":
        # Workers preset OMP_NUM_THREADS=1; callers run at the same time, one core each.
        torch.set_num_threads(1)
    model = onnx.load(str(detector.model_path))
    graph = Graph(model, device, torch.float16 if half else torch.float32)
    return TorchBackend(graph, device, "f16" if half else "f32")
