"""Accuracy of registration against a known truth: the atlas's own template through a random smooth warp.

python benchmarks/registration.py ATLAS [--seeds 0 1] [--orientations psl] [--cut bulbs] [--schedule NAME]

The made brain has a gain per division, a bias field, a gain per section, and noise. Reported are the mean
Dice over regions, and how far points in the tissue end up from where they belong.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from brainmap.atlas import Atlas
from brainmap.coords import axis_map, reorient, vox_to_um
from brainmap.image.volume import Volume, write_volume
from brainmap.registration.register import Registration, RegistrationOptions, register

#: Regions with fewer voxels say more about rounding than about registration.
LEAST_VOXELS = 300
DIVISIONS = (
    "Isocortex",
    "OLF",
    "HPF",
    "CTXsp",
    "STR",
    "PAL",
    "TH",
    "HY",
    "MB",
    "P",
    "MY",
    "CB",
    "fiber tracts",
)


@dataclass(frozen=True)
class KnownBrain:
    """A brain whose every voxel's place in the atlas is known.

    Attributes
    ----------
    image : uint16 array
        Stored in `orientation`, with the atlas's voxel size.
    orientation : str
    atlas_um : float32 array (3, z, y, x)
        Where each voxel's centre lies in the atlas, um; asr.
    annotation : uint32 array (z, y, x)
        True ids, asr.
    """

    image: NDArray[np.uint16]
    orientation: str
    atlas_um: NDArray[np.float32]
    annotation: NDArray[np.uint32]


def known_brain(
    atlas: Atlas, seed: int, orientation: str = "asr", warp_um: float = 330.0, cut: str = ""
) -> KnownBrain:
    """Make one; `cut` is an acronym of a structure that is missing, such as MOB, or empty."""
    rng = np.random.default_rng(seed)
    shape, voxel = atlas.shape, np.array(atlas.resolution_um)
    index = np.indices(shape, dtype=np.float32)
    centre = (np.array(shape) - 1).reshape(3, 1, 1, 1) / 2
    angles = rng.uniform(-1, 1, 3) * np.deg2rad(5)
    linear = _rotation(angles) @ np.diag(1 + rng.uniform(-0.05, 0.05, 3))
    place = np.einsum("ij,jzyx->izyx", linear, (index - centre) * voxel.reshape(3, 1, 1, 1))
    place += (centre + 0.5) * voxel.reshape(3, 1, 1, 1) + _smooth_field(rng, shape, voxel, warp_um)
    vox = (place / voxel.reshape(3, 1, 1, 1) - 0.5).astype(np.float32)
    nearest = np.round(vox).astype(np.int32)
    inside = np.all([(n >= 0) & (n < s) for n, s in zip(nearest, shape, strict=True)], axis=0)
    nearest = np.clip(nearest, 0, np.array(shape).reshape(3, 1, 1, 1) - 1)
    annotation = np.where(inside, atlas.annotation[tuple(nearest)], 0)
    if cut:
        missing = np.isin(annotation, atlas.structures.descendants(cut))
        annotation = np.where(missing, 0, annotation)
    image = ndimage.map_coordinates(atlas.reference.astype(np.float32), vox, order=1)
    if cut:
        image[missing] = 0
    image *= _gains(atlas, annotation, rng) * _bias(rng, shape)
    image = reorient(image, "asr", orientation)
    image = image * rng.uniform(0.85, 1.15, (len(image), 1, 1)) * 20 + 200
    image += rng.normal(0, 1, image.shape) * (40 + 0.03 * image)
    stored = np.clip(np.ascontiguousarray(image), 0, 65535).astype(np.uint16)
    return KnownBrain(stored, orientation, place.astype(np.float32), annotation.astype(np.uint32))


def _rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.spatial.transform import Rotation

    return np.asarray(Rotation.from_euler("zyx", angles).as_matrix())


def _smooth_field(
    rng: np.random.Generator, shape: tuple[int, int, int], voxel: NDArray[np.float64], largest_um: float
) -> NDArray[np.float32]:
    """Gaussian random displacements, smooth over 1 mm, of `largest_um` at most."""
    coarse = [max(4, round(n * v / 400)) for n, v in zip(shape, voxel, strict=True)]
    field = np.stack([ndimage.gaussian_filter(rng.normal(size=coarse), 2.5) for _ in range(3)])
    zoom = [n / c for n, c in zip(shape, coarse, strict=True)]
    fine = np.stack([ndimage.zoom(part, zoom, order=3, grid_mode=True, mode="nearest") for part in field])
    return (fine * (largest_um / np.linalg.norm(fine, axis=0).max())).astype(np.float32)


def _gains(atlas: Atlas, annotation: NDArray[np.uint32], rng: np.random.Generator) -> NDArray[np.float32]:
    gain = np.ones(annotation.shape, np.float32)
    for acronym in DIVISIONS:
        gain[np.isin(annotation, atlas.structures.descendants(acronym))] = rng.uniform(0.6, 1.5)
    return ndimage.gaussian_filter(gain, 1.0)


def _bias(rng: np.random.Generator, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    field = ndimage.gaussian_filter(rng.normal(size=(6, 5, 5)), 1.2)
    zoom = [n / c for n, c in zip(shape, field.shape, strict=True)]
    fine = ndimage.zoom(field / np.abs(field).max(), zoom, order=3, grid_mode=True, mode="nearest")
    return np.exp(0.4 * fine).astype(np.float32)


def score(brain: KnownBrain, volume: Volume, atlas: Atlas, registration: Registration) -> dict[str, float]:
    """Mean Dice over regions, and point errors in um."""
    labels = Volume.open(registration.folder / "annotation.ome.zarr")
    everything = (slice(None),) * 3
    found = reorient(labels.read(*everything), brain.orientation, "asr")
    return {**dice(brain.annotation, found), **errors(brain, volume, registration)}


def dice(true: NDArray[np.uint32], found: NDArray[np.uint32]) -> dict[str, float]:
    ids, a = np.unique(true, return_inverse=True)
    index = np.clip(np.searchsorted(ids, found.ravel()), 0, len(ids) - 1)
    known = ids[index] == found.ravel()
    n_true = np.bincount(a.ravel(), minlength=len(ids))
    n_found = np.bincount(index[known], minlength=len(ids))
    both = np.bincount(a.ravel()[known & (index == a.ravel())], minlength=len(ids))
    used = (ids > 0) & (n_true >= LEAST_VOXELS)
    values = 2 * both[used] / (n_true[used] + n_found[used])
    return {"regions": int(used.sum()), "dice": float(values.mean())}


def errors(brain: KnownBrain, volume: Volume, registration: Registration) -> dict[str, float]:
    shape = brain.annotation.shape
    points = np.argwhere(brain.annotation > 0)
    points = points[np.random.default_rng(0).integers(0, len(points), 20_000)]
    truth = brain.atlas_um[:, *points.T].T
    stored = axis_map("asr", brain.orientation).vox(points.astype(float), shape)
    mapped = registration.to_atlas_um(vox_to_um(stored, volume.voxel_um, volume.origin_um))
    distance = np.linalg.norm(mapped - truth, axis=1)
    return {"median_um": float(np.median(distance)), "p95_um": float(np.percentile(distance, 95))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("atlas", help="folder of an atlas; 50 um were used for what is claimed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--orientations", nargs="+", default=["asr"])
    parser.add_argument("--cut", default="", help="acronym of a missing structure, such as MOB")
    parser.add_argument("--warp-um", type=float, default=330.0)
    parser.add_argument("--schedule", default=RegistrationOptions().schedule)
    options = parser.parse_args()
    atlas = Atlas.open(options.atlas)
    chosen = RegistrationOptions(schedule=options.schedule)
    for seed in options.seeds:
        for orientation in options.orientations:
            brain = known_brain(atlas, seed, orientation, options.warp_um, options.cut)
            with tempfile.TemporaryDirectory() as folder:
                voxel = axis_map("asr", orientation).sequence(atlas.resolution_um)
                volume = write_volume(
                    Path(folder) / "brain.zarr", brain.image, voxel, orientation=orientation
                )
                started = time.perf_counter()
                registration = register(volume, atlas, Path(folder) / "registration", options=chosen)
                seconds = time.perf_counter() - started
                result = score(brain, volume, atlas, registration)
            row = {"seed": seed, "orientation": orientation, "cut": options.cut, "schedule": options.schedule}
            print(json.dumps(row | {k: round(v, 4) for k, v in result.items()} | {"seconds": round(seconds)}))


if __name__ == "__main__":
    main()
