"""Which blocks are at work, and what becomes of those that come back or do not.

The scheduler never holds more than a small window of tasks, so nothing grows with the number of blocks.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from brainmap.errors import DataError
from brainmap.infer.block.process import Job
from brainmap.infer.engine.batch import BatchReport, process_batch
from brainmap.infer.engine.progress import Progress
from brainmap.infer.engine.tally import LEFT, Tally, block_voxels

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["Dispatcher", "batch_size"]

log = logging.getLogger(__name__)

ATTEMPTS = 3
# Small blocks share a task and a file, until a task is about this much work: a first guess by the network's
# pixels, then what blocks were seen to take. A kill costs no more than that.
_BATCH_S = 2.0
_BATCH_PIXELS = 1 << 23
_BATCH_BLOCKS = 1024
# Tasks in flight per worker thread: one at work, one waiting.
_WINDOW = 2
_SAVE_EVERY_S = 5.0
# How often workers are counted: asking the scheduler takes a round trip.
_COUNT_EVERY_S = 1.0


class Dispatcher:
    """Keeps a bounded window of batches at the workers, and deals with what comes back."""

    def __init__(self, client: Client, job: Job, tally: Tally, bar: Progress) -> None:
        self.client, self.job, self.tally, self.bar = client, job, tally, bar
        self.pace = Pace(job, tally.states.count(LEFT), max(1, sum(client.nthreads().values())))
        self.left = tally.states.batches(self.pace.size)
        self.counted, self.window = -math.inf, 1
        self.again: deque[tuple[tuple[int, ...], int]] = deque()
        # Blocks that were at work on workers that died, more than once.
        self.suspects: deque[tuple[tuple[int, ...], int]] = deque()
        self.alone: str | None = None
        self.active: dict[str, tuple[tuple[int, ...], int]] = {}
        self.futures: dict[str, Future] = {}
        self.token = secrets.token_hex(4)
        self.topic = f"brainmap-blocks-{self.token}"
        self.started = self.saved = time.monotonic()

    def run(self, meanwhile: Callable[[], None] | None = None) -> None:
        """Process everything; raise what no block could survive. `meanwhile` is called with the first under way."""
        from distributed import as_completed

        completed = as_completed([])
        self.client.subscribe_topic(self.topic, self._hear)
        try:
            self._work(completed, meanwhile)
        finally:
            self.client.unsubscribe_topic(self.topic)

    def _work(self, completed: Any, meanwhile: Callable[[], None] | None) -> None:
        self._fill(completed)
        if meanwhile is not None:
            meanwhile()
        for future in completed:
            indices, attempt = self.active.pop(future.key)
            self.futures.pop(future.key)
            self._receive(future, indices, attempt)
            self.bar.within(indices[0], 0)
            # Released before the next wait: the scheduler forgets the task.
            del future
            self._fill(completed)
            self._show()

    def _fill(self, completed: Any) -> None:
        window = self._window()
        if self.suspects or self.alone in self.active:
            # Alone, so that only the block that kills its worker is blamed for it.
            window = 1
        while len(self.active) < window and (batch := self._next()) is not None:
            indices, attempt = batch
            suspect = window == 1 and not self.active
            key = f"blocks-{self.token}-{indices[0]}-{indices[-1]}-{attempt}"
            future = self.client.submit(process_batch, self.job, indices, self.topic, key=key, pure=False)
            self.active[key] = batch
            self.futures[key] = future
            self.alone = key if suspect else self.alone
            completed.add(future)

    def _hear(self, event: tuple[float, dict[str, Any]]) -> None:
        """Show how far a batch is; called by the client's own thread."""
        batch = tuple(event[1]["batch"])
        if any(indices == batch for indices, _ in list(self.active.values())):
            voxels = int(block_voxels(self.job.blocks, np.array(batch)).sum())
            self.bar.within(batch[0], event[1]["share"] * voxels)

    def _window(self) -> int:
        """How many tasks may be in flight with the workers there are now."""
        now = time.monotonic()
        if now - self.counted > _COUNT_EVERY_S:
            self.pace.threads = max(1, sum(self.client.nthreads().values()))
            self.counted, self.window = now, _WINDOW * self.pace.threads
        return self.window

    def _next(self) -> tuple[tuple[int, ...], int] | None:
        for retries in (self.suspects, self.again):
            if retries:
                return retries.popleft()
        indices = next(self.left, None)
        return None if indices is None else (indices, 1)

    def _receive(self, future: Future, indices: tuple[int, ...], attempt: int) -> None:
        from distributed import KilledWorker

        if future.status == "finished":
            report: BatchReport = future.result()
            self.tally.add(report)
            self.pace.learn(report)
            for index, reason in report.failed.items():
                self._retry(index, attempt, reason)
        elif future.status == "error" and isinstance(error := future.exception(), KilledWorker):
            log.debug("batch %s: %s", indices, error)
            for index in indices:
                self._retry(index, attempt, "its worker died, perhaps out of memory", died=True)
        elif future.status == "error":
            raise future.exception()
        else:
            raise DataError("all workers or the scheduler are gone; run the same command again to go on")

    def _retry(self, index: int, attempt: int, reason: str, died: bool = False) -> None:
        if attempt == ATTEMPTS:
            self.tally.fail(index, reason)
        elif died and attempt == ATTEMPTS - 1:
            self.suspects.append(((index,), attempt + 1))
        else:
            self.again.append(((index,), attempt + 1))

    def _show(self) -> None:
        now = time.monotonic()
        tally = self.tally
        self.bar.update(tally.voxels, tally.cells, len(tally.failed), now - self.started)
        # Writing the list takes longer the more blocks there are: at most a hundredth of the time.
        if now - self.saved > _SAVE_EVERY_S * max(1.0, len(tally.states.values) / 1e5):
            tally.save("running")
            self.saved = time.monotonic()


class Pace:
    """How many blocks make a task: about `_BATCH_S` of work, and fewer where the end is near."""

    def __init__(self, job: Job, left: int, threads: int) -> None:
        self.left, self.threads = left, threads
        self.blocks = batch_size(job, left, threads)

    def size(self) -> int:
        """Blocks of the next task."""
        size = max(1, min(self.blocks, self.left // (4 * self.threads), _BATCH_BLOCKS))
        self.left -= size
        return size

    def learn(self, report: BatchReport) -> None:
        """Take account of a task's time; at most twice as many blocks next, as they are not all alike."""
        seconds = sum(report.seconds.values())
        if report.done:
            fitting = _BATCH_S * len(report.done) / max(seconds, 1e-6)
            self.blocks = max(1, int(min(fitting, 2 * len(report.done))))


def batch_size(job: Job, left: int, threads: int) -> int:
    """Blocks of the first tasks: about a second of work, and enough tasks for all threads."""
    groups, rows, columns = job.blocks.size
    work = max(1, groups * rows * columns)
    return max(1, min(_BATCH_PIXELS // work, left // (4 * threads), _BATCH_BLOCKS))
