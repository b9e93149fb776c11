"""Annotated tiles as volumes of one slice, to be mixed with simulated ones.

Fine-tuning (`finetune`) teaches the soft maps of the crowd. Here the accepted cells of a ground truth become
exact centres, as those of simulated tissue are, so that one loss and one scale of logits serve both: that is
what a detector needs that has to work at one threshold on volumes and on sections.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from brainmap.errors import DataError
from brainmap.gt.truth import GroundTruth
from brainmap.tiles.tiles import Tiles
from brainmap.train.learn.samples import INVISIBLE, VISIBLE, GridSettings, NetVolume
from brainmap.train.learn.views import net_tile

__all__ = ["SCALES", "labelled_cells", "labelled_volumes"]

# A cell of the tiles appears this much larger than the network expects.
SCALES = (0.85, 1.0, 1.18)
ACCEPTED, DOUBTFUL = 0.5, 0.05


def labelled_volumes(
    tiles: Tiles,
    truth: GroundTruth,
    grid: GridSettings,
    cell_diameter_um: float,
    scales: tuple[float, ...] = SCALES,
) -> list[NetVolume]:
    """Every tile at every scale.

    Parameters
    ----------
    tiles : Tiles
    truth : GroundTruth
        Candidates of posterior >= 0.5 are cells; those between 0.05 and 0.5 are neither asked for nor
        forbidden.
    grid : GridSettings
        Of the network.
    cell_diameter_um : float
        Typical cell in the tiles.
    scales : tuple of float

    Raises
    ------
    DataError
        If no tile holds a cell.
    """
    volumes = []
    for index, name in enumerate(tiles.ids):
        xy, _confidence, posterior = truth.points(str(name))
        for scale in scales:
            view = net_tile(
                tiles.image(index), tiles.columns["voxel_um"][index], grid, cell_diameter_um / scale
            )
            radius_px = scale * grid.cell_diameter_um / 2 / grid.pixel_um
            cells = labelled_cells(view.to_net(xy), posterior, radius_px)
            # The thickness of a section is unknown; it only has to be more than a cell.
            volumes.append(NetVolume(view.image[None].astype(np.float16), 2 * grid.cell_diameter_um, cells))
    if not any((volume.cells[:, 4] >= VISIBLE).any() for volume in volumes):
        raise DataError(f"no tile of {tiles.folder} holds an accepted cell: there is nothing to learn from")
    return volumes


def labelled_cells(
    place: NDArray[np.float64], posterior: NDArray[np.float64], radius_px: float
) -> NDArray[np.float32]:
    """Candidates of a ground truth as cells of one slice, in the columns of `NetVolume.cells`.

    Parameters
    ----------
    place : ndarray, shape (n, 2)
        Network pixels, y and x.
    posterior : ndarray, shape (n,)
        From 0.5 a cell; from 0.05 neither asked for nor forbidden; the others are left out.
    radius_px : float
        Of all of them, network pixels.
    """
    known = posterior >= DOUBTFUL
    contrast = np.where(posterior[known] >= ACCEPTED, 2 * VISIBLE, (INVISIBLE + VISIBLE) / 2)
    count = len(contrast)
    columns = [np.zeros(count), place[known], np.full(count, radius_px), contrast]
    return np.column_stack(columns).astype(np.float32)
