"""What every request must pass: the right host, the same origin, and answers that browsers treat with care."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = [
    "CONTENT_SECURITY_POLICY",
    "HostCheck",
    "OwnPagesOnly",
    "SafeHeaders",
    "SameOrigin",
    "is_same_origin",
]

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

# No inline code, nothing from elsewhere, in no frame. Marked images are shown from memory: blob.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' blob:", "connect-src 'self'",
        "worker-src 'self'", "manifest-src 'self'", "form-action 'self'", "base-uri 'none'",
        "frame-ancestors 'none'", "object-src 'none'",
    )
)  # fmt: skip


class HostCheck:
    """Refuses requests for another host than the site's: links in pages and cookies must not follow a forged one.

    Parameters
    ----------
    hosts : iterable of str
        Names without port, lower case; "*" takes any.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str]) -> None:
        self.app, self.hosts = app, frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and "*" not in self.hosts:
            given = Headers(scope=scope).getlist("host")
            if len(given) != 1 or _host_name(given[0]) not in self.hosts:
                answer = JSONResponse({"error": "this host name is not this site's"}, 400)
                await answer(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


class SameOrigin:
    """Lets requests that change something come from the site's own pages only.

    Browsers of today say where a request comes from in `Sec-Fetch-Site`, which no page can forge: only
    `same-origin` and `none` (the person himself) pass; `same-site` does not, since a neighbour on the same domain
    is somebody else. Without it, `Origin` must name this site. A request with neither does not come from a page in
    a browser: it carries no cookie that its sender did not put there, so it passes. That is the rule of Go's
    CrossOriginProtection and of datasette; no tokens are needed, and none can leak.

    Parameters
    ----------
    public_url : str
        Where people reach the site, if not by the host the request names.
    """

    def __init__(self, app: ASGIApp, public_url: str = "") -> None:
        self.app, self.public_url = app, public_url

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in SAFE_METHODS:
            headers = Headers(scope=scope)
            own = {f"{scope['scheme']}://{headers.get('host', '')}".lower()}
            if self.public_url:
                own.add(self.public_url.rstrip("/").lower())
            if not is_same_origin(headers.get("sec-fetch-site"), headers.get("origin"), own):
                answer = JSONResponse({"error": "changes are accepted from this site's own pages only"}, 403)
                await answer(scope, receive, send)
                return
        await self.app(scope, receive, send)


def is_same_origin(fetch_site: str | None, origin: str | None, own: set[str]) -> bool:
    """The rule of `SameOrigin` on the values of the two headers."""
    if fetch_site is not None:
        return fetch_site.lower() in ("same-origin", "none")
    if origin is not None:
        return origin.lower() in own
    return True


class OwnPagesOnly:
    """Lets a browser's requests come from the site's own pages alone, reading too.

    For a site without passwords on one's own machine: a page from elsewhere in the same browser reaches loopback,
    so it must neither change nor read nor embed anything. Only a person may come from elsewhere, by a link to a
    page. A request that names no origin comes from no page of a browser.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            own = {f"{scope['scheme']}://{headers.get('host', '')}".lower()}
            origin = headers.get("origin")
            ours = is_same_origin(headers.get("sec-fetch-site"), origin, own)
            ours &= origin is None or origin.lower() in own
            if not ours and not self._by_link(scope, headers):
                answer = JSONResponse({"error": "this is for its own pages only"}, 403)
                await answer(scope, receive, send)
                return
        await self.app(scope, receive, send)

    @staticmethod
    def _by_link(scope: Scope, headers: Headers) -> bool:
        return (
            scope["method"] == "GET"
            and headers.get("origin") is None
            and headers.get("sec-fetch-mode") == "navigate"
            and headers.get("sec-fetch-dest") == "document"
        )


class SafeHeaders:
    """Adds the headers that make browsers careful; what is private is not stored by caches.

    Parameters
    ----------
    secure : bool
        People reach the site by https: browsers shall never try anything else.
    policy : str
        The content security policy, for paths that have none of their own.
    policies : dict
        Policies of the paths that start with a prefix.
    frames : bool
        Pages of the site may show each other in frames.
    """

    def __init__(
        self,
        app: ASGIApp,
        secure: bool = False,
        policy: str = CONTENT_SECURITY_POLICY,
        policies: Mapping[str, str] | None = None,
        frames: bool = False,
    ) -> None:
        self.app, self.secure, self.policy, self.frames = app, secure, policy, frames
        self.policies = dict(policies or {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        own = (policy for prefix, policy in self.policies.items() if scope["path"].startswith(prefix))
        policy = next(own, self.policy)

        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = policy
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "same-origin"
                headers["Cross-Origin-Opener-Policy"] = "same-origin"
                headers["Cross-Origin-Resource-Policy"] = "same-origin"
                headers["Permissions-Policy"] = "camera=(), geolocation=(), microphone=(), payment=()"
                headers["X-Frame-Options"] = "SAMEORIGIN" if self.frames else "DENY"
                if self.secure:
                    headers["Strict-Transport-Security"] = "max-age=31536000"
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self.app(scope, receive, add)
