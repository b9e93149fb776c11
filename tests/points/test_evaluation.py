from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from brainmap.errors import DataError, UsageError
from brainmap.points.evaluation import evaluate_files, evaluate_points
from brainmap.points.table import Points


def voxels(zyx: list[tuple[float, float, float]], **meta: object) -> Points:
    z, y, x = np.array(zyx, dtype=float).reshape(-1, 3).T
    return Points({"z": z, "y": y, "x": x}, dict(meta))


def test_voxels_become_micrometres_by_the_metadata() -> None:
    found, true = voxels([(0, 0, 0), (9, 9, 9)], voxel_um=[5, 2, 2]), voxels([(2, 0, 0), (9, 9, 9)])
    result = evaluate_points(found, true, tolerance_um=9)
    assert (result.scores.tp, result.scores.fp, result.scores.fn) == (1, 1, 1)
    assert evaluate_points(found, true, tolerance_um=10).scores.f1 == 1
    # Without a tolerance: 10 um where um are known, 5 px where not.
    assert evaluate_points(found, true).unit == "um"
    assert evaluate_points(found, true).tolerance == 10
    bare = evaluate_points(true, true)
    assert (bare.unit, bare.tolerance, bare.scores.f1) == ("px", 5, 1)
    assert evaluate_points(found, true, tolerance_px=2).scores.tp == 2


def test_um_columns_are_used_where_both_have_them() -> None:
    table = Points({name: np.array([7.0]) for name in ("z", "y", "x", "z_um", "y_um", "x_um")})
    moved = table.with_columns(z_um=[15.0])
    assert evaluate_points(table, moved, tolerance_um=8).scores.tp == 1
    assert evaluate_points(table, moved, tolerance_um=7.9).scores.tp == 0
    assert evaluate_points(table, moved, tolerance_px=0.1).scores.tp == 1


def test_images_are_kept_apart() -> None:
    found = Points({"image_id": np.array(["1", "2"]), "x": np.zeros(2), "y": np.zeros(2)})
    true = Points({"image_id": np.array(["1", "3"]), "x": np.zeros(2), "y": np.zeros(2)})
    result = evaluate_points(found, true, tolerance_px=3)
    assert (result.scores.tp, result.scores.fp, result.scores.fn) == (1, 1, 1)


def test_scores_give_a_curve() -> None:
    true = voxels([(0, 0, 0), (50, 0, 0)])
    found = voxels([(0, 0, 0), (50, 0, 0), (90, 0, 0)]).with_columns(score=[0.9, 0.8, 0.3])
    result = evaluate_points(found, true)
    assert result.curve is not None
    assert result.as_dict()["average_precision"] == 1
    assert result.as_dict()["best_threshold"] == 0.8
    assert result.scores.precision == pytest.approx(2 / 3)
    assert evaluate_points(true, true).curve is None


def test_no_detection_is_no_perfect_score() -> None:
    none = voxels([]).with_columns(score=np.empty(0))
    result = evaluate_points(none, voxels([(0, 0, 0), (50, 0, 0), (90, 0, 0)]))
    found = result.as_dict()
    assert found["f1"] == found["best_f1"] == found["average_precision"] == 0
    assert np.isnan(found["best_threshold"]) and "best F1" not in dict(result.lines())


def test_a_curve_that_leaves_scores_out_says_so() -> None:
    many = voxels([(20.0 * i, 0, 0) for i in range(150)])
    scored = many.with_columns(score=np.linspace(0.1, 0.9, 150))
    result = evaluate_points(scored, many)
    assert result.as_dict()["thresholds_are"] == "quantiles of the scores"
    assert dict(result.lines())["average precision"].endswith("(at 100 quantiles of the scores)")
    few = evaluate_points(scored.take(np.arange(50)), many)
    assert few.as_dict()["thresholds_are"] == "all scores" and few.as_dict()["thresholds"] == 50


def test_rules_differ() -> None:
    a, b = voxels([(0, 0, 0), (12, 0, 0)]), voxels([(10, 0, 0), (22, 0, 0)])
    assert evaluate_points(a, b, tolerance_px=5).scores.tp == 1
    assert evaluate_points(a, b, tolerance_px=5, rule="after").scores.tp == 0


def test_nothing_against_nothing_is_right() -> None:
    result = evaluate_points(voxels([]), voxels([]))
    assert result.scores.f1 == 1
    assert np.isnan(result.distance_mean)
    assert dict(result.lines())["F1"] == "1.0000"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance_um": 5, "tolerance_px": 5}, "not both"),
        ({"tolerance_um": -1}, "--tolerance-um must be positive"),
        ({"tolerance_px": 0}, "--tolerance-px must be positive"),
        ({"rule": "before"}, "--rule must be"),
        ({"tolerance_um": 5}, "size of a voxel"),
    ],
)
def test_wrong_use(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate_points(voxels([(0, 0, 0)]), voxels([(0, 0, 0)]), **options)


def test_tables_must_be_alike() -> None:
    flat = Points({"y": np.zeros(1), "x": np.zeros(1)})
    with pytest.raises(DataError, match="z coordinates"):
        evaluate_points(flat, voxels([(0, 0, 0)]))
    with pytest.raises(DataError, match="names images"):
        evaluate_points(flat, flat.with_columns(image_id=["a"]))


def test_files(tmp_path: Path) -> None:
    (tmp_path / "truth.csv").write_text("z,y,x\n1,2,3\n4,5,6\n")
    voxels([(1, 2, 3)], voxel_um=[1, 1, 1]).write(tmp_path / "points.parquet")
    result = evaluate_files(tmp_path, tmp_path / "truth.csv", tolerance_um=1)
    assert (result.scores.tp, result.scores.fn) == (1, 1)
