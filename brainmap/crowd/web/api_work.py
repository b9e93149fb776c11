"""Work for programs and the page: projects, the next tile, clicks, sub-tiles, finishing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from brainmap.crowd.store.refused import Refused
from brainmap.crowd.web.desk import Desk
from brainmap.crowd.web.json_body import read_object
from brainmap.crowd.work import clicks
from brainmap.crowd.work.accounts import Worker
from brainmap.crowd.work.assign import has_next, next_assignment, project_for_worker, project_of
from brainmap.crowd.work.certain import judge_pending
from brainmap.crowd.work.progress import projects_of

__all__ = ["WorkApi"]


class WorkApi:
    """`/api/projects` and `/api/tiles`."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def routes(self) -> list[Route]:
        """The routes of this group."""
        tile = "/api/tiles/{tile}"
        return [
            Route("/api/projects", self.projects, methods=["GET"]),
            Route("/api/projects/{name}/next", self.next, methods=["GET"]),
            Route(f"{tile}/image", self.image, methods=["GET"]),
            Route(f"{tile}/clicks", self.change_clicks, methods=["POST"]),
            Route(f"{tile}/clicks/{{id}}", self.put_click, methods=["PUT"]),
            Route(f"{tile}/clicks/{{id}}", self.delete_click, methods=["DELETE"]),
            Route(f"{tile}/subtiles/{{index:int}}", self.see_subtile, methods=["PUT"]),
            Route(f"{tile}/complete", self.complete, methods=["POST"]),
        ]

    async def projects(self, request: Request) -> Response:
        """The projects, and how far this worker is."""
        site = self.desk.site

        def find(worker: Worker) -> list[dict[str, Any]]:
            with site.database.read() as connection:
                return projects_of(site, connection, worker)

        return JSONResponse(await self.desk.run(request, find, consented=True))

    async def next(self, request: Request) -> Response:
        """The unfinished tile, or the next; with `?after=TILE` the one behind it."""
        name, after = request.path_params["name"], request.query_params.get("after")
        site = self.desk.site

        def offer(worker: Worker) -> dict[str, Any] | None:
            with site.database.write() as connection:
                row = next_assignment(site, connection, worker, name, after)
                return None if row is None else clicks.describe(connection, row)

        def find(worker: Worker) -> dict[str, Any] | None:
            if (found := offer(worker)) is not None:
                return found
            # Before somebody hears that nothing is left: what waits for a judgement is judged.
            with site.database.read() as connection:
                project = project_for_worker(connection, name)
            return offer(worker) if judge_pending(site, project.id) else None

        found = await self.desk.run(request, find, consented=True)
        return Response(status_code=204) if found is None else JSONResponse(found)

    async def image(self, request: Request) -> Response:
        """The picture of a tile."""
        site = self.desk.site

        def find(worker: Worker) -> bytes:
            with site.database.read() as connection:
                row = clicks.own_assignment(connection, worker, request.path_params["tile"])
            return Path(site.tiles / row.file).read_bytes()

        content = await self.desk.run(request, find, consented=True)
        headers = {"Cache-Control": "private, max-age=604800, immutable"}
        return Response(content, media_type="image/png", headers=headers)

    async def put_click(self, request: Request) -> Response:
        """Put or move one click."""
        put = clicks.parse_put(request.path_params["id"], await read_object(request))
        (status,) = await self._change(request, [put], [])
        if status == 422:
            raise Refused(422, "the place lies outside the tile, or there is no such sub-tile")
        return JSONResponse({"id": put.id}, status)

    async def delete_click(self, request: Request) -> Response:
        """Delete one click, also one that never arrived."""
        await self._change(request, [], [clicks.parse_uuid(request.path_params["id"])])
        return Response(status_code=204)

    async def change_clicks(self, request: Request) -> Response:
        """Put and delete a queue of clicks; one result for each, those that cannot be put included."""
        body = await read_object(request)
        put, remove = body.get("put", []), body.get("delete", [])
        if not isinstance(put, list) or not isinstance(remove, list):
            raise Refused(422, "put and delete must be lists")
        if len(put) + len(remove) > clicks.BATCH:
            raise Refused(422, f"a request takes {clicks.BATCH} clicks at most")
        results: list[dict[str, Any]] = []
        good: list[clicks.Put] = []
        waiting: list[dict[str, Any]] = []
        for item in put:
            if not isinstance(item, dict):
                raise Refused(422, "each click must be an object with id, x and y")
            result: dict[str, Any] = {"id": item.get("id")}
            results.append(result)
            try:
                good.append(clicks.parse_put(item.get("id"), item))
                waiting.append(result)
            except Refused as error:
                result |= {"status": error.status, "error": error.sentence}
        ids = [clicks.parse_uuid(item.get("id") if isinstance(item, dict) else item) for item in remove]
        for id in ids:
            results.append({"id": id})
            waiting.append(results[-1])
        statuses = await self._change(request, good, ids)
        for result, status in zip(waiting, statuses, strict=True):
            result["status"] = status
            if status == 422:
                result["error"] = "the place lies outside the tile, or there is no such sub-tile"
        return JSONResponse({"results": results})

    async def _change(self, request: Request, put: list[clicks.Put], remove: list[str]) -> list[int]:
        tile = request.path_params["tile"]
        return await self.desk.run(
            request,
            lambda worker: clicks.change_clicks(self.desk.site, worker, tile, put, remove),
            kind="write",
            consented=True,
        )

    async def see_subtile(self, request: Request) -> Response:
        """Mark a sub-tile as looked through."""
        body = await read_object(request)
        if not isinstance(done := body.get("done"), bool):
            raise Refused(422, "done must be true or false")
        tile, index = request.path_params["tile"], request.path_params["index"]
        await self.desk.run(
            request,
            lambda worker: clicks.see_subtile(self.desk.site, worker, tile, index, done),
            kind="write",
            consented=True,
        )
        return Response(status_code=204)

    async def complete(self, request: Request) -> Response:
        """Finish a tile."""
        await read_object(request, required=False)
        tile, site = request.path_params["tile"], self.desk.site

        def finish(worker: Worker) -> dict[str, Any]:
            done = clicks.complete_tile(site, worker, tile)
            with site.database.write() as connection:
                project = project_of(connection, done["project_id"])
                done["next"] = has_next(site, connection, worker, project.name)
            return done

        done = await self.desk.run(request, finish, kind="write", consented=True)
        answer = {name: done[name] for name in ("next", "practice") if name in done}
        # Behind the answer: how long it takes must not tell work from quality control, which is not judged.
        return JSONResponse(answer, background=BackgroundTask(judge_pending, site, done["project_id"]))
