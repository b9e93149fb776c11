"""`brainmap crowd serve`: refuses what would put passwords on the open network, then serves."""

from __future__ import annotations

import dataclasses
import ipaddress
import logging
from pathlib import Path

from brainmap.crowd.store.site import Site
from brainmap.crowd.web.app import create_app
from brainmap.errors import UsageError
from brainmap.web.listening import LOOPBACK, listen

__all__ = ["check_exposure", "serve"]

log = logging.getLogger(__name__)


def serve(folder: str | Path, host: str, port: int, public_url: str = "", *, insecure: bool = False) -> None:
    """Serve a site until interrupted.

    Raises
    ------
    UsageError
        Another host than loopback without https, or a port that is taken.
    """
    import uvicorn

    from brainmap.crowd.web.protocol import BoundedProtocol

    site = Site.open(folder)
    if public_url:
        site = dataclasses.replace(site, settings=dataclasses.replace(site.settings, public_url=public_url))
    check_exposure(host, site.settings.public_url, insecure=insecure)
    hosts = {"*"} if insecure and not site.settings.public_url else {*LOOPBACK, host}
    app = create_app(site, hosts=hosts)
    listener = listen(host, port)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, lifespan="on",
        proxy_headers=bool(site.settings.proxies), forwarded_allow_ips=list(site.settings.proxies),
        http=BoundedProtocol, timeout_keep_alive=30, timeout_graceful_shutdown=5,
    )  # fmt: skip
    shown = f"[{host}]" if ":" in host else host
    log.info(
        "serving %s at %s", folder, site.settings.public_url or f"http://{shown}:{listener.getsockname()[1]}"
    )
    uvicorn.Server(config).run(sockets=[listener])


def check_exposure(host: str, public_url: str, *, insecure: bool) -> None:
    """Refuse to be reached from elsewhere without https.

    Raises
    ------
    UsageError
    """
    if insecure or is_loopback(host) or public_url.startswith("https://"):
        return
    raise UsageError(
        f"--host {host} would let others in without encryption: give --public-url https://... of the proxy in "
        "front, or --insecure if you mean it"
    )


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
