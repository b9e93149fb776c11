"""The TensorRT backend with a stand-in for TensorRT that computes by torch, on the CPU's memory."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")

from brainmap.errors import DataError, MissingExtraError, UsageError  # noqa: E402
from brainmap.infer import detector  # noqa: E402
from brainmap.infer.backends import tensorrt as backend_tensorrt  # noqa: E402
from brainmap.infer.backends.tensorrt import MAX_BATCH, TensorRtBackend, timing_path  # noqa: E402
from brainmap.infer.backends.torch import Graph  # noqa: E402
from brainmap.infer.detector import Detector, load_backend  # noqa: E402

TILE = (64, 80)


class Context:
    """Does at once, through the addresses that it was given, what TensorRT would put on a stream."""

    def __init__(self, model: Any, outputs: dict[str, tuple[int, ...]]) -> None:
        self.graph = Graph(model, "cpu", torch.float32)
        self.outputs, self.addresses = outputs, {}
        self.batches: list[int] = []
        self.missing: list[str] = []
        self.works = True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "image"
        assert 1 <= shape[0] <= MAX_BATCH
        self.shape = shape
        return True

    def infer_shapes(self) -> list[str]:
        return self.missing

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in ("image", *self.outputs)

    def execute_async_v3(self, stream: int) -> bool:
        def at(name: str, shape: tuple[int, ...]) -> np.ndarray:
            memory = (ctypes.c_float * int(np.prod(shape))).from_address(self.addresses[name])
            return np.ctypeslib.as_array(memory).reshape(shape)

        found = self.graph.run(torch.from_numpy(at("image", self.shape).copy()))
        for name, shape in self.outputs.items():
            at(name, (self.shape[0], *shape))[...] = found[name].numpy()
        self.batches.append(self.shape[0])
        return self.works


@pytest.fixture
def context(toy: Detector) -> Context:
    return Context(onnx.load(str(toy.model_path)), {"logit": (1, *TILE), "offset": (2, *TILE)})


class Engine:
    def __init__(self, context: Context | None) -> None:
        self.context = context

    def create_execution_context(self) -> Context | None:
        return self.context


@pytest.fixture
def backend(context: Context) -> TensorRtBackend:
    return TensorRtBackend(Engine(context), 1, "f32", "cpu")


@pytest.mark.parametrize("count", [1, MAX_BATCH, MAX_BATCH + 3])
def test_any_number_of_images_goes_through_in_batches(
    backend: TensorRtBackend, context: Context, toy: Detector, count: int
) -> None:
    images = np.random.default_rng(0).normal(0, 0.2, (count, 5, *TILE)).astype(np.float32)
    wanted = load_backend(toy, "torch", tile=TILE, precision="f32").infer(images)
    got = backend.infer(images)
    assert sum(context.batches) == count
    assert max(context.batches) <= MAX_BATCH
    for mine, theirs in zip(got, wanted, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_images_that_are_not_consecutive_in_memory_are_seen_as_they_are(backend: TensorRtBackend) -> None:
    images = torch.rand(2, 5, *TILE)
    turned = images.contiguous(memory_format=torch.channels_last)
    assert not turned.is_contiguous()
    torch.testing.assert_close(backend.heat(turned)[0], backend.heat(images)[0])


def test_what_tensorrt_refuses_is_said(backend: TensorRtBackend, context: Context) -> None:
    images = torch.zeros(1, 5, *TILE)
    context.works = False
    with pytest.raises(DataError, match="could not run the network"):
        backend.heat(images)
    context.missing = ["logit"]
    with pytest.raises(DataError, match="lacks the shapes"):
        backend.heat(images)
    context.missing, context.outputs = [], {"logit": (1, *TILE)}
    with pytest.raises(DataError, match="no tensor 'offset'"):
        backend.heat(images)
    with pytest.raises(DataError, match="memory full"):
        TensorRtBackend(Engine(None), 1, "f32", "cpu")


def test_without_a_gpu_the_backend_says_so(toy: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_tensorrt, "_import_tensorrt", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no NVIDIA GPU"):
        backend_tensorrt.load(toy, "cuda", TILE, 1, "auto")
    monkeypatch.undo()
    monkeypatch.setattr(backend_tensorrt, "TENSORRT_MODULES", ("no_such_tensorrt",))
    with pytest.raises(MissingExtraError, match="tensorrt"):
        backend_tensorrt.load(toy, "cuda", TILE, 1, "auto")


@pytest.mark.parametrize(("tensorrt", "chosen"), [(True, "tensorrt"), (False, "torch")])
def test_a_gpu_is_used_by_tensorrt_or_else_by_torch(
    tensorrt: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"torch": True, "openvino": True} | dict.fromkeys(detector.TENSORRT_MODULES, tensorrt)
    monkeypatch.setattr(detector.importlib.util, "find_spec", lambda name: names.get(name) or None)
    monkeypatch.setattr(detector.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert detector.choose_backend("auto", None) == (chosen, "cuda")
    monkeypatch.setattr(detector.shutil, "which", lambda name: None)
    assert detector.choose_backend("auto", None) == ("openvino", "cpu")


class Config:
    """TensorRT's timing caches: 8 bytes say which machine they are of."""

    def __init__(self) -> None:
        self.chosen: Any = None

    def create_timing_cache(self, content: bytes) -> Any:
        return None if content == b"broken" else content

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.chosen = cache
        return cache in (b"", b"this one")


@pytest.mark.parametrize(
    ("content", "used"), [(None, b""), (b"this one", b"this one"), (b"another", b""), (b"broken", b"")]
)
def test_timings_are_used_where_they_fit(content: bytes | None, used: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.timing"
    if content is not None:
        path.write_bytes(content)
    config = Config()
    assert backend_tensorrt._timing_cache(config, path) == used == config.chosen


def test_timings_belong_to_one_model_of_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(__name__="tensorrt", __version__="11.4")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    paths = {timing_path(module, (9, 0), gpu) for gpu in ("H100", "H200")}
    assert len(paths) == 2
    assert all(path.is_relative_to(tmp_path) and "tensorrt-11.4-sm90" in path.name for path in paths)
