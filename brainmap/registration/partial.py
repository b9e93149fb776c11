"""Which part of the atlas's brain an image shows: the whole, one hemisphere, without bulbs or cerebellum.

A registration of a part to the whole template stretches the part over everything. So before it, at a coarse
scale, the outline and the contrast of the parts one meets are fitted to the image, each with an affine of its
own; the best fit decides. Bulbs are too small for that: they are missing where the fit finds no tissue in their place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from brainmap.atlas.atlas import Atlas
from brainmap.coords import edge_um_to_vox, vox_to_edge_um
from brainmap.errors import BrainmapError
from brainmap.registration.alignment import Framed
from brainmap.registration.prepare import Prepared, block_mean
from brainmap.registration.transforms import Transforms
from brainmap.registration.warping import depth_um

__all__ = ["Part", "PartFound", "cut_template", "cut_unmasked", "find_part"]

Floats = NDArray[np.float64]
Image = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: What may be missing: words -> acronyms of the Allen ontology; an atlas without them knows whole and half brains.
_FRONT = {"olfactory bulbs": ("MOB", "AOB")}
_BACK = {"cerebellum": ("CB",), "cerebellum and hindbrain": ("CB", "HB")}
_GREY = "grey"

#: Voxel size of the coarse images, um.
_COARSE_UM = 400.0
_STEPS = 25
#: Pull of the affine's matrix towards a rotation and one scale, in voxels' worth of mismatch per voxel of tissue.
_STIFFNESS = 0.03
#: Distance from a missing piece that is not compared either, um: nobody cuts along the borders of an atlas.
_CUT_UM = 250.0
#: A rough placement is wrong by less than this, um: shallower tissue may lie beyond a mask by that alone.
_SURFACE_UM = 300.0

#: A part is believed if its outline overlaps by so much, the contrasts correlate by so much, and its score leads by
#: so much. On a warped template and a real brain with pieces cut away: overlap 0.91 to 0.96, correlation 0.4 to
#: 0.85, lead 0.03 to 0.2.
_LEAST_AGREEMENT, _LEAST_CONTRAST, _LEAST_LEAD = 0.86, 0.15, 0.02
#: Ratio of the largest to the smallest stretch of a fit that is believed; real brains stay below 1.2.
_MOST_STRETCH = 1.3
#: Share of the bulbs' place with tissue: below the first they are missing, below the second they are not compared.
_MISSING_SHARE, _WHOLE_SHARE = 0.25, 0.45
#: With less of that place inside the image nothing is said about it.
_LEAST_SEEN = 0.2


@dataclass(frozen=True)
class Part:
    """A part of the brain.

    Attributes
    ----------
    side : str
        ``both``, ``left`` or ``right``.
    missing : tuple of str
        What else is missing, in words.
    acronyms : tuple of str
        The same as acronyms of structures.
    """

    side: str = "both"
    missing: tuple[str, ...] = ()
    acronyms: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether nothing is missing."""
        return self.side == "both" and not self.acronyms

    @property
    def words(self) -> str:
        """For a person: ``left hemisphere without olfactory bulbs``."""
        brain = "whole brain" if self.side == "both" else f"{self.side} hemisphere"
        return brain + (f" without {' and '.join(self.missing)}" if self.missing else "")

    def without(self, words: str, acronyms: tuple[str, ...]) -> Part:
        """Return this part with one more piece missing."""
        return Part(self.side, (*self.missing, words), (*self.acronyms, *acronyms))

    def excludes(self, atlas: Atlas, ids: NDArray[Any], hemispheres: NDArray[Any]) -> Mask:
        """Which voxels, by their ids and sides (arrays of one shape), this part does not have."""
        structures = [atlas.structures.descendants(acronym) for acronym in self.acronyms]
        gone = np.isin(ids, np.concatenate(structures)) if structures else np.zeros(np.shape(ids), dtype=bool)
        if self.side != "both":
            gone |= np.asarray(hemispheres) == (2 if self.side == "left" else 1)
        return np.asarray(gone)


@dataclass(frozen=True)
class PartFound:
    """What `find_part` found.

    Attributes
    ----------
    part : Part
    certain : bool
        Whether it fits well, and clearly better than everything else.
    agreement : float
        Overlap of the outlines (soft Dice), 0..1.
    lead : float
        Score (outline overlap plus correlation of contrasts) above that of the next best part.
    shown : dict
        Piece in words -> share of its place where the image shows tissue.
    uncompared : tuple of str
        Acronyms of pieces of which only some is left: present, but nothing to align by.
    """

    part: Part
    certain: bool
    agreement: float
    lead: float
    shown: dict[str, float]
    uncompared: tuple[str, ...] = ()

    def as_whole(self) -> PartFound:
        """Return the same, with nothing missing after all."""
        return replace(self, part=Part(), uncompared=())

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``registration.json``."""
        return {
            "part": self.part.words,
            "side": self.part.side,
            "missing": list(self.part.acronyms),
            "uncompared": list(self.uncompared),
            "certain": self.certain,
            "agreement": round(self.agreement, 3),
            "lead": round(self.lead, 3),
            "shown": {words: round(share, 2) for words, share in self.shown.items()},
        }


def find_part(template: Framed, sample: Framed, atlas: Atlas) -> PartFound:
    """Find out which part of the template's brain a sample shows.

    Parameters
    ----------
    template, sample : Framed
        Prepared, in asr; the template of `atlas`.
    atlas : Atlas

    Returns
    -------
    PartFound
        Of several parts that fit equally well the one that fits best, not `certain`.
    """
    image = _Coarse.of(sample)
    sides = [Part(side) for side in ("both", "left", "right")]
    fits = [_fit(_cut(template, part, atlas), image, part) for part in sides]
    fits.sort(key=lambda fit: fit.score, reverse=True)
    side = fits[0].part.side
    for words, acronyms in _known(_BACK, atlas).items():
        candidate = Part(side).without(words, acronyms)
        fits.append(_fit(_cut(template, candidate, atlas), image, candidate))
    fits.sort(key=lambda fit: fit.score, reverse=True)
    best, lead = fits[0], fits[0].score - fits[1].score
    part, shown = best.part, {}
    uncompared: tuple[str, ...] = ()
    for words, acronyms in _known(_FRONT, atlas).items():
        shown[words] = _share_shown(best, template, sample, atlas, acronyms)
        if shown[words] < _WHOLE_SHARE:
            # Without them the rest is not drawn into their place.
            best = _fit(_cut(template, part.without(words, acronyms), atlas), image, best.part)
            shown[words] = _share_shown(best, template, sample, atlas, acronyms)
        if shown[words] < _MISSING_SHARE:
            part = part.without(words, acronyms)
        elif shown[words] < _WHOLE_SHARE:
            uncompared += acronyms
    return PartFound(part, _believable(fits[0], lead), fits[0].agreement, lead, shown, uncompared)


def _believable(fit: _Fit, lead: float) -> bool:
    scales = np.linalg.svd(fit.matrix, compute_uv=False)
    good = fit.agreement >= _LEAST_AGREEMENT and fit.contrast >= _LEAST_CONTRAST and lead >= _LEAST_LEAD
    return bool(good and scales.max() / scales.min() <= _MOST_STRETCH)


def cut_template(template: Framed, found: PartFound, atlas: Atlas) -> tuple[Framed, Mask]:
    """Return the template without what is missing, and where it is to be compared (bool, its shape)."""
    cut = _cut(template, found.part, atlas)
    left_out = Part(found.part.side, acronyms=(*found.part.acronyms, *found.uncompared))
    gone = _absent(template, left_out, atlas)
    far = ndimage.distance_transform_edt(~gone, sampling=template.voxel_um) if gone.any() else np.inf
    return cut, np.broadcast_to(far > _CUT_UM * template.scale, gone.shape)


def cut_unmasked(template: Framed, sample: Framed, placed: Transforms, compared: Mask) -> tuple[Framed, Mask]:
    """Return a cut template also without what a rough placement puts beyond the tissue of a mask.

    Otherwise the windows in which the images are compared see an edge there in the sample only, and the
    deformation draws the template to it. Near the surface the mask's and the template's outlines are compared.

    Parameters
    ----------
    template, sample : Framed
        The sample prepared with its mask.
    placed : Transforms
        From template to sample, linear.
    compared : bool array
        What `cut_template` returned; so is the result.
    """
    old = template.prepared
    places = np.argwhere(old.mask)
    moved = placed.to_sample_edge_um(vox_to_edge_um(places, template.voxel_um))
    tissue = sample.prepared.mask.astype(np.float32)
    shown = ndimage.map_coordinates(tissue, edge_um_to_vox(moved, sample.voxel_um).T, order=1)
    beyond = np.zeros(old.mask.shape, dtype=bool)
    beyond[tuple(places[shown < 0.5].T)] = True
    surface_um = _SURFACE_UM * template.scale
    certain = beyond & (depth_um(template) > surface_um)
    if not certain.any():
        return template, compared
    # With what is deep goes the surface around it.
    near = ndimage.distance_transform_edt(~certain, sampling=template.voxel_um) <= 1.5 * surface_um
    gone = beyond & near
    cut = replace(template, prepared=Prepared(old.global_ * ~gone, old.local * ~gone, old.mask & ~gone))
    far = ndimage.distance_transform_edt(~gone, sampling=template.voxel_um)
    return cut, compared & (far > _CUT_UM * template.scale)


def _known(pieces: Mapping[str, tuple[str, ...]], atlas: Atlas) -> dict[str, tuple[str, ...]]:
    """Those pieces of which the atlas has every structure."""

    def has(acronym: str) -> bool:
        try:
            return bool(len(atlas.structures.descendants(acronym)))
        except BrainmapError:
            return False

    return {words: acronyms for words, acronyms in pieces.items() if all(has(a) for a in (*acronyms, _GREY))}


def _cut(template: Framed, part: Part, atlas: Atlas) -> Framed:
    if part.whole:
        return template
    kept = ~_absent(template, part, atlas)
    old = template.prepared
    return replace(template, prepared=Prepared(old.global_ * kept, old.local * kept, old.mask & kept))


def _absent(template: Framed, part: Part, atlas: Atlas) -> Mask:
    """Voxels of the template that a part does not have, tracts inside its pieces included."""
    ids, hemispheres = (_at(values, template) for values in (atlas.annotation, atlas.hemispheres))
    gone = part.excludes(atlas, ids, hemispheres)
    if part.acronyms:
        pieces = Part(acronyms=part.acronyms).excludes(atlas, ids, hemispheres)
        grey = np.isin(ids, atlas.structures.descendants(_GREY)) & ~pieces
        steps = max(1, round(400 * template.scale / min(template.voxel_um)))
        gone |= (
            ndimage.binary_closing(np.pad(pieces, steps), iterations=steps)[(slice(steps, -steps),) * 3]
            & ~grey
        )
    return gone


def _at(values: NDArray[Any], template: Framed) -> NDArray[Any]:
    """A volume of the atlas at the voxels of the (coarser) template."""
    shape = template.prepared.mask.shape
    factor = round(values.shape[0] / shape[0])
    places = (
        np.minimum(np.arange(n) * factor + factor // 2, m - 1)
        for n, m in zip(shape, values.shape, strict=True)
    )
    return values[np.ix_(*places)]


@dataclass(frozen=True)
class _Coarse:
    """Outline and contrast of an image at a coarse scale.

    Attributes
    ----------
    channels : two float32 arrays (z, y, x)
        Tissue, 0..1, blurred; contrast against the surroundings, 0 outside the tissue.
    voxel_mm : float64 array (3,)
    """

    channels: tuple[Image, Image]
    voxel_mm: Floats

    @classmethod
    def of(cls, image: Framed) -> _Coarse:
        factor = max(1, round(_COARSE_UM * image.scale / min(image.voxel_um)))
        tissue = image.prepared.mask.astype(np.float32)
        contrast = 4 * (image.prepared.local - 0.5) * tissue
        outline = ndimage.gaussian_filter(block_mean(tissue, factor), 0.7)
        blurred = ndimage.gaussian_filter(block_mean(contrast, factor), 0.5)
        return cls((outline, blurred), factor * np.asarray(image.voxel_um) / 1000.0)

    @property
    def points_mm(self) -> Floats:
        """Centres of all voxels."""
        index = np.indices(self.channels[0].shape).reshape(3, -1).T
        return (index + 0.5) * self.voxel_mm

    @property
    def mm3(self) -> float:
        return float(self.channels[0].sum() * np.prod(self.voxel_mm))

    @property
    def centre_mm(self) -> Floats:
        weight = self.channels[0].reshape(-1, 1)
        return np.asarray((self.points_mm * weight).sum(axis=0) / max(float(weight.sum()), 1e-6))


@dataclass(frozen=True)
class _Fit:
    """A part of the template brought to the image: ``image = matrix @ (p - centre) + offset``, mm."""

    part: Part
    matrix: Floats
    offset: Floats
    centre: Floats
    agreement: float = 0.0
    contrast: float = 0.0

    @property
    def score(self) -> float:
        return self.agreement + max(self.contrast, 0.0)

    def index(self, points_mm: Floats, voxel_mm: Floats) -> Floats:
        """Where points of the template lie in the image: fractional voxels (3, N)."""
        return np.asarray((((points_mm - self.centre) @ self.matrix.T + self.offset) / voxel_mm - 0.5).T)


def _fit(template: Framed, image: _Coarse, part: Part) -> _Fit:
    """Fit by Gauss-Newton steps on the squared mismatch of both channels."""
    brain = _Coarse.of(template)
    points, centre = brain.points_mm, brain.centre_mm
    size = np.clip((image.mm3 / max(brain.mm3, 1e-6)) ** (1 / 3), 0.7, 1.4)
    fit = _Fit(part, np.eye(3) * size, image.centre_mm, centre)
    slopes = [np.gradient(channel, *image.voxel_mm) for channel in image.channels]
    design = np.column_stack([points - centre, np.ones(len(points))])
    spread = float((design[:, :3] ** 2 * brain.channels[0].reshape(-1, 1)).sum())
    stiff = np.tile([1.0, 1.0, 1.0, 0.0], 3) * _STIFFNESS * spread
    for _ in range(_STEPS):
        places = fit.index(points, image.voxel_mm)
        left = np.diag(stiff)
        right = stiff * np.column_stack([_nearest_similarity(fit.matrix) - fit.matrix, np.zeros(3)]).ravel()
        for wanted, channel, slope in zip(brain.channels, image.channels, slopes, strict=True):
            gradient = np.stack([ndimage.map_coordinates(s, places, order=1) for s in slope], axis=1)
            rows = (gradient[:, :, None] * design[:, None, :]).reshape(len(points), 12)
            left = left + rows.T @ rows
            right = right + rows.T @ (wanted.ravel() - ndimage.map_coordinates(channel, places, order=1))
        step = np.linalg.solve(left + np.eye(12) * 1e-6 * np.trace(left) / 12, right).reshape(3, 4)
        fit = replace(fit, matrix=fit.matrix + step[:, :3], offset=fit.offset + step[:, 3])
        if np.abs(step[:, 3]).max() < 1e-3 and np.abs(step[:, :3]).max() < 1e-4:
            break
    return _scored(fit, brain, image)


def _nearest_similarity(matrix: Floats) -> Floats:
    """A rotation times one scale."""
    u, scales, vt = np.linalg.svd(matrix)
    return np.asarray(u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt * scales.mean())


def _scored(fit: _Fit, brain: _Coarse, image: _Coarse) -> _Fit:
    places = fit.index(brain.points_mm, image.voxel_mm)
    outline, contrast = (ndimage.map_coordinates(c, places, order=1) for c in image.channels)
    wanted = brain.channels[0].ravel()
    # Tissue beyond the template's box counts as well.
    everything = image.mm3 / max(abs(float(np.linalg.det(fit.matrix))), 1e-6) / float(np.prod(brain.voxel_mm))
    both = float(np.minimum(wanted, outline).sum())
    agreement = 2 * both / (float(wanted.sum()) + max(everything, float(outline.sum())))
    used = (wanted > 0.3) | (outline > 0.3)
    a, b = brain.channels[1].ravel()[used], contrast[used]
    known = used.any() and a.std() > 0 and b.std() > 0
    return replace(fit, agreement=agreement, contrast=float(np.corrcoef(a, b)[0, 1]) if known else 0.0)


def _share_shown(
    fit: _Fit, template: Framed, sample: Framed, atlas: Atlas, acronyms: tuple[str, ...]
) -> float:
    """Share of a piece's place, by a fit, where the sample has tissue; what lies beyond the image is not known."""
    piece = _absent(template, Part(acronyms=acronyms), atlas) & template.prepared.mask
    piece &= ~_absent(template, Part(fit.part.side), atlas)
    points = (np.argwhere(piece) + 0.5) * np.asarray(template.voxel_um) / 1000.0
    places = fit.index(points, np.asarray(sample.voxel_um) / 1000.0)
    limits = np.asarray(sample.prepared.mask.shape).reshape(3, 1) - 1
    seen = ((places >= 0) & (places <= limits)).all(axis=0)
    if seen.sum() < _LEAST_SEEN * len(points):
        return 1.0
    return float(
        ndimage.map_coordinates(sample.prepared.mask.astype(np.float32), places[:, seen], order=1).mean()
    )
