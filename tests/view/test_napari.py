from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from brainmap.errors import NotFoundError
from brainmap.view import napari as view

from .conftest import ORIGIN_UM, SHAPE, SHOWN, VOXEL_UM, places


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


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "napari", SimpleNamespace(Viewer=Viewer, run=lambda: None))
    shown.clear()


def test_volume_cells_and_atlas_lie_in_one_frame(run: Path, made: SimpleNamespace) -> None:
    view.view_run(run)
    (viewer,) = shown
    levels, options = viewer.layers["image"]
    assert levels[0].shape == SHAPE
    np.testing.assert_array_equal(
        np.asarray(levels[0][2:6, 30:, :].compute(scheduler="synchronous")), made.image[0][2:6, 30:, :]
    )
    assert tuple(options["scale"]) == VOXEL_UM
    cells, options = viewer.layers["points"]
    um = cells * np.array(options["scale"]) + np.array(options["translate"])
    weak = np.arange(len(places())) % 5 == 0
    np.testing.assert_allclose(um, places()[~weak] * VOXEL_UM + ORIGIN_UM)
    assert viewer.layers["labels"][0].shape == (10, 16, 20)


def test_the_slider_steps_from_plane_to_plane_and_cells_are_as_wide_as_cells(run: Path) -> None:
    view.view_run(run)
    _, options = shown[0].layers["points"]
    # A step of the slider is the smallest scale of all layers along its axis.
    assert options["scale"][0] == VOXEL_UM[0]
    assert len(set(options["scale"])) == 1
    assert options["size"] * options["scale"][0] == pytest.approx(10.0)
    assert options["out_of_slice_display"] is True


def test_cells_are_named(run: Path) -> None:
    view.view_run(run)
    _, options = shown[0].layers["points"]
    assert options["border_color"] == "score"
    assert set(options["features"]["region"]) == {"CTX", "BIG", "outside"}
    assert set(options["features"]["hemisphere"]) == {"left", "right", "none"}
    assert len(options["features"]["score"]) == SHOWN


def test_too_many_cells_are_thinned_evenly(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "MOST_POINTS", 10)
    view.view_run(run)
    cells, options = shown[0].layers["points"]
    assert len(cells) == 10
    assert options["name"] == "cells (10 of 320)"


def test_unfinished_run(run: Path) -> None:
    (run / "points.parquet").unlink()
    with pytest.raises(NotFoundError, match=r"no table of points yet \(status: complete\)"):
        view.view_run(run)
