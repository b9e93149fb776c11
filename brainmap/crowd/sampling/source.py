"""A finished run as a source of tiles: its brain, its intensity model, its region labels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from brainmap.atlas.atlas import Atlas
from brainmap.atlas.region_sets import Hierarchy
from brainmap.atlas.structures import Structures
from brainmap.errors import DataError, NotFoundError, UsageError
from brainmap.image.intensity import Intensity
from brainmap.image.volume import Volume
from brainmap.infer.engine.engine import INTENSITY_FILE
from brainmap.points.table import iter_points, points_path
from brainmap.registration.registered import Registration
from brainmap.run.request import Roi
from brainmap.run_folder import BLOCKS_DIR, REGISTRATION_DIR, RunRecord

__all__ = ["SampledBrain", "TileCells", "find_regions", "open_brains"]

log = logging.getLogger(__name__)


class TileCells(NamedTuple):
    """A run's cells that show on tiles: index of the tile (n,), x, y in tile pixels (n, 2), score (n,)."""

    tile: NDArray[np.int64]
    xy: NDArray[np.float64]
    score: NDArray[np.float32]


@dataclass(frozen=True)
class SampledBrain:
    """One animal.

    Parameters
    ----------
    run : Path
        The run folder.
    name : str
        Of the brain; unique among those sampled together.
    volume : Volume
        Opened as detection opened it: channel and voxel size.
    intensity : Intensity
        The run's own: what detection normalised with.
    registration : Registration
    atlas : Atlas
    cell_diameter_um : float
        Typical cell, as the run took it.
    detector : str
        Name or folder of the detector that the run used.
    box : three slices
        Level-0 voxels that the run analysed.
    """

    run: Path
    name: str
    volume: Volume
    intensity: Intensity
    registration: Registration
    atlas: Atlas
    cell_diameter_um: float
    detector: str
    box: tuple[slice, slice, slice]

    @classmethod
    def open(cls, run: str | Path, brains: Path | None = None) -> SampledBrain:
        """Open a finished run and the brain it was made from.

        Parameters
        ----------
        run : path
            Run folder.
        brains : Path, optional
            Folder to look for the brain in, by its name, where it was moved.

        Raises
        ------
        NotFoundError
            No run, no registration, or the brain is not where the run found it.
        DataError
            The run is not finished, or another brain lies in the place of its own.
        """
        run = Path(run)
        record = RunRecord.load(run)
        if record.status != "complete":
            raise DataError(
                f"the run {run} is not finished (status: {record.status}): give the brainmap detect command "
                "that began it again, it goes on from where it stopped"
            )
        registration = _registration(run, record)
        volume = _volume(run, record, brains)
        if volume.fingerprint() != record.fingerprints.get("volume"):
            raise DataError(
                f"{volume.url} is not the image that the run {run} was made from: it changed, or another one "
                "took its place; detect its cells anew"
            )
        registration.check_belongs(volume, registration.grid.orientation)
        model = run / BLOCKS_DIR / INTENSITY_FILE
        if not model.is_file():
            raise NotFoundError(
                f"the run {run} has lost {BLOCKS_DIR}/{INTENSITY_FILE}, by which tiles are made as bright as "
                "detection saw them; detect anew with --overwrite"
            )
        roi = record.parameters.get("roi")
        box = Roi(**{k: tuple(v) for k, v in roi.items()}).slices(volume.shape) if roi else None
        return cls(
            run=run,
            name=volume.name,
            volume=volume,
            intensity=Intensity.load(model),
            registration=registration,
            atlas=Atlas.open(registration.atlas_folder),
            cell_diameter_um=float(record.results["cell_diameter_um"]),
            detector=str(record.parameters["detector"]),
            box=box or (slice(0, volume.shape[0]), slice(0, volume.shape[1]), slice(0, volume.shape[2])),
        )

    @property
    def structures(self) -> Structures:
        """Ontology of the run's atlas."""
        return self.atlas.structures

    def labels(self) -> NDArray[np.uint32]:
        """Structure ids on the registration grid, in the sample's axes; 0 for what the sample does not show."""
        labels = self.registration.annotation
        part = self.registration.part
        if not part.whole:
            labels = np.where(part.excludes(self.atlas, labels, self.registration.hemispheres), 0, labels)
        return labels

    def grid_index(self, axis: int) -> NDArray[np.int64]:
        """Voxel of the registration grid that holds each level-0 voxel along an axis (0, 1, 2)."""
        grid, volume = self.registration.grid, self.volume
        um = np.arange(volume.shape[axis]) * volume.voxel_um[axis] + volume.origin_um[axis]
        index = np.floor((um - grid.corner_um[axis]) / grid.resolution_um[axis]).astype(np.int64)
        return np.clip(index, 0, grid.shape[axis] - 1)

    def tile(self, z: int, y0: int, x0: int, size: int) -> NDArray[np.float32]:
        """Normalised intensity of a square of one section, exactly as detection normalises it.

        Parameters
        ----------
        z, y0, x0 : int
            Section and first row and column, level-0 voxels.
        size : int
            Height and width, px.

        Returns
        -------
        ndarray of float32, shape (size, size)
            0..1, see `brainmap.image.intensity`.
        """
        y, x = slice(y0, y0 + size), slice(x0, x0 + size)
        grey = self.volume.read(slice(z, z + 1), y, x)[0]
        rows, columns = (np.arange(part.start, part.stop, dtype=np.float64) for part in (y, x))
        return self.intensity.window(rows, columns).normalise(grey, float(z))

    def cells_on(
        self, z: NDArray[np.int64], y0: NDArray[np.int64], x0: NDArray[np.int64], size: int
    ) -> TileCells:
        """Cells of the run's table that show in tiles: centres within half a cell of a tile's section.

        Parameters
        ----------
        z, y0, x0 : ndarray of int64, shape (n,)
        size : int
            Height and width, px.
        """
        found = [TileCells(np.empty(0, np.int64), np.empty((0, 2)), np.empty(0, np.float32))]
        half = self.cell_diameter_um / 2 / self.volume.voxel_um[0]
        order = np.argsort(z, kind="stable")
        for piece in iter_points(points_path(self.run)):
            cells = piece.zyx_vox
            first = np.searchsorted(z[order], cells[:, 0] - half)
            last = np.searchsorted(z[order], cells[:, 0] + half, side="right")
            # A cell shows in tiles of few sections: pairs of the two stay as few as there are cells near sections.
            row = np.repeat(np.arange(len(cells)), last - first)
            step = np.arange(len(row)) - np.repeat(np.cumsum(last - first) - (last - first), last - first)
            tile = order[first[row] + step]
            xy = np.column_stack([cells[row, 2] - x0[tile], cells[row, 1] - y0[tile]])
            inside = ((xy >= -0.5) & (xy < size - 0.5)).all(axis=1)
            found.append(TileCells(tile[inside], xy[inside], piece["score"][row[inside]]))
        return TileCells(*(np.concatenate(column) for column in zip(*found, strict=True)))


def open_brains(runs: Sequence[str | Path], brains: Path | None = None) -> list[SampledBrain]:
    """Open several runs; brains of one name are told apart by their run folders."""
    found = [SampledBrain.open(run, brains) for run in runs]
    names = [brain.name for brain in found]
    named = [
        brain
        if names.count(brain.name) == 1
        else replace(brain, name=brain.run.resolve().name.removesuffix(".brainmap"))
        for brain in found
    ]
    names = [brain.name for brain in named]
    return [
        brain
        if names.count(brain.name) == 1
        else replace(brain, name=f"{brain.name}_{names[:i].count(brain.name) + 1}")
        for i, brain in enumerate(named)
    ]


def find_regions(structures: Structures, names: Sequence[str], given: bool) -> dict[str, NDArray[np.int64]]:
    """Ids of regions and all their descendants, by the regions' acronyms.

    Parameters
    ----------
    structures : Structures
    names : sequence of str
        Acronyms, ids or full names.
    given : bool
        Whether a person named them; if not, regions that the atlas lacks are left out.

    Raises
    ------
    UsageError
        A region that the atlas lacks, with those written alike; two of which one lies inside the other.
    DataError
        No region is left.
    """
    present = np.ones(len(structures), bool)
    hierarchy = Hierarchy(
        structures.id, structures.acronym, structures.name, structures.parent_id, structures.depth, present
    )
    by_name = {name.lower(): row for row, name in reversed(list(enumerate(structures.name)))}
    found: dict[str, NDArray[np.int64]] = {}
    for text in names:
        try:
            row = hierarchy.row(text)
        except UsageError:
            if text.lower() in by_name:
                row = by_name[text.lower()]
            elif given:
                raise
            else:
                log.warning("the atlas has no %s: no tiles of it", text)
                continue
        ids = structures.descendants(int(structures.id[row]))
        for other, theirs in found.items():
            if np.isin(ids, theirs).any():
                raise UsageError(f"--regions: {text} and {other} overlap; a tile belongs to one region")
        found[structures.acronym[row]] = ids
    if not found:
        raise DataError(
            f"the atlas has none of {', '.join(names)}: name regions of yours with --regions, as regions.csv has them"
        )
    return found


def _registration(run: Path, record: RunRecord) -> Registration:
    given = record.parameters.get("registration")
    if given is None and record.parameters.get("atlas") is None:
        raise NotFoundError(
            f"the run {run} has no registration (it was made with --no-atlas): tiles are cut by region; "
            "detect again with an atlas"
        )
    return Registration.load(given or run / REGISTRATION_DIR)


def _volume(run: Path, record: RunRecord, brains: Path | None) -> Volume:
    table: dict[str, Any] = next((piece.meta for piece in iter_points(points_path(run), 1)), {})
    # The table names the volume by its absolute address, the record as it was typed.
    address = str(table.get("brain") or record.parameters["brain"])
    place = address if brains is None else str(brains / Path(address.rstrip("/")).name)
    try:
        return Volume.open(
            place, channel=record.parameters.get("channel"), voxel_um=record.parameters.get("voxel_um")
        )
    except NotFoundError as error:
        raise NotFoundError(
            f"the brain of the run {run} is not at {place} any more: put it back, or say with --brains in which "
            "folder it lies now"
        ) from error
