"""Whether the orientation of a brain is found in each of its 48 presentations, and whether left stays left.

python benchmarks/orientation.py BRAIN --orientation psl [--voxel-size Z,Y,X] [--atlas DIR] [--sides N]

BRAIN is an OME-Zarr whose true orientation is known. It is brought to 100 um and stored in every
presentation; `find_orientation` is to find each up to mirror. With `--sides N` it is also registered (affine)
in the first N presentations with the right letters, and points of its left half are to be counted left.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brainmap import coords
from brainmap.atlas import Atlas, assign_regions
from brainmap.image.volume import Volume, write_volume
from brainmap.registration.grid import SampleGrid, resample_volume
from brainmap.registration.orientation import find_orientation
from brainmap.registration.register import RegistrationOptions, register
from brainmap.run.request import parse_voxel_size

VOXEL_UM = (100.0, 100.0, 100.0)
#: Points nearer to the midline than this are left out: there the affine decides, not the orientation.
MIDLINE_UM = 500.0


def presented(image: NDArray[np.float32], true: str, letters: str, folder: Path) -> Volume:
    """The brain stored in another presentation, without a word about it in the metadata."""
    array = np.ascontiguousarray(coords.reorient(image, true, letters))
    return write_volume(folder / f"{letters}.zarr", array, VOXEL_UM)


def share_counted_left(
    volume: Volume, atlas: Atlas, letters: str, tissue: NDArray[np.bool_], out: Path
) -> float:
    """Share of the points of the anatomical left half that a registration with these letters counts left."""
    registration = register(
        volume, atlas, out, orientation=letters, options=RegistrationOptions("affine", align_um=200.0)
    )
    middle = np.argwhere(tissue)[:, 2].mean()
    z, y, x = np.nonzero(tissue)
    left = np.stack([z, y, x], axis=1)[x > middle + MIDLINE_UM / VOXEL_UM[2]]  # asr: left is at high indices
    points = coords.axis_map("asr", letters).vox(left[::97], tissue.shape)
    um = coords.vox_to_um(points, volume.voxel_um, volume.origin_um)
    region, hemisphere = assign_regions(registration.to_atlas_um(um), atlas)
    return float((hemisphere[region > 0] == 1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("brain")
    parser.add_argument("--orientation", required=True, help="the true one")
    parser.add_argument("--voxel-size", type=parse_voxel_size)
    parser.add_argument("--atlas", default="allen_mouse_100um")
    parser.add_argument("--sides", type=int, default=0, metavar="N")
    options = parser.parse_args()
    atlas, true = Atlas.open(options.atlas), coords.parse_orientation(options.orientation)
    volume = Volume.open(options.brain, voxel_um=options.voxel_size)
    image = resample_volume(volume, SampleGrid.over(volume, true, VOXEL_UM))
    in_asr = coords.reorient(image, true)
    tissue = in_asr > np.percentile(in_asr, 75)
    right = 0
    print("given  found  up to mirror  likeness  next   margin  cpu s  counted left", flush=True)
    with tempfile.TemporaryDirectory() as name:
        for number, letters in enumerate(coords.ORIENTATIONS):
            stored = presented(image, true, letters, Path(name))
            start = time.process_time()
            found = find_orientation(stored, atlas)
            seconds = time.process_time() - start
            ok = found.clear and letters in (found.best, found.mirror)
            right += ok
            left = ""
            if number < options.sides:
                left = f"{share_counted_left(stored, atlas, letters, tissue, Path(name) / letters):.4f}"
            print(
                f"{letters:<7}{found.best:<7}{'yes' if ok else 'NO':<14}{found.ranked[0][1]:<10.3f}"
                f"{found.ranked[1][0]:<7}{found.margin:<8.3f}{seconds:<7.1f}{left}",
                flush=True,
            )
    print(f"{right} of {len(coords.ORIENTATIONS)} found up to mirror")


if __name__ == "__main__":
    main()
