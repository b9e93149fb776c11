"""What people marked in a run, held against its candidates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brainmap.coords import vox_to_um
from brainmap.errors import DataError
from brainmap.image.mask import Mask
from brainmap.infer.engine.results import iter_candidates
from brainmap.infer.peaks import reaches
from brainmap.points.matching import match_points
from brainmap.points.recalibration import Marked
from brainmap.points.table import Points, read_locations
from brainmap.run.cells import ImageFrame, located
from brainmap.run.request import Roi

__all__ = ["MARKS_CSV", "MARK_COLUMNS", "SAMPLES", "WORDS", "Marks", "match_marks", "read_marks"]

MARKS_CSV = "marks.csv"
#: Of the table as it is written; reading needs the first four.
MARK_COLUMNS = ("z", "y", "x", "mark", "at", "who", "sample")
YES, NO, UNSURE, MISSED = "yes", "no", "unsure", "missed"
WORDS = (YES, NO, UNSURE, MISSED)
# How a mark's place was chosen; hard ones say nothing of rates.
HARD, SAMPLES = "hard", ("random", "hard", "free", "")


@dataclass(frozen=True)
class Marks:
    """Marks of a run as columns.

    Attributes
    ----------
    zyx_vox : float64 array (n, 3)
        Level-0 voxel indices.
    word : array of str (n,)
        `yes`, `no` or `missed`.
    unsure, hard, outside : int
        How many were left out: unsure ones, those of the hard sample, those outside of what was analysed.
    """

    zyx_vox: NDArray[np.float64]
    word: NDArray[np.str_]
    unsure: int
    hard: int
    outside: int = 0

    def __len__(self) -> int:
        return len(self.word)

    def number(self, word: str) -> int:
        """How many marks say this."""
        return int((self.word == word).sum())


def read_marks(path: str | Path, frame: ImageFrame) -> Marks:
    """Read a table of marks.

    Parameters
    ----------
    path : path
        CSV with the columns `z y x mark` and optionally `sample`; of several marks at one place the last counts.
    frame : ImageFrame
        Of the run.

    Raises
    ------
    NotFoundError, DataError
        If it is not there, lacks a column, or holds an unknown word or a place outside the image.
    """
    path = Path(path)
    table = read_locations(path)
    if missing := [name for name in ("z", "y", "x", "mark") if name not in table]:
        raise DataError(f"{path} lacks the column {', '.join(missing)}: marks need z,y,x,mark")
    word = _words(path, table, "mark", WORDS)
    sample = _words(path, table, "sample", SAMPLES) if "sample" in table else np.full(len(word), "")
    zyx = table.zyx_vox
    wrong = np.flatnonzero(((zyx < -0.5) | (zyx > np.array(frame.shape) - 0.5)).any(axis=1))
    if len(wrong):
        place = ", ".join(f"{v:g}" for v in zyx[wrong[0]])
        size = " x ".join(map(str, frame.shape))
        raise DataError(
            f"{path}: the mark in row {wrong[0] + 1} at z,y,x {place} lies outside the image of {size} voxels; "
            "marks are in level-0 voxels"
        )
    # The last of those at one place: people change their mind.
    last = np.sort(len(zyx) - 1 - np.unique(zyx[::-1], axis=0, return_index=True)[1])
    zyx, word, sample = zyx[last], word[last], sample[last]
    unsure, hard = word == UNSURE, sample == HARD
    keep = ~unsure & ~hard
    return Marks(zyx[keep], word[keep], int(unsure.sum()), int((hard & ~unsure).sum()))


def _words(path: Path, table: Points, name: str, known: tuple[str, ...]) -> NDArray[np.str_]:
    values = np.array([str(value).strip().lower() for value in table[name]], dtype=str)
    values = np.where(values == "nan", "", values)
    unknown = np.flatnonzero(~np.isin(values, known))
    if len(unknown):
        allowed = ", ".join(word for word in known if word)
        raise DataError(
            f"{path}: {str(values[unknown[0]])!r} in row {unknown[0] + 1} is no {name}; it must be one of {allowed}"
        )
    return values


def inside_analysed(marks: Marks, frame: ImageFrame, roi: Roi | None, mask: Mask | None) -> Marks:
    """The marks in what the run analysed: elsewhere nothing could be found."""
    keep = np.ones(len(marks), bool)
    if roi is not None:
        for axis, span in enumerate(roi.slices(frame.shape)):
            keep &= (marks.zyx_vox[:, axis] >= span.start - 0.5) & (marks.zyx_vox[:, axis] < span.stop - 0.5)
    if mask is not None:
        keep &= mask.contains(vox_to_um(marks.zyx_vox, frame.voxel_um, frame.origin_um))
    return Marks(marks.zyx_vox[keep], marks.word[keep], marks.unsure, marks.hard, int((~keep).sum()))


def match_marks(
    run: Path, marks: Marks, frame: ImageFrame, mask: Mask | None, radius_um: float, present: float
) -> tuple[Marked, int]:
    """Match marks to the nearest candidates, one to one.

    Parameters
    ----------
    run : Path
        Run folder with its candidates.
    marks : Marks
    frame, mask
        Of the run.
    radius_um : float
        Farthest candidate that a mark can mean.
    present : float
        The threshold at which cells were shown.

    Returns
    -------
    marked : Marked
    lost : int
        Marks "no" that lie at no candidate.
    """
    places = vox_to_um(marks.zyx_vox, frame.voxel_um, frame.origin_um)
    near, score = _candidates_near(run, places, frame, mask, radius_um)
    pairs = match_points(places, near, radius_um)
    found = np.full(len(marks), np.nan)
    found[pairs.index_a] = score[pairs.index_b]
    matched = np.isfinite(found)
    # What is called missed but is shown was overlooked by the person: it is a cell.
    shown = matched & reaches(np.nan_to_num(found), present)
    yes = (marks.word == YES) | ((marks.word == MISSED) & shown)
    no, missed = marks.word == NO, (marks.word == MISSED) & matched & ~shown
    asked = matched & (yes | no)
    marked = Marked(found[asked], yes[asked], found[missed], int((~matched & ~no).sum()))
    return marked, int((~matched & no).sum())


def _candidates_near(
    run: Path, places: NDArray[np.float64], frame: ImageFrame, mask: Mask | None, radius_um: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Places in um (n, 3) and scores (n,) of the candidates within a radius of any of the places."""
    from scipy.spatial import cKDTree

    found, scores = [np.empty((0, 3))], [np.empty(0)]
    if len(places):
        tree = cKDTree(places)
        for piece in located(iter_candidates(run), frame, mask):
            um = piece.zyx_um
            near = np.isfinite(tree.query(um, distance_upper_bound=radius_um * (1 + 1e-9))[0])
            found.append(um[near])
            scores.append(piece["score"][near].astype(np.float64))
    return np.concatenate(found), np.concatenate(scores)
