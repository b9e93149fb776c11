"""The command line: parse, call one function, print.

Results go to stdout, progress and logs to stderr. Exit codes: 0 done, 1 failed (bad data included),
2 wrong use, 3 finished with missing blocks, 130 interrupted. Rooms are imported inside the commands
that need them, so that `brainmap --help` stays quick.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from brainmap import __version__
from brainmap.errors import BrainmapError

if TYPE_CHECKING:
    from brainmap.config import DetectRequest

__all__ = ["app", "main"]

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130
logger = logging.getLogger(__name__)

app = typer.Typer(
    name="brainmap",
    help="Whole-brain cell detection: a brain in, a table of cells per atlas region out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Verbose = Annotated[
    int, typer.Option("--verbose", "-v", count=True, help="Log more; twice: everything, and tracebacks.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Log warnings and errors only, no progress bar.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Channel = Annotated[int | None, typer.Option(help="Channel, counting from 0.", metavar="N")]
VoxelSize = Annotated[
    str | None, typer.Option(help="Voxel size in um; overrides the image's own.", metavar="Z,Y,X")
]
Orientation = Annotated[
    str | None,
    typer.Option(help="Side where each stored axis starts, e.g. asr; or auto.", metavar="LETTERS"),
]
AtlasName = Annotated[
    str | None, typer.Option(help="Atlas name or folder [default: allen_mouse_50um].", metavar="NAME|DIR")
]
Mask = Annotated[Path | None, typer.Option(help="Image of the tissue to analyse.", metavar="FILE")]


def command(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command: adds -v and -q, sets up logging, turns errors into a sentence and a code."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*, verbose: int, quiet: bool, **options: Any) -> None:
            _configure_logging(verbose, quiet)
            try:
                function(**options)
            except (Exception, KeyboardInterrupt) as error:
                raise typer.Exit(_report(error, verbose)) from None

        hints = get_type_hints(function, include_extras=True)
        own = inspect.signature(function, eval_str=True)
        keyword = inspect.Parameter.KEYWORD_ONLY
        extra = [
            inspect.Parameter("verbose", keyword, default=0, annotation=Verbose),
            inspect.Parameter("quiet", keyword, default=False, annotation=Quiet),
        ]
        signature = own.replace(parameters=[*own.parameters.values(), *extra])
        run.__signature__ = signature  # type: ignore[attr-defined]
        run.__annotations__ = hints | {"verbose": Verbose, "quiet": Quiet}
        del run.__wrapped__
        app.command(name)(run)
        return function

    return register


def _report(error: BaseException, verbose: int) -> int:
    """Print one sentence about an error to stderr; return the exit code."""
    if isinstance(error, typer.Exit):
        return int(error.exit_code)
    if verbose >= 2:
        traceback.print_exception(error, file=sys.stderr)
    code = EXIT_FAILED
    if isinstance(error, KeyboardInterrupt):
        sentence, code = "interrupted", EXIT_INTERRUPTED
    elif isinstance(error, BrainmapError):
        sentence, code = str(error), error.exit_code
    elif isinstance(error, BrokenPipeError):
        # The reader of our output went away (`| head`): nothing to tell, nobody to tell it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    elif isinstance(error, OSError) and error.strerror:
        where = f" {error.filename}" if error.filename else ""
        sentence = f"cannot read or write{where}: {error.strerror}"
    elif isinstance(error, MemoryError):
        sentence = "out of memory: use fewer --workers or a smaller --block"
    else:
        sentence = f"unexpected {type(error).__name__}: {error} (a bug in brainmap; -vv shows where)"
    typer.echo(f"brainmap: {' '.join(sentence.split())}", err=True)
    return code


def _configure_logging(verbose: int, quiet: bool) -> None:
    level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%H:%M:%S"))
    ours = logging.getLogger("brainmap")
    ours.handlers[:] = [handler]
    ours.setLevel(level)
    ours.propagate = False
    if verbose >= 2:
        logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def _print_json(value: Any) -> None:
    from brainmap.provenance import to_jsonable

    typer.echo(json.dumps(to_jsonable(value), indent=2))


def _print_pairs(pairs: Iterable[tuple[str, Any]]) -> None:
    rows = [(name, str(value)) for name, value in pairs]
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        typer.echo(f"{name:<{width}}  {value}")


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


@command("demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write into.", metavar="DIR")] = Path("demo"),
) -> None:
    """Make a phantom brain, detect and count its cells, and score them against the known truth."""
    from brainmap.pipeline import run_demo

    typer.echo(str(run_demo(out)))


@command("detect")
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
        float | None, typer.Option(help="Typical cell diameter [default: the detector's].", metavar="UM")
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
            "neuroglancer or brainrender; may be repeated.",
            metavar="KIND",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Settings; the command line wins.", metavar="FILE.toml")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Detect the cells of a brain and count them per atlas region."""
    from brainmap.config import DETECT_SETTINGS, detect_requests

    # The parameters above carry the names of the settings; only those that were given count.
    options = {name.replace("_", "-"): value for name, value in ctx.params.items()}
    names = DETECT_SETTINGS & set(options) - {"out"}
    given = {name: options[name] for name in names if options[name] not in (None, False, [], ())}
    progress = False if ctx.params["quiet"] else None
    requests = detect_requests(brains, config, given, out)
    _detect_all([replace(request, progress=progress) for request in requests], as_json)


def _detect_all(requests: list[DetectRequest], as_json: bool) -> None:
    """One brain after another; a brain that fails does not keep the others from being done."""
    from brainmap.pipeline import detect_brain

    results, worst = [], 0
    for request in requests:
        try:
            summary = detect_brain(request)
        except BrainmapError as error:
            if len(requests) == 1:
                raise
            worst = max(worst, _report(error, 0)) if worst != EXIT_FAILED else EXIT_FAILED
            continue
        if as_json:
            results.append(summary)
        else:
            typer.echo(str(summary))
    if as_json:
        _print_json(results[0] if len(requests) == 1 else results)
    if worst:
        raise typer.Exit(worst)


@command("register")
def register(
    brain: Annotated[str, typer.Argument(help="OME-Zarr volume, path or URL.", metavar="BRAIN")],
    out: Annotated[Path, typer.Option(help="Folder of the registration.", metavar="DIR")],
    atlas: AtlasName = None,
    orientation: Orientation = None,
    channel: Channel = None,
    voxel_size: VoxelSize = None,
    mask: Mask = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a registration made otherwise.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Register a brain to an atlas."""
    from brainmap.atlas.registration import register_brain
    from brainmap.config import DEFAULT_ATLAS, parse_voxel_size

    registration = register_brain(
        brain,
        out,
        atlas=atlas or DEFAULT_ATLAS,
        orientation=orientation,
        channel=channel,
        voxel_size=parse_voxel_size(voxel_size) if voxel_size else None,
        mask=mask,
        overwrite=overwrite,
    )
    if as_json:
        _print_json(registration.record)
    else:
        typer.echo(f"registration  {registration.folder}")


@command("regions")
def regions(
    run: Annotated[Path, typer.Argument(help="Run folder.", metavar="RUN")],
    registration: Annotated[
        Path | None, typer.Option(help="Registration to use [default: the run's own].", metavar="DIR")
    ] = None,
) -> None:
    """Count a run's cells per region again, e.g. after a better registration."""
    from brainmap.pipeline import recount

    table = recount(run, registration)
    typer.echo(f"{run / 'regions.csv'}  {int(table['count'][0])} cells outside the atlas")


@command("view")
def view(run: Annotated[Path, typer.Argument(help="Run folder.", metavar="RUN")]) -> None:
    """Open a run in napari: the volume, its cells and the warped atlas."""
    from brainmap.view import view_run

    view_run(run)


@command("convert")
def convert(
    source: Annotated[
        Path, typer.Argument(help="TIFF file, folder of planes, .npy or Zarr.", metavar="SOURCE")
    ],
    dest: Annotated[Path, typer.Argument(help="OME-Zarr to write.", metavar="DEST.zarr")],
    voxel_size: VoxelSize = None,
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
    from brainmap.config import parse_voxel_size
    from brainmap.convert import convert as convert_stack

    volume = convert_stack(
        source,
        dest,
        voxel_um=parse_voxel_size(voxel_size) if voxel_size else None,
        channel_names=[name.strip() for name in channel_names.split(",")] if channel_names else None,
        orientation=orientation,
        workers=workers,
        overwrite=overwrite,
    )
    size, voxel = ("x".join(f"{v:g}" for v in values) for values in (volume.shape, volume.voxel_um))
    typer.echo(f"{dest}  {size} voxels of {voxel} um, {len(volume.levels)} levels")


@command("evaluate")
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
    from brainmap.evaluation import evaluate_files

    result = evaluate_files(points, truth, tolerance_um=tolerance_um, tolerance_px=tolerance_px, rule=rule)
    if as_json:
        _print_json(result.as_dict())
    else:
        _print_pairs(result.lines())


@command("doctor")
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine can do, what is missing, and how to install it."""
    from brainmap.doctor import examine

    report = examine()
    if as_json:
        _print_json(report.as_dict())
    else:
        typer.echo(report.text())
    if not report.ok:
        raise typer.Exit(EXIT_FAILED)


def main() -> None:
    """Entry point of the `brainmap` command."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
