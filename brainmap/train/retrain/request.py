"""What `brainmap retrain` is asked for: settings, input, and where the result goes."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from brainmap.errors import NotFoundError, UsageError
from brainmap.files import fingerprint, read_json
from brainmap.gt.settings import GtSettings, read_gt_settings
from brainmap.infer.detector import PLAIN_PROMINENCE, SPEC_FILE, Detector, ProminenceWeights
from brainmap.infer.peaks import PLAIN_FACE, FaceWeights
from brainmap.settings import read_settings
from brainmap.tiles.tiles import Tiles
from brainmap.train.commands import check_detector_target, network_path
from brainmap.train.learn.finetune import FinetuneConfig
from brainmap.train.learn.loop import CHECKPOINT, WEIGHTS
from brainmap.train.retrain.lineage import Lineage

__all__ = ["RetrainRequest", "RetrainSettings", "read_retrain_settings"]


# Where retraining differs from fine-tuning alone. Every tile teaches, in steps that follow the data. The target and
# the loss are those the start was trained with, its batch statistics stay, and half of what is rehearsed is what it
# said itself: so what is learnt from a few tiles is all that changes. Unlabelled tiles count if there are any, but
# little: at 1.0 they did harm (docs/training.md).
_FINETUNE: dict[str, Any] = {
    "validation": 0.0, "consistency": 0.3, "target": "centres", "epochs": 8.0, "steps": 100, "learning_rate": 3e-4,
    "freeze_statistics": True, "distil": 0.5,
}  # fmt: skip


@dataclass(frozen=True)
class RetrainSettings:
    """Everything that decides the outcome, beside the data.

    Parameters
    ----------
    held_out : float
        Share of the tiles, by whole slices, that only judge.
    folds : int
        Parts of the other slices; each is scored by a network trained on the rest, for calibration.
    tolerance_cells : float
        Largest distance of a detection from its cell, in cell diameters.
    check_volumes : int
        Simulated volumes of each kind on which the new detector must not be worse; 0: no check.
    check_loss : float
        Largest loss of AUPRC there.
    check_f1_loss : float
        Loss of F1 there, at the detectors' own thresholds, beyond which the verdict warns.
    rehearsal : int
        Simulated volumes, faint ones and sections to train on beside the tiles; 0: none.
    backgrounds : tuple of str
        TIFF stacks of real tissue without labelled cells; cells drawn into them are rehearsed and checked too.
    background_voxel_um : tuple of tuple of float
        Their voxel sizes z, y, x.
    curve : int
        Random splits by which the learning curve is drawn; 0: none.
    seed : int
        Of the split, the training and the bootstrap.
    gt : GtSettings
        Aggregation of the clicks.
    finetune : FinetuneConfig
        Training.
    """

    held_out: float = 0.3
    folds: int = 3
    tolerance_cells: float = 0.5
    check_volumes: int = 1
    check_loss: float = 0.02
    check_f1_loss: float = 0.05
    rehearsal: int = 75
    backgrounds: tuple[str, ...] = ()
    background_voxel_um: tuple[tuple[float, float, float], ...] = ()
    curve: int = 40
    seed: int = 0
    gt: GtSettings = field(default_factory=GtSettings)
    finetune: FinetuneConfig = field(default_factory=lambda: FinetuneConfig.from_dict(_FINETUNE))

    def __post_init__(self) -> None:
        right = {
            "held_out": 0 < self.held_out < 1,
            "folds": self.folds >= 2,
            "tolerance_cells": 0 < self.tolerance_cells < math.inf,
            "check_volumes": self.check_volumes >= 0,
            "check_loss": self.check_loss >= 0,
            "check_f1_loss": self.check_f1_loss >= 0,
            "rehearsal": self.rehearsal >= 0,
            "background_voxel_um": len(self.backgrounds) == len(self.background_voxel_um),
            "curve": self.curve >= 0,
        }
        for name, good in right.items():
            if not good:
                raise UsageError(f"retrain setting {name} cannot be {getattr(self, name)}")


def read_retrain_settings(path: Path | None, **overrides: Any) -> RetrainSettings:
    """Settings of a TOML file such as `configs/retrain.toml`; `overrides` that are not None win.

    Parameters
    ----------
    path : Path, optional
    **overrides
        Of the fields of `RetrainSettings`.

    Raises
    ------
    NotFoundError, UsageError
        No such file; not TOML, an unknown key, a value of the wrong type or out of range.
    """
    values = (
        {} if path is None else read_settings(path, {f.name for f in dataclasses.fields(RetrainSettings)})
    )
    values |= {name: value for name, value in overrides.items() if value is not None}
    training = values.pop("finetune", {})
    for name in ("seed", "cell_diameter_um"):
        if name in training:
            raise UsageError(
                f"{path}: {name} is not a setting of [finetune] here; see --seed, --cell-diameter"
            )
    gt = read_gt_settings(None, **values.pop("gt", {}))
    values |= _backgrounds(values)
    for name, value in values.items():
        kind = type(getattr(RetrainSettings(), name))
        if isinstance(value, bool) or not isinstance(value, (kind, int)):
            raise UsageError(f"retrain setting {name} must be of type {kind.__name__}, not {value!r}")
    return RetrainSettings(**values, gt=gt, finetune=FinetuneConfig.from_dict({**_FINETUNE, **training}))


def _backgrounds(values: dict[str, Any]) -> dict[str, Any]:
    """The stacks and their voxel sizes as tuples, where they are lists as TOML has them."""
    made: dict[str, Any] = {}
    try:
        if "backgrounds" in values:
            made["backgrounds"] = tuple(str(path) for path in list(values["backgrounds"]))
        if "background_voxel_um" in values:
            sizes = [tuple(float(v) for v in size) for size in values["background_voxel_um"]]
            made["background_voxel_um"] = tuple(sizes)
            if any(len(size) != 3 for size in sizes):
                raise ValueError("three numbers each")
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"backgrounds needs a list of files, background_voxel_um one z, y, x each: {error}"
        ) from None
    return made


@dataclass(frozen=True)
class RetrainRequest:
    """One retraining.

    Parameters
    ----------
    clicks, tiles : Path
        Clicks file and tiles folder.
    out : Path
        Detector folder to write.
    start : str
        Detector to improve: a name, a folder, or a `checkpoint.pt`.
    assignments : Path, optional
        Who was given and finished which image.
    qc : tuple of str
        Image ids of the quality-control tiles.
    unlabelled : Path, optional
        Tiles folder without clicks, to learn the look of the tissue from.
    cell_diameter_um : float, optional
        Typical cell in the tiles; by default the start's.
    work : Path, optional
        Folder of everything in between; `OUT.work` by default.
    settings : RetrainSettings
    device : str
        "cpu", "cuda" or "mps".
    accept_worse : bool
        Write the detector although it is not better.
    overwrite : bool
        Replace the detector folder, and a work folder made otherwise.
    """

    clicks: Path
    tiles: Path
    out: Path
    start: str = "default"
    assignments: Path | None = None
    qc: tuple[str, ...] = ()
    unlabelled: Path | None = None
    cell_diameter_um: float | None = None
    work: Path | None = None
    settings: RetrainSettings = field(default_factory=RetrainSettings)
    device: str = "cpu"
    accept_worse: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        diameter = self.cell_diameter_um
        if diameter is not None and not (math.isfinite(diameter) and diameter > 0):
            raise UsageError(f"--cell-diameter must be positive micrometres, not {diameter}")
        if self.out.resolve() == self.start_path.resolve():
            raise UsageError(
                f"--out {self.out} is the detector to start from; write the new one elsewhere, "
                "so that the two can be compared and the old one stays"
            )

    @property
    def start_path(self) -> Path:
        """Folder of the detector, or file of the checkpoint, to start from."""
        return network_path(self.start)

    @property
    def start_face(self) -> FaceWeights:
        """How the start judges peaks in the outermost slices, which tiles say nothing about."""
        detector = self.start_detector
        return PLAIN_FACE if detector is None else detector.spec.face

    @property
    def start_prominence(self) -> ProminenceWeights:
        """How the start lowers what hardly stands out; what is made from it does the same."""
        detector = self.start_detector
        return PLAIN_PROMINENCE if detector is None else detector.spec.prominence

    @property
    def start_detector(self) -> Detector | None:
        """The detector to start from; None where that is a bare checkpoint."""
        path = self.start_path
        is_detector = not path.is_file() and not (path / CHECKPOINT).is_file()
        return Detector.open(path) if is_detector else None

    @property
    def lineage(self) -> Lineage:
        """What trained, calibrated and judged the start, as far as it is on record."""
        detector = self.start_detector
        return Lineage.of_network(self.start_path, None if detector is None else detector.spec.training)

    @property
    def work_folder(self) -> Path:
        """Folder of everything in between."""
        return self.work or self.out.with_name(self.out.name + ".work")

    def parameters(self) -> dict[str, Any]:
        """The options that decide the result; equal ones go on with a work folder."""
        return {
            "settings": dataclasses.asdict(self.settings),
            "qc": list(self.qc),
            "cell_diameter_um": self.cell_diameter_um,
        }

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of the input, by content; read once.

        Raises
        ------
        NotFoundError
            If a file is missing.
        """
        prints = {"clicks": _hash(self.clicks), "tiles": _hash_tiles(self.tiles)}
        detector, path = self.start_detector, self.start_path
        network = path if path.is_file() else path / (CHECKPOINT if detector is None else WEIGHTS)
        prints["start"] = _hash(network) if detector is None else detector.fingerprint + _hash(network)
        prints["lineage"] = fingerprint(self.lineage.record())
        if self.assignments is not None:
            prints["assignments"] = _hash(self.assignments)
        if self.unlabelled is not None:
            prints["unlabelled"] = _hash_tiles(self.unlabelled)
        return prints

    def check_out(self) -> None:
        """Refuse to write over a detector folder that is not this very retraining's.

        Raises
        ------
        UsageError
            If `out` exists and `overwrite` was not asked for, or is no detector.
        """
        if not self.is_done():
            check_detector_target(self.out, self.overwrite)

    def is_done(self) -> bool:
        """Whether `out` holds the detector that this retraining makes."""
        try:
            training = read_json(self.out / SPEC_FILE).get("training", {})
        except NotFoundError:
            return False
        return bool(training.get("retrain") == self.fingerprint)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides the result."""
        return fingerprint({**self.parameters(), **self.fingerprints})


def _hash(path: Path) -> str:
    if not path.is_file():
        raise NotFoundError(f"there is no file {path}")
    return fingerprint(path.read_bytes())


def _hash_tiles(folder: Path) -> str:
    tiles = Tiles.open(folder)
    images = {str(name): _hash(tiles.image_path(name)) for name in tiles.ids}
    return fingerprint({**images, "": _hash(folder / "tiles.parquet")})
