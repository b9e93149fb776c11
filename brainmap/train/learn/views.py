"""A tile as the network sees it: one section on the detector's grid, and the way back to tile pixels.

Detection averages grey values and normalises afterwards. A tile holds normalised values, so it goes back to
contrast first, or bright pixels would weigh less than they do in detection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.errors import DataError
from brainmap.image.intensity import BACKGROUND_VALUE, GAIN, KNEE, LEAST_TEXTURE, texture_of
from brainmap.infer.block.measure import shapes
from brainmap.infer.block.resample import axis_operator, resample_band
from brainmap.infer.plan.blocks import Grid
from brainmap.train.learn.samples import GridSettings

__all__ = ["NetTile", "net_tile", "resize_to_grid", "tile_grid", "tile_prominence"]

# v = 0.3 + GAIN asinh(u / KNEE), of which only the curve matters here (see `brainmap.image.intensity`).


@dataclass(frozen=True)
class NetTile:
    """A tile on the network's grid.

    Pixel centres are integers on both sides: net = (px + 0.5) * scale - 0.5 along each axis (methods 6).

    Parameters
    ----------
    image : ndarray of float32, shape (H, W)
        Normalised intensity minus the background value; what the middle channel of the network gets.
    scale_yx : tuple of float
        Network pixels per tile pixel, along y and x.
    """

    image: NDArray[np.float32]
    scale_yx: tuple[float, float]

    def to_net(self, xy: NDArray[Any]) -> NDArray[np.float64]:
        """Tile pixels (n, 2) in the order x, y to network pixels (n, 2) in the order y, x."""
        yx = np.asarray(xy, np.float64).reshape(-1, 2)[:, ::-1]
        return (yx + 0.5) * np.array(self.scale_yx) - 0.5

    def to_px(self, yx_net: NDArray[Any]) -> NDArray[np.float64]:
        """Network pixels (n, 2) in the order y, x to tile pixels (n, 2) in the order x, y."""
        yx = (np.asarray(yx_net, np.float64).reshape(-1, 2) + 0.5) / np.array(self.scale_yx) - 0.5
        return yx[:, ::-1]


def tile_grid(
    shape: tuple[int, int],
    voxel_um: tuple[float, float, float],
    grid: GridSettings,
    cell_diameter_um: float | None = None,
) -> Grid:
    """The detector's grid over a tile, a volume of one slice.

    Parameters
    ----------
    shape : tuple of int
        Height and width of the tile.
    voxel_um : tuple of float
        Pixel size of the tile, z, y, x.
    grid : GridSettings
        Of the network.
    cell_diameter_um : float, optional
        Typical cell; another one than the network's own changes the pixel size in proportion, as
        `--cell-diameter` does.
    """
    if min(shape) < 1 or len(shape) != 2:
        raise DataError(f"a tile has shape {tuple(shape)}; it must be a grey image with at least one pixel")
    factor = 1.0 if cell_diameter_um is None else cell_diameter_um / grid.cell_diameter_um
    z_um, y_um, x_um = (float(v) for v in voxel_um)
    return Grid((1, *shape), (z_um, y_um, x_um), grid.pixel_um * factor, group=1, stride=1)


def resize_to_grid(image: NDArray[Any], grid: Grid) -> NDArray[np.float32]:
    """A tile-sized map (h, w) on a grid over it, by the operators of detection: area means or linear."""
    _, height, width = grid.net_shape
    out = np.zeros(grid.net_shape, np.float32)
    rows, columns = axis_operator(grid, 1, (0, height)), axis_operator(grid, 2, (0, width))
    resample_band(out, np.asarray(image, np.float32)[None], (0, 1), 0, grid, 0, rows, columns)
    return out[0]


def net_tile(
    image: NDArray[Any],
    voxel_um: tuple[float, float, float] | NDArray[Any],
    grid: GridSettings,
    cell_diameter_um: float | None = None,
) -> NetTile:
    """A tile on the network's grid.

    Parameters
    ----------
    image : ndarray of float32, shape (height, width)
        Normalised intensity v in 0..1.
    voxel_um : sequence of 3 floats
        Pixel size, z, y, x.
    grid : GridSettings
        Of the network.
    cell_diameter_um : float, optional
        Typical cell in the tile; the network's own by default.

    Raises
    ------
    DataError
        If the image is not a grey image, or holds values that are not finite.
    """
    values = np.asarray(image, np.float32)
    if not np.isfinite(values).all():
        raise DataError("a tile holds values that are not finite numbers; write it anew")
    over = tile_grid(values.shape, tuple(voxel_um), grid, cell_diameter_um)  # type: ignore[arg-type]
    contrast = np.sinh((values - np.float32(BACKGROUND_VALUE)) / np.float32(GAIN))
    view = np.float32(GAIN) * np.arcsinh(resize_to_grid(contrast, over))
    scale_y, scale_x = (over.voxel_um[axis] / over.pixel_um for axis in (1, 2))
    return NetTile(view.astype(np.float32, copy=False), (scale_y, scale_x))


def tile_prominence(
    image: NDArray[np.float32], yx_net: NDArray[np.float64], grid: GridSettings
) -> NDArray[np.float32]:
    """How far places of a tile stand out of its texture, as detection measures it; the tile stands for its brain.

    Parameters
    ----------
    image : ndarray of float32, shape (H, W)
        `NetTile.image`.
    yx_net : ndarray of float64, shape (n, 2)
        Places y, x, network pixels.
    grid : GridSettings
        Of the network.

    Returns
    -------
    ndarray of float32, shape (n,)
        As `DetectorSpec.weighed` takes it.
    """
    contrast = np.sinh(image / np.float32(GAIN)) * np.float32(KNEE)
    cell_px = grid.cell_diameter_um / grid.pixel_um
    _, band = shapes(contrast, yx_net[:, 0], yx_net[:, 1], grid.pixel_um, grid.cell_diameter_um)
    return band / max(texture_of(contrast, (cell_px, cell_px)), LEAST_TEXTURE)
