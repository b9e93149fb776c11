"""A network in half precision: the same ONNX graph with half-precision weights and arithmetic.

TensorRT 11 takes its precision from the graph's types alone. Input and outputs stay float32, so callers
see no difference.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from brainmap.errors import MissingExtraError

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError as _error:
    raise MissingExtraError("onnx", "train", "convert a network to half precision") from _error

__all__ = ["to_half"]

# Inputs that must stay float32: the region and scales of Resize.
_KEPT = {"Resize": (1, 2)}


def to_half(model: Any) -> Any:
    """A copy of an ONNX model that computes in float16 between a float32 input and float32 outputs."""
    half = onnx.ModelProto()
    half.CopyFrom(model)
    graph = half.graph
    kept = {
        name
        for node in graph.node
        for place in _KEPT.get(node.op_type, ())
        for name in node.input[place : place + 1]
    }
    for item in graph.initializer:
        if item.data_type == TensorProto.FLOAT and item.name not in kept:
            item.CopyFrom(_half_tensor(item))
    for node in graph.node:
        if node.op_type == "Constant" and node.output[0] not in kept:
            for attribute in node.attribute:
                if attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT:
                    attribute.t.CopyFrom(_half_tensor(attribute.t))
    del graph.value_info[:]
    _cast_ends(graph)
    return half


def _half_tensor(item: Any) -> Any:
    largest = float(np.finfo(np.float16).max)
    values = np.clip(numpy_helper.to_array(item), -largest, largest)
    return numpy_helper.from_array(values.astype(np.float16), item.name)


def _cast_ends(graph: Any) -> None:
    """Cast the input to half at the start, and every output back at the end."""
    source = graph.input[0].name
    outputs = {output.name: f"{output.name}_half" for output in graph.output}
    inner = f"{source}_half"
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = inner if name == source else outputs.get(name, name)
        for i, name in enumerate(node.output):
            node.output[i] = outputs.get(name, name)
    first = helper.make_node("Cast", [source], [inner], to=TensorProto.FLOAT16)
    last = [helper.make_node("Cast", [h], [name], to=TensorProto.FLOAT) for name, h in outputs.items()]
    nodes = [first, *graph.node, *last]
    del graph.node[:]
    graph.node.extend(nodes)
