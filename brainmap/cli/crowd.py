"""`brainmap crowd ...`: parse, call one function, print."""

from __future__ import annotations

import getpass
import importlib.util
import sys
from pathlib import Path
from typing import Annotated

import typer

from brainmap.cli.console import command, new_app, print_json, print_pairs
from brainmap.errors import MissingExtraError, UsageError

__all__ = ["app"]

app = new_app("crowd", "The crowd: put tiles before many people in a browser, and take their clicks home.")

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
SiteFolder = Annotated[Path, typer.Argument(help="Folder of the site.", metavar="SITE")]
ProjectName = Annotated[str, typer.Argument(help="Project.", metavar="NAME")]
Database = Annotated[str, typer.Option(help="PostgreSQL URL [default: SQLite in the folder].", metavar="URL")]


def _need_web() -> None:
    for package in ("starlette", "uvicorn", "sqlalchemy", "pwdlib", "limits", "jinja2", "multipart"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "crowd", "run a site")


@command(app, "init")
def init(site: SiteFolder, database: Database = "") -> None:
    """Make a site: a folder with settings, tiles and a database."""
    _need_web()
    from brainmap.crowd.store.site import init_site

    made = init_site(site, database)
    made.close()
    typer.echo(f"{site}  settings in {site / 'crowd.toml'}")


@command(app, "project")
def project(
    site: SiteFolder,
    name: ProjectName,
    tiles: Annotated[Path, typer.Option(help="Tile folder.", metavar="TILES")],
    redundancy: Annotated[
        int | None, typer.Option(help="Workers who finish each tile [default: 5].", metavar="N")
    ] = None,
    until_certain: Annotated[
        bool,
        typer.Option(
            "--until-certain", help="Ask 3 to 12 workers, more only where their answers leave doubt."
        ),
    ] = False,
    practice: Annotated[
        tuple[Path, Path] | None,
        typer.Option(help="Tiles for practice, and their ground truth.", metavar="TILES GT"),
    ] = None,
    title: Annotated[str, typer.Option(help="Title for people [default: NAME].", metavar="TEXT")] = "",
    language: Annotated[str, typer.Option(help="Languages, separated by commas.", metavar="en,ja")] = "en,ja",
) -> None:
    """Add a project: tiles, copied into the site, and how many people shall see each."""
    _need_web()
    from brainmap.crowd.store.site import Site
    from brainmap.crowd.work.projects import ProjectSpec, add_project

    languages = tuple(part.strip() for part in language.split(",") if part.strip())
    spec = ProjectSpec(name, tiles, redundancy, until_certain, practice, title, languages)
    opened = Site.open(site)
    add_project(opened, spec)
    opened.close()
    typer.echo(f"{name}  {site / 'tiles' / name}")


@command(app, "serve")
def serve(
    site: SiteFolder,
    host: Annotated[str, typer.Option(help="Address to listen on.", metavar="ADDRESS")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port.", metavar="N", min=0, max=65535)] = 8000,
    public_url: Annotated[
        str, typer.Option(help="Where people reach the site, behind a proxy or tunnel.", metavar="URL")
    ] = "",
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Serve others without https: passwords can be read on the way."),
    ] = False,
) -> None:
    """Serve a site to browsers until interrupted."""
    _need_web()
    from brainmap.crowd.web.serve import serve as run

    run(site, host, port, public_url, insecure=insecure)


@command(app, "status")
def status(site: SiteFolder, as_json: AsJson = False) -> None:
    """Say how far the projects are: workers, tiles, clicks."""
    _need_web()
    from brainmap.crowd.store.site import Site
    from brainmap.crowd.work.progress import site_status

    opened = Site.open(site)
    found = site_status(opened)
    opened.close()
    if as_json:
        print_json(found)
        return
    typer.echo(f"{found['accounts']} accounts, {len(found['projects'])} projects")
    for p in found["projects"]:
        undecided = f", {p['undecided']} undecided" if p["until_certain"] else ""
        typer.echo(
            f"{p['name']}: {p['workers']} workers, {p['clicks']} clicks; {p['tiles']} tiles: {p['finished']} "
            f"finished, {p['in_work']} in work{undecided}"
        )


@command(app, "export")
def export(
    site: SiteFolder,
    name: ProjectName,
    out: Annotated[Path, typer.Option(help="Folder to write.", metavar="DIR")],
    as_json: AsJson = False,
) -> None:
    """Write clicks.csv, assignments.csv, workers.csv, experts.csv and tiles/; also while serving."""
    _need_web()
    from brainmap.crowd.store.site import Site
    from brainmap.crowd.work.export import export_project

    opened = Site.open(site)
    done = export_project(opened, name, out)
    opened.close()
    if as_json:
        print_json(done)
    else:
        typer.echo(f"{done.clicks} clicks of {done.workers} workers on {done.tiles} tiles  {out}")


@command(app, "import")
def import_(
    site: SiteFolder,
    name: ProjectName,
    clicks: Annotated[Path, typer.Argument(help="CSV image_id worker_id x y.", metavar="CLICKS")],
    assignments: Annotated[
        Path | None, typer.Option(help="CSV image_id worker_id completed: who saw what.", metavar="FILE.csv")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Take in clicks collected elsewhere; a second time changes nothing."""
    _need_web()
    from brainmap.crowd.store.site import Site
    from brainmap.crowd.work.import_clicks import import_clicks

    opened = Site.open(site)
    done = import_clicks(opened, name, clicks, assignments)
    opened.close()
    if as_json:
        print_json(done)
    else:
        typer.echo(f"{done.clicks} clicks of {done.workers} new workers, {done.known} known already")


@command(app, "scan")
def scan(site: SiteFolder, name: ProjectName, as_json: AsJson = False) -> None:
    """Register images that were put into a project's folder; a running site does it by itself."""
    _need_web()
    from brainmap.crowd.store.site import Site
    from brainmap.crowd.work.projects import scan_project

    opened = Site.open(site)
    found = scan_project(opened, name)
    opened.close()
    if as_json:
        print_json(found)
    else:
        typer.echo(f"{len(found.added)} new images, {len(found.refused)} refused")


@command(app, "backup")
def backup(
    site: SiteFolder,
    file: Annotated[Path, typer.Argument(help="Archive to write.", metavar="FILE")],
    as_json: AsJson = False,
) -> None:
    """Write everything a site is into one file; also while serving."""
    _need_web()
    from brainmap.crowd.store.backup import back_up
    from brainmap.crowd.store.site import Site

    opened = Site.open(site)
    done = back_up(opened, file)
    opened.close()
    if as_json:
        print_json(done)
    else:
        typer.echo(f"{file}  {done.rows['click']} clicks")


@command(app, "restore")
def restore(
    file: Annotated[Path, typer.Argument(help="Backup.", metavar="FILE")],
    site: Annotated[Path, typer.Argument(help="New folder of the site.", metavar="SITE")],
    database: Database = "",
) -> None:
    """Make a site of a backup; everybody logs in anew."""
    _need_web()
    from brainmap.crowd.store.backup import restore as run

    run(file, site, database).close()
    typer.echo(str(site))


@command(app, "users")
def users(
    site: SiteFolder,
    action: Annotated[str, typer.Argument(help="What to do.", metavar="add|list|reset|delete")],
    name: Annotated[str, typer.Argument(help="Account; not for list.", metavar="NAME")] = "",
    admin: Annotated[bool, typer.Option("--admin", help="add: may see and change everything.")] = False,
    expert: Annotated[
        bool, typer.Option("--expert", help="add: answers are kept apart from the crowd's.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Add, list, reset or delete accounts; a password is asked for, or read from standard input."""
    _need_web()
    from brainmap.crowd.work import manage

    if action not in ("add", "list", "reset", "delete"):
        raise UsageError(f"what to do is {action!r}; say add, list, reset or delete")
    if bool(name) == (action == "list"):
        raise UsageError(f"users SITE {action} {'takes no name' if name else 'needs the name of an account'}")
    if (admin or expert) and action != "add":
        raise UsageError("--admin and --expert go with add; a role is changed on the administrators' page")
    if admin and expert:
        raise UsageError("an administrator's answers are kept apart already; give --admin alone")
    if action == "add":
        manage.add_user(site, name, _password(), "admin" if admin else "expert" if expert else "worker")
    elif action == "reset":
        manage.reset_user(site, name, _password())
    elif action == "delete":
        manage.delete_user(site, name)
    if action != "list":
        typer.echo(name)
        return
    rows = manage.list_users(site)
    if as_json:
        print_json(rows)
    else:
        print_pairs((row["name"], f"{row['role']}{' (disabled)' if row['disabled'] else ''}") for row in rows)


def _password() -> str:
    """A password from the terminal, asked for twice, or the first line of standard input."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    password = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != password:
        raise UsageError("the two passwords differ")
    return password
