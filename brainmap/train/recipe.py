"""The recipe of the shipped detector: `python -m brainmap.train.recipe --work DIR --out DETECTOR`.

Simulates tissue, trains, calibrates on tissue never trained on, and exports. Interrupted, it goes on
where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brainmap.errors import UsageError
from brainmap.train.calibrate import Judged, best_threshold, calibration_knots, judge
from brainmap.train.centernet import CenterNet
from brainmap.train.export import export_detector
from brainmap.train.pool import make_volumes
from brainmap.train.pretrain import PretrainConfig, load_model, pretrain
from brainmap.train.samples import GridSettings, net_volume
from brainmap.train.tissue import KINDS, simulate, variant

__all__ = ["Recipe", "build_detector"]

log = logging.getLogger(__name__)

# Seeds of calibration tissue; training begins at a million, tests and benchmarks stay below 100,000.
CALIBRATION_SEED = 500_000

CARD = """# Detector `{name}` {version}

Centre-point detector (CenterNet, U-Net of {parameters} parameters, output stride {stride}) for fluorescently
labelled cell bodies or nuclei about {diameter:g} um across in mouse-brain tissue; other sizes by
`--cell-diameter`. It sees {slices} slices about {z:g} um apart at {pixel:g} um per pixel.

**Made from** {volumes} volumes of simulated tissue (`brainmap.train.tissue`) and no real image, by
`python -m brainmap.train.recipe`; weights are free of third-party rights.

**Threshold** {threshold:.2f} on the calibrated score: mean F1 {f1:.3f} over {calibrated} volumes of simulated tissue
of all looks, very noisy and textured ones included, at a tolerance of 10 um.

| held-out simulated tissue | F1 at 10 um |
|---|---|
{rows}

**Limits.** Calibration holds for tissue like the simulated; on other tissue the score ranks, but its value
may be off. Bright vessels cut across, debris of a cell's size, and somata without contrast to their
neighbours are the usual errors. Not a medical device.
"""


@dataclass(frozen=True)
class Recipe:
    """Settings of the whole recipe, as in `configs/default_detector.toml`.

    Parameters
    ----------
    name, version : str
        Of the detector.
    calibration_volumes : int
        Simulated volumes for calibration and threshold.
    pretrain : PretrainConfig
    """

    name: str = "default"
    version: str = "1"
    calibration_volumes: int = 160
    pretrain: PretrainConfig = dataclasses.field(default_factory=PretrainConfig)

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """From a TOML file; an unknown key is an error."""
        with path.open("rb") as file:
            record = tomllib.load(file)
        unknown = set(record) - {f.name for f in dataclasses.fields(cls)}
        if unknown:
            raise UsageError(f"{path}: unknown setting {sorted(unknown)[0]!r}")
        if "pretrain" in record:
            record["pretrain"] = PretrainConfig.from_dict(record["pretrain"])
        return cls(**record)


def build_detector(recipe: Recipe, work: Path, out: Path, pool: Path | None = None) -> None:
    """Train, calibrate, export.

    Parameters
    ----------
    recipe : Recipe
    work : Path
        Folder for the pool of simulated volumes, checkpoints and the log.
    out : Path
        Detector folder to write.
    pool : Path, optional
        Folder of simulated volumes to use instead of `work/pool`.
    """
    checkpoint = pretrain(recipe.pretrain, work, pool)
    model, config = load_model(checkpoint)
    judged = []
    for index in range(recipe.calibration_volumes):
        (volume,) = make_volumes(range(CALIBRATION_SEED + index, CALIBRATION_SEED + index + 1), config.grid)
        judged.append(judge(model, volume, config.grid))
    for kind in KINDS:
        for repeat in range(4):
            judged.append(_judge_kind(model, kind, CALIBRATION_SEED + repeat, config.grid))
    knots = calibration_knots(judged)
    logit, f1 = best_threshold(judged)
    threshold = round(float(np.interp(logit, *np.array(knots).T)), 3)
    rows = "\n".join(
        f"| {kind} | {_judge_kind(model, kind, CALIBRATION_SEED - 1, config.grid).f1(logit):.3f} |"
        for kind in KINDS
    )
    card = CARD.format(
        name=recipe.name, version=recipe.version, parameters=sum(p.numel() for p in model.parameters()),
        stride=config.network.stride, diameter=config.grid.cell_diameter_um, slices=config.network.slices,
        z=config.grid.z_target_um, pixel=config.grid.pixel_um, volumes=config.pool.volumes,
        threshold=threshold, f1=f1, calibrated=len(judged), rows=rows,
    )  # fmt: skip
    training = {
        "recipe": "brainmap.train.recipe",
        "pretrain": config.to_dict(),
        "calibration_f1": round(f1, 4),
    }
    export_detector(model, config.grid, out, recipe.name, recipe.version, threshold, knots, training, card)


def _judge_kind(model: CenterNet, kind: str, seed: int, grid: GridSettings) -> Judged:
    return judge(model, net_volume(simulate(variant(kind), seed), grid), grid)


def main() -> None:
    """Command line of the recipe."""
    parser = argparse.ArgumentParser(prog="python -m brainmap.train.recipe", description=__doc__)
    parser.add_argument("--config", type=Path, help="TOML file; see configs/default_detector.toml")
    parser.add_argument("--work", type=Path, required=True, help="folder for pool, checkpoint and log")
    parser.add_argument("--pool", type=Path, help="folder of simulated volumes (default: WORK/pool)")
    parser.add_argument("--out", type=Path, required=True, help="detector folder to write")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    recipe = Recipe.read(options.config) if options.config else Recipe()
    build_detector(recipe, options.work, options.out, options.pool)


if __name__ == "__main__":
    main()
