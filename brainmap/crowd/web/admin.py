"""Pages of administrators: who works, how far it is, what was marked, and what is to be done about it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import imagecodecs
import numpy as np
from sqlalchemy import Connection, func, select, update
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from brainmap.crowd.store import audit, schema
from brainmap.crowd.store.backup import back_up
from brainmap.crowd.store.refused import Refused
from brainmap.crowd.web.desk import Desk
from brainmap.crowd.web.pages import Renderer
from brainmap.crowd.work import accounts
from brainmap.crowd.work.accounts import ROLES, Worker
from brainmap.crowd.work.analysis import (
    annotations_per_image,
    clicks_per_worker,
    heat_of_tile,
    stored_analysis,
)
from brainmap.crowd.work.export import FILES, csv_lines
from brainmap.crowd.work.progress import project_status, site_status, worker_rows
from brainmap.crowd.work.projects import ADDED, add_image, find_project, scan_project
from brainmap.errors import BrainmapError, NotFoundError
from brainmap.tiles.detected import read_detected

__all__ = ["Admin"]

PER_PAGE = 60
MOST_IMAGES = 200
_BACKUP = re.compile(r"[0-9TZ-]+\.backup")


class Admin:
    """`/admin` and below; every route asks for the role."""

    def __init__(self, desk: Desk, renderer: Renderer) -> None:
        self.desk, self.renderer = desk, renderer
        self.analysing: dict[str, asyncio.subprocess.Process] = {}
        self.waiting: set[asyncio.Task[None]] = set()

    def routes(self) -> list[Route]:
        """The routes of this group."""
        project, tile = "/admin/projects/{name}", "/admin/projects/{name}/tiles/{number:int}"
        return [
            Route("/admin", self.home, methods=["GET"]),
            Route("/admin/users", self.users, methods=["GET"]),
            Route("/admin/users", self.add_user, methods=["POST"]),
            Route("/admin/users/{number:int}/{action}", self.change_user, methods=["POST"]),
            Route("/admin/audit", self.audit, methods=["GET"]),
            Route("/admin/backup", self.make_backup, methods=["POST"]),
            Route("/admin/backup/{file}", self.get_backup, methods=["GET"]),
            Route(project, self.project, methods=["GET"]),
            Route(f"{project}/tiles", self.tiles, methods=["GET"]),
            Route(tile, self.tile, methods=["GET"]),
            Route(f"{tile}/image", self.image, methods=["GET"]),
            Route(f"{tile}/heat", self.heat, methods=["GET"]),
            Route(f"{tile}/clicks", self.clicks, methods=["GET"]),
            Route(f"{tile}/detected", self.detected, methods=["GET"]),
            Route(f"{project}/export/{{file}}", self.export, methods=["GET"]),
            Route(f"{project}/upload", self.upload, methods=["POST"]),
            Route(f"{project}/{{action}}", self.change_project, methods=["POST"]),
        ]

    async def _page(self, request: Request, template: str, fill: Any) -> Response:
        """A page filled in by `fill(connection) -> dict` for an administrator; others are sent to the door."""
        worker = await self.desk.worker(request)
        if worker is None:
            return RedirectResponse("/", 303)

        def work(_worker: Worker) -> dict[str, Any]:
            with self.desk.site.database.read() as connection:
                return dict(fill(connection))

        try:
            values = await self.desk.run(request, work, role="admin")
        except NotFoundError:
            raise HTTPException(404) from None
        return self.renderer.page(
            template,
            "en",
            worker=worker,
            day=_day,
            notice=request.query_params.get("notice", "")[:200],
            **values,
        )

    async def _change(self, request: Request, function: Any, action: str, **detail: Any) -> Any:
        """Do something as an administrator, and write it down."""
        address = self.desk.address(request)

        def work(worker: Worker) -> Any:
            result = function(worker)
            with self.desk.site.database.write() as connection:
                audit.note(self.desk.site, connection, action, worker.id, address, **detail)
            return result

        try:
            return await self.desk.run(request, work, kind="write", role="admin")
        except NotFoundError:
            raise HTTPException(404) from None
        except BrainmapError as error:
            raise Refused(422, str(error)) from error

    # ---- the site ---------------------------------------------------------------------------------------

    async def home(self, request: Request) -> Response:
        """All projects at a glance."""

        def fill(_connection: Connection) -> dict[str, Any]:
            found = sorted(self.desk.site.backups.glob("*.backup"), reverse=True)
            backups = [{"name": path.name, "size": path.stat().st_size} for path in found[:10]]
            return {"status": site_status(self.desk.site), "backups": backups}

        return await self._page(request, "admin_home.html", fill)

    async def users(self, request: Request) -> Response:
        """All accounts."""
        table, assignment = schema.worker, schema.assignment

        def fill(connection: Connection) -> dict[str, Any]:
            rows = connection.execute(
                select(
                    table,
                    func.count(assignment.c.completed_at).label("tiles"),
                    func.coalesce(func.sum(assignment.c.n_clicks), 0).label("clicks"),
                    func.max(assignment.c.opened_at).label("last"),
                )
                .outerjoin(assignment, assignment.c.worker_id == table.c.id)
                .where(table.c.role != "imported")
                .group_by(table.c.id)
                .order_by(table.c.id)
            ).all()
            return {"users": rows, "roles": ROLES}

        return await self._page(request, "admin_users.html", fill)

    async def add_user(self, request: Request) -> Response:
        """Make an account for somebody."""
        form = await request.form(max_files=0, max_fields=10)
        name = accounts.check_name(form.get("name"))
        role = str(form.get("role"))
        if role not in ROLES:
            raise Refused(422, f"the role must be one of {', '.join(ROLES)}")
        await self.desk.run(request, lambda worker: None, role="admin")
        hashed = await self.desk.hashing.run(self.desk.passwords.hash, form.get("password"))
        await self._change(
            request, lambda worker: accounts.add_account(self.desk.site, name, hashed, role=role, by=worker.id),
            "user added", role=role,
        )  # fmt: skip
        return _back("/admin/users", f"{name} has an account.")

    async def change_user(self, request: Request) -> Response:
        """Role, password, disabling, deletion."""
        number, action = request.path_params["number"], request.path_params["action"]
        form = await request.form(max_files=0, max_fields=10)
        site, table = self.desk.site, schema.worker
        if action not in ("role", "disable", "enable", "reset", "delete"):
            raise HTTPException(404)
        hashed = ""
        if action == "reset":
            await self.desk.run(request, lambda worker: None, role="admin")
            hashed = await self.desk.hashing.run(self.desk.passwords.hash, form.get("password"))

        def change(worker: Worker) -> None:
            if number == worker.id and action != "reset":
                raise Refused(409, "this is your own account; another administrator can change it")
            with site.database.read() as connection:
                if connection.execute(select(table.c.id).where(table.c.id == number)).first() is None:
                    raise HTTPException(404)
            if action == "reset":
                accounts.set_password(site, number, hashed, by=worker.id)
            elif action == "delete":
                accounts.delete_account(site, number, by=worker.id)
            else:
                self._set(number, action, str(form.get("role")))

        await self._change(request, change, f"user: {action}", account=number)
        return _back("/admin/users", "Done.")

    def _set(self, number: int, action: str, role: str) -> None:
        table = schema.worker
        if action == "role" and role not in ROLES:
            raise Refused(422, f"the role must be one of {', '.join(ROLES)}")
        values = {"role": role} if action == "role" else {"disabled": action == "disable"}
        with self.desk.site.database.write() as connection:
            connection.execute(update(table).where(table.c.id == number).values(values))
            accounts.end_sessions(connection, number)

    async def audit(self, request: Request) -> Response:
        """The latest entries of the audit log."""
        return await self._page(
            request, "admin_audit.html", lambda connection: {"entries": audit.last_entries(connection)}
        )

    async def make_backup(self, request: Request) -> Response:
        """Write a backup into the site's folder."""
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}.backup"
        path = self.desk.site.backups / name
        await self._change(
            request, lambda _worker: back_up(self.desk.site, path), "backup asked for", file=name
        )
        return _back("/admin", f"Backup {name} is written.")

    async def get_backup(self, request: Request) -> Response:
        """Download a backup."""
        name = request.path_params["file"]
        path = self.desk.site.backups / name
        if not _BACKUP.fullmatch(name) or not path.is_file():
            raise HTTPException(404)
        await self._change(request, lambda _worker: None, "backup downloaded", file=name)
        return FileResponse(path, filename=name, media_type="application/octet-stream")

    # ---- a project --------------------------------------------------------------------------------------

    async def project(self, request: Request) -> Response:
        """Progress by worker, annotations of each image, agreement and ability."""
        name = request.path_params["name"]

        def fill(connection: Connection) -> dict[str, Any]:
            row = find_project(connection, name)
            return {
                "project": project_status(connection, row),
                "workers": worker_rows(connection, row.id),
                "images": annotations_per_image(connection, row.id, count=MOST_IMAGES),
                "analysis": stored_analysis(connection, row.id),
                "analysing": name in self.analysing,
                "files": FILES,
            }

        return await self._page(request, "admin_project.html", fill)

    async def tiles(self, request: Request) -> Response:
        """Pictures of all tiles."""
        name = request.path_params["name"]
        page = max(1, int(p)) if (p := request.query_params.get("page", "1")).isdigit() and len(p) < 7 else 1

        def fill(connection: Connection) -> dict[str, Any]:
            row = find_project(connection, name)
            found = annotations_per_image(connection, row.id, (page - 1) * PER_PAGE, PER_PAGE + 1)
            return {"project": row, "images": found[:PER_PAGE], "page": page, "more": len(found) > PER_PAGE}

        return await self._page(request, "admin_tiles.html", fill)

    def _tile(self, connection: Connection, request: Request) -> Any:
        row = find_project(connection, request.path_params["name"])
        table = schema.tile
        number = request.path_params["number"]
        if number >= 2**62:
            raise HTTPException(404)
        found = connection.execute(
            select(table).where(table.c.id == number, table.c.project_id == row.id)
        ).first()
        if found is None:
            raise HTTPException(404)
        return found

    async def tile(self, request: Request) -> Response:
        """One tile with everybody's clicks, the heat map, and what gt made of it."""

        def fill(connection: Connection) -> dict[str, Any]:
            tile = self._tile(connection, request)
            analysis = stored_analysis(connection, tile.project_id) or {"tiles": {}}
            return {
                "project": find_project(connection, request.path_params["name"]),
                "tile": tile,
                "people": clicks_per_worker(connection, tile.id),
                "judged": analysis["tiles"].get(tile.image_id),
            }

        return await self._page(request, "admin_tile.html", fill)

    async def clicks(self, request: Request) -> Response:
        """Everybody's clicks on a tile, for the picture."""

        def find(_worker: Worker) -> list[dict[str, Any]]:
            with self.desk.site.database.read() as connection:
                return clicks_per_worker(connection, self._tile(connection, request).id)

        return JSONResponse(await self.desk.run(request, find, role="admin"))

    async def detected(self, request: Request) -> Response:
        """The cells that the detector found on a tile, [x, y, score] each; null where its project has none."""

        def find(_worker: Worker) -> list[list[float]] | None:
            with self.desk.site.database.read() as connection:
                tile = self._tile(connection, request)
            if json.loads(tile.origin).get("brain") == ADDED:
                return None
            table = read_detected(self.desk.site.tiles / request.path_params["name"], tile.image_id)
            if table is None:
                return None
            return [
                list(row) for row in zip(*(table[c].to_pylist() for c in ("x", "y", "score")), strict=True)
            ]

        return JSONResponse(await self.desk.run(request, find, role="admin"))

    async def image(self, request: Request) -> Response:
        """The picture of a tile."""

        def find(_worker: Worker) -> bytes:
            with self.desk.site.database.read() as connection:
                tile = self._tile(connection, request)
            return Path(self.desk.site.tiles / tile.file).read_bytes()

        headers = {"Cache-Control": "private, max-age=3600"}
        return Response(
            await self.desk.run(request, find, role="admin"), media_type="image/png", headers=headers
        )

    async def heat(self, request: Request) -> Response:
        """The heat map of a tile: red where the crowd is sure, transparent where nobody clicked."""

        def find(_worker: Worker) -> bytes:
            with self.desk.site.database.read() as connection:
                tile = self._tile(connection, request)
                analysis = stored_analysis(connection, tile.project_id) or {"workers": {}}
                weights = {
                    name: worker["weight_click"]
                    for name, worker in analysis["workers"].items()
                    if worker["weight_click"] is not None
                }
                heat = heat_of_tile(connection, tile, weights)
            alpha = np.rint(200 * heat).astype(np.uint8)
            green = np.rint(180 * (1 - heat)).astype(np.uint8)
            zero = np.zeros_like(alpha)
            return bytes(imagecodecs.png_encode(np.dstack([zero + 255, green, zero, alpha])))

        return Response(await self.desk.run(request, find, role="admin"), media_type="image/png")

    async def export(self, request: Request) -> Response:
        """One of the tables of an export, streamed."""
        name, file = request.path_params["name"], request.path_params["file"]
        if file not in FILES:
            raise HTTPException(404)

        def check(_worker: Worker) -> int:
            with self.desk.site.database.read() as connection:
                return int(find_project(connection, name).id)

        number = await self._change(request, check, "download", project=name, file=file)
        headers = {"Content-Disposition": f'attachment; filename="{name}-{file}"'}
        lines = csv_lines(self.desk.site, number, file)
        return StreamingResponse(lines, media_type="text/csv; charset=utf-8", headers=headers)

    async def upload(self, request: Request) -> Response:
        """Add images to a project."""
        name = request.path_params["name"]
        await self.desk.run(request, lambda worker: None, role="admin")
        async with request.form(max_files=MOST_IMAGES, max_fields=5) as form:
            files = [item for item in form.getlist("images") if not isinstance(item, str)]
            contents = [(Path(item.filename or "").name, await item.read()) for item in files]

        def store(_worker: Worker) -> int:
            for file, content in contents:
                if not file.lower().endswith(".png"):
                    raise Refused(422, f"{file!r} is no PNG")
                add_image(self.desk.site, name, file[:-4], content)
            return len(scan_project(self.desk.site, name).added)

        added = await self._change(request, store, "upload", project=name, images=len(contents))
        return _back(f"/admin/projects/{name}", f"{added} images added.")

    async def change_project(self, request: Request) -> Response:
        """Scan the folder, pause, go on, analyse."""
        name, action = request.path_params["name"], request.path_params["action"]
        if action not in ("scan", "pause", "resume", "analyse"):
            raise HTTPException(404)
        site = self.desk.site

        def change(_worker: Worker) -> str:
            with site.database.read() as connection:
                row = find_project(connection, name)
            if action == "scan":
                found = scan_project(site, name)
                return f"{len(found.added)} new images, {len(found.refused)} refused."
            if action in ("pause", "resume"):
                with site.database.write() as connection:
                    connection.execute(
                        update(schema.project)
                        .where(schema.project.c.id == row.id)
                        .values(paused=action == "pause")
                    )
                return "The project is paused." if action == "pause" else "The project goes on."
            return "The analysis runs; its result appears here."

        notice = await self._change(request, change, f"project: {action}", project=name)
        if action == "analyse":
            await self._analyse(name)
        return _back(f"/admin/projects/{name}", notice)

    async def _analyse(self, name: str) -> None:
        """Start the analysis in a process of its own; one at a time for each project."""
        if name in self.analysing:
            return
        environment = dict(os.environ)
        if self.desk.site.settings.database:
            environment["BRAINMAP_CROWD_DATABASE"] = self.desk.site.settings.database
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "brainmap.crowd.work.analysis",
            str(self.desk.site.folder),
            name,
            env=environment,
        )
        self.analysing[name] = process

        async def finish() -> None:
            await process.wait()
            self.analysing.pop(name, None)

        # Kept from being collected while it waits.
        self.waiting.add(task := asyncio.create_task(finish()))
        task.add_done_callback(self.waiting.discard)

    async def close(self) -> None:
        """End what runs in the background; it is begun anew when asked for."""
        for process in list(self.analysing.values()):
            process.terminate()
            await process.wait()
        await asyncio.gather(*self.waiting)


def _back(path: str, notice: str) -> Response:
    return RedirectResponse(f"{path}?notice={quote(notice)}", 303)


def _day(seconds: float | None) -> str:
    """A time for people, in UTC."""
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))
