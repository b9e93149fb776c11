"""The viewer's server: everything from one port of this machine, for its own pages alone."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import re
import threading
import webbrowser
from collections.abc import AsyncIterator, Callable
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brainmap.errors import BrainmapError, DataError, MissingExtraError, NotFoundError, UsageError
from brainmap.files import to_jsonable

try:
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
    from starlette.routing import Route
except ImportError:
    raise MissingExtraError("starlette", "view", "look at a run in the browser") from None

from brainmap.report.html import page_script
from brainmap.run_folder import REPORT_HTML
from brainmap.view.desk import Desk
from brainmap.view.neuroglancer import (
    CLIENT_POLICY,
    REGION_PROPERTIES,
    client_file,
    region_names,
    require_client,
)
from brainmap.view.neuroglancer import viewer_state as state_of
from brainmap.web.guards import HostCheck, OwnPagesOnly, SafeHeaders
from brainmap.web.listening import LOOPBACK, listen

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["create_app", "serve_run"]

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
STATIC = Path(str(resources.files(__package__))) / "static"
_KINDS = {
    ".js": "text/javascript",
    ".css": "text/css",
    ".html": "text/html; charset=utf-8",
    ".svg": "image/svg+xml",
}
REPORT = "/report"
_PAGES = {"/": "view.html", "/review": "review.html", "/status": "status.html"}
_POLICY = "; ".join(
    (
        "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' blob:", "connect-src 'self'",
        "frame-src 'self'", "form-action 'none'", "base-uri 'none'", "frame-ancestors 'none'", "object-src 'none'",
    )
)  # fmt: skip
# Files of cells are few and small; a name of one.
_LAYER_FILE = re.compile(r"(info|(?:spatial\d+|by_id)/[0-9a-f]+\.shard)")
_MOST_BODY = 64 * 1024
# Chunks are the same as long as the server runs; a browser asks once.
_CACHED = {"Cache-Control": "private, max-age=3600"}


def serve_run(run: str | Path, port: int = 0, *, page: str = "/", browser: bool = True,
              brain: str | None = None, say: Callable[[str, int], None] | None = None) -> None:  # fmt: skip
    """Serve a run to the browser of this machine until interrupted.

    Parameters
    ----------
    run : path
    port : int
        0 takes a free one.
    page : str
        Where the browser starts.
    browser : bool
        Open it.
    brain : path or URL, optional
        Where the run's image lies now, if that was moved without the run.
    say : callable, optional
        Told the address and the port when everything is ready.

    Raises
    ------
    NotFoundError, DataError
        If there is no such run, or it cannot be shown.
    UsageError
        If the port is taken.
    MissingExtraError
    """
    import uvicorn

    require_client()
    desk = Desk.open(run, brain)
    listener = listen(HOST, port)
    port = listener.getsockname()[1]
    address = f"http://{HOST}:{port}{page}"
    config = uvicorn.Config(
        create_app(desk), log_level="warning", access_log=False, server_header=False, lifespan="on",
        h11_max_incomplete_event_size=64 * 1024, timeout_graceful_shutdown=1,
    )  # fmt: skip
    if say is not None:
        say(address, port)
    if browser:
        threading.Timer(0.5, webbrowser.open, [address]).start()
    uvicorn.Server(config).run(sockets=[listener])


def create_app(desk: Desk) -> Starlette:
    """The application over an opened run."""
    server = _Server(desk)

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        server.closing.set()

    app = Starlette(
        routes=server.routes(),
        lifespan=lifespan,
        middleware=[
            Middleware(
                SafeHeaders,
                policy=_POLICY,
                policies={"/v/": CLIENT_POLICY, REPORT: _report_policy()},
                frames=True,
            ),
            Middleware(HostCheck, hosts=LOOPBACK),
            Middleware(OwnPagesOnly),
        ],
        exception_handlers={BrainmapError: _refused, HTTPException: _http, Exception: _failed},
    )
    app.router.redirect_slashes = False
    return app


def _report_policy() -> str:
    """The report's own script alone: a page in a folder that somebody else made shall do nothing here."""
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src '{page_script()[1]}'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


async def _refused(_request: Request, error: Exception) -> Response:
    status = (
        404
        if isinstance(error, NotFoundError)
        else 422
        if isinstance(error, (UsageError, DataError))
        else 500
    )
    return JSONResponse({"error": str(error)}, status)


async def _http(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": str(error.detail).lower()}, error.status_code, headers=error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return JSONResponse({"error": "something went wrong; the terminal says what"}, 500)


class _Server:
    """Routes; what they do is the desk's."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.closing = asyncio.Event()

    def routes(self) -> list[Route]:
        desk, get, post = self.desk, self._get, self._post
        return [
            *(Route(path, self.page, methods=["GET"]) for path in _PAGES),
            Route(REPORT, self.report, methods=["GET"]),
            Route("/static/{version}/{file}", self.static, methods=["GET"]),
            Route("/v/brainmap/{file}", self.client, methods=["GET"]),
            Route("/v/brainmap/", self.client, methods=["GET"]),
            Route("/events/brainmap", self.events, methods=["GET"]),
            Route("/image/{channel:int}/{path:path}", self.image, methods=["GET"]),
            Route("/atlas/{path:path}", self.atlas, methods=["GET"]),
            Route(f"/{REGION_PROPERTIES}/info", self.names, methods=["GET"]),
            Route("/cells/{path:path}", self.cells, methods=["GET"]),
            Route("/api/state", self.state, methods=["GET"]),
            Route("/crop.png", self.crop, methods=["GET"]),
            Route("/field.png", self.field_picture, methods=["GET"]),
            get("/api/run", lambda _: desk.facts()),
            get("/api/regions", lambda _: desk.regions()),
            get(
                "/api/cell", lambda q: desk.cell_at(_place(q), float(q["radius"]) if "radius" in q else None)
            ),
            get("/api/marks", lambda _: desk.all_marks()),
            get("/api/counts", lambda q: desk.counts(_float(q, "threshold"))),
            get("/api/status", lambda _: desk.status()),
            get("/api/review/next", lambda q: desk.review_next(q.get("sample", "random"))),
            get("/api/review/result", lambda _: desk.review_result()),
            post("/api/marks", desk.mark),
            post("/api/fields", desk.field),
            post("/api/undo", lambda _: {"undone": desk.keeper.undo()}),
            post("/api/threshold", desk.apply_threshold),
            post("/api/tune", desk.tune),
            post("/api/review/answer", desk.review_answer),
            post("/api/review/undo", lambda _: desk.deck.undo()),
        ]

    def _get(self, path: str, answer: Callable[[Mapping[str, str]], Any]) -> Route:
        async def endpoint(request: Request) -> Response:
            return _json(await run_in_threadpool(answer, request.query_params))

        return Route(path, endpoint, methods=["GET"])

    def _post(self, path: str, act: Callable[[dict[str, Any]], Any]) -> Route:
        async def endpoint(request: Request) -> Response:
            return _json(await run_in_threadpool(act, await _body(request)))

        return Route(path, endpoint, methods=["POST"])

    @cached_property
    def files(self) -> dict[str, bytes]:
        """Static files by name."""
        return {path.name: path.read_bytes() for path in sorted(STATIC.iterdir()) if path.suffix in _KINDS}

    @cached_property
    def version(self) -> str:
        """Changes with any static file: browsers may keep them."""
        return hashlib.sha256(b"".join(self.files.values())).hexdigest()[:12]

    async def page(self, request: Request) -> Response:
        text = self.files[_PAGES[request.url.path]].replace(b"{static}", f"/static/{self.version}".encode())
        return Response(text, media_type=_KINDS[".html"])

    async def report(self, _request: Request) -> Response:
        """The run's report, whose places lead into the viewer."""
        path = self.desk.run.folder / REPORT_HTML
        if not path.is_file():
            raise HTTPException(
                404, "this run has no report; its brainmap detect command, given again, writes it"
            )
        return FileResponse(path, media_type=_KINDS[".html"], headers={"Cache-Control": "no-cache"})

    async def static(self, request: Request) -> Response:
        name = request.path_params["file"]
        if name not in self.files or name.endswith(".html"):
            raise HTTPException(404)
        return Response(self.files[name], media_type=_KINDS[Path(name).suffix], headers=_CACHED)

    async def client(self, request: Request) -> Response:
        content, kind = client_file(request.path_params.get("file", "index.html"))
        # The page's own policy must always be this server's, never an older one's.
        headers = {} if kind.startswith("text/html") else _CACHED
        return Response(content, media_type=kind, headers=headers)

    async def events(self, _request: Request) -> Response:
        """What the client listens to: nothing is ever said, but that the server is there."""

        async def nothing() -> AsyncIterator[bytes]:
            yield b": here\n\n"
            while not self.closing.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.closing.wait(), 15)
                yield b": here\n\n"

        return StreamingResponse(nothing(), media_type="text/event-stream")

    async def state(self, request: Request) -> Response:
        origin = f"http://{request.headers['host']}"
        return _json(await run_in_threadpool(state_of, self.desk.run, origin))

    async def image(self, request: Request) -> Response:
        image = self.desk.image(request.path_params["channel"])
        return await self._file(image.file, request)

    async def atlas(self, request: Request) -> Response:
        return await self._file(self.desk.atlas_image().file, request)

    @staticmethod
    async def _file(read: Callable[[str], tuple[bytes, str]], request: Request) -> Response:
        content, kind = await run_in_threadpool(read, request.path_params["path"])
        headers = {} if kind == "application/json" else _CACHED
        return Response(content, media_type=kind, headers=headers)

    async def names(self, _request: Request) -> Response:
        return _json(await run_in_threadpool(region_names, self.desk.run))

    async def cells(self, request: Request) -> Response:
        """A file of the annotations; shards are asked for in parts."""
        name = request.path_params["path"]
        if _LAYER_FILE.fullmatch(name) is None:
            raise HTTPException(404)
        path = self.desk.cells.layer / name
        if not path.is_file():
            raise HTTPException(404)
        return FileResponse(
            path, media_type="application/json" if name == "info" else "application/octet-stream"
        )

    async def crop(self, request: Request) -> Response:
        return await self._picture(self.desk.crop, request)

    async def field_picture(self, request: Request) -> Response:
        return await self._picture(self.desk.field_picture, request)

    @staticmethod
    async def _picture(draw: Callable[[Mapping[str, str]], bytes], request: Request) -> Response:
        content = await run_in_threadpool(draw, request.query_params)
        return Response(content, media_type="image/png", headers=_CACHED)


def _json(value: Any) -> Response:
    if value is None:
        return Response(status_code=204)
    return Response(json.dumps(to_jsonable(value), allow_nan=False), media_type="application/json")


async def _body(request: Request) -> dict[str, Any]:
    """A small JSON object, as our own pages send it; forms of other pages cannot."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, "send JSON")
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > _MOST_BODY:
            raise HTTPException(413, "that is too large")
    try:
        value = json.loads(content or b"{}")
    except ValueError:
        raise HTTPException(400, "this is no JSON") from None
    if not isinstance(value, dict):
        raise HTTPException(400, "send a JSON object")
    return value


def _float(query: Mapping[str, str], name: str) -> float:
    try:
        return float(query[name])
    except (KeyError, ValueError):
        raise UsageError(f"{name} must be a number") from None


def _place(query: Mapping[str, str]) -> tuple[float, float, float]:
    return _float(query, "z"), _float(query, "y"), _float(query, "x")
