"""`brainmap view`, `brainmap review` and `brainmap status`: parse, call one function, print."""

from __future__ import annotations

import getpass
import math
import socket
import time
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from brainmap.cli.console import command, print_json, print_pairs
from brainmap.errors import UsageError

__all__ = ["register"]

Run = Annotated[Path, typer.Argument(help="Run folder.", metavar="RUN")]
Port = Annotated[
    int, typer.Option(help="Port on this machine [default: a free one].", metavar="N", min=0, max=65535)
]
NoBrowser = Annotated[bool, typer.Option("--no-browser", help="Only print the address.")]
Brain = Annotated[
    str | None, typer.Option(help="Where the run's image lies, if it was moved.", metavar="BRAIN")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "view")(view)
    command(app, "review")(review)
    command(app, "status")(status)


def _say(address: str, port: int) -> None:
    typer.echo(address)
    typer.echo(
        f"from another computer: ssh -N -L {port}:127.0.0.1:{port} {getpass.getuser()}@{socket.gethostname()}\n"
        "and open the same address there; Ctrl-C here ends it",
        err=True,
    )


def view(
    run: Run,
    port: Port = 0,
    no_browser: NoBrowser = False,
    brain: Brain = None,
    at: Annotated[
        str | None,
        typer.Option(help="Begin at a place in um or a region's acronym or id.", metavar="Z,Y,X|REGION"),
    ] = None,
    napari: Annotated[bool, typer.Option("--napari", help="In a window of napari instead.")] = False,
) -> None:
    """See a run in the browser: image, regions, cells; mark what is right, wrong and missed; move the threshold."""
    if napari:
        from brainmap.view.napari import view_run

        view_run(run, brain)
        return
    from brainmap.view.server import serve_run

    page = "/" if at is None else f"/?at={quote(_checked_place(at), safe=',')}"
    serve_run(run, port, page=page, browser=not no_browser, brain=brain, say=_say)


def _checked_place(at: str) -> str:
    """What the page takes as a place: three finite numbers, or a region's name in its atlas."""
    parts = [part.strip() for part in at.split(",")]
    if len(parts) == 1 and parts[0]:
        return parts[0]
    try:
        good = len(parts) == 3 and all(math.isfinite(float(part)) for part in parts)
    except ValueError:
        good = False
    if not good:
        raise UsageError(f"--at {at!r} must be z,y,x in um, such as 1200,3400,5600, or a region such as CTX")
    return ",".join(parts)


def review(run: Run, port: Port = 0, no_browser: NoBrowser = False, brain: Brain = None) -> None:
    """Judge sample cells and fields one after another: how good are this brain's counts, by division?"""
    from brainmap.view.server import serve_run

    serve_run(run, port, page="/review", browser=not no_browser, brain=brain, say=_say)


def status(
    where: Annotated[Path, typer.Argument(help="Run folder, or an annotation site.", metavar="RUN|SITE")],
    watch: Annotated[
        bool, typer.Option("--watch", help="Say it again whenever it changes, until it is done.")
    ] = False,
    price: Annotated[
        float | None,
        typer.Option(help="Price of an hour of all machines, for the cost so far.", metavar="F", min=0),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Say how far a run or an annotation site is."""
    from brainmap.run_folder import is_run

    if not is_run(where) and (where / "crowd.toml").is_file():
        if watch or price is not None:
            raise UsageError("--watch and --price belong to a run")
        _site(where, as_json)
        return
    from brainmap.view.status import run_status

    last = None
    while True:
        found = run_status(where, price)
        now = (found.status, found.done, len(found.failed))
        if now != last:
            if as_json:
                print_json(found.as_dict())
            else:
                print_pairs(found.lines())
        if not watch or found.status in ("complete", "incomplete"):
            return
        last = now
        time.sleep(2)


def _site(site: Path, as_json: bool) -> None:
    from brainmap.cli.crowd import status as site_status

    site_status(site, as_json=as_json)
