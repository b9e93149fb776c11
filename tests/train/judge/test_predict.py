"""Cells on tiles are the cells that detection finds on the same section."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

import tifffile  # noqa: E402

from brainmap.image.intensity import Intensity  # noqa: E402
from brainmap.image.volume import write_volume  # noqa: E402
from brainmap.infer.detector import Detector  # noqa: E402
from brainmap.infer.engine.engine import RunOptions, run_detection  # noqa: E402
from brainmap.infer.engine.results import iter_results  # noqa: E402
from brainmap.points.matching import match_points  # noqa: E402
from brainmap.points.table import Points  # noqa: E402
from brainmap.tiles.tiles import Tiles, import_tiles, write_tiles  # noqa: E402
from brainmap.train.judge import predict  # noqa: E402
from brainmap.train.judge.predict import calibrated, predict_tiles  # noqa: E402
from brainmap.train.learn.centernet import CenterNet, CenterNetConfig  # noqa: E402

VOXEL_UM = (5.0, 1.5, 1.5)
CELL_UM = 15.0


def _section(seed: int = 0, shape: tuple[int, int] = (301, 277)) -> np.ndarray:
    """Forty soft discs, 10 px across, on noisy tissue."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    image = rng.normal(400, 25, shape)
    for y, x in rng.uniform(0, shape, (40, 2)):
        away = np.hypot(rows - y, columns - x)
        image += rng.uniform(60, 400) / (1 + np.exp((away - 4.5) / 0.8))
    return image.clip(0, 65535).astype(np.uint16)


def test_equals_detection_on_the_section_up_to_8_bit(tmp_path: Path) -> None:
    image = _section()
    volume = write_volume(tmp_path / "section.zarr", image[None], VOXEL_UM)
    options = RunOptions(
        threshold=0.1, cell_diameter_um=CELL_UM, backend="openvino", precision="f32", progress=False
    )
    detector = Detector.open("default")
    run_detection(volume, Intensity.fit(volume, CELL_UM), detector, tmp_path / "run", options)
    detected = Points.concat(list(iter_results(tmp_path / "run")))

    tifffile.imwrite(tmp_path / "section.tif", image)
    tiles = import_tiles(
        [tmp_path / "section.tif"], tmp_path / "tiles", voxel_um=VOXEL_UM, cell_diameter_um=CELL_UM
    )
    found = predict_tiles(detector, tiles, None, CELL_UM, precision="f32")

    # Eight bits move scores by a few hundredths: a detection may cross the threshold, no clear one may.
    clear = detected["score"] >= 0.15
    xy = np.column_stack([detected["x"], detected["y"]])[clear]
    match = match_points(xy, found.xy, 0.3)
    assert len(match) == clear.sum() > 20
    assert np.median(match.distance) < 0.05
    change = np.abs(detected["score"][clear][match.index_a] - found.score[match.index_b])
    assert change.max() < 0.05
    assert abs(int((found.score >= 0.1).sum()) - len(detected)) <= 2


def _network(stride: int, levels: int = 3) -> CenterNet:
    """A random network that answers something everywhere, also where there is nothing."""
    torch.manual_seed(stride)
    network = CenterNet(CenterNetConfig(stride=stride, widths=(6, 8, 8, 8)[:levels]))
    for name, value in network.named_parameters():
        if value.ndim == 1 and "heat" not in name:
            torch.nn.init.normal_(value, 0.5, 0.5)
    return network.eval()


@pytest.mark.parametrize(("stride", "levels"), [(1, 3), (2, 3), (4, 4)])
def test_heat_is_that_of_the_whole_image(stride: int, levels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network = _network(stride, levels)
    image = np.random.default_rng(0).normal(0, 0.2, (270, 262)).astype(np.float32)
    whole = np.zeros((1, 5, 272, 272), np.float32)
    whole[0, 2, :270, :262] = image
    with torch.no_grad():
        logit, offset, _ = network(torch.from_numpy(whole))
    inner = (slice(0, -(-270 // stride)), slice(0, -(-262 // stride)))
    runner = predict._Runner.of_network(network)
    for largest in (1024, 2 * runner.halo + 48):
        monkeypatch.setattr(predict, "MAX_TILE", largest)
        got_logit, got_offset = runner.maps(image)
        np.testing.assert_allclose(got_logit, logit[0, 0].numpy()[inner], atol=1e-4)
        np.testing.assert_allclose(got_offset, offset[0].numpy()[:, inner[0], inner[1]], atol=1e-4)


@pytest.fixture
def tiles(tmp_path: Path) -> Tiles:
    """Three tiles of two sizes."""
    rng = np.random.default_rng(1)
    images = [rng.uniform(0.2, 0.6, s).astype(np.float32) for s in ((60, 80), (60, 80), (45, 33))]
    names = ["a", "b", "c"]
    columns = {"image_id": names, "brain": names, "z": [0, 0, 0], "voxel_um": [(4, 2, 2)] * 3}
    return write_tiles(tmp_path / "tiles", columns, images)


def test_columns_and_order(tiles: Tiles) -> None:
    network = _network(1)
    network.train()
    found = predict_tiles(network, tiles)
    assert network.training, "the network is left as it was"
    assert set(found.image.tolist()) == {0, 1, 2}
    keys = np.lexsort((found.x, found.y, found.image))
    np.testing.assert_array_equal(keys, np.arange(len(found)))
    np.testing.assert_allclose(found.score, 1 / (1 + np.exp(-found.logit.astype(float))), rtol=1e-6)
    assert (found.logit >= predict.LOWEST_LOGIT).all()
    for index, (height, width) in enumerate(tiles.shapes):
        own = found.image == index
        assert (found.x[own] >= 0).all() and (found.x[own] <= width - 1).all()
        assert (found.y[own] >= 0).all() and (found.y[own] <= height - 1).all()
    alone = predict_tiles(network, tiles.take(np.array([2])))
    np.testing.assert_allclose(alone.xy, found.xy[found.image == 2])
    apart = np.linalg.norm(alone.xy[:, None] - alone.xy, axis=2) + np.eye(len(alone)) * 99
    assert apart.min() >= 0.6 * 10 / 2 - 1e-9


def test_threshold_only_takes_away(tiles: Tiles) -> None:
    network = _network(1)
    everything = predict_tiles(network, tiles)
    middle = float(np.median(everything.logit))
    some = predict_tiles(network, tiles, lowest_logit=middle)
    kept = everything.take(everything.logit >= middle)
    np.testing.assert_array_equal(some.xy, kept.xy)
    np.testing.assert_array_equal(some.logit, kept.logit)


def test_calibration(tiles: Tiles) -> None:
    knots = ((-5.0, 0.0), (0.0, 0.5), (5.0, 0.9))
    found = predict_tiles(_network(1), tiles).calibrated(knots)
    np.testing.assert_array_equal(found.score, calibrated(found.logit, knots))
    assert calibrated(np.array([-9, -2.5, 0, 9]), knots).tolist() == [0.0, 0.25, 0.5, 0.9]


def test_a_network_lowers_what_hardly_stands_out_as_its_detector_does(tiles: Tiles) -> None:
    network, weights = _network(1), (1.0, 8.0)
    plain = predict_tiles(network, tiles, None, CELL_UM, -30.0)
    found = predict_tiles(network, tiles, None, CELL_UM, -30.0, prominence=weights)
    same = {(i, round(x, 6), round(y, 6)): v for i, x, y, v in zip(
        plain.image.tolist(), plain.x.tolist(), plain.y.tolist(), plain.logit.tolist(), strict=True)}  # fmt: skip
    places = zip(found.image.tolist(), found.x.tolist(), found.y.tolist(), found.logit.tolist(), strict=True)
    # Which of two near peaks stays depends on their logits, so some places differ.
    change = np.array(
        [v - same[place] for *at, v in places if (place := (at[0], *np.round(at[1:], 6))) in same]
    )
    assert len(change) > 10
    assert change.max() <= 1e-5
    assert change.min() >= -np.arcsinh(8.0) - 1e-5
    assert np.ptp(change) > 0.1
