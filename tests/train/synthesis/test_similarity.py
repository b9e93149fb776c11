"""Similarity of tile sets: each measure against a known answer, and the page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.distance import jensenshannon

from brainmap.errors import DataError
from brainmap.tiles.tiles import Tiles, write_tiles
from brainmap.train.synthesis.cell_images import CellLook
from brainmap.train.synthesis.placement import Placement, StudyRules
from brainmap.train.synthesis.similarity import (
    FEATURES,
    STUDY,
    compare_tiles,
    disc_signal,
    jensen_shannon,
    synthetic_signal,
)
from brainmap.train.synthesis.similarity_report import write_similarity
from brainmap.train.synthesis.synthesis import SynthesisSettings, synthesize

SHAPE = (64, 80)


def noise(
    count: int,
    seed: int,
    level: float = 0.4,
    deviation: float = 0.08,
    blur: float = 0,
    shape: tuple[int, int] = SHAPE,
) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        image = rng.standard_normal(shape)
        if blur:
            image = ndimage.gaussian_filter(image, blur)
            image /= image.std()
        made.append((level + deviation * image).clip(0, 1).astype(np.float32))
    return made


def tiles(folder: Path, images: list[NDArray[np.float32]]) -> Tiles:
    n = len(images)
    columns = {"image_id": [f"{folder.name}{i}" for i in range(n)], "brain": ["b"] * n, "z": list(range(n)),
               "voxel_um": [(5, 1, 1)] * n}  # fmt: skip
    return write_tiles(folder, columns, images)


def test_jensen_shannon() -> None:
    rng = np.random.default_rng(0)
    p, q = rng.random(50), rng.random(50)
    assert jensen_shannon(p, q) == pytest.approx(jensenshannon(p, q, base=2) ** 2)
    assert jensen_shannon(p, 7 * p) == pytest.approx(0, abs=1e-12)
    assert jensen_shannon(np.array([1.0, 0]), np.array([0, 3.0])) == pytest.approx(1)
    assert np.isnan(jensen_shannon(p, np.full(50, np.nan)))


def test_equal_tiles_do_not_differ(tmp_path: Path) -> None:
    images = noise(6, 0)
    same = compare_tiles(tiles(tmp_path / "a", images), tiles(tmp_path / "b", images))
    assert same.jsd == pytest.approx(0, abs=1e-9) and same.log_power == pytest.approx(0, abs=1e-9)
    assert (same.distance == 0).all()
    np.testing.assert_array_equal(same.nearest, np.arange(6))
    assert all(values[2] == 0 for name, values in same.means.items() if name != "signal_minus_background")
    assert np.isnan(same.jsd_background) and np.isnan(same.means["signal_minus_background"][0])


def test_each_difference_is_seen(tmp_path: Path) -> None:
    real = tiles(tmp_path / "real", noise(20, 0))
    floor = compare_tiles(real, tiles(tmp_path / "more", noise(20, 1)))
    assert floor.jsd < 0.01 and floor.log_power < 0.2
    brighter = compare_tiles(real, tiles(tmp_path / "bright", noise(20, 1, level=0.45)))
    assert brighter.jsd > 0.05 and brighter.log_power < 0.2
    assert brighter.means["brightness"][:2] == pytest.approx((0.4, 0.45), abs=0.01)
    stronger = compare_tiles(real, tiles(tmp_path / "strong", noise(20, 1, deviation=0.12)))
    assert stronger.means["contrast"][:2] == pytest.approx((0.08, 0.12), abs=0.01)
    # Power goes with the square: ln of 1.5^2.
    assert stronger.log_power == pytest.approx(2 * np.log(1.5), abs=0.1)
    assert stronger.means["entropy"][1] > stronger.means["entropy"][0]
    blurred = compare_tiles(real, tiles(tmp_path / "blurred", noise(20, 1, blur=1.0)))
    assert blurred.jsd < 0.02 and blurred.log_power > 1
    for name, most in (("laplacian_variance", 0.5), ("gradient", 0.9)):
        assert blurred.means[name][1] < most * blurred.means[name][0]
        assert blurred.means[name][2] == 1
    assert np.median(blurred.distance) > 5 * np.median(floor.distance)


def test_features_of_a_known_image(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(80, dtype=np.float32) / 255, (64, 1))
    found = compare_tiles(tiles(tmp_path / "a", [ramp, ramp]), tiles(tmp_path / "b", [ramp, ramp]))
    values = dict(zip(FEATURES, found.real.features[0], strict=True))
    assert values["brightness"] == pytest.approx(39.5 / 255)
    assert values["contrast"] == pytest.approx(np.arange(80).std() / 255)
    assert values["gradient"] == pytest.approx(1 / 255)
    assert values["entropy"] == pytest.approx(np.log2(80))
    assert values["laplacian_variance"] < 1e-6


def test_signal_and_background(tmp_path: Path) -> None:
    images, points = noise(6, 0), {}
    for index, image in enumerate(images):
        y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
        image[np.hypot(x - 30, y - 20) <= 6] = 0.9
        points[f"a{index}"] = np.array([[30.0, 20.0]])
    real, plain = tiles(tmp_path / "a", images), tiles(tmp_path / "b", noise(6, 1))
    found = compare_tiles(real, plain, disc_signal(real, points, 6), disc_signal(plain, {}, 6))
    signal = found.real.features[:, FEATURES.index("signal_minus_background")]
    np.testing.assert_allclose(signal, 0.5, atol=0.01)
    # The cells are all that differs: away from them the tiles are alike.
    assert found.jsd > 2 * found.jsd_background
    assert found.real.background[230] == 0 < found.real.histogram[230]
    assert np.isnan(found.means["signal_minus_background"][1])
    assert np.isfinite(found.distance).all()


def test_discs_of_points(tmp_path: Path) -> None:
    one = tiles(tmp_path / "a", noise(2, 0))
    mask = disc_signal(one, {"a0": np.array([[10.2, 5.4], [500.0, 5.0], [0.0, 63.0]])}, 3)("a0")
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    np.testing.assert_array_equal(mask, (np.hypot(x - 10, y - 5) <= 3) | (np.hypot(x, y - 63) <= 3))
    assert not disc_signal(one, {}, 3)("a1").any()


def test_synthetic_discs(tmp_path: Path) -> None:
    settings = SynthesisSettings(
        height=64,
        width=80,
        placement=Placement.study(StudyRules(cells=(200, 1, 198, 202))),
        cells=CellLook(look="study"),
    )
    made = synthesize(settings, None, tmp_path / "s", 3, 0)
    found = compare_tiles(made, made, synthetic_signal(made), synthetic_signal(made))
    assert found.means["signal_minus_background"][0] == pytest.approx(0.7, abs=0.03)
    (tmp_path / "s/masks" / f"{made.ids[0]}.png").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="mask"):
        synthetic_signal(made)(made.ids[0])


def test_tiles_of_other_sizes_compare(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    small, large = (
        [rng.normal(0.5, 0.1, s).clip(0, 1).astype(np.float32) for _ in range(8)]
        for s in ((64, 64), (150, 100))
    )
    found = compare_tiles(tiles(tmp_path / "a", small), tiles(tmp_path / "b", large))
    assert found.log_power < 0.25 and found.jsd < 0.01


def test_too_few(tmp_path: Path) -> None:
    one, two = tiles(tmp_path / "a", noise(1, 0)), tiles(tmp_path / "b", noise(2, 0))
    with pytest.raises(DataError, match="gives 1 tiles"):
        compare_tiles(two, one)


@pytest.mark.parametrize("count", [2, 9])
def test_report(tmp_path: Path, count: int) -> None:
    real, made = tiles(tmp_path / "a", noise(count, 0)), tiles(tmp_path / "b", noise(count, 1))
    points = {name: np.array([[30.0, 20.0]]) for name in [*real.ids, *made.ids]}
    for signals in ((None, None), (disc_signal(real, points, 5), disc_signal(made, points, 5))):
        similarity = compare_tiles(real, made, *signals)
        page = write_similarity(tmp_path / "report", similarity, real, made)
        text = page.read_text()
        assert text.count("<img") == 4 and str(STUDY["log_power"]) in text
        record = json.loads((tmp_path / "report/similarity.json").read_text())
        assert record["jsd"] == pytest.approx(similarity.jsd)
        assert (record["jsd_background"] is None) == (signals[0] is None)
        assert record["study"] == STUDY and set(record["features"]) == set(FEATURES)


@pytest.mark.parametrize("shape", [(64, 64), (5, 7)])
def test_report_of_small_tiles(tmp_path: Path, shape: tuple[int, int]) -> None:
    """Too small for every ring of the spectrum; warnings are errors."""
    real, made = tiles(tmp_path / "a", noise(3, 0, shape=shape)), tiles(tmp_path / "b", noise(3, 1))
    similarity = compare_tiles(real, made)
    assert np.isnan(similarity.real.power).any() and not np.isnan(similarity.synthetic.power).all()
    assert np.isfinite(similarity.log_power)
    assert write_similarity(tmp_path / "report", similarity, real, made).read_text().count("<img") == 4


def test_report_of_tiles_without_any_contrast(tmp_path: Path) -> None:
    real = tiles(tmp_path / "a", noise(2, 0))
    flat = tiles(tmp_path / "b", [np.full(SHAPE, 0.4, np.float32)] * 2)
    page = write_similarity(tmp_path / "report", compare_tiles(real, flat), real, flat)
    assert page.read_text().count("<img") == 4
