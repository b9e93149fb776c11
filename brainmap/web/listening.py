"""The address that pages are served at."""

from __future__ import annotations

import socket

from brainmap.errors import UsageError

__all__ = ["LOOPBACK", "listen"]

#: Names of this machine that only itself can reach.
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at an address.

    Raises
    ------
    UsageError
        If the port is taken, or the host is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    # Answers go out in two pieces; without this the second waits 40 ms for the client's word on the first. asyncio
    # sets it only on sockets that were made with their protocol; what is accepted inherits it from here.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise UsageError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another --port"
        ) from error
    listener.listen(2048)
    return listener
