"""Detector folders, their record, and the backends against each other."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brainmap.errors import DataError, MissingExtraError, NotFoundError, UsageError
from brainmap.infer.detector import Detector, DetectorSpec, choose_backend, load_backend, write_detector


def test_round_trip(tmp_path: Path, toy_record: DetectorSpec, toy_model: bytes) -> None:
    written = write_detector(tmp_path / "d", toy_model, toy_record, "# toy")
    opened = Detector.open(tmp_path / "d")
    assert opened == written
    assert dataclasses.replace(opened.spec, onnx_sha256="") == toy_record
    assert opened.fingerprint == written.fingerprint
    assert Detector.open(str(tmp_path / "d")).model_path.read_bytes() == toy_model


def test_fingerprint_follows_what_decides_the_result(toy: Detector) -> None:
    other = Detector(toy.folder, dataclasses.replace(toy.spec, min_separation=0.5))
    trained = Detector(toy.folder, dataclasses.replace(toy.spec, training={"steps": 5}))
    assert other.fingerprint != toy.fingerprint == trained.fingerprint


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pixel_um": 0.0}, "pixel_um"),
        ({"z_target_um": math.nan}, "z_target_um"),
        ({"channels": 4}, "odd"),
        ({"stride": 3}, "stride"),
        ({"tile": (100, 128)}, "tile"),
        ({"halo_px": 64}, "halo"),
        ({"threshold": 1.5}, "threshold"),
        ({"subpixel": "guess"}, "subpixel"),
        ({"face": (0.0, 1.0, 0.0)}, "face"),
        ({"face": (0.0, -1.0, 0.5, 0.0)}, "face"),
        ({"prominence": (-1.0, 5.0)}, "prominence"),
        ({"prominence": (1.0, 0.0)}, "prominence"),
        ({"prominence": (1.0,)}, "prominence"),
        ({"calibration": ((0.0, 0.5),)}, "calibration"),
        ({"calibration": ((1.0, 0.0), (0.0, 1.0))}, "calibration"),
        ({"calibration": ((0.0, 0.9), (1.0, 0.1))}, "calibration"),
        ({"calibration": ((0.0, 0.0), (1.0, 1.1))}, "calibration"),
    ],
)
def test_bad_records_are_refused(toy_record: DetectorSpec, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        dataclasses.replace(toy_record, **changes)


def test_what_hardly_stands_out_of_the_texture_is_judged_lower(toy_record: DetectorSpec) -> None:
    logit = np.full(4, 1.0, np.float32)
    prominence = np.array([0.0, 2.0, 10.0, 50.0])
    assert (toy_record.weighed(logit, prominence) == logit).all()
    spec = dataclasses.replace(toy_record, prominence=(1.5, 10.0))
    found = spec.weighed(logit, prominence)
    wanted = 1.0 + 1.5 * (np.arcsinh([0.0, 2.0, 10.0, 10.0]) - np.arcsinh(10.0))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    # Below the surroundings is no better than nothing; what could not be measured is not held against a peak.
    assert spec.weighed(logit[:1], np.array([-5.0]))[0] == found[0]
    assert spec.weighed(logit[:1], np.array([np.nan]))[0] == 1.0
    assert DetectorSpec.from_dict(dataclasses.asdict(spec)) == spec


def damage(folder: Path, change: Any) -> None:
    path = folder / "detector.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_damaged_folders_are_refused(toy: Detector, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="not a detector"):
        Detector.open(tmp_path / "nothing")
    for name, change, words in (
        ("unknown", lambda c: c.update(colour=1), "unknown keys: colour"),
        ("missing", lambda c: c.pop("stride"), "lacks: stride"),
        ("typed", lambda c: c.update(tile=5), "wrong type"),
        ("hash", lambda c: c.update(onnx_sha256="0"), "SHA-256"),
    ):
        folder = tmp_path / name
        shutil.copytree(toy.folder, folder)
        damage(folder, change)
        with pytest.raises(DataError, match=words):
            Detector.open(folder)


def test_score_and_its_inverse(toy_record: DetectorSpec) -> None:
    spec = dataclasses.replace(toy_record, calibration=((-2.0, 0.1), (0.0, 0.5), (1.0, 0.5), (3.0, 0.9)))
    np.testing.assert_allclose(spec.score(np.array([-9, -1, 0.5, 2, 9])), [0.1, 0.3, 0.5, 0.7, 0.9])
    for score in (0.2, 0.5, 0.7, 0.9):
        logit = spec.logit_at(score)
        assert spec.score(np.array(logit)) == pytest.approx(score)
        assert spec.score(np.array(logit - 0.01)) < score
    assert spec.logit_at(0.05) == -math.inf
    assert spec.logit_at(0.95) == math.inf


def test_scaled_spec_keeps_proportions(toy_record: DetectorSpec) -> None:
    double = toy_record.scaled(20.0)
    assert (double.pixel_um, double.z_target_um, double.cell_diameter_um) == (4.0, 8.0, 20.0)
    assert toy_record.scaled(None) is toy_record
    with pytest.raises(UsageError, match="--cell-diameter"):
        toy_record.scaled(-1.0)


def test_shipped_detector_opens() -> None:
    detector = Detector.open("default")
    assert detector.spec.name
    assert detector.model_path.stat().st_size <= 8e6


@pytest.fixture(params=["toy", "default"])
def network(request: pytest.FixtureRequest, toy: Detector) -> Detector:
    """A detector to compare backends on."""
    return toy if request.param == "toy" else Detector.open("default")


def run(
    detector: Detector, backend: str, batch: np.ndarray, precision: str = "f32"
) -> tuple[np.ndarray, np.ndarray]:
    tile = (batch.shape[2], batch.shape[3])
    return load_backend(detector, backend, tile=tile, precision=precision).infer(batch)


def test_backends_agree(network: Detector) -> None:
    pytest.importorskip("torch")
    batch = (
        np.random.default_rng(0).uniform(-0.1, 0.4, (2, network.spec.channels, 96, 128)).astype(np.float32)
    )
    one, two = run(network, "openvino", batch), run(network, "torch", batch)
    cells = tuple(n // network.spec.stride for n in (96, 128))
    assert one[0].shape == (2, 1, *cells)
    assert one[1].shape == (2, 2, *cells)
    for a, b in zip(one, two, strict=True):
        assert a.dtype == b.dtype == np.float32
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_fast_precision_stays_close(network: Detector) -> None:
    batch = (
        np.random.default_rng(0).uniform(-0.05, 0.3, (1, network.spec.channels, 128, 128)).astype(np.float32)
    )
    exact, fast = run(network, "openvino", batch), run(network, "openvino", batch, "auto")
    assert np.abs(network.spec.score(exact[0]) - network.spec.score(fast[0])).mean() < 0.01


def test_half_precision_graph_agrees(network: Detector) -> None:
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    from brainmap.infer.backends.half import to_half

    half = to_half(onnx.load(str(network.model_path)))
    onnx.checker.check_model(half)
    weights = {i.data_type for i in half.graph.initializer if len(i.dims) == 4}
    assert weights == {onnx.TensorProto.FLOAT16}
    height, width = (d.dim_value for d in half.graph.input[0].type.tensor_type.shape.dim[2:])
    batch = np.random.default_rng(0).uniform(-0.1, 0.4, (1, network.spec.channels, height, width))
    batch = batch.astype(np.float32)
    session = runtime.InferenceSession(half.SerializeToString(), providers=["CPUExecutionProvider"])
    logit, _ = session.run(["logit", "offset"], {"image": batch})
    exact = run(network, "openvino", batch)[0]
    np.testing.assert_allclose(network.spec.score(logit), network.spec.score(exact), atol=2e-2)


def test_threads_share_a_network(toy: Detector) -> None:
    backend = load_backend(toy, "openvino", tile=(64, 64), threads=2, precision="f32")
    rng = np.random.default_rng(0)
    batches = [rng.random((1, 5, 64, 64), dtype=np.float32) for _ in range(12)]
    expected = [backend.infer(b)[0] for b in batches]
    found: list[np.ndarray | None] = [None] * len(batches)

    def work(first: int) -> None:
        for i in range(first, len(batches), 3):
            found[i] = backend.infer(batches[i])[0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_unknown_operator_is_named(toy_record: DetectorSpec, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("torch")
    from onnx import TensorProto, helper

    values = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 5, 64, 64]) for n in ("image", "logit")
    ]
    graph = helper.make_graph([helper.make_node("Tanh", ["image"], ["logit"])], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    detector = write_detector(tmp_path / "d", model.SerializeToString(), toy_record, "")
    with pytest.raises(DataError, match="Tanh"):
        load_backend(detector, "torch")


def test_a_broken_network_is_one_sentence(toy_record: DetectorSpec, tmp_path: Path) -> None:
    detector = write_detector(tmp_path / "d", b"not a network", toy_record, "")
    with pytest.raises(DataError, match="not a network OpenVINO can read"):
        load_backend(detector, "openvino")


def test_choice_of_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_backend("openvino", None) == ("openvino", "cpu")
    assert choose_backend("torch", "mps") == ("torch", "mps")
    assert choose_backend("auto", "cpu") == ("openvino", "cpu")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name == "tensorrt" else None)
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/nvidia-smi")
    assert choose_backend("auto", None) == ("tensorrt", "cuda")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert choose_backend("auto", None) == ("torch", "cpu")
    assert choose_backend("auto", "cuda") == ("torch", "cuda")


def test_wrong_backends_and_devices_are_refused(toy: Detector) -> None:
    for options, words in (
        ({"backend": "abacus"}, "--backend"),
        ({"device": "tpu"}, "--device"),
        ({"backend": "openvino", "device": "cuda"}, "does not run on"),
        ({"precision": "f8"}, "precision"),
    ):
        with pytest.raises(UsageError, match=words):
            load_backend(toy, **options)  # type: ignore[arg-type]


def test_tensorrt_without_the_package_says_how_to_get_it(toy: Detector) -> None:
    from brainmap.infer.backends import tensorrt as backend_tensorrt

    with pytest.raises((MissingExtraError, UsageError)):
        backend_tensorrt.load(toy, "cuda", (64, 64), 1, "auto")
