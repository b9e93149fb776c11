"""The parts of the alignment that need no ANTs: preparation, schedules, fields, the verdict."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from scipy import ndimage

from brainmap.errors import DataError, NotFoundError
from brainmap.progress import Task
from brainmap.registration.alignment import SCHEDULES, Framed, align
from brainmap.registration.ants_process import Metric, Stage, StageImages, _Iterations, run_stage
from brainmap.registration.prepare import Prepared, block_mean, prepare, tissue_mask
from brainmap.registration.quality import Quality, judge, mutual_information
from brainmap.registration.transforms import DisplacementField, Transforms

VOXEL = (100.0, 100.0, 100.0)


def _ball(shape: tuple[int, int, int] = (40, 36, 44), radius: float = 13) -> np.ndarray:
    grid = np.indices(shape).astype(float)
    distance = sum((g - (n - 1) / 2) ** 2 for g, n in zip(grid, shape, strict=True))
    return distance < radius**2


@pytest.mark.parametrize("background", [0.0, 8.0, 300.0])
def test_tissue_is_found_whatever_the_background(background: float) -> None:
    ball = _ball()
    noise = np.random.default_rng(0).normal(size=ball.shape) * 3
    image = (background + 200 * ball + noise).astype(np.float32)
    image[5:7, 5:7, 5:7] += 4000  # debris
    mask = tissue_mask(image, VOXEL)
    assert 2 * (mask & ball).sum() / (mask.sum() + ball.sum()) > 0.9
    assert not mask[5, 5, 5]


def test_preparation_evens_section_gain_and_shading() -> None:
    ball = _ball()
    texture = 1 + 0.2 * ndimage.gaussian_filter(np.random.default_rng(1).normal(size=ball.shape), 2) * 8
    gain = np.random.default_rng(2).uniform(0.8, 1.25, (ball.shape[0], 1, 1))
    clean = (50 + 400 * texture * ball).astype(np.float32)
    striped = (50 + 400 * texture * ball * gain).astype(np.float32)
    inner = ndimage.binary_erosion(ball, iterations=2)
    reference = prepare(clean, VOXEL, 0).global_[inner]
    raw = np.corrcoef(striped[inner], reference)[0, 1]
    even = np.corrcoef(prepare(striped, VOXEL, 0).global_[inner], reference)[0, 1]
    assert even > raw
    assert even > 0.9


def test_prepared_images_are_in_range() -> None:
    image = (20 + 500 * _ball()).astype(np.float32)
    image[20, 20, 20] = 60000  # one saturated voxel does not rule the scale
    result = prepare(image, VOXEL, None, mask=_ball())
    assert not result.global_[~_ball()].any()
    np.testing.assert_allclose(result.local[:2, :2], 0.5, atol=0.01)
    assert 0.5 < np.median(result.global_[_ball()]) <= 1.5
    assert result.local.max() <= 1


@pytest.mark.parametrize("image", [np.zeros((20, 20, 20)), np.full((20, 20, 20), 7.0)])
def test_an_empty_image_is_refused(image: np.ndarray) -> None:
    with pytest.raises(DataError, match="no tissue"):
        prepare(image.astype(np.float32), VOXEL, 0)


def test_block_mean_keeps_the_first_corner() -> None:
    array = np.arange(5 * 4 * 6, dtype=np.uint16).reshape(5, 4, 6)
    out = block_mean(array, 2)
    assert out.shape == (3, 2, 3)
    assert out[0, 0, 0] == array[:2, :2, :2].mean()
    assert out[2, 1, 2] == array[4:, 2:, 4:].mean()


def test_crop_keeps_physical_points() -> None:
    framed = Framed(prepare((10 + 99 * _ball()).astype(np.float32), VOXEL, None, _ball()), VOXEL)
    box, origin = framed.crop()
    assert all(s.start >= 0 for s in box)
    assert origin == pytest.approx(tuple((s.start + 0.5) * 0.1 for s in box))
    assert framed.prepared.mask[box].sum() == _ball().sum()
    assert framed.tissue_mm3 == pytest.approx(_ball().sum() * 1e-3)


def test_schedules_fit_small_images() -> None:
    stage = Stage("SyN[0.2,3,0]", (Metric("CC", "local", 2),), (100, 70, 20), (8, 4, 1), (4, 2, 0.5))
    small = stage.without_coarser(2)
    assert (small.shrink, small.iterations) == ((2, 1), (100, 20))
    assert stage.without_coarser(8) == stage
    for schedule in SCHEDULES.values():
        assert all(min(s.shrink) == max(s.shrink) == 1 for s in schedule.fitting((13, 13, 13)).linear)


def test_bad_stages_and_metrics() -> None:
    with pytest.raises(ValueError, match="per level"):
        Stage("Affine[0.1]", (), (1, 2), (1,), (0,))
    with pytest.raises(ValueError, match="unknown metric"):
        Metric("Magic", "global", 1)


def test_ants_failing_is_a_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    image = np.ones((8, 8, 8), dtype=np.float32)
    images = StageImages({"global": image}, {"global": image}, *[(0.1, 0.1, 0.1)] * 4)
    stage = Stage("Nonsense[0.1]", (Metric("Mattes", "global", 32),), (1,), (1,), (0,))
    with pytest.raises(DataError, match="failed in ANTs"):
        run_stage((stage,), images, None, tmp_path / "x_", threads=1, seed=1)
    assert list(tmp_path.iterdir()) == []


def _field(function: np.ndarray) -> DisplacementField:
    return DisplacementField(
        function.astype(np.float32), np.array([1.0, 2.0, 3.0]), np.array([0.1, 0.2, 0.1])
    )


def test_field_is_linear_inside_and_continues_outside() -> None:
    shape = (6, 5, 7)
    index = np.indices(shape)
    points = np.moveaxis(index, 0, -1) * [0.1, 0.2, 0.1] + [1.0, 2.0, 3.0]
    slope = np.array([[0.1, 0.0, 0.02], [0.0, -0.2, 0.0], [0.3, 0.0, 0.0]])
    field = _field(np.moveaxis(points @ slope.T, -1, 0))
    inside = np.random.default_rng(0).uniform([1, 2, 3], [1.5, 2.8, 3.6], (50, 3))
    np.testing.assert_allclose(field.at(inside), inside @ slope.T, atol=1e-5)
    np.testing.assert_allclose(
        field.at(np.array([[-9.0, 2.0, 3.0]])), np.array([[1.0, 2.0, 3.0]]) @ slope.T, atol=1e-5
    )
    np.testing.assert_allclose(field.jacobian(), np.linalg.det(np.eye(3) + slope), atol=1e-3)


def test_affine_files(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"affine\.mat does not exist"):
        _ = Transforms(tmp_path).affine
    (tmp_path / "affine.mat").write_bytes(b"rubbish, and not little of it" * 20)
    with pytest.raises(DataError, match="cannot be read"):
        _ = Transforms(tmp_path).affine
    turn = [0, 1, 0, 1, 0, 0, 0, 0, 2, 0.5, 0.0, 0.0]
    content = {"AffineTransform_double_3_3": np.array(turn)[:, None], "fixed": np.array([[1.0], [0], [0]])}
    scipy.io.savemat(tmp_path / "affine.mat", content, format="4")
    transforms = Transforms(tmp_path)
    points = np.array([[1000.0, 0.0, 0.0], [3000.0, 500.0, 10.0]])
    # ITK: matrix @ (p - centre) + centre + translation, in mm
    expected = [[1500.0, 0.0, 0.0], [2000.0, 2000.0, 20.0]]
    np.testing.assert_allclose(transforms.to_sample_edge_um(points), expected)
    np.testing.assert_allclose(transforms.to_atlas_um(expected), points, atol=1e-9)


def _quality(**changes: float) -> Quality:
    numbers = {
        "mutual_information_before": 0.4,
        "mutual_information_after": 0.8,
        "mask_dice": 0.96,
        "edge_mean_um": 60.0,
        "edge_p95_um": 150.0,
        "contrast_correlation": 0.6,
        "jacobian_min": 0.6,
        "jacobian_p1": 0.8,
        "jacobian_p99": 1.2,
        "jacobian_max": 1.5,
        "folded_share": 0.0,
        "volume_ratio": 1.0,
        "affine_scale_min": 0.95,
        "affine_scale_max": 1.05,
        "round_trip_p95_um": 3.0,
    }
    return Quality(**(numbers | changes))


@pytest.mark.parametrize(
    ("changes", "verdict", "word"),
    [
        ({}, "good", "looks good"),
        ({"mutual_information_after": 0.2}, "bad", "less alike"),
        ({"mask_dice": 0.90}, "doubtful", "outlines overlap"),
        ({"mask_dice": 0.5}, "bad", "outlines overlap"),
        ({"mask_dice": float("nan")}, "bad", "outlines overlap"),
        ({"edge_mean_um": 200.0}, "doubtful", "200 um apart"),
        ({"edge_mean_um": float("inf")}, "bad", "outlines of brain and atlas"),
        ({"contrast_correlation": 0.3}, "doubtful", "structures inside hardly match"),
        ({"contrast_correlation": 0.05}, "bad", "structures inside hardly match"),
        ({"contrast_correlation": -0.5}, "good", "looks good"),
        ({"folded_share": 0.05}, "bad", "folds"),
        ({"jacobian_p1": 0.2}, "doubtful", "more than one believes"),
        ({"affine_scale_min": 1.26, "affine_scale_max": 1.4}, "doubtful", "check the voxel size"),
        ({"affine_scale_min": 0.82, "affine_scale_max": 1.15}, "doubtful", "stretched against"),
        ({"volume_ratio": 1.6}, "doubtful", "volume of the sample"),
        ({"affine_scale_max": 2.5}, "bad", "check the voxel size"),
        ({"round_trip_p95_um": 300.0}, "bad", "do not come back"),
    ],
)
def test_verdict(changes: dict, verdict: str, word: str) -> None:
    result = judge(_quality(**changes), 50.0)
    assert result.verdict == verdict
    assert word in result.sentence()


def test_a_part_of_a_brain_need_not_fill_the_template() -> None:
    assert judge(_quality(mask_dice=0.5, volume_ratio=2.1), 50.0, partial=True).verdict == "good"


def test_mutual_information_of_known_samples() -> None:
    values = np.tile(np.arange(32.0), 100)
    assert mutual_information(values, values) == pytest.approx(np.log(32))
    assert mutual_information(values, np.repeat(np.arange(32.0), 100)) < 1.0
    assert mutual_information(np.zeros(0), np.zeros(0)) == 0.0


class _Said(Task):
    def __init__(self) -> None:
        super().__init__("aligning")
        self.seen: list[float] = []

    def update(self, done: float, note: str | None = None) -> None:
        super().update(done, note)
        self.seen.append(done)


def test_what_ants_prints_tells_how_far_it_is() -> None:
    stage = Stage("SyN[0.2,3,0]", (Metric("CC", "global", 2),), (4, 2), (2, 1), (1, 0))
    said = _Said()
    reader = _Iterations((stage,), said)
    assert _Iterations.work_of((stage,)) == 4 / 8 + 2
    head = "XXDIAGNOSTIC,Iteration,metricValue,convergenceValue,ITERATION_TIME_INDEX,SINCE_LAST\n"
    third, first = " 1DIAGNOSTIC,     3, -1, 0, 0, 0\n", " 1DIAGNOSTIC,     1, -3.3e-01, inf, 2.5e-01, \n"
    lines = ["Stage 1\n", head, first, third, head, first]
    assert [reader.read(line) for line in lines] == [False, True, True, True, True, True]
    # Converged after three of four iterations: the second level begins where it should.
    assert said.seen == [0, 1 / 8, 3 / 8, 4 / 8, 4 / 8 + 1]


def test_an_interrupted_alignment_goes_on_at_its_last_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def stage(
        stages: object, images: object, initial: str | None, prefix: Path, **rest: object
    ) -> list[Path]:
        asked.append(prefix.name)
        if prefix.name == "syn_" and len(asked) == 2:
            raise KeyboardInterrupt
        names = ["0GenericAffine.mat"] if initial is None else ["1Warp.nii.gz", "1InverseWarp.nii.gz"]
        paths = [prefix.with_name(prefix.name + name) for name in names]
        for path in paths:
            path.write_text(path.name)
        return paths

    monkeypatch.setattr("brainmap.registration.alignment.run_stage", stage)
    values = np.ones((14, 14, 14), np.float32)
    framed = Framed(Prepared(values, values, values > 0), (50.0, 50.0, 50.0))
    kept = tmp_path / "kept"
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(KeyboardInterrupt) if number == 0 else nullcontext():
            align(framed, framed, "correlation", folder, threads=1, seed=1, kept=kept)
    assert asked == ["linear_", "syn_", "syn_"], "the finished stage is not repeated"
    assert (tmp_path / "1" / "affine.mat").read_text() == "linear_0GenericAffine.mat"
    assert sorted(p.name for p in (tmp_path / "1").iterdir()) == [
        "affine.mat",
        "inverse_warp.nii.gz",
        "warp.nii.gz",
    ]
