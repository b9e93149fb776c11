"""`brainmap atlas list`, `download` and `structures`: parse, call one function, print."""

from __future__ import annotations

import csv
import sys
from typing import Annotated

import typer

from brainmap.cli.console import command, new_app, print_json

app = new_app("atlas", "Atlases: what is here, where from, and their structures.")
Name = Annotated[str, typer.Argument(help="Atlas name or folder.", metavar="NAME|DIR")]


@command(app, "list")
def list_command(
    offered: Annotated[
        bool,
        typer.Option("--offered", help="What BrainGlobe offers (needs brainglobe-atlasapi and a network)."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """List the atlases on this machine, and where they are looked for."""
    from brainmap.atlas.find import atlas_roots
    from brainmap.atlas.listing import local_atlases, offered_atlases

    if offered:
        versions = offered_atlases()
        if as_json:
            print_json(versions)
        else:
            typer.echo("\n".join(f"{name}  {version}" for name, version in versions.items()))
        return
    entries = local_atlases()
    if as_json:
        print_json(entries)
        return
    for entry in entries:
        if entry.resolution_um is None or entry.shape is None:
            typer.echo(f"{entry.name}  cannot be used: {entry.problem}")
            continue
        voxel, shape = ("x".join(f"{v:g}" for v in values) for values in (entry.resolution_um, entry.shape))
        sides = "" if entry.symmetric else ", own hemispheres"
        typer.echo(f"{entry.name}  {voxel} um, {shape} voxels, {entry.layout}{sides}, {entry.folder}")
    searched = ", ".join(str(root) for root in atlas_roots())
    if not entries:
        typer.echo("no atlas found: brainmap atlas download allen_mouse_50um says where to put one", err=True)
    typer.echo(f"searched: {searched}", err=True)


@command(app, "download")
def download(name: Name) -> None:
    """Find an atlas on this machine, or fetch it through brainglobe-atlasapi; print its folder."""
    from brainmap.atlas.atlas import Atlas

    typer.echo(str(Atlas.open(name).folder))


@command(app, "structures")
def structures(
    name: Name,
    find: Annotated[
        str | None, typer.Option(help="Only those whose acronym or name holds this.", metavar="TEXT")
    ] = None,
    level: Annotated[
        str | None, typer.Option(help="Only those of a level, as for detect --level.", metavar="LEVEL")
    ] = None,
) -> None:
    """Print the structures of an atlas as CSV: acronyms for --level and for sets of one's own."""
    from brainmap.atlas.atlas import Atlas
    from brainmap.atlas.region_sets import structure_rows

    columns, rows = structure_rows(Atlas.open(name).structures, level, find)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
