"""How far a long piece of work has come: the library says it here, and whoever runs it decides how it is shown.

    with task("converting", total=400, unit="planes") as work:
        for plane in planes:
            ...
            work.advance()

Nothing is shown unless a `Display` is there: `shown` puts one up, bars on a terminal and a line in the log every
minute elsewhere. Work that reports is never slower for it: a report is an assignment.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

__all__ = ["Display", "LogDisplay", "Task", "TerminalDisplay", "duration", "shown", "task", "tracked"]

log = logging.getLogger(__name__)

#: Seconds between two lines of the same work in a log.
LOG_EVERY_S = 60.0
#: A time left is told from this share and these seconds on: before, it is a guess.
_SURE_SHARE, _SURE_S = 0.02, 3.0

T = TypeVar("T")


class Task:
    """A piece of work that takes a while.

    Attributes
    ----------
    what : str
        What is done, in words that fit before a colon.
    total : float or None
        How much there is to do; None if nobody can tell.
    unit : str
        What `total` counts, in the plural; empty if the number means nothing to people.
    done : float
    note : str
        What else there is to say now.
    """

    def __init__(self, what: str, total: float | None = None, unit: str = "", done: float = 0.0) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done, self.note = done, ""
        self.began, self._first = time.monotonic(), done
        self._lock = threading.Lock()

    def update(self, done: float, note: str | None = None) -> None:
        """Say how much is done; from any thread."""
        self.done = done
        if note is not None:
            self.note = note

    def advance(self, amount: float = 1.0) -> None:
        """Say that so much more is done; from any thread."""
        with self._lock:
            self.done += amount

    @property
    def share(self) -> float | None:
        """Share that is done, 0 to 1; None if the total is not known."""
        return None if not self.total else min(1.0, max(0.0, self.done / self.total))

    @property
    def seconds(self) -> float:
        """Time since it began."""
        return time.monotonic() - self.began

    @property
    def seconds_left(self) -> float | None:
        """Time left at the pace so far; None while that is a guess."""
        done, seconds = self.done - self._first, self.seconds
        if not self.total or done <= 0 or seconds < _SURE_S or done < _SURE_SHARE * self.total:
            return None
        return seconds * max(0.0, self.total - self.done) / done

    def words(self) -> str:
        """How far it is, and what is left, as a phrase."""
        parts = []
        if self.share is not None and self.total is not None:
            of = f" ({self.done:,.0f} of {self.total:,.0f} {self.unit})" if self.unit else ""
            parts.append(f"{100 * self.share:.0f} %{of}")
        if self.note:
            parts.append(self.note)
        left = self.seconds_left
        parts.append(f"{duration(self.seconds)} so far" if left is None else f"about {duration(left)} left")
        return ", ".join(parts)


class Display(Protocol):
    """Shows work as it goes on; it is told of beginnings and ends, and looks at the tasks itself meanwhile."""

    def begun(self, work: Task) -> None:
        """Show a task from now on."""
        ...

    def ended(self, work: Task) -> None:
        """Show it no longer."""
        ...


_display: Display | None = None


@contextmanager
def task(what: str, total: float | None = None, unit: str = "", done: float = 0.0) -> Iterator[Task]:
    """Do a piece of work under a name; see `Task`."""
    work, display = Task(what, total, unit, done), _display
    if display is not None:
        display.begun(work)
    try:
        yield work
    finally:
        if display is not None:
            display.ended(work)


def tracked(items: Iterable[T], what: str, total: float | None = None, unit: str = "") -> Iterator[T]:
    """The items, one after another, as a task that is done with the last of them."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with task(what, total, unit) as work:
        for item in items:
            yield item
            work.advance()


@contextmanager
def shown(display: Display | None = None) -> Iterator[None]:
    """Show what tasks report, by default as bars on a terminal and as lines in the log elsewhere."""
    global _display
    before = _display
    _display = display or (TerminalDisplay() if sys.stderr.isatty() else LogDisplay())
    try:
        yield
    finally:
        _display = before


class TerminalDisplay:
    """A bar for each task under way, at the bottom of the terminal; it vanishes with the task."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bars: Any = None
        self._rows: dict[int, Any] = {}

    def begun(self, work: Task) -> None:
        """Show a task from now on."""
        with self._lock:
            if self._bars is None:
                self._bars = _bars()
                self._bars.start()
            self._rows[id(work)] = self._bars.add_task(work.what, total=work.total, work=work)

    def ended(self, work: Task) -> None:
        """Show it no longer; without tasks the terminal is left alone."""
        with self._lock:
            row = self._rows.pop(id(work), None)
            if self._bars is None or row is None:
                return
            self._bars.update(row, completed=work.done, refresh=True)
            self._bars.remove_task(row)
            if not self._rows:
                self._bars.stop()
                self._bars = None


def _bars() -> Any:
    """rich's bars, which look at our tasks whenever they are drawn."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
    from rich.text import Text

    class Words(ProgressColumn):
        def render(self, row: Any) -> Text:
            return Text(row.fields["work"].words(), no_wrap=True, overflow="ellipsis")

    class Bars(Progress):
        def get_renderables(self) -> Any:
            for row in self.tasks:
                row.completed = row.fields["work"].done
            yield from super().get_renderables()

    return Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        Words(),
        console=Console(stderr=True),
        transient=True,
        refresh_per_second=4,
    )


class LogDisplay:
    """A line in the log for each task that takes long, every minute."""

    def __init__(self, every_s: float = LOG_EVERY_S) -> None:
        self.every_s = every_s
        self._lock = threading.Lock()
        self._tasks: dict[int, Task] = {}
        self._over: threading.Event | None = None

    def begun(self, work: Task) -> None:
        """Log about a task from now on."""
        with self._lock:
            self._tasks[id(work)] = work
            if self._over is None:
                self._over = threading.Event()
                thread = threading.Thread(target=self._watch, args=(self._over,), daemon=True)
                thread.name = "brainmap-progress"
                thread.start()

    def ended(self, work: Task) -> None:
        """Log about it no longer."""
        with self._lock:
            self._tasks.pop(id(work), None)
            if not self._tasks and self._over is not None:
                self._over.set()
                self._over = None

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(self.every_s):
            with self._lock:
                tasks = list(self._tasks.values())
            for work in tasks:
                log.info("%s: %s", work.what, work.words())


def duration(seconds: float) -> str:
    """A time in words, no finer than people plan by: 40 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
