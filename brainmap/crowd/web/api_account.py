"""Accounts for programs: consent, sign-up, log-in, what is held about me."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from brainmap.crowd.store import schema
from brainmap.crowd.store.refused import Refused
from brainmap.crowd.web.desk import Desk
from brainmap.crowd.web.json_body import read_object
from brainmap.crowd.work import accounts
from brainmap.crowd.work.accounts import Worker
from brainmap.crowd.work.export import iso
from brainmap.crowd.work.passwords import check_password
from brainmap.crowd.work.progress import projects_of

__all__ = ["AccountApi"]


class AccountApi:
    """`/api/consent`, `/api/account`, `/api/session`, `/api/me`."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def routes(self) -> list[Route]:
        """The routes of this group."""
        return [
            Route("/api/consent", self.consent, methods=["GET"]),
            Route("/api/consent", self.agree, methods=["POST"]),
            Route("/api/account", self.sign_up, methods=["POST"]),
            Route("/api/session", self.log_in, methods=["POST"]),
            Route("/api/session", self.log_out, methods=["DELETE"]),
            Route("/api/me", self.me, methods=["GET"]),
            Route("/api/me", self.delete_me, methods=["DELETE"]),
            Route("/api/me/export", self.export_me, methods=["GET"]),
        ]

    async def consent(self, request: Request) -> Response:
        """What is agreed to."""
        language = self.desk.language(request)
        consent = self.desk.consent
        return JSONResponse(
            {"version": consent.version, "text": consent.text(language), "language": language}
        )

    async def agree(self, request: Request) -> Response:
        """Agree to a changed text."""
        body = await read_object(request)
        self._check_consent(body)
        address = self.desk.address(request)
        await self.desk.run(
            request,
            lambda worker: accounts.renew_consent(self.desk.site, worker, self.desk.consent.version, address),
            kind="write",
        )
        return Response(status_code=204)

    async def sign_up(self, request: Request) -> Response:
        """Make an account and log in."""
        body = await read_object(request)
        desk, address = self.desk, self.desk.address(request)
        if not desk.site.settings.sign_up:
            raise Refused(403, "this site does not take new accounts; ask who runs it")
        self._check_consent(body)
        name, password = accounts.check_name(body.get("name")), check_password(body.get("password"))
        language = body.get("language")
        language = language if language in desk.site.settings.languages else desk.language(request)
        desk.rates.sign_up(address)

        def make() -> str:
            with desk.site.database.read() as connection:
                if accounts.find_account(connection, name) is not None:
                    raise Refused(409, "this name is taken; please choose another")
            number = accounts.add_account(
                desk.site, name, desk.passwords.hash(password), language=str(language),
                consent=desk.consent.version, address=address,
            )  # fmt: skip
            return accounts.open_session(desk.site, number, replaces=desk.token(request))

        token = await desk.hashing.run(make)
        response = JSONResponse({"name": name, "language": language}, 201)
        desk.give_session(response, token)
        return response

    def _check_consent(self, body: dict[str, Any]) -> None:
        present = self.desk.consent.version
        if body.get("consent") != present:
            raise Refused(422, "an account needs your consent to the present text", consent=present)

    async def log_in(self, request: Request) -> Response:
        """Open a session; the one the browser had ends."""
        body = await read_object(request)
        desk, address = self.desk, self.desk.address(request)
        name, password = body.get("name"), body.get("password")
        if not isinstance(name, str) or not isinstance(password, str):
            raise Refused(422, "give name and password as text")
        key = accounts.name_key(name[:200])
        desk.rates.log_in_allowed(key, address)

        def check() -> str:
            number = accounts.log_in(desk.site, desk.passwords, name, password, address)
            return accounts.open_session(desk.site, number, replaces=desk.token(request))

        try:
            token = await desk.hashing.run(check)
        except Refused as error:
            if error.status == 401:
                desk.rates.log_in_failed(key, address)
            raise
        response = JSONResponse({"name": name})
        desk.give_session(response, token)
        return response

    async def log_out(self, request: Request) -> Response:
        """End the session, here and in the database."""
        address = self.desk.address(request)
        worker = await self.desk.worker(request)
        if worker is not None:
            await self.desk.run(
                request, lambda worker: accounts.end_session(self.desk.site, worker, address), kind="write"
            )
        response = Response(status_code=204)
        self.desk.take_session(response)
        return response

    async def me(self, request: Request) -> Response:
        """What is held about me, in numbers."""
        return JSONResponse(await self.desk.run(request, self.about))

    def about(self, worker: Worker) -> dict[str, Any]:
        """What is held about a worker, in numbers."""
        site, table, assignment = self.desk.site, schema.worker, schema.assignment
        with site.database.read() as connection:
            row = connection.execute(select(table).where(table.c.id == worker.id)).one()
            clicks, first = connection.execute(
                select(
                    func.coalesce(func.sum(assignment.c.n_clicks), 0), func.min(assignment.c.opened_at)
                ).where(assignment.c.worker_id == worker.id)
            ).one()
            sessions = connection.execute(
                select(func.count()).where(schema.session.c.worker_id == worker.id)
            ).scalar_one()
            return {
                "name": row.name,
                "role": row.role,
                "language": row.language,
                "created": iso(row.created_at),
                "consent": {"version": row.consent_version, "at": iso(row.consent_at)},
                "consent_present": row.consent_version == self.desk.consent.version,
                "clicks": int(clicks),
                "first_tile": iso(first),
                "sessions": sessions,
                "after_deletion": site.settings.clicks_after_deletion,
                "projects": projects_of(site, connection, worker),
            }

    async def export_me(self, request: Request) -> Response:
        """A copy of all that is held about me."""
        found = await self.desk.run(request, self._everything, kind="export")
        headers = {"Content-Disposition": 'attachment; filename="my-marks.json"'}
        return JSONResponse(found, headers=headers)

    def _everything(self, worker: Worker) -> dict[str, Any]:
        assignment, click, tile, project = schema.assignment, schema.click, schema.tile, schema.project
        about = self.about(worker)
        with self.desk.site.database.read() as connection:
            tiles = connection.execute(
                select(assignment, project.c.name.label("project"), tile.c.kind)
                .join(tile, tile.c.id == assignment.c.tile_id)
                .join(project, project.c.id == assignment.c.project_id)
                .where(assignment.c.worker_id == worker.id)
                .order_by(assignment.c.id)
            ).all()
            marks: dict[int, list[dict[str, Any]]] = {}
            for c in connection.execute(
                select(click)
                .join(assignment, assignment.c.id == click.c.assignment_id)
                .where(assignment.c.worker_id == worker.id, click.c.deleted_at.is_(None))
                .order_by(click.c.assignment_id, click.c.at, click.c.id)
            ):
                marks.setdefault(c.assignment_id, []).append(
                    {"id": c.id, "x": c.x, "y": c.y, "subtile": c.subtile, "at": iso(c.at)}
                )
            log = connection.execute(
                select(schema.audit.c.at, schema.audit.c.action)
                .where(schema.audit.c.worker_id == worker.id)
                .order_by(schema.audit.c.id)
            ).all()
        # Tiles by the names they have for this worker: no copy tells which of them are quality control.
        about["tiles"] = [
            {
                "tile": t.token,
                "project": t.project,
                "practice": t.kind == "practice",
                "opened": iso(t.opened_at),
                "finished": iso(t.completed_at),
                "clicks": marks.get(t.id, []),
            }
            for t in tiles
        ]
        about["log"] = [{"at": iso(entry.at), "action": entry.action} for entry in log]
        return about

    async def delete_me(self, request: Request) -> Response:
        """Delete the account; its clicks as the consent text says."""
        address = self.desk.address(request)

        def remove(worker: Worker) -> None:
            if worker.role == "admin" and self._last_admin():
                raise Refused(409, "you are the only administrator; make another one first")
            accounts.delete_account(self.desk.site, worker.id, by=worker.id, address=address)

        await self.desk.run(request, remove, kind="write")
        response = Response(status_code=204)
        self.desk.take_session(response)
        return response

    def _last_admin(self) -> bool:
        table = schema.worker
        with self.desk.site.database.read() as connection:
            count = select(func.count()).where(table.c.role == "admin", ~table.c.disabled)
            return connection.execute(count).scalar_one() <= 1
