"""Networks rearranged for OpenVINO: what they compute stays, and what is no such network stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

ov = pytest.importorskip("openvino")

from openvino import opset13 as ops  # noqa: E402

from brainmap.infer.backends.openvino_graph import merge_upsampling, rearranged, take_off_folds  # noqa: E402
from brainmap.infer.block.folding import Folds, folded, unfolded  # noqa: E402
from brainmap.infer.detector import Detector  # noqa: E402

RNG = np.random.default_rng(0)
EXACT = {"INFERENCE_PRECISION_HINT": "f32"}


def outputs(model: Any, image: np.ndarray) -> list[np.ndarray]:
    found = ov.Core().compile_model(model, "CPU", EXACT).create_infer_request().infer({0: image})
    return [np.array(value) for value in found.values()]


def kinds(model: Any) -> set[str]:
    return {node.get_type_name() for node in model.get_ordered_ops()}


def weights(*shape: int) -> Any:
    return ops.constant(RNG.normal(size=shape).astype(np.float32))


def same(model: Any, change: Callable[[Any], Any], shape: tuple[int, ...]) -> None:
    """A change leaves the values of a model as they are."""
    image = RNG.normal(size=shape).astype(np.float32)
    before = outputs(model, image)
    changed = change(model) or model
    for a, b in zip(before, outputs(changed, image), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("widths", [(8, 16), (8, 12, 16, 20)])
def test_a_centernet_computes_the_same(stride: int, widths: tuple[int, ...]) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from brainmap.train.learn.centernet import CenterNet, CenterNetConfig
    from brainmap.train.learn.export import to_onnx

    torch.manual_seed(0)
    net = CenterNet(CenterNetConfig(slices=3, stride=stride, widths=widths)).eval()
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    image = RNG.normal(size=(1, 3, 64, 96)).astype(np.float32)
    with torch.no_grad():
        wanted = [part.numpy() for part in net(torch.from_numpy(image))[:2]]
    model = ov.Core().read_model(to_onnx(net, (64, 96)))
    model.reshape([1, 3, 64, 96])
    model, folds = rearranged(model)
    assert folds == Folds(2, 2 if stride == 1 else 1)
    assert not kinds(model) & {"Interpolate", "Concat", "GroupConvolution"}
    for a, b in zip(wanted, outputs(model, folded(image[0], 2)[None]), strict=True):
        np.testing.assert_allclose(a[0], unfolded(b[0], folds.heat), rtol=1e-4, atol=1e-4)


def test_the_shipped_detector_loses_its_ends_and_its_upsampling() -> None:
    detector = Detector.open()
    model = ov.Core().read_model(str(detector.model_path))
    model.reshape([1, detector.spec.channels, 64, 64])
    model, folds = rearranged(model)
    assert folds == Folds(2, 2)
    assert not kinds(model) & {"Interpolate", "Concat", "GroupConvolution", "GroupConvolutionBackpropData"}
    assert {name for output in model.outputs for name in output.get_names()} >= {"logit", "offset"}


@pytest.mark.parametrize("kernel", ["mixed", "stride", "read twice"])
def test_another_first_layer_stays(kernel: str) -> None:
    corners = np.tile(np.eye(4, dtype=np.float32).reshape(1, 4, 1, 2, 2), (3, 1, 1, 1, 1))
    if kernel == "mixed":
        corners[1, [0, 1]] = corners[1, [1, 0]]
    step = 1 if kernel == "stride" else 2
    image = ops.parameter([1, 3, 16, 16], np.float32)
    first = ops.group_convolution(image, ops.constant(corners), [step, step], [0, 0], [0, 0], [1, 1])
    last: list[Any] = [ops.relu(first)]
    if kernel == "read twice":
        last.append(ops.relu(image))
    model = ov.Model(last, [image])
    found, folds = take_off_folds(model)
    assert folds == Folds(1, 1)
    assert found.inputs[0].get_shape() == ov.Shape([1, 3, 16, 16])


def test_heat_stays_unfolded_where_offsets_are() -> None:
    corners = ops.constant(np.eye(4, dtype=np.float32).reshape(4, 1, 2, 2))
    image = ops.parameter([1, 4, 8, 8], np.float32)
    logit = ops.convolution_backprop_data(image, corners, [2, 2])
    same_model = ov.Model([logit, ops.relu(image)], [image])
    same(same_model, lambda model: take_off_folds(model)[0], (1, 4, 8, 8))
    assert take_off_folds(same_model)[1] == Folds(1, 1)


def doubled(
    value: Any, mode: str = "nearest", place: str = "asymmetric", nearest: str = "floor", by: int = 2
) -> Any:
    size = [by * n for n in value.get_output_shape(0)[2:]]
    axes = ops.constant(np.array([2, 3], np.int64))
    return ops.interpolate(
        value,
        ops.constant(np.array(size, np.int64)),
        mode,
        "sizes",
        coordinate_transformation_mode=place,
        nearest_mode=nearest,
        axes=axes,
    )


def upsampler(joined: Callable[[Any, Any], Any], kernel: int = 3, bias: bool = True) -> Any:
    """conv(concat(image, what was halved))."""
    image = ops.parameter([1, 4, 12, 20], np.float32)
    low = ops.relu(ops.convolution(image, weights(6, 4, 2, 2), [2, 2], [0, 0], [0, 0], [1, 1]))
    both = joined(image, low)
    pad = [kernel // 2, kernel // 2]
    out = ops.convolution(
        both, weights(5, both.get_output_shape(0)[1], kernel, kernel), [1, 1], pad, pad, [1, 1]
    )
    if bias:
        out = ops.add(out, weights(1, 5, 1, 1))
    return ov.Model([ops.relu(out)], [image])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "joined",
    [
        lambda image, low: ops.concat([image, doubled(low)], 1),
        lambda image, low: ops.concat([doubled(low), image], 1),
        lambda image, low: ops.concat([image, doubled(low), image], 1),
        lambda image, low: ops.concat([doubled(low), image, doubled(low)], 1),
        lambda image, low: ops.concat([image, doubled(low, "nearest", "half_pixel", "round_prefer_ceil")], 1),
    ],
)
def test_upsampling_is_merged(joined: Callable[[Any, Any], Any], bias: bool) -> None:
    model = upsampler(joined, bias=bias)
    same(model, merge_upsampling, (1, 4, 12, 20))
    assert "ConvolutionBackpropData" in kinds(model)
    assert "Interpolate" not in kinds(model)


@pytest.mark.parametrize(
    ("joined", "kernel"),
    [
        (lambda image, low: ops.concat([image, doubled(low)], 1), 5),
        (lambda image, low: ops.concat([image, doubled(low, "linear", "half_pixel")], 1), 3),
        (lambda image, low: ops.concat([image, doubled(low, "nearest", "asymmetric", "ceil")], 1), 3),
        (lambda image, low: ops.concat([image, image], 1), 3),
        (lambda image, low: doubled(low), 3),
    ],
)
def test_other_layers_stay(joined: Callable[[Any, Any], Any], kernel: int) -> None:
    model = upsampler(joined, kernel)
    before = [node.get_type_name() for node in model.get_ordered_ops()]
    same(model, merge_upsampling, (1, 4, 12, 20))
    assert [node.get_type_name() for node in model.get_ordered_ops()] == before
