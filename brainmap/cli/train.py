"""`brainmap train ...` and `brainmap retrain`: parse, call one function, print.

Training needs torch, which the base install lacks: it is asked for before anything is read.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from brainmap.cli.console import EXIT_FAILED, command, new_app, print_json, print_pairs
from brainmap.errors import MissingExtraError

__all__ = ["app", "retrain"]

app = new_app("train", "Train a detector: tiles, synthetic tiles, networks, honest evaluation.")

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
CellDiameter = Annotated[
    float | None, typer.Option(help="Typical cell in the tiles [default: the network's].", metavar="UM")
]
Config = Annotated[Path | None, typer.Option(help="Settings; the command line wins.", metavar="FILE.toml")]
Device = Annotated[str, typer.Option(help="cpu, cuda or mps.", metavar="NAME")]
GroundTruthFolder = Annotated[
    Path, typer.Option(help="Ground truth, as `gt aggregate` writes it.", metavar="DIR")
]
Network = Annotated[str, typer.Argument(help="Checkpoint or detector.", metavar="NETWORK")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is at OUT.")]
Seed = Annotated[int | None, typer.Option(help="Seed of all chance [default: 0].", metavar="N")]
Start = Annotated[str, typer.Option("--from", help="Detector or checkpoint to improve.", metavar="NAME|PATH")]
TilesFolder = Annotated[Path, typer.Option(help="Tiles folder.", metavar="DIR")]
Unlabelled = Annotated[
    Path | None, typer.Option(help="Tiles without clicks, to learn their look from.", metavar="DIR")
]
Work = Annotated[Path, typer.Option(help="Folder of checkpoint and log; resumes.", metavar="DIR")]


def _need_torch(purpose: str) -> None:
    for package in ("torch", "onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "train", purpose)


@command(app, "import-tiles")
def import_tiles(
    images: Annotated[list[Path], typer.Argument(help="PNG, TIFF or JPEG files.", metavar="IMAGE")],
    out: Annotated[Path, typer.Option(help="Tiles folder to write.", metavar="DIR")],
    voxel_size: Annotated[
        str, typer.Option(help="Thickness of the section and pixel size, um.", metavar="Z,Y,X")
    ],
    cell_diameter: Annotated[float, typer.Option(help="Typical cell.", metavar="UM")] = 10.0,
    tile_px: Annotated[
        int | None, typer.Option(help="Cut the images into squares of this size.", metavar="N")
    ] = None,
    no_normalise: Annotated[
        bool, typer.Option("--no-normalise", help="The images are normalised already.")
    ] = False,
    quality: Annotated[
        bool, typer.Option("--quality", help="Leave out tiles without contrast or bright pixels.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Make a tiles folder of plain images, each a section of its own."""
    from brainmap.run.request import parse_voxel_size
    from brainmap.tiles import tiles

    made = tiles.import_tiles(
        images, out, voxel_um=parse_voxel_size(voxel_size), cell_diameter_um=cell_diameter,
        normalise=not no_normalise, tile_px=tile_px, quality=tiles.QualityRule() if quality else None,
        overwrite=overwrite,
    )  # fmt: skip
    if as_json:
        print_json({"folder": out, "tiles": len(made), "image_id": made.ids})
    else:
        typer.echo(f"{len(made)} tiles  {out}")


@command(app, "generator")
def generator(
    tiles: TilesFolder,
    work: Work,
    gt: Annotated[
        Path | None, typer.Option(help="Ground truth of the tiles: place cells as there.", metavar="DIR")
    ] = None,
    config: Config = None,
    steps: Annotated[int | None, typer.Option(help="Steps in all.", metavar="N")] = None,
    seed: Seed = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Train a generator of tissue background on tiles; they need no labels."""
    _need_torch("train a generator")
    from brainmap.tiles.tiles import Tiles
    from brainmap.train.commands import learn_cells
    from brainmap.train.synthesis.generator import read_generator_config, train_generator

    settings = read_generator_config(config, steps=steps, seed=seed)
    opened = Tiles.open(tiles)
    discs = learn_cells(opened, gt)[0] if gt else None
    _print_checkpoint(train_generator(settings, work, opened, device, discs), as_json)


@command(app, "synthesize")
def synthesize(
    out: Annotated[Path, typer.Option(help="Tiles folder to write.", metavar="DIR")],
    count: Annotated[int, typer.Option(help="Number of tiles.", metavar="N", min=1)] = 100,
    generator: Annotated[
        Path | None, typer.Option(help="Generator of backgrounds; without one: noise.", metavar="PATH")
    ] = None,
    like: Annotated[
        Path | None, typer.Option(help="Real tiles to take texture and voxel size from.", metavar="DIR")
    ] = None,
    gt: Annotated[
        Path | None,
        typer.Option(
            help="Ground truth of the tiles of --like: place and draw cells as there.", metavar="DIR"
        ),
    ] = None,
    config: Config = None,
    seed: Seed = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Make synthetic tiles with masks, centres and heat maps."""
    _need_torch("make synthetic tiles")
    from brainmap.train.commands import settings_like
    from brainmap.train.synthesis.generator import load_generator
    from brainmap.train.synthesis.synthesis import read_synthesis_settings
    from brainmap.train.synthesis.synthesis import synthesize as run

    settings, texture = settings_like(read_synthesis_settings(config), like, gt)
    background = load_generator(generator) if generator else None
    tiles = run(settings, background, out, count, seed or 0, texture, overwrite)
    if as_json:
        print_json({"folder": out, "tiles": len(tiles), "settings": settings.to_dict()})
    else:
        typer.echo(f"{len(tiles)} tiles  {out}")


@command(app, "similarity")
def similarity(
    real: Annotated[Path, typer.Argument(help="Tiles folder of real tiles.", metavar="REAL")],
    synthetic: Annotated[
        Path, typer.Argument(help="Tiles folder that `train synthesize` wrote.", metavar="SYNTHETIC")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the report and its numbers.", metavar="DIR")],
    gt: Annotated[
        Path | None,
        typer.Option(
            help="Ground truth of the real tiles: also compare cells and background.", metavar="DIR"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare synthetic tiles with real ones: grey levels, power spectrum, contrast, neighbours."""
    _need_torch("compare tiles")
    from brainmap.train.commands import compare_folders

    report, found = compare_folders(real, synthetic, out, gt)
    if as_json:
        print_json({"report": report, **found.to_dict()})
    else:
        typer.echo(f"JSD {found.jsd:.3f}, log-power difference {found.log_power:.3f}  {report}")


@command(app, "pretrain")
def pretrain(
    work: Work,
    config: Config = None,
    pool: Annotated[
        Path | None, typer.Option(help="Folder of simulated volumes [default: WORK/pool].", metavar="DIR")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the real images that the settings name.", metavar="DIR")
    ] = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Train a network on simulated tissue."""
    _need_torch("train a network")
    from brainmap.train.learn.pretrain import PretrainConfig
    from brainmap.train.learn.pretrain import pretrain as run

    settings = PretrainConfig.from_dict(_table(config, "pretrain"))
    _print_checkpoint(run(settings, work, pool, device, data), as_json)


@command(app, "finetune")
def finetune(
    tiles: TilesFolder,
    gt: GroundTruthFolder,
    work: Work,
    start: Start = "default",
    unlabelled: Unlabelled = None,
    pool: Annotated[
        Path | None, typer.Option(help="Folder of simulated volumes to rehearse.", metavar="DIR")
    ] = None,
    cell_diameter: CellDiameter = None,
    config: Config = None,
    seed: Seed = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Go on training a network on tiles with ground truth."""
    _need_torch("train a network")
    from brainmap.gt.truth import GroundTruth
    from brainmap.tiles.tiles import Tiles
    from brainmap.train.commands import network_path, usable_truth
    from brainmap.train.learn.finetune import FinetuneConfig
    from brainmap.train.learn.finetune import finetune as run

    settings = FinetuneConfig.from_dict(_table(config, "finetune", cell_diameter_um=cell_diameter, seed=seed))
    free = Tiles.open(unlabelled) if unlabelled else None
    opened = Tiles.open(tiles)
    truth = usable_truth(GroundTruth.open(gt), opened)
    checkpoint = run(settings, work, opened, truth, network_path(start), pool, free, device)
    _print_checkpoint(checkpoint, as_json)


@command(app, "calibrate")
def calibrate(
    network: Network,
    tiles: TilesFolder,
    gt: GroundTruthFolder,
    out: Annotated[Path, typer.Option(help="JSON file to write, for export.", metavar="FILE.json")],
    cell_diameter: CellDiameter = None,
    as_json: AsJson = False,
) -> None:
    """Learn what a network's scores mean, on tiles that it was not trained on."""
    _need_torch("calibrate a network")
    from brainmap.train.commands import calibrate_network

    record = calibrate_network(network, tiles, gt, out, cell_diameter)
    if as_json:
        print_json(record)
    else:
        typer.echo(f"threshold {record['threshold']:.3f}  {out}")


@command(app, "evaluate")
def evaluate(
    networks: Annotated[
        list[str], typer.Argument(help="Detectors or checkpoints, up to four.", metavar="NETWORK")
    ],
    tiles: TilesFolder,
    out: Annotated[Path, typer.Option(help="Folder for report.html and evaluation.json.", metavar="DIR")],
    gt: Annotated[
        Path | None, typer.Option(help="Ground truth, as `gt aggregate` writes it.", metavar="DIR")
    ] = None,
    experts: Annotated[
        Path | None, typer.Option(help="Instead: points image_id x y [worker_id].", metavar="FILE")
    ] = None,
    tolerance_px: Annotated[
        list[float] | None,
        typer.Option(help="Largest distance of a match; repeat [default: 3 5 7]. The first is the main one."),
    ] = None,
    rule: Annotated[
        str, typer.Option(help="Tolerance inside the assignment, or after it.", metavar="inside|after")
    ] = "inside",
    accepted: Annotated[
        bool, typer.Option("--accepted", help="True are the accepted cells, not the peaks of the heat map.")
    ] = False,
    cell_diameter: CellDiameter = None,
    as_json: AsJson = False,
) -> None:
    """Judge detectors on tiles with ground truth: curves, calibration, every tile."""
    _need_torch("evaluate a network")
    from brainmap.train.commands import evaluate_networks

    report, evaluations = evaluate_networks(
        networks, tiles, out, gt=gt, experts=experts, tolerances_px=tolerance_px or (), rule=rule,
        accepted=accepted, cell_diameter_um=cell_diameter,
    )  # fmt: skip
    if as_json:
        print_json({"report": report, "detectors": [e.record for e in evaluations]})
        return
    for one in evaluations:
        best = one.best()
        typer.echo(
            f"{one.name}: AUPRC {one.auprc():.3f}, best F1 {best['f1']:.3f} at {best['threshold']:.3f} "
            f"(within {one.settings.main_px:g} px)"
        )
    typer.echo(str(report))


@command(app, "export")
def export(
    network: Network,
    out: Annotated[Path, typer.Option(help="Detector folder to write.", metavar="DETECTOR")],
    calibration: Annotated[Path, typer.Option(help="What `train calibrate` wrote.", metavar="FILE.json")],
    version: Annotated[str, typer.Option(help="Version of the detector.", metavar="TEXT")] = "1",
    cell_diameter: CellDiameter = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write a network as a detector folder that `brainmap detect --detector` takes."""
    _need_torch("export a detector")
    from brainmap.train.commands import export_network

    detector = export_network(
        network, calibration, out,
        version=version, cell_diameter_um=cell_diameter, overwrite=overwrite,
    )  # fmt: skip
    if as_json:
        print_json({"detector": out, "threshold": detector.spec.threshold, "sha256": detector.fingerprint})
    else:
        typer.echo(f"{out}  threshold {detector.spec.threshold:.3f}")


def _table(config: Path | None, name: str, **overrides: object) -> dict[str, object]:
    """One table of a settings file, and the options that were given."""
    from brainmap.settings import read_table

    return {
        **read_table(config, name),
        **{key: value for key, value in overrides.items() if value is not None},
    }


def _print_checkpoint(path: Path, as_json: bool) -> None:
    from brainmap.files import read_json

    record = read_json(path.with_suffix(".json"))
    if as_json:
        print_json({"checkpoint": path, **record})
    else:
        typer.echo(f"{path}  step {record['step']}")


def retrain(
    clicks: Annotated[Path, typer.Option(help="CSV or Parquet: image_id worker_id x y.", metavar="FILE")],
    tiles: TilesFolder,
    out: Annotated[Path, typer.Option(help="Detector folder to write.", metavar="DETECTOR")],
    start: Start = "default",
    assignments: Annotated[
        Path | None, typer.Option(help="CSV image_id worker_id completed: who saw what.", metavar="FILE")
    ] = None,
    qc: Annotated[
        list[str] | None, typer.Option(help="Image id of a quality-control tile; repeat.", metavar="ID")
    ] = None,
    unlabelled: Unlabelled = None,
    rehearsal: Annotated[
        int | None, typer.Option(help="Simulated tissue to train on as well [default: 75].", metavar="N")
    ] = None,
    cell_diameter: CellDiameter = None,
    config: Config = None,
    work: Annotated[
        Path | None,
        typer.Option(help="Folder of all in between; resumes [default: OUT.work].", metavar="DIR"),
    ] = None,
    seed: Seed = None,
    device: Device = "cpu",
    accept_worse: Annotated[
        bool, typer.Option("--accept-worse", help="Write the new detector although it is not better.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is at OUT, and a work folder made otherwise.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Clicks and tiles in, a better detector out; exit code 1 if it is not better."""
    _need_torch("retrain a detector")
    from brainmap.train.retrain.request import RetrainRequest, read_retrain_settings
    from brainmap.train.retrain.retrain import retrain as run

    result = run(
        RetrainRequest(
            clicks, tiles, out, start, assignments, tuple(qc or ()), unlabelled, cell_diameter, work,
            read_retrain_settings(config, seed=seed, rehearsal=rehearsal), device, accept_worse, overwrite,
        )
    )  # fmt: skip
    if as_json:
        print_json(result.as_dict())
    else:
        print_pairs(result.lines())
    if result.detector is None:
        typer.echo(
            f"brainmap: {out} was not written: {result.outcome['reason']}; see {result.report}, or write it "
            "all the same with --accept-worse",
            err=True,
        )
        raise typer.Exit(EXIT_FAILED)
