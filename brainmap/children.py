"""Processes that brainmap starts: none outlives the one that started it, and none is interrupted by itself."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["end_with_parent", "end_with_starter", "keeping_interrupts", "without_interrupts"]

_LOOK_S = 1.0
_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """In a process of `multiprocessing`: end at once when its parent is gone, whatever it died of."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        _watch(parent.join)


def end_with_starter(pid: int) -> None:
    """In a process of another kind: end at once when the process of this number, which waits for it, is gone.

    On Linux that means: when the *thread* that started this one ends, so it must be the one that waits (see
    `brainmap.registration.ants_process`). On Windows nothing is done: the number of a parent never changes there.
    """
    if sys.platform == "win32":
        return
    if sys.platform == "linux":
        # The system does it, also where a library holds the interpreter for minutes.
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != pid:
        # Gone before the system was asked to tell.
        os._exit(1)

    def gone() -> None:
        while os.getppid() == pid:
            time.sleep(_LOOK_S)

    _watch(gone)


def _watch(wait: object) -> None:
    def watch() -> None:
        wait()  # type: ignore[operator]
        os._exit(1)

    threading.Thread(target=watch, name="brainmap-parent", daemon=True).start()


@contextmanager
def keeping_interrupts() -> Iterator[None]:
    """What is imported inside does not take Ctrl-C for itself: some libraries end the process with it."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is not before:
            signal.signal(signal.SIGINT, before)


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Threads and processes started inside get no Ctrl-C, which a terminal sends to all: the command ends them.

    One that comes meanwhile is delivered afterwards.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    # Starting it later would let Ctrl-C through again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
