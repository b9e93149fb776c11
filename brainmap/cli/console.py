"""What all commands share: their registration, logging, error sentences, exit codes, printing.

Results go to stdout, progress and logs to stderr. Exit codes: 0 done, 1 failed (bad data included),
2 wrong use, 3 finished with missing blocks, 130 interrupted.
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
from contextlib import nullcontext
from typing import Annotated, Any, get_type_hints

import typer

from brainmap.cli.help import EXAMPLES, GroupedCommand, GroupedCommands
from brainmap.errors import BrainmapError
from brainmap.progress import shown

__all__ = [
    "EXIT_FAILED",
    "EXIT_INTERRUPTED",
    "command",
    "new_app",
    "print_json",
    "print_pairs",
    "report_error",
]

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130

Verbose = Annotated[
    int,
    typer.Option(
        "--verbose", "-v", count=True, show_default=False, help="Log more; twice: everything, and tracebacks."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Log warnings and errors only, no progress bar.")]


def new_app(name: str, text: str) -> typer.Typer:
    """An application or a group of commands, set up as all of ours."""
    return typer.Typer(
        name=name,
        cls=GroupedCommands,
        help=text,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def command(app: typer.Typer, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command: adds -v and -q, sets up logging, turns errors into a sentence and a code."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*, verbose: int, quiet: bool, **options: Any) -> None:
            _configure_logging(verbose, quiet)
            try:
                with nullcontext() if quiet else shown():
                    function(**options)
            except (Exception, KeyboardInterrupt) as error:
                raise typer.Exit(report_error(error, verbose)) from None

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
        words = name if app.info.name == "brainmap" else f"{app.info.name} {name}"
        with_examples = type("Shown", (GroupedCommand,), {"examples": EXAMPLES.get(words, ())})
        app.command(name, cls=with_examples)(run)
        return function

    return register


def report_error(error: BaseException, verbose: int) -> int:
    """Print one sentence about an error to stderr; return the exit code."""
    if isinstance(error, typer.Exit):
        return int(error.exit_code)
    if verbose >= 2:
        traceback.print_exception(error, file=sys.stderr)
    code = EXIT_FAILED
    if isinstance(error, KeyboardInterrupt):
        sentence, code = str(error) or "interrupted", EXIT_INTERRUPTED
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
        said = str(error)
        advice = "out of memory: use fewer --workers or a smaller --block"
        sentence = said if said.startswith("out of memory") else advice
    else:
        sentence = f"unexpected {type(error).__name__}: {error} (a bug in brainmap; -vv shows where)"
    typer.echo(f"brainmap: {' '.join(sentence.split())}", err=True)
    return code


class _Lines(logging.StreamHandler[Any]):
    """Log lines on whatever stderr is when they are written: above the progress bars, while there are any."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        """Where the line goes."""
        return sys.stderr


def _configure_logging(verbose: int, quiet: bool) -> None:
    level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
    handler = _Lines()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%H:%M:%S"))
    ours = logging.getLogger("brainmap")
    ours.handlers[:] = [handler]
    ours.setLevel(level)
    ours.propagate = False
    if verbose >= 2:
        logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def print_json(value: Any) -> None:
    """Print a result as JSON; knows numpy, paths and dataclasses."""
    from brainmap.files import to_jsonable

    typer.echo(json.dumps(to_jsonable(value), indent=2))


def print_pairs(pairs: Iterable[tuple[str, Any]]) -> None:
    """Print names and values in two columns."""
    rows = [(name, str(value)) for name, value in pairs]
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        typer.echo(f"{name:<{width}}  {value}")
