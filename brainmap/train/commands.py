"""What the `brainmap train` commands do beside calling one room: networks by name, settings from real tiles."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brainmap.errors import DataError, UsageError
from brainmap.files import atomic_path, read_json, write_json
from brainmap.gt.aggregate import ACCEPT
from brainmap.gt.truth import THETA_ABS, GroundTruth, read_experts
from brainmap.infer.detector import SPEC_FILE, Detector
from brainmap.infer.peaks import PLAIN_FACE
from brainmap.lock import held_beside
from brainmap.tiles.tiles import Tiles
from brainmap.train.judge.calibrate_tiles import calibrate_on_tiles
from brainmap.train.judge.evaluate import Evaluation, EvaluationSettings, Truth, evaluate_tiles
from brainmap.train.judge.evaluate_report import write_evaluation
from brainmap.train.judge.predict import Knots
from brainmap.train.learn.export import export_detector
from brainmap.train.learn.loop import CHECKPOINT, load_network
from brainmap.train.learn.samples import GridSettings
from brainmap.train.synthesis.cell_images import LEAST_CELLS, measure_cells
from brainmap.train.synthesis.placement import Placement, StudyRules
from brainmap.train.synthesis.similarity import Similarity, compare_tiles, synthetic_signal, truth_signal
from brainmap.train.synthesis.similarity_report import write_similarity
from brainmap.train.synthesis.synthesis import SynthesisSettings
from brainmap.train.synthesis.texture import Texture

__all__ = [
    "calibrate_network",
    "check_detector_target",
    "compare_folders",
    "evaluate_networks",
    "export_network",
    "grid_for",
    "learn_cells",
    "network_path",
    "settings_like",
    "usable_truth",
]

log = logging.getLogger(__name__)

CARD = """# Detector `{name}` {version}

Exported by `brainmap train export` from `{network}`, for cells about {diameter:g} um across (other sizes by
`--cell-diameter`). Threshold {threshold:.3f} on a score that was calibrated on `{tiles}`.

Nobody has said here how good it is: see `brainmap train evaluate`. Not a medical device.
"""


def network_path(name: str | Path) -> Path:
    """A checkpoint, the folder of one, or a detector's folder by its name or path, for `load_network`."""
    path = Path(name)
    return path if path.is_file() or (path / CHECKPOINT).is_file() else Detector.open(name).folder


def usable_truth(truth: GroundTruth, tiles: Tiles) -> GroundTruth:
    """Ground truth with maps that can teach: as it is, or drawn from its cells where the clicks' maps are empty.

    A click weighs what its worker's agreement with others says. With a single worker, or several who never
    differ, that is nothing at all, and so are the maps (methods 4, W_total <= 0); the cells are there.

    Parameters
    ----------
    truth : GroundTruth
    tiles : Tiles
        Whatever images they do not hold is left out where maps are drawn.
    """
    sure = truth.posterior >= ACCEPT
    if not sure.any() or np.median(truth.confidence[sure]) >= THETA_ABS:
        return truth
    log.warning(
        "the workers' clicks give no weights (one worker, or no differences): every accepted cell counts"
    )
    shapes = {str(n): (int(h), int(w)) for n, (h, w) in zip(tiles.ids, tiles.shapes, strict=True)}
    names = truth.ids[truth.image]
    use = sure & np.isin(names, list(shapes))
    return GroundTruth.from_points(
        names[use], truth.xy[use], {name: shapes[name] for name in truth.ids.tolist() if name in shapes}
    )


def check_detector_target(out: Path, overwrite: bool) -> None:
    """Refuse to write over anything but a detector folder, and over that without being told to (UsageError)."""
    if out.exists() and not (out / SPEC_FILE).is_file():
        raise UsageError(f"{out} exists and is no detector folder; give another --out")
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists; give another --out, or --overwrite to replace it")


def grid_for(grid: GridSettings, cell_diameter_um: float) -> GridSettings:
    """The grid on which the same network sees cells of another size as large as those it learnt."""
    if not (math.isfinite(cell_diameter_um) and cell_diameter_um > 0):
        raise UsageError(f"--cell-diameter must be positive micrometres, not {cell_diameter_um}")
    factor = cell_diameter_um / grid.cell_diameter_um
    return GridSettings(*(factor * value for value in astuple(grid)))


def settings_like(
    settings: SynthesisSettings, like: Path | None, gt: Path | None
) -> tuple[SynthesisSettings, Texture | None]:
    """Settings of synthetic tiles with what real ones teach: voxel size, texture, where cells lie and their look.

    The study's white cells stay as they are: they have no look that could be learnt.

    Parameters
    ----------
    settings : SynthesisSettings
    like : Path, optional
        Tiles folder.
    gt : Path, optional
        Ground truth of (some of) those tiles.

    Raises
    ------
    UsageError
        If there is a ground truth without tiles.
    DataError
        If no tile has ground truth, or the tiles differ in voxel size.
    """
    if like is None:
        if gt is not None:
            raise UsageError("--gt needs the tiles it belongs to: give --like as well")
        return settings, None
    tiles = Tiles.open(like)
    voxel_um = np.unique(tiles.columns["voxel_um"], axis=0)
    if len(voxel_um) > 1:
        raise DataError(f"{like}: the tiles differ in voxel size; synthetic tiles can be like one kind only")
    settings = replace(settings, voxel_um=tuple(float(v) for v in voxel_um[0]))  # type: ignore[arg-type]
    if gt is not None:
        placement, measured = learn_cells(tiles, gt, settings.placement.rules.radius_px)
        soft = settings.cells.look == "soft" and len(measured) > 0
        cells = settings.cells.fitted(measured) if soft else settings.cells
        settings = replace(settings, placement=placement, cells=cells)
    if not settings.texture:
        return settings, None
    images = (tiles.image(index) for index in range(len(tiles)))
    return settings, Texture.fit(images, settings.placement.rules.radius_px[0])


def learn_cells(
    tiles: Tiles, gt: Path, radius_px: tuple[float, float, float, float] = StudyRules.radius_px
) -> tuple[Placement, NDArray[np.float64]]:
    """Where the annotated cells of tiles lie, and what they look like.

    Parameters
    ----------
    tiles : Tiles
    gt : Path
        Ground truth of (some of) those tiles; the others are not looked at.
    radius_px : tuple of float
        Mean, standard deviation, least and greatest radius: the mean is what cells are measured with, and all
        are kept where too few can be measured.

    Returns
    -------
    placement : Placement
    measured : ndarray, (m, 3)
        Radius (px), opacity and edge of the cells that can be measured, see `measure_cells`; none if they are
        fewer than ten.

    Raises
    ------
    DataError
        If no tile has ground truth, or they hold fewer than ten cells.
    """
    truth = GroundTruth.open(gt)
    rows = [row for row, name in enumerate(tiles.ids) if str(name) in truth]
    if not rows:
        raise DataError(f"none of the tiles of {tiles.folder} has ground truth in {gt}")
    points = [truth.accepted(str(tiles.ids[row]))[0] for row in rows]
    measured = measure_cells((tiles.image(row) for row in rows), points, radius_px[0])
    if len(measured) < LEAST_CELLS:
        log.warning(
            "only %d of %d cells stand free and near the radius of %g px: radius and look stay as set",
            len(measured), sum(map(len, points)), radius_px[0],
        )  # fmt: skip
        measured = measured[:0]
    shapes = [(int(h), int(w)) for h, w in tiles.shapes[rows]]
    return Placement.fit(points, shapes, measured[:, 0], radius_px), measured


def compare_folders(
    real: Path, synthetic: Path, out: Path, gt: Path | None = None
) -> tuple[Path, Similarity]:
    """Compare two tiles folders and write the report; see `compare_tiles`.

    Parameters
    ----------
    gt : Path, optional
        Ground truth of real tiles; those it does not know are left out. Without it, what needs to know where
        cells lie is not compared.
    """
    mine, theirs = Tiles.open(real), Tiles.open(synthetic)
    if gt is None:
        found = compare_tiles(mine, theirs)
    else:
        truth = usable_truth(GroundTruth.open(gt), mine)
        mine = mine.take(np.array([str(name) in truth for name in mine.ids], bool))
        found = compare_tiles(mine, theirs, truth_signal(truth), synthetic_signal(theirs))
    return write_similarity(out, found, mine, theirs), found


def calibrate_network(
    network: str | Path, tiles: Path, gt: Path, out: Path, cell_diameter_um: float | None = None
) -> dict[str, Any]:
    """Calibrate a network on tiles and write what `export_network` needs; see `calibrate_on_tiles`."""
    model, grid = load_network(network_path(network))
    diameter = cell_diameter_um or grid.cell_diameter_um
    opened = Tiles.open(tiles)
    truth = usable_truth(GroundTruth.open(gt), opened)
    knots, threshold = calibrate_on_tiles(model, opened, truth, grid, diameter)
    record = {
        "calibration": knots,
        "threshold": threshold,
        "cell_diameter_um": diameter,
        "network": str(network),
        "tiles": str(tiles),
        "gt": str(gt),
    }
    write_json(out, record)
    return record


def evaluate_networks(
    networks: Sequence[str],
    tiles: Path,
    out: Path,
    *,
    gt: Path | None = None,
    experts: Path | None = None,
    tolerances_px: Sequence[float] = (),
    rule: str = "inside",
    accepted: bool = False,
    cell_diameter_um: float | None = None,
) -> tuple[Path, list[Evaluation]]:
    """Judge networks on tiles and write the report; see `evaluate_tiles` and `write_evaluation`.

    Parameters
    ----------
    networks : sequence of str
        Detectors, which bring calibration and threshold, or checkpoints, which have none.
    gt, experts : Path, optional
        Ground-truth folder, or table of experts' points; one of them.
    tolerances_px : sequence of float
        The first is the main one; by default those of `EvaluationSettings`.
    accepted : bool
        Take the ground truth's accepted cells for true, not the peaks of its maps.

    Raises
    ------
    UsageError
        If there is no ground truth, or two.
    """
    if (gt is None) == (experts is None):
        raise UsageError("give either --gt or --experts to judge by")
    settings = EvaluationSettings(rule=rule, truth_points="accepted" if accepted else "peaks")  # type: ignore[arg-type]
    if tolerances_px:
        settings = replace(
            settings, tolerances_px=tuple(sorted(set(tolerances_px))), main_px=tolerances_px[0]
        )
    opened = Tiles.open(tiles)
    shapes = {str(n): (int(h), int(w)) for n, (h, w) in zip(opened.ids, opened.shapes, strict=True)}
    truth: Truth
    if gt is not None:
        truth = usable_truth(GroundTruth.open(gt), opened)
    else:
        truth = read_experts(experts or "", shapes)
    evaluations = []
    for name in networks:
        path = network_path(name)
        is_detector = not path.is_file() and not (path / CHECKPOINT).is_file()
        network, grid = (Detector.open(path), None) if is_detector else load_network(path)
        evaluations.append(
            evaluate_tiles(
                network, opened, truth, grid, cell_diameter_um, settings=settings,
                name=None if is_detector else _short_name(path),
            )
        )  # fmt: skip
    return write_evaluation(out, evaluations), evaluations


def _short_name(checkpoint: Path) -> str:
    """What a person called it: the folder's name, or the file's own where that is not the usual one."""
    if checkpoint.is_dir():
        return checkpoint.name
    return checkpoint.parent.name if checkpoint.name == CHECKPOINT else checkpoint.stem


def export_network(
    network: str | Path,
    calibration: Path,
    out: Path,
    *,
    version: str = "1",
    cell_diameter_um: float | None = None,
    overwrite: bool = False,
) -> Detector:
    """Write a detector folder.

    Parameters
    ----------
    network : str or Path
        Checkpoint or detector; see `network_path`.
    calibration : Path
        JSON with `calibration` (knots) and `threshold`, as `brainmap train calibrate` writes it.
    out : Path
        Folder to write; the detector is named after it.
    cell_diameter_um : float, optional
        Cells the detector expects; by default those of the calibration, or else the network's own.

    Raises
    ------
    UsageError
        If `out` exists and `overwrite` was not asked for, or is no detector.
    NotFoundError, DataError
        If an input is missing or damaged, or the exported network computes something else.
    """
    check_detector_target(out, overwrite)
    record = read_json(calibration)
    knots, threshold = _calibration(record, calibration)
    path = network_path(network)
    model, grid = load_network(path)
    # Tiles say nothing about the outermost slices of a volume: what the detector knows of them is kept.
    face = Detector.open(path).spec.face if (path / SPEC_FILE).is_file() else PLAIN_FACE
    grid = grid_for(grid, cell_diameter_um or record.get("cell_diameter_um") or grid.cell_diameter_um)
    card = CARD.format(
        name=out.name, version=version, network=Path(network).name, diameter=grid.cell_diameter_um,
        threshold=threshold, tiles=record.get("tiles", calibration.name),
    )  # fmt: skip
    training = {"recipe": "brainmap train export", "network": str(network), "calibration": record}
    with held_beside(out), atomic_path(out) as part:
        export_detector(model, grid, part, out.name, version, threshold, knots, training, card, face)
    return Detector.open(out)


def _calibration(record: Any, path: Path) -> tuple[Knots, float]:
    try:
        knots = tuple((float(logit), float(score)) for logit, score in record["calibration"])
        return knots, float(record["threshold"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is no calibration ({error!r}); make one with brainmap train calibrate"
        ) from error
