"""HTTP as uvicorn reads it with a parser in C, which by itself takes heads of any length."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["MOST_HEAD_BYTES", "BoundedProtocol"]

#: Request line and headers together; browsers send one or two kilobytes.
MOST_HEAD_BYTES = 32 * 1024


class BoundedProtocol(HttpToolsProtocol):
    """Hangs up on whoever sends a longer head than any browser does."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._head = 0
        self._in_head = True

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless it is too much of a head."""
        if self._in_head:
            self._head += len(data)
            # A body may have come along with the head: it is not counted once the head is read.
            if self._head - len(data) > MOST_HEAD_BYTES:
                self.transport.close()
                return
        super().data_received(data)

    def on_headers_complete(self) -> None:
        """The head is read."""
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The next head may come."""
        self._in_head, self._head = True, 0
        super().on_message_complete()
