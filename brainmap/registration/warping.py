"""Images through the transforms: the annotation to the sample, the sample to the atlas; quality numbers.

Everything goes point by point through the transforms that map the cells, so that a cell and the warped
annotation under it agree, and ids never pass through a floating-point image.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from brainmap.atlas.atlas import Atlas
from brainmap.coords import Shape, Triple, atlas_um_to_index, edge_um_to_vox, vox_to_edge_um
from brainmap.registration.alignment import Framed
from brainmap.registration.grid import SampleGrid
from brainmap.registration.quality import Quality, mutual_information
from brainmap.registration.transforms import Transforms

__all__ = ["bring_to_atlas", "bring_to_sample", "depth_um", "measure"]


#: Gaps between parts of the brain (fissures, between folia) that do not count as outline, um.
_CLEFT_UM = 1200.0
#: Structures are compared this deep below the surface, um: nearer to it any two outlines make contrasts alike.
_INSIDE_UM = 600.0


def bring_to_sample(
    transforms: Transforms, grid: SampleGrid, atlas: Atlas
) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
    """Annotation and hemispheres of every voxel of the registration grid, brought to asr.

    Returns
    -------
    annotation : uint32 array of ``grid.shape_asr``
        Id of the atlas voxel in which the grid voxel's centre lies; 0 outside.
    hemispheres : uint8 array of ``grid.shape_asr``
        1 left, 2 right, 0 outside the atlas's box.
    """
    annotation = np.zeros(grid.shape_asr, dtype=np.uint32)
    hemispheres = np.zeros(grid.shape_asr, dtype=np.uint8)
    for z, centres in _planes(grid.shape_asr, grid.resolution_asr_um):
        points = transforms.to_atlas_um(centres)
        index, inside = atlas_um_to_index(points, atlas.resolution_um, atlas.shape)
        i, j, k = index.T
        plane = (-1, *grid.shape_asr[1:])
        annotation[z] = np.where(inside, atlas.annotation[i, j, k], 0).reshape(plane)
        hemispheres[z] = np.where(inside, atlas.hemispheres[i, j, k], 0).reshape(plane)
    return annotation, hemispheres


def bring_to_atlas(
    sample_asr: NDArray[np.float32],
    voxel_um: Triple,
    transforms: Transforms,
    shape: Shape,
    resolution_um: Triple,
) -> NDArray[np.float32]:
    """Sample the image (asr, on the registration grid) at every voxel of the template's grid; linear, 0 outside."""
    out = np.zeros(shape, dtype=np.float32)
    for z, centres in _planes(shape, resolution_um):
        vox = edge_um_to_vox(transforms.to_sample_edge_um(centres), voxel_um)
        out[z] = ndimage.map_coordinates(sample_asr, vox.T, order=1, mode="constant").reshape(-1, *shape[1:])
    return out


def measure(
    template: Framed,
    sample: Framed,
    transforms: Transforms,
    labelled_mm3: float,
    compared: NDArray[np.bool_] | None = None,
) -> Quality:
    """Compute the quality numbers; see `Quality`.

    Parameters
    ----------
    template, sample : Framed
        The images that were registered, asr.
    transforms : Transforms
    labelled_mm3 : float
        Volume of the annotation warped to the sample.
    compared : bool array, optional
        Part of the template that was compared.
    """
    mask = template.prepared.mask if compared is None else template.prepared.mask & compared
    places = np.argwhere(mask)[:: max(1, int(mask.sum()) // 400_000)]
    points = vox_to_edge_um(places, template.voxel_um)
    values = template.prepared.global_[tuple(places.T)]
    shift = _centre_um(sample) - _centre_um(template)
    moved = transforms.to_sample_edge_um(points)
    before = _sampled(sample.prepared.global_, points + shift, sample.voxel_um)
    after = _sampled(sample.prepared.global_, moved, sample.voxel_um)
    depth = depth_um(template)[tuple(places.T)]
    # Of thin tissue the deeper half.
    inside = (depth >= min(_INSIDE_UM * template.scale, float(np.median(depth)))) & (after > 0.05)
    contrasts = (
        template.prepared.local[tuple(places.T)],
        _sampled(sample.prepared.local, moved, sample.voxel_um),
    )
    returned = transforms.to_sample_edge_um(transforms.to_atlas_um(moved)) - moved
    scales = np.linalg.svd(transforms.affine[0], compute_uv=False)
    jacobian = _jacobian_in_tissue(template, transforms)
    dice, edges = _outlines(template, sample, transforms, compared)
    return Quality(
        mutual_information_before=mutual_information(values, before),
        mutual_information_after=mutual_information(values, after),
        mask_dice=dice,
        edge_mean_um=float(edges.mean()),
        edge_p95_um=float(np.percentile(edges, 95)),
        contrast_correlation=_correlation(contrasts[0][inside], contrasts[1][inside]),
        jacobian_min=float(jacobian.min()),
        jacobian_p1=float(np.percentile(jacobian, 1)),
        jacobian_p99=float(np.percentile(jacobian, 99)),
        jacobian_max=float(jacobian.max()),
        folded_share=float((jacobian <= 0).mean()),
        volume_ratio=labelled_mm3 / sample.tissue_mm3,
        affine_scale_min=float(scales.min()),
        affine_scale_max=float(scales.max()),
        round_trip_p95_um=float(np.percentile(np.linalg.norm(returned, axis=1), 95)),
    )


def _planes(shape: Shape, voxel_um: Triple) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Slabs of a grid and the um of their voxel centres, some 500,000 voxels at a time."""
    depth = max(1, 500_000 // max(1, shape[1] * shape[2]))
    for start in range(0, shape[0], depth):
        slab = slice(start, min(start + depth, shape[0]))
        index = np.indices((slab.stop - slab.start, *shape[1:])).reshape(3, -1).T.astype(np.float64)
        index[:, 0] += start
        yield slab, vox_to_edge_um(index, voxel_um)


def _sampled(
    image: NDArray[np.float32], points_um: NDArray[np.float64], voxel_um: Triple
) -> NDArray[np.float32]:
    return ndimage.map_coordinates(image, edge_um_to_vox(points_um, voxel_um).T, order=1, mode="constant")


def _centre_um(image: Framed) -> NDArray[np.float64]:
    weight = image.prepared.global_
    return np.asarray(vox_to_edge_um([ndimage.center_of_mass(weight)], image.voxel_um)[0])


def depth_um(image: Framed) -> NDArray[np.float64]:
    """How far each voxel of the tissue lies below its surface (the border of the image is one), um; 0 outside."""
    padded = np.pad(image.prepared.mask, 1)
    return np.asarray(ndimage.distance_transform_edt(padded, sampling=image.voxel_um)[(slice(1, -1),) * 3])


def _correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if a.size > 1 and a.std() > 0 and b.std() > 0 else 0.0


def _outlines(
    template: Framed, sample: Framed, transforms: Transforms, compared: NDArray[np.bool_] | None
) -> tuple[float, NDArray[np.float64]]:
    """Dice of the two tissue masks on the template's grid, and the distances between their surfaces, um.

    Only where the template is compared and the image shows anything: tissue beyond the field of view is unknown.
    """
    mask = template.prepared.mask
    brought = np.zeros(mask.shape, dtype=bool)
    seen = np.zeros(mask.shape, dtype=bool)
    tissue = sample.prepared.mask.astype(np.float32)
    last = np.asarray(tissue.shape) - 1
    for z, centres in _planes((mask.shape[0], mask.shape[1], mask.shape[2]), template.voxel_um):
        vox = edge_um_to_vox(transforms.to_sample_edge_um(centres), sample.voxel_um)
        plane = (-1, *mask.shape[1:])
        brought[z] = (ndimage.map_coordinates(tissue, vox.T, order=1, mode="constant") > 0.5).reshape(plane)
        seen[z] = ((vox >= 0) & (vox <= last)).all(axis=1).reshape(plane)
    if compared is not None:
        seen &= compared
    dice = 2 * (brought & mask & seen).sum() / max((brought & seen).sum() + (mask & seen).sum(), 1)
    filled = [
        _without_clefts(part, template.voxel_um, _CLEFT_UM * template.scale) for part in (brought, mask)
    ]
    surfaces = [part & ~ndimage.binary_erosion(part) for part in filled]
    # Where the field of view or the compared part ends, an outline may go on out of sight.
    seen = ndimage.binary_erosion(seen, iterations=2, border_value=1)
    if not all((surface & seen).any() for surface in surfaces):
        return float(dice), np.full(1, np.inf)
    far = [ndimage.distance_transform_edt(~surface, sampling=template.voxel_um) for surface in surfaces]
    edges = [far[1][surfaces[0] & seen], far[0][surfaces[1] & seen]]
    return float(dice), np.concatenate(edges)


def _without_clefts(tissue: NDArray[np.bool_], voxel_um: Triple, width_um: float) -> NDArray[np.bool_]:
    """Close gaps up to `width_um` wide: whether they are open depends on the image's sharpness alone."""
    reach = width_um / 2
    room = int(np.ceil(reach / min(voxel_um))) + 1
    padded = np.pad(tissue, room)
    if not padded.any():
        return tissue
    grown = ndimage.distance_transform_edt(~padded, sampling=voxel_um) <= reach
    closed = ndimage.distance_transform_edt(grown, sampling=voxel_um) > reach
    return np.asarray((closed | padded)[(slice(room, -room),) * 3])


def _jacobian_in_tissue(template: Framed, transforms: Transforms) -> NDArray[np.float32]:
    warp = transforms.warp
    if warp is None:
        return np.ones(1, dtype=np.float32)
    jacobian = warp.jacobian()
    index = np.indices(jacobian.shape).reshape(3, -1).T
    points_um = (index * warp.spacing_mm + warp.origin_mm) * 1000.0
    inside = _sampled(template.prepared.mask.astype(np.float32), points_um, template.voxel_um) > 0.5
    return jacobian.ravel()[inside]
