"""A network rearranged for OpenVINO: the same sums with less moving of pixels, and fewer of them.

Patterns that are not there leave a network as it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops
from openvino.passes import ConstantFolding, Manager

from brainmap.infer.block.folding import Folds

__all__ = ["merge_upsampling", "rearranged", "take_off_folds"]

_FOLDS = ("Convolution", "GroupConvolution")
_UNFOLDS = ("ConvolutionBackpropData", "GroupConvolutionBackpropData")
# How places and their nearest pixels are found; of these, doubling repeats every pixel.
_REPEATING = {
    ("asymmetric", "floor"),
    ("half_pixel", "round_prefer_floor"),
    ("half_pixel", "round_prefer_ceil"),
    ("pytorch_half_pixel", "round_prefer_floor"),
    ("pytorch_half_pixel", "round_prefer_ceil"),
}

# A value inside a network, and the part of a kernel (out, in, rows, columns) for its channels.
Part = tuple[Any, NDArray[Any]]


def rearranged(model: ov.Model) -> tuple[ov.Model, Folds]:
    """A network of a fixed input shape with everything done to it that this module can do."""
    passes = Manager()
    # Weights come as what they are computed from.
    passes.register_pass(ConstantFolding())
    passes.run_passes(model)
    model, folds = take_off_folds(model)
    merge_upsampling(model)
    return model, folds


def take_off_folds(model: ov.Model) -> tuple[ov.Model, Folds]:
    """Take off a first layer that folds its image into planes, and last ones that unfold them.

    Parameters
    ----------
    model : openvino.Model
        One input, of a fixed shape (n, channels, H, W).

    Returns
    -------
    openvino.Model
        Input and outputs have the planes of `brainmap.infer.block.folding` as channels.
    Folds
        By how much; heat is folded only if all outputs are, alike.
    """
    (image,) = model.get_parameters()
    readers = image.output(0).get_target_inputs()
    factor = 1
    if len(readers) == 1:
        first = next(iter(readers)).get_node()
        factor = _factor(first, _FOLDS)
    if factor > 1:
        planes = ops.parameter(first.get_output_shape(0), np.float32, name="planes")
        _replace(first.output(0), planes.output(0))
        image = planes
    lasts = [result.input_value(0).get_node() for result in model.get_results()]
    by = {_factor(last, _UNFOLDS) for last in lasts}
    heat = by.pop() if len(by) == 1 else 1
    results = []
    for last, result in zip(lasts, model.get_results(), strict=True):
        value = last.input_value(0) if heat > 1 else result.input_value(0)
        # The names by which results are asked for.
        value.get_tensor().set_names(result.output(0).get_names())
        results.append(ops.result(value))
    return ov.Model(results, [image]), Folds(factor, heat)


def _factor(node: ov.Node, kinds: tuple[str, ...]) -> int:
    """By how much a layer folds or unfolds every channel, 1 if it is another one."""
    if node.get_type_name() not in kinds:
        return 1
    weight = _constant(node.input_value(1))
    if weight is None:
        return 1
    size, settings = weight.shape[-1], node.get_attributes()
    if (
        size == 1
        or weight.shape[-2] != size
        or tuple(settings["strides"]) != (size, size)
        or tuple(settings["dilations"]) != (1, 1)
        or any((*settings["pads_begin"], *settings["pads_end"], *settings.get("output_padding", ())))
    ):
        return 1
    # (groups, planes, 1, factor, factor) or, for one group, without the first; picks one pixel a plane.
    groups = weight.reshape(-1, size * size, size * size) if weight.size % size**4 == 0 else weight[:0]
    channels = node.get_input_shape(0)[1] // (1 if kinds is _FOLDS else size**2)
    alike = len(groups) == channels and (groups == np.eye(size * size, dtype=weight.dtype)).all()
    return size if alike else 1


def merge_upsampling(model: ov.Model) -> None:
    """Replace 3 x 3 convolutions of what was doubled in size by transposed ones of 4 x 4 on what it was doubled from.

    A convolution of [skip, doubled] becomes the sum of one of `skip` and a transposed one, which has 4 instead of 9
    products for each of its channels and pixels, and nothing has to be doubled or copied together. Sums are the same
    up to rounding.
    """
    for layer in model.get_ordered_ops():
        if layer.get_type_name() != "Convolution" or not _keeps_size(layer):
            continue
        joined, weight = layer.input_value(0).get_node(), _constant(layer.input_value(1))
        if (
            weight is None
            or joined.get_type_name() != "Concat"
            or joined.get_attributes()["axis"] not in (1, -3)
        ):
            continue
        parts = joined.input_values()
        ends = np.cumsum([part.get_shape()[1] for part in parts])
        skips: list[Part] = []
        doubled: list[Part] = []
        for part, kernel in zip(parts, np.split(weight, ends[:-1], axis=1), strict=True):
            low = _doubled_from(part.get_node())
            if low is None:
                skips.append((part, kernel))
            else:
                doubled.append((low, kernel))
        if skips and doubled:
            _split(layer, skips, doubled)


def _split(layer: ov.Node, skips: list[Part], doubled: list[Part]) -> None:
    """Put a sum of convolutions in the place of one."""
    source = skips[0][0] if len(skips) == 1 else ops.concat([part for part, _ in skips], 1).output(0)
    kernel = np.ascontiguousarray(np.concatenate([kernel for _, kernel in skips], axis=1))
    plain = ops.convolution(source, ops.constant(kernel), [1, 1], [1, 1], [1, 1], [1, 1])
    # Added after the bias, so that OpenVINO does bias, sum and rectifier where the convolution writes.
    end = _bias_after(layer) or layer
    readers = list(end.output(0).get_target_inputs())
    _replace(layer.output(0), plain.output(0))
    total = plain.output(0) if end is layer else end.output(0)
    for low, kernel in doubled:
        up = ops.constant(_doubling_kernel(kernel))
        raised = ops.convolution_backprop_data(low, up, [2, 2], pads_begin=[1, 1], pads_end=[1, 1])
        total = ops.add(total, raised).output(0)
    for reader in readers:
        reader.replace_source_output(total)


def _bias_after(layer: ov.Node) -> ov.Node | None:
    """The sum with a constant that is all that reads a layer, if it is."""
    readers = list(layer.output(0).get_target_inputs())
    reader = readers[0].get_node() if len(readers) == 1 else None
    if reader is None or reader.get_type_name() != "Add":
        return None
    constants = [value for value in reader.input_values() if _constant(value) is not None]
    return reader if len(constants) == 1 else None


def _doubling_kernel(weight: NDArray[Any]) -> NDArray[Any]:
    """The transposed convolution's kernel (in, out, 4, 4) for a convolution's (out, in, 3, 3) of a doubled image."""
    out, into = weight.shape[:2]
    kernel = np.zeros((into, out, 4, 4), weight.dtype)
    # Tap t of output y reads doubled pixel y + t - 1, which is low pixel i for y = 2 i - 1 + k, k in (2 - t, 3 - t).
    for t in range(3):
        for s in range(3):
            kernel[:, :, 2 - t : 4 - t, 2 - s : 4 - s] += weight[:, :, t, s].T[:, :, None, None]
    return kernel


def _keeps_size(layer: ov.Node) -> bool:
    """Whether a convolution is 3 x 3, of step 1, and padded by one."""
    settings, shape = layer.get_attributes(), layer.get_input_shape(1)
    places = [tuple(settings[name]) for name in ("strides", "pads_begin", "pads_end", "dilations")]
    return tuple(shape[2:]) == (3, 3) and all(place == (1, 1) for place in places)


def _doubled_from(node: ov.Node) -> Any | None:
    """What a layer repeats 2 x 2 times, pixel by pixel; None if it does something else."""
    if node.get_type_name() != "Interpolate":
        return None
    settings = node.get_attributes()
    rule = settings["coordinate_transformation_mode"], settings["nearest_mode"]
    before, after = node.get_input_shape(0), node.get_output_shape(0)
    if settings["mode"] != "nearest" or rule not in _REPEATING:
        return None
    return node.input_value(0) if list(after) == [*before[:2], 2 * before[2], 2 * before[3]] else None


def _constant(value: Any) -> NDArray[Any] | None:
    """The values of a constant, None where something else comes in."""
    node = value.get_node()
    return np.array(node.data) if node.get_type_name() == "Constant" else None


def _replace(old: Any, new: Any) -> None:
    """Let all that reads one value read another."""
    for reader in list(old.get_target_inputs()):
        reader.replace_source_output(new)
