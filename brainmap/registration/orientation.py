"""Which way a stored brain lies: the letters of its axes, found by laying it onto the atlas every way.

A brain and its mirror image look alike, so of the 48 ways to store a volume 24 can be told apart. Left and
right are assumed as they are in an image that is not mirrored, and the user is told how to settle it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from brainmap.coords import (
    ATLAS_ORIENTATION,
    ORIENTATIONS,
    axis_map,
    matching_orientations,
    mirrored,
    parse_known_letters,
    parse_orientation,
)
from brainmap.errors import DataError
from brainmap.registration.coarse_fit import CoarseImage, Placement, fit, likeness, nearest_turn, place
from brainmap.registration.grid import SampleGrid, resample_volume
from brainmap.registration.prepare import Prepared, block_mean, prepare

if TYPE_CHECKING:
    from brainmap.atlas.atlas import Atlas
    from brainmap.image.volume import Volume

__all__ = ["OrientationFound", "brain_size", "check_orientation", "find_orientation", "settle_orientation"]

log = logging.getLogger(__name__)

#: Labelled volume of the Allen mouse atlas, rounded; lengths in this room are those of such a brain.
_MOUSE_MM3 = 500.0
#: Voxel size of the prepared images, um; they are compared three times, then twice as coarse.
_VOXEL_UM = 200.0
_COARSEST, _COARSE = 3, 2
_STEPS, _FINAL_STEPS = 12, 15
#: So many are looked at again, more closely.
_FINALISTS = 5
#: A lead below this is no answer.
_CLEAR_MARGIN = 0.04

_TURNS = {letters: axis_map(letters).matrix for letters in ORIENTATIONS}
_SIDES = {"a": "front", "p": "back", "s": "top", "i": "bottom", "r": "right", "l": "left"}


@dataclass(frozen=True)
class OrientationFound:
    """How well an image fits an atlas in different orientations.

    Attributes
    ----------
    best : str
        The orientation that fits best.
    mirror : str
        The same with left and right exchanged: it fits as well.
    ranked : tuple of (str, float)
        All that were tried with their likeness (0 to 1), best first. The first few were compared closely.
    margin : float
        Likeness of the best above that of the next.
    known : str
        What was known before, a dot for each letter that was not.
    """

    best: str
    mirror: str
    ranked: tuple[tuple[str, float], ...]
    margin: float
    known: str = "..."

    @property
    def clear(self) -> bool:
        """Whether the best one is an answer rather than a guess."""
        return self.margin >= _CLEAR_MARGIN

    @property
    def side_known(self) -> bool:
        """Whether left and right were told."""
        return any(letter in "rl" for letter in self.known)

    def score(self, letters: str) -> float:
        """Likeness in an orientation or its mirror image; 0 if neither was tried."""
        scores = dict(self.ranked)
        return max(scores.get(letters, 0.0), scores.get(mirrored(letters), 0.0))

    def sentences(self) -> tuple[str, ...]:
        """What was found and what cannot be known, in words."""
        said = [f"the stored axes start at the {_named(self.best)}: orientation {self.best}{self._lead()}"]
        if not self.clear:
            said.append(
                f"that is not clearly better: give --orientation with three letters (it may be {self._others()})"
            )
        if not self.side_known:
            said.append(self._about_sides())
        return tuple(said)

    def _lead(self) -> str:
        if len(self.ranked) < 2:
            return ""
        (_, first), (other, second) = self.ranked[:2]
        return f" (likeness to the atlas {first:.2f}; the next, {other}, {second:.2f})"

    def _others(self) -> str:
        close = [letters for letters, score in self.ranked if self.ranked[0][1] - score < _CLEAR_MARGIN]
        return ", ".join(close[:-1]) + f" or {close[-1]}" if len(close) > 1 else close[0]

    def _about_sides(self) -> str:
        axis = next(i for i, letter in enumerate(self.best) if letter in "rl")
        options = [
            "".join(side if i == axis else "." for i in range(3))
            for side in (self.best[axis], self.mirror[axis])
        ]
        return (
            f"left and right are assumed, not found, as a brain looks like its mirror image: {self.best} holds if the "
            f"image is not mirrored (x to the right, y down, z away from the viewer), otherwise it is {self.mirror}; "
            f"settle it with the letter you know: --orientation {options[0]} if the {'zyx'[axis]} axis starts at the "
            f"animal's {_SIDES[self.best[axis]]}, {options[1]} if it starts at the {_SIDES[self.mirror[axis]]}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``registration.json``."""
        return {
            "known": self.known,
            "best": self.best,
            "mirror": self.mirror,
            "margin": self.margin,
            "clear": self.clear,
            "ranked": [list(pair) for pair in self.ranked],
        }


def find_orientation(
    volume: Volume, atlas: Atlas, *, mask: Volume | None = None, known: str = "..."
) -> OrientationFound:
    """Find how the axes of a stored brain lie, by a coarse registration of every way it can lie.

    Parameters
    ----------
    volume : Volume
        The brain at the channel to register; an orientation it carries is not looked at.
    atlas : Atlas
    mask : Volume, optional
        Tissue to use (nonzero), in the same um as the volume.
    known : str
        Three letters with a dot for each that is not known, e.g. ``"..l"``; or ``"auto"``. Unless it says
        left or right, only orientations of an image that is not mirrored are tried: the others fit as well.

    Raises
    ------
    UsageError
        If no orientation has the known letters.
    DataError
        If the image shows no tissue.
    """
    known = parse_known_letters(known)
    candidates = matching_orientations(known)
    if not any(letter in "rl" for letter in known):
        candidates = tuple(letters for letters in candidates if np.linalg.det(_TURNS[letters]) > 0)
    return _search(volume, atlas, mask, candidates, known)


def check_orientation(
    volume: Volume, atlas: Atlas, letters: str, *, mask: Volume | None = None
) -> OrientationFound:
    """Compare a given orientation with all others of its handedness.

    Raises
    ------
    UsageError
        If the letters are no orientation.
    DataError
        If the image shows no tissue.
    """
    letters = parse_orientation(letters)
    side = np.linalg.det(_TURNS[letters])
    candidates = tuple(other for other in ORIENTATIONS if np.linalg.det(_TURNS[other]) * side > 0)
    return _search(volume, atlas, mask, candidates, letters)


@dataclass(frozen=True)
class Settled:
    """The orientation a registration works with, and how it came about."""

    letters: str
    search: OrientationFound | None
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any] | None:
        """What ``registration.json`` says about it; None if no search was possible."""
        if self.search is None:
            return None
        sentences = self.search.sentences() if "." in self.search.known else ()
        return self.search.to_json() | {"sentences": list(sentences), "warnings": list(self.warnings)}


def settle_orientation(volume: Volume, atlas: Atlas, asked: str, mask: Volume | None = None) -> Settled:
    """Find the letters that are not known, or check those that are.

    Parameters
    ----------
    asked : str
        As `brainmap.coords.parse_known_letters` returns it.

    Raises
    ------
    DataError
        If letters are to be found and no orientation fits clearly better than the others.
    """
    if "." not in asked:
        return _checked(volume, atlas, asked, mask)
    found = find_orientation(volume, atlas, mask=mask, known=asked)
    if not found.clear:
        raise DataError(
            f"the orientation of {volume.name} cannot be told{found._lead()}: give --orientation with three letters "
            f"(it may be {found._others()}), or a better channel, voxel size or mask"
        )
    said = found.sentences()
    log.info("%s", said[0])
    return Settled(found.best, found, said[1:])


def _checked(volume: Volume, atlas: Atlas, letters: str, mask: Volume | None) -> Settled:
    try:
        found = check_orientation(volume, atlas, letters, mask=mask)
    except DataError as error:
        # Too little to compare: the registration itself says what is wrong with the image.
        log.debug("the orientation of %s was not checked: %s", volume.name, error)
        return Settled(letters, None, ())
    lead = found.score(found.best) - found.score(letters)
    if found.best == letters or lead < _CLEAR_MARGIN:
        return Settled(letters, found, ())
    return Settled(
        letters,
        found,
        (
            f"the given orientation {letters} fits the atlas worse (likeness {found.score(letters):.2f}) than "
            f"{found.best} or its mirror image {found.mirror} ({found.score(found.best):.2f}): check --orientation",
        ),
    )


def brain_size(atlas: Atlas) -> float:
    """Size of the atlas's brain in mouse brains: lengths chosen for the mouse are multiplied by it."""
    voxels = float(np.count_nonzero(atlas.annotation))
    return float((voxels * np.prod(atlas.resolution_um) * 1e-9 / _MOUSE_MM3) ** (1 / 3))


def _search(
    volume: Volume, atlas: Atlas, mask: Volume | None, candidates: tuple[str, ...], known: str
) -> OrientationFound:
    """Lay the image onto the template in each candidate orientation and rank them."""
    template, voxel_um = _prepared_template(atlas)
    sample = _prepared_sample(volume, mask, voxel_um, brain_size(atlas))
    coarsest, coarse = (
        (CoarseImage.of(sample, voxel_um, factor), CoarseImage.of(template, voxel_um, factor))
        for factor in (_COARSEST, _COARSE)
    )
    starts = place(*coarsest, [_TURNS[letters] for letters in candidates])
    starts += [replace(start, polarity=-1) for start in starts]
    placed = [fit(*coarsest, start, _STEPS, affine=False) for start in starts]
    first = _best_of(coarsest, placed, candidates)
    chosen = sorted(first, key=lambda letters: -first[letters][0])[:_FINALISTS]
    if known in first and known not in chosen:
        chosen.append(known)
    closer = [first[letters][1].refined(coarsest, coarse) for letters in chosen]
    for affine in (False, True):
        closer = [fit(*coarse, start, _FINAL_STEPS, affine=affine) for start in closer]
    final = _best_of(coarse, closer, candidates)
    ranked = sorted(((o, round(score, 4)) for o, (score, _) in final.items()), key=lambda pair: -pair[1])
    limit = ranked[-1][1] if ranked else 1.0
    # Those not looked at closely come after those that were.
    others = {o: min(first[o][0], limit) if o in first else 0.0 for o in candidates if o not in final}
    ranked += sorted(((o, round(score, 4)) for o, score in others.items()), key=lambda pair: -pair[1])
    best = ranked[0][0]
    margin = ranked[0][1] - ranked[1][1] if len(ranked) > 1 else 1.0
    return OrientationFound(best, mirrored(best), tuple(ranked), round(margin, 4), known)


def _best_of(
    pair: tuple[CoarseImage, CoarseImage], placements: list[Placement], candidates: tuple[str, ...]
) -> dict[str, tuple[float, Placement]]:
    """The likest placement of each orientation; a fit may have turned the brain over into another one."""
    turns = {letters: _TURNS[letters] for letters in candidates}
    best: dict[str, tuple[float, Placement]] = {}
    for placement in placements:
        letters = nearest_turn(placement.matrix, _TURNS)
        score = likeness(*pair, placement)
        if letters in turns and (letters not in best or score > best[letters][0]):
            best[letters] = score, placement
    return best


def _prepared_template(atlas: Atlas) -> tuple[Prepared, float]:
    """The template in cubic voxels of about `_VOXEL_UM` (times the size of the brain), and their size."""
    size, finest = brain_size(atlas), min(atlas.resolution_um)
    factor = max(1, round(_VOXEL_UM * size / finest))
    voxel_um = factor * finest
    image = _cubic(block_mean(atlas.reference, factor), atlas, finest)
    labelled = _cubic(block_mean(atlas.annotation > 0, factor), atlas, finest) > 0.5
    return prepare(image, _cube(voxel_um / size), None, labelled), voxel_um


def _cubic(image: NDArray[np.float32], atlas: Atlas, finest: float) -> NDArray[np.float32]:
    stretch = [r / finest for r in atlas.resolution_um]
    if max(stretch) < 1.01:
        return image
    stretched: NDArray[np.float32] = ndimage.zoom(image, stretch, order=1, mode="nearest", grid_mode=True)
    return stretched


def _prepared_sample(volume: Volume, mask: Volume | None, voxel_um: float, size: float) -> Prepared:
    """The brain on a grid of cubic voxels along its stored axes."""
    # Cubes are the same in any orientation: the letters mean nothing yet.
    grid = SampleGrid.over(volume, ATLAS_ORIENTATION, _cube(voxel_um))
    tissue = None if mask is None else resample_volume(mask, grid) > 0.5
    return prepare(resample_volume(volume, grid), _cube(voxel_um / size), 0, tissue)


def _cube(side: float) -> tuple[float, float, float]:
    return side, side, side


def _named(letters: str) -> str:
    first, second, third = (_SIDES[letter] for letter in letters)
    return f"{first}, {second} and {third}"
