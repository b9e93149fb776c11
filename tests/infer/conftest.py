"""A toy detector and toy brains for the engine's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the toy detector is written with onnx")

from brainmap.image.intensity import Intensity  # noqa: E402
from brainmap.image.volume import Volume, write_volume  # noqa: E402
from brainmap.infer.detector import Detector, DetectorSpec, write_detector  # noqa: E402


def toy_network(stride: int = 1, channels: int = 5) -> bytes:
    """A matched filter for blobs 10 um across on 2 um pixels and 4 um groups: one convolution.

    The kernel is a 3-D Gaussian without its mean over the plane, so that even tissue gives nothing.
    """
    from onnx import TensorProto, helper, numpy_helper

    size = 11 if stride == 1 else 10 + stride
    place = np.arange(size) - (size - 1) / 2
    plane = np.exp(-(place[:, None] ** 2 + place**2) / (2 * 1.6**2))
    ring = np.exp(-(place[:, None] ** 2 + place**2) / (2 * 2.7**2))
    kernel = plane / plane.sum() - ring / ring.sum()
    depth = np.exp(-((np.arange(channels) - channels // 2) ** 2) / (2 * 0.9**2))
    weight = 220 * kernel[None] * (depth / depth.sum())[:, None, None]
    step = [stride, stride]
    nodes = [
        helper.make_node("Conv", ["image", "w", "b"], ["logit"], pads=[5, 5, 5, 5], strides=step),
        helper.make_node("Conv", ["image", "w0"], ["offset"], strides=step),
    ]
    weights = {
        "w": weight[None].astype(np.float32),
        "b": np.array([-6.0], np.float32),
        "w0": np.zeros((2, channels, 1, 1), np.float32),
    }
    cells = 64 // stride
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", channels, 64, 64])],
        [
            helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["batch", 1, cells, cells]),
            helper.make_tensor_value_info("offset", TensorProto.FLOAT, ["batch", 2, cells, cells]),
        ],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def toy_spec(**changes: object) -> DetectorSpec:
    """The record of the toy detector."""
    values: dict[str, object] = {
        "name": "toy", "version": "1", "pixel_um": 2.0, "z_target_um": 4.0, "channels": 5,
        "tile": (128, 128), "stride": 1, "halo_px": 8, "offset": 0.3, "fill": 0.0,
        "cell_diameter_um": 10.0, "threshold": 0.5, "calibration": ((-8.0, 0.0), (8.0, 1.0)),
        "onnx_sha256": "", "subpixel": "parabola", "face": (-0.3, 0.8, 0.15, 0.5),
    }  # fmt: skip
    return DetectorSpec(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    """The toy detector at stride 1."""
    return write_detector(tmp_path_factory.mktemp("toy") / "toy", toy_network(), toy_spec(), "toy")


def paint(
    shape: tuple[int, int, int],
    voxel_um: tuple[float, float, float],
    centres_vox: np.ndarray,
    brightness: float = 600.0,
    diameter_um: float = 10.0,
    noise: float = 20.0,
    background: float = 400.0,
    seed: int = 0,
) -> np.ndarray:
    """Gaussian blobs (full width at half maximum 0.8 diameters) on even, noisy tissue; uint16."""
    rng = np.random.default_rng(seed)
    image = rng.normal(background, noise, shape).astype(np.float32)
    sigma = 0.8 * diameter_um / 2.355
    reach = [int(np.ceil(3 * sigma / v)) for v in voxel_um]
    for centre in np.atleast_2d(centres_vox):
        spans = [
            np.arange(max(0, round(c) - r), min(n, round(c) + r + 1))
            for c, r, n in zip(centre, reach, shape, strict=True)
        ]
        parts = [
            np.exp(-(((s - c) * v) ** 2) / (2 * sigma**2))
            for s, c, v in zip(spans, centre, voxel_um, strict=True)
        ]
        blob = brightness * parts[0][:, None, None] * parts[1][:, None] * parts[2]
        image[np.ix_(*spans)] += blob.astype(np.float32)
    return np.clip(image, 0, 65535).astype(np.uint16)


def scatter(
    shape: tuple[int, int, int],
    voxel_um: tuple[float, float, float],
    count: int,
    apart_um: float = 14.0,
    seed: int = 1,
) -> np.ndarray:
    """Random centres, at least `apart_um` apart, voxel indices (count, 3)."""
    from scipy.spatial import cKDTree

    rng = np.random.default_rng(seed)
    found = np.empty((0, 3))
    scale = np.array(voxel_um)
    while len(found) < count:
        more = rng.uniform(0, np.array(shape) - 1, (4 * count, 3))
        both = np.concatenate([found, more])
        keep = np.ones(len(both), bool)
        for i, j in sorted(cKDTree(both * scale).query_pairs(apart_um)):
            if keep[i]:
                keep[j] = False
        found = both[keep]
    return found[:count]


Brain = tuple[Volume, Intensity, np.ndarray]


@pytest.fixture(scope="session")
def make_brain(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Brain]:
    """Make a volume with cells at given places: volume, its intensity, its centres."""

    def make(
        shape: tuple[int, int, int] = (26, 190, 150),
        voxel_um: tuple[float, float, float] = (4.0, 2.0, 2.0),
        centres: np.ndarray | None = None,
        chunks: tuple[int, int, int] = (16, 64, 64),
        count: int = 60,
        **look: float,
    ) -> Brain:
        if centres is None:
            centres = scatter(shape, voxel_um, count)
        image = paint(shape, voxel_um, centres, **look)  # type: ignore[arg-type]
        path = tmp_path_factory.mktemp("brain") / "brain.zarr"
        volume = write_volume(path, image, voxel_um, chunks=chunks)
        return volume, Intensity.fit(volume), np.asarray(centres)

    return make


@pytest.fixture(scope="session")
def brain(make_brain: Callable[..., Brain]) -> Brain:
    """A small brain with 60 cells, faces included."""
    return make_brain()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Where a run goes."""
    return tmp_path / "run"


@pytest.fixture(scope="session")
def toy_record() -> DetectorSpec:
    """The toy's record, for tests that change it."""
    return toy_spec()


@pytest.fixture(scope="session")
def toy_model() -> bytes:
    """The toy's network, ONNX."""
    return toy_network()


@pytest.fixture(scope="session")
def toy_at(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Detector]:
    """The toy detector at another stride."""

    def make(stride: int) -> Detector:
        folder = tmp_path_factory.mktemp("toy") / f"stride{stride}"
        return write_detector(folder, toy_network(stride), toy_spec(stride=stride, halo_px=16), "toy")

    return make


@pytest.fixture(scope="session")
def fine_toy(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    """The toy on half the pixel: it resolves cells that nearly touch."""
    folder = tmp_path_factory.mktemp("toy") / "fine"
    return write_detector(folder, toy_network(), toy_spec(pixel_um=1.0, z_target_um=2.0), "toy")
