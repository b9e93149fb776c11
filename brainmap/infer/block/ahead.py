"""Read the next part while the present one is at work."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["read_ahead"]

Request = TypeVar("Request")
Part = TypeVar("Part")


def read_ahead(
    read: Callable[[Request], Part], requests: Iterable[Request]
) -> Generator[tuple[Request, Part], None, None]:
    """Requests and what is read for them, in order; one more than was asked for is always under way.

    Whatever a read raises is raised where its part is asked for. When the iterator is closed early, the
    read under way is waited for.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="brainmap-ahead") as pool:
        waiting: tuple[Request, Future[Part]] | None = None
        for request in requests:
            begun = (request, pool.submit(read, request))
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = begun
        if waiting is not None:
            yield waiting[0], waiting[1].result()
