"""`brainmap crowd sample`, `study` and `round`: parse, call one function, print. `register` adds them to a group."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from brainmap.cli.console import command, print_json, print_pairs
from brainmap.errors import MissingExtraError

__all__ = ["register", "round_of_clicks", "sample", "study"]

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Seed = Annotated[int, typer.Option(help="Decides every choice that is left to chance.", metavar="N")]


def register(app: typer.Typer) -> None:
    """Add the commands to a group, such as `brainmap crowd`."""
    command(app, "sample")(sample)
    command(app, "study")(study)
    command(app, "round")(round_of_clicks)


def sample(
    runs: Annotated[list[Path], typer.Argument(help="Finished runs; each is an animal.", metavar="RUN")],
    out: Annotated[Path, typer.Option(help="Tiles folder to write.", metavar="TILES")],
    regions: Annotated[
        str | None,
        typer.Option(
            help="Acronyms or ids, separated by commas [default: Isocortex,OLF,HPF,CTXsp,STR, as far as the "
            "atlas has them].",
            metavar="NAMES",
        ),
    ] = None,
    tile: Annotated[int, typer.Option(help="Height and width of a tile, px.", metavar="N")] = 500,
    budget: Annotated[
        int | None,
        typer.Option(help="Tiles to write, QC tiles included [default: all that pass].", metavar="N"),
    ] = None,
    strategy: Annotated[
        str, typer.Option(help="How tiles are chosen.", metavar="even|random|active|uncertain")
    ] = "even",
    qc: Annotated[int, typer.Option(help="Quality-control tiles, which every worker gets.", metavar="N")] = 5,
    datasets: Annotated[
        int | None, typer.Option(help="Data sets for the other tiles [default: one for 30].", metavar="K")
    ] = None,
    seed: Seed = 0,
    sections: Annotated[int, typer.Option(help="Sections of each brain to cut from.", metavar="N")] = 20,
    truth: Annotated[
        Path | None,
        typer.Option(
            help="Ground truth of an earlier round: its tiles are left out, and uncertain looks for tiles like "
            "those that were hard.",
            metavar="GT",
        ),
    ] = None,
    truth_tiles: Annotated[
        Path | None, typer.Option(help="Tiles of that ground truth, where they moved.", metavar="TILES")
    ] = None,
    detector: Annotated[
        str | None,
        typer.Option(help="Detector that looks at the tiles [default: the first run's].", metavar="NAME|DIR"),
    ] = None,
    brains: Annotated[
        Path | None, typer.Option(help="Folder that the runs' brains were moved to.", metavar="DIR")
    ] = None,
    bright: Annotated[
        str,
        typer.Option(
            help="Where the quality rule's bright end is: at the brain's brightest grey levels, or at the end "
            "of detection's scale.",
            metavar="brain|scale",
        ),
    ] = "brain",
    as_json: AsJson = False,
) -> None:
    """Choose tiles of one or many runs for people to annotate."""
    from brainmap.crowd.sampling import SampleRequest, sample_tiles
    from brainmap.crowd.sampling.request import parse_regions

    sampled = sample_tiles(SampleRequest(
        tuple(runs), out, parse_regions(regions), tile, budget, strategy, qc, datasets, sections, seed=seed,
        truth=truth, truth_tiles=truth_tiles, detector=detector, brains=brains, bright=bright,
    ))  # fmt: skip
    if as_json:
        print_json(sampled.as_dict())
    else:
        print_pairs(sampled.lines())


def study(
    tiles: Annotated[Path, typer.Argument(help="Labelled tiles of several brains.", metavar="TILES")],
    truth: Annotated[
        Path, typer.Argument(help="Their ground truth: a folder, or CSV image_id,x,y.", metavar="GT")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the report and its numbers.", metavar="DIR")],
    detector: Annotated[
        str, typer.Option(help="Detector that would be taught.", metavar="NAME|DIR")
    ] = "default",
    budget: Annotated[
        int | None, typer.Option(help="Tiles to annotate [default: half of an animal's].", metavar="N")
    ] = None,
    repeats: Annotated[int, typer.Option(help="Choices of animals to hold out.", metavar="N")] = 10,
    draws: Annotated[int, typer.Option(help="Choices of animals to annotate in each.", metavar="N")] = 4,
    held_out: Annotated[float, typer.Option(help="Share of the animals that judge.", metavar="F")] = 0.3,
    cell_diameter: Annotated[
        float | None, typer.Option(help="Typical cell in the tiles [default: the detector's].", metavar="UM")
    ] = None,
    strategies: Annotated[
        str, typer.Option(help="Strategies to compare.", metavar="NAMES")
    ] = "even,random,active,uncertain",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Test on labelled tiles which to annotate: animals x slices x strategy at equal budget."""
    from brainmap.crowd.loop.study import run_study
    from brainmap.crowd.loop.study_record import StudyRequest

    names = tuple(name.strip() for name in strategies.split(","))
    found = run_study(StudyRequest(
        tiles, truth, out, detector, budget, repeats, draws, held_out, cell_diameter, strategies=names, seed=seed
    ))  # fmt: skip
    if as_json:
        from brainmap.files import read_json

        print_json(read_json(out / "study.json"))
    else:
        print_pairs(found.lines())


def round_of_clicks(
    site: Annotated[Path, typer.Argument(help="Site folder.", metavar="SITE")],
    name: Annotated[str, typer.Argument(help="Project of the site.", metavar="NAME")],
    out: Annotated[Path, typer.Option(help="Folder of the round; the same command resumes.", metavar="DIR")],
    start: Annotated[
        str, typer.Option("--from", help="Detector to improve.", metavar="DETECTOR")
    ] = "default",
    config: Annotated[
        Path | None,
        typer.Option(help="Settings of the retraining, see configs/retrain.toml.", metavar="FILE.toml"),
    ] = None,
    rehearsal: Annotated[
        int | None, typer.Option(help="Simulated volumes to train on as well [default: 50].", metavar="N")
    ] = None,
    cell_diameter: Annotated[
        float | None, typer.Option(help="Typical cell in the tiles [default: the start's].", metavar="UM")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of split, training and bootstrap.", metavar="N")] = None,
    device: Annotated[str, typer.Option(help="Where to train.", metavar="cpu|cuda|mps")] = "cpu",
    accept_worse: Annotated[
        bool, typer.Option("--accept-worse", help="Write the new detector although it is not better.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a round with other parameters at OUT.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """From a site's clicks to a better detector, or the reason why not: export, aggregate, retrain, verdict."""
    for package in ("torch", "onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "train", "retrain a detector")
    from brainmap.crowd.loop.round import RoundRequest, run_round
    from brainmap.train.retrain.request import read_retrain_settings

    result = run_round(RoundRequest(
        site, name, out, start, read_retrain_settings(config, seed=seed, rehearsal=rehearsal), cell_diameter,
        device, accept_worse, overwrite,
    ))  # fmt: skip
    if as_json:
        print_json({"out": result.out, "detector": result.detector, "kept": result.kept, **result.verdict})
    else:
        print_pairs(result.lines())
