"""The pages people see, and the code and pictures they are made of."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from brainmap.crowd.web.desk import Desk
from brainmap.crowd.web.texts import texts
from brainmap.crowd.work.accounts import Worker
from brainmap.crowd.work.progress import projects_of

__all__ = ["Pages", "Renderer"]

STATIC = Path(str(resources.files(__package__))) / "static"
_KINDS = {
    ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml",
}  # fmt: skip
_FOREVER = {"Cache-Control": "public, max-age=31536000, immutable"}


class Renderer:
    """Fills in templates; everything filled in is escaped."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.environment = jinja2.Environment(
            loader=jinja2.PackageLoader("brainmap.crowd.web"), autoescape=True, trim_blocks=True,
            undefined=jinja2.StrictUndefined,
        )  # fmt: skip

    @cached_property
    def files(self) -> dict[str, bytes]:
        """Static files by name."""
        return {path.name: path.read_bytes() for path in sorted(STATIC.iterdir()) if path.suffix in _KINDS}

    @cached_property
    def version(self) -> str:
        """Changes with any static file: browsers may keep them for ever."""
        return hashlib.sha256(b"".join(self.files.values())).hexdigest()[:12]

    @property
    def static(self) -> str:
        """Where static files are."""
        return f"/static/{self.version}"

    def page(self, template: str, language: str, **values: Any) -> Response:
        """A page as a response."""
        text = self.environment.get_template(template).render(
            language=language, t=texts(language), static=self.static,
            site_title=self.desk.site.settings.title, **values,
        )  # fmt: skip
        return Response(text, media_type="text/html; charset=utf-8")


class Pages:
    """`/`, `/work/NAME`, `/projects`, `/me`, static files and the service worker."""

    def __init__(self, desk: Desk, renderer: Renderer) -> None:
        self.desk, self.renderer = desk, renderer

    def routes(self) -> list[Route]:
        """The routes of this group."""
        return [
            Route("/", self.start, methods=["GET"]),
            Route("/work/{name}", self.work, methods=["GET"]),
            Route("/projects", self.projects, methods=["GET"]),
            Route("/me", self.me, methods=["GET"]),
            Route("/sw.js", self.service_worker, methods=["GET"]),
            Route("/static/{version}/{file}", self.static, methods=["GET"]),
        ]

    async def start(self, request: Request) -> Response:
        """The door: who is new signs up, who is known goes on where there is work."""
        worker = await self.desk.worker(request)
        if worker is None:
            language = self.desk.language(request)
            consent = {"version": self.desk.consent.version, "text": self.desk.consent.text(language)}
            return self.renderer.page(
                "enter.html", language, consent=consent, sign_up=self.desk.site.settings.sign_up
            )
        if worker.role == "admin" and worker.consent_version is None:
            return RedirectResponse("/admin", 303)
        if (refused := self._consent_page(worker)) is not None:
            return refused
        projects = await self._projects(request)
        open_ones = [p for p in projects if p["tiles_done"] < p["tiles_total"]]
        chosen = (open_ones or projects)[:1]
        return RedirectResponse(f"/work/{chosen[0]['name']}" if chosen else "/projects", 303)

    async def work(self, request: Request) -> Response:
        """The page on which cells are marked."""
        worker = await self.desk.worker(request)
        if worker is None:
            return RedirectResponse("/", 303)
        if (refused := self._consent_page(worker)) is not None:
            return refused
        name = request.path_params["name"]
        found = [p for p in await self._projects(request) if p["name"] == name]
        if not found:
            raise HTTPException(404)
        language = self._language(worker)
        facts = {
            "project": name,
            # Names this account's part of the browser's storage; says nothing to anybody else.
            "account": self.desk.site.fingerprint(f"account {worker.id}"),
            "texts": texts(language),
        }
        return self.renderer.page(
            "work.html", language, project=found[0], worker=worker, facts=facts,
            instructions=self._instructions(found[0]["name"], language),
        )  # fmt: skip

    def _instructions(self, project: str, language: str) -> list[str]:
        """Paragraphs of a project's own instructions, if there are any."""
        path = self.desk.site.tiles / project / f"instructions.{language}.txt"
        return path.read_text(encoding="utf-8").strip().split("\n\n") if path.is_file() else []

    def _consent_page(self, worker: Worker) -> Response | None:
        consent = self.desk.consent
        if worker.consent_version == consent.version:
            return None
        language = self._language(worker)
        return self.renderer.page(
            "consent.html", language, again=worker.consent_version is not None,
            consent={"version": consent.version, "text": consent.text(language)},
        )  # fmt: skip

    def _language(self, worker: Worker) -> str:
        offered = self.desk.site.settings.languages
        return worker.language if worker.language in offered else offered[0]

    async def _projects(self, request: Request) -> list[dict[str, Any]]:
        def find(worker: Worker) -> list[dict[str, Any]]:
            with self.desk.site.database.read() as connection:
                return projects_of(self.desk.site, connection, worker)

        return await self.desk.run(request, find)

    async def projects(self, request: Request) -> Response:
        """All projects and how far one is."""
        worker = await self.desk.worker(request)
        if worker is None:
            return RedirectResponse("/", 303)
        found = await self._projects(request)
        return self.renderer.page("projects.html", self._language(worker), worker=worker, projects=found)

    async def me(self, request: Request) -> Response:
        """What is held about me, a copy of it, and the end of it."""
        from brainmap.crowd.web.api_account import AccountApi

        worker = await self.desk.worker(request)
        if worker is None:
            return RedirectResponse("/", 303)
        about = await self.desk.run(request, AccountApi(self.desk).about)
        return self.renderer.page("me.html", self._language(worker), worker=worker, me=about)

    async def static(self, request: Request) -> Response:
        """A static file, by its name alone."""
        name = request.path_params["file"]
        content = self.renderer.files.get(name)
        if content is None or name == "sw.js":
            raise HTTPException(404)
        return Response(content, media_type=_KINDS[Path(name).suffix], headers=_FOREVER)

    async def service_worker(self, _request: Request) -> Response:
        """The worker that keeps the page for a reload without a connection."""
        names = [f"{self.renderer.static}/{name}" for name in self.renderer.files if name != "sw.js"]
        text = self.renderer.files["sw.js"].decode()
        text = text.replace("__VERSION__", self.renderer.version).replace("__FILES__", json.dumps(names))
        return Response(text, media_type=_KINDS[".js"], headers={"Cache-Control": "no-cache"})
