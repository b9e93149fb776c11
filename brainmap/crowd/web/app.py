"""The application: routes behind guards, and what goes on in the background."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterable
from urllib.parse import urlsplit

from sqlalchemy import select
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from brainmap.crowd.store import schema
from brainmap.crowd.store.refused import Refused
from brainmap.crowd.store.site import Site
from brainmap.crowd.web.admin import Admin
from brainmap.crowd.web.api_account import AccountApi
from brainmap.crowd.web.api_work import WorkApi
from brainmap.crowd.web.desk import Desk, refusal
from brainmap.crowd.web.pages import Pages, Renderer
from brainmap.crowd.web.texts import texts
from brainmap.crowd.work.certain import judge_pending
from brainmap.crowd.work.passwords import Passwords
from brainmap.crowd.work.projects import names_of_projects, scan_project
from brainmap.errors import BrainmapError
from brainmap.web.guards import HostCheck, SafeHeaders, SameOrigin
from brainmap.web.listening import LOOPBACK

__all__ = ["create_app"]

log = logging.getLogger(__name__)

# Images are uploaded; what else is sent is limited where it is read.
MAX_UPLOAD_BYTES = 64 * 1024 * 1024


def create_app(
    site: Site,
    *,
    passwords: Passwords | None = None,
    hosts: Iterable[str] = LOOPBACK,
    scan: bool = True,
) -> Starlette:
    """The application of a site.

    Parameters
    ----------
    passwords : Passwords, optional
        Tests give a quicker hash.
    hosts : iterable of str
        Host names that requests may name; that of the public URL is added.
    scan : bool
        Look for new images in the background.
    """
    desk = Desk.of(site, passwords)
    renderer = Renderer(desk)
    admin = Admin(desk, renderer)
    settings = site.settings
    own = {*hosts, *([urlsplit(settings.public_url).hostname or ""] if settings.public_url else [])}

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(run_in_threadpool(judge_all, site))]
        if scan and settings.scan_seconds > 0:
            tasks.append(asyncio.create_task(_scan_forever(site)))
        yield
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await admin.close()
        site.close()

    async def health(_request: Request) -> Response:
        try:
            await run_in_threadpool(site.database.check)
        except BrainmapError as error:
            log.error("%s", error)
            return JSONResponse({"error": "the database does not answer"}, 503)
        return JSONResponse({"status": "ok"})

    routes = [
        Route("/healthz", health, methods=["GET"]),
        *AccountApi(desk).routes(),
        *WorkApi(desk).routes(),
        *Pages(desk, renderer).routes(),
        *admin.routes(),
    ]
    errors = Errors(desk, renderer)
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(SafeHeaders, secure=settings.secure),
            Middleware(HostCheck, hosts=own),
            Middleware(SameOrigin, public_url=settings.public_url),
        ],
        exception_handlers={Refused: errors.refused, HTTPException: errors.http, Exception: errors.server},
        lifespan=lifespan,
        max_body_size=MAX_UPLOAD_BYTES,
    )
    # A path is right or wrong: none is answered with another.
    app.router.redirect_slashes = False
    return app


def judge_all(site: Site) -> None:
    """Judge what waits for it since the site was last stopped."""
    with site.database.read() as connection:
        numbers = list(connection.execute(select(schema.project.c.id)).scalars())
    for number in numbers:
        try:
            judge_pending(site, number)
        except Exception:
            # Asking for the next tile tries again; clicks need no judgement.
            log.exception("project %d cannot be judged", number)


async def _scan_forever(site: Site) -> None:
    while True:
        try:
            await run_in_threadpool(scan_all, site)
        except Exception:
            # The site goes on without: a folder that cannot be read is no reason to stop the work.
            log.exception("looking for new images failed")
        await asyncio.sleep(site.settings.scan_seconds)


def scan_all(site: Site) -> None:
    """Register what is new in the folders of all projects."""
    with site.database.read() as connection:
        names = names_of_projects(connection)
    for name in names:
        found = scan_project(site, name)
        if found.added:
            log.info("project %s: %d new images", name, len(found.added))


class Errors:
    """Answers to what goes wrong: JSON to programs, a page to people."""

    def __init__(self, desk: Desk, renderer: Renderer) -> None:
        self.desk, self.renderer = desk, renderer

    async def refused(self, request: Request, error: Exception) -> Response:
        """Something was refused on purpose."""
        assert isinstance(error, Refused)
        return self._page(request, error.status, error.sentence) or refusal(error)

    async def http(self, request: Request, error: Exception) -> Response:
        """There is no such path, or it cannot be used so."""
        assert isinstance(error, HTTPException)
        sentences = {404: "there is no such page", 405: "this cannot be done here", 413: "that is too large"}
        sentence = sentences.get(error.status_code, str(error.detail))
        answer = JSONResponse({"error": sentence}, error.status_code, headers=error.headers)
        shown = texts(self.desk.language(request))["not_found"] if error.status_code == 404 else sentence
        return self._page(request, error.status_code, shown) or answer

    async def server(self, request: Request, error: Exception) -> Response:
        """A mistake of ours."""
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return JSONResponse({"error": "something went wrong here; please try again"}, 500)

    def _page(self, request: Request, status: int, sentence: str) -> Response | None:
        if request.url.path.startswith("/api/") or "text/html" not in request.headers.get("accept", ""):
            return None
        message = sentence[:1].upper() + sentence[1:]
        page = self.renderer.page("message.html", self.desk.language(request), message=message)
        page.status_code = status
        return page
