"""Real tissue to train on: marked by people, marked by a detector, or free of cells.

Simulated texture is not what tissue looks like, and a network that knows nothing else ranks faint blobs of
texture too high. Three kinds of real stacks teach it better, each with its own honesty about what is not known:

points
    People marked cells in some boxes. Their labels are incomplete: faint cells are marked unevenly. So an unmarked
    blob that stands out (by a difference of Gaussians) as much as the fainter marked cells is neither asked for nor
    forbidden; outside the boxes every blob as clear as the faintest marked cells is.
detector
    Nobody marked anything: what a detector is sure of is a cell, what it doubts is neither asked for nor forbidden,
    the rest is background (self-training with an ignore zone).
none
    Tissue without cells: whatever is found there is wrong.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import tifffile
from numpy.typing import NDArray
from scipy import ndimage

from brainmap.errors import DataError, NotFoundError, UsageError
from brainmap.image.array_source import ArraySource
from brainmap.image.intensity import BACKGROUND_VALUE, Intensity
from brainmap.infer.plan.blocks import Grid
from brainmap.settings import check_keys
from brainmap.tiles.pictures import read_grey
from brainmap.train.judge.calibrate import detections
from brainmap.train.learn.centernet import CenterNet
from brainmap.train.learn.samples import INVISIBLE, VISIBLE, GridSettings, NetVolume, to_grid

__all__ = ["RealStacks", "real_volumes"]

log = logging.getLogger(__name__)

# A cell's contrast in `NetVolume.cells` says whether it is asked for (`VISIBLE`) or in doubt.
_ASKED, _DOUBT = 2 * VISIBLE, (INVISIBLE + VISIBLE) / 2
# Marked cells fainter than this quantile of a stack are no measure of what people overlook; the faintest of all.
_FAINT_QUANTILE, _FAINTEST_QUANTILE = 0.35, 0.05
# Difference of Gaussians: widths in cell diameters; maxima this far apart, in diameters; a marked cell's own blob.
_NARROW, _WIDE, _APART, _OWN = 1 / 3, 0.6, 0.3, 1.0
# Logits of a detector that is sure, and of one that is not sure of the opposite.
_SURE, _DOUBTS = 0.5, -1.0
# A section's thickness is unknown; it only has to be more than a cell.
_SECTION_STEP_CELLS = 2.0


@dataclass(frozen=True)
class RealStacks:
    """Real stacks of one kind.

    Parameters
    ----------
    images : tuple of str
        Files (TIFF or other pictures), or patterns such as "sections/*.tif", relative to the data folder.
    voxel_um : tuple of float
        Voxel size z, y, x. For single sections y and x may be any unit that `diameters_um` is in.
    diameters_um : tuple of float
        What the detector is told the cells measure; each makes the stack appear at another scale.
    labels : str
        "points", "detector" or "none", see the module.
    cell_um : float
        True diameter of the cells.
    share : float
        Probability that a sample is drawn from these.
    points, boxes : str, optional
        CSV of marked cells (`image_id z y x`, voxel index) and of what was looked at (`image_id z0 z1 y0 y1 x0 x1`).
    """

    images: tuple[str, ...]
    voxel_um: tuple[float, float, float]
    diameters_um: tuple[float, ...]
    labels: Literal["points", "detector", "none"]
    cell_um: float
    share: float
    points: str | None = None
    boxes: str | None = None

    def __post_init__(self) -> None:
        if self.labels not in ("points", "detector", "none"):
            raise UsageError(f"labels is {self.labels!r}; give points, detector or none")
        if (self.labels == "points") != (self.points is not None):
            raise UsageError("stacks with labels = 'points' need a table of points, and only they")
        if not 0 < self.share < 1:
            raise UsageError(f"share is {self.share}; give a probability between 0 and 1")

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> RealStacks:
        """From TOML; an unknown key is an error."""
        check_keys(cls, record, "real stacks")
        values: dict[str, Any] = dict(record)
        for name in ("images", "voxel_um", "diameters_um"):
            if name in values:
                values[name] = tuple(values[name])
        return cls(**values)

    def files(self, data: Path) -> list[Path]:
        """The images, in order of their names."""
        found = sorted({path for pattern in self.images for path in data.glob(pattern)})
        if not found:
            raise NotFoundError(f"no file in {data} matches {', '.join(self.images)}; check the data folder")
        return found


def real_volumes(
    stacks: RealStacks, data: Path, grid: GridSettings, model: CenterNet
) -> dict[str, list[NetVolume]]:
    """Every stack at every scale, as the network sees it; by the name of the file without its ending.

    Parameters
    ----------
    stacks : RealStacks
    data : Path
        Folder that its paths are relative to.
    grid : GridSettings
        Of the network.
    model : CenterNet
        Detects where `labels` is "detector".

    Raises
    ------
    NotFoundError
        If an image or table is missing.
    DataError
        If nobody marked a cell in a stack with `labels` "points".
    """
    tables = {name: None if path is None else _table(data / path) for name, path in
              (("points", stacks.points), ("boxes", stacks.boxes))}  # fmt: skip
    made: dict[str, list[NetVolume]] = {}
    for path in stacks.files(data):
        image = _read(path)
        voxel = stacks.voxel_um
        for diameter in stacks.diameters_um:
            view = _View.of(image, voxel, diameter, grid)
            if stacks.labels == "points":
                places, contrast = _marked(image, stacks, *(_own(t, path.stem) for t in tables.values()))
                cells = view.cells(places, stacks.cell_um, contrast)
            elif stacks.labels == "detector":
                cells = _detected(view, model, grid)
            else:
                cells = np.zeros((0, 5), np.float32)
            volume = NetVolume(view.stack.astype(np.float16), view.step_um, cells)
            made.setdefault(path.stem, []).append(volume)
        log.info("%s: %d cells, %d in doubt", path.name, *_counts(cells))
    return made


def _counts(cells: NDArray[np.float32]) -> tuple[int, int]:
    asked = int((cells[:, 4] >= VISIBLE).sum())
    return asked, len(cells) - asked


def _read(path: Path) -> NDArray[Any]:
    image = tifffile.imread(path) if path.suffix.lower() in (".tif", ".tiff") else np.asarray(read_grey(path))
    if image.ndim == 3 and image.shape[2] in (3, 4):
        image = image[..., :3].max(axis=2)
    return image if image.ndim == 3 else image[None]


def _table(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise NotFoundError(f"{path} does not exist; the recipe names it")
    return pd.read_csv(path, dtype={"image_id": str})


def _own(table: pd.DataFrame | None, name: str) -> pd.DataFrame | None:
    return None if table is None else table[table["image_id"] == name]


@dataclass(frozen=True)
class _View:
    """A stack on the network's grid; lengths as if its cells were as large as the network expects."""

    stack: NDArray[np.float32]
    step_um: float
    scale: NDArray[np.float64]
    factor: float
    pixel_um: float

    @classmethod
    def of(
        cls,
        image: NDArray[Any],
        voxel_um: tuple[float, float, float],
        diameter_um: float,
        settings: GridSettings,
    ) -> _View:
        factor = diameter_um / settings.cell_diameter_um
        intensity = Intensity.fit(ArraySource(image, voxel_um), diameter_um)
        group = min(max(1, round(settings.z_target_um * factor / voxel_um[0])), len(image))
        shape: tuple[int, int, int] = image.shape  # type: ignore[assignment]
        grid = Grid(shape, voxel_um, settings.pixel_um * factor, group, stride=1)
        depth, height, width = grid.net_shape
        axes = (
            grid.group_z(np.arange(depth)),
            grid.to_vox(np.arange(float(height)), 1),
            grid.to_vox(np.arange(float(width)), 2),
        )
        stack = intensity.normalise(to_grid(image, grid), *axes) - np.float32(BACKGROUND_VALUE)
        step = grid.group_um / factor if depth > 1 else _SECTION_STEP_CELLS * settings.cell_diameter_um
        scale = np.array([group, grid.pixel_um / voxel_um[1], grid.pixel_um / voxel_um[2]])
        return cls(stack, step, scale, factor, settings.pixel_um)

    def cells(self, places: NDArray[Any], cell_um: float, contrast: NDArray[Any]) -> NDArray[np.float32]:
        """Cells on the grid, as `NetVolume.cells`, from voxel indices."""
        position = (places + 0.5) / self.scale - 0.5
        radius = np.full(len(places), cell_um / self.factor / 2 / self.pixel_um)
        return np.column_stack([position, radius, contrast]).astype(np.float32)


def _marked(
    image: NDArray[Any], stacks: RealStacks, points: pd.DataFrame | None, boxes: pd.DataFrame | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Places and contrast of marked cells, and of the blobs that may be cells that nobody marked."""
    from scipy.spatial import cKDTree

    if points is None or points.empty:
        raise DataError("a stack of the recipe has no marked cell; take it out or mark some")
    voxel = np.asarray(stacks.voxel_um)
    marked = points[["z", "y", "x"]].to_numpy(np.float64)
    band, blobs = _blobs(image, voxel, stacks.cell_um)
    index = np.clip(np.rint(marked).astype(int), 0, np.array(image.shape) - 1)
    clear = ndimage.maximum_filter(
        band, [1 + 2 * int(n > 1) * k for n, k in zip(image.shape, (1, 2, 2), strict=True)]
    )
    faint, faintest = np.quantile(clear[tuple(index.T)], [_FAINT_QUANTILE, _FAINTEST_QUANTILE])
    height = band[tuple(blobs.T)]
    away, _ = cKDTree(marked * voxel).query(blobs * voxel)
    limit = np.where(_inside(blobs, boxes), faint, faintest)
    doubtful = (away > _OWN * stacks.cell_um) & (height > limit)
    places = np.concatenate([marked, blobs[doubtful]])
    return places, np.repeat([_ASKED, _DOUBT], [len(marked), int(doubtful.sum())])


def _blobs(
    image: NDArray[Any], voxel: NDArray[np.float64], cell_um: float
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Difference of Gaussians at a cell's scale, and its maxima."""
    narrow, wide = (
        ndimage.gaussian_filter(image.astype(np.float32), width * cell_um / voxel, mode="nearest")
        for width in (_NARROW, _WIDE)
    )
    band = narrow - wide
    size = [2 * max(1, round(_APART * cell_um / v)) + 1 if v < cell_um else 1 for v in voxel]
    return band, np.argwhere((band == ndimage.maximum_filter(band, size)) & (band > 0))


def _inside(places: NDArray[Any], boxes: pd.DataFrame | None) -> NDArray[np.bool_]:
    if boxes is None:
        return np.ones(len(places), bool)
    inside = np.zeros(len(places), bool)
    for box in _boxes(boxes):
        inside |= np.all((places >= box[:, 0]) & (places < box[:, 1]), axis=1)
    return inside


def _boxes(boxes: pd.DataFrame) -> Iterator[NDArray[np.int64]]:
    for row in boxes.to_dict("records"):
        yield np.array([[row[a + "0"], row[a + "1"]] for a in "zyx"])


def _detected(view: _View, model: CenterNet, grid: GridSettings) -> NDArray[np.float32]:
    """What a detector finds: cells it is sure of, and places it doubts."""
    empty = np.zeros((0, 5), np.float32)
    found = detections(model, NetVolume(view.stack.astype(np.float16), view.step_um, empty), grid)
    chosen = found.logit > _DOUBTS
    position = found.place[chosen] / np.array([view.step_um, grid.pixel_um, grid.pixel_um]) - 0.5
    radius = np.full(len(position), grid.cell_diameter_um / 2 / grid.pixel_um)
    contrast = np.where(found.logit[chosen] > _SURE, _ASKED, _DOUBT)
    return np.column_stack([position, radius, contrast]).astype(np.float32)
