from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from brainmap.errors import NotFoundError
from brainmap.image.volume import write_volume
from brainmap.points.table import Points
from brainmap.run_folder import RunRecord
from brainmap.view import napari as view


class Viewer:
    """Takes what napari would draw."""

    def __init__(self, title: str) -> None:
        self.layers: dict[str, tuple[Any, dict[str, Any]]] = {}
        shown.append(self)

    def add_image(self, data: Any, **options: Any) -> None:
        self.layers["image"] = (data, options)

    def add_labels(self, data: Any, **options: Any) -> None:
        self.layers["labels"] = (data, options)

    def add_points(self, data: Any, **options: Any) -> None:
        self.layers["points"] = (data, options)


shown: list[Viewer] = []


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(sys.modules, "napari", SimpleNamespace(Viewer=Viewer, run=lambda: None))
    shown.clear()
    stack = np.arange(6 * 40 * 50, dtype=np.uint16).reshape(6, 40, 50)
    write_volume(tmp_path / "b.zarr", stack, (5, 2, 2), chunks=(4, 16, 16), levels=2)
    run = tmp_path / "run"
    RunRecord(parameters={"brain": "b.zarr"}).save(run)
    um = {f"{axis}_um": np.arange(100.0) for axis in "zyx"}
    Points(um, {"brain": str(tmp_path / "b.zarr")}).write(run / "points.parquet")
    return run


def test_volume_and_cells_lie_in_one_frame(run: Path) -> None:
    view.view_run(run)
    (viewer,) = shown
    levels, options = viewer.layers["image"]
    assert levels[0].shape == (6, 40, 50)
    np.testing.assert_array_equal(
        np.asarray(levels[0][2:6, 30:, :].compute(scheduler="synchronous")),
        np.arange(6 * 40 * 50, dtype=np.uint16).reshape(6, 40, 50)[2:6, 30:, :],
    )
    assert tuple(options["scale"]) == (5, 2, 2)
    cells, _ = viewer.layers["points"]
    assert cells.shape == (100, 3)
    assert "labels" not in viewer.layers


def test_warped_atlas_is_shown_where_there_is_one(run: Path) -> None:
    labels = np.ones((3, 8, 10), np.uint32)
    write_volume(run / "registration" / "annotation.ome.zarr", labels, (10, 10, 10), method="nearest")
    view.view_run(run)
    assert shown[0].layers["labels"][0].shape == (3, 8, 10)


def test_too_many_cells_are_thinned_evenly(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "MOST_POINTS", 10)
    view.view_run(run)
    cells, _ = shown[0].layers["points"]
    assert cells[:, 0].tolist() == list(range(0, 100, 11))


def test_unfinished_run(run: Path) -> None:
    (run / "points.parquet").unlink()
    with pytest.raises(NotFoundError, match=r"no table of points yet \(status: running\)"):
        view.view_run(run)
