"""TensorRT's parser and builder on the shipped network: TensorRT for RTX builds engines without a GPU."""

from __future__ import annotations

import importlib
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest

from brainmap.errors import DataError
from brainmap.infer.backends import tensorrt as backend_tensorrt
from brainmap.infer.backends.half import to_half
from brainmap.infer.backends.tensorrt import build_engine, engine_path
from brainmap.infer.detector import Detector


def find_rtx() -> Any:
    for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    pytest.skip(
        "no TensorRT for RTX: pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings",
        allow_module_level=True,
    )


trt = find_rtx()

# Slices that the shipped network sees at once.
CHANNELS = 5


@pytest.fixture(scope="module")
def shipped() -> Detector:
    return Detector.open("default")


@pytest.fixture(scope="module")
def models(shipped: Detector) -> dict[str, bytes]:
    """The shipped network in both precisions."""
    model = shipped.model_path.read_bytes()
    return {"f32": model, "f16": to_half(onnx.load_from_string(model)).SerializeToString()}


@pytest.fixture(scope="module")
def engines(models: dict[str, bytes]) -> dict[str, bytes]:
    """Engines of both precisions for all GPUs from Ampere on."""
    return {precision: build_engine(trt, model, CHANNELS) for precision, model in models.items()}


def parse(model: bytes) -> Any:
    logger = backend_tensorrt._logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(model), [str(parser.get_error(i)) for i in range(parser.num_errors)]
    # The network lives in its builder.
    return builder, network


def layer_types(network: Any) -> Counter[tuple[str, str]]:
    """How many layers of each kind compute in each type."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    return Counter((layer.type.name, layer.get_output(0).dtype.name) for layer in layers)


def test_half_network_computes_in_half_between_float_ends(models: dict[str, bytes]) -> None:
    _, single = parse(models["f32"])
    _, half = parse(models["f16"])
    types = layer_types(half)
    assert {dtype for kind, dtype in types if kind != "CAST"} == {"HALF"}
    # Nothing is cast on the way: only the input, and each of the two outputs.
    assert (types["CAST", "HALF"], types["CAST", "FLOAT"]) == (1, 2)
    assert types["CONVOLUTION", "HALF"] == layer_types(single)["CONVOLUTION", "FLOAT"] > 0
    for network in (single, half):
        assert network.get_input(0).name == "image"
        assert network.get_input(0).dtype == trt.DataType.FLOAT
        outputs = [network.get_output(i) for i in range(network.num_outputs)]
        assert {o.name: o.dtype for o in outputs} == {
            "logit": trt.DataType.FLOAT,
            "offset": trt.DataType.FLOAT,
        }


def test_engines_of_both_precisions_are_built(engines: dict[str, bytes], models: dict[str, bytes]) -> None:
    weights = len(models["f32"]) - len(models["f16"])
    # The half engine is smaller by about the weights saved: it is not the single one in disguise.
    assert len(engines["f32"]) - len(engines["f16"]) > 0.7 * weights


@pytest.mark.parametrize("capability", [(7, 5), (8, 9), (12, 0)])
def test_engine_for_one_kind_of_gpu(models: dict[str, bytes], capability: tuple[int, int]) -> None:
    assert len(build_engine(trt, models["f16"], CHANNELS, capability)) > 100_000


def test_gpu_that_is_not_an_rtx_card_is_one_sentence(models: dict[str, bytes]) -> None:
    with pytest.raises(DataError, match=r"compute capability 9\.0; use tensorrt"):
        build_engine(trt, models["f16"], CHANNELS, (9, 0))


def test_networks_that_cannot_be_built_are_one_sentence(
    models: dict[str, bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match="cannot parse"):
        build_engine(trt, models["f16"][: len(models["f16"]) // 2], CHANNELS)
    with pytest.raises(DataError, match="could not build"):
        build_engine(trt, models["f16"], CHANNELS + 1)


def test_engines_are_told_apart_by_all_that_decides_them(
    models: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    paths = [
        engine_path(trt, models["f32"], (8, 9)),
        engine_path(trt, models["f16"], (8, 9)),
        engine_path(trt, models["f16"], (12, 0)),
    ]
    assert len(set(paths)) == len(paths)
    assert all(path.is_relative_to(tmp_path) and trt.__version__ in path.name for path in paths)
