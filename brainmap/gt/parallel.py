"""Run a function over images, in this process or in several; the result does not depend on which."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from types import TracebackType
from typing import Any

from brainmap.children import end_with_parent, without_interrupts
from brainmap.progress import tracked

__all__ = ["Runner"]

LEAST = 16  # tasks below which starting processes costs more than it saves


class Runner:
    """`map` over argument tuples, in order. Processes are spawned (fork and threads do not mix) when first needed.

    A script that asks for more than one worker needs the usual `if __name__ == "__main__":` guard.
    """

    def __init__(self, workers: int = 1) -> None:
        self.workers = max(int(workers), 1)
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            if error is not None:
                # Not waited for: what they compute is wanted no more.
                _end(self._pool)
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def map(
        self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], what: str = "reading clicks"
    ) -> list[Any]:
        """`[function(*task) for task in tasks]`; `what` is the name under which progress is reported."""
        if self.workers == 1 or len(tasks) < LEAST:
            return [function(*task) for task in tracked(tasks, what, unit="images")]
        size = max(1, len(tasks) // (8 * self.workers))
        with without_interrupts():
            if self._pool is None:
                self._pool = ProcessPoolExecutor(
                    self.workers, multiprocessing.get_context("spawn"), initializer=end_with_parent
                )
            found = self._pool.map(_call, [function] * len(tasks), tasks, chunksize=size)
        return list(tracked(found, what, len(tasks), "images"))


def _end(pool: ProcessPoolExecutor) -> None:
    for process in list((pool._processes or {}).values()):
        process.terminate()


def _call(function: Callable[..., Any], task: tuple[Any, ...]) -> Any:
    return function(*task)
