"""What all routes share: the site, its guards against haste, and who is asking."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from brainmap.crowd.store import audit
from brainmap.crowd.store.consent import Consent, read_consent
from brainmap.crowd.store.refused import Refused
from brainmap.crowd.store.site import Site
from brainmap.crowd.web.rates import RateKeeper
from brainmap.crowd.work.accounts import Worker, session_worker
from brainmap.crowd.work.passwords import PasswordQueue, Passwords

__all__ = ["Desk", "refusal"]

T = TypeVar("T")


@dataclass(frozen=True)
class Desk:
    """The services of a running site, each of which a test can replace."""

    site: Site
    passwords: Passwords
    rates: RateKeeper
    consent: Consent
    hashing: PasswordQueue = field(default_factory=PasswordQueue)

    @classmethod
    def of(cls, site: Site, passwords: Passwords | None = None) -> Desk:
        """The services a site has by default."""
        consent = read_consent(site.folder, site.settings)
        return cls(site, passwords or Passwords(), RateKeeper(site.settings.rates), consent)

    @property
    def cookie(self) -> str:
        """Name of the session cookie; over https browsers bind the name to this very host."""
        return "__Host-brainmap" if self.site.settings.secure else "brainmap"

    def token(self, request: Request) -> str | None:
        """The session token of a request."""
        return request.cookies.get(self.cookie)

    def give_session(self, response: Response, token: str) -> None:
        """Send a session token."""
        response.set_cookie(
            self.cookie, token, max_age=int(3600 * self.site.settings.session_hours), path="/",
            secure=self.site.settings.secure, httponly=True, samesite="lax",
        )  # fmt: skip

    def take_session(self, response: Response) -> None:
        """Make the browser forget its session."""
        response.delete_cookie(
            self.cookie, path="/", secure=self.site.settings.secure, httponly=True, samesite="lax"
        )

    @staticmethod
    def address(request: Request) -> str:
        """Address the request came from; a proxy's word counts only if the settings name the proxy."""
        return request.client.host if request.client else ""

    def language(self, request: Request) -> str:
        """A language of the site: asked for, or accepted by the browser, or the first."""
        offered = self.site.settings.languages
        wanted = [request.query_params.get("language", "")]
        wanted += [part.partition(";")[0] for part in request.headers.get("accept-language", "").split(",")]
        for name in wanted:
            if (short := name.strip().lower()[:2]) in offered:
                return short
        return offered[0]

    async def worker(self, request: Request) -> Worker | None:
        """Who is asking, if he is logged in."""

        def find() -> Worker | None:
            with self.site.database.read() as connection:
                return session_worker(self.site, connection, self.token(request))

        return await run_in_threadpool(find) if self.token(request) else None

    async def run(
        self,
        request: Request,
        function: Callable[[Worker], T],
        *,
        kind: str = "read",
        role: str | None = None,
        consented: bool = False,
    ) -> T:
        """Call a function in a thread with the one who is asking.

        Parameters
        ----------
        kind : str
            "read", "write" or "export": which rate it counts for.
        role : str, optional
            Only this role may.
        consented : bool
            Only who agreed to the present text may.

        Raises
        ------
        Refused
            401, 403, 429, and what the function raises.
        """
        token, address = self.token(request), self.address(request)

        def work() -> T:
            with self.site.database.read() as connection:
                worker = session_worker(self.site, connection, token)
            if worker is None:
                raise Refused(401, "please log in")
            self.rates.hit(kind, worker.id, address)
            if role is not None and worker.role != role:
                self._note_trespass(worker, request.url.path, address)
                raise Refused(403, "this is for administrators only")
            if consented and worker.consent_version != self.consent.version:
                raise Refused(403, "please read what you agree to, and agree", consent=self.consent.version)
            return function(worker)

        return await run_in_threadpool(work)

    def _note_trespass(self, worker: Worker, path: str, address: str) -> None:
        with self.site.database.write() as connection:
            audit.note(self.site, connection, "refused", worker.id, address, path=path[:200])


def refusal(error: Refused) -> JSONResponse:
    """The answer to a refused request."""
    facts: Mapping[str, Any] = error.facts
    headers = {"Retry-After": str(facts["retry_after"])} if "retry_after" in facts else None
    return JSONResponse({"error": error.sentence, **facts}, error.status, headers=headers)
