"""A finished registration: its folder, its numbers, and points between the sample and the atlas."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from brainmap.atlas.atlas import Atlas
from brainmap.atlas.regions import label_volumes
from brainmap.coords import matching_orientations
from brainmap.errors import DataError, NotFoundError, UsageError
from brainmap.files import read_json
from brainmap.registration.grid import SampleGrid
from brainmap.registration.partial import Part
from brainmap.registration.quality import Judgement
from brainmap.registration.transforms import Transforms

if TYPE_CHECKING:
    from brainmap.image.volume import Volume

__all__ = ["FORMAT", "PARTS", "REGISTRATION_JSON", "Registration"]

REGISTRATION_JSON = "registration.json"
FORMAT = 1
# Images of a registration, and all by which its folder is known.
IMAGES = ("annotation.ome.zarr", "hemispheres.ome.zarr")
PARTS = (REGISTRATION_JSON, *IMAGES)
_ANEW = "register the brain anew with --overwrite"


@dataclass(frozen=True)
class Registration:
    """A finished registration in its folder.

    Attributes
    ----------
    folder : Path
    grid : SampleGrid
        The registration grid in the sample's own axes.
    record : dict
        Content of ``registration.json``.
    """

    folder: Path
    grid: SampleGrid
    record: dict[str, Any] = field(repr=False)

    @classmethod
    def load(cls, folder: str | Path) -> Registration:
        """Open the folder of a finished registration.

        Raises
        ------
        NotFoundError
            If the folder holds no finished registration.
        DataError
            If its record is damaged.
        """
        path = Path(folder) / REGISTRATION_JSON
        if not path.is_file() and any((Path(folder) / name).exists() for name in PARTS):
            raise DataError(f"{folder} has lost its {REGISTRATION_JSON}: {_ANEW}")
        if not path.is_file():
            raise NotFoundError(
                f"{folder} holds no finished registration ({REGISTRATION_JSON} is missing): give the folder that "
                "'brainmap register' wrote, or the folder 'registration' of a run"
            )
        try:
            record = read_json(path)
            if record["format"] != FORMAT:
                raise DataError(
                    f"{path} has format {record['format']}, this brainmap reads {FORMAT}: {_ANEW}"
                )
            return cls(Path(folder), SampleGrid.from_json(record["grid"]), record)
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, DataError) and _ANEW in str(error):
                raise
            raise DataError(f"{path} is damaged ({error}): {_ANEW}") from error

    def check_whole(self) -> None:
        """Refuse a registration of which files are gone.

        Raises
        ------
        DataError
            Naming the first.
        """
        files = [str(name) for name in self.record.get("transforms", ())]
        lost = [name for name in files if not (self.folder / name).is_file()]
        lost += [name for name in IMAGES if not (self.folder / name / "zarr.json").is_file()]
        if lost:
            raise DataError(f"the registration {self.folder} has lost {lost[0]}: {_ANEW}")

    @property
    def fingerprint(self) -> str:
        """Identifies input, atlas and options; goes into the record of a run that uses this registration."""
        return str(self.record["fingerprint"])

    @property
    def atlas_name(self) -> str:
        """Name of the atlas it was made with."""
        return str(self.record["atlas"]["name"])

    @property
    def atlas_folder(self) -> str:
        """Folder of the atlas it was made with, or its name where the folder is gone."""
        folder = str(self.record["atlas"].get("folder", ""))
        return folder if Path(folder).is_dir() else self.atlas_name

    @property
    def judgement(self) -> Judgement:
        """Verdict and reasons."""
        return Judgement(self.record["verdict"], tuple(self.record["reasons"]))

    @property
    def orientation_warnings(self) -> tuple[str, ...]:
        """What a user should know about the orientation: an assumed left and right, letters that fit badly."""
        return tuple((self.record.get("orientation_search") or {}).get("warnings", ()))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What whoever uses this registration has to be told, as sentences: verdict, missing parts, landmarks."""
        found = [] if self.judgement.verdict == "good" else [self.judgement.sentence()]
        if not self.part.whole:
            words = self.record["part"]["part"]
            found.append(f"Registered as the {words}: what is missing has no volume and no density")
        fit = self.record.get("landmarks") or {}
        left_out, before = fit.get("median_left_out_um"), fit.get("median_before_um")
        if left_out is not None and left_out > before:
            found.append(
                f"The landmarks do not support each other: left out in turn, they miss by {left_out:.0f} um, before "
                f"the refinement by {before:.0f} um (medians); check them, or add more"
            )
        return tuple(found)

    def lines(self) -> list[tuple[str, str]]:
        """What the command line prints."""
        quality, fit = self.record["quality"], self.record.get("landmarks")
        found = [
            ("registration", str(self.folder)),
            ("verdict", self.judgement.verdict),
            ("shows", self.record["part"]["part"] if "part" in self.record else "whole brain"),
            ("outlines", f"overlap {quality['mask_dice']:.2f}"),
        ]
        if quality.get("edge_mean_um") is not None:
            apart = f"{quality['edge_mean_um']:.0f} um apart on average, 95 % within {quality['edge_p95_um']:.0f} um"
            found[-1] = ("outlines", f"overlap {quality['mask_dice']:.2f}, {apart}")
        if fit:
            found.append(
                ("landmarks", f"{fit['pairs']}, missed by {fit['median_before_um']:.0f} um before and "
                 f"{fit['median_after_um']:.0f} um after (medians)")
            )  # fmt: skip
        return found

    @property
    def part(self) -> Part:
        """What the sample shows of the brain."""
        known = self.record.get("part") or {}
        return Part(known.get("side", "both"), acronyms=tuple(known.get("missing", ())))

    @cached_property
    def transforms(self) -> Transforms:
        """The transforms; fields are read on first use."""
        return Transforms(self.folder)

    def to_atlas_um(self, points_um: ArrayLike) -> NDArray[np.float64]:
        """Map points from the sample to the atlas.

        Parameters
        ----------
        points_um : array (N, 3)
            Sample um (``index * scale + translation``), z, y, x, in the sample's own axes.

        Returns
        -------
        float64 array (N, 3)
            Atlas um, not rounded. Points outside the tissue continue the nearest displacement, so they
            are well defined and may lie outside the atlas's box; NaN stays NaN.
        """
        return self.transforms.to_atlas_um(self.grid.um_to_asr_edge_um(points_um))

    def to_sample_um(self, points_atlas_um: ArrayLike) -> NDArray[np.float64]:
        """Map points from the atlas to the sample; the other direction of `to_atlas_um`."""
        return self.grid.asr_edge_um_to_um(self.transforms.to_sample_edge_um(points_atlas_um))

    @property
    def annotation(self) -> NDArray[np.uint32]:
        """Structure ids warped to the sample, on the registration grid in the sample's own axes."""
        return self._stored("annotation")

    @property
    def hemispheres(self) -> NDArray[np.uint8]:
        """Hemispheres (1 left, 2 right, 0 outside the atlas) warped to the sample in the same way."""
        return self._stored("hemispheres")

    def volumes_mm3(
        self,
        atlas: Atlas,
        *,
        mask: NDArray[np.bool_] | None = None,
        box_um: tuple[tuple[float, float], tuple[float, float], tuple[float, float]] | None = None,
    ) -> NDArray[np.float64]:
        """Volume of each structure in the sample, per hemisphere; see `brainmap.atlas.regions.label_volumes`.

        What the sample does not show (see `part`) has no volume.

        Parameters
        ----------
        atlas : Atlas
            The atlas of this registration.
        mask : bool array, optional
            What was analysed, on the registration grid in the sample's own axes.
        box_um : three (low, high) pairs, optional
            Region of interest in sample um; voxels partly inside count by their share.
        """
        if mask is not None and mask.shape != self.grid.shape:
            raise UsageError(f"the mask has shape {mask.shape}, the registration grid {self.grid.shape}")
        weights = self.grid.lengths_um(box_um)
        annotation, hemispheres, part = self.annotation, self.hemispheres, self.part
        if not part.whole:
            there = ~part.excludes(atlas, annotation, hemispheres)
            mask = there if mask is None else mask & there
        return label_volumes(annotation, hemispheres, atlas.structures, weights, mask)

    def check_belongs(self, volume: Volume, orientation: str | None = None) -> None:
        """Refuse a registration that was made from another brain than `volume`.

        Raises
        ------
        UsageError
            If position or size in um, or the orientation, differ.
        """
        grid = self.grid
        other = SampleGrid.over(
            volume, orientation or volume.orientation or grid.orientation, grid.resolution_asr_um
        )
        slack = np.asarray(grid.resolution_um) / 2
        same = np.all(np.abs(np.subtract(grid.corner_um, other.corner_um)) <= slack)
        same &= np.all(np.abs(np.subtract(grid.extent_um, other.extent_um)) <= slack)
        if not same:
            raise UsageError(
                f"the registration {self.folder} does not belong to {volume.name}: it is of an image of "
                f"{_size(grid)} starting at {_start(grid)} um, this one has {_size(other)} starting at "
                f"{_start(other)} um"
            )
        if other.orientation != grid.orientation:
            raise UsageError(
                f"the registration {self.folder} was made with orientation {grid.orientation}, "
                f"not {other.orientation}"
            )

    def check_orientation(self, known: str) -> None:
        """Refuse a registration whose orientation has other letters than the known ones (a dot fits any).

        Raises
        ------
        UsageError
            If they contradict each other.
        """
        if self.grid.orientation not in matching_orientations(known):
            raise UsageError(
                f"the registration {self.folder} was made with orientation {self.grid.orientation}, not {known}"
            )

    def _stored(self, name: str) -> NDArray[Any]:
        from brainmap.image.volume import Volume

        volume = Volume.open(self.folder / f"{name}.ome.zarr")
        z, y, x = (slice(0, n) for n in volume.shape)
        return volume.read(z, y, x)


def _size(grid: SampleGrid) -> str:
    return " x ".join(f"{e:.0f}" for e in grid.extent_um) + " um"


def _start(grid: SampleGrid) -> str:
    return ", ".join(f"{c:.0f}" for c in grid.corner_um)
