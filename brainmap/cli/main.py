"""The command line: parse, call one function, print.

Rooms are imported inside the commands that need them, so that `brainmap --help` stays quick.
"""

from __future__ import annotations

import gc
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from brainmap import __version__
from brainmap.cli import atlas as atlas_cli
from brainmap.cli import cohort as cohort_cli
from brainmap.cli import crowd as crowd_cli
from brainmap.cli import crowd_loop
from brainmap.cli import gt as gt_cli
from brainmap.cli import train as train_cli
from brainmap.cli import view as view_cli
from brainmap.cli.console import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    command,
    new_app,
    print_json,
    print_pairs,
    report_error,
)
from brainmap.errors import BrainmapError, IncompleteRunError, UsageError

if TYPE_CHECKING:
    from brainmap.run.request import DetectRequest

__all__ = ["app", "main"]

app = new_app("brainmap", "Whole-brain cell detection: a brain in, a table of cells per atlas region out.")
app.add_typer(atlas_cli.app)
app.add_typer(gt_cli.app)
app.add_typer(train_cli.app)
crowd_loop.register(crowd_cli.app)
app.add_typer(crowd_cli.app)
command(app, "retrain")(train_cli.retrain)
cohort_cli.register(app)
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Channel = Annotated[int | None, typer.Option(help="Channel, counting from 0.", metavar="N")]
Timepoint = Annotated[int | None, typer.Option(help="Timepoint, counting from 0.", metavar="N")]
Axes = Annotated[
    str | None,
    typer.Option(
        help="What each stored axis is, one letter of t c z y x each, a dot for another one; for files that do not "
        "say it, or say it wrongly (planes saved as channels: zyx).",
        metavar="LETTERS",
    ),
]
VoxelSize = Annotated[
    str | None, typer.Option(help="Voxel size in um; overrides the image's own.", metavar="Z,Y,X")
]
Orientation = Annotated[
    str | None,
    typer.Option(
        help="Side where each stored axis starts, e.g. asr; auto finds it, a dot finds one letter (..l).",
        metavar="LETTERS",
    ),
]
AtlasName = Annotated[
    str | None, typer.Option(help="Atlas name or folder [default: allen_mouse_50um].", metavar="NAME|DIR")
]
SummaryLevel = Annotated[
    str | None,
    typer.Option(
        help="Regions of regions_summary.csv: summary, divisions, leaf, all, a depth, acronyms separated by commas, "
        "or a CSV set,structure [default: summary].",
        metavar="LEVEL",
    ),
]
Mask = Annotated[Path | None, typer.Option(help="Image of the tissue to analyse.", metavar="FILE")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"brainmap {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Whole-brain cell detection: a brain in, a table of cells per atlas region out."""


@command(app, "demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write into.", metavar="DIR")] = Path("demo"),
    with_crowd: Annotated[
        bool, typer.Option("--crowd", help="Instead: tiles, a simulated crowd, a retrained detector.")
    ] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="With --crowd: open the tiles in the browser, to click oneself.")
    ] = False,
) -> None:
    """Make a phantom brain, detect and count its cells, and score them against the known truth."""
    if serve and not with_crowd:
        raise UsageError("--serve belongs to --crowd")
    if with_crowd:
        from brainmap.crowd.loop.demo import run_crowd_demo, serve_demo

        typer.echo(run_crowd_demo(out))
        if serve:
            serve_demo(out)
        return
    from brainmap.run.demo import run_demo

    typer.echo(str(run_demo(out)))


@command(app, "detect")
def detect(
    ctx: typer.Context,
    brains: Annotated[
        list[str], typer.Argument(help="OME-Zarr volumes (path or URL), or folders of them.", metavar="BRAIN")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Run folder; for several brains the folder of their run folders. [default: BRAIN.brainmap]",
            metavar="RUN",
        ),
    ] = None,
    channel: Channel = None,
    registration_channel: Annotated[
        int | None, typer.Option(help="Channel to register to the atlas.", metavar="N")
    ] = None,
    timepoint: Timepoint = None,
    axes: Axes = None,
    orientation: Orientation = None,
    voxel_size: VoxelSize = None,
    atlas: AtlasName = None,
    no_atlas: Annotated[bool, typer.Option("--no-atlas", help="Detect only, count no regions.")] = False,
    registration: Annotated[
        Path | None, typer.Option(help="Use this finished registration.", metavar="DIR")
    ] = None,
    detector: Annotated[
        str | None, typer.Option(help="Detector name or folder [default: default].", metavar="NAME|DIR")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Least score, 0 to 1 [default: the detector's].", metavar="F")
    ] = None,
    cell_diameter: Annotated[
        str | None,
        typer.Option(
            help="Typical cell diameter; auto measures it on sample patches [default: the detector's].",
            metavar="UM|auto",
        ),
    ] = None,
    roi: Annotated[
        str | None, typer.Option(help="Part of the volume, in voxels.", metavar="Z0:Z1,Y0:Y1,X0:X1")
    ] = None,
    block: Annotated[str | None, typer.Option(help="Block size in voxels.", metavar="Z,Y,X")] = None,
    backend: Annotated[
        str | None, typer.Option(help="auto, openvino, tensorrt or torch [default: auto].", metavar="NAME")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or mps [default: the backend's choice].", metavar="NAME")
    ] = None,
    registration_image: Annotated[
        Path | None, typer.Option(help="Register this image instead of the brain.", metavar="FILE")
    ] = None,
    mask: Mask = None,
    workers: Annotated[int | None, typer.Option(help="Number of workers.", metavar="N")] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="A dask scheduler, or slurm:FILE.", metavar="ADDRESS")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run made otherwise.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print blocks, bytes, memory and time; compute nothing.")
    ] = False,
    export: Annotated[
        list[str] | None,
        typer.Option(
            help="Also write brainglobe-xml, brainglobe-csv, brainglobe-yaml, brainmapper, napari, "
            "neuroglancer, brainrender, quint or density; may be repeated.",
            metavar="KIND",
        ),
    ] = None,
    level: SummaryLevel = None,
    config: Annotated[
        Path | None, typer.Option(help="Settings; the command line wins.", metavar="FILE.toml")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Detect the cells of a brain and count them per atlas region."""
    from brainmap.run.request import DETECT_SETTINGS, detect_requests

    # The parameters above carry the names of the settings; only those that were given count.
    options = {name.replace("_", "-"): value for name, value in ctx.params.items()}
    names = DETECT_SETTINGS & set(options) - {"out"}
    # Zero is a value; flags and lists that were not given are False and empty.
    given = {name: options[name] for name in names if options[name] not in (None, [], ())}
    given = {name: value for name, value in given.items() if value is not False}
    progress = False if ctx.params["quiet"] else None
    requests = detect_requests(brains, config, given, out)
    _detect_all([replace(request, progress=progress) for request in requests], as_json)


def _detect_all(requests: list[DetectRequest], as_json: bool) -> None:
    """One brain after another; a brain that fails does not keep the others from being done."""
    from brainmap.run.detect import detect_brain

    results, codes = [], []
    for request in requests:
        try:
            summary = detect_brain(request)
        except BrainmapError as error:
            if len(requests) == 1:
                raise
            codes.append(report_error(error, 0))
            continue
        results.append(summary)
        if not as_json:
            typer.echo(str(summary))
    if as_json:
        print_json(results[0] if len(requests) == 1 else results)
    # A brain that failed weighs more than one with missing blocks.
    if codes:
        raise typer.Exit(next((code for code in codes if code != IncompleteRunError.exit_code), codes[0]))


@command(app, "register")
def register(
    brain: Annotated[str, typer.Argument(help="OME-Zarr volume, path or URL.", metavar="BRAIN")],
    out: Annotated[Path, typer.Option(help="Folder of the registration.", metavar="DIR")],
    atlas: AtlasName = None,
    orientation: Orientation = None,
    channel: Channel = None,
    timepoint: Timepoint = None,
    axes: Axes = None,
    voxel_size: VoxelSize = None,
    mask: Mask = None,
    landmarks: Annotated[
        Path | None,
        typer.Option(
            help="CSV of point pairs to meet: z,y,x or z_um,y_um,x_um and atlas_z_um,atlas_y_um,atlas_x_um. With "
            "--overwrite, the alignment in --out is kept.",
            metavar="FILE.csv",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a registration made otherwise.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Register a brain to an atlas."""
    from brainmap.registration.register import register_brain
    from brainmap.run.request import DEFAULT_ATLAS, parse_voxel_size

    registration = register_brain(
        brain,
        out,
        atlas=atlas or DEFAULT_ATLAS,
        orientation=orientation,
        channel=channel,
        voxel_size=parse_voxel_size(voxel_size) if voxel_size else None,
        timepoint=timepoint,
        axes=axes,
        mask=mask,
        landmarks=landmarks,
        overwrite=overwrite,
    )
    if as_json:
        print_json(registration.record)
    else:
        print_pairs(registration.lines())
    for warning in registration.warnings:
        typer.echo(f"brainmap: {warning}", err=True)


@command(app, "regions")
def regions(
    run: Annotated[Path, typer.Argument(help="Run folder.", metavar="RUN")],
    registration: Annotated[
        Path | None, typer.Option(help="Registration to use [default: the run's own].", metavar="DIR")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Least score: cells, tables, exports and report anew from the candidates in the run folder.",
            metavar="F",
        ),
    ] = None,
    level: SummaryLevel = None,
    brain: Annotated[
        str | None, typer.Option(help="Where the run's image lies, if it was moved.", metavar="BRAIN")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the summary here, and nothing else.", metavar="FILE.csv")
    ] = None,
) -> None:
    """Count a run's cells anew: after a better registration, at another threshold; with --level only its summary."""
    from brainmap.run.recount import recount, summarise_run

    anew = registration is not None or threshold is not None
    if not anew and (level is not None or out is not None):
        typer.echo(str(summarise_run(run, level, out)))
        return
    if out is not None:
        raise UsageError("--out writes a summary alone: it cannot go with --registration or --threshold")
    found = recount(run, registration, level, threshold, brain)
    outside = "" if found.outside is None else f", {found.outside} of them outside the atlas"
    typer.echo(f"{run}  {found.cells} cells{outside}")


@command(app, "tune")
def tune(
    run: Annotated[Path, typer.Argument(help="Run folder.", metavar="RUN")],
    marks: Annotated[
        Path | None,
        typer.Option(
            help="CSV z,y,x,mark: yes, no, missed or unsure [default: RUN/marks.csv].", metavar="CSV"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Detector folder to write [default: RUN/tuned_detector].", metavar="DETECTOR"),
    ] = None,
    complete: Annotated[
        bool,
        typer.Option(
            "--complete", help="Missed cells were looked for around the marks, even if none is marked."
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a detector there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fit a run's detector to its tissue by 30 to 300 marks: score and threshold, for the animals to come."""
    from brainmap.run.tune import tune_run

    result = tune_run(run, marks, out, complete=complete, overwrite=overwrite)
    if as_json:
        print_json(result)
    else:
        print_pairs(result.lines())


view_cli.register(app)


@command(app, "convert")
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="TIFF file, folder of planes (TIFF, PNG, JPEG), .txt list of them, .npy or Zarr.",
            metavar="SOURCE",
        ),
    ],
    dest: Annotated[Path, typer.Argument(help="OME-Zarr to write.", metavar="DEST.zarr")],
    voxel_size: VoxelSize = None,
    axes: Axes = None,
    timepoint: Timepoint = None,
    planes: Annotated[
        str | None,
        typer.Option(
            help="Of a folder: only files of this name; * is anything, ? a character, # a number ('brain_Ch1_#.tif').",
            metavar="PATTERN",
        ),
    ] = None,
    allow_gaps: Annotated[
        bool, typer.Option("--allow-gaps", help="Leave planes empty whose numbers are missing.")
    ] = False,
    channel_names: Annotated[
        str | None, typer.Option(help="Names of the channels, separated by commas.", metavar="NAMES")
    ] = None,
    orientation: Annotated[
        str | None, typer.Option(help="Side where each axis starts, e.g. asr; stored.", metavar="LETTERS")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Number of threads.", metavar="N")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is at DEST.")] = False,
) -> None:
    """Convert a TIFF stack, a folder of planes or another Zarr to a pyramidal OME-Zarr."""
    from brainmap.convert.convert import convert as convert_stack
    from brainmap.run.request import parse_voxel_size

    volume = convert_stack(
        source,
        dest,
        voxel_um=parse_voxel_size(voxel_size) if voxel_size else None,
        axes=axes,
        timepoint=timepoint,
        planes=planes,
        allow_gaps=allow_gaps,
        channel_names=[name.strip() for name in channel_names.split(",")] if channel_names else None,
        orientation=orientation,
        workers=workers,
        overwrite=overwrite,
    )
    size, voxel = ("x".join(f"{v:g}" for v in values) for values in (volume.shape, volume.voxel_um))
    names = f" ({', '.join(volume.channel_names)})" if volume.channel_names else ""
    channels = f", {volume.n_channels} channels{names}" if volume.n_channels > 1 else ""
    typer.echo(f"{dest}  {size} voxels of {voxel} um{channels}")
    which = " --channel 0" if volume.n_channels > 1 else ""
    side = "" if volume.orientation else " --orientation auto"
    typer.echo(f"next: brainmap detect {dest}{which}{side}")


@command(app, "evaluate")
def evaluate(
    points: Annotated[Path, typer.Argument(help="Detected points, or a run folder.", metavar="POINTS")],
    truth: Annotated[Path, typer.Argument(help="True points.", metavar="TRUTH")],
    tolerance_um: Annotated[
        float | None, typer.Option(help="Largest distance of a match in um [default: 10].", metavar="F")
    ] = None,
    tolerance_px: Annotated[
        float | None, typer.Option(help="The same in voxels or pixels.", metavar="F")
    ] = None,
    rule: Annotated[
        str, typer.Option(help="Tolerance inside the assignment, or after it.", metavar="inside|after")
    ] = "inside",
    as_json: AsJson = False,
) -> None:
    """Score points against the truth: precision, recall, F1, average precision."""
    from brainmap.points.evaluation import evaluate_files

    result = evaluate_files(points, truth, tolerance_um=tolerance_um, tolerance_px=tolerance_px, rule=rule)
    if as_json:
        print_json(result.as_dict())
    else:
        print_pairs(result.lines())


@command(app, "doctor")
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine can do, what is missing, and how to install it."""
    from brainmap.cli.doctor import examine

    report = examine()
    if as_json:
        print_json(report.as_dict())
    else:
        typer.echo(report.text())
    if not report.ok:
        raise typer.Exit(EXIT_FAILED)


def main() -> None:
    """Entry point of the `brainmap` command."""
    # Looking for garbage among the modules just loaded, again and again and once more at the end, takes most of a
    # second; there is none.
    gc.set_threshold(50_000, 20, 20)
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    finally:
        gc.freeze()
