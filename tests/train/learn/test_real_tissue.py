"""Real tissue as training volumes: what is asked for, what is in doubt, what is background."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from brainmap.errors import DataError, NotFoundError, UsageError
from brainmap.train.learn.centernet import CenterNet, CenterNetConfig
from brainmap.train.learn.pretrain import change_contrast
from brainmap.train.learn.real_tissue import RealStacks, real_volumes
from brainmap.train.learn.samples import VISIBLE, GridSettings

GRID = GridSettings()
VOXEL = (4.0, 2.0, 2.0)
# Marked; as bright but unmarked, in a box that was looked at; as bright, where nobody looked; much fainter, looked at.
MARKED, OVERLOOKED, UNSEEN, FAINT = (5, 20, 20), (5, 20, 70), (5, 70, 20), (5, 40, 45)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A stack of noise with four blobs, the table of the marked one, and the upper half as the box looked at."""
    rng = np.random.default_rng(0)
    image = 1000 + 10 * rng.standard_normal((11, 96, 96))
    z, y, x = np.ogrid[:11, :96, :96]
    for place, height in ((MARKED, 400), (OVERLOOKED, 400), (UNSEEN, 400), (FAINT, 60)):
        away = sum(((v - p) * s) ** 2 for v, p, s in zip((z, y, x), place, VOXEL, strict=True))
        image = image + height * np.exp(-away / (2 * 3.0**2))
    tifffile.imwrite(tmp_path / "stack.tif", image.astype(np.uint16))
    (tmp_path / "points.csv").write_text("image_id,z,y,x\nstack,5,20,20\nother,1,1,1\n")
    (tmp_path / "boxes.csv").write_text("image_id,z0,z1,y0,y1,x0,x1\nstack,0,11,0,50,0,96\n")
    return tmp_path


def stacks(**changes: object) -> RealStacks:
    settings: dict[str, object] = {
        "images": ["*.tif"], "voxel_um": list(VOXEL), "diameters_um": [10.0], "labels": "points", "cell_um": 8.0,
        "share": 0.1, "points": "points.csv", "boxes": "boxes.csv",
    }  # fmt: skip
    return RealStacks.from_dict(settings | changes)


def network(bias: float = 0.0) -> CenterNet:
    torch.manual_seed(0)
    model = CenterNet(CenterNetConfig(widths=(8, 8)))
    torch.nn.init.zeros_(model.heat[0].weight)
    torch.nn.init.constant_(model.heat[0].bias, bias)
    return model.eval()


def near(cells: np.ndarray, place: tuple[int, int, int]) -> np.ndarray:
    """The cells within a cell of a voxel; the grid here is the image's own."""
    return cells[np.linalg.norm((cells[:, :3] - place) * VOXEL, axis=1) < 5]


def test_marked_cells_are_asked_for_and_what_stands_out_as_much_is_in_doubt(data: Path) -> None:
    (volume,) = real_volumes(stacks(), data, GRID, network())["stack"]
    assert volume.stack.shape == (11, 96, 96)
    assert volume.step_um == 4.0
    assert (near(volume.cells, MARKED)[:, 4] >= VISIBLE).tolist() == [True]
    for place in (OVERLOOKED, UNSEEN):
        assert (near(volume.cells, place)[:, 4] >= VISIBLE).tolist() == [False]
    assert len(near(volume.cells, FAINT)) == 0
    np.testing.assert_allclose(volume.cells[:, 3], 8.0 / 2 / 2.0)


def test_another_diameter_is_another_scale(data: Path) -> None:
    large, small = real_volumes(stacks(diameters_um=[20.0, 10.0]), data, GRID, network())["stack"]
    assert large.stack.shape[1] == small.stack.shape[1] // 2
    np.testing.assert_allclose(large.cells[0, 3], small.cells[0, 3] / 2)


def test_tissue_without_cells_has_none(data: Path) -> None:
    (volume,) = real_volumes(stacks(labels="none", points=None, boxes=None), data, GRID, network())["stack"]
    assert volume.cells.shape == (0, 5)


def test_a_sure_detector_marks_and_a_doubtful_one_does_not(data: Path) -> None:
    settings = stacks(labels="detector", points=None, boxes=None)
    (sure,) = real_volumes(settings, data, GRID, network(bias=2.0))["stack"]
    (doubtful,) = real_volumes(settings, data, GRID, network(bias=0.0))["stack"]
    (blind,) = real_volumes(settings, data, GRID, network(bias=-3.0))["stack"]
    assert len(sure.cells) and (sure.cells[:, 4] >= VISIBLE).all()
    assert len(doubtful.cells) and (doubtful.cells[:, 4] < VISIBLE).all()
    assert len(blind.cells) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": "some"}, "labels is 'some'"),
        ({"points": None}, "need a table of points"),
        ({"labels": "none"}, "need a table of points"),
        ({"share": 1.0}, "share is 1.0"),
        ({"shape": 1}, "unknown setting 'shape'"),
    ],
)
def test_bad_settings(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        stacks(**changes)


def test_missing_files_are_named(data: Path) -> None:
    with pytest.raises(NotFoundError, match=r"matches nothing\.tif"):
        real_volumes(stacks(images=["nothing.tif"]), data, GRID, network())
    with pytest.raises(NotFoundError, match=r"no_points\.csv does not exist"):
        real_volumes(stacks(points="no_points.csv"), data, GRID, network())
    (data / "points.csv").write_text("image_id,z,y,x\nother,1,1,1\n")
    with pytest.raises(DataError, match="no marked cell"):
        real_volumes(stacks(), data, GRID, network())


def test_few_grey_levels() -> None:
    torch.manual_seed(0)
    image = 0.14 * torch.asinh(torch.randn(4, 5, 32, 32) / 3)
    smooth = change_contrast(image, grey_levels=0.0)
    torch.manual_seed(0)
    rounded = change_contrast(image, grey_levels=1.0)
    assert all(len(torch.unique(sample)) > 4000 for sample in smooth)
    assert all(len(torch.unique((sample * 1e4).round())) < 200 for sample in rounded)
    assert (change_contrast(torch.zeros(1, 5, 8, 8), grey_levels=1.0) == 0).all()
