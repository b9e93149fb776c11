"""The recipe of the shipped detector: `python -m brainmap.train.recipe --config TOML --work DIR --out DETECTOR`.

Simulates tissue, trains on it, polishes on real annotated sections among simulated tissue, calibrates on
what was never trained on, and exports. Interrupted, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np

from brainmap.gt.aggregate import aggregate
from brainmap.gt.truth import GroundTruth
from brainmap.infer.detector import ProminenceWeights
from brainmap.infer.peaks import FaceWeights
from brainmap.tiles.tiles import Tiles, import_tiles
from brainmap.train.judge.calibrate import (
    Judged,
    balanced_face,
    best_threshold,
    calibration_knots,
    face_weights,
    judge,
    prominence_weights,
)
from brainmap.train.learn.centernet import CenterNet
from brainmap.train.learn.distil import narrowed
from brainmap.train.learn.export import export_detector
from brainmap.train.learn.labelled import labelled_volumes
from brainmap.train.learn.pool import backgrounds_of, make_inserted, make_sections, make_volumes
from brainmap.train.learn.pretrain import PretrainConfig, load_model, pretrain
from brainmap.train.learn.real_tissue import real_volumes
from brainmap.train.learn.samples import GridSettings, NetVolume, net_volume
from brainmap.train.recipe_settings import Polish, Recipe, Student
from brainmap.train.retrain.lineage import Lineage, print_tiles
from brainmap.train.tissue.tissue import KINDS, simulate, variant

__all__ = ["build_detector"]

log = logging.getLogger(__name__)

# Seeds of calibration tissue; training begins at a million, tests and benchmarks stay below 100,000.
CALIBRATION_SEED = 500_000
# A detection on a section is right within half a cell.
_SECTION_TOLERANCE_CELLS = 0.5

# Tissue whose cells are all known.
_COMPLETE = ("simulated", "five kinds")

CARD = """# Detector `{name}` {version}

Centre-point detector (CenterNet, U-Net of {parameters} parameters, output stride {stride}) for fluorescently
labelled cell bodies or nuclei about {diameter:g} um across in mouse-brain tissue; other sizes by
`--cell-diameter`. It sees {slices} slices about {z:g} um apart at {pixel:g} um per pixel.

**Made from** {made_from}, by `python -m brainmap.train.recipe`.{sources}

**Threshold** {threshold:.2f} on the calibrated score: mean F1 {f1:.3f} over {calibrated} volumes and sections of
all looks, those included whose cells nobody could see; each kind below weighs the same.

| never trained on | F1 at this threshold |
|---|---|
{rows}

**Limits.** Calibration holds for tissue like that above; on other tissue the score ranks, but its value
may be off. Bright vessels cut across, debris of a cell's size, and somata without contrast to their
neighbours are the usual errors. Not a medical device.
"""


def build_detector(
    recipe: Recipe, work: Path, out: Path, pool: Path | None = None, data: Path | None = None
) -> None:
    """Train, polish, calibrate, export.

    Parameters
    ----------
    recipe : Recipe
    work : Path
        Folder for the pool of simulated volumes, checkpoints and logs.
    out : Path
        Detector folder to write.
    pool : Path, optional
        Folder of simulated volumes to use instead of `work/pool`.
    data : Path, optional
        Folder of real images that the recipe's settings refer to.
    """
    pool = pool or work / "pool"
    model, config = load_model(pretrain(recipe.pretrain, work / "pretrain", pool, data=data))
    for number, part in enumerate(recipe.rounds, start=2):
        settings = recipe.settings(part)
        model, config = load_model(pretrain(settings, work / f"round-{number}", pool, data=data, start=model))
    judged: dict[str, list[Judged]] = {}
    if recipe.polish:
        model, judged = _polish(recipe, model, work, pool, data)
    elif recipe.student:
        model = _taught(recipe.student, model, recipe.last, work / "student", pool, data, [], [])
    judged |= _judge_simulated(recipe, model, data)
    face, prominence, judged = _weighed(judged)
    logit, f1 = best_threshold(*judged.values())
    everything = [j for part in judged.values() for j in part]
    knots = calibration_knots(everything)
    threshold = round(float(np.interp(logit, *np.array(knots).T)), 3)
    for kind in KINDS:
        shown = _judge_kind(model, kind, CALIBRATION_SEED - 1, config.grid)
        judged[f"simulated tissue, {kind}"] = [shown.weighed(face).lowered(prominence)]
    rows = "\n".join(
        f"| {name} | {np.mean([j.f1(logit) for j in part if j.n_true >= 10]):.3f} |"
        for name, part in judged.items()
        if part and name != "five kinds"
    )
    card = CARD.format(
        name=recipe.name, version=recipe.version, parameters=sum(p.numel() for p in model.parameters()),
        stride=model.config.stride, diameter=config.grid.cell_diameter_um, slices=model.config.slices,
        z=config.grid.z_target_um, pixel=config.grid.pixel_um, made_from=_made_from(recipe),
        sources=f"\n{recipe.sources}" * bool(recipe.sources),
        threshold=threshold, f1=f1, calibrated=len(everything), rows=rows,
    )  # fmt: skip
    training = {
        "recipe": "brainmap.train.recipe",
        "pretrain": recipe.pretrain.to_dict(),
        "rounds": [dataclasses.asdict(part) for part in recipe.rounds],
        "polish": [dataclasses.asdict(part) for part in recipe.polish],
        "student": None if recipe.student is None else dataclasses.asdict(recipe.student),
        "calibration_f1": round(f1, 4),
        "lineage": _lineage(recipe, work, data).record(),
    }
    export_detector(
        model,
        config.grid,
        out,
        recipe.name,
        recipe.version,
        threshold,
        knots,
        training,
        card,
        face,
        prominence,
    )


def _weighed(
    judged: dict[str, list[Judged]],
) -> tuple[FaceWeights, ProminenceWeights, dict[str, list[Judged]]]:
    """Weights of faces and of prominence that do best over all sets, and the sets under them."""
    plain = [j for part in judged.values() for j in part]
    face = face_weights(plain)
    logit, _ = best_threshold(*([j.weighed(face) for j in part] for part in judged.values()))
    face = balanced_face(plain, face, logit)
    prominence = prominence_weights(*([j.weighed(face) for j in part] for part in judged.values()))
    lowered = {name: [j.lowered(prominence) for j in part] for name, part in judged.items()}
    logit, _ = best_threshold(*([j.weighed(face) for j in part] for part in lowered.values()))
    # Gains and losses at the faces are known where every cell is: not on stacks that people marked in part.
    simulated = [j for name, part in lowered.items() if name.startswith(_COMPLETE) for j in part]
    face = balanced_face(simulated, face, logit)
    return face, prominence, {name: [j.weighed(face) for j in part] for name, part in lowered.items()}


def _made_from(recipe: Recipe) -> str:
    pool = recipe.last.pool
    parts = [f"{pool.volumes + pool.faint} volumes of simulated tissue (`brainmap.train.tissue`)"]
    if pool.sections:
        parts.append(f"{pool.sections} simulated sections")
    if pool.inserted:
        parts.append(f"{pool.inserted} parts of real unlabelled tissue with simulated cells")
    if recipe.polish:
        parts.append("real sections with people's clicks")
    if any(part.stacks for part in recipe.polish):
        parts.append("other real tissue, marked by people, by a detector, or free of cells")
    if recipe.student:
        parts.append("then reduced to a smaller network that answers as the large one did")
    return ", ".join(parts)


def _polish(
    recipe: Recipe, model: CenterNet, work: Path, pool: Path, data: Path | None
) -> tuple[CenterNet, dict[str, list[Judged]]]:
    """The network polished on all real tissue, and each section and marked stack judged by one that never saw it."""
    base, first = recipe.last, recipe.polish[0]
    tiles, truth = _read_sections(first, work, data or Path())
    fold = np.random.default_rng(base.seed).permutation(len(tiles)) % first.folds
    # What the detector finds in unmarked tissue is decided once, by the network that the simulated tissue made.
    real = [
        [(stack, real_volumes(stack, data or Path(), base.grid, model)) for stack in part.stacks]
        for part in recipe.polish
    ]
    marked = {
        name: made[name]
        for stacks in real
        for stack, made in stacks
        if stack.labels == "points"
        for name in made
    }

    def polished(rows: np.ndarray, left_out: set[str], name: str) -> CenterNet:
        log.info("polishing on %d real sections: %s", int(rows.sum()), name)
        network = model
        for number, (part, stacks) in enumerate(zip(recipe.polish, real, strict=True)):
            drawn = [(v, part.share / int(rows.sum())) for v in labelled_volumes(
                tiles.take(rows), truth, base.grid, part.cell_diameter_um)]  # fmt: skip
            for stack, made in stacks:
                own = [volume for key, volumes in made.items() if key not in left_out for volume in volumes]
                drawn += [(volume, stack.share / len(own)) for volume in own]
            config = replace(
                base, steps=part.steps, learning_rate=part.learning_rate, extra_share=part.real_share,
                contrast_spread=part.contrast_spread, grey_levels=part.grey_levels,
            )  # fmt: skip
            extra, weight = map(list, zip(*drawn, strict=True))
            folder = work / (f"{name}-{number + 1}" if number else name)
            checkpoint = pretrain(
                config, folder, pool, data=data, start=network, extra=extra, extra_weight=weight
            )
            network = load_model(checkpoint)[0]
        if recipe.student:
            folder = work / f"{name}-student"
            network = _taught(recipe.student, network, config, folder, pool, data, extra, weight)
        return network

    judged: dict[str, list[Judged]] = {"real sections": []}
    tolerance = _SECTION_TOLERANCE_CELLS * base.grid.cell_diameter_um
    for part in range(first.folds):
        left_out = {name for index, name in enumerate(sorted(marked)) if index % first.folds == part}
        network = polished(fold != part, left_out, f"polish-{part}")
        for volume in _whole_sections(tiles.take(fold == part), truth, base.grid, first.cell_diameter_um):
            judged["real sections"].append(judge(network, volume, base.grid, tolerance))
        # A brain is a data set of its own.
        judged |= {
            f"real stack {name}": [judge(network, marked[name][-1], base.grid)] for name in sorted(left_out)
        }
    return polished(np.ones(len(tiles), bool), set(), "polish"), judged


def _taught(
    student: Student, teacher: CenterNet, config: PretrainConfig, work: Path, pool: Path, data: Path | None,
    extra: list[NetVolume], weight: list[float],
) -> CenterNet:  # fmt: skip
    """A smaller network that answers as the teacher does, on the tissue that the teacher saw last."""
    network = replace(config.network, widths=student.widths)
    config = replace(config, network=network, steps=student.steps, learning_rate=student.learning_rate)
    start = narrowed(teacher, student.widths)
    checkpoint = pretrain(
        config, work, pool, data=data, start=start, extra=extra, extra_weight=weight, teacher=teacher
    )
    return load_model(checkpoint)[0]


def _lineage(recipe: Recipe, work: Path, data: Path | None) -> Lineage:
    """The real sections that taught and calibrated the detector, so that a retraining knows them again."""
    if not recipe.polish:
        return Lineage()
    prints = print_tiles(_read_sections(recipe.polish[0], work, data or Path())[0])
    return Lineage().after(prints, [("trained", "calibrated")] * len(prints), recipe.name)


def _read_sections(polish: Polish, work: Path, data: Path) -> tuple[Tiles, GroundTruth]:
    """The real sections as tiles, and the ground truth their clicks give; made once."""
    folder, images = work / "sections", sorted((data / polish.images).glob("*.png"))
    if not (folder / "tiles.parquet").is_file():
        size = (polish.pixel_um,) * 3
        import_tiles(images, folder, voxel_um=size, cell_diameter_um=polish.cell_diameter_um, overwrite=True)
    tiles = Tiles.open(folder)
    if not (work / "truth" / "gt.json").is_file():
        aggregate(data / polish.clicks, work / "truth", tiles=folder)
    return tiles, GroundTruth.open(work / "truth")


def _whole_sections(
    tiles: Tiles, truth: GroundTruth, grid: GridSettings, cell_diameter_um: float
) -> list[NetVolume]:
    return labelled_volumes(tiles, truth, grid, cell_diameter_um, scales=(1.0,))


def _judge_simulated(recipe: Recipe, model: CenterNet, data: Path | None) -> dict[str, list[Judged]]:
    """Detections held against the truth on tissue of all kinds that no training saw."""
    count, grid, pool = recipe.calibration, recipe.pretrain.grid, recipe.pretrain.pool
    places = backgrounds_of(pool, data)

    def seeds(number: int) -> list[range]:
        return [range(CALIBRATION_SEED + i, CALIBRATION_SEED + i + 1) for i in range(number)]

    def judge_all(made: list[NetVolume]) -> list[Judged]:
        return [judge(model, volume, grid) for volume in made]

    return {
        "simulated tissue, random looks": [
            j for s in seeds(count.volumes) for j in judge_all(make_volumes(s, grid))
        ],
        "simulated sections": [j for s in seeds(count.sections) for j in judge_all(make_sections(s, grid))],
        "cells inserted in real tissue": [
            j for s in seeds(count.inserted) for j in judge_all(make_inserted(s, grid, places))
        ],
        "five kinds": [
            _judge_kind(model, kind, CALIBRATION_SEED + repeat, grid) for kind in KINDS for repeat in range(4)
        ],
    }


def _judge_kind(model: CenterNet, kind: str, seed: int, grid: GridSettings) -> Judged:
    return judge(model, net_volume(simulate(variant(kind), seed), grid), grid)


def main() -> None:
    """Command line of the recipe."""
    parser = argparse.ArgumentParser(prog="python -m brainmap.train.recipe", description=__doc__)
    parser.add_argument("--config", type=Path, help="TOML file; see configs/default_detector.toml")
    parser.add_argument("--work", type=Path, required=True, help="folder for pool, checkpoints and logs")
    parser.add_argument("--pool", type=Path, help="folder of simulated volumes (default: WORK/pool)")
    parser.add_argument("--data", type=Path, help="folder of real images that the recipe names")
    parser.add_argument("--fast", action="store_true", help="export the student, as detector `fast`")
    parser.add_argument("--out", type=Path, required=True, help="detector folder to write")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    recipe = Recipe.read(options.config) if options.config else Recipe()
    recipe = replace(recipe, name="fast") if options.fast else replace(recipe, student=None)
    build_detector(recipe, options.work, options.out, options.pool, options.data)


if __name__ == "__main__":
    main()
