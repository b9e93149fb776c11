"""Ground truth read back: what was written is what is read, plain points keep their places."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from brainmap.errors import DataError, NotFoundError
from brainmap.gt.aggregate import aggregate
from brainmap.gt.heatmap import confidence_at, heat_map
from brainmap.gt.truth import GroundTruth, local_maxima, read_experts

CELLS = np.array([[20.3, 15.6], [60.0, 40.0], [35.7, 50.2]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five workers on two images, the second of which has a folder in its name and nothing on it."""
    base = tmp_path_factory.mktemp("gt")
    rng = np.random.default_rng(0)
    rows = ["image_id,worker_id,x,y,height,width"]
    for worker in range(5):
        for x, y in CELLS + rng.normal(0, 0.3, CELLS.shape):
            rows.append(f"a,w{worker},{x:.3f},{y:.3f},70,80")
        # A click on nothing: workers who never differ tell nothing about themselves.
        rows.append(f"a,w{worker},{70 - 12 * worker},5,70,80")
    rows.append("deep/b,w0,5,5,30,40")
    (base / "clicks.csv").write_text("\n".join(rows) + "\n")
    aggregate(base / "clicks.csv", base / "gt")
    return base / "gt"


def test_folder_round_trip(folder: Path) -> None:
    truth = GroundTruth.open(folder)
    assert truth.ids.tolist() == ["a", "deep/b"]
    assert "a" in truth and "deep/b" in truth and "c" not in truth
    heat = truth.heatmap("a")
    assert heat.shape == (70, 80) and heat.dtype == np.float32
    assert truth.heatmap("deep/b").shape == (30, 40)
    xy, confidence, posterior = truth.points("a")
    assert len(xy) == len(confidence) == len(posterior)
    cells, sure = truth.accepted("a")
    assert len(cells) == 3 < len(xy)
    np.testing.assert_allclose(sure, confidence_at(heat, cells), atol=1e-5)
    assert np.linalg.norm(cells[:, None] - CELLS, axis=2).min(axis=1).max() < 0.5


def test_peaks_are_the_cells(folder: Path) -> None:
    xy, confidence = GroundTruth.open(folder).peaks("a", theta_rel=0.9)
    assert len(xy) == 3
    assert np.linalg.norm(xy[:, None] - CELLS, axis=2).min(axis=1).max() < 0.5
    assert (confidence > 0.9).all()


def test_take(folder: Path) -> None:
    truth = GroundTruth.open(folder).take(["deep/b"])
    assert truth.ids.tolist() == ["deep/b"] and (truth.image == 0).all()
    with pytest.raises(NotFoundError, match="'a'"):
        truth.points("a")


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"gt\.json"):
        GroundTruth.open(tmp_path)


def test_missing_and_damaged_map(folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "gt"
    shutil.copytree(folder, copy)
    (copy / "heatmaps" / "a.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match=r"a\.npy"):
        GroundTruth.open(copy).heatmap("a")
    (copy / "heatmaps" / "a.npy").unlink()
    with pytest.raises(DataError, match="1 heat maps for 2 images"):
        GroundTruth.open(copy)


def test_theta_is_absolute_and_relative(folder: Path) -> None:
    heat = np.zeros((40, 40), np.float32)
    for value, x in ((0.9, 5), (0.28, 15), (0.26, 25), (0.04, 35)):
        heat[20, x] = value
    xy, value = local_maxima(heat)
    assert xy[:, 0].tolist() == [5, 15, 25, 35]
    truth = _with_map(folder, heat)
    assert truth.peaks("a")[0][:, 0].tolist() == [5, 15]  # 0.3 x 0.9 = 0.27
    assert truth.peaks("a", theta_rel=0.0)[0][:, 0].tolist() == [5, 15, 25]
    assert len(truth.peaks("a", theta_abs=0.0, theta_rel=0.0)[0]) == 4


def _with_map(folder: Path, heat: np.ndarray) -> GroundTruth:
    truth = GroundTruth.open(folder)
    object.__setattr__(truth, "heatmap", lambda image_id: heat)
    return truth


@pytest.mark.parametrize("place", [(20.0, 30.0), (20.4, 29.7), (20.5, 30.5), (0.2, 30.0)])
def test_maxima_are_found_to_a_fraction_of_a_pixel(place: tuple[float, float]) -> None:
    heat = heat_map(np.array([place]), np.ones(1), 1.0, (60, 50))
    xy, value = local_maxima(heat)
    assert len(xy) == 1
    np.testing.assert_allclose(xy[0], place, atol=0.05 if place[0] > 1 else 0.25)
    assert value[0] == heat.max()


def test_a_plateau_is_one_maximum() -> None:
    heat = np.zeros((9, 9), np.float32)
    heat[4, 3:6] = 0.5
    xy, value = local_maxima(heat)
    assert xy.tolist() == [[4.0, 4.0]] and value.tolist() == [0.5]
    assert len(local_maxima(np.zeros((5, 5), np.float32))[0]) == 0


def test_plain_points() -> None:
    truth = GroundTruth.from_points(
        ["b", "b"], [[3.2, 4.0], [10, 5]], {"b": (20, 30), "a": (8, 8)}, confidence=[0.7, 1.0]
    )
    assert truth.ids.tolist() == ["a", "b"]
    heat = truth.heatmap("b")
    assert heat.shape == (20, 30)
    np.testing.assert_allclose(heat[5, 10], 1.0)
    np.testing.assert_allclose(heat[4, 3], 0.7 * np.exp(-(0.2**2) / 8), rtol=1e-6)
    assert not truth.heatmap("a").any()
    xy, confidence = truth.peaks("b")
    assert xy.tolist() == [[3.2, 4.0], [10, 5]] and confidence.tolist() == [0.7, 1.0]
    assert len(truth.peaks("a")[0]) == 0


def test_plain_points_are_checked() -> None:
    with pytest.raises(DataError, match="'c'"):
        GroundTruth.from_points(["c"], [[1, 1]], {"a": (5, 5)})
    with pytest.raises(DataError, match="as many"):
        GroundTruth.from_points(["a"], [[1, 1], [2, 2]], {"a": (5, 5)})
    with pytest.raises(DataError, match="finite"):
        GroundTruth.from_points(["a"], [[np.nan, 1]], {"a": (5, 5)})


def test_experts(tmp_path: Path) -> None:
    path = tmp_path / "experts.csv"
    path.write_text("image_id,worker_id,x,y\n1,A,1,2\n1,B,3,4\n2,B,5,6\n9,B,7,8\n")
    experts = read_experts(path, {"1": (10, 10), "2": (10, 10)})
    assert sorted(experts) == ["A", "B"]
    assert experts["A"].ids.tolist() == ["1"] and experts["B"].ids.tolist() == ["1", "2"]
    with pytest.raises(DataError, match="no point"):
        read_experts(path, {"x": (5, 5)})
